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

// inflater expands one stream. Between its functions the low n bits of buf are those that
// come in the stream before src[pos]. Bits above may be set, to what src has there.
type inflater struct {
	src, dst []byte
	pos      int // in src
	out      int // in dst
	buf      uint64
	n        uint

	lens    [maxLitlenCodes + maxDistCodes + 1 + 138]uint8
	precode [precodeSize]uint32
	own     tables
}

var inflaters = sync.Pool{New: func() any { return new(inflater) }}

// inflate expands the deflate stream (RFC 1951) at the start of src into dst, and returns
// how many bytes it wrote to dst and how many of src the stream has.
func inflate(dst, src []byte) (n, used int, err error) {
	z := inflaters.Get().(*inflater)
	z.src, z.dst = src[:len(src):len(src)], dst[:len(dst):len(dst)]
	z.pos, z.out, z.buf, z.n = 0, 0, 0, 0
	err = z.blocks()
	if err == nil && z.overrun() {
		err = errTruncated
	}
	z.align()
	n, used = z.out, z.pos
	z.src, z.dst = nil, nil
	inflaters.Put(z)
	return n, used, err
}

// blocks expands blocks, up to the final one.
func (z *inflater) blocks() error {
	for {
		z.refill()
		head := z.take(3)
		var err error
		switch head >> 1 {
		case 0:
			err = z.stored()
		case 1:
			err = z.block(fixed())
		case 2:
			if err = z.codes(); err == nil {
				err = z.block(&z.own)
			}
		default:
			err = errBlockType
		}
		if err != nil {
			return err
		}
		if head&1 != 0 {
			return nil
		}
	}
}

// refill fills buf to at least 56 bits. Behind the end of src all bits are 0, but counted
// in pos: overrun tells.
func (z *inflater) refill() {
	if z.pos+8 <= len(z.src) {
		z.buf |= binary.LittleEndian.Uint64(z.src[z.pos:]) << (z.n & 63)
		z.pos += int(63-z.n) >> 3
		z.n |= 56
		return
	}
	for z.n < 56 {
		if z.pos < len(z.src) {
			z.buf |= uint64(z.src[z.pos]) << z.n
		}
		z.pos++
		z.n += 8
	}
}

// take returns the next k bits.
func (z *inflater) take(k uint) uint {
	v := uint(z.buf) & (1<<k - 1)
	z.buf >>= k
	z.n -= k
	return v
}

// overrun reports whether bits behind the end of src have been taken.
func (z *inflater) overrun() bool { return z.pos-int(z.n>>3) > len(z.src) }

// align drops the bits up to the next byte boundary and gives back what was read ahead.
func (z *inflater) align() {
	z.pos -= int(z.n >> 3)
	z.buf, z.n = 0, 0
}

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
	if len(z.src)-z.pos < size {
		return errTruncated
	}
	if len(z.dst)-z.out < size {
		return errTooLong
	}
	copy(z.dst[z.out:], z.src[z.pos:z.pos+size])
	z.pos += size
	z.out += size
	return nil
}

// precodeOrder: RFC 1951, 3.2.7.
var precodeOrder = [numPrecodes]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// codes reads the codes of a block. A precode of a single code passes, and zlib would
// refuse it: it says one and the same length for all symbols, or none, and no such code is
// complete.
func (z *inflater) codes() error {
	litlens, dists, precodes := z.take(5)+257, z.take(5)+1, z.take(4)+4
	if litlens > maxLitlenCodes || dists > maxDistCodes {
		return errLengths
	}
	var lens [numPrecodes]uint8
	for i := range precodes {
		if i&7 == 0 {
			z.refill()
		}
		lens[precodeOrder[i]] = uint8(z.take(3))
	}
	if err := build(z.precode[:], precodeBits, lens[:], precodeSymbols[:]); err != nil {
		return err
	}
	total := litlens + dists
	for k := uint(0); k < total; {
		if z.n < 16 {
			z.refill()
		}
		e := z.precode[z.buf&(precodeSize-1)]
		if e&entrySpecial != 0 {
			return errLengths
		}
		z.take(uint(e & 63))
		sym, val, rep := uint8(e>>entryBase), uint8(0), uint(0)
		switch sym {
		default:
			z.lens[k] = sym
			k++
			continue
		case 16:
			if k == 0 {
				return errLengths
			}
			val, rep = z.lens[k-1], 3+z.take(2)
		case 17:
			rep = 3 + z.take(3)
		case 18:
			rep = 11 + z.take(7)
		}
		if rep > total-k {
			return errLengths
		}
		for range rep {
			z.lens[k] = val
			k++
		}
	}
	if z.lens[endOfBlock] == 0 {
		return errLengths
	}
	if err := build(z.own.litlen[:], litlenBits, z.lens[:litlens], litlenSymbols[:]); err != nil {
		return err
	}
	return build(z.own.dist[:], distBits, z.lens[litlens:total], distSymbols[:])
}

// block expands a block whose codes are t.
func (z *inflater) block(t *tables) error {
	end, err := z.fast(t)
	if end || err != nil {
		return err
	}
	return z.slow(t)
}

const (
	fastIn    = 16
	matchStep = 40
	fastOut   = 3
)

// fast expands a block while there is room for whatever one step may read and write, and
// reports whether the block has ended.
func (z *inflater) fast(t *tables) (end bool, err error) {
	src, dst := z.src[:len(z.src):len(z.src)], z.dst[:len(z.dst):len(z.dst)]
	pos, out, buf, n := z.pos, z.out, z.buf, z.n
	if len(src)-pos < fastIn || len(dst)-out < fastOut {
		return false, nil
	}
	buf, pos, n = load(src, buf, pos, n)
	e := t.litlen[buf&(1<<litlenBits-1)]
	for pos+fastIn <= len(src) && out+fastOut <= len(dst) {
		saved := buf
		buf >>= e & 63
		n -= uint(e)
		if e&entryLiteral != 0 {
			dst[out] = byte(e >> entryBase)
			out++
			e = t.litlen[buf&(1<<litlenBits-1)]
			saved = buf
			buf >>= e & 63
			n -= uint(e)
			if e&entryLiteral != 0 {
				dst[out] = byte(e >> entryBase)
				out++
				e = t.litlen[buf&(1<<litlenBits-1)]
				saved = buf
				buf >>= e & 63
				n -= uint(e)
				if e&entryLiteral != 0 {
					dst[out] = byte(e >> entryBase)
					out++
					buf, pos, n = load(src, buf, pos, n)
					e = t.litlen[buf&(1<<litlenBits-1)]
					continue
				}
			}
		}
		if e&entrySpecial != 0 {
			if e&entryLink != 0 {
				e = t.litlen[link(e, buf)&(litlenSize-1)]
				saved = buf
				buf >>= e & 63
				n -= uint(e)
			}
			if e&entryLiteral != 0 {
				dst[out] = byte(e >> entryBase)
				out++
				buf, pos, n = load(src, buf, pos, n)
				e = t.litlen[buf&(1<<litlenBits-1)]
				continue
			}
			if e&entrySpecial != 0 {
				if e&entryEnd == 0 {
					return false, errSymbol
				}
				end = true
				break
			}
		}
		length := value(e, saved)

		e = t.dist[buf&(1<<distBits-1)]
		if uint8(n) < 28 {
			buf, pos, n = load(src, buf, pos, n)
		}
		if e&entrySpecial != 0 {
			if e&entryLink == 0 {
				return false, errSymbol
			}
			buf >>= distBits
			n -= distBits
			e = t.dist[link(e, buf)&(distSize-1)]
			if e&entrySpecial != 0 {
				return false, errSymbol
			}
		}
		dist := value(e, buf)
		buf >>= e & 63
		n -= uint(e)

		buf, pos, n = load(src, buf, pos, n)
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
			repeat(dst[from:], dist, length)
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
	return end, nil
}

// load fills buf to at least 56 bits from src[pos:], which holds 8 bytes or more.
func load(src []byte, buf uint64, pos int, n uint) (uint64, int, uint) {
	return buf | binary.LittleEndian.Uint64(src[pos:pos+8])<<(n&63), pos + int(7-n>>3&7), n | 56
}

// value returns the length or distance of entry e, whose code is next in buf.
func value(e uint32, buf uint64) int {
	return int(e>>entryBase) + int(buf&(1<<(e&63)-1)>>(e>>8&63))
}

// link returns where the entry is that link e leads to.
func link(e uint32, buf uint64) uint32 {
	return e>>entryBase + uint32(buf)&(1<<(e>>8&15)-1)
}

// repeat writes length bytes at b[dist:], again and again the dist bytes before them, less
// than 8. It may write 7 more.
func repeat(b []byte, dist, length int) {
	v := binary.LittleEndian.Uint64(b)
	d := uint(8 * dist)
	v &= 1<<d - 1
	v |= v << d
	v |= v << (2 * d)
	v |= v << (4 * d)
	step := 8 - 8%dist
	for k := dist; k < dist+length; k += step {
		binary.LittleEndian.PutUint64(b[k:k+8], v)
	}
}

// slow expands what is left of a block, in careful steps.
func (z *inflater) slow(t *tables) error {
	for {
		z.refill()
		e := t.litlen[z.buf&(1<<litlenBits-1)]
		if e&entryLink != 0 && int32(e) >= 0 {
			z.take(litlenBits)
			e = t.litlen[(e>>entryBase+uint32(z.buf)&(1<<(e>>8&15)-1))&(litlenSize-1)]
		}
		v := z.take(uint(e & 63))
		if z.overrun() {
			return errTruncated
		}
		if int32(e) < 0 {
			if z.out == len(z.dst) {
				return errTooLong
			}
			z.dst[z.out] = byte(e >> entryBase)
			z.out++
			continue
		}
		if e&entrySpecial != 0 {
			if e&entryEnd == 0 {
				return errSymbol
			}
			return nil
		}
		length := int(uint(e>>entryBase) + v>>(e>>8&63))

		e = t.dist[z.buf&(1<<distBits-1)]
		if e&entryLink != 0 {
			z.take(distBits)
			e = t.dist[(e>>entryBase+uint32(z.buf)&(1<<(e>>8&15)-1))&(distSize-1)]
		}
		if e&entrySpecial != 0 {
			return errSymbol
		}
		v = z.take(uint(e & 63))
		dist := int(uint(e>>entryBase) + v>>(e>>8&63))
		if z.overrun() {
			return errTruncated
		}
		if dist > z.out {
			return errDistance
		}
		if length > len(z.dst)-z.out {
			return errTooLong
		}
		for range length {
			z.dst[z.out] = z.dst[z.out-dist]
			z.out++
		}
	}
}
