package fusefs

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/sqfs"
)

func TestRestrict(t *testing.T) {
	needRoot(t)
	image := mksquashfs(t, makeTree(t))
	s := mountImage(t, role{Image: image, Restrict: true}, MountOptions{Suid: true, Dev: true})
	for name, want := range map[string]uint32{
		"null":   unix.S_IFREG,
		"block":  unix.S_IFREG,
		"setid":  unix.S_IFREG | 0o755,
		"empty":  unix.S_IFDIR | 0o1777,
		"fifo":   unix.S_IFIFO | 0o640,
		"socket": unix.S_IFSOCK | 0o600,
	} {
		n, err := look(s.path(name))
		if err != nil {
			t.Error(err)
		}
		if n.Mode != want || n.Rdev != 0 {
			t.Errorf("%s: mode %o, rdev %#x, want %o, 0", name, n.Mode, n.Rdev, want)
		}
	}
	if data, err := os.ReadFile(s.path("null")); len(data) != 0 || err != nil {
		t.Errorf("device node: read %q, %v, want nothing", data, err)
	}
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Type()&os.ModeDevice != 0 {
			t.Errorf("%s is listed as a device", e.Name())
		}
	}
	names, err := listxattr(s.path("attributes"))
	if want := []string{"user.empty", "user.large", "user.small"}; err != nil || !slices.Equal(names, want) {
		t.Errorf("attributes %q, %v, want %q", names, err, want)
	}
	for _, name := range []string{"trusted.t", "security.other", "security.capability", "user.overlay.opaque"} {
		if _, err := unix.Lgetxattr(s.path("attributes"), name, nil); err != unix.ENODATA {
			t.Errorf("getxattr %s: %v, want ENODATA", name, err)
		}
	}
}

func listxattr(path string) ([]string, error) {
	list := make([]byte, 4096)
	n, err := unix.Llistxattr(path, list)
	if err != nil {
		return nil, err
	}
	names := strings.FieldsFunc(string(list[:n]), func(r rune) bool { return r == 0 })
	slices.Sort(names)
	return names, nil
}

func TestXattrSizes(t *testing.T) {
	needRoot(t)
	s := mountImage(t, role{Image: mksquashfs(t, makeTree(t))}, MountOptions{})
	path := s.path("attributes")
	for name, test := range map[string]struct {
		attr string
		room int
		want int
		err  error
	}{
		"probe":     {"user.large", 0, 2000, nil},
		"exact":     {"user.large", 2000, 2000, nil},
		"too small": {"user.large", 1999, 0, unix.ERANGE},
		"empty":     {"user.empty", 10, 0, nil},
		"none":      {"user.none", 10, 0, unix.ENODATA},
		"acl":       {"system.posix_acl_access", 10, 0, unix.EOPNOTSUPP},
	} {
		n, err := unix.Lgetxattr(path, test.attr, make([]byte, test.room))
		if test.attr == "system.posix_acl_access" && err == unix.ENODATA {
			continue // the kernel asks the server or not, by version
		}
		if !errors.Is(err, test.err) || (err == nil && n != test.want) {
			t.Errorf("%s: %d, %v, want %d, %v", name, n, err, test.want, test.err)
		}
	}
	probe, err1 := unix.Llistxattr(path, nil)
	got, err2 := unix.Llistxattr(path, make([]byte, probe))
	if err := errors.Join(err1, err2); err != nil || got != probe {
		t.Errorf("listxattr: probe %d, list %d, %v", probe, got, err)
	}
	if _, err := unix.Llistxattr(path, make([]byte, probe-1)); err != unix.ERANGE {
		t.Errorf("listxattr without room: %v, want ERANGE", err)
	}
}

// TestTrustedIsForRoot lists as another user.
func TestTrustedIsForRoot(t *testing.T) {
	needTool(t, "getfattr")
	cred, dir, _ := nobody(t)
	image := mksquashfs(t, makeTree(t))
	mnt := filepath.Join(dir, "mnt")
	if err := os.Mkdir(mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, dir: mnt}
	dev, err := Mount(mnt, MountOptions{AllowOther: true})
	if err != nil {
		t.Fatal(err)
	}
	s.start(role{Image: image}, self(t), dev)
	dev.Close()
	s.awaitReady()
	for name, cred := range map[string]*syscall.Credential{"root": nil, "nobody": cred} {
		cmd := exec.Command("getfattr", "-h", "-m", "-", s.path("attributes"))
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("getfattr as %s: %v: %s", name, err, out)
		}
		if got, want := strings.Contains(string(out), "trusted.t"), name == "root"; got != want {
			t.Errorf("%s sees trusted.t: %v, want %v", name, got, want)
		}
	}
	cmd := exec.Command("cat", s.path("owned")) // 0600, of user 123456
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
	if out, err := cmd.CombinedOutput(); err == nil {
		t.Errorf("nobody read a file of mode 0600: %q", out)
	}
}

func TestOwner(t *testing.T) {
	needRoot(t)
	s := mountImage(t, role{Image: mksquashfs(t, makeTree(t)), Owner: &Owner{1234, 4321}}, MountOptions{})
	for path, n := range snapshot(t, s.dir) {
		if n.UID != 1234 || n.GID != 4321 {
			t.Fatalf("%s belongs to %d:%d, want 1234:4321", path, n.UID, n.GID)
		}
	}
}

func TestBigDirectory(t *testing.T) {
	needRoot(t)
	const entries = 100_000
	tree := t.TempDir()
	if err := unix.Mount("tmpfs", tree, "tmpfs", 0, ""); err != nil { // creates five times as many files in a second
		t.Fatal(err)
	}
	defer unix.Unmount(tree, unix.MNT_DETACH)
	for i := range entries {
		fd, err := unix.Open(filepath.Join(tree, fmt.Sprint("entry", i)), unix.O_CREAT|unix.O_WRONLY, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
	}
	s := mountImage(t, role{Image: mksquashfs(t, tree)}, MountOptions{})
	for range 2 {
		list, err := os.ReadDir(s.dir)
		if err != nil {
			t.Fatal(err)
		}
		if len(list) != entries {
			t.Errorf("%d entries, want %d", len(list), entries)
		}
	}
	for _, i := range []int{0, 1, 4711, entries - 1} {
		if _, err := os.Lstat(s.path(fmt.Sprint("entry", i))); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Lstat(s.path(fmt.Sprint("entry", entries))); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("lstat of an entry that is not there: %v", err)
	}
}

// TestSeekdir goes on in the middle of a listing from an offset, in another open file.
func TestSeekdir(t *testing.T) {
	f := openImage(t, mksquashfs(t, makeTree(t)), Options{})
	in := fuse.ReadIn{}
	in.NodeId = nodeOf(t, f, "many")
	all := listFrom(t, f, in, 1<<20)
	if len(all) != 702 || all[0].Name != "." || all[1].Name != ".." {
		t.Fatalf("%d entries, want 702 beginning with . and ..", len(all))
	}
	for i, e := range all {
		in.Offset = e.Off
		rest := listFrom(t, f, in, 4096)
		if i == len(all)-1 {
			if len(rest) != 0 {
				t.Errorf("%d entries after the last", len(rest))
			}
		} else if len(rest) == 0 || rest[0].Name != all[i+1].Name {
			t.Errorf("after %s comes %v, want %s", e.Name, rest, all[i+1].Name)
		}
	}
}

// TestSeekAnywhere lists from offsets that no entry has: programs may seek to any, and
// nobody is to find that in a log of damage.
func TestSeekAnywhere(t *testing.T) {
	f := openImage(t, mksquashfs(t, makeTree(t)), Options{})
	rng := rand.New(rand.NewPCG(2, 2))
	in := fuse.ReadIn{}
	in.NodeId = nodeOf(t, f, "many")
	for i := range 20_000 {
		in.Offset = rng.Uint64() >> rng.IntN(64)
		if i%2 == 0 {
			in.Offset = rng.Uint64N(1 << 20)
		}
		out := fuse.NewDirEntryList(make([]byte, 1<<10), in.Offset)
		if code := f.ReadDirPlus(nil, &in, out); code != fuse.OK && code != fuse.EINVAL {
			t.Fatalf("offset %#x: %v", in.Offset, code)
		}
	}
	if n := f.counts.errors.Load(); n > 0 {
		t.Errorf("%d damages reported", n)
	}
}

func listFrom(t *testing.T, f *FS, in fuse.ReadIn, room int) []fuse.DirEntry {
	t.Helper()
	out := fuse.NewDirEntryList(make([]byte, room), in.Offset)
	if code := f.ReadDir(nil, &in, out); !code.Ok() {
		t.Fatal(code)
	}
	list, err := fuse.ParseDirEntries(out.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// openImage serves nobody: the methods are called directly.
func openImage(t testing.TB, image string, o Options) *FS {
	t.Helper()
	img, err := sqfs.OpenImage(image)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { img.Close() })
	return New(img, o)
}

func TestBadNodes(t *testing.T) {
	f := openImage(t, smallImage(t), Options{})
	root := uint64(f.img.Root()) + nodeBase
	for _, node := range []uint64{0, 2, root + 1, root - 1, 1<<48 + 1, 1<<48 + 2, 1<<63 + 5, 1<<64 - 1, 0xffff, 1 << 40} {
		var attr fuse.AttrOut
		in := fuse.GetAttrIn{InHeader: fuse.InHeader{NodeId: node}}
		code := f.GetAttr(nil, &in, &attr)
		if node == 2 && code.Ok() {
			continue // reference 0 is an inode
		}
		if code != fuse.EIO && code != fuse.Status(estale) && attr.Ino > uint64(f.super.Inodes) {
			t.Errorf("node %#x: %v, want EIO or ESTALE", node, code)
		}
		f.read(node, 0, make([]byte, 100))
		f.Lookup(nil, &in.InHeader, "hello", new(fuse.EntryOut))
		f.Readlink(nil, &in.InHeader)
		f.Lseek(nil, &fuse.LseekIn{InHeader: in.InHeader, Whence: unix.SEEK_DATA}, new(fuse.LseekOut))
		f.ReadDirPlus(nil, &fuse.ReadIn{InHeader: in.InHeader, Offset: 1 << 60}, fuse.NewDirEntryList(make([]byte, 4096), 0))
		f.ListXAttr(nil, &in.InHeader, make([]byte, 100))
	}
	for _, node := range []uint64{fuse.FUSE_ROOT_ID, root} {
		var attr fuse.AttrOut
		in := fuse.GetAttrIn{InHeader: fuse.InHeader{NodeId: node}}
		if code := f.GetAttr(nil, &in, &attr); !code.Ok() || attr.Mode&unix.S_IFMT != unix.S_IFDIR {
			t.Errorf("root as node %#x: %v, mode %o", node, code, attr.Mode)
		}
	}
	if _, code := f.read(fuse.FUSE_ROOT_ID, 0, make([]byte, 10)); code != fuse.EISDIR {
		t.Errorf("read of a directory: %v", code)
	}
}

// TestOpenFlags checks what kernels are told that cannot go without OPEN.
func TestOpenFlags(t *testing.T) {
	f := openImage(t, smallImage(t), Options{})
	var out fuse.OpenOut
	if code := f.Open(nil, nil, &out); !code.Ok() || out.OpenFlags != fuse.FOPEN_KEEP_CACHE {
		t.Errorf("open: %v, flags %#x", code, out.OpenFlags)
	}
	if code := f.OpenDir(nil, nil, &out); !code.Ok() || out.OpenFlags != fuse.FOPEN_KEEP_CACHE|fuse.FOPEN_CACHE_DIR {
		t.Errorf("opendir: %v, flags %#x", code, out.OpenFlags)
	}
	f.initFlags.Store(fuse.CAP_NO_OPEN_SUPPORT | fuse.CAP_NO_OPENDIR_SUPPORT)
	if f.Open(nil, nil, &out) != fuse.ENOSYS || f.OpenDir(nil, nil, &out) != fuse.ENOSYS {
		t.Error("a kernel that can go without OPEN is not told so")
	}
}

func TestValidName(t *testing.T) {
	for name, want := range map[string]bool{
		"a": true, "...": true, ".a": true, strings.Repeat("n", 255): true, "\xff": true,
		"": false, ".": false, "..": false, "a/b": false, "a\x00": false, strings.Repeat("n", 256): false,
	} {
		if got := validName([]byte(name)); got != want {
			t.Errorf("validName(%q) = %v", name, got)
		}
	}
}
