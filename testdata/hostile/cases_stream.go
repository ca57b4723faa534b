package hostile

import (
	"bytes"
	"math"
)

// packed is the file whose only block the streams make.
const packed = "packed"

// streamCases have a compressed block in a stream that is wrong. All else is stored.
func streamCases() (list []spec) {
	for comp := uint16(gzip); comp <= zstd; comp++ {
		list = append(list, streamsOf(comp)...)
	}
	return append(list, []spec{
		{class: 20, name: "gzip-bad-checksum", wrong: "the Adler-32 of a zlib stream is wrong", want: Partly, bad: packed, plan: pack(gzip, 12, func() []byte { return flipLast(runOf(gzip, blockSize)) })},
		{class: 20, name: "xz-bad-checksum", wrong: "the CRC-32 of an xz block is wrong", want: Partly, bad: packed, plan: pack(xz, 12, func() []byte { return xzStream(runByte, blockSize, xzDict1M, 1) })},
		{class: 20, name: "xz-dictionary-4-gib", wrong: "an xz stream with a dictionary of 4 GiB", want: Either, bad: packed, plan: pack(xz, 12, func() []byte { return xzStream(runByte, blockSize, 40, 0) })},
		{class: 20, name: "xz-dictionary-63", wrong: "an xz stream with a dictionary size that does not exist", want: Partly, bad: packed, plan: pack(xz, 12, func() []byte { return xzStream(runByte, blockSize, 63, 0) })},
		{class: 20, name: "xz-dictionary-4-kib", wrong: "an xz stream with a dictionary of 4 KiB", want: Fine, plan: pack(xz, 12, func() []byte { return xzStream(runByte, blockSize, 0, 0) })},
		{class: 20, name: "lzma-dictionary-4-gib", wrong: "an lzma stream with a dictionary of 4 GiB", want: Either, bad: packed, plan: pack(lzma, 12, func() []byte { return lzmaAlone(runByte, blockSize, math.MaxUint32, blockSize) })},
		{class: 20, name: "lzma-dictionary-0", wrong: "an lzma stream with a dictionary of no byte", want: Either, bad: packed, plan: pack(lzma, 12, func() []byte { return lzmaAlone(runByte, blockSize, 0, blockSize) })},
		{class: 20, name: "lzma-size-max", wrong: "an lzma stream of unknown size without end mark", want: Either, bad: packed, plan: pack(lzma, 12, func() []byte { return lzmaAlone(runByte, blockSize, 1<<20, math.MaxUint64) })},
		{class: 4, name: "lzma-size-2-40", wrong: "an lzma stream that says it has 2^40 bytes", want: Partly, bad: packed, plan: pack(lzma, 12, func() []byte { return lzmaAlone(runByte, blockSize, 1<<20, 1<<40) })},
		{class: 5, name: "lzma-size-less", wrong: "an lzma stream that says it has a byte less than its block", want: Partly, bad: packed, plan: pack(lzma, 12, func() []byte { return lzmaAlone(runByte, blockSize, 1<<20, blockSize-1) })},
		{class: 20, name: "zstd-window-2-gib", wrong: "a zstd frame with a window of 2 GiB", want: Either, bad: packed, plan: packZstd(21<<3, blockSize)},
		{class: 20, name: "zstd-window-max", wrong: "a zstd frame with a window of 3.75 TiB", want: Partly, bad: packed, plan: packZstd(0xff, blockSize)},
		{class: 20, name: "zstd-no-size", wrong: "a zstd frame that does not say how long it is, which is legal", want: Fine, plan: packZstd(zstdWindow1M, noSize)},
		{class: 4, name: "zstd-size-2-62", wrong: "a zstd frame that says it has 2^62 bytes", want: Partly, bad: packed, plan: packZstd(zstdWindow1M, 1<<62)},
		{class: 4, name: "zstd-size-more", wrong: "a zstd frame that says it has a byte more", want: Partly, bad: packed, plan: packZstd(zstdWindow1M, blockSize+1)},
		{class: 5, name: "zstd-size-less", wrong: "a zstd frame that says it has a byte less", want: Partly, bad: packed, plan: packZstd(zstdWindow1M, blockSize-1)},
		{class: 4, name: "zstd-two-frames", wrong: "a zstd block of two frames, which make too much", want: Partly, bad: packed, plan: pack(zstd, 12, func() []byte { return bytes.Repeat(runOf(zstd, blockSize), 2) })},
		{class: 20, name: "zstd-reserved-block", wrong: "a zstd block of the reserved type", want: Partly, bad: packed, plan: pack(zstd, 12, func() []byte { return append(zstdRun(0, zstdWindow1M, blockSize)[:14], 7, 0, 0) })},

		{class: 20, name: "options-xz-dictionary-0", wrong: "xz options with a dictionary of no byte", want: Either, plan: options(xz, words(0, 0))},
		{class: 20, name: "options-xz-dictionary-4-gib", wrong: "xz options with a dictionary of 4 GiB", want: Either, plan: options(xz, words(math.MaxUint32, 0))},
		{class: 20, name: "options-xz-filters", wrong: "xz options with all filters there are and are not", want: Either, plan: options(xz, words(1<<20, math.MaxUint32))},
		{class: 20, name: "options-gzip-window", wrong: "gzip options with a window of 2^65535", want: Either, plan: options(gzip, words(9, math.MaxUint32))},
		{class: 20, name: "options-zstd-level", wrong: "zstd options with level -2^31", want: Either, plan: options(zstd, words(1<<31))},
		{class: 20, name: "options-lz4", wrong: "lz4 options as they are", want: Fine, plan: options(lz4, words(1, 0))},
		{class: 20, name: "options-lz4-12-bytes", wrong: "lz4 options of 12 bytes, as new tools write them", want: Fine, plan: options(lz4, words(1, 2, 9))},
		{class: 20, name: "options-lz4-version", wrong: "lz4 options with version 2", want: Refuse, plan: options(lz4, words(2, 0))},
		{class: 20, name: "options-lz4-none", wrong: "an lz4 image without options", want: Refuse, plan: options(lz4, nil)},
		{class: 20, name: "options-lz4-3-bytes", wrong: "lz4 options that end inside the version", want: Refuse, plan: options(lz4, []byte{1, 0, 0})},
		{class: 20, name: "options-lzo", wrong: "lzo options with an algorithm that does not exist", want: Either, plan: options(lzo, words(99, 99))},
		{class: 20, name: "options-8192", wrong: "options as long as a metadata block", want: Either, plan: options(gzip, make([]byte, 8192))},
		{class: 20, name: "options-length-0", wrong: "the flag for options and a block of length 0", want: Refuse, plan: options(gzip, []byte{})},
		{class: 20, name: "options-length-8193", wrong: "options longer than a metadata block", want: Refuse, plan: options(gzip, make([]byte, 8193))},
	}...)
}

// streamsOf are what can be wrong with a stream of any compressor. The first is right.
func streamsOf(comp uint16) []spec {
	name := compressors[comp] + "-"
	run := func(n int) func() []byte { return func() []byte { return runOf(comp, n) } }
	trailing := map[uint16]Want{gzip: Fine, lzma: Either, xz: Either}
	want, ok := trailing[comp]
	if !ok {
		want = Partly
	}
	bad := packed
	if want == Fine {
		bad = ""
	}
	return []spec{
		{class: 4, name: name + "right", wrong: "nothing: a block as it should be", want: Fine, plan: pack(comp, 12, run(blockSize))},
		{class: 4, name: name + "bomb", wrong: "a block of 1 MiB that expands to 100 MiB", want: Partly, bad: packed, plan: pack(comp, 20, run(100<<20))},
		{class: 4, name: name + "long", wrong: "a block that expands to a byte more", want: Partly, bad: packed, plan: pack(comp, 12, run(blockSize+1))},
		{class: 5, name: name + "short", wrong: "a block that expands to a byte less", want: Partly, bad: packed, plan: pack(comp, 12, run(blockSize-1))},
		{class: 5, name: name + "empty", wrong: "a block that expands to nothing", want: Partly, bad: packed, plan: pack(comp, 12, run(0))},
		{class: 5, name: name + "cut", wrong: "a block whose stream is cut in half", want: Partly, bad: packed, plan: pack(comp, 12, func() []byte { s := runOf(comp, blockSize); return s[:len(s)/2] })},
		{class: 5, name: name + "one-byte", wrong: "a block of one byte", want: Partly, bad: packed, plan: pack(comp, 12, func() []byte { return runOf(comp, blockSize)[:1] })},
		{class: 4, name: name + "garbage", wrong: "a block of bytes 0xff", want: Partly, bad: packed, plan: pack(comp, 12, func() []byte { return bytes.Repeat([]byte{0xff}, 500) })},
		{class: 4, name: name + "zeros", wrong: "a block of bytes 0", want: Partly, bad: packed, plan: pack(comp, 12, func() []byte { return make([]byte, 500) })},
		{class: 19, name: name + "trailing", wrong: "bytes behind the stream in its block", want: want, bad: bad, plan: pack(comp, 12, func() []byte { return append(runOf(comp, blockSize), "trailing"...) })},
	}
}

// pack adds a file of one block that is packed as stream says, whatever is in it.
func pack(comp, log uint16, stream func() []byte) func(*builder) {
	return func(b *builder) {
		b.comp, b.log = comp, log
		if comp == lz4 {
			b.options = words(1, 0)
		}
		b.root.attach(packed, file(bytes.Repeat([]byte{runByte}, 1<<log)))
		b.pack = func(name string, _ int, raw []byte) ([]byte, bool) {
			if name == packed {
				return stream(), false
			}
			return raw, true
		}
	}
}

func packZstd(window byte, size uint64) func(*builder) {
	return pack(zstd, 12, func() []byte { return zstdRun(blockSize, window, size) })
}

func flipLast(b []byte) []byte {
	b[len(b)-1] ^= 1
	return b
}

// options puts compressor options behind the superblock.
func options(comp uint16, b []byte) func(*builder) {
	return func(to *builder) { to.comp, to.options = comp, b }
}

func words(list ...uint32) (b []byte) {
	for _, w := range list {
		b = le.AppendUint32(b, w)
	}
	return b
}
