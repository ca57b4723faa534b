package hostile

import "math"

// superblockCases are wrong in the superblock.
func superblockCases() []spec {
	return []spec{
		{class: 14, name: "block-log-13", wrong: "block size 4096 with log 13", want: Refuse, edit: set("sb.block_log", 13)},
		{class: 14, name: "block-log-65535", wrong: "block size 4096 with log 65535", want: Refuse, edit: set("sb.block_log", 65535)},
		{class: 14, name: "block-size-0-log-32", wrong: "block size 0 is 1 << 32 in 32 bits", want: Refuse, edit: set("sb.block_size", 0, "sb.block_log", 32)},
		{class: 14, name: "block-size-0-log-0", wrong: "block size 0 with log 0", want: Refuse, edit: set("sb.block_size", 0, "sb.block_log", 0)},
		{class: 14, name: "block-size-1", wrong: "block size 1 with log 0", want: Refuse, edit: set("sb.block_size", 1, "sb.block_log", 0)},
		{class: 14, name: "block-size-2-gib", wrong: "block size 2 GiB", want: Refuse, edit: set("sb.block_size", 1<<31, "sb.block_log", 31)},
		{class: 14, name: "block-size-2-mib", wrong: "block size 2 MiB", want: Refuse, edit: set("sb.block_size", 1<<21, "sb.block_log", 21)},
		{class: 14, name: "block-size-2-kib", wrong: "block size 2 KiB", want: Refuse, edit: set("sb.block_size", 1<<11, "sb.block_log", 11)},
		{class: 14, name: "block-size-5000", wrong: "block size 5000 with log 12", want: Refuse, edit: set("sb.block_size", 5000)},
		{class: 5, name: "block-size-doubled", wrong: "all blocks are stored in half of what the block size says", want: Partly, bad: "blocks hole tail", edit: set("sb.block_size", 8192, "sb.block_log", 13)},

		{class: 22, name: "bytes-used-1-more", wrong: "the superblock counts a byte more than the file has", want: Refuse, edit: func(im *image) { im.set("sb.bytes_used", uint64(len(im.b))+1) }},
		{class: 22, name: "bytes-used-2-63", wrong: "the image has 2^63 bytes", want: Refuse, edit: set("sb.bytes_used", uint64(1<<63))},
		{class: 22, name: "bytes-used-max", wrong: "the image has 2^64-1 bytes", want: Refuse, edit: set("sb.bytes_used", uint64(math.MaxUint64))},
		{class: 22, name: "bytes-used-0", wrong: "the image has 0 bytes", want: Refuse, edit: set("sb.bytes_used", 0)},
		{class: 22, name: "bytes-used-95", wrong: "the image ends inside the superblock", want: Refuse, edit: set("sb.bytes_used", 95)},
		{class: 22, name: "bytes-used-less", wrong: "the image ends before its last index", want: Refuse, edit: add("sb.bytes_used", -1)},

		{class: 2, name: "inodes-0", wrong: "no inodes", want: Refuse, edit: set("sb.inodes", 0)},
		{class: 2, name: "inodes-max", wrong: "2^32-1 inodes, for which the export table has no room", want: Refuse, edit: set("sb.inodes", math.MaxUint32)},
		{class: 2, name: "inodes-max-no-exports", wrong: "2^32-1 inodes and no export table: what nobody uses does no harm", want: Fine, edit: set("sb.inodes", math.MaxUint32, "sb.export_table", uint64(noTable))},
		{class: 2, name: "fragments-max", wrong: "2^32-1 fragments; 16 times that is 0xfffffff0 in 32 bits", want: Refuse, edit: set("sb.fragments", math.MaxUint32)},
		{class: 2, name: "fragments-2-28", wrong: "2^28 fragments; 16 times that is 0 in 32 bits", want: Refuse, edit: set("sb.fragments", 1<<28)},
		{class: 6, name: "fragments-0", wrong: "files with tails in an image without fragments", want: Partly, bad: "one same tail two", edit: set("sb.fragments", 0)},
		{class: 15, name: "ids-0", wrong: "no ids", want: Refuse, edit: set("sb.ids", 0)},
		{class: 15, name: "ids-65535", wrong: "65535 ids, for which the table has no room", want: Refuse, edit: set("sb.ids", 65535)},
		{class: 15, name: "ids-2", wrong: "two ids are not counted", want: Refuse, edit: set("sb.ids", 2)},

		{class: 7, name: "root-64-bits", wrong: "the reference to the root has bit 63 set", want: Refuse, edit: func(im *image) { im.set("sb.root", im.get("sb.root")|1<<63) }},
		{class: 7, name: "root-past-the-inodes", wrong: "the root lies behind the inode table", want: Refuse, edit: set("sb.root", 1<<47)},
		{class: 7, name: "root-in-the-directories", wrong: "the root lies in the directory table", want: Refuse, edit: func(im *image) { im.set("sb.root", (im.get("sb.directory_table")-im.get("sb.inode_table"))<<16) }},
		{class: 7, name: "root-offset-65535", wrong: "the root lies behind its metadata block", want: Refuse, edit: func(im *image) { im.set("sb.root", im.get("sb.root")|0xffff) }},
		{class: 7, name: "root-in-the-middle", wrong: "the root lies in the middle of a metadata block header", want: Refuse, edit: add("sb.root", 1<<16)},
		{class: 18, name: "root-is-a-file", wrong: "the root is a file", want: Refuse, edit: func(im *image) { im.set("sb.root", 0) }},
		{class: 7, name: "root-is-sub", wrong: "the root is another directory, which is legal", want: Fine, edit: rootIsSub, expect: onlySub},

		{class: 7, name: "inode-table-0", wrong: "the inode table begins at the superblock", want: Refuse, edit: set("sb.inode_table", 0)},
		{class: 7, name: "inode-table-behind-directories", wrong: "the inode table has no byte", want: Refuse, edit: copyOf("sb.inode_table", "sb.directory_table")},
		{class: 9, name: "inode-table-max", wrong: "the inode table begins at 2^64-1", want: Refuse, edit: set("sb.inode_table", uint64(math.MaxUint64))},
		{class: 7, name: "directory-table-at-the-end", wrong: "the directory table begins where the image ends", want: Refuse, edit: copyOf("sb.directory_table", "sb.bytes_used")},
		{class: 9, name: "directory-table-2-63", wrong: "the directory table begins at 2^63", want: Refuse, edit: set("sb.directory_table", uint64(1<<63))},
		{class: 7, name: "directory-table-moved", wrong: "the directory table begins 4 bytes late, in the middle of a block", want: Either, edit: add("sb.directory_table", 4)},
		{class: 15, name: "id-table-missing", wrong: "no id table", want: Refuse, edit: set("sb.id_table", uint64(noTable))},
		{class: 7, name: "id-table-at-the-end", wrong: "the index of the ids reaches past the end", want: Refuse, edit: func(im *image) { im.set("sb.id_table", im.get("sb.bytes_used")-7) }},
		{class: 7, name: "id-table-before-exports", wrong: "the tables are not in order", want: Refuse, edit: copyOf("sb.id_table", "sb.export_table")},
		{class: 7, name: "fragment-table-100", wrong: "the fragment table lies in the data", want: Refuse, edit: set("sb.fragment_table", 100)},
		{class: 9, name: "fragment-table-max-7", wrong: "the fragment table begins at 2^64-8: adding the length of its index gives 0", want: Refuse, edit: set("sb.fragment_table", uint64(math.MaxUint64)-7)},
		{class: 9, name: "export-table-2-63", wrong: "the export table begins at 2^63", want: Refuse, edit: set("sb.export_table", uint64(1<<63))},
		{class: 7, name: "export-table-in-the-inodes", wrong: "the export table lies in the inode table", want: Refuse, edit: copyOf("sb.export_table", "sb.inode_table")},
		{class: 7, name: "xattr-table-past-the-end", wrong: "the header of the xattr ids reaches past the end", want: Refuse, edit: func(im *image) { im.set("sb.xattr_table", im.get("sb.bytes_used")-10) }},
		{class: 9, name: "xattr-table-max-1", wrong: "the header of the xattr ids begins at 2^64-2", want: Refuse, edit: set("sb.xattr_table", uint64(math.MaxUint64)-1)},
		{class: 16, name: "xattr-table-hidden", wrong: "inodes have attributes and the image no table, which means none", want: Fine, edit: set("sb.xattr_table", uint64(noTable)), expect: noXattrs},
		{class: 7, name: "fragment-table-of-nothing", wrong: "no fragments, and the position of their table is garbage, which mksquashfs leaves too", want: Fine, plan: noTails, edit: set("sb.fragment_table", 0x1234567890)},

		{class: 20, name: "compressor-0", wrong: "compressor 0", want: Refuse, edit: set("sb.compression", 0)},
		{class: 20, name: "compressor-7", wrong: "compressor 7", want: Refuse, edit: set("sb.compression", 7)},
		{class: 20, name: "compressor-65535", wrong: "compressor 65535", want: Refuse, edit: set("sb.compression", 65535)},
		{class: 20, name: "compressor-xz", wrong: "another compressor than the writer had, where nothing is compressed", want: Fine, edit: set("sb.compression", xz)},
		{class: 20, name: "options-missing", wrong: "the flag for compressor options, and file data in their place", want: Either, edit: set("sb.flags", flagOptions)},
		{class: 20, name: "flags-all-but-options", wrong: "all flags set that say nothing to a reader", want: Fine, edit: set("sb.flags", 0xffff&^flagOptions)},
		{class: 20, name: "time-max", wrong: "the image is of 2106", want: Fine, edit: set("sb.time", math.MaxUint32)},
	}
}

func rootIsSub(im *image) { im.set("sb.root", im.ref("sub")) }

func onlySub(im *image) {
	files := im.files
	sub := map[string]File{"": files["sub"], "one": files["sub/one"], "two": files["sub/two"]}
	clear(files)
	for name, f := range sub {
		files[name] = f
	}
}

func noXattrs(im *image) {
	files := im.files
	for name, f := range files {
		f.Xattrs = nil
		files[name] = f
	}
}

func noTails(b *builder) {
	for _, n := range b.walk {
		n.tail = false
	}
}
