package disk

import "testing"

func TestWord(t *testing.T) {
	for w, want := range map[Word]struct {
		size          uint32
		stored, valid bool
	}{
		0:             {0, false, true},
		1<<20 | 1<<24: {1 << 20, true, true}, // a stored block of 1 MiB needs 21 bits
		0xffffff:      {0xffffff, false, true},
		1 << 25:       {0, false, false},
		1<<31 | 4096:  {4096, false, false},
		4096 | 1<<24:  {4096, true, true},
		1<<32 - 1:     {0xffffff, true, false},
		1<<24 | 1<<25: {0, true, false},
		1<<24 | 1:     {1, true, true},
		131072&^1 | 1: {131073, false, true},
	} {
		if w.Size() != want.size || w.Stored() != want.stored || w.Valid() != want.valid {
			t.Errorf("%#x: size %d stored %v valid %v, want %+v", uint32(w), w.Size(), w.Stored(), w.Valid(), want)
		}
	}
}

func TestMetadataHeader(t *testing.T) {
	for b, want := range map[[2]byte]struct {
		n      int
		stored bool
	}{
		{0, 0}: {0, false}, {0, 0x80}: {0, true}, {0, 0x20}: {8192, false},
		{0, 0xa0}: {8192, true}, {0xff, 0x7f}: {32767, false},
	} {
		if n, stored := DecodeMetadataHeader(b[:]); n != want.n || stored != want.stored {
			t.Errorf("% x: %d %v, want %+v", b, n, stored, want)
		}
	}
}

// TestSizes checks the sizes of inodes against struct squashfs_*_inode.
func TestSizes(t *testing.T) {
	want := []int{1: 32, 32, 24, 24, 24, 20, 20, 40, 56, 24, 28, 28, 24, 24}
	for typ := Dir; typ <= MaxType; typ++ {
		if got := InodeHeaderSize + InodeBodySize(uint16(typ)); got != want[typ] {
			t.Errorf("type %d has %d bytes, want %d", typ, got, want[typ])
		}
		if InodeBodySize(uint16(typ)) > MaxInodeBody {
			t.Errorf("type %d has a longer body than %d", typ, MaxInodeBody)
		}
	}
}

// TestSigned checks the two numbers with a sign or a carry.
func TestSigned(t *testing.T) {
	if e := DecodeDirEntry([]byte{1, 0, 0xff, 0xff, 2, 0, 0xff, 0xff}); e.Delta != -1 || e.Name != 65536 {
		t.Errorf("entry %+v", e)
	}
	if h := DecodeDirHeader([]byte{0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0}); h.Count != 0 {
		t.Errorf("header %+v", h)
	}
}

// TestAppend decodes what was appended. Every field has another value, so that none can
// stand in for another.
func TestAppend(t *testing.T) {
	check := func(name string, got, want any, b []byte, size int) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
		if len(b) != size {
			t.Errorf("%s has %d bytes, want %d", name, len(b), size)
		}
	}
	sb := Superblock{1 << 31, 2, 3 << 30, 4, 5, 6, 7, 8, 9, 10, 11, 12 << 40, 13, 14 << 50, 15, 16, 15 << 60, 18, 19}
	b := sb.Append(nil)
	check("superblock", DecodeSuperblock(b), sb, b, SuperblockSize)
	h := InodeHeader{1, 2, 3, 65535, 1 << 31, 6}
	b = h.Append(nil)
	check("inode header", DecodeInodeHeader(b), h, b, InodeHeaderSize)

	d := DirBody{Start: 1 << 31, Offset: 8191, Size: 65535, Nlink: 4, Parent: 5, Xattr: None}
	b = d.Append(nil)
	check("directory", DecodeDir(b), d, b, InodeBodySize(Dir))
	d.Size, d.Index, d.Xattr = 1<<31, 65535, 6
	b = d.AppendLong(nil)
	check("long directory", DecodeLongDir(b), d, b, InodeBodySize(Dir+Extended))
	f := FileBody{Start: 1<<32 - 1, Size: 1<<32 - 2, Nlink: 1, Fragment: 3, Offset: 4, Xattr: None}
	b = f.Append(nil)
	check("file", DecodeFile(b), f, b, InodeBodySize(File))
	f = FileBody{1 << 60, 2 << 50, 3 << 40, 4, 5, 6, 7}
	b = f.AppendLong(nil)
	check("long file", DecodeLongFile(b), f, b, InodeBodySize(File+Extended))
	for typ := uint16(Symlink); typ <= MaxType; typ++ {
		if typ == Dir+Extended || typ == File+Extended {
			continue
		}
		o := OtherBody{1, 2, 3}
		b = o.Append(nil, typ)
		got := DecodeOther(typ, b)
		if len(b) < 12 { // no xattr, and no value before it
			o.Xattr = got.Xattr
		}
		if typ == Fifo || typ == Socket || typ == Fifo+Extended || typ == Socket+Extended {
			o.Value = 0
		}
		check("other", got, o, b, InodeBodySize(typ))
	}

	dh := DirHeader{256, 2, 3}
	b = dh.Append(nil)
	check("run", DecodeDirHeader(b), dh, b, DirHeaderSize)
	e := DirEntry{8191, -32768, 7, 65536}
	b = e.Append(nil)
	check("entry", DecodeDirEntry(b), e, b, DirEntrySize)
	x := DirIndex{1, 2, 256}
	b = x.Append(nil)
	check("index", DecodeDirIndex(b), x, b, DirIndexSize)
	fr := Fragment{1 << 40, NewWord(1<<20, true)}
	b = fr.Append(nil)
	check("fragment", DecodeFragment(b), fr, b, FragmentSize)
	xh := XattrHeader{1 << 40, 2}
	b = xh.Append(nil)
	check("xattr header", DecodeXattrHeader(b), xh, b, XattrHeaderSize)
	xi := XattrID{1 << 40, 2, 3}
	b = xi.Append(nil)
	check("xattr id", DecodeXattrID(b), xi, b, XattrIDSize)
	xp := XattrPair{0x102, 65535}
	b = xp.Append(nil)
	check("xattr pair", DecodeXattrPair(b), xp, b, XattrPairSize)
	for _, stored := range []bool{false, true} {
		b = AppendMetadataHeader(nil, MetadataSize, stored)
		n, s := DecodeMetadataHeader(b)
		check("metadata header", [2]any{n, s}, [2]any{MetadataSize, stored}, b, MetadataHeader)
	}
}
