package codec

import (
	"encoding/binary"
	"errors"
	"sync"
)

var (
	errTruncated = errors.New("stream ends early")
	errBlockType = errors.New("block of unknown type")
	errStored    = errors.New("stored block with a damaged length")
	errLengths   = errors.New("damaged code lengths")
	errSymbol    = errors.New("symbol without a meaning")
	errDistance  = errors.New("distance reaches before the data")
)

// inflate expands the deflate stream (RFC 1951) at the start of src into dst, and returns
// how many bytes it wrote to dst and how many of src the stream has. It refuses what
// zlib's inflate refuses. Distances may reach back 32 KiB, whatever window a zlib header
// declares, as in zlib without INFLATE_STRICT.
func inflate(dst, src []byte) (n, used int, err error) {
	z := inflaters.Get().(*inflater)
	z.src, z.dst = src, dst
	z.pos, z.out, z.buf, z.n = 0, 0, 0, 0
	err = z.blocks()
	if z.overrun() {
		err = errTruncated
	}
	z.align()
	n, used = z.out, z.pos
	z.src, z.dst = nil, nil
	inflaters.Put(z)
	return n, used, err
}

// inflater expands one stream.
//
// INVARIANT: the low n bits of buf are those of the stream before src[pos] that have not
// been used. Bits above may be set, but only to what src has there: then it does no harm
// to set them again.
type inflater struct {
	src, dst []byte
	pos      int // in src
	out      int // in dst
	buf      uint64
	n        uint

	lens    [maxLitlenCodes + maxDistCodes]uint8
	precode [1 << precodeBits]uint32
	own     codeTables
}

var inflaters = sync.Pool{New: func() any { return new(inflater) }}

// blocks expands blocks, the final one is the last.
func (z *inflater) blocks() error {
	for {
		z.refill()
		head := z.take(3)
		var err error
		switch head >> 1 {
		case 0:
			err = z.stored()
		case 1:
			err = z.compressed(fixedTables())
		case 2:
			if err = z.codes(); err == nil {
				err = z.compressed(&z.own)
			}
		default:
			err = errBlockType
		}
		if err != nil || head&1 != 0 {
			return err
		}
	}
}

// refill fills buf to at least 56 bits. Behind the end of src all bits are 0, and count
// in pos: overrun tells. They lead to no harm before: whatever they say, it ends when dst
// is full.
func (z *inflater) refill() {
	if len(z.src)-z.pos >= 8 {
		z.buf, z.pos, z.n = loadBits(z.src, z.buf, z.pos, z.n)
		return
	}
	for ; z.n < 56; z.n += 8 {
		if z.pos < len(z.src) {
			z.buf |= uint64(z.src[z.pos]) << z.n
		}
		z.pos++
	}
}

// loadBits fills buf to at least 56 bits, of which it has n, from src[pos:], where there are
// 8 bytes or more. Of n only the low 6 bits count.
func loadBits(src []byte, buf uint64, pos int, n uint) (uint64, int, uint) {
	return buf | binary.LittleEndian.Uint64(src[pos:pos+8])<<(n&63), pos + int(7-n>>3&7), n | 56
}

// take returns the next k bits.
func (z *inflater) take(k uint) uint {
	v := uint(z.buf) & (1<<k - 1)
	z.buf >>= k
	z.n -= k
	return v
}

// overrun reports whether bits behind the end of src have been used.
func (z *inflater) overrun() bool { return z.pos-int(z.n>>3) > len(z.src) }

// align drops the bits up to the next byte, and gives back the bytes in buf.
func (z *inflater) align() {
	z.pos -= int(z.n >> 3)
	z.buf, z.n = 0, 0
}

// stored copies a block that is not compressed.
func (z *inflater) stored() error {
	z.align()
	if len(z.src)-z.pos < 4 {
		return errTruncated
	}
	head := binary.LittleEndian.Uint32(z.src[z.pos:])
	size := int(head & 0xffff)
	if size != int(^head>>16) {
		return errStored
	}
	z.pos += 4
	if size > len(z.src)-z.pos {
		return errTruncated
	}
	if size > len(z.dst)-z.out {
		return errTooLong
	}
	copy(z.dst[z.out:], z.src[z.pos:z.pos+size])
	z.pos += size
	z.out += size
	return nil
}

// codes reads the codes of a block. buildTable lets a precode of a single symbol pass, which
// zlib refuses, but nothing can come of it: all lengths are the same then, and no code
// of 257 to 286 symbols of one length is complete.
func (z *inflater) codes() error {
	litlens, dists, precodes := z.take(5)+257, z.take(5)+1, z.take(4)+4
	if litlens > maxLitlenCodes || dists > maxDistCodes {
		return errLengths
	}
	var lens [numPrecodes]uint8
	for _, sym := range precodeOrder[:precodes] {
		if z.n < 3 {
			z.refill()
		}
		lens[sym] = uint8(z.take(3))
	}
	if err := buildTable(z.precode[:], precodeBits, lens[:], precodeSymbols[:]); err != nil {
		return err
	}
	if err := z.lengths(z.lens[:litlens+dists]); err != nil {
		return err
	}
	if z.lens[endOfBlock] == 0 {
		return errLengths
	}
	if err := buildTable(z.own.litlen[:], litlenBits, z.lens[:litlens], litlenSymbols[:]); err != nil {
		return err
	}
	return buildTable(z.own.dist[:], distBits, z.lens[litlens:litlens+dists], distSymbols[:])
}

// precodeOrder is the order of the lengths of the precode, RFC 1951, 3.2.7.
var precodeOrder = [numPrecodes]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// lengths reads the lengths of both codes of a block. Repeats go on from one to the other.
func (z *inflater) lengths(lens []uint8) error {
	for k := 0; k < len(lens); {
		if z.n < precodeBits+7 {
			z.refill()
		}
		e := z.precode[z.buf&(1<<precodeBits-1)]
		z.take(uint(e & 63))
		repeat, length := 0, uint8(0)
		switch sym := uint8(e >> entryBase); {
		case e&entrySpecial != 0:
			return errLengths
		case sym < 16:
			lens[k] = sym
			k++
			continue
		case sym == 16:
			if k == 0 {
				return errLengths
			}
			repeat, length = 3+int(z.take(2)), lens[k-1]
		case sym == 17:
			repeat = 3 + int(z.take(3))
		default:
			repeat = 11 + int(z.take(7))
		}
		if repeat > len(lens)-k {
			return errLengths
		}
		for range repeat {
			lens[k] = length
			k++
		}
	}
	return nil
}

// compressed expands a block that has the codes t.
func (z *inflater) compressed(t *codeTables) error {
	end, err := z.fast(t)
	if end || err != nil {
		return err
	}
	return z.slow(t)
}

const (
	// fastIn is how much of src a step of fast may load: 8 bytes, twice.
	fastIn = 16

	// stepBits is how many bits a step of fast needs: a length and its extra bits, 15+5,
	// and distBits to look up its distance. A distance needs as many, 15+13.
	stepBits = 28

	// matchStep is how much of a match is copied at once. Of those in /usr 98% have no
	// more.
	matchStep = 40
)

// fast expands a block until less than fastIn bytes of src are left, or none of dst, and
// reports whether the block has ended. It has nearly all the work to do, one symbol in
// each step.
//
// Of n only the low 8 bits count here, which saves to clear the others of each entry.
// The entry of the next symbol is looked up early: before the match is copied.
//
// Measured and not kept: two and three literals in a step, steps without a branch between
// literal and length, tables of 10 and 12 bits, copies of 16 bytes (all as fast or
// slower), and a second load in every step (6% slower).
func (z *inflater) fast(t *codeTables) (end bool, err error) {
	// A capacity that is the length is one value less to keep in a register.
	src, dst := z.src[:len(z.src):len(z.src)], z.dst[:len(z.dst):len(z.dst)]
	pos, out, buf, n := z.pos, z.out, z.buf, z.n
	if len(src)-pos < fastIn {
		return false, nil
	}
	buf, pos, n = loadBits(src, buf, pos, n)
	e := t.litlen[buf&(1<<litlenBits-1)]
	for pos+fastIn <= len(src) && out < len(dst) {
		if e&entryLiteral != 0 {
			dst[out] = byte(e >> entryBase)
			out++
			buf >>= e & 63
			n -= uint(e)
			if uint8(n) < stepBits {
				buf, pos, n = loadBits(src, buf, pos, n)
			}
			e = t.litlen[buf&(1<<litlenBits-1)]
			continue
		}
		if e&entrySpecial != 0 {
			if e&entryLink != 0 {
				buf >>= litlenBits
				n -= litlenBits
				e = t.litlen[linkedEntry(e, buf)&(litlenSize-1)]
				if e&(entryLiteral|entrySpecial) != 0 {
					continue // with e: pos and out are what they were
				}
			} else {
				buf >>= e & 63
				n -= uint(e)
				end = true
				if e&entryEnd == 0 {
					err = errSymbol
				}
				break
			}
		}
		length := entryValue(e, buf)
		buf >>= e & 63
		n -= uint(e)

		e = t.dist[buf&(1<<distBits-1)]
		if uint8(n) < stepBits {
			buf, pos, n = loadBits(src, buf, pos, n)
		}
		if e&entrySpecial != 0 {
			if e&entryLink != 0 {
				buf >>= distBits
				n -= distBits
				e = t.dist[linkedEntry(e, buf)&(distSize-1)]
			}
			if e&entrySpecial != 0 {
				return false, errSymbol
			}
		}
		dist := entryValue(e, buf)
		buf >>= e & 63
		n -= uint(e)

		buf, pos, n = loadBits(src, buf, pos, n)
		e = t.litlen[buf&(1<<litlenBits-1)]

		from := out - dist
		if from < 0 {
			return false, errDistance
		}
		switch {
		case length > len(dst)-out-matchStep:
			if length > len(dst)-out {
				return false, errTooLong
			}
			for k := range length {
				dst[out+k] = dst[from+k]
			}
		case dist < 8:
			repeatBytes(dst[from:], dist, length)
		default:
			to, old := (*[matchStep]byte)(dst[out:out+matchStep]), (*[matchStep]byte)(dst[from:from+matchStep])
			*(*[8]byte)(to[0:]) = *(*[8]byte)(old[0:])
			*(*[8]byte)(to[8:]) = *(*[8]byte)(old[8:])
			*(*[8]byte)(to[16:]) = *(*[8]byte)(old[16:])
			*(*[8]byte)(to[24:]) = *(*[8]byte)(old[24:])
			*(*[8]byte)(to[32:]) = *(*[8]byte)(old[32:])
			for k := matchStep; k < length; k += 8 {
				*(*[8]byte)(dst[out+k : out+k+8]) = *(*[8]byte)(dst[from+k : from+k+8])
			}
		}
		out += length
	}
	z.pos, z.out, z.buf, z.n = pos, out, buf, n&63
	return end, err
}

// repeatBytes writes length bytes at b[dist:], over and over the dist bytes before. dist is
// less than 8. It may write 7 bytes more.
func repeatBytes(b []byte, dist, length int) {
	d := 8 * uint(dist)
	v := binary.LittleEndian.Uint64(b) & (1<<d - 1)
	v |= v << d
	v |= v << (2 * d)
	v |= v << (4 * d)
	step := 8 - 8%dist // what of v is whole
	for k := dist; k < dist+length; k += step {
		binary.LittleEndian.PutUint64(b[k:k+8], v)
	}
}

// slow expands the rest of a block, with care for both ends.
func (z *inflater) slow(t *codeTables) error {
	for {
		z.refill() // enough for a length and a distance, 48 bits
		e := t.litlen[z.buf&(1<<litlenBits-1)]
		if e&entryLink != 0 {
			z.take(litlenBits)
			e = t.litlen[linkedEntry(e, z.buf)&(litlenSize-1)]
		}
		if e&entryLiteral != 0 {
			z.take(uint(e & 63))
			if z.out == len(z.dst) {
				return errTooLong
			}
			z.dst[z.out] = byte(e >> entryBase)
			z.out++
			continue
		}
		length := entryValue(e, z.buf)
		z.take(uint(e & 63))
		if e&entryEnd != 0 {
			return nil
		}
		if e&entrySpecial != 0 {
			return errSymbol
		}

		e = t.dist[z.buf&(1<<distBits-1)]
		if e&entryLink != 0 {
			z.take(distBits)
			e = t.dist[linkedEntry(e, z.buf)&(distSize-1)]
		}
		dist := entryValue(e, z.buf)
		z.take(uint(e & 63))
		switch {
		case e&entrySpecial != 0:
			return errSymbol
		case dist > z.out:
			return errDistance
		case length > len(z.dst)-z.out:
			return errTooLong
		}
		for range length {
			z.dst[z.out] = z.dst[z.out-dist]
			z.out++
		}
	}
}
