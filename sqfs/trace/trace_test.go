package trace

import (
	"bytes"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/squirefs/squire/sqfs"
)

// sample is a trace with all that the format has: the same file again, blocks in order and
// not, references that go up and down.
func sample() *Trace {
	return &Trace{
		Image: sqfs.Superblock{
			Inodes: 300, MkfsTime: 1700000000, BlockSize: 128 << 10, Fragments: 7, Compression: sqfs.Zstd,
			Flags: 0xc0, IDs: 1, Root: 0x2001234, BytesUsed: 1 << 30,
			InodeTable: 0x30000000, DirectoryTable: 0x30100000, FragmentTable: 0x30200000,
			ExportTable: -1, IDTable: 0x30200010, XattrTable: -1,
		},
		Touches: []Touch{{0x10020, 0}, {0x10020, 1}, {0x10020, 7}, {0x20, 3}, {0x10020, 8}, {0xfffff1fff, math.MaxUint32}},
	}
}

func TestRoundTrip(t *testing.T) {
	most := sample()
	most.Touches = nil
	for i := range MaxTouches { // deltas as long as can be
		most.Touches = append(most.Touches, Touch{sqfs.InodeRef(i % 2 * 0xfffff1fff), uint32(i%2) * math.MaxUint32})
	}
	empty := sample()
	empty.Touches = []Touch{}
	for name, want := range map[string]*Trace{"sample": sample(), "empty": empty, "most": most} {
		b := want.Encode()
		if len(b) > MaxSize {
			t.Errorf("%s: %d bytes", name, len(b))
		}
		got, err := Decode(b)
		if err != nil || got.Image != want.Image || !slices.Equal(got.Touches, want.Touches) {
			t.Errorf("%s: %v", name, err)
		}
	}
	most.Touches = append(most.Touches, Touch{})
	if got, err := Decode(most.Encode()); err != nil || len(got.Touches) != MaxTouches {
		t.Errorf("one too many: %v", err)
	}
}

// The format is a promise to files that are there already.
func TestGolden(t *testing.T) {
	want := []string{
		"73717569726520747261636520310a",                           // the first line
		"2c01000000f153650000020007000000",                         // inodes, time, block size, fragments
		"0600c0000100",                                             // compression, flags, ids
		"34120002000000000000004000000000",                         // root, length
		"00000030000000000000103000000000",                         // inode and directory table
		"0000203000000000ffffffffffffffff",                         // fragment and export table
		"1000203000000000ffffffffffffffff",                         // id and xattr table
		"06c08008000000000affff070680800810befff0ffff03feffffff1f", // touches
		"a63f2453", // CRC-32C
	}
	b := sample().Encode()
	for i, part := range want {
		n := min(len(part)/2, len(b))
		if got := hex.EncodeToString(b[:n]); got != part {
			t.Errorf("part %d is %s, want %s", i, got, part)
		}
		b = b[n:]
	}
	if len(b) > 0 {
		t.Errorf("behind it: %x", b)
	}
}

// Traces that were cut off, or changed in one byte, are refused.
func TestDamaged(t *testing.T) {
	b := sample().Encode()
	for n := range b {
		if _, err := Decode(b[:n]); err == nil {
			t.Errorf("the first %d of %d bytes were taken for a trace", n, len(b))
		}
		changed := bytes.Clone(b)
		changed[n] ^= 0x10
		if _, err := Decode(changed); err == nil {
			t.Errorf("byte %d: the change was not noticed", n)
		}
	}
	if _, err := Decode(nil); !errors.Is(err, ErrEmpty) {
		t.Error(err)
	}
}

// sealed returns a trace of sample's image with these bytes for touches.
func sealed(touches ...byte) []byte {
	s := sample()
	s.Touches = nil
	b := s.Encode()
	return seal(append(b[:len(b)-crcSize-1], touches...))
}

func seal(b []byte) []byte { return le.AppendUint32(b, crc32.Checksum(b, castagnoli)) }

// hostile are traces with the right checksum.
var hostile = []struct {
	name string
	b    []byte
	want string
}{
	{"more touches than bytes", sealed(0xff, 0xff, 3, 0, 0), "65535 touches in 2 bytes"},
	{"more touches than can be", sealed(append([]byte{0x81, 0x80, 4}, make([]byte, 1<<18)...)...), "65537 touches"},
	{"endless count", sealed(0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff), "bytes"},
	{"negative reference", sealed(1, 1, 0), "no inode"},
	{"reference beyond the table", sealed(1, 0x80, 0x80, 0x80, 0x80, 0x80, 0x40, 0), "no inode"},
	{"reference beyond its block", sealed(1, 0x80, 0x80, 1, 0), "no inode"},
	{"overflow", sealed(1, 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0), "no inode"},
	{"negative block", sealed(1, 0, 5), "block -2"},
	{"block too large", sealed(2, 0, 0xfe, 0xff, 0xff, 0xff, 0x1f, 0, 4), "block"},
	{"something behind", sealed(1, 2, 0, 9), "1 bytes behind"},
	{"unfinished number", sealed(1, 2, 0x80), "no inode"},
	{"number in a long form", sealed(1, 0x82, 0, 0), "longer form"},
	{"version 2", seal([]byte("squire trace 2\nand so on, whatever that may be")), `version "2"`},
	{"text", []byte("hello\n"), "not a trace"},
	{"too long", append([]byte(Magic), make([]byte, MaxSize)...), "longer than"},
	{"head only", seal([]byte(Magic)), "cut off"},
}

func TestHostile(t *testing.T) {
	for _, tt := range hostile {
		if _, err := Decode(tt.b); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
}

func TestWriteRead(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "trace"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err = f.Write(bytes.Repeat([]byte("longer than the trace\n"), 100)); err != nil {
		t.Fatal(err)
	}
	want := sample()
	if err = want.Write(f); err != nil {
		t.Fatal(err)
	}
	got, err := Read(f)
	if err != nil || got.Image != want.Image || !slices.Equal(got.Touches, want.Touches) {
		t.Errorf("%v: %+v", err, got)
	}
	if err := f.Truncate(MaxSize * 2); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(f); err == nil {
		t.Error("a file of 2 MiB was taken for a trace")
	}
}

// FuzzDecode wants traces refused, or to be what Encode writes and possible in their image.
func FuzzDecode(f *testing.F) {
	f.Add(sample().Encode())
	for _, tt := range hostile {
		f.Add(tt.b[:min(len(tt.b), 4096)])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > crcSize {
			// Else nearly all changes end at the checksum.
			le.PutUint32(b[len(b)-crcSize:], crc32.Checksum(b[:len(b)-crcSize], castagnoli))
		}
		got, err := Decode(b)
		if err != nil {
			return
		}
		if !bytes.Equal(got.Encode(), b) {
			t.Error("another form of the same trace was accepted")
		}
		for _, touch := range got.Touches {
			if !got.has(int64(touch.Ref)) {
				t.Errorf("touch %v", touch)
			}
		}
	})
}
