package fusefs

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/cache"
	"github.com/squirefs/squire/internal/testenv"
	"github.com/squirefs/squire/sqfs"
)

// The process that serves a mount must not touch it, so the tests run their own binary once more as the server. What
// it shall do stands in roleEnv as JSON.
const roleEnv = "FUSEFS_TEST_ROLE"

// role is what a second process does in place of running tests.
type role struct {
	Image    string
	Offset   int64 // of the image in the file
	Owner    *Owner
	Restrict bool
	Cache    int64
	GoFuse   bool          // serve with go-fuse's own server, for comparison
	Delay    time.Duration // of each read of the image, as from slow storage
	Hang     string        // a path: while it is there, storage does not answer
	Within   time.Duration // that requests are to be answered; 0: the usual
	Again    time.Duration // bounds.again, and the following; 0: the usual
	MaxLate  int32
	Lull     time.Duration // lull.after; 0: the usual
	// Dir, if not empty, is mounted by the serving process, with fusermount3. Otherwise the device is descriptor 3.
	Dir string
	// Script, if not empty, makes this process one in a user namespace that mounts, starts a server and runs it.
	Script []string
	// Hostile makes this process one that serves the images of package hostile, see hostile_test.go.
	Hostile bool
	// Keeper makes this process the keeper of takeover_test.go, Kept a server of one, Thief one that dies.
	Keeper, Kept, Thief, NoResend, IDMap bool
}

func TestMain(m *testing.M) {
	spec := os.Getenv(roleEnv)
	if spec == "" {
		keepOutOfContainers()
		os.Exit(m.Run())
	}
	var r role
	if err := json.Unmarshal([]byte(spec), &r); err != nil {
		fatal(err)
	}
	switch {
	case r.Hostile:
		if err := serveHostile(); err != nil {
			fatal(err)
		}
	case r.Keeper:
		if err := r.keep(); err != nil {
			fatal(err)
		}
	case r.Kept:
		if err := r.serveKept(); err != nil {
			fatal(err)
		}
	case r.Thief:
		if _, err := os.NewFile(keptDevice, device).Read(make([]byte, requestSize)); err != nil {
			fatal(err)
		}
	case r.Script != nil:
		r.runScript()
	default:
		r.serve()
	}
	os.Exit(0)
}

// keepOutOfContainers puts temporary directories where containers of other tests, which run at
// the same time, do not bind them: they bind the host's /tmp with all mounts in it, and where
// mounts are not shared those live in the container as long as it does, whoever unmounts them.
func keepOutOfContainers() {
	const dir = "/var/tmp"
	if fi, err := os.Stat(dir); os.Getenv("TMPDIR") == "" && err == nil && fi.IsDir() && fi.Mode()&os.ModeSticky != 0 {
		os.Setenv("TMPDIR", dir)
	}
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "test server:", err)
	os.Exit(1)
}

// serve is the serving process. It writes "ready" to standard output, and its figures for each line that it reads.
func (r *role) serve() {
	f, err := r.fs()
	if err != nil {
		fatal(err)
	}
	dev := os.NewFile(3, "/dev/fuse")
	if r.Dir != "" {
		if dev, err = MountFusermount(r.Dir, MountOptions{Source: "test,image"}); err != nil {
			fatal(err)
		}
	}
	go answerFigures(f)
	if r.GoFuse {
		err = serveGoFuse(f)
		runtime.KeepAlive(dev) // else its finalizer would close descriptor 3
	} else {
		var store *os.File
		if store, err = Clone(dev); err != nil {
			fatal(err)
		}
		err = f.Serve(Serving{Device: dev, Store: store, Ready: func([]byte) { fmt.Println("ready") }})
	}
	if err != nil {
		fatal(err)
	}
}

// fs returns the file system to serve.
func (r *role) fs() (*FS, error) {
	img, source, err := r.open()
	if err != nil {
		return nil, err
	}
	o := Options{
		Owner: r.Owner, Restrict: r.Restrict, IDMap: r.IDMap, Source: source,
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	}
	if r.Cache != 0 {
		o.Cache = cache.New(r.Cache)
	}
	f := New(img, o)
	if r.Within != 0 {
		f.bounds.time = r.Within
	}
	if r.Again != 0 {
		f.bounds.again = r.Again
	}
	if r.MaxLate != 0 {
		f.bounds.late = r.MaxLate
	}
	if r.Lull != 0 {
		f.lull.after = r.Lull
	}
	return f, nil
}

// open opens the image, and returns what it is read through.
func (r *role) open() (*sqfs.Image, *Source, error) {
	file, err := os.Open(r.Image)
	if err != nil {
		return nil, nil, err
	}
	st, err := file.Stat()
	if err != nil {
		return nil, nil, err
	}
	source := NewSource(slowReader{file, r.Delay, r.Hang})
	img, err := sqfs.New(source, st.Size()-r.Offset, &sqfs.Options{Offset: r.Offset})
	return img, source, err
}

type slowReader struct {
	file  *os.File
	delay time.Duration
	hang  string // a path, see role
}

func (s slowReader) ReadAt(p []byte, off int64) (int, error) {
	time.Sleep(s.delay)
	for s.hang != "" {
		if _, err := os.Stat(s.hang); err != nil {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	return s.file.ReadAt(p, off)
}

func serveGoFuse(f *FS) error {
	o := f.protocolOptions()
	s, err := fuse.NewServer(f, "/dev/fd/3", o)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	s.Serve()
	return nil
}

// figures are what the tests ask a server for.
type figures struct {
	Stats      Stats
	Mallocs    uint64
	Goroutines int
	UserTime   time.Duration
	SysTime    time.Duration
}

func answerFigures(f *FS) {
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		var u syscall.Rusage
		_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
		_ = json.NewEncoder(os.Stdout).Encode(figures{
			f.Stats(), m.Mallocs, runtime.NumGoroutine(), time.Duration(u.Utime.Nano()), time.Duration(u.Stime.Nano()),
		})
	}
}

// A server is a serving process and its mount.
type server struct {
	t    testing.TB
	dir  string
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Reader
	log  testenv.Buffer
	once sync.Once
}

// limit is how long a mount of a test may live. Then its server is killed, which frees whoever hangs on it.
const limit = 3 * time.Minute

// moment is how long something may take that takes a moment on a machine with nothing else to do.
const moment = time.Minute

// needRoot skips tests that mount.
func needRoot(t testing.TB) {
	t.Helper()
	testenv.NeedRoot(t, "to mount")
	testenv.NeedFUSE(t)
}

func needTool(t testing.TB, names ...string) {
	t.Helper()
	testenv.NeedTools(t, names...)
}

// mountImage mounts r.Image on a new directory, until the end of the test.
func mountImage(t testing.TB, r role, o MountOptions) *server {
	t.Helper()
	needRoot(t)
	s := &server{t: t, dir: t.TempDir()}
	dev, err := Mount(s.dir, o)
	if err != nil {
		t.Fatal(err)
	}
	s.start(r, self(t), dev)
	dev.Close() // else the mount would outlive its server
	s.awaitReady()
	return s
}

func self(t testing.TB) string {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// start starts the serving process.
func (s *server) start(r role, binary string, extra ...*os.File) {
	s.t.Helper()
	s.cmd = exec.Command(binary)
	// The race detector otherwise sleeps for a second at the end of each process.
	s.cmd.Env = append(os.Environ(), roleEnv+"="+mustJSON(r), "GORACE=atexit_sleep_ms=0")
	s.cmd.ExtraFiles = extra
	s.cmd.Stderr = &s.log
	s.launch()
}

func mustJSON(r role) string {
	spec, err := json.Marshal(r)
	if err != nil {
		panic(err)
	}
	return string(spec)
}

func (s *server) launch() {
	s.t.Helper()
	var err error
	if s.in, err = s.cmd.StdinPipe(); err != nil {
		s.t.Fatal(err)
	}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	s.out = bufio.NewReader(out)
	if err := s.cmd.Start(); err != nil {
		_ = Unmount(s.dir, true)
		s.t.Fatal(err)
	}
	watchdog := time.AfterFunc(limit, func() { _ = s.cmd.Process.Kill() })
	s.t.Cleanup(func() {
		s.stop()
		watchdog.Stop()
	})
}

func (s *server) awaitReady() {
	s.t.Helper()
	if line, err := s.out.ReadString('\n'); line != "ready\n" {
		s.t.Fatalf("server said %q (%v): %s", line, err, s.log.String())
	}
}

// stop unmounts and waits for the server, which must end by itself.
func (s *server) stop() {
	s.once.Do(func() {
		s.t.Helper()
		var st unix.Statx_t // of the mount, which is not asked
		_ = unix.Statx(unix.AT_FDCWD, s.dir, unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, 0, &st)
		if err := Unmount(s.dir, true); err != nil {
			s.t.Error(err)
		}
		killed := time.AfterFunc(moment, func() {
			s.t.Errorf("server did not end after the unmount; the mount is also that of %q", holders(st.Dev_major, st.Dev_minor))
			_ = s.cmd.Process.Kill()
		})
		defer killed.Stop()
		if err := s.cmd.Wait(); err != nil {
			s.t.Errorf("server: %v: %s", err, s.log.String())
		}
	})
}

// holders are processes in whose mount namespaces a file system is mounted.
func holders(major, minor uint32) (who []string) {
	tables, _ := filepath.Glob("/proc/[0-9]*/mountinfo")
	for _, table := range tables {
		mounts, _ := os.ReadFile(table)
		if strings.Contains(string(mounts), fmt.Sprintf(" %d:%d ", major, minor)) {
			args, _ := os.ReadFile(filepath.Dir(table) + "/cmdline")
			who = append(who, strings.ReplaceAll(string(args), "\x00", " "))
		}
	}
	return who
}

// figures asks the server.
func (s *server) figures() figures {
	s.t.Helper()
	var f figures
	if _, err := fmt.Fprintln(s.in, "figures"); err != nil {
		s.t.Fatal(err)
	}
	line, err := s.out.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &f)
	}
	if err != nil {
		s.t.Fatal(err, s.log.String())
	}
	return f
}

// path returns a path on the mount.
func (s *server) path(name string) string { return filepath.Join(s.dir, name) }

// mksquashfs makes an image of dir.
func mksquashfs(t testing.TB, dir string, args ...string) string {
	t.Helper()
	needTool(t, "mksquashfs")
	image := filepath.Join(t.TempDir(), "image.sqsh")
	args = append([]string{dir, image, "-quiet", "-no-progress", "-processors", "2"}, args...)
	if out, err := exec.Command("mksquashfs", args...).CombinedOutput(); err != nil {
		t.Fatalf("mksquashfs %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return image
}

// mountKernel mounts image with the kernel's squashfs, until the end of the test.
func mountKernel(t testing.TB, image string) string {
	t.Helper()
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "squashfs", "-o", "loop,ro", image, dir).CombinedOutput(); err != nil {
		t.Skipf("needs a kernel with squashfs and loop devices: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	return dir
}
