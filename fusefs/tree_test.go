package fusefs

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// node is all that a program can see of a file.
type node struct {
	Ino, Size, Nlink, Rdev uint64
	Mode, UID, GID         uint32
	Blocks, Blksize        int64
	Mtime, Ctime, Atime    syscall.Timespec
	Content                string
	Link                   string
	Xattrs                 string
	Entries                string // of a directory, sorted, with d_ino and d_type
}

// snapshot reads everything below root.
func snapshot(t testing.TB, root string) map[string]node {
	t.Helper()
	nodes := map[string]node{}
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		n, err := look(path)
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		nodes[rel] = n
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return nodes
}

func look(path string) (node, error) {
	var st syscall.Stat_t
	if err := syscall.Lstat(path, &st); err != nil {
		return node{}, fmt.Errorf("lstat %s: %w", path, err)
	}
	n := node{
		Ino: st.Ino, Size: uint64(st.Size), Rdev: st.Rdev, Mode: st.Mode, UID: st.Uid, GID: st.Gid, Blocks: st.Blocks,
		Nlink:   uint64(st.Nlink),  //nolint:unconvert // 32 bits on arm64
		Blksize: int64(st.Blksize), //nolint:unconvert // 32 bits on arm64
		Mtime:   st.Mtim, Ctime: st.Ctim, Atime: st.Atim,
	}
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		n.Content, err = hash(path)
	case unix.S_IFLNK:
		n.Link, err = os.Readlink(path)
	case unix.S_IFDIR:
		n.Entries, err = getdents(path)
	}
	if err == nil {
		n.Xattrs, err = xattrs(path)
	}
	return n, err
}

func hash(path string) (string, error) {
	data, err := os.ReadFile(path)
	return fmt.Sprintf("%d %x", len(data), sha256.Sum256(data)), err
}

// getdents lists a directory with what getdents64(2) says of each entry.
func getdents(path string) (string, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	var list []string
	buf := make([]byte, 4096)
	for {
		n, err := unix.Getdents(fd, buf)
		if err != nil {
			return "", fmt.Errorf("getdents %s: %w", path, err)
		}
		if n == 0 {
			slices.Sort(list)
			return strings.Join(list, "\n"), nil
		}
		for b := buf[:n]; len(b) > 0; { // struct linux_dirent64
			reclen := binary.NativeEndian.Uint16(b[16:])
			name, _, _ := strings.Cut(string(b[19:reclen]), "\x00")
			list = append(list, fmt.Sprintf("%s %d %d", name, binary.NativeEndian.Uint64(b), b[18]))
			b = b[reclen:]
		}
	}
}

func xattrs(path string) (string, error) {
	names := make([]byte, 4096)
	n, err := unix.Llistxattr(path, names)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return "", nil // an image without any: see the comment atop xattr.go
	}
	if err != nil {
		return "", fmt.Errorf("listxattr %s: %w", path, err)
	}
	var list []string
	for _, name := range strings.FieldsFunc(string(names[:n]), func(r rune) bool { return r == 0 }) {
		value := make([]byte, 65536)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return "", fmt.Errorf("getxattr %s %s: %w", path, name, err)
		}
		list = append(list, fmt.Sprintf("%s=%x", name, sha256.Sum256(value[:n])))
	}
	slices.Sort(list)
	return strings.Join(list, "\n"), nil
}

func compare(t *testing.T, got, want map[string]node) {
	t.Helper()
	wrong := 0
	for _, path := range slices.Sorted(maps.Keys(want)) {
		g, ok := got[path]
		if ok && g == want[path] {
			continue
		}
		if wrong++; wrong <= 5 {
			t.Errorf("%s:\n got %+v\nwant %+v", path, g, want[path])
		}
	}
	if wrong > 5 {
		t.Errorf("%d differences", wrong)
	}
	for path := range got {
		if _, ok := want[path]; !ok {
			t.Errorf("%s should not be there", path)
		}
	}
}

// makeTree fills a directory with one of everything.
func makeTree(t testing.TB) string {
	t.Helper()
	root := t.TempDir()
	rng := rand.New(rand.NewPCG(1, 1))
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	write := func(name string, size int, random bool) {
		t.Helper()
		path := filepath.Join(root, name)
		must(os.MkdirAll(filepath.Dir(path), 0o755))
		data := make([]byte, size)
		for i := range data {
			data[i] = byte(i >> 7)
			if random {
				data[i] = byte(rng.Uint32())
			}
		}
		must(os.WriteFile(path, data, 0o644))
	}
	for _, size := range []int{0, 1, 100, 4095, 4096, 4097, 131071, 131072, 131073, 1 << 20, 1<<20 + 1, 3<<20 + 777} {
		write(fmt.Sprintf("sizes/text%d", size), size, false)
		write(fmt.Sprintf("sizes/random%d", size), size, true)
	}
	for i := range 700 {
		write(fmt.Sprintf("many/file-with-a-longish-name-%04d", i), i*7, i%2 == 0)
	}
	write("odd/"+strings.Repeat("n", 255), 5, false)
	write("odd/new\nline \xff\xfe ü", 5, false)
	write("deep/"+strings.Repeat("d/", 60)+"leaf", 10, false)
	makeSparse(t, filepath.Join(root, "sparse"))
	must(os.Link(filepath.Join(root, "sizes/text100"), filepath.Join(root, "hard")))
	must(os.Symlink("sizes/text1", filepath.Join(root, "link")))
	must(os.Symlink("no/such/file", filepath.Join(root, "dangling")))
	must(os.Symlink(strings.Repeat("x/", 1500), filepath.Join(root, "longlink")))
	must(os.Mkdir(filepath.Join(root, "empty"), 0o700))
	must(unix.Mkfifo(filepath.Join(root, "fifo"), 0o640))
	makePrivileged(t, root)
	must(os.Chtimes(filepath.Join(root, "sizes/text1"), time.Time{}, time.Unix(1<<32-1, 0)))
	must(os.Chtimes(filepath.Join(root, "sizes/text0"), time.Time{}, time.Unix(0, 0)))
	return root
}

// makeSparse makes a file of holes with data at 1 MiB and at 3 MiB, and a hole at its end.
func makeSparse(t testing.TB, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, off := range []int64{1 << 20, 3 << 20} {
		if _, err := f.WriteAt([]byte(strings.Repeat("data", 1000)), off); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(5 << 20); err != nil {
		t.Fatal(err)
	}
}

// makePrivileged makes what only root can.
func makePrivileged(t testing.TB, root string) {
	t.Helper()
	if os.Geteuid() != 0 {
		return
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(unix.Mknod(filepath.Join(root, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(unix.Mknod(filepath.Join(root, "block"), unix.S_IFBLK|0o600, int(unix.Mkdev(259, 300000))))
	must(unix.Mknod(filepath.Join(root, "socket"), unix.S_IFSOCK|0o600, 0))
	path := filepath.Join(root, "owned")
	must(os.WriteFile(path, []byte("owned"), 0o600))
	must(os.Chown(path, 123456, 654321))
	path = filepath.Join(root, "setid")
	must(os.WriteFile(path, []byte("#!/bin/sh\n"), 0o755))
	must(unix.Chmod(path, 0o6755))
	path = filepath.Join(root, "attributes")
	must(os.WriteFile(path, []byte("attributes"), 0o644))
	for name, size := range map[string]int{
		"user.small": 3, "user.empty": 0, "user.large": 2000, "trusted.t": 9, "user.overlay.opaque": 1, "security.other": 20,
	} {
		if err := unix.Setxattr(path, name, []byte(strings.Repeat("v", size)), 0); err != nil {
			t.Logf("without attribute %s: %v", name, err)
		}
	}
	must(unix.Chmod(filepath.Join(root, "empty"), 0o1777))
}

// images are the ways of mksquashfs that lead through different code here.
var images = map[string][]string{
	"gzip":       nil,
	"zstd-1M":    {"-comp", "zstd", "-b", "1M"},
	"lz4-4K":     {"-comp", "lz4", "-b", "4K"},
	"xz-no-frag": {"-comp", "xz", "-no-fragments"},
	"stored":     {"-noD", "-noF", "-noI"},
	"no-xattrs":  {"-no-xattrs", "-always-use-fragments"},
	"no-export":  {"-no-exports", "-no-duplicates", "-b", "64K"},
}

func TestSameAsKernel(t *testing.T) {
	needRoot(t)
	tree := makeTree(t)
	for name, args := range images {
		t.Run(name, func(t *testing.T) {
			image := mksquashfs(t, tree, args...)
			kernel := mountKernel(t, image)
			s := mountImage(t, role{Image: image}, MountOptions{Dev: true, Suid: true})
			want := snapshot(t, kernel)
			compare(t, snapshot(t, s.dir), want)
			compare(t, snapshot(t, s.dir), want) // from the kernel's caches
			compareStatfs(t, s.dir, kernel)
			compareMissing(t, s.dir)
			if _, err := os.Lstat(s.path(strings.Repeat("n", 256))); !errors.Is(err, unix.ENAMETOOLONG) {
				t.Errorf("lstat of a name of 256 bytes: %v, want %v", err, unix.ENAMETOOLONG)
			}
			if log := s.log.String(); log != "" {
				t.Errorf("server logged: %s", log)
			}
		})
	}
}

// TestOverlay puts an overlayfs on the mount, and one on that: as many levels as the kernel allows.
func TestOverlay(t *testing.T) {
	s := mountImage(t, role{Image: smallImage(t)}, MountOptions{})
	lower := s.dir
	for range 2 {
		top := t.TempDir()
		if err := unix.Mount("tmpfs", top, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		defer unix.Unmount(top, unix.MNT_DETACH)
		for _, name := range []string{"upper", "work", "merged"} {
			if err := os.Mkdir(filepath.Join(top, name), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		merged := filepath.Join(top, "merged")
		o := fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", lower, top, top)
		if err := unix.Mount("overlay", merged, "overlay", 0, o); err != nil {
			t.Fatalf("overlay on %s: %v", lower, err)
		}
		defer unix.Unmount(merged, unix.MNT_DETACH)
		f, err := os.OpenFile(filepath.Join(merged, "hello"), os.O_APPEND|os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err1 := f.WriteString("more\n")
		data := make([]byte, 10)
		_, err2 := f.ReadAt(data, 0)
		if err := errors.Join(err1, err2, f.Close()); err != nil || string(data) != "hello\nmore" {
			t.Errorf("read %q after copy-up: %v", data, err)
		}
		lower = merged
	}
}

func compareStatfs(t *testing.T, got, want string) {
	t.Helper()
	var g, w unix.Statfs_t
	if err := errors.Join(unix.Statfs(got, &g), unix.Statfs(want, &w)); err != nil {
		t.Fatal(err)
	}
	if w.Namelen != 256 || g.Namelen != 255 {
		t.Errorf("namelen %d, want 255; kernel's %d, want 256", g.Namelen, w.Namelen)
	}
	g.Type, g.Namelen, g.Fsid, g.Flags = w.Type, w.Namelen, w.Fsid, w.Flags
	if g != w {
		t.Errorf("statfs %+v, want %+v", g, w)
	}
}

func compareMissing(t *testing.T, dir string) {
	t.Helper()
	for _, name := range []string{"none", ".go-fuse-epoll-hack", "many/none", "sizes/none", "empty/none", "link/none"} {
		want := unix.ENOENT
		if name == "link/none" {
			want = unix.ENOTDIR
		}
		if _, err := os.Lstat(filepath.Join(dir, name)); !errors.Is(err, want) {
			t.Errorf("lstat %s: %v, want %v", name, err, want)
		}
	}
}

// TestNoMessages checks that what was seen once is seen again without the server: names, missing names, attributes,
// link targets, listings, pages, open and close.
func TestNoMessages(t *testing.T) {
	needRoot(t)
	image := mksquashfs(t, makeTree(t), "-no-xattrs")
	s := mountImage(t, role{Image: image}, MountOptions{})
	use := func() {
		snapshot(t, s.dir)
		compareMissing(t, s.dir)
	}
	use()
	before := s.figures().Stats
	use()
	after := s.figures().Stats
	before.Latency, after.Latency = nil, nil // which is noted when the answer has gone out: maybe of the first walk's after it
	if !reflect.DeepEqual(before, after) {
		t.Errorf("a warm walk sent messages:\nbefore %+v\n after %+v", before, after)
	}
	if after.Open > 3 {
		t.Errorf("%d OPEN and OPENDIR, want one of each until ENOSYS is noticed", after.Open)
	}
}
