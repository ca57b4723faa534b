package hostile

import (
	"maps"
	"slices"
)

// For fuzzing: small valid images around bytes that need not be.

// small returns a builder for an image with a root directory only.
func small() *builder {
	root := dir()
	root.long = true
	return &builder{comp: gzip, log: 12, exports: true, ids: []uint32{0, 1000}, root: root}
}

// WithListing returns an image whose root has that listing, and an index of n entries.
func WithListing(listing, index []byte, n uint16) []byte {
	b := small()
	b.root.listed, b.root.indexes, b.root.indexLen = listing, index, n
	return b.build().b
}

// WithInodes returns an image whose inode table begins with these bytes, behind which there
// is an empty root.
func WithInodes(inodes []byte) []byte {
	b := small()
	b.rawInodes = inodes
	return b.build().b
}

// WithXattrs returns an image with these names and values, and these rows of the xattr id
// table: it has len(sets) / 16 of them.
func WithXattrs(pairs, sets []byte) []byte {
	b := small()
	b.rawXattrs, b.rawSets = pairs, sets[:len(sets)/16*16]
	return b.build().b
}

// Parts are the tables of the base image without their metadata headers: what to begin with
// for WithListing, WithInodes and WithXattrs.
type Parts struct {
	Listing, Index []byte // of the directory with 300 entries
	IndexLen       uint16
	Inodes         []byte
	Pairs, Sets    []byte
}

// BaseParts returns the parts of the base image.
func BaseParts() Parts {
	b := base()
	b.build()
	big := b.at("big")
	return Parts{
		Listing: b.dirs.raw[big.listing:][:big.bytes],
		Index:   b.inodes.raw[big.at+40:][:12+len(big.index[0].name)], IndexLen: 1,
		Inodes: b.inodes.raw, Pairs: b.kv.raw, Sets: b.sets.raw,
	}
}

// Edits are places of the base image to change: all its fields.
type Edits struct {
	image  []byte
	fields [][]int
}

// BaseEdits returns the fields of the base image.
func BaseEdits() *Edits {
	im := base().build()
	e := &Edits{image: im.b}
	for _, name := range slices.Sorted(maps.Keys(im.fields)) { // always in one order
		e.fields = append(e.fields, im.pos(name))
	}
	for i := range im.tables {
		for _, f := range im.tables[i].fields {
			e.fields = append(e.fields, im.tables[i].pos(f))
		}
	}
	return e
}

// values are numbers at which things break.
var values = [...]uint64{0, 1, 2, 3, 7, 255, 256, 4095, 4096, 4097, 8191, 8192, 8193, 65535, 65536, 1<<24 - 1, 1 << 24, 1 << 25, 1<<31 - 1, 1 << 31, 1<<32 - 1, 1 << 32, 1 << 47, 1 << 48, 1<<63 - 1, 1 << 63, 1<<64 - 1, 1<<64 - 4096}

// Apply returns the base image with changed fields: 4 bytes of script each, of which two say
// which field, one how, and one by how much.
func (e *Edits) Apply(script []byte) []byte {
	b := append([]byte(nil), e.image...)
	for ; len(script) >= 4; script = script[4:] {
		pos := e.fields[int(le.Uint16(script))%len(e.fields)]
		v := uint64(0)
		for i, at := range pos[:min(8, len(pos))] {
			v |= uint64(b[at]) << (8 * i)
		}
		switch arg := uint64(script[3]); script[2] % 6 {
		case 0:
			v = values[arg%uint64(len(values))]
		case 1:
			v += arg
		case 2:
			v -= arg
		case 3:
			v ^= 1 << (arg % 64)
		case 4:
			v = arg
		case 5: // the value of the field so many behind it
			v = 0
			from := e.fields[(int(le.Uint16(script))+int(arg))%len(e.fields)]
			for i, at := range from[:min(8, len(from))] {
				v |= uint64(b[at]) << (8 * i)
			}
		}
		for i, at := range pos[:min(8, len(pos))] {
			b[at] = byte(v >> (8 * i))
		}
	}
	return b
}
