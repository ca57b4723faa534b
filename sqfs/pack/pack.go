// Package pack writes squashfs 4.0 images.
//
// An image is made in two steps. First the contents of files are added, one after the
// other: they are split into blocks, compressed by all processors, and written in the
// order in which they came, so that the image depends on what was added and not on how
// many processors there were. Then [Writer.Finish] writes the tree that refers to them.
// Whoever reads an archive can so pack it as it comes, and need not know the tree before.
package pack

import (
	"errors"
	"io"
	"time"

	"github.com/squirefs/squire/sqfs"
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
	Memory      int64            // bytes of blocks under way, in all; 0 is 256 MiB
}

// File is where an image is written: an *os.File, empty or to be overwritten. Blocks are
// read back to compare with them.
type File interface {
	io.ReaderAt
	io.WriterAt
	Truncate(size int64) error
}

// Writer writes an image. Its methods are for one goroutine, but for Progress.
type Writer struct{}

// Data is the contents of a regular file that were added to a Writer. Any number of
// inodes may have it.
type Data struct{ size int64 }

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

var errSkeleton = errors.New("pack: skeleton")

// NewWriter begins an image in f. It starts goroutines, which Finish or Abort end.
func NewWriter(f File, o Options) (*Writer, error) { return nil, errSkeleton }

// Add adds the contents of a regular file, all that r gives, and returns when it has been
// read; compressing and writing go on behind. An error of r, returned wrapped, leaves the
// Writer usable, as if nothing had been added; after any other only Abort is of use.
func (w *Writer) Add(r io.Reader) (*Data, error) { return nil, errSkeleton }

// Progress says how far the writer is. Any goroutine may call it at any time.
func (w *Writer) Progress() Progress { return Progress{} }

// Finish writes the tree below root, which is a directory, then the superblock, and cuts
// the file off behind the image. The Writer cannot be used any more. Nothing is synced.
func (w *Writer) Finish(root *Inode) (Stats, error) { return Stats{}, errSkeleton }

// Abort ends the goroutines. What is in the file is no image. After Finish it does nothing.
func (w *Writer) Abort() {}
