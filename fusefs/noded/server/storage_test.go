package server

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/internal/rights"
	"github.com/squirefs/squire/internal/testenv"
)

// hangingStorage returns a directory with two images on storage that hangs from when hang is called until resume is, or
// the test ends: they are files on the mount of another server, which is stopped. Nothing of them was read yet.
func hangingStorage(t *testing.T) (dir string, hang, resume func()) {
	t.Helper()
	image, _ := newImage(t, 30, 400<<10)
	outer := newNode(t, Config{})
	tree := t.TempDir()
	copyFile(t, image, filepath.Join(tree, "mounted.sqsh"))
	copyFile(t, image, filepath.Join(tree, "other.sqsh"))
	if err := os.Mkdir(filepath.Join(tree, "small"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(tree, "small", "file"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	m := outer.mount(imageOf(t, tree, "-noD", "-noF"), nil)
	// Whoever closes a file for the first time asks the server, see FS.Flush.
	if got := startReader(t, readerName, m, "small").read(); strings.HasPrefix(got, "error") {
		t.Fatal(got)
	}
	signal := func(s unix.Signal) {
		if err := unix.Kill(outer.server.pid, s); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(func() { _ = unix.Kill(outer.server.pid, unix.SIGCONT) })
	return fmt.Sprintf("/proc/self/fd/%d", m.mount.Fd()), func() { signal(unix.SIGSTOP) }, func() { signal(unix.SIGCONT) }
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	if err := testenv.CopyFile(from, to, 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestHungStorage wants that storage that does not answer holds up nobody but who wants what is on it.
func TestHungStorage(t *testing.T) {
	needRoot(t)
	sound, digest := newImage(t, 40, 60<<10)
	dir, hang, resume := hangingStorage(t)
	n := newNode(t, Config{})
	hung := n.mount(filepath.Join(dir, "mounted.sqsh"), nil)
	good := newReader(t, n.mount(sound, nil))
	file, err := os.Open(filepath.Join(dir, "other.sqsh"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()

	hang()
	waiting := newReader(t, hung)
	waiting.begin()
	n.server.timeout = time.Second
	for k := range maxUserWaiting + 3 {
		_, err = n.server.Open(Image{ID: uint64(1000 + k), User: 1000, Name: "hung"}, file, nil, nil)
		want := "its storage does not answer"
		if k >= maxUserWaiting {
			want = "too many"
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Fatalf("open %d: %v, want %q", k, err, want)
		}
		if n.server.timeout = 20 * time.Millisecond; k+1 >= maxUserWaiting { // nobody need be patient
			n.server.timeout = limit
		}
	}
	n.server.timeout = limit
	if _, err = n.server.Superblock(1000, file, 0); err == nil || !strings.Contains(err.Error(), "too many") {
		t.Errorf("superblock: %v", err)
	}
	if got := good.read(); got != digest {
		t.Errorf("an image that has nothing to do with it: %s, want %s", got, digest)
	}
	another := n.mount(sound, func(i *Image) { i.User = 1001 })
	if got := newReader(t, another).read(); got != digest {
		t.Errorf("another: %s, want %s", got, digest)
	}
	if err = n.server.Ping(limit); err != nil {
		t.Error(err)
	}
	resume()
	if got := waiting.answer(); strings.HasPrefix(got, "error") {
		t.Errorf("who waited: %s", got)
	}
	eventually(t, "those who were abandoned to be done", func() bool {
		_, err = n.server.Open(Image{ID: 2000, User: 1000}, file, nil, nil)
		return err == nil
	})
	stats, err := n.server.Stats()
	if err != nil {
		t.Fatal(err)
	}
	if len(stats.Images) != 4 {
		t.Errorf("%d images, want the four that somebody knows of", len(stats.Images))
	}
}

func TestSuperblock(t *testing.T) {
	image, _ := newImage(t, 1, 1000)
	content, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	n := newNode(t, Config{})
	file, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, offset := range []int64{0, 17, int64(len(content) - 96)} {
		var got string
		if got, err = n.server.Superblock(1000, file, offset); err != nil || got != string(content[offset:offset+96]) {
			t.Errorf("at %d: %q, %v", offset, got, err)
		}
	}
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	write, err := os.OpenFile(image, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer write.Close()
	var bad *ImageError
	if _, err := n.server.Superblock(1000, write, 0); err == nil || errors.As(err, &bad) {
		t.Errorf("what cannot be read: %v, want an error that is not the image's", err)
	}
	for name, tt := range map[string]struct {
		file   *os.File
		offset int64
	}{"short": {file, int64(len(content) - 95)}, "beyond": {file, 1 << 40}, "a directory": {dir, 0}} {
		var refused *ImageError
		if _, err := n.server.Superblock(1000, tt.file, tt.offset); !errors.As(err, &refused) {
			t.Errorf("%s: %v, want an ImageError", name, err)
		}
	}
	if _, err := n.server.Superblock(1000, file, -1); err == nil {
		t.Error("negative offset")
	}
}

// What is no image, or not what was said, is refused with words that help.
func TestOpenRefused(t *testing.T) {
	image, _ := newImage(t, 1, 1000)
	n := newNode(t, Config{})
	file, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for name, tt := range map[string]struct {
		image Image
		file  *os.File
		want  string
	}{
		"a text":     {Image{ID: 1, Offset: 3}, file, "not a squashfs"},
		"beyond":     {Image{ID: 1, Offset: 1 << 40}, file, "outside"},
		"a device":   {Image{ID: 1}, null, "neither a regular file"},
		"without id": {Image{}, file, "id"},
		"closed":     {Image{ID: 1}, os.NewFile(1<<20, "closed"), "bad file"},
	} {
		if _, err := n.server.Open(tt.image, tt.file, nil, nil); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
	if _, err := n.server.Open(Image{ID: 7}, file, nil, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := n.server.Open(Image{ID: 7}, file, nil, nil); err == nil {
		t.Error("one id twice")
	}
	n.server.Forget(7)
	n.server.Forget(8)
	if _, err := n.server.Serve(7, null, nil); err == nil {
		t.Error("what was forgotten is served")
	}
	if _, err := n.server.Open(Image{ID: 7}, file, nil, nil); err != nil {
		t.Error(err)
	}
	if _, err := n.server.Serve(7, null, nil); err == nil {
		t.Error("/dev/null is served")
	}
	if _, err := n.server.Open(Image{ID: 7}, file, nil, nil); err != nil {
		t.Errorf("after it was not served: %v", err)
	}
}

// TestManyImages serves a hundred images, and wants each of them to cost little.
func TestManyImages(t *testing.T) {
	needRoot(t)
	const images = 100
	image, digest := newImage(t, 60, 100<<10)
	n := newNode(t, Config{})
	var before int64
	for range images {
		r := newReader(t, n.mount(image, nil))
		if got := r.read(); got != digest {
			t.Fatal(got)
		}
		r.end()
		if before == 0 {
			before = n.memory()
		}
	}
	if each := (n.memory() - before) / images; n.memory() > 256<<20 && !rights.OneThread { // the race detector takes several times as much
		t.Errorf("%d MiB after the first, %d KiB for each image", before>>20, each>>10)
	}
	n.server.Kill()
	n.restart()
	for _, m := range n.mounts[:10] {
		r := newReader(t, m)
		if got := r.read(); got != digest {
			t.Fatal(got)
		}
		r.end()
	}
	for _, m := range n.mounts {
		m.unmount()
		select {
		case id := <-n.server.Ended():
			if id != m.ID {
				t.Fatalf("image %d has ended, want %d", id, m.ID)
			}
		case <-time.After(limit):
			t.Fatal("nobody tells that a mount is gone")
		}
	}
	// All that each of them had: threads and descriptors.
	left := func() int {
		fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", n.server.pid))
		return len(fds)
	}
	eventually(t, "descriptors to be closed", func() bool { return left() < 20 })
}

func (n *node) memory() int64 {
	n.t.Helper()
	stats, err := n.server.Stats()
	if err != nil {
		n.t.Fatal(err)
	}
	return stats.Memory
}

// TestChanged writes to an image while it is mounted: what is not in the kernel's hands is refused from then on, by servers
// that come later too, whatever has become of the file.
func TestChanged(t *testing.T) {
	needRoot(t)
	image, digest := newImage(t, 60, 100<<10)
	n := newNode(t, Config{})
	m, same := n.mount(image, nil), n.mount(image, nil)
	if got := newReader(t, m).read(); got != digest {
		t.Fatal(got)
	}
	if _, err := n.server.Open(same.Image, same.file, nil, nil); err == nil {
		t.Error("one id twice")
	}
	if err := os.Chtimes(image, time.Now(), time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	r := newReader(t, same)
	if got := r.read(); !strings.Contains(got, "input/output error") {
		t.Errorf("read of a changed image: %s", got)
	}
	n.server.Kill()
	n.awaitEnd()
	if err := os.WriteFile(image, []byte("no image any more"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		n.start()
		for _, m := range []*mounted{m, same} {
			again := m.Image
			again.Init = m.info.Init
			if _, err := n.server.Open(again, m.file, nil, nil); err != nil {
				t.Fatal(err)
			}
			info, err := n.server.Serve(m.ID, m.device, m.info.Init)
			if err != nil || !bytes.Equal(info.Init, m.info.Init) {
				t.Errorf("taken over: %v, %q", err, info.Init)
			}
		}
		if got := r.read(); !strings.Contains(got, "input/output error") {
			t.Errorf("read of a changed image from a later server: %s", got)
		}
		if _, err := n.server.Stats(); err != nil {
			t.Error(err)
		}
		n.server.Common(m.ID)
		if err := n.server.Ping(limit); err != nil {
			t.Error(err)
		}
		n.server.Stop()
		n.awaitEnd()
	}
	n.start()
	again := same.Image
	again.Init = same.info.Init
	if _, err := n.server.Open(again, same.file, nil, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := n.server.Serve(same.ID, same.device, same.info.Init); err != nil {
		t.Fatal(err)
	}
	r.end()
	same.unmount()
	select {
	case id := <-n.server.Ended():
		if id != same.ID {
			t.Errorf("image %d has ended", id)
		}
	case <-time.After(limit):
		t.Error("the server does not see the end of a mount whose image is lost")
	}
}
