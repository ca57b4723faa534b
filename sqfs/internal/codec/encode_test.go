package codec

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// eachEncoder runs a test for each level of each compressor; of zstd's, for those that are
// not the same for the library.
func eachEncoder(t *testing.T, size int, test func(t *testing.T, id uint16, e Encoder)) {
	for _, id := range []uint16{Gzip, LZ4, Zstd} {
		least, most, _, _ := Levels(id)
		for level := least; level <= most; level++ {
			if id == Zstd && !slices.Contains([]int{1, 3, 6, 13, 22}, level) {
				continue
			}
			e, err := NewEncoder(id, level, size)
			if err != nil {
				t.Fatal(err)
			}
			t.Run(fmt.Sprint(Name(id), level), func(t *testing.T) { test(t, id, e) })
		}
	}
}

// encode compresses src and checks that nothing is written where it should not be.
func encode(t testing.TB, e Encoder, src []byte) []byte {
	t.Helper()
	room := len(src) + EncodeSlack
	dst := append(make([]byte, room, room+len(guard)), guard...)
	n, err := e.Encode(dst[:room:room], src)
	if err != nil || n < 0 || n > 0 && n >= len(src) {
		t.Fatalf("%d bytes of %d, %v", n, len(src), err)
	}
	if !bytes.Equal(dst[room:], guard) {
		t.Fatal("wrote past the destination")
	}
	return dst[:n]
}

func noise(seed uint64, n int) []byte {
	rnd := rand.New(rand.NewPCG(seed, 0))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rnd.Uint32())
	}
	return b
}

// TestEncode encodes blocks of many sizes twice, in another order, so that what an encoder
// had before would show.
func TestEncode(t *testing.T) {
	const most = 1 << 20
	var blocks [][]byte
	for _, n := range []int{0, 1, 2, 5, 6, 7, 20, 100, 4096, 8191, 8192, 65535, 128<<10 - 1, 128 << 10, 300000, most} {
		blocks = append(blocks, sample(n), noise(uint64(n), n), make([]byte, n))
		mixed := noise(uint64(n)+1, n)
		copy(mixed[n/3:], sample(n/2))
		blocks = append(blocks, mixed)
	}
	eachEncoder(t, most, func(t *testing.T, id uint16, e Encoder) {
		first := make([][]byte, len(blocks))
		for i, src := range blocks {
			if id != Zstd && len(src) > 128<<10 { // nothing else happens, and it takes long
				continue
			}
			b := encode(t, e, src)
			if first[i] = b; len(b) == 0 {
				continue
			}
			if got, err := decodeGuarded(t, id, b, len(src)); err != nil || !bytes.Equal(got, src) {
				t.Fatalf("block %d of %d bytes: %d, %v", i, len(src), len(got), err)
			}
		}
		for i := len(blocks) - 1; i >= 0; i-- {
			if id != Zstd && len(blocks[i]) > 128<<10 {
				continue
			}
			if !bytes.Equal(encode(t, e, blocks[i]), first[i]) {
				t.Errorf("block %d of %d bytes is another the second time", i, len(blocks[i]))
			}
		}
		if len(first[32]) == 0 || len(first[33]) != 0 {
			t.Errorf("%d bytes of what compresses, %d of noise", len(first[32]), len(first[33]))
		}
	})
}

func TestEncodeAllocs(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	for _, size := range []int{4096, 128 << 10, 1 << 20} {
		for _, src := range [][]byte{sample(size), noise(1, size)} {
			dst := make([]byte, size+EncodeSlack)
			eachEncoder(t, size, func(t *testing.T, id uint16, e Encoder) {
				if id != Zstd && size > 128<<10 {
					return
				}
				for range 5 { // tables grow to what they need
					e.Encode(dst, src)
				}
				if n := testing.AllocsPerRun(3, func() { e.Encode(dst, src) }); n > 0 {
					t.Errorf("%v allocations for a block of %d bytes", n, size)
				}
			})
		}
	}
}

func TestLevels(t *testing.T) {
	for _, c := range []struct {
		id    uint16
		level int
	}{{0, 0}, {XZ, 1}, {LZO, 1}, {Gzip, 0}, {Gzip, 10}, {LZ4, -1}, {LZ4, 10}, {Zstd, 0}, {Zstd, 23}} {
		if _, err := NewEncoder(c.id, c.level, 4096); err == nil {
			t.Errorf("an encoder of level %d for compressor %d", c.level, c.id)
		}
	}
}

// TestEncodeLong has sources whose last part of a frame differs much from the first, as it
// does not in other tests: parts that do not compress, or are one byte, between others.
func TestEncodeLong(t *testing.T) {
	const part = zstdBlock
	var blocks [][]byte
	for order := range 27 {
		var b []byte
		for k := range 3 {
			switch order / []int{1, 3, 9}[k] % 3 {
			case 0:
				b = append(b, noise(uint64(order*3+k), part)...)
			case 1:
				b = append(b, bytes.Repeat([]byte{byte(k)}, part)...)
			case 2:
				b = append(b, sample(part)...)
			}
		}
		blocks = append(blocks, b, b[:2*part+77])
	}
	for _, level := range []int{1, 4, 7, 13, 19} {
		e, err := NewEncoder(Zstd, level, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		for i, src := range blocks {
			b := encode(t, e, src)
			if len(b) == 0 {
				continue
			}
			if got, err := decodeGuarded(t, Zstd, b, len(src)); err != nil || !bytes.Equal(got, src) {
				t.Fatalf("level %d, block %d: %d bytes of %d, %v", level, i, len(got), len(src), err)
			}
		}
	}
}

// FuzzEncode makes sources of pieces of the input, and encodes them with all compressors.
func FuzzEncode(f *testing.F) {
	f.Add([]byte("some bytes, some bytes, other bytes"), uint32(70000), uint8(0))
	f.Add(noise(1, 300), uint32(200000), uint8(13))
	f.Add(sample(9000), uint32(9000), uint8(21))
	f.Fuzz(func(t *testing.T, in []byte, size uint32, level uint8) {
		if len(in) == 0 {
			return
		}
		src := make([]byte, 0, int(size)%(300<<10))
		for k := uint32(1); len(src) < cap(src); k = k*1664525 + 1013904223 {
			from := int(k>>8) % len(in)
			piece := in[from:min(len(in), from+1+int(k>>3)%40)]
			if k>>28 == 0 { // from far back
				piece = src[len(src)/2:]
			}
			src = append(src, piece[:min(len(piece), cap(src)-len(src))]...)
			if len(piece) == 0 {
				src = append(src, in[0])
			}
		}
		for _, id := range []uint16{Gzip, LZ4, Zstd} {
			least, most, _, _ := Levels(id)
			e, err := NewEncoder(id, least+int(level)%(most-least+1), 300<<10)
			if err != nil {
				t.Fatal(err)
			}
			b := encode(t, e, src)
			if len(b) == 0 {
				continue
			}
			if got, err := decodeGuarded(t, id, b, len(src)); err != nil || !bytes.Equal(got, src) {
				t.Errorf("%s: %d bytes of %d, %v", Name(id), len(got), len(src), err)
			}
			if !bytes.Equal(encode(t, e, src), b) {
				t.Errorf("%s: another stream the second time", Name(id))
			}
		}
	})
}
