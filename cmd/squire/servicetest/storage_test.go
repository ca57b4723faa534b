package servicetest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// disk is a file system of the kernel's on a block device with faults: a loop device, whose file is on a file system with
// faults. It stands in for the targets of device mapper that are made for this (flakey, error, delay), which many kernels
// do not have.
type disk struct {
	*image
	below *storage
}

// newDisk makes one that has img.
func (l *lab) newDisk(t *testing.T, img *image) *disk {
	t.Helper()
	tree, at := l.mkdir(t, root), l.mkdir(t, root)
	if err := copyFile(img.path, filepath.Join(tree, "image")); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(l.mkdir(t, root), "disk")
	run := func(argv ...string) string {
		t.Helper()
		r := finish(t, command(t, root, bound, argv...))
		if r.status != 0 {
			t.Fatalf("%q: %+v", argv, r)
		}
		return strings.TrimSpace(r.stdout)
	}
	run("mke2fs", "-q", "-t", "ext4", "-d", tree, file, fmt.Sprint(img.size>>10+16<<10))
	s := l.newStorage(t, root, &image{path: file}, false)
	r := finish(t, command(t, root, bound, "losetup", "--find", "--show", "--read-only", s.path))
	if r.status != 0 {
		t.Skipf("no loop device: %s", r.stderr)
	}
	device := strings.TrimSpace(r.stdout)
	t.Cleanup(func() { _ = exec.Command("losetup", "-d", device).Run() })
	if err := unix.Mount(device, at, "ext4", unix.MS_RDONLY, "noload"); err != nil {
		t.Skipf("no ext4: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) })
	return &disk{&image{path: filepath.Join(at, "image"), size: img.size, data: img.data}, s}
}

// forget has the kernel drop what it has of the image.
func (d *disk) forget(t *testing.T) {
	t.Helper()
	f, err := os.Open(d.path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
}

// The disk below the image's file system has errors, or hangs: readers get EIO, in bounded time, and the right bytes when
// that is over. Other images are not concerned.
func TestDisk(t *testing.T) {
	t.Parallel()
	l := newLab(t, "mke2fs", "losetup")
	k := l.newDisk(t, l.image)
	d := l.start(t, "--cache", "1M")
	h, mine := d.holdSick(t, users[0], k.image), l.own(t, users[1])
	safe := d.hold(t, users[1], mine)
	good := func(when string) {
		t.Helper()
		if !eventually(t, "the disk is read again "+when, func() bool {
			return finish(t, d.beside(t, users[0], h, "cold", "/", "0")).status == 0
		}) {
			t.FailNow()
		}
	}
	good("at first")
	for _, mode := range []string{"eio", "hang"} {
		k.forget(t)
		k.below.do(t, mode)
		victim := d.beside(t, users[0], h, "cold", "/", "0")
		if err := victim.Start(); err != nil {
			t.Fatal(err)
		}
		within(t, bound, "another image, "+mode, func() {
			d.wantRun(t, users[2], mine, "cold", "/", "0")
			if r := finish(t, d.inside(t, users[1], safe, "cold", "/", "0")); r.status != 0 {
				t.Errorf("%s, the other image: %+v", mode, r)
			}
		})
		within(t, bound, "EIO, "+mode, func() {
			if err := victim.Wait(); err == nil {
				t.Errorf("%s: a reader sees nothing of it", mode)
			}
		})
		k.below.do(t, "ok")
		good("after " + mode)
	}
	for _, h := range []*holding{h, safe} {
		if err := h.end(); err != nil {
			t.Error(err)
		}
	}
}

// An export of a network file system on which root is nobody: an image that its user alone may read is served, as the user
// opens it, and what is read later goes by that. Root cannot open it, neither here nor in the service.
func TestRootSquash(t *testing.T) {
	l := newLab(t)
	d := l.start(t)
	s := l.newStorage(t, root, l.image, false)
	s.do(t, fmt.Sprintf("only %d", users[0].uid))
	if f, err := os.Open(s.path); err == nil {
		f.Close()
		t.Fatal("root can open the image: this test has nothing to say")
	}
	h := d.hold(t, users[0], s.image)
	if i := d.imageReport(t); i.Name != s.path || i.References != 1 {
		t.Errorf("%+v", i)
	}
	forgetNames()
	for range 2 { // before and after another server has taken over
		if r := finish(t, d.inside(t, users[0], h, "cold", "/", "0")); r.status != 0 {
			t.Errorf("%+v", r)
		}
		d.kill(serverName)
	}
	for _, u := range []user{root, users[1]} {
		if r := finish(t, d.run(t, u, s.image, "wait")); r.status != 125 || !strings.Contains(r.stderr, "permission denied") {
			t.Errorf("user %v: %+v", u, r)
		}
	}
	dir := l.mkdir(t, users[0])
	if r := finish(t, d.client(t, users[0], "mount", s.path, dir)); r.status != 0 {
		t.Errorf("mount: %+v", r)
	} else if r := finish(t, command(t, users[0], bound, l.probe, "cold", dir, "0")); r.status != 0 {
		t.Errorf("reading the mount: %+v", r)
	}
	if err := h.end(); err != nil {
		t.Error(err)
	}
}
