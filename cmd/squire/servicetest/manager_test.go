package servicetest

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// manager stands in for systemd (sd_notify(3), sd_listen_fds(3), systemd.service(5)): it makes the socket, keeps the
// descriptors that the daemon's main process stores, and when that dies starts it again with all of them, whatever the
// cgroup has left (KillMode=process).
type manager struct {
	*daemon
	t      *testing.T
	flags  []string
	listen *os.File
	notify *net.UnixConn

	mu      sync.Mutex
	store   []stored
	main    int
	starts  int
	ready   int // of these starts, how many said so
	dogs    int // WATCHDOG=1
	strange []string
	over    bool
	done    chan struct{}
}

type stored struct {
	name string
	file *os.File
	poll bool // removed when it has an error: FDPOLL=0 switches that off
}

// manage starts a daemon under a manager.
func (l *lab) manage(t *testing.T, flags ...string) *manager {
	t.Helper()
	m := &manager{daemon: l.newDaemon(t), t: t, flags: flags, done: make(chan struct{})}
	addr := &net.UnixAddr{Name: m.socket, Net: "unixpacket"}
	lis, err := net.ListenUnix("unixpacket", addr)
	if err != nil {
		t.Fatal(err)
	}
	lis.SetUnlinkOnClose(false)
	if m.listen, err = lis.File(); err != nil {
		t.Fatal(err)
	}
	lis.Close()
	if err = os.Chmod(m.socket, 0o666); err != nil {
		t.Fatal(err)
	}
	m.notify, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(m.home, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	if err = setPasscred(m.notify); err != nil {
		t.Fatal(err)
	}
	go m.hear()
	go m.supervise()
	t.Cleanup(m.end)
	m.wantAnswer(t)
	return m
}

func setPasscred(c *net.UnixConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1) })
	return errors.Join(err, failed)
}

// hear takes in notifications.
func (m *manager) hear() {
	b, oob := make([]byte, 8<<10), make([]byte, 4<<10)
	for {
		n, oobn, _, _, err := m.notify.ReadMsgUnix(b, oob)
		if err != nil {
			return
		}
		files, pid := parseControl(oob[:oobn])
		m.mu.Lock()
		if pid != m.main {
			m.strange = append(m.strange, fmt.Sprintf("process %d, not the main one, says %q", pid, b[:n]))
		} else {
			files = m.take(strings.Split(strings.TrimSpace(string(b[:n])), "\n"), files)
		}
		m.mu.Unlock()
		for _, f := range files {
			f.Close()
		}
	}
}

func parseControl(oob []byte) (files []*os.File, pid int) {
	msgs, _ := unix.ParseSocketControlMessage(oob)
	for i := range msgs {
		if fds, err := unix.ParseUnixRights(&msgs[i]); err == nil {
			for _, fd := range fds {
				files = append(files, os.NewFile(uintptr(fd), "stored"))
			}
		}
		if cred, err := unix.ParseUnixCredentials(&msgs[i]); err == nil {
			pid = int(cred.Pid)
		}
	}
	return files, pid
}

// take acts on one notification, and returns the files that it has no use for. The lock is held.
func (m *manager) take(lines []string, files []*os.File) []*os.File {
	says := make(map[string]string)
	for _, line := range lines {
		key, value, _ := strings.Cut(line, "=")
		says[key] = value
	}
	switch {
	case says["FDSTORE"] == "1":
		for _, f := range files {
			m.keep(stored{says["FDNAME"], f, says["FDPOLL"] != "0"})
		}
		return nil
	case says["FDSTOREREMOVE"] == "1":
		m.forget(func(s stored) bool { return s.name == says["FDNAME"] })
	}
	if says["READY"] == "1" {
		m.ready++
	}
	if says["WATCHDOG"] == "1" {
		m.dogs++
	}
	return files
}

// keep stores a descriptor, unless it is one that is there already.
func (m *manager) keep(n stored) {
	for _, s := range m.store {
		const kcmpFile = 0 // linux/kcmp.h: KCMP_FILE
		same, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(os.Getpid()), uintptr(os.Getpid()), kcmpFile, s.file.Fd(), n.file.Fd(), 0)
		if errno == 0 && same == 0 {
			n.file.Close()
			return
		}
	}
	m.store = append(m.store, n)
}

// forget drops those that which says.
func (m *manager) forget(which func(stored) bool) {
	left := m.store[:0]
	for _, s := range m.store {
		if which(s) {
			s.file.Close()
		} else {
			left = append(left, s)
		}
	}
	m.store = left
}

// failed reports whether a descriptor polls as one that is of no more use (service_dispatch_fd_store).
func (s stored) failed() bool {
	fds := []unix.PollFd{{Fd: int32(s.file.Fd())}}
	n, err := unix.Poll(fds, 0)
	return s.poll && err == nil && n > 0 && fds[0].Revents&(unix.POLLERR|unix.POLLHUP) != 0
}

// supervise starts the daemon whenever there is none.
func (m *manager) supervise() {
	defer close(m.done)
	for {
		m.mu.Lock()
		if m.over {
			m.mu.Unlock()
			return
		}
		m.forget(stored.failed)
		cmd := m.command()
		err := cmd.Start()
		if err == nil {
			m.main = cmd.Process.Pid
			m.starts++
		}
		m.mu.Unlock()
		if err != nil {
			m.t.Error(err)
			return
		}
		_ = cmd.Wait()
	}
}

// command is the daemon with what was stored. The lock is held.
func (m *manager) command() *exec.Cmd {
	// A shell, as LISTEN_PID is that of the process that is yet to be.
	cmd := exec.Command("/bin/sh", append([]string{"-c", `LISTEN_PID=$$ exec "$0" "$@"`, m.exe}, m.args(m.flags...)...)...)
	names := []string{"squire.socket"}
	cmd.ExtraFiles = []*os.File{m.listen}
	for _, s := range m.store {
		names = append(names, s.name)
		cmd.ExtraFiles = append(cmd.ExtraFiles, s.file)
	}
	cmd.Env = []string{
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin",
		fmt.Sprintf("LISTEN_FDS=%d", len(names)), "LISTEN_FDNAMES=" + strings.Join(names, ":"),
		"NOTIFY_SOCKET=" + filepath.Join(m.home, "notify"), "WATCHDOG_USEC=2000000",
	}
	cmd.Dir, cmd.Stderr = "/", m.log
	cmd.WaitDelay = time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd
}

// killMain kills the keeper, with SIGKILL.
func (m *manager) killMain() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.main != 0 {
		_ = syscall.Kill(m.main, syscall.SIGKILL)
	}
}

// signal sends the keeper a signal.
func (m *manager) signal(s syscall.Signal) {
	m.mu.Lock()
	defer m.mu.Unlock()
	_ = syscall.Kill(m.main, s)
}

// counts returns how often the daemon was started and how often it said that it is ready.
func (m *manager) counts() (starts, ready int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.starts, m.ready
}

func (m *manager) stores() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var names []string
	for _, s := range m.store {
		names = append(names, s.name)
	}
	return names
}

func (m *manager) end() {
	m.mu.Lock()
	m.over = true
	m.mu.Unlock()
	killAll(m.processes)
	<-m.done
	m.notify.Close()
	m.listen.Close()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.forget(func(stored) bool { return true })
	for _, s := range m.strange {
		m.t.Error(s)
	}
}
