package hostile

import (
	"encoding/binary"
	"fmt"
	"strings"
)

var le = binary.LittleEndian

// metadataSize is what all metadata blocks of a table but the last hold.
const metadataSize = 8192

// table collects the records of one table, remembers where each field is, and cuts the
// whole into metadata blocks.
type table struct {
	name   string
	raw    []byte
	fields []fieldAt // empty but in the last round
	prefix string    // of the fields that are added now
	record bool      // this is the last round
	chunk  int       // bytes in a metadata block; metadataSize unless a case wants it otherwise
	blocks []int64   // where the blocks begin, relative to the first; of the round before until write
}

// fieldAt is a number in a table, or bytes.
type fieldAt struct {
	prefix, name string
	off, size    int // in raw
}

// reset forgets the records, but not where the blocks were: references in the next round
// are made with that.
func (t *table) reset() {
	t.raw, t.fields = t.raw[:0], nil
	if t.chunk == 0 {
		t.chunk = metadataSize
	}
}

// in says what the fields that are added next belong to.
func (t *table) in(format string, args ...any) {
	if t.record {
		t.prefix = fmt.Sprintf(format, args...) + "."
	}
}

func (t *table) mark(name string, size int) {
	if t.record {
		t.fields = append(t.fields, fieldAt{t.prefix, name, len(t.raw), size})
	}
}

func (t *table) u16(name string, v uint16) {
	t.mark(name, 2)
	t.raw = le.AppendUint16(t.raw, v)
}

func (t *table) u32(name string, v uint32) {
	t.mark(name, 4)
	t.raw = le.AppendUint32(t.raw, v)
}

func (t *table) u64(name string, v uint64) {
	t.mark(name, 8)
	t.raw = le.AppendUint64(t.raw, v)
}

func (t *table) bytes(name, s string) {
	t.mark(name, len(s))
	t.raw = append(t.raw, s...)
}

// ref returns the reference to byte off of the table: position of its metadata block << 16
// | offset in the block.
func (t *table) ref(off int) uint64 {
	k := off / t.chunk
	if k >= len(t.blocks) { // the first round does not know yet
		return uint64(off % t.chunk)
	}
	return uint64(t.blocks[k])<<16 | uint64(off%t.chunk)
}

// write appends the metadata blocks to the image and tells it where the fields are.
func (t *table) write(im *image, pack packMeta) {
	start := len(im.b)
	t.blocks = t.blocks[:0]
	var at []int // where in the image the contents of each block are
	for off := 0; off < len(t.raw); off += t.chunk {
		raw := t.raw[off:min(off+t.chunk, len(t.raw))]
		k := len(t.blocks)
		t.blocks = append(t.blocks, int64(len(im.b)-start))
		im.fields[fmt.Sprintf("%s.meta%d", t.name, k)] = [2]int{len(im.b), 2}
		disk, stored := pack(t.name, k, raw)
		header := uint16(len(disk))
		if stored {
			header |= 1 << 15
		}
		im.b = le.AppendUint16(im.b, header)
		at = append(at, len(im.b))
		im.b = append(im.b, disk...)
	}
	im.tables = append(im.tables, placed{t.fields, at, t.chunk})
}

// placed is a table in an image.
type placed struct {
	fields []fieldAt
	at     []int // of the contents of each metadata block
	chunk  int
}

// writeIndexed writes a lookup table: the blocks, what stands before the index, and the
// index. It returns where the latter two begin, or noTable if there are no records.
func (t *table) writeIndexed(im *image, pack packMeta, head func(*image)) uint64 {
	if len(t.raw) == 0 {
		return noTable
	}
	start := len(im.b)
	t.write(im, pack)
	at := uint64(len(im.b))
	if head != nil {
		head(im)
	}
	for k, pos := range t.blocks {
		im.u64(fmt.Sprintf("%s.index%d", t.name, k), uint64(int64(start)+pos))
	}
	return at
}

// packMeta makes the bytes on disk of a metadata block.
type packMeta func(table string, block int, raw []byte) (disk []byte, stored bool)

// store packs nothing.
func store(_ string, _ int, raw []byte) ([]byte, bool) { return raw, true }

// image is an image being made: its bytes, and where each field of it is.
type image struct {
	b      []byte
	fields map[string][2]int // position and size of those that do not lie in tables
	tables []placed
	files  map[string]File
}

// u64 appends a number.
func (im *image) u64(name string, v uint64) {
	im.fields[name] = [2]int{len(im.b), 8}
	im.b = le.AppendUint64(im.b, v)
}

// set changes a field, whatever its size.
func (im *image) set(name string, v uint64) {
	for i, at := range im.pos(name) {
		im.b[at] = byte(v >> (8 * i))
	}
}

// get returns a field of up to 8 bytes.
func (im *image) get(name string) (v uint64) {
	for i, at := range im.pos(name) {
		v |= uint64(im.b[at]) << (8 * i)
	}
	return v
}

// put changes the first bytes of a field.
func (im *image) put(name, s string) {
	pos := im.pos(name)
	for i := range len(s) {
		im.b[pos[i]] = s[i]
	}
}

// pos returns where each byte of a field is, the lowest first. Cases name fields by hand,
// so a wrong name is a mistake of theirs. Where two files have one path, it is the first.
func (im *image) pos(name string) []int {
	if f, ok := im.fields[name]; ok {
		return run(f[0], f[1])
	}
	for _, t := range im.tables {
		for _, f := range t.fields {
			if len(name) == len(f.prefix)+len(f.name) && strings.HasPrefix(name, f.prefix) && strings.HasSuffix(name, f.name) {
				return t.pos(f)
			}
		}
	}
	panic("no field is called " + name)
}

// pos returns where each byte of a field is: it may lie across two blocks.
func (t *placed) pos(f fieldAt) []int {
	pos := make([]int, f.size)
	for i := range pos {
		pos[i] = t.at[(f.off+i)/t.chunk] + (f.off+i)%t.chunk
	}
	return pos
}

func run(at, n int) []int {
	pos := make([]int, n)
	for i := range pos {
		pos[i] = at + i
	}
	return pos
}

// ref returns the reference to the inode at a path.
func (im *image) ref(name string) uint64 {
	return im.get(fmt.Sprintf("export%d.ref", im.get(name+".number")))
}
