package codec

import (
	"bytes"
	"compress/flate"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/adler32"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	kzlib "github.com/klauspost/compress/zlib"
)

// flateReader is stdlib's inflater, kept because a new one is slow to make.
var flateReader = flate.NewReader(bytes.NewReader(nil))

// flateOracle expands the deflate stream at the start of src as stdlib does, into at most size
// bytes, and returns what is left of src.
func flateOracle(src []byte, size int) (data, rest []byte, err error) {
	r := bytes.NewReader(src)
	flateReader.(flate.Resetter).Reset(r, nil)
	data, err = io.ReadAll(io.LimitReader(flateReader, int64(size)+1))
	if err == nil && len(data) > size {
		err = errTooLong
	}
	return data, src[len(src)-r.Len():], err
}

// zlibReader is the same for zlib streams. There is none without a stream.
var zlibReader, _ = zlib.NewReader(bytes.NewReader([]byte{0x78, 0x9c, 1, 0, 0, 0xff, 0xff, 0, 0, 0, 1}))

// zlibOracle is flateOracle for a zlib stream, whose checksum it compares.
func zlibOracle(src []byte, size int) ([]byte, error) {
	if err := zlibReader.(zlib.Resetter).Reset(bytes.NewReader(src), nil); err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(zlibReader, int64(size)+1))
	if err == nil && len(data) > size {
		err = errTooLong
	}
	return data, err
}

// inflateInto expands src into size bytes that have a guard behind them, within the
// capacity of the slice.
func inflateInto(t testing.TB, src []byte, size int) ([]byte, error) {
	t.Helper()
	const guard = 400 // more than one step of the fast loop writes
	buf := bytes.Repeat([]byte{0xa5}, size+guard)
	n, err := gzipDecoder{}.Decode(buf[:size], src)
	if n < 0 || n > size {
		t.Fatalf("%d bytes in %d", n, size)
	}
	for i, c := range buf[size:] {
		if c != 0xa5 {
			t.Fatalf("wrote byte %d of %d", size+i, size)
		}
	}
	return buf[:n], err
}

// compareZlib expands src into size bytes, here and with stdlib, and compares the verdict and the data.
func compareZlib(t testing.TB, src []byte, size int) {
	t.Helper()
	want, wantErr := zlibOracle(src, size)
	got, err := inflateInto(t, src, size)
	if (err == nil) != (wantErr == nil) {
		t.Fatalf("into %d bytes: error %v, stdlib has %v\n%x", size, err, wantErr, src)
	}
	if err == nil && !bytes.Equal(got, want) {
		t.Fatalf("into %d bytes: other data than stdlib\n%x", size, src)
	}
}

// deflateShapes are inputs that make encoders use all that the format has.
func deflateShapes() map[string]func(n int) []byte {
	rnd := rand.New(rand.NewPCG(3, 4))
	return map[string]func(n int) []byte{
		"zeros": func(n int) []byte { return make([]byte, n) },
		"noise": func(n int) []byte {
			b := make([]byte, n)
			for i := range b {
				b[i] = byte(rnd.Uint32())
			}
			return b
		},
		"sample": sample,
		"skewed": func(n int) []byte { // long codes
			b := make([]byte, n)
			for i := range b {
				b[i] = byte(rnd.ExpFloat64() * 8)
			}
			return b
		},
		"far": func(n int) []byte { // matches at every distance up to the window
			b := make([]byte, 0, n+300)
			for len(b) < n {
				if len(b) < 100 || rnd.IntN(3) == 0 {
					b = append(b, byte(rnd.Uint32()))
					continue
				}
				dist := 1 + rnd.IntN(min(len(b), 1<<rnd.IntN(16)))
				for range 3 + rnd.IntN(1<<rnd.IntN(9)) {
					b = append(b, b[len(b)-dist])
				}
			}
			return b[:n]
		},
		"lines": func(n int) []byte {
			var b []byte
			for len(b) < n {
				b = fmt.Appendf(b, "drwxr-xr-x %d root root %d /usr/lib/python3/%x\n", rnd.IntN(4), rnd.IntN(1<<16), rnd.Uint32())
			}
			return b[:n]
		},
	}
}

// resetWriter is an encoder that can be used again.
type resetWriter interface {
	io.WriteCloser
	Reset(w io.Writer)
}

// zlibWriters make zlib streams: the encoders of stdlib and klauspost at all levels, from
// -2, Huffman codes only, over 0, stored blocks, to 9.
func zlibWriters() map[string]resetWriter {
	m := make(map[string]resetWriter)
	for level := zlib.HuffmanOnly; level <= zlib.BestCompression; level++ {
		m[fmt.Sprint("stdlib ", level)], _ = zlib.NewWriterLevel(nil, level)
		m[fmt.Sprint("klauspost ", level)], _ = kzlib.NewWriterLevel(nil, level)
	}
	return m
}

// deflated returns the zlib stream of b.
func deflated(b []byte) []byte {
	var buf bytes.Buffer
	w := zlib.NewWriter(&buf)
	w.Write(b)
	w.Close()
	return buf.Bytes()
}

func TestInflateRoundTrip(t *testing.T) {
	sizes := []int{0, 1, 2, 3, 4, 7, 8, 9, 63, 64, 257, 258, 259, 260, 299, 300, 301, 302, 303, 4096, 8191, 8192, 32767, 32768, 32769, 65535, 65536, 131072, 1 << 18}
	for writer, w := range zlibWriters() {
		for shape, data := range deflateShapes() {
			for _, size := range sizes {
				if size > 8192 && shape != "far" {
					continue
				}
				want := data(size)
				var buf bytes.Buffer
				w.Reset(&buf)
				w.Write(want)
				w.Close()
				src := buf.Bytes()
				for _, room := range []int{size, size + 1, size + 400} {
					got, err := inflateInto(t, src, room)
					if err != nil || !bytes.Equal(got, want) {
						t.Fatalf("%s of %d bytes of %s into %d: %d bytes, %v", writer, size, shape, room, len(got), err)
					}
				}
				if size > 0 {
					if _, err := inflateInto(t, src, size-1); !errors.Is(err, errTooLong) {
						t.Fatalf("%s of %d bytes of %s into one less: %v", writer, size, shape, err)
					}
				}
			}
		}
	}
}

// TestInflateDamage cuts streams everywhere and changes each of their bytes.
func TestInflateDamage(t *testing.T) {
	for shape, data := range deflateShapes() {
		const size = 400
		want := data(size)
		for _, level := range []int{zlib.HuffmanOnly, zlib.NoCompression, zlib.BestSpeed, zlib.BestCompression} {
			var buf bytes.Buffer
			w, _ := zlib.NewWriterLevel(&buf, level)
			w.Write(want[:size/2])
			w.Flush()
			w.Write(want[size/2:])
			w.Close()
			src := buf.Bytes()
			for cut := range src {
				if _, err := inflateInto(t, src[:cut], size); !errors.Is(err, errTruncated) {
					t.Fatalf("%s, level %d: %d of %d bytes: %v", shape, level, cut, len(src), err)
				}
			}
			for i := range src {
				for _, flip := range []byte{1, 2, 4, 8, 16, 32, 64, 128, 255} {
					damaged := bytes.Clone(src)
					damaged[i] ^= flip
					compareZlib(t, damaged, size)
					compareInflate(t, damaged[2:], size)
				}
			}
		}
	}
}

// bitWriter writes a deflate stream by hand.
type bitWriter struct {
	b   []byte
	acc uint64
	n   int
}

func (w *bitWriter) bits(v uint64, n int) {
	w.acc |= v << w.n
	for w.n += n; w.n >= 8; w.n -= 8 {
		w.b = append(w.b, byte(w.acc))
		w.acc >>= 8
	}
}

// zlib returns the stream with the header and the checksum of data.
func (w *bitWriter) zlib(data []byte) []byte {
	if w.n > 0 {
		w.bits(0, 8-w.n)
	}
	return binary.BigEndian.AppendUint32(append([]byte{0x78, 0x9c}, w.b...), adler32.Checksum(data))
}

// huffman writes symbols in a code with these lengths.
type huffman struct {
	lens, codes []int
}

func newHuffman(lens []int) *huffman {
	h := &huffman{lens, make([]int, len(lens))}
	code := 0
	for n := 1; n <= 15; n++ {
		for sym, l := range lens {
			if l == n {
				h.codes[sym] = code
				code++
			}
		}
		code <<= 1
	}
	return h
}

func (h *huffman) write(w *bitWriter, sym int) {
	for i := h.lens[sym] - 1; i >= 0; i-- {
		w.bits(uint64(h.codes[sym]>>i&1), 1)
	}
}

// fixedCodes returns the codes of fixed blocks, for literals and distances.
func fixedCodes() (lit, dist *huffman) {
	lens := append(slices.Repeat([]int{8}, 144), slices.Repeat([]int{9}, 112)...)
	lens = append(lens, slices.Repeat([]int{7}, 24)...)
	lens = append(lens, slices.Repeat([]int{8}, 8)...)
	return newHuffman(lens), newHuffman(slices.Repeat([]int{5}, 32))
}

// blockCodes writes the head of a dynamic block. Its precode has a code for every symbol, and
// repeats are not used.
func blockCodes(w *bitWriter, final uint64, litlen, dist []int) {
	w.bits(final|2<<1, 3)
	w.bits(uint64(len(litlen)-257), 5)
	w.bits(uint64(len(dist)-1), 5)
	w.bits(15, 4)
	lens := make([]int, 19) // 13 of 4 bits and 6 of 5 bits
	for i := range lens {
		lens[i] = 4
		if i >= 13 {
			lens[i] = 5
		}
	}
	for _, sym := range precodeOrder {
		w.bits(uint64(lens[sym]), 3)
	}
	h := newHuffman(lens)
	for _, l := range append(slices.Clone(litlen), dist...) {
		h.write(w, l)
	}
}

// ones returns n lengths, all 0 but those of syms, which are 1.
func ones(n int, syms ...int) []int {
	lens := make([]int, n)
	for _, s := range syms {
		lens[s] = 1
	}
	return lens
}

// handmadeStream is a zlib stream that no encoder would write.
type handmadeStream struct {
	name string
	src  []byte
	want error
}

// handmade returns streams with one thing wrong each, or nothing. All that are right are
// of nothing.
func handmade() []handmadeStream {
	stream := func(make func(w *bitWriter)) []byte {
		var w bitWriter
		make(&w)
		return w.zlib(nil)
	}
	fixedCode, _ := fixedCodes()
	empty := stream(func(w *bitWriter) { w.bits(1|1<<1, 3); fixedCode.write(w, 256) })
	head := func(cmf, flg byte) []byte {
		b := bytes.Clone(empty)
		b[0], b[1] = cmf, flg
		return b
	}
	return []handmadeStream{
		{"empty fixed block", empty, nil},
		{"empty source", nil, errTruncated},
		{"window of 256 bytes", head(0x08, 0x1d), nil},
		{"window of 64 KiB", head(0x88, 0x1c), errHeader},
		{"method 7", head(0x77, 0x85), errHeader},
		{"check bits", head(0x78, 0x9d), errHeader},
		{"dictionary", head(0x78, 0xbb), errDict},
		{"block type 3", stream(func(w *bitWriter) { w.bits(1|3<<1, 3) }), errBlockType},
		{"stored", stream(func(w *bitWriter) { w.bits(1, 8); w.bits(0xffff0000, 32) }), nil},
		{"stored, length", stream(func(w *bitWriter) { w.bits(1, 8); w.bits(0xfffe0000, 32) }), errStored},
		{"stored, cut", stream(func(w *bitWriter) { w.bits(1, 8); w.bits(0xfffa0005, 32) }), errTruncated},
		{"fixed, length symbol 286", stream(func(w *bitWriter) { w.bits(3, 3); fixedCode.write(w, 286) }), errSymbol},
		{"fixed, distance symbol 30", stream(func(w *bitWriter) { w.bits(3, 3); fixedCode.write(w, 'a'); fixedCode.write(w, 257); w.bits(0b01111, 5) }), errSymbol},
		{"fixed, distance 1 at the start", stream(func(w *bitWriter) { w.bits(3, 3); fixedCode.write(w, 257); w.bits(0, 5) }), errDistance},
		{"287 literals", stream(func(w *bitWriter) { blockCodes(w, 1, ones(287, 0, 256), ones(1)) }), errLengths},
		{"31 distances", stream(func(w *bitWriter) { blockCodes(w, 1, ones(257, 0, 256), ones(31)) }), errLengths},
		{"no end of block", stream(func(w *bitWriter) { blockCodes(w, 1, ones(257, 0, 1), ones(1)) }), errLengths},
		{"end of block alone", stream(func(w *bitWriter) { blockCodes(w, 1, ones(257, 256), ones(1)); w.bits(0, 1) }), nil},
		{"end of block alone, other bit", stream(func(w *bitWriter) { blockCodes(w, 1, ones(257, 256), ones(1)); w.bits(1, 1) }), errSymbol},
		{"literals incomplete", stream(func(w *bitWriter) { l := ones(257); l[256] = 2; blockCodes(w, 1, l, ones(1)) }), errIncomplete},
		{"literals over-subscribed", stream(func(w *bitWriter) { blockCodes(w, 1, ones(257, 0, 1, 256), ones(1)) }), errOverSubscribed},
		{"one distance", stream(func(w *bitWriter) { blockCodes(w, 1, ones(257, 0, 256), ones(1, 0)); w.bits(1, 1) }), nil},
		{"one distance of two bits", stream(func(w *bitWriter) { l := ones(1); l[0] = 2; blockCodes(w, 1, ones(257, 0, 256), l) }), errIncomplete},
		{"three distances", stream(func(w *bitWriter) { blockCodes(w, 1, ones(257, 0, 256), ones(3, 0, 1, 2)) }), errOverSubscribed},
		{"length without distances", stream(func(w *bitWriter) {
			l := ones(258)
			l[0], l[256], l[257] = 1, 2, 2
			blockCodes(w, 1, l, ones(1))
			w.bits(0b110, 3)
		}), errSymbol},
		{"the other distance of one", stream(func(w *bitWriter) {
			l := ones(258)
			l[0], l[256], l[257] = 1, 2, 2
			blockCodes(w, 1, l, ones(1, 0))
			w.bits(0b1110, 4)
		}), errSymbol},
		{"precode incomplete", stream(func(w *bitWriter) { w.bits(1|2<<1, 3); w.bits(0, 14); w.bits(1, 3); w.bits(0, 9) }), errLengths},
		{"precode empty", stream(func(w *bitWriter) { w.bits(1|2<<1, 3); w.bits(0, 14); w.bits(0, 12) }), errLengths},
		{"precode over-subscribed", stream(func(w *bitWriter) { w.bits(1|2<<1, 3); w.bits(0, 14); w.bits(0o1111, 12) }), errOverSubscribed},
		{"repeat of nothing", stream(func(w *bitWriter) { w.bits(1|2<<1, 3); w.bits(0, 14); w.bits(0o0011, 12); w.bits(0, 1) }), errLengths},
		{"repeat past the end", stream(func(w *bitWriter) {
			w.bits(1|2<<1, 3)
			w.bits(0, 14)
			w.bits(0o1100, 12)
			w.bits(0xff, 8)
			w.bits(0xff, 8)
		}), errLengths},
		{"checksum", append(bytes.Clone(empty[:len(empty)-1]), 2), errChecksum},
		{"without checksum", empty[:len(empty)-1], errTruncated},
		{"cut in the end of block, all 0", empty[:3], errTruncated},
		{"without deflate stream", empty[:2], errTruncated},
	}
}

// TestInflateRefuses holds what is wrong with a stream. With bytes behind the stream it
// is for the fast loop to find, else for the careful one.
func TestInflateRefuses(t *testing.T) {
	for _, test := range handmade() {
		for _, behind := range []int{0, 100} {
			if behind > 0 && errors.Is(test.want, errTruncated) {
				continue
			}
			src := append(bytes.Clone(test.src), make([]byte, behind)...)
			if got, err := inflateInto(t, src, 1000); !errors.Is(err, test.want) || err == nil && len(got) != 0 {
				t.Errorf("%s, %d bytes behind: %d bytes, error %v, want %v", test.name, behind, len(got), err, test.want)
			}
			compareZlib(t, src, 1000)
		}
	}
}

// TestInflateCodes expands streams with random codes and random symbols in them: long
// codes, linked tables and distances that no encoder would choose.
func TestInflateCodes(t *testing.T) {
	rnd := rand.New(rand.NewPCG(5, 6))
	for range 200 {
		var w bitWriter
		var data []byte
		for final := range uint64(2) {
			data = randomBlock(&w, rnd, final, data)
		}
		src := w.zlib(data)
		for _, room := range []int{len(data), len(data) + 400} {
			got, err := inflateInto(t, src, room)
			if err != nil || !bytes.Equal(got, data) {
				t.Fatalf("%d of %d bytes, %v\n%x", len(got), len(data), err, src)
			}
		}
		compareZlib(t, src, len(data)/2)
		src[2+rnd.IntN(len(src)-2)] ^= 1 << rnd.IntN(8)
		compareInflate(t, src[2:], len(data))
	}
}

// randomBlock writes a compressed block and appends what it holds to data. One in four is
// fixed.
func randomBlock(w *bitWriter, rnd *rand.Rand, final uint64, data []byte) []byte {
	lit, dist := fixedCodes()
	if rnd.IntN(4) == 0 {
		w.bits(final|1<<1, 3)
	} else {
		lit = newHuffman(randomLens(rnd, 257+rnd.IntN(30), endOfBlock))
		dist = newHuffman(randomLens(rnd, 1+rnd.IntN(30), 0))
		blockCodes(w, final, lit.lens, dist.lens)
	}
	for range rnd.IntN(2000) {
		sym := rnd.IntN(min(len(lit.lens), maxLitlenCodes))
		if lit.lens[sym] == 0 || sym == endOfBlock {
			continue
		}
		if sym < endOfBlock {
			lit.write(w, sym)
			data = append(data, byte(sym))
			continue
		}
		d := rnd.IntN(min(len(dist.lens), maxDistCodes))
		length, lengthBits := symbolRange(litlenSymbols[sym])
		distance, distBits := symbolRange(distSymbols[d])
		length += rnd.IntN(1 << lengthBits)
		distance += rnd.IntN(1 << distBits)
		if dist.lens[d] == 0 || distance > len(data) {
			continue
		}
		lit.write(w, sym)
		base, _ := symbolRange(litlenSymbols[sym])
		w.bits(uint64(length-base), lengthBits)
		dist.write(w, d)
		base, _ = symbolRange(distSymbols[d])
		w.bits(uint64(distance-base), distBits)
		for range length {
			data = append(data, data[len(data)-distance])
		}
	}
	lit.write(w, endOfBlock)
	return data
}

// symbolRange returns the base and the extra bits of a length or distance.
func symbolRange(symbol uint32) (base, bits int) { return int(symbol >> entryBase), int(symbol & 0xff) }

// randomLens returns the lengths of a complete code for some of n symbols, need among
// them: a leaf of the tree is split until there are enough.
func randomLens(rnd *rand.Rand, n, need int) []int {
	leaves := []int{1, 1}
	want := min(2+rnd.IntN(n), n)
	skew := rnd.IntN(3)
	for tries := 0; len(leaves) < want && tries < 10000; tries++ {
		i := rnd.IntN(len(leaves))
		for range skew {
			i = max(i, rnd.IntN(len(leaves)))
		}
		if leaves[i] == 15 {
			continue
		}
		leaves[i]++
		leaves = append(leaves, leaves[i])
	}
	lens := make([]int, n)
	if n == 1 {
		lens[0] = 1
		return lens
	}
	syms := rnd.Perm(n)
	at := slices.Index(syms, need)
	syms[0], syms[at] = syms[at], syms[0]
	for i, l := range leaves {
		lens[syms[i]] = l
	}
	return lens
}

// TestInflateLongest expands matches that take all bits they can, 48, after literals of
// all lengths, so that they come with as few bits left in the buffer as there can be.
func TestInflateLongest(t *testing.T) {
	lens := func(n int, long ...int) []int { // 1, 2 ... 15 bits, one each, and 15 for a second
		l := make([]int, n)
		for i := range 15 - len(long) + 1 {
			l[i] = i + 1
		}
		for _, sym := range long {
			l[sym] = 15
		}
		return l
	}
	rnd := rand.New(rand.NewPCG(7, 8))
	lit := newHuffman(lens(285, 284, endOfBlock))
	dist := newHuffman(lens(30, 29, 28))
	noise := deflateShapes()["noise"](1 << 15)
	var w bitWriter
	w.bits(0, 8)
	w.bits(1<<15|uint64(^uint16(1<<15))<<16, 32)
	w.b = append(w.b, noise...)
	blockCodes(&w, 1, lit.lens, dist.lens)
	data := noise
	for range 5000 {
		for range rnd.IntN(4) {
			sym := rnd.IntN(14)
			lit.write(&w, sym)
			data = append(data, byte(sym))
		}
		extra, distance := rnd.IntN(31), rnd.IntN(1<<13) // an extra of 31 is symbol 285
		lit.write(&w, 284)
		w.bits(uint64(extra), 5)
		dist.write(&w, 29)
		w.bits(uint64(distance), 13)
		for range 227 + extra {
			data = append(data, data[len(data)-24577-distance])
		}
	}
	lit.write(&w, endOfBlock)
	if got, err := inflateInto(t, w.zlib(data), len(data)); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d of %d bytes, %v", len(got), len(data), err)
	}
}

// TestInflateAllocates holds that no block allocates.
func TestInflateAllocates(t *testing.T) {
	dst := make([]byte, sampleSize)
	for shape, data := range deflateShapes() {
		src := deflated(data(sampleSize))
		if n := testing.AllocsPerRun(100, func() { gzipDecoder{}.Decode(dst, src) }); n != 0 {
			t.Errorf("%s: %v allocations for each block", shape, n)
		}
	}
}

func BenchmarkInflate(b *testing.B) {
	for _, size := range []int{8 << 10, 128 << 10} {
		src := deflated(deflateShapes()["lines"](size))
		dst := make([]byte, size)
		b.Run(fmt.Sprintf("%dK", size>>10), func(b *testing.B) {
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := (gzipDecoder{}).Decode(dst, src); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func TestInflateConcurrent(t *testing.T) {
	var wg sync.WaitGroup
	for shape, data := range deflateShapes() {
		want := data(sampleSize)
		src := deflated(want)
		for range 2 {
			wg.Go(func() {
				dst := make([]byte, sampleSize)
				for range 50 {
					if n, err := (gzipDecoder{}).Decode(dst, src); err != nil || !bytes.Equal(dst[:n], want) {
						t.Errorf("%s: %d bytes, %v", shape, n, err)
					}
					gzipDecoder{}.Decode(dst[:100], src) // leaves the state in the middle of a block
				}
			})
		}
	}
	wg.Wait()
}

func TestAdler(t *testing.T) {
	for _, fill := range []byte{0, 1, 255} {
		b := bytes.Repeat([]byte{fill}, 200000)
		for _, n := range []int{0, 1, 7, 8, 9, 183, 184, 185, 5552, 5553, 65536, 200000} {
			if got, want := sumAdler(b[:n]), adler32.Checksum(b[:n]); got != want {
				t.Errorf("%d bytes of %d: %08x, want %08x", n, fill, got, want)
			}
		}
	}
	b := deflateShapes()["noise"](5000)
	for n := range b {
		if got, want := sumAdler(b[n/2:n]), adler32.Checksum(b[n/2:n]); got != want {
			t.Errorf("%d bytes of noise: %08x, want %08x", n, got, want)
		}
	}
}

// FuzzInflate holds that verdict, data and the end of a stream are those of stdlib. It
// feeds bare deflate streams, where no checksum stops what is damaged.
func FuzzInflate(f *testing.F) {
	for _, data := range deflateShapes() {
		src := deflated(data(300))
		f.Add(src[2:], uint32(300))
	}
	for _, h := range handmade() {
		f.Add(h.src[min(2, len(h.src)):], uint32(1000))
	}
	f.Fuzz(func(t *testing.T, src []byte, size uint32) {
		compareInflate(t, src, int(size%(1<<16+1)))
	})
}

// compareInflate is compareZlib for a deflate stream without header and checksum.
func compareInflate(t testing.TB, src []byte, size int) {
	want, rest, wantErr := flateOracle(src, size)
	buf := bytes.Repeat([]byte{0xa5}, size+400)
	n, used, err := inflate(buf[:size], src)
	if (err == nil) != (wantErr == nil) {
		t.Fatalf("into %d bytes: error %v, stdlib has %v", size, err, wantErr)
	}
	if err == nil && !bytes.Equal(buf[:n], want) {
		t.Fatalf("into %d bytes: other data than stdlib", size)
	}
	if err == nil && used != len(src)-len(rest) {
		t.Fatalf("into %d bytes: ended after %d bytes of the stream, stdlib after %d", size, used, len(src)-len(rest))
	}
	if guard := buf[size:]; bytes.Count(guard, []byte{0xa5}) != len(guard) {
		t.Fatalf("into %d bytes: wrote past the end", size)
	}
}
