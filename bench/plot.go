package bench

import (
	"bytes"
	"fmt"
	"math"
	"slices"

	"github.com/go-analyze/charts/chartdraw"
	"github.com/go-analyze/charts/chartdraw/drawing"
)

// plot is a finished picture.
type plot struct {
	svg           []byte
	width, height int
}

// Sizes of plots, in pixels; of text, in points.
const (
	plotWidth    = 1000
	plotTop      = 72 // title and legend
	titleSize    = 13
	textSize     = 9
	figureSize   = 7.5
	noteHeight   = 18
	barHeight    = 11
	barGap       = 10 // between rows
	legendY      = 52
	legendSquare = 11
	labelsLeft   = 14   // names of rows
	labelRoom    = 1.25 // for names of rows, as viewers have other fonts than the one that is measured with
)

var (
	ink   = drawing.Color{R: 0x33, G: 0x33, B: 0x33, A: 0xff}
	faint = drawing.Color{R: 0xdd, G: 0xdd, B: 0xdd, A: 0xff}
)

// Colours that people with any kind of colour vision can tell apart (Okabe and Ito, "Color Universal Design"). The peers
// that are known have the same ones in all reports.
var (
	peerColors = map[string]drawing.Color{
		KernelPeer:      rgb(0x55, 0x55, 0x55),
		"squashfuse":    rgb(0xe6, 0x9f, 0x00),
		"squashfuse_ll": rgb(0xd5, 0x5e, 0x00),
		squirePeer:      rgb(0x00, 0x72, 0xb2),
		directoryPeer:   rgb(0x00, 0x9e, 0x73),
	}
	otherColors = []drawing.Color{rgb(0xcc, 0x79, 0xa7), rgb(0x56, 0xb4, 0xe9), rgb(0xc9, 0xb8, 0x00), rgb(0x8c, 0x56, 0x4b), rgb(0x99, 0x99, 0x99)}
)

func rgb(r, g, b uint8) drawing.Color { return drawing.Color{R: r, G: g, B: b, A: 0xff} }

// colors are those of the peers, in their order.
func (r *Report) colors() []drawing.Color {
	var colors []drawing.Color
	others := 0
	for _, p := range r.Peers {
		c, ok := peerColors[p.Name]
		if !ok {
			c = otherColors[others%len(otherColors)]
			others++
		}
		colors = append(colors, c)
	}
	return colors
}

// plots draws all that there is to be seen.
func (r *Report) plots() ([]plot, error) {
	var all []plot
	for _, c := range r.barCharts() {
		if len(c.bars) == 0 {
			continue
		}
		p, err := r.drawBars(c)
		if err != nil {
			return nil, fmt.Errorf("plot %q: %w", c.title, err)
		}
		all = append(all, p)
	}
	for i := range r.Curves {
		for _, v := range r.Curves[i].views() {
			if _, present := r.extent(&r.Curves[i], v); len(present) == 0 {
				continue
			}
			p, err := r.drawCurve(&r.Curves[i], v)
			if err != nil {
				return nil, fmt.Errorf("plot %q: %w", v.name, err)
			}
			all = append(all, p)
		}
	}
	return all, nil
}

// barChart is a plot of bars, some for each row.
type barChart struct {
	title, x string
	note     string // below it; may be empty
	rows     []string
	ratio    bool // bars start at 1, which is the reference
	bars     []bar
}

// bar is one of them, with its spread.
type bar struct {
	row, peer int
	spread
}

// barCharts are the plots of the table.
func (r *Report) barCharts() []barChart {
	wall := barChart{
		title: "Wall time relative to " + r.Reference, ratio: true,
		x: "times that of " + r.Reference + "; left of 1 is faster, right is slower; bar: median, line: fastest to slowest",
	}
	cpu := barChart{
		title: "CPU time of the machine relative to " + r.Reference, ratio: true,
		x: "times that with " + r.Reference + "; left of 1 is less, right is more; bar: mean, line: least to most",
	}
	perGiB := barChart{title: "CPU seconds of the machine for each GiB read", x: "CPU seconds for each GiB; bar: mean, line: least to most"}
	for _, row := range r.Rows {
		wall.add(&row, r.Reference, func(res *Result) spread { return spread{res.Wall.Ratio, res.Wall.RatioMin, res.Wall.RatioMax} })
		cpu.add(&row, r.Reference, func(res *Result) spread { return spread{res.CPU.Ratio, res.CPU.RatioMin, res.CPU.RatioMax} })
		perGiB.add(&row, "", func(res *Result) spread {
			if res.CPUPerGiB == 0 {
				return spread{}
			}
			return spread{res.CPU.Mean, res.CPU.Min, res.CPU.Max}.times(res.CPUPerGiB / res.CPU.Mean)
		})
	}
	if len(cpu.rows) < len(r.Rows) {
		cpu.note = fmt.Sprintf("Left out: rows with less than %v s of CPU time with %s in all rounds together; it is counted in steps of 10 ms.", leastCPU, r.Reference)
	}
	return []barChart{wall, cpu, perGiB}
}

// add adds a row, if any peer but the one to be left out has a figure there.
func (c *barChart) add(row *Row, without string, of func(*Result) spread) {
	n := len(c.bars)
	for i := range row.Results {
		res := &row.Results[i]
		if s := of(res); s.mid > 0 && res.Peer != without {
			c.bars = append(c.bars, bar{len(c.rows), i, s})
		}
	}
	if len(c.bars) > n {
		c.rows = append(c.rows, row.Name())
	}
}

// axis is the one that the chart's bars need.
func (c *barChart) axis() *axis {
	low, high := math.Inf(1), 0.0
	for _, b := range c.bars {
		low, high = min(low, b.mid), max(high, b.high)
	}
	if !c.ratio {
		return newAxis(low, high)
	}
	// A half and a double are as far from 1. Figures stand to the left of the shortest bars.
	a := logAxis(min(low/1.7, 0.5), max(high, 2))
	a.low = 1
	return a
}

// peers are those of n that have a bar.
func (c *barChart) peers(n int) (present []int) {
	for i := range n {
		if slices.ContainsFunc(c.bars, func(b bar) bool { return b.peer == i }) {
			present = append(present, i)
		}
	}
	return present
}

// drawBars draws a chart of bars.
func (r *Report) drawBars(c barChart) (plot, error) {
	a := c.axis()
	present := c.peers(len(r.Peers))
	rowHeight := len(present)*barHeight + barGap
	height := plotTop + len(c.rows)*rowHeight + 60
	title := c.title
	if a.log {
		title += " (logarithmic)"
	}
	chart := r.newChart(title, height, present)
	chart.XAxis = chartdraw.XAxis{
		Name: c.x, NameStyle: textStyle(textSize), Style: axisStyle(), Ticks: a.ticks, GridMajorStyle: gridStyle(), GridLines: gridLines(a),
	}
	chart.Background.Padding.Left = labelsLeft + int(labelRoom*float64(widest(c.rows)))
	if c.note != "" {
		addNote(&chart, c.note)
	}
	chart.YAxisSecondary = chartdraw.YAxis{Style: chartdraw.Hidden(), Range: &chartdraw.ContinuousRange{Max: 1}}
	chart.Series = []chartdraw.Series{&barSeries{c, a, r.colors(), present}}
	return render(chart)
}

// widest is the width of the longest text.
func widest(texts []string) (width int) {
	r := chartdraw.SVG(1, 1)
	r.SetDPI(drawing.DefaultDPI)
	for _, text := range texts {
		width = max(width, chartdraw.Draw.MeasureText(r, text, textStyle(textSize)).Width())
	}
	return width
}

// barSeries draws the bars of a chart, and the names of their rows: those of the library would end at the axis, and
// run into it where the viewer's font is wider than the one that it measures with.
type barSeries struct {
	barChart
	axis    *axis
	colors  []drawing.Color
	present []int
}

var _ chartdraw.Series = (*barSeries)(nil)

// GetName, GetYAxis, GetStyle and Validate say that it is a series of the axis on the left.
func (s *barSeries) GetName() string               { return s.title }
func (s *barSeries) GetYAxis() chartdraw.YAxisType { return chartdraw.YAxisSecondary }
func (s *barSeries) GetStyle() chartdraw.Style     { return chartdraw.Style{} }
func (s *barSeries) Validate() error               { return nil }

// Render draws.
func (s *barSeries) Render(r chartdraw.Renderer, box chartdraw.Box, xs, _ chartdraw.Range, _ chartdraw.Style) {
	x := func(v float64) int { return box.Left + xs.Translate(s.axis.at(v)) }
	zero := x(s.axis.low)
	rowHeight := float64(box.Height()) / float64(len(s.rows))
	for i, name := range s.rows {
		top := box.Top + int(float64(i)*rowHeight)
		line(r, faint, 1, labelsLeft, top, box.Right, top)
		chartdraw.Draw.Text(r, name, labelsLeft, top+int(rowHeight/2)+5, textStyle(textSize))
	}
	for _, b := range s.bars {
		top := box.Top + int(float64(b.row)*rowHeight) + barGap/2 + slices.Index(s.present, b.peer)*barHeight
		s.draw(r, b, top, zero, x(b.mid), x(b.low), x(b.high))
	}
	if s.ratio {
		line(r, ink, 1.5, zero, box.Top, zero, box.Bottom)
	}
}

// draw draws a bar below top from zero to end, its spread from low to high, and its figure behind both.
func (s *barSeries) draw(r chartdraw.Renderer, b bar, top, zero, end, low, high int) {
	box := chartdraw.Box{Left: min(zero, end), Right: max(zero, end), Top: top, Bottom: top + barHeight - 2}
	box.Right = max(box.Right, box.Left+1)
	chartdraw.Draw.Box(r, box, chartdraw.Style{FillColor: s.colors[b.peer]})
	mid := top + barHeight/2 - 1
	line(r, ink, 1, low, mid, high, mid)
	text, style := figure(b.mid), textStyle(figureSize)
	at := max(end, high) + 5
	if s.ratio && b.mid < 1 {
		at = min(end, low) - 5 - chartdraw.Draw.MeasureText(r, text, style).Width()
	}
	chartdraw.Draw.Text(r, text, at, mid+4, style)
}

// figure is a number beside a bar.
func figure(x float64) string {
	switch {
	case x >= 100:
		return fmt.Sprintf("%.0f", x)
	case x >= 10:
		return fmt.Sprintf("%.1f", x)
	case x >= 0.1:
		return fmt.Sprintf("%.2f", x)
	}
	return fmt.Sprintf("%.3f", x)
}

func line(r chartdraw.Renderer, c drawing.Color, width float64, x0, y0, x1, y1 int) {
	chartdraw.Style{StrokeColor: c, StrokeWidth: width}.WriteDrawingOptionsToRenderer(r)
	r.MoveTo(x0, y0)
	r.LineTo(x1, y1)
	r.Stroke()
	r.ResetStyle()
}

// newChart is a chart without axes and series, with a legend of the peers that are present.
func (r *Report) newChart(title string, height int, present []int) chartdraw.Chart {
	chart := chartdraw.Chart{
		Title: title, TitleStyle: textStyle(titleSize), Width: plotWidth, Height: height,
		Background: chartdraw.Style{Padding: chartdraw.Box{Top: plotTop, Left: 14, Right: 64, Bottom: 14, IsSet: true}},
		// The axis on the right is not used, but looked at.
		YAxis: chartdraw.YAxis{Style: chartdraw.Hidden(), Range: &chartdraw.ContinuousRange{Max: 1}},
	}
	colors := r.colors()
	legend := func(rend chartdraw.Renderer, box chartdraw.Box, _ chartdraw.Style) {
		x := box.Left
		for _, i := range present {
			chartdraw.Draw.Box(rend, chartdraw.Box{Left: x, Right: x + legendSquare, Top: legendY - legendSquare, Bottom: legendY}, chartdraw.Style{FillColor: colors[i]})
			style := textStyle(textSize)
			style.Font = chartdraw.GetDefaultFont()
			chartdraw.Draw.Text(rend, r.Peers[i].Name, x+legendSquare+6, legendY, style)
			x += legendSquare + 6 + chartdraw.Draw.MeasureText(rend, r.Peers[i].Name, style).Width() + 22
		}
	}
	chart.Elements = []chartdraw.Renderable{legend}
	return chart
}

// addNote writes a line below a chart.
func addNote(chart *chartdraw.Chart, text string) {
	chart.Height += noteHeight
	chart.Background.Padding.Bottom += noteHeight
	y := chart.Height - noteHeight + 2
	chart.Elements = append(chart.Elements, func(r chartdraw.Renderer, _ chartdraw.Box, _ chartdraw.Style) {
		chartdraw.Draw.Text(r, text, labelsLeft, y, textStyle(textSize))
	})
}

func textStyle(size float64) chartdraw.Style {
	return chartdraw.Style{FontStyle: chartdraw.FontStyle{FontSize: size, FontColor: ink, Font: chartdraw.GetDefaultFont()}}
}

func axisStyle() chartdraw.Style {
	s := textStyle(textSize)
	s.StrokeColor, s.StrokeWidth = ink, 1
	return s
}

func gridStyle() chartdraw.Style { return chartdraw.Style{StrokeColor: faint, StrokeWidth: 1} }

// gridLines are at all ticks: the library would leave out each other one.
func gridLines(a *axis) (lines []chartdraw.GridLine) {
	for _, t := range a.ticks[1:] {
		lines = append(lines, chartdraw.GridLine{Value: t.Value, Style: gridStyle()})
	}
	return lines
}

func render(chart chartdraw.Chart) (plot, error) {
	var out bytes.Buffer
	err := chart.Render(chartdraw.SVG, &out)
	return plot{out.Bytes(), chart.Width, chart.Height}, err
}
