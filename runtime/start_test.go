package runtime

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/internal/testenv"
)

// The command's timers are as exact as its caller's.
func TestTimerSlack(t *testing.T) {
	want, err := os.ReadFile("/proc/self/timerslack_ns")
	if err != nil {
		t.Skip(err)
	}
	forUsers(t, func(t *testing.T, w who, root string) {
		if got := sh(t, w, Spec{Dir: root}, "cat /proc/self/timerslack_ns"); got != strings.TrimSpace(string(want)) {
			t.Errorf("slack of %s ns, want %s", got, want)
		}
	})
}

// A signal that every process of a job gets means the command; init goes on.
func TestInitOutlivesSignals(t *testing.T) {
	forUsers(t, func(t *testing.T, w who, root string) {
		cmd := runner(t, w, Spec{Dir: root, Command: []string{"/bin/sh", "-c", "echo started; read x; echo on"}})
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		lines := begin(t, cmd)
		defer limited(t, cmd)()
		inits := testenv.Children(cmd.Process.Pid)
		if len(inits) != 1 {
			t.Fatalf("children %v of the runner", inits)
		}
		for _, s := range forwarded {
			if err = unix.Kill(inits[0], s.(syscall.Signal)); err != nil {
				t.Error(s, err)
			}
		}
		if _, err = in.Write([]byte("go\n")); err != nil {
			t.Error(err)
		}
		lines.want(t, "on")
		if err = cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
}

// While the command runs, init has Go's poller wait for the runner: a thread of its own that does would keep it from
// hearing of the command's end.
func TestInitPolls(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to look at what init has open")
	}
	forUsers(t, func(t *testing.T, w who, root string) {
		runnerPID, _ := background(t, w, Spec{Dir: root})
		init := testenv.Children(runnerPID)[0]
		var polled []string
		if !testenv.Eventually(10*time.Second, func() bool {
			polled = testenv.Polled(init)
			sockets := slices.DeleteFunc(slices.Clone(polled), func(name string) bool { return !strings.HasPrefix(name, "socket:") })
			return len(sockets) == 2
		}) {
			t.Errorf("init polls %q, want both sockets of the runner", polled)
		}
	})
}

// A process without children is told from one with children that have ended, or not.
func TestChildren(t *testing.T) {
	before := children()
	pid, err := syscall.ForkExec("/bin/sh", []string{"sh", "-c", "read x"}, &syscall.ProcAttr{Files: []uintptr{0, 1, 2}, Sys: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}})
	if err != nil {
		t.Fatal(err)
	}
	if got := children(); !slices.Contains(got, pid) {
		t.Errorf("%v has not %d", got, pid)
	}
	_ = unix.Kill(pid, unix.SIGKILL)
	awaitEnd(pid)
	if got := children(); !slices.Contains(got, pid) {
		t.Errorf("%v has not %d, which has ended", got, pid)
	}
	var ws unix.WaitStatus
	if got, err := unix.Wait4(pid, &ws, unix.WNOHANG, nil); got != pid || err != nil {
		t.Errorf("%d, %v: awaitEnd has not waited", got, err)
	}
	if got := children(); !slices.Equal(got, before) {
		t.Errorf("%v, before %v", got, before)
	}
}

// An ordinary user's command holds no capability, and no thread of the init stage does.
func TestNoCapabilities(t *testing.T) {
	forUsers(t, func(t *testing.T, w who, root string) {
		if w.uid == 0 {
			t.Skip("root keeps what it has")
		}
		out := sh(t, w, Spec{Dir: root}, "cat /proc/self/status /proc/$PPID/task/*/status")
		sets := 0
		for line := range strings.Lines(out) {
			if name, set, _ := strings.Cut(line, ":"); strings.HasPrefix(name, "Cap") && name != "CapBnd" {
				sets++
				if strings.Trim(set, "\t0\n") != "" {
					t.Error(line)
				}
			}
		}
		if sets < 3*4 { // of the command and two threads at least
			t.Errorf("%d sets in %s", sets, out)
		}
	})
}

// No command runs before its runner catches signals: what is sent to the runner then is for the command.
func TestCommandWaitsForSignals(t *testing.T) {
	forUsers(t, func(t *testing.T, w who, root string) {
		cmd := runner(t, w, Spec{Dir: root, Command: []string{"/bin/sh", "-c", "echo runs"}})
		cmd.Env = append(cmd.Env, holdSignals+"=1")
		out, err := cmd.CombinedOutput()
		if err != nil || string(out) != "runs\n" {
			t.Errorf("%v, %q", err, out)
		}
	})
}

// holdBack runs a container, and does not catch signals for longer than a start takes. It returns the exit status.
func holdBack(r *Runner, ops []Op) int {
	if err := r.sendOrder(ops); err != nil {
		return fail(ExitFailed, err)
	}
	_ = r.socket.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	var b [1]byte
	if n, err := r.socket.Read(b[:]); !errors.Is(err, os.ErrDeadlineExceeded) {
		return fail(ExitFailed, errors.Join(fmt.Errorf("told of the command, %v, or ended", b[:n]), err))
	}
	_ = r.socket.SetReadDeadline(time.Time{})
	r.signals = catchSignals()
	if _, err := r.control.Write([]byte{caught}); err != nil {
		return fail(ExitFailed, err)
	}
	status, err := r.Wait()
	if err != nil {
		return fail(ExitFailed, err)
	}
	return status
}
