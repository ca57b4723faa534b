package fusefs

import "github.com/squirefs/squire/sqfs"

// lookups is what ahead does when somebody looks a file up, who mostly reads it next: from looking up a file to reading
// it a program takes about as long as it takes to decode a block.
type lookups struct {
	found   []sqfs.Inode // files that were looked up, for which there is something to do
	guesses stream       // owns the blocks that were decoded because of that
	credit  int          // how many more may be
	starts  int          // of files, that were read

	touches []Touch                    // what is to be replayed, in order
	files   map[sqfs.InodeRef][]uint32 // blocks of files that were read before, until the file is found
	replay  stream                     // owns the blocks that were replayed; its window is what of them may be pending
	budget  int64                      // the most that window may become
}

const (
	// maxCredit is how many files that nobody reads may be looked up before nothing is decoded for them any more. Each
	// block that is asked for after all gives one back, and so do startsForCredit files that are read.
	maxCredit       = 32
	startsForCredit = 8
	maxFound        = 1024
	// maxFollowed bounds the blocks of one file that are decoded because somebody found it.
	maxFollowed = 256
	// minReplay is what is decoded of a trace at first. As much of it as is of use, twice as much is decoded on top: what
	// is run now may be something else.
	minReplay = 1 << 20
)

// init takes what was read before, and how many bytes of it may wait in the block cache.
func (l *lookups) init(replay []Touch, budget int64) {
	l.credit = maxCredit
	if len(replay) == 0 {
		return
	}
	l.touches, l.budget = replay, budget
	l.replay.window = min(minReplay, budget)
}

// index sorts what is replayed by file. It takes some ms for a long trace, which nobody who mounts is to wait for.
func (a *ahead) index(touches []Touch) {
	files := make(map[sqfs.InodeRef][]uint32)
	for _, t := range touches {
		files[t.Ref] = append(files[t.Ref], t.Block)
	}
	a.mu.Lock()
	a.files = files
	a.mu.Unlock()
}

// owns reports whether s is no reader's.
func (l *lookups) owns(s *stream) bool { return s != nil && (s == &l.guesses || s == &l.replay) }

// lookedUp notes that somebody has looked up a file. The blocks of it that were read when the image was used before go
// to the kernel; of others the first one is decoded, as long as that has been of use.
func (a *ahead) lookedUp(ino *sqfs.Inode) {
	if ino.Type != sqfs.TypeFile || ino.Size == 0 {
		return
	}
	undecoded := a.undecoded(ino) // may read the image
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, known := a.files[ino.Ref]; !known {
		if a.credit == 0 || !undecoded {
			return
		}
		a.credit--
	}
	a.enqueue(ino)
}

// undecoded reports whether the first block of a file has yet to be decoded.
func (a *ahead) undecoded(ino *sqfs.Inode) bool {
	file, err := a.fs.img.File(ino)
	if err != nil {
		return false
	}
	e, err := file.Extent(0)
	return err == nil && e.Block.Size > 0 && !a.fs.cache.Has(a.fs.id, e.Block)
}

// listed is lookedUp for files that come up in a listing, most of which nobody reads.
func (a *ahead) listed(ino *sqfs.Inode) {
	if ino.Type != sqfs.TypeFile {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, known := a.files[ino.Ref]; known {
		a.enqueue(ino)
	}
}

// enqueue has something done for a file. a.mu is held.
func (a *ahead) enqueue(ino *sqfs.Inode) {
	if len(a.found) < maxFound {
		a.found = append(a.found, *ino)
		a.call()
	}
}

// begun notes that somebody begins to read a file.
func (a *ahead) begun() {
	if a.starts++; a.starts%startsForCredit == 0 {
		a.refund()
	}
}

// refund allows another guess.
func (a *ahead) refund() { a.credit = min(a.credit+1, maxCredit) }

// follow does what a file that was found calls for. a.mu is held, and free meanwhile.
func (a *ahead) follow() {
	ino := a.found[0]
	if a.found = a.found[1:]; len(a.found) > 0 {
		a.call()
	} else {
		a.found = nil
	}
	blocks, known := a.files[ino.Ref]
	delete(a.files, ino.Ref)
	if !known {
		a.unlocked(func() { a.followFirst(&ino) })
		return
	}
	for k, i := range blocks {
		if a.closed {
			return
		}
		if a.replay.done >= a.replay.window || k == maxFollowed {
			// Enough for now: who finds it again goes on.
			a.files[ino.Ref] = blocks[k:]
			return
		}
		a.unlocked(func() { a.followBlock(&ino, int64(i)) })
	}
}

// followFirst decodes the first block of a file.
func (a *ahead) followFirst(ino *sqfs.Inode) {
	file, err := a.fs.img.File(ino)
	if err != nil {
		return
	}
	if e, err := file.Extent(0); err == nil && e.Block.Size > 0 {
		a.preload(&a.guesses, e.Block)
	}
}

// followBlock puts block i of a file, which was read before, into the page cache.
func (a *ahead) followBlock(ino *sqfs.Inode, i int64) {
	file, err := a.fs.img.File(ino)
	if err != nil || i >= file.NumBlocks() {
		return
	}
	if e, err := file.Extent(i); err == nil && e.Block.Size > 0 {
		a.passReplayed(e.Block, part{ino.Ref, i * a.fs.blockSize, e.Start, e.Len})
	}
}

// passReplayed is pass for a part of a block that was replayed, or is to be.
func (a *ahead) passReplayed(b sqfs.Block, p part) {
	a.mu.Lock()
	mine := a.pending[b] == nil
	if mine {
		a.pending[b] = &a.replay
		a.replay.done += int64(b.Len)
	}
	a.mu.Unlock()
	a.pass(b, []part{p})
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.pending[b] == &a.replay {
		// Somebody found the file: what was replayed for it was right, what was not has yet to show.
		a.settle(&a.replay, b, !mine)
	}
}

// preload decodes a block for s, guesses or replay, unless somebody has.
func (a *ahead) preload(s *stream, b sqfs.Block) {
	a.mu.Lock()
	if a.pending[b] != nil {
		if s == &a.guesses {
			a.refund()
		}
		a.mu.Unlock()
		return
	}
	a.pending[b] = s
	s.done += int64(b.Len)
	if s == &a.guesses {
		a.forgetOld(b)
	}
	a.mu.Unlock()
	did, err := a.fs.cache.Load(a.fs.early, a.fs.id, b)
	if did && err == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.pending[b] == s {
		a.settle(s, b, err == nil)
	}
}

// forgetOld bounds the guesses that nobody asked for; b is a new one.
func (a *ahead) forgetOld(b sqfs.Block) {
	q := &a.guesses.queue
	if *q = append(*q, queued{block: b}); len(*q) > maxCredit {
		if old := (*q)[0].block; a.pending[old] == &a.guesses {
			a.settle(&a.guesses, old, false)
		}
		*q = (*q)[:copy(*q, (*q)[1:])]
	}
}

// settle notes that a block of s, guesses or replay, is no longer pending; used says that decoding it cost nothing or
// was of use.
func (a *ahead) settle(s *stream, b sqfs.Block, used bool) {
	delete(a.pending, b)
	s.done -= int64(b.Len)
	switch {
	case s == &a.replay && used:
		s.window = min(s.window+2*int64(b.Len), a.budget)
	case used:
		a.refund()
	}
	if a.canReplay() {
		a.call()
	}
}

// canReplay reports whether there is something to replay, and room for it.
func (a *ahead) canReplay() bool { return len(a.touches) > 0 && a.replay.done < a.replay.window }

// replayNext decodes the next block that was read when the image was used before. a.mu is held, and free meanwhile.
func (a *ahead) replayNext() {
	t := a.touches[0]
	if a.touches = a.touches[1:]; a.canReplay() {
		a.call()
	}
	a.unlocked(func() {
		ino, err := a.fs.img.Inode(t.Ref)
		if err != nil {
			return
		}
		file, err := a.fs.img.File(&ino)
		if err != nil || int64(t.Block) >= file.NumBlocks() {
			return
		}
		if e, err := file.Extent(int64(t.Block)); err == nil && e.Block.Size > 0 {
			a.preload(&a.replay, e.Block)
		}
	})
}
