package codec

import (
	"bytes"
	"io"
	"sync"

	"github.com/klauspost/compress/zlib"
)

// gzipDecoder expands compressor 1: despite the name each block is a zlib stream
// (RFC 1950), never a gzip file (squashfs-tools, gzip_wrapper.c calls uncompress).
// Bytes after the end of the stream are ignored, as zlib's uncompress and the kernel
// ignore them.
type gzipDecoder struct{}

// gzipState is what one running decoder needs. The 32 KiB window inside z make it
// worth keeping.
type gzipState struct {
	src bytes.Reader
	z   io.ReadCloser
	one [1]byte
}

var gzipStates = sync.Pool{New: func() any { return new(gzipState) }}

func (gzipDecoder) Decode(dst, src []byte) (int, error) {
	s := gzipStates.Get().(*gzipState)
	n, err := s.decode(dst, src)
	s.src.Reset(nil)
	gzipStates.Put(s)
	return n, err
}

// decode makes the zlib reader on first use: there is no way to have one without a
// valid stream header.
func (s *gzipState) decode(dst, src []byte) (n int, err error) {
	s.src.Reset(src)
	if s.z == nil {
		s.z, err = zlib.NewReader(&s.src)
	} else {
		err = s.z.(zlib.Resetter).Reset(&s.src, nil)
	}
	if err != nil {
		return 0, err
	}
	return fill(dst, s.z, s.one[:])
}
