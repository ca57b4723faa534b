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
	fastOut   = 3 + 258 + matchStep
)

// fast expands a block while there is room for whatever one step may read and write, and
// reports whether the block has ended.
func (z *inflater) fast(t *tables) (end bool, err error) {
	src, dst := z.src, z.dst
	pos, out, buf, n := z.pos, z.out, z.buf, z.n
	if len(src)-pos < fastIn || len(dst)-out < fastOut {
		return false, nil
	}
	buf |= binary.LittleEndian.Uint64(src[pos:pos+8]) << (n & 63)
	pos += int(7 - n>>3&7)
	n |= 56
	e := t.litlen[buf&(1<<litlenBits-1)]
loop:
	for pos+fastIn <= len(src) && out+fastOut <= len(dst) {
		in := (*[fastIn]byte)(src[pos : pos+fastIn])
		w := (*[fastOut]byte)(dst[out : out+fastOut])
		saved := buf
		buf >>= e & 63
		n -= uint(e)
		d := 0
		if int32(e) < 0 {
			w[0] = byte(e >> entryBase)
			e = t.litlen[buf&(1<<litlenBits-1)]
			saved = buf
			buf >>= e & 63
			n -= uint(e)
			d = 1
			if int32(e) < 0 {
				w[1] = byte(e >> entryBase)
				e = t.litlen[buf&(1<<litlenBits-1)]
				saved = buf
				buf >>= e & 63
				n -= uint(e)
				d = 2
				if int32(e) < 0 {
					w[2] = byte(e >> entryBase)
					out += 3
					buf |= binary.LittleEndian.Uint64(in[:8]) << (n & 63)
					pos += int(7 - n>>3&7)
					n |= 56
					e = t.litlen[buf&(1<<litlenBits-1)]
					continue
				}
			}
		}
		if e&entrySpecial != 0 {
			if e&entryLink != 0 {
				e = t.litlen[(e>>entryBase+uint32(buf)&(1<<(e>>8&15)-1))&(litlenSize-1)]
				saved = buf
				buf >>= e & 63
				n -= uint(e)
			}
			if int32(e) < 0 {
				w[d] = byte(e >> entryBase)
				out += d + 1
				buf |= binary.LittleEndian.Uint64(in[:8]) << (n & 63)
				pos += int(7 - n>>3&7)
				n |= 56
				e = t.litlen[buf&(1<<litlenBits-1)]
				continue
			}
			if e&entrySpecial != 0 {
				out += d
				if e&entryEnd == 0 {
					return false, errSymbol
				}
				end = true
				break loop
			}
		}
		length := int(e>>entryBase) + int(saved&(1<<(e&63)-1)>>(e>>8&63))

		e = t.dist[buf&(1<<distBits-1)]
		step := uint(0)
		if uint8(n) < 28 {
			buf |= binary.LittleEndian.Uint64(in[:8]) << (n & 63)
			step = 7 - n>>3&7
			n |= 56
			pos += int(step)
		}
		if e&entrySpecial != 0 {
			if e&entryLink == 0 {
				return false, errSymbol
			}
			buf >>= distBits
			n -= distBits
			e = t.dist[(e>>entryBase+uint32(buf)&(1<<(e>>8&15)-1))&(distSize-1)]
			if e&entrySpecial != 0 {
				return false, errSymbol
			}
		}
		dist := int(e>>entryBase) + int(buf&(1<<(e&63)-1)>>(e>>8&63))
		buf >>= e & 63
		n -= uint(e)

		buf |= binary.LittleEndian.Uint64(in[step:step+8]) << (n & 63)
		pos += int(7 - n>>3&7)
		n |= 56
		e = t.litlen[buf&(1<<litlenBits-1)]

		out += d
		if dist > out {
			return false, errDistance
		}
		from := out - dist
		if dist >= 8 {
			to := (*[matchStep]byte)(w[d : d+matchStep])
			fr := (*[matchStep]byte)(dst[from : from+matchStep])
			binary.LittleEndian.PutUint64(to[0:8], binary.LittleEndian.Uint64(fr[0:8]))
			binary.LittleEndian.PutUint64(to[8:16], binary.LittleEndian.Uint64(fr[8:16]))
			binary.LittleEndian.PutUint64(to[16:24], binary.LittleEndian.Uint64(fr[16:24]))
			binary.LittleEndian.PutUint64(to[24:32], binary.LittleEndian.Uint64(fr[24:32]))
			binary.LittleEndian.PutUint64(to[32:40], binary.LittleEndian.Uint64(fr[32:40]))
			for k := matchStep; k < length; k += 8 {
				binary.LittleEndian.PutUint64(dst[out+k:out+k+8], binary.LittleEndian.Uint64(dst[from+k:from+k+8]))
			}
		} else {
			for k := 0; k < length; k += dist {
				binary.LittleEndian.PutUint64(dst[out+k:out+k+8], binary.LittleEndian.Uint64(dst[from+k:from+k+8]))
			}
		}
		out += length
	}
	z.pos, z.out, z.buf, z.n = pos, out, buf, n&63
	return end, nil
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
