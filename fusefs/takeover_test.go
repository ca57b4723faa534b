package fusefs

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// The tests of this file have three processes, as a node service has: the test reads, a keeper holds the device and
// starts servers, one after the other. The keeper never looks at the mount.

// keptServer is what a keeper tells a server, and what that answers when its mount can be used.
type keptServer struct {
	Init     []byte
	NoResend bool
	Flags    uint64
	Error    string
}

const (
	keptDevice = 3
	keptSocket = 4
)

// serveKept is a server of a keeper: a line of the keeper ends it, the end of the keeper too.
func (r *role) serveKept() error {
	sock := os.NewFile(keptSocket, "keeper")
	defer runtime.KeepAlive(sock) // the keeper takes its end for that of this process
	syscall.CloseOnExec(keptSocket)
	dec, enc := json.NewDecoder(sock), json.NewEncoder(sock)
	var told keptServer
	if err := dec.Decode(&told); err != nil {
		return err
	}
	f, err := r.fs()
	if err != nil {
		return err
	}
	dev := os.NewFile(keptDevice, device)
	store, err := Clone(dev)
	if err != nil {
		return err
	}
	stop := make(chan struct{})
	go func() {
		var stopped keptServer
		if dec.Decode(&stopped) != nil {
			os.Exit(1)
		}
		close(stop)
	}()
	return f.Serve(Serving{
		Device: dev, Store: store, Resume: told.Init, NoResend: told.NoResend, Stop: stop,
		Ready: func(init []byte) { _ = enc.Encode(keptServer{Init: init, Flags: f.Flags()}) },
	})
}

// keep is the keeper. For each line of standard input it ends the server, by SIGKILL or by asking it to stop, has
// another one go on, and says so.
func (r *role) keep() error {
	runtime.LockOSThread() // a parent's death is that of the thread that forked
	time.AfterFunc(limit, func() { fatal(errors.New("kept for too long")) })
	dev := os.NewFile(keptDevice, device)
	syscall.CloseOnExec(keptDevice)
	s, err := r.startKept(dev, nil)
	if err != nil {
		return err
	}
	fmt.Println("ready", s.Flags)
	for {
		var how string
		if _, err = fmt.Scanln(&how); err != nil {
			_ = s.cmd.Process.Kill()
			return nil
		}
		if err = s.end(how); err != nil {
			return err
		}
		fmt.Println("ended", 0)
		if s, err = r.startKept(dev, s.Init); err != nil {
			return err
		}
		fmt.Println("again", s.Flags)
	}
}

// A kept is a server as its keeper sees it.
type kept struct {
	keptServer
	cmd  *exec.Cmd
	sock *os.File
}

func (r *role) startKept(dev *os.File, init []byte) (*kept, error) {
	local, remote, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer remote.Close()
	spec := *r
	spec.Keeper, spec.Kept = false, true
	if spec.NoResend {
		if dev, err = Clone(dev); err != nil {
			return nil, err
		}
		defer dev.Close()
	}
	s := &kept{cmd: exec.Command("/proc/self/exe"), sock: local}
	s.cmd.Env = append(os.Environ(), roleEnv+"="+mustJSON(spec), "GORACE=atexit_sleep_ms=0")
	s.cmd.ExtraFiles = []*os.File{dev, remote}
	s.cmd.Stderr = os.Stderr
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err = s.cmd.Start(); err != nil {
		return nil, err
	}
	if err = json.NewEncoder(local).Encode(keptServer{Init: init, NoResend: r.NoResend}); err != nil {
		return nil, err
	}
	if err = json.NewDecoder(local).Decode(&s.keptServer); err != nil {
		return nil, fmt.Errorf("server did not get ready: %w", err)
	}
	return s, nil
}

// end ends a server. It is dead when its socket is closed: its process may go on in a thread that waits for a page which
// the next server has to provide.
func (s *kept) end(how string) error {
	switch how {
	case "kill":
		_ = s.cmd.Process.Kill()
	case "stop":
		if err := json.NewEncoder(s.sock).Encode(keptServer{}); err != nil {
			return err
		}
	default:
		return fmt.Errorf("unknown command %q", how)
	}
	_, _ = io.Copy(io.Discard, s.sock)
	s.sock.Close()
	go func() {
		if err := s.cmd.Wait(); err != nil && how == "stop" {
			fatal(err)
		}
	}()
	return nil
}

// mountKept mounts r.Image, served by the servers of a keeper.
func mountKept(t *testing.T, r role) *server {
	t.Helper()
	needRoot(t)
	s := &server{t: t, dir: t.TempDir()}
	dev, err := Mount(s.dir, MountOptions{})
	if err != nil {
		t.Fatal(err)
	}
	r.Keeper = true
	abort := abortPath(t, s.dir)
	s.start(r, self(t), dev)
	dev.Close()
	// A thread that hangs keeps the device open, so this alone is sure to free whoever hangs on the mount.
	free := func() { _ = os.WriteFile(abort, []byte("1"), 0) }
	watchdog := time.AfterFunc(limit, free)
	t.Cleanup(func() {
		watchdog.Stop()
		if t.Failed() {
			free()
		}
	})
	s.awaitKept("ready")
	return s
}

// awaitKept waits until a server is ready, and returns the flags of INIT.
func (s *server) awaitKept(word string) (flags uint64) {
	s.t.Helper()
	line, err := s.out.ReadString('\n')
	if n, _ := fmt.Sscanf(line, word+" %d\n", &flags); n != 1 {
		s.t.Fatalf("keeper said %q (%v): %s", line, err, s.log.String())
	}
	return flags
}

// next ends the server and has another one go on.
func (s *server) next(how string) (flags uint64) {
	s.t.Helper()
	s.endServer(how)
	return s.awaitKept("again")
}

// endServer is the first half of next.
func (s *server) endServer(how string) {
	s.t.Helper()
	if _, err := fmt.Fprintln(s.in, how); err != nil {
		s.t.Fatal(err, s.log.String())
	}
	s.awaitKept("ended")
}

// endKept ends the keeper, and with it the mount.
func (s *server) endKept() {
	s.in.Close()
	s.stop()
}

// keptTree makes an image with files of all kinds of blocks, and returns the contents of its files by name.
func keptTree(t *testing.T) (image string, files map[string][]byte) {
	t.Helper()
	tree, rng := t.TempDir(), rand.New(rand.NewPCG(8, 1))
	files = make(map[string][]byte)
	for i := range 60 {
		data := make([]byte, 1+rng.IntN(1<<(10+i%12)))
		for k := range data {
			data[k] = byte(rng.Uint32() & 0x0f)
		}
		name := fmt.Sprintf("%02d", i)
		files[name] = data
		if err := os.WriteFile(filepath.Join(tree, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return mksquashfs(t, tree, "-comp", "zstd"), files
}

// readers read the files of s, over and over, and look for files that are not there, until stop is called. lost, which
// may be nil, is called with errors that a server may leave behind.
func (s *server) readers(files map[string][]byte, lost func(error)) (stop func()) {
	var names []string
	for name := range files {
		names = append(names, name)
	}
	if lost == nil {
		lost = func(err error) { s.t.Error(err) }
	}
	var done atomic.Bool
	var running sync.WaitGroup
	for i := range uint64(4) {
		running.Go(func() {
			rng := rand.New(rand.NewPCG(i, 2))
			for !done.Load() {
				name := names[rng.IntN(len(names))]
				s.readOnce(name, files[name], lost)
				if _, err := os.Lstat(s.path(fmt.Sprint("none", i, rng.Uint64()))); !os.IsNotExist(err) {
					lost(err)
				}
			}
		})
	}
	return func() {
		s.t.Helper()
		done.Store(true)
		ended := make(chan struct{})
		go func() { running.Wait(); close(ended) }()
		select {
		case <-ended:
		case <-time.After(moment):
			s.t.Fatal("a reader hangs")
		}
	}
}

func (s *server) readOnce(name string, want []byte, lost func(error)) {
	f, err := os.Open(s.path(name))
	if err != nil {
		lost(err)
		return
	}
	defer f.Close()
	got, err := io.ReadAll(f)
	if errors.Is(err, unix.ECONNABORTED) {
		lost(err)
		return
	}
	if err != nil || !bytes.Equal(got, want) {
		s.t.Errorf("%s: %d bytes of %d, or wrong ones: %v", name, len(got), len(want), err)
	}
	// So that it has to be read again. Nothing here uses the pages.
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
}

// TestKill kills servers while others read: nobody is to notice. It is how 19 of 80 servers left everybody hanging, when
// what they had taken was not answered by the next one.
func TestKill(t *testing.T) {
	image, files := keptTree(t)
	s := mountKept(t, role{Image: image, Delay: time.Millisecond})
	stop := s.readers(files, nil)
	for i := range 60 {
		time.Sleep(time.Duration(i%7) * 10 * time.Millisecond)
		s.next("kill")
	}
	stop()
	s.endKept()
}

// TestResendAgain has what a server has taken come to it once more, while it works on that.
func TestResendAgain(t *testing.T) {
	image, files := keptTree(t)
	s := mountKept(t, role{Image: image, Delay: 20 * time.Millisecond, Again: 30 * time.Millisecond})
	stop := s.readers(files, nil)
	for range 10 {
		s.next("kill")
		time.Sleep(60 * time.Millisecond)
	}
	stop()
	s.endKept()
}

// TestKillBeforeInit has a server die that has taken INIT and not answered it.
func TestKillBeforeInit(t *testing.T) {
	needRoot(t)
	s := &server{t: t, dir: t.TempDir()}
	dev, err := Mount(s.dir, MountOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	thief := exec.Command(self(t))
	thief.Env = append(os.Environ(), roleEnv+"="+mustJSON(role{Thief: true}))
	thief.ExtraFiles = []*os.File{dev}
	if out, err := thief.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	s.start(role{Image: smallImage(t)}, self(t), dev)
	dev.Close()
	s.awaitReady()
	if data, err := os.ReadFile(s.path("hello")); string(data) != "hello\n" {
		t.Errorf("read %q, %v", data, err)
	}
}

// TestStop is TestKill with servers that are asked to stop, as for an upgrade.
func TestStop(t *testing.T) {
	image, files := keptTree(t)
	s := mountKept(t, role{Image: image, Delay: time.Millisecond})
	stop := s.readers(files, nil)
	for i := range 60 {
		time.Sleep(time.Duration(i%7) * 10 * time.Millisecond)
		s.next("stop")
	}
	stop()
	s.endKept()
}

// TestKillWithoutResend is TestKill with servers on clones of the device, as before Linux 6.9: who waits for one that is
// killed is told, but nobody hangs.
func TestKillWithoutResend(t *testing.T) {
	image, files := keptTree(t)
	s := mountKept(t, role{Image: image, Delay: time.Millisecond, NoResend: true})
	stop := s.readers(files, func(err error) {
		if !errors.Is(err, unix.ECONNABORTED) {
			t.Error(err)
		}
	})
	for i := range 60 {
		time.Sleep(time.Duration(i%7) * 10 * time.Millisecond)
		s.next("kill")
	}
	stop()
	s.endKept()
}

// TestIDMap wants idmapped mounts if, and only if, they are asked for, and a later server to know of it.
func TestIDMap(t *testing.T) {
	image := smallImage(t)
	for _, asked := range []bool{true, false} {
		s := mountKept(t, role{Image: image, IDMap: asked})
		flags := s.next("kill")
		err := idmapped(t, s.dir)
		switch granted := flags&AllowIDMap != 0; {
		case granted && !asked:
			t.Error("allowed without having been asked for")
		case granted != (err == nil):
			t.Errorf("asked for: %v, flag: %v, idmapped mount: %v", asked, granted, err)
		}
		s.endKept()
	}
}

// idmapped makes an idmapped clone of a mount, with the user namespace of a process that shows 0 as 1000.
func idmapped(t *testing.T, dir string) error {
	t.Helper()
	cmd := exec.Command("sleep", "60")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 1000, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 1000, Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	if err := cmd.Start(); err != nil {
		t.Skip("needs user namespaces: ", err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	mnt, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(mnt)
	return unix.MountSetattr(mnt, "", unix.AT_EMPTY_PATH,
		&unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd())})
}

// TestInitState refuses what is not the state of this mount.
func TestInitState(t *testing.T) {
	f := openImage(t, smallImage(t), Options{})
	good := newInitState(f, make([]byte, minInit), make([]byte, minInitAnswer))
	good.Request[4] = opInit
	for name, test := range map[string]struct {
		change func(*initState)
		want   string
	}{
		"version": {func(s *initState) { s.Version++ }, "version 2"},
		"request": {func(s *initState) { s.Request = s.Request[:minInit-1] }, "no INIT"},
		"opcode":  {func(s *initState) { s.Request = make([]byte, minInit) }, "no INIT"},
		"answer":  {func(s *initState) { s.Answer = nil }, "no answer"},
		"image":   {func(s *initState) { s.Image.Time++ }, "another image"},
		"major":   {func(*initState) {}, "go on with a mount"}, // go-fuse refuses version 0
	} {
		t.Run(name, func(t *testing.T) {
			s := *good
			test.change(&s)
			refused(t, f, s.encode(), test.want)
		})
	}
	refused(t, f, []byte("{"), "read its state")
	refused(t, f, []byte{}, "read its state")
	refused(t, f, make([]byte, maxInitState+1), "more than")
}

func FuzzInitState(f *testing.F) {
	served := openImage(f, smallImage(f), Options{})
	good := newInitState(served, make([]byte, minInit), make([]byte, minInitAnswer))
	good.Request[4], good.Request[40], good.Request[44] = opInit, 7, 40
	f.Add(good.encode())
	f.Fuzz(func(t *testing.T, state []byte) {
		t2 := &transport{fs: served, ps: fuse.NewProtocolServer(served, served.protocolOptions())}
		if err := t2.resume(state); err == nil && t2.resume(state) != nil {
			t.Error("not taken twice")
		}
	})
}

func refused(t *testing.T, f *FS, state []byte, want string) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	err = f.Serve(Serving{Device: r, Resume: state, Ready: func([]byte) { t.Error("ready") }})
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%v, want %q", err, want)
	}
}
