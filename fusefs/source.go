package fusefs

import (
	"errors"
	"io"
	"sync/atomic"
	"time"
)

// Source is what a served image is read through. It counts, and it tells the server of a mount when a request goes on
// to storage, which may take long: then somebody else answers the next one.
type Source struct {
	r     io.ReaderAt
	reads atomic.Uint64
	bytes atomic.Uint64
	watch atomic.Pointer[watch] // of the mount while it is served

	under atomic.Int32           // reads that have not come back
	moved atomic.Int64           // see now; when one last did, or began alone
	out   atomic.Pointer[outage] // nil: storage answers
}

// NewSource returns a Source that reads r, which must serve concurrent calls.
func NewSource(r io.ReaderAt) *Source { return &Source{r: r} }

// maxReads is how many reads of storage a process may wait for. Each may hold a thread, and Go's runtime gives up at
// 10,000 of them (runtime/debug.SetMaxThreads).
const maxReads = 6000

var (
	underway   atomic.Int32 // reads of storage, of all Sources
	errBacklog = errors.New("too many reads wait for storage; does it hang?")
)

var began = time.Now()

// now returns the time in ns by a clock that nobody sets. Were the time of day put back, storage would not be tried again for
// as long.
func now() int64 { return int64(time.Since(began)) }

// ReadAt implements io.ReaderAt.
func (s *Source) ReadAt(p []byte, off int64) (int, error) {
	defer underway.Add(-1)
	if underway.Add(1) > maxReads {
		return 0, errBacklog
	}
	s.Waiting()
	if h := s.out.Load(); h != nil {
		if h.tried() {
			go s.try(len(p), off)
		}
		if !h.ended() {
			return 0, errHangs
		}
	}
	return s.read(p, off)
}

// read reads, and storage answers if it returns.
func (s *Source) read(p []byte, off int64) (int, error) {
	if s.under.Add(1) == 1 {
		s.moved.Store(now())
	}
	n, err := s.r.ReadAt(p, off)
	s.moved.Store(now())
	s.under.Add(-1)
	if h := s.out.Swap(nil); h != nil {
		close(h.over)
	}
	s.reads.Add(1)
	s.bytes.Add(uint64(max(n, 0)))
	return n, err
}

// try finds out whether storage answers again. Nobody waits for it: who reads next might be the same reader again and
// again, who would wait for as long as the first one did each time.
func (s *Source) try(n int, off int64) {
	defer underway.Add(-1)
	if underway.Add(1) <= maxReads {
		_, _ = s.read(make([]byte, n), off)
	}
}

// An outage is a time when storage does not answer. Who reads meanwhile waits for its end, but not as long as those who found
// out: a program that goes on after an error would else wait for each of its files anew.
type outage struct {
	wait  time.Duration // how long to wait
	over  chan struct{} // closed when a read comes back
	next  atomic.Int64  // when one more is tried, see now
	tries atomic.Int32  // how many were
}

// maxTries bounds the reads that find out whether storage still hangs: the first that hang may never come back though
// others would, and each may hold a thread.
const maxTries = 8

var errHangs = errors.New("storage does not answer")

// suspect says that somebody has waited for storage, or for something else, for as long as a request may take. If no
// read has come back in that time, storage hangs until one does.
func (s *Source) suspect(limit time.Duration) {
	at := now()
	if s.under.Load() == 0 || at-s.moved.Load() < int64(limit) {
		return
	}
	h := &outage{wait: limit / 5, over: make(chan struct{})}
	h.next.Store(at + int64(h.wait))
	s.out.CompareAndSwap(nil, h)
}

// tried reports whether the caller is to have storage tried.
func (h *outage) tried() bool {
	at, next := now(), h.next.Load()
	return at >= next && h.next.CompareAndSwap(next, at+int64(h.wait)) && h.tries.Add(1) <= maxTries
}

// ended waits for the end, and reports whether it has come.
func (h *outage) ended() bool {
	timer := time.NewTimer(h.wait)
	defer timer.Stop()
	select {
	case <-h.over:
		return true
	case <-timer.C:
		return false
	}
}

// Waiting implements cache.Waiter: whoever calls it may take long.
func (s *Source) Waiting() {
	if w := s.watch.Load(); w != nil {
		w.relay()
	}
}

// Reads returns how many reads of how many bytes there were so far.
func (s *Source) Reads() (reads, bytes uint64) { return s.reads.Load(), s.bytes.Load() }
