package overlay

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/sqfs"
	"github.com/squirefs/squire/sqfs/pack"
)

// write makes an image of what from gives, in a file of the test's.
func write(t *testing.T, o pack.Options, from func(w *pack.Writer) (*pack.Inode, error)) (*sqfs.Image, *os.File) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	w, err := pack.NewWriter(f, o)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	root, err := from(w)
	if err == nil {
		_, err = w.Finish(root)
	}
	if err != nil {
		t.Fatal(err)
	}
	fi, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	img, err := sqfs.New(f, fi.Size(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return img, f
}

func packed(t *testing.T, dir string, o pack.Options) (*sqfs.Image, *os.File) {
	t.Helper()
	return write(t, o, func(w *pack.Writer) (*pack.Inode, error) {
		root, _, err := pack.Dir(context.Background(), w, dir, pack.DirOptions{})
		return root, err
	})
}

// listing is an image as text, a line for each name, contents and attributes with them. Times are left out.
func listing(t *testing.T, img *sqfs.Image) (lines []string) {
	t.Helper()
	root, err := img.Inode(img.Root())
	if err != nil {
		t.Fatal(err)
	}
	for v, err := range img.Walk(&root) {
		if err != nil {
			t.Fatal(err)
		}
		if v.Leave || len(v.Path) == 0 {
			continue
		}
		ino := &v.Inode
		line := fmt.Sprintf("%s %v %o %d:%d %#x", v.Path, ino.Type, ino.Mode, ino.UID, ino.GID, ino.Rdev)
		switch ino.Type {
		case sqfs.TypeFile:
			f, err := img.File(ino)
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(io.NewSectionReader(&f, 0, f.Size()))
			if err != nil {
				t.Fatalf("%s: %v", v.Path, err)
			}
			line += fmt.Sprintf(" %d %x", len(b), checksum(b))
		case sqfs.TypeSymlink:
			target, err := img.AppendLink(nil, ino)
			if err != nil {
				t.Fatal(err)
			}
			line += " -> " + string(target)
		}
		var xattrs []string
		for x, err := range img.XattrValues(ino, nil) {
			if err != nil {
				t.Fatal(err)
			}
			xattrs = append(xattrs, fmt.Sprintf(" %s=%q", x.Name, x.Value))
		}
		slices.Sort(xattrs)
		lines = append(lines, line+strings.Join(xattrs, ""))
	}
	return lines
}

func checksum(b []byte) (sum uint64) {
	for _, c := range b {
		sum = sum*1099511628211 + uint64(c) + 1
	}
	return sum
}

// tree is a directory in which things are done by chance.
type tree struct {
	t    *testing.T
	r    *rand.Rand
	dir  string
	dirs []string // relative to dir, "." first
	all  []string // all else
}

func (f *tree) at(name string) string { return filepath.Join(f.dir, name) }

// contents are of any size that matters: nothing, a part of a block, some blocks, holes.
func (f *tree) contents() []byte {
	size := []int{0, 10, 3000, 4096, 5000, 20000, 70000}[f.r.IntN(7)]
	b := make([]byte, size)
	switch f.r.IntN(3) {
	case 0:
		for i := range b {
			b[i] = byte(f.r.Uint32())
		}
	case 1:
		for i := range b {
			b[i] = "abcdefgh"[f.r.IntN(8)]
		}
	}
	return b
}

// grow does something at random. What cannot be done, as a directory being full, is left.
func (f *tree) grow() {
	name := filepath.Join(f.dirs[f.r.IntN(len(f.dirs))], fmt.Sprintf("n%d", f.r.IntN(12)))
	other := "none"
	if len(f.all) > 0 {
		other = f.all[f.r.IntN(len(f.all))]
	}
	switch f.r.IntN(16) {
	case 0, 1:
		if os.Mkdir(f.at(name), 0o755) == nil {
			f.dirs = append(f.dirs, name)
		}
	case 2:
		if os.Symlink("x"+name, f.at(name)) == nil {
			f.all = append(f.all, name)
		}
	case 3:
		if unix.Mkfifo(f.at(name), 0o600) == nil {
			f.all = append(f.all, name)
		}
	case 4:
		os.RemoveAll(f.at(name))
	case 5:
		os.Rename(f.at(other), f.at(name))
		f.all = append(f.all, name)
	case 6:
		os.Remove(f.at(other))
	case 7:
		os.Chmod(f.at(other), os.FileMode(f.r.IntN(0o1000)))
	case 8:
		os.Chmod(f.at(f.dirs[f.r.IntN(len(f.dirs))]), os.FileMode(0o700|f.r.IntN(0o100)))
	case 9:
		unix.Lsetxattr(f.at(other), "user.x", []byte(name), 0)
	case 10:
		if h, err := os.OpenFile(f.at(other), os.O_WRONLY|os.O_APPEND|unix.O_NONBLOCK, 0); err == nil {
			h.Write([]byte("more"))
			h.Close()
		}
	case 11:
		d := f.at(f.dirs[f.r.IntN(len(f.dirs))])
		if d != f.dir {
			os.RemoveAll(d)
			os.Mkdir(d, 0o750)
		}
	default:
		if fi, err := os.Lstat(f.at(name)); err == nil && !fi.Mode().IsRegular() {
			return
		}
		if os.WriteFile(f.at(name), f.contents(), 0o644) == nil {
			f.all = append(f.all, name)
		}
	}
}

// TestKernel compares with what the kernel's overlay shows, after things have been done in it at random.
func TestKernel(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounts overlays: needs root")
	}
	seeds := 30
	if testing.Short() {
		seeds = 5
	}
	for seed := range seeds {
		for name, option := range map[string]string{"": "", "-userxattr": ",userxattr", "-metacopy": ",redirect_dir=on,metacopy=on"} {
			// Without a comma: the name becomes part of directories' names, and those part of the options.
			t.Run(fmt.Sprint(seed, name), func(t *testing.T) { testKernel(t, uint64(seed), option) })
		}
	}
}

func testKernel(t *testing.T, seed uint64, option string) {
	r := rand.New(rand.NewPCG(seed, 7))
	dir := t.TempDir()
	for _, d := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	lower := &tree{t: t, r: r, dir: filepath.Join(dir, "lower"), dirs: []string{"."}}
	for range 150 {
		lower.grow()
	}
	o := pack.Options{BlockSize: 4096 << r.IntN(3), Compression: []sqfs.Compression{sqfs.Zstd, sqfs.Gzip}[r.IntN(2)]}
	base, file := packed(t, lower.dir, o)
	merged := filepath.Join(dir, "merged")
	data := "lowerdir=" + lower.dir + ",upperdir=" + dir + "/upper,workdir=" + dir + "/work" + option
	if err := unix.Mount("overlay", merged, "overlay", 0, data); err != nil {
		t.Skipf("mount an overlay: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(merged, unix.MNT_DETACH) })
	lower.dir = merged
	for range 120 {
		lower.grow()
	}
	want, _ := packed(t, merged, o)

	for name, out := range map[string]pack.Options{"copied": o, "anew": {BlockSize: 8192, Compression: sqfs.LZ4}} {
		var rep *Report
		got, _ := write(t, out, func(w *pack.Writer) (root *pack.Inode, err error) {
			root, rep, err = Image(context.Background(), w, base, file, filepath.Join(dir, "upper"), Options{}, nil)
			return root, err
		})
		compare(t, name, listing(t, got), listing(t, want))
		if (rep.Copied == 0) == (name == "copied") && rep.Copied+rep.Expanded > 5 {
			t.Errorf("%s: %d files copied, %d expanded", name, rep.Copied, rep.Expanded)
		}
	}
	below := filepath.Join(dir, "lower")
	got, _ := write(t, o, func(w *pack.Writer) (root *pack.Inode, err error) {
		root, _, err = Dir(context.Background(), w, below, filepath.Join(dir, "upper"), Options{}, nil)
		return root, err
	})
	compare(t, "directory", listing(t, got), listing(t, want))
}

func compare(t *testing.T, what string, got, want []string) {
	t.Helper()
	for _, line := range got {
		if !slices.Contains(want, line) {
			t.Errorf("%s: got  %s", what, line)
		}
	}
	for _, line := range want {
		if !slices.Contains(got, line) {
			t.Errorf("%s: want %s", what, line)
		}
	}
}

// TestNothingLeft looks for what was removed in the bytes of an image that is not compressed.
func TestNothingLeft(t *testing.T) {
	o := pack.Options{Stored: true, BlockSize: 4096}
	secret := []byte("this is the secret")
	file := func(w *pack.Writer, text string) *pack.Inode {
		d, err := w.Add(strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		return &pack.Inode{Type: sqfs.TypeFile, Mode: 0o644, Data: d}
	}
	base, f := write(t, o, func(w *pack.Writer) (*pack.Inode, error) {
		return &pack.Inode{Type: sqfs.TypeDir, Mode: 0o755, Entries: map[string]*pack.Inode{
			"beside": file(w, "in the same fragment"), "secret": file(w, string(secret)), "large": file(w, strings.Repeat("0123456789", 2000)),
		}}, nil
	})
	layer := t.TempDir()
	if err := unix.Mknod(filepath.Join(layer, "secret"), unix.S_IFCHR, 0); err != nil {
		t.Skipf("make a whiteout: %v", err)
	}
	got, out := write(t, o, func(w *pack.Writer) (*pack.Inode, error) {
		root, rep, err := Image(context.Background(), w, base, f, layer, Options{}, nil)
		if err == nil && (rep.Copied != 1 || rep.Expanded != 1) {
			t.Errorf("%d files copied, %d expanded, want 1 of each", rep.Copied, rep.Expanded)
		}
		return root, err
	})
	if lines := listing(t, got); len(lines) != 2 {
		t.Errorf("the image has %q", lines)
	}
	b, err := os.ReadFile(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(b, secret) {
		t.Error("what was removed is in the image")
	}
	if !bytes.Contains(b, []byte("in the same fragment")) {
		t.Error("what was beside it is not in the image")
	}
}

// node makes an inode of a tree that no file system has.
func node(typ sqfs.Type, mode uint16, xattrs ...string) *pack.Inode {
	i := &pack.Inode{Type: typ, Mode: mode, UID: 1000, GID: 1000}
	for _, x := range xattrs {
		name, value, _ := strings.Cut(x, "=")
		i.Xattrs = append(i.Xattrs, pack.Xattr{Name: name, Value: []byte(value)})
	}
	if typ == sqfs.TypeDir {
		i.Entries = map[string]*pack.Inode{}
	}
	return i
}

func TestMerge(t *testing.T) {
	base, layer := node(sqfs.TypeDir, 0o755), node(sqfs.TypeDir, 0o700)
	base.Entries["kept"] = &pack.Inode{Type: sqfs.TypeFile, Mode: 0o600, UID: 5, GID: 6}
	base.Entries["dir"] = &pack.Inode{Type: sqfs.TypeDir, Mode: 0o755, UID: 7, GID: 8, Entries: map[string]*pack.Inode{"in": node(sqfs.TypeFile, 0o644)}}
	base.Entries["device"] = &pack.Inode{Type: sqfs.TypeChar, Mode: 0o600, Rdev: 0x103}
	layer.Entries["kept"] = node(sqfs.TypeFile, 0o640, "user.overlay.origin=x", "user.overlay.overlay.opaque=y", "user.mine=1")
	layer.Entries["new"] = node(sqfs.TypeFile, 0o644)
	layer.Entries["dir"] = node(sqfs.TypeDir, 0o711, "user.overlay.opaque=x", "user.overlay.impure=y")
	layer.Entries["dir"].Entries["in"] = node(sqfs.TypeFile, 0, "user.overlay.whiteout=")
	layer.Entries["place"] = node(sqfs.TypeDir, 0o755)
	layer.Entries["place"].Entries["deep"] = node(sqfs.TypeDir, 0o755)
	layer.Entries["file-place"] = node(sqfs.TypeFile, 0o644)
	layer.Entries["used-place"] = node(sqfs.TypeDir, 0o755)
	layer.Entries["used-place"].Entries["x"] = node(sqfs.TypeFile, 0o644)
	o := Options{Owned: true, Places: []string{"/place/deep", "file-place", "/used-place", "/kept"}}
	if err := merge(base, layer, o, func(_, _ *pack.Inode) { t.Error("nothing is the same") }); err != nil {
		t.Fatal(err)
	}
	var got []string
	var walk func(at string, i *pack.Inode)
	walk = func(at string, i *pack.Inode) {
		line := fmt.Sprintf("%s %o %d:%d", at, i.Mode, i.UID, i.GID)
		for _, x := range i.Xattrs {
			line += " " + x.Name
		}
		got = append(got, line)
		for _, name := range []string{"device", "dir", "file-place", "in", "kept", "new", "place", "used-place", "x"} {
			if e := i.Entries[name]; e != nil {
				walk(at+"/"+name, e)
			}
		}
	}
	walk("", base)
	want := []string{
		" 755 1000:1000", "/device 600 0:0", "/dir 711 7:8", "/kept 640 5:6 user.overlay.opaque user.mine", "/new 644 0:0",
		"/used-place 755 0:0", "/used-place/x 644 0:0",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// TestErrors: what cannot be understood is an error, and no image with something else in it.
func TestErrors(t *testing.T) {
	base, layer := node(sqfs.TypeDir, 0o755), node(sqfs.TypeDir, 0o755)
	layer.Entries["f"] = node(sqfs.TypeFile, 0o644, "trusted.overlay.metacopy=", "trusted.overlay.redirect=/gone")
	if err := merge(base, layer, Options{}, func(_, _ *pack.Inode) {}); err == nil {
		t.Error("the contents of a file that is not there were found")
	}
	if err := merge(node(sqfs.TypeFile, 0), layer, Options{}, nil); err == nil {
		t.Error("a file was taken for a root")
	}
	deep := node(sqfs.TypeDir, 0o755)
	for at, i := deep, 0; i < maxDepth+2; i++ {
		next := node(sqfs.TypeDir, 0o755)
		at.Entries["d"] = next
		at = next
	}
	if err := merge(node(sqfs.TypeDir, 0o755), deep, Options{}, nil); err == nil {
		t.Error("a tree of any depth was merged")
	}
}
