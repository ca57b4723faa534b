package servicetest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// owners are what runs of a user's own service need: a program by a name of its own, by which processes are known.
type owners struct {
	*lab
	exe string
}

func (l *lab) newOwners(t *testing.T) *owners {
	t.Helper()
	o := &owners{l, filepath.Join(l.mkdir(t, root), "squire")}
	if err := os.Link(l.squire, o.exe); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { killAll(o.processes) })
	return o
}

// ownName is what the keeper of such a service is called.
const ownName = "squire-own"

func (o *owners) processes() []process { return processesOf(o.exe) }

// run prepares a container that uses, and if need be starts, the user's own service.
func (o *owners) run(t *testing.T, u user, args ...string) *exec.Cmd {
	t.Helper()
	cmd := command(t, u, 2*bound, append([]string{o.exe, "run", o.image.path, "--", "/bin/probe"}, args...)...)
	cmd.Env = append(cmd.Env, "SQUIRE_SERVICE=own", "SQUIRE_TRACE=0")
	return cmd
}

// servers counts the servers of users, by user.
func (o *owners) servers() map[string]int {
	count := make(map[string]int)
	for _, p := range o.processes() {
		if p.name != serverName {
			continue
		}
		// The server of a user's own service is that user, though its files in /proc are not.
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid))
		for line := range strings.Lines(string(b)) {
			if ids, ok := strings.CutPrefix(line, "Uid:"); ok {
				count[strings.Fields(ids)[0]]++
			}
		}
	}
	return count
}

// Containers of a user that start at one moment, where there is no service, start one for them all, and none for another
// user. It survives the death of its server, and ends when nobody used it for a while.
func TestOwnService(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	o := l.newOwners(t)
	const tasks = 8
	g := newGate(t)
	var cmds []*exec.Cmd
	var outs []*bytes.Buffer
	for i := range tasks {
		cmd := o.run(t, users[i%2], "cold", "/", "2")
		cmd.SysProcAttr.Setsid, cmd.SysProcAttr.Setpgid = false, true // as tasks of one step
		g.hold(cmd)
		out := new(bytes.Buffer)
		cmd.Stdout, cmd.Stderr = out, out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		cmds, outs = append(cmds, cmd), append(outs, out)
	}
	g.open()
	eventually(t, "each user has one server", func() bool {
		s := o.servers()
		return len(s) == 2 && s[users[0].String()] == 1 && s[users[1].String()] == 1
	})
	time.Sleep(300 * time.Millisecond)
	for range 3 {
		for _, p := range o.processes() {
			if p.name == serverName {
				_ = syscall.Kill(p.pid, syscall.SIGKILL)
			}
		}
		time.Sleep(200 * time.Millisecond)
	}
	for i, cmd := range cmds {
		if err := cmd.Wait(); err != nil {
			t.Errorf("task %d: %v\n%s", i, err, outs[i])
		}
	}
	// Half a minute later, or, at the latest, when asked to.
	if os.Getenv("SQUIRE_STORM") != "" {
		end := time.Now().Add(90 * time.Second)
		for len(o.processes()) > 0 && time.Now().Before(end) {
			time.Sleep(time.Second)
		}
		if left := o.processes(); len(left) > 0 {
			t.Errorf("left when nobody used them for long: %v", left)
		}
	}
}

// The keeper of a user's own service dies, for which there is no systemd: its heir goes on, in the same cgroup, and the tasks
// see nothing. Nor do they when the whole service is stopped for a while, as with the step that it belongs to.
func TestOwnKeeperDies(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	o := l.newOwners(t)
	me := users[3] // a user has one service, and other tests run beside this one
	cmd := o.run(t, me, "cold", "/", "stdin")
	cmd.SysProcAttr.Setsid, cmd.SysProcAttr.Setpgid = false, true
	g, out := newGate(t), new(bytes.Buffer)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = g.r, out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pidOf := func(name string) (pid int) {
		if !eventually(t, "there is a "+name+" with a device", func() bool {
			for _, p := range o.processes() {
				if p.name == name && devicesOf(p.pid) == 1 {
					pid = p.pid
				}
			}
			return pid != 0
		}) {
			t.Fatalf("%v, %s", o.processes(), out)
		}
		return pid
	}
	for range 3 {
		heir, keeper := pidOf(heirName), pidOf(ownName)
		if err := syscall.Kill(keeper, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the heir is the keeper", func() bool { return pidOf(ownName) == heir })
	}
	var stopped []process
	for _, p := range o.processes() {
		stopped = append(stopped, p)
		_ = syscall.Kill(p.pid, syscall.SIGSTOP)
	}
	victim := o.run(t, me, "cold", "/", "0")
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(500 * time.Millisecond)
	_ = syscall.Kill(-victim.Process.Pid, syscall.SIGKILL)
	within(t, bound, "the death of a task meanwhile", func() { _ = victim.Wait() })
	for _, p := range stopped {
		_ = syscall.Kill(p.pid, syscall.SIGCONT)
	}
	if r := finish(t, o.run(t, me, "hash", "/", "0")); r.status != 0 || r.stderr != "" {
		t.Errorf("a task that comes later: %+v", r)
	}
	g.open()
	if err := cmd.Wait(); err != nil || !strings.HasPrefix(out.String(), "device=") {
		t.Errorf("%v, %s", err, out)
	}
	if n := len(o.servers()); n != 1 {
		t.Errorf("%d servers", n)
	}
}

// All of a user's own service dies: what used it fails, and what comes next starts another.
func TestOwnServiceDies(t *testing.T) {
	l := newLab(t)
	o := l.newOwners(t)
	for range 3 {
		if r := finish(t, o.run(t, users[0], "hash", "/", "0")); r.status != 0 || r.stderr != "" {
			t.Fatalf("%+v", r)
		}
		if len(o.servers()) != 1 {
			t.Errorf("servers: %v", o.servers())
		}
		killAll(o.processes)
	}
}
