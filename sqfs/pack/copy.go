package pack

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/squirefs/squire/sqfs"
	"github.com/squirefs/squire/sqfs/internal/codec"
	"github.com/squirefs/squire/sqfs/internal/disk"
)

// Copier adds files of an image to a Writer without expanding them: their blocks are
// copied as they lie there. Nothing looks into them, so that damage is copied too. Copiers
// of a Writer are used by the goroutine that uses the Writer.
//
// A block of fragments is copied whole, with all that is in it. Who wants nothing left of
// a file asks [Copier.Fragment] and adds what shares a block with it by [Writer.Add].
type Copier struct {
	w         *Writer
	img       *sqfs.Image
	r         io.ReaderAt
	fragments map[int64]uint32 // new numbers of blocks of fragments, by their offset
	files     map[[sha256.Size]byte]*Data
	sum       hash.Hash
}

// ErrOtherBlocks says that blocks of an image mean something else in that of the Writer.
var ErrOtherBlocks = errors.New("pack: the images have different compressors or block sizes")

// Copier returns one for an image, whose bytes r gives.
func (w *Writer) Copier(img *sqfs.Image, r io.ReaderAt) (*Copier, error) {
	if sb := img.Superblock(); sb.Compression != w.o.Compression || int(sb.BlockSize) != w.o.BlockSize {
		return nil, ErrOtherBlocks
	}
	return &Copier{
		w: w, img: img, r: r, sum: sha256.New(),
		fragments: map[int64]uint32{}, files: map[[sha256.Size]byte]*Data{},
	}, nil
}

// extents are where a file is.
type extents struct {
	list []sqfs.Extent
	key  [sha256.Size]byte // equal for files of the same blocks
}

// Copy adds the contents of a regular file of the image. After an error only
// [Writer.Abort] is of use.
func (c *Copier) Copy(ino *sqfs.Inode) (*Data, error) {
	if c.w.done {
		return nil, errEnded
	}
	x, err := c.extents(ino)
	if err != nil {
		return nil, fmt.Errorf("pack: %w", err)
	}
	d := c.files[x.key]
	if d == nil {
		d = &Data{w: c.w, size: ino.Size, fragment: disk.None}
		for _, e := range x.list {
			if err = c.extent(d, e); err != nil {
				return nil, err
			}
		}
		c.files[x.key] = d
	} else {
		c.w.duplicates++
		c.w.saved += d.size
	}
	c.w.in.Add(d.size)
	c.w.files.Add(1)
	return d, c.w.p.err()
}

// extents reads where a file is.
func (c *Copier) extents(ino *sqfs.Inode) (x extents, err error) {
	f, err := c.img.File(ino)
	if err != nil {
		return x, err
	}
	c.sum.Reset()
	c.sum.Write(binary.LittleEndian.AppendUint64(nil, uint64(ino.Size)))
	for e, err := range f.Extents(0) {
		if err != nil {
			return x, err
		}
		if e.Block.Size == 0 {
			if c.w.holes++; c.w.holes > maxHoles {
				return x, fmt.Errorf("more than %d blocks of zeros in an image", maxHoles)
			}
		}
		var b [8 + 4 + 4]byte
		binary.LittleEndian.PutUint64(b[:], uint64(e.Block.Off))
		binary.LittleEndian.PutUint32(b[8:], e.Block.Size)
		binary.LittleEndian.PutUint32(b[12:], uint32(e.Start))
		c.sum.Write(b[:])
		x.list = append(x.list, e)
	}
	c.sum.Sum(x.key[:0])
	return x, nil
}

// extent adds one block of a file.
func (c *Copier) extent(d *Data, e sqfs.Extent) error {
	switch {
	case e.Block.Fragment:
		n, err := c.fragment(e.Block)
		d.fragment, d.offset = n, uint32(e.Start)
		return err
	case e.Block.Size == 0:
		d.holes++
		c.w.p.send(step{kind: addHoles, data: d, holes: 1})
		return nil
	}
	b, err := c.read(e.Block)
	if err != nil {
		return err
	}
	c.w.p.steps <- step{kind: addBlock, data: d, buf: b}
	return c.w.p.err()
}

// fragment returns the number of a block of fragments, which is copied once.
func (c *Copier) fragment(block sqfs.Block) (uint32, error) {
	if n, ok := c.fragments[block.Off]; ok {
		return n, nil
	}
	b, err := c.read(block)
	if err != nil {
		return 0, err
	}
	c.w.closeFragment() // which has the number before
	n := c.w.fragments
	c.w.fragments++
	c.fragments[block.Off] = n
	c.w.p.steps <- step{kind: addFragment, buf: b}
	return n, c.w.p.err()
}

// read reads a block as it lies in the image, into a buffer that no worker need look at.
func (c *Copier) read(block sqfs.Block) (*buffer, error) {
	b := c.w.p.take()
	b.raw = b.raw[:cap(b.raw)]
	n := int(block.Size)
	to := b.raw[:n] // no longer than a block, as the image has checked
	if !block.Stored {
		if len(b.coded) < n {
			b.coded = make([]byte, cap(b.raw)+codec.EncodeSlack)
		}
		to, b.n = b.coded[:n], n
	}
	b.raw = b.raw[:n]
	if got, err := c.r.ReadAt(to, block.Off); got < n {
		c.w.p.give(b)
		return nil, fmt.Errorf("pack: read image: %w", noEOF(err))
	}
	b.done <- struct{}{}
	return b, nil
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Fragment returns the offset of the block of fragments that a file has a part in, 0 if
// there is none.
func (c *Copier) Fragment(ino *sqfs.Inode) (int64, error) {
	bs := int64(c.w.o.BlockSize)
	if ino.Type != sqfs.TypeFile || ino.Size == 0 || ino.Size%bs == 0 {
		return 0, nil
	}
	f, err := c.img.File(ino)
	if err != nil {
		return 0, err
	}
	e, err := f.Extent(f.NumBlocks() - 1)
	if err != nil || !e.Block.Fragment {
		return 0, err
	}
	return e.Block.Off, nil
}

// Place returns where in the image the contents of a file begin: who copies files in the
// order of their places reads an image, and leaves it, in the order in which it is.
func (c *Copier) Place(ino *sqfs.Inode) (int64, error) {
	if ino.Type != sqfs.TypeFile || ino.Size == 0 {
		return 0, nil
	}
	f, err := c.img.File(ino)
	if err != nil {
		return 0, err
	}
	for e, err := range f.Extents(0) {
		if err != nil {
			return 0, err
		}
		if e.Block.Size > 0 {
			return e.Block.Off, nil
		}
	}
	return 0, nil
}
