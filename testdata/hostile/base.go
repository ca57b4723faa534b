package hostile

import (
	"fmt"
	"slices"
	"strings"
)

// baseTime is the time of all inodes and of the image.
const baseTime = 1700000000

// blockSize is the block size of the base image.
const blockSize = 4096

// base returns a builder for the base image, a few 10 KiB with everything in it:
//
//	big/            extended directory with index, 300 entries, two runs of 256 at most
//	blocks          extended file of 3 blocks and the start of a fourth
//	block chr fifo link sock              basic inodes
//	empty           no byte
//	hole            data, a hole, data
//	ids/            owners other than root
//	modes/          set-id, sticky and no permissions at all
//	one  two        tails in one fragment
//	same            another name of two
//	sub/            basic directory with one, the file, and two, a directory
//	tail            2 blocks, and a tail in a fragment
//	x/              extended inodes of all types with attributes, inline and out of line
//	zeros           holes only
func base() *builder {
	two := file(pattern("two", 900))
	two.tail, two.long = true, true
	one := file(pattern("one", 500))
	one.tail = true
	blocks := file(pattern("blocks", 3*blockSize+100))
	blocks.long = true
	tail := file(pattern("tail", 2*blockSize+77))
	tail.tail = true
	hole := file(slices.Concat(pattern("hole", blockSize), make([]byte, blockSize), pattern("end", 10)))
	big := dir(bigEntries()...)
	big.long, big.indexed = true, true
	return &builder{
		comp: gzip, log: 12, exports: true,
		ids: []uint32{0, 1000, 65534, 4294967294},
		root: dir(
			entry{"big", big},
			entry{"block", device(typeBlock, 7, 0)},
			entry{"blocks", blocks},
			entry{"chr", device(typeChar, 259, 70000)},
			entry{"empty", file(nil)},
			entry{"fifo", other(typeFifo)},
			entry{"hole", hole},
			entry{"ids", dir(entry{"group", owned(0, 3)}, entry{"user", owned(1, 2)})},
			entry{"link", link("sub/one")},
			entry{"modes", dir(entry{"none", mode(0)}, entry{"setid", mode(0o6755)}, entry{"sticky", mode(0o1777)})},
			entry{"one", one},
			entry{"same", two},
			entry{"sock", other(typeSocket)},
			entry{"sub", dir(entry{"one", file([]byte("1"))}, entry{"two", dir()})},
			entry{"tail", tail},
			entry{"two", two},
			entry{"x", xattrDir()},
			entry{"zeros", &node{kind: typeFile, mode: 0o644, mtime: baseTime, size: 2*blockSize + 1}},
		),
	}
}

// bigEntries are 300 small files whose names take more than a block.
func bigEntries() (list []entry) {
	for i := range 300 {
		list = append(list, entry{fmt.Sprintf("entry-%03d-%s", i, strings.Repeat("x", 10+i%30)), file(nil)})
	}
	return list
}

// xattrDir is a directory in which all types have attributes.
func xattrDir() *node {
	f := file(pattern("f", 10))
	f.xattrs = []xattr{
		{kind: 0, name: "short", value: "v"},
		{kind: 0, name: "long", value: strings.Repeat("L", 200), away: true},
		{kind: 1, name: "empty", value: ""},
		{kind: 2, name: "binary", value: "\x00\xff\x00"},
	}
	d := dir()
	d.xattrs = []xattr{{kind: 1, name: "overlay.opaque", value: "y"}}
	x := dir(
		entry{"block", device(typeBlock, 8, 1)}, entry{"chr", device(typeChar, 1, 3)}, entry{"dir", d},
		entry{"fifo", other(typeFifo)}, entry{"file", f}, entry{"link", link("file")}, entry{"sock", other(typeSocket)},
	)
	x.xattrs = []xattr{{kind: 0, name: "shared", value: strings.Repeat("S", 9), away: true}}
	x.long = true
	for _, e := range x.entries {
		e.to.long = true
		if e.to.xattrs == nil {
			e.to.xattrs = []xattr{{kind: 1, name: "type", value: e.name}}
		}
	}
	return x
}

// pattern returns n bytes that belong to name.
func pattern(name string, n int) []byte {
	return []byte(strings.Repeat(name+" contents, ", n/len(name)+1))[:n]
}

func dir(list ...entry) *node {
	return &node{kind: typeDir, mode: 0o755, mtime: baseTime, entries: list}
}

func file(data []byte) *node {
	return &node{kind: typeFile, mode: 0o644, mtime: baseTime, data: data}
}

func mode(m uint16) *node {
	n := file([]byte("mode"))
	n.mode = m
	return n
}

func owned(uid, gid uint16) *node {
	n := file([]byte("owner"))
	n.uid, n.gid = uid, gid
	return n
}

func link(target string) *node {
	return &node{kind: typeLink, mode: 0o777, mtime: baseTime, target: target}
}

func other(kind uint16) *node {
	return &node{kind: kind, mode: 0o644, mtime: baseTime}
}

// device returns a device node; the number is packed as new_encode_dev of Linux does it.
func device(kind uint16, major, minor uint32) *node {
	n := other(kind)
	n.rdev = minor&0xff | major<<8 | minor&^0xff<<12
	return n
}

// at returns the node at a path.
func (b *builder) at(name string) *node {
	n := b.root
	for elem := range strings.SplitSeq(name, "/") {
		if elem == "" {
			continue
		}
		n = n.entries[slices.IndexFunc(n.entries, func(e entry) bool { return e.name == elem })].to
	}
	return n
}

// attach adds an entry at its place.
func (n *node) attach(name string, to *node) {
	i, _ := slices.BinarySearchFunc(n.entries, name, func(e entry, s string) int { return strings.Compare(e.name, s) })
	n.entries = slices.Insert(n.entries, i, entry{name, to})
}

// files returns what a reader must find. A directory that was found before is left out in
// the second place.
func (b *builder) files() map[string]File {
	files := map[string]File{}
	entered := map[*node]bool{}
	var visit func(name string, n *node)
	visit = func(name string, n *node) {
		if n.kind == typeDir {
			if entered[n] {
				return
			}
			entered[n] = true
		}
		files[name] = b.file(n)
		for _, e := range n.entries {
			visit(join(name, e.name), e.to)
		}
	}
	visit("", b.root)
	return files
}

// modeBits are the S_IFMT bits of the types.
var modeBits = [...]uint32{
	typeDir: 0o040000, typeFile: 0o100000, typeLink: 0o120000, typeBlock: 0o060000,
	typeChar: 0o020000, typeFifo: 0o010000, typeSocket: 0o140000,
}

func (b *builder) file(n *node) File {
	f := File{
		Mode: modeBits[n.kind] | uint32(n.mode), UID: b.ids[n.uid], GID: b.ids[n.gid], MTime: n.mtime,
		Rdev: n.rdev, Target: n.target, Data: n.data, Size: max(n.size, int64(len(n.data))),
	}
	for _, x := range n.xattrs {
		if f.Xattrs == nil {
			f.Xattrs = map[string]string{}
		}
		f.Xattrs[xattrPrefixes[x.kind]+x.name] = x.value
	}
	for _, e := range n.entries {
		f.Names = append(f.Names, e.name)
	}
	return f
}

// join is path.Join for names that are not clean.
func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}
