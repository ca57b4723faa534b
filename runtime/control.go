package runtime

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/internal/wire"
)

// A running container takes further commands. No namespace is entered for it: Go
// cannot enter a user namespace, and what is started by the init stage has all that
// the command has, and ends with it.
//
// The runner, outside of the container, listens on a socket that is named by its
// process id. It looks at who connects, and hands the connection to the init stage,
// which gets the command and its descriptors and starts it.

// controlName is the socket of the container whose runner is process pid. It is
// abstract: nothing is left of it when the runner is killed. Its name is the network
// namespace's.
func controlName(pid int) *net.UnixAddr {
	return &net.UnixAddr{Name: "@squire/" + strconv.Itoa(pid), Net: "unix"}
}

// execRequest is what a client wants to be run. Standard input, output and error come
// with it, unless it wants a terminal.
type execRequest struct {
	Command []string
	Workdir string // empty: the container's
	Environ []string
	KeepEnv []string
	SetEnv  []string

	Terminal      bool
	Rows, Columns int // of the terminal
}

// Fields makes it a wire.Message.
func (r *execRequest) Fields(c *wire.Coder) {
	c.Strings(&r.Command)
	wire.String(c, &r.Workdir)
	c.Strings(&r.Environ)
	c.Strings(&r.KeepEnv)
	c.Strings(&r.SetEnv)
	c.Bool(&r.Terminal)
	wire.Int(c, &r.Rows)
	wire.Int(c, &r.Columns)
}

// execReply says how it went: once when the command was started, with the terminal's
// other end, or could not be; and once when it has ended.
type execReply struct {
	Status int
	Error  string
}

// Fields makes it a wire.Message.
func (r *execReply) Fields(c *wire.Coder) {
	wire.Int(c, &r.Status)
	wire.String(c, &r.Error)
}

// admit accepts connections for the container until the socket is closed.
func (r *Runner) admit(socket *net.UnixListener) {
	for {
		conn, err := socket.AcceptUnix()
		if err != nil {
			return
		}
		if MayEnter(conn) {
			_ = sendConn(r.control, conn)
		}
		conn.Close()
	}
}

// MayEnter reports whether the process at the other end of conn may have commands run
// in our container: one of our user's that is in our user namespace, which those
// in a container are not, or root. What is in the container, and has perhaps less
// rights there than others, gains nothing.
func MayEnter(conn *net.UnixConn) (may bool) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return false
	}
	_ = raw.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil {
			return
		}
		if int(cred.Uid) != os.Geteuid() {
			may = cred.Uid == 0
			return
		}
		pidfd, err := peerPidfd(int(fd), int(cred.Pid))
		if err != nil {
			return
		}
		defer unix.Close(pidfd)
		theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/user", cred.Pid))
		if err != nil {
			return
		}
		ours, err := os.Readlink("/proc/self/ns/user")
		// It is still the one that connected, and no other has got its number.
		may = err == nil && theirs == ours && unix.PidfdSendSignal(pidfd, 0, nil, 0) == nil
	})
	return may
}

// peerPidfd refers to the process at the other end. Kernels before 6.5 only tell its
// number, which could be another's by now.
func peerPidfd(conn, pid int) (int, error) {
	fd, err := unix.GetsockoptInt(conn, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	if errors.Is(err, unix.ENOPROTOOPT) {
		return unix.PidfdOpen(pid, 0)
	}
	return fd, err
}

// sendConn sends a descriptor of conn.
func sendConn(to *os.File, conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	err = raw.Control(func(fd uintptr) {
		sent = unix.Sendmsg(int(to.Fd()), []byte{0}, unix.UnixRights(int(fd)), nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
	})
	return errors.Join(err, sent)
}

// session is a command that was added to the container.
type session struct {
	request execRequest
	files   []*os.File // 0, 1 and 2
	master  *os.File   // of its terminal, or nil

	started chan error // from the goroutine that forks
	ended   chan int   // its exit status
	pid     int        // 0 when it was reaped
	pidfd   int
}

// admit takes the connections that the runner has accepted.
func (t *task) admit(control *os.File) {
	for {
		_, files, err := receiveFiles(control, make([]byte, 1), 1)
		if err != nil {
			return
		}
		for _, f := range files {
			go t.serve(f)
		}
	}
}

// serve talks to one client.
func (t *task) serve(f *os.File) {
	conn, err := net.FileConn(f)
	f.Close()
	if err != nil {
		return
	}
	defer conn.Close()
	s := &session{started: make(chan error, 1), ended: make(chan int, 1), pidfd: -1}
	defer func() { closeFiles(append(s.files, s.master)) }()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second)) // it has all of it at hand
	if err = s.receive(conn.(*net.UnixConn)); err != nil {
		return
	}
	t.sessions <- s
	if err = <-s.started; err != nil {
		_ = writeMessage(conn, &execReply{Status: startFailed(err), Error: err.Error()})
		return
	}
	var with []*os.File
	if s.master != nil {
		with = []*os.File{s.master}
	}
	err = sendFiles(conn.(*net.UnixConn), &execReply{}, with...)
	closeFiles(append(s.files, s.master)) // the client has the only other end
	s.files, s.master = nil, nil
	_ = conn.SetDeadline(time.Time{})
	if err == nil {
		go t.passOn(conn, s)
	} else {
		t.kill(s)
	}
	_ = writeMessage(conn, &execReply{Status: <-s.ended})
}

// receive reads the request and its descriptors.
func (s *session) receive(conn *net.UnixConn) (err error) {
	if s.files, err = readFiles(conn, &s.request, 3); err != nil {
		return err
	}
	if want := map[bool]int{true: 0, false: 3}[s.request.Terminal]; len(s.files) != want {
		return fmt.Errorf("%d descriptors, want %d", len(s.files), want)
	}
	return nil
}

// passOn passes the client's signals on, each a byte, and ends the command when the
// client is gone.
func (t *task) passOn(conn net.Conn, s *session) {
	var b [1]byte
	for {
		if _, err := conn.Read(b[:]); err != nil {
			t.kill(s)
			return
		}
		t.mu.Lock()
		if s.pid != 0 {
			_ = unix.PidfdSendSignal(s.pidfd, unix.Signal(b[0]), nil, 0)
		}
		t.mu.Unlock()
	}
}

// kill ends a command and its process group.
func (t *task) kill(s *session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.pid != 0 { // so that nobody else has its number
		_ = unix.Kill(-s.pid, unix.SIGKILL)
	}
}

// startSession starts a command. It has to be called by the goroutine that started
// the first: that one's thread has given up what the others never had a use for.
func (t *task) startSession(s *session) error {
	r := &s.request
	if s.request.Terminal {
		master, slave, err := openPTY(r.Rows, r.Columns)
		if err != nil {
			return fmt.Errorf("make a terminal: %w", err)
		}
		s.master, s.files = master, []*os.File{slave, slave, slave}
	}
	dir := t.workdir
	if r.Workdir != "" {
		dir = path.Join("/", r.Workdir)
	}
	if fi, err := os.Stat(dir); err != nil || !fi.IsDir() {
		return &workdirError{dir}
	}
	env := t.environment(t.spec.with(r), dir)
	if len(r.Command) == 0 {
		return errNotFound
	}
	file, err := lookPathFrom(dir, r.Command[0], env)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	pid, err := syscall.ForkExec(file, r.Command, &syscall.ProcAttr{
		Dir:   dir,
		Env:   env,
		Files: []uintptr{s.files[0].Fd(), s.files[1].Fd(), s.files[2].Fd()},
		Sys:   &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setsid: true, Setctty: s.master != nil, PidFD: &s.pidfd},
	})
	if err != nil {
		return explainExec(file, err)
	}
	s.pid = pid
	t.running[pid] = s
	return nil
}

type workdirError struct{ dir string }

func (e *workdirError) Error() string { return "working directory " + e.dir + ": not in the container" }

// startFailed is the exit status for a command that was not started.
func startFailed(err error) int {
	var dir *workdirError
	switch {
	case errors.As(err, &dir):
		return ExitFailed
	case errors.Is(err, os.ErrNotExist):
		return ExitNotFound
	}
	return ExitNoExec
}

// with is the Spec of a further command: its environment is made by the same rules.
func (s *Spec) with(r *execRequest) *Spec {
	return &Spec{
		RemapRoot: s.RemapRoot,
		Environ:   r.Environ,
		KeepEnv:   append(s.KeepEnv[:len(s.KeepEnv):len(s.KeepEnv)], r.KeepEnv...),
		SetEnv:    append(s.SetEnv[:len(s.SetEnv):len(s.SetEnv)], r.SetEnv...),
	}
}

// lookPathFrom finds a program for a command that starts in another directory.
func lookPathFrom(dir, name string, env []string) (string, error) {
	if len(name) > 0 && name[0] != '/' && path.Base(name) != name {
		name = dir + "/" + name
	}
	return lookPath(name, env)
}

// openPTY makes a pseudo-terminal of the container's. The slave is opened through the
// master, not by a name that may lead elsewhere.
func openPTY(rows, columns int) (master, slave *os.File, err error) {
	if master, err = os.OpenFile("/dev/pts/ptmx", os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		return nil, nil, err
	}
	fd := int(master.Fd())
	if err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err == nil {
		err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: uint16(rows), Col: uint16(columns)})
	}
	var n uintptr
	if err == nil {
		var e syscall.Errno
		if n, _, e = unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC); e != 0 {
			err = e
		}
	}
	if err != nil {
		master.Close()
		return nil, nil, err
	}
	return master, os.NewFile(n, "terminal"), nil
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close() // none, or closed before, is an error and no harm
	}
}
