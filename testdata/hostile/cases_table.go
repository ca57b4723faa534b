package hostile

import (
	"fmt"
	"math"
)

// tableCases are wrong in the lookup tables, their indexes, and in how metadata blocks
// are made.
func tableCases() []spec {
	all := "." // any use of the tree meets the inodes
	return []spec{
		{class: 7, name: "id-block-behind-its-index", wrong: "the block of the ids begins behind its index", want: Refuse, edit: func(im *image) { im.set("ids.index0", im.get("sb.id_table")+8) }},
		{class: 7, name: "id-block-in-the-directories", wrong: "the block of the ids begins far before its index", want: Refuse, edit: copyOf("ids.index0", "sb.directory_table")},
		{class: 9, name: "id-block-max", wrong: "the block of the ids begins at 2^64-1", want: Refuse, edit: set("ids.index0", uint64(math.MaxUint64))},
		{class: 7, name: "fragment-block-max", wrong: "the block of the fragment table begins at 2^64-1", want: Refuse, edit: set("frags.index0", uint64(math.MaxUint64))},
		{class: 7, name: "fragment-block-0", wrong: "the block of the fragment table begins at 0", want: Refuse, edit: set("frags.index0", 0)},
		{class: 7, name: "export-block-max", wrong: "the block of the export table begins at 2^64-1", want: Refuse, edit: set("exports.index0", uint64(math.MaxUint64))},
		{class: 7, name: "set-block-0", wrong: "the block of the xattr ids begins at 0", want: Refuse, edit: set("sets.index0", 0)},
		{class: 16, name: "sets-0", wrong: "an xattr id table without rows", want: Refuse, edit: set("xattrs.count", 0)},
		{class: 2, name: "sets-max", wrong: "2^32-1 xattr ids, for which there is no room", want: Refuse, edit: set("xattrs.count", math.MaxUint32)},
		{class: 9, name: "kv-start-2-63", wrong: "names and values begin at 2^63", want: Refuse, edit: set("xattrs.start", uint64(1<<63))},
		{class: 7, name: "kv-start-in-the-inodes", wrong: "names and values begin in the inode table", want: Refuse, edit: copyOf("xattrs.start", "sb.inode_table")},
		{class: 7, name: "kv-start-at-the-sets", wrong: "names and values have no byte", want: Refuse, edit: copyOf("xattrs.start", "sets.index0")},

		{class: 8, name: "inodes-length-0", wrong: "the first block of the inode table has length 0", want: Partly, bad: "big", edit: set("inodes.meta0", 1<<15)},
		{class: 8, name: "inodes-length-0-packed", wrong: "the first block of the inode table is compressed and has length 0", want: Partly, bad: "big", edit: set("inodes.meta0", 0)},
		{class: 8, name: "inodes-length-8193", wrong: "the first block of the inode table has 8193 bytes", want: Partly, bad: "big", edit: set("inodes.meta0", 1<<15|8193)},
		{class: 8, name: "inodes-not-packed", wrong: "the first block of the inode table is no zlib stream", want: Partly, bad: "big", edit: set("inodes.meta0", 8192)},
		{class: 8, name: "inodes-short", wrong: "the first block of the inode table is short", want: Partly, bad: "big", edit: set("inodes.meta0", 1<<15|100)},
		{class: 8, name: "inodes-past-their-end", wrong: "the last block of the inode table reaches into the directory table", want: Refuse, edit: add("inodes.meta1", 1)},
		{class: 8, name: "dirs-length-0", wrong: "the first block of the directory table has length 0", want: Partly, bad: "big", edit: set("dirs.meta0", 1<<15)},
		{class: 8, name: "dirs-short", wrong: "the first block of the directory table is short", want: Partly, bad: "big", edit: set("dirs.meta0", 1<<15|100)},
		{class: 8, name: "dirs-past-their-end", wrong: "the last block of the directory table reaches into the next table", want: Partly, bad: ".", edit: add("dirs.meta1", 1)},
		{class: 8, name: "ids-length-0", wrong: "the block of the ids has length 0", want: Refuse, edit: set("ids.meta0", 1<<15)},
		{class: 8, name: "ids-length-1", wrong: "the block of the ids has 1 byte", want: Refuse, edit: set("ids.meta0", 1<<15|1)},
		{class: 8, name: "ids-length-8192", wrong: "the block of the ids reaches past its index", want: Refuse, edit: set("ids.meta0", 1<<15|8192)},
		{class: 8, name: "frags-length-0", wrong: "the block of the fragment table has length 0", want: Partly, bad: "one same tail two", edit: set("frags.meta0", 1<<15)},
		{class: 8, name: "frags-length-1", wrong: "the block of the fragment table has 1 byte", want: Partly, bad: "one same tail two", edit: set("frags.meta0", 1<<15|1)},
		{class: 8, name: "exports-length-1", wrong: "the block of the export table has 1 byte, which nobody needs", want: Either, edit: set("exports.meta0", 1<<15|1)},
		{class: 8, name: "kv-length-0", wrong: "the block of names and values has length 0", want: Partly, bad: "x", edit: set("kv.meta0", 1<<15)},
		{class: 8, name: "kv-length-1", wrong: "the block of names and values has 1 byte", want: Partly, bad: "x", edit: set("kv.meta0", 1<<15|1)},
		{class: 8, name: "sets-length-1", wrong: "the block of the xattr ids has 1 byte", want: Partly, bad: "x", edit: set("sets.meta0", 1<<15|1)},

		{class: 8, name: "inodes-one-byte-blocks", wrong: "a chain of inode metadata blocks of 1 byte each: one read for each byte", want: Refuse, plan: chunk(func(b *builder) *table { return &b.inodes }, 1)},
		{class: 8, name: "dirs-one-byte-blocks", wrong: "a chain of directory metadata blocks of 1 byte each", want: Partly, bad: ".", plan: chunk(func(b *builder) *table { return &b.dirs }, 1)},
		{class: 8, name: "kv-one-byte-blocks", wrong: "a chain of metadata blocks of names and values of 1 byte each", want: Partly, bad: "x", plan: chunk(func(b *builder) *table { return &b.kv }, 1)},
		{class: 8, name: "inodes-4096-byte-blocks", wrong: "metadata blocks of the inode table have 4096 bytes, all of them", want: Either, plan: chunk(func(b *builder) *table { return &b.inodes }, 4096)},

		{class: 8, name: "metadata-longer-than-its-contents", wrong: "metadata blocks are longer than what they expand to, as gensquashfs writes them", want: Fine, plan: packAll},
		{class: 8, name: "metadata-bomb", wrong: "the block of the ids expands to 16 KiB", want: Refuse, plan: packTable("ids", 2*metadataSize)},
		{class: 8, name: "metadata-bomb-8193", wrong: "the block of the ids expands to 8193 bytes", want: Refuse, plan: packTable("ids", metadataSize+1)},
		{class: 8, name: "metadata-bomb-8-mib", wrong: "a block of names and values expands to 8 MiB", want: Partly, bad: "x", plan: packTable("kv", 8<<20)},
		{class: 8, name: "metadata-expands-to-nothing", wrong: "the block of names and values expands to nothing", want: Partly, bad: "x", plan: packTable("kv", 0)},
		{class: 8, name: "inodes-expand-short", wrong: "the first block of the inode table expands to half", want: Partly, bad: "big", plan: packTable("inodes", metadataSize/2)},
		{class: 8, name: "fragment-rows-short", wrong: "the block of the fragment table expands to half a row", want: Partly, bad: "one same tail two", plan: packTable("frags", 8)},

		{class: 6, name: "fragment-length-0", wrong: "a fragment block of length 0", want: Partly, bad: "one same tail two", edit: set("frag0.word", 1<<24)},
		{class: 6, name: "fragment-hole", wrong: "a fragment block that is a hole", want: Partly, bad: "one same tail two", edit: set("frag0.word", 0)},
		{class: 6, name: "fragment-16-mib", wrong: "a fragment block of 16 MiB", want: Partly, bad: "one same tail two", edit: set("frag0.word", 1<<24|0xffffff)},
		{class: 6, name: "fragment-4097", wrong: "a fragment block longer than the block size", want: Partly, bad: "one same tail two", edit: set("frag0.word", 1<<24|4097)},
		{class: 6, name: "fragment-unused-bits", wrong: "a fragment block with bit 31 of its length set", want: Partly, bad: "one same tail two", edit: func(im *image) { im.set("frag0.word", im.get("frag0.word")|1<<31) }},
		{class: 6, name: "fragment-short", wrong: "a fragment block that is a byte short of its last tail", want: Partly, bad: "tail", edit: add("frag0.word", -1)},
		{class: 9, name: "fragment-start-max", wrong: "a fragment block at 2^64-1", want: Partly, bad: "one same tail two", edit: set("frag0.start", uint64(math.MaxUint64))},
		{class: 9, name: "fragment-start-2-63", wrong: "a fragment block at 2^63", want: Partly, bad: "one same tail two", edit: set("frag0.start", uint64(1<<63))},
		{class: 7, name: "fragment-start-0", wrong: "a fragment block over the superblock", want: Partly, bad: "one same tail two", edit: set("frag0.start", 0)},
		{class: 7, name: "fragment-start-at-the-end", wrong: "a fragment block past the end of the image", want: Partly, bad: "one same tail two", edit: copyOf("frag0.start", "sb.bytes_used")},
		{class: 6, name: "fragment-not-packed", wrong: "a fragment block that is no zlib stream", want: Partly, bad: "one same tail two", edit: func(im *image) { im.set("frag0.word", im.get("frag0.word")&^(1<<24)) }},
		{class: 6, name: "fragment-unused-field", wrong: "the unused field of a fragment is used", want: Fine, edit: set("frag0.unused", math.MaxUint32)},
		{class: 7, name: "exports-garbage", wrong: "rows of the export table that nobody uses are garbage", want: Fine, edit: set("export1.ref", uint64(math.MaxUint64), "export2.ref", uint64(1<<40))},

		{class: 15, name: "65535-ids", wrong: "as many ids as the superblock can count", want: Fine, plan: func(b *builder) { manyIDs(b); manyInodes(b) }},
		{class: 15, name: "65535-ids-few-inodes", wrong: "more ids than two for each inode", want: Refuse, plan: manyIDs},
		{class: 15, name: "id-row-65535", wrong: "an owner that no image can have", want: Partly, bad: "fifo", edit: set("fifo.uid", 65535)},
		{class: 15, name: "id-row-4", wrong: "a group one past the last", want: Partly, bad: "fifo", edit: set("fifo.gid", 4)},
		{class: 15, name: "root-id-row", wrong: "the root belongs to nobody", want: Refuse, edit: set(".uid", 4)},
		{class: 8, name: "inodes-stored-garbage", wrong: "the first block of the inode table is garbage", want: Partly, bad: all, edit: func(im *image) {
			im.put("inodes.meta0", "\x00\xa0")
			for i := range 64 { // the first inodes, all of them in big
				im.b[im.pos("inodes.meta0")[1]+1+i] = 0xee
			}
		}},
	}
}

// chunk makes all metadata blocks of a table n bytes long.
func chunk(of func(*builder) *table, n int) func(*builder) {
	return func(b *builder) { of(b).chunk = n }
}

// packAll stores all metadata in zlib streams of stored deflate blocks, which are longer
// than their contents.
func packAll(b *builder) {
	b.packMeta = func(_ string, _ int, raw []byte) ([]byte, bool) {
		if len(raw)+20 > metadataSize {
			return raw, true
		}
		return zlibStored(raw), false
	}
}

// packTable makes the first block of a table a zlib stream of size bytes: what belongs
// there, and behind it zeros.
func packTable(name string, size int) func(*builder) {
	return func(b *builder) {
		b.packMeta = func(table string, block int, raw []byte) ([]byte, bool) {
			if table != name || block > 0 {
				return raw, true
			}
			raw = append(append([]byte(nil), raw[:min(len(raw), size)]...), make([]byte, max(0, size-len(raw)))...)
			return zlibBest(raw), false
		}
	}
}

// manyInodes has one inode more for each two ids that there can be.
func manyInodes(b *builder) {
	d := dir()
	d.long = true
	for i := range 1 << 15 {
		d.entries = append(d.entries, entry{fmt.Sprintf("f%06d", i), file(nil)})
	}
	b.root.attach("many", d)
}

// manyIDs has 65535 ids and uses the last.
func manyIDs(b *builder) {
	for i := len(b.ids); i < 65535; i++ {
		b.ids = append(b.ids, uint32(i)*3)
	}
	b.at("ids/user").uid, b.at("ids/group").gid = 65534, 65533
}
