package runtime

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/internal/rights"
)

// Exit statuses of Squire's own, beside the command's and 128+N for a signal;
// the same as those of env(1), docker run and podman run.
const (
	ExitFailed    = 125 // Squire could not do its part
	ExitNoExec    = 126 // the command is there but cannot be executed
	ExitNotFound  = 127 // the command is not there
	exitSignalled = 128
)

// drop gives up what the command must not have, in every thread of this
// process, so that no thread of the init stage holds more than the command. The
// bounding set is no right, but a limit to what programs with file capabilities
// gain: the command has it from this thread, which must be the one that starts
// it, and no_new_privs is that limit for the others. A call in every thread
// wakes them all, and these are 41 calls.
func drop(capabilities bool) error {
	// What this thread has all have: from the start of the stage, or from who started it.
	if set, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0); err != nil || set != 1 {
		if err = rights.NoNewPrivs(); err != nil {
			return err
		}
	}
	// The command, of the same user, shall not trace init, nor find the program
	// through /proc/PID/exe to write to it later. Commands that are executed can
	// be traced again.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("set not dumpable: %w", err)
	}
	if !capabilities {
		return nil
	}
	if err := dropBounding(); err != nil {
		return err
	}
	// With them go the ambient ones (cap_capset, security/commoncap.c).
	return rights.NoCapabilities()
}

// dropBounding empties the bounding set of this thread.
func dropBounding() error {
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		// EINVAL: a capability that this kernel is too old to know.
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	return nil
}

// dropThread is drop for this thread, and what it starts, alone.
func dropThread(capabilities bool) error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	if !capabilities {
		return nil
	}
	if err := dropBounding(); err != nil {
		return err
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&hdr, &none[0]); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	return nil
}

// relax lets timers of what this thread starts be late (PR_SET_TIMERSLACK, prctl(2)), and returns what tighten
// takes to undo it, 0 for nothing. Go's runtime has a thread that sleeps for 20 µs, 70 with the slack that is usual, as long
// as another one is at work, and stops who is in a system call meanwhile from going on without a handshake. For a
// stage that ends after a few milliseconds, or waits, that is a tenth of its work and of no use.
func relax() int {
	was, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	if err != nil || was <= 0 || time.Duration(was) >= stageSlack {
		return 0
	}
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(stageSlack), 0, 0, 0)
	return was
}

const stageSlack = 2 * time.Millisecond

// tighten gives this thread, and what it starts, timers as they were before relax.
func tighten(slack int) {
	if slack > 0 {
		_ = unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(slack), 0, 0, 0)
	}
}

// becomeSubreaper makes orphaned descendants children of this process, so
// that none gets out of sight.
func becomeSubreaper() error {
	return unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
}

// endTimeout bounds the wait for killed processes: one that hangs in the
// kernel on dead storage cannot be waited for.
const endTimeout = 5 * time.Second

// endChildren kills every descendant of this process but those in spare, and
// waits for them. A killed process's children become ours (we are a
// subreaper), so that killing children until there are none reaches all.
func endChildren(spare ...int) {
	deadline := time.Now().Add(endTimeout)
	for time.Now().Before(deadline) {
		n := 0
		for _, pid := range children() {
			if !slices.Contains(spare, pid) {
				_ = unix.Kill(pid, unix.SIGKILL)
				var ws unix.WaitStatus
				_, _ = unix.Wait4(pid, &ws, unix.WNOHANG, nil)
				n++
			}
		}
		if n == 0 {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// awaitEnd waits until a child has ended, which is not reaped. It does so in Go's poller:
// while a thread waits in a system call of another kind the runtime looks at it again and
// again, for 10 ms and more. Where the kernel is too old (before 5.10) it returns at once.
func awaitEnd(pid int) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return
	}
	f := os.NewFile(uintptr(fd), "child")
	defer f.Close()
	raw, err := f.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Read(func(fd uintptr) (ended bool) {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return n == 1 || err != nil && !errors.Is(err, unix.EINTR)
	})
}

// children lists the direct children of all threads of this process. It reads
// /proc/self/task/*/children, and nothing of the children themselves: reading
// their own files can wait for a process that hangs in exec. Where there are none,
// which is the rule, nothing is read: that is a file for each thread, which the
// kernel has to forget again when the thread ends.
func children() (pids []int) {
	err := unix.Waitid(unix.P_ALL, 0, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT|unix.WALL, nil)
	if errors.Is(err, unix.ECHILD) {
		return nil
	}
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return nil
	}
	for _, t := range tasks {
		b, err := os.ReadFile("/proc/self/task/" + t.Name() + "/children")
		if err != nil {
			continue
		}
		for _, f := range strings.Fields(string(b)) {
			if pid, err := strconv.Atoi(f); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// forwarded are the signals that the runner passes on to the command. Those
// for job control are left alone: runner and command are in one process group,
// so the terminal stops and continues both.
var forwarded = []os.Signal{
	unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2,
	unix.SIGALRM, unix.SIGWINCH, unix.SIGIO, unix.SIGPWR, unix.SIGVTALRM, unix.SIGXCPU,
}

// catchSignals returns a channel that gets the forwarded signals. SIGHUP and
// SIGINT stay ignored, also in the command, where the caller ignores them, as
// nohup and background shells do; of other signals Go does not tell.
func catchSignals() chan os.Signal {
	ch := make(chan os.Signal, 64)
	for _, s := range forwarded {
		if !signal.Ignored(s) {
			signal.Notify(ch, s)
		}
	}
	return ch
}

// outliveSignals keeps the forwarded signals from ending this process. Go's runtime
// catches all of them, and takes no action on the others (package os/signal).
// To catch one more is a handshake between two threads.
func outliveSignals() {
	ch := make(chan os.Signal, 1) // nobody reads it
	for _, s := range []os.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM} {
		if !signal.Ignored(s) {
			signal.Notify(ch, s)
		}
	}
}

// fromTerminal reports whether sig most likely came from the terminal's
// keyboard, or from its change of size, and so has reached the command already:
// the driver signals the whole foreground process group, which we are in. The
// sender is not known here: a kill of the runner alone, while it is in the
// foreground, is mistaken for the terminal's.
func fromTerminal(sig os.Signal) bool {
	if sig != unix.SIGINT && sig != unix.SIGQUIT && sig != unix.SIGWINCH {
		return false
	}
	tty, err := os.OpenFile("/dev/tty", os.O_RDONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return false
	}
	defer tty.Close()
	pgrp, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && pgrp == unix.Getpgrp()
}

// exitStatus is the shell's form of how a process ended.
func exitStatus(ws unix.WaitStatus) int {
	if ws.Signaled() {
		return exitSignalled + int(ws.Signal())
	}
	return ws.ExitStatus()
}

// childFiles lays out the descriptors of a child: 0, 1, 2, every other one that
// this process was given by its own parent at its own number (Slurm's PMI_FD,
// say), and extra at the lowest numbers that are free. It returns the table for
// ProcAttr, beyond whose end descriptors are inherited as they are, and the
// numbers of extra.
func childFiles(extra ...*os.File) (files []uintptr, at []int) {
	taken := inherited()
	files = []uintptr{0, 1, 2}
	for _, f := range extra {
		for slices.Contains(taken, len(files)) {
			files = append(files, uintptr(len(files)))
		}
		at = append(at, len(files))
		files = append(files, f.Fd())
	}
	return files, at
}

// inherited lists the descriptors above 2 that are not closed at exec. All
// that Go opens are, so these came from the process that started us.
func inherited() (fds []int) {
	dir, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil
	}
	for _, e := range dir {
		fd, err := strconv.Atoi(e.Name())
		if err != nil || fd < 3 {
			continue
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			fds = append(fds, fd)
		}
	}
	return fds
}

// Shielded runs fork while none of the descriptors that this process was given
// by its parent are passed on, but 0, 1 and 2.
func Shielded(fork func()) {
	fds := inherited()
	for _, fd := range fds {
		unix.CloseOnExec(fd)
	}
	fork()
	for _, fd := range fds {
		_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0)
	}
}
