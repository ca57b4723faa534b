package bench

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// WriteText writes the report as tables. In each, a peer has a figure and the ratio to the reference.
func (r *Report) WriteText(w io.Writer) error {
	r.head(w)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if len(r.Rows) > 0 {
		r.table(tw, "seconds, median [fastest–slowest]", r.Rows, func(res *Result) string { return seconds(res.Wall) }, func(res *Result) float64 { return res.Wall.Ratio })
		r.table(tw, "CPU seconds of the machine, mean", r.Rows, func(res *Result) string { return digits(res.CPU.Mean) }, func(res *Result) float64 { return res.CPU.Ratio })
	}
	if rows := r.readers(); len(rows) > 0 {
		r.table(tw, "CPU seconds for each GiB read, mean", rows, func(res *Result) string { return digits(res.CPUPerGiB) }, nil)
	}
	for i := range r.Curves {
		r.curve(tw, &r.Curves[i])
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	if len(r.LeftOut)+len(r.Failures) > 0 || r.Interrupted {
		fmt.Fprintln(w)
	}
	for _, l := range r.LeftOut {
		fmt.Fprintln(w, l)
	}
	for _, f := range r.Failures {
		fmt.Fprintln(w, "FAILED", f)
	}
	if r.Interrupted {
		fmt.Fprintln(w, notAll)
	}
	return nil
}

// head says what was measured, and where.
func (r *Report) head(w io.Writer) {
	fmt.Fprintln(w, r.Image)
	fmt.Fprintf(w, "%s; measured as %s, %s, in turns; ratios are to %s\n", r.Machine, r.who(), plural(r.Rounds, "round"), r.Reference)
	for _, p := range r.Peers {
		if p.Version != "" {
			fmt.Fprintf(w, "%s: %s\n", p.Name, p.Version)
		}
	}
	if r.File.Path != "" {
		fmt.Fprintf(w, "file of one-file workloads: %s, %s\n", r.File.Path, size(r.File.Bytes))
	}
}

// who measured.
func (r *Report) who() string {
	if r.User == "root" {
		return r.User
	}
	return "an " + r.User + " user"
}

func (i Image) String() string {
	return fmt.Sprintf("%s: %s, %s, blocks of %s, %d inodes, %s of files", i.Name, size(i.Bytes), i.Compression, size(i.BlockSizeBytes), i.Inodes, size(i.FileBytes))
}

// readers are the rows that read enough for figures by the GiB.
func (r *Report) readers() (rows []Row) {
	for _, row := range r.Rows {
		if row.Bytes >= leastBytes {
			rows = append(rows, row)
		}
	}
	return rows
}

// table writes a table; ratio may be nil.
func (r *Report) table(w io.Writer, title string, rows []Row, figure func(*Result) string, ratio func(*Result) float64) {
	r.columns(w, title, ratio != nil)
	for i := range rows {
		fmt.Fprint(w, rows[i].Name())
		for j := range rows[i].Results {
			res := &rows[i].Results[j]
			switch {
			case len(res.Wall.Samples) == 0:
				fmt.Fprint(w, "\t-")
			default:
				fmt.Fprint(w, "\t", figure(res))
			}
			if ratio != nil {
				fmt.Fprint(w, "\t", r.ratio(res, ratio(res)))
			}
		}
		fmt.Fprintln(w)
	}
}

func (r *Report) columns(w io.Writer, title string, ratios bool) {
	gap := "\t"
	if ratios {
		gap = "\t\t"
	}
	var names []string
	for _, p := range r.Peers {
		names = append(names, p.Name)
	}
	fmt.Fprintf(w, "\n%s\t%s\n", title, strings.Join(names, gap))
}

func (r *Report) ratio(res *Result, ratio float64) string {
	if ratio == 0 || res.Peer == r.Reference {
		return ""
	}
	if ratio < 0.1 {
		return fmt.Sprintf("%.3f", ratio)
	}
	return fmt.Sprintf("%.2f", ratio)
}

// curve writes a table for each view of a curve.
func (r *Report) curve(w io.Writer, c *Curve) {
	for _, v := range c.views() {
		r.columns(w, c.Operation+": "+v.name, false)
		for i := range c.Points {
			p := &c.Points[i]
			fmt.Fprint(w, plural(p.X, strings.TrimSuffix(c.X, "s")))
			for j := range p.Results {
				figure := "-"
				if s, ok := v.value(p, &p.Results[j]); ok {
					figure = digits(s.mid)
				}
				fmt.Fprint(w, "\t", figure)
			}
			fmt.Fprintln(w)
		}
	}
}

// seconds writes a time with its spread, if it has one.
func seconds(m Measure) string {
	if len(m.Samples) == 1 {
		return digits(m.Median)
	}
	return fmt.Sprintf("%s [%s–%s]", digits(m.Median), digits(m.Min), digits(m.Max))
}

// digits writes a figure with three digits that count, as far as thousandths.
func digits(x float64) string {
	switch {
	case x >= 100:
		return fmt.Sprintf("%.0f", x)
	case x >= 10:
		return fmt.Sprintf("%.1f", x)
	case x >= 1:
		return fmt.Sprintf("%.2f", x)
	}
	return fmt.Sprintf("%.3f", x)
}

// size writes a number of bytes in a unit that fits.
func size(n int64) string {
	for _, unit := range []struct {
		shift int
		name  string
	}{{30, "GiB"}, {20, "MiB"}, {10, "KiB"}} {
		if n>>unit.shift > 0 {
			text := fmt.Sprintf("%.1f", float64(n)/float64(int64(1)<<unit.shift))
			return strings.TrimSuffix(text, ".0") + " " + unit.name
		}
	}
	return fmt.Sprintf("%d bytes", n)
}
