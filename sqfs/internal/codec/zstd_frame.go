package codec

import (
	"encoding/binary"
	"errors"

	"github.com/klauspost/compress/huff0"
)

// zstdEncoder makes zstd frames (RFC 8878) of a single segment, with their size and
// without a checksum, as mksquashfs does. Huffman codes are the library's. The rest is our
// own, as the library's encoder has tables for windows of megabytes, which for blocks of
// 128 KiB cost a fifth of the time, and no parser for high levels: its best is what
// libzstd has at level 6 (DESIGN.md, Encoders).
type zstdEncoder struct {
	find    finder
	seqs    []sequence
	lits    []byte
	reps    [3]uint32 // the last three offsets
	symbols sequenceCoder
	huff    huff0.Scratch
	block   []byte
	split   bool  // blocks into parts that have codes of their own
	parts   []int // where they end in seqs
}

// finder splits the part of src from begin on into sequences: it appends them to seqs, and
// the literals between the matches, and those behind the last, to lits. Matches may reach
// back to the start of src. reps are the last three offsets, before and after.
type finder interface {
	// start begins another src.
	start(n int)
	parse(src []byte, begin int, seqs []sequence, lits []byte, reps *[3]uint32) ([]sequence, []byte)
}

// sequence is some literals and a match behind them.
type sequence struct {
	lits   uint32 // bytes
	match  uint32 // bytes, 3 or more
	offset uint32 // as coded: 1..3 is one of the last three, more is a distance + 3
}

// zstdBlock is the longest block of a frame: Block_Maximum_Size.
const zstdBlock = 128 << 10

func newZstdEncoder(level, size int) (Encoder, error) {
	size = max(size, 1<<13) // metadata blocks
	n := min(size, zstdBlock)
	return &zstdEncoder{
		find: newFinder(level, size), split: level >= 5, parts: make([]int, 0, 64),
		seqs: make([]sequence, 0, n/3+1), lits: make([]byte, 0, n+16),
		block: make([]byte, n+n/3*10+1024), // a sequence has at most 78 bits
		huff:  huff0.Scratch{Reuse: huff0.ReusePolicyNone, Out: make([]byte, 0, n+1024)},
	}, nil
}

func (e *zstdEncoder) Encode(dst, src []byte) (int, error) {
	if len(src) < 16 {
		return 0, nil
	}
	const single = 1 << 5
	// Frame_Content_Size has 4 bytes; descriptor 2 << 6.
	out := append(dst[:0], 0x28, 0xb5, 0x2f, 0xfd)
	if len(src) < 256 {
		out = append(out, single, byte(len(src)))
	} else if n := len(src) - 256; n < 1<<16 {
		out = binary.LittleEndian.AppendUint16(append(out, single|1<<6), uint16(n))
	} else {
		out = binary.LittleEndian.AppendUint32(append(out, single|2<<6), uint32(len(src)))
	}
	e.find.start(len(src))
	e.reps = [3]uint32{1, 4, 8}
	for begin := 0; begin < len(src); {
		end := min(begin+zstdBlock, len(src))
		before, last := e.reps, end == len(src)
		longer, ok := e.encodeBlock(out, src[:end], begin, last)
		if !ok {
			if len(out)+3+end-begin >= len(src) {
				return 0, nil
			}
			longer, e.reps = append(zstdHeader(out, blockRaw, end-begin, last), src[begin:end]...), before
		}
		out, begin = longer, end
	}
	if len(out) >= len(src) {
		return 0, nil
	}
	return len(out), nil
}

// The types of blocks.
const (
	blockRaw = iota
	blockRLE
	blockCompressed
)

func zstdHeader(out []byte, kind, n int, last bool) []byte {
	h := uint32(n)<<3 | uint32(kind)<<1
	if last {
		h |= 1
	}
	return append(out, byte(h), byte(h>>8), byte(h>>16))
}

// encodeBlock appends src from begin on, 128 KiB at most, as a block or several. It is not
// ok if they are no shorter.
func (e *zstdEncoder) encodeBlock(out, src []byte, begin int, last bool) (_ []byte, ok bool) {
	n, before := len(src)-begin, e.reps
	most := len(out) + n
	e.seqs, e.lits = e.find.parse(src, begin, e.seqs[:0], e.lits[:0], &e.reps)
	if len(e.seqs) == 1 && e.seqs[0].match == uint32(n-1) && allSame(src[begin:]) {
		e.reps = before // such a block has no offsets
		return append(zstdHeader(out, blockRLE, n, last), src[begin]), true
	}
	e.parts = e.parts[:0]
	if e.split {
		e.divide(0, len(e.seqs), 0, len(e.lits))
	} else {
		e.parts = append(e.parts, len(e.seqs))
	}
	from, lits := 0, e.lits
	for k, to := range e.parts {
		part := e.seqs[from:to]
		mine := len(lits)
		if k < len(e.parts)-1 {
			mine = literalsOf(part)
		}
		b := e.literals(e.block[:0], lits[:mine])
		if len(out)+len(b) < most {
			b = e.symbols.encode(b, part)
		}
		if len(out)+len(b)+3 >= most {
			return nil, false
		}
		out = zstdHeader(out, blockCompressed, len(b), last && k == len(e.parts)-1)
		out = append(out, b...)
		from, lits = to, lits[mine:]
	}
	return out, true
}

func literalsOf(seqs []sequence) int {
	n := 0
	for i := range seqs {
		n += int(seqs[i].lits)
	}
	return n
}

func allSame(b []byte) bool {
	for i := range b {
		if b[i] != b[0] {
			return false
		}
	}
	return true
}

// literals appends the literals section: RFC 8878, 3.1.1.3.1.
func (e *zstdEncoder) literals(out, lits []byte) []byte {
	const raw, rle, compressed = 0, 1, 2
	n := len(lits)
	var b []byte
	err := huff0.ErrIncompressible
	four := n >= 256
	if n > 32 {
		if four {
			b, _, err = huff0.Compress4X(lits, &e.huff)
		} else {
			b, _, err = huff0.Compress1X(lits, &e.huff)
		}
	}
	switch {
	case errors.Is(err, huff0.ErrUseRLE):
		return append(literalsHeader(out, rle, n), lits[0])
	case err != nil || len(b)+5 >= n:
		return append(literalsHeader(out, raw, n), lits...)
	}
	// Two bits of type, two of format, two sizes of 10, 14 or 18 bits. Format 0 has one
	// stream, the others four.
	bits, format := uint(10), uint64(1)
	if !four {
		format = 0
	} else if n >= 1<<14 {
		bits, format = 18, 3
	} else if n >= 1<<10 {
		bits, format = 14, 2
	}
	h := compressed | format<<2 | uint64(n)<<4 | uint64(len(b))<<(4+bits)
	for k := uint(0); k < (4+2*bits+7)/8; k++ {
		out = append(out, byte(h>>(8*k)))
	}
	return append(out, b...)
}

// literalsHeader appends the header of literals that are not compressed.
func literalsHeader(out []byte, kind, n int) []byte {
	switch {
	case n < 32:
		return append(out, byte(kind|n<<3))
	case n < 4096:
		return append(out, byte(kind|1<<2|n<<4), byte(n>>4))
	}
	return append(out, byte(kind|3<<2|n<<4), byte(n>>4), byte(n>>12))
}
