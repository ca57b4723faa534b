package servicetest

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/fusefs/noded"
	"github.com/squirefs/squire/internal/testenv"
)

// own returns a copy of the image that belongs to u.
func (l *lab) own(t *testing.T, u user) *image {
	t.Helper()
	path := filepath.Join(l.mkdir(t, u), "image.sqsh")
	if err := copyFile(l.image.path, path); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(path, int(u.uid), int(u.gid)); err != nil {
		t.Fatal(err)
	}
	return &image{path, l.image.size, l.image.data}
}

// inside prepares the probe in the container of h, on names and pages that are dropped before.
func (d *daemon) inside(t *testing.T, u user, h *holding, args ...string) *exec.Cmd {
	t.Helper()
	return d.client(t, u, append([]string{"exec", itoa(h.cmd.Process.Pid), "--", "/bin/probe"}, args...)...)
}

// beside prepares the probe in the container of holdSick's h. It is the host's: whatever the image is like, it runs, and
// what it says of the image is to be relied on.
func (d *daemon) beside(t *testing.T, u user, h *holding, args ...string) *exec.Cmd {
	t.Helper()
	return d.client(t, u, append([]string{"exec", itoa(h.cmd.Process.Pid), "--", "/run/probe"}, args...)...)
}

// wantSick wants a reader in the container to be told of errors, by EIO, and of nothing else.
func (d *daemon) wantSick(t *testing.T, what string, u user, h *holding) {
	t.Helper()
	r := finish(t, d.beside(t, u, h, "sick", "/", "4"))
	var device string
	var compared, failed int
	_, err := fmt.Sscanf(r.stdout, "device=%s compared=%d failed=%d\n", &device, &compared, &failed)
	if err != nil || failed == 0 || r.status != 0 || r.stderr != "" {
		t.Errorf("%s: a reader gets no EIO: %+v, %v", what, r, err)
	}
}

// An image's file is unlinked, or replaced by another under its name: who uses it goes on with what it was, who comes
// later gets what is there now.
func TestImageReplaced(t *testing.T) {
	l := newLab(t)
	d := l.start(t)
	other, err := l.makeImage("replacement", 5)
	if err != nil {
		t.Fatal(err)
	}
	img := l.own(t, users[0])
	h := d.hold(t, users[0], img)
	if err := copyFile(other.path, img.path+".new"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(img.path+".new", img.path); err != nil {
		t.Fatal(err)
	}
	forgetNames()
	d.kill(serverName)
	h2 := d.hold(t, users[1], img)
	if n := len(d.report(t).Images); n != 2 {
		t.Errorf("%d images, want 2", n)
	}
	if err := os.Remove(img.path); err != nil {
		t.Fatal(err)
	}
	for i, h := range []*holding{h, h2} {
		if r := finish(t, d.inside(t, users[i], h, "cold", "/", "0")); r.status != 0 {
			t.Errorf("container %d: %+v", i, r)
		}
		if err := h.end(); err != nil {
			t.Error(err)
		}
	}
}

// An image's file is changed in place. Readers get what it was, or EIO: never a mixture, and never a byte of the new.
// Another image is not concerned, and what mounts it from then on sees the new one.
func TestImageChanged(t *testing.T) {
	l := newLab(t)
	other, err := l.makeImage("changed", 6)
	if err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func(path string) error{
		"overwritten": func(path string) error {
			b, err := os.ReadFile(other.path)
			if err != nil {
				return err
			}
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = f.WriteAt(b, 0)
			return err
		},
		"overwritten with its time kept": func(path string) error {
			fi, err := os.Stat(path)
			if err != nil {
				return err
			}
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			if _, err = f.WriteAt(bytes.Repeat([]byte{0xa5}, 4<<20), 1<<20); err != nil {
				return err
			}
			return os.Chtimes(path, fi.ModTime(), fi.ModTime())
		},
		"truncated to nothing": func(path string) error { return os.Truncate(path, 0) },
		"truncated to half":    func(path string) error { return os.Truncate(path, l.image.size/2) },
	} {
		t.Run(what, func(t *testing.T) {
			d := l.start(t, "--cache", "4M")
			img := l.own(t, users[0])
			h, safe := d.holdSick(t, users[0], img), d.hold(t, users[1], l.image)
			if err := change(img.path); err != nil {
				t.Fatal(err)
			}
			forgetNames()
			d.wantSick(t, what, users[0], h)
			d.kill(serverName)
			if r := finish(t, d.inside(t, users[1], safe, "cold", "/", "0")); r.status != 0 {
				t.Errorf("the other image: %+v", r)
			}
			late := finish(t, d.run(t, users[2], img, "hash", "/", "0"))
			if (late.status == 0) != (what == "overwritten") {
				t.Errorf("who comes later: %+v", late)
			}
			for _, h := range []*holding{h, safe} {
				if err := h.end(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// Storage has errors for a moment: readers notice nothing. It has them for good: EIO, and other images are served.
func TestStorageErrors(t *testing.T) {
	l := newLab(t)
	d := l.start(t, "--cache", "1M")
	s := l.newStorage(t, root, l.image, false)
	h, safe := d.holdSick(t, users[0], s.image), d.hold(t, users[1], l.own(t, users[1]))
	if r := finish(t, d.beside(t, users[0], h, "cold", "/", "0")); r.status != 0 {
		t.Errorf("at first: %+v", r)
	}
	for _, mode := range []string{"eio", "estale"} {
		s.do(t, mode)
		d.wantSick(t, mode, users[0], h)
		if r := finish(t, d.inside(t, users[1], safe, "cold", "/", "0")); r.status != 0 {
			t.Errorf("%s, the other image: %+v", mode, r)
		}
		s.do(t, "ok")
		if r := finish(t, d.beside(t, users[0], h, "cold", "/", "0")); r.status != 0 {
			t.Errorf("after %s: %+v", mode, r)
		}
	}
	s.do(t, "short")
	if r := finish(t, d.beside(t, users[0], h, "cold", "/", "0")); r.status != 0 {
		t.Errorf("short reads: %+v", r)
	}
	// Errors that come and go, wherever one reads.
	s.do(t, "blips")
	if r := finish(t, d.beside(t, users[0], h, "cold", "/", "0")); r.status != 0 {
		t.Errorf("errors that come and go: %+v", r)
	}
	var failed int
	if _, err := fmt.Sscanf(s.do(t, "ok"), "done, %d reads failed", &failed); err != nil || failed < 10 {
		t.Errorf("%d reads failed, %v: the storage had too few errors to say anything", failed, err)
	}
	for _, h := range []*holding{h, safe} {
		if err := h.end(); err != nil {
			t.Error(err)
		}
	}
}

// Storage hangs: its readers can be killed, get EIO in bounded time otherwise, and go on when it answers again. Other
// images, their mounting, and what the service says about itself do not wait for it.
func TestStorageHangs(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	d := l.start(t, "--cache", "1M")
	s := l.newStorage(t, root, l.image, false)
	h := d.holdSick(t, users[0], s.image)
	mine := l.own(t, users[1])
	s.do(t, "hang")
	forgetNames()
	var stuck []*exec.Cmd
	var said []*bytes.Buffer
	for range 4 {
		cmd, out := d.beside(t, users[0], h, "cold", "/", "1"), new(bytes.Buffer)
		cmd.Stdout, cmd.Stderr = out, out
		cmd.SysProcAttr.Setsid, cmd.SysProcAttr.Setpgid = false, true
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		stuck, said = append(stuck, cmd), append(said, out)
	}
	time.Sleep(200 * time.Millisecond)
	// The others: an image of before, one that is new, and one that cannot be looked at, which hangs by itself.
	within(t, bound, "other images", func() {
		d.wantRun(t, users[1], mine, "cold", "/", "0")
		d.wantRun(t, users[2], l.image, "cold", "/", "0")
		if n := len(d.report(t).Images); n != 3 {
			t.Errorf("%d images, want 3", n)
		}
	})
	late := d.run(t, users[2], s.image, "hash", "/", "0")
	if err := late.Start(); err != nil {
		t.Fatal(err)
	}
	within(t, bound, "a request beside it", func() {
		d.wantRun(t, users[1], mine, "cold", "/", "0")
		if os.Getenv("SQUIRE_STORM") != "" {
			// The dead server's threads wait for the storage, and it is not quite dead as long as they do.
			d.kill(serverName)
			d.wantRun(t, users[1], mine, "cold", "/", "0")
		}
	})
	_ = syscall.Kill(-late.Process.Pid, syscall.SIGKILL)
	_ = late.Wait()
	for i, cmd := range stuck {
		if i%2 == 0 {
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		}
	}
	for i, cmd := range stuck {
		// Those that are not killed end with the first error, in 25 s; who goes on waits a fifth of that (TestHangTries of fusefs).
		within(t, 3*bound, fmt.Sprintf("reader %d", i), func() { _ = cmd.Wait() })
		if i%2 == 1 && !strings.Contains(said[i].String(), "input/output error") {
			t.Errorf("reader %d: %v, %s", i, cmd.ProcessState, said[i])
		}
	}
	s.do(t, "ok")
	eventually(t, "it is read again", func() bool {
		r := finish(t, d.beside(t, users[0], h, "cold", "/", "0"))
		return r.status == 0
	})
	if err := h.end(); err != nil {
		t.Error(err)
	}
}

// An image on a file system of a user's own, which only they may enter, which lies about what it has, changes it, and
// never answers: that is trouble for them alone.
func TestUsersOwnStorage(t *testing.T) {
	l := newLab(t, "fusermount3")
	d := l.start(t)
	other, err := l.makeImage("lies", 8)
	if err != nil {
		t.Fatal(err)
	}
	// fusermount3 wants a user with an account.
	s := l.newStorage(t, nobody, l.image, true)
	victim := l.own(t, users[1])
	h := d.hold(t, users[1], victim)
	defer func() { _ = h.end() }()
	var st unix.Stat_t
	if err := unix.Stat(victim.path, &st); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"ok", "ino " + fmt.Sprint(st.Ino), "grow 9223372036854775807", "grow 0", "grow 100", "eio", "short", "swap " + other.path, "hang",
	} {
		s.do(t, line)
		within(t, 4*bound, "a request after "+line, func() {
			if line == "ok" { // where there is no service that works, and it must with one
				d.wantRun(t, nobody, s.image, "hash", "/", "0")
			}
			// By hand, so that nobody falls back.
			c := d.greet(t, nobody)
			req := squashed()
			reply, files, err := c.ask(req, openAs(t, nobody, s.path, os.O_RDONLY))
			for _, f := range files {
				f.Close()
			}
			t.Logf("%s: %+v, %v", line, reply, err)
			if reply.Code == noded.OK {
				t.Errorf("%s: the service takes a file that may never answer it", line)
			}
			d.wantRun(t, users[1], victim, "cold", "/", "0")
			c.sock.Close()
		})
	}
	s.kill()
	if _, err := os.Stat("/etc/fuse.conf"); err == nil {
		open := l.newOpenStorage(t, nobody, l.image)
		c := d.greet(t, nobody)
		c.wantRefused(t, "storage of a user's that lets everybody in", squashed(), openAs(t, root, open.path, os.O_RDONLY))
		open.kill()
	}
	d.wantRun(t, users[1], victim, "cold", "/", "0")
	if d.find(serverName) == 0 || d.report(t).PID != d.cmd.Process.Pid {
		t.Error("the service has suffered")
	}
}

// The service runs out of descriptors: it refuses, and goes on when there are some again.
func TestDescriptorsUsedUp(t *testing.T) {
	l := newLab(t)
	d := l.start(t)
	h := d.hold(t, users[0], l.image)
	var old unix.Rlimit
	pid := d.report(t).PID
	used := uint64(d.fileCount(t))
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: used + 6, Max: 1 << 14}, &old); err != nil {
		t.Fatal(err)
	}
	var cs []*talk
	for range 40 {
		if c, err := d.connect(users[3]); err == nil {
			cs = append(cs, c)
		}
	}
	d.kill(serverName)
	d.kill(mounterName)
	d.wantRun(t, users[1], l.image, "cold", "/", "0") // with or without the service
	for _, c := range cs {
		c.sock.Close()
	}
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 1 << 14, Max: 1 << 14}, nil); err != nil {
		t.Fatal(err)
	}
	d.wantRun(t, users[1], l.image, "cold", "/", "0")
	if r := finish(t, d.inside(t, users[0], h, "cold", "/", "0")); r.status != 0 {
		t.Errorf("%+v", r)
	}
	if d.report(t).PID != pid {
		t.Error("the keeper was replaced")
	}
	if err := h.end(); err != nil {
		t.Error(err)
	}
}

// The server gets too little memory: it dies, as by the kernel's hand, another comes, and readers go on.
func TestMemoryUsedUp(t *testing.T) {
	l := newLab(t)
	d := l.start(t)
	h := d.hold(t, users[0], l.image)
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", d.find(serverName)))
	if err != nil {
		t.Fatal(err)
	}
	keeper, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", d.report(t).PID))
	if err != nil {
		t.Fatal(err)
	}
	var server, its int
	fmt.Sscan(string(b), &server)
	fmt.Sscan(string(keeper), &its)
	if server <= its {
		t.Errorf("the kernel would kill the keeper (%d) before the server (%d)", its, server)
	}
	pid := d.find(serverName)
	nobody.do(func() { // whom it belongs to; root may lack the right to
		err = unix.Prlimit(pid, unix.RLIMIT_AS, &unix.Rlimit{Cur: 1 << 20, Max: 1 << 20}, nil)
	})
	if err != nil {
		t.Fatal(err)
	}
	if r := finish(t, d.inside(t, users[0], h, "cold", "/", "0")); r.status != 0 {
		t.Errorf("%+v", r)
	}
	if err := h.end(); err != nil {
		t.Error(err)
	}
}

// Who reads the log ends: what is logged is lost, and nothing else.
func TestLogEnds(t *testing.T) {
	l := newLab(t)
	d := l.newDaemon(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(d.exe, d.args()...)
	cmd.Stderr = w
	d.launch(t, cmd)
	w.Close()
	d.wantAnswer(t)
	r.Close()
	for i := range 2 {
		d.wantRun(t, users[i], l.own(t, users[i]), "hash", "/", "0") // each is logged
		d.kill(serverName)                                           // so is that
	}
	if r := d.report(t); r.PID != cmd.Process.Pid || len(r.Images) != 2 {
		t.Errorf("process %d reports %+v, want %d with two images", r.PID, r.Images, cmd.Process.Pid)
	}
}

// SIGTERM with tasks running: they go on, new ones do without, and the service ends with the last.
func TestDrain(t *testing.T) {
	l := newLab(t)
	d := l.start(t)
	h := d.hold(t, users[0], l.image)
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	d.wantRun(t, users[1], l.own(t, users[1]), "hash", "/", "0")
	d.kill(serverName)
	if r := finish(t, d.inside(t, users[0], h, "cold", "/", "0")); r.status != 0 {
		t.Errorf("%+v", r)
	}
	select {
	case <-d.ended:
		t.Error("the daemon has ended before its last user")
	default:
	}
	if err := h.end(); err != nil {
		t.Error(err)
	}
	if d.wait(t) && testenv.Status(d.cmd.ProcessState) != 0 {
		t.Errorf("status %d", testenv.Status(d.cmd.ProcessState))
	}
	if left := d.processes(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// A drain has an end, if one was asked for: tasks that are not done lose their image then.
func TestDrainBounded(t *testing.T) {
	l := newLab(t)
	d := l.start(t, "--drain", "300ms")
	h := d.hold(t, users[0], l.image)
	dir := l.mkdir(t, users[1])
	if r := finish(t, d.client(t, users[1], "mount", l.image.path, dir)); r.status != 0 {
		t.Fatalf("%+v", r)
	}
	d.stop(t)
	if left := d.processes(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if m := mountsBelow(dir); len(m) > 0 {
		t.Errorf("still mounted: %v", m)
	}
	_ = h.end()
}

// Sockets of before: one that nobody listens at is replaced, one in use is not, and what is none is left alone.
func TestStaleSocket(t *testing.T) {
	l := newLab(t)
	d := l.newDaemon(t)
	lis, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: d.socket, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	lis.SetUnlinkOnClose(false)
	lis.Close()
	d.startAgain(t)
	h := d.hold(t, users[0], l.image)
	// A second daemon by mistake.
	second := exec.Command(d.exe, d.args()...)
	r := result{status: -1}
	within(t, bound, "the end of the second daemon", func() { r = finish(t, second) })
	if r.status == 0 || r.status == -1 || r.stderr == "" {
		t.Errorf("the second: %+v", r)
	}
	d.imageReport(t)
	if err := h.end(); err != nil {
		t.Error(err)
	}
	d.stop(t)
	for what, make := range map[string]func() error{
		"a file":              func() error { return os.WriteFile(d.socket, []byte("mine"), 0o600) },
		"a directory":         func() error { return os.Mkdir(d.socket, 0o700) },
		"a link that dangles": func() error { return os.Symlink(filepath.Join(d.home, "away"), d.socket) },
		"a link to a file":    func() error { return os.Symlink(d.exe, d.socket) },
	} {
		if err := make(); err != nil {
			t.Fatal(err)
		}
		before, _ := os.Lstat(d.socket)
		within(t, bound, "a start on "+what, func() { r = finish(t, exec.Command(d.exe, d.args()...)) })
		after, err := os.Lstat(d.socket)
		if r.status == 0 || err != nil || !os.SameFile(before, after) {
			t.Errorf("%s: %+v, then %v", what, r, err)
		}
		os.RemoveAll(d.socket)
	}
}

// Ten daemons start at once where a dead socket lies: one of them serves.
func TestStartRace(t *testing.T) {
	l := newLab(t)
	d := l.newDaemon(t)
	for range 3 {
		var cmds []*exec.Cmd
		for range 10 {
			cmd := exec.Command(d.exe, d.args()...)
			cmd.Stderr, cmd.WaitDelay = d.log, time.Second
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			cmds = append(cmds, cmd)
		}
		d.wantAnswer(t)
		pid := d.report(t).PID
		for _, cmd := range cmds {
			if cmd.Process.Pid == pid {
				continue
			}
			within(t, bound, "the end of those that lost", func() { _ = cmd.Wait() })
		}
		if now := d.report(t).PID; now != pid {
			t.Errorf("%d answered, then %d", pid, now)
		}
		killAll(d.processes) // the socket stays
		for _, cmd := range cmds {
			_ = cmd.Wait()
		}
	}
}

// All of a service is killed. What it had attached to directories is dead; the next start takes it away, and nothing of
// anybody else's.
func TestStaleMounts(t *testing.T) {
	l := newLab(t)
	d := l.start(t)
	dirs := map[user]string{root: l.mkdir(t, root), users[0]: l.mkdir(t, users[0])}
	for u, dir := range dirs {
		if r := finish(t, d.client(t, u, "mount", l.image.path, dir)); r.status != 0 {
			t.Fatalf("%+v", r)
		}
	}
	// Somebody else's: another file system, dead as well, and a live mount without the service.
	s := l.newStorage(t, root, l.image, false)
	_ = syscall.Kill(s.cmd.Process.Pid, syscall.SIGKILL)
	_ = s.cmd.Wait()
	private := l.mkdir(t, root)
	cmd := d.client(t, root, "mount", l.image.path, private)
	cmd.Env = append(cmd.Env, "SQUIRE_SERVICE=off")
	if r := finish(t, cmd); r.status != 0 {
		t.Fatalf("%+v", r)
	}
	killAll(d.processes)
	<-d.ended
	d.startAgain(t)
	for u, dir := range dirs {
		eventually(t, fmt.Sprintf("the mount of user %v is gone", u), func() bool { return len(mountsBelow(dir)) == 0 })
	}
	if len(mountsBelow(filepath.Dir(s.path))) != 1 {
		t.Error("another file system's mount was taken away")
	}
	if r := finish(t, command(t, users[1], bound, l.probe, "hash", private, "0")); r.status != 0 {
		t.Errorf("the mount without the service: %+v", r)
	}
	if r := finish(t, d.client(t, root, "umount", private)); r.status != 0 {
		t.Errorf("%+v", r)
	}
}

// Clients whose service has died, or was never there, do without, and find the next.
func TestDaemonDies(t *testing.T) {
	l := newLab(t)
	d := l.start(t)
	h := d.hold(t, users[0], l.image)
	killAll(d.processes)
	<-d.ended
	d.wantRun(t, users[1], l.image, "hash", "/", "0")
	_ = h.end() // its image is gone; it must end all the same
	d.startAgain(t)
	h = d.hold(t, users[0], l.image)
	d.imageReport(t)
	if err := h.end(); err != nil {
		t.Error(err)
	}
	d.stop(t)
	d.wantRun(t, users[1], l.image, "hash", "/", "0")
	// Something listens there that is no service: it is not trusted to answer.
	lis, err := net.Listen("unixpacket", d.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	go func() {
		for {
			c, err := lis.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(io.Discard, c) }()
		}
	}()
	if err := os.Chmod(d.socket, 0o666); err != nil {
		t.Fatal(err)
	}
	within(t, bound, "a run beside a deaf service", func() { d.wantRun(t, users[1], l.image, "hash", "/", "0") })
}
