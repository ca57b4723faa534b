package hostile

import (
	"bytes"
	"compress/flate"
	"compress/zlib"
	"hash/adler32"
	"math"
)

// Numbers of the compressors.
const (
	gzip = 1 + iota
	lzma
	lzo
	xz
	lz4
	zstd
)

// compressors are the names of the compressors.
var compressors = [...]string{gzip: "gzip", lzma: "lzma", lzo: "lzo", xz: "xz", lz4: "lz4", zstd: "zstd"}

// The byte of which all streams consist.
const runByte = 'r'

// runOf returns a stream that expands to n times runByte: as small as the compressor can.
func runOf(comp uint16, n int) []byte {
	switch comp {
	case gzip:
		return zlibRun(n)
	case lzma:
		return lzmaAlone(runByte, n, 1<<20, uint64(n))
	case lzo:
		return lzoRun(n)
	case xz:
		return xzStream(runByte, n, xzDict1M, 0)
	case lz4:
		return lz4Run(n)
	}
	return zstdRun(n, zstdWindow1M, uint64(n))
}

// lz4Run is a literal, a match that repeats it, and the five literals of the end.
func lz4Run(n int) []byte {
	if n < 32 {
		return append([]byte{byte(n) << 4}, bytes.Repeat([]byte{runByte}, n)...) // up to 14
	}
	b := []byte{0x1f, runByte, 1, 0}
	rest := n - 1 - 5 - 4 - 15
	b = append(b, bytes.Repeat([]byte{255}, rest/255)...)
	b = append(b, byte(rest%255), 0x50)
	return append(b, bytes.Repeat([]byte{runByte}, 5)...)
}

// lzoRun is four literals, a match M3 that repeats the last, and the end mark.
func lzoRun(n int) (b []byte) {
	if n > 0 {
		b = append(b, 17+4, runByte, runByte, runByte, runByte, 0x20)
		rest := n - 4 - 2 - 31 // at least 1
		zeros := (rest - 1) / 255
		b = append(b, make([]byte, zeros)...)
		b = append(b, byte(rest-255*zeros), 0, 0)
	}
	return append(b, 0x11, 0, 0)
}

const zstdWindow1M = 10 << 3 // windowLog 20

// zstdRun is a frame of RLE blocks with the given window descriptor, that says it has size
// bytes; with noSize it does not say.
func zstdRun(n int, window byte, size uint64) []byte {
	b := []byte{0x28, 0xb5, 0x2f, 0xfd, 0xc0, window}
	if size == noSize {
		b[4] = 0
	} else {
		b = le.AppendUint64(b, size)
	}
	for n > 128<<10 {
		b = append(b, zstdRLE(128<<10, 0)...)
		n -= 128 << 10
	}
	if n == 0 {
		return append(b, 1, 0, 0) // a raw block of no byte
	}
	return append(b, zstdRLE(n, 1)...)
}

const noSize = math.MaxUint64

func zstdRLE(n int, last byte) []byte {
	h := uint32(n)<<3 | 1<<1 | uint32(last)
	return []byte{byte(h), byte(h >> 8), byte(h >> 16), runByte}
}

// zlibRun repeats the deflate blocks of a MiB: 100 MiB would take long to compress.
func zlibRun(n int) []byte {
	const piece = 1 << 20
	raw := bytes.Repeat([]byte{runByte}, piece)
	b := []byte{0x78, 0xda}
	b = append(b, deflate(raw[:min(n, piece)], nil)...)
	if left := n - piece; left > 0 {
		b = append(b, bytes.Repeat(deflate(raw, raw[:1<<15]), left/piece)...)
		b = append(b, deflate(raw[:left%piece], raw[:1<<15])...)
	}
	b = append(b, 1, 0, 0, 0xff, 0xff) // a last block of no byte
	sum := adler32.New()
	for ; n > 0; n -= piece {
		sum.Write(raw[:min(n, piece)])
	}
	return sum.Sum(b)
}

// deflate returns blocks that end at a byte and are not the last.
func deflate(raw, dict []byte) []byte {
	var b bytes.Buffer
	w, err := flate.NewWriterDict(&b, flate.BestCompression, dict)
	if err == nil {
		_, err = w.Write(raw)
	}
	if err == nil {
		err = w.Flush()
	}
	if err != nil {
		panic(err) // a buffer takes all
	}
	return b.Bytes()
}

// zlibStored returns a zlib stream of stored deflate blocks, a few bytes longer than raw.
func zlibStored(raw []byte) []byte { return zlibLevel(raw, zlib.NoCompression) }

// zlibBest returns a zlib stream.
func zlibBest(raw []byte) []byte { return zlibLevel(raw, zlib.BestCompression) }

func zlibLevel(raw []byte, level int) []byte {
	var b bytes.Buffer
	w, err := zlib.NewWriterLevel(&b, level)
	if err == nil {
		_, err = w.Write(raw)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		panic(err)
	}
	return b.Bytes()
}

// xzDict1M is 1 MiB in the byte of the LZMA2 filter.
const xzDict1M = 16
