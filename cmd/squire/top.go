package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/runtime"
)

type topOptions struct {
	seconds float64
	count   int
	once    bool
	batch   bool
	sort    string
}

func topCommand() *cobra.Command {
	var o topOptions
	cmd := &cobra.Command{
		Use:   "top [flags]",
		Short: "Show what the image services are doing",
		Long: `Show what the service of the node and your own services do at the moment: what they
read from storage, decode and serve a second, how many of the blocks that were asked for
had been decoded before (hits), and how long requests took: half of them up to P50, one
of a hundred longer than P99, none longer than MAX, in this interval. AHEAD is what was
put into the kernel's page cache before anybody asked; who reads it then asks for nothing.

Keys: q ends it, < and > (or left and right) choose the column to sort by, r turns the
order around, up, down and the page keys show more images, any other key looks at once.

Where standard output is no terminal, or with --batch, each look is printed below the
one before.

Exit status: 0 also without a service, which is waited for on a terminal.`,
		Example: `  squire top
  squire top --delay 0.5 --sort storage
  squire top --once`,
		Args:              needArgs(0, 0),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(c *cobra.Command, _ []string) error { return o.run(c) },
	}
	f := cmd.Flags()
	f.Float64VarP(&o.seconds, "delay", "d", 1, "seconds between two looks")
	f.IntVarP(&o.count, "count", "n", 0, "end after so many looks (0: never)")
	f.BoolVar(&o.once, "once", false, "the same as --batch --count 1")
	f.BoolVarP(&o.batch, "batch", "b", false, "print, also to a terminal")
	f.StringVar(&o.sort, "sort", "served", "column to sort images by: "+strings.Join(topSorts(), ", "))
	_ = cmd.RegisterFlagCompletionFunc("sort", cobra.FixedCompletions(topSorts(), cobra.ShellCompDirectiveNoFileComp)) // there is such a flag
	cmd.MarkFlagsMutuallyExclusive("once", "count")
	return cmd
}

// Bounds of --delay: more often, and the service does nothing but tell.
const (
	shortestDelay = 100 * time.Millisecond
	longestDelay  = 24 * time.Hour
)

func (o *topOptions) run(c *cobra.Command) error {
	v := topView{delay: time.Duration(o.seconds * float64(time.Second)), sort: slices.Index(topSorts(), o.sort)}
	switch {
	case !(o.seconds >= shortestDelay.Seconds() && o.seconds <= longestDelay.Seconds()): // NaN too
		return fmt.Errorf("--delay %v: want %v to %.0f seconds", o.seconds, shortestDelay.Seconds(), longestDelay.Seconds())
	case o.count < 0:
		return fmt.Errorf("--count %d: is negative", o.count)
	case v.sort < 0:
		return fmt.Errorf("--sort %s: want one of %s", printable(o.sort), strings.Join(topSorts(), ", "))
	}
	if o.once {
		o.batch, o.count = true, 1
	}
	ctx, stop := untilSignal(c.Context())
	defer stop()
	t := top{view: v, left: o.count, looks: make(chan look, 1)}
	if out, ok := c.OutOrStdout().(*os.File); ok && !o.batch && width(out) > 0 {
		t.screen = &screen{in: os.Stdin, out: out}
		return t.watch(ctx)
	}
	return t.print(ctx, c.OutOrStdout(), c.ErrOrStderr())
}

// look is an answer of the services.
type look struct {
	all []seen
	err error
}

// top is the running program.
type top struct {
	view   topView
	screen *screen
	left   int // looks until the end, 0: no end

	services services
	asking   bool
	asked    time.Time
	looks    chan look
	last     []seen
}

// ask asks the services, unless that is being done.
func (t *top) ask() {
	if t.asking {
		return
	}
	t.asking, t.asked = true, time.Now()
	go func() {
		all, err := t.services.reports()
		t.looks <- look{all, err}
	}()
}

// take takes an answer in. It reports whether there is something to show: one look has no rates.
func (t *top) take(l look) bool {
	first := t.last == nil
	t.asking = false
	t.view.now, t.view.what, t.view.trouble = time.Now(), compare(t.last, l.all), ""
	switch {
	case l.err != nil:
		t.view.trouble = runtime.OneLine(l.err)
	case len(l.all) == 0:
		t.view.trouble = noService
	}
	if t.last = l.all; t.last == nil {
		t.last = []seen{}
	}
	return !first
}

// print prints looks, one below the other.
func (t *top) print(ctx context.Context, w, errs io.Writer) error {
	tick := time.NewTicker(t.view.delay)
	defer tick.Stop()
	for printed := 0; ; {
		t.ask()
		select {
		case <-ctx.Done():
			return interrupted(ctx)
		case l := <-t.looks:
			show := t.take(l)
			if trouble := t.view.trouble; trouble != "" && len(l.all) == 0 {
				fmt.Fprintln(errs, "squire:", trouble)
				t.view.what = nil
			}
			if show && len(l.all) > 0 {
				separate(w, printed)
				if _, err := fmt.Fprintln(w, strings.Join(t.view.lines(0, 0), "\n")); err != nil {
					return err
				}
				printed++
			}
			if show || len(l.all) == 0 {
				if t.left--; t.left == 0 {
					return nil
				}
			}
		}
		select {
		case <-ctx.Done():
			return interrupted(ctx)
		case <-tick.C:
		}
	}
}

// watch shows looks on a terminal until it is told to end.
func (t *top) watch(ctx context.Context) error {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, unix.SIGWINCH, unix.SIGTSTP)
	defer signal.Stop(signals)
	t.screen.enter()
	defer t.screen.leave()
	keys := make(chan key)
	if t.screen.saved != nil {
		go readKeys(ctx, t.screen.in, keys)
	}
	tick := time.NewTicker(t.view.delay)
	defer tick.Stop()
	t.view.now = time.Now()
	t.ask()
	for changed := true; ; {
		if changed {
			t.draw()
		}
		changed = true
		select {
		case <-ctx.Done():
			var by signalError
			if errors.As(context.Cause(ctx), &by) && by.signal == unix.SIGINT {
				return nil // the usual way to end it
			}
			return interrupted(ctx)
		case s := <-signals:
			if s == unix.SIGTSTP {
				t.suspend()
			}
		case k := <-keys:
			if !t.press(k) {
				return nil
			}
		case l := <-t.looks:
			if t.take(l) && t.left > 0 {
				if t.left--; t.left == 0 {
					t.draw()
					return nil
				}
			}
		case <-tick.C:
			changed = t.asking // for how long there was no answer
			t.ask()
		}
	}
}

// suspend gives the terminal back and stops this process, as the terminal's key for that asked for.
func (t *top) suspend() {
	// A thread may run on for a moment after it has stopped the process.
	resumed := make(chan os.Signal, 1)
	signal.Notify(resumed, unix.SIGCONT)
	defer signal.Stop(resumed)
	t.screen.leave()
	_ = unix.Kill(os.Getpid(), unix.SIGSTOP) // to oneself that never fails
	<-resumed
	t.screen.enter()
}

// draw writes the screen anew, in one piece, so that it does not flicker.
func (t *top) draw() {
	columns, lines := t.screen.size()
	v := t.view
	if d := time.Since(t.asked); t.asking && d > max(2*v.delay, 2*time.Second) {
		v.trouble = fmt.Sprintf("no answer for %s", age(d))
	}
	var b strings.Builder
	b.WriteString(cursorHome)
	for i, line := range v.lines(columns, lines) {
		if i > 0 {
			b.WriteString("\r\n")
		}
		if strings.HasPrefix(line, topColumns[0].title+" ") || strings.HasPrefix(line, "OPERATION") {
			line = reverseVideo + line + normalVideo
		}
		b.WriteString(line + clearLine)
	}
	b.WriteString(clearBelow)
	fmt.Fprint(t.screen.out, b.String())
	t.view.skip = v.skip
}

// press does what a key is for. It reports false for the one that ends it.
func (t *top) press(k key) bool {
	v := &t.view
	page := 10
	switch k {
	case 'q', 'Q', 3, 4: // where the terminal sends no signals: ^C, ^D
		return false
	case '<', keyLeft:
		v.sort = (v.sort + len(topColumns) - 1) % len(topColumns)
	case '>', keyRight:
		v.sort = (v.sort + 1) % len(topColumns)
	case 'r', 'R':
		v.reverse = !v.reverse
	case keyUp:
		v.skip--
	case keyDown:
		v.skip++
	case keyPageUp:
		v.skip -= page
	case keyPageDown:
		v.skip += page
	default:
		t.ask()
	}
	v.skip = max(v.skip, 0)
	return true
}

// readKeys sends what is pressed until ctx ends; a read that is under way then goes with the process.
func readKeys(ctx context.Context, in *os.File, keys chan<- key) {
	b := make([]byte, 64)
	for {
		n, err := in.Read(b)
		if err != nil || n == 0 {
			return
		}
		for _, k := range keysOf(b[:n]) {
			select {
			case keys <- k:
			case <-ctx.Done():
				return
			}
		}
	}
}
