package cache

import (
	"errors"
	"sync"
	"time"

	"github.com/squirefs/squire/sqfs"
)

// ErrPanic is what callers get that waited for a block whose decoder panicked.
var ErrPanic = errors.New("cache: decoder of this block panicked")

// shard is one part of a Cache with its own lock.
//
// A buffer is in one of four places: in loading (being decoded, in use by its loader), in kept (decoded, findable), in
// free (waiting for its next use), or nowhere but in the hands of those who hold it (evicted while in use).
//
// INVARIANT: keptBytes + freeBytes <= budget whenever mu is free.
type shard struct {
	budget int64
	clock  func() time.Time

	mu        sync.Mutex
	kept      map[key]*Buffer
	all       order // of kept
	images    map[uint64]*image
	users     []*user
	epoch     uint32    // number of times that victimLocked found one over
	began     time.Time // of this one
	loading   map[key]*Buffer
	free      [classes][]*Buffer
	keptBytes int64
	freeBytes int64
	counts    Stats // Bytes unused
}

func (s *shard) init(budget int64) {
	s.budget = budget
	s.clock, s.began = time.Now, time.Now()
	s.loading = make(map[key]*Buffer)
	s.kept = make(map[key]*Buffer)
	s.images = make(map[uint64]*image)
}

func (s *shard) stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	sum := s.counts
	sum.Bytes = s.keptBytes + s.freeBytes
	return sum
}

// get is Cache.Get within the shard that k belongs to.
func (s *shard) get(d Decoder, k key) (*Buffer, error) {
	s.mu.Lock()
	if b := s.kept[k]; b != nil {
		s.usedLocked(b)
		s.counts.Hits++
		b.refs++
		s.mu.Unlock()
		return b, nil
	}
	if b, ok := s.loading[k]; ok {
		s.counts.Waits++
		w, _ := d.(Waiter)
		return s.waitLocked(b, w)
	}
	s.counts.Misses++
	b := s.startLocked(k)
	s.mu.Unlock()
	return s.load(d, k, b)
}

// find is Cache.Find within the shard that k belongs to.
func (s *shard) find(k key, wait Waiter) *Buffer {
	s.mu.Lock()
	if b := s.kept[k]; b != nil {
		s.usedLocked(b)
		s.counts.Hits++
		b.refs++
		s.mu.Unlock()
		return b
	}
	if b, ok := s.loading[k]; ok && wait != nil {
		s.counts.Waits++
		b, _ = s.waitLocked(b, wait)
		return b
	}
	s.mu.Unlock()
	return nil
}

// has is Cache.Has within the shard that k belongs to.
func (s *shard) has(k key) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.loading[k] != nil || s.kept[k] != nil
}

// wanted is Cache.Wanted within the shard that k belongs to.
func (s *shard) wanted(k key) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.loading[k]
	return b != nil && b.done != nil
}

// loadAhead is Cache.Load within the shard that k belongs to.
func (s *shard) loadAhead(d Decoder, k key) (bool, error) {
	s.mu.Lock()
	if s.loading[k] != nil || s.kept[k] != nil {
		s.mu.Unlock()
		return false, nil
	}
	s.counts.Ahead++
	b := s.startLocked(k)
	s.mu.Unlock()
	b, err := s.load(d, k, b)
	if err != nil {
		return true, err
	}
	b.Release()
	return true, nil
}

// startLocked returns a buffer for k, which is loading from now on.
func (s *shard) startLocked(k key) *Buffer {
	b := s.takeLocked(k.image, k.block.Len)
	b.refs, b.key = 1, k
	s.loading[k] = b
	return b
}

// drop forgets b, which its caller holds, and gives up the caller's reference.
func (s *shard) drop(b *Buffer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kept[b.key] == b {
		s.forgetLocked(b)
	}
	s.unrefLocked(b)
}

// waitLocked waits for the loader of b, having told w, which may be nil. It unlocks s.mu.
func (s *shard) waitLocked(b *Buffer, w Waiter) (*Buffer, error) {
	b.refs++
	if b.done == nil {
		b.done = make(chan struct{}) // only here: most loads have nobody waiting
	}
	done := b.done
	s.mu.Unlock()
	if w != nil {
		w.Waiting()
	}
	<-done
	if err := b.err; err != nil {
		b.Release()
		return nil, err
	}
	return b, nil
}

// load decodes k into b, which is in s.loading, and hands the result to those who wait.
func (s *shard) load(d Decoder, k key, b *Buffer) (*Buffer, error) {
	err := ErrPanic // stays if ReadBlock does not return
	defer func() { s.finish(k, b, err) }()
	var n int
	n, err = d.ReadBlock(b.mem[:k.block.Len+sqfs.ReadSlack], k.block)
	if err != nil {
		return nil, err
	}
	b.n = n
	return b, nil
}

// finish moves b from loading to kept, or drops it if the load failed, and wakes those who wait for it. On failure it
// also gives up the loader's own reference, as the loader returns no Buffer.
func (s *shard) finish(k key, b *Buffer, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.loading, k)
	b.err = err
	if b.done != nil {
		close(b.done)
	}
	if err != nil {
		s.unrefLocked(b)
		return
	}
	if !s.makeRoomLocked(k.image, b.size()) {
		return // larger than the whole budget: only the callers hold it
	}
	s.keepLocked(b)
}

// makeRoomLocked evicts until size more bytes of an image fit into the budget. Waiting buffers go first, as they hold no data. It
// reports false, having changed nothing, if they can never fit.
func (s *shard) makeRoomLocked(image uint64, size int64) bool {
	if size > s.budget {
		return false
	}
	for s.keptBytes+s.freeBytes+size > s.budget {
		if s.freeBytes > 0 {
			s.dropFreeLocked()
			continue
		}
		s.evictLocked(image, size)
	}
	return true
}

// evictLocked forgets a block, for size bytes of an image.
//
// REQUIRES: a block is kept.
func (s *shard) evictLocked(image uint64, size int64) {
	s.counts.Evictions++
	s.forgetLocked(s.victimLocked(image, size))
}

// unrefLocked gives up one reference to b. With the last one, b goes to the free list if the budget has room for it
// and to the garbage collector otherwise.
func (s *shard) unrefLocked(b *Buffer) {
	b.refs--
	if b.refs > 0 {
		return
	}
	if b.refs < 0 {
		panic("cache: Buffer released more often than it was returned by Get")
	}
	if s.keptBytes+s.freeBytes+b.size() > s.budget {
		b.mem = nil // a stale use fails loudly
		return
	}
	s.freeBytes += b.size()
	s.free[b.class] = append(s.free[b.class], b)
}

// takeLocked returns a buffer for n bytes of an image: a waiting one, or that of a block which makes room once the budget is full,
// or a new one.
func (s *shard) takeLocked(image uint64, n uint32) *Buffer {
	class := classOf(n)
	if len(s.free[class]) == 0 && len(s.kept) > 0 &&
		s.keptBytes+s.freeBytes+classSize(class) > s.budget {
		s.evictLocked(image, classSize(class))
	}
	list := s.free[class]
	if len(list) == 0 {
		return &Buffer{shard: s, class: class, mem: make([]byte, classSize(class)+sqfs.ReadSlack)}
	}
	b := list[len(list)-1]
	s.free[class] = list[:len(list)-1]
	s.freeBytes -= b.size()
	b.reset()
	return b
}

// dropFreeLocked gives one waiting buffer to the garbage collector.
//
// REQUIRES: freeBytes > 0.
func (s *shard) dropFreeLocked() {
	for class := range s.free {
		if list := s.free[class]; len(list) > 0 {
			b := list[len(list)-1]
			list[len(list)-1] = nil
			s.free[class] = list[:len(list)-1]
			s.freeBytes -= b.size()
			b.mem = nil
			return
		}
	}
}
