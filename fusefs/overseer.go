package fusefs

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// The overseer sees to it that every request is answered in time. Nobody can kill the caller of a LOOKUP or GETATTR that
// was read and is not answered, and a cluster's scheduler takes a node out of service that has such processes for a
// minute or so. But storage may be slow, or hang, and whoever reads from it cannot be called back.
//
// It looks at all workers now and then. One who is at the same request for a second look has its seat given to another,
// so that those who wait for storage do not keep others from being served. One who was seen so answerLooks times has
// its request answered by the overseer, with EIO; what it brings later is dropped. Looks are counted, not time: a server
// that was stopped for a minute has not been slow.
type overseer struct {
	t *transport

	mu      sync.Mutex
	workers map[*worker]struct{}

	standing atomic.Int32 // workers without a seat
	late     atomic.Int32 // of these, those whose requests were answered

	dozing atomic.Bool   // there is nothing to look at
	wake   chan struct{} // for the first who has something then
}

// bounds are what Serve keeps to. Those of tests are smaller.
type bounds struct {
	time  time.Duration // the longest that a request may take
	again time.Duration // when what earlier servers have taken is asked for once more
	// standing is how many workers may have lost their seats to others because their requests take long. Each may hold
	// a thread. When there are as many, requests wait in the kernel.
	standing int32
	// late is how many requests that are answered already storage may hold, before all that come get EIO at once.
	late int32
}

// usualBounds leave some time of the 30 s after which schedulers begin to kill.
var usualBounds = bounds{25 * time.Second, resendAgain, 512, 512}

// answerLooks is how often the overseer looks while a request may take as long as it may.
const answerLooks = 25

// start starts the overseer, and returns a function that ends it and waits for it.
func (o *overseer) start(t *transport) (stop func()) {
	o.t, o.workers, o.wake = t, make(map[*worker]struct{}), make(chan struct{}, 1)
	o.dozing.Store(true)
	quit, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		o.run(t.fs.bounds.time/answerLooks, quit)
	}()
	return func() {
		close(quit)
		<-ended
	}
}

// run looks once a period, for as long as there is a worker who is at a request.
func (o *overseer) run(period time.Duration, quit <-chan struct{}) {
	timer := time.NewTimer(period)
	timer.Stop()
	for {
		select {
		case <-quit:
			return
		case <-o.wake:
		case <-timer.C:
			if o.look() {
				break
			}
			o.dozing.Store(true)
			if !o.busy() || !o.dozing.CompareAndSwap(true, false) {
				continue // until somebody stirs, who may have done so already
			}
		}
		timer.Reset(period)
	}
}

// stir wakes the overseer if it dozes. A worker calls it when it has begun.
func (o *overseer) stir() {
	if o.dozing.Load() && o.dozing.CompareAndSwap(true, false) {
		o.wake <- struct{}{}
	}
}

func (o *overseer) watch(w *worker) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.workers[w] = struct{}{}
}

func (o *overseer) forget(w *worker) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.workers, w)
}

// busy reports whether somebody is at a request.
func (o *overseer) busy() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	for w := range o.workers {
		if w.turn.Load()%2 != 0 {
			return true
		}
	}
	return false
}

// look does what there is to do, and reports whether somebody is at a request.
func (o *overseer) look() bool {
	busy, slow := o.slow()
	unmounted := o.unmounted()
	for _, w := range slow {
		if w.looks >= answerLooks || unmounted {
			o.answer(w, unmounted)
		} else if o.standing.Load() < o.t.fs.bounds.standing && !o.t.fs.guest.full(workerCost) {
			o.relieve(w)
		}
	}
	return busy
}

// slow returns those who were at the same request at the last look.
func (o *overseer) slow() (busy bool, slow []*worker) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for w := range o.workers {
		turn := w.turn.Load()
		if turn%2 == 0 {
			continue
		}
		busy = true
		if turn != w.seen {
			w.seen, w.looks = turn, 0
		}
		if w.looks++; w.looks > 1 {
			slow = append(slow, w)
		}
	}
	return busy, slow
}

// relieve gives the seat of a worker to another one, unless it has none.
func (o *overseer) relieve(w *worker) {
	if w.seat.CompareAndSwap(true, false) {
		o.standing.Add(1)
		o.t.hire()
	}
}

// answer answers the request of a worker with EIO, unless that has done so meanwhile. Of a mount that is gone nobody waits
// for it.
func (o *overseer) answer(w *worker, unmounted bool) {
	if !w.turn.CompareAndSwap(w.seen, w.seen+1) {
		return
	}
	// From here on the worker does no more than to find out that it is late, so that its request stays.
	o.late.Add(1)
	if src := o.t.fs.source; src != nil {
		src.suspect(o.t.fs.bounds.time * (answerLooks - 2) / answerLooks) // it has waited for a look less than that at least
	}
	if !unmounted {
		h := (*fuse.InHeader)(unsafe.Pointer(&w.in[0]))
		var out [unsafe.Sizeof(fuse.OutHeader{})]byte
		putHeader(out[:], h.Unique, 0, o.t.fs.tooLate(w.in))
		o.t.write(out[:])
		o.t.fs.latencies.observe(h.Opcode, o.t.fs.bounds.time)
	}
	o.relieve(w)
	o.t.answering.Done()
}

// overrun reports whether requests are to be answered with EIO at once: storage holds so many that it is hopeless.
func (o *overseer) overrun() bool {
	late := o.late.Load()
	return late >= o.t.fs.bounds.late || late > 0 && o.t.fs.guest.full(workerCost)
}

// unmounted reports whether the mount is gone.
func (o *overseer) unmounted() bool {
	select {
	case <-o.t.dev.gone:
		return !o.t.dev.halted.Load()
	default:
		return false
	}
}

// tooLate reports a request that storage does not let be answered, and returns the answer.
func (f *FS) tooLate(in []byte) fuse.Status {
	h := (*fuse.InHeader)(unsafe.Pointer(&in[0]))
	f.counts.late.Add(1)
	return f.eio(kindOf(h.Opcode).String(), f.ref(h.NodeId), fmt.Errorf("no answer from storage within %v", f.bounds.time))
}
