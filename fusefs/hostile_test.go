package fusefs

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime/debug"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/internal/testenv"
	"github.com/squirefs/squire/sqfs"
	"github.com/squirefs/squire/testdata/hostile"
)

// What a server may use for one image, and how long the kernel may wait for it.
const (
	hostileCPU    = 2 * time.Second
	hostileMemory = 256 << 20
	hostileLimit  = moment
)

// TestHostile mounts all images of package hostile and looks at all that the kernel shows.
// One process serves them one after the other, so that its memory and time are seen for each.
func TestHostile(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	var s *hostileServer
	defer func() { s.stop() }()
	for img := range hostile.Images() {
		t.Run(img.Name, func(t *testing.T) {
			if s == nil {
				s = startHostile(t)
			}
			if !s.check(t, dir, img) {
				s.stop()
				s = nil
			}
		})
	}
}

// report is what the server says: first that it serves, or why it does not, then what it took.
type report struct {
	Refused     string
	Unsupported bool
	CPU         time.Duration
	Memory      int64
}

// hostileServer is a process that takes devices to serve.
type hostileServer struct {
	cmd  *exec.Cmd
	conn *net.UnixConn
	in   *json.Decoder
	log  testenv.Buffer
}

func startHostile(t *testing.T) *hostileServer {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "socket")
	defer theirs.Close()
	s := &hostileServer{conn: socket(t, pair[0])}
	s.in = json.NewDecoder(s.conn)
	s.cmd = exec.Command(self(t))
	s.cmd.Env = append(os.Environ(), roleEnv+"="+mustJSON(role{Hostile: true}), "GORACE=atexit_sleep_ms=0")
	s.cmd.ExtraFiles = []*os.File{theirs}
	s.cmd.Stderr = &s.log
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return s
}

func socket(t *testing.T, fd int) *net.UnixConn {
	t.Helper()
	f := os.NewFile(uintptr(fd), "socket")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	return c.(*net.UnixConn)
}

func (s *hostileServer) stop() {
	if s == nil {
		return
	}
	s.conn.Close()
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
}

// check mounts one image and looks at it. It returns false if the server is of no use any more.
func (s *hostileServer) check(t *testing.T, dir string, img *hostile.Image) bool {
	dev, err := Mount(dir, MountOptions{})
	if err != nil {
		t.Fatal(err)
	}
	mounted := true
	defer func() {
		if mounted {
			_ = Unmount(dir, true)
		}
	}()
	killed := time.AfterFunc(hostileLimit, func() { _ = s.cmd.Process.Kill() })
	defer killed.Stop()
	_, _, err = s.conn.WriteMsgUnix([]byte(img.Name+"\n"), unix.UnixRights(int(dev.Fd())), nil)
	dev.Close() // else the mount would outlive its server
	if err != nil {
		t.Error(err)
		return false
	}
	var r report
	if err := s.in.Decode(&r); err != nil {
		t.Errorf("server: %v: %s", err, s.log.String())
		return false
	}
	switch {
	case r.Refused == "":
		for _, p := range img.Check(hostile.DirView(dir), img.Body()) {
			t.Error(p)
		}
		if img.Want == hostile.Refuse {
			t.Errorf("mounted, but %s", img.Wrong)
		}
	case !r.Unsupported && img.Want != hostile.Refuse && (img.Want != hostile.Either || len(img.Bad) > 0):
		t.Error(r.Refused)
	}
	if err := Unmount(dir, true); err != nil {
		t.Error(err)
	}
	mounted = false
	if err := s.in.Decode(&r); err != nil {
		t.Errorf("server ended: %v: %s", err, s.log.String())
		return false
	}
	if raceEnabled {
		return true
	}
	if r.CPU > hostileCPU || r.Memory > hostileMemory {
		t.Errorf("took %v of CPU time and %d MiB, want at most %v and %d", r.CPU, r.Memory>>20, hostileCPU, hostileMemory>>20)
	}
	return true
}

// serveHostile serves a device for each name that comes from descriptor 3.
func serveHostile() error {
	f := os.NewFile(3, "socket")
	c, err := net.FileConn(f)
	if err != nil {
		return err
	}
	conn := c.(*net.UnixConn)
	out := json.NewEncoder(conn)
	images := map[string]*hostile.Image{}
	for img := range hostile.Images() {
		images[img.Name] = img
	}
	name, rights := make([]byte, 256), make([]byte, unix.CmsgSpace(4))
	for {
		n, k, _, _, err := conn.ReadMsgUnix(name, rights)
		if errors.Is(err, io.EOF) || n == 0 {
			return nil
		}
		if err != nil {
			return err
		}
		messages, err := unix.ParseSocketControlMessage(rights[:k])
		if err != nil {
			return err
		}
		fds, err := unix.ParseUnixRights(&messages[0])
		if err != nil {
			return err
		}
		if err := serveOne(images[string(name[:n-1])], os.NewFile(uintptr(fds[0]), "/dev/fuse"), out); err != nil {
			return err
		}
	}
}

// serveOne serves one image, and reports that it does and what it took.
func serveOne(img *hostile.Image, dev *os.File, out *json.Encoder) error {
	body := img.Body()
	debug.FreeOSMemory()
	_ = os.WriteFile("/proc/self/clear_refs", []byte("5"), 0) // VmHWM begins anew
	begin := userTime()
	opened, err := sqfs.New(body, body.Size, nil)
	var r report
	if err != nil {
		r.Refused = err.Error()
		r.Unsupported = errors.Is(err, sqfs.ErrUnsupported) // lzma and lzo have no decoder yet
		dev.Close()
		err = out.Encode(r)
	} else {
		err = New(opened, Options{}).Serve(Serving{Device: dev, Ready: func([]byte) { _ = out.Encode(r) }})
	}
	if err != nil {
		return fmt.Errorf("%s: %w", img.Name, err)
	}
	status, _ := os.ReadFile("/proc/self/status")
	return out.Encode(report{CPU: userTime() - begin, Memory: hostile.Peak(status)})
}

// userTime returns the CPU time of this process.
func userTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
