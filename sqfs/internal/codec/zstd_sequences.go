package codec

import (
	"encoding/binary"
	"math"
	"math/bits"
)

// Codes of lengths and offsets: RFC 8878, 3.1.1.3.2.1.1. A code stands for a range that
// begins with its base and has as many bits as are added.
const (
	lengthCodes = 36 // of literals
	matchCodes  = 53
	offsetCodes = 32
)

var (
	lengthBits = [lengthCodes]uint8{16: 1, 1, 1, 1, 2, 2, 3, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}
	matchBits  = [matchCodes]uint8{32: 1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}
	lengthBase [lengthCodes]uint32
	matchBase  [matchCodes]uint32 // of the length less 3
	lengthCode [64]uint8
	matchCode  [128]uint8
)

// The distributions that need not be sent: RFC 8878, 3.1.1.3.2.2. A -1 is a 1 whose state
// is at the end of the table.
var (
	lengthDefault = fseNormal{log: 6, norm: [matchCodes]int16{4, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 2, 1, 1, 1, 1, 1, -1, -1, -1, -1}}
	matchDefault  = fseNormal{log: 6, norm: [matchCodes]int16{1, 4, 3, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1}}
	offsetDefault = fseNormal{log: 5, norm: [matchCodes]int16{1, 1, 1, 1, 1, 1, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1}}
)

// defaults are the tables of those, in the order of the modes in a block.
var defaults [3]fseTable

func init() {
	fill := func(base []uint32, width []uint8, code []uint8) {
		for c := 1; c < len(base); c++ {
			base[c] = base[c-1] + 1<<width[c-1]
		}
		for v, c := 0, 0; v < len(code); v++ {
			for c+1 < len(base) && base[c+1] <= uint32(v) {
				c++
			}
			code[v] = uint8(c)
		}
	}
	fill(lengthBase[:], lengthBits[:], lengthCode[:])
	fill(matchBase[:], matchBits[:], matchCode[:])
	defaults[0].build(&lengthDefault)
	defaults[1].build(&offsetDefault)
	defaults[2].build(&matchDefault)
}

// codeOfLength returns the code of a number of literals.
func codeOfLength(n uint32) uint8 {
	if n < 64 {
		return lengthCode[n]
	}
	return min(uint8(bits.Len32(n)-1)+19, lengthCodes-1) // a block of nothing else has one more than the last
}

// codeOfMatch returns the code of the length of a match.
func codeOfMatch(n uint32) uint8 {
	if n -= 3; n < 128 {
		return matchCode[n]
	}
	return uint8(bits.Len32(n)-1) + 36
}

// codeOfOffset returns the code of an offset as a sequence has it.
func codeOfOffset(v uint32) uint8 { return uint8(bits.Len32(v) - 1) }

// fseNormal is a distribution: probabilities that sum up to 1 << log, a -1 counting as 1.
type fseNormal struct {
	norm [matchCodes]int16
	log  uint
}

// fseTable encodes symbols by tabled asymmetric numeral systems. States are between
// 1 << log and 2 << log. A symbol that has n of the states of the table is encoded by
// dividing the state by about size/n: its low bits are sent, and what remains says which
// of the n states is next.
type fseTable struct {
	next [1 << 9]uint16 // states, those of a symbol together
	sym  [matchCodes]struct {
		bits uint32 // bits to send << 16, less the state from which it is one more
		find int32  // index in next, less the number of states of the symbol
	}
}

// build makes the table: RFC 8878, 4.1.1, says which state has which symbol.
func (t *fseTable) build(d *fseNormal) {
	var symbol [1 << 9]uint8
	size := 1 << d.log
	last := size - 1
	for s, n := range d.norm {
		if n == -1 {
			symbol[last] = uint8(s)
			last--
		}
	}
	for s, pos := 0, 0; s < len(d.norm); s++ {
		for range max(d.norm[s], 0) {
			symbol[pos] = uint8(s)
			for pos = (pos + size>>1 + size>>3 + 3) & (size - 1); pos > last; {
				pos = (pos + size>>1 + size>>3 + 3) & (size - 1)
			}
		}
	}
	var at [matchCodes]int
	total := 0
	for s, n := range d.norm {
		at[s] = total
		if n == 0 {
			continue
		}
		if n = max(n, -n); n == 1 {
			t.sym[s].bits = uint32(d.log<<16) - uint32(size)
		} else {
			most := d.log - uint(bits.Len16(uint16(n-1))-1)
			t.sym[s].bits = uint32(most<<16) - uint32(n)<<most
		}
		t.sym[s].find = int32(total - int(n))
		total += int(n)
	}
	for u, s := range symbol[:size] {
		t.next[at[s]] = uint16(size + u)
		at[s]++
	}
}

// first returns the state for the first symbol that is encoded, of which nothing is sent.
func (t *fseTable) first(s uint8) uint32 {
	sym := &t.sym[s]
	n := (sym.bits + 1<<15) >> 16
	return uint32(t.next[int32((n<<16-sym.bits)>>n)+sym.find])
}

// normalize makes a distribution of a histogram of at least two symbols.
func (d *fseNormal) normalize(count *[matchCodes]uint32, total uint32, most uint) {
	top := 0
	for s, n := range count {
		if n > 0 {
			top = s
		}
	}
	least := min(uint(bits.Len32(total)), uint(bits.Len32(uint32(top)))+1)
	d.log = min(max(uint(bits.Len32(total-1))-min(3, uint(bits.Len32(total-1))), least, 5), most)
	left, largest := int32(1)<<d.log, 0
	for s, n := range count {
		d.norm[s] = 0
		if n == 0 {
			continue
		}
		p := (uint64(n)<<(d.log+1) + uint64(total)) / uint64(2*total) // rounded
		d.norm[s] = int16(max(p, 1))
		left -= int32(d.norm[s])
		if d.norm[s] > d.norm[largest] {
			largest = s
		}
	}
	if left > 0 || -left < int32(d.norm[largest])/4 {
		d.norm[largest] += int16(left)
		return
	}
	for ; left < 0; left++ { // from whoever loses least
		best, loss := 0, math.MaxFloat64
		for s, n := range d.norm {
			if n > 1 {
				if l := float64(count[s]) / float64(n); l < loss {
					best, loss = s, l
				}
			}
		}
		d.norm[best]--
	}
}

// cost returns about how many bits << 8 the symbols of a histogram take.
func (d *fseNormal) cost(count *[matchCodes]uint32) uint64 {
	var sum uint64
	for s, n := range count {
		if n == 0 {
			continue
		}
		p := max(d.norm[s], -d.norm[s])
		if p == 0 {
			return math.MaxUint64
		}
		sum += uint64(n) * uint64(uint32(d.log)<<8-log2(uint32(p)))
	}
	return sum
}

// log2 returns the logarithm of v in units of 1/256; between powers of two it is a line.
func log2(v uint32) uint32 {
	n := uint32(bits.Len32(v)) - 1
	return n<<8 + v<<8>>n - 1<<8
}

// append appends the distribution: RFC 8878, 4.1.1.
func (d *fseNormal) append(out []byte) []byte {
	w := bitAppender{out: out}
	w.add(uint32(d.log-5), 4)
	left, limit, width := int32(1)<<d.log+1, int32(1)<<d.log, d.log+1
	zero := false
	for s := 0; left > 1; {
		if zero {
			run := 0
			for d.norm[s] == 0 {
				run++
				s++
			}
			for ; run >= 3; run -= 3 {
				w.add(3, 2)
			}
			w.add(uint32(run), 2)
		}
		n := int32(d.norm[s])
		s++
		short := 2*limit - 1 - left // so many values need a bit less
		left -= max(n, -n)
		zero = n == 0
		if n++; n >= limit {
			n += short
		}
		if n < short {
			w.add(uint32(n), width-1)
		} else {
			w.add(uint32(n), width)
		}
		for left < limit {
			width--
			limit >>= 1
		}
	}
	return w.flush()
}

// bitAppender appends bits, the lowest first.
type bitAppender struct {
	out  []byte
	bits uint64
	n    uint
}

func (w *bitAppender) add(v uint32, n uint) {
	w.bits |= uint64(v) << w.n
	for w.n += n; w.n >= 8; w.n -= 8 {
		w.out = append(w.out, byte(w.bits))
		w.bits >>= 8
	}
}

func (w *bitAppender) flush() []byte {
	if w.n > 0 {
		w.out = append(w.out, byte(w.bits))
	}
	return w.out
}

// sequenceCoder encodes sequences. It keeps tables, for want of a place on the stack.
type sequenceCoder struct {
	tables [3]fseTable
	normal fseNormal
	codes  [zstdBlock/3 + 1][3]uint8 // of each sequence: literals, offset, match
}

// encode appends the sequences section: RFC 8878, 3.1.1.3.2.
func (c *sequenceCoder) encode(out []byte, seqs []sequence) []byte {
	switch n := len(seqs); {
	case n < 128:
		out = append(out, byte(n))
	case n < 0x7f00:
		out = append(out, byte(n>>8+128), byte(n))
	default:
		out = append(out, 255, byte(n-0x7f00), byte((n-0x7f00)>>8))
	}
	if len(seqs) == 0 {
		return out
	}
	var count [3][matchCodes]uint32
	for i := range seqs {
		s := &seqs[i]
		code := [3]uint8{codeOfLength(s.lits), codeOfOffset(s.offset), codeOfMatch(s.match)}
		c.codes[i] = code
		count[0][code[0]]++
		count[1][code[1]]++
		count[2][code[2]]++
	}
	modes := len(out)
	out = append(out, 0)
	var tables [3]*fseTable
	for k, most := range [3]uint{9, 8, 9} {
		var mode byte
		out, mode, tables[k] = c.table(out, k, &count[k], uint32(len(seqs)), most)
		out[modes] |= mode << (6 - 2*k)
	}
	return c.stream(out, seqs, tables)
}

// table chooses how codes are encoded, and appends what a reader must know for it.
func (c *sequenceCoder) table(out []byte, k int, count *[matchCodes]uint32, n uint32, most uint) ([]byte, byte, *fseTable) {
	const predefined, rle, fse = 0, 1, 2
	if s := c.codes[0][k]; count[s] == n {
		if n > 2 {
			// The state has no bits: a table of one state.
			t := &c.tables[k]
			t.sym[s].bits, t.sym[s].find, t.next[0] = 0, 0, 0
			return append(out, s), rle, t
		}
		return out, predefined, &defaults[k]
	}
	standard := [3]*fseNormal{&lengthDefault, &offsetDefault, &matchDefault}[k].cost(count)
	if n >= 16 || standard == math.MaxUint64 {
		c.normal.normalize(count, n, most)
		sent := c.normal.append(out)
		if c.normal.cost(count)+uint64(len(sent)-len(out))<<11 < standard {
			c.tables[k].build(&c.normal)
			return sent, fse, &c.tables[k]
		}
	}
	return out, predefined, &defaults[k]
}

// stream appends the bits of the sequences, the last first. Of the 64 that are collected
// no more than 7 are left over each time, and up to 42 or 36 come.
func (c *sequenceCoder) stream(out []byte, seqs []sequence, t [3]*fseTable) []byte {
	lengths, offsets, matches := t[0], t[1], t[2]
	n := len(out)
	buf := out[:cap(out)]
	var acc uint64
	var have uint
	last := len(seqs) - 1
	code := c.codes[last]
	length, offset, match := lengths.first(code[0]), offsets.first(code[1]), matches.first(code[2])
	for i := last; i >= 0; i-- {
		s := &seqs[i]
		code := c.codes[i]
		if i < last {
			sym := &offsets.sym[code[1]]
			k := (offset + sym.bits) >> 16
			acc |= uint64(offset&(1<<k-1)) << (have & 63)
			have += uint(k)
			offset = uint32(offsets.next[(int32(offset>>k)+sym.find)&511])
			sym = &matches.sym[code[2]]
			k = (match + sym.bits) >> 16
			acc |= uint64(match&(1<<k-1)) << (have & 63)
			have += uint(k)
			match = uint32(matches.next[(int32(match>>k)+sym.find)&511])
			sym = &lengths.sym[code[0]]
			k = (length + sym.bits) >> 16
			acc |= uint64(length&(1<<k-1)) << (have & 63)
			have += uint(k)
			length = uint32(lengths.next[(int32(length>>k)+sym.find)&511])
		}
		acc |= uint64(s.lits-lengthBase[code[0]]) << (have & 63)
		have += uint(lengthBits[code[0]])
		binary.LittleEndian.PutUint64(buf[n:], acc)
		n += int(have >> 3)
		acc >>= have &^ 7 & 63
		have &= 7
		acc |= uint64(s.match-3-matchBase[code[2]]) << (have & 63)
		have += uint(matchBits[code[2]])
		acc |= uint64(s.offset-1<<code[1]) << (have & 63)
		have += uint(code[1])
		binary.LittleEndian.PutUint64(buf[n:], acc)
		n += int(have >> 3)
		acc >>= have &^ 7 & 63
		have &= 7
	}
	w := bitAppender{out: buf[:n], bits: acc, n: have}
	for _, s := range [3]struct {
		state uint32
		t     *fseTable
	}{{match, matches}, {offset, offsets}, {length, lengths}} {
		log := uint(0)
		if s.state > 0 {
			log = uint(bits.Len32(s.state)) - 1
		}
		w.add(s.state&(1<<log-1), log)
	}
	w.add(1, 1)
	return w.flush()
}
