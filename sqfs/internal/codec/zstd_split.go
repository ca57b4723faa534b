package codec

import "math/bits"

// A block has one code for all its literals, and one for each kind of symbol. Where what
// is in it changes, two blocks with codes of their own are shorter than one, although they
// must say what their codes are.

const (
	minPart = 150 // sequences in a part that is divided further, at least
	maxPart = 48  // parts, at most
)

// histogram counts what is encoded together.
type histogram struct {
	literal [256]uint32
	symbol  [3][matchCodes]uint32
}

// divide appends to parts where those of the sequences lo..hi end, which have the literals
// from..to. It halves them as long as that saves something.
func (e *zstdEncoder) divide(lo, hi, from, to int) {
	if hi-lo < 2*minPart || len(e.parts) > maxPart {
		e.parts = append(e.parts, hi)
		return
	}
	mid := (lo + hi) / 2
	at := from + literalsOf(e.seqs[lo:mid])
	var left, right histogram
	left.count(e.seqs[lo:mid], e.lits[from:at])
	right.count(e.seqs[mid:hi], e.lits[at:to])
	halves := left.size() + right.size()
	left.add(&right)
	if left.size() <= halves {
		e.parts = append(e.parts, hi)
		return
	}
	e.divide(lo, mid, from, at)
	e.divide(mid, hi, at, to)
}

func (h *histogram) count(seqs []sequence, lits []byte) {
	for _, b := range lits {
		h.literal[b]++
	}
	for i := range seqs {
		s := &seqs[i]
		h.symbol[0][codeOfLength(s.lits)]++
		h.symbol[1][codeOfOffset(s.offset)]++
		h.symbol[2][codeOfMatch(s.match)]++
	}
}

func (h *histogram) add(o *histogram) {
	for k := range h.literal {
		h.literal[k] += o.literal[k]
	}
	for k := range h.symbol {
		for s := range h.symbol[k] {
			h.symbol[k][s] += o.symbol[k][s]
		}
	}
}

// size estimates how many bits << 8 the symbols take, with their codes and without the bits
// behind them, which nothing changes.
func (h *histogram) size() uint64 {
	const perLiteral, perSymbol, perBlock = 3 << 8, 5 << 8, 100 << 8 // of the codes
	n := uint64(perBlock)
	e, used := entropy(h.literal[:])
	n += e + uint64(used)*perLiteral
	for k := range h.symbol {
		e, used = entropy(h.symbol[k][:])
		n += e + uint64(used)*perSymbol
	}
	return n
}

// entropy returns how many bits << 8 symbols take, and how many different ones there are.
func entropy(count []uint32) (sum uint64, used int) {
	total := uint32(0)
	for _, n := range count {
		if n > 0 {
			total += n
			used++
			sum += uint64(n) * uint64(fine(n))
		}
	}
	if total == 0 {
		return 0, 0
	}
	return uint64(total)*uint64(fine(total)) - sum, used
}

// fine is log2, nearer to the truth: the error of the line is at most 22/256, between two
// powers of two, where it is about 4·x·(1-x) of that.
func fine(v uint32) uint32 {
	n := uint32(bits.Len32(v)) - 1
	x := v<<8>>n - 1<<8
	return n<<8 + x + x*(256-x)*22>>14
}
