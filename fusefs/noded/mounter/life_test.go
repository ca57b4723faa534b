package mounter

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/fusefs"
	"github.com/squirefs/squire/internal/testenv"
	"github.com/squirefs/squire/internal/wire"
)

// keeperTest is a process that starts a mounter, tells its number, and waits to be killed.
func keeperTest() error {
	c, err := start(setup{})
	if err != nil {
		return err
	}
	fmt.Println(c.proc.Pid)
	_, _ = os.Stdin.Read(make([]byte, 1))
	return errors.New("not killed")
}

// A mounter and its helper end with the keeper, however that ends, and stopped ones too.
func TestEndsWithKeeper(t *testing.T) {
	needLocker(t)
	for _, stopped := range []bool{false, true} {
		in, hold, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		keeper, err := os.StartProcess("/proc/self/exe", []string{keeperName}, &os.ProcAttr{Files: []*os.File{in, w, os.Stderr}})
		w.Close()
		in.Close()
		if err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(r).ReadString('\n')
		r.Close()
		pid, err2 := strconv.Atoi(strings.TrimSpace(line))
		if err = errors.Join(err, err2); err != nil {
			_ = keeper.Kill()
			t.Fatal(err)
		}
		defer func() { _ = keeper.Kill() }()
		family := append([]int{pid}, lockersOf(t, pid)...)
		var pidfds []int
		for _, pid := range family {
			fd, err := unix.PidfdOpen(pid, 0)
			if err != nil {
				t.Fatal(err)
			}
			pidfds = append(pidfds, fd)
			if stopped {
				_ = unix.Kill(pid, unix.SIGSTOP)
			}
		}
		_ = keeper.Kill()
		_, _ = keeper.Wait()
		hold.Close()
		for i, fd := range pidfds {
			if !endsSoon(fd) {
				t.Errorf("stopped %v: process %d of %d outlives the keeper", stopped, i+1, len(pidfds))
				_ = unix.Kill(family[i], unix.SIGKILL)
			}
			unix.Close(fd)
		}
		if len(pidfds) != 2 {
			t.Errorf("%d processes, want mounter and locker", len(pidfds))
		}
	}
}

// lockersOf waits for the locker of a mounter. Go has children of its own for a moment, by which it learns what the
// kernel can.
func lockersOf(t *testing.T, mounter int) (pids []int) {
	t.Helper()
	for end := deadline(); len(pids) == 0 && time.Now().Before(end); time.Sleep(time.Millisecond) {
		for _, pid := range testenv.Children(mounter) {
			line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			if err == nil && string(line) == lockerName+"\x00" {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

func endsSoon(pidfd int) bool {
	for end := deadline(); time.Now().Before(end); {
		n, _ := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 1000)
		if n > 0 {
			return true
		}
	}
	return false
}

// What a mounter does not need it does not have, and in its namespace there is nothing of the host.
func TestRights(t *testing.T) {
	needLocker(t)
	for _, s := range []setup{{}, {NoPivot: true}} {
		c := startMounter(t, s)
		if _, _, err := c.Attached(nil, nil); err != nil {
			t.Fatal(err)
		}
		helpers := lockersOf(t, c.proc.Pid)
		m := served(t, c, hostileImage(t), "idmap", Options{Source: "image", Everybody: true})
		clone, err := c.Grant(1, m.Mount, Grantee{Owner: testUser, IDMap: true})
		if err != nil {
			t.Fatal(err)
		}
		clone.Close()
		want := map[int][]string{c.proc.Pid: {"NoNewPrivs:\t1", "CapEff:\t00000000002c00c0", "CapPrm:\t00000000002c00c0"}}
		for _, pid := range helpers {
			want[pid] = []string{"NoNewPrivs:\t1", "CapEff:\t0000000000200000", "Uid:\t4294967294", "Groups:\t \n"}
		}
		if len(want) != 2 {
			t.Errorf("%d processes", len(want))
		}
		for pid, lines := range want {
			status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
			if err != nil {
				t.Fatal(err)
			}
			for _, line := range lines {
				if !strings.Contains(string(status), line) {
					t.Errorf("%q is not in the status of\n%s", line, status)
				}
			}
			mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
			if err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(string(mounts)) {
				if f := strings.Fields(line); f[4] != "/" && f[4] != "/proc" && !strings.HasPrefix(f[4], "/proc/") && f[4] != "/1-1500-1501-7" {
					t.Errorf("NoPivot %v: in the namespace is %s", s.NoPivot, line)
				}
			}
		}
	}
}

// Once an image is dropped, nothing of a mounter's keeps its superblock, also not a locker that was started when there
// were mounts already.
func TestDropAfterRestart(t *testing.T) {
	needLocker(t)
	image := hostileImage(t)
	for _, s := range []setup{{}, {NoDetached: true}} {
		c := startMounter(t, s)
		m, err := c.Mount(Options{Source: "image", Everybody: true})
		if err != nil {
			t.Fatal(err)
		}
		ended, err := startEnding(t, image, m.Device)
		m.Device.Close()
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			for _, to := range []Grantee{{Owner: testUser, IDMap: true}, {Owner: testUser}, {Root: true}} {
				clone, err := c.Grant(7, m.Mount, to)
				if err != nil {
					t.Fatal(err)
				}
				clone.Close()
			}
			for _, pid := range testenv.Children(c.proc.Pid) {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
		clone, err := c.Grant(7, m.Mount, Grantee{Owner: testUser, IDMap: true})
		if err != nil {
			t.Fatal(err)
		}
		clone.Close()
		m.Mount.Close()
		c.Drop(7)
		if !endsSoon(ended) {
			t.Errorf("%+v: the superblock is kept after all", s)
		}
		unix.Close(ended)
	}
}

// startEnding starts a server that must end with its mount, and returns a pidfd of it.
func startEnding(t *testing.T, image string, device *os.File) (pidfd int, err error) {
	end, proc, err := startServer(image, "idmap", device)
	if err != nil {
		return -1, err
	}
	t.Cleanup(end)
	return unix.PidfdOpen(proc.Pid, 0)
}

// Who waits for a directory on a file system that does not answer waits alone, for a bounded time, and does not keep the
// mounter from ending.
func TestHungDirectory(t *testing.T) {
	needRoot(t)
	c := startMounter(t, setup{})
	image := hostileImage(t)
	m, err := c.Mount(Options{Source: "hung", Everybody: true})
	if err != nil {
		t.Fatal(err)
	}
	end, server, err := startServer(image, "idmap", m.Device)
	m.Device.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer end()
	defer m.Mount.Close()
	clone := func() *os.File {
		t.Helper()
		f, err := c.Grant(1, m.Mount, Grantee{Root: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	user := peer(t, testUID, 0)
	dir, fd := placeFor(t, testUID, testGID, 0o700)
	if _, err = c.Attach(clone(), fd, user, testUser); err != nil {
		t.Fatal(err)
	}
	top, err := openPath(dir) // the root of the mount, which is asked for its type
	if err != nil {
		t.Fatal(err)
	}
	defer top.Close()
	if err = server.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	hung := make(chan error)
	const many = maxWaiting + 3
	for range many {
		clone := clone()
		go func() {
			_, err := c.Attach(clone, top, user, testUser)
			hung <- err
		}()
	}
	late, refused := 0, 0
	for range many {
		switch err := <-hung; {
		case errors.Is(err, unix.ETIMEDOUT):
			late++
		case errors.Is(err, unix.EBUSY):
			refused++
		default:
			t.Error(err)
		}
	}
	if refused != many-maxWaiting || late != maxWaiting {
		t.Errorf("%d were refused and %d had no answer in time", refused, late)
	}
	_, fd = placeFor(t, testUID, testGID, 0o700)
	if _, err = c.Attach(clone(), fd, user, testUser); !errors.Is(err, unix.EBUSY) {
		t.Errorf("one more: %v", err)
	}
	c.Close()
	select {
	case <-c.Done():
	case <-time.After(time.Until(deadline())):
		t.Error("the mounter does not end")
	}
}

// Requests of any bytes neither panic nor are mistaken for others.
func FuzzRequest(f *testing.F) {
	f.Add(wire.Encode(&request{
		Seq: 1, Do: doDetach, Source: "image", Owner: fusefs.Owner{UID: 1, GID: 2}, ID: 3, Root: true, Attrs: 7,
		Base: "dir", IDs: []uint64{1, 2}, Numbers: []uint64{3},
	}))
	f.Add(wire.Encode(&setup{Own: true}))
	f.Fuzz(func(t *testing.T, b []byte) {
		var r request
		if wire.Decode(b, &r) != nil {
			return
		}
		var again request
		if err := wire.Decode(wire.Encode(&r), &again); err != nil || fmt.Sprint(r) != fmt.Sprint(again) {
			t.Errorf("%+v became %+v: %v", r, again, err)
		}
	})
}

// BenchmarkGrant measures the first grant to a user, which makes a user namespace and attaches a clone, and further ones.
func BenchmarkGrant(b *testing.B) {
	needLocker(b)
	image := hostileImage(b)
	for name, to := range map[string]func(i int) Grantee{
		"first": func(i int) Grantee { return Grantee{Owner: fusefs.Owner{UID: uint32(10000 + i), GID: 1}, IDMap: true} },
		"next":  func(int) Grantee { return Grantee{Owner: testUser, IDMap: true} },
		"root":  func(int) Grantee { return Grantee{Root: true} },
	} {
		b.Run(name, func(b *testing.B) {
			c := startMounter(b, setup{})
			m := served(b, c, image, "idmap", Options{Source: "image", Everybody: true})
			if clone, err := c.Grant(1, m.Mount, Grantee{Owner: testUser, IDMap: true}); err != nil {
				b.Fatal(err)
			} else {
				clone.Close()
			}
			i := 0
			for b.Loop() {
				clone, err := c.Grant(1, m.Mount, to(i))
				if err != nil {
					b.Fatal(err)
				}
				clone.Close()
				i++
			}
		})
	}
}
