package codec

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/pierrec/lz4/v4"
)

var errLZ4 = errors.New("damaged")

// lz4Reference expands a block as its specification reads (lz4_Block_format.md), byte by byte. Of what no compressor
// writes it takes what the library takes: nothing at all, and a copy at the end, but no length of one that is not there.
func lz4Reference(src []byte, size int) (out []byte, err error) {
	// length adds to a length of 15 all that follows: bytes of 255, and one that is less.
	length := func(n int) int {
		for more := byte(255); n >= 15 && more == 255; src = src[1:] {
			if len(src) == 0 {
				return size + 1 // more than fits, in whichever way
			}
			more = src[0]
			n += int(more)
		}
		return n
	}
	for len(src) > 0 {
		token := int(src[0])
		src = src[1:]
		n := length(token >> 4)
		if n > len(src) || n > size-len(out) {
			return nil, errLZ4
		}
		out = append(out, src[:n]...)
		if src = src[n:]; len(src) == 0 && token&15 == 0 {
			return out, nil
		}
		if len(src) < 2 {
			return nil, errLZ4
		}
		dist := int(binary.LittleEndian.Uint16(src))
		src = src[2:]
		n = length(token&15) + 4
		if dist == 0 || dist > len(out) || n > size-len(out) {
			return nil, errLZ4
		}
		for range n {
			out = append(out, out[len(out)-dist])
		}
	}
	return out, nil
}

func FuzzLZ4(f *testing.F) {
	f.Add(block(f, LZ4), uint32(sampleSize))
	for _, text := range [][]byte{[]byte("abcabcabcabcabcabcabcabcabcabc"), make([]byte, 5000), sample(3000)} {
		dst := make([]byte, lz4.CompressBlockBound(len(text)))
		n, err := lz4.CompressBlock(text, dst, nil)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(dst[:n], uint32(len(text)))
	}
	f.Add([]byte("\x50hello"), uint32(8192))
	f.Fuzz(func(t *testing.T, src []byte, n uint32) {
		size := int(n % maxFuzzSize)
		got, err := decodeGuarded(t, LZ4, src, size)
		want, wantErr := lz4Reference(src, size)
		if (err == nil) != (wantErr == nil) || err == nil && !bytes.Equal(got, want) {
			t.Errorf("%d bytes, %v; want %d, %v", len(got), err, len(want), wantErr)
		}
	})
}
