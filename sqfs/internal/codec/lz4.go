package codec

import (
	"github.com/pierrec/lz4/v4"
)

// lz4Decoder expands compressor 5: each block is one raw LZ4 block, not a frame, and
// carries neither its size nor a checksum (squashfs-tools, lz4_wrapper.c calls
// LZ4_decompress_safe).
type lz4Decoder struct{}

func (lz4Decoder) Decode(dst, src []byte) (int, error) {
	return lz4.UncompressBlock(src, dst[:len(dst):len(dst)])
}
