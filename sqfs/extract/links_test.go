package extract

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/sqfs"
	"github.com/squirefs/squire/sqfs/internal/imagetest"
)

// linkImage makes an image of n fifos with two names each, at the end of the longest path
// that mksquashfs can follow, and returns that too.
func linkImage(t *testing.T, n int) (image, path string) {
	t.Helper()
	src := t.TempDir()
	path = strings.Repeat(strings.Repeat("d", 250)+"/", 15)
	if err := os.MkdirAll(filepath.Join(src, path), 0o755); err != nil {
		t.Fatal(err)
	}
	at, err := unix.Open(filepath.Join(src, path), openDir, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(at)
	for i := range n {
		first, second := fmt.Sprintf("a%05d", i), fmt.Sprintf("b%05d", i)
		if err := errors.Join(unix.Mknodat(at, first, unix.S_IFIFO|0o600, 0), unix.Linkat(at, first, at, second, 0)); err != nil {
			t.Fatal(err)
		}
	}
	return mksquashfs(t, src), path
}

// TestLinkMemory holds the memory for files that wait for further names, at the end of
// a long path, to less than one such path for each; nothing is left when all have come.
func TestLinkMemory(t *testing.T) {
	const files = 2500
	image, path := linkImage(t, files)
	img := imagetest.Open(t, image)
	root, err := img.Inode(img.Root())
	if err != nil {
		t.Fatal(err)
	}
	var before, now goruntime.MemStats
	x := newExtraction(context.Background(), img, &Options{Select: func(p []byte, _ bool) (take, within bool) {
		if strings.HasSuffix(string(p), "/b00000") {
			goruntime.GC()
			goruntime.ReadMemStats(&now)
		}
		return true, true
	}})
	defer x.cancel(nil)
	goruntime.GC()
	goruntime.ReadMemStats(&before)
	r, err := x.run(&root, filepath.Join(t.TempDir(), "out"))
	if err != nil || r.Fifos != files || r.HardLinks != files || r.Problems > 0 {
		t.Errorf("%v, %+v", err, r)
	}
	if n := int64(now.HeapAlloc) - int64(before.HeapAlloc); n > files*int64(len(path))/4 {
		t.Errorf("%d files hold %d bytes of memory, with paths of %d", files, n, len(path))
	}
	if len(x.links.files) > 0 || x.links.bytes != 0 {
		t.Errorf("%d files are left in the table, for %d bytes", len(x.links.files), x.links.bytes)
	}
}

// TestLinkLimit fills the table of links: this is told, and the names become files.
func TestLinkLimit(t *testing.T) {
	const files = 20
	image, _ := linkImage(t, files)
	img := imagetest.Open(t, image)
	root, err := img.Inode(img.Root())
	if err != nil {
		t.Fatal(err)
	}
	told := 0
	x := newExtraction(context.Background(), img, &Options{Problem: func(path string, err error) {
		if told++; !errors.Is(err, errManyLinks) {
			t.Errorf("%s: %v", path, err)
		}
	}})
	defer x.cancel(nil)
	x.links.limit = files / 2 * (linkCost + len("a00000"))
	r, err := x.run(&root, filepath.Join(t.TempDir(), "out"))
	if err != nil || r.Fifos+r.HardLinks != 2*files || r.HardLinks == 0 || told == 0 || int(r.Problems) != told {
		t.Errorf("%v, %d problems, %+v", err, told, r)
	}
}

// TestLinkTable adds and removes files, and wants each directory free when the last file
// below it is gone, after those in it.
func TestLinkTable(t *testing.T) {
	links := linkTable{files: map[sqfs.InodeRef]madeFile{}, limit: linkBytes}
	root := &node{}
	a := &node{up: root, name: "a"}
	b := &node{up: a, name: "b"}
	for i, dir := range []*node{b, a, b} {
		links.add(sqfs.InodeRef(i), madeFile{place: place{dir, fmt.Sprint(i)}, left: 1})
	}
	var freed []*node
	for i, want := range [][]*node{nil, nil, {b, a, root}} {
		freed = nil
		links.remove(sqfs.InodeRef(i), func(n *node) { freed = append(freed, n) })
		if fmt.Sprint(freed) != fmt.Sprint(want) {
			t.Errorf("file %d frees %v, want %v", i, freed, want)
		}
	}
	if links.bytes != 0 {
		t.Errorf("%d bytes are left", links.bytes)
	}
	if got := (place{b, "f"}).String(); got != "a/b/f" {
		t.Errorf("path %q", got)
	}
}
