package pack

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"io"

	"github.com/squirefs/squire/sqfs/internal/disk"
)

// HoleReader is a reader that knows where it has holes, so that nobody need read zeros.
// A reader that is given to [Writer.Add] may be one.
type HoleReader interface {
	// Read reads data. It may return zeros for holes, and it may stop before one.
	io.Reader

	// Hole returns how many of the next bytes are a hole, and passes over them: the
	// next Read gives what is behind. It returns 0 where data or the end comes next.
	// Add calls it before each Read.
	Hole() (int64, error)
}

const (
	// maxSize is the largest file that readers take.
	maxSize = 1 << 62

	// maxHoles bounds the blocks of zeros in all files of an image together: each needs
	// four bytes of memory in a block list, and nothing on disk, so that a few bytes of
	// input could ask for all memory there is. It is 8 TiB for blocks of 128 KiB.
	maxHoles = 1 << 26

	// maxHeld bounds what is read of a file before any of it is compressed: files up to
	// that are not compressed at all if they are there already.
	maxHeld = 4 << 20
)

// contents is a file on its way into a Writer.
type contents struct {
	w     *Writer
	r     io.Reader
	holes HoleReader // r, if it is one
	hole  int64      // bytes of a hole that were announced and not yet taken
	eof   bool

	data   *Data
	hash   hash.Hash // nil if nobody asks for duplicates
	zeros  uint64    // blocks of zeros that the hash has not seen
	held   []step    // the file from its beginning, kept back
	blocks int       // buffers in held
	stream bool      // held was handed on, and so is what follows
}

// read reads all of the file.
func (c *contents) read() error {
	for !c.eof {
		if err := c.skip(); err != nil {
			return err
		}
		b := c.w.p.take()
		if err := c.fill(b); err != nil {
			c.w.p.give(b)
			return err
		}
		if err := c.append(b); err != nil {
			return err
		}
	}
	return nil
}

// skip passes over the whole blocks of a hole, at the border of a block.
func (c *contents) skip() error {
	if err := c.look(); err != nil {
		return err
	}
	bs := int64(c.w.o.BlockSize)
	n := c.hole / bs
	if n == 0 {
		return nil
	}
	c.hole -= n * bs
	c.count(n * bs)
	return c.zero(n)
}

// look asks the reader for a hole.
func (c *contents) look() error {
	if c.holes == nil || c.hole > 0 {
		return nil
	}
	n, err := c.holes.Hole()
	if err == nil && (n < 0 || n > maxSize-c.data.size) {
		err = fmt.Errorf("hole of %d bytes", n)
	}
	if err != nil {
		return fmt.Errorf("pack: read contents: %w", err)
	}
	c.hole = n
	return nil
}

// fill reads a block, a short one at the end of the file.
func (c *contents) fill(b *buffer) error {
	full, tries := cap(b.raw), 0
	for len(b.raw) < full && !c.eof {
		if err := c.look(); err != nil {
			return err
		}
		room := b.raw[len(b.raw):full]
		if c.hole > 0 {
			n := int(min(c.hole, int64(len(room))))
			clear(room[:n])
			c.hole -= int64(n)
			b.raw = b.raw[:len(b.raw)+n]
			continue
		}
		n, err := c.r.Read(room)
		b.raw = b.raw[:len(b.raw)+n]
		if tries++; n > 0 {
			tries = 0
		}
		if err == nil && tries == 100 {
			err = io.ErrNoProgress
		}
		if c.eof = err == io.EOF; err != nil && !c.eof {
			return fmt.Errorf("pack: read contents: %w", err)
		}
	}
	c.count(int64(len(b.raw)))
	return nil
}

func (c *contents) count(n int64) {
	c.data.size += n
	c.w.in.Add(n)
}

// append takes a block that was read.
func (c *contents) append(b *buffer) error {
	if len(b.raw) == 0 {
		c.w.p.give(b)
		return nil
	}
	if allZero(b.raw) {
		c.w.p.give(b)
		return c.zero(1)
	}
	c.sum(b.raw)
	c.step(step{kind: addBlock, data: c.data, buf: b})
	return c.w.p.err()
}

// zero takes n blocks of zeros, of which the last may be short.
func (c *contents) zero(n int64) error {
	if n > maxHoles-c.w.holes-c.data.holes {
		return fmt.Errorf("pack: more than %d blocks of zeros in an image", maxHoles)
	}
	c.data.holes += n
	c.zeros += uint64(n)
	c.step(step{kind: addHoles, data: c.data, holes: int(n)})
	return nil
}

// step hands on a step, or holds it back as long as the file may turn out to be there
// already.
func (c *contents) step(s step) {
	if c.stream {
		c.w.p.send(s)
		return
	}
	c.held = append(c.held, s)
	if s.buf != nil {
		c.blocks++
	}
	if c.blocks > c.w.held || len(c.held) > 2*c.w.held+1 {
		c.flush()
	}
}

// flush hands on what was held back.
func (c *contents) flush() {
	for _, s := range c.held {
		c.w.p.send(s)
	}
	c.held, c.stream = c.held[:0], true
}

// forget leaves the Writer as if there had been no file.
func (c *contents) forget() {
	if c.stream {
		c.w.p.send(step{kind: drop, data: c.data})
	}
	for _, s := range c.held {
		if s.buf != nil {
			c.w.p.give(s.buf)
		}
	}
	c.held = c.held[:0]
}

// sum adds a block to the hash, behind the zeros before it. Zeros are counted, not
// hashed: holes may be of any length.
func (c *contents) sum(block []byte) {
	if c.hash == nil {
		return
	}
	c.sumZeros()
	c.hash.Write([]byte{1})
	c.hash.Write(block)
}

func (c *contents) sumZeros() {
	if c.zeros > 0 {
		c.hash.Write(binary.LittleEndian.AppendUint64([]byte{0}, c.zeros))
		c.zeros = 0
	}
}

// key identifies the contents: no two that differ are known, or will be, to have the same
// SHA-256, so that nothing is read back and compared. As all blocks but the last have the
// same length, which is hashed too, no other blocks and holes make the same stream.
func (c *contents) key() (k [sha256.Size]byte) {
	c.sumZeros()
	c.hash.Write(binary.LittleEndian.AppendUint64(nil, uint64(c.data.size)))
	c.hash.Sum(k[:0])
	return k
}

// allZero reports whether there are only zeros in b.
func allZero(b []byte) bool {
	return len(b) == 0 || b[0] == 0 && bytes.Equal(b[:len(b)-1], b[1:])
}

// add does the work of Add.
func (w *Writer) add(r io.Reader) (*Data, error) {
	c := &contents{w: w, r: r, data: &Data{w: w, fragment: disk.None}, held: w.scratch[:0]}
	c.holes, _ = r.(HoleReader)
	if !w.o.Duplicates {
		w.hash.Reset()
		c.hash = w.hash
	}
	defer func() { w.scratch = c.held[:0] }()
	if err := c.read(); err != nil {
		c.forget()
		w.in.Add(-c.data.size)
		return nil, err
	}
	if c.hash != nil {
		k := c.key()
		if old := w.seen[k]; old != nil {
			c.forget()
			w.duplicates++
			w.saved += old.size
			return old, nil
		}
		w.seen[k] = c.data
	}
	w.place(c)
	return c.data, w.p.err()
}

// place gives contents that were read and are new what they need.
//
// A file shorter than a block goes into a fragment, which it shares with the files before
// and after it. The tail of a longer file becomes a short block of its own, as with
// mksquashfs: whoever reads such a file has it from one place, and need not expand a
// fragment of many others' tails. In fragments the tails of a root file system would save
// 0.2 % of its size.
func (w *Writer) place(c *contents) {
	d := c.data
	w.holes += d.holes
	if c.stream {
		return
	}
	if !w.o.NoFragments && c.blocks == 1 && len(c.held) == 1 && d.size < int64(w.o.BlockSize) {
		w.fragment(d, c.held[0].buf)
		c.held = c.held[:0]
		return
	}
	d.blocks = make([]disk.Word, 0, int64(c.blocks)+d.holes)
	c.flush()
}

// fragment puts a file into the fragment that is being filled, or the next.
func (w *Writer) fragment(d *Data, b *buffer) {
	if w.open != nil && len(w.open.raw)+len(b.raw) > cap(w.open.raw) {
		w.closeFragment()
	}
	d.fragment = w.fragments
	if w.open == nil {
		w.open = b
		return
	}
	d.offset = uint32(len(w.open.raw))
	w.open.raw = append(w.open.raw, b.raw...)
	w.p.give(b)
}

// closeFragment hands on the fragment that is being filled.
func (w *Writer) closeFragment() {
	if w.open == nil {
		return
	}
	w.p.send(step{kind: addFragment, buf: w.open})
	w.open = nil
	w.fragments++
}
