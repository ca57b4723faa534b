package codec

import (
	"errors"
	"math/bits"
	"sync"
)

// A code table turns the next bits of a stream into an entry. It has an entry for each
// value of so many bits, its root, and where a code is longer this entry is a link to a
// further table behind, with one for each value of so many of the bits that follow.
//
// An entry holds what there is to know of a symbol:
//
//	bits  0-7   how many bits it has: the code, and extra bits
//	bits  8-11  of these the code alone, behind a link less the root; of a link how
//	            many bits choose from the further table
//	bits 16-30  the literal, the base of the length or distance, or where the further
//	            table starts
//
// and flags. An entry that is special, but neither an end nor a link, is of a code that
// no stream may hold.
const (
	entryEnd     = 1 << 13 // end of block; special too
	entryLink    = 1 << 14 // special too
	entrySpecial = 1 << 15 // not a literal, length or distance
	entryLiteral = 1 << 31

	entryBase = 16 // lowest bit of the base
)

// entryValue returns the length or distance of e, whose code is next in buf.
func entryValue(e uint32, buf uint64) int {
	return int(e>>entryBase) + int(buf&(1<<(e&63)-1)>>(e>>8&63))
}

// linkedEntry returns the index of the entry to which the link e leads, when the bits
// behind the root are next in buf. The caller masks it.
func linkedEntry(e uint32, buf uint64) uint32 {
	return e>>entryBase + uint32(buf)&(1<<(e>>8&15)-1)
}

// RFC 1951, 3.2.5 to 3.2.7.
const (
	maxCodeBits    = 15
	maxLitlenCodes = 286 // fixed blocks have codes for two more, which have no meaning
	maxDistCodes   = 30  // likewise
	numPrecodes    = 19
	endOfBlock     = 256
)

// The roots are those that measured best. With them a complete code needs tables of at
// most 2340 and 400 entries, by zlib's examples/enough.c for 286 and 30 symbols. The
// sizes are powers of two so that an index can be masked, which costs less than to check
// it.
const (
	litlenBits  = 11
	litlenSize  = 1 << 12
	distBits    = 8
	distSize    = 1 << 9
	precodeBits = 7 // the longest code
)

// codeTables are the codes of a block.
type codeTables struct {
	litlen [litlenSize]uint32
	dist   [distSize]uint32
}

var (
	errOverSubscribed = errors.New("over-subscribed code")
	errIncomplete     = errors.New("incomplete code")
)

// litlenSymbols, distSymbols and precodeSymbols are the entries of all symbols, without the
// lengths of their codes.
var (
	litlenSymbols = func() (s [288]uint32) {
		for i := range endOfBlock {
			s[i] = entryLiteral | uint32(i)<<entryBase
		}
		s[endOfBlock] = entrySpecial | entryEnd
		base := uint32(3)
		for i := range uint32(28) {
			extra := max(i/4, 1) - 1
			s[endOfBlock+1+i] = base<<entryBase | extra
			base += 1 << extra
		}
		s[285] = 258 << entryBase
		s[286], s[287] = entrySpecial, entrySpecial
		return s
	}()
	distSymbols = func() (s [32]uint32) {
		base := uint32(1)
		for i := range uint32(maxDistCodes) {
			extra := max(i/2, 1) - 1
			s[i] = base<<entryBase | extra
			base += 1 << extra
		}
		s[30], s[31] = entrySpecial, entrySpecial
		return s
	}()
	precodeSymbols = func() (s [numPrecodes]uint32) {
		for i := range s {
			s[i] = uint32(i) << entryBase
		}
		return s
	}()
)

// fixedTables returns the tables of RFC 1951, 3.2.6.
var fixedTables = sync.OnceValue(func() *codeTables {
	var litlen [288]uint8
	for i := range litlen {
		switch {
		case i < 144:
			litlen[i] = 8
		case i < 256:
			litlen[i] = 9
		case i < 280:
			litlen[i] = 7
		default:
			litlen[i] = 8
		}
	}
	var dist [32]uint8
	for i := range dist {
		dist[i] = 5
	}
	t := new(codeTables)
	if buildTable(t.litlen[:], litlenBits, litlen[:], litlenSymbols[:]) != nil || buildTable(t.dist[:], distBits, dist[:], distSymbols[:]) != nil {
		panic("inflate: fixed codes are wrong")
	}
	return t
})

// buildTable fills table, with root bits, for the code that has the lengths lens: each at
// most 15, and 0 where a symbol has no code. As in zlib (inftrees.c, inflate_table) a
// code must be complete, or have one symbol of one bit, or none.
func buildTable(table []uint32, root int, lens []uint8, symbols []uint32) error {
	var count, next [maxCodeBits + 1]uint16
	for _, n := range lens {
		count[n&15]++
	}
	used, room := uint16(0), 1
	for n := 1; n <= maxCodeBits; n++ {
		next[n] = used
		used += count[n]
		room = 2*room - int(count[n])
		if room < 0 {
			return errOverSubscribed
		}
	}
	var sorted [288]uint16 // symbols in the order of their codes
	for sym, n := range lens {
		if n != 0 {
			sorted[next[n&15]] = uint16(sym)
			next[n&15]++
		}
	}
	if room == 0 {
		fillTable(table, root, symbols, sorted[:used], &count)
		return nil
	}
	if used > 1 || used != count[1] {
		return errIncomplete
	}
	for i := range table[:1<<root] {
		table[i] = entrySpecial | 1
		if used == 1 && i&1 == 0 {
			table[i] = codeEntry(symbols[sorted[0]], 1)
		}
	}
	return nil
}

// fillTable fills table for a complete code: count has how many codes there are of each
// length, and sorted which symbols they are of, in the order of the codes.
func fillTable(table []uint32, root int, symbols []uint32, sorted []uint16, count *[maxCodeBits + 1]uint16) {
	// A table for codes of up to n bits is that for n-1, twice, and the codes of n bits.
	code := 0
	for n := 1; n <= root; n++ {
		for _, sym := range sorted[:count[n]] {
			table[code] = codeEntry(symbols[sym], n)
			code = nextCode(code, n)
		}
		sorted = sorted[count[n]:]
		if n < root {
			copy(table[1<<n:2<<n], table[:1<<n])
		}
	}
	start, size, prefix := 1<<root, 0, -1
	for n := root + 1; len(sorted) > 0; n++ {
		for i, sym := range sorted[:count[n]] {
			if code&(1<<root-1) != prefix {
				prefix = code & (1<<root - 1)
				start += size
				b := furtherBits(root, n, int(count[n])-i, count)
				size = 1 << b
				table[prefix] = entrySpecial | entryLink | uint32(start)<<entryBase | uint32(b)<<8
			}
			e := codeEntry(symbols[sym], n-root)
			for k := code >> root; k < size; k += 1 << (n - root) {
				table[start+k] = e
			}
			code = nextCode(code, n)
		}
		sorted = sorted[count[n]:]
	}
}

// codeEntry returns the entry of a symbol whose code has n bits.
func codeEntry(symbol uint32, n int) uint32 { return symbol + uint32(n)<<8 + uint32(n) }

// nextCode returns the code of n bits that follows code, 0 after the last. Streams hold a
// code from its first bit on, so the first is the lowest, and it counts from the top.
func nextCode(code, n int) int {
	top := bits.Len(uint(code ^ (1<<n - 1))) // the highest bit that is 0, counted from 1
	if top == 0 {
		return 0
	}
	return code&(1<<(top-1)-1) | 1<<(top-1)
}

// furtherBits returns how many bits a table behind a link needs, whose first code has n
// bits. Of these codes there are left, and count has how many of the longer ones. Codes
// behind one link follow each other, so it is full when they fill it.
func furtherBits(root, n, left int, count *[maxCodeBits + 1]uint16) int {
	room := 1<<(n-root) - left
	for room > 0 && n < maxCodeBits {
		n++
		room = 2*room - int(count[n])
	}
	return n - root
}
