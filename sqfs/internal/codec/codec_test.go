package codec

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
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

const sampleSize = 20000

// block returns sample(sampleSize) as mksquashfs compresses it; see testdata/blocks/make.sh.
func block(t testing.TB, id uint16) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "blocks", Name(id)))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// guard stands behind an output: nothing may write there.
var guard = bytes.Repeat([]byte{0xa5}, 300)

// decodeGuarded expands src into size bytes, with room behind them and without, and returns what that made.
func decodeGuarded(t testing.TB, id uint16, src []byte, size int) ([]byte, error) {
	t.Helper()
	out, err := decodeWithin(t, id, src, size, 0)
	roomy, roomyErr := decodeWithin(t, id, src, size, DecodeSlack)
	if !bytes.Equal(out, roomy) || (err == nil) != (roomyErr == nil) {
		t.Fatalf("%d bytes, %v; with room behind them %d bytes, %v", len(out), err, len(roomy), roomyErr)
	}
	return out, err
}

// decodeWithin expands src into size bytes with some room behind them.
func decodeWithin(t testing.TB, id uint16, src []byte, size, room int) ([]byte, error) {
	t.Helper()
	buf := append(make([]byte, size+room), guard...)
	n, err := For(id).Decode(buf[:size:size+room], src)
	if n < 0 || n > size {
		t.Fatalf("%d bytes in %d, %v", n, size, err)
	}
	if !bytes.Equal(buf[size+room:], guard) {
		t.Fatalf("wrote past %d bytes and room for %d", size, room)
	}
	return buf[:n], err
}

// maxFuzzSize bounds the output in fuzzing: squashfs has no longer blocks.
const maxFuzzSize = 1<<20 + 1

// eachDecoder runs a test for each compressor.
func eachDecoder(t *testing.T, test func(t *testing.T, id uint16)) {
	for id := range uint16(len(table)) {
		if For(id) != nil {
			t.Run(Name(id), func(t *testing.T) { test(t, id) })
		}
	}
}

func TestDecode(t *testing.T) {
	want := sample(sampleSize)
	eachDecoder(t, func(t *testing.T, id uint16) {
		src := block(t, id)
		for range 3 { // the second time with a pooled state
			for _, room := range []int{0, 1, 7, 100, 4096} {
				if got, err := decodeGuarded(t, id, src, sampleSize+room); err != nil || !bytes.Equal(got, want) {
					t.Fatalf("with %d bytes of room: %d bytes, %v", room, len(got), err)
				}
			}
			for _, short := range []int{0, 1, sampleSize / 2, sampleSize - 100, sampleSize - 1} {
				if got, err := decodeGuarded(t, id, src, short); err == nil {
					t.Errorf("into %d bytes: %d and no error", short, len(got))
				}
			}
		}
	})
}

func TestTruncated(t *testing.T) {
	eachDecoder(t, func(t *testing.T, id uint16) {
		src := block(t, id)
		for cut := range src {
			if got, err := decodeGuarded(t, id, src[:cut], sampleSize); err == nil && len(got) == sampleSize {
				t.Errorf("%d of %d bytes of the stream: no error", cut, len(src))
			}
		}
	})
}

// TestCorrupt damages each byte. Without a checksum nobody may notice, but the output
// must stay where it belongs, and the decoder must stay fit for the next stream.
func TestCorrupt(t *testing.T) {
	want := sample(sampleSize)
	eachDecoder(t, func(t *testing.T, id uint16) {
		src := block(t, id)
		for i := range src {
			bad := bytes.Clone(src)
			bad[i] ^= 1 << (i % 8)
			got, err := decodeGuarded(t, id, bad, sampleSize)
			if checked := id == Gzip || id == XZ; checked && err == nil && !bytes.Equal(got, want) {
				t.Errorf("byte %d damaged: other bytes and no error", i)
			}
		}
		if got, err := decodeGuarded(t, id, src, sampleSize); err != nil || !bytes.Equal(got, want) {
			t.Errorf("afterwards: %d bytes, %v", len(got), err)
		}
	})
}

// TestTrailing puts bytes behind a stream. Each decoder does with them what
// squashfs-tools does, whose libraries ignore them (uncompress) or return an error.
func TestTrailing(t *testing.T) {
	want := sample(sampleSize)
	for id, ignored := range map[uint16]bool{Gzip: true, LZMA: true, LZO: false, XZ: true, LZ4: false, Zstd: false} {
		src := append(block(t, id), "something else"...)
		got, err := decodeGuarded(t, id, src, sampleSize+100)
		if ignored && (err != nil || !bytes.Equal(got, want)) {
			t.Errorf("%s: %d bytes, %v", Name(id), len(got), err)
		}
		if !ignored && err == nil {
			t.Errorf("%s: %d bytes and no error", Name(id), len(got))
		}
	}
}

func TestConcurrent(t *testing.T) {
	want := sample(sampleSize)
	eachDecoder(t, func(t *testing.T, id uint16) {
		src := block(t, id)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				dst := make([]byte, sampleSize)
				for range 20 {
					if n, err := For(id).Decode(dst, src); err != nil || !bytes.Equal(dst[:n], want) {
						t.Errorf("%d bytes, %v", n, err)
					}
					// A stream that ends early must leave nothing behind.
					if _, err := For(id).Decode(dst, src[:len(src)/2]); err == nil && id != LZ4 {
						t.Error("half a stream: no error")
					}
				}
			})
		}
		wg.Wait()
	})
}

func TestAllocs(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes sync.Pool drop things")
	}
	eachDecoder(t, func(t *testing.T, id uint16) {
		src, dst := block(t, id), make([]byte, sampleSize)
		if n := testing.AllocsPerRun(100, func() { For(id).Decode(dst, src) }); n > 0 {
			t.Errorf("%v allocations a block", n)
		}
	})
}

// TestDecodeRandom feeds bytes that are no stream at all.
func TestDecodeRandom(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	eachDecoder(t, func(t *testing.T, id uint16) {
		for range 2000 {
			src := make([]byte, rnd.IntN(300))
			for i := range src {
				src[i] = byte(rnd.Uint32())
			}
			if id != LZ4 && id != LZO { // keep the start, which is all that most would look at
				copy(src, block(t, id)[:min(len(src), 20)])
			}
			decodeGuarded(t, id, src, rnd.IntN(5000))
		}
	})
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
