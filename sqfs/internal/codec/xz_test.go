package codec

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"strings"
	"testing"

	"github.com/therootcompany/xz"
	xzlzma "github.com/ulikunitz/xz/lzma"
)

// readXZ is what therootcompany/xz makes of the first stream in src, of at most limit
// bytes.
func readXZ(src []byte, limit int) ([]byte, error) {
	r, err := xz.NewReader(bytes.NewReader(src), 64<<20)
	if err != nil {
		return nil, err
	}
	r.Multistream(false)
	return readLimited(r, limit)
}

// xzStream is a stream without a check, of blocks that are LZMA2 data and its size.
func xzStream(blocks ...xzTestBlock) []byte {
	b := append([]byte(xzHeaderMagic), 0, 0)
	b = binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(b[6:]))
	index := binary.AppendUvarint([]byte{0}, uint64(len(blocks)))
	for _, block := range blocks {
		header := []byte{2, 0, xzLZMA2, 1, 12, 0, 0, 0}
		if block.filter != 0 {
			header = []byte{2, 1, block.filter, 0, xzLZMA2, 1, 12, 0}
		}
		header = binary.LittleEndian.AppendUint32(header, crc32.ChecksumIEEE(header))
		b = append(append(b, header...), block.lzma2...)
		index = binary.AppendUvarint(index, uint64(len(header)+len(block.lzma2)))
		index = binary.AppendUvarint(index, uint64(block.size))
		b = append(b, make([]byte, -len(b)&3)...)
	}
	index = append(index, make([]byte, -len(index)&3)...)
	index = binary.LittleEndian.AppendUint32(index, crc32.ChecksumIEEE(index))
	footer := binary.LittleEndian.AppendUint32(nil, uint32(len(index)/4-1))
	footer = append(footer, 0, 0)
	b = append(b, index...)
	b = binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(footer))
	return append(append(b, footer...), xzFooterMagic...)
}

type xzTestBlock struct {
	lzma2  []byte
	size   int
	filter byte // a BCJ filter, or 0
}

// lzma2Chunk is a chunk of LZMA2. LZMA knows nothing of what comes before; 16 zeros at
// the end of all data keep the contexts of the next chunk as they are at a start.
func lzma2Chunk(t testing.TB, control byte, data []byte, p xzlzma.Properties) []byte {
	t.Helper()
	if control < 0x80 {
		return append(binary.BigEndian.AppendUint16([]byte{control}, uint16(len(data)-1)), data...)
	}
	src := lzmaFile(t, data, xzlzma.WriterConfig{Properties: &p, Size: int64(len(data))})[lzmaHeader:]
	b := []byte{control | byte((len(data)-1)>>16)}
	b = binary.BigEndian.AppendUint16(b, uint16(len(data)-1))
	b = binary.BigEndian.AppendUint16(b, uint16(len(src)-1))
	if control >= 0xc0 {
		b = append(b, p.Code())
	}
	return append(b, src...)
}

// TestLZMA2Chunks tries sequences of chunks, with the verdict that is right, and with
// that of therootcompany/xz.
func TestLZMA2Chunks(t *testing.T) {
	data := append(sample(4096-16), make([]byte, 16)...)
	a, b := xzlzma.Properties{LC: 3, LP: 0, PB: 2}, xzlzma.Properties{LC: 1, LP: 2, PB: 0}
	type chunks []struct {
		control byte
		p       xzlzma.Properties
	}
	for _, c := range []struct {
		what   string
		chunks chunks
		err    error
	}{
		{"nothing", nil, nil},
		{"one", chunks{{0xe0, a}}, nil},
		{"state reset", chunks{{0xe0, a}, {0xa0, a}}, nil},
		{"new properties", chunks{{0xe0, a}, {0xc0, b}, {0xa0, b}, {0xc0, a}}, nil},
		{"dictionary reset", chunks{{0xe0, a}, {0xe0, b}}, nil},
		{"stored", chunks{{1, a}, {2, a}, {2, a}}, nil},
		{"stored between", chunks{{0xe0, a}, {2, a}, {0xa0, a}}, nil},
		{"stored first", chunks{{1, a}, {0xc0, b}}, nil},
		{"stored resets in the middle", chunks{{0xe0, a}, {1, a}, {0xc0, a}}, nil},
		{"no dictionary reset", chunks{{0xc0, a}}, errLZMA2Reset},
		{"no dictionary reset, stored", chunks{{2, a}}, errLZMA2Reset},
		{"no properties", chunks{{1, a}, {0xa0, a}}, errLZMA2Props},
		{"no state", chunks{{1, a}, {0x80, a}}, errLZMA2Props},
		{"no properties after a reset", chunks{{0xe0, a}, {1, a}, {0xa0, a}}, errLZMA2Props},
		{"control 3", chunks{{1, a}, {3, a}}, errLZMA2Control},
		{"control 7f", chunks{{1, a}, {0x7f, a}}, errLZMA2Control},
	} {
		var lzma2 []byte
		for _, k := range c.chunks {
			lzma2 = append(lzma2, lzma2Chunk(t, k.control, data, k.p)...)
		}
		want := bytes.Repeat(data, len(c.chunks))
		src := xzStream(xzTestBlock{lzma2: append(lzma2, 0), size: len(want)})
		got, err := decodeGuarded(t, XZ, src, len(want))
		if !errors.Is(err, c.err) || err == nil && !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v, want %d, %v", c.what, len(got), err, len(want), c.err)
		}
		if peer, err := readXZ(src, len(want)); (err == nil) != (c.err == nil) || err == nil && !bytes.Equal(peer, want) {
			t.Errorf("%s: the other decoder says %v", c.what, err)
		}
	}
}

// TestLZMA2Distance checks that no match reaches back before a reset of the dictionary
// or into the block before.
func TestLZMA2Distance(t *testing.T) {
	p := xzlzma.Properties{LC: 3, LP: 0, PB: 2}
	data := make([]byte, 64)
	chunk := lzma2Chunk(t, 0xe0, data, p)
	// As the data of a stream of its own, all but a literal and a match of distance 1.
	// The first bit in a fresh state is 0 for a literal; with 1, 1, 0 it is rep0.
	rep := []byte{0xe0, 0, 0, 0, 5, p.Code(), 0, 0xff, 0, 0, 0, 0}
	if _, err := decodeGuarded(t, XZ, xzStream(xzTestBlock{lzma2: append(rep, 0), size: 1}), 10); !errors.Is(err, errLZMADistance) {
		t.Errorf("at the start: %v", err)
	}
	if _, err := decodeGuarded(t, XZ, xzStream(xzTestBlock{lzma2: append(append(chunk, rep...), 0), size: 65}), 100); !errors.Is(err, errLZMADistance) {
		t.Errorf("after a reset: %v", err)
	}
	first := xzTestBlock{lzma2: append(chunk, 0), size: 64}
	if _, err := decodeGuarded(t, XZ, xzStream(first, xzTestBlock{lzma2: append(rep, 0), size: 1}), 100); !errors.Is(err, errLZMADistance) {
		t.Errorf("in the second block: %v", err)
	}
	if b, err := decodeGuarded(t, XZ, xzStream(first, first, first), 192); err != nil || len(b) != 192 {
		t.Errorf("three blocks: %d bytes, %v", len(b), err)
	}
}

// TestXZErrors changes a stream so that all its checksums are right, and only what is
// meant to be wrong is.
func TestXZErrors(t *testing.T) {
	block := xzTestBlock{lzma2: []byte{1, 0, 4, 'h', 'e', 'l', 'l', 'o', 0}, size: 5}
	good := xzStream(block)
	if b, err := decodeGuarded(t, XZ, good, 5); err != nil || string(b) != "hello" {
		t.Fatalf("%q, %v", b, err)
	}
	// Stream header 0-11, block header 12-23, data 24-32 and padding, index 36-43, footer.
	seal := func(b []byte) {
		binary.LittleEndian.PutUint32(b[8:], crc32.ChecksumIEEE(b[6:8]))
		binary.LittleEndian.PutUint32(b[20:], crc32.ChecksumIEEE(b[12:20]))
		binary.LittleEndian.PutUint32(b[40:], crc32.ChecksumIEEE(b[36:40]))
		binary.LittleEndian.PutUint32(b[44:], crc32.ChecksumIEEE(b[48:54]))
	}
	for _, c := range []struct {
		what string
		at   int
		with string
		err  error
	}{
		{"magic", 5, "\x01", errXZMagic},
		{"stream flags", 6, "\x01", errXZReserved},
		{"high bits of the check", 7, "\x10", errXZReserved},
		{"flags of the block", 13, "\x04", errXZReserved},
		{"padding of the header", 19, "\x01", errXZReserved},
		{"size of the dictionary", 16, "\x29", errXZFilters},
		{"size of the properties", 15, "\x00", errXZFilters},
		{"properties past the header", 15, "\x10", errXZFilters},
		{"LZMA2 twice", 13, "\x01\x21\x01\x0c\x21\x01\x0c", errXZFilters},
		{"BCJ at the end", 14, "\x04\x00\x00", errXZFilters},
		{"BCJ with short properties", 13, "\x01\x07\x01\x00\x21\x01\x0c", errXZFilters},
		{"number too long", 14, "\xa1\x00", errXZNumber},
		{"number without an end", 14, "\xff\xff\xff\xff\xff\xff", errXZNumber},
		{"compressed size", 13, "\x40\x09\x21\x01\x0c", nil},
		{"wrong compressed size", 13, "\x40\x08\x21\x01\x0c", errXZSizes},
		{"size", 13, "\x80\x05\x21\x01\x0c", nil},
		{"wrong size", 13, "\x80\x06\x21\x01\x0c", errXZSizes},
		{"BCJ", 13, "\x01\x07\x00\x21\x01\x0c", nil},
		{"padding of the block", 33, "\x01", errXZReserved},
		{"indicator of the index", 36, "\x01", errXZFilters}, // which makes it a block
		{"number of blocks", 37, "\x02", errXZIndex},
		{"no blocks", 37, "\x00", errXZIndex},
		{"unpadded size", 38, "\x14", errXZIndex},
		{"size in the index", 39, "\x06", errXZIndex},
		{"backward size", 48, "\x02", errXZFooter},
		{"flags in the footer", 53, "\x01", errXZFooter},
		{"magic of the footer", 54, "z", errXZFooter},
	} {
		src := bytes.Clone(good)
		copy(src[c.at:], c.with)
		seal(src)
		_, err := decodeGuarded(t, XZ, src, 100)
		if !errors.Is(err, c.err) {
			t.Errorf("%s: %v, want %v", c.what, err, c.err)
		}
		if _, err := readXZ(src, 100); (err == nil) != (c.err == nil) {
			t.Errorf("%s: the other decoder says %v", c.what, err)
		}
	}
	for _, c := range []struct {
		what, want string
		at         int
		with       string
	}{
		{"check", "unknown check 2", 7, "\x02"},
		{"filter", "unknown filter 0xc", 13, "\x01\x0c\x00\x21\x01\x0c"},
		{"Delta", "Delta", 13, "\x01\x03\x01\x00\x21\x01\x0c"},
	} {
		src := bytes.Clone(good)
		copy(src[c.at:], c.with)
		seal(src)
		if _, err := decodeGuarded(t, XZ, src, 100); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %s", c.what, err, c.want)
		}
	}
}

// TestXZDamage flips bits in the streams of testdata.
func TestXZDamage(t *testing.T) {
	for _, g := range goldens(t) {
		if g.id != XZ || len(g.src) > 1500 || strings.HasPrefix(g.name, "xz-preset") {
			continue
		}
		for at := range g.src {
			src := bytes.Clone(g.src)
			src[at] ^= 1 << (at % 8)
			got, err := decodeGuarded(t, XZ, src, 12000)
			if peer, perr := readXZ(src, 12000); comparable(err, perr) && ((err == nil) != (perr == nil) || err == nil && !bytes.Equal(got, peer)) {
				t.Fatalf("%s: byte %d changed: %v, the other decoder says %v", g.name, at, err, perr)
			}
			if err == nil && !strings.Contains(g.name, "none") {
				t.Errorf("%s: byte %d changed, and no error", g.name, at)
			}
		}
	}
}

// comparable says that the verdicts of our decoder and of therootcompany/xz should be
// the same. It does not know all filters, wants dictionaries to be as large as
// declared and of at most 64 MiB, takes any check, and ignores the byte that starts a
// stream of LZMA, which has to be 0 for liblzma and for us.
func comparable(ours, theirs error) bool {
	return !errors.Is(ours, errLZMAStart) && !errors.Is(theirs, xz.ErrOptions) && !errors.Is(theirs, xz.ErrMemlimit)
}

// FuzzXZ compares with therootcompany/xz.
func FuzzXZ(f *testing.F) {
	for _, g := range goldens(f) {
		if g.id == XZ && len(g.src) < 1300 && !strings.HasPrefix(g.name, "xz-preset") {
			f.Add(g.src)
		}
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		const limit = 1 << 15
		got, err := decodeGuarded(t, XZ, src, limit)
		peer, perr := readXZ(src, limit)
		if comparable(err, perr) && ((err == nil) != (perr == nil) || err == nil && !bytes.Equal(got, peer)) {
			t.Errorf("%d bytes, %v, the other decoder has %d, %v", len(got), err, len(peer), perr)
		}
	})
}

// FuzzLZMA2 compares with therootcompany/xz behind the checksums of the container:
// LZMA2 data, which a filter goes over then.
func FuzzLZMA2(f *testing.F) {
	for _, g := range goldens(f) {
		if g.id == XZ && len(g.src) < 3000 && !strings.Contains(g.name, "blocks") && g.src[xzHeaderSize] != 0 {
			header := (int(g.src[xzHeaderSize]) + 1) * 4
			f.Add(byte(len(g.name)), g.src[xzHeaderSize+header:])
		}
	}
	f.Fuzz(func(t *testing.T, filter byte, lzma2 []byte) {
		const limit = 1 << 15
		if filter %= 10; filter < 4 { // those that both know are 4 to 9
			filter = 0
		}
		x := xzReader{src: lzma2, lzma: new(lzmaState)}
		n, _ := x.lzma2(make([]byte, limit))
		src := xzStream(xzTestBlock{lzma2[:x.pos], n, filter})
		got, err := decodeGuarded(t, XZ, src, limit)
		peer, perr := readXZ(src, limit)
		if comparable(err, perr) && ((err == nil) != (perr == nil) || err == nil && !bytes.Equal(got, peer)) {
			t.Errorf("%d bytes, %v, the other decoder has %d, %v", len(got), err, len(peer), perr)
		}
	})
}
