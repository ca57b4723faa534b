package codec

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"hash/crc64"
)

// xzDecoder expands compressor 4: each block is a complete .xz stream, and what it
// holds is compressed with LZMA2 alone or with one BCJ filter before it
// (squashfs-tools, xz_wrapper.c). Taken is whatever the format allows: several blocks,
// chains of filters, all checks; but not the Delta filter. Bytes behind the stream are
// ignored, as the kernel ignores them. The format is in doc/xz-file-format.txt of XZ
// Utils; sections in comments are its.
//
// Sizes of dictionaries are not looked at: the output is the dictionary.
type xzDecoder struct{}

func (xzDecoder) Decode(dst, src []byte) (int, error) {
	z := lzmaStates.Get().(*lzmaState)
	x := xzReader{src: src, lzma: z}
	n, err := x.stream(dst)
	lzmaStates.Put(z)
	return n, err
}

const (
	xzHeaderMagic = "\xfd7zXZ\x00"
	xzFooterMagic = "YZ"
	xzHeaderSize  = 12
	xzFooterSize  = 12
)

// Checks over the data of a block: section 2.1.1.2.
const (
	xzCheckNone   = 0
	xzCheckCRC32  = 1
	xzCheckCRC64  = 4
	xzCheckSHA256 = 10
)

// Filters: section 5.3.
const (
	xzDelta = 0x03
	xzLZMA2 = 0x21
)

var (
	errXZTruncated = errors.New("xz: stream ends early")
	errXZMagic     = errors.New("xz: no stream header")
	errXZHeaderCRC = errors.New("xz: checksum of a header is wrong")
	errXZReserved  = errors.New("xz: reserved bits or padding are not zero")
	errXZNumber    = errors.New("xz: malformed number")
	errXZFilters   = errors.New("xz: filter chain is malformed")
	errXZSizes     = errors.New("xz: sizes in the header of a block are wrong")
	errXZCheck     = errors.New("xz: checksum of the data is wrong")
	errXZIndex     = errors.New("xz: index does not match the blocks")
	errXZFooter    = errors.New("xz: footer does not match the header")

	errLZMA2Control = errors.New("xz: lzma2: unknown chunk")
	errLZMA2Reset   = errors.New("xz: lzma2: first chunk does not reset the dictionary")
	errLZMA2Props   = errors.New("xz: lzma2: chunk without properties after a reset of the dictionary")
)

// An xzReader is what is known of a stream while it is read.
type xzReader struct {
	src   []byte
	pos   int // of the next byte in src
	check byte
	lzma  *lzmaState
}

// An xzIndex sums up the sizes of blocks: once over the blocks, once over the index.
type xzIndex struct {
	blocks uint64
	sum    uint64
}

// add takes in one block: its unpadded size, and that of its data (section 3.3).
func (x *xzIndex) add(unpadded, size uint64) {
	x.blocks++
	const prime = 1<<40 + 0x1b3 // of FNV-1a, which is good enough to find damage
	x.sum = (x.sum ^ unpadded) * prime
	x.sum = (x.sum ^ size) * prime
}

// stream expands a stream into dst (section 2.1).
func (x *xzReader) stream(dst []byte) (int, error) {
	header, err := x.next(xzHeaderSize)
	if err != nil {
		return 0, err
	}
	if string(header[:6]) != xzHeaderMagic {
		return 0, errXZMagic
	}
	flags := header[6:8]
	if !crcIs(flags, header[8:12]) {
		return 0, errXZHeaderCRC
	}
	if flags[0] != 0 || flags[1] > 15 {
		return 0, errXZReserved
	}
	x.check = flags[1]
	if _, err := checkSize(x.check); err != nil {
		return 0, err
	}

	var blocks xzIndex
	n := 0
	for x.pos < len(x.src) && x.src[x.pos] != 0 {
		unpadded, size, err := x.block(dst[n:])
		n += size
		if err != nil {
			return n, err
		}
		blocks.add(uint64(unpadded), uint64(size))
	}
	start := x.pos
	if err := x.index(blocks); err != nil {
		return n, err
	}
	return n, x.footer(flags, x.pos-start)
}

// next returns the next n bytes.
func (x *xzReader) next(n int) ([]byte, error) {
	if n > len(x.src)-x.pos {
		return nil, errXZTruncated
	}
	b := x.src[x.pos : x.pos+n]
	x.pos += n
	return b, nil
}

// padding skips bytes up to a multiple of 4 from start, which have to be zero.
func (x *xzReader) padding(start int) error {
	b, err := x.next(-(x.pos - start) & 3)
	if err != nil {
		return err
	}
	if !allZero(b) {
		return errXZReserved
	}
	return nil
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// crcIs reports whether want is the CRC32 of b.
func crcIs(b, want []byte) bool {
	return crc32.ChecksumIEEE(b) == binary.LittleEndian.Uint32(want)
}

// xzNumber decodes the number at the start of b, and how many bytes it takes: 7 bits in
// each byte, lowest first, at most 9 bytes, no more than needed. If it is malformed,
// that gives noNumber, and 0 bytes (section 1.2).
func xzNumber(b []byte) (v uint64, n int) {
	for i, c := range b[:min(len(b), 9)] {
		v |= uint64(c&0x7f) << (7 * i)
		if c < 0x80 {
			if c == 0 && i > 0 {
				return noNumber, 0
			}
			return v, i + 1
		}
	}
	return noNumber, 0
}

// index reads the index, and compares it with the blocks that there were. 4
func (x *xzReader) index(blocks xzIndex) error {
	start := x.pos
	if _, err := x.next(1); err != nil { // the indicator, 0, which ended the blocks
		return err
	}
	number := func() uint64 {
		v, n := xzNumber(x.src[x.pos:])
		x.pos += n
		return v
	}
	if number() != blocks.blocks {
		return errXZIndex
	}
	var listed xzIndex
	for listed.blocks < blocks.blocks {
		unpadded := number()
		listed.add(unpadded, number())
	}
	if listed != blocks {
		return errXZIndex
	}
	if err := x.padding(start); err != nil {
		return err
	}
	end := x.pos
	crc, err := x.next(4)
	if err != nil {
		return err
	}
	if !crcIs(x.src[start:end], crc) {
		return errXZHeaderCRC
	}
	return nil
}

// footer reads the footer. index is the size of the index (section 2.1.2).
func (x *xzReader) footer(flags []byte, index int) error {
	b, err := x.next(xzFooterSize)
	if err != nil {
		return err
	}
	if !crcIs(b[4:10], b[:4]) {
		return errXZHeaderCRC
	}
	backward := (uint64(binary.LittleEndian.Uint32(b[4:])) + 1) * 4
	if backward != uint64(index) || string(b[8:10]) != string(flags) || string(b[10:]) != xzFooterMagic {
		return errXZFooter
	}
	return nil
}

// xzFilters are the filters before LZMA2, in the order of the encoder.
type xzFilters struct {
	n      int
	filter [3]struct {
		decode bcjFilter
		start  uint32 // position of the first byte
	}
}

// noNumber stands for a size that the header of a block does not have, and for a
// number that is malformed: numbers have 63 bits.
const noNumber = 1<<64 - 1

// block expands a block into dst. It returns its size in the stream without padding,
// and how long its data is. 3
func (x *xzReader) block(dst []byte) (unpadded, n int, err error) {
	start := x.pos
	header, err := x.next((int(x.src[start]) + 1) * 4)
	if err != nil {
		return 0, 0, err
	}
	var filters xzFilters
	compressed, size, err := blockHeader(header, &filters)
	if err != nil {
		return 0, 0, err
	}
	data := x.pos
	n, err = x.lzma2(dst)
	if err != nil {
		return 0, n, err
	}
	if compressed != noNumber && compressed != uint64(x.pos-data) || size != noNumber && size != uint64(n) {
		return 0, n, errXZSizes
	}
	unpadded = x.pos - start
	if err = x.padding(data); err != nil {
		return 0, n, err
	}
	for i := filters.n - 1; i >= 0; i-- {
		f := &filters.filter[i]
		f.decode(dst[:n], f.start)
	}
	want, _ := checkSize(x.check)
	sum, err := x.next(want)
	if err != nil {
		return 0, n, err
	}
	if !checkIs(x.check, dst[:n], sum) {
		return 0, n, errXZCheck
	}
	return unpadded + want, n, nil
}

// blockHeader decodes the header of a block: sizes of the compressed and of the
// expanded data, and the filters (section 3.1).
func blockHeader(b []byte, filters *xzFilters) (compressed, size uint64, err error) {
	end := len(b) - 4
	if !crcIs(b[:end], b[end:]) {
		return 0, 0, errXZHeaderCRC
	}
	flags := b[1]
	b = b[2:end]
	if flags&0x3c != 0 {
		return 0, 0, errXZReserved
	}
	number := func() uint64 {
		v, n := xzNumber(b)
		if v == noNumber {
			err = errXZNumber
		}
		b = b[n:]
		return v
	}
	compressed, size = noNumber, noNumber
	if flags&0x40 != 0 {
		compressed = number()
	}
	if flags&0x80 != 0 {
		size = number()
	}
	last := int(flags & 3)
	for i := 0; i <= last && err == nil; i++ {
		id, props := number(), number()
		if err != nil {
			break
		}
		if props > uint64(len(b)) {
			return 0, 0, errXZFilters
		}
		err = filters.add(id, b[:props], i == last)
		b = b[props:]
	}
	if err == nil && !allZero(b) {
		err = errXZReserved
	}
	return compressed, size, err
}

// add takes in a filter of a chain (section 5.3). LZMA2 has to be the last, and only it.
func (f *xzFilters) add(id uint64, props []byte, last bool) error {
	if id == xzLZMA2 {
		if !last || len(props) != 1 || props[0] > 40 {
			return errXZFilters
		}
		return nil
	}
	if id == xzDelta {
		return errors.New("xz: the Delta filter is not supported")
	}
	bcj, ok := bcjFilters[id]
	if !ok {
		return fmt.Errorf("xz: unknown filter %#x", id)
	}
	if last || len(props) != 0 && len(props) != 4 {
		return errXZFilters
	}
	var start uint32
	if len(props) == 4 {
		if start = binary.LittleEndian.Uint32(props); start%bcj.align != 0 {
			return errXZFilters
		}
	}
	f.filter[f.n].decode = bcj.decode
	f.filter[f.n].start = start
	f.n++
	return nil
}

// checkSize returns how many bytes a check takes.
func checkSize(check byte) (int, error) {
	switch check {
	case xzCheckNone:
		return 0, nil
	case xzCheckCRC32:
		return 4, nil
	case xzCheckCRC64:
		return 8, nil
	case xzCheckSHA256:
		return sha256.Size, nil
	}
	return 0, fmt.Errorf("xz: unknown check %d", check)
}

// checkIs reports whether sum is the check over data.
func checkIs(check byte, data, sum []byte) bool {
	switch check {
	case xzCheckCRC32:
		return crcIs(data, sum)
	case xzCheckCRC64:
		return crc64.Checksum(data, crc64.MakeTable(crc64.ECMA)) == binary.LittleEndian.Uint64(sum)
	case xzCheckSHA256:
		return sha256.Sum256(data) == [sha256.Size]byte(sum)
	}
	return true
}

// lzma2 expands the chunks of an LZMA2 stream into dst. XZ Utils describes them in
// liblzma's lzma2_decoder.c only. The first byte of each says what it is:
//
//	0x00       the end
//	0x01       stored data, after a reset of the dictionary
//	0x02       stored data
//	0x80-0x9f  LZMA
//	0xa0-0xbf  LZMA, after a reset of the state
//	0xc0-0xdf  LZMA, after a reset of the state, with new properties
//	0xe0-0xff  the same, after a reset of the dictionary
//
// The lowest 5 bits of LZMA are the highest of the size of its data.
func (x *xzReader) lzma2(dst []byte) (n int, err error) {
	dict := -1     // where in dst the dictionary starts
	props := false // are there properties since?
	for {
		b, err := x.next(1)
		if err != nil || b[0] == 0 {
			return n, err
		}
		control := b[0]
		if control >= 0xe0 || control == 1 {
			dict, props = n, false
		} else if dict < 0 {
			return n, errLZMA2Reset
		}
		switch {
		case control >= 0xc0 || control >= 0x80 && props:
			props = true
			n, err = x.lzmaChunk(control, dst, dict, n)
		case control >= 0x80:
			err = errLZMA2Props
		case control <= 2:
			n, err = x.stored(dst, n)
		default:
			err = errLZMA2Control
		}
		if err != nil {
			return n, err
		}
	}
}

// stored reads a chunk of stored data to dst[n:] and returns where it ends there. Behind
// the control byte are u16 size - 1, big-endian, and the data.
func (x *xzReader) stored(dst []byte, n int) (int, error) {
	b, err := x.next(2)
	if err != nil {
		return n, err
	}
	data, err := x.next(int(binary.BigEndian.Uint16(b)) + 1)
	if err != nil {
		return n, err
	}
	if len(data) > len(dst)-n {
		return n, errTooLong
	}
	return n + copy(dst[n:], data), nil
}

// lzmaChunk expands a chunk of LZMA to dst[n:] and returns where it ends there. The
// dictionary is dst[dict:n]. Behind the control byte are u16 size of the data - 1, less
// its highest bits, u16 size of the stream - 1, the properties, and the stream.
func (x *xzReader) lzmaChunk(control byte, dst []byte, dict, n int) (int, error) {
	b, err := x.next(4)
	if err != nil {
		return n, err
	}
	size := int(control&0x1f)<<16 + int(binary.BigEndian.Uint16(b)) + 1
	compressed := int(binary.BigEndian.Uint16(b[2:])) + 1
	if control >= 0xc0 {
		if b, err = x.next(1); err != nil {
			return n, err
		}
		if err = x.lzma.setProps(b[0]); err != nil {
			return n, err
		}
	} else if control >= 0xa0 {
		x.lzma.reset()
	}
	src, err := x.next(compressed)
	if err != nil {
		return n, err
	}
	if size > len(dst)-n {
		return n, errTooLong
	}
	rc, err := startRange(src)
	if err != nil {
		return n, err
	}
	rc, end, err := x.lzma.decode(rc, dst[dict:n+size], n-dict, src)
	if err == nil && (!rc.mayEnd(src) || rc.normalize(src).pos < len(src)) {
		err = errLZMAFinish
	}
	return dict + end, err
}
