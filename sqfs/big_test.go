package sqfs

import (
	"bytes"
	"errors"
	"io"
	"syscall"
	"testing"

	"github.com/squirefs/squire/sqfs/internal/disk"
)

// parts is a source of zeros in which some pieces of bytes lie, by their offset.
type parts map[int64][]byte

func (p parts) ReadAt(b []byte, off int64) (int, error) {
	clear(b)
	for at, data := range p {
		if from := max(at, off); from < min(at+int64(len(data)), off+int64(len(b))) {
			copy(b[from-off:], data[from-at:])
		}
	}
	return len(b), nil
}

const (
	bigBlock  = 1 << 20
	bigBlocks = 5 << 10 // whole blocks of a file of 5 GiB and bigTail bytes
	bigTail   = 123
	bigStart  = 6<<30 + 7 // of its data
	bigTables = 9 << 30   // of the metadata
)

// bigFile makes an image of 9 GiB that has a file of 5 GiB. All its blocks are holes
// but the first, the two around 4 GiB and the tail. Data block k is filled with k.
// Nothing is done about where the image is told to end, which is its size.
func bigFile(base int64) (src parts, size int64) {
	words := make([]uint32, bigBlocks+1)
	src = parts{}
	at := base + bigStart
	for _, k := range []int{0, 4095, 4096, bigBlocks} {
		n := bigBlock
		if k == bigBlocks {
			n = bigTail
		}
		words[k] = 1<<24 | uint32(n)
		src[at] = bytes.Repeat([]byte{byte(k%250 + 1)}, n)
		at += int64(n)
	}
	inodes, dirs := &metaWriter{gzip: true}, &metaWriter{gzip: true}
	inodes.write(uint16(TypeFile+disk.Extended), uint16(0o644), uint16(0), uint16(0), uint32(7), uint32(1),
		uint64(bigStart), uint64(bigBlocks*bigBlock+bigTail), uint64(0), uint32(1), uint32(disk.None), uint32(0), uint32(disk.None), words)
	dirs.write(uint32(0), uint32(0), uint32(1), uint16(0), int16(0), uint16(TypeFile), uint16(2), []byte("big"))
	block, off := inodes.ref()
	inodes.write(uint16(TypeDir), uint16(0o755), uint16(0), uint16(0), uint32(7), uint32(2),
		uint32(0), uint32(2), uint16(disk.DirHeaderSize+disk.DirEntrySize+3+3), uint16(0), uint32(0))
	tables := assembly{
		at: bigTables, logs: 20, inodes: 2, ids: make([]byte, 4),
		root: uint64(block)<<16 | uint64(off), inodeTable: inodes.bytes(), dirTable: dirs.bytes(),
	}
	sb, rest := tables.bytes()
	src[base], src[base+bigTables] = sb, rest
	return src, bigTables + int64(len(rest))
}

// TestBig reads around 4 GiB: of a file, of an image and of what lies before it.
func TestBig(t *testing.T) {
	for _, base := range []int64{0, 5<<30 + 1} {
		src, size := bigFile(base)
		img, err := New(src, size, &Options{Offset: base})
		if err != nil {
			t.Fatal(err)
		}
		ino := find(t, img, "big")
		f, err := img.File(&ino)
		if err != nil {
			t.Fatal(err)
		}
		if ino.Size != bigBlocks*bigBlock+bigTail || f.NumBlocks() != bigBlocks+1 {
			t.Fatalf("%d bytes in %d blocks", ino.Size, f.NumBlocks())
		}
		for _, off := range []int64{0, bigBlock - 5, 1<<32 - bigBlock - 3, 1<<32 - 2, 1 << 32, 1<<32 + bigBlock - 1, ino.Size - bigTail - 4, ino.Size - 4} {
			got := make([]byte, 10)
			n, rerr := f.ReadAt(got, off)
			if want := bigWant(off, ino.Size); !bytes.Equal(got[:n], want) || errors.Is(rerr, io.EOF) != (n < 10) {
				t.Errorf("at %#x: % x, %v, want % x", off, got[:n], rerr, want)
			}
		}
		n := int64(0)
		for e, err := range f.Extents(0) {
			if err != nil {
				t.Fatal(err)
			}
			n += int64(e.Len)
		}
		e, err := f.Extent(bigBlocks)
		if want := (Block{Off: bigStart + 3*bigBlock, Size: bigTail, Stored: true, Len: bigTail}); n != ino.Size || err != nil || e.Block != want {
			t.Errorf("extents of %d bytes, the last %+v, %v, want %+v", n, e.Block, err, want)
		}
		if _, err := img.ReadFile("big"); !errors.Is(err, syscall.EFBIG) {
			t.Errorf("read at once: %v, want %v", err, syscall.EFBIG)
		}
	}
}

// bigWant returns what bigFile has at off, ten bytes of it or as many as there are.
func bigWant(off, size int64) []byte {
	b := make([]byte, min(10, size-off))
	for i := range b {
		switch k := (off + int64(i)) / bigBlock; k {
		case 0, 4095, 4096, bigBlocks:
			b[i] = byte(k%250 + 1)
		}
	}
	return b
}

// TestEnds moves the data of a file towards the end of the image: the last byte may be
// its last, and no byte behind is read.
func TestEnds(t *testing.T) {
	src, size := bigFile(0)
	img, err := New(src, size, nil)
	if err != nil {
		t.Fatal(err)
	}
	ino := find(t, img, "big")
	for back, want := range map[int64]error{0: nil, 1: ErrCorrupt, -1: nil} {
		moved := ino
		moved.start = size - bigBlock + back
		f, err := img.File(&moved)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Extent(0); !errors.Is(err, want) {
			t.Errorf("first block ends %d bytes behind the image: %v, want %v", back, err, want)
		}
	}
}
