package runtime

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ExecSpec is a command for a container that runs.
type ExecSpec struct {
	PID     int      // of any process in the container, or of the runner
	Command []string // Empty: /bin/sh
	Workdir string   // Empty: the container's
	Environ []string // of the caller, merged as for the first command
	KeepEnv []string
	SetEnv  []string
}

// Exec runs a command in a container with this process's standard input, output and
// error, and returns its exit status. Where input and output are a terminal, the
// command gets one of its own, whose contents are copied. Signals are passed on.
// When this process is gone, the command is ended.
func Exec(e *ExecSpec) (int, error) {
	s := Spec{Command: e.Command, Workdir: e.Workdir, KeepEnv: e.KeepEnv, SetEnv: e.SetEnv}
	if err := s.check(); err != nil {
		return 0, err
	}
	conn, err := dialContainer(e.PID)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	signals := catchSignals()
	r := &execRequest{Command: e.Command, Workdir: e.Workdir, Environ: e.Environ, KeepEnv: e.KeepEnv, SetEnv: e.SetEnv}
	if len(r.Command) == 0 {
		r.Command = []string{"/bin/sh"}
	}
	files := []*os.File{os.Stdin, os.Stdout, os.Stderr}
	size, err := unix.IoctlGetWinsize(0, unix.TIOCGWINSZ)
	if _, notOut := unix.IoctlGetWinsize(1, unix.TIOCGWINSZ); err == nil && notOut == nil {
		r.Terminal, r.Rows, r.Columns, files = true, int(size.Row), int(size.Col), nil
	}
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second)) // the runner may be stopped
	if err = sendFiles(conn, r, files...); err != nil {
		return 0, refusedBy(err, e.PID)
	}
	var reply execReply
	got, err := readFiles(conn, &reply, 1)
	switch {
	case err != nil:
		return 0, refusedBy(err, e.PID)
	case reply.Error != "":
		return fail(reply.Status, errors.New(reply.Error)), nil
	}
	_ = conn.SetDeadline(time.Time{})
	if len(got) == 0 {
		return attend(conn, signals, nil)
	}
	return attendTerminal(conn, signals, got[0])
}

func refusedBy(err error, pid int) error {
	return fmt.Errorf("the container of process %d does not answer, or refuses: %w", pid, err)
}

// dialContainer connects to the container of a process: to the runner among it and
// its parents. In a container no process gets out of init's sight, so that all have
// one there.
func dialContainer(pid int) (*net.UnixConn, error) {
	if pid <= 0 {
		return nil, fmt.Errorf("process %d: there is none", pid)
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("process %d: %w", pid, err)
	}
	defer unix.Close(pidfd)
	for p := pid; p > 1; {
		conn, err := net.DialUnix("unix", nil, controlName(p))
		if err == nil && listenedBy(conn, p) {
			// Still the process that was meant: nobody got its number meanwhile.
			if err = unix.PidfdSendSignal(pidfd, 0, nil, 0); err != nil && !errors.Is(err, unix.EPERM) {
				conn.Close()
				return nil, fmt.Errorf("process %d: %w", pid, err)
			}
			return conn, nil
		}
		if err == nil {
			conn.Close()
		}
		if p, err = parentOf(p); err != nil {
			return nil, fmt.Errorf("process %d: %w", pid, err)
		}
	}
	return nil, fmt.Errorf("process %d is not in a container of squire's, or that is in another network namespace", pid)
}

// listenedBy reports whether it is process pid that listens at the other end, and is
// our user's, or we are root: anybody could have taken the name.
func listenedBy(conn *net.UnixConn, pid int) (is bool) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return false
	}
	_ = raw.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		is = err == nil && int(cred.Pid) == pid && (int(cred.Uid) == os.Geteuid() || os.Geteuid() == 0)
	})
	return is
}

// parentOf reads a process's parent from /proc/PID/stat, behind the name in
// parentheses, which may hold anything (proc(5)).
func parentOf(pid int) (int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, unix.ESRCH
	}
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) < 2 {
		return 0, unix.ESRCH
	}
	return strconv.Atoi(string(fields[1]))
}

// attend passes signals on until the command has ended.
func attend(conn *net.UnixConn, signals <-chan os.Signal, resized func()) (int, error) {
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			select {
			case <-done:
				return
			case s := <-signals:
				if s == unix.SIGWINCH && resized != nil {
					resized()
					continue
				}
				_, _ = conn.Write([]byte{byte(s.(syscall.Signal))})
			}
		}
	}()
	var end execReply
	if err := readMessage(conn, &end); err != nil {
		// It was killed with the rest of the container.
		return fail(exitSignalled+int(unix.SIGKILL), errors.New("the container has ended")), nil
	}
	return end.Status, nil
}

// attendTerminal does so while it copies between our terminal and the command's.
func attendTerminal(conn *net.UnixConn, signals <-chan os.Signal, master *os.File) (int, error) {
	defer master.Close()
	theirs, err := pollable(master)
	if err != nil {
		return 0, err
	}
	defer theirs.Close()
	restore, err := rawTerminal(0)
	if err != nil {
		return 0, fmt.Errorf("terminal: %w", err)
	}
	defer restore()
	resized := func() {
		if size, failed := unix.IoctlGetWinsize(0, unix.TIOCGWINSZ); failed == nil {
			_ = unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, size)
		}
	}
	go func() { _, _ = io.Copy(theirs, os.Stdin) }()
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		_, _ = io.Copy(os.Stdout, theirs)
	}()
	status, err := attend(conn, signals, resized)
	// What it has written is there already; what it left behind may keep the terminal.
	_ = theirs.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	<-copied
	return status, err
}

// pollable returns a copy of f that can have deadlines.
func pollable(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		return nil, fmt.Errorf("copy the descriptor of the terminal: %w", err)
	}
	return os.NewFile(uintptr(fd), "terminal"), nil
}

// rawTerminal hands every key through (cfmakeraw(3)), and returns what undoes it.
func rawTerminal(fd int) (restore func(), err error) {
	was, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, err
	}
	raw := *was
	raw.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	raw.Oflag &^= unix.OPOST
	raw.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	raw.Cflag = raw.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(fd, unix.TCSETSW, &raw); err != nil {
		return nil, err
	}
	return func() { _ = unix.IoctlSetTermios(fd, unix.TCSETSW, was) }, nil
}
