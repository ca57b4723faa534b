package codec

import (
	"sync"

	"github.com/klauspost/compress/zstd"
)

// zstdDecoder expands compressor 6: each block is one zstd frame, nearly always with
// its content size and without a checksum (squashfs-tools, zstd_wrapper.c calls
// ZSTD_compressCCtx).
type zstdDecoder struct{}

// maxWindow bounds the window that a frame may ask for. It costs nothing here, since
// the output is the window; mksquashfs never needs more than the block, but other
// encoders declare the window of their level. 8 MiB is what RFC 8878 tells decoders
// to support.
const maxWindow = 8 << 20

// The library's fast path wants room for DecodeSlack bytes behind a block, 128 KiB at
// most, that it expands; without it takes 1.35 times as long. Where there is none, and
// that concerns all of the output or much of it, the output goes to a buffer with that
// room first.
const zstdBounce = 512 << 10 // longer outputs lose less by the slow path than by the copy

// zstdState is what one running decoder needs. The decoder is for one call of DecodeAll
// at a time; one without a stream has no goroutines.
type zstdState struct {
	d   *zstd.Decoder
	buf []byte
}

// zstdStates holds as many states as run at once; idle ones are garbage.
// WithDecodeAllCapLimit keeps the output within the capacity that it is given.
var zstdStates = sync.Pool{New: func() any {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(false),
		zstd.WithDecoderMaxMemory(maxWindow), zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		panic("zstd: " + err.Error()) // our own options are wrong
	}
	return &zstdState{d: d}
}}

func (zstdDecoder) Decode(dst, src []byte) (int, error) {
	s := zstdStates.Get().(*zstdState)
	n, err := s.decode(dst, src)
	zstdStates.Put(s)
	return n, err
}

func (s *zstdState) decode(dst, src []byte) (int, error) {
	room := len(dst) + DecodeSlack
	buf := dst[:0:min(cap(dst), room)]
	if cap(buf) < room && len(dst) < zstdBounce {
		if cap(s.buf) < room {
			s.buf = make([]byte, room)
		}
		buf = s.buf[:0:room]
	}
	out, err := s.d.DecodeAll(src, buf)
	if err != nil {
		return 0, err
	}
	if len(out) > len(dst) {
		return 0, errTooLong
	}
	if len(out) > 0 && &out[0] != &dst[0] {
		copy(dst, out)
	}
	return len(out), nil
}
