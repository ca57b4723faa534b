package sqfs

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/squirefs/squire/sqfs/internal/disk"
)

// built is an image made by hand: a root with one directory "big" whose entries are
// fifos, numbered from 1 on in the order of names. What real writers do not do can be
// asked for.
type built struct {
	names  []string
	gzip   bool                             // compress metadata
	run    int                              // entries of a run at most, 256 if 0
	index  func(runs []builtRun) []builtRun // entries of the directory index, from all runs
	noPlus bool                             // the size of the listing lacks the 3 bytes for "." and ".."
}

// builtRun is a run of the listing, or an entry of the index that leads to one.
type builtRun struct {
	pos   uint32 // in the listing
	block uint32 // of the directory table
	name  string
}

// metaWriter makes metadata blocks.
type metaWriter struct {
	gzip bool
	done []byte // whole blocks with headers
	buf  []byte // of the next
}

func (w *metaWriter) ref() (block uint32, off uint16) { return uint32(len(w.done)), uint16(len(w.buf)) }

func (w *metaWriter) write(parts ...any) {
	for _, p := range parts {
		w.buf, _ = binary.Append(w.buf, binary.LittleEndian, p)
	}
	for len(w.buf) >= disk.MetadataSize {
		w.flush(disk.MetadataSize)
	}
}

func (w *metaWriter) flush(n int) {
	if n == 0 {
		return
	}
	src, header := w.buf[:n], 0x8000|n
	if w.gzip {
		var z bytes.Buffer
		zw := zlib.NewWriter(&z)
		zw.Write(src)
		zw.Close()
		src, header = z.Bytes(), z.Len()
	}
	w.done = binary.LittleEndian.AppendUint16(w.done, uint16(header))
	w.done = append(w.done, src...)
	w.buf = append([]byte(nil), w.buf[n:]...)
}

func (w *metaWriter) bytes() []byte {
	w.flush(len(w.buf))
	return w.done
}

// image writes the image.
func (b built) image() []byte {
	inodes, dirs := &metaWriter{gzip: b.gzip}, &metaWriter{gzip: b.gzip}
	if b.run == 0 {
		b.run = disk.MaxRun
	}
	type ref struct {
		block uint32
		off   uint16
	}
	refs := make([]ref, len(b.names))
	for i := range b.names {
		refs[i].block, refs[i].off = inodes.ref()
		inodes.write(uint16(TypeFifo), uint16(0o644), uint16(0), uint16(0), uint32(7), uint32(i+1), uint32(1))
	}
	dirs.write([]byte("something before the listing"))
	start, offset := dirs.ref()
	var runs []builtRun
	pos := uint32(0)
	for i := 0; i < len(b.names); {
		n := 1
		for i+n < len(b.names) && n < b.run && refs[i+n].block == refs[i].block {
			n++
		}
		block, _ := dirs.ref()
		runs = append(runs, builtRun{pos, block, b.names[i]})
		dirs.write(uint32(n-1), refs[i].block, uint32(i+1))
		pos += disk.DirHeaderSize
		for k := range n {
			name := b.names[i+k]
			dirs.write(refs[i+k].off, int16(k), uint16(TypeFifo), uint16(len(name)-1), []byte(name))
			pos += uint32(disk.DirEntrySize + len(name))
		}
		i += n
	}
	var index []builtRun
	if b.index != nil {
		index = b.index(runs)
	}
	size := pos + disk.DirPseudo
	if b.noPlus {
		size = pos
	}
	bigBlock, bigOff := inodes.ref()
	inodes.write(uint16(TypeDir+7), uint16(0o755), uint16(0), uint16(0), uint32(7), uint32(len(b.names)+1),
		uint32(2), size, start, uint32(len(b.names)+2), uint16(len(index)), offset, uint32(disk.None))
	for _, x := range index {
		inodes.write(x.pos, x.block, uint32(len(x.name)-1), []byte(x.name))
	}
	rootStart, rootOffset := dirs.ref()
	dirs.write(uint32(0), bigBlock, uint32(len(b.names)+1), bigOff, int16(0), uint16(TypeDir), uint16(2), []byte("big"))
	rootBlock, rootOff := inodes.ref()
	inodes.write(uint16(TypeDir), uint16(0o755), uint16(0), uint16(0), uint32(7), uint32(len(b.names)+2),
		rootStart, uint32(3), uint16(disk.DirHeaderSize+disk.DirEntrySize+3+3), rootOffset, uint32(0))

	tables := assembly{
		at: disk.SuperblockSize, logs: 12, inodes: uint32(len(b.names) + 2), ids: make([]byte, 4),
		root: uint64(rootBlock)<<16 | uint64(rootOff), inodeTable: inodes.bytes(), dirTable: dirs.bytes(),
	}
	sb, rest := tables.bytes()
	return append(sb, rest...)
}

// assembly is what an image without fragments, exports and xattrs is made of.
type assembly struct {
	at                   uint64 // where the inode table shall be
	logs                 uint16 // log2 of the block size
	inodes               uint32
	root                 uint64
	inodeTable, dirTable []byte
	ids                  []byte // contents of the only block of ids
}

// bytes returns the superblock and what lies from a.at on.
func (a *assembly) bytes() (sb, tables []byte) {
	le := binary.LittleEndian
	dirs := a.at + uint64(len(a.inodeTable))
	ids := dirs + uint64(len(a.dirTable))
	tables = append(append(tables, a.inodeTable...), a.dirTable...)
	tables = le.AppendUint16(tables, uint16(0x8000|len(a.ids)))
	tables = append(tables, a.ids...)
	index := a.at + uint64(len(tables))
	tables = le.AppendUint64(tables, ids)
	for _, v := range []uint32{disk.Magic, a.inodes, 7, 1 << a.logs, 0} {
		sb = le.AppendUint32(sb, v)
	}
	for _, v := range []uint16{uint16(Gzip), a.logs, 0, 1, disk.Major, disk.Minor} {
		sb = le.AppendUint16(sb, v)
	}
	for _, v := range []uint64{a.root, a.at + uint64(len(tables)), index, disk.NoTable, a.at, dirs, disk.NoTable, disk.NoTable} {
		sb = le.AppendUint64(sb, v)
	}
	return sb, tables
}

// open returns the image and its long directory.
func (b built) open(t testing.TB, opts *Options) (*Image, Inode) {
	t.Helper()
	data := b.image()
	img, err := New(bytes.NewReader(data), int64(len(data)), opts)
	if err != nil {
		t.Fatal(err)
	}
	return img, find(t, img, "big")
}

// seqNames returns n sorted names of about width bytes; every so many has 256 bytes, if
// odd is set, which squashfs can store and Linux cannot use.
func seqNames(n, width int, odd bool) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("entry-%07d-%s", i*3, strings.Repeat("x", max(0, width-14-i%5)))
		if odd && i%501 == 7 {
			names[i] = fmt.Sprintf("%-256s", names[i])[:disk.MaxName]
		}
	}
	return names
}

// everyRun is the index that tools-ng writes, sparseIndex one as mksquashfs writes it:
// an entry for each 8 KiB of listing.
func everyRun(runs []builtRun) []builtRun { return runs }

func sparseIndex(runs []builtRun) (index []builtRun) {
	next := uint32(disk.MetadataSize)
	for _, r := range runs {
		if r.pos >= next {
			index = append(index, r)
			next = r.pos + disk.MetadataSize
		}
	}
	return index
}

// badIndex returns sparseIndex with each entry changed by f.
func badIndex(f func(i int, r builtRun) builtRun) func([]builtRun) []builtRun {
	return func(runs []builtRun) []builtRun {
		index := sparseIndex(runs)
		for i := range index {
			index[i] = f(i, index[i])
		}
		return index
	}
}
