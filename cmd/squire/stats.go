package main

import (
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/spf13/cobra"

	"github.com/squirefs/squire/fusefs"
	"github.com/squirefs/squire/runtime"
)

type statsOptions struct {
	json bool
}

func statsCommand() *cobra.Command {
	var o statsOptions
	cmd := &cobra.Command{
		Use:   "stats [flags] [ID|IMAGE]",
		Short: "Show what the image services have done",
		Long: `Show what the service of the node and your own services have done since they were
started, altogether and for each image; or for the one image that is named by its id
(see squire ps) or its file.

Served is what programs were given when they asked; what had been read ahead of need is
in the kernel's page cache before they do, and is then not asked for. Hits are the
shares of blocks that were asked for and had been decoded before. P50, P90 and P99 are
the times within which 50, 90 and 99 percent of the requests were answered, and MAX the
one that none exceeded, all to a fifth.

With --json, reports are printed whole: all counters, and the times of each kind of
request as a histogram. Times are in nanoseconds, sizes in bytes.

Exit status: 0 also if there is no service, 125 if there is one that does not answer, or
none has that image.`,
		Example: `  squire stats
  squire stats pytorch.sqsh
  squire stats --json | jq '.[].images[] | {name, read, p99: .stats.latency.read.p99_ns}'`,
		Args:              needArgs(0, 1),
		ValidArgsFunction: completeServed,
		RunE:              func(c *cobra.Command, args []string) error { return o.run(c, args) },
	}
	cmd.Flags().BoolVar(&o.json, "json", false, "print JSON")
	return cmd
}

func (o *statsOptions) run(c *cobra.Command, args []string) error {
	all, err := ask(c.ErrOrStderr(), false)
	if err != nil {
		return err
	}
	w := &errWriter{w: c.OutOrStdout()}
	if len(args) > 0 && len(all) > 0 {
		if all, err = only(all, args[0]); err != nil {
			return err
		}
	}
	switch {
	case o.json:
		return printJSON(w, append([]seen{}, all...)) // none is []
	case len(args) > 0:
		for i, x := range everyImage(all) {
			separate(w, i)
			printImageStats(w, x, time.Now())
		}
	default:
		for i := range all {
			separate(w, i)
			printServiceStats(w, &all[i], time.Now())
		}
	}
	return w.err
}

// only leaves of services those, and of their images those, that are called name.
func only(all []seen, name string) ([]seen, error) {
	var some []seen
	for _, x := range find(all, name) {
		if n := len(some); n > 0 && some[n-1].Socket == x.service.Socket {
			some[n-1].Images = append(some[n-1].Images, *x.image)
			continue
		}
		s := *x.service
		s.Images = append(s.Images[:0:0], *x.image)
		some = append(some, s)
	}
	if len(some) == 0 {
		return nil, fmt.Errorf("%s: no service has an image of that id or name; see \"squire ps\"", printable(name))
	}
	return some, nil
}

// separate writes an empty line between parts.
func separate(w io.Writer, part int) {
	if part > 0 {
		fmt.Fprintln(w)
	}
}

// rows writes lines of a name and a value.
func rows(w io.Writer, fill func(row func(name, format string, args ...any))) {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fill(func(name, format string, args ...any) {
		fmt.Fprintf(t, "%s\t%s\n", name, fmt.Sprintf(format, args...))
	})
	_ = t.Flush() // the writer below keeps the error
}

func printServiceStats(w io.Writer, s *seen, now time.Time) {
	sum := totals(s)
	rows(w, func(row func(string, string, ...any)) {
		row("Service", "%s, version %s, process %d, up %s%s", s.Service, shownWord(s.Version), s.PID, age(now.Sub(s.Since)), condition(s))
		row("Socket", "%s", shownPath(s.Socket))
		row("Clients", "%d", s.Clients)
		row("Restarts", "%d of the server, %d of the mounter", s.Restarts.Server, s.Restarts.Mounter)
		if s.Totals != nil { // others are not told
			row("Memory", "%s in the server", sizeString(s.Memory))
			row("Cache", "%s of %s", sizeString(s.Cache.Bytes), sizeString(s.Cache.Budget))
		}
		printFigures(row, &sum)
	})
	printOperations(w, &sum.Stats)
	if len(s.Images) == 0 {
		return
	}
	fmt.Fprintln(w)
	t := newTable(w, []string{"ID", "STATE", "REQUESTS", "P50", "P99", "HITS", "STORAGE", "DECODED", "CACHED", "SERVED", "AHEAD", "ERRORS", "IMAGE"},
		"REQUESTS", "P50", "P99", "HITS", "STORAGE", "DECODED", "CACHED", "SERVED", "AHEAD", "ERRORS")
	for i := range s.Images {
		img := &s.Images[i]
		st, h := &img.Stats, allLatencies(&img.Stats)
		t.AppendRow(table.Row{
			s.id(img), shownWord(img.State), requestCount(st), quantile(&h, 0.5), quantile(&h, 0.99), hits(st),
			sizeOf(img.Read), sizeOf(st.DecodedBytes), sizeString(img.Cached), sizeOf(st.ReadBytes), sizeOf(st.Stored), st.Errors, shownPath(img.Name),
		})
	}
	t.Render()
}

// totals are the counters of all images of a service, without those that are gone if it does not tell of these.
func totals(s *seen) (sum figures) {
	if t := s.Totals; t != nil {
		return figures{t.Stats, t.Read}
	}
	for i := range s.Images {
		sum.add(&s.Images[i].Stats, s.Images[i].Read)
	}
	return sum
}

// condition is what is out of the ordinary about a service.
func condition(s *seen) (what string) {
	if s.Draining {
		what += ", about to end"
	}
	if s.Stale {
		what += ", its server does not answer (figures are the last known)"
	}
	return what
}

func printImageStats(w io.Writer, x served, now time.Time) {
	i := x.image
	rows(w, func(row func(string, string, ...any)) {
		row("Image", "%s", shownPath(i.Name))
		row("Id", "%s, in the %s service of process %d", x.service.id(i), x.service.Service, x.service.PID)
		row("State", "%s, since %s", shownWord(i.State), age(now.Sub(i.Since)))
		if i.Error != "" {
			row("Error", "%s", runtime.OneLine(errors.New(i.Error)))
		}
		row("View", "%s, device %s", shownWord(i.View), shownWord(i.Device))
		row("Users", "%s", userNames(i.Users))
		row("Used by", "%s, %s", plural(int64(i.References), "program"), onDirectories(i.Attached))
		row("Size", "%s", sizeString(i.Size))
		f := figures{i.Stats, i.Read}
		printFigures(row, &f)
	})
	printOperations(w, &i.Stats)
}

func onDirectories(n int) string {
	if n == 1 {
		return "1 directory"
	}
	return fmt.Sprintf("%d directories", n)
}

// printFigures writes what was read, decoded and served.
func printFigures(row func(string, string, ...any), f *figures) {
	row("Storage", "%s read", sizeOf(f.Storage))
	row("Decoded", "%s in %d blocks", sizeOf(f.DecodedBytes), f.Decoded)
	row("Served", "%s, and %s put into the page cache ahead of need", sizeOf(f.ReadBytes), sizeOf(f.Stored))
	row("Hits", "%s of %d blocks that were asked for", hits(&f.Stats), f.Wanted)
	row("Requests", "%d", requestCount(&f.Stats))
	row("Errors", "%d", f.Errors)
}

// hits is the share of blocks that were asked for and needed not be decoded any more.
func hits(s *fusefs.Stats) string {
	return percent(int64(s.Wanted-min(s.Missed, s.Wanted)), int64(s.Wanted))
}

// printOperations writes how long the requests of each kind took.
func printOperations(w io.Writer, s *fusefs.Stats) {
	kinds := operationsOf(s)
	if len(kinds) == 0 {
		return
	}
	fmt.Fprintln(w)
	numbers := []string{"REQUESTS", "MEAN", "P50", "P90", "P99", "MAX"}
	t := newTable(w, append([]string{"OPERATION"}, numbers...), numbers...)
	for _, op := range kinds {
		h := s.Latency[op]
		t.AppendRow(table.Row{shownWord(op), requestsOf(s, op), mean(&h), quantile(&h, 0.5), quantile(&h, 0.9), quantile(&h, 0.99), quantile(&h, 1)})
	}
	t.Render()
}

// quantile is one of a histogram, "-" of an empty one.
func quantile(h *fusefs.Histogram, q float64) string {
	if h.Count() == 0 {
		return "-"
	}
	return shortTime(h.Quantile(q))
}

func mean(h *fusefs.Histogram) string {
	n := h.Count()
	if n == 0 {
		return "-"
	}
	return shortTime(time.Duration(uint64(max(h.Sum, 0)) / n))
}

// shortTime writes a duration with three digits at most.
func shortTime(d time.Duration) string {
	for _, u := range []struct {
		unit time.Duration
		name string
	}{{time.Microsecond, "µs"}, {time.Millisecond, "ms"}, {time.Second, "s"}} {
		switch n := float64(d) / float64(u.unit); {
		case n < 9.95:
			return fmt.Sprintf("%.1f%s", n, u.name)
		case n < 999.5 || u.unit == time.Second:
			return fmt.Sprintf("%.0f%s", n, u.name)
		}
	}
	return "" // not reached: seconds have any number
}
