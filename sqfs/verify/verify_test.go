package verify

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/sqfs"
	"github.com/squirefs/squire/sqfs/internal/imagetest"
)

// TestSound finds nothing wrong with images that unsquashfs and the kernel read.
func TestSound(t *testing.T) {
	for _, path := range imagetest.Paths(t, "../testdata") {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".sqfs"), func(t *testing.T) {
			img := imagetest.Open(t, path)
			var done atomic.Int64
			r, err := Run(t.Context(), img, &Options{Data: true, Done: &done})
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range r.Damage {
				t.Errorf("%s: %v", d.Path, d.Err)
			}
			inodes := int64(0)
			for _, n := range r.Types {
				inodes += n
			}
			want := int64(img.Superblock().Inodes)
			if strings.HasSuffix(path, "longnames.sqfs") {
				want-- // a name of 256 bytes, which Linux cannot have
			}
			if inodes != want || r.Entries != want+r.HardLinks {
				t.Errorf("%d inodes and %d entries with %d hard links, the superblock has %d", inodes, r.Entries, r.HardLinks, want)
			}
			if n := done.Load(); n > Total(img) || n < Total(img)/2-96 {
				t.Errorf("expanded %d bytes of %d", n, Total(img))
			}
			if r.TailRoom > r.Fragments.Expanded || r.Fragments.Blocks != int64(img.Superblock().Fragments) {
				t.Errorf("%d fragments, want %d; tails reach to %d of %d", r.Fragments.Blocks, img.Superblock().Fragments, r.TailRoom, r.Fragments.Expanded)
			}
			fast, err := Run(t.Context(), img, nil)
			if err != nil || fast.Data != r.Data || fast.Fragments != r.Fragments || fast.Types != r.Types || fast.FileBytes != r.FileBytes || fast.DamageCount != 0 {
				t.Errorf("without data: %v, %+v, want %+v", err, fast, r)
			}
			for i, table := range r.Tables {
				if table.Bytes == 0 && table.Name == "directory table" { // only an empty root
					continue
				}
				if table.Blocks == 0 || table.Expanded == 0 || table.Bytes < 3*table.Blocks || fast.Tables[i].Start != table.Start {
					t.Errorf("%+v", table)
				}
			}
		})
	}
}

// source makes a tree: of some files of which much is known, and an image of it in which
// each byte of metadata can be found.
func source(t *testing.T, args ...string) []byte {
	t.Helper()
	dir := t.TempDir()
	put := func(name string, data []byte) {
		name = filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, data, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	long := make([]byte, 40<<10)
	for i := range long {
		long[i] = byte(i * i >> 6)
	}
	put("a/long", long)
	put("b/copy", long) // shares its blocks
	put("b/dir/other", bytes.Repeat([]byte("another file, "), 3000))
	for i := range 10 {
		put(fmt.Sprintf("c/small%d", i), bytes.Repeat([]byte(fmt.Sprint("small ", i, "; ")), 50+i))
	}
	for _, name := range []string{"c/small1", "c/small2"} { // where attributes cannot be had, a test is skipped
		_ = unix.Setxattr(filepath.Join(dir, name), "user.test", []byte("value"), 0)
	}
	return pack(t, dir, args...)
}

// pack makes an image of a directory, in which inodes and attributes are stored.
func pack(t *testing.T, dir string, args ...string) []byte {
	t.Helper()
	if _, err := exec.LookPath("mksquashfs"); err != nil {
		t.Skip("mksquashfs is not installed")
	}
	image := filepath.Join(t.TempDir(), "x.sqfs")
	args = append([]string{dir, image, "-noappend", "-no-progress", "-quiet", "-b", "8K", "-comp", "gzip", "-noI", "-noX"}, args...)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if out, err := exec.CommandContext(ctx, "mksquashfs", args...).CombinedOutput(); err != nil {
		t.Fatalf("mksquashfs: %v\n%s", err, out)
	}
	raw, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// TestDamage damages an image in one place at a time, and wants exactly that place
// reported, with the paths that it concerns.
func TestDamage(t *testing.T) {
	base := source(t)
	// at returns where an inode is: in this image they are not compressed.
	at := func(img *sqfs.Image, name string) int64 {
		ref := imagetest.Inode(t, img, name).Ref
		return img.Superblock().InodeTable + int64(ref>>16) + 2 + int64(ref&0xffff)
	}
	tests := []struct {
		name  string
		patch func(img *sqfs.Image, raw []byte) (off int64)
		want  []string // path, block and number of paths of each damage
	}{
		{"nothing", func(*sqfs.Image, []byte) int64 { return -1 }, nil},
		{"block of two files", func(img *sqfs.Image, raw []byte) int64 {
			b := imagetest.Extent(t, img, "a/long", 2).Block
			raw[b.Off+int64(b.Size)/2] ^= 0xff
			return b.Off
		}, []string{"a/long 2 2"}},
		{"block of one file", func(img *sqfs.Image, raw []byte) int64 {
			b := imagetest.Extent(t, img, "b/dir/other", 1).Block
			clear(raw[b.Off : b.Off+int64(b.Size)])
			return b.Off
		}, []string{"b/dir/other 1 1"}},
		{"fragment", func(img *sqfs.Image, raw []byte) int64 {
			b := imagetest.Extent(t, img, "c/small3", 0).Block
			raw[b.Off+int64(b.Size)-2] ^= 0xff // the checksum
			return b.Off
		}, []string{"c/small0 0 10"}},
		{"fragment too short for one", func(img *sqfs.Image, raw []byte) int64 {
			// The tail of the last file moves to the end of the fragment block.
			binary.LittleEndian.PutUint32(raw[at(img, "c/small9")+24:], 8192-uint32(imagetest.Inode(t, img, "c/small9").Size))
			return imagetest.Extent(t, img, "c/small9", 0).Block.Off
		}, []string{"c/small9 0 1"}},
		{"inode", func(img *sqfs.Image, raw []byte) int64 {
			raw[at(img, "c/small4")] = 99
			return img.Superblock().InodeTable
		}, []string{"c/small4 -1 1"}},
		{"block list", func(img *sqfs.Image, raw []byte) int64 {
			raw[at(img, "b/dir/other")+32+3] = 0x80 // a bit that means nothing
			return img.Superblock().InodeTable
		}, []string{"b/dir/other 0 1"}},
		{"directory", func(img *sqfs.Image, raw []byte) int64 {
			dir := imagetest.Inode(t, img, "b/dir")
			pos := img.Superblock().DirectoryTable + 2 + int64(binary.LittleEndian.Uint16(raw[at(img, "b/dir")+26:]))
			raw[pos+12+8] = '/' // in the name of its only entry
			if dir.Size != 12+8+5+3 {
				t.Fatal("not the directory that it should be")
			}
			return img.Superblock().DirectoryTable
		}, []string{"b/dir -1 1"}},
		{"directory of another", func(img *sqfs.Image, raw []byte) int64 {
			// b/dir has the listing of a: its entry leads to a/long, and all is well but for a second name of that.
			copy(raw[at(img, "b/dir")+16:at(img, "b/dir")+28], raw[at(img, "a")+16:])
			return -1
		}, nil},
		{"extended attributes of two files", func(img *sqfs.Image, raw []byte) int64 {
			ino := imagetest.Inode(t, img, "c/small1")
			set, has := ino.XattrSet()
			if !has {
				t.Skip("no extended attributes on this file system")
			}
			for _, table := range img.Tables() {
				if table.Name == "xattr id table" {
					clear(raw[table.Start+2+16*int64(set)+8:][:4]) // how many there are
					return table.Start
				}
			}
			return 0
		}, []string{"c/small1 -1 2"}},
		{"export table", func(img *sqfs.Image, raw []byte) int64 {
			for _, table := range img.Tables() {
				if table.Name == "export table" {
					raw[table.Start+2+8*int64(imagetest.Inode(t, img, "a").Number-1)]++
				}
			}
			return -1
		}, []string{"a -1 1"}},
		{"row of the fragment table", func(img *sqfs.Image, raw []byte) int64 {
			for _, table := range img.Tables() {
				if table.Name == "fragment table" {
					raw[table.Start+2+8+3] = 0x80 // in the length of the only block
					return table.Start
				}
			}
			return 0
		}, []string{"c/small0 0 10"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			raw := bytes.Clone(base)
			off := tt.patch(imagetest.New(t, base), raw)
			r, err := Run(t.Context(), imagetest.New(t, raw), &Options{Data: true, Workers: 2})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, d := range r.Damage {
				got = append(got, fmt.Sprintf("%s %d %d", d.Path, d.Block, d.Paths))
				if d.Off != off || !errors.Is(d.Err, sqfs.ErrCorrupt) {
					t.Errorf("%s: at %#x, %v; want %#x", d.Path, d.Off, d.Err, off)
				}
			}
			if !slices.Equal(got, tt.want) || r.DamageCount != int64(len(tt.want)) {
				t.Errorf("damage %q, want %q", got, tt.want)
			}
		})
	}
}

// TestTables damages metadata that is compressed: one place is reported, which names the
// table and has the paths that cannot be read for it.
func TestTables(t *testing.T) {
	for _, tt := range []struct {
		image, table string
		paths        int64 // at least
	}{
		{"basic-gzip-4K", "inode table", 10},
		{"basic-gzip-4K", "directory table", 1},
		{"basic-gzip-4K", "fragment table", 2},
		{"basic-gzip-4K", "export table", 10},
		{"xattr-zstd", "xattrs", 10},
		{"xattr-zstd", "xattr id table", 2},
	} {
		t.Run(tt.table, func(t *testing.T) {
			raw, err := os.ReadFile("../testdata/" + tt.image + ".sqfs")
			if err != nil {
				t.Fatal(err)
			}
			tables := imagetest.New(t, raw).Tables()
			i := slices.IndexFunc(tables, func(x sqfs.Table) bool { return x.Name == tt.table })
			if i < 0 {
				t.Fatalf("no such table in %+v", tables)
			}
			at := tables[i].Start
			raw[at], raw[at+1] = 0, 0 // a length that no block has
			r, err := Run(t.Context(), imagetest.New(t, raw), &Options{Data: true})
			if err != nil {
				t.Fatal(err)
			}
			if r.DamageCount != 1 || len(r.Damage) != 1 {
				t.Fatalf("%d places: %+v", r.DamageCount, r.Damage)
			}
			d := r.Damage[0]
			if d.Off != at || d.Paths < tt.paths || !d.HasPath() || !strings.HasPrefix(d.Err.Error(), tt.table+": ") {
				t.Errorf("%+v", d)
			}
		})
	}
}

// TestCounts compares the report of an image with what it was made of.
func TestCounts(t *testing.T) {
	img := imagetest.New(t, source(t))
	r, err := Run(t.Context(), img, nil)
	if err != nil {
		t.Fatal(err)
	}
	// 5 blocks of a/long, shared by b/copy, and 5 of other, with the tail of 2000 bytes or so in a fragment or not.
	if r.Types[sqfs.TypeFile] != 13 || r.Types[sqfs.TypeDir] != 5 || r.Entries != 18 || r.Shared != 5 || r.Data.Blocks < 10 || r.Fragments.Blocks != 1 {
		t.Errorf("%+v", r)
	}
	sum := int64(0)
	for _, n := range r.Data.Sizes {
		sum += n
	}
	if sum != r.Data.Blocks || r.Data.Expanded < r.Data.Bytes {
		t.Errorf("%+v", r.Data)
	}
}

func TestCancel(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if r, err := Run(ctx, imagetest.Open(t, "../testdata/basic-zstd-4K.sqfs"), &Options{Data: true}); !errors.Is(err, context.Canceled) || r.Entries > 1 {
		t.Errorf("%v %+v", err, r)
	}
}

// TestUncountedNames holds that the block list of a long file is read once, also when
// its inode denies that it has several names.
func TestUncountedNames(t *testing.T) {
	dir := t.TempDir()
	first := filepath.Join(dir, "a")
	err := errors.Join(os.WriteFile(first, nil, 0o600), os.Truncate(first, 100*8192),
		os.Link(first, filepath.Join(dir, "b")), os.Link(first, filepath.Join(dir, "c")))
	if err != nil {
		t.Fatal(err)
	}
	b := pack(t, dir)
	ino := imagetest.Inode(t, imagetest.New(t, b), "a")
	// Inodes are stored, in the first block of their table; struct squashfs_lreg_inode.
	nlink := imagetest.New(t, b).Superblock().InodeTable + 2 + int64(ino.Ref&0xffff) + 40
	binary.LittleEndian.PutUint32(b[nlink:], 1)
	if ino = imagetest.Inode(t, imagetest.New(t, b), "a"); ino.Nlink != 1 {
		t.Fatalf("%+v", ino)
	}
	r, err := Run(t.Context(), imagetest.New(t, b), nil)
	if err != nil || r.Holes != 100 || r.HardLinks != 2 {
		t.Errorf("%d holes in one file with %d names more, %v", r.Holes, r.HardLinks, err)
	}
}
