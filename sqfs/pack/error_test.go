package pack

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"github.com/squirefs/squire/sqfs"
)

// noLeak checks that a test ends all goroutines that it starts.
func noLeak(t *testing.T) {
	t.Helper()
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		for range 500 {
			if runtime.NumGoroutine() <= before {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		buf := make([]byte, 1<<16)
		t.Errorf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
	})
}

// fullFile is a File that fails at the write with a number, and at all after it.
type fullFile struct {
	memFile
	left atomic.Int64
}

func (f *fullFile) WriteAt(b []byte, off int64) (int, error) {
	if f.left.Add(-1) < 0 {
		return 0, syscall.ENOSPC
	}
	return f.memFile.WriteAt(b, off)
}

func (f *fullFile) Truncate(n int64) error {
	if f.left.Add(-1) < 0 {
		return syscall.ENOSPC
	}
	return f.memFile.Truncate(n)
}

// TestFull fails every write once.
func TestFull(t *testing.T) {
	noLeak(t)
	o := Options{BlockSize: 4096, Memory: 1, Processors: 2, Time: time.Unix(0, 0)}
	m := newModel(rand.New(rand.NewPCG(3, 4)), o.BlockSize)
	for n := int64(0); ; n++ {
		f := &fullFile{}
		f.left.Store(n)
		err := packAll(m, f, o)
		if err == nil {
			if n < 10 {
				t.Errorf("only %d writes", n)
			}
			return
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("write %d: %v", n, err)
		}
		if len(f.b) >= 4 && string(f.b[:4]) == "hsqs" {
			t.Fatalf("write %d: there is a superblock", n)
		}
	}
}

// packAll is model.pack with an error.
func packAll(m *model, f File, o Options) error {
	w, err := NewWriter(f, o)
	if err != nil {
		return err
	}
	defer w.Abort()
	for _, i := range m.order {
		if i.Data, err = w.Add(bytes.NewReader(m.files[i])); err != nil {
			if _, again := w.Add(strings.NewReader("x")); again == nil {
				return fmt.Errorf("contents are added after %w", err)
			}
			return err
		}
	}
	_, err = w.Finish(m.root)
	return err
}

// TestReadError breaks readers off at many places. The image must be the same as one for
// which nobody tried to add them.
func TestReadError(t *testing.T) {
	noLeak(t)
	const bs = 4096
	for _, o := range []Options{
		{BlockSize: bs, Time: time.Unix(0, 0), Memory: 1},
		{BlockSize: bs, Time: time.Unix(0, 0)},
		{BlockSize: bs, Time: time.Unix(0, 0), Duplicates: true, Memory: 1},
	} {
		rnd := rand.New(rand.NewPCG(5, 6))
		m := newModel(rnd, bs)
		want, got := &memFile{}, &memFile{}
		m.pack(t, want, o, nil)
		w, err := NewWriter(got, o)
		if err != nil {
			t.Fatal(err)
		}
		defer w.Abort()
		noise := make([]byte, 40*bs)
		for i := range noise {
			noise[i] = byte(rnd.Uint32())
		}
		for k, i := range m.order {
			clear(noise[:rnd.IntN(2)*3*bs])
			broken := io.MultiReader(bytes.NewReader(noise[:k*977%len(noise)]), iotest.ErrReader(syscall.EIO))
			if _, err := w.Add(broken); !errors.Is(err, syscall.EIO) {
				t.Fatalf("%v", err)
			}
			if i.Data, err = w.Add(bytes.NewReader(m.files[i])); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := w.Finish(m.root); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.b, want.b) {
			t.Errorf("%+v: another image after errors", o)
		}
	}
}

type stuck struct{}

func (stuck) Read([]byte) (int, error) { return 0, nil }

// TestNoProgress checks that a reader which gives nothing is given up.
func TestNoProgress(t *testing.T) {
	w, err := NewWriter(&memFile{}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	if _, err := w.Add(stuck{}); !errors.Is(err, io.ErrNoProgress) {
		t.Error(err)
	}
}

// TestAbort ends writers in each state they can have.
func TestAbort(t *testing.T) {
	noLeak(t)
	long := make([]byte, 3<<20)
	for i := range long {
		long[i] = byte(i * i >> 7)
	}
	steps := []func(w *Writer){
		func(w *Writer) {},
		func(w *Writer) { w.Add(strings.NewReader("a fragment")) },
		func(w *Writer) { w.Add(bytes.NewReader(long)) },
		func(w *Writer) { w.Add(io.MultiReader(bytes.NewReader(long), iotest.ErrReader(syscall.EIO))) },
		func(w *Writer) {
			defer func() { recover() }()
			w.Add(iotest.ErrReader(nil)) // gives nothing for ever
			w.Add(panicking{})
		},
		func(w *Writer) { w.Abort() },
		func(w *Writer) { w.Finish(nil) },
		func(w *Writer) { w.Finish(&Inode{Type: sqfs.TypeDir}) },
	}
	for k, step := range steps {
		w, err := NewWriter(&memFile{}, Options{Memory: 1, Processors: 3})
		if err != nil {
			t.Fatal(err)
		}
		step(w)
		w.Abort()
		w.Abort()
		if _, err := w.Add(strings.NewReader("x")); err == nil {
			t.Errorf("step %d: contents are added to the end", k)
		}
		if _, err := w.Finish(&Inode{Type: sqfs.TypeDir}); err == nil {
			t.Errorf("step %d: finished twice", k)
		}
	}
}

type panicking struct{}

func (panicking) Read([]byte) (int, error) { panic("reader") }

// TestBadTree checks what is refused, and that the path is said.
func TestBadTree(t *testing.T) {
	noLeak(t)
	other, err := NewWriter(&memFile{}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Abort()
	foreign, err := other.Add(strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	dir := func(entries map[string]*Inode) *Inode { return &Inode{Type: sqfs.TypeDir, Entries: entries} }
	at := func(i *Inode) *Inode { return dir(map[string]*Inode{"d": dir(map[string]*Inode{"x": i})}) }
	named := func(name string) *Inode { return dir(map[string]*Inode{name: {Type: sqfs.TypeFifo}}) }
	xattrs := func(list ...Xattr) *Inode { return at(&Inode{Type: sqfs.TypeFifo, Xattrs: list}) }
	shared := dir(nil)
	cycle := at(nil)
	cycle.Entries["d"].Entries["x"] = cycle.Entries["d"]
	toRoot := at(nil)
	toRoot.Entries["d"].Entries["x"] = toRoot
	ids := dir(map[string]*Inode{})
	for i := range maxIDs {
		ids.Entries[fmt.Sprint("f", i)] = &Inode{Type: sqfs.TypeFifo, UID: uint32(i) + 1}
	}
	for _, tt := range []struct {
		root *Inode
		want string
	}{
		{nil, "the root"},
		{&Inode{Type: sqfs.TypeFile}, "the root"},
		{&Inode{Type: sqfs.TypeDir, Target: "x"}, "/: "},
		{at(nil), "/d/x: no inode"},
		{at(&Inode{}), "/d/x: inode of"},
		{at(&Inode{Type: 8}), "/d/x: inode of"},
		{at(&Inode{Type: sqfs.TypeFifo, Entries: map[string]*Inode{"a": {}}}), "/d/x: a fifo"},
		{at(&Inode{Type: sqfs.TypeSymlink, Target: "a", Data: foreign}), "/d/x: a symlink"},
		{at(&Inode{Type: sqfs.TypeFile, Target: "a"}), "/d/x: a file"},
		{at(&Inode{Type: sqfs.TypeFile, Data: foreign}), "/d/x: contents"},
		{at(&Inode{Type: sqfs.TypeSymlink}), "/d/x: symlink"},
		{at(&Inode{Type: sqfs.TypeSymlink, Target: "a\x00"}), "/d/x: symlink"},
		{at(&Inode{Type: sqfs.TypeSymlink, Target: strings.Repeat("a", 65536)}), "/d/x: symlink"},
		{named(""), "/: "},
		{named("."), "/.: "},
		{named(".."), "/..: "},
		{named("a/b"), "slash"},
		{named("a\x00"), "zero byte"},
		{named(strings.Repeat("a", 256)), "256 bytes"},
		{xattrs(Xattr{Name: "system.posix_acl_access"}), "/d/x: squashfs has no place"},
		{xattrs(Xattr{Name: "user."}), "/d/x: squashfs has no place"},
		{xattrs(Xattr{Name: "user.\x00"}), "/d/x: squashfs has no place"},
		{xattrs(Xattr{Name: "user." + strings.Repeat("a", 251)}), "/d/x: squashfs has no place"},
		{xattrs(Xattr{Name: "user.a"}, Xattr{Name: "user.a"}), "/d/x: two extended"},
		{xattrs(Xattr{Name: "user.a", Value: make([]byte, 65537)}), "/d/x: extended attribute user.a"},
		{dir(map[string]*Inode{"a": shared, "b": shared}), "/b: the directory has another name"},
		{cycle, "/d/x: the directory has another name"},
		{toRoot, "/d/x: the directory has another name"},
		{ids, "more than 65535"},
	} {
		w, err := NewWriter(&memFile{}, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Finish(tt.root); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v, want %s", err, tt.want)
		}
	}
}
