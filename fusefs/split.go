package fusefs

import (
	"errors"
	"runtime"
	"sync"

	"github.com/squirefs/squire/sqfs"
)

// A READ of 1 MiB covers eight blocks of the usual size. One reader decoding them one after the other keeps a program
// waiting that faults in one page, and leaves the other processors idle; the pieces of a READ are therefore shared
// with helpers, if some are idle. On two idle processors such a READ takes 0.77 ms instead of 1.42 (zstd,
// BenchmarkDecode); when both are busy, nothing is lost.

// piece is one extent of a READ.
type piece struct {
	ref   sqfs.InodeRef
	dst   []byte
	e     sqfs.Extent
	skip  int
	block int64 // for the report of an error
	off   int64
	of    *pieces
}

// pieces are those of one READ.
type pieces struct {
	done sync.WaitGroup

	mu     sync.Mutex
	failed *failure // first one found
}

// failure is where a READ failed.
type failure struct {
	block, off int64
	err        error
}

var piecesPool = sync.Pool{New: func() any { return new(pieces) }}

var errPanic = errors.New("panic in a helper")

// minPiece is the least amount of data that is worth the wake-up of a helper, some microseconds.
const minPiece = 32 << 10

// helpers are goroutines that read pieces of READs. They start when they are needed.
type helpers struct {
	pieces chan piece    // without buffer: a send finds an idle helper, or none
	leave  chan struct{} // the same, to one that is to end
	quit   chan struct{} // closed when all are to end

	mu      sync.Mutex
	count   int
	limit   int // 0: none may start
	running sync.WaitGroup
}

func (h *helpers) init() {
	h.pieces, h.leave, h.quit = make(chan piece), make(chan struct{}), make(chan struct{})
}

// startHelpers allows helpers, and returns a function that ends them and waits for them. There are more than processors,
// as some wait for storage.
func (f *FS) startHelpers() (stop func()) {
	h := &f.helpers
	h.mu.Lock()
	defer h.mu.Unlock()
	h.limit = 2 * runtime.GOMAXPROCS(0)
	return func() {
		h.mu.Lock()
		h.limit = 0
		h.mu.Unlock()
		close(h.quit)
		h.running.Wait()
	}
}

// enlist counts a helper that is to start, and reports false if there are enough.
func (h *helpers) enlist() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.count >= h.limit {
		return false
	}
	h.count++
	h.running.Add(1)
	return true
}

// help reads p and other pieces, until it is to leave.
func (f *FS) help(p piece) {
	h := &f.helpers
	defer h.running.Done()
	defer f.guest.give(workerCost)
	for {
		p.of.finish(&p, f.readPiece(&p))
		p = piece{}
		select {
		case p = <-h.pieces:
		case <-h.leave:
			h.mu.Lock()
			h.count--
			h.mu.Unlock()
			return
		case <-h.quit:
			return
		}
	}
}

// rest ends the helpers that are idle, and reports whether there are no others.
func (h *helpers) rest() bool {
	for {
		select {
		case h.leave <- struct{}{}:
		default:
			h.mu.Lock()
			defer h.mu.Unlock()
			return h.count == 0
		}
	}
}

// readPiece reads a piece. A panic must not end the helper: the READ that waits for it would wait for ever.
func (f *FS) readPiece(p *piece) (err error) {
	defer func() {
		if what := recover(); what != nil {
			f.panicked(what)
			err = errPanic
		}
	}()
	return f.readExtent(p.dst, &p.e, p.skip, p.ref, p.off)
}

// handOff gives p to a helper, as one of *of, which it makes if it is nil. It reports false if all are busy.
func (f *FS) handOff(p piece, of **pieces) bool {
	if len(p.dst) < minPiece {
		return false
	}
	if *of == nil {
		*of = piecesPool.Get().(*pieces)
	}
	p.of = *of
	p.of.done.Add(1)
	f.lull.putOff()
	select {
	case f.helpers.pieces <- p:
		return true
	default:
	}
	if f.guest.try(workerCost) {
		if f.helpers.enlist() {
			go f.help(p)
			return true
		}
		f.guest.give(workerCost)
	}
	p.of.done.Done()
	return false
}

// finish notes the end of a piece.
func (ps *pieces) finish(p *piece, err error) {
	defer ps.done.Done()
	if err == nil {
		return
	}
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if ps.failed == nil {
		ps.failed = &failure{p.block, p.off, err}
	}
}

// wait waits for all pieces that were handed off, and returns the first failure. ps may be nil.
func (ps *pieces) wait() *failure {
	if ps == nil {
		return nil
	}
	ps.done.Wait()
	failed := ps.failed
	ps.failed = nil
	piecesPool.Put(ps)
	return failed
}
