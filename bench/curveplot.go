package bench

import (
	"math"

	"github.com/go-analyze/charts/chartdraw"
	"github.com/go-analyze/charts/chartdraw/drawing"
)

// curveHeight is that of a plot of curves, in pixels.
const curveHeight = 420

// drawCurve draws a view of a curve: a line for each peer.
func (r *Report) drawCurve(c *Curve, v view) (plot, error) {
	a, present := r.extent(c, v)
	title := c.Operation + ": " + v.name
	if a.log {
		title += " (logarithmic)"
	}
	for i := range a.ticks {
		a.ticks[i].Label += "  " // room for wider fonts
	}
	chart := r.newChart(title, curveHeight, present)
	chart.YAxisSecondary = chartdraw.YAxis{Style: axisStyle(), Ticks: a.ticks, GridMajorStyle: gridStyle(), GridLines: gridLines(a)}
	chart.XAxis = chartdraw.XAxis{
		Name: c.X, NameStyle: textStyle(textSize), Style: axisStyle(), Ticks: c.ticks(),
		GridMajorStyle: chartdraw.Hidden(), GridMinorStyle: chartdraw.Hidden(),
	}
	colors := r.colors()
	for _, i := range present {
		chart.Series = append(chart.Series, newCurveSeries(c, v, i, a, colors[i]))
	}
	return render(chart)
}

// extent is the axis for all that a view shows, and the peers that have something to show. What was much slower once
// than in the middle does not make the rest small.
func (r *Report) extent(c *Curve, v view) (a *axis, present []int) {
	low, high := math.Inf(1), 0.0
	for i := range r.Peers {
		there := false
		for j := range c.Points {
			s, ok := v.value(&c.Points[j], &c.Points[j].Results[i])
			if !ok {
				continue
			}
			there = true
			if s.mid > 0 { // CPU time may be too little to be counted
				low = min(low, s.mid)
			}
			high = max(high, s.mid, min(s.high, 3*s.mid))
		}
		if there {
			present = append(present, i)
		}
	}
	return newAxis(low, high), present
}

// ticks are the points of a curve, at equal distances when each is a multiple of the one before.
func (c *Curve) ticks() (ticks []chartdraw.Tick) {
	for _, p := range c.Points {
		ticks = append(ticks, chartdraw.Tick{Value: math.Log2(float64(p.X)), Label: tickLabel(float64(p.X))})
	}
	if len(ticks) == 1 { // an axis needs two ends
		ticks = append(ticks, chartdraw.Tick{Value: ticks[0].Value + 1})
	}
	return ticks
}

// curveSeries is a line with dots, and a vertical line from the least to the most at each of them.
type curveSeries struct {
	chartdraw.ContinuousSeries
	low, high []float64
	color     drawing.Color
}

func newCurveSeries(c *Curve, v view, peer int, a *axis, color drawing.Color) *curveSeries {
	s := &curveSeries{color: color, ContinuousSeries: chartdraw.ContinuousSeries{
		Name: c.Points[0].Results[peer].Peer, YAxis: chartdraw.YAxisSecondary,
		Style: chartdraw.Style{StrokeColor: color, StrokeWidth: 2, DotColor: color, DotWidth: 3.5},
	}}
	for i := range c.Points {
		p := &c.Points[i]
		if m, ok := v.value(p, &p.Results[peer]); ok {
			s.XValues = append(s.XValues, math.Log2(float64(p.X)))
			s.YValues = append(s.YValues, a.at(m.mid))
			s.low, s.high = append(s.low, a.at(m.low)), append(s.high, a.at(m.high))
		}
	}
	return s
}

// Render draws.
func (s *curveSeries) Render(r chartdraw.Renderer, box chartdraw.Box, xs, ys chartdraw.Range, defaults chartdraw.Style) {
	for i, v := range s.XValues {
		x := box.Left + xs.Translate(v)
		line(r, s.color, 1, x, box.Bottom-ys.Translate(s.low[i]), x, box.Bottom-ys.Translate(s.high[i]))
	}
	s.ContinuousSeries.Render(r, box, xs, ys, defaults)
}
