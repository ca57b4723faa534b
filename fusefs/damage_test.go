package fusefs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/squirefs/squire/sqfs"
)

// damaged is an image to be damaged, in which nothing is compressed.
type damaged struct {
	t   *testing.T
	b   []byte
	img *sqfs.Image // before the damage
}

func (d *damaged) ino(name string) sqfs.Inode {
	st, err := d.img.Lstat(name)
	if err != nil {
		d.t.Fatal(err)
	}
	return *st.Sys().(*sqfs.Inode)
}

// at returns where the inode of a file is. Its table is one stored metadata block, with a header of 2 bytes, here.
func (d *damaged) at(name string) int64 {
	ref := d.ino(name).Ref
	return d.img.Superblock().InodeTable + int64(ref>>16) + 2 + int64(ref&0xffff)
}

// find returns where s is, behind the start of a table.
func (d *damaged) find(table int64, s string) int64 {
	i := bytes.Index(d.b[table:], []byte(s))
	if i < 0 {
		d.t.Fatalf("%q is not in the image", s)
	}
	return table + int64(i)
}

func (d *damaged) u32(at int64, v uint32) { binary.LittleEndian.PutUint32(d.b[at:], v) }
func (d *damaged) u64(at int64) int64     { return int64(binary.LittleEndian.Uint64(d.b[at:])) }

// blockList is where the block list of an extended file is in its inode: struct squashfs_lreg_inode.
const blockList = 56

// TestDamage damages each kind of thing in an image. Who needs it gets EIO, one line of the log says where, and all
// else can be read.
func TestDamage(t *testing.T) {
	for name, tt := range map[string]struct {
		file   string // whose inode the log names
		damage func(d *damaged)
		ask    func(f *FS, h fuse.InHeader) fuse.Status
		want   []string // in the log
	}{
		"inode": {"fifo", func(d *damaged) { d.b[d.at("fifo")] = 99 }, func(f *FS, h fuse.InHeader) fuse.Status {
			return f.GetAttr(nil, &fuse.GetAttrIn{InHeader: h}, new(fuse.AttrOut))
		}, []string{"op=inode", "byte=0x"}},
		"directory":        {"sub", func(d *damaged) { d.b[d.find(d.img.Superblock().DirectoryTable, "two")] = '/' }, listAll, []string{"op=readdir", "byte=0x"}},
		"block list":       {"blocks", func(d *damaged) { d.u32(d.at("blocks")+blockList+4, 1<<31) }, readAt(5000), []string{"op=read", "block=1", "offset=5000", "byte=0x"}},
		"place of a block": {"blocks", func(d *damaged) { d.u32(d.at("blocks")+blockList+4, 1<<24|4095) }, readAt(4096), []string{"block=1", "offset=4096", "byte=0x"}},
		"data":             {"blocks", func(d *damaged) { d.u32(d.at("blocks")+blockList, 4096) }, readAt(0), []string{"block=0", "offset=0", "byte=0x60"}},
		"fragment":         {"small", func(d *damaged) { d.u32(d.u64(d.img.Superblock().FragmentTable)+2+8, 1<<25) }, readAt(3), []string{"block=0", "offset=3", "byte=0x"}},
		"symlink": {"link", func(d *damaged) { d.b[d.at("link")+24] = 0 }, func(f *FS, h fuse.InHeader) fuse.Status {
			_, code := f.Readlink(nil, &h)
			return code
		}, []string{"op=readlink", "byte=0x"}},
		"xattr": {"small", func(d *damaged) { d.b[d.find(d.img.Superblock().IDTable, "short")-1] = 0xff }, func(f *FS, h fuse.InHeader) fuse.Status {
			_, code := f.GetXAttr(nil, &h, "user.short", make([]byte, 100))
			return code
		}, []string{"op=getxattr", "byte=0x"}},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := os.ReadFile("../sqfs/testdata/stored.sqfs")
			if err != nil {
				t.Fatal(err)
			}
			whole, err := sqfs.New(bytes.NewReader(b), int64(len(b)), nil)
			if err != nil {
				t.Fatal(err)
			}
			d := &damaged{t: t, b: bytes.Clone(b), img: whole}
			tt.damage(d)
			image := filepath.Join(t.TempDir(), "image")
			if err := os.WriteFile(image, d.b, 0o644); err != nil {
				t.Fatal(err)
			}
			var log bytes.Buffer
			f := openImage(t, image, Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
			ref := d.ino(tt.file).Ref
			for range 3 { // as programs do
				if code := tt.ask(f, fuse.InHeader{NodeId: uint64(ref) + nodeBase}); code != fuse.EIO {
					t.Errorf("%v, want EIO", code)
				}
			}
			lines := strings.Split(strings.TrimSpace(log.String()), "\n")
			for _, want := range append(tt.want, fmt.Sprintf("inode=%v", ref)) {
				if len(lines) != 1 || !strings.Contains(lines[0], want) {
					t.Errorf("%d lines %q, want one with %q", len(lines), lines, want)
				}
			}
			for _, other := range []string{"sub/one", "small", "blocks"} {
				if other == tt.file || other != "blocks" && tt.file == "small" { // they share a fragment, and attributes
					continue
				}
				want, _ := whole.ReadFile(other)
				got := make([]byte, len(want)+1)
				if n, code := f.read(nodeOf(t, f, other), 0, got); !code.Ok() || !bytes.Equal(got[:n], want) {
					t.Errorf("%s cannot be read: %v", other, code)
				}
			}
		})
	}
}

// listAll lists a directory to its end or an error.
func listAll(f *FS, h fuse.InHeader) fuse.Status {
	in := fuse.ReadIn{InHeader: h}
	for {
		out := fuse.NewDirEntryList(make([]byte, 4096), in.Offset)
		if code := f.ReadDir(nil, &in, out); !code.Ok() {
			return code
		}
		list, err := fuse.ParseDirEntries(out.Bytes())
		if err != nil || len(list) == 0 {
			return fuse.OK
		}
		in.Offset = list[len(list)-1].Off
	}
}

func readAt(off int64) func(f *FS, h fuse.InHeader) fuse.Status {
	return func(f *FS, h fuse.InHeader) fuse.Status {
		_, code := f.read(h.NodeId, off, make([]byte, 4096))
		return code
	}
}
