package fusefs

import "github.com/squirefs/squire/sqfs"

// Writers put the data of files into the image in the order of their inodes, and pack the tails of neighbours into one
// fragment. So what follows a block in the image is found without a directory: the next block of the file, then the
// first of the next inode in the table.

// position is a block of a file.
type position struct {
	ino sqfs.Inode
	i   int64
}

// before reports whether p comes before block i of ref in the image.
func (p *position) before(ref sqfs.InodeRef, i int64) bool {
	return p.ino.Ref < ref || p.ino.Ref == ref && p.i < i
}

// distance returns how many bytes after a the inode b is in the table, something large if they are neither in one
// metadata block nor in neighbours.
func distance(a, b sqfs.InodeRef) int64 {
	const size, header = 8192, 2 // squashfs_fs.h: SQUASHFS_METADATA_SIZE; the length of the block
	within := int64(b&0xffff) - int64(a&0xffff)
	switch blocks := int64(b>>16) - int64(a>>16); {
	case blocks == 0 && within >= 0:
		return within
	case blocks > 0 && blocks <= size+header:
		return within + size
	}
	return size
}

// walk is a look for what follows in the image: a block of one file, or a fragment with the parts that files have of it.
type walk struct {
	at     position
	shared sqfs.Block    // fragment that is decoded already; Size 0: none
	across bool          // into the next files, whatever they need
	whole  sqfs.InodeRef // the file that is taken whole; of others that follow only the head
	only   bool          // only what is in shared

	block sqfs.Block
	parts []part
}

// maxParts bounds the small files that are passed on in one go, and maxSteps the inodes that are looked at to find them,
// or the holes of a file that are stepped over.
const (
	maxParts = 256
	maxSteps = 512
)

// head is how many blocks of a file are read ahead before somebody reads it: who reads the small files of a directory may
// leave the large ones alone.
func (f *FS) head() int64 { return max(1, minWindow/f.blockSize) }

// maxList is the length of a file in blocks behind which nothing is read ahead: to find the next inode, its list is
// stepped over.
const maxList = 1 << 15

// following fills in w.block and w.parts, if there are any, and w.at with where to go on. It reports false if it can go
// no further.
func (f *FS) following(w *walk) bool {
	for range maxSteps {
		if w.at.ino.Type == sqfs.TypeFile {
			if stop, more := f.followingInFile(w); stop {
				return more
			}
		}
		next, err := f.img.NextInode(&w.at.ino)
		if err != nil {
			return false
		}
		w.at = position{next, 0}
	}
	return true
}

// followingInFile is following within one file. stop is false at its end.
func (f *FS) followingInFile(w *walk) (stop, more bool) {
	file, err := f.img.File(&w.at.ino)
	if err != nil {
		return true, false
	}
	n := file.NumBlocks()
	if w.at.ino.Ref != w.whole {
		n = min(n, f.head())
	}
	for steps := 0; w.at.i < n; w.at.i++ {
		if steps++; steps > maxSteps {
			return true, true // no more at a time: there may be millions
		}
		e, err := file.Extent(w.at.i)
		if err != nil {
			return true, false
		}
		b := e.Block
		switch {
		case b.Size == 0:
			continue
		case len(w.parts) > 0 && (b != w.block || len(w.parts) == maxParts):
			return true, true
		case b != w.shared && (w.only || !w.across && w.at.i == 0):
			return true, false
		}
		w.block = b
		w.parts = append(w.parts, part{w.at.ino.Ref, w.at.i * f.blockSize, e.Start, e.Len})
		if !b.Fragment {
			w.at.i++
			return true, true
		}
	}
	return file.NumBlocks() > maxList, false
}
