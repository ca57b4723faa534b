package sqfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/squirefs/squire/testdata/hostile"
)

// TestHostile reads all images of package hostile through both doors. There must be an error
// where one is due and nowhere else, right data everywhere else, and no panic, no name that
// Linux cannot have, and bounded time and memory whatever happens.
func TestHostile(t *testing.T) {
	limits := hostile.Limits{CPU: 2 * time.Second, Memory: 256 << 20}
	if raceEnabled {
		limits = hostile.Limits{CPU: 30 * time.Second, Memory: 2 << 30}
	}
	hostile.Hold(t, limits, checkHostile)
}

func checkHostile(want *hostile.Image, body hostile.Body) (problems []string) {
	img, err := New(body, body.Size, nil)
	switch {
	case err != nil && (want.Want == hostile.Refuse || want.Want == hostile.Either && len(want.Bad) == 0):
		return knownKind(err)
	case errors.Is(err, ErrUnsupported) && !compressorOf(body).Supported():
		return nil
	case err != nil:
		return []string{fmt.Sprint("open: ", err)}
	case want.Want == hostile.Refuse:
		return []string{"opened, but " + want.Wrong}
	}
	byNumber(img)
	tableOrder(img)
	for _, v := range []hostile.View{newInodeDoor(img), pathDoor{img, body.Files}} {
		for _, p := range want.Check(v, body) {
			problems = append(problems, fmt.Sprintf("%T: %s", v, p))
		}
	}
	return problems
}

// tableOrder goes through the inode table as far as it makes sense: it has to end.
func tableOrder(img *Image) {
	ino, err := img.Inode(0)
	for err == nil {
		ino, err = img.NextInode(&ino)
	}
}

// compressorOf returns what the superblock says.
func compressorOf(body hostile.Body) Compression {
	b := make([]byte, 22)
	_, _ = body.ReadAt(b, 0)
	return Compression(b[20])
}

// knownKind says what is wrong with an error from New.
func knownKind(err error) []string {
	for _, kind := range []error{ErrCorrupt, ErrNotSquashfs, ErrVersion, ErrUnsupported, io.ErrUnexpectedEOF} {
		if errors.Is(err, kind) {
			return nil
		}
	}
	return []string{fmt.Sprint("not a kind of error that is promised: ", err)}
}

// byNumber asks for the inodes of the first and the last numbers. What the export table says
// is not checked until it is used: there may be an error, or any inode.
func byNumber(img *Image) {
	n := img.Superblock().Inodes
	for i := range uint32(500) {
		for _, number := range []uint32{i, n - i, n + i} {
			if ref, err := img.ByNumber(number); err == nil {
				_, _ = img.Inode(ref)
			}
		}
	}
}

// inodeDoor shows an image through Lookup, Dirents, Xattrs and so on. Where List was, it
// knows the inode of a path; else paths would take long in a deep tree.
type inodeDoor struct {
	img     *Image
	dirs    map[string]Inode
	parents map[InodeRef]string
}

func newInodeDoor(img *Image) *inodeDoor {
	return &inodeDoor{img, map[string]Inode{}, map[InodeRef]string{img.Root(): ""}}
}

// inode looks a path up. Like any walk of a whole tree, this one must refuse a directory that
// it finds in a second place.
func (d *inodeDoor) inode(name string) (Inode, error) {
	if name == "" {
		return d.img.Inode(d.img.Root())
	}
	i := strings.LastIndexByte(name, '/')
	dir, ok := d.dirs[name[:max(i, 0)]]
	if !ok {
		return Inode{}, fmt.Errorf("directory of %q was not listed", name)
	}
	e, err := d.img.Lookup(&dir, name[i+1:])
	if err != nil {
		return Inode{}, err
	}
	ino, err := d.img.Inode(e.Ref)
	if err != nil {
		return Inode{}, err
	}
	if e.Type != ino.Type {
		return Inode{}, fmt.Errorf("%w: entry is a %v, inode a %v", ErrCorrupt, e.Type, ino.Type)
	}
	if ino.Type != TypeDir {
		return ino, nil
	}
	if first, seen := d.parents[e.Ref]; seen && first != name {
		return Inode{}, fmt.Errorf("%w: directory %v found as %q and %q", ErrCorrupt, e.Ref, first, name)
	}
	d.parents[e.Ref] = name
	return ino, nil
}

func (d *inodeDoor) File(name string) (hostile.File, error) {
	ino, err := d.inode(name)
	if err != nil {
		return hostile.File{}, err
	}
	return inodeFile(d.img, &ino)
}

// inodeFile asks for all there is to know of an inode.
func inodeFile(img *Image, ino *Inode) (hostile.File, error) {
	f := hostile.File{Mode: ino.UnixMode(), UID: ino.UID, GID: ino.GID, MTime: ino.ModTime, Rdev: ino.Rdev, Size: ino.Size}
	if ino.Type == TypeSymlink {
		b, err := img.AppendLink(nil, ino)
		if err != nil {
			return f, err
		}
		f.Target = string(b)
	}
	for x, err := range img.Xattrs(ino) {
		if err != nil {
			return f, err
		}
		if f.Xattrs == nil {
			f.Xattrs = map[string]string{}
		}
		if _, twice := f.Xattrs[x.Name]; twice {
			continue
		}
		if len(f.Xattrs) < 20 { // each one is searched from the start
			v, err := img.AppendXattr(nil, ino, x.Name)
			if err != nil || len(v) != x.Size {
				return f, fmt.Errorf("value of %s has %d bytes, want %d: %w", x.Name, len(v), x.Size, err)
			}
			f.Xattrs[x.Name] = string(v)
			continue
		}
		f.Xattrs[x.Name] = strings.Repeat("v", x.Size) // as the cases with that many have it
	}
	return f, nil
}

func (d *inodeDoor) List(name string) (names []string, err error) {
	dir, err := d.inode(name)
	if err != nil {
		return nil, err
	}
	d.dirs[name] = dir
	for e, err := range d.img.Dirents(&dir, 0) {
		if err != nil {
			return names, err
		}
		names = append(names, string(e.Name))
	}
	if !slices.IsSorted(names) {
		return names, errors.New("names are not sorted")
	}
	return names, nil
}

func (d *inodeDoor) ReadAt(name string, p []byte, off int64) (int, error) {
	ino, err := d.inode(name)
	if err != nil {
		return 0, err
	}
	f, err := d.img.File(&ino)
	if err != nil {
		return 0, err
	}
	return f.ReadAt(p, off)
}

// pathDoor shows an image through package io/fs. Names that are not UTF-8 are no paths of it:
// for them it says what is right.
type pathDoor struct {
	img   *Image
	files map[string]hostile.File
}

// name makes a path of io/fs of one of package hostile.
func (d pathDoor) name(name string) string {
	if name == "" {
		return "."
	}
	return name
}

func (d pathDoor) File(name string) (hostile.File, error) {
	if f, ok := d.files[name]; ok && !utf8.ValidString(name) {
		return f, nil
	}
	info, err := d.img.Lstat(d.name(name))
	if err != nil {
		return hostile.File{}, err
	}
	f, err := inodeFile(d.img, info.Sys().(*Inode))
	if err == nil && info.Mode()&fs.ModeSymlink != 0 {
		f.Target, err = d.img.ReadLink(name)
	}
	return f, err
}

func (d pathDoor) List(name string) (names []string, err error) {
	list, err := d.img.ReadDir(d.name(name))
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names, err
}

func (d pathDoor) ReadAt(name string, p []byte, off int64) (int, error) {
	if f, ok := d.files[name]; ok && !utf8.ValidString(name) {
		return bytes.NewReader(f.Data).ReadAt(p, off)
	}
	f, err := d.img.Open(name)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return f.(io.ReaderAt).ReadAt(p, off)
}

// TestForeign checks that New says of what kind it is what it cannot read.
func TestForeign(t *testing.T) {
	stored, err := os.ReadFile("testdata/stored.sqfs")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		at   int
		with string
		want error
	}{
		{"magic", 0, "\x00", ErrNotSquashfs},
		{"big-endian", 0, "sqsh", ErrVersion},
		{"streamed without end", 0, "HSQS", ErrNotSquashfs},
		{"version 3.1", 28, "\x03\x00\x01\x00", ErrVersion},
		{"version 4.1", 30, "\x01", ErrVersion},
		{"compressor 0", 20, "\x00", ErrUnsupported},
		{"compressor 7", 20, "\x07", ErrUnsupported},
	} {
		b := bytes.Clone(stored)
		copy(b[c.at:], c.with)
		if _, err := New(bytes.NewReader(b), int64(len(b)), nil); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
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
