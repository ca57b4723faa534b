package extract

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/sqfs"
)

// outFile is a regular file that is being written.
type outFile struct {
	x    *extraction
	at   place
	fd   int
	ino  sqfs.Inode
	file sqfs.File

	left   atomic.Int64 // jobs to do, and one while they are made
	told   atomic.Bool  // a problem of this file was reported: one is enough
	broken atomic.Bool  // where its blocks are is not known
	holes  atomic.Bool  // not all bytes were written
}

// job is work on a file: n blocks from number first on, none of them in a fragment; or
// on a fragment block: to expand it and write all tails that wait for it, or, if tail
// has a file, to write that from a fragment that was expanded before.
type job struct {
	f        *outFile
	first, n int64
	frag     *fragment
	tail     tail
}

// runBytes is about how much a job expands, and writes at once.
const runBytes = 256 << 10

// work does jobs until there will be no more. After the end of the extraction it only
// closes files.
func (x *extraction) work() {
	buf := make([]byte, max(runBytes, x.bs))
	for j := range x.jobs {
		switch {
		case j.f != nil:
			if x.ctx.Err() == nil {
				j.f.writeRun(buf, j.first, j.n)
			}
			j.f.done()
		case j.tail.f != nil:
			j.tail.write(j.frag)
		default:
			for _, t := range j.frag.expand(x) {
				t.write(j.frag)
			}
		}
	}
}

// writeRun expands n blocks from number first on and writes them. buf has room for
// them. What is damaged, and holes, are not written.
func (f *outFile) writeRun(buf []byte, first, n int64) {
	off, have := first*f.x.bs, 0 // buf[:have] belongs at off
	flush := func(skip int) {
		f.write(buf[:have], off)
		off, have = off+int64(have+skip), 0
	}
	i := first
	for e, err := range f.file.Extents(first) {
		if err != nil {
			f.broken.Store(true)
			f.fail(fmt.Errorf("block %d: %w", i, err))
			break
		}
		if e.Block.Size == 0 {
			f.holes.Store(true)
			flush(e.Len)
			f.x.countBytes(int64(e.Len))
		} else if _, err := f.x.img.ReadBlock(buf[have:], e.Block); err != nil {
			f.fail(fmt.Errorf("block %d: %w", i, err))
			flush(e.Len)
		} else {
			have += e.Len
		}
		if i++; i == first+n {
			break
		}
	}
	flush(0)
}

// write writes b at off.
func (f *outFile) write(b []byte, off int64) {
	f.x.countBytes(int64(len(b)))
	for len(b) > 0 && f.x.ctx.Err() == nil {
		n, err := unix.Pwrite(f.fd, b, off)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			f.fail(host("write", err))
			return
		}
		b, off = b[n:], off+int64(n)
	}
}

// fail reports the first problem of a file.
func (f *outFile) fail(err error) {
	f.holes.Store(true)
	if !f.told.Swap(true) {
		f.x.report(f.at.String(), err)
	}
}

// done ends a job. The last one completes the file.
func (f *outFile) done() {
	if f.left.Add(-1) > 0 {
		return
	}
	x := f.x
	if x.ctx.Err() == nil {
		if f.holes.Load() {
			if err := ignoringEINTR(func() error { return unix.Ftruncate(f.fd, f.ino.Size) }); err != nil {
				f.fail(host("truncate", err))
			}
		}
		x.attributes(f.fd, f.at, &f.ino)
	}
	if err := unix.Close(f.fd); err != nil && !errors.Is(err, unix.EINTR) {
		f.fail(host("close", err)) // file systems with quotas, or far away, may know only now
	}
	<-x.slots
	if x.ctx.Err() == nil {
		x.counts.bytes.Add(f.ino.Size)
		x.count(&x.counts.files)
	}
}

// tail is the end of a file, or all of a small one: n bytes from start on of a
// fragment block, for offset off of the file.
type tail struct {
	f        *outFile
	start, n int
	off      int64
}

// write writes a tail from its expanded fragment.
func (t tail) write(frag *fragment) {
	switch {
	case t.f.x.ctx.Err() != nil:
	case frag.err != nil:
		t.f.fail(fmt.Errorf("block %d: %w", t.off/t.f.x.bs, frag.err))
	case t.start+t.n > len(frag.data):
		t.f.fail(fmt.Errorf("block %d: %w", t.off/t.f.x.bs, &sqfs.FormatError{
			What: fmt.Sprintf("fragment has %d bytes expanded, want %d", len(frag.data), t.start+t.n), Off: frag.block.Off,
		}))
	default:
		t.f.write(frag.data[t.start:t.start+t.n], t.off)
	}
	t.f.done()
}

// fragment is a fragment block. Files in it come one after the other while a worker
// expands it: they wait in it, and no worker does.
type fragment struct {
	block sqfs.Block

	mu      sync.Mutex
	ready   bool
	waiting []tail // until it is ready

	data []byte // when ready
	err  error  // when ready
}

// wait leaves t to the worker that expands the fragment. It returns false if that has
// happened.
func (frag *fragment) wait(t tail) bool {
	frag.mu.Lock()
	defer frag.mu.Unlock()
	if frag.ready {
		return false
	}
	frag.waiting = append(frag.waiting, t)
	return true
}

// expand expands the fragment and returns the tails that waited for it.
func (frag *fragment) expand(x *extraction) []tail {
	var data []byte
	err := x.ctx.Err()
	if err == nil {
		data = make([]byte, frag.block.Len)
		var n int
		n, err = x.img.ReadBlock(data, frag.block)
		data = data[:n]
	}
	frag.mu.Lock()
	defer frag.mu.Unlock()
	frag.data, frag.err, frag.ready = data, err, true
	waiting := frag.waiting
	frag.waiting = nil
	return waiting
}

// fragmentCache has the fragments that came last. Writers put files into fragments in
// the order of the tree, so that few would do; but files may have been sorted.
type fragmentCache struct {
	byBlock map[sqfs.Block]*fragment
	order   []*fragment // a ring
	next    int
}

// fragmentBytes bounds the fragments that are kept.
const fragmentBytes = 32 << 20

func (c *fragmentCache) init(img *sqfs.Image) {
	c.byBlock = make(map[sqfs.Block]*fragment)
	c.order = make([]*fragment, fragmentBytes/img.Superblock().BlockSize)
}

// get returns the fragment at block, and whether it is new.
func (c *fragmentCache) get(block sqfs.Block) (frag *fragment, isNew bool) {
	if old, ok := c.byBlock[block]; ok {
		return old, false
	}
	if old := c.order[c.next]; old != nil {
		delete(c.byBlock, old.block)
	}
	frag = &fragment{block: block}
	c.byBlock[block], c.order[c.next] = frag, frag
	c.next = (c.next + 1) % len(c.order)
	return frag, true
}
