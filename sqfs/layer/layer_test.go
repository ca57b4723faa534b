package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/squirefs/squire/sqfs"
	"github.com/squirefs/squire/sqfs/pack"
)

// memory is a writer that keeps what it is given.
type memory struct {
	all   []*pack.Data
	bytes map[*pack.Data][]byte
}

func (m *memory) Add(r io.Reader) (*pack.Data, error) {
	b, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	d := new(pack.Data)
	if m.bytes == nil {
		m.bytes = map[*pack.Data][]byte{}
	}
	m.all, m.bytes[d] = append(m.all, d), b
	return d, nil
}

// nothing is a writer that only reads.
type nothing struct{ bytes int64 }

func (n *nothing) Add(r io.Reader) (*pack.Data, error) {
	k, err := io.Copy(io.Discard, struct{ io.Reader }{r})
	n.bytes += k
	return new(pack.Data), err
}

// blob is a layer in memory.
type blob struct {
	name   string
	bytes  []byte
	opened atomic.Int32
	open   atomic.Int32
}

func (b *blob) Name() string { return b.name }
func (b *blob) Open(context.Context) (io.ReadCloser, error) {
	b.opened.Add(1)
	b.open.Add(1)
	return struct {
		io.Reader
		io.Closer
	}{bytes.NewReader(b.bytes), closer(func() error { b.open.Add(-1); return nil })}, nil
}

type closer func() error

func (c closer) Close() error { return c() }

func stack(archives ...[]byte) []Layer {
	var all []Layer
	for i, b := range archives {
		all = append(all, &blob{name: fmt.Sprintf("layer%d", i), bytes: b})
	}
	return all
}

// item is an entry of an archive in a test.
type item struct {
	name string
	typ  byte   // 0: a directory if the name ends with a slash, else a file
	data string // contents, or target
	mode int64  // 0: 0755 or 0644
	uid  int
	pax  map[string]string
}

// when is the time of all entries of tests.
const when = 1_000_000_000

func (e item) header() *tar.Header {
	h := &tar.Header{
		Name: e.name, Typeflag: e.typ, Mode: e.mode, Uid: e.uid, Gid: 7, ModTime: time.Unix(when, 0),
		PAXRecords: e.pax, Format: tar.FormatPAX,
	}
	if h.Typeflag == 0 {
		if h.Typeflag = tar.TypeReg; strings.HasSuffix(e.name, "/") {
			h.Typeflag = tar.TypeDir
		}
	}
	if h.Mode == 0 {
		if h.Mode = 0o644; h.Typeflag == tar.TypeDir {
			h.Mode = 0o755
		}
	}
	switch h.Typeflag {
	case tar.TypeReg:
		h.Size = int64(len(e.data))
	case tar.TypeLink, tar.TypeSymlink:
		h.Linkname = e.data
	}
	return h
}

func archived(t testing.TB, items ...item) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range items {
		h := e.header()
		if err := w.WriteHeader(h); err != nil {
			t.Fatalf("%q: %v", e.name, err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := io.WriteString(w, e.data); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func dir(name string) item           { return item{name: name + "/"} }
func reg(name, data string) item     { return item{name: name, data: data} }
func link(name, target string) item  { return item{name: name, typ: tar.TypeLink, data: target} }
func symlink(name, to string) item   { return item{name: name, typ: tar.TypeSymlink, data: to} }
func wh(name string) item            { return item{name: name} }
func typed(name string, b byte) item { return item{name: name, typ: b} }

// show writes a tree as a line per name, sorted: "d 755 0 a", "f 644 0 a/x contents",
// "l a/y -> target", and for further names of an inode "= a/z a/x".
func show(root *pack.Inode, data map[*pack.Data][]byte) []string {
	var lines []string
	first := map[*pack.Inode]string{}
	var walk func(i *pack.Inode, path string)
	walk = func(i *pack.Inode, path string) {
		if f, ok := first[i]; ok {
			lines = append(lines, fmt.Sprintf("= %s %s", path, f))
			return
		}
		first[i] = path
		var attributes string
		for _, x := range i.Xattrs {
			attributes += fmt.Sprintf(" %s=%s", x.Name, x.Value)
		}
		switch i.Type {
		case sqfs.TypeDir:
			lines = append(lines, fmt.Sprintf("d %o %d %s%s", i.Mode, i.UID, path, attributes))
			for _, name := range slices.Sorted(maps.Keys(i.Entries)) {
				walk(i.Entries[name], strings.TrimPrefix(path+"/"+name, "./"))
			}
		case sqfs.TypeFile:
			lines = append(lines, fmt.Sprintf("f %o %d %s %s%s", i.Mode, i.UID, path, data[i.Data], attributes))
		case sqfs.TypeSymlink:
			lines = append(lines, fmt.Sprintf("l %s -> %s%s", path, i.Target, attributes))
		default:
			lines = append(lines, fmt.Sprintf("%c %o %d %s %#x%s", "?dflbcps"[i.Type], i.Mode, i.UID, path, i.Rdev, attributes))
		}
	}
	walk(root, ".")
	return lines
}

func mergeAll(t testing.TB, o Options, layers ...[]byte) ([]string, *Report, *memory, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	w := new(memory)
	all := stack(layers...)
	root, report, err := merge(ctx, w, all, o)
	for _, l := range all {
		if n := l.(*blob).open.Load(); n != 0 {
			t.Errorf("%s: %d readers are still open", l.Name(), n)
		}
	}
	if err != nil {
		return nil, nil, w, err
	}
	return show(root, w.bytes), report, w, nil
}

func TestStacks(t *testing.T) {
	type layers [][]item
	for _, c := range []struct {
		name   string
		layers layers
		want   string // lines of show without the root, joined by " | "; or "error: " and a part of it
	}{
		{"nothing", layers{}, ""},
		{"empty", layers{{}}, ""},
		{"one", layers{{dir("a"), reg("a/x", "1")}}, "d 755 0 a | f 644 0 a/x 1"},
		{"implied", layers{{reg("a/b/x", "1")}}, "d 755 0 a | d 755 0 a/b | f 644 0 a/b/x 1"},
		{"implied stays", layers{{{name: "a/", mode: 0o700, uid: 5}}, {reg("a/x", "1")}}, "d 700 5 a | f 644 0 a/x 1"},
		{
			"names",
			layers{{reg("./a", "1"), reg("/b", "2"), reg("c//d", "3"), reg("../e", "4"), reg("x/../../f", "5")}},
			"f 644 0 a 1 | f 644 0 b 2 | d 755 0 c | f 644 0 c/d 3 | f 644 0 e 4 | f 644 0 f 5",
		},
		{"replaced", layers{{reg("a", "1")}, {reg("a", "2")}, {reg("a", "3")}}, "f 644 0 a 3"},
		{"whiteout", layers{{reg("a", "1"), reg("b", "2")}, {wh(".wh.a")}}, "f 644 0 b 2"},
		{"whiteout of a directory", layers{{reg("a/x/y", "1")}, {wh(".wh.a")}}, ""},
		{"whiteout of nothing", layers{{reg("a", "1")}, {wh(".wh.b"), wh("c/.wh.d"), wh("a/.wh.x")}}, "f 644 0 a 1"},
		{"whiteout, own file before", layers{{reg("a", "1")}, {reg("a", "2"), wh(".wh.a")}}, "f 644 0 a 2"},
		{"whiteout, own file after", layers{{reg("a", "1")}, {wh(".wh.a"), reg("a", "2")}}, "f 644 0 a 2"},
		{"whiteout, own child before", layers{{{name: "d/", mode: 0o700}, reg("d/a", "1")}, {reg("d/b", "2"), wh(".wh.d")}}, "d 755 0 d | f 644 0 d/b 2"},
		{"whiteout, own child after", layers{{{name: "d/", mode: 0o700}, reg("d/a", "1")}, {wh(".wh.d"), reg("d/b", "2")}}, "d 755 0 d | f 644 0 d/b 2"},
		{"whiteout and back", layers{{reg("a", "1")}, {wh(".wh.a")}, {reg("a", "3")}}, "f 644 0 a 3"},
		{"whiteout names", layers{{reg("a", "1")}, {wh(".wh.")}}, "error: merge layer1: \".wh.\": the whiteout hides no name"},
		{"whiteout of dot", layers{{wh("a/.wh..")}}, "error: hides no name"},
		{"whiteout of dots", layers{{wh("a/.wh...")}}, "error: hides no name"},
		{"whiteout below", layers{{reg("x", "1")}, {wh(".wh../x")}}, "d 755 0 .wh.. | f 644 0 .wh../x  | f 644 0 x 1"},
		{"whiteout of a whiteout", layers{{reg("a", "1")}, {wh(".wh..wh.a")}}, "f 644 0 a 1"},
		{"aufs", layers{{dir(".wh..wh.plnk"), reg(".wh..wh.plnk/1.2", "1"), wh(".wh..wh.aufs"), link("a", ".wh..wh.plnk/1.2")}}, "f 644 0 a 1"},
		{"opaque before", layers{{reg("d/a", "1"), reg("d/s/b", "2")}, {dir("d"), wh("d/.wh..wh..opq"), reg("d/s/c", "3")}}, "d 755 0 d | d 755 0 d/s | f 644 0 d/s/c 3"},
		{"opaque after", layers{{reg("d/a", "1"), reg("d/s/b", "2"), {name: "d/s/", mode: 0o700}}, {reg("d/s/c", "3"), dir("d"), wh("d/.wh..wh..opq")}}, "d 755 0 d | d 755 0 d/s | f 644 0 d/s/c 3"},
		{"opaque root", layers{{reg("a", "1")}, {reg("b", "2"), wh(".wh..wh..opq")}}, "f 644 0 b 2"},
		{"opaque twice", layers{{reg("d/a", "1")}, {reg("d/b", "1"), wh("d/.wh..wh..opq")}, {wh("d/.wh..wh..opq"), reg("d/c", "3"), wh("d/.wh..wh..opq")}}, "d 755 0 d | f 644 0 d/c 3"},
		{"file over directory", layers{{reg("a/x", "1")}, {reg("a", "2")}}, "f 644 0 a 2"},
		{"directory over file", layers{{reg("a", "1")}, {dir("a"), reg("a/x", "2")}}, "d 755 0 a | f 644 0 a/x 2"},
		{"symlink over directory", layers{{reg("a/x", "1"), dir("b")}, {symlink("a", "b")}}, "l a -> b | d 755 0 b"},
		{"directory over symlink", layers{{dir("b"), reg("b/x", "1"), symlink("a", "b")}, {dir("a")}}, "d 755 0 a | d 755 0 b | f 644 0 b/x 1"},
		{"through a symlink", layers{{dir("usr/lib"), symlink("lib", "usr/lib")}, {reg("lib/x", "1")}}, "l lib -> usr/lib | d 755 0 usr | d 755 0 usr/lib | f 644 0 usr/lib/x 1"},
		{"whiteout through a symlink", layers{{reg("usr/lib/x", "1"), symlink("lib", "/usr/lib")}, {wh("lib/.wh.x")}}, "l lib -> /usr/lib | d 755 0 usr | d 755 0 usr/lib"},
		{"outside", layers{{symlink("etc", "/../../tmp/probe"), reg("etc/x", "1")}}, "l etc -> /../../tmp/probe | d 755 0 tmp | d 755 0 tmp/probe | f 644 0 tmp/probe/x 1"},
		{"dots in symlinks", layers{{dir("a"), symlink("a/b", ".."), symlink("a/b/c", ".."), reg("a/b/c/x", "1")}}, "d 755 0 a | l a/b -> .. | l c -> .. | f 644 0 x 1"},
		{"dangling parent", layers{{symlink("l", "not/here"), reg("l/x", "1")}}, "l l -> not/here | d 755 0 not | d 755 0 not/here | f 644 0 not/here/x 1"},
		{"loop", layers{{symlink("a", "b"), symlink("b", "a"), reg("a/x", "1")}}, "error: merge layer0: \"a/x\": more than 255 symlinks"},
		{"parent is a file", layers{{reg("a", "1")}, {reg("a/x", "2")}}, "error: merge layer1: \"a/x\": its parent is not a directory"},
		{"parent was replaced below", layers{{dir("b"), symlink("l", "b"), reg("b/x", "0")}, {reg("l/x", "1")}, {dir("l"), reg("l/x", "2")}}, "d 755 0 b | f 644 0 b/x 1 | d 755 0 l | f 644 0 l/x 2"},
		{"root", layers{{{name: "./", mode: 0o700, uid: 3}}}, ""},
		{"root as a file", layers{{reg(".", "1")}}, "error: cannot be anything but a directory"},
		{"root as a symlink", layers{{symlink(".", "x")}}, "error: cannot be anything but a directory"},
		{"root as a link", layers{{reg("a", "1"), link("./", "a")}}, "error: cannot be anything but a directory"},
		{"link", layers{{reg("a", "1"), link("b", "a")}}, "f 644 0 a 1 | = b a"},
		{"link below", layers{{reg("a", "1")}, {link("b", "./a")}}, "f 644 0 a 1 | = b a"},
		{"link to what is replaced", layers{{reg("a", "1")}, {link("b", "a")}, {reg("a", "3")}}, "f 644 0 a 3 | f 644 0 b 1"},
		{"link to what was replaced", layers{{reg("a", "1"), link("b", "a")}, {reg("a", "2")}}, "f 644 0 a 2 | f 644 0 b 1"},
		{"link to what the layer hides then", layers{{reg("a", "1")}, {link("b", "a"), wh(".wh.a")}}, "f 644 0 b 1"},
		{"link to what the layer hid", layers{{reg("a", "1")}, {wh(".wh.a"), link("b", "a")}}, "error: merge layer1: \"b\": hard link to \"a\": the link's target does not exist"},
		{"link to what was hidden", layers{{reg("a", "1")}, {wh(".wh.a")}, {link("b", "a")}}, "error: merge layer2: \"b\": hard link to \"a\": the link's target does not exist"},
		{"link to nothing", layers{{link("b", "a")}}, "error: merge layer0: \"b\": hard link to \"a\": the link's target does not exist"},
		{"link to later", layers{{link("b", "a"), reg("a", "1")}}, "error: does not exist"},
		{"link to itself", layers{{reg("a", "1"), link("a", "./a")}}, "error: does not exist"},
		{"link to a directory", layers{{dir("a"), link("b", "a")}}, "error: is a directory"},
		{"link to the root", layers{{link("b", "/")}}, "error: is a directory"},
		{"link to outside", layers{{link("b", "../../etc/passwd")}}, "error: does not exist"},
		{"link to a symlink", layers{{symlink("a", "x"), link("b", "a")}}, "l a -> x | = b a"},
		{"link through a symlink", layers{{reg("d/a", "1"), symlink("l", "d")}, {link("l/b", "l/a")}}, "d 755 0 d | f 644 0 d/a 1 | = d/b d/a | l l -> d"},
		{"link replaces", layers{{reg("a", "1"), reg("b/c", "2")}, {link("b", "a")}}, "f 644 0 a 1 | = b a"},
		{"link replaces its target's parent", layers{{reg("b/c", "2")}, {link("b", "b/c")}}, "error: does not exist"},
		{"link has metadata", layers{{reg("a", "1")}, {{name: "b", typ: tar.TypeLink, data: "a", mode: 0o4700, uid: 9}}}, "f 4700 9 a 1 | = b a"},
		{"links to links", layers{{reg("a", "1")}, {link("b", "a")}, {link("c", "b"), wh(".wh.a"), wh(".wh.b")}}, "f 644 0 c 1"},
		{"link and its target's layer replaced", layers{{reg("a", "1")}, {link("b", "a"), reg("a", "2")}, {reg("a", "3")}}, "f 644 0 a 3 | f 644 0 b 1"},
		{"duplicates", layers{{reg("a", "1"), link("b", "a"), reg("a", "2")}}, "f 644 0 a 2 | f 644 0 b 1"},
		{"duplicate types", layers{{reg("a", "1"), dir("a"), reg("a/x", "2"), symlink("a", "y")}}, "l a -> y"},
		{"fifo", layers{{typed("p", tar.TypeFifo)}}, "p 644 0 p 0x0"},
		{"device hides", layers{{reg("a", "1"), reg("b", "2")}, {typed("a", tar.TypeChar), link("c", "a")}}, "f 644 0 b 2"},
		{"unknown type", layers{{typed("a", 'Z')}}, "error: merge layer0: \"a\": entries of type 'Z' are not known"},
		{"contiguous", layers{{typed("a", '7')}}, "f 644 0 a "},
		{"attributes", layers{
			{{name: "a/", pax: map[string]string{
				schily + "user.x": "1", schily + "security.capability": "2", schily + "security.selinux": "3", schily + "trusted.overlay.opaque": "y",
				schily + "user.overlay.redirect": "z", schily + "user.fuseoverlayfs.opaque": "y", schily + "system.posix_acl_access": "q", schily + "odd": "w",
				archive + "user.y%25": "aGFsbG8", archive + "user.x": "aGFsbG8",
			}}},
			{{name: "b/", pax: map[string]string{schily + "user.z": ""}}},
		}, "d 755 0 a security.capability=2 user.x=1 user.y%=hallo | d 755 0 b user.z="},
		{"attributes are replaced", layers{{{name: "a/", pax: map[string]string{schily + "user.x": "1"}}}, {{name: "a/", pax: map[string]string{schily + "user.y": "2"}}}}, "d 755 0 a user.y=2"},
		{"set-id", layers{{{name: "a", mode: 0o7755}}}, "f 7755 0 a "},
		{"deep replacement", layers{{reg("a/b/c/d", "1")}, {reg("a/b", "2")}, {dir("a/b"), reg("a/b/e", "3")}}, "d 755 0 a | d 755 0 a/b | f 644 0 a/b/e 3"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var archives [][]byte
			for _, l := range c.layers {
				archives = append(archives, archived(t, l...))
			}
			lines, _, _, err := mergeAll(t, Options{}, archives...)
			if want, ok := strings.CutPrefix(c.want, "error: "); ok {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Fatalf("got %q, %v, not the error %q", lines, err, want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(lines[1:], " | "); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

func TestReread(t *testing.T) {
	lines, report, w, err := mergeAll(t, Options{},
		archived(t, reg("a", "1"), link("b", "a"), reg("c", "hidden")),
		archived(t, reg("a", "22"), reg("c", "x")))
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(lines[1:]); got != "[f 644 0 a 22 f 644 0 b 1 f 644 0 c x]" {
		t.Error(got)
	}
	if report.Reread != 1 || report.Hidden != 1 || report.HiddenBytes != 6 || report.Entries != 5 {
		t.Errorf("%+v", report)
	}
	if len(w.all) != 3 || string(w.bytes[w.all[2]]) != "1" {
		t.Errorf("packed %d", len(w.all))
	}
}

// A name that a link of a layer above refers to is packed the first time, though hidden.
func TestWanted(t *testing.T) {
	_, report, _, err := mergeAll(t, Options{},
		archived(t, reg("a", "1")),
		archived(t, link("b", "a")),
		archived(t, wh(".wh.a")))
	if err != nil || report.Reread != 0 || report.Hidden != 0 {
		t.Errorf("%+v, %v", report, err)
	}
}

func TestExclude(t *testing.T) {
	exclude := func(path string) bool { return path == "usr/doc" || path == "x" }
	lines, report, w, err := mergeAll(t, Options{Exclude: exclude},
		archived(t, reg("usr/doc/a", "1"), reg("usr/doc/b", "2"), link("b", "usr/doc/b"), reg("x", "3"), symlink("l", "usr"), reg("l/y", "4"), reg("usr/docs", "5")))
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(lines[1:]); got != "[f 644 0 b 2 l l -> usr d 755 0 usr f 644 0 usr/docs 5 f 644 0 usr/y 4]" {
		t.Error(got)
	}
	if report.Excluded != 4 || report.Hidden != 0 || report.HiddenBytes != 0 || report.Reread != 1 || len(w.all) != 3 {
		t.Errorf("%+v, %d packed", report, len(w.all))
	}
}

func TestPlain(t *testing.T) {
	lines, report, _, err := mergeAll(t, Options{Plain: true, Devices: true, AllRoot: true, Time: 9},
		archived(t, item{name: "d/.wh.x", uid: 4, pax: map[string]string{schily + "trusted.overlay.opaque": "y", schily + "system.x": "1"}},
			wh("d/.wh..wh..opq"), wh(".wh..wh.x"), typed("c", tar.TypeChar), item{name: "l", typ: tar.TypeLink, data: ".wh..wh.x", mode: 1}))
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(lines[1:]); got != "[f 644 0 .wh..wh.x  c 644 0 c 0x0 d 755 0 d f 644 0 d/.wh..wh..opq  f 644 0 d/.wh.x  trusted.overlay.opaque=y = l .wh..wh.x]" {
		t.Error(got)
	}
	if len(report.Dropped) != 1 || report.Devices != 0 {
		t.Errorf("%+v", report)
	}
}

func TestDropped(t *testing.T) {
	var items []item
	for i := range 300 {
		items = append(items, item{name: fmt.Sprint("f", i), pax: map[string]string{schily + fmt.Sprint("odd", i): "1", schily + "security.selinux": "2"}})
	}
	_, report, _, err := mergeAll(t, Options{}, archived(t, items...))
	if err != nil {
		t.Fatal(err)
	}
	n := len(report.Dropped)
	if n != 100 || report.Dropped[n-1] != `layer0: "f98": other attributes and entries (and 201 more)` ||
		!slices.Contains(report.Dropped, `layer0: "f0": attribute "security.selinux", which images do not keep (and 299 more)`) {
		t.Errorf("%d lines: %q", n, report.Dropped)
	}
}

// What a layer's reader says in place of io.EOF is heard, wherever the archive ended.
func TestReaderErrors(t *testing.T) {
	wrong := errors.New("the digest is wrong")
	whole := archived(t, dir("d"), reg("d/x", strings.Repeat("x", 3000)))
	for _, b := range [][]byte{whole, append(slices.Clone(whole), make([]byte, 600<<10)...), whole[:512], whole[:700], whole[:2000], {}} {
		for _, o := range []Options{{}, {Ahead: 1}} {
			l := &failing{blob{name: "bad", bytes: b}, wrong}
			_, _, err := merge(t.Context(), new(memory), []Layer{l}, o)
			if !errors.Is(err, wrong) || err.Error() != "merge bad: the digest is wrong" {
				t.Errorf("%d bytes: %v", len(b), err)
			}
			if l.open.Load() != 0 {
				t.Error("still open")
			}
		}
	}
}

type failing struct {
	blob
	err error
}

func (f *failing) Open(ctx context.Context) (io.ReadCloser, error) {
	r, err := f.blob.Open(ctx)
	return struct {
		io.Reader
		io.Closer
	}{io.MultiReader(r, iotest.ErrReader(f.err)), r}, err
}

// writerFunc is a writer that only reads.
type writerFunc func(r io.Reader) error

func (f writerFunc) Add(r io.Reader) (*pack.Data, error) { return new(pack.Data), f(r) }
