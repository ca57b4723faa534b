package sqfs

import (
	"fmt"
	"io"
	"io/fs"
	"iter"

	"github.com/squirefs/squire/sqfs/internal/codec"
	"github.com/squirefs/squire/sqfs/internal/disk"
)

// Block is a data block or fragment block as it lies in the image. Equal Blocks of
// one image have equal contents, so that a Block is what to key a cache by. (The
// position alone is not: a hostile image can give one position several lengths.)
type Block struct {
	Off      int64  // byte offset in the image; 0 for a hole
	Size     uint32 // bytes there; 0 for a hole, which expands to zeros
	Stored   bool   // not compressed
	Len      uint32 // exact length when expanded; of a fragment block the most it can be, the block size
	Fragment bool   // a fragment block: tails and small files packed together
}

// Extent says where the bytes of one block of a file are.
type Extent struct {
	Block Block
	Start int // offset of the first byte in the expanded block; 0 but in fragments
	Len   int // bytes of the file: the block size but at the end of the file
}

// File is the contents of a regular file: where its blocks are. It is a value,
// cheap to make and to copy; a server can make one for each read. Its methods may be
// called by many goroutines at once. Use after the image was closed is an error.
type File struct {
	img   *Image
	ino   Inode
	words int64 // length of the block list: all blocks but a tail in a fragment
}

// File returns the contents of the regular file ino. Nothing is read yet.
func (img *Image) File(ino *Inode) (File, error) {
	if ino.Type != TypeFile {
		return File{}, fmt.Errorf("read %v %v: %w", ino.Type, ino.Ref, fs.ErrInvalid)
	}
	return File{img: img, ino: *ino, words: img.listLen(ino)}, nil
}

// Size returns the length of the file in bytes.
func (f *File) Size() int64 { return f.ino.Size }

// NumBlocks returns the number of blocks of the file, a tail in a fragment included.
// Block i holds the bytes from i * BlockSize on.
func (f *File) NumBlocks() int64 { return blockCount(f.ino.Size, f.img.logs) }

// Extent returns where block i of the file is, 0 <= i < NumBlocks. It sums up the
// lengths of the blocks before it; of long files it remembers intermediate sums, so
// that it takes no more than 2048 additions, of the longest some more.
func (f *File) Extent(i int64) (Extent, error) {
	w, err := f.seek(i)
	if err != nil {
		return Extent{}, err
	}
	return w.next()
}

// Extents returns the blocks of the file from block i on, 0 <= i < NumBlocks. It sums
// up once. Iteration ends early after yielding an error.
func (f *File) Extents(i int64) iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) { f.extents(i, yield) }
}

func (f *File) extents(i int64, yield func(Extent, error) bool) {
	w, err := f.seek(i)
	for err == nil && w.i < f.NumBlocks() {
		var e Extent
		if e, err = w.next(); err == nil && !yield(e, nil) {
			return
		}
	}
	if err != nil {
		yield(Extent{}, err)
	}
}

// extentReader walks over the blocks of a file.
type extentReader struct {
	f    *File
	c    cursor // in the block list, before word i
	i    int64  // the block that next returns
	data int64  // where its data is
}

// next returns the extent of block w.i and steps over it.
func (w *extentReader) next() (Extent, error) {
	f, bs := w.f, int64(w.f.img.sb.BlockSize)
	n := min(bs, f.ino.Size-w.i*bs)
	if w.i == f.words {
		w.i++
		return f.tail(int(n))
	}
	var scratch [disk.WordSize]byte
	b, err := w.c.next(disk.WordSize, scratch[:])
	if err != nil {
		return Extent{}, err
	}
	block, err := f.img.block(&w.c, disk.DecodeWord(b), w.data, uint32(n))
	if err != nil {
		return Extent{}, err
	}
	w.i++
	w.data += int64(block.Size)
	return Extent{Block: block, Len: int(n)}, nil
}

// block checks the place of a block that expands to n bytes. c is for errors.
func (img *Image) block(c *cursor, w disk.Word, off int64, n uint32) (Block, error) {
	if w == 0 {
		return Block{Len: n}, nil // a hole
	}
	if !w.Valid() || w.Size() == 0 || w.Size() > img.sb.BlockSize {
		return Block{}, c.fault("data block at %#x has length word %#x", off, uint32(w))
	}
	if off < disk.SuperblockSize || !within(off, int64(w.Size()), img.sb.BytesUsed) {
		return Block{}, c.fault("data block of %d bytes at %#x lies outside the image of %#x", w.Size(), off, img.sb.BytesUsed)
	}
	if w.Stored() && w.Size() != n {
		return Block{}, c.fault("stored data block at %#x has %d bytes, want %d", off, w.Size(), n)
	}
	return Block{Off: off, Size: w.Size(), Stored: w.Stored(), Len: n}, nil
}

// tail returns the extent of the last n bytes, which lie in a fragment block. That
// the fragment is long enough can be seen only after expanding it.
func (f *File) tail(n int) (Extent, error) {
	b, err := f.img.frags.row(f.img, uint64(f.ino.frag))
	if err != nil {
		return Extent{}, err
	}
	d := disk.DecodeFragment(b)
	img := f.img
	if !d.Word.Valid() || d.Word.Size() == 0 || d.Word.Size() > img.sb.BlockSize {
		return Extent{}, corrupt(img.frags.start, "fragment %d has length word %#x", f.ino.frag, uint32(d.Word))
	}
	if d.Start < disk.SuperblockSize || d.Start > uint64(img.sb.BytesUsed) || !within(int64(d.Start), int64(d.Word.Size()), img.sb.BytesUsed) {
		return Extent{}, corrupt(img.frags.start, "fragment %d at %#x lies outside the image of %#x", f.ino.frag, d.Start, img.sb.BytesUsed)
	}
	return Extent{
		Block: Block{Off: int64(d.Start), Size: d.Word.Size(), Stored: d.Word.Stored(), Len: img.sb.BlockSize, Fragment: true},
		Start: int(f.ino.offset), Len: n,
	}, nil
}

// ReadBlock reads block b, expands it into dst, which must have room for b.Len bytes,
// and returns its length: exactly b.Len, but for fragment blocks at most that. For an
// extent in a fragment block the caller compares Start + Len with it. What dst[:b.Len]
// holds after an error is undefined, and what a longer dst holds behind that is in any
// case: with [ReadSlack] bytes more it is faster. Nothing is cached; a block that is not
// stored is read into a pooled buffer first.
func (img *Image) ReadBlock(dst []byte, b Block) (int, error) {
	return img.ReadBlockInTurn(dst, b, nil)
}

// ReadSlack is how many bytes behind b.Len [Image.ReadBlock] has use for.
const ReadSlack = codec.DecodeSlack

// Turns are for programs that expand blocks of many images at the same time.
type Turns interface {
	// Take is called when block b has been read, before it is expanded, and waits for a
	// turn.
	Take(b Block) (turn int64)
	// Give is called with what Take returned once b is expanded.
	Give(turn int64)
}

// ReadBlockInTurn is [Image.ReadBlock] that takes turns with others to expand blocks. A
// block that is stored needs none. turns may be nil.
func (img *Image) ReadBlockInTurn(dst []byte, b Block, turns Turns) (int, error) {
	if int64(b.Len) > int64(len(dst)) || b.Size > img.sb.BlockSize {
		return 0, fmt.Errorf("read block of %d, expanded %d bytes into %d: %w", b.Size, b.Len, len(dst), fs.ErrInvalid)
	}
	dst = dst[:b.Len:len(dst)]
	if b.Size == 0 {
		clear(dst)
		return len(dst), nil
	}
	n, err := img.expand(dst, b, turns)
	if err == nil && n != len(dst) && !b.Fragment {
		err = corrupt(b.Off, "data block has %d bytes expanded, want %d", n, len(dst))
	}
	if err != nil {
		return 0, err
	}
	return n, nil
}

// expand reads b into dst, of at least the right length, and returns its length.
func (img *Image) expand(dst []byte, b Block, turns Turns) (int, error) {
	if b.Stored {
		if int(b.Size) > len(dst) {
			return 0, corrupt(b.Off, "stored block has %d bytes, want %d", b.Size, len(dst))
		}
		return int(b.Size), img.readAt(dst[:b.Size], b.Off)
	}
	buf := img.buffers.Get().(*[]byte)
	defer img.buffers.Put(buf)
	src := (*buf)[:b.Size]
	if err := img.readAt(src, b.Off); err != nil {
		return 0, err
	}
	if turns != nil {
		defer turns.Give(turns.Take(b))
	}
	n, err := img.codec.Decode(dst, src)
	if err != nil {
		what := "data block"
		if b.Fragment {
			what = "fragment block"
		}
		return 0, &FormatError{What: img.sb.Compression.String() + " " + what, Off: b.Off, Err: err}
	}
	return n, nil
}

var _ io.ReaderAt = (*File)(nil)

// ReadAt implements [io.ReaderAt]. Each call expands all blocks it touches: it is for
// tools that read a lot at once.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read %v at %d: %w", f.ino.Ref, off, fs.ErrInvalid)
	}
	if off >= f.ino.Size {
		return 0, io.EOF
	}
	short := int64(len(p)) > f.ino.Size-off
	if short {
		p = p[:f.ino.Size-off]
	}
	n, err := f.read(p, off)
	if err == nil && short {
		err = io.EOF
	}
	return n, err
}

// read fills p, all of which is in the file.
func (f *File) read(p []byte, off int64) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	done := 0
	skip := int(off & int64(f.img.sb.BlockSize-1))
	for e, err := range f.Extents(off >> f.img.logs) {
		if err != nil {
			return done, err
		}
		part := p[done:]
		part = part[:min(len(part), e.Len-skip)]
		if err := f.img.readExtent(part, e, skip); err != nil {
			return done, err
		}
		skip = 0
		if done += len(part); done == len(p) {
			break
		}
	}
	return done, nil
}

// readExtent fills p with the bytes of e from skip on. Whole blocks are expanded in p.
func (img *Image) readExtent(p []byte, e Extent, skip int) error {
	if e.Block.Size == 0 {
		clear(p)
		return nil
	}
	if !e.Block.Fragment && len(p) == e.Len {
		_, err := img.ReadBlock(p, e.Block)
		return err
	}
	buf := img.buffers.Get().(*[]byte)
	defer img.buffers.Put(buf)
	n, err := img.ReadBlock(*buf, e.Block)
	if err != nil {
		return err
	}
	if e.Start+e.Len > n {
		return corrupt(e.Block.Off, "fragment has %d bytes expanded, want %d", n, e.Start+e.Len)
	}
	copy(p, (*buf)[e.Start+skip:])
	return nil
}
