package noded

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/fusefs/noded/mounter"
	"github.com/squirefs/squire/fusefs/noded/server"
	"github.com/squirefs/squire/internal/testenv"
	"github.com/squirefs/squire/internal/wire"
)

// The tests in this file run a keeper as a process of its own, with a real mounter and a real server.

// keeperName is argv[0] of that process. What it is told comes in its environment.
const keeperName = "squire-test-keeper"

const (
	envSocket  = "SQUIRE_TEST_SOCKET"
	envMetrics = "SQUIRE_TEST_METRICS"
	envPassed  = "SQUIRE_TEST_PASSED" // names of descriptors from 3 on, as systemd passes them
)

func TestMain(m *testing.M) {
	switch name := os.Args[0]; {
	case name == server.Name:
		os.Exit(server.Main())
	case strings.HasPrefix(name, mounter.Name):
		os.Exit(mounter.Main())
	case name == userName:
		os.Exit(userStage(os.Args[1], os.Args[2], os.Args[3]))
	case name == squatterName:
		os.Exit(squatterStage(os.Args[1]))
	case name == HeirName:
		os.Exit(HeirMain())
	case name == MetricsName:
		os.Exit(metricsStage())
	case name == keeperName:
		os.Exit(keeperStage())
	}
	// Containers of other tests bind the host's /tmp, with the mounts in it.
	if fi, err := os.Stat("/var/tmp"); os.Getenv("TMPDIR") == "" && err == nil && fi.IsDir() {
		os.Setenv("TMPDIR", "/var/tmp")
	}
	os.Exit(m.Run())
}

// keeperStage runs a keeper until its standard input ends.
func keeperStage() int {
	if names := os.Getenv(envPassed); names != "" {
		os.Setenv(envPID, strconv.Itoa(os.Getpid()))
		os.Setenv(envFDs, strconv.Itoa(strings.Count(names, ":")+1))
		os.Setenv(envNames, names)
		os.Unsetenv(envPassed)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	err := Run(ctx, Config{
		Socket: os.Getenv(envSocket), Idle: 500 * time.Millisecond, Cache: 32 << 20, Metadata: 16 << 20, Version: "test",
		Metrics: os.Getenv(envMetrics),
		Log:     slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

const limit = 60 * time.Second // of what takes much less

func needRoot(t *testing.T) {
	t.Helper()
	testenv.NeedRoot(t, "to mount")
	testenv.NeedFUSE(t)
	testenv.NeedTools(t, "mksquashfs")
}

// service is a keeper process, and who would be systemd.
type service struct {
	t      *testing.T
	socket string
	env    []string
	store  *manager // nil: none
	listen *os.File // with store

	mu  sync.Mutex
	cmd *exec.Cmd
	in  io.WriteCloser
	out *testenv.Buffer
}

func startService(t *testing.T, stored bool, env ...string) *service {
	t.Helper()
	needRoot(t)
	s := &service{t: t, socket: socketIn(t), env: env, out: new(testenv.Buffer)}
	if stored {
		s.store = newManager(t)
		l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: s.socket, Net: "unixpacket"})
		if err != nil {
			t.Fatal(err)
		}
		if s.listen, err = l.File(); err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		l.Close()
		t.Cleanup(func() { s.listen.Close() })
	}
	s.start()
	t.Cleanup(func() {
		s.in.Close()
		done := make(chan error, 1)
		go func() { done <- s.cmd.Wait() }()
		select {
		case <-done:
		case <-time.After(limit):
			_ = s.cmd.Process.Kill()
			t.Error("the service does not end")
		}
		if t.Failed() || testing.Verbose() {
			t.Logf("%s", s.out)
		}
	})
	return s
}

// start starts the process, with all that is stored.
func (s *service) start() {
	s.t.Helper()
	cmd := &exec.Cmd{Path: "/proc/self/exe", Args: []string{keeperName}, Stderr: s.out}
	cmd.Env = append(append(os.Environ(), envSocket+"="+s.socket), s.env...)
	if s.store != nil {
		names := []string{"socket"}
		cmd.ExtraFiles = []*os.File{s.listen}
		s.store.mu.Lock()
		defer s.store.mu.Unlock()
		for _, name := range slices.Sorted(maps.Keys(s.store.files)) {
			names = append(names, name)
			cmd.ExtraFiles = append(cmd.ExtraFiles, s.store.files[name])
		}
		cmd.Env = append(cmd.Env, envPassed+"="+strings.Join(names, ":"), envNotify+"="+s.store.socket)
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err = cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cmd, s.in = cmd, in
}

// child returns the process id of one of the keeper's, 0 if there is none now.
func (s *service) child(name string) int {
	s.mu.Lock()
	pid := s.cmd.Process.Pid
	s.mu.Unlock()
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, task := range tasks {
		list, _ := os.ReadFile(task)
		for _, child := range strings.Fields(string(list)) {
			args, _ := os.ReadFile("/proc/" + child + "/cmdline")
			if first, _, _ := strings.Cut(string(args), "\x00"); first == name {
				n, _ := strconv.Atoi(child)
				return n
			}
		}
	}
	return 0
}

// tree is an image of random files, with their checksums by path.
func tree(t *testing.T, files, size int) (image *os.File, sums map[string][sha256.Size]byte) {
	t.Helper()
	dir, out := t.TempDir(), filepath.Join(t.TempDir(), "image.sqsh")
	sums = map[string][sha256.Size]byte{}
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range files {
		b := make([]byte, rnd.IntN(size)+1)
		for j := range b {
			b[j] = byte(rnd.IntN(8)) // compresses
		}
		name := fmt.Sprintf("d%d/f%d", i%7, i)
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, b, 0o644)); err != nil {
			t.Fatal(err)
		}
		sums[name] = sha256.Sum256(b)
	}
	if b, err := exec.Command("mksquashfs", dir, out, "-quiet", "-no-progress", "-comp", "zstd", "-all-root").CombinedOutput(); err != nil {
		t.Fatalf("mksquashfs: %v: %s", err, b)
	}
	image, err := os.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { image.Close() })
	return image, sums
}

// put puts a mount on a directory of the test's.
func put(t *testing.T, mount *os.File) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.MoveMount(int(mount.Fd()), "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		t.Fatal("attach the mount:", err)
	}
	mount.Close()
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// compare reads all files below dir once.
func compare(dir string, sums map[string][sha256.Size]byte) error {
	seen := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		if sums[name] != sha256.Sum256(b) {
			return fmt.Errorf("%s has other content", name)
		}
		seen++
		return nil
	})
	if err == nil && seen != len(sums) {
		err = fmt.Errorf("%d files of %d", seen, len(sums))
	}
	return err
}

// forget drops what the kernel has cached of the file system at dir.
func forget(dir string) {
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil
		}
		if f, err := os.Open(path); err == nil {
			_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
			f.Close()
		}
		return nil
	})
}

// readers read all of dir again and again until stop, and return what went wrong.
func readers(n int, dir string, sums map[string][sha256.Size]byte) (stop func() (rounds int, err error)) {
	var all sync.WaitGroup
	var mu sync.Mutex
	var failure error
	rounds := 0
	end := make(chan struct{})
	for range n {
		all.Go(func() {
			for !gone(end) {
				err := compare(dir, sums)
				forget(dir)
				mu.Lock()
				rounds++
				failure = errors.Join(failure, err)
				mu.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	return func() (int, error) {
		close(end)
		all.Wait()
		return rounds, failure
	}
}

// What root mounts is there, is shared, and goes when nobody uses it any more.
func TestRealMount(t *testing.T) {
	s := startService(t, false)
	image, sums := tree(t, 50, 100<<10)
	c := dialed(t, s.socket)
	for i := range 2 {
		m, err := c.Mount(Request{Image: image.Name(), Attrs: safeAttrs}, image)
		if err != nil {
			t.Fatal(err)
		}
		if m.Shared != (i == 1) || m.Size == 0 {
			t.Errorf("%+v", m)
		}
		dir := put(t, m.Mount)
		if err = compare(dir, sums); err != nil {
			t.Error(err)
		}
	}
	if _, err := c.Mount(Request{}, textFile(t)); code(err) != BadImage {
		t.Error("a text:", err)
	}
	r, err := c.Report()
	if err != nil || len(r.Images) != 1 || r.Images[0].Device == "" || r.Totals.Stats.Read == 0 || r.Totals.Read == 0 {
		t.Errorf("%+v, %v", r, err)
	}
}

func textFile(t *testing.T) *os.File {
	path := filepath.Join(t.TempDir(), "text")
	os.WriteFile(path, bytes.Repeat([]byte("text"), 10000), 0o644)
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// The image is let go of, and its superblock ends, when its mount and its clients are gone.
func TestRealIdle(t *testing.T) {
	s := startService(t, false)
	image, sums := tree(t, 5, 10<<10)
	c, watcher := dialed(t, s.socket), dialed(t, s.socket)
	m, err := c.Mount(Request{Attrs: safeAttrs}, image)
	if err != nil {
		t.Fatal(err)
	}
	dir := put(t, m.Mount)
	c.Close()
	time.Sleep(2 * time.Second) // mounted: more than it is kept for when it is not
	r, err := watcher.Report()
	if err != nil || len(r.Images) != 1 || r.Images[0].State != "served" {
		t.Errorf("%+v, %v", r, err)
	}
	if err = compare(dir, sums); err != nil {
		t.Error(err)
	}
	if err = unix.Unmount(dir, 0); err != nil {
		t.Error(err)
	}
	eventually(t, "the image is gone", func() bool {
		r, err := watcher.Report()
		return err == nil && len(r.Images) == 0
	})
}

// The server is killed while others read, who see nothing of it.
func TestRealServerKilled(t *testing.T) {
	s := startService(t, false)
	image, sums := tree(t, 60, 300<<10)
	c := dialed(t, s.socket)
	m, err := c.Mount(Request{Attrs: safeAttrs}, image)
	if err != nil {
		t.Fatal(err)
	}
	stop := readers(4, put(t, m.Mount), sums)
	const kills = 15
	for range kills {
		time.Sleep(200 * time.Millisecond)
		old := s.child(server.Name)
		if err := unix.Kill(old, unix.SIGKILL); err != nil || old == 0 {
			t.Errorf("kill server %d: %v", old, err)
		}
		eventually(t, "another server serves", func() bool {
			n := s.child(server.Name)
			r, err := c.Report()
			return n != 0 && n != old && err == nil && len(r.Images) == 1 && r.Images[0].State == "served"
		})
	}
	rounds, err := stop()
	if err != nil {
		t.Error(err)
	}
	r, err := c.Report()
	if err != nil || r.Restarts.Server < kills {
		t.Errorf("%+v, %v", r, err)
	}
	t.Logf("%d rounds, %d restarts", rounds, r.Restarts.Server)
}

// The keeper and all others are killed, and the next one goes on with what was stored. The program is replaced in the
// same way.
func TestRealKeeperKilled(t *testing.T) {
	for _, how := range []string{"killed", "upgraded"} {
		t.Run(how, func(t *testing.T) {
			s := startService(t, how == "killed")
			image, sums := tree(t, 60, 300<<10)
			c := dialed(t, s.socket)
			c.Keep(slog.New(slog.DiscardHandler))
			m, err := c.Mount(Request{Attrs: safeAttrs}, image)
			if err != nil {
				t.Fatal(err)
			}
			stop := readers(4, put(t, m.Mount), sums)
			for range 5 {
				time.Sleep(500 * time.Millisecond)
				if how == "upgraded" {
					_ = s.cmd.Process.Signal(syscall.SIGHUP)
					continue
				}
				_ = s.cmd.Process.Kill()
				_ = s.cmd.Wait()
				s.start()
			}
			rounds, err := stop()
			if err != nil {
				t.Error(err)
			}
			again, err := c.Mount(Request{Attrs: safeAttrs, NoGrant: true}, image)
			if err != nil || !again.Shared || again.ID != m.ID {
				t.Errorf("%+v, %v", again, err)
			}
			r, err := c.Report()
			if err != nil || len(r.Images) != 1 || r.Images[0].References != 1 {
				t.Errorf("%+v, %v", r, err)
			}
			t.Logf("%d rounds", rounds)
		})
	}
}

// Who asks for an upgrade again and again gets some, and the service does not end: SIGHUP also comes when the new program
// does not heed it yet.
func TestRealUpgradeAgain(t *testing.T) {
	s := startService(t, false)
	image, sums := tree(t, 5, 10<<10)
	c := dialed(t, s.socket)
	c.Keep(slog.New(slog.DiscardHandler))
	m, err := c.Mount(Request{Attrs: safeAttrs}, image)
	if err != nil {
		t.Fatal(err)
	}
	dir := put(t, m.Mount)
	upgrades := func() int { return strings.Count(s.out.String(), `msg="service starts"`) - 1 }
	eventually(t, "there are three upgrades", func() bool {
		for range 100 {
			if err := s.cmd.Process.Signal(syscall.SIGHUP); err != nil {
				t.Fatal(err)
			}
			time.Sleep(50 * time.Microsecond)
		}
		return upgrades() >= 3
	})
	if err := compare(dir, sums); err != nil {
		t.Error(err)
	}
	if r, err := c.Report(); err != nil || len(r.Images) != 1 {
		t.Errorf("%+v, %v", r, err)
	}
}

// No child of the keeper has one of its devices, mounts or images.
func TestRealDescriptors(t *testing.T) {
	s := startService(t, false)
	image, _ := tree(t, 5, 10<<10)
	c := dialed(t, s.socket)
	if _, err := c.Mount(Request{NoGrant: true}, image); err != nil {
		t.Fatal(err)
	}
	old := s.child(mounter.Name)
	_ = unix.Kill(old, unix.SIGKILL)
	var pid int
	eventually(t, "another mounter is there", func() bool { pid = s.child(mounter.Name); return pid != 0 && pid != old })
	time.Sleep(100 * time.Millisecond)
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range list {
		target, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, fd.Name()))
		if target == "/dev/fuse" || target == image.Name() {
			t.Errorf("the mounter has %s", target)
		}
	}
}

// userName is argv[0] of a process of an ordinary user, who asks for an image and says what came of it.
const userName = "squire-test-user"

// userStage is told a socket, what to ask for, and the path of an image.
func userStage(socket, what, image string) int {
	f, err := os.Open(image)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	c, err := Dial(socket)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	m, err := c.Mount(map[string]Request{
		"all": {}, "squash": {View: View{Squash: true}}, "private": {View: View{Private: true}},
	}[what], f)
	if err != nil {
		fmt.Println(code(err), err)
		return 0
	}
	var st unix.Statfs_t
	if err = unix.Fstatfs(int(m.Mount.Fd()), &st); err != nil {
		fmt.Println(err)
		return 1
	}
	// EPERM: it has no namespace in which it might.
	clear := unix.MountAttr{Attr_clr: safeAttrs}
	err = unix.MountSetattr(int(m.Mount.Fd()), "", unix.AT_EMPTY_PATH, &clear)
	fmt.Println(OK, m.ID, m.Shared, st.Flags&(unix.ST_NOSUID|unix.ST_NODEV|unix.ST_RDONLY), errors.Is(err, unix.EPERM))
	return 0
}

// asUser runs userStage as another user.
func (s *service) asUser(uid int, what, image string) string {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", s.socket, what, image)
	cmd.Args[0] = userName
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Sprint(err, ": ", string(out))
	}
	return strings.TrimSpace(string(out))
}

// open lets other users walk to a path of a test's.
func open(t *testing.T, path string) {
	for dir := filepath.Dir(path); dir != "/" && dir != os.TempDir(); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// Users share an image, cannot clear what keeps them from harm, and get neither what is for root alone, nor what lies on
// a FUSE file system of theirs.
func TestRealUsers(t *testing.T) {
	testenv.NeedStatic(t) // the mounter starts lockers, where there are no files
	s := startService(t, false)
	image, _ := tree(t, 5, 10<<10)
	open(t, image.Name())
	safe := fmt.Sprint(unix.ST_NOSUID | unix.ST_NODEV | unix.ST_RDONLY)
	for _, c := range []struct {
		user int
		what string
		want string
	}{
		{54321, "squash", "0 1 false " + safe + " true"},
		{54322, "squash", "0 1 true " + safe + " true"},
		{54321, "private", "0 2 false " + safe + " true"},
		{54322, "private", "0 3 false " + safe + " true"},
		{54321, "all", fmt.Sprint(Denied, " only root may mount for everybody")},
	} {
		if got := s.asUser(c.user, c.what, image.Name()); got != c.want {
			t.Errorf("user %d, %s: %s, want %s", c.user, c.what, got, c.want)
		}
	}
	hidden, _ := tree(t, 1, 10)
	open(t, hidden.Name())
	if err := os.Chmod(hidden.Name(), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := s.asUser(54321, "squash", hidden.Name()); !strings.Contains(got, "permission denied") {
		t.Error("an image that the user cannot open:", got)
	}
}

// An image that lies in a FUSE file system of root's, as it happens ours.
func TestRealImageInFUSE(t *testing.T) {
	testenv.NeedStatic(t) // the mounter starts lockers, where there are no files
	s := startService(t, false)
	inner, _ := tree(t, 3, 1000)
	outer := filepath.Join(t.TempDir(), "outer.sqsh")
	if b, err := exec.Command("mksquashfs", inner.Name(), outer, "-quiet", "-no-progress", "-root-mode", "755").CombinedOutput(); err != nil {
		t.Fatalf("mksquashfs: %v: %s", err, b)
	}
	f, err := os.Open(outer)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c := dialed(t, s.socket)
	m, err := c.Mount(Request{Attrs: safeAttrs}, f) // by root, for everybody
	if err != nil {
		t.Fatal(err)
	}
	dir := put(t, m.Mount)
	open(t, dir)
	path := filepath.Join(dir, filepath.Base(inner.Name()))
	// Root's FUSE file systems are as good as others, but for that one user does not share with another.
	if got := s.asUser(54321, "squash", path); !strings.HasPrefix(got, "0 2 false") {
		t.Error(got)
	}
	if got := s.asUser(54321, "squash", path); !strings.HasPrefix(got, "0 2 true") {
		t.Error(got)
	}
	if got := s.asUser(54322, "squash", path); !strings.HasPrefix(got, "0 3 false") {
		t.Error(got)
	}
}

// metricsStage answers each connection with the number of images in a report.
func metricsStage() int {
	conn, err := wire.FileConn(os.NewFile(3, "keeper"))
	if err != nil {
		return 1
	}
	l, err := net.FileListener(os.NewFile(4, "listener"))
	if err != nil {
		return 1
	}
	go func() {
		for {
			asker, err := l.Accept()
			if err != nil {
				os.Exit(1)
			}
			var reply Reply
			if err = conn.Send(&Request{Do: VerbReport}); err != nil {
				os.Exit(1)
			}
			files, err := conn.Recv(&reply)
			if err != nil {
				os.Exit(1)
			}
			var r Report
			_ = json.NewDecoder(files[0]).Decode(&r)
			closeAll(files)
			oom, _ := os.ReadFile("/proc/self/oom_score_adj")
			fmt.Fprintf(asker, "%d %t %s", len(r.Images), r.Totals != nil, oom)
			asker.Close()
		}
	}()
	select {}
}

// Metrics are another process's, which is started again when it ends, and goes on answering after an upgrade.
func TestRealMetrics(t *testing.T) {
	needRoot(t)
	where := filepath.Join(t.TempDir(), "metrics")
	s := startService(t, false, envMetrics+"="+where)
	image, _ := tree(t, 3, 1000)
	c := dialed(t, s.socket)
	c.Keep(slog.New(slog.DiscardHandler))
	if _, err := c.Mount(Request{NoGrant: true}, image); err != nil {
		t.Fatal(err)
	}
	ask := func() string {
		conn, err := net.Dial("unix", where)
		if err != nil {
			return err.Error()
		}
		defer conn.Close()
		b, _ := io.ReadAll(conn)
		return string(b)
	}
	const want = "1 true 0\n"
	for i, do := range []func(){
		func() {},
		func() { _ = unix.Kill(s.child(MetricsName), unix.SIGKILL) },
		func() { _ = s.cmd.Process.Signal(syscall.SIGHUP) },
	} {
		old := s.child(MetricsName)
		do()
		if i > 0 {
			eventually(t, "another process is there", func() bool { n := s.child(MetricsName); return n != 0 && n != old })
		}
		var got string
		eventually(t, "there is an answer", func() bool { got = ask(); return got != "" })
		if got != want {
			t.Errorf("%q", got)
		}
	}
	r, err := c.Report()
	if err != nil || r.Clients != 2 {
		t.Errorf("%+v, %v", r, err)
	}
}

// squatterName is argv[0] of a process that listens where a service should.
const squatterName = "squire-test-squatter"

func squatterStage(socket string) int {
	l, err := net.Listen("unixpacket", socket)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("listens")
	_, _ = l.Accept()
	_, _ = io.Copy(io.Discard, os.Stdin)
	return 0
}

// An abstract name that somebody else has taken is not a service.
func TestRealSquatter(t *testing.T) {
	needRoot(t)
	socket := abstract(t)
	cmd := exec.Command("/proc/self/exe", socket)
	cmd.Args[0] = squatterName
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 54321, Gid: 54321}, Pdeathsig: syscall.SIGKILL}
	in, _ := cmd.StdinPipe()
	out, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer in.Close()
	line := make([]byte, 100)
	n, _ := out.Read(line)
	if string(line[:n]) != "listens\n" {
		t.Fatalf("%q", line[:n])
	}
	if _, err := Dial(socket); err == nil || !strings.Contains(err.Error(), "user 54321") {
		t.Error(err)
	}
}

// hanging is a FUSE file system of one file that can be read. To close it waits until free is closed.
type hanging struct {
	fuse.RawFileSystem
	content []byte
	free    chan struct{}
}

func (h *hanging) attr(out *fuse.Attr, id uint64) {
	out.Ino, out.Mode, out.Nlink = id, unix.S_IFDIR|0o755, 1
	if id == 2 {
		out.Mode, out.Size = unix.S_IFREG|0o644, uint64(len(h.content))
	}
}

func (h *hanging) Lookup(_ <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if name != "image" {
		return fuse.ENOENT
	}
	out.NodeId = 2
	h.attr(&out.Attr, 2)
	return fuse.OK
}

func (h *hanging) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	h.attr(&out.Attr, in.NodeId)
	return fuse.OK
}

func (h *hanging) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	return fuse.OK
}

func (h *hanging) Read(_ <-chan struct{}, in *fuse.ReadIn, b []byte) (fuse.ReadResult, fuse.Status) {
	from := min(in.Offset, uint64(len(h.content)))
	return fuse.ReadResultData(h.content[from:min(from+uint64(len(b)), uint64(len(h.content)))]), fuse.OK
}

func (h *hanging) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status {
	<-h.free
	return fuse.OK
}

// mountHanging mounts it as a user's, and ends it with the test.
func mountHanging(t *testing.T, user int) string {
	dir := t.TempDir()
	dev, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=%d,group_id=%d,allow_other", dev, user, user)
	if err = unix.Mount("hanging", dir, "fuse", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		t.Fatal(err)
	}
	h := &hanging{fuse.NewDefaultRawFileSystem(), []byte("image"), make(chan struct{})}
	srv, err := fuse.NewServer(h, fmt.Sprintf("/dev/fd/%d", dev), &fuse.MountOptions{})
	if err != nil {
		t.Fatal(err)
	}
	go srv.Serve()
	t.Cleanup(func() {
		close(h.free)
		_ = unix.Unmount(dir, unix.MNT_DETACH)
	})
	return dir
}

// A user's file that cannot be closed holds up nobody: not others, not the start of another server, and no upgrade for
// longer than it may take.
func TestRealHangingFile(t *testing.T) {
	testenv.NeedStatic(t) // the mounter starts lockers, where there are no files
	s := startService(t, false)
	image, _ := tree(t, 3, 1000)
	open(t, image.Name())
	cmd := exec.Command("/proc/self/exe", s.socket, "squash", "")
	t.Cleanup(func() { _ = cmd.Wait() })
	dir := mountHanging(t, 54321)
	open(t, dir)
	// The user's process itself hangs in its exit; what it has to say it has said by then.
	cmd.Args = []string{userName, s.socket, "squash", filepath.Join(dir, "image")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 54321, Gid: 54321}}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err = cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 300)
	n, _ := out.Read(line)
	if got := string(line[:n]); !strings.HasPrefix(got, fmt.Sprint(Limit, " ")) {
		t.Errorf("%q", got)
	}
	c := dialed(t, s.socket)
	if _, err := c.Mount(Request{NoGrant: true}, image); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{server.Name, mounter.Name} {
		old := s.child(name)
		_ = unix.Kill(old, unix.SIGKILL)
		eventually(t, "another one is there", func() bool { n := s.child(name); return n != 0 && n != old })
	}
	if got := s.asUser(54322, "squash", image.Name()); !strings.HasPrefix(got, "0 ") {
		t.Error(got)
	}
}
