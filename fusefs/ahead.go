package fusefs

import (
	"sync"

	"github.com/squirefs/squire/sqfs"
)

// ahead decodes blocks before they are asked for, in goroutines of its own. There are three reasons to expect that a
// block will be asked for:
//
//   - somebody reads in order, through a file or from file to file in the order of the image: a stream;
//   - somebody looked up a file, see lookup.go;
//   - it was read when the image was used before, see lookup.go too.
//
// What is decoded for a stream goes to the kernel's page cache at once, if it can, where its reader finds it without
// asking; what the kernel does not take, as it does not know the file yet, waits in the block cache.
//
// What is decoded in vain is bounded: a stream begins with nothing, and is given more only as its reader comes to what
// was decoded for it, or to the end of that.
type ahead struct {
	fs *FS

	mu      sync.Mutex
	work    sync.Cond              // signalled when there may be work
	workers int                    // goroutines that do it
	idle    int                    // of these those that wait, and were not called
	limit   int                    // how many there may be
	resting bool                   // who is idle is to end
	running sync.WaitGroup         // of workers
	streams []*stream              // the one that was read last at the end
	pending map[sqfs.Block]*stream // decoded, or being decoded, and not asked for yet
	closed  bool

	maxWindow int64

	lookups
}

// A stream is a place in the image from which somebody reads forward.
type stream struct {
	ref    sqfs.InodeRef // file that was read last
	block  int64         // of it
	next   position      // where to go on
	steps  int           // how many requests came in order
	window int64         // bytes that may be decoded after what was read last
	done   int64         // bytes that were decoded so far
	read   int64         // value of done when what was read last had been decoded
	queue  []queued      // blocks that nobody asked for yet, in order
	shared sqfs.Block    // fragment that was decoded for the reader, parts of which other files have; Size 0: none
	passed sqfs.Block    // the fragment of which that was done last
	within bool          // it ends with the file, as another one goes on behind that
	busy   bool          // somebody looks for the next block
	ended  bool
}

// queued is a block that was decoded ahead, with the parts of it that were passed on, and the stream's done after it.
type queued struct {
	block sqfs.Block
	parts []part
	done  int64
}

const (
	maxDecoders = 16
	maxStreams  = 32
	// maxQueue bounds the blocks of a stream that wait for their reader, however small they are.
	maxQueue = 256
	// inOrder is how many requests have to come in order before more is decoded than was asked for. Programs that start
	// jump about, and a few steps in order come about by chance.
	inOrder = 4
	// minWindow is what is decoded ahead then. It doubles with each request in order.
	minWindow = 256 << 10
	// maxWindow keeps several processors busy, and reads from storage under way, while the reader takes what is there. A
	// small cache has smaller ones.
	maxWindow = 8 << 20
	// minCost is what a block counts at least, as that is the memory it takes.
	minCost = 4 << 10
	// adjacent is how far apart in the table two inodes may be, in bytes, whose files are taken for being read one
	// after the other; skipped how far apart they may be for the reader to have left out some, or for several readers
	// to take turns. A small file has some 32 bytes.
	adjacent = 64
	skipped  = 256
)

func (a *ahead) init(f *FS, replay []Touch) {
	a.fs = f
	a.work.L = &a.mu
	a.pending = make(map[sqfs.Block]*stream)
	a.maxWindow = max(minWindow, min(maxWindow, f.cache.Budget()/8))
	a.lookups.init(replay, f.cache.Budget()/2)
}

// start allows goroutines, which start when there is work, and returns a function that ends them and waits for them.
func (a *ahead) start() (stop func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.limit = min(processors(), maxDecoders)
	if touches := a.touches; len(touches) > 0 {
		a.running.Go(func() { a.index(touches) })
		a.call()
	}
	return func() {
		a.mu.Lock()
		a.closed, a.limit = true, 0
		a.wakeAll()
		a.mu.Unlock()
		a.running.Wait()
	}
}

// call has somebody look for work. a.mu is held.
func (a *ahead) call() {
	a.resting = false
	a.fs.lull.putOff()
	switch {
	case a.idle > 0:
		a.idle--
		a.work.Signal()
	case a.workers < a.limit && a.fs.guest.try(a.cost()):
		a.workers++
		a.running.Go(a.run)
	}
}

// cost is what a worker takes of Options.Room: it reads a block and expands it.
func (a *ahead) cost() int64 { return workerCost + 2*a.fs.blockSize }

// wakeAll wakes all who are idle. a.mu is held.
func (a *ahead) wakeAll() {
	a.idle = 0
	a.work.Broadcast()
}

// rest ends the workers that are idle, and reports whether there are no others.
func (a *ahead) rest() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	idle := a.idle
	a.resting = true
	a.wakeAll()
	return a.workers <= idle
}

// run does what there is to do, until the end or a rest. What was looked up is needed soonest, what was read before
// latest.
func (a *ahead) run() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for !a.closed {
		if len(a.found) > 0 {
			a.follow()
		} else if s := a.choose(); s != nil {
			a.advance(s)
		} else if a.canReplay() {
			a.replayNext()
		} else if a.resting {
			break
		} else {
			a.idle++
			a.work.Wait()
		}
	}
	a.workers--
	a.fs.guest.give(a.cost())
}

// read notes that block i of ino, which is at b, is being read; first says that it is the first block of a request. It
// does not allocate in the steady state.
func (a *ahead) read(ino *sqfs.Inode, i int64, b *sqfs.Block, first bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.pending[*b]
	if a.owns(s) {
		a.settle(s, *b, true)
		s = nil
	}
	if first && i == 0 {
		a.begun()
	}
	if s == nil {
		s = a.find(ino.Ref, i)
	}
	if s == nil {
		before := a.leadingTo(ino.Ref, i)
		s = a.add()
		*s = stream{ref: ino.Ref, block: i, next: position{*ino, i + 1}, queue: s.queue[:0]}
		if before != nil {
			s.steps, s.window, s.within = before.steps, before.window, true
		}
	} else {
		a.touch(s)
		a.goOn(s, ino, i, b, first)
	}
	if b.Fragment && s.steps >= 2 && *b != s.passed {
		s.shared, s.passed = *b, *b
	}
	if s.hasWork() {
		a.call()
	}
}

// goOn notes that the reader of s has come to block i of ino.
func (a *ahead) goOn(s *stream, ino *sqfs.Inode, i int64, b *sqfs.Block, first bool) {
	expected := a.pending[*b] == s
	overtakes := s.next.before(ino.Ref, i+1)
	inTurn := expected || s.next.ino.Ref == ino.Ref && s.next.i == i ||
		i == 0 && distance(s.next.ino.Ref, ino.Ref) <= adjacent
	if ino.Ref > s.ref || ino.Ref == s.ref && i > s.block {
		s.ref, s.block = ino.Ref, i
	}
	switch {
	case expected:
		a.consume(s, *b, true)
	case overtakes: // the reader came to the end of what was decoded, or jumped over it
		s.next = position{*ino, i + 1}
		a.consume(s, sqfs.Block{}, inTurn)
	default:
		return // a part of what was read before
	}
	if !inTurn {
		s.window = 0
	} else if first {
		if s.steps++; s.steps >= inOrder {
			s.window = min(max(2*s.window, minWindow), a.maxWindow)
		}
	}
}

// consume takes all that was queued up to block b out of the queue, everything if b is not in it. used says that the
// reader must have come by it: what the kernel had of it was not asked for.
func (a *ahead) consume(s *stream, b sqfs.Block, used bool) {
	for k, q := range s.queue {
		if used {
			for _, p := range q.parts {
				a.fs.trace.add(p.ref, p.off/a.fs.blockSize)
			}
		}
		if a.pending[q.block] == s {
			delete(a.pending, q.block)
		}
		s.read = q.done
		if q.block == b {
			n := copy(s.queue, s.queue[k+1:])
			clear(s.queue[n:])
			s.queue = s.queue[:n]
			return
		}
	}
	clear(s.queue)
	s.queue = s.queue[:0]
	s.read = s.done
}

// find returns the stream that the reading of block i of ref goes on with, or nil.
func (a *ahead) find(ref sqfs.InodeRef, i int64) *stream {
	for k := len(a.streams) - 1; k >= 0; k-- {
		if s := a.streams[k]; s.leadsTo(ref, i, a.fs.blockSize) {
			return s
		}
	}
	return nil
}

// leadsTo reports whether block i of ref is where the reader of s goes on: near the block that was read last, as the
// kernel does not keep requests in order; or the first of a file behind that, or behind what was decoded already.
func (s *stream) leadsTo(ref sqfs.InodeRef, i, blockSize int64) bool {
	if ref == s.ref {
		return i+1 >= s.block && i <= s.block+max(1, maxRead/blockSize)
	}
	return i == 0 && ref > s.ref && (ref <= s.next.ino.Ref || distance(max(s.ref, s.next.ino.Ref), ref) <= skipped)
}

// leadingTo returns the stream that took the head of ref along, if block i is the one behind that.
func (a *ahead) leadingTo(ref sqfs.InodeRef, i int64) *stream {
	if i != a.fs.head() {
		return nil
	}
	for _, s := range a.streams {
		if s.ref < ref && ref <= s.next.ino.Ref && s.window > 0 {
			return s
		}
	}
	return nil
}

// add adds a stream in place of the one that nobody has read from for the longest time.
func (a *ahead) add() *stream {
	if len(a.streams) < maxStreams {
		s := new(stream)
		a.streams = append(a.streams, s)
		return s
	}
	old := a.streams[0]
	a.consume(old, sqfs.Block{}, false)
	if old.busy { // somebody still works with it
		old.ended = true
		old = new(stream)
	}
	copy(a.streams, a.streams[1:])
	a.streams[maxStreams-1] = old
	return old
}

// touch moves s to the end.
func (a *ahead) touch(s *stream) {
	for k := len(a.streams) - 1; k >= 0; k-- {
		if a.streams[k] == s {
			copy(a.streams[k:], a.streams[k+1:])
			a.streams[len(a.streams)-1] = s
			return
		}
	}
}

// choose returns a stream with something to do, or nil.
func (a *ahead) choose() *stream {
	for k := len(a.streams) - 1; k >= 0; k-- {
		if s := a.streams[k]; s.hasWork() {
			return s
		}
	}
	return nil
}

func (s *stream) hasWork() bool {
	return !s.busy && !s.ended && (s.shared.Size > 0 || s.done-s.read < s.window && len(s.queue) < maxQueue)
}

// advance decodes the next block of s, or passes on what other files have of a fragment that is decoded. a.mu is held,
// and free meanwhile.
func (a *ahead) advance(s *stream) {
	full := s.done-s.read >= s.window || len(s.queue) >= maxQueue
	w := walk{at: s.next, shared: s.shared, whole: s.ref, across: s.steps >= inOrder && !s.within, only: full}
	s.shared = sqfs.Block{}
	s.busy = true
	more := false
	a.unlocked(func() { more = a.fs.following(&w) })
	s.busy = false
	if !w.only && s.next.before(w.at.ino.Ref, w.at.i) {
		s.next = w.at
	}
	if !more {
		s.window = 0 // the reader will say where to go on
	}
	if len(w.parts) == 0 || s.ended || a.closed {
		return
	}
	if w.block != w.shared {
		a.queue(s, &w)
	}
	if s.hasWork() {
		a.call() // somebody else can go on
	}
	a.unlocked(func() { a.pass(w.block, w.parts) })
}

// queue notes that the block that w found is decoded for s. Blocks that are pending already count too: a hostile image
// may have no others.
func (a *ahead) queue(s *stream, w *walk) {
	s.done += max(int64(w.block.Len), minCost)
	q := queued{block: w.block, done: s.done}
	if a.fs.trace.recording() {
		q.parts = w.parts
	}
	s.queue = append(s.queue, q)
	if a.pending[w.block] == nil {
		a.pending[w.block] = s
	}
}

// unlocked calls do with a.mu free, which is held before and after. A panic must not end the server.
func (a *ahead) unlocked(do func()) {
	a.mu.Unlock()
	defer a.mu.Lock()
	defer func() {
		if p := recover(); p != nil {
			a.fs.panicked(p)
		}
	}()
	do()
}

// pass decodes a block, unless it is kept, and has parts of it put into the page cache.
func (a *ahead) pass(b sqfs.Block, parts []part) {
	buf, err := a.fs.cache.Get(a.fs.early, a.fs.id, b)
	if err != nil {
		return // whoever reads it will be told
	}
	if a.fs.storers == nil || !b.Fragment && a.askedFor(b) {
		buf.Release() // whoever asked has it from here
		return
	}
	if !a.fs.storers.put(storeJob{buf: buf, parts: parts, keep: b.Fragment, ahead: !b.Fragment, block: b}, true) {
		buf.Release()
	}
}

// askedFor reports whether somebody asked for a block since it was chosen.
func (a *ahead) askedFor(b sqfs.Block) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.pending[b] == nil
}
