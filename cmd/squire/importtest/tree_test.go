package importtest

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// node is what a tree shows under a name.
type node struct {
	kind     fs.FileMode
	mode     uint32 // 07777
	uid, gid uint32
	time     int64 // seconds; of directories not looked at, as an entry in them changes it
	size     int64 // of regular files
	contents string
	target   string
	rdev     uint64
	xattrs   string
	links    string // the first of its names, if it has several
}

func (n node) String() string {
	s := fmt.Sprintf("%s %#o %d:%d time %d", n.kind, n.mode, n.uid, n.gid, n.time)
	if n.contents != "" {
		s += fmt.Sprintf(" %d bytes, sum %.8s", n.size, n.contents)
	}
	if n.target != "" {
		s += fmt.Sprintf(" -> %q", n.target)
	}
	if n.rdev != 0 {
		s += fmt.Sprintf(" device %d:%d", unix.Major(n.rdev), unix.Minor(n.rdev))
	}
	if n.links != "" {
		s += fmt.Sprintf(" linked to %q", n.links)
	}
	return s + n.xattrs
}

// tree is the nodes below a directory by path; the directory itself is ".".
type tree map[string]node

// readTree reads all of it. What a path is not found by any more, because it is too long, is read from its directory.
func readTree(t *testing.T, dir string) tree {
	t.Helper()
	got := tree{}
	first := map[uint64]string{} // inode number to its first name
	count := map[uint64]int{}
	numbers := map[string]uint64{}
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		n, number, err := readNode(path)
		if err != nil {
			return fmt.Errorf("%q: %w", path, err)
		}
		rel, err := filepath.Rel(dir, path)
		got[rel] = n
		if n.kind != fs.ModeDir {
			if count[number]++; count[number] == 1 {
				first[number] = rel // the walk is in order of names
			}
			numbers[rel] = number
		}
		return err
	})
	if err != nil {
		t.Fatalf("read tree: %v", err)
	}
	for rel, number := range numbers {
		if count[number] > 1 {
			n := got[rel]
			n.links = first[number]
			got[rel] = n
		}
	}
	return got
}

func readNode(path string) (n node, number uint64, err error) {
	var st unix.Stat_t
	if err = unix.Lstat(path, &st); err != nil {
		return n, 0, err
	}
	info, err := os.Lstat(path)
	if err != nil {
		return n, 0, err
	}
	n = node{kind: info.Mode().Type(), mode: st.Mode & 0o7777, uid: st.Uid, gid: st.Gid, time: st.Mtim.Sec}
	switch {
	case n.kind.IsRegular():
		n.size = st.Size
		n.contents, err = sum(path)
	case n.kind == fs.ModeDir:
		n.time = 0
	case n.kind == fs.ModeSymlink:
		n.target, err = os.Readlink(path)
	case n.kind&fs.ModeDevice != 0:
		n.rdev = st.Rdev
	}
	if err != nil {
		return n, 0, err
	}
	n.xattrs, err = readXattrs(path)
	return n, st.Ino, err
}

func sum(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", h.Sum(nil)), nil
}

// readXattrs returns the attributes in order, those of overlays aside.
func readXattrs(path string) (string, error) {
	list := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, list)
	if errors.Is(err, unix.ENOTSUP) {
		return "", nil // so the kernel says of an image without any
	}
	if err != nil {
		return "", fmt.Errorf("list attributes: %w", err)
	}
	names := strings.FieldsFunc(string(list[:n]), func(r rune) bool { return r == 0 })
	slices.Sort(names)
	var b strings.Builder
	for _, name := range names {
		if strings.HasPrefix(name, "trusted.overlay.") {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return "", fmt.Errorf("attribute %s: %w", name, err)
		}
		fmt.Fprintf(&b, " %s=%.40q", name, value[:n])
		if n > 40 {
			fmt.Fprintf(&b, "(%d, %.4x)", n, sha256.Sum256(value[:n]))
		}
	}
	return b.String(), nil
}

// installed are the files that an import puts into every image: see package oci. Whatever a layer has there is replaced.
var installed = []string{"etc/rc", "etc/rc.local", "etc/environment", "etc/fstab", "etc/squire", "etc/squire/image.json"}

// without returns the tree without what an import adds, and without the directory of that if want has none.
func (got tree) without(want tree) tree {
	got = maps.Clone(got)
	for _, path := range installed {
		delete(got, path)
	}
	if _, ok := want["etc"]; !ok {
		delete(got, "etc")
	}
	return got
}

// wantTree fails the test at what differs.
func wantTree(t *testing.T, who string, got, want tree) {
	t.Helper()
	var lines []string
	for _, path := range slices.Sorted(maps.Keys(want)) {
		g, ok := got[path]
		switch {
		case !ok:
			lines = append(lines, fmt.Sprintf("%q is missing: %v", path, want[path]))
		case g != want[path]:
			lines = append(lines, fmt.Sprintf("%q is\n\t\t%v, want\n\t\t%v", path, g, want[path]))
		}
	}
	for _, path := range slices.Sorted(maps.Keys(got)) {
		if _, ok := want[path]; !ok {
			lines = append(lines, fmt.Sprintf("%q is there: %v", path, got[path]))
		}
	}
	if len(lines) > 0 {
		t.Errorf("%d paths differ from %s:\n\t%s", len(lines), who, strings.Join(lines[:min(len(lines), 12)], "\n\t"))
	}
}
