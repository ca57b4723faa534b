package codec

import (
	"encoding/binary"
	"errors"
	"sync"
)

// lzmaDecoder expands compressor 2: each block is a ".lzma" file, which is 5 bytes of
// properties, the size of the data as u64, and one LZMA stream (squashfs-tools,
// lzma_xz_wrapper.c; the layout is in doc/lzma-file-format.txt of XZ Utils). There is
// no checksum. The size is filled in, and behind the data there may be an end marker:
// mksquashfs writes one, the LZMA SDK does not. A size of -1, which says that only the
// marker tells where the data ends, is accepted too. Bytes behind the stream are
// ignored, as unsquashfs ignores them.
type lzmaDecoder struct{}

// lzmaHeader is the size of the header of a .lzma file.
const lzmaHeader = 5 + 8

var lzmaStates = sync.Pool{New: func() any { return new(lzmaState) }}

func (lzmaDecoder) Decode(dst, src []byte) (int, error) {
	if len(src) < lzmaHeader {
		return 0, errLZMATruncated
	}
	z := lzmaStates.Get().(*lzmaState)
	defer lzmaStates.Put(z)
	if err := z.setProps(src[0]); err != nil {
		return 0, err
	}
	// src[1:5] is the size of the dictionary: the output is the dictionary.
	size := binary.LittleEndian.Uint64(src[5:])
	known := size != 1<<64-1
	if known {
		if size > uint64(len(dst)) {
			return 0, errTooLong
		}
		dst = dst[:size]
	}
	src = src[lzmaHeader:]
	rc, err := startRange(src)
	if err != nil {
		return 0, err
	}
	rc, n, err := z.decode(rc, dst, 0, src)
	switch {
	case err == nil && known && rc.mayEnd(src):
	case err == nil: // dst is full, and the stream goes on
		if rc, err = z.endMarker(rc, n, src); err != nil && !known {
			err = errTooLong
		}
	case errors.Is(err, errLZMAEnd) && known:
		err = errLZMAShort
	case errors.Is(err, errLZMAEnd):
		err = nil
	case errors.Is(err, errLZMAPast) && !known:
		err = errTooLong
	}
	if rc.pos > len(src) {
		return n, errLZMATruncated
	}
	if err == nil && !rc.mayEnd(src) {
		err = errLZMAFinish
	}
	return n, err
}

var (
	errLZMAProps     = errors.New("lzma: properties out of range")
	errLZMAStart     = errors.New("lzma: stream does not start with a zero byte")
	errLZMATruncated = errors.New("lzma: stream ends early")
	errLZMADistance  = errors.New("lzma: match reaches back before the start of the data")
	errLZMAPast      = errors.New("lzma: match reaches past the end of the data")
	errLZMAShort     = errors.New("lzma: end marker before the end of the data")
	errLZMAFinish    = errors.New("lzma: stream does not end where the data ends")

	// errLZMAEnd says that decode came upon an end marker.
	errLZMAEnd = errors.New("lzma: end marker")
)

// The range coder: XZ Utils, doc of liblzma's rangecoder; Igor Pavlov,
// lzma-specification.txt. A probability is that of a bit being 0, in 1/2048.
const (
	probBits = 11
	probInit = 1 << probBits / 2
	probMove = 5 // how fast probabilities adapt: by 1/32 of what is missing
	rangeTop = 1 << 24
)

// A rangeDecoder is the state of the arithmetic decoder. It is passed by value, so
// that it lives in registers. pos is that of the next byte in the input. Behind the
// end of the input it reads zeros and goes on counting, so that there is one test
// for truncation, pos > len(src), where a stream ends.
type rangeDecoder struct {
	rng, code uint32
	pos       int
}

// startRange reads the 5 bytes that start a stream.
func startRange(src []byte) (rangeDecoder, error) {
	if len(src) < 5 {
		return rangeDecoder{}, errLZMATruncated
	}
	if src[0] != 0 {
		return rangeDecoder{}, errLZMAStart
	}
	return rangeDecoder{^uint32(0), binary.BigEndian.Uint32(src[1:]), 5}, nil
}

// mayEnd reports whether the stream may end here: encoders flush so that nothing is
// left over, which makes this a weak checksum.
func (rc rangeDecoder) mayEnd(src []byte) bool {
	rc = rc.normalize(src)
	return rc.code == 0 && rc.pos <= len(src)
}

// normalize takes in a byte if it is needed for the next bit. It has to come before each
// bit, and stands alone because zero and step would be too large to inline with it.
func (rc rangeDecoder) normalize(src []byte) rangeDecoder {
	if rc.rng < rangeTop {
		rc.rng <<= 8
		rc.code <<= 8
		if uint(rc.pos) < uint(len(src)) {
			rc.code |= uint32(src[rc.pos])
		}
		rc.pos++
	}
	return rc
}

// zero decodes a bit that decides what comes next, and reports whether it is 0. A
// branch lets the processor go on with its guess.
func (rc rangeDecoder) zero(p *uint16) (rangeDecoder, bool) {
	q := uint32(*p)
	bound := (rc.rng >> probBits) * q
	if rc.code < bound {
		rc.rng = bound
		*p = uint16(q + (1<<probBits-q)>>probMove)
		return rc, true
	}
	rc.rng -= bound
	rc.code -= bound
	*p = uint16(q - q>>probMove)
	return rc, false
}

// step decodes a bit of a number, given its probability q, without a branch: such bits
// are hard to guess. It returns a mask, all ones for 0 and 0 for 1, and the adapted
// probability.
func (rc rangeDecoder) step(q uint32) (rangeDecoder, uint32, uint16) {
	bound := (rc.rng >> probBits) * q
	rest := rc.rng - bound
	diff := int64(rc.code) - int64(bound)
	m := uint32(diff >> 63)
	rc.rng = rest + m&(bound-rest)
	rc.code = uint32(diff) + m&bound
	// q>>5 less, or (2048-q)>>5 more, which is less by (q-2048+31)>>5 rounded down.
	return rc, m, uint16(q - uint32(int32(q-m&(1<<probBits-1<<probMove+1))>>probMove))
}

// tree8 decodes a number of 8 bits, highest first, with the probabilities of the nodes
// of a binary tree: p[1] for the first bit, then p[2] or p[3]. Loading both of the next
// before the bit is known takes the load out of the chain of dependent instructions.
func (rc rangeDecoder) tree8(src []byte, p *[256]uint16) (rangeDecoder, uint32) {
	i, q := uint32(1), uint32(p[1])
	var m uint32
	for range 7 {
		zero, one := uint32(p[(i<<1)&0xff]), uint32(p[(i<<1+1)&0xff])
		rc = rc.normalize(src)
		rc, m, p[i&0xff] = rc.step(q)
		i = i<<1 + 1 + m
		q = one + m&(zero-one)
	}
	rc = rc.normalize(src)
	rc, m, p[i&0xff] = rc.step(q)
	return rc, i<<1 + 1 + m - 256
}

// tree6 is tree8 for 6 bits.
func (rc rangeDecoder) tree6(src []byte, p *[64]uint16) (rangeDecoder, uint32) {
	i, m := uint32(1), uint32(0)
	for range 6 {
		rc = rc.normalize(src)
		rc, m, p[i&63] = rc.step(uint32(p[i&63]))
		i = i<<1 + 1 + m
	}
	return rc, i - 64
}

// tree3 is tree8 for 3 bits.
func (rc rangeDecoder) tree3(src []byte, p *[8]uint16) (rangeDecoder, uint32) {
	i, m := uint32(1), uint32(0)
	for range 3 {
		rc = rc.normalize(src)
		rc, m, p[i&7] = rc.step(uint32(p[i&7]))
		i = i<<1 + 1 + m
	}
	return rc, i - 8
}

// reverse decodes a number of n bits, lowest first.
func (rc rangeDecoder) reverse(src []byte, p *[32]uint16, n uint32) (rangeDecoder, uint32) {
	i, m, v := uint32(1), uint32(0), uint32(0)
	for bit := uint32(1); bit < 1<<(n&31); bit <<= 1 {
		rc = rc.normalize(src)
		rc, m, p[i&31] = rc.step(uint32(p[i&31]))
		i = i<<1 + 1 + m
		v += bit &^ m
	}
	return rc, v
}

// direct decodes n bits that are 0 or 1 with the same probability, highest first,
// behind those of v.
func (rc rangeDecoder) direct(src []byte, v, n uint32) (rangeDecoder, uint32) {
	for range n {
		rc = rc.normalize(src)
		rc.rng >>= 1
		rc.code -= rc.rng
		m := uint32(int32(rc.code) >> 31)
		rc.code += rc.rng & m
		v = v<<1 + 1 + m
	}
	return rc, v
}

// litProbs are the probabilities of one context of literals: a tree for those after a
// literal, and two for those after a match, as long as they have the bits (0, 1) of
// the byte that the match would have gone on with.
type litProbs [3][256]uint16

// matched decodes a literal after a match. While its bits are those of match, the
// bit of match selects the tree; after the first that differs it is the plain tree.
func (rc rangeDecoder) matched(src []byte, p *litProbs, match uint32) (rangeDecoder, uint32) {
	i, m := uint32(1), uint32(0)
	same := uint32(1) // 1 while all bits were those of match
	for shift := 7; shift >= 0; shift-- {
		bit := match >> shift & 1
		t := &p[min((1+bit)&-same, 2)]
		rc = rc.normalize(src)
		rc, m, t[i&0xff] = rc.step(uint32(t[i&0xff]))
		i = i<<1 + 1 + m
		same &= bit ^ m
	}
	return rc, i - 256
}

// lenProbs are the probabilities of lengths: 2 to 9, 10 to 17, and 18 to 273.
type lenProbs struct {
	choice, choice2 uint16
	low, mid        [16][8]uint16
	high            [256]uint16
}

// length decodes the length of a match.
func (rc rangeDecoder) length(src []byte, p *lenProbs, posState uint32) (rangeDecoder, uint32) {
	var zero bool
	var n uint32
	rc = rc.normalize(src)
	if rc, zero = rc.zero(&p.choice); zero {
		rc, n = rc.tree3(src, &p.low[posState&15])
		return rc, 2 + n
	}
	rc = rc.normalize(src)
	if rc, zero = rc.zero(&p.choice2); zero {
		rc, n = rc.tree3(src, &p.mid[posState&15])
		return rc, 10 + n
	}
	rc, n = rc.tree8(src, &p.high)
	return rc, 18 + n
}

// lzmaState is what lasts from one LZMA stream to the next within LZMA2: some 30 KiB
// of probabilities, and what the symbols before have been.
type lzmaState struct {
	lc, lp, pb uint32 // how many bits of the last literal and of the position are context

	// state says what the last symbols were: 0 to 6 if the last one was a literal.
	state uint32
	// rep has the last four distances. A distance is 1 or more here, not from 0.
	rep [4]uint32

	// Indexes are state, and of the position, for literals also of the last byte, as
	// many of the lowest bits as pb, lp, and lc say.
	isMatch    [16][16]uint16
	isRep      [16]uint16
	isRep0     [16]uint16
	isRep0Long [16][16]uint16
	isRep1     [16]uint16
	isRep2     [16]uint16
	literals   [16]litProbs

	matchLen, repLen lenProbs
	slot             [4][64]uint16  // class of a distance, by length
	low              [16][32]uint16 // lower bits of classes 4 to 13
	align            [32]uint16     // lowest 4 bits of those above
}

// setProps takes the byte that holds lc, lp and pb, and resets the state. liblzma
// wants lc+lp <= 4 as well, in .lzma files too.
func (z *lzmaState) setProps(b byte) error {
	lc, lp, pb := uint32(b%9), uint32(b/9%5), uint32(b/45)
	if pb > 4 || lc+lp > 4 {
		return errLZMAProps
	}
	z.lc, z.lp, z.pb = lc, lp, pb
	z.reset()
	return nil
}

// reset forgets all but lc, lp and pb.
func (z *lzmaState) reset() {
	z.state = 0
	z.rep = [4]uint32{1, 1, 1, 1}
	for i := range z.isMatch {
		resetProbs(z.isMatch[i][:])
		resetProbs(z.isRep0Long[i][:])
	}
	resetProbs(z.isRep[:])
	resetProbs(z.isRep0[:])
	resetProbs(z.isRep1[:])
	resetProbs(z.isRep2[:])
	for i := range z.literals[:1<<(z.lc+z.lp)] {
		for j := range z.literals[i] {
			resetProbs(z.literals[i][j][:])
		}
	}
	z.matchLen.reset()
	z.repLen.reset()
	for i := range z.slot {
		resetProbs(z.slot[i][:])
	}
	for i := range z.low {
		resetProbs(z.low[i][:])
	}
	resetProbs(z.align[:])
}

func (p *lenProbs) reset() {
	p.choice, p.choice2 = probInit, probInit
	for i := range p.low {
		resetProbs(p.low[i][:])
		resetProbs(p.mid[i][:])
	}
	resetProbs(p.high[:])
}

func resetProbs(p []uint16) {
	for i := range p {
		p[i] = probInit
	}
}

// distance decodes the distance of a match of n bytes. That of the end marker is 0.
func (z *lzmaState) distance(rc rangeDecoder, src []byte, n uint32) (rangeDecoder, uint32) {
	rc, slot := rc.tree6(src, &z.slot[min(n-2, 3)])
	if slot < 4 {
		return rc, slot + 1
	}
	var low uint32
	bits := slot>>1 - 1
	high := 2 | slot&1
	if slot < 14 {
		rc, low = rc.reverse(src, &z.low[slot&15], bits)
		return rc, high<<bits + low + 1
	}
	rc, high = rc.direct(src, high, bits-4)
	rc, low = rc.reverse(src, &z.align, 4)
	return rc, high<<4 + low + 1
}

// decode expands symbols of the stream src from rc on until dst is full or there is an
// end marker, which gives errLZMAEnd. dst[:n] is the dictionary: what came since it was
// last reset. It returns how much of dst is filled then.
//
// The errors do not tell whether the stream was cut off: the caller looks at rc.pos.
func (z *lzmaState) decode(rc rangeDecoder, dst []byte, n int, src []byte) (rangeDecoder, int, error) {
	state := z.state
	rep0, rep1, rep2, rep3 := z.rep[0], z.rep[1], z.rep[2], z.rep[3]
	posMask, lpMask := uint32(1)<<z.pb-1, uint32(1)<<z.lp-1
	lc := z.lc
	last := byte(0)
	if n > 0 {
		last = dst[n-1]
	}
	var zero bool
	for n < len(dst) {
		posState := uint32(n) & posMask & 15
		rc = rc.normalize(src)
		if rc, zero = rc.zero(&z.isMatch[state&15][posState]); zero {
			var b uint32
			lit := &z.literals[(uint32(n)&lpMask<<(lc&7)+uint32(last)>>((8-lc)&15))&15]
			if state < 7 {
				rc, b = rc.tree8(src, &lit[0])
				state = max(state, 3) - 3
			} else {
				rc, b = rc.matched(src, lit, uint32(dst[n-int(rep0)]))
				if state < 10 {
					state -= 3
				} else {
					state -= 6
				}
			}
			last = byte(b)
			dst[n] = last
			n++
			continue
		}

		var size uint32
		rc = rc.normalize(src)
		if rc, zero = rc.zero(&z.isRep[state&15]); zero {
			rep1, rep2, rep3 = rep0, rep1, rep2
			rc, size = rc.length(src, &z.matchLen, posState)
			rc, rep0 = z.distance(rc, src, size)
			if rep0 == 0 {
				return rc, n, errLZMAEnd
			}
			state = stateAfter(state, 7, 10)
		} else {
			rc = rc.normalize(src)
			if rc, zero = rc.zero(&z.isRep0[state&15]); zero {
				rc = rc.normalize(src)
				if rc, zero = rc.zero(&z.isRep0Long[state&15][posState]); zero {
					size = 1
				}
			} else {
				rc = rc.normalize(src)
				if rc, zero = rc.zero(&z.isRep1[state&15]); zero {
					rep0, rep1 = rep1, rep0
				} else {
					rc = rc.normalize(src)
					if rc, zero = rc.zero(&z.isRep2[state&15]); zero {
						rep0, rep1, rep2 = rep2, rep0, rep1
					} else {
						rep0, rep1, rep2, rep3 = rep3, rep0, rep1, rep2
					}
				}
			}
			if size == 1 {
				state = stateAfter(state, 9, 11)
			} else {
				state = stateAfter(state, 8, 11)
				rc, size = rc.length(src, &z.repLen, posState)
			}
		}
		if uint64(rep0) > uint64(n) {
			return rc, n, errLZMADistance
		}
		if uint64(size) > uint64(len(dst)-n) {
			return rc, n, errLZMAPast
		}
		copyMatch(dst, n, int(rep0), int(size))
		n += int(size)
		last = dst[n-1]
	}
	z.state = state
	z.rep = [4]uint32{rep0, rep1, rep2, rep3}
	return rc, n, nil
}

// stateAfter returns the state that follows state: lit if the symbol before was a literal.
func stateAfter(state, lit, other uint32) uint32 {
	if state < 7 {
		return lit
	}
	return other
}

// copyMatch copies the size bytes at dst[n-dist] to dst[n]. It may write up to 7 bytes
// more, within dst: what comes next overwrites them.
func copyMatch(dst []byte, n, dist, size int) {
	from, end := n-dist, n+size
	if dist < 8 || len(dst)-end < 8 {
		for ; n < end; n++ {
			dst[n] = dst[from]
			from++
		}
		return
	}
	for ; n < end; n += 8 {
		binary.LittleEndian.PutUint64(dst[n:], binary.LittleEndian.Uint64(dst[from:]))
		from += 8
	}
}

// endMarker decodes an end marker where n bytes have been decoded.
func (z *lzmaState) endMarker(rc rangeDecoder, n int, src []byte) (rangeDecoder, error) {
	posState := uint32(n) & (1<<z.pb - 1)
	rc = rc.normalize(src)
	rc, literal := rc.zero(&z.isMatch[z.state&15][posState&15])
	if literal {
		return rc, errLZMAFinish
	}
	rc = rc.normalize(src)
	rc, match := rc.zero(&z.isRep[z.state&15])
	if !match {
		return rc, errLZMAFinish
	}
	rc, size := rc.length(src, &z.matchLen, posState)
	rc, dist := z.distance(rc, src, size)
	if dist != 0 {
		return rc, errLZMAFinish
	}
	return rc, nil
}
