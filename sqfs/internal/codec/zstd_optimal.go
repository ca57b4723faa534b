package codec

import (
	"math"
	"math/bits"
)

// optimal finds the sequences that take the fewest bits, as far as that can be known
// before they are encoded. A first parse tells how often each symbol comes, and so what it
// will cost; then the cheapest way to each place is found from those to the places before
// it.
type optimal struct {
	positions
	head     []uint32 // the last place of a hash of 4 bytes: the root of a tree
	head3    []uint32 // the last place of a hash of 3 bytes
	sons     []uint32 // of each place, by the lower bits: the greater and the lesser ones before it
	hashBits uint
	hash3    uint
	depth    int // places that are looked at
	nice     int // a match that long is taken at once

	first *quick // for the first parse
	ways  []way
	to    []uint32 // what the cheapest ways cost, in bits << 8
	cost  costs
	found []found
	all   histogram  // of the first parse
	done  histogram  // of what was searched
	seqs  []sequence // of the first parse
	lits  []byte
}

// way is the cheapest way to a place: by a literal, or by a match that ends there. What is
// not the step itself is known when the search comes to the place.
type way struct {
	match  uint32 // bytes; 0 is a literal
	offset uint32 // coded
	lits   uint32 // literals behind the last match
	reps   [3]uint32
}

// found is a match at a place.
type found struct{ length, distance uint32 }

// costs are what symbols take, in bits << 8, with the bits behind a code.
type costs struct {
	literal [256]uint32
	length  [lengthCodes]uint32
	match   [matchCodes]uint32
	offset  [offsetCodes]uint32
	matches [maxNice]uint32 // of lengths
}

// maxNice bounds optimal.nice.
const maxNice = 512

func newOptimal(log uint, level int) finder {
	o := &optimal{hashBits: min(log, 16), hash3: min(log, 14), first: newQuick(log, 4)}
	switch {
	case level < 16:
		o.depth, o.nice = 4, 32
	case level < 19:
		o.depth, o.nice = 32, 128
	default:
		o.depth, o.nice = 128, maxNice
	}
	o.head, o.head3 = make([]uint32, 1<<o.hashBits), make([]uint32, 1<<o.hash3)
	o.sons = make([]uint32, 2<<log)
	n := min(1<<log, zstdBlock)
	o.ways, o.to = make([]way, n+1), make([]uint32, n+1)
	o.seqs, o.lits = make([]sequence, 0, n/3+1), make([]byte, 0, n+16)
	o.found = make([]found, 0, 64)
	return o
}

func (o *optimal) start(n int) {
	if o.begin(n) {
		clear(o.head)
		clear(o.head3)
	}
	o.first.start(n)
}

func (o *optimal) parse(src []byte, begin int, seqs []sequence, lits []byte, reps *[3]uint32) ([]sequence, []byte) {
	first := *reps
	o.seqs, o.lits = o.first.parse(src, begin, o.seqs[:0], o.lits[:0], &first)
	o.all, o.done = histogram{}, histogram{}
	o.all.count(o.seqs, o.lits)
	o.cost.learn(&o.done, &o.all)
	if len(o.seqs) < 4 && len(src)-begin > 64 && len(o.lits) > (len(src)-begin)*9/10 {
		*reps = first
		return append(seqs, o.seqs...), append(lits, o.lits...)
	}
	o.search(src, begin, reps)
	*reps = o.ways[len(src)-begin].reps
	return o.collect(src, begin, seqs, lits)
}

// learn sets the costs by what the search has found so far, and, with less weight, by the
// first parse of all.
func (c *costs) learn(done, all *histogram) {
	set(c.literal[:], done.literal[:], all.literal[:], nil)
	set(c.length[:], done.symbol[0][:], all.symbol[0][:], lengthBits[:])
	set(c.offset[:], done.symbol[1][:], all.symbol[1][:], nil)
	set(c.match[:], done.symbol[2][:], all.symbol[2][:], matchBits[:])
	for n := uint32(3); n < maxNice; n++ {
		c.matches[n] = c.match[codeOfMatch(n)]
	}
	for k := range c.offset {
		c.offset[k] += uint32(k) << 8
	}
}

// set sets the costs of symbols that came so often, and have so many bits behind them. What
// did not come gets a cost all the same.
func set(cost, done, all []uint32, extra []uint8) {
	const weight = 16
	total := uint32(0)
	for k := range cost {
		total += 2*(weight*done[k]+all[k]) + 1
	}
	for k := range cost {
		cost[k] = fine(total) - fine(2*(weight*done[k]+all[k])+1)
		if extra != nil {
			cost[k] += uint32(extra[k]) << 8
		}
	}
}

// stretch is after how many bytes the search looks at what it has found. What the first
// parse found is another mixture of symbols than the cheapest: with costs by that alone,
// blocks are 2 % longer.
const stretch = 4 << 10

// review counts the symbols on the cheapest way from one place to another behind it.
func (o *optimal) review(src []byte, begin, from, to int) {
	for k := to; k > from; {
		w := &o.ways[k]
		for x := range w.lits {
			o.done.literal[src[begin+k-1-int(x)]]++
		}
		if k -= int(w.lits); k <= 0 {
			return
		}
		w = &o.ways[k]
		before := &o.ways[k-int(w.match)]
		o.done.symbol[0][codeOfLength(before.lits)]++
		o.done.symbol[1][codeOfOffset(w.offset)]++
		o.done.symbol[2][codeOfMatch(w.match)]++
		k -= int(w.match)
	}
}

// search finds the cheapest ways to all places of a block.
func (o *optimal) search(src []byte, begin int, reps *[3]uint32) {
	n := len(src) - begin
	ways, to := o.ways[:n+1], o.to[:n+1]
	for i := range to {
		to[i] = math.MaxUint32
	}
	to[0] = 0
	ways[0] = way{reps: *reps}
	limit := n - 8
	reviewed := 0
	taken, skip := 0, 0 // a match that was taken at once: where it begins and ends
	for k := range n {
		w := &ways[k]
		if k > 0 {
			o.arrive(k)
		}
		if k >= reviewed+stretch {
			o.review(src, begin, reviewed, k)
			o.cost.learn(&o.done, &o.all)
			reviewed = k
		}
		c := to[k] + o.cost.literal[src[begin+k]] + o.cost.length[codeOfLength(w.lits+1)] - o.cost.length[codeOfLength(w.lits)]
		if c < to[k+1] {
			to[k+1], ways[k+1].match = c, 0
		}
		const edge = 64
		switch {
		case k > limit || begin+k == 0:
		case k >= skip:
			if long := o.extend(src, begin, k); long >= o.nice {
				taken, skip = k, k+long
			}
		case k < taken+edge || k >= skip-edge:
			o.matches(src, begin+k)
		}
	}
	o.arrive(n)
}

// arrive completes the way to a place, to which no cheaper one can come any more.
func (o *optimal) arrive(k int) {
	w := &o.ways[k]
	if w.match == 0 {
		before := &o.ways[k-1]
		w.lits, w.reps = before.lits+1, before.reps
		return
	}
	before := &o.ways[k-int(w.match)]
	w.lits, w.reps = 0, before.reps
	distance := w.offset - 3
	if w.offset <= 3 {
		distance = lastOffsets(before.reps, before.lits)[w.offset-1]
	}
	takeOffset(&w.reps, distance, w.offset, before.lits)
}

// lastOffsets returns the distances that the codes 1, 2 and 3 stand for.
func lastOffsets(reps [3]uint32, lits uint32) [3]uint32 {
	if lits > 0 {
		return reps
	}
	return [3]uint32{reps[1], reps[2], reps[0] - 1}
}

// extend looks for matches at a place, and for cheaper ways by them. It returns the length
// of the longest.
func (o *optimal) extend(src []byte, begin, k int) int {
	i, w := begin+k, &o.ways[k]
	v := load32(src, i)
	longest := 2
	for r, distance := range lastOffsets(w.reps, w.lits) {
		j := i - int(distance)
		if distance == 0 || j < 0 || (load32(src, j)^v)<<8 != 0 {
			continue
		}
		n := 3 + matching(src, j+3, i+3)
		o.relax(k, 3, n, uint32(r)+1)
		longest = max(longest, n)
	}
	found := o.matches(src, i)
	if len(found) == 0 {
		return longest
	}
	last := &found[len(found)-1]
	if last.length == maxCompared {
		last.length += uint32(matching(src, i-int(last.distance)+maxCompared, i+maxCompared))
	}
	m := 3
	if int(last.length) >= o.nice {
		m = int(last.length)
	}
	for _, f := range found {
		if n := int(f.length); n >= m {
			o.relax(k, m, n, f.distance+3)
			m = n + 1
		}
	}
	return max(longest, m-1)
}

// relax makes matches of m..n bytes at k the ways to their ends where that is cheaper. Of
// long ones, only the longest are looked at.
func (o *optimal) relax(k, m, n int, code uint32) {
	base := o.to[k] + o.cost.length[0] + o.cost.offset[codeOfOffset(code)]
	if n >= o.nice {
		if c := base + o.cost.match[codeOfMatch(uint32(n))]; c < o.to[k+n] {
			o.to[k+n] = c
			o.ways[k+n].match, o.ways[k+n].offset = uint32(n), code
		}
		return
	}
	to, ways, matches := o.to[k+m:k+n+1], o.ways[k+m:k+n+1], o.cost.matches[m:n+1]
	ways, matches = ways[:len(to)], matches[:len(to)]
	for x := range to {
		if c := base + matches[x]; c < to[x] {
			to[x] = c
			ways[x].match, ways[x].offset = uint32(m+x), code
		}
	}
}

// maxCompared bounds how far places are compared, which in long repetitions would take
// very long.
const maxCompared = 4096

// matches puts a place into its tree, and returns the matches on the way, the shortest and
// nearest first. The trees are binary: what is behind the places that are in the left half
// of one is less than what is behind it, and all in them are before it.
func (o *optimal) matches(src []byte, i int) []found {
	src = src[:min(len(src), i+maxCompared)]
	v, at := load32(src, i), o.base+uint32(i)
	mask := uint32(len(o.sons)/2 - 1)
	list, best := o.found[:0], 2
	near := &o.head3[hash3(v, o.hash3)]
	if *near >= o.base {
		if j := int(*near - o.base); (load32(src, j)^v)<<8 == 0 {
			best = 3 + matching(src, j+3, i+3)
			list = append(list, found{uint32(best), uint32(i - j)})
		}
	}
	*near = at
	root := &o.head[hash4(v, o.hashBits)]
	place := *root
	*root = at
	less, more := &o.sons[2*(at&mask)], &o.sons[2*(at&mask)+1]
	sameLess, sameMore := 0, 0 // bytes that all that may still come have in common with this place
	for k := o.depth; place >= o.base && k > 0; k-- {
		j := int(place - o.base)
		n := min(sameLess, sameMore)
		if d := uint64(0); i+n+8 > len(src) {
			n += matching(src, j+n, i+n)
		} else if d = load64(src, j+n) ^ load64(src, i+n); d != 0 {
			n += bits.TrailingZeros64(d) >> 3
		} else {
			n += 8 + matching(src, j+n+8, i+n+8)
		}
		if n > best {
			best = n
			list = append(list, found{uint32(n), uint32(i - j)})
		}
		if i+n == len(src) {
			break
		}
		sons := o.sons[2*(place&mask) : 2*(place&mask)+2]
		if src[j+n] < src[i+n] {
			*less, sameLess = place, n
			less, place = &sons[1], sons[1]
		} else {
			*more, sameMore = place, n
			more, place = &sons[0], sons[0]
		}
	}
	*less, *more = 0, 0
	o.found = list[:0]
	return list
}

// collect appends the sequences of the cheapest way to the end.
func (o *optimal) collect(src []byte, begin int, seqs []sequence, lits []byte) ([]sequence, []byte) {
	back := o.seqs[:0]
	k := len(src) - begin
	for k -= int(o.ways[k].lits); k > 0; {
		w := &o.ways[k]
		k -= int(w.match)
		back = append(back, sequence{o.ways[k].lits, w.match, w.offset})
		k -= int(o.ways[k].lits)
	}
	for n := len(back) - 1; n >= 0; n-- {
		s := back[n]
		lits = append(lits, src[begin:begin+int(s.lits)]...)
		begin += int(s.lits + s.match)
		seqs = append(seqs, s)
	}
	return seqs, append(lits, src[begin:]...)
}
