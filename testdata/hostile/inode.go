package hostile

// superblockSize is sizeof(struct squashfs_super_block).
const superblockSize = 96

const flagOptions = 0x0400

// superblock holds what varies in struct squashfs_super_block.
type superblock struct {
	Inodes, BlockSize, Fragments                                                                 uint32
	Compression, BlockLog, Flags, IDs                                                            uint16
	Root, BytesUsed, IDTable, XattrTable, InodeTable, DirectoryTable, FragmentTable, ExportTable uint64
}

// write puts the superblock in its place.
func (s *superblock) write(im *image) {
	at := 0
	put := func(name string, size int, v uint64) {
		im.fields["sb."+name] = [2]int{at, size}
		im.set("sb."+name, v)
		at += size
	}
	put("magic", 4, 0x73717368)
	put("inodes", 4, uint64(s.Inodes))
	put("time", 4, baseTime)
	put("block_size", 4, uint64(s.BlockSize))
	put("fragments", 4, uint64(s.Fragments))
	put("compression", 2, uint64(s.Compression))
	put("block_log", 2, uint64(s.BlockLog))
	put("flags", 2, uint64(s.Flags))
	put("ids", 2, uint64(s.IDs))
	put("major", 2, 4)
	put("minor", 2, 0)
	put("root", 8, s.Root)
	put("bytes_used", 8, s.BytesUsed)
	put("id_table", 8, s.IDTable)
	put("xattr_table", 8, s.XattrTable)
	put("inode_table", 8, s.InodeTable)
	put("directory_table", 8, s.DirectoryTable)
	put("fragment_table", 8, s.FragmentTable)
	put("export_table", 8, s.ExportTable)
}

// addInode appends an inode: struct squashfs_dir_inode and the others.
func (b *builder) addInode(name string, n *node) {
	t := &b.inodes
	n.at = len(t.raw)
	t.in("%s", name)
	kind := n.kind
	if n.long {
		kind += extended
	}
	t.u16("type", kind)
	t.u16("mode", n.mode)
	t.u16("uid", n.uid)
	t.u16("gid", n.gid)
	t.u32("mtime", n.mtime)
	t.u32("number", n.number)
	switch kind {
	case typeDir:
		b.addDir(n)
	case typeDir + extended:
		b.addLongDir(name, n)
	case typeFile:
		t.u32("start", uint32(n.start))
		b.addTail(n)
		t.u32("size", uint32(max(n.size, int64(len(n.data)))))
		b.addWords(name, n)
	case typeFile + extended:
		t.u64("start", n.start)
		t.u64("size", uint64(max(n.size, int64(len(n.data)))))
		t.u64("sparse", 0)
		t.u32("nlink", n.nlink)
		b.addTail(n)
		t.u32("xattr", n.set)
		b.addWords(name, n)
	default:
		b.addOther(n)
	}
}

// addOther appends the rest of symlinks, devices, fifos and sockets.
func (b *builder) addOther(n *node) {
	t := &b.inodes
	t.u32("nlink", n.nlink)
	switch n.kind {
	case typeLink:
		t.u32("size", uint32(len(n.target)))
		t.bytes("target", n.target)
	case typeBlock, typeChar:
		t.u32("rdev", n.rdev)
	}
	if n.long {
		t.u32("xattr", n.set)
	}
}

func (b *builder) addTail(n *node) {
	b.inodes.u32("frag", n.frag)
	b.inodes.u32("frag_offset", n.fragOff)
}

func (b *builder) addWords(name string, n *node) {
	for i, w := range n.words {
		b.inodes.in("%s.block%d", name, i)
		b.inodes.u32("word", w)
	}
}

func (b *builder) addDir(n *node) {
	t := &b.inodes
	ref := b.dirs.ref(n.listing)
	t.u32("start", uint32(ref>>16))
	t.u32("nlink", n.nlink)
	t.u16("size", uint16(n.bytes+3)) // "." and ".." count for 1 and 2
	t.u16("offset", uint16(ref))
	t.u32("parent", n.parent)
}

func (b *builder) addLongDir(name string, n *node) {
	t := &b.inodes
	ref := b.dirs.ref(n.listing)
	t.u32("nlink", n.nlink)
	t.u32("size", uint32(n.bytes+3))
	t.u32("start", uint32(ref>>16))
	t.u32("parent", n.parent)
	t.u16("index_count", uint16(len(n.index))+n.indexLen)
	t.u16("offset", uint16(ref))
	t.u32("xattr", n.set)
	for i, x := range n.index {
		t.in("%s.index%d", name, i)
		t.u32("pos", uint32(x.pos))
		t.u32("start", uint32(b.dirs.ref(n.listing+x.pos)>>16))
		t.u32("size", uint32(len(x.name)-1))
		t.bytes("name", x.name)
	}
	t.raw = append(t.raw, n.indexes...)
}

// maxRun is how many entries may follow one header: SQUASHFS_DIR_COUNT.
const maxRun = 256

// addListing appends the listing of a directory. A new run begins where the metadata block
// of the inodes changes, the difference of the inode numbers leaves 16 bits, the run is
// full, or a block of the listing was filled since the last entry of the index.
func (b *builder) addListing(name string, n *node) {
	t := &b.dirs
	n.listing, n.index = len(t.raw), nil
	indexed, runs := 0, 0
	for i := 0; i < len(n.entries); runs++ {
		first := n.entries[i].to
		block := b.inodes.ref(first.at) >> 16
		pos := len(t.raw) - n.listing
		if n.indexed && pos-indexed >= metadataSize {
			n.index = append(n.index, indexEntry{pos, n.entries[i].name})
			indexed = pos
		}
		t.in("%s.run%d", name, runs)
		t.u32("count", 0)
		count := len(t.raw) - 4
		t.u32("start", uint32(block))
		t.u32("number", first.number)
		k := 0
		for ; i < len(n.entries) && k < maxRun; i, k = i+1, k+1 {
			to := n.entries[i].to
			delta := int64(to.number) - int64(first.number)
			full := n.indexed && k > 0 && len(t.raw)-n.listing-indexed >= metadataSize
			if b.inodes.ref(to.at)>>16 != block || delta != int64(int16(delta)) || full {
				break
			}
			t.in("%s.entry%d", name, i)
			t.u16("offset", uint16(b.inodes.ref(to.at)))
			t.u16("delta", uint16(delta))
			t.u16("type", to.kind)
			t.u16("size", uint16(len(n.entries[i].name)-1))
			t.bytes("name", n.entries[i].name)
		}
		le.PutUint32(t.raw[count:], uint32(k-1))
	}
	t.raw = append(t.raw, n.listed...)
	n.bytes = len(t.raw) - n.listing
}

// addXattrs appends the attributes of all nodes, and a set for each node that has any.
// Values out of line come behind all lists; where is known from the round before.
func (b *builder) addXattrs() {
	t, sets := &b.kv, uint32(0)
	t.raw, b.sets.raw = append(t.raw, b.rawXattrs...), append(b.sets.raw, b.rawSets...)
	var away []*xattr
	first := map[string]*xattr{} // equal values out of line are there once
	for name, n := range b.walk {
		n.set = none
		if len(n.xattrs) == 0 {
			continue
		}
		n.set = sets
		b.sets.in("set%d", sets)
		b.sets.u64("ref", t.ref(len(t.raw)))
		b.sets.u32("count", uint32(len(n.xattrs)))
		b.sets.u32("size", n.xattrSize())
		sets++
		for i := range n.xattrs {
			x := &n.xattrs[i]
			t.in("%s.xattr%d", name, i)
			if x.away {
				if first[x.value] == nil {
					first[x.value] = x
					away = append(away, x)
				}
				t.u16("type", x.kind|xattrAway)
			} else {
				t.u16("type", x.kind)
			}
			t.u16("name_size", uint16(len(x.name)))
			t.bytes("name", x.name)
			if x.away {
				t.u32("size", 8)
				t.u64("ref", t.ref(first[x.value].at))
			} else {
				t.u32("size", uint32(len(x.value)))
				t.bytes("value", x.value)
			}
		}
	}
	for i, x := range away {
		x.at = len(t.raw)
		t.in("value%d", i)
		t.u32("size", uint32(len(x.value)))
		t.bytes("value", x.value)
	}
}

// xattrAway is SQUASHFS_XATTR_VALUE_OOL.
const xattrAway = 0x0100

// xattrSize is what listxattr and getxattr would return, as mksquashfs counts it.
func (n *node) xattrSize() (size uint32) {
	for _, x := range n.xattrs {
		size += uint32(len(xattrPrefixes[x.kind]) + len(x.name) + 1 + len(x.value))
	}
	return size
}

// xattrPrefixes are the name spaces by number.
var xattrPrefixes = []string{"user.", "trusted.", "security."}
