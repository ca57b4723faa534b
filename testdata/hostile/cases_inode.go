package hostile

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// inodeCases are wrong in an inode or in what it leads to in the data.
func inodeCases() []spec {
	return []spec{
		{class: 18, name: "type-0", wrong: "an inode of type 0", want: Partly, bad: "fifo", edit: set("fifo.type", 0)},
		{class: 18, name: "type-15", wrong: "an inode of type 15", want: Partly, bad: "fifo", edit: set("fifo.type", 15)},
		{class: 18, name: "type-65535", wrong: "an inode of type 65535", want: Partly, bad: "fifo", edit: set("fifo.type", 65535)},
		{class: 18, name: "dirent-dir-inode-file", wrong: "an entry says directory, its inode file", want: Partly, bad: "empty", edit: entryType("empty", typeDir)},
		{class: 18, name: "dirent-file-inode-dir", wrong: "an entry says file, its inode directory", want: Partly, bad: "sub", edit: entryType("sub", typeFile)},
		{class: 18, name: "dirent-link-inode-file", wrong: "an entry says symlink, its inode file", want: Partly, bad: "one", edit: entryType("one", typeLink)},
		{class: 18, name: "dirent-fifo-inode-socket", wrong: "an entry says fifo, its inode socket", want: Partly, bad: "sock", edit: entryType("sock", typeFifo)},
		{class: 18, name: "dirent-type-0", wrong: "an entry of type 0", want: Partly, bad: ".", edit: entryType("one", 0)},
		{class: 18, name: "dirent-type-99", wrong: "an entry of type 99", want: Partly, bad: ".", edit: entryType("one", 99)},
		{class: 18, name: "dirent-type-extended", wrong: "an entry of the extended type", want: Fine, edit: entryType("two", typeFile+extended)},
		{class: 18, name: "mode-with-type-bits", wrong: "a mode with the type in its upper bits, as other writers have it", want: Fine, edit: set("fifo.mode", 0o170644)},
		{class: 17, name: "number-0", wrong: "inode number 0", want: Partly, bad: "fifo", edit: set("fifo.number", 0)},
		{class: 17, name: "number-max", wrong: "inode number 2^32-1, of 350", want: Either, bad: "fifo", edit: set("fifo.number", math.MaxUint32)},
		{class: 17, name: "number-of-another", wrong: "two files have one number", want: Fine, edit: copyOf("one.number", "same.number")},
		{class: 17, name: "number-of-all", wrong: "all inodes but directories have number 1", want: Fine, edit: oneNumber},
		{class: 17, name: "dirent-number", wrong: "entries have numbers that are not those of the inodes", want: Fine, edit: add(".run0.number", 1000)},
		{class: 17, name: "parent", wrong: "the parent of a directory does not exist", want: Fine, edit: set("sub.parent", 77777)},
		{class: 24, name: "nlink-0", wrong: "no links", want: Fine, edit: set("fifo.nlink", 0)},
		{class: 24, name: "nlink-max", wrong: "2^32-1 links", want: Fine, edit: set("fifo.nlink", math.MaxUint32, "sub.nlink", math.MaxUint32)},
		{class: 24, name: "set-id-and-devices", wrong: "set-id programs, and devices of the host for all to write", want: Fine, plan: privileges},
		{class: 24, name: "capability", wrong: "a program with all capabilities", want: Fine, plan: capability},

		{class: 3, name: "file-2-63", wrong: "a file of 2^63 bytes", want: Partly, bad: "blocks", edit: set("blocks.size", uint64(1<<63))},
		{class: 3, name: "file-max", wrong: "a file of 2^64-1 bytes", want: Partly, bad: "blocks", edit: set("blocks.size", uint64(math.MaxUint64))},
		{class: 3, name: "file-2-62", wrong: "a file of 2^62 bytes", want: Partly, bad: "blocks", edit: set("blocks.size", uint64(1<<62))},
		{class: 3, name: "file-2-40", wrong: "a file of 2^40 bytes with a list of 4 blocks", want: Partly, bad: "blocks", edit: set("blocks.size", uint64(1<<40))},
		{class: 3, name: "file-1-mib", wrong: "a file of 1 MiB with a list of 4 blocks", want: Partly, bad: "blocks", edit: set("blocks.size", 1<<20|1)},
		{class: 3, name: "file-4-gib-basic", wrong: "a basic file of 2^32-1 bytes with a list of no blocks", want: Partly, bad: "empty", edit: set("empty.size", math.MaxUint32)},
		{class: 3, name: "sparse-max", wrong: "more bytes in holes than in the file", want: Fine, edit: set("blocks.sparse", uint64(math.MaxUint64))},
		{class: 9, name: "blocks-start-2-63", wrong: "data at 2^63", want: Partly, bad: "blocks", edit: set("blocks.start", uint64(1<<63))},
		{class: 9, name: "blocks-start-max", wrong: "data at 2^64-1", want: Partly, bad: "blocks", edit: set("blocks.start", uint64(math.MaxUint64))},
		{class: 9, name: "blocks-start-2-64-4096", wrong: "data at 2^64-4096: adding a block gives 0", want: Partly, bad: "blocks", edit: set("blocks.start", uint64(math.MaxUint64)-4095)},
		{class: 7, name: "blocks-start-0", wrong: "data over the superblock", want: Partly, bad: "blocks", edit: set("blocks.start", 0)},
		{class: 7, name: "blocks-start-at-the-end", wrong: "data past the end of the image", want: Partly, bad: "blocks", edit: copyOf("blocks.start", "sb.bytes_used")},
		{class: 7, name: "empty-start-max", wrong: "a file without data begins at 2^32-1", want: Fine, edit: set("empty.start", math.MaxUint32, "zeros.start", math.MaxUint32)},
		{class: 19, name: "overlap", wrong: "two files share data, from a place in the middle of a block", want: Fine, edit: overlap, expect: overlapped},
		{class: 19, name: "overlap-other-length", wrong: "two blocks at one place have different lengths", want: Fine, edit: sharedStart, expect: sharedData},
		{class: 19, name: "metadata-as-data", wrong: "the data of a file is the inode table", want: Fine, edit: copyOf("blocks.start", "sb.inode_table"), expect: metadataAsData},

		{class: 4, name: "block-16-mib", wrong: "a block of 16 MiB", want: Partly, bad: "blocks", edit: set("blocks.block0.word", 1<<24|0xffffff)},
		{class: 4, name: "block-stored-long", wrong: "a stored block a byte longer than the block size", want: Partly, bad: "blocks", edit: set("blocks.block0.word", 1<<24|(blockSize+1))},
		{class: 4, name: "block-packed-long", wrong: "a packed block a byte longer than the block size", want: Partly, bad: "blocks", edit: set("blocks.block0.word", blockSize+1)},
		{class: 4, name: "last-block-long", wrong: "the last block is stored with a byte too many", want: Partly, bad: "blocks", edit: set("blocks.block3.word", 1<<24|101)},
		{class: 5, name: "block-stored-short", wrong: "a stored block a byte shorter than the block size", want: Partly, bad: "blocks", edit: set("blocks.block0.word", 1<<24|(blockSize-1))},
		{class: 5, name: "last-block-short", wrong: "the last block is stored with a byte too few", want: Partly, bad: "blocks", edit: set("blocks.block3.word", 1<<24|99)},
		{class: 5, name: "block-stored-0", wrong: "a stored block of length 0", want: Partly, bad: "blocks", edit: set("blocks.block0.word", 1<<24)},
		{class: 9, name: "block-unused-bits", wrong: "a block with bit 25 of its length set", want: Partly, bad: "blocks", edit: set("blocks.block0.word", 1<<25|1<<24|blockSize)},
		{class: 9, name: "block-bit-31", wrong: "a block with bit 31 of its length set", want: Partly, bad: "blocks", edit: set("blocks.block1.word", uint64(1<<31|1<<24|blockSize))},
		{class: 4, name: "block-not-packed", wrong: "a block that is no zlib stream", want: Partly, bad: "blocks", edit: set("blocks.block0.word", blockSize)},
		{class: 21, name: "block-becomes-a-hole", wrong: "a block is a hole, and those behind it lie before their place", want: Fine, edit: set("blocks.block0.word", 0), expect: firstBlockIsHole},

		{class: 6, name: "fragment-1000", wrong: "a tail in fragment 1000", want: Partly, bad: "one", edit: set("one.frag", 1000)},
		{class: 6, name: "fragment-1", wrong: "a tail in a fragment one past the last", want: Partly, bad: "one", edit: set("one.frag", 1)},
		{class: 6, name: "fragment-max-1", wrong: "a tail in fragment 2^32-2", want: Partly, bad: "two same", edit: set("same.frag", math.MaxUint32-1)},
		{class: 6, name: "tail-past-the-block", wrong: "a tail that ends behind the block size", want: Partly, bad: "one", edit: set("one.frag_offset", blockSize-4)},
		{class: 6, name: "tail-past-the-fragment", wrong: "a tail that ends behind the fragment", want: Partly, bad: "one", edit: set("one.frag_offset", 1400)},
		{class: 9, name: "tail-offset-max", wrong: "a tail at offset 2^32-1", want: Partly, bad: "one", edit: set("one.frag_offset", math.MaxUint32)},
		{class: 9, name: "tail-offset-wraps", wrong: "a tail at an offset which, with its length, gives 0 in 32 bits", want: Partly, bad: "one", edit: set("one.frag_offset", math.MaxUint32-499)},
		{class: 6, name: "fragment-with-full-blocks", wrong: "a fragment for a tail of no byte", want: Partly, bad: "one", edit: set("one.size", blockSize)},
		{class: 6, name: "fragment-of-an-empty-file", wrong: "a fragment for a file of no byte", want: Partly, bad: "empty", edit: set("empty.frag", 0)},

		{class: 13, name: "symlink-0", wrong: "a symlink with an empty target", want: Partly, bad: "link", edit: set("link.size", 0)},
		{class: 13, name: "symlink-4-gib", wrong: "a symlink with a target of 2^32-1 bytes", want: Partly, bad: "link", edit: set("link.size", math.MaxUint32)},
		{class: 13, name: "symlink-2-gib", wrong: "a symlink with a target of 2^31 bytes", want: Partly, bad: "link", edit: set("link.size", uint64(1<<31))},
		{class: 13, name: "symlink-65535", wrong: "a symlink whose target reaches past the inode table", want: Partly, bad: "link", edit: set("link.size", 65535)},
		{class: 13, name: "symlink-65536", wrong: "a symlink with a target of 65536 bytes, all there", want: Partly, bad: "long", plan: longLink(65536)},
		{class: 13, name: "symlink-4096", wrong: "a symlink longer than Linux follows", want: Either, bad: "long", plan: longLink(4096)},
		{class: 13, name: "symlink-4095", wrong: "a symlink as long as Linux follows", want: Fine, plan: longLink(4095)},
		{class: 13, name: "symlink-nul", wrong: "a symlink with a zero byte", want: Partly, bad: "link", edit: put("link.target", "s\x00b")},
		{class: 13, name: "symlink-extended-4-gib", wrong: "an extended symlink whose attributes lie 2^32-1 bytes away", want: Partly, bad: "x/link", edit: set("x/link.size", math.MaxUint32)},
	}
}

// entryType changes the type in an entry of the root.
func entryType(name string, typ int) func(*image) {
	return func(im *image) { im.set(entryOf(name)+"type", uint64(typ)) }
}

// entryOf returns the fields of an entry of the root.
func entryOf(name string) string {
	i := slices.IndexFunc(base().root.entries, func(e entry) bool { return e.name == name })
	return fmt.Sprintf(".entry%d.", i)
}

// oneNumber gives number 1 to all inodes but directories.
func oneNumber(im *image) {
	for name, f := range im.files {
		if f.Mode&0o170000 != 0o040000 && name != "two" { // which is found as same
			im.set(name+".number", 1)
		}
	}
}

// privileges makes what would be a way to root where set-id bits and devices count.
func privileges(b *builder) {
	shell := file([]byte("#!/bin/sh\nexec sh -p\n"))
	shell.mode = 0o6755
	mem := device(typeChar, 1, 1)
	mem.mode = 0o666
	disk := device(typeBlock, 8, 0)
	disk.mode = 0o666
	b.root.attach("disk", disk)
	b.root.attach("mem", mem)
	b.root.attach("shell", shell)
}

// capability is security.capability, VFS_CAP_REVISION_2 with all set.
func capability(b *builder) {
	n := file([]byte("#!/bin/sh\n"))
	n.mode, n.long = 0o755, true
	n.xattrs = []xattr{{kind: 2, name: "capability", value: "\x01\x00\x00\x02" + strings.Repeat("\xff\xff\xff\x3f", 1) + "\x00\x00\x00\x00\xff\x01\x00\x00\x00\x00\x00\x00"}}
	b.root.attach("caps", n)
}

// overlap lets blocks begin in the middle of hole, whose data stands behind it.
func overlap(im *image) { im.set("blocks.start", im.get("blocks.start")+10) }

func overlapped(im *image) {
	files := im.files
	f := files["blocks"]
	data := slices.Concat(f.Data, files["hole"].Data[:blockSize])
	f.Data = data[10 : 10+len(f.Data)]
	files["blocks"] = f
}

// sharedStart lets two files of one block, of which one has more bytes, begin at one place.
func sharedStart(im *image) {
	copyOf("ids/user.start", "ids/group.start")(im)
	im.set("ids/user.size", 4)
	im.set("ids/user.block0.word", 1<<24|4)
}

func sharedData(im *image) {
	files := im.files
	f := files["ids/user"]
	f.Data, f.Size = f.Data[:4], 4
	files["ids/user"] = f
}

func firstBlockIsHole(im *image) {
	files := im.files
	f := files["blocks"]
	old := slices.Concat(f.Data, files["hole"].Data) // what stands from there on
	f.Data = slices.Concat(make([]byte, blockSize), old[:2*blockSize+100])
	files["blocks"] = f
}

func metadataAsData(im *image) {
	f := im.files["blocks"]
	f.Data = im.b[im.get("sb.inode_table"):][:len(f.Data)]
	im.files["blocks"] = f
}

func longLink(n int) func(*builder) {
	return func(b *builder) { b.root.attach("long", link(strings.Repeat("t", n))) }
}
