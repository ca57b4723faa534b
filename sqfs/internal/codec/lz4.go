package codec

import (
	"errors"

	"github.com/pierrec/lz4/v4"
)

// lz4Decoder expands compressor 5: each block is one raw LZ4 block, not a frame, and
// carries neither its size nor a checksum (squashfs-tools, lz4_wrapper.c calls
// LZ4_decompress_safe).
type lz4Decoder struct{}

func (lz4Decoder) Decode(dst, src []byte) (int, error) {
	return lz4.UncompressBlock(src, dst[:len(dst):len(dst)])
}

// lz4Encoder makes raw LZ4 blocks: with the fast compressor at level 0, else with HC.
type lz4Encoder struct {
	fast lz4.CompressorCCompat
	high *lz4.CompressorHC
}

func newLZ4Encoder(level int) Encoder {
	if level == 0 {
		return &lz4Encoder{}
	}
	return &lz4Encoder{high: &lz4.CompressorHC{Level: lz4.Level1 << (level - 1)}}
}

func (e *lz4Encoder) Encode(dst, src []byte) (int, error) {
	if len(src) < 2 {
		return 0, nil
	}
	var n int
	var err error
	if dst = dst[:len(src)-1]; e.high != nil {
		n, err = e.high.CompressBlock(src, dst)
	} else {
		n, err = e.fast.CompressBlock(src, dst)
	}
	if errors.Is(err, lz4.ErrInvalidSourceShortBuffer) {
		return 0, nil // it does not fit into less than src has
	}
	return n, err
}
