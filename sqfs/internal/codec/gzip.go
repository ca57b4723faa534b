package codec

import (
	"encoding/binary"
	"errors"

	"github.com/klauspost/compress/flate"
)

var (
	errHeader   = errors.New("no zlib header")
	errDict     = errors.New("needs a preset dictionary")
	errChecksum = errors.New("checksum does not match")
)

// gzipDecoder expands compressor 1: despite the name each block is a zlib stream
// (RFC 1950), never a gzip file (squashfs-tools, gzip_wrapper.c calls uncompress).
// Bytes after the end of the stream are ignored, as zlib's uncompress and the kernel
// ignore them.
type gzipDecoder struct{}

func (gzipDecoder) Decode(dst, src []byte) (int, error) {
	if len(src) < 2 {
		return 0, errTruncated
	}
	cmf, flg := src[0], src[1]
	if cmf&15 != 8 || cmf>>4 > 7 || (uint(cmf)<<8+uint(flg))%31 != 0 {
		return 0, errHeader
	}
	if flg&0x20 != 0 {
		return 0, errDict
	}
	n, used, err := inflate(dst, src[2:])
	if err != nil {
		return n, err
	}
	sum := src[2+used:]
	if len(sum) < 4 {
		return n, errTruncated
	}
	if binary.BigEndian.Uint32(sum) != sumAdler(dst[:n]) {
		return n, errChecksum
	}
	return n, nil
}

// gzipEncoder makes zlib streams.
type gzipEncoder struct {
	w      *flate.Writer
	out    bounded
	header [2]byte
}

func newGzipEncoder(level int) (Encoder, error) {
	w, err := flate.NewWriter(nil, level)
	if err != nil {
		return nil, err
	}
	// RFC 1950, 2.2: deflate with a window of 32 KiB, then two bits that tell how hard
	// the compressor tried, then a number that makes it all a multiple of 31.
	tried := []byte{0x01, 0x5e, 0x9c, 0xda}[[10]int{1: 0, 0, 1, 1, 1, 2, 3, 3, 3}[level]]
	return &gzipEncoder{w: w, header: [2]byte{0x78, tried}}, nil
}

func (e *gzipEncoder) Encode(dst, src []byte) (int, error) {
	const sum = 4
	if len(src) <= len(e.header)+sum {
		return 0, nil
	}
	e.out = bounded{b: dst[:copy(dst, e.header[:])], most: len(src) - sum - 1}
	e.w.Reset(&e.out)
	_, err := e.w.Write(src)
	if err == nil {
		err = e.w.Close()
	}
	if errors.Is(err, errNoGain) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return len(binary.BigEndian.AppendUint32(e.out.b, sumAdler(src))), nil
}

// errNoGain stops a compressor that has written as much as it was given.
var errNoGain = errors.New("no gain")

// bounded is a writer to a slice. It refuses to make it longer than most bytes.
type bounded struct {
	b    []byte
	most int
}

func (w *bounded) Write(b []byte) (int, error) {
	if len(b) > w.most-len(w.b) {
		return 0, errNoGain
	}
	w.b = append(w.b, b...)
	return len(b), nil
}
