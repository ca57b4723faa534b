package sqfs

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
)

// TestFS runs the conformance test of io/fs. It cannot have names that are no valid
// paths, nor symlinks that lead nowhere, of which the basic images have two.
func TestFS(t *testing.T) {
	for place, want := range map[string][]string{
		"testdata/basic-zstd-4K.sqfs:modes":   {"m0000"},
		"testdata/basic-zstd-4K.sqfs:dir300":  {"f299"},
		"testdata/basic-zstd-4K.sqfs:deep":    {"a/b/c"},
		"testdata/basic-zstd-4K.sqfs:names":   {"\u6f22\u5b57", "with space"},
		"testdata/basic-zstd-128K.sqfs:small": {"11.txt"},
		"testdata/stored.sqfs:.":              {"big/entry-299-" + "xxxxxxxxxxxxxxxxxxxxxxxxxxxxx", "fifo", "null", "link"},
		"testdata/special.sqfs:.":             {"dev/null", "ids/u4294967295"},
		"testdata/xattr-zstd.sqfs:.":          {"sl", "ss", "dir"},
		"testdata/tiny-nopad.sqfs:.":          {"l", "hello", "d/x"},
	} {
		t.Run(place, func(t *testing.T) {
			path, dir, _ := strings.Cut(place, ":")
			sub, err := fs.Sub(openTest(t, path), dir)
			if err != nil {
				t.Fatal(err)
			}
			if err := fstest.TestFS(sub, want...); err != nil {
				t.Error(err)
			}
		})
	}
	if err := fstest.TestFS(openTest(t, "testdata/empty.sqfs")); err != nil {
		t.Error(err)
	}
}

// TestPaths checks how paths and symlinks are followed.
func TestPaths(t *testing.T) {
	img := openTest(t, "testdata/basic-zstd-4K.sqfs")
	same := func(a, b string) {
		t.Helper()
		x, err1 := img.ReadFile(a)
		y, err2 := img.ReadFile(b)
		if err1 != nil || err2 != nil || !bytes.Equal(x, y) || len(x) == 0 {
			t.Errorf("%s and %s differ: %v, %v", a, b, err1, err2)
		}
	}
	same("links/rel", "links/target")
	same("links/abs", "small/01.txt")
	same("links/up", "sizes/t004096")
	same("links/dir/02.txt", "small/02.txt")
	same("links/self/self/self/target", "links/target")
	same("links/out", "links/target")
	same("links/chain", "small/01.txt")
	same("links/hard2", "links/target")

	for name, want := range map[string]error{
		"links/dangling": fs.ErrNotExist, "links/loop": syscall.ELOOP, "links/loop/x": syscall.ELOOP,
		"links/target/x": syscall.ENOTDIR, "nothing": fs.ErrNotExist, "/links": fs.ErrInvalid,
		"links/": fs.ErrInvalid, "../x": fs.ErrInvalid, "small//01.txt": fs.ErrInvalid, "caf\xe9": fs.ErrInvalid,
	} {
		_, err := img.Stat(name)
		var pe *fs.PathError
		if !errors.Is(err, want) || !errors.As(err, &pe) || pe.Path != name {
			t.Errorf("stat %q: %v, want %v", name, err, want)
		}
	}
	if s, err := img.ReadLink("links/up"); s != "../sizes/t004096" || err != nil {
		t.Errorf("readlink: %q, %v", s, err)
	}
	if i, err := img.Lstat("links/dangling"); err != nil || i.Mode().Type() != fs.ModeSymlink {
		t.Errorf("lstat of a symlink: %v, %v", i, err)
	}
	if i, err := img.Lstat("links/dir/01.txt"); err != nil || i.Size() != 237 || i.Sys().(*Inode).Number == 0 {
		t.Errorf("lstat behind a symlink: %v, %v", i, err)
	}
	if i, err := img.Stat("modes/m7777"); err != nil || i.Mode() != 0o777|fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky {
		t.Errorf("mode: %v, %v", i.Mode(), err)
	}
}

// TestFileHandle checks what an open file can do beside Read.
func TestFileHandle(t *testing.T) {
	img := openTest(t, "testdata/basic-gzip-4K.sqfs")
	want, err := img.ReadFile("sizes/mixed")
	if err != nil || len(want) != 4*4096+4 {
		t.Fatalf("%d bytes, %v", len(want), err)
	}
	f, err := img.Open("sizes/mixed")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var got bytes.Buffer
	if _, err := f.(io.Seeker).Seek(5000, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(&got, f); err != nil || n != int64(len(want)-5000) || !bytes.Equal(got.Bytes(), want[5000:]) {
		t.Errorf("copied %d bytes: %v", n, err)
	}
	if _, err := f.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("read at the end: %v", err)
	}
	if _, err := f.(io.Seeker).Seek(-1, io.SeekStart); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("seek to -1: %v", err)
	}
	for _, name := range []string{"links", "sizes"} {
		d, err := img.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.Read(make([]byte, 1)); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("read of a directory: %v", err)
		}
	}
}

// TestOddNames reaches files whose names are no valid paths through the inode door.
func TestOddNames(t *testing.T) {
	img := openTest(t, "testdata/names.sqfs")
	for _, name := range []string{"\xff\xfe", "caf\xe9", "new\nline", "tab\t", "back\\slash", "quo'te\""} {
		ino := find(t, img, name)
		f, err := img.File(&ino)
		if err != nil {
			t.Fatal(err)
		}
		var b [1]byte
		if n, err := f.ReadAt(b[:], 0); n != 1 || err != nil || b[0] != 'x' {
			t.Errorf("%q: %d, %v", name, n, err)
		}
	}
	list, err := fs.ReadDir(img, ".")
	if err != nil || len(list) != 6 {
		t.Errorf("%d names, %v, want 6", len(list), err)
	}
}

// TestResolve checks paths that are no names of package io/fs.
func TestResolve(t *testing.T) {
	img := openTest(t, "testdata/basic-zstd-4K.sqfs")
	root, _ := img.Inode(img.Root())
	for path, same := range map[string]Inode{
		"":                          root,
		"/":                         root,
		"..":                        root,
		"/../../.":                  root,
		"/links/target":             find(t, img, "links", "target"),
		"links//./../links/target":  find(t, img, "links", "target"),
		"//links/dir/01.txt":        find(t, img, "small", "01.txt"),
		"links/dir/":                find(t, img, "small"),
		"links/dir/../small/01.txt": find(t, img, "small", "01.txt"),
		"links/dir":                 find(t, img, "links", "dir"),
		"links/dangling":            find(t, img, "links", "dangling"),
		"links/loop":                find(t, img, "links", "loop"),
		"/names/../small/":          find(t, img, "small"),
	} {
		if ino, err := img.Resolve(path, false); err != nil || ino != same {
			t.Errorf("%q: inode %v, %v, want %v", path, ino.Ref, err, same.Ref)
		}
	}
	if ino, err := img.Resolve("links/dir", true); err != nil || ino != find(t, img, "small") {
		t.Errorf("links/dir followed: inode %v, %v", ino.Ref, err)
	}
	for path, want := range map[string]error{
		"links/target/": syscall.ENOTDIR, "links/target/..": syscall.ENOTDIR, "links/loop/": syscall.ELOOP,
		"links/dangling/": fs.ErrNotExist, "no\x00thing": fs.ErrNotExist, "/...": fs.ErrNotExist,
	} {
		var pe *fs.PathError
		if _, err := img.Resolve(path, false); !errors.Is(err, want) || !errors.As(err, &pe) || pe.Path != path {
			t.Errorf("%q: %v, want %v", path, err, want)
		}
	}
	if _, err := img.Resolve("links/loop", true); !errors.Is(err, syscall.ELOOP) {
		t.Errorf("links/loop followed: %v, want %v", err, syscall.ELOOP)
	}
	odd := openTest(t, "testdata/names.sqfs")
	for _, name := range []string{"\xff\xfe", "caf\xe9", "new\nline"} {
		if ino, err := odd.Resolve("/"+name, true); err != nil || ino != find(t, odd, name) {
			t.Errorf("%q: inode %v, %v", name, ino.Ref, err)
		}
	}
}
