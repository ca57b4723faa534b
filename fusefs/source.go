package fusefs

import (
	"errors"
	"io"
	"sync/atomic"
)

// Source is what a served image is read through. It counts, and it tells the server of a mount when a request goes on
// to storage, which may take long: then somebody else answers the next one.
type Source struct {
	r     io.ReaderAt
	reads atomic.Uint64
	bytes atomic.Uint64
	watch atomic.Pointer[watch] // of the mount while it is served
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

// ReadAt implements io.ReaderAt.
func (s *Source) ReadAt(p []byte, off int64) (int, error) {
	defer underway.Add(-1)
	if underway.Add(1) > maxReads {
		return 0, errBacklog
	}
	s.Waiting()
	n, err := s.r.ReadAt(p, off)
	s.reads.Add(1)
	s.bytes.Add(uint64(max(n, 0)))
	return n, err
}

// Waiting implements cache.Waiter: whoever calls it may take long.
func (s *Source) Waiting() {
	if w := s.watch.Load(); w != nil {
		w.relay()
	}
}

// Reads returns how many reads of how many bytes there were so far.
func (s *Source) Reads() (reads, bytes uint64) { return s.reads.Load(), s.bytes.Load() }
