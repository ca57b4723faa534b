package codec

import (
	"encoding/binary"
)

const (
	adlerMod = 65521

	// adlerWords is how many words of 8 bytes can be summed before the sums of sums, 16
	// bits for each of 8 columns, overflow: 255 * (23*22/2) is 64515.
	adlerWords = 23
)

// sumAdler returns the Adler-32 of b (RFC 1950, 8.2). It works on 8 bytes at a time, as
// eight sums and eight sums of sums, twice as fast as hash/adler32.
func sumAdler(b []byte) uint32 {
	const even = 0x00ff00ff00ff00ff
	const low = 0x0000ffff0000ffff
	s1, s2 := uint64(1), uint64(0)
	for len(b) >= 8 {
		k := min(len(b)/8, adlerWords)
		var a0, a1, p0, p1 uint64
		q := b[:8*k]
		b = b[8*k:]
		for len(q) >= 8 {
			v := binary.LittleEndian.Uint64(q)
			q = q[8:]
			p0 += a0
			p1 += a1
			a0 += v & even
			a1 += v >> 8 & even
		}
		p := p0&low + p0>>16&low + p1&low + p1>>16&low
		s2 += s1*uint64(8*k) + 8*(p&0xffffffff+p>>32)
		// weights 8, 6, 4, 2 of the columns in a0, and 7, 5, 3, 1 of those in a1
		s2 += 8*(a0&0xffff) + 6*(a0>>16&0xffff) + 4*(a0>>32&0xffff) + 2*(a0>>48)
		s2 += 7*(a1&0xffff) + 5*(a1>>16&0xffff) + 3*(a1>>32&0xffff) + a1>>48
		a := a0&low + a0>>16&low + a1&low + a1>>16&low
		s1 += a&0xffffffff + a>>32
		s1 %= adlerMod
		s2 %= adlerMod
	}
	for _, c := range b {
		s1 += uint64(c)
		s2 += s1
	}
	return uint32(s2%adlerMod<<16 | s1%adlerMod)
}
