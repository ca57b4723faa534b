package pack

import (
	"fmt"
	"math"

	"github.com/squirefs/squire/sqfs/internal/disk"
)

// listing is where the entries of a directory are.
type listing struct {
	start  uint32 // block in the directory table
	offset uint16 // in the block
	size   uint32 // bytes
	index  []indexed
}

// indexed is an entry of the index of a directory.
type indexed struct {
	at    uint32 // position of a run in the listing
	start uint32 // block of that position
	name  string // the first of the run
}

func (x *indexed) size() int { return disk.DirIndexSize + len(x.name) }

// list writes the entries of a directory, whose inodes have been written.
func (s *inodes) list(list []entry) (listing, error) {
	ref := s.dirs.ref()
	l := listing{start: uint32(ref >> 16), offset: uint16(ref)}
	size := 0
	for _, e := range list {
		size += disk.DirEntrySize + len(e.name)
	}
	// An index makes the inode longer, and spares the reading of blocks.
	wanted, last := size >= disk.MetadataSize, l.start
	at := uint64(0)
	for len(list) > 0 {
		n := runLength(list)
		if start := uint32(s.dirs.size); wanted && start != last {
			l.index = append(l.index, indexed{uint32(at), start, list[0].name})
			last = start
		}
		s.buf = appendRun(s.buf[:0], list[:n])
		s.dirs.write(s.buf)
		at += uint64(len(s.buf))
		list = list[n:]
	}
	if at+disk.DirPseudo > math.MaxUint32 {
		return l, fmt.Errorf("directory with more than 4 GiB of names")
	}
	l.size = uint32(at)
	l.thin()
	return l, nil
}

// runLength returns how many entries may stand after one header: their inodes are in the
// same block, and have numbers not far from the first one's. A run fits a metadata block,
// so that one begins in each but the shortest part of a listing, for the index.
func runLength(list []entry) int {
	first, size := list[0].inode, disk.DirHeaderSize
	for n, e := range list {
		size += disk.DirEntrySize + len(e.name)
		delta := int64(e.inode.number) - int64(first.number)
		if n == disk.MaxRun || n > 0 && size > disk.MetadataSize || e.inode.ref>>16 != first.ref>>16 ||
			delta != int64(int16(delta)) {
			return n
		}
	}
	return len(list)
}

func appendRun(b []byte, list []entry) []byte {
	first := list[0].inode
	h := disk.DirHeader{Count: uint32(len(list)), Start: uint32(first.ref >> 16), Number: first.number}
	b = h.Append(b)
	for _, e := range list {
		d := disk.DirEntry{
			Offset: uint16(e.inode.ref), Delta: int16(e.inode.number - first.number),
			Type: uint16(e.inode.Type), Name: len(e.name),
		}
		b = append(d.Append(b), e.name...)
	}
	return b
}

// thin drops every second entry of the index, as often as that pays. The kernel reads the
// index from its beginning (fs/squashfs/namei.c, get_dir_index_using_name) and then the
// listing up to the next entry: a look-up takes least when both are about as long.
func (l *listing) thin() {
	for {
		bytes := 0
		for i := range l.index {
			bytes += l.index[i].size()
		}
		if n := len(l.index); n == 0 || n <= math.MaxUint16 && bytes <= 2*int(l.size)/n {
			return
		}
		k := 0
		for i := 1; i < len(l.index); i += 2 {
			l.index[k] = l.index[i]
			k++
		}
		l.index = l.index[:k]
	}
}
