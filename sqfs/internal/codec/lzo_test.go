package codec

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	golzo "github.com/anchore/go-lzo"
)

// What testdata/lzo/make.c compressed with each algorithm.
const (
	lzoTextSize = 70000
	lzoTextHash = "20ccb9a14e18c423e441ddea7152566e74c4343754ffeac09485db40ac227d28"
)

func lzoFiles(t testing.TB) map[string][]byte {
	t.Helper()
	paths, _ := filepath.Glob("testdata/lzo/*.lzo")
	if len(paths) != 5 {
		t.Fatalf("streams of %d algorithms, want 5", len(paths))
	}
	files := make(map[string][]byte)
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		files[filepath.Base(path)] = b
	}
	return files
}

func TestLZOAlgorithms(t *testing.T) {
	for name, src := range lzoFiles(t) {
		t.Run(name, func(t *testing.T) {
			for _, room := range []int{0, 1, 1000} {
				dst := make([]byte, lzoTextSize+room)
				n, err := lzoDecoder{}.Decode(dst, src)
				if err != nil || n != lzoTextSize {
					t.Fatalf("%d bytes, %v", n, err)
				}
				if hash := sha256.Sum256(dst[:n]); hex.EncodeToString(hash[:]) != lzoTextHash {
					t.Errorf("SHA-256 %x, want %s", hash, lzoTextHash)
				}
			}
		})
	}
}

// TestLZOEnds moves the end of the output, and that of the stream, over all kinds of instructions.
func TestLZOEnds(t *testing.T) {
	for name, src := range lzoFiles(t) {
		want := make([]byte, lzoTextSize)
		if _, err := (lzoDecoder{}).Decode(want, src); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, lzoTextSize+32)
		for short := 1; short < lzoTextSize; short += 1 + short/8 {
			size := lzoTextSize - short
			guard := bytes.Repeat([]byte{0xa5}, 32)
			copy(buf[size:], guard)
			if n, err := (lzoDecoder{}).Decode(buf[:size], src); !errors.Is(err, errTooLong) {
				t.Errorf("%s into %d bytes: %d, %v", name, size, n, err)
			}
			if !bytes.Equal(buf[size:size+32], guard) {
				t.Errorf("%s into %d bytes: wrote past the end", name, size)
			}
		}
		for cut := 0; cut < len(src); cut += 1 + (len(src)-cut)/32 {
			if n, err := (lzoDecoder{}).Decode(want, src[:cut]); !errors.Is(err, errLZOShort) {
				t.Errorf("%d bytes of %s: %d, %v", cut, name, n, err)
			}
		}
	}
}

// TestLZOStreams has streams made by hand. liblzo2's lzo1x_decompress_safe accepts and refuses the same, but for the
// length of the end marker, which only the kernel's checks.
func TestLZOStreams(t *testing.T) {
	tests := []struct {
		name, stream string // in hex
		want         string
		err          error
	}{
		{"nothing", "", "", errLZOShort},
		{"empty", "110000", "", nil},
		{"half an end marker", "1100", "", errLZOShort},
		{"end marker with literals", "110300", "", nil},
		{"end marker with its length behind it", "10010000", "", errLZOMarker},
		{"end marker of another length", "126112 0000", "", errLZOMarker},
		{"byte after the end", "110000 00", "", errLZOLong},
		{"the kernel's LZO-RLE", "1101 1461626364 110000", "", errLZOBehind},
		{"one literal first", "1261 110000", "a", nil},
		{"three literals first", "14616263 110000", "abc", nil},
		{"four literals first", "1561626364 110000", "abcd", nil},
		{"run of four", "0161626364 110000", "abcd", nil},
		{"run of 19", "0001" + strings.Repeat("61", 19) + "110000", strings.Repeat("a", 19), nil},
		{"run of 273", "0000 00" + strings.Repeat("61", 273) + "110000", "", errLZOShort},
		{"run of 274", "000001" + strings.Repeat("61", 274) + "110000", strings.Repeat("a", 274), nil},
		{"run that is too short", "01616263", "", errLZOShort},
		{"no end marker", "1561626364", "", errLZOShort},
		{"two bytes after a literal", "1261 0000 110000", "aaa", nil},
		{"four bytes", "1261 6000 110000", "aaaaa", nil},
		{"four bytes and a literal", "1261 610062 110000", "aaaaab", nil},
		{"eight bytes", "14616263 e800 110000", "abcabcabcab", nil},
		{"34 bytes", "1261 20010000 110000", strings.Repeat("a", 35), nil},
		{"65 bytes", "1261 20200000 110000", strings.Repeat("a", 66), nil},
		{"length without its end", "1261 20000000", "", errLZOShort},
		{"far copy without so much before it", "1261 110400 110000", "", errLZOBehind},
		{"copy before the start", "1261 6001 110000", "", errLZOBehind},
		{"copy first", "110400 110000", "", errLZOBehind},
		{"three bytes after a run without so much before it", "1561626364 0000 110000", "", errLZOBehind},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			src, err := hex.DecodeString(strings.ReplaceAll(tt.stream, " ", ""))
			if err != nil {
				t.Fatal(err)
			}
			for _, room := range []int{0, 100} {
				dst := make([]byte, len(tt.want)+room)
				n, err := lzoDecoder{}.Decode(dst, src)
				if room == 0 && tt.err != nil {
					continue // may as well be too long
				}
				if !errors.Is(err, tt.err) || string(dst[:n]) != tt.want {
					t.Errorf("with %d bytes of room: %q, %v, want %q, %v", room, dst[:n], err, tt.want, tt.err)
				}
			}
		})
	}
}

func FuzzLZO(f *testing.F) {
	for _, src := range lzoFiles(f) { // short ones, so that there are many executions
		f.Add(append(src[:1500:1500], 0x11, 0, 0), uint32(20000))
	}
	f.Add(block(f, LZO), uint32(sampleSize))
	f.Add([]byte("\x14abc\x20\x20\x00\x00\x12\x61\x11\x00\x00"), uint32(200))
	f.Fuzz(func(t *testing.T, src []byte, n uint32) {
		size := int(n % maxFuzzSize)
		got, err := decodeGuarded(t, LZO, src, size)
		want := make([]byte, size)
		made, wantErr := golzo.Decompress(src, want)
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("%v, another decoder says %v", err, wantErr)
		}
		if err == nil && !bytes.Equal(got, want[:made]) {
			t.Errorf("another decoder makes other bytes")
		}
	})
}
