package hostile

import (
	"bytes"
	"math"
	"slices"
)

// Types of inodes on disk (squashfs_fs.h: SQUASHFS_DIR_TYPE and on); the extended ones
// have 7 more.
const (
	typeDir = 1 + iota
	typeFile
	typeLink
	typeBlock
	typeChar
	typeFifo
	typeSocket
	extended = 7
)

const (
	none    = math.MaxUint32 // no fragment, no xattrs
	noTable = math.MaxUint64
)

// node is an inode to be. The builder believes all it is told.
type node struct {
	kind     uint16 // typeDir and on
	long     bool   // an extended inode
	mode     uint16
	uid, gid uint16 // rows of builder.ids
	mtime    uint32
	data     []byte  // of a file
	size     int64   // of a file: zeros, as holes, follow data; 0: len(data)
	tail     bool    // the last part of a file goes into a fragment
	target   string  // of a symlink
	rdev     uint32  // of a device: new_encode_dev
	xattrs   []xattr // of extended inodes
	entries  []entry // of a directory, in this order
	indexed  bool    // an extended directory has an index
	listed   []byte  // of a directory: the listing as it is, in place of entries
	indexes  []byte  // likewise the index
	indexLen uint16

	// What the builder finds out.
	number, nlink, parent uint32
	at, listing           int // offsets in the inode table and in the directory table
	bytes                 int // of the listing
	start                 uint64
	words                 []uint32
	frag, fragOff         uint32
	set                   uint32
	index                 []indexEntry
}

type entry struct {
	name string
	to   *node
}

type xattr struct {
	kind  uint16 // 0 user, 1 trusted, 2 security
	name  string // without the prefix
	value string
	away  bool // the value lies out of line
	at    int  // where in the table, if so
}

type indexEntry struct {
	pos  int
	name string
}

// builder makes images. Zero values of its hooks mean: as a sane writer does it.
type builder struct {
	root    *node
	ids     []uint32
	comp    uint16
	log     uint16 // of the block size
	options []byte // of the compressor; nil for none
	exports bool

	// pack makes the bytes on disk of a data block (i >= 0) or of a fragment block
	// (name ""), packMeta those of a metadata block.
	pack     func(name string, i int, raw []byte) (disk []byte, stored bool)
	packMeta packMeta

	// Bytes that are no records of nodes: at the start of the inode table, and in place of
	// all attributes and their sets.
	rawInodes, rawXattrs, rawSets []byte

	inodes, dirs, frags, lookup, idTable, kv, sets table
	nodes                                          []*node // in the order of the inode table
}

// build makes the image. References to what comes later are not known until it was
// written: as many rounds as it takes are made, each with the places of the one before,
// until nothing moves any more.
func (b *builder) build() *image {
	b.name()
	b.number()
	head := b.writeData()
	var last []byte
	for {
		im := &image{b: slices.Clone(head), fields: map[string][2]int{}}
		b.writeTables(im)
		if b.inodes.record {
			im.files = b.files()
			return im
		}
		if bytes.Equal(im.b, last) {
			b.record()
		}
		last = im.b
	}
}

// record makes the next round the last, in which it is remembered where the fields are.
func (b *builder) record() {
	for _, t := range b.tables() {
		t.record = true
	}
}

func (b *builder) tables() []*table {
	return []*table{&b.inodes, &b.dirs, &b.lookup, &b.idTable, &b.kv, &b.sets}
}

// name sets the defaults.
func (b *builder) name() {
	b.inodes.name, b.dirs.name, b.frags.name, b.lookup.name = "inodes", "dirs", "frags", "exports"
	b.idTable.name, b.kv.name, b.sets.name = "ids", "kv", "sets"
	if b.pack == nil {
		b.pack = func(_ string, _ int, raw []byte) ([]byte, bool) { return raw, true }
	}
	if b.packMeta == nil {
		b.packMeta = store
	}
}

// number puts the inodes in order, children before parents and the root last, and counts
// links.
func (b *builder) number() {
	seen := map[*node]bool{b.root: true}
	var visit func(n *node)
	visit = func(n *node) {
		for _, e := range n.entries {
			e.to.nlink++
			if !seen[e.to] {
				seen[e.to] = true
				visit(e.to)
			}
		}
		b.nodes = append(b.nodes, n)
		n.number = uint32(len(b.nodes))
	}
	visit(b.root)
	for _, n := range b.nodes {
		if n.kind == typeDir {
			n.nlink = 2
		}
		for _, e := range n.entries {
			if e.to.kind == typeDir {
				n.nlink++
				e.to.parent = n.number
			}
		}
	}
	b.root.parent = uint32(len(b.nodes)) + 1 // as mksquashfs has it
}

// writeData returns the image up to the inode table, the superblock still empty.
func (b *builder) writeData() []byte {
	out := make([]byte, superblockSize)
	if b.options != nil {
		out = le.AppendUint16(out, 1<<15|uint16(len(b.options)))
		out = append(out, b.options...)
	}
	var fragment []byte
	b.frags.reset()
	b.frags.record = true // it is written once
	flush := func() {
		if len(fragment) == 0 {
			return
		}
		disk, stored := b.pack("", -1, fragment)
		b.frags.in("frag%d", len(b.frags.raw)/16)
		b.frags.u64("start", uint64(len(out)))
		b.frags.u32("word", word(disk, stored))
		b.frags.u32("unused", 0)
		out = append(out, disk...)
		fragment = nil
	}
	for name, n := range b.walk {
		if n.kind != typeFile || n.words != nil {
			continue
		}
		n.frag, n.start = none, uint64(len(out))
		blocks := cut(n, 1<<b.log)
		if k := len(blocks) - 1; n.tail && k >= 0 && blocks[k] != nil && len(blocks[k]) < 1<<b.log {
			if len(fragment)+len(blocks[k]) > 1<<b.log {
				flush()
			}
			n.frag, n.fragOff = uint32(len(b.frags.raw)/16), uint32(len(fragment))
			fragment = append(fragment, blocks[k]...)
			blocks = blocks[:k]
		}
		n.words = []uint32{}
		for i, raw := range blocks {
			if raw == nil {
				n.words = append(n.words, 0)
				continue
			}
			disk, stored := b.pack(name, i, raw)
			n.words = append(n.words, word(disk, stored))
			out = append(out, disk...)
		}
	}
	flush()
	return out
}

// walk calls yield with the path of each node, once a node.
func (b *builder) walk(yield func(string, *node) bool) {
	seen := map[*node]bool{}
	var visit func(name string, n *node) bool
	visit = func(name string, n *node) bool {
		if seen[n] {
			return true
		}
		seen[n] = true
		if !yield(name, n) {
			return false
		}
		for _, e := range n.entries {
			if !visit(join(name, e.name), e.to) {
				return false
			}
		}
		return true
	}
	visit("", b.root)
}

// cut returns the blocks of a file; nil for those of zeros.
func cut(n *node, size int64) (blocks [][]byte) {
	end, have := max(n.size, int64(len(n.data))), int64(len(n.data))
	for off := int64(0); off < end; off += size {
		var block []byte
		if off < have {
			block = slices.Concat(n.data[off:min(off+size, have)], make([]byte, max(0, min(off+size, end)-have)))
		}
		if isZero(block) {
			block = nil
		}
		blocks = append(blocks, block)
	}
	return blocks
}

func isZero(b []byte) bool {
	return len(bytes.TrimLeft(b, "\x00")) == 0
}

// word says how a data block lies on disk.
func word(disk []byte, stored bool) uint32 {
	w := uint32(len(disk))
	if stored {
		w |= 1 << 24
	}
	return w
}

// writeTables writes all behind the data, and the superblock.
func (b *builder) writeTables(im *image) {
	for _, t := range b.tables() {
		t.reset()
	}
	b.addXattrs()
	b.inodes.raw = append(b.inodes.raw, b.rawInodes...)
	names := map[*node]string{}
	for name, n := range b.walk {
		names[n] = name
	}
	for _, n := range b.nodes {
		b.addListing(names[n], n)
		b.addInode(names[n], n)
		if b.exports {
			b.lookup.in("export%d", n.number)
			b.lookup.u64("ref", b.inodes.ref(n.at))
		}
	}
	for i, id := range b.ids {
		b.idTable.in("id%d", i)
		b.idTable.u32("id", id)
	}
	sb := superblock{
		Inodes: uint32(len(b.nodes)), BlockSize: 1 << b.log, BlockLog: b.log, Compression: b.comp,
		Fragments: uint32(len(b.frags.raw) / 16), IDs: uint16(len(b.ids)), Root: b.inodes.ref(b.root.at),
	}
	if b.options != nil {
		sb.Flags = flagOptions
	}
	sb.InodeTable = uint64(len(im.b))
	b.inodes.write(im, b.packMeta)
	sb.DirectoryTable = uint64(len(im.b))
	b.dirs.write(im, b.packMeta)
	sb.FragmentTable = b.frags.writeIndexed(im, b.packMeta, nil)
	sb.ExportTable = b.lookup.writeIndexed(im, b.packMeta, nil)
	sb.IDTable = b.idTable.writeIndexed(im, b.packMeta, nil)
	kv := uint64(len(im.b))
	b.kv.write(im, b.packMeta)
	sb.XattrTable = b.sets.writeIndexed(im, b.packMeta, func(im *image) {
		im.u64("xattrs.start", kv)
		im.u64("xattrs.count", uint64(len(b.sets.raw)/16)) // the upper half is unused
	})
	sb.BytesUsed = uint64(len(im.b))
	sb.write(im)
	for len(im.b)%4096 != 0 {
		im.b = append(im.b, 0)
	}
}
