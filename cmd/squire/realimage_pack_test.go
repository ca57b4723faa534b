package main_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// packLab is a tree of the lab that belongs to a user, with room for images beside it.
type packLab struct {
	*lab
	who      user
	dir, src string
}

// newPackLab extracts the odd files of an image, and some of the others.
func newPackLab(t *testing.T, l *lab, who user) *packLab {
	t.Helper()
	dir := l.mkdir(t, who)
	t.Cleanup(func() { os.RemoveAll(dir) })
	p := &packLab{l, who, dir, filepath.Join(dir, "src")}
	r := l.run(t, who, l.squire, "extract", "-q", "-d", p.src, l.images["zstd"], "/odd", "/etc", "/usr/lib/python3*/[a-e]*")
	if r.status != 0 {
		t.Fatalf("extract: status %d, %s", r.status, r.stderr)
	}
	return p
}

// pack runs squire pack.
func (p *packLab) pack(t *testing.T, args ...string) result {
	t.Helper()
	return p.run(t, p.who, append([]string{p.squire, "pack"}, args...)...)
}

// at is the path of a new file beside the tree.
func (p *packLab) at(name string) string { return filepath.Join(p.dir, name) }

// mounted reads all of an image through the kernel's squashfs.
func (p *packLab) mounted(t *testing.T, image string) map[string]node {
	t.Helper()
	dir := p.mountPoint(t, user{})
	if r := p.run(t, user{}, "mount", "-t", "squashfs", "-o", "loop,ro", image, dir); r.status != 0 {
		t.Skipf("the kernel does not mount squashfs here: %s", r.stderr)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	return portable(t, dir)
}

// portable is a tree without what file systems decide by themselves. Instead of inode numbers files that are one have
// the first path of theirs.
func portable(t *testing.T, dir string) map[string]node {
	t.Helper()
	tree, err := readTree(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	first := map[uint64]string{}
	for path, n := range tree {
		if f, ok := first[n.ino]; !ok || path < f {
			first[n.ino] = path
		}
	}
	for path, n := range tree {
		if n.mode&unix.S_IFMT == unix.S_IFDIR {
			n.size, n.nlink = 0, 0
		} else if n.mode&unix.S_IFMT != unix.S_IFLNK {
			n.link = first[n.ino]
		}
		n.ino, n.blocks = 0, 0
		tree[path] = n
	}
	return tree
}

func wantSameTree(t *testing.T, want, got map[string]node) {
	t.Helper()
	if len(want) < 1500 {
		t.Errorf("compared only %d files", len(want))
	}
	diffs := compareTrees(want, got)
	for _, d := range diffs[:min(len(diffs), 20)] {
		t.Error(d)
	}
}

// testPack packs a tree of odd files and wants to find it in the image: also with what an ordinary user cannot read
// left out, and by way of tar.
func testPack(t *testing.T, l *lab, who user) {
	p := newPackLab(t, l, who)
	want := portable(t, p.src)
	image := p.at("image")
	args := []string{"--json", p.src, image}
	if who.cred != nil {
		r := p.pack(t, args...)
		if r.status != 125 || !strings.Contains(r.stderr, p.src+"/odd/closed: permission denied; --skip-unreadable") {
			t.Errorf("unreadable: status %d, %s", r.status, r.stderr)
		}
		args = append(args, "--skip-unreadable")
	}
	r := p.pack(t, args...)
	var sum struct {
		Problems []struct{ Path string }
		Bytes    int64
	}
	if err := json.Unmarshal([]byte(r.stdout), &sum); err != nil {
		t.Fatalf("%v: %q %s", err, r.stdout, r.stderr)
	}
	left := map[string]bool{}
	for _, problem := range sum.Problems {
		left[problem.Path] = true
		if !strings.Contains(r.stderr, "squire: "+problem.Path+": permission denied\n") {
			t.Errorf("%s is not told in %s", problem.Path, r.stderr)
		}
	}
	if wantLeft := who.cred != nil; r.status != 0 != wantLeft || r.status > 1 || left["odd/modes/0111"] != wantLeft || left["odd/closed"] != wantLeft {
		t.Errorf("status %d, left out %v, %s", r.status, left, r.stderr)
	}
	for path := range left {
		if n := want["/"+path]; n.mode&unix.S_IFMT != unix.S_IFDIR {
			delete(want, "/"+path)
		}
	}
	wantSameTree(t, want, p.mounted(t, image))
	if fi, err := os.Stat(image); err != nil || fi.Mode() != 0o644 || fi.Size() < sum.Bytes || fi.Size() > sum.Bytes+4096 {
		t.Errorf("%v %v", fi, err)
	}
	if r := p.run(t, who, l.squire, "inspect", "--verify", image); r.status != 0 {
		t.Errorf("verify: %s%s", r.stdout, r.stderr)
	}
	if who.cred != nil {
		return
	}
	t.Run("tar", func(t *testing.T) { testPackTar(t, p) })
}

// testPackTar packs what GNU tar made of a tree, through a pipe. tar leaves out sockets and fractions of seconds, and
// there are none; it has no attributes of directories and links but with --xattrs.
func testPackTar(t *testing.T, p *packLab) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*bound)
	defer cancel()
	image := p.at("tarred")
	script := `tar -C "$1" --xattrs --xattrs-include='*' --format=pax -cz . | "$2" pack -q - "$3"`
	cmd := p.command(ctx, p.who, "sh", "-c", script, "sh", p.src, p.squire, image)
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("%v: %s", err, out)
	}
	wantSameTree(t, portable(t, p.src), p.mounted(t, image))
}

// testPackSame wants the same bytes from several runs with other processors at work.
func testPackSame(t *testing.T, l *lab) {
	p := newPackLab(t, l, user{})
	var first []byte
	for i, args := range []string{"-j 1", "-j 2 --memory 16M", "-j 7"} {
		image := p.at(fmt.Sprint("image", i))
		if r := p.pack(t, append(strings.Fields(args), "--time", "1700000000", "-q", p.src, image)...); r.status != 0 || r.stderr != "" {
			t.Fatalf("status %d, %s", r.status, r.stderr)
		}
		b, err := os.ReadFile(image)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first = b
		} else if !bytes.Equal(b, first) {
			t.Errorf("%s: another image", args)
		}
	}
}

// testPackSignals ends pack at any moment, and wants nothing or all of the image.
func testPackSignals(t *testing.T, l *lab, who user) {
	p := newPackLab(t, l, who)
	if r := p.run(t, user{}, "chmod", "-R", "u+rwX", p.src); r.status != 0 {
		t.Fatal(r.stderr)
	}
	start := time.Now()
	if r := p.pack(t, p.src, p.at("whole")); r.status != 0 {
		t.Fatal(r.stderr)
	}
	took := time.Since(start)
	done := 0
	for i := range 16 {
		sig := []syscall.Signal{syscall.SIGKILL, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP}[i%4]
		ctx, cancel := context.WithTimeout(t.Context(), 3*bound)
		defer cancel()
		cmd := l.command(ctx, who, l.squire, "pack", "-q", p.src, p.at("image"))
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(rand.Int64N(int64(took * 5 / 4))))
		_ = cmd.Process.Signal(sig)
		_ = cmd.Wait()
		ws := cmd.ProcessState.Sys().(syscall.WaitStatus)
		entries, err := os.ReadDir(p.dir)
		if err != nil {
			t.Fatal(err)
		}
		_, err = os.Lstat(p.at("image"))
		there := err == nil
		switch {
		case there: // finished before the signal, or while it came: the first may have been one of the slow ones
			done++
			took = max(took*3/4, time.Millisecond)
			if r := p.run(t, who, l.squire, "inspect", "--verify", p.at("image")); r.status != 0 {
				t.Errorf("%v: a broken image: %s", sig, r.stdout)
			}
			if err := os.Remove(p.at("image")); err != nil {
				t.Fatal(err)
			}
		case ws.Signaled() && sig != syscall.SIGKILL && ws.Signal() != sig, !ws.Signaled() && ws.ExitStatus() != 128+int(sig):
			t.Errorf("%v: %v %s", sig, cmd.ProcessState, &stderr)
		}
		if len(entries) > 2 && !there || len(entries) > 3 {
			t.Errorf("%v: left %v", sig, entries)
		}
	}
	if done == 16 {
		t.Error("no signal came in time")
	}
	l.wantNothingLeft(t)
}

// testPackRace packs to one name several times at once: one wins, the others say that it is there.
func testPackRace(t *testing.T, l *lab) {
	p := newPackLab(t, l, user{})
	var all sync.WaitGroup
	results := make([]result, 4)
	for i := range results {
		all.Go(func() { results[i] = p.pack(t, "-q", p.src, p.at("image")) })
	}
	all.Wait()
	won := 0
	for _, r := range results {
		if r.status == 0 {
			won++
		} else if r.status != 125 || !strings.Contains(r.stderr, "already exists; --force replaces it") {
			t.Errorf("status %d, %s", r.status, r.stderr)
		}
	}
	if won != 1 {
		t.Errorf("%d of them made the image", won)
	}
	if r := p.run(t, user{}, l.squire, "inspect", "--verify", p.at("image")); r.status != 0 {
		t.Errorf("%s%s", r.stdout, r.stderr)
	}
}

// testPackFullDisk wants a full disk to be told, and nothing to be left on it, with and without files that have no
// name.
func testPackFullDisk(t *testing.T, l *lab) {
	p := newPackLab(t, l, user{})
	small := l.mkdir(t, user{})
	if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=2m"); err != nil {
		t.Skipf("no tmpfs: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(small, unix.MNT_DETACH) })
	image := filepath.Join(small, "image")
	r := p.pack(t, p.src, image)
	wantError(t, l, r, 125, image, "no space left on device")
	if entries, err := os.ReadDir(small); err != nil || len(entries) > 0 {
		t.Errorf("left %v, %v", entries, err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(small, &st); err != nil || st.Bfree != st.Blocks {
		t.Errorf("%d blocks of %d are free: %v", st.Bfree, st.Blocks, err)
	}
	if err := unix.Mount("", small, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	wantError(t, l, p.pack(t, p.src, image), 125, image, "read-only file system")
}

// testPackInput has no standard input, one that ends early, and one that never ends.
func testPackInput(t *testing.T, l *lab) {
	p := &packLab{l, user{}, l.mkdir(t, user{}), "/"}
	t.Cleanup(func() { os.RemoveAll(p.dir) })
	image := p.at("image")
	for _, script := range []string{
		`"$0" pack - "$1" <&-`, `"$0" pack - "$1" </dev/null`, `head -c 100000 /dev/urandom | "$0" pack - "$1"`,
		`tar -c /etc/passwd 2>/dev/null | head -c 700 | "$0" pack - "$1"`,
	} {
		wantError(t, l, p.run(t, p.who, "sh", "-c", script, l.squire, image), 125, "standard input")
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 3*bound)
	defer cancel()
	cmd := l.command(ctx, p.who, l.squire, "pack", "-", image)
	cmd.Stdin = r
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err = cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r.Close()
	opened := func() bool {
		fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", cmd.Process.Pid))
		for _, fd := range fds {
			if to, _ := os.Readlink(fd); strings.HasPrefix(to, p.dir) {
				return true
			}
		}
		return false
	}
	if !eventually(bound, opened) {
		t.Error("it does not begin")
	}
	_ = cmd.Process.Signal(syscall.SIGINT)
	err = cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 130 || !strings.Contains(stderr.String(), "interrupted") {
		t.Errorf("%v %s", err, &stderr)
	}
	if entries, err := os.ReadDir(p.dir); err != nil || len(entries) > 0 {
		t.Errorf("left %v, %v", entries, err)
	}
}

// testPackChanging packs a tree that changes all the time, and wants images that can be read.
func testPackChanging(t *testing.T, l *lab) {
	p := newPackLab(t, l, user{})
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	all.Go(func() { p.change(ctx) })
	for i := range 10 {
		image := p.at(fmt.Sprint("image", i))
		r := p.pack(t, p.src, image)
		if r.status > 1 {
			t.Fatalf("status %d, %s", r.status, r.stderr)
		}
		if r := p.run(t, p.who, l.squire, "inspect", "--verify", image); r.status != 0 {
			t.Errorf("%s%s", r.stdout, r.stderr)
		}
	}
}

// change changes files until ctx ends: sizes, names, types. Links lead to a file of the test's own, as a file whose size is
// changed may have become one.
func (p *packLab) change(ctx context.Context) {
	outside := p.at("outside")
	_ = os.WriteFile(outside, []byte("outside\n"), 0o644)
	files, _ := filepath.Glob(p.src + "/usr/lib/python3*/*/*")
	for n := 0; ctx.Err() == nil; n++ {
		path := files[rand.IntN(len(files))]
		switch n % 6 {
		case 0:
			_ = os.Truncate(path, rand.Int64N(3<<20))
		case 1:
			_ = os.Rename(path, path+".x")
		case 2:
			_ = os.Rename(path+".x", path)
		case 3:
			_ = os.RemoveAll(path)
		case 4:
			_ = os.Symlink(outside, path)
		case 5:
			_ = os.Rename(filepath.Dir(path), filepath.Dir(path)+".x")
			_ = os.Rename(filepath.Dir(path)+".x", filepath.Dir(path))
		}
		time.Sleep(100 * time.Microsecond)
	}
}
