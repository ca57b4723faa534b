package codec

import (
	"encoding/binary"
	"errors"
)

// lzoDecoder expands compressor 3: each block is one LZO1X stream with its end marker,
// and without size or checksum (squashfs-tools, lzo_wrapper.c calls
// lzo1x_decompress_safe). All algorithms of mksquashfs write this one format, which
// the kernel describes in Documentation/staging/lzo.rst. Like the kernel and liblzo2
// it does not accept bytes after the end marker.
type lzoDecoder struct{}

var (
	errLZOShort  = errors.New("lzo: no end marker")
	errLZOLong   = errors.New("lzo: bytes after the end marker")
	errLZOMarker = errors.New("lzo: damaged end marker")
	errLZOBehind = errors.New("lzo: copy from before the start")
)

// lzoRun is the state after a run of 4 or more literals. Otherwise the state is how
// many literals the last instruction had behind it, 0 to 3.
const lzoRun = 4

// Decode copies whole words wherever both ends have room for them, so that most copies
// are done at once. ip may get past the end of src with what an instruction claims; it
// is compared with it before the next one, and no stream ends well without that.
func (lzoDecoder) Decode(dst, src []byte) (int, error) {
	ip, op, state := 0, 0, 0
	if len(src) > 0 && src[0] > 17 { // a run may come first, in a form of its own
		n := int(src[0]) - 17
		if err := lzoLiterals(dst, src[1:], n); err != nil {
			return 0, err
		}
		ip, op, state = 1+n, n, min(n, lzoRun)
	}
	for {
		var w uint64 // the instruction and the literals behind it, which are at most 6 bytes
		if ip <= len(src)-8 {
			w = binary.LittleEndian.Uint64(src[ip:])
		} else if ip < len(src) {
			w = lzoHead(src[ip:])
		} else {
			return 0, errLZOShort
		}
		t := int(w & 0xff)
		var n, dist, next int // copy n bytes from dist before op, then next literals from w
		switch {
		case t >= 64: // LLLDDDSS HHHHHHHH
			n, next = t>>5+1, t&3
			dist = int(w>>8&0xff)<<3 + t>>2&7 + 1
			ip += 2
			w >>= 16
		case t >= 16: // 001LLLLL or 0001HLLL, DDDDDDSS DDDDDDDD
			mask := 31
			if t < 32 {
				mask = 7
			}
			n = t & mask
			if n == 0 {
				if n, ip = lzoLength(src, ip); n < 0 {
					return 0, errLZOShort
				}
				n += mask
				w = lzoHead(src[ip:])
			}
			n += 2
			next = int(w >> 8 & 3)
			dist = int(w >> 10 & 0x3fff)
			ip += 3
			w >>= 24
			if t >= 32 {
				dist++
			} else if dist += t & 8 << 11; dist > 0 {
				dist += 1 << 14
			} else {
				return lzoEnd(op, n, len(src)-ip)
			}
		case state == 0: // 0000LLLL, a run of literals
			n = t
			if n == 0 {
				if n, ip = lzoLength(src, ip); n < 0 {
					return 0, errLZOShort
				}
				n += 15
			}
			n += 3
			ip++
			if n <= 16 && ip <= len(src)-16 && op <= len(dst)-16 {
				copy16(dst[op:op+16], src[ip:ip+16])
			} else if err := lzoLiterals(dst[op:], src[ip:], n); err != nil {
				return 0, err
			}
			ip += n
			op += n
			state = lzoRun
			continue
		default: // 0000DDSS HHHHHHHH
			n, next = 2, t&3
			dist = int(w>>8&0xff)<<2 + t>>2 + 1
			if state == lzoRun {
				n, dist = 3, dist+2048
			}
			ip += 2
			w >>= 16
		}
		if dist > op {
			return 0, errLZOBehind
		}
		ip += next
		state = next
		// Most matches are short: copy 16 bytes, whatever n is, and over what was too
		// much the next literals, at most 3 of the 4 bytes that are written.
		if n <= 16 && dist >= 8 && op <= len(dst)-20 {
			d := dst[op : op+20]
			copy16(d, dst[op-dist:op-dist+16])
			binary.LittleEndian.PutUint32(d[n:], uint32(w))
			op += n + next
			continue
		}
		if n+next > len(dst)-op {
			return 0, errTooLong
		}
		lzoCopy(dst, op, dist, n)
		op += n
		for end := op + next; op < end; op++ {
			dst[op] = byte(w)
			w >>= 8
		}
	}
}

// copy16 copies 16 bytes. src may start before dst in the same array, at least 8 bytes:
// what the first half writes the second half reads.
func copy16(dst, src []byte) {
	binary.LittleEndian.PutUint64(dst, binary.LittleEndian.Uint64(src))
	binary.LittleEndian.PutUint64(dst[8:], binary.LittleEndian.Uint64(src[8:]))
}

// lzoHead returns the first 8 bytes of src, in little-endian order. It may have fewer.
func lzoHead(src []byte) (w uint64) {
	for i, b := range src[:min(8, len(src))] {
		w |= uint64(b) << (8 * i)
	}
	return w
}

// lzoLength reads the rest of a length, which follows the byte at ip: zeros, each worth
// 255, and a byte that is not zero. It returns the place of that last byte too; n is -1
// if there is none.
func lzoLength(src []byte, ip int) (n, last int) {
	for last = ip + 1; last < len(src); last++ {
		if src[last] != 0 {
			return n + int(src[last]), last
		}
		n += 255
	}
	return -1, last
}

// lzoLiterals copies n bytes.
func lzoLiterals(dst, src []byte, n int) error {
	if n > len(src) {
		return errLZOShort
	}
	if n > len(dst) {
		return errTooLong
	}
	copy(dst, src[:n])
	return nil
}

// lzoCopy copies n bytes from dist before op, which may reach into what it writes: a
// pattern that repeats itself, copied in pieces that double.
func lzoCopy(dst []byte, op, dist, n int) {
	for end := op + n; op < end; dist *= 2 {
		op += copy(dst[op:end], dst[op-dist:op])
	}
}

// lzoEnd returns the outcome of a stream that made op bytes. Its end marker is an
// instruction of length n, with left bytes behind it; the kernel checks the length.
func lzoEnd(op, n, left int) (int, error) {
	switch {
	case left < 0:
		return 0, errLZOShort
	case n != 3:
		return 0, errLZOMarker
	case left > 0:
		return 0, errLZOLong
	}
	return op, nil
}
