package server

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/fusefs"
	"github.com/squirefs/squire/internal/testenv"
)

// Names of processes that read mounts, as argv[0]: those who hold devices must not.
const (
	readerName = "squire-test-reader"
	proberName = "squire-test-prober"
)

func TestMain(m *testing.M) {
	switch os.Args[0] {
	case Name:
		os.Exit(Main())
	case readerName:
		os.Exit(read(digestOf, os.Args[1]))
	case proberName:
		os.Exit(read(probe, os.Args[1]))
	}
	os.Exit(m.Run())
}

// node stands in for the keeper.
type node struct {
	t      testing.TB
	config Config
	server *Client
	mounts []*mounted
	last   uint64
}

// mounted is an image that is mounted, but nowhere: whoever made a mount namespace meanwhile would have a copy.
type mounted struct {
	Image
	file, device, mount *os.File
	info                Info
}

const limit = time.Minute // of what takes much less

func needRoot(t testing.TB) {
	t.Helper()
	testenv.NeedRoot(t, "to mount")
	testenv.NeedFUSE(t)
}

// newNode starts a server.
func newNode(t testing.TB, c Config) *node {
	t.Helper()
	if c.Cache == 0 {
		c.Cache, c.Metadata = 64<<20, 48<<20
	}
	n := &node{t: t, config: c}
	n.start()
	t.Cleanup(func() {
		for _, m := range n.mounts {
			m.unmount()
			m.device.Close()
			m.file.Close()
		}
		n.server.Kill()
		n.awaitEnd()
	})
	return n
}

func (n *node) start() {
	n.t.Helper()
	var err error
	if n.server, err = Start(n.config); err != nil {
		n.t.Fatal(err)
	}
}

// awaitEnd waits for the end of the server.
func (n *node) awaitEnd() {
	n.t.Helper()
	select {
	case <-n.server.Done():
	case <-time.After(limit):
		n.t.Error("the server does not end")
	}
}

// restart starts another server for all mounts, once the last one has ended.
func (n *node) restart() {
	n.t.Helper()
	n.awaitEnd()
	n.start()
	for _, m := range n.mounts {
		if _, err := n.server.Open(m.Image, m.file, nil, nil); err != nil {
			n.t.Fatal(err)
		}
		if _, err := n.server.Serve(m.ID, m.device, m.info.Init); err != nil {
			n.t.Fatal(err)
		}
	}
}

// mount mounts an image, changed says how.
func (n *node) mount(image string, changed func(*Image), traces ...*os.File) *mounted {
	n.t.Helper()
	file, err := os.Open(image)
	if err != nil {
		n.t.Fatal(err)
	}
	n.last++
	m := &mounted{Image: Image{ID: n.last, Name: filepath.Base(image)}, file: file}
	if changed != nil {
		changed(&m.Image)
	}
	if m.info, err = n.server.Open(m.Image, file, nil, traces); err != nil {
		n.t.Fatal(err)
	}
	n.attach(m)
	return m
}

// attach mounts an image that is open.
func (n *node) attach(m *mounted) {
	n.t.Helper()
	var err error
	if m.device, err = fusefs.OpenDevice(unix.AT_FDCWD, "/dev/fuse"); err != nil {
		n.t.Fatal(err)
	}
	o := fusefs.MountOptions{AllowOther: true}
	if m.mount, err = o.Detached(m.device); err != nil {
		n.t.Fatal(err)
	}
	served, err := n.server.Serve(m.ID, m.device, nil)
	if err != nil {
		n.t.Fatal(err)
	}
	m.info.Init, m.info.Flags = served.Init, served.Flags
	n.mounts = append(n.mounts, m)
}

// unmount ends a mount, once nobody else has it.
func (m *mounted) unmount() { m.mount.Close() }

// reader is a process that reads a directory.
type reader struct {
	t   testing.TB
	cmd *exec.Cmd
	in  io.WriteCloser
	out chan string
}

// newReader starts a process that reads a mount each time that it is told to.
func newReader(t testing.TB, m *mounted) *reader { return startReader(t, readerName, m, ".") }

func startReader(t testing.TB, name string, m *mounted, dir string) *reader {
	t.Helper()
	r := &reader{t: t, cmd: exec.Command("/proc/self/exe"), out: make(chan string, 1)}
	r.cmd.Args = []string{name, "/proc/self/fd/3/" + dir}
	r.cmd.ExtraFiles = []*os.File{m.mount}
	r.cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0") // else each sleeps for a second at its end
	r.cmd.Stderr = os.Stderr
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var err error
	if r.in, err = r.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := r.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(r.out)
		for s := bufio.NewScanner(out); s.Scan(); {
			r.out <- s.Text()
		}
	}()
	t.Cleanup(func() {
		_ = r.cmd.Process.Kill()
		r.end()
	})
	return r
}

// begin tells it to read, and answer returns the digest of all that is there.
func (r *reader) begin() {
	r.t.Helper()
	if _, err := fmt.Fprintln(r.in, "read"); err != nil {
		r.t.Fatal(err)
	}
}

func (r *reader) answer() string {
	r.t.Helper()
	select {
	case line := <-r.out:
		return line
	case <-time.After(limit):
		r.t.Fatal("the reader hangs")
	}
	return ""
}

// end ends it, which lets go of the mount.
func (r *reader) end() {
	r.in.Close()
	_ = r.cmd.Wait()
}

func (r *reader) read() string {
	r.t.Helper()
	r.begin()
	return r.answer()
}

// read is the reader: for each line it tells the digest of a tree, or the error.
func read(digestOf func(string) (string, error), dir string) int {
	for s := bufio.NewScanner(os.Stdin); s.Scan(); {
		digest, err := digestOf(dir)
		if err != nil {
			digest = "error: " + strings.ReplaceAll(err.Error(), "\n", " ")
		}
		fmt.Println(digest)
	}
	return 0
}

// digestOf returns the digest of all that is in a directory. It begins somewhere, so that several who do this do not do
// the same, and has the kernel forget what it read.
func digestOf(dir string) (string, error) {
	var paths []string
	sums := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			paths = append(paths, path)
		}
		return err
	})
	if err != nil {
		return "", err
	}
	first := rand.IntN(len(paths) + 1)
	for k := range paths {
		path := paths[(k+first)%len(paths)]
		if sums[path], err = sumOf(path); err != nil {
			return "", err
		}
	}
	all := sha256.New()
	for _, path := range paths {
		name, _ := filepath.Rel(dir, path)
		fmt.Fprintln(all, name, sums[path])
	}
	return hex.EncodeToString(all.Sum(nil)), nil
}

// probe looks at a tree that may be without end or damaged: at some of all that there is. It tells how much that was.
func probe(dir string) (string, error) {
	seen := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if seen++; seen > 500 {
			return fs.SkipAll
		}
		if d == nil || err != nil {
			return nil
		}
		_, _ = d.Info()
		_, _ = unix.Listxattr(path, make([]byte, 4096))
		if d.Type()&fs.ModeSymlink != 0 {
			_, _ = os.Readlink(path)
		}
		if d.Type().IsRegular() {
			if f, err := os.Open(path); err == nil {
				_, _ = io.CopyN(io.Discard, f, 1<<20)
				f.Close()
			}
		}
		return nil
	})
	return fmt.Sprint(seen), err
}

func sumOf(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	return string(h.Sum(nil)), nil
}

// newImage makes an image of files with random contents that compress by half, and returns what a reader must find.
func newImage(t testing.TB, files, size int, args ...string) (image, digest string) {
	t.Helper()
	if _, err := exec.LookPath("mksquashfs"); err != nil {
		t.Skip("needs mksquashfs in PATH")
	}
	dir := t.TempDir()
	rnd := rand.New(rand.NewPCG(uint64(files), uint64(size)))
	for i := range files {
		b := make([]byte, rnd.IntN(2*size)+1)
		for k := range b {
			b[k] = byte(rnd.Uint32() & 15)
		}
		name := filepath.Join(dir, fmt.Sprintf("dir%d", i%7), fmt.Sprintf("file%d", i))
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	digest, err := digestOf(dir)
	if err != nil {
		t.Fatal(err)
	}
	return imageOf(t, dir, args...), digest
}

// imageOf makes an image of a directory.
func imageOf(t testing.TB, dir string, args ...string) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), "image.sqsh")
	args = append([]string{dir, image, "-quiet", "-no-progress", "-comp", "zstd", "-processors", "2"}, args...)
	if out, err := exec.Command("mksquashfs", args...).CombinedOutput(); err != nil {
		t.Fatalf("mksquashfs: %v\n%s", err, out)
	}
	return image
}

// eventually waits for something that takes a moment.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	testenv.Await(t, limit, what, ok)
}
