package pack

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/internal/testenv"
	"github.com/squirefs/squire/sqfs"
)

// mount mounts an image with the kernel's squashfs and returns the directory. It skips the
// test where that cannot be.
func mount(t *testing.T, image string) string {
	t.Helper()
	testenv.NeedRoot(t, "to mount")
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "mount", "-t", "squashfs", "-o", "ro,loop", image, dir).CombinedOutput()
	if err != nil && strings.Contains(string(out), "loop") {
		t.Skipf("no loop devices: %s", out)
	}
	if err != nil {
		t.Fatalf("the kernel does not mount it: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// tool runs a program of the host for at most two minutes.
func tool(t *testing.T, name string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("%s is not installed", name)
	}
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", name, err, out)
	}
}

// describeDir returns what Linux finds in a directory.
func describeDir(t *testing.T, dir string) map[string]what {
	t.Helper()
	all, first := map[string]what{}, map[uint64]string{}
	err := filepath.WalkDir(dir, func(full string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		path := strings.TrimPrefix(full, dir)
		var s unix.Stat_t
		if err = unix.Lstat(full, &s); err != nil {
			return err
		}
		x := what{mode: uint16(s.Mode & 0o7777), uid: s.Uid, gid: s.Gid, time: uint32(s.Mtim.Sec), links: uint32(s.Nlink)}
		switch s.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			x.typ = sqfs.TypeDir
		case unix.S_IFREG:
			x.typ, x.size = sqfs.TypeFile, s.Size
			f, err := os.Open(full)
			if err != nil {
				return err
			}
			defer f.Close()
			h := sha256.New()
			if _, err := io.Copy(h, f); err != nil {
				return err
			}
			x.contents = [sha256.Size]byte(h.Sum(nil))
		case unix.S_IFLNK:
			x.typ, x.size = sqfs.TypeSymlink, s.Size
			if x.target, err = os.Readlink(full); err != nil {
				return err
			}
		case unix.S_IFBLK, unix.S_IFCHR:
			x.typ = sqfs.TypeBlock
			if s.Mode&unix.S_IFMT == unix.S_IFCHR {
				x.typ = sqfs.TypeChar
			}
			major, minor := unix.Major(s.Rdev), unix.Minor(s.Rdev)
			x.rdev = minor&0xff | major<<8 | minor&^0xff<<12
		case unix.S_IFIFO:
			x.typ = sqfs.TypeFifo
		case unix.S_IFSOCK:
			x.typ = sqfs.TypeSocket
		}
		if x.typ != sqfs.TypeDir && s.Nlink > 1 {
			if first[s.Ino] == "" {
				first[s.Ino] = path
			}
			x.same = first[s.Ino]
		}
		x.xattrs, err = xattrsOf(full)
		all[path] = x
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func xattrsOf(path string) (string, error) {
	list := make([]byte, 1<<16)
	n, err := unix.Llistxattr(path, list)
	if err == unix.ENOTSUP { // an image without any
		return "", nil
	}
	if err != nil {
		return "", err
	}
	var all string
	for _, name := range slices.Sorted(slices.Values(strings.Split(string(list[:n]), "\x00"))) {
		if name == "" {
			continue
		}
		value := make([]byte, 1<<16)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return "", fmt.Errorf("%s: %s: %w", path, name, err)
		}
		all += fmt.Sprintf("%s=%x ", name, value[:n])
	}
	return all, nil
}

// TestKernel packs random trees. The kernel, which mounts the image, and unsquashfs, which
// unpacks it, must find them.
func TestKernel(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 3))
			o := randomOptions(rnd)
			m := newModel(rnd, o.BlockSize)
			work := testenv.MemoryDir(t)
			image, out := filepath.Join(work, "image"), filepath.Join(work, "out")
			f, err := os.Create(image)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			m.pack(t, f, o, nil)
			want := m.describe()
			compare(t, fmt.Sprintf("kernel, %+v", o), describeDir(t, mount(t, image)), want)
			tool(t, "unsquashfs", "-no-progress", "-quiet", "-dest", out, image)
			got := describeDir(t, out)
			// The file system that it is unpacked to counts the links of directories.
			for path, x := range got {
				if x.typ == sqfs.TypeDir {
					x.links = want[path].links
					got[path] = x
				}
			}
			compare(t, fmt.Sprintf("unsquashfs, %+v", o), got, want)
		})
	}
}
