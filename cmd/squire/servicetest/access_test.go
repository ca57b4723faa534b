package servicetest

import (
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/fusefs/noded"
	"github.com/squirefs/squire/internal/wire"
)

func itoa(n int) string { return strconv.Itoa(n) }

// secret is an image that only its owner can read.
func (l *lab) secret(t *testing.T, owner user) *image {
	t.Helper()
	path := filepath.Join(l.mkdir(t, owner), "secret.sqsh")
	if err := copyFile(l.image.path, path); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chown(path, int(owner.uid), int(owner.gid)), os.Chmod(path, 0o600)); err != nil {
		t.Fatal(err)
	}
	return &image{path: path, size: l.image.size, data: l.image.data}
}

// Who may not read an image does not get it, while it is served to somebody else, either.
func TestUnreadable(t *testing.T) {
	l := newLab(t)
	d := l.start(t)
	img := l.secret(t, users[0])
	h := d.hold(t, users[0], img)
	defer func() { _ = h.end() }()
	dir := l.mkdir(t, users[1])
	for _, args := range [][]string{{"run", img.path, "--", "/bin/probe", "wait"}, {"mount", img.path, dir}} {
		r := finish(t, d.client(t, users[1], args...))
		if r.status == 0 || !strings.Contains(r.stderr, "permission denied") {
			t.Errorf("%q: %+v", args, r)
		}
	}
	if len(mountsBelow(dir)) > 0 {
		t.Error("something is mounted")
	}
	if refs := d.imageReport(t).References; refs != 1 {
		t.Errorf("%d references", refs)
	}
}

// Descriptors that are no proof that their sender can read an image, and what is no image.
func TestStrangeDescriptors(t *testing.T) {
	l := newLab(t)
	d := l.start(t)
	img := l.secret(t, users[0])
	h := d.hold(t, users[0], img)
	defer func() { _ = h.end() }()
	before := d.fileCount(t)
	me := users[1]
	dir := l.mkdir(t, me)
	mine := filepath.Join(dir, "mine")
	fifo, text := filepath.Join(dir, "fifo"), filepath.Join(dir, "text")
	me.do(func() {
		for path, b := range map[string]string{mine: "", text: strings.Repeat("no image\n", 1000)} {
			if err := os.WriteFile(path, []byte(b), 0o600); err != nil {
				t.Error(err)
			}
		}
		if err := unix.Mkfifo(fifo, 0o600); err != nil {
			t.Error(err)
		}
	})
	// Path descriptors can be had of what cannot be read.
	if err := os.Chmod(filepath.Dir(img.path), 0o755); err != nil {
		t.Fatal(err)
	}
	public := filepath.Join(dir, "public")
	if err := copyFile(l.image.path, public); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(public, 0o622); err != nil { // written to by all, read by root
		t.Fatal(err)
	}
	sock, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "sock"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer sock.Close()
	sockFile, err := sock.File()
	if err != nil {
		t.Fatal(err)
	}
	defer sockFile.Close()
	made := func(fd int, err error) *os.File {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), "made")
		t.Cleanup(func() { f.Close() })
		return f
	}
	raw := made(unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	for _, c := range []struct {
		what string
		file *os.File
	}{
		{"path descriptor of another's image", openAs(t, me, img.path, unix.O_PATH)},
		{"image opened for writing", openAs(t, me, public, os.O_WRONLY)},
		{"path descriptor of a file", openAs(t, me, mine, unix.O_PATH)},
		{"empty file", openAs(t, me, mine, os.O_RDONLY)},
		{"text", openAs(t, me, text, os.O_RDONLY)},
		{"directory", openAs(t, me, dir, os.O_RDONLY)},
		{"path descriptor of a directory", openAs(t, me, "/root", unix.O_PATH)},
		{"FIFO", openAs(t, me, fifo, os.O_RDWR)},
		{"pipe", r},
		{"/dev/zero", openAs(t, me, "/dev/zero", os.O_RDONLY)},
		{"/dev/null", openAs(t, me, "/dev/null", os.O_RDWR)},
		{"/dev/fuse", openAs(t, me, "/dev/fuse", os.O_RDWR)},
		{"memory of a process", openAs(t, root, "/proc/self/mem", os.O_RDONLY)},
		{"procfs", openAs(t, me, "/proc/self/status", os.O_RDONLY)},
		{"sysfs", openAs(t, me, "/sys/kernel/mm/transparent_hugepage/enabled", os.O_RDONLY)},
		{"a namespace", openAs(t, root, "/proc/self/ns/mnt", os.O_RDONLY)},
		{"listening socket", sockFile},
		{"internet socket", raw},
		{"event descriptor", made(unix.Eventfd(0, unix.EFD_CLOEXEC))},
		{"epoll", made(unix.EpollCreate1(unix.EPOLL_CLOEXEC))},
		{"process", made(unix.PidfdOpen(os.Getpid(), 0))},
		{"empty memfd", made(unix.MemfdCreate("m", unix.MFD_CLOEXEC))},
		{"timer", made(unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC))},
		{"inotify", made(unix.InotifyInit1(unix.IN_CLOEXEC))},
	} {
		by := d.greet(t, me)
		by.wantRefused(t, c.what, squashed(), c.file)
		by.sock.Close()
	}
	good := openAs(t, me, l.image.path, os.O_RDONLY)
	c := d.greet(t, me)
	own, err := c.sock.File()
	if err != nil {
		t.Fatal(err)
	}
	c.wantRefused(t, "the connection itself", squashed(), own)
	own.Close()
	d.greet(t, me).wantRefused(t, "no descriptor", squashed())
	d.greet(t, me).wantRefused(t, "one too many", squashed(), good, good)
	d.greet(t, me).wantRefused(t, "sixteen", squashed(), good, good, good, good, good, good, good, good, good, good, good, good, good, good, good, good)
	d.wantRun(t, me, l.image, "hash", "/", "0")
	eventually(t, "the keeper has closed them all", func() bool {
		return d.fileCount(t) <= before+16
	})
}

// What only root may ask for, and numbers that make no sense.
func TestStrangeRequests(t *testing.T) {
	l := newLab(t)
	d := l.start(t)
	me := users[1]
	img := openAs(t, me, l.image.path, os.O_RDONLY)
	trace := openAs(t, me, "/dev/zero", os.O_RDONLY)
	fifoPath := filepath.Join(l.mkdir(t, me), "fifo")
	if err := unix.Mkfifo(fifoPath, 0o666); err != nil {
		t.Fatal(err)
	}
	fifo := openAs(t, root, fifoPath, os.O_RDWR)
	change := func(f func(*noded.Request)) noded.Request { r := squashed(); f(&r); return r }
	for _, c := range []struct {
		what  string
		req   noded.Request
		files []*os.File
	}{
		{"verb 0", change(func(r *noded.Request) { r.Do = 0 }), []*os.File{img}},
		{"verb 99", change(func(r *noded.Request) { r.Do = 99 }), []*os.File{img}},
		{"negative verb", change(func(r *noded.Request) { r.Do = -1 }), []*os.File{img}},
		{"for everybody", change(func(r *noded.Request) { r.View = noded.View{} }), []*os.File{img}},
		{"for everybody, restricted", change(func(r *noded.Request) { r.View = noded.View{Restrict: true} }), []*os.File{img}},
		{"negative offset", change(func(r *noded.Request) { r.Offset = -1 }), []*os.File{img}},
		{"smallest offset", change(func(r *noded.Request) { r.Offset = math.MinInt64 }), []*os.File{img}},
		{"offset in the image", change(func(r *noded.Request) { r.Offset = 96 }), []*os.File{img}},
		{"offset behind the end", change(func(r *noded.Request) { r.Offset = l.image.size }), []*os.File{img}},
		{"largest offset", change(func(r *noded.Request) { r.Offset = math.MaxInt64 }), []*os.File{img}},
		{"traces that are not there", change(func(r *noded.Request) { r.Traces = 5 }), []*os.File{img}},
		{"negative traces", change(func(r *noded.Request) { r.Traces = -1 }), []*os.File{img}},
		{"most traces", change(func(r *noded.Request) { r.Traces = math.MaxInt }), []*os.File{img}},
		{"fewer traces than sent", squashed(), []*os.File{img, img}},
		{"record of none", change(func(r *noded.Request) { r.Record = 1 }), []*os.File{img}},
		{"negative record", change(func(r *noded.Request) { r.Traces, r.Record = 1, -1 }), []*os.File{img, img}},
		{"second record", change(func(r *noded.Request) { r.Traces, r.Record = 1, 2 }), []*os.File{img, img}},
		{"attach what was not mounted", noded.Request{Do: noded.VerbAttach, ID: 1}, []*os.File{openAs(t, me, "/tmp", unix.O_PATH)}},
		{"attach without a directory", noded.Request{Do: noded.VerbAttach, ID: 1}, nil},
		{"detach nothing", noded.Request{Do: noded.VerbDetach, Base: "x"}, []*os.File{openAs(t, me, "/", unix.O_PATH)}},
		{"detach without a parent", noded.Request{Do: noded.VerbDetach, Base: "x"}, nil},
		{"detach ..", noded.Request{Do: noded.VerbDetach, Base: ".."}, []*os.File{openAs(t, me, "/proc", unix.O_PATH)}},
		{"detach itself", noded.Request{Do: noded.VerbDetach, Base: "."}, []*os.File{openAs(t, me, "/proc", unix.O_PATH)}},
		{"detach a path", noded.Request{Do: noded.VerbDetach, Base: "sys/fs"}, []*os.File{openAs(t, me, "/proc", unix.O_PATH)}},
		{"detach proc", noded.Request{Do: noded.VerbDetach, Base: "proc"}, []*os.File{openAs(t, me, "/", unix.O_PATH)}},
		{"a name of 60000 bytes", change(func(r *noded.Request) { r.Image = strings.Repeat("\x1b\n", 30000) }), []*os.File{img}},
	} {
		d.greet(t, me).wantRefused(t, c.what, c.req, c.files...)
	}
	// These may be granted, and must then be harmless.
	for _, c := range []struct {
		what  string
		req   noded.Request
		files []*os.File
	}{
		{"owner root", change(func(r *noded.Request) { r.View = noded.View{Private: true} }), []*os.File{img}},
		{"all attributes", change(func(r *noded.Request) { r.Attrs = -1 }), []*os.File{img}},
		{"endless trace", change(func(r *noded.Request) { r.Traces = 1 }), []*os.File{img, trace}},
		{"trace that never comes", change(func(r *noded.Request) { r.Traces, r.Record = 1, 1 }), []*os.File{img, fifo}},
		{"report with a file", noded.Request{Do: noded.VerbReport}, []*os.File{img}},
	} {
		reply, files, err := d.greet(t, me).ask(c.req, c.files...)
		for _, f := range files {
			f.Close()
		}
		if errors.Is(err, os.ErrDeadlineExceeded) || reply.Code == noded.Failed {
			t.Errorf("%s: %+v, %v", c.what, reply, err)
		}
	}
	d.wantRun(t, me, l.image, "hash", "/", "0")
}

// A client of another version learns what the service speaks; what is no client of ours learns nothing.
func TestVersions(t *testing.T) {
	l := newLab(t)
	d := l.start(t)
	for _, v := range []int{0, -1, noded.Version + 1, math.MaxInt} {
		c, err := d.connect(users[0])
		if err != nil {
			t.Fatal(err)
		}
		w, err := c.hello("squire", v)
		if err != nil || w.Version != noded.Version || w.Error == "" || w.Program == "" {
			t.Errorf("version %d: %+v, %v", v, w, err)
		}
		if _, _, err = c.ask(noded.Request{Do: noded.VerbReport}); err == nil {
			t.Errorf("version %d: is served all the same", v)
		}
		c.sock.Close()
	}
	c, err := d.connect(users[0])
	if err != nil {
		t.Fatal(err)
	}
	defer c.sock.Close()
	if w, err := c.hello("quire", noded.Version); err == nil && w.Error == "" {
		t.Errorf("wrong magic: %+v", w)
	}
}

// Requests about what other connections and other users have.
func TestReplay(t *testing.T) {
	l := newLab(t)
	d := l.start(t, "--idle", "1h")
	img := l.secret(t, users[0])
	a := d.greet(t, users[0])
	reply, files, err := a.ask(squashed(), openAs(t, users[0], img.path, os.O_RDONLY))
	if err != nil || reply.Code != noded.OK || len(files) != 1 {
		t.Fatalf("%+v, %d files, %v", reply, len(files), err)
	}
	defer files[0].Close()
	b := d.greet(t, users[1])
	dir := l.mkdir(t, users[1])
	b.wantRefused(t, "attach another's image", noded.Request{Do: noded.VerbAttach, ID: reply.ID}, openAs(t, users[1], dir, unix.O_PATH))
	b.wantRefused(t, "a mount in place of an image", squashed(), files[0])
	for id := range uint64(64) {
		b.wantRefused(t, fmt.Sprintf("attach %d", id), noded.Request{Do: noded.VerbAttach, ID: id}, openAs(t, users[1], dir, unix.O_PATH))
	}
	if len(mountsBelow(dir)) > 0 {
		t.Error("something is mounted")
	}
	// Another connection of the same user has not mounted it either.
	d.greet(t, users[0]).wantRefused(t, "attach on another connection", noded.Request{Do: noded.VerbAttach, ID: reply.ID}, openAs(t, users[0], filepath.Dir(img.path), unix.O_PATH))
	// What is mounted privately does not let others in, nor can they unmount it.
	at := l.mkdir(t, users[0])
	if r := finish(t, d.client(t, users[0], "mount", img.path, at)); r.status != 0 {
		t.Fatalf("%+v", r)
	}
	if r := finish(t, command(t, users[0], bound, l.probe, "hash", at, "0")); r.status != 0 {
		t.Errorf("the owner: %+v", r)
	}
	if r := finish(t, command(t, users[1], bound, l.probe, "hash", at, "0")); r.status == 0 || !strings.Contains(r.stdout, "permission denied") {
		t.Errorf("another user: %+v", r)
	}
	b.wantRefused(t, "detach another's mount", noded.Request{Do: noded.VerbDetach, Base: filepath.Base(at)}, openAs(t, users[1], filepath.Dir(at), unix.O_PATH))
	if r := finish(t, d.client(t, users[1], "umount", at)); r.status == 0 {
		t.Error("another user has unmounted it")
	}
	if r := finish(t, d.client(t, users[0], "umount", at)); r.status != 0 || len(mountsBelow(at)) > 0 {
		t.Errorf("%+v, %v", r, mountsBelow(at))
	}
}

// attachEach asks the service at its first argument to put the image at its second on each of the others, and prints what it
// says. It is a process of its own, as the service looks whose process asks.
func attachEach(args []string) error {
	c, err := noded.Dial(args[0])
	if err != nil {
		return err
	}
	defer c.Close()
	img, err := os.Open(args[1])
	if err != nil {
		return err
	}
	m, err := c.Mount(noded.Request{View: noded.View{Private: true}, NoGrant: true}, img)
	if err != nil {
		return err
	}
	for _, path := range args[2:] {
		dir, err := os.OpenFile(path, unix.O_PATH, 0)
		if err != nil {
			return err
		}
		fmt.Printf("%s: %v\n", path, c.Attach(m.ID, dir, 0))
		dir.Close()
	}
	return nil
}

// A user's image is put on directories of theirs, and on no others.
func TestPlaces(t *testing.T) {
	l := newLab(t)
	d := l.start(t)
	sticky := l.mkdir(t, root)
	if err := os.Chmod(sticky, 0o777|os.ModeSticky); err != nil {
		t.Fatal(err)
	}
	mine := l.mkdir(t, users[1])
	places := []struct{ path, answer string }{
		{"/etc", "write to the directory: permission denied"},
		{l.mkdir(t, root), "write to the directory: permission denied"},
		{l.mkdir(t, users[2]), "write to the directory: permission denied"},
		{sticky, "the directory is sticky and not yours: operation not permitted"},
		{"/proc", "mounting on a file system of type 0x9fa0: operation not permitted"},
		{l.image.path, "not a directory"},
		{mine, "<nil>"},
	}
	argv, want := []string{l.probe, d.socket, l.image.path}, ""
	for _, p := range places {
		argv = append(argv, p.path)
		if p.path != mine {
			p.answer = "mounter: " + p.answer
		}
		want += p.path + ": " + p.answer + "\n"
	}
	cmd := command(t, users[1], bound, argv...)
	cmd.Args[0] = "attach"
	if r := finish(t, cmd); r.status != 0 || r.stdout != want {
		t.Errorf("status %d, %s, got\n%swant\n%s", r.status, r.stderr, r.stdout, want)
	}
	for _, p := range places {
		if p.path != "/etc" && p.path != "/proc" {
			if m := mountsBelow(p.path); len(m) > 0 != (p.path == mine) {
				t.Errorf("mounts on %s: %v", p.path, m)
			}
		}
	}
	if r := finish(t, d.client(t, users[1], "umount", mine)); r.status != 0 {
		t.Errorf("%+v", r)
	}
}

// Ways into the mounts of others through the service's processes: as another user, and as the server's own.
func TestGuessing(t *testing.T) {
	l := newLab(t)
	d := l.start(t)
	img := l.secret(t, users[0])
	h := d.hold(t, users[0], img)
	defer func() { _ = h.end() }()
	all := d.processes()
	if len(all) < 3 {
		t.Fatalf("processes: %v", all)
	}
	for _, who := range []user{users[1], nobody} {
		for _, p := range all {
			who.do(func() {
				proc := "/proc/" + itoa(p.pid) + "/"
				for _, path := range []string{"root/", "root/0/list", "root/1/list", "root/1/", "cwd/", "fd/3", "exe", "mem", "environ", "maps"} {
					if f, err := os.OpenFile(proc+path, os.O_RDONLY, 0); err == nil {
						f.Close()
						t.Errorf("user %v opens %s of %v", who, path, p)
					}
				}
				if fds, err := os.ReadDir(proc + "fd"); err == nil {
					t.Errorf("user %v lists %d descriptors of %v", who, len(fds), p)
				}
				for _, ns := range []string{"mnt", "user"} {
					fd, err := unix.Open(proc+"ns/"+ns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
					if err == nil {
						unix.Close(fd)
						t.Errorf("user %v opens the %s namespace of %v", who, ns, p)
					}
				}
				if unix.PtraceSeize(p.pid) == nil {
					t.Errorf("user %v traces %v", who, p)
				}
				if fd, err := unix.PidfdOpen(p.pid, 0); err == nil {
					if got, err := unix.PidfdGetfd(fd, 3, 0); err == nil {
						unix.Close(got)
						t.Errorf("user %v takes a descriptor of %v", who, p)
					}
					unix.Close(fd)
				}
				if who != nobody && unix.Kill(p.pid, 0) == nil {
					t.Errorf("user %v sends signals to %v", who, p)
				}
			})
		}
		// The mount is in nobody's namespace but the container's and the service's.
		if b, _ := os.ReadFile("/proc/self/mountinfo"); strings.Contains(string(b), img.path) {
			t.Errorf("the mount is in the namespace of the node:\n%s", b)
		}
		who.do(func() {
			if _, err := os.Open(fmt.Sprintf("/proc/%d/root/list", h.cmd.Process.Pid)); err == nil {
				t.Errorf("user %v reads the container", who)
			}
		})
	}
}

// babble is a client that talks nonsense until the end of the test.
type babble func(d *daemon, r *rand.Rand)

// babbles are the ways to do so.
var babbles = map[string]babble{
	"random bytes": func(d *daemon, r *rand.Rand) {
		if c, err := d.connect(users[3]); err == nil {
			defer c.sock.Close()
			_ = c.send(randomBytes(r, r.IntN(100)))
			_ = c.send(randomBytes(r, r.IntN(70000)))
		}
	},
	"half a hello": func(d *daemon, r *rand.Rand) {
		if c, err := d.connect(users[3]); err == nil {
			defer c.sock.Close()
			b := wire.Encode(&noded.Hello{Magic: "squire", Version: noded.Version})
			_ = c.send(b[:r.IntN(len(b))])
			time.Sleep(50 * time.Millisecond)
		}
	},
	"hello, then random bytes": func(d *daemon, r *rand.Rand) {
		if c, err := d.connect(users[3]); err == nil {
			defer c.sock.Close()
			_, _ = c.hello("squire", noded.Version)
			req := squashed()
			b := wire.Encode(&req)
			for range r.IntN(4) {
				b[r.IntN(len(b))] = byte(r.Uint32())
			}
			_ = c.send(b[:r.IntN(len(b)+1)])
			_, _ = c.conn.Recv(new(noded.Reply))
		}
	},
	"descriptors": func(d *daemon, r *rand.Rand) {
		null, err := os.Open("/dev/null")
		if err != nil {
			return
		}
		defer null.Close()
		if c, err := d.connect(users[3]); err == nil {
			defer c.sock.Close()
			if r.IntN(2) == 0 {
				_, _ = c.hello("squire", noded.Version)
			}
			fds := make([]int, r.IntN(254))
			for i := range fds {
				fds[i] = int(null.Fd())
			}
			_ = c.send([]byte{0}, fds...)
			_ = c.send([]byte{}, fds...)
		}
	},
	"connections": func(d *daemon, _ *rand.Rand) {
		var cs []*talk
		for range 1200 {
			c, err := d.connect(users[3])
			if err != nil {
				break
			}
			cs = append(cs, c)
		}
		time.Sleep(200 * time.Millisecond)
		for _, c := range cs {
			c.sock.Close()
		}
	},
	"answers never read": func(d *daemon, _ *rand.Rand) {
		if c, err := d.connect(users[3]); err == nil {
			defer c.sock.Close()
			_, _ = c.hello("squire", noded.Version)
			_ = c.sock.SetDeadline(time.Now().Add(300 * time.Millisecond))
			b := wire.Encode(&noded.Request{Do: noded.VerbReport})
			for {
				if _, err := c.sock.Write(b); err != nil {
					return
				}
			}
		}
	},
	"mounts, at once": func(d *daemon, _ *rand.Rand) {
		if c, err := d.connect(users[3]); err == nil {
			defer c.sock.Close()
			_, _ = c.hello("squire", noded.Version)
			f, err := os.Open(d.image.path)
			if err != nil {
				return
			}
			defer f.Close()
			for range 50 {
				_, files, err := c.ask(squashed(), f)
				for _, f := range files {
					f.Close()
				}
				if err != nil {
					return
				}
			}
		}
	},
	"gone before the answer": func(d *daemon, _ *rand.Rand) {
		if c, err := d.connect(users[3]); err == nil {
			_, _ = c.hello("squire", noded.Version)
			if f, err := os.Open(d.image.path); err == nil {
				r := squashed()
				_ = c.conn.Send(&r, f)
				f.Close()
			}
			c.sock.Close()
		}
	},
}

func randomBytes(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// Clients of one user talk nonsense in every way, and nobody else notices; when they are gone, nothing of them is left.
func TestFlood(t *testing.T) {
	l := newLab(t)
	d := l.start(t, "--idle", "1s")
	h := d.hold(t, users[0], l.image)
	d.wantRun(t, users[0], l.image, "hash", "/", "0")
	before := d.fileCount(t)
	for what, babble := range babbles {
		t.Run(what, func(t *testing.T) {
			stop := make(chan struct{})
			var crowd sync.WaitGroup
			for i := range 4 {
				crowd.Go(func() {
					r := rand.New(rand.NewPCG(uint64(i), 1))
					for {
						select {
						case <-stop:
							return
						default:
							babble(d, r)
						}
					}
				})
			}
			time.Sleep(100 * time.Millisecond)
			for _, u := range users[:2] {
				d.wantRun(t, u, l.image, "hash", "/", "0")
				if r := finish(t, d.client(t, u, "stats", "--json")); r.status != 0 {
					t.Errorf("%+v", r)
				}
			}
			if refs := d.imageReport(t).References; refs < 1 {
				t.Errorf("%d references", refs)
			}
			close(stop)
			within(t, bound, "the end of the clients", crowd.Wait)
		})
	}
	// A message that is not finished is none: one connection of many that say nothing is closed by itself or with them.
	eventually(t, "their descriptors are closed", func() bool { return d.fileCount(t) <= before+2 })
	if d.report(t).PID != d.cmd.Process.Pid {
		t.Error("the keeper was replaced")
	}
	d.wantRun(t, users[3], l.image, "hash", "/", "0")
	if err := h.end(); err != nil {
		t.Error(err)
	}
}

// Limits of one user are not those of another, and who reaches one does without the service.
func TestLimits(t *testing.T) {
	l := newLab(t)
	d := l.start(t, "--limit-user-images", "2", "--limit-user-clients", "8", "--limit-images", "5")
	dir := l.mkdir(t, users[0])
	images := make([]*image, 4)
	for i := range images {
		images[i] = &image{path: filepath.Join(dir, itoa(i)+".sqsh")}
		if err := copyFile(l.image.path, images[i].path); err != nil {
			t.Fatal(err)
		}
	}
	var held []*holding
	for _, img := range images {
		held = append(held, d.hold(t, users[0], img)) // the last two by servers of their own
	}
	if n := len(d.report(t).Images); n != 2 {
		t.Errorf("%d images, want 2", n)
	}
	held = append(held, d.hold(t, users[1], images[2]))
	if n := len(d.report(t).Images); n != 3 {
		t.Errorf("%d images, want 3", n)
	}
	for _, h := range held {
		if err := h.end(); err != nil {
			t.Error(err)
		}
	}
	var cs []*talk
	for range 8 {
		cs = append(cs, d.greet(t, users[2]))
	}
	if c, err := d.connect(users[2]); err == nil {
		if w, err := c.hello("squire", noded.Version); err == nil && w.Error == "" {
			t.Error("a ninth connection is let in")
		} else if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) {
			t.Error(err)
		}
		c.sock.Close()
	}
	d.wantRun(t, users[2], l.image, "hash", "/", "0") // without the service
	d.wantRun(t, users[3], l.image, "hash", "/", "0")
	for _, c := range cs {
		c.sock.Close()
	}
	eventually(t, "the user is let in again", func() bool {
		c, err := d.connect(users[2])
		if err != nil {
			return false
		}
		defer c.sock.Close()
		w, err := c.hello("squire", noded.Version)
		return err == nil && w.Error == ""
	})
}
