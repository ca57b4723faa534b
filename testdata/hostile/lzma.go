package hostile

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
)

// lzmaRun encodes n times the byte c with lc 3, lp 0, pb 2: a literal, if first is set, and
// then repetitions of the byte before. The position of the first byte is a multiple of 4.
func lzmaRun(c byte, n int, first bool) []byte {
	e := lzmaEncoder{width: 1<<32 - 1, pending: 1}
	for i := range e.probs {
		e.probs[i] = 1 << 10
	}
	state, pos := 0, 0
	if first && n > 0 {
		e.bit(isMatch, 0)
		e.tree(literals, 8, int(c))
		pos++
	}
	for pos < n {
		k := min(n-pos, 273)
		e.bit(isMatch+state<<4+pos&3, 1)
		e.bit(isRep+state, 1)
		e.bit(isRepG0+state, 0)
		if k == 1 {
			e.bit(isRep0Long+state<<4+pos&3, 0)
			state = next(state, 9)
		} else {
			e.bit(isRep0Long+state<<4+pos&3, 1)
			e.length(k, pos&3)
			state = next(state, 8)
		}
		pos += k
	}
	for range 5 {
		e.shift()
	}
	return e.out.Bytes()
}

// next returns the state after a repetition.
func next(state, first int) int {
	if state < 7 {
		return first
	}
	return 11
}

// Where the probabilities are in lzmaEncoder.probs.
const (
	isMatch    = 0
	isRep      = isMatch + 12<<4
	isRepG0    = isRep + 12
	isRep0Long = isRepG0 + 12
	lenChoice  = isRep0Long + 12<<4
	lenChoice2 = lenChoice + 1
	lenLow     = lenChoice2 + 1
	lenMid     = lenLow + 4<<3
	lenHigh    = lenMid + 4<<3
	literals   = lenHigh + 1<<8
	probCount  = literals + 1<<8
)

// lzmaEncoder is the range coder of the LZMA SDK.
type lzmaEncoder struct {
	out     bytes.Buffer
	low     uint64
	width   uint32
	cache   byte
	pending int
	probs   [probCount]uint16
}

func (e *lzmaEncoder) bit(prob, bit int) {
	p := &e.probs[prob]
	bound := e.width >> 11 * uint32(*p)
	if bit == 0 {
		e.width = bound
		*p += (1<<11 - *p) >> 5
	} else {
		e.low += uint64(bound)
		e.width -= bound
		*p -= *p >> 5
	}
	for e.width < 1<<24 {
		e.width <<= 8
		e.shift()
	}
}

// shift puts out the highest byte of low, as soon as no carry can reach it.
func (e *lzmaEncoder) shift() {
	if e.low < 0xff000000 || e.low > 0xffffffff {
		carry := byte(e.low >> 32)
		for ; e.pending > 0; e.pending-- {
			e.out.WriteByte(e.cache + carry)
			e.cache = 0xff
		}
		e.cache = byte(e.low >> 24)
	}
	e.pending++
	e.low = e.low & 0x00ffffff << 8
}

func (e *lzmaEncoder) tree(prob, bits, v int) {
	m := 1
	for i := bits - 1; i >= 0; i-- {
		b := v >> i & 1
		e.bit(prob+m, b)
		m = m<<1 | b
	}
}

// length encodes the length of a repetition, 2..273.
func (e *lzmaEncoder) length(n, pos int) {
	n -= 2
	switch {
	case n < 8:
		e.bit(lenChoice, 0)
		e.tree(lenLow+pos<<3, 3, n)
	case n < 16:
		e.bit(lenChoice, 1)
		e.bit(lenChoice2, 0)
		e.tree(lenMid+pos<<3, 3, n-8)
	default:
		e.bit(lenChoice, 1)
		e.bit(lenChoice2, 1)
		e.tree(lenHigh, 8, n-16)
	}
}

const lzmaProps = 0x5d // lc 3, lp 0, pb 2

// lzmaAlone returns a .lzma stream that says it has size bytes.
func lzmaAlone(c byte, n int, dict uint32, size uint64) []byte {
	b := le.AppendUint32([]byte{lzmaProps}, dict)
	b = le.AppendUint64(b, size)
	return append(b, lzmaRun(c, n, true)...)
}

// xzStream returns an .xz stream with the dictionary that the byte dict stands for, and with
// CRC-32 plus what badCheck says.
func xzStream(c byte, n int, dict byte, badCheck uint32) []byte {
	flags := []byte{0, 1}
	b := []byte("\xfd7zXZ\x00\x00\x01")
	b = le.AppendUint32(b, crc32.ChecksumIEEE(flags))
	start := len(b)
	header := []byte{2, 0, 0x21, 1, dict, 0, 0, 0}
	b = append(b, header...)
	b = le.AppendUint32(b, crc32.ChecksumIEEE(header))
	b = append(b, lzma2(c, n)...)
	unpadded := len(b) - start + 4
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	b = le.AppendUint32(b, crcOf(c, n)+badCheck)
	index := binary.AppendUvarint([]byte{0, 1}, uint64(unpadded))
	index = binary.AppendUvarint(index, uint64(n))
	for len(index)%4 != 0 {
		index = append(index, 0)
	}
	b = append(b, index...)
	b = le.AppendUint32(b, crc32.ChecksumIEEE(index))
	footer := le.AppendUint32(nil, uint32(len(index)/4))
	footer = append(footer, flags...)
	b = le.AppendUint32(b, crc32.ChecksumIEEE(footer))
	b = append(b, footer...)
	return append(b, "YZ"...)
}

// lzma2 returns chunks of up to 2 MiB.
func lzma2(c byte, n int) (b []byte) {
	for done := 0; done < n; {
		size := min(n-done, 2<<20)
		data := lzmaRun(c, size, done == 0)
		control := byte(0xe0) // all anew
		if done > 0 {
			control = 0xa0 // only the state
		}
		b = append(b, control|byte((size-1)>>16), byte((size-1)>>8), byte(size-1), byte((len(data)-1)>>8), byte(len(data)-1))
		if done == 0 {
			b = append(b, lzmaProps)
		}
		b = append(b, data...)
		done += size
	}
	return append(b, 0)
}

func crcOf(c byte, n int) (sum uint32) {
	piece := bytes.Repeat([]byte{c}, 1<<20)
	for ; n > 0; n -= len(piece) {
		sum = crc32.Update(sum, crc32.IEEETable, piece[:min(n, len(piece))])
	}
	return sum
}
