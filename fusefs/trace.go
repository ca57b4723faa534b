package fusefs

import (
	"sync"

	"github.com/squirefs/squire/sqfs"
)

// Touch is a block of a file that somebody read.
type Touch struct {
	Ref   sqfs.InodeRef
	Block uint32 // number of the block in the file
}

// maxTouches bounds a trace: 8 GiB of blocks of the usual size.
const maxTouches = 1 << 16

// trace knows which blocks were read first, in order, while it records.
type trace struct {
	mu      sync.Mutex
	touches []Touch
	seen    map[Touch]struct{} // nil: nothing is recorded
}

// recording reports whether add does anything.
func (t *trace) recording() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.seen != nil
}

// add notes that block i of ref was read.
func (t *trace) add(ref sqfs.InodeRef, i int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.seen == nil || len(t.touches) == maxTouches || i != int64(uint32(i)) {
		return
	}
	touch := Touch{ref, uint32(i)}
	if _, ok := t.seen[touch]; !ok {
		t.seen[touch] = struct{}{}
		t.touches = append(t.touches, touch)
	}
}

// Touched ends the recording that Options.Record began, and returns which blocks were read, each once, in the order in
// which they were read first; at most 65536. Of blocks that were decoded ahead of their reader some may be missing.
func (f *FS) Touched() []Touch {
	f.trace.mu.Lock()
	defer f.trace.mu.Unlock()
	touches := f.trace.touches
	f.trace.touches, f.trace.seen = nil, nil
	return touches
}
