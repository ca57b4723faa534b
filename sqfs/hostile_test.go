package sqfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"os"
	"testing"
	"time"
)

// patcher changes an image in which everything is stored uncompressed, so that each
// field can be found and set.
type patcher struct {
	t   *testing.T
	b   []byte
	img *Image // the image before any change
}

func (p *patcher) u16(at int64, v uint16) { binary.LittleEndian.PutUint16(p.b[at:], v) }
func (p *patcher) u32(at int64, v uint32) { binary.LittleEndian.PutUint32(p.b[at:], v) }
func (p *patcher) u64(at int64, v uint64) { binary.LittleEndian.PutUint64(p.b[at:], v) }
func (p *patcher) get32(at int64) uint32  { return binary.LittleEndian.Uint32(p.b[at:]) }
func (p *patcher) get64(at int64) uint64  { return binary.LittleEndian.Uint64(p.b[at:]) }

func (p *patcher) ino(names ...string) Inode { return find(p.t, p.img, names...) }

// inode returns where in the file an inode is.
func (p *patcher) inode(names ...string) int64 {
	ref := p.ino(names...).Ref
	return p.img.sb.InodeTable + ref.block() + 2 + int64(ref.offset())
}

// tail returns where the block list, target or index of an inode is.
func (p *patcher) tail(names ...string) int64 {
	ino := p.ino(names...)
	return p.img.sb.InodeTable + int64(ino.tail>>16) + 2 + int64(ino.tail&0xffff)
}

// listing returns where the listing of a directory is.
func (p *patcher) listing(names ...string) int64 {
	ino := p.ino(names...)
	return p.img.sb.DirectoryTable + ino.start + 2 + int64(ino.offset)
}

// xattr returns where the attributes of an inode are.
func (p *patcher) xattr(names ...string) int64 {
	ino := p.ino(names...)
	set, err := p.img.set(ino.xattr)
	if err != nil {
		p.t.Fatal(err)
	}
	return p.img.xattrs.start + int64(set.Ref>>16) + 2 + int64(set.Ref&0xffff)
}

// entryRef makes the first entry of directory sub a directory that refers to ref.
func (p *patcher) entryRef(ref InodeRef) {
	at := p.listing("sub")
	p.u32(at+4, uint32(ref.block()))
	p.u16(at+12, uint16(ref.offset()))
	p.u16(at+16, uint16(TypeDir))
}

const (
	fine    = iota // all can be read
	atOpen         // New fails with ErrCorrupt
	atWalk         // something in the tree gives ErrCorrupt
	foreign        // New says that the image is not for us
	either         // an error or not, in New or later, but in bounded time
)

var hostile = []struct {
	name  string
	patch func(p *patcher)
	want  int
}{
	{"nothing", func(p *patcher) {}, fine},
	{"magic", func(p *patcher) { p.u32(0, 0) }, foreign},
	{"big-endian", func(p *patcher) { copy(p.b, "sqsh") }, foreign},
	{"streamed without end", func(p *patcher) { copy(p.b, "HSQS") }, foreign},
	{"version 3.1", func(p *patcher) { p.u16(28, 3); p.u16(30, 1) }, foreign},
	{"version 4.1", func(p *patcher) { p.u16(30, 1) }, foreign},
	{"compressor 0", func(p *patcher) { p.u16(20, 0) }, foreign},
	{"compressor 7", func(p *patcher) { p.u16(20, 7) }, foreign},
	{"compressor 65535", func(p *patcher) { p.u16(20, 65535) }, foreign},
	{"other compressor", func(p *patcher) { p.u16(20, uint16(XZ)) }, fine}, // nothing is compressed
	{"options missing", func(p *patcher) { p.u16(24, 0x400) }, either},
	{"block log 13", func(p *patcher) { p.u16(22, 13) }, atOpen},
	{"block size 0 log 32", func(p *patcher) { p.u32(12, 0); p.u16(22, 32) }, atOpen},
	{"block size 0 log 0", func(p *patcher) { p.u32(12, 0); p.u16(22, 0) }, atOpen},
	{"block size 2 GiB", func(p *patcher) { p.u32(12, 1<<31); p.u16(22, 31) }, atOpen},
	{"block size 2 MiB", func(p *patcher) { p.u32(12, 1<<21); p.u16(22, 21) }, atOpen},
	{"block size 2 KiB", func(p *patcher) { p.u32(12, 1<<11); p.u16(22, 11) }, atOpen},
	{"block size 5000", func(p *patcher) { p.u32(12, 5000) }, atOpen},
	{"block size 8192", func(p *patcher) { p.u32(12, 8192); p.u16(22, 13) }, atWalk}, // blocks are too short now
	{"bytes used past the end", func(p *patcher) { p.u64(40, uint64(len(p.b))+1) }, atOpen},
	{"bytes used 2^63", func(p *patcher) { p.u64(40, 1<<63) }, atOpen},
	{"bytes used 0", func(p *patcher) { p.u64(40, 0) }, atOpen},
	{"no inodes", func(p *patcher) { p.u32(4, 0) }, atOpen},
	{"2^32 inodes", func(p *patcher) { p.u32(4, 1<<32-1) }, atOpen}, // the export table has no room
	{"2^32 inodes, no export table", func(p *patcher) { p.u32(4, 1<<32-1); p.u64(88, 1<<64-1) }, fine},
	{"no ids", func(p *patcher) { p.u16(26, 0) }, atOpen},
	{"65535 ids", func(p *patcher) { p.u16(26, 65535) }, atOpen},
	{"2^32 fragments", func(p *patcher) { p.u32(16, 1<<32-1) }, atOpen},
	{"no fragments", func(p *patcher) { p.u32(16, 0) }, atWalk},
	{"root reference of 64 bits", func(p *patcher) { p.u64(32, 1<<63|p.get64(32)) }, atOpen},
	{"root past the inodes", func(p *patcher) { p.u64(32, 1<<47) }, atOpen},
	{"root offset 65535", func(p *patcher) { p.u64(32, p.get64(32)|0xffff) }, atOpen},
	{"root is a file", func(p *patcher) { p.u64(32, uint64(p.ino("small").Ref)) }, atOpen},
	{"root is a sub-directory", func(p *patcher) { p.u64(32, uint64(p.ino("sub").Ref)) }, fine},
	{"inode table at 0", func(p *patcher) { p.u64(64, 0) }, atOpen},
	{"inode table behind directories", func(p *patcher) { p.u64(64, p.get64(72)) }, atOpen},
	{"inode table 2^64-1", func(p *patcher) { p.u64(64, 1<<64-1) }, atOpen},
	{"directory table at the end", func(p *patcher) { p.u64(72, p.get64(40)) }, atOpen},
	{"directory table 2^63", func(p *patcher) { p.u64(72, 1<<63) }, atOpen},
	{"no id table", func(p *patcher) { p.u64(48, 1<<64-1) }, atOpen},
	{"id table at the end", func(p *patcher) { p.u64(48, p.get64(40)-7) }, atOpen},
	{"id table before exports", func(p *patcher) { p.u64(48, p.get64(88)) }, atOpen},
	{"fragment table at 100", func(p *patcher) { p.u64(80, 100) }, atOpen},
	{"export table 2^63", func(p *patcher) { p.u64(88, 1<<63) }, atOpen},
	{"export table in the inodes", func(p *patcher) { p.u64(88, p.get64(64)) }, atOpen},
	{"id block past its index", func(p *patcher) { p.u64(p.img.sb.IDTable, p.get64(48)+8) }, atOpen},
	{"id block far before its index", func(p *patcher) { p.u64(p.img.sb.IDTable, p.get64(72)) }, atOpen},
	{"fragment block 2^64-1", func(p *patcher) { p.u64(p.img.sb.FragmentTable, 1<<64-1) }, atOpen},
	{"xattr table past the end", func(p *patcher) { p.u64(56, p.get64(40)-10) }, atOpen},
	{"xattr table 2^64-2", func(p *patcher) { p.u64(56, 1<<64-2) }, atOpen},
	{"xattr table without rows", func(p *patcher) { p.u32(p.img.sb.XattrTable+8, 0) }, atOpen},
	{"xattr table of 2^32 rows", func(p *patcher) { p.u32(p.img.sb.XattrTable+8, 1<<32-1) }, atOpen},
	{"xattrs start at 2^63", func(p *patcher) { p.u64(p.img.sb.XattrTable, 1<<63) }, atOpen},
	{"xattrs start in the inodes", func(p *patcher) { p.u64(p.img.sb.XattrTable, p.get64(64)) }, atOpen},
	{"xattr table hidden", func(p *patcher) { p.u64(56, 1<<64-1) }, fine},

	{"metadata of length 0", func(p *patcher) { p.u16(p.img.sb.InodeTable, 0x8000) }, atWalk},
	{"metadata of length 8193", func(p *patcher) { p.u16(p.img.sb.InodeTable, 0x8000|8193) }, atWalk},
	{"metadata not stored", func(p *patcher) { p.u16(p.img.sb.InodeTable, 0x2000) }, atWalk},
	{"metadata short in the middle", func(p *patcher) { p.u16(p.img.sb.InodeTable, 0x8000|100) }, atWalk},
	{"directories of length 0", func(p *patcher) { p.u16(p.img.sb.DirectoryTable, 0x8000) }, atWalk},
	{"directories past their end", func(p *patcher) { p.u64(72, p.get64(72)+4) }, either},
	{"ids of length 1", func(p *patcher) { p.u16(p.img.ids.blocks[0], 0x8001) }, atOpen},
	{"fragments of length 1", func(p *patcher) { p.u16(p.img.frags.blocks[0], 0x8001) }, atWalk},

	{"inode type 0", func(p *patcher) { p.u16(p.inode("fifo"), 0) }, atWalk},
	{"inode type 15", func(p *patcher) { p.u16(p.inode("fifo"), 15) }, atWalk},
	{"inode type 65535", func(p *patcher) { p.u16(p.inode("fifo"), 65535) }, atWalk},
	{"mode with type bits", func(p *patcher) { p.u16(p.inode("fifo")+2, 0o170644) }, fine},
	{"user out of range", func(p *patcher) { p.u16(p.inode("fifo")+4, 1) }, atWalk},
	{"group 65535", func(p *patcher) { p.u16(p.inode("fifo")+6, 65535) }, atWalk},
	{"inode number 0", func(p *patcher) { p.u32(p.inode("fifo")+12, 0) }, atWalk},
	{"no links", func(p *patcher) { p.u32(p.inode("fifo")+16, 0) }, fine},

	{"file of 2^63 bytes", func(p *patcher) { p.u64(p.inode("blocks")+24, 1<<63) }, atWalk},
	{"file of 2^62 bytes", func(p *patcher) { p.u64(p.inode("blocks")+24, 1<<62) }, atWalk},
	{"file of 2^40 bytes", func(p *patcher) { p.u64(p.inode("blocks")+24, 1<<40) }, atWalk},
	{"file of 1 MiB", func(p *patcher) { p.u64(p.inode("blocks")+24, 1<<20|1) }, atWalk},
	{"sparse more than size", func(p *patcher) { p.u64(p.inode("blocks")+32, 1<<64-1) }, fine},
	{"blocks start at 2^63", func(p *patcher) { p.u64(p.inode("blocks")+16, 1<<63) }, atWalk},
	{"blocks start at 2^64-1", func(p *patcher) { p.u64(p.inode("blocks")+16, 1<<64-1) }, atWalk},
	{"blocks start at 0", func(p *patcher) { p.u64(p.inode("blocks")+16, 0) }, atWalk},
	{"blocks start at the end", func(p *patcher) { p.u64(p.inode("blocks")+16, p.get64(40)-100) }, atWalk},
	{"blocks start elsewhere", func(p *patcher) { p.u64(p.inode("blocks")+16, 97) }, fine}, // overlap is legal
	{"block with unused bits", func(p *patcher) { p.u32(p.tail("blocks"), 1<<25|1<<24|4096) }, atWalk},
	{"block stored, length 0", func(p *patcher) { p.u32(p.tail("blocks"), 1<<24) }, atWalk},
	{"block stored short", func(p *patcher) { p.u32(p.tail("blocks"), 1<<24|4095) }, atWalk},
	{"block stored long", func(p *patcher) { p.u32(p.tail("blocks"), 1<<24|4097) }, atWalk},
	{"block of 16 MiB", func(p *patcher) { p.u32(p.tail("blocks"), 1<<24|0xffffff) }, atWalk},
	{"block not stored", func(p *patcher) { p.u32(p.tail("blocks"), 4096) }, atWalk},
	{"block becomes a hole", func(p *patcher) { p.u32(p.tail("blocks"), 0) }, fine},
	{"fragment out of range", func(p *patcher) { p.u32(p.inode("small")+44, 1000) }, atWalk},
	{"fragment 2^32-2", func(p *patcher) { p.u32(p.inode("small")+44, 1<<32-2) }, atWalk},
	{"tail past the fragment", func(p *patcher) { p.u32(p.inode("small")+48, 4090) }, atWalk},
	{"tail offset 2^32-1", func(p *patcher) { p.u32(p.inode("small")+48, 1<<32-1) }, atWalk},
	{"tail past the end of a short fragment", func(p *patcher) { p.u32(p.inode("small")+48, 3900) }, atWalk},
	{"fragment with full blocks", func(p *patcher) { p.u64(p.inode("small")+24, 4096) }, atWalk},
	{"fragment of length 0", func(p *patcher) { p.u32(p.img.frags.blocks[0]+2+8, 1<<24) }, atWalk},
	{"fragment is a hole", func(p *patcher) { p.u32(p.img.frags.blocks[0]+2+8, 0) }, atWalk},
	{"fragment of 16 MiB", func(p *patcher) { p.u32(p.img.frags.blocks[0]+2+8, 1<<24|0xffffff) }, atWalk},
	{"fragment with unused bits", func(p *patcher) { p.u32(p.img.frags.blocks[0]+2+8, 1<<31|100) }, atWalk},
	{"fragment at 2^64-1", func(p *patcher) { p.u64(p.img.frags.blocks[0]+2, 1<<64-1) }, atWalk},
	{"fragment not stored", func(p *patcher) { p.u32(p.img.frags.blocks[0]+2+8, p.get32(p.img.frags.blocks[0]+2+8)&^(1<<24)) }, atWalk},

	{"symlink of 0 bytes", func(p *patcher) { p.u32(p.inode("link")+20, 0) }, atWalk},
	{"symlink of 4 GiB", func(p *patcher) { p.u32(p.inode("link")+20, 1<<32-1) }, atWalk},
	{"symlink of 65535 bytes", func(p *patcher) { p.u32(p.inode("link")+20, 65535) }, atWalk},
	{"symlink with a zero byte", func(p *patcher) { p.b[p.tail("link")+1] = 0 }, atWalk},

	{"entry leads to its directory", func(p *patcher) { p.entryRef(p.ino("sub").Ref) }, atWalk},
	{"entry leads to the root", func(p *patcher) { p.entryRef(p.img.Root()) }, atWalk},
	{"directory in two places", func(p *patcher) { p.entryRef(p.ino("big").Ref) }, atWalk},
	{"entry past the inodes", func(p *patcher) { p.u32(p.listing("sub")+4, 1<<32-1) }, atWalk},
	{"entry offset 65535", func(p *patcher) { p.u16(p.listing("sub")+12, 65535) }, atWalk},
	{"entry in the middle of an inode", func(p *patcher) { p.u16(p.listing("sub")+12, p.get16(p.listing("sub")+12)+1) }, either},
	{"entry type 0", func(p *patcher) { p.u16(p.listing("sub")+16, 0) }, atWalk},
	{"entry type 15", func(p *patcher) { p.u16(p.listing("sub")+16, 15) }, atWalk},
	{"entry of extended type", func(p *patcher) { p.u16(p.listing("sub")+16, 9) }, fine},
	{"entry type is not the inode's", func(p *patcher) { p.u16(p.listing("sub")+16, uint16(TypeFifo)) }, either}, // only the path door compares
	{"name ..", func(p *patcher) { p.u16(p.listing("sub")+18, 1); copy(p.b[p.listing("sub")+20:], "..") }, atWalk},
	{"name .", func(p *patcher) { p.u16(p.listing("sub")+18, 0); p.b[p.listing("sub")+20] = '.' }, atWalk},
	{"name with a slash", func(p *patcher) { p.b[p.listing("sub")+21] = '/' }, atWalk},
	{"name is a slash", func(p *patcher) { copy(p.b[p.listing("sub")+20:], "/ab") }, atWalk},
	{"name with a zero byte", func(p *patcher) { p.b[p.listing("sub")+22] = 0 }, atWalk},
	{"name of 65536 bytes", func(p *patcher) { p.u16(p.listing("sub")+18, 65535) }, atWalk},
	{"names twice", func(p *patcher) { copy(p.b[p.listing("sub")+20:], "two") }, atWalk},
	{"names not sorted", func(p *patcher) { copy(p.b[p.listing("sub")+20:], "zzz") }, atWalk},
	{"run of 257", func(p *patcher) { p.u32(p.listing("sub"), 256) }, atWalk},
	{"run of 2^32", func(p *patcher) { p.u32(p.listing("sub"), 1<<32-1) }, atWalk},
	{"run of 3 instead of 2", func(p *patcher) { p.u32(p.listing("sub"), 2) }, atWalk},
	{"listing of 4 GiB", func(p *patcher) { p.u32(p.inode("big")+20, 1<<32-1) }, atWalk},
	{"listing of 0 bytes", func(p *patcher) { p.u32(p.inode("sub")+20, 0) }, fine},
	{"listing of 1 byte", func(p *patcher) { p.u32(p.inode("sub")+20, 1) }, fine},
	{"listing without the 3", func(p *patcher) { p.u32(p.inode("sub")+20, uint32(p.ino("sub").Size-3)) }, fine},
	{"listing elsewhere", func(p *patcher) { p.u32(p.inode("sub")+24, 1<<31) }, atWalk},
	{"listing at offset 65535", func(p *patcher) { p.u16(p.inode("sub")+34, 65535) }, atWalk},
	{"parent is wrong", func(p *patcher) { p.u32(p.inode("sub")+28, 77777) }, fine},
	{"index leads elsewhere", func(p *patcher) { p.u32(p.tail("big")+4, 1<<31) }, fine},
	{"index at 2^32-1", func(p *patcher) { p.u32(p.tail("big"), 1<<32-1) }, fine},
	{"index in the middle of a run", func(p *patcher) { p.u32(p.tail("big"), p.get32(p.tail("big"))+1) }, fine},
	{"index with a wrong name", func(p *patcher) { p.b[p.tail("big")+12] = 'a' }, fine},
	{"index name of 4 GiB", func(p *patcher) { p.u32(p.tail("big")+8, 1<<32-1) }, fine},
	{"65535 index entries", func(p *patcher) { p.u16(p.inode("big")+32, 65535) }, fine},

	{"xattr row out of range", func(p *patcher) { p.u32(p.inode("sub")+36, 1000) }, atWalk},
	{"no xattrs in a set", func(p *patcher) { p.u32(p.setAt("sub")+8, 0) }, atWalk},
	{"2^32 xattrs in a set", func(p *patcher) { p.u32(p.setAt("sub")+8, 1<<32-1) }, atWalk},
	{"60000 xattrs in a set", func(p *patcher) { p.u32(p.setAt("sub")+8, 60000) }, atWalk},
	{"xattrs past their end", func(p *patcher) { p.u64(p.setAt("sub"), 1<<40) }, atWalk},
	{"xattr reference of 64 bits", func(p *patcher) { p.u64(p.setAt("sub"), 1<<63) }, atWalk},
	{"xattr of unknown type", func(p *patcher) { p.u16(p.xattr("sub"), 77) }, fine},
	{"xattr name of 65535 bytes", func(p *patcher) { p.u16(p.xattr("sub")+2, 65535) }, atWalk},
	{"xattr name with a zero byte", func(p *patcher) { p.b[p.xattr("sub")+5] = 0 }, atWalk},
	{"xattr value of 4 GiB", func(p *patcher) { p.u32(p.xattr("sub")+4+14, 1<<32-1) }, atWalk},
	{"xattr value elsewhere, of 1 byte", func(p *patcher) { p.u16(p.xattr("sub"), 0x101) }, atWalk},
	{"xattr value nowhere", func(p *patcher) { p.u64(p.outOfLine(), 1<<47) }, atWalk},
	{"xattr value at 64 bits", func(p *patcher) { p.u64(p.outOfLine(), 1<<63) }, atWalk},
	{"xattr value in the middle", func(p *patcher) { p.u64(p.outOfLine(), p.get64(p.outOfLine())+2) }, either},
}

func (p *patcher) get16(at int64) uint16 { return binary.LittleEndian.Uint16(p.b[at:]) }

// setAt returns where the row of the xattr id table for an inode is.
func (p *patcher) setAt(names ...string) int64 {
	return p.img.sets.blocks[0] + 2 + 16*int64(p.ino(names...).xattr)
}

// outOfLine returns where a reference to an out of line value is.
func (p *patcher) outOfLine() int64 {
	area := p.b[p.img.xattrs.start:p.img.xattrs.end]
	for i := 0; i+24 < len(area); i++ { // type 0x100, name "long", value size 8
		if bytes.HasPrefix(area[i:], []byte("\x00\x01\x04\x00long\x08\x00\x00\x00")) {
			return p.img.xattrs.start + int64(i) + 12
		}
	}
	p.t.Fatal("no value out of line")
	return 0
}

// TestHostile damages an image in one place at a time. There must be an error where
// one is due, and no more than one; and whatever happens, no panic and no long wait.
func TestHostile(t *testing.T) {
	base, err := os.ReadFile("testdata/stored.sqfs")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range hostile {
		t.Run(c.name, func(t *testing.T) {
			p := &patcher{t: t, b: bytes.Clone(base), img: openTest(t, "testdata/stored.sqfs")}
			c.patch(p)
			start := time.Now()
			checkHostile(t, p.b, c.want)
			if d := time.Since(start); d > 10*time.Second {
				t.Errorf("took %v", d)
			}
		})
	}
}

func checkHostile(t *testing.T, b []byte, want int) {
	t.Helper()
	img, err := New(bytes.NewReader(b), int64(len(b)), nil)
	switch {
	case want == either:
	case want == foreign && !errors.Is(err, ErrNotSquashfs) && !errors.Is(err, ErrVersion) && !errors.Is(err, ErrUnsupported):
		t.Errorf("open: %v, want that it is no image for us", err)
	case want == atOpen && !errors.Is(err, ErrCorrupt):
		t.Errorf("open: %v, want %v", err, ErrCorrupt)
	case (want == fine || want == atWalk) && err != nil:
		t.Errorf("open: %v", err)
	}
	if err != nil {
		return
	}
	err = readAllOf(img)
	if want == fine && err != nil || want == atWalk && !errors.Is(err, ErrCorrupt) {
		t.Errorf("walk: %v", err)
	}
	walkPaths(img)
	if _, err := img.Stat("big/entry-299-xxxxxxxxxxxxxxxxxxxxxxxxxxxxx"); want == fine && err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("stat: %v", err)
	}
}

// walkPaths reads what can be reached through the path door.
func walkPaths(img *Image) {
	_ = fs.WalkDir(img, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		_, _ = d.Info()
		if d.Type().IsRegular() {
			if f, err := img.Open(name); err == nil {
				_, _ = io.Copy(io.Discard, io.LimitReader(f, 1<<20))
			}
		}
		return nil
	})
}

// TestHarmlessHere checks that damage to one file leaves the others alone.
func TestHarmlessHere(t *testing.T) {
	b, err := os.ReadFile("testdata/stored.sqfs")
	if err != nil {
		t.Fatal(err)
	}
	p := &patcher{t: t, b: b, img: openTest(t, "testdata/stored.sqfs")}
	p.u32(p.tail("blocks"), 1<<25)
	p.u16(p.inode("fifo"), 99)
	p.u32(p.inode("link")+20, 0)
	img, err := New(bytes.NewReader(b), int64(len(b)), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"blocks", "fifo", "link"} {
		if _, err := img.ReadFile(name); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v, want %v", name, err, ErrCorrupt)
		}
	}
	for name, want := range map[string]string{"small": "small file\n", "small2": "small file\n", "sub/one": "1"} {
		if got, err := img.ReadFile(name); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

// TestTruncated cuts an image off at many places.
func TestTruncated(t *testing.T) {
	for _, path := range []string{"testdata/stored.sqfs", "testdata/xattr-zstd.sqfs"} {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for n := 0; n < len(b)-4096; n += 97 { // the last 4095 bytes may be padding
			if _, err := New(bytes.NewReader(b[:n]), int64(n), nil); err == nil {
				t.Fatalf("%s of %d bytes cut to %d opens", path, len(b), n)
			}
			// The same when the source does not know.
			if img, err := New(bytes.NewReader(b[:n]), int64(len(b)), nil); err == nil && readAllOf(img) == nil {
				t.Fatalf("%s of %d bytes cut to %d is read without an error", path, len(b), n)
			}
		}
	}
}

// TestBomb checks that blocks which expand to more than they may are refused, without
// being expanded.
func TestBomb(t *testing.T) {
	b, err := os.ReadFile("testdata/basic-gzip-128K.sqfs")
	if err != nil {
		t.Fatal(err)
	}
	img, err := New(bytes.NewReader(b), int64(len(b)), nil)
	if err != nil {
		t.Fatal(err)
	}
	ino := find(t, img, "sizes", "t131073")
	f, err := img.File(&ino)
	if err != nil {
		t.Fatal(err)
	}
	e, err := f.Extent(0)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []uint32{0, 1, 131071} {
		e.Block.Len = n
		if _, err := img.ReadBlock(make([]byte, 1<<20), e.Block); !errors.Is(err, ErrCorrupt) {
			t.Errorf("131072 bytes into %d: %v, want %v", n, err, ErrCorrupt)
		}
	}
	e.Block.Len = 131073
	if _, err := img.ReadBlock(make([]byte, 1<<20), e.Block); !errors.Is(err, ErrCorrupt) {
		t.Errorf("131072 bytes into 131073: %v, want %v", err, ErrCorrupt)
	}
}
