package pack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/sqfs"
)

// adder keeps what a directory adds, in place of a Writer.
type adder struct {
	order    []string // first bytes of contents
	contents map[*Data][]byte
	holes    int64 // bytes that were not read
	fail     error // of the writer, at the third file
}

func (a *adder) add(r io.Reader) (*Data, error) {
	var all []byte
	for {
		hole, err := r.(HoleReader).Hole()
		if err != nil {
			return nil, err
		}
		a.holes += hole
		all = append(all, make([]byte, hole)...)
		buf := make([]byte, 10000)
		n, err := r.Read(buf)
		all = append(all, buf[:n]...)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("wrapped: %w", err)
		}
	}
	if a.fail != nil && len(a.order) == 2 {
		return nil, a.fail
	}
	a.order = append(a.order, string(all[:min(len(all), 20)]))
	data := &Data{}
	a.contents[data] = all
	return data, nil
}

// packDir packs a directory into an adder.
func packDir(ctx context.Context, a *adder, dir string, o DirOptions) (*Inode, *DirReport, error) {
	a.contents = make(map[*Data][]byte)
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	defer unix.Close(fd)
	d := newDirSource(dir, fd, o)
	root, err := d.pack(ctx, a.add)
	return root, &d.report, err
}

// makeTree makes files of a map from path to contents; paths that end in "/" are
// directories.
func makeTree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range slices.Sorted(maps.Keys(files)) {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if strings.HasSuffix(name, "/") {
			err = os.MkdirAll(path, 0o755)
		} else {
			err = os.WriteFile(path, []byte(files[name]), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// walk lists the paths of a tree, with what is shown of each.
func walk(root *Inode, show func(path string, ino *Inode) string) (lines []string) {
	var visit func(path string, ino *Inode)
	visit = func(path string, ino *Inode) {
		for _, name := range sortedNames(ino.Entries) {
			at := join(path, name)
			lines = append(lines, show(at, ino.Entries[name]))
			visit(at, ino.Entries[name])
		}
	}
	visit("", root)
	return lines
}

func paths(root *Inode) string {
	return strings.Join(walk(root, func(path string, _ *Inode) string { return path }), " ")
}

func TestDirOrder(t *testing.T) {
	files := map[string]string{"b": "b", "a/z": "a/z", "a/y": "a/y", "a/x/1": "a/x/1", "c/": "", "a.b": "a.b", "empty": "", "\xff\n": "\xff\n"}
	dir := makeTree(t, files)
	priorities := map[string]int{"b": 5, "a/x/1": -1, "a/z": 5, "a.b": 7}
	for _, tt := range []struct {
		o     DirOptions
		order string
		paths string
	}{
		{DirOptions{}, "a/x/1 a/y a/z a.b b \xff\n", "a a/x a/x/1 a/y a/z a.b b c empty \xff\n"},
		{DirOptions{Priority: func(path string) int { return priorities[path] }}, "a.b a/z b a/y \xff\n a/x/1", "a a/x a/x/1 a/y a/z a.b b c empty \xff\n"},
		{DirOptions{Exclude: func(path string, dir bool) bool { return path == "a/x" && dir || path == "b" && !dir }}, "a/y a/z a.b \xff\n", "a a/y a/z a.b c empty \xff\n"},
	} {
		var a adder
		root, rep, err := packDir(t.Context(), &a, dir, tt.o)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(a.order, " "); got != tt.order {
			t.Errorf("order %q, want %q", got, tt.order)
		}
		if got := paths(root); got != tt.paths {
			t.Errorf("paths %q, want %q", got, tt.paths)
		}
		if want := int64(strings.Count("a a/x a/x/1 a/y a/z a.b b c empty \xff\n", " ") - strings.Count(tt.paths, " ")); want > 0 && rep.Excluded != 2 {
			t.Errorf("%d excluded", rep.Excluded)
		}
		walk(root, func(path string, ino *Inode) string {
			if ino.Data != nil && string(a.contents[ino.Data]) != files[path] || (ino.Data == nil) != (files[path] == "") {
				t.Errorf("%s: %q", path, a.contents[ino.Data])
			}
			return ""
		})
	}
}

// All kinds of files, their attributes, links and holes.
func TestDirKinds(t *testing.T) {
	const big = 5 << 20
	dir := makeTree(t, map[string]string{"d/": "", "file": "file", "hard": "hard"})
	at := func(name string) string { return filepath.Join(dir, name) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Link(at("hard"), at("d/hard2")))
	must(os.Symlink(strings.Repeat("../", 100)+"file", at("link")))
	must(unix.Mkfifo(at("fifo"), 0o640))
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	must(err)
	defer unix.Close(s)
	must(unix.Bind(s, &unix.SockaddrUnix{Name: at("socket")}))
	must(os.Chmod(at("file"), 0o751|os.ModeSetuid))
	must(os.Chtimes(at("file"), time.Time{}, time.Unix(1234567890, 999)))
	f, err := os.Create(at("holes"))
	must(err)
	_, err = f.WriteAt([]byte("here"), 2<<20)
	must(err)
	must(f.Truncate(big))
	must(f.Close())
	xattrs := unix.Setxattr(at("file"), "user.squire", []byte("value\x00"), 0) == nil
	devices := unix.Mknod(at("device"), unix.S_IFBLK|0o600, int(unix.Mkdev(259, 0xabcde))) == nil

	var a adder
	root, rep, err := packDir(t.Context(), &a, dir, DirOptions{})
	must(err)
	if *rep != (DirReport{Xattrs: rep.Xattrs}) {
		t.Errorf("%+v", rep)
	}
	e := root.Entries
	for name, typ := range map[string]sqfs.Type{
		"d": sqfs.TypeDir, "file": sqfs.TypeFile, "link": sqfs.TypeSymlink, "fifo": sqfs.TypeFifo, "socket": sqfs.TypeSocket,
	} {
		if e[name] == nil || e[name].Type != typ || e[name].UID != uint32(os.Getuid()) || e[name].GID != uint32(os.Getgid()) {
			t.Errorf("%s: %+v", name, e[name])
		}
	}
	if devices && (e["device"].Type != sqfs.TypeBlock || e["device"].Rdev != 0xabc103de) {
		t.Errorf("device %#x", e["device"].Rdev)
	}
	if e["hard"] != e["d"].Entries["hard2"] || e["hard"] == e["file"] {
		t.Error("hard links")
	}
	if got := e["file"]; got.Mode != 0o4751 || got.ModTime != 1234567890 || xattrs && (len(got.Xattrs) != 1 || got.Xattrs[0].Name != "user.squire" || string(got.Xattrs[0].Value) != "value\x00") {
		t.Errorf("file: %+v", got)
	}
	if e["link"].Target != strings.Repeat("../", 100)+"file" || e["fifo"].Mode != 0o640 {
		t.Errorf("%+v %+v", e["link"], e["fifo"])
	}
	want := make([]byte, big)
	copy(want[2<<20:], "here")
	if !bytes.Equal(a.contents[e["holes"].Data], want) {
		t.Error("holes: wrong contents")
	}
	if a.holes < 4<<20 {
		t.Errorf("only %d bytes were told to be holes", a.holes)
	}
	root, _, err = packDir(t.Context(), &a, dir, DirOptions{NoXattrs: true, Owner: func(uid, gid uint32) (uint32, uint32) { return uid + 1, gid + 2 }})
	must(err)
	if got := root.Entries["file"]; got.Xattrs != nil || got.UID != uint32(os.Getuid())+1 || got.GID != uint32(os.Getgid())+2 || root.UID != got.UID {
		t.Errorf("other owner, no attributes: %+v", got)
	}
}

// What cannot be read is an error that names it, or is left out and told.
func TestDirUnreadable(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root can read everything")
	}
	for _, name := range []string{"d/file", "d/dir/x"} {
		dir := makeTree(t, map[string]string{"d/file": "file", "d/dir/x": "x", "d/other": "other"})
		locked := filepath.Join(dir, strings.TrimSuffix(name, "/x"))
		if err := os.Chmod(locked, 0); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.Chmod(locked, 0o755) })
		var a adder
		_, _, err := packDir(t.Context(), &a, dir, DirOptions{})
		if !errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), locked) {
			t.Errorf("%s: %v", name, err)
		}
		var told []string
		root, rep, err := packDir(t.Context(), &a, dir, DirOptions{Unreadable: true, Problem: func(path string, _ error) { told = append(told, path) }})
		if err != nil || rep.Unreadable != 1 || len(told) != 1 || filepath.Join(dir, told[0]) != locked {
			t.Errorf("%v %+v %q", err, rep, told)
		}
		if want := map[string]string{"d/file": "d d/dir d/dir/x d/other", "d/dir/x": "d d/dir d/file d/other"}[name]; paths(root) != want {
			t.Errorf("%s: %s", name, paths(root))
		}
	}
}

// What is mounted in the tree.
func TestDirMounts(t *testing.T) {
	dir := makeTree(t, map[string]string{"d/hidden": "hidden", "f": "f", "z": "z"})
	mount := func(source, target, fstype string, flags uintptr, data string) {
		t.Helper()
		if err := unix.Mount(source, target, fstype, flags, data); err != nil {
			t.Skipf("cannot mount: %v", err)
		}
		t.Cleanup(func() { unix.Unmount(target, unix.MNT_DETACH) })
	}
	mount("tmpfs", filepath.Join(dir, "d"), "tmpfs", 0, "mode=0711")
	if err := os.WriteFile(filepath.Join(dir, "d/new"), []byte("new"), 0o644); err != nil {
		t.Fatal(err)
	}
	mount(filepath.Join(dir, "d/new"), filepath.Join(dir, "f"), "", unix.MS_BIND, "")
	for one, want := range map[bool]string{false: "d d/new f z", true: "d z"} {
		var a adder
		root, rep, err := packDir(t.Context(), &a, dir, DirOptions{OneFileSystem: one})
		if err != nil || paths(root) != want || one != (rep.Mounts == 2) || root.Entries["d"].Mode != 0o711 {
			t.Errorf("one file system %v: %v %+v %s", one, err, rep, paths(root))
		}
	}
}

// Files that change while they are packed.
func TestDirChanges(t *testing.T) {
	const big = smallFile + 100
	long := strings.Repeat("x", big)
	for _, tt := range []struct {
		name   string
		change func(path string) error
		want   string
		size   int
	}{
		{"shrinks", func(path string) error { return os.Truncate(path, 10) }, "a z", 10},
		{"grows", func(path string) error { return os.Truncate(path, 10*big) }, "a z", 10 * big},
		{"vanishes", os.Remove, "a", 0},
		{"link", func(path string) error { return errors.Join(os.Remove(path), os.Symlink("/etc/passwd", path)) }, "a", 0},
		{"fifo", func(path string) error { return errors.Join(os.Remove(path), unix.Mkfifo(path, 0o644)) }, "a", 0},
		{"other", func(path string) error {
			return errors.Join(os.WriteFile(path+".new", []byte("new"), 0o644), os.Rename(path+".new", path))
		}, "a z", 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := makeTree(t, map[string]string{"a": "a", "z": long})
			var a adder
			var told []string
			// The tree has been gone through when priorities are asked for.
			o := DirOptions{Problem: func(path string, err error) { told = append(told, fmt.Sprint(path, errors.Is(err, ErrChanged))) }}
			o.Priority = func(path string) int {
				if path == "z" {
					if err := tt.change(filepath.Join(dir, "z")); err != nil {
						t.Error(err)
					}
				}
				return 0
			}
			root, rep, err := packDir(t.Context(), &a, dir, o)
			if err != nil || paths(root) != tt.want {
				t.Fatalf("%v; %s", err, paths(root))
			}
			z := root.Entries["z"]
			if z != nil && len(a.contents[z.Data]) != tt.size {
				t.Errorf("%d bytes", len(a.contents[z.Data]))
			}
			// A file that changed between being listed and opened is as it was opened.
			if quiet := tt.name == "shrinks" || tt.name == "grows"; quiet != (rep.Changed == 0) || len(told) != int(rep.Changed) || !quiet && told[0] != "ztrue" {
				t.Errorf("%+v %q", rep, told)
			}
		})
	}
}

// A file that changes while it is read itself is told, and never longer than it was.
func TestDirChangesWhileRead(t *testing.T) {
	for name, size := range map[string]int64{"shrinks": 1 << 20, "grows": 9 << 20} {
		dir := makeTree(t, map[string]string{"z": strings.Repeat("x", 3<<20)})
		var a adder
		fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		d := newDirSource(dir, fd, DirOptions{})
		a.contents = make(map[*Data][]byte)
		root, err := d.pack(t.Context(), func(r io.Reader) (*Data, error) {
			if _, rerr := io.ReadFull(r, make([]byte, 10)); rerr != nil {
				return nil, rerr
			}
			if terr := os.Truncate(filepath.Join(dir, "z"), size); terr != nil {
				return nil, terr
			}
			return a.add(r)
		})
		if err != nil || d.report.Changed != 1 {
			t.Fatalf("%s: %v %+v", name, err, d.report)
		}
		if got := int64(len(a.contents[root.Entries["z"].Data])) + 10; got != min(size, 3<<20) && got != 1<<20 {
			t.Errorf("%s: %d bytes", name, got)
		}
	}
}

// An error of the writer ends it, and so does a context; nobody is left waiting.
func TestDirEnds(t *testing.T) {
	files := make(map[string]string)
	for i := range 600 {
		files[fmt.Sprintf("d%d/f%d", i%10, i)] = strings.Repeat("x", 60*i)
	}
	dir := makeTree(t, files)
	a := adder{fail: errors.New("disk full")}
	_, _, err := packDir(t.Context(), &a, dir, DirOptions{})
	if err == nil || err.Error() != "disk full" {
		t.Error(err)
	}
	for n := range 5 {
		ctx, cancel := context.WithCancelCause(t.Context())
		defer cancel(nil)
		var seen atomic.Int64
		cause := errors.New("enough")
		_, _, err = packDir(ctx, &adder{}, dir, DirOptions{Exclude: func(string, bool) bool {
			if seen.Add(1) == int64(n*120+1) {
				cancel(cause)
			}
			return false
		}})
		if !errors.Is(err, cause) {
			t.Error(err)
		}
	}
	if fds, err := os.ReadDir("/proc/self/fd"); err != nil || len(fds) > 100 {
		t.Errorf("%d descriptors are open: %v", len(fds), err)
	}
	if _, _, err := Dir(t.Context(), nil, filepath.Join(dir, "none"), DirOptions{}); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// Trees that are deeper than the longest path the kernel takes.
func TestDirDeep(t *testing.T) {
	dir := t.TempDir()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	const depth = 60
	name := strings.Repeat("n", 200)
	for range depth {
		if err = unix.Mkdirat(fd, name, 0o755); err != nil {
			t.Fatal(err)
		}
		down, oerr := unix.Openat(fd, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if oerr != nil {
			t.Fatal(oerr)
		}
		unix.Close(fd)
		fd = down
	}
	defer unix.Close(fd)
	f, err := unix.Openat(fd, "file", unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	unix.Write(f, []byte("deep"))
	unix.Close(f)
	var a adder
	root, _, err := packDir(t.Context(), &a, dir, DirOptions{})
	if err != nil || len(a.order) != 1 || a.order[0] != "deep" {
		t.Fatalf("%v %q", err, a.order)
	}
	for range depth {
		root = root.Entries[name]
	}
	if string(a.contents[root.Entries["file"].Data]) != "deep" {
		t.Error("no file at the bottom")
	}
}
