package sqfs

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/squirefs/squire/sqfs/internal/codec"
	"github.com/squirefs/squire/sqfs/internal/disk"
)

// Options are the settings of [New]. The zero value, like nil, means the defaults.
type Options struct {
	// Offset is the byte of the source where the image starts. Default 0.
	Offset int64
	// MetadataCache is how many bytes of expanded metadata are kept at most, with their
	// management: inodes, listings and tables, not what long directories and files take
	// beside them. A block of at most 8 KiB that is in use comes on top. A big root file
	// system has some ten MiB of metadata, a million inodes have some 50. Less costs
	// time only. Default 128 MiB, with Metadata 48 MiB.
	MetadataCache int64
	// Metadata is a budget for that which the image shares with others. What it keeps of
	// it is given back by [Image.Close]. nil: there is none.
	Metadata *Budget
}

// The defaults of Options.MetadataCache.
const (
	defaultMetadataCache = 128 << 20
	sharedMetadataCache  = 48 << 20 // with a budget
)

// Image is an open squashfs image. All methods may be used by many goroutines at once.
// Besides caches an image never changes.
type Image struct {
	src    io.ReaderAt
	base   int64     // where the image starts in src
	closer io.Closer // of OpenImage
	sb     Superblock
	codec  codec.Decoder
	logs   uint // log2 of the block size

	inodes  area
	dirs    area
	xattrs  area // names and values
	frags   table
	exports table
	ids     table
	sets    table // xattr ids

	meta     metaCache
	buffers  sync.Pool // of *[]byte of BlockSize
	lists    listIndexes
	longDirs dirIndexes
	entered  sync.Map // path door: InodeRef of a directory to its edge
}

// OpenImage opens the image in the file (or block device) named path.
// [Image.Close] closes it.
func OpenImage(path string) (*Image, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	size, err := f.Seek(0, io.SeekEnd) // unlike Stat this knows block devices
	if err == nil {
		var img *Image
		if img, err = New(f, size, nil); err == nil {
			img.closer = f
			return img, nil
		}
	}
	f.Close()
	return nil, fmt.Errorf("open %s: %w", path, err)
}

// New returns the image in r, after checking its superblock, the indexes of its
// tables and its root directory. size is how many bytes r has after Options.Offset;
// nothing past it is read. r must stay usable and unchanged as long as the image is
// used; it needs to serve concurrent calls. opts may be nil.
//
// Errors match [ErrNotSquashfs], [ErrVersion], [ErrUnsupported] or [ErrCorrupt], or
// wrap what r returned.
func New(r io.ReaderAt, size int64, opts *Options) (*Image, error) {
	if opts == nil {
		opts = &Options{}
	}
	if opts.Offset < 0 || opts.MetadataCache < 0 {
		return nil, errors.New("negative offset or cache size")
	}
	img := &Image{src: r, base: opts.Offset}
	raw, err := img.readSuperblock(size)
	if err != nil {
		return nil, err
	}
	if err := img.checkSuperblock(raw, size); err != nil {
		return nil, err
	}
	limit := opts.MetadataCache
	switch {
	case limit == 0 && opts.Metadata == nil:
		limit = defaultMetadataCache
	case limit == 0:
		limit = sharedMetadataCache
	}
	img.meta.init(img.sb.BytesUsed-img.sb.InodeTable, limit, opts.Metadata)
	if err := img.open(raw); err != nil {
		img.meta.close()
		return nil, err
	}
	return img, nil
}

// open prepares an image whose superblock is known.
func (img *Image) open(raw disk.Superblock) error {
	blockSize := int(img.sb.BlockSize)
	img.buffers.New = func() any { b := make([]byte, blockSize); return &b }
	img.inodes = area{"inode table", img.sb.InodeTable, img.sb.DirectoryTable}
	if err := img.checkOptions(); err != nil {
		return err
	}
	if err := img.openTables(raw); err != nil {
		return err
	}
	return img.checkRoot()
}

// Close closes the file that [OpenImage] opened, and gives back what the image keeps of
// [Options.Metadata]; an image made by [New] without that needs no closing. No other
// method may be called later, nor be running, but for those that wait for a reader that
// New was given: they keep nothing when they come to an end.
func (img *Image) Close() error {
	img.meta.close()
	if img.closer == nil {
		return nil
	}
	return img.closer.Close()
}

// Superblock returns what the superblock says, checked.
func (img *Image) Superblock() Superblock { return img.sb }

// Root returns the reference of the root directory.
func (img *Image) Root() InodeRef { return img.sb.Root }

// HasXattrs reports whether the image has a table of extended attributes. Without it
// no inode has any.
func (img *Image) HasXattrs() bool { return img.sb.XattrTable >= 0 }

// checkRoot makes sure that there is a root directory to start from.
func (img *Image) checkRoot() error {
	root, err := img.Inode(img.sb.Root)
	if err != nil {
		return fmt.Errorf("root: %w", err)
	}
	if root.Type != TypeDir {
		return corrupt(-1, "root is a %v, not a directory", root.Type)
	}
	return nil
}

// within reports whether n bytes at pos lie before end. This is the one bounds check
// for positions that come from the image: it cannot overflow.
func within(pos, n, end int64) bool {
	return pos >= 0 && n >= 0 && pos <= end && n <= end-pos
}

// readAt fills p with the bytes of the image at off. p escapes: no stack buffers.
func (img *Image) readAt(p []byte, off int64) error {
	if !within(off, int64(len(p)), img.sb.BytesUsed) {
		return corrupt(off, "%d bytes reach past the end of the image at %#x", len(p), img.sb.BytesUsed)
	}
	return readFull(img.src, p, img.base+off)
}

// readFull fills p with the bytes of r at off.
func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil // io.ReaderAt may return io.EOF with the last byte
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read %d bytes at %#x: %w", len(p), off, err)
}

// readSuperblock finds and decodes the superblock among size bytes.
func (img *Image) readSuperblock(size int64) (disk.Superblock, error) {
	var sb disk.Superblock
	if size < disk.SuperblockSize {
		return sb, fmt.Errorf("%w: %d bytes are too few", ErrNotSquashfs, size)
	}
	buf := make([]byte, disk.SuperblockSize)
	if err := readFull(img.src, buf, img.base); err != nil {
		return sb, err
	}
	sb = disk.DecodeSuperblock(buf)
	if sb.Magic == disk.MagicStreamed {
		// unsquash-4.c, read_super_4: the last 96 bytes of the file are the superblock.
		if err := readFull(img.src, buf, img.base+size-disk.SuperblockSize); err != nil {
			return sb, err
		}
		sb = disk.DecodeSuperblock(buf)
	}
	return sb, nil
}
