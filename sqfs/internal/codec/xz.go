package codec

import (
	"bytes"
	"sync"

	"github.com/therootcompany/xz"
)

// xzDecoder expands compressor 4: each block is a complete .xz stream, LZMA2 or one
// BCJ filter and LZMA2 (squashfs-tools, xz_wrapper.c). The library knows the filters
// x86, powerpc, ia64, arm, armthumb and sparc; arm64 and riscv, which mksquashfs can
// write since 4.7, give an error.
type xzDecoder struct{}

// maxDict bounds the dictionary that a stream may ask for. A dictionary larger than
// the block is of no use, and blocks have at most 1 MiB.
const maxDict = 1 << 20

// xzState is what one running decoder needs, some 30 KiB and the dictionary.
type xzState struct {
	src bytes.Reader
	z   *xz.Reader
	one [1]byte
}

var xzStates = sync.Pool{New: func() any {
	z, _ := xz.NewReader(nil, maxDict) // cannot fail without a source
	return &xzState{z: z}
}}

func (xzDecoder) Decode(dst, src []byte) (int, error) {
	s := xzStates.Get().(*xzState)
	n, err := s.decode(dst, src)
	s.src.Reset(nil)
	xzStates.Put(s)
	return n, err
}

func (s *xzState) decode(dst, src []byte) (int, error) {
	s.src.Reset(src)
	if err := s.z.Reset(&s.src); err != nil {
		return 0, err
	}
	s.z.Multistream(false) // what follows the first stream is no data of this block
	return fill(dst, s.z, s.one[:])
}
