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

// zstdStates holds decoders for one call of DecodeAll at a time, so that as many run
// at once as there are processors, and idle ones are garbage. A decoder without a
// stream has no goroutines. WithDecodeAllCapLimit keeps it within dst.
var zstdStates = sync.Pool{New: func() any {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(false),
		zstd.WithDecoderMaxMemory(maxWindow), zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		panic("zstd: " + err.Error()) // our own options are wrong
	}
	return d
}}

func (zstdDecoder) Decode(dst, src []byte) (int, error) {
	d := zstdStates.Get().(*zstd.Decoder)
	out, err := d.DecodeAll(src, dst[:0:len(dst)])
	zstdStates.Put(d)
	if err != nil {
		return 0, err
	}
	if len(out) > len(dst) {
		return 0, errTooLong
	}
	if len(out) > 0 && &out[0] != &dst[0] { // the library took a buffer of its own
		copy(dst, out)
	}
	return len(out), nil
}
