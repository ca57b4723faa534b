package fusefs

import (
	"math"
	"sync/atomic"
	"time"
)

// lull tells when an FS has had no use for more than one goroutine for a while. Then those that would wait to be of use,
// and threads that store, end, and come again when they are needed: a node may have a thousand images mounted, most of
// which nobody reads.
type lull struct {
	after time.Duration // for how long there has to be none; it may be up to twice as long
	begin func() bool   // called then, in a goroutine of its own; reports whether nothing is left to end
	busy  atomic.Bool
	armed atomic.Bool
	over  atomic.Bool
	timer *time.Timer
}

// lullAfter is that while usually. To come again takes some µs for a goroutine, a ms for a thread that stores.
const lullAfter = 5 * time.Second

func (l *lull) init(begin func() bool) {
	l.begin = begin
	l.timer = time.AfterFunc(math.MaxInt64, l.tick)
	l.timer.Stop()
}

// putOff puts that off. It costs next to nothing where that was done a moment ago. Before init there are no lulls.
func (l *lull) putOff() {
	if l.timer == nil || l.over.Load() {
		return
	}
	if !l.busy.Load() {
		l.busy.Store(true)
	}
	if !l.armed.Load() && l.armed.CompareAndSwap(false, true) {
		l.timer.Reset(l.after)
	}
}

// end is the end of lulls: the timer, which holds the whole FS with what its image has in memory, is let go of.
func (l *lull) end() {
	l.over.Store(true)
	l.timer.Stop()
}

func (l *lull) tick() {
	if l.over.Load() {
		return
	}
	if l.busy.Swap(false) {
		l.timer.Reset(l.after)
		return
	}
	l.armed.Store(false)
	if !l.begin() || l.busy.Load() { // busy: before armed was taken back
		l.putOff()
	}
}
