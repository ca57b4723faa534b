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
			b := encode(t, e, src)
			if first[i] = b; len(b) == 0 {
				continue
			}
			if got, err := decodeGuarded(t, id, b, len(src)); err != nil || !bytes.Equal(got, src) {
				t.Fatalf("block %d of %d bytes: %d, %v", i, len(src), len(got), err)
			}
		}
		for i := len(blocks) - 1; i >= 0; i-- {
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
			eachEncoder(t, size, func(t *testing.T, _ uint16, e Encoder) {
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
