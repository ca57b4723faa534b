package codec

import (
	"bytes"
	"compress/zlib"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// sample is compressible and not short.
func sample(n int) []byte {
	rnd := rand.New(rand.NewPCG(1, 2))
	var b []byte
	for len(b) < n {
		b = append(b, bytes.Repeat([]byte{byte(rnd.IntN(20))}, rnd.IntN(30))...)
	}
	return b[:n]
}

// encoders make a block as mksquashfs does.
var encoders = map[uint16]func(t testing.TB, b []byte) []byte{
	Gzip: func(t testing.TB, b []byte) []byte {
		var buf bytes.Buffer
		w := zlib.NewWriter(&buf)
		w.Write(b)
		w.Close()
		return buf.Bytes()
	},
	LZ4: func(t testing.TB, b []byte) []byte {
		dst := make([]byte, lz4.CompressBlockBound(len(b)))
		n, err := lz4.CompressBlock(b, dst, nil)
		if err != nil {
			t.Fatal(err)
		}
		return dst[:n]
	},
	Zstd: func(t testing.TB, b []byte) []byte {
		w, err := zstd.NewWriter(nil)
		if err != nil {
			t.Fatal(err)
		}
		return w.EncodeAll(b, nil)
	},
	// There is no encoder for xz here: xz --check=crc32 --lzma2=preset=9,dict=64KiB made it of sample(20000).
	XZ: func(t testing.TB, b []byte) []byte {
		x, err := os.ReadFile(filepath.Join("testdata", "sample.xz"))
		if err != nil {
			t.Fatal(err)
		}
		return x
	},
}

const sampleSize = 20000

func TestDecode(t *testing.T) {
	want := sample(sampleSize)
	for id, encode := range encoders {
		t.Run(Name(id), func(t *testing.T) {
			d, src := For(id), encode(t, want)
			for range 3 { // the second time with a pooled state
				dst := make([]byte, len(want))
				if n, err := d.Decode(dst, src); err != nil || n != len(want) || !bytes.Equal(dst, want) {
					t.Fatalf("exact: %d bytes, %v", n, err)
				}
				long := make([]byte, len(want)+100)
				if n, err := d.Decode(long, src); err != nil || n != len(want) {
					t.Fatalf("with room: %d bytes, %v", n, err)
				}
				for _, short := range []int{0, 1, len(want) / 2, len(want) - 1} {
					dst = bytes.Repeat([]byte{0xa5}, len(want))
					if n, err := d.Decode(dst[:short], src); err == nil {
						t.Errorf("into %d bytes: %d and no error", short, n)
					}
					if !bytes.Equal(dst[short:], bytes.Repeat([]byte{0xa5}, len(want)-short)) {
						t.Errorf("into %d bytes: wrote past the end", short)
					}
				}
				for _, cut := range []int{1, 2, len(src) / 2, len(src) - 1} {
					if n, err := d.Decode(dst, src[:cut]); err == nil && n == len(want) && id != LZ4 {
						t.Errorf("%d of %d bytes of the stream: %d and no error", cut, len(src), n)
					}
				}
			}
		})
	}
}

// TestTrailing checks that bytes behind a zlib stream are ignored.
func TestTrailing(t *testing.T) {
	want := sample(5000)
	src := append(encoders[Gzip](t, want), "something else"...)
	dst := make([]byte, len(want))
	if n, err := For(Gzip).Decode(dst, src); err != nil || n != len(want) || !bytes.Equal(dst, want) {
		t.Errorf("%d bytes, %v", n, err)
	}
}

// TestChecksum checks that compressors with a checksum compare it, also when the
// output is full before it is reached.
func TestChecksum(t *testing.T) {
	want := sample(sampleSize)
	for _, id := range []uint16{Gzip, XZ} {
		src := bytes.Clone(encoders[id](t, want))
		at := len(src) - 2
		if id == XZ {
			at = len(src) - 12 - 8 - 2 // footer, index, in the check of the block
		}
		src[at] ^= 1
		if n, err := For(id).Decode(make([]byte, len(want)), src); err == nil {
			t.Errorf("%s: %d bytes and no error", Name(id), n)
		}
	}
}

func TestNames(t *testing.T) {
	for id, want := range map[uint16]string{0: "", 1: "gzip", 2: "lzma", 3: "lzo", 4: "xz", 5: "lz4", 6: "zstd", 7: "", 65535: ""} {
		if got := Name(id); got != want {
			t.Errorf("name of %d is %q, want %q", id, got, want)
		}
	}
	if For(0) != nil || For(7) != nil {
		t.Error("decoders for numbers that no compressor has")
	}
}

// FuzzCodec feeds all decoders with damaged streams.
func FuzzCodec(f *testing.F) {
	for id, encode := range encoders {
		f.Add(id, encode(f, sample(sampleSize)), uint32(sampleSize))
		f.Add(id, encode(f, sample(100)), uint32(8192))
	}
	f.Fuzz(func(t *testing.T, id uint16, src []byte, size uint32) {
		d := For(id % 8)
		if d == nil {
			return
		}
		size %= 1<<20 + 1
		buf := make([]byte, size+64)
		guard := bytes.Repeat([]byte{0xa5}, 64)
		copy(buf[size:], guard)
		n, err := d.Decode(buf[:size], src)
		if n < 0 || n > int(size) {
			t.Errorf("%d bytes in %d, %v", n, size, err)
		}
		if !bytes.Equal(buf[size:], guard) {
			t.Errorf("wrote past %d bytes", size)
		}
	})
}
