package main

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/jedib0t/go-pretty/v6/progress"

	"github.com/squirefs/squire/runtime"
	"github.com/squirefs/squire/sqfs/oci"
	"github.com/squirefs/squire/sqfs/pack"
)

// importProgress tells how far an import is: on a terminal with a line for each layer
// under way and one for packing, elsewhere with a line now and then. Any goroutine may
// call its methods.
type importProgress struct {
	w     io.Writer
	quiet bool

	mu     sync.Mutex
	layers []layerProgress
	start  time.Time
	packed func() pack.Progress

	bars    progress.Writer // nil: no terminal, or nothing has begun
	drawn   chan struct{}   // closed when bars draws no more
	packing *progress.Tracker

	told     time.Time // the last line elsewhere
	toldStep int64     // tenths of the whole that it told of

	stop chan struct{}
	done sync.WaitGroup
}

// layerProgress is how far a layer is.
type layerProgress struct {
	name        string
	read, total int64 // bytes; total 0 is not known
	used        int64 // bytes that were packed
	done        bool
	bar         *progress.Tracker
}

// Lines elsewhere than on a terminal come with each tenth of the work, but not so fast
// that nobody reads them, nor so slowly that somebody asks whether it still works.
const (
	plainFastest = 2 * time.Second
	plainSlowest = 10 * time.Second
)

func newImportProgress(w io.Writer, quiet bool) *importProgress {
	return &importProgress{w: w, quiet: quiet, stop: make(chan struct{})}
}

// begin starts the display, of layers with these names and sizes. packed says what the
// writer of the image has done.
func (p *importProgress) begin(names []string, sizes []int64, packed func() pack.Progress) {
	if p.quiet {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.start, p.packed = time.Now(), packed
	p.told = p.start
	p.layers = make([]layerProgress, len(names))
	for i := range names {
		p.layers[i] = layerProgress{name: names[i], total: sizes[i]}
	}
	interval := plainFastest / 4
	if width(p.w) > 0 {
		interval = meterInterval
		p.beginBars()
	}
	p.done.Go(func() {
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			select {
			case <-p.stop:
				return
			case now := <-tick.C:
				p.tick(now)
			}
		}
	})
}

// The columns of a terminal that lines take: names such as "layer 12/80 0123456789, cached",
// all numbers, and the bars what is left.
const (
	barName    = 30
	barNumbers = 48
)

// beginBars starts the lines of a terminal. The caller holds p.mu.
func (p *importProgress) beginBars() {
	b := progress.NewWriter()
	b.SetOutputWriter(p.w)
	b.SetUpdateFrequency(meterInterval)
	b.SetTrackerPosition(progress.PositionRight)
	b.SetMessageLength(barName)
	b.SetTrackerLength(min(max(width(p.w)-barName-barNumbers, 6), 30))
	b.SetSortBy(progress.SortByIndex)
	style := progress.StyleDefault
	style.Options.PercentFormat = "%3.0f%%"
	style.Options.PercentIndeterminate = " ???"
	style.Options.Separator = " "
	style.Options.DoneString = "done"
	style.Options.ErrorString = "stopped"
	style.Options.ETAString = "left"
	style.Options.ETAPrecision = time.Second
	style.Options.TimeInProgressPrecision = time.Second
	style.Options.TimeDonePrecision = 100 * time.Millisecond
	style.Options.SpeedPosition = progress.PositionRight
	style.Options.SnipIndicator = "~"
	style.Visibility = progress.StyleVisibility{
		ETA: true, Percentage: true, Speed: true, Time: true, Tracker: true, Value: true,
	}
	b.SetStyle(style)
	p.bars, p.drawn = b, make(chan struct{})
	_, _, total := p.sum()
	p.packing = newBar("packing", total, len(p.layers))
	b.AppendTracker(p.packing)
	p.done.Go(func() {
		defer close(p.drawn)
		b.Render()
	})
}

// newBar makes a line; those with a higher index are further down.
func newBar(name string, total int64, index int) *progress.Tracker {
	return &progress.Tracker{
		Message: name, Total: total, Index: uint64(index), AutoStopDisabled: true,
		Units: progress.Units{Formatter: sizeString},
	}
}

// sum returns how many bytes of the layers came and were used, and of how many; 0 if that
// is not known. The caller holds p.mu.
func (p *importProgress) sum() (read, used, total int64) {
	known := true
	for _, l := range p.layers {
		read += l.read
		used += l.used
		total += l.total
		known = known && l.total > 0
	}
	if !known {
		total = 0
	}
	return read, used, total
}

// event is for oci.Options.Event.
func (p *importProgress) event(ev oci.Event) {
	if ev.Message != "" {
		p.say(runtime.OneLine(plain(errors.New(ev.Message))))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if ev.Layer < 0 || ev.Layer >= len(p.layers) {
		return
	}
	l := &p.layers[ev.Layer]
	if l.done && !ev.Done && l.bar != nil { // it has to be read a second time
		l.bar = nil
		l.name += ", again"
	}
	if l.bar == nil {
		l.read = ev.Bytes
	}
	l.read, l.used, l.done = max(l.read, ev.Bytes), max(l.used, ev.Used), ev.Done
	if ev.Total > 0 {
		l.total = ev.Total
	}
	if p.bars != nil {
		p.moveBar(ev.Layer, ev.Cached)
	}
}

// moveBar shows how far a layer is on a terminal. The caller holds p.mu.
func (p *importProgress) moveBar(index int, cached bool) {
	l := &p.layers[index]
	if l.bar == nil {
		name := l.name
		if cached {
			name += ", cached"
		}
		l.bar = newBar(name, l.total, index)
		p.bars.AppendTracker(l.bar)
	}
	l.bar.UpdateTotal(l.total)
	l.bar.SetValue(l.read)
	if came := l.total > 0 && l.read >= l.total; (came || l.done) && !l.bar.IsDone() {
		l.bar.MarkAsDone()
	}
}

// tick brings the display up to date.
func (p *importProgress) tick(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	read, used, total := p.sum()
	if p.bars != nil {
		n := p.packed()
		if len(p.layers) == 0 { // a directory: nothing else says that it moves
			used = n.In
		}
		p.packing.UpdateTotal(total)
		p.packing.SetValue(used)
		p.packing.UpdateMessage(fmt.Sprintf("packing %s into %s", sizeString(n.In), sizeString(n.Out)))
		return
	}
	step := int64(0)
	if total > 0 {
		step = used * 10 / total
	}
	since := now.Sub(p.told)
	if since >= plainSlowest || since >= plainFastest && step > p.toldStep {
		p.told, p.toldStep = now, step
		fmt.Fprintln(p.w, "squire:", p.line(now.Sub(p.start), read, used, total))
	}
}

// line says how far all is. The caller holds p.mu.
func (p *importProgress) line(took time.Duration, read, used, total int64) string {
	n := p.packed()
	line := fmt.Sprintf("packed %s into %s, %s/s", sizeString(n.In), sizeString(n.Out), sizeString(int64(float64(n.In)/took.Seconds())))
	switch {
	case read == 0 && total == 0: // a directory
		return line
	case total == 0:
		return "read " + sizeString(read) + ", " + line
	}
	line = fmt.Sprintf("%d%%: read %s of %s, %s", used*100/total, sizeString(read), sizeString(total), line)
	if used > 0 && used < total {
		left := time.Duration(float64(took) / float64(used) * float64(total-used))
		line += fmt.Sprintf(", %v left", left.Round(time.Second))
	}
	return line
}

// say prints a message in a line of its own, unless only errors are wanted.
func (p *importProgress) say(message string) {
	if p.quiet {
		return
	}
	message = "squire: " + message
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bars != nil {
		p.bars.Log(message)
		return
	}
	fmt.Fprintln(p.w, message)
}

// close ends the display, of an import that failed if err is set.
func (p *importProgress) close(err error) {
	p.mu.Lock()
	bars := p.bars
	if bars != nil {
		p.endBars(err)
	}
	p.mu.Unlock()
	if bars != nil {
		stopBars(bars, p.drawn)
	}
	close(p.stop)
	p.done.Wait()
	p.mu.Lock()
	p.bars = nil // messages go straight to the terminal again
	p.mu.Unlock()
}

// endBars shows how it ended. The caller holds p.mu.
func (p *importProgress) endBars(err error) {
	if err == nil {
		p.packing.MarkAsDone()
		return
	}
	for i := range p.layers {
		if l := &p.layers[i]; l.bar != nil && !l.done {
			l.bar.MarkAsErrored()
		}
	}
	p.packing.MarkAsErrored()
}

// stopBars ends drawing. To stop it before it has begun does nothing, so it is tried again.
func stopBars(bars progress.Writer, drawn chan struct{}) {
	for {
		bars.Stop()
		select {
		case <-drawn:
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
}
