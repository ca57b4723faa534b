package noded

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// manager stands in for systemd's store of descriptors.
type manager struct {
	socket string
	mu     sync.Mutex
	files  map[string]*os.File
	said   []string
	deaf   bool
}

func newManager(t *testing.T) *manager {
	m := &manager{socket: filepath.Join(t.TempDir(), "notify"), files: map[string]*os.File{}}
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: m.socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	var done sync.WaitGroup
	done.Go(func() {
		for b, oob := make([]byte, 4096), make([]byte, 4096); ; {
			n, oobn, _, _, err := l.ReadMsgUnix(b, oob)
			if err != nil {
				return
			}
			m.message(string(b[:n]), oob[:oobn])
		}
	})
	t.Cleanup(func() {
		l.Close()
		done.Wait()
		for _, f := range m.files {
			f.Close()
		}
	})
	return m
}

func (m *manager) message(text string, oob []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.deaf {
		closeRights(oob)
		return
	}
	m.said = append(m.said, text)
	var files []*os.File
	msgs, _ := unix.ParseSocketControlMessage(oob)
	for i := range msgs {
		fds, _ := unix.ParseUnixRights(&msgs[i])
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "stored"))
		}
	}
	name := ""
	for line := range strings.SplitSeq(text, "\n") {
		if n, ok := strings.CutPrefix(line, "FDNAME="); ok {
			name = n
		}
	}
	switch {
	case strings.Contains(text, "FDSTORE=1") && len(files) == 1:
		m.files[name] = files[0]
	case strings.Contains(text, "FDSTOREREMOVE=1") && m.files[name] != nil:
		m.files[name].Close()
		delete(m.files, name)
	}
}

// kill ends a keeper as if it had been killed: it lets go of nothing, and says no word.
func (m *manager) kill(t *testing.T, r *running) {
	m.mu.Lock()
	m.deaf = true
	m.mu.Unlock()
	r.cancel()
	r.wait(t)
	m.mu.Lock()
	m.deaf = false
	m.mu.Unlock()
}

// pass gives what is stored to a new keeper.
func (m *manager) pass(t *testing.T) func(*keeper) {
	return func(k *keeper) {
		k.inherit = func() (*inherited, error) {
			m.mu.Lock()
			defer m.mu.Unlock()
			in := &inherited{files: map[string]*os.File{}}
			for name, f := range m.files {
				ours, err := dup(f)
				if err != nil {
					return nil, err
				}
				in.files[name] = ours
			}
			return in, nil
		}
	}
}

func (m *manager) names() (names string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return strings.Join(sortedKeys(m.files), " ")
}

// The keeper dies, and the next one goes on with what systemd has kept: the same images, and the clients come back.
func TestKeeperDies(t *testing.T) {
	m := newManager(t)
	t.Setenv(envNotify, m.socket)
	socket := socketIn(t)
	first := run(t, newWorld(t), Config{Socket: socket, Version: "one"})
	c := dialed(t, socket)
	c.Keep(slog.New(slog.DiscardHandler))
	files := []*os.File{imageFile(t, "a"), imageFile(t, "b"), imageFile(t, "c")}
	var ids []uint64
	for i, f := range files {
		mounted, err := c.Mount(Request{Image: fmt.Sprint("name\xff", i)}, f)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, mounted.ID)
	}
	first.w.server().ended <- ids[1]
	want := "1.device 1.file 1.mount 3.device 3.file 3.mount records"
	eventually(t, "the store has what is there", func() bool { return m.names() == want })
	if err := c.current().do1(&Request{Do: VerbAttach, ID: ids[0]}, files[0]); err != nil {
		t.Fatal(err)
	}
	m.kill(t, first)
	second := run(t, newWorld(t), Config{Socket: socket, Version: "two", Idle: time.Millisecond}, m.pass(t))
	eventually(t, "the client is back", func() bool {
		second.mu.Lock()
		defer second.mu.Unlock()
		return len(second.images) == 2 && len(second.images[1].refs) == 1 && len(second.images[3].refs) == 1
	})
	if n := second.w.takeovers.Load(); n != 2 || second.w.mounts.Load() != 0 {
		t.Errorf("%d images were taken over, %d mounts made", n, second.w.mounts.Load())
	}
	second.mu.Lock()
	if img := second.images[1]; img.name != "name\xff0" || len(img.attached) != 1 {
		t.Errorf("%q, %v", img.name, img.attached)
	}
	second.mu.Unlock()
	again, err := c.Mount(Request{Image: "again"}, files[2])
	if err != nil || !again.Shared || again.ID != 3 {
		t.Errorf("%+v, %v", again, err)
	}
	fresh, err := c.Mount(Request{}, imageFile(t, "d"))
	if err != nil || fresh.ID != 4 {
		t.Errorf("%+v, %v", fresh, err)
	}
	for _, id := range []uint64{1, 3, 4} {
		second.w.server().ended <- id
	}
	eventually(t, "the store is empty", func() bool { return m.names() == "records" })
}

// do1 asks without the client's memory of what it has mounted.
func (l *link) do1(r *Request, files ...*os.File) error {
	reply, got, err := l.do(r, files...)
	closeAll(got)
	if err == nil && reply.Code != OK {
		err = &ServiceError{reply.Code, reply.Error}
	}
	return err
}

// stop ends a keeper.
func (r *running) stop(t *testing.T) {
	t.Helper()
	r.signals <- sigterm
	r.signals <- sigterm
	r.wait(t)
}

// An image whose descriptors are not all there ends; the others go on. What is in the store without a record is removed.
func TestPartsOfAnImage(t *testing.T) {
	m := newManager(t)
	t.Setenv(envNotify, m.socket)
	first := run(t, newWorld(t), Config{})
	c := dialed(t, first.socket)
	for range 3 {
		if _, err := c.Mount(Request{}, imageFile(t, "a")); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all is stored", func() bool { return strings.Count(m.names(), " ") == 9 })
	m.kill(t, first)
	m.mu.Lock()
	m.files["1.file"].Close()
	delete(m.files, "1.file")
	m.files["2.mount"].Close()
	delete(m.files, "2.mount")
	m.files["77.device"], _ = Sealed("77", nil)
	m.mu.Unlock()
	second := run(t, newWorld(t), Config{}, m.pass(t))
	dialed(t, second.socket)
	eventually(t, "the whole one is served", func() bool {
		second.mu.Lock()
		defer second.mu.Unlock()
		return len(second.images) == 2 && second.images[2].state == leaving && second.images[3].state == served
	})
	want := "2.device 2.file 3.device 3.file 3.mount records"
	eventually(t, "only what is of use is stored", func() bool { return m.names() == want })
}

// Records survive a keeper that dies while it writes them; what is no record is none.
func TestRecordFile(t *testing.T) {
	r, err := newRecordFile()
	if err != nil {
		t.Fatal(err)
	}
	defer r.f.Close()
	if _, err = (&recordFile{f: r.f}).read(); err == nil {
		t.Error("an empty file has records")
	}
	for n := range uint64(5) {
		if err = r.write(func() *records { return &records{Version: recordsVersion, NextID: n} }); err != nil {
			t.Fatal(err)
		}
	}
	got, err := (&recordFile{f: r.f}).read()
	if err != nil || got.NextID != 4 {
		t.Fatalf("%+v, %v", got, err)
	}
	// The newest is in the second place, and is torn now: that before it counts.
	if _, err = r.f.WriteAt([]byte("?"), recordPlace+int64(recordHead)+3); err != nil {
		t.Fatal(err)
	}
	if got, err = (&recordFile{f: r.f}).read(); err != nil || got.NextID != 3 {
		t.Fatalf("%+v, %v", got, err)
	}
	if _, err = r.f.WriteAt([]byte("?"), int64(recordHead)+3); err != nil {
		t.Fatal(err)
	}
	if _, err = (&recordFile{f: r.f}).read(); err == nil {
		t.Error("torn records were read")
	}
}

// Records of a later version are read as far as they are known.
func TestLaterRecords(t *testing.T) {
	m := newManager(t)
	t.Setenv(envNotify, m.socket)
	first := run(t, newWorld(t), Config{})
	if _, err := dialed(t, first.socket).Mount(Request{}, imageFile(t, "a")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all is stored", func() bool { return strings.Count(m.names(), " ") == 3 })
	m.kill(t, first)
	err := first.records.write(func() *records {
		r := first.snapshot()
		r.Version = recordsVersion + 1
		return r
	})
	if err != nil {
		t.Fatal(err)
	}
	second := run(t, newWorld(t), Config{}, m.pass(t))
	dialed(t, second.socket)
	eventually(t, "it is served", func() bool { return second.w.takeovers.Load() == 1 })
}

// SIGHUP: the program is replaced, by one that goes on with the same descriptors.
func TestUpgrade(t *testing.T) {
	socket := socketIn(t)
	started := make(chan *running, 1)
	first := run(t, newWorld(t), Config{Socket: socket}, func(k *keeper) {
		k.execve = func(_ string, _, env []string) error {
			passed, err := fromExec(strings.TrimPrefix(env[len(env)-1], envInherit+"="))
			if err != nil {
				return err
			}
			in := &inherited{files: map[string]*os.File{}}
			for _, p := range passed {
				flags, err := unix.FcntlInt(uintptr(p.fd), unix.F_GETFD, 0)
				if err != nil || flags&unix.FD_CLOEXEC != 0 {
					t.Errorf("%s: %x, %v", p.name, flags, err)
				}
				fd, err := unix.FcntlInt(uintptr(p.fd), unix.F_DUPFD_CLOEXEC, 0)
				if err != nil {
					return err
				}
				f := os.NewFile(uintptr(fd), p.name)
				if listens(fd) {
					in.listen = f
				} else {
					in.files[p.name] = f
				}
			}
			k.mu.Lock()
			for c := range k.clients {
				c.conn.Close()
			}
			k.mu.Unlock()
			second := run(t, newWorld(t), Config{Socket: socket}, func(k *keeper) {
				k.inherit = func() (*inherited, error) { return in, nil }
			})
			started <- second
			<-second.over
			return errors.New("not in a test")
		}
	})
	c := dialed(t, socket)
	c.Keep(slog.New(slog.DiscardHandler))
	f := imageFile(t, "a")
	if _, err := c.Mount(all, f); err != nil {
		t.Fatal(err)
	}
	first.signals <- unix.SIGHUP
	second := <-started
	eventually(t, "the client is with the new keeper", func() bool {
		second.mu.Lock()
		defer second.mu.Unlock()
		return len(second.images) == 1 && second.images[1] != nil && len(second.images[1].refs) == 1
	})
	if m, err := c.Mount(all, f); err != nil || !m.Shared || m.ID != 1 {
		t.Errorf("%+v, %v", m, err)
	}
	if _, err := os.Lstat(socket); err != nil {
		t.Error(err)
	}
	second.stop(t)
}

// A program that cannot be executed: the old one goes on, with the same images.
func TestUpgradeFails(t *testing.T) {
	failed := make(chan struct{}, 1)
	k := run(t, newWorld(t), Config{}, func(k *keeper) {
		k.execve = func(string, []string, []string) error {
			failed <- struct{}{}
			return unix.ENOEXEC
		}
	})
	c := dialed(t, k.socket)
	f := imageFile(t, "a")
	if _, err := c.Mount(all, f); err != nil {
		t.Fatal(err)
	}
	k.signals <- unix.SIGHUP
	<-failed
	eventually(t, "another server serves", func() bool { return k.w.takeovers.Load() == 1 })
	if m, err := c.Mount(all, f); err != nil || !m.Shared {
		t.Errorf("%+v, %v", m, err)
	}
	img := k.images1(t)
	err := withFD(img.device, func(fd int) error {
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if flags&unix.FD_CLOEXEC == 0 {
			t.Error("children would inherit the device")
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// Two services do not take each other's socket, what a dead one left is removed, and what is no socket stays.
func TestListen(t *testing.T) {
	k := run(t, newWorld(t), Config{})
	dialed(t, k.socket)
	attempt := func(socket string) error {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		return newKeeper(ctx, Config{Socket: socket}, newWorld(t).parts()).run(cancel)
	}
	if err := attempt(k.socket); err == nil || !strings.Contains(err.Error(), "another service") {
		t.Error(err)
	}
	// One without a lock, as systemd's.
	dir := t.TempDir()
	os.Chmod(dir, 0o755)
	alone := filepath.Join(dir, "alone")
	l, err := net.Listen("unixpacket", alone)
	if err != nil {
		t.Fatal(err)
	}
	if err = attempt(alone); err == nil || !strings.Contains(err.Error(), "another service") {
		t.Error(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	dialed(t, run(t, newWorld(t), Config{Socket: alone}).socket)

	file := filepath.Join(dir, "file")
	os.WriteFile(file, []byte("x"), 0o600)
	if err = attempt(file); err == nil {
		t.Error("it listens in place of a file")
	}
	if b, _ := os.ReadFile(file); string(b) != "x" {
		t.Error("the file is gone")
	}
	open := filepath.Join(dir, "open")
	os.Mkdir(open, 0o755)
	os.Chmod(open, 0o777|os.ModeSticky)
	if err = attempt(filepath.Join(open, "s")); err == nil {
		t.Error("it listens where others may write")
	}
	st, err := os.Stat(k.socket)
	if err != nil || st.Mode().Perm() != 0o666 {
		t.Error(st.Mode(), err)
	}
}

// systemd hears that the service is ready, that it is well, and that it ends.
func TestNotify(t *testing.T) {
	m := newManager(t)
	t.Setenv(envNotify, m.socket)
	t.Setenv(envDog, "100000")
	w := newWorld(t)
	k := run(t, w, Config{})
	dialed(t, k.socket)
	heard := func(what string) func() bool {
		return func() bool {
			m.mu.Lock()
			defer m.mu.Unlock()
			for _, s := range m.said {
				if strings.Contains(s, what) {
					return true
				}
			}
			return false
		}
	}
	for _, what := range []string{"READY=1", "WATCHDOG=1"} {
		eventually(t, what, heard(what))
	}
	k.stop(t)
	eventually(t, "STOPPING=1", heard("STOPPING=1"))
}

// What is passed on by exec is named.
func TestFromExec(t *testing.T) {
	got, err := fromExec("records=7,1.file=12,listen=3")
	if err != nil || fmt.Sprint(got) != "[{records 7} {1.file 12} {listen 3}]" {
		t.Error(got, err)
	}
	for _, bad := range []string{"x", "x=", "x=1", "=,", "a=3,b=-1"} {
		if _, err := fromExec(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}
