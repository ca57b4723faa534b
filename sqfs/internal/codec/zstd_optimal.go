package codec

import "math"

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
	cost  costs
	found []found
	seqs  []sequence // of the first parse
	lits  []byte
}

// way is the cheapest way to a place.
type way struct {
	cost   uint32 // bits << 8
	match  uint32 // bytes of the match that ends here; 0 for a literal
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
}

func newOptimal(bits uint, level int) finder {
	o := &optimal{hashBits: min(bits, 16), hash3: min(bits, 14), first: newQuick(bits, 4)}
	switch {
	case level < 16:
		o.depth, o.nice = 12, 64
	case level < 19:
		o.depth, o.nice = 32, 128
	default:
		o.depth, o.nice = 128, 512
	}
	o.head, o.head3 = make([]uint32, 1<<o.hashBits), make([]uint32, 1<<o.hash3)
	o.sons = make([]uint32, 2<<bits)
	n := min(1<<bits, zstdBlock)
	o.ways = make([]way, n+1)
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
	o.cost.learn(o.seqs, o.lits)
	if len(o.seqs) < 4 && len(src)-begin > 64 && len(o.lits) > (len(src)-begin)*9/10 {
		*reps = first
		return append(seqs, o.seqs...), append(lits, o.lits...)
	}
	o.search(src, begin, reps)
	*reps = o.ways[len(src)-begin].reps
	return o.collect(src, begin, seqs, lits)
}

// learn sets the costs by what a parse has found.
func (c *costs) learn(seqs []sequence, lits []byte) {
	var literal [256]uint32
	var length, match, offset [matchCodes]uint32
	for _, b := range lits {
		literal[b]++
	}
	for i := range seqs {
		length[codeOfLength(seqs[i].lits)]++
		match[codeOfMatch(seqs[i].match)]++
		offset[codeOfOffset(seqs[i].offset)]++
	}
	set(c.literal[:], literal[:], nil)
	set(c.length[:], length[:], lengthBits[:])
	set(c.match[:], match[:], matchBits[:])
	set(c.offset[:], offset[:], nil)
	for k := range c.offset {
		c.offset[k] += uint32(k) << 8
	}
}

// set sets the costs of symbols that come so often, and have so many bits behind them. What
// did not come gets a cost all the same.
func set(cost, count []uint32, extra []uint8) {
	total := uint32(0)
	for k := range cost {
		total += 2*count[k] + 1
	}
	for k := range cost {
		cost[k] = uint32(256 * math.Log2(float64(total)/float64(2*count[k]+1)))
		if extra != nil {
			cost[k] += uint32(extra[k]) << 8
		}
	}
}

// search finds the cheapest ways to all places of a block.
func (o *optimal) search(src []byte, begin int, reps *[3]uint32) {
	n := len(src) - begin
	ways := o.ways[:n+1]
	for i := range ways {
		ways[i].cost = math.MaxUint32
	}
	ways[0] = way{reps: *reps}
	limit := n - 8
	taken, skip := 0, 0 // a match that was taken at once: where it begins and ends
	for k := range n {
		w := &ways[k]
		c := w.cost + o.cost.literal[src[begin+k]] + o.cost.length[codeOfLength(w.lits+1)] - o.cost.length[codeOfLength(w.lits)]
		if c < ways[k+1].cost {
			ways[k+1] = way{cost: c, lits: w.lits + 1, reps: w.reps}
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
}

// extend looks for matches at a place, and for cheaper ways by them. It returns the length
// of the longest.
func (o *optimal) extend(src []byte, begin, k int) int {
	i, w := begin+k, &o.ways[k]
	v := load32(src, i)
	base := w.cost + o.cost.length[0]
	longest := 2
	for r, distance := range lastOffsets(w.reps, w.lits) {
		j := i - int(distance)
		if distance == 0 || j < 0 || (load32(src, j)^v)<<8 != 0 {
			continue
		}
		n := 3 + matching(src, j+3, i+3)
		least := 3
		if n >= o.nice {
			least = n
		}
		for m := least; m <= n; m++ {
			o.relax(k, m, base, uint32(r)+1, distance)
		}
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
	if n := int(last.length); n >= o.nice {
		o.relax(k, n, base, last.distance+3, last.distance)
		return max(longest, n)
	}
	m := 3
	for _, f := range found {
		for ; m <= int(f.length); m++ {
			o.relax(k, m, base, f.distance+3, f.distance)
		}
	}
	return max(longest, m-1)
}

// lastOffsets returns the distances that the codes 1, 2 and 3 stand for.
func lastOffsets(reps [3]uint32, lits uint32) [3]uint32 {
	if lits > 0 {
		return reps
	}
	return [3]uint32{reps[1], reps[2], reps[0] - 1}
}

// relax makes a match of m bytes at k the way to its end if that is cheaper.
func (o *optimal) relax(k, m int, base, code, distance uint32) {
	c := base + o.cost.offset[codeOfOffset(code)] + o.cost.match[codeOfMatch(uint32(m))]
	if to := &o.ways[k+m]; c < to.cost {
		w := &o.ways[k]
		*to = way{cost: c, match: uint32(m), offset: code, reps: w.reps}
		takeOffset(&to.reps, distance, code, w.lits)
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
		n += matching(src, j+n, i+n)
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
