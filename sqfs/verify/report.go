package verify

import (
	"errors"

	"github.com/squirefs/squire/sqfs"
)

// Report is what an image consists of, and what of it is damaged. What cannot be read
// is not counted.
type Report struct {
	Entries   int64    // paths, the root included
	HardLinks int64    // of these: further names of an inode
	Types     [8]int64 // inodes by sqfs.Type

	FileBytes int64 // lengths of all regular files
	Holes     int64 // blocks of them that are not on disk
	HoleBytes int64 // and expand to so many zeros
	Shared    int64 // blocks that another file, or the same one, has too
	Tails     int64 // files with a tail in a fragment block
	TailBytes int64

	Data      BlockStat // data blocks, each once
	Fragments BlockStat // fragment blocks
	TailRoom  int64     // bytes of fragment blocks up to the last tail in each

	WithXattrs int64 // inodes with extended attributes
	XattrSets  int64 // different sets of these

	Tables []TableStat

	// Damage is at most 65536 places, and at most 32 MiB of paths and errors. DamageCount
	// has those too that were left out for this, once for each path or block.
	Damage      []Damage
	DamageCount int64
}

// BlockStat counts blocks of a kind.
type BlockStat struct {
	Blocks   int64
	Stored   int64 // of these: not compressed
	Bytes    int64 // on disk
	Expanded int64 // for fragment blocks the most it can be: their length is not recorded

	// Sizes counts blocks by their size on disk, as a share of what they expand to:
	// up to 10%, 20% … 100%. Stored ones count as 100%.
	Sizes [10]int64
}

// add counts a block.
func (s *BlockStat) add(b sqfs.Block) {
	s.Blocks++
	s.Bytes += int64(b.Size)
	s.Expanded += int64(b.Len)
	if b.Stored {
		s.Stored++
		s.Sizes[len(s.Sizes)-1]++
		return
	}
	share := (int64(b.Size)*10 - 1) / int64(max(b.Len, 1))
	s.Sizes[min(share, int64(len(s.Sizes)-1))]++
}

// TableStat describes a table. Without Options.Data nothing is known of its blocks.
type TableStat struct {
	Name     string
	Start    int64  // byte offset in the image
	Bytes    int64  // on disk, the index included
	Rows     uint64 // 0 for directories and xattrs
	Blocks   int64
	Stored   int64 // of these: not compressed
	Expanded int64
}

// add counts a block.
func (s *TableStat) add(b sqfs.MetadataBlock) {
	s.Blocks++
	s.Expanded += int64(b.Len)
	if b.Stored {
		s.Stored++
	}
}

// maxSeen bounds each of the maps of what was seen. All of them full are 240 MiB.
const maxSeen = 1 << 20

// keep adds to a map of what was seen, which is emptied when it is too long: then what
// is shared far apart is looked at, and counted, twice. That needs more than a million
// inodes with several names, or 128 GiB of files in blocks of 128 KiB.
func keep[K comparable, V any](m map[K]V, key K, value V) {
	if len(m) >= maxSeen {
		clear(m)
	}
	m[key] = value
}

// seen remembers what was found of blocks, by their offset.
type seen[T any] struct {
	all map[int64]entry[T]
}

// entry is a block with what is known of it. A hostile image can have several blocks
// in one place, of which one is remembered.
type entry[T any] struct {
	size, n uint32
	kind    uint8
	value   T
}

func newSeen[T any]() seen[T] { return seen[T]{all: make(map[int64]entry[T])} }

// get returns what is known of block b, and whether it is new; then value makes it.
func (s *seen[T]) get(b sqfs.Block, value func() T) (T, bool) {
	e := entry[T]{size: b.Size, n: b.Len}
	if b.Stored {
		e.kind |= 1
	}
	if b.Fragment {
		e.kind |= 2
	}
	old, ok := s.all[b.Off]
	if ok && old.size == e.size && old.n == e.n && old.kind == e.kind {
		return old.value, false
	}
	if value != nil {
		e.value = value()
	}
	if !ok {
		keep(s.all, b.Off, e)
	}
	return e.value, true
}

// offsetOf returns where in the image an error is, -1 if it does not say.
func offsetOf(err error) int64 {
	var f *sqfs.FormatError
	if errors.As(err, &f) {
		return f.Off
	}
	return -1
}
