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
