// Package pack writes squashfs 4.0 images.
//
// An image is made in two steps. First the contents of files are added, one after the
// other: they are split into blocks, compressed by all processors, and written in the
// order in which they came, so that the image depends on what was added and not on how
// many processors there were. Then [Writer.Finish] writes the tree that refers to them.
// Whoever reads an archive can so pack it as it comes, and need not know the tree before.
package pack

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync/atomic"
	"time"

	"github.com/squirefs/squire/sqfs"
	"github.com/squirefs/squire/sqfs/internal/disk"
)

// Options say what an image is to be like. The zero value is a good image.
type Options struct {
	Compression sqfs.Compression // Gzip, LZ4 or Zstd; 0 is Zstd
	Level       int              // of Gzip 1..9, of Zstd 1..22, of LZ4 0 or, for LZ4 HC, 1..9; 0 is the default: 9, 3, 0
	Stored      bool             // compress nothing
	BlockSize   int              // bytes, a power of two, 4096..1 MiB; 0 is 128 KiB
	Time        time.Time        // when the image was made, for its superblock; zero is now
	Newest      time.Time        // inodes that are newer get this time; zero is no bound (SOURCE_DATE_EPOCH sets both)
	NoFragments bool             // no blocks that tails and small files share
	NoExports   bool             // no table of inodes by number
	Duplicates  bool             // store equal files each for itself
	Processors  int              // at most so many blocks are compressed at once; 0 is GOMAXPROCS
	Memory      int64            // bytes of blocks under way, in all; 0 is 256 MiB, and less than 8 blocks are 8
}

// File is where an image is written: an *os.File, empty or to be overwritten. Nothing is
// read back; the image can be read there once it is finished.
type File interface {
	io.ReaderAt
	io.WriterAt
	Truncate(size int64) error
}

// Writer writes an image. Its methods are for one goroutine, but for Progress.
type Writer struct {
	o    Options
	f    File
	p    *pipeline
	done bool // the goroutines have ended

	seen      map[[sha256.Size]byte]*Data // contents by their hash
	hash      hash.Hash
	scratch   []step
	held      int     // blocks of a file that are held back
	open      *buffer // the fragment that is being filled
	fragments uint32  // fragments before it
	holes     int64   // blocks of zeros in all contents

	files, in         atomic.Int64
	duplicates, saved int64
}

// Data is the contents of a regular file that were added to a Writer. Any number of
// inodes may have it.
type Data struct {
	w        *Writer
	size     int64
	start    int64 // of the first block
	holes    int64 // blocks of zeros
	blocks   []disk.Word
	fragment uint32 // number of the fragment, or disk.None
	offset   uint32 // in the fragment
}

// Size returns the number of bytes.
func (d *Data) Size() int64 { return d.size }

// Progress says how far a Writer is.
type Progress struct {
	Files int64 // contents that were added
	In    int64 // bytes of them
	Out   int64 // bytes of the image
}

// Stats says what an image became.
type Stats struct {
	Progress
	Bytes      int64 // of the image, without the padding
	Inodes     int64
	Duplicates int64 // contents that were there already
	Saved      int64 // bytes of those, expanded
	Blocks     int64 // data blocks
	Fragments  int64 // fragment blocks
	Metadata   int64 // bytes of all tables
}

// NewWriter begins an image in f, which it empties. It starts goroutines, which Finish or
// Abort end.
func NewWriter(f File, o Options) (*Writer, error) {
	o, err := o.complete()
	if err != nil {
		return nil, err
	}
	if err = f.Truncate(0); err != nil {
		return nil, fmt.Errorf("pack: empty the image: %w", err)
	}
	options := o.compressorOptions()
	if len(options) > 0 {
		if _, err = f.WriteAt(options, disk.SuperblockSize); err != nil {
			return nil, fmt.Errorf("pack: write image: %w", err)
		}
	}
	w := &Writer{o: o, f: f, seen: map[[sha256.Size]byte]*Data{}, hash: sha256.New()}
	w.p, err = newPipeline(f, &o, int64(disk.SuperblockSize+len(options)))
	if err != nil {
		return nil, err
	}
	w.held = max(min(int(min(maxHeld, o.Memory/8))/o.BlockSize, cap(w.p.idle)-2), 2)
	return w, nil
}

// Add adds the contents of a regular file, all that r gives, and returns when it has been
// read; compressing and writing go on behind. An error of r, returned wrapped, leaves the
// Writer usable, as if nothing had been added; after any other only Abort is of use. If r
// is a [HoleReader], its holes are not read.
func (w *Writer) Add(r io.Reader) (*Data, error) {
	if w.done {
		return nil, errEnded
	}
	if err := w.p.err(); err != nil {
		return nil, err
	}
	d, err := w.add(r)
	if err != nil {
		return nil, err
	}
	w.files.Add(1)
	return d, nil
}

// errEnded says that a Writer is used after Finish or Abort.
var errEnded = errors.New("pack: the image has been finished or given up")

// Progress says how far the writer is. Any goroutine may call it at any time.
func (w *Writer) Progress() Progress {
	return Progress{Files: w.files.Load(), In: w.in.Load(), Out: w.p.end.Load()}
}

// Finish writes the tree below root, which is a directory, then the superblock, and cuts
// the file off behind the image. The Writer cannot be used any more, whatever comes of it.
// Nothing is synced. The tree must not be changed meanwhile, nor be given to another
// Writer at the same time.
func (w *Writer) Finish(root *Inode) (Stats, error) {
	if w.done {
		return Stats{}, errEnded
	}
	if w.p.err() == nil {
		w.closeFragment()
	}
	w.end()
	if err := w.p.err(); err != nil {
		return Stats{}, err
	}
	return w.finish(root)
}

// Abort ends the goroutines. What is in the file is no image. After Finish it does nothing.
func (w *Writer) Abort() {
	if !w.done {
		w.p.fail(errAborted)
		w.end()
	}
}

func (w *Writer) end() {
	w.done = true
	w.p.close()
	w.open, w.scratch, w.seen = nil, nil, nil
}
