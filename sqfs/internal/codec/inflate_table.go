package codec

import (
	"errors"
	"math/bits"
	"sync"
)

// A Huffman table turns the next bits of a stream into an entry. The first rootBits of
// them are the index; where a code is longer the entry there is a link to a further
// table behind, indexed by the bits that follow.
//
// An entry holds all that there is to know of a symbol:
//
//	bits  0-7   how many bits to drop: the code and its extra bits
//	bits  8-11  the code alone; for a link how many bits index the further table
//	bit  13     entryEnd, with entrySpecial
//	bit  14     entryLink, with entrySpecial
//	bit  15     entrySpecial: neither a literal, a length nor a distance
//	bits 16-30  the literal, the base of the length or distance, or where the linked
//	            table starts
//	bit  31     entryLiteral
//
// A special entry that is neither end nor link is a code that no stream may hold.
const (
	entryEnd     = 1 << 13
	entryLink    = 1 << 14
	entrySpecial = 1 << 15
	entryBase    = 16
	entryLiteral = 1 << 31
)

// RFC 1951, 3.2.5 to 3.2.7.
const (
	maxCodeBits    = 15
	maxLitlenCodes = 286 // two more have codes in fixed blocks, and must not occur
	maxDistCodes   = 30  // likewise
	numPrecodes    = 19
	endOfBlock     = 256
)

// The sizes leave room for every linked table that a complete code can need: zlib's
// enough.c counts 2342 entries for 286 symbols and 11 bits, 402 for 30 and 8, and 592
// for 30 and 9. That they are powers of two lets the index be masked, which costs
// less than to check it.
const (
	litlenBits  = 11
	litlenSize  = 1 << 12
	distBits    = 8
	distSize    = 1 << 9
	precodeBits = 7 // no precode is longer
	precodeSize = 1 << precodeBits
)

// tables are the codes of a block.
type tables struct {
	litlen [litlenSize]uint32
	dist   [distSize]uint32
}

var (
	errOverSubscribed = errors.New("over-subscribed code")
	errIncomplete     = errors.New("incomplete code")
)

// litlenSymbols, distSymbols and precodeSymbols are the entries of all symbols, but for the
// length of the code.
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

// fixed returns the tables of RFC 1951, 3.2.6.
var fixed = sync.OnceValue(func() *tables {
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
	t := new(tables)
	if build(t.litlen[:], litlenBits, litlen[:], litlenSymbols[:]) != nil || build(t.dist[:], distBits, dist[:], distSymbols[:]) != nil {
		panic("inflate: fixed codes are wrong")
	}
	return t
})

// build fills table for the code whose lengths are lens, each below 16, 0 for symbols without a
// code. As in zlib (inftrees.c, inflate_table) a code must be complete, or be one
// code of one bit, or nothing; what is then left are entries that no stream may hold.
func build(table []uint32, rootBits int, lens []uint8, symbols []uint32) error {
	var count, next [maxCodeBits + 1]uint16
	for _, n := range lens {
		count[n&15]++
	}
	used, left := uint16(0), 1
	for n := 1; n <= maxCodeBits; n++ {
		next[n] = used
		used += count[n]
		left = left<<1 - int(count[n])
		if left < 0 {
			return errOverSubscribed
		}
	}
	if left > 0 && (used > 1 || used != count[1]) {
		return errIncomplete
	}
	var sorted [288]uint16 // symbols in the order of their codes
	for sym, n := range lens {
		if n != 0 {
			sorted[next[n&15]] = uint16(sym)
			next[n&15]++
		}
	}
	if left > 0 {
		for i := range table[:1<<rootBits] {
			table[i] = entrySpecial | 1
		}
		if used == 1 {
			e := symbols[sorted[0]] + 1<<8 + 1
			for i := 0; i < 1<<rootBits; i += 2 {
				table[i] = e
			}
		}
		return nil
	}

	// Streams hold codes from their first bit on, at the lowest bit of the index, so
	// code counts up from the top. A table for codes of n bits is two copies of the
	// one for n-1, and codes of n bits.
	code, k, n := 0, 0, 1
	for ; n <= rootBits; n++ {
		for end := k + int(count[n]); k < end; k++ {
			table[code] = symbols[sorted[k]] + uint32(n)<<8 + uint32(n)
			code = after(code, n)
		}
		if n < rootBits {
			copy(table[1<<n:2<<n], table[:1<<n])
		}
	}
	if k == int(used) {
		return nil
	}
	start, size, prefix := 1<<rootBits, 0, -1
	for ; n <= maxCodeBits; n++ {
		for c := int(count[n]); c > 0; c-- {
			if code&(1<<rootBits-1) != prefix {
				prefix = code & (1<<rootBits - 1)
				start += size
				b := n - rootBits
				for room := 1<<b - c; room > 0 && b+rootBits < maxCodeBits; {
					b++
					room = room<<1 - int(count[b+rootBits])
				}
				size = 1 << b
				table[prefix] = uint32(start)<<entryBase | entrySpecial | entryLink | uint32(b)<<8 | uint32(rootBits)
			}
			e := symbols[sorted[k]] + uint32(n-rootBits)<<8 + uint32(n-rootBits)
			for i := code >> rootBits; i < size; i += 1 << (n - rootBits) {
				table[start+i] = e
			}
			k++
			code = after(code, n)
		}
	}
	return nil
}

// after returns the code of n bits after code; both have their first bit lowest. The
// one after the last is 0.
func after(code, n int) int {
	ones := bits.Len(uint(code ^ (1<<n - 1))) // of these bits the top one is 0, and all above are 1
	if ones == 0 {
		return 0
	}
	return code&(1<<(ones-1)-1) | 1<<(ones-1)
}
