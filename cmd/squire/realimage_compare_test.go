package main_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// node is all that can be seen of a file from outside.
type node struct {
	ino, nlink, rdev uint64
	mode             uint32
	uid, gid         uint32
	size, blocks     int64
	mtime            int64 // squashfs has no fraction of a second
	link             string
	content          [sha256.Size]byte
	xattrs           map[string]string
}

// testCompare mounts an image with the kernel's squashfs and with squire, and wants to see no difference.
func testCompare(t *testing.T, l *lab, image string) {
	kernel, ours := l.mountPoint(t, user{}), l.mountPoint(t, user{})
	if r := l.run(t, user{}, "mount", "-t", "squashfs", "-o", "loop,ro", image, kernel); r.status != 0 {
		t.Skipf("the kernel does not mount squashfs here: %s", r.stderr)
	}
	t.Cleanup(func() { _ = syscall.Unmount(kernel, syscall.MNT_DETACH) })
	if r := l.run(t, user{}, l.squire, "mount", image, ours); r.status != 0 || r.stderr != "" {
		t.Fatalf("squire mount: status %d, stderr %q", r.status, r.stderr)
	}
	t.Cleanup(func() { _ = syscall.Unmount(ours, syscall.MNT_DETACH) })
	mounts := l.mounts()
	if len(mounts) != 1 || mounts[0].Point != ours || !strings.Contains(mounts[0].Source, filepath.Base(image)) {
		t.Fatalf("mounts %v, want one on %s with the image as its source", mounts, ours)
	}

	// Whoever waits for a server that never answers cannot be killed: end the connection instead of waiting.
	watchdog := time.AfterFunc(2*time.Minute, func() { abortFUSE(mounts[0]) })
	defer watchdog.Stop()
	want, err := readTree(t.Context(), kernel)
	if err != nil {
		t.Fatal(err)
	}
	got, err := readTree(t.Context(), ours)
	if err != nil {
		t.Fatal(err)
	}
	if len(want) < 5000 {
		t.Errorf("compared only %d files", len(want))
	}
	diffs := compareTrees(want, got)
	for _, d := range diffs[:min(len(diffs), 20)] {
		t.Error(d)
	}
	if len(diffs) > 20 {
		t.Errorf("and %d differences more", len(diffs)-20)
	}

	if r := l.run(t, user{}, l.squire, "umount", ours); r.status != 0 || r.stderr != "" {
		t.Errorf("squire umount: status %d, stderr %q", r.status, r.stderr)
	}
	l.wantNothingLeft(t)
}

// readTree reads everything below dir, with four readers, so that requests meet each other in the server.
func readTree(ctx context.Context, dir string) (map[string]node, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	paths := make(chan string, 64)
	var (
		mu    sync.Mutex
		nodes = make(map[string]node)
		wg    sync.WaitGroup
	)
	for range 4 {
		wg.Go(func() {
			for path := range paths {
				n, err := readNode(path)
				if err != nil {
					cancel(err)
					continue
				}
				mu.Lock()
				nodes[strings.TrimPrefix(path, dir)] = n
				mu.Unlock()
			}
		})
	}
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		paths <- path
		return nil
	})
	close(paths)
	wg.Wait()
	return nodes, errors.Join(err, context.Cause(ctx))
}

func readNode(path string) (node, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return node{}, fmt.Errorf("stat %q: %w", path, err)
	}
	n := node{
		ino: st.Ino, nlink: uint64(st.Nlink), //nolint:unconvert // 32 bits on arm64
		rdev: st.Rdev, mode: st.Mode, uid: st.Uid, gid: st.Gid,
		size: st.Size, blocks: st.Blocks, mtime: st.Mtim.Sec,
	}
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		n.link, err = os.Readlink(path)
	case unix.S_IFREG:
		n.content, err = hashFile(path)
	}
	if err != nil {
		return node{}, err
	}
	n.xattrs, err = readXattrs(path)
	return n, err
}

func hashFile(path string) (sum [sha256.Size]byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return sum, err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return sum, err
	}
	h.Sum(sum[:0])
	return sum, nil
}

func readXattrs(path string) (map[string]string, error) {
	buf := make([]byte, 1<<16) // the most that Linux gives: xattr(7)
	n, err := unix.Llistxattr(path, buf)
	if err != nil {
		return nil, fmt.Errorf("list xattrs of %q: %w", path, err)
	}
	xattrs := make(map[string]string)
	for name := range strings.SplitSeq(string(buf[:n]), "\x00") {
		if name == "" {
			continue
		}
		n, err := unix.Lgetxattr(path, name, buf)
		if err != nil {
			return nil, fmt.Errorf("xattr %s of %q: %w", name, path, err)
		}
		xattrs[name] = string(buf[:n])
	}
	return xattrs, nil
}

// compareTrees says in words how got differs from want, in the order of the names.
func compareTrees(want, got map[string]node) []string {
	var diffs []string
	for _, path := range slices.Sorted(maps.Keys(want)) {
		g, ok := got[path]
		if !ok {
			diffs = append(diffs, fmt.Sprintf("%q is missing", path))
			continue
		}
		diffs = append(diffs, compareNodes(path, want[path], g)...)
	}
	for _, path := range slices.Sorted(maps.Keys(got)) {
		if _, ok := want[path]; !ok {
			diffs = append(diffs, fmt.Sprintf("%q is too much", path))
		}
	}
	return diffs
}

func compareNodes(path string, want, got node) []string {
	var diffs []string
	check := func(what string, want, got any) {
		if want != got {
			diffs = append(diffs, fmt.Sprintf("%q: %s is %v, want %v", path, what, got, want))
		}
	}
	check("inode number", want.ino, got.ino)
	check("link count", want.nlink, got.nlink)
	check("device", want.rdev, got.rdev)
	check("mode", fmt.Sprintf("%#o", want.mode), fmt.Sprintf("%#o", got.mode))
	check("owner", want.uid, got.uid)
	check("group", want.gid, got.gid)
	check("size", want.size, got.size)
	check("blocks", want.blocks, got.blocks)
	check("time", want.mtime, got.mtime)
	check("target", want.link, got.link)
	check("content", fmt.Sprintf("%x", want.content), fmt.Sprintf("%x", got.content))
	check("xattrs", fmt.Sprintf("%q", want.xattrs), fmt.Sprintf("%q", got.xattrs))
	return diffs
}

func TestCompareTrees(t *testing.T) {
	base := func() map[string]node {
		return map[string]node{"": {mode: unix.S_IFDIR | 0o755}, "/a": {size: 1, xattrs: map[string]string{"user.a": "b"}}}
	}
	tests := []struct {
		name   string
		change func(map[string]node)
		want   string
	}{
		{name: "same", change: func(map[string]node) {}},
		{name: "missing", change: func(m map[string]node) { delete(m, "/a") }, want: `"/a" is missing`},
		{name: "too much", change: func(m map[string]node) { m["/b"] = node{} }, want: `"/b" is too much`},
		{name: "size", change: func(m map[string]node) { n := m["/a"]; n.size = 2; m["/a"] = n }, want: `"/a": size is 2, want 1`},
		{name: "xattr", change: func(m map[string]node) { n := m["/a"]; n.xattrs = nil; m["/a"] = n }, want: `"/a": xattrs is map[], want map["user.a":"b"]`},
		{name: "content", change: func(m map[string]node) { n := m["/a"]; n.content[31] = 1; m["/a"] = n }, want: `"/a": content is `},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := base()
			tt.change(got)
			text := strings.Join(compareTrees(base(), got), "\n")
			if !strings.HasPrefix(text, tt.want) || (tt.want == "") != (text == "") {
				t.Errorf("got %q, want %q", text, tt.want)
			}
		})
	}
}

// readTree must see what is there, or two empty trees would be the same.
func TestReadTree(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(
		os.WriteFile(filepath.Join(dir, "a"), []byte("x"), 0o640),
		os.Link(filepath.Join(dir, "a"), filepath.Join(dir, "b")),
		os.Symlink("a", filepath.Join(dir, "l")),
		os.Mkdir(filepath.Join(dir, "d"), 0o700),
	); err != nil {
		t.Fatal(err)
	}
	nodes, err := readTree(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := slices.Sorted(maps.Keys(nodes)), []string{"", "/a", "/b", "/d", "/l"}; !slices.Equal(got, want) {
		t.Errorf("names %q, want %q", got, want)
	}
	a := nodes["/a"]
	if a.nlink != 2 || a.size != 1 || a.mode != unix.S_IFREG|0o640 || a.content != sha256.Sum256([]byte("x")) || nodes["/l"].link != "a" {
		t.Errorf("nodes %+v", nodes)
	}
}
