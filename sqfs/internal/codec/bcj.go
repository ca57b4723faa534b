package codec

import (
	"encoding/binary"
	"math/bits"
)

// A bcjFilter turns the absolute addresses of branches in machine code back into
// relative ones, in place. start is the position of b[0]. An instruction that is not
// whole at the end of b stays as it is. What each filter takes for a branch is defined
// by XZ Utils, liblzma/simple; doc/xz-file-format.txt, 5.3.2, has no more than the
// numbers.
type bcjFilter func(b []byte, start uint32)

// bcjFilters has the filters by their number in the header of a block. A start has to
// be a multiple of align.
var bcjFilters = map[uint64]struct {
	decode bcjFilter
	align  uint32
}{
	0x04: {bcjX86, 1},
	0x05: {bcjPowerPC, 4},
	0x06: {bcjIA64, 16},
	0x07: {bcjARM, 4},
	0x08: {bcjARMThumb, 2},
	0x09: {bcjSPARC, 4},
	0x0a: {bcjARM64, 4},
	0x0b: {bcjRISCV, 2},
}

// bcjX86 converts CALL (e8) and JMP (e9) with an operand of 32 bits, of which the
// highest byte is 00 or ff.
func bcjX86(b []byte, start uint32) {
	far := func(c byte) bool { return c != 0x00 && c != 0xff }
	// unconverted has a bit for each of the last three bytes that was an opcode and
	// was not converted, 1 for the last one: the operand may be in the middle of one
	// that the encoder has left alone.
	unconverted := uint32(0)
	for i := 0; i+5 <= len(b); {
		if b[i]&0xfe != 0xe8 {
			unconverted = unconverted << 1 & 7
			i++
			continue
		}
		k := bits.Len32(unconverted)
		one := unconverted&(unconverted-1) == 0
		if far(b[i+4]) || !one || k > 0 && !far(b[i+4-k]) {
			unconverted = (unconverted<<1 | 1) & 7
			i++
			continue
		}
		addr := binary.LittleEndian.Uint32(b[i+1:])
		for {
			addr -= start + uint32(i) + 5
			if k == 0 || far(byte(addr>>(24-8*k))) {
				break
			}
			addr ^= 1<<(32-8*k) - 1
		}
		binary.LittleEndian.PutUint32(b[i+1:], uint32(int32(addr<<7)>>7)) // 25 bits and their sign
		unconverted = 0
		i += 5
	}
}

// bcjPowerPC converts bl.
func bcjPowerPC(b []byte, start uint32) {
	for i := 0; i+4 <= len(b); i += 4 {
		v := binary.BigEndian.Uint32(b[i:])
		if v&0xfc000003 == 0x48000001 {
			addr := v&0x03fffffc - (start + uint32(i))
			binary.BigEndian.PutUint32(b[i:], 0x48000001|addr&0x03fffffc)
		}
	}
}

// bcjIA64 converts the branches with an address relative to IP in the three slots of 41
// bits of each bundle.
func bcjIA64(b []byte, start uint32) {
	// slots has a bit for each slot that may be a branch, by the template of the bundle.
	const slots = "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" +
		"\x04\x04\x06\x06\x00\x00\x07\x07\x04\x04\x00\x00\x04\x04\x00\x00"
	for i := 0; i+16 <= len(b); i += 16 {
		for slot := range 3 {
			if slots[b[i]&0x1f]>>slot&1 == 0 {
				continue
			}
			first := 5 + 41*slot // bit in the bundle
			p := b[i+first/8:][:6]
			v := uint64(binary.LittleEndian.Uint32(p)) | uint64(binary.LittleEndian.Uint16(p[4:]))<<32
			in := v >> (first % 8)
			if in>>37&0xf != 5 || in>>9&7 != 0 {
				continue
			}
			addr := uint32(in>>13&0xfffff | in>>36&1<<20)
			addr = (addr<<4 - (start + uint32(i))) >> 4
			in &^= 0x8fffff << 13
			in |= uint64(addr&0xfffff)<<13 | uint64(addr>>20&1)<<36
			v = v&(1<<(first%8)-1) | in<<(first%8)
			binary.LittleEndian.PutUint32(p, uint32(v))
			binary.LittleEndian.PutUint16(p[4:], uint16(v>>32))
		}
	}
}

// bcjARM converts BL without a condition.
func bcjARM(b []byte, start uint32) {
	for i := 0; i+4 <= len(b); i += 4 {
		v := binary.LittleEndian.Uint32(b[i:])
		if v>>24 == 0xeb {
			addr := v - (start+uint32(i)+8)>>2
			binary.LittleEndian.PutUint32(b[i:], 0xeb<<24|addr&0xffffff)
		}
	}
}

// bcjARMThumb converts the pair of instructions of 16 bits that is BL.
func bcjARMThumb(b []byte, start uint32) {
	for i := 0; i+4 <= len(b); i += 2 {
		hi, lo := binary.LittleEndian.Uint16(b[i:]), binary.LittleEndian.Uint16(b[i+2:])
		if hi>>11 == 0x1e && lo>>11 == 0x1f {
			addr := uint32(hi&0x7ff)<<11 | uint32(lo&0x7ff)
			addr -= (start + uint32(i) + 4) >> 1
			binary.LittleEndian.PutUint16(b[i:], 0xf000|uint16(addr>>11)&0x7ff)
			binary.LittleEndian.PutUint16(b[i+2:], 0xf800|uint16(addr)&0x7ff)
			i += 2
		}
	}
}

// bcjSPARC converts call with an address of 22 bits and their sign.
func bcjSPARC(b []byte, start uint32) {
	for i := 0; i+4 <= len(b); i += 4 {
		v := binary.BigEndian.Uint32(b[i:])
		if v>>22 == 0x40000000>>22 || v>>22 == 0x7fc00000>>22 {
			addr := v - (start+uint32(i))>>2
			addr = uint32(int32(addr<<9)>>9) & 0x3fffffff
			binary.BigEndian.PutUint32(b[i:], 0x40000000|addr)
		}
	}
}

// bcjARM64 converts BL, and ADRP within 512 MiB.
func bcjARM64(b []byte, start uint32) {
	for i := 0; i+4 <= len(b); i += 4 {
		v := binary.LittleEndian.Uint32(b[i:])
		pc := start + uint32(i)
		switch {
		case v>>26 == 0x25: // BL
			v = 0x25<<26 | (v-pc>>2)&0x03ffffff
		case v&0x9f000000 == 0x90000000: // ADRP
			page := v>>29&3 | v>>3&0x1ffffc
			if (page+0x20000)&0x1c0000 != 0 {
				continue
			}
			page -= pc >> 12
			v = v&0x9000001f | page&3<<29 | page&0x3fffc<<3 | -(page&0x20000)&0xe00000
		default:
			continue
		}
		binary.LittleEndian.PutUint32(b[i:], v)
	}
}

// bcjRISCV converts JAL with the link register x1 or x5, and the pair of AUIPC and an
// instruction that uses its result: the encoder stores the absolute address of the
// pair, big-endian, behind an AUIPC to x2, which the compiler does not make. What
// looked like that before became another AUIPC pair, to x0 or x2.
func bcjRISCV(b []byte, start uint32) {
	for i := 0; i+8 <= len(b); i += 2 {
		switch pc := start + uint32(i); {
		case b[i] == 0xef && b[i+1]&0x0d == 0:
			riscvJAL(b[i:i+4], pc)
			i += 2
		case b[i]&0x7f == 0x17:
			i += riscvAUIPC(b[i:i+8], pc) - 2
		}
	}
}

// riscvJAL converts the JAL in b. Bits 20 to 1 of the address are in the order of the
// number behind the register, not in that of the instruction.
func riscvJAL(b []byte, pc uint32) {
	addr := uint32(b[1]&0xf0)<<13 | uint32(b[2])<<9 | uint32(b[3])<<1
	addr -= pc
	v := addr&0xff000 | addr>>11&1<<20 | addr>>1&0x3ff<<21 | addr>>20&1<<31
	binary.LittleEndian.PutUint32(b, v|uint32(b[1]&0x0f)<<8|0xef)
}

// riscvAUIPC converts the pair at the start of b and returns how many bytes are dealt with.
func riscvAUIPC(b []byte, pc uint32) int {
	v, next := binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:])
	if v&0xe80 != 0 { // neither to x0 nor to x2: only a fake of the encoder's matters
		if next&3 != 3 || v>>7&0x1f != next>>15&0x1f {
			return 6
		}
		addr := v&0xfffff000 + next>>20
		v, next = 0x17|2<<7|next<<12, addr
	} else {
		reg := v >> 27
		// The encoder's: AUIPC to x2, above it the low bits of the second instruction,
		// two ones as it is 32 bits long, whose base register is neither x0 nor x2.
		if v&0x3fff != 3<<12|2<<7|0x17 || reg&^2 == 0 {
			return 4
		}
		addr := binary.BigEndian.Uint32(b[4:]) - pc
		v, next = 0x17|reg<<7|(addr+0x800)&0xfffff000, v>>12|addr<<20
	}
	binary.LittleEndian.PutUint32(b, v)
	binary.LittleEndian.PutUint32(b[4:], next)
	return 8
}
