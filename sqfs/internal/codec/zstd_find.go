package codec

import (
	"encoding/binary"
	"math/bits"
	"unsafe"
)

// newFinder returns the finder of a level of zstd, for blocks of at most size bytes.
func newFinder(level, size int) finder {
	bits := uint(bits.Len(uint(size - 1)))
	if level <= 4 {
		return newQuick(bits, level)
	}
	if level <= 12 {
		return newLazy(bits, level)
	}
	return newOptimal(bits, level)
}

// positions keeps the places in tables apart from those of other sources: what is below
// base is not of this one. So no table is ever cleared.
type positions struct{ base, end uint32 }

// begin begins a source of n bytes. It reports whether the tables must be cleared.
func (p *positions) begin(n int) (clear bool) {
	p.base = p.end
	if clear = p.base > 1<<31 || p.base == 0; clear {
		p.base = 1
	}
	p.end = p.base + uint32(n)
	return clear
}

// load32 and load64 read bytes that are there: nobody looks whether they are, which saves a
// sixth of the time of low levels. Finders look at no place from which there are fewer than
// 8 bytes to the end.
func load32(b []byte, i int) uint32 {
	return *(*uint32)(unsafe.Add(unsafe.Pointer(unsafe.SliceData(b)), i))
}

func load64(b []byte, i int) uint64 {
	return *(*uint64)(unsafe.Add(unsafe.Pointer(unsafe.SliceData(b)), i))
}

// Numbers by which bytes are hashed: the higher bits of a product with a large odd number
// depend on all bits of the other factor.
const (
	prime64 = 0x9e3779b97f4a7c15
	prime32 = 0x9e3779b1
)

func hash8(v uint64, bits uint) uint32 { return uint32(v * prime64 >> ((64 - bits) & 63)) }
func hash5(v uint64, bits uint) uint32 { return uint32(v << 24 * prime64 >> ((64 - bits) & 63)) }
func hash4(v uint32, bits uint) uint32 { return v * prime32 >> ((32 - bits) & 31) }
func hash3(v uint32, bits uint) uint32 { return v << 8 * prime32 >> ((32 - bits) & 31) }

// matching returns how many bytes at i are as those at j, which is less than i.
func matching(b []byte, j, i int) int {
	x, y := b[j:], b[i:]
	x = x[:len(y)]
	n := 0
	for len(y) >= 8 {
		if d := binary.LittleEndian.Uint64(x) ^ binary.LittleEndian.Uint64(y); d != 0 {
			return n + bits.TrailingZeros64(d)>>3
		}
		x, y = x[8:], y[8:]
		n += 8
	}
	for k := range y {
		if x[k] != y[k] {
			break
		}
		n++
	}
	return n
}

// useOffset returns how a distance is coded behind so many literals, and remembers it:
// RFC 8878, 3.1.2.5. Behind none, the last distance cannot come again, and its code means
// the last one less 1.
func useOffset(reps *[3]uint32, distance, lits uint32) uint32 {
	code := offsetValue(reps, distance, lits)
	takeOffset(reps, distance, code, lits)
	return code
}

func offsetValue(reps *[3]uint32, distance, lits uint32) uint32 {
	if lits > 0 {
		switch distance {
		case reps[0]:
			return 1
		case reps[1]:
			return 2
		case reps[2]:
			return 3
		}
		return distance + 3
	}
	switch distance {
	case reps[1]:
		return 1
	case reps[2]:
		return 2
	case reps[0] - 1:
		return 3
	}
	return distance + 3
}

// takeOffset remembers a distance that has been coded.
func takeOffset(reps *[3]uint32, distance, code, lits uint32) {
	if lits == 0 && code <= 3 {
		code++
	}
	switch code {
	case 1:
	case 2:
		reps[1] = reps[0]
	default:
		reps[2], reps[1] = reps[1], reps[0]
	}
	reps[0] = distance
}

// quick finds matches by two tables of the last places of 8 and of 5 bytes. It takes the
// first that it comes upon, and looks at fewer places the longer it finds none.
type quick struct {
	positions
	long, short         []uint32
	longBits, shortBits uint
	skip                uint // places are skipped after 1 << skip without a match
}

func newQuick(bits uint, level int) *quick {
	// Both tables together are 64 KiB, and stay in the first cache of a processor or near
	// it: with ten times that, matches are 2 % better and take a quarter more time. That is
	// for level 4.
	q := &quick{longBits: min(bits-1, 13), shortBits: min(bits-2, 13), skip: 6}
	switch level {
	case 1:
		q.skip = 5
	case 4:
		q.longBits, q.shortBits = min(bits-1, 16), min(bits-2, 15)
	}
	q.long, q.short = make([]uint32, 1<<q.longBits), make([]uint32, 1<<q.shortBits)
	return q
}

func (q *quick) start(n int) {
	if q.begin(n) {
		clear(q.long)
		clear(q.short)
	}
}

func (q *quick) parse(src []byte, begin int, seqs []sequence, lits []byte, reps *[3]uint32) ([]sequence, []byte) {
	const margin = 16 // bytes that are read and hashed without looking how many there are
	base, anchor, i := q.base, begin, max(begin, 1)
	limit := len(src) - margin
	for i <= limit {
		var from, n int
		if i, from, n = q.next(src, i, limit, anchor, int(reps[0])); n == 0 {
			break
		}
		for i > anchor && from > 0 && src[i-1] == src[from-1] {
			i--
			from--
			n++
		}
		lit := uint32(i - anchor)
		lits = appendShort(lits, src, anchor, i)
		seqs = append(seqs, sequence{lit, uint32(n), useOffset(reps, uint32(i-from), lit)})
		first := i
		i += n
		anchor = i
		if i > limit {
			break
		}
		// Of what the match passed over, two places are noted.
		v := load64(src, first+2)
		q.long[hash8(v, q.longBits)] = base + uint32(first+2)
		q.short[hash5(v, q.shortBits)] = base + uint32(first+2)
		v = load64(src, i-2)
		q.long[hash8(v, q.longBits)] = base + uint32(i-2)
		q.short[hash5(v>>8, q.shortBits)] = base + uint32(i-1)
		for i <= limit {
			r := i - int(reps[1])
			if r < 0 || load32(src, r) != load32(src, i) {
				break
			}
			n := 4 + matching(src, r+4, i+4)
			v := load64(src, i)
			q.long[hash8(v, q.longBits)] = base + uint32(i)
			q.short[hash5(v, q.shortBits)] = base + uint32(i)
			reps[0], reps[1] = reps[1], reps[0]
			seqs = append(seqs, sequence{0, uint32(n), 1})
			i += n
			anchor = i
		}
	}
	return seqs, append(lits, src[anchor:]...)
}

// next returns the next match at i or behind it, where it matches, and its length, 0 if
// there is none.
func (q *quick) next(src []byte, i, limit, anchor, rep int) (at, from, n int) {
	base, long, short := q.base, q.long, q.short
	longBits, shortBits := q.longBits, q.shortBits
	for i <= limit {
		v := load64(src, i)
		l, s := hash8(v, longBits), hash5(v, shortBits)
		atLong, atShort := long[l], short[s]
		here := base + uint32(i)
		long[l], short[s] = here, here
		if r := i + 1 - rep; r >= 0 && load32(src, r) == uint32(v>>8) {
			return i + 1, r, 4 + matching(src, r+4, i+5)
		}
		if atLong >= base {
			if from := int(atLong - base); load64(src, from) == v {
				return i, from, 8 + matching(src, from+8, i+8)
			}
		}
		if atShort >= base {
			if from := int(atShort - base); load32(src, from) == uint32(v) {
				// Eight bytes from the next place may be more than those here.
				w := load64(src, i+1)
				l := hash8(w, longBits)
				next := long[l]
				long[l] = here + 1
				if next >= base && load64(src, int(next-base)) == w {
					return i + 1, int(next - base), 8 + matching(src, int(next-base)+8, i+9)
				}
				return i, from, 4 + matching(src, from+4, i+4)
			}
		}
		i += 1 + (i-anchor)>>q.skip
	}
	return i, 0, 0
}

// appendShort appends src[from:to], which is mostly short, to dst, which has room. There
// are 16 bytes more in src.
func appendShort(dst, src []byte, from, to int) []byte {
	n := len(dst)
	if to-from > 16 || n+16 > cap(dst) {
		return append(dst, src[from:to]...)
	}
	*(*[16]byte)(dst[n : n+16]) = *(*[16]byte)(src[from : from+16])
	return dst[:n+to-from]
}

// lazy finds the longest match among the last places of 4 bytes, and looks whether the
// next places have a better one before it takes it.
type lazy struct {
	positions
	head     []uint32 // the last place of a hash
	before   []uint32 // the place before each place, by the lower bits
	hashBits uint
	depth    int // places that are looked at
	ahead    int // how many places a match waits for a better one
	next     int // the first place that is not in the tables
}

func newLazy(bits uint, level int) *lazy {
	z := &lazy{hashBits: min(bits, 17), ahead: 2, depth: [...]int{1, 2, 2, 3, 4, 8, 16, 32}[level-5]}
	if level < 7 {
		z.ahead = 1
	}
	z.head, z.before = make([]uint32, 1<<z.hashBits), make([]uint32, 1<<bits)
	return z
}

func (z *lazy) start(n int) {
	if z.begin(n) {
		clear(z.head)
	}
	z.next = 0
}

// gain is what a match saves, in some unit.
func gain(n int, code uint32) int { return n*4 - bits.Len32(code) }

func (z *lazy) parse(src []byte, begin int, seqs []sequence, lits []byte, reps *[3]uint32) ([]sequence, []byte) {
	anchor, i := begin, max(begin, 1)
	limit := len(src) - 8
	for i <= limit {
		n, from := z.best(src, i, reps, anchor)
		if n < 4 {
			i += 1 + (i-anchor)>>8
			continue
		}
		best := gain(n, offsetValue(reps, uint32(i-from), uint32(i-anchor)))
		for wait := 1; i+wait <= limit && wait <= z.ahead; wait++ {
			n2, from2 := z.best(src, i+wait, reps, anchor)
			if n2 < 4 {
				continue
			}
			g := gain(n2, offsetValue(reps, uint32(i+wait-from2), uint32(i+wait-anchor)))
			if g > best+3*wait+1 {
				i, n, from, best, wait = i+wait, n2, from2, g, 0
			}
		}
		for i > anchor && from > 0 && src[i-1] == src[from-1] {
			i, from, n = i-1, from-1, n+1
		}
		lit := uint32(i - anchor)
		lits = append(lits, src[anchor:i]...)
		seqs = append(seqs, sequence{lit, uint32(n), useOffset(reps, uint32(i-from), lit)})
		i += n
		anchor = i
		for i <= limit {
			r := i - int(reps[1])
			if r < 0 || load32(src, r) != load32(src, i) {
				break
			}
			n := 4 + matching(src, r+4, i+4)
			seqs = append(seqs, sequence{0, uint32(n), useOffset(reps, reps[1], 0)})
			i += n
			anchor = i
		}
	}
	return seqs, append(lits, src[anchor:]...)
}

// best returns the length of the best match at i and where it is.
func (z *lazy) best(src []byte, i int, reps *[3]uint32, anchor int) (n, from int) {
	v := load32(src, i)
	if r := i - int(reps[0]); i > anchor && r >= 0 && load32(src, r) == v {
		n, from = 4+matching(src, r+4, i+4), r
	}
	mask := uint32(len(z.before) - 1)
	for ; z.next < i; z.next++ {
		h := &z.head[hash4(load32(src, z.next), z.hashBits)]
		at := z.base + uint32(z.next)
		z.before[at&mask] = *h
		*h = at
	}
	most := gain(n, 1)
	at := z.head[hash4(v, z.hashBits)]
	for k := z.depth; at >= z.base && k > 0; k-- {
		j := int(at - z.base)
		if i+n < len(src) && src[j+n] == src[i+n] && load32(src, j) == v {
			m := 4 + matching(src, j+4, i+4)
			if g := gain(m, uint32(i-j)+3); g > most {
				n, from, most = m, j, g
				if i+n >= len(src) {
					break
				}
			}
		}
		at = z.before[at&mask]
	}
	return n, from
}
