package runtime

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// openTerminal makes a pseudo-terminal that w may use.
func openTerminal(t *testing.T, w who) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip("needs pseudo-terminals: ", err)
	}
	t.Cleanup(func() { master.Close() })
	fd := int(master.Fd())
	if err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	name := "/dev/pts/" + strconv.Itoa(n)
	if slave, err = os.OpenFile(name, os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { slave.Close() })
	if err := os.Chown(name, w.uid, -1); err != nil {
		t.Fatal(err)
	}
	return master, slave
}

// On a terminal the command gets ^C once, though the kernel sends it to the
// runner as well; ^Z stops all, so that a shell sees its job stopped; and the
// terminal has its name.
func TestRunTerminal(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("needs bash, for job control")
	}
	forUsers(t, func(t *testing.T, w who, root string) {
		t.Run("host's processes", func(t *testing.T) { testTerminal(t, w, bash, Spec{Dir: root}) })
		t.Run("own processes", func(t *testing.T) { testTerminal(t, w, bash, Spec{Dir: root, Unshare: []string{"pid"}}) })
	})
}

func testTerminal(t *testing.T, w who, bash string, s Spec) {
	master, slave := openTerminal(t, w)
	s.Command = []string{"/bin/sh", "-c", `
			n=0; trap 'n=$((n+1)); echo int $n' INT
			tty; echo hi >/dev/tty; echo started
			while [ $n -lt 2 ]; do sleep 0.05; done; exit 9`}
	cmd := runner(t, w, s)
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	cmd.Path, cmd.ExtraFiles = bash, []*os.File{self}
	cmd.Args = []string{"bash", "-c", `set -m; (exec -a ` + runnerName + ` /proc/self/fd/3); echo stopped; fg >/dev/null; echo status $?`}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr.Setsid, cmd.SysProcAttr.Setctty = true, true
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer limited(t, cmd)()
	defer cmd.Process.Kill()
	slave.Close()
	foreground := func() int {
		group, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPGRP)
		if err != nil {
			t.Fatal(err)
		}
		return group
	}
	lines := newLines(trimCR{master})
	lines.want(t, "/dev/console")
	lines.want(t, "hi")
	lines.want(t, "started")
	job := foreground()
	press := func(key string) {
		if _, err := master.WriteString(key); err != nil {
			t.Fatal(err)
		}
	}
	press("\x03")
	lines.want(t, "^Cint 1")
	time.Sleep(300 * time.Millisecond) // for a second one to come, wrongly
	press("\x1a")
	lines.want(t, "stopped")
	waitFor(t, "fg", func() bool { return foreground() == job })
	press("\x03")
	lines.want(t, "^Cint 2")
	lines.want(t, "status 9")
	_ = cmd.Wait()
}

// trimCR drops what the terminal adds to line ends.
type trimCR struct{ f *os.File }

func (r trimCR) Read(p []byte) (int, error) {
	n, err := r.f.Read(p)
	return copy(p, strings.ReplaceAll(string(p[:n]), "\r", "")), err
}
