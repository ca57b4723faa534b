package importtest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// umoci unpacks an image of a layout on top of each other, layer by layer.
func (l *lab) umoci(t *testing.T, lay *layout, tag string) tree {
	t.Helper()
	bundle := filepath.Join(l.mkdir(t, root), "bundle")
	must(t, "umoci", "unpack", "--image", lay.dir+":"+tag, bundle)
	return readTree(t, filepath.Join(bundle, "rootfs"))
}

// overlay unpacks each archive by itself, as if it were the only one, and has the kernel lay them over each other.
func (l *lab) overlay(t *testing.T, archives [][]byte) tree {
	t.Helper()
	work := l.mkdir(t, root)
	lower := filepath.Join(work, "empty")
	if err := os.Mkdir(lower, 0o755); err != nil {
		t.Fatal(err)
	}
	for i, a := range archives {
		dir := filepath.Join(work, fmt.Sprint(i))
		if err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(dir+".tar", a, 0o600)); err != nil {
			t.Fatal(err)
		}
		must(t, "tar", "-C", dir, "-x", "-p", "--numeric-owner", "--same-owner", "--xattrs", "--xattrs-include=*", "--delay-directory-restore", "-f", dir+".tar")
		if err := overlayForm(dir); err != nil {
			t.Fatal(err)
		}
		lower = dir + ":" + lower
	}
	point := l.mkdir(t, root)
	mountAt(t, point, "-t", "overlay", "-o", "ro,lowerdir="+lower, "overlay")
	return readTree(t, point)
}

// overlayForm turns the marks of archives into those of overlays: filesystems/overlayfs.rst of the kernel.
func overlayForm(dir string) error {
	var marks []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasPrefix(d.Name(), ".wh.") {
			marks = append(marks, path)
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, mark := range marks {
		var st unix.Stat_t
		parent, name := filepath.Split(mark)
		if err = errors.Join(unix.Stat(parent, &st), os.Remove(mark)); err != nil {
			return err
		}
		if name == ".wh..wh..opq" {
			err = unix.Setxattr(parent, "trusted.overlay.opaque", []byte("y"), 0)
		} else {
			err = unix.Mknod(parent+strings.TrimPrefix(name, ".wh."), unix.S_IFCHR, 0)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", mark, err)
		}
	}
	return nil
}
