package programtest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// terminal is a person at a pseudo-terminal.
type terminal struct {
	t      *testing.T
	master *os.File
	cmd    *exec.Cmd
	mu     sync.Mutex
	text   []byte // what is on the screen and was not waited for yet
}

// atTerminal starts a command of squire on a new terminal, as the first process of its session.
func (w *who) atTerminal(t *testing.T, args ...string) *terminal {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip("needs pseudo-terminals: ", err)
	}
	t.Cleanup(func() { master.Close() })
	var n int
	err = control(master, func(fd int) (err error) {
		if n, err = unix.IoctlGetInt(fd, unix.TIOCGPTN); err != nil {
			return err
		}
		return unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	})
	if err == nil {
		err = os.Chown("/dev/pts/"+strconv.Itoa(n), int(w.uid), -1)
	}
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer slave.Close()
	term := &terminal{t: t, master: master, cmd: w.command(t, args...)}
	term.resize(24, 80)
	term.cmd.Stdin, term.cmd.Stdout, term.cmd.Stderr = slave, slave, slave
	term.cmd.SysProcAttr.Setpgid, term.cmd.SysProcAttr.Setsid, term.cmd.SysProcAttr.Setctty = false, true, true
	if err := term.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = term.cmd.Process.Kill() })
	go term.watch()
	return term
}

// control does something with a descriptor. File.Fd would make reads block, and Close wait for them, in place of hanging up.
func control(f *os.File, do func(fd int) error) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	if failed := c.Control(func(fd uintptr) { err = do(int(fd)) }); failed != nil {
		return failed
	}
	return err
}

func (t *terminal) watch() {
	buf := make([]byte, 4096)
	for {
		n, err := t.master.Read(buf)
		t.mu.Lock()
		t.text = append(t.text, bytes.ReplaceAll(buf[:n], []byte("\r"), nil)...)
		t.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (t *terminal) resize(rows, columns uint16) {
	t.t.Helper()
	err := control(t.master, func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns})
	})
	if err != nil {
		t.t.Fatal(err)
	}
}

// press types keys.
func (t *terminal) press(keys string) {
	t.t.Helper()
	if _, err := t.master.WriteString(keys); err != nil {
		t.t.Fatal(err)
	}
}

// see waits until words are on the screen, and forgets all up to them.
func (t *terminal) see(words string) {
	t.t.Helper()
	if !eventually(func() bool { return t.sees(words) }) {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.t.Fatalf("%q does not come: %q", words, t.text)
	}
}

// sees reports whether words are on the screen, and forgets all up to them.
func (t *terminal) sees(words string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, after, ok := bytes.Cut(t.text, []byte(words))
	if ok {
		t.text = after
	}
	return ok
}

// shell waits for a prompt and gives a line to the shell, which must then say words. A line must not have its words in it.
func (t *terminal) shell(line, words string) {
	t.t.Helper()
	t.see("READY ")
	t.press(line + "\n")
	t.see(words)
}

// started waits until a process of the container has a command line.
func (w *who) started(t *testing.T, line string) {
	t.Helper()
	// Not one that only has it among its arguments, as squire and shells do.
	if !eventually(func() bool {
		return slices.ContainsFunc(w.processes(), func(p string) bool {
			_, args, _ := strings.Cut(p, " ")
			return strings.TrimSpace(args) == line
		})
	}) {
		t.Fatalf("%s does not run: %q", line, w.processes())
	}
}

// stopped waits until a process of the container is stopped, or not.
func (w *who) stopped(t *testing.T, line string, want bool) {
	t.Helper()
	if !eventually(func() bool {
		for _, p := range w.processes() {
			pid, args, _ := strings.Cut(p, " ")
			stat, _ := os.ReadFile("/proc/" + pid + "/stat")
			if strings.TrimSpace(args) == line && bytes.Contains(stat, []byte(") T ")) == want {
				return true
			}
		}
		return false
	}) {
		t.Fatalf("%s stopped is not %v: %q", line, want, w.processes())
	}
}

// bash is a shell that works as for a person, with a prompt that is not in any line that is typed.
var bash = []string{"sh", "-c", `PS1='RE''ADY ' exec bash --norc --noprofile --noediting -i`}

// A shell with job control on a terminal: in a container, in one with processes of its own, and joining one.
func TestJobControl(t *testing.T) {
	each(t, []string{alone, asRoot}, func(t *testing.T, w *who) {
		t.Run("run", func(t *testing.T) {
			w.jobControl(t, w.atTerminal(t, append([]string{"run", w.l.image, "--"}, bash...)...), "/dev/console")
		})
		t.Run("own processes", func(t *testing.T) {
			w.jobControl(t, w.atTerminal(t, append([]string{"run", "--unshare", "pid", w.l.image, "--"}, bash...)...), "/dev/console")
		})
		t.Run("exec", func(t *testing.T) {
			first := w.command(t, "run", w.l.image, "--", "sleep", "1001")
			if err := first.Start(); err != nil {
				t.Fatal(err)
			}
			w.started(t, "sleep 1001")
			w.jobControl(t, w.atTerminal(t, append([]string{"exec", strconv.Itoa(first.Process.Pid), "--"}, bash...)...), "/dev/pts/0")
			_ = first.Process.Kill()
			_ = first.Wait()
		})
	})
}

func (w *who) jobControl(t *testing.T, term *terminal, name string) {
	term.shell("stty size; tty", "24 80\n"+name)
	term.shell("trap 'echo wi''nch $(stty size)' WINCH", "\n")
	term.shell("", "\n")
	term.resize(40, 100)
	// A shell does what is to be done at a signal when it has read a line, and the line may be faster than the signal.
	if !eventually(func() bool {
		term.press("\n")
		time.Sleep(100 * time.Millisecond)
		return term.sees("winch 40 100")
	}) {
		t.Fatalf("no signal of the new size: %q", term.text)
	}
	term.press("\n") // a signal that came when the prompt was there already has none behind its words
	// Stopped, in the background, in the foreground, interrupted.
	term.shell("sleep 1002", "\n")
	w.started(t, "sleep 1002")
	term.press("\x1a")
	term.see("Stopped")
	w.stopped(t, "sleep 1002", true)
	term.shell("bg", "sleep 1002 &")
	w.stopped(t, "sleep 1002", false)
	term.shell("jobs", "Running")
	term.shell("fg", "sleep 1002\n")
	term.press("\x03")
	term.shell("echo status $?", "status 130")
	term.shell("sleep 1003 & kill %1; wait $!; echo status $?", "status 143")
	// What is typed, through a pipeline; the end of it; a terminal in a terminal.
	term.shell("cat | tr a-z A-Z", "\n")
	term.press("typed\n")
	term.see("TYPED\n")
	term.press("\x04")
	term.shell(`script -qc "tty; stty size" /dev/null`, "/dev/pts/")
	term.see("40 100")
	// Only programs that ignore it outlive an interrupt of their pipeline.
	term.shell(`(trap "" INT; sleep 1004) | sleep 1005`, "\n")
	w.started(t, "sleep 1004")
	w.started(t, "sleep 1005")
	term.press("\x03")
	w.stopped(t, "sleep 1004", false)
	term.press("\x1c") // ^\, which it does not ignore
	term.shell("exit 5", "exit")
	if err := term.cmd.Wait(); term.cmd.ProcessState.ExitCode() != 5 {
		t.Errorf("the shell ended with %v", err)
	}
}

// Who hangs up ends the container, with all that is in it: what ignores the signal, and what has left the session.
func TestHangup(t *testing.T) {
	each(t, []string{alone, asRoot}, func(t *testing.T, w *who) {
		for _, flags := range [][]string{nil, {"--unshare", "pid"}} {
			term := w.atTerminal(t, append(append(append([]string{"run"}, flags...), w.l.image, "--"), bash...)...)
			term.shell("nohup setsid sleep 1006 >/dev/null 2>&1 & disown", "\n")
			term.shell("sleep 1007", "\n")
			w.started(t, "sleep 1006")
			w.started(t, "sleep 1007")
			term.master.Close()
			_ = term.cmd.Wait()
			w.wantNothingRunning(t)
		}
	})
}

// Standard input and output of a pipeline, and processes that were left in the background.
func TestPipes(t *testing.T) {
	each(t, []string{alone, served}, func(t *testing.T, w *who) {
		cmd := exec.Command("sh", "-c", `seq 100000 | "$0" run "$1" -- sh -c 'sort -rn | head -n 2' | cat; seq 1000000 | "$0" run "$1" -- head -n 1; "$0" run "$1" -- yes | head -n 1`, w.l.squire, w.l.image)
		like := w.command(t)
		cmd.Env, cmd.Dir, cmd.SysProcAttr = like.Env, like.Dir, like.SysProcAttr
		if out, err := cmd.CombinedOutput(); string(out) != "100000\n99999\n1\ny\n" {
			t.Errorf("%q, %v", out, err)
		}
		w.want(t, "first\n", nil, "sh", "-c", "nohup sleep 1008 >/dev/null 2>&1 & setsid -f sleep 1009; echo first")
		w.wantNothingRunning(t)
	})
}

// Terminals in a terminal: tmux, and screen, which wants to know who it is for.
func TestMultiplexers(t *testing.T) {
	each(t, []string{alone, asRoot}, func(t *testing.T, w *who) {
		for name, start := range map[string]string{
			"tmux":   "tmux -S /srv/socket -f /dev/null new -s main 'stty size; exec sh'",
			"screen": "export SCREENDIR=/srv/screens; mkdir -m 700 /srv/screens; screen -S main sh -c 'stty size; exec sh'",
		} {
			t.Run(name, func(t *testing.T) {
				term := w.atTerminal(t, "run", "--writable", w.l.image, "--", "sh", "-c", start+"; stty sane; echo status $?")
				term.see(fmt.Sprint(" ", 80))
				term.press("echo $((6*7))-$(tty)\n")
				term.see("42-/dev/pts/")
				term.press("exit\n")
				term.see("status 0")
				_ = term.cmd.Wait()
			})
		}
	})
}

// A program that wants a right which nobody gets in a container of an ordinary user's says so, and does not hang.
func TestPing(t *testing.T) {
	each(t, []string{alone, asRoot}, func(t *testing.T, w *who) {
		r := w.run(t, nil, "ping", "-c", "1", "-W", "5", "127.0.0.1")
		text, err := os.ReadFile("/proc/sys/net/ipv4/ping_group_range")
		var low, high int
		if _, err2 := fmt.Sscan(string(text), &low, &high); err != nil || err2 != nil {
			t.Fatal(err, err2)
		}
		if allowed := w.uid == 0 || low <= user && user <= high; allowed != (r.status == 0) || !allowed && !strings.Contains(r.stderr, "not permitted") {
			t.Errorf("with groups %d to %d: %+v", low, high, r)
		}
	})
}
