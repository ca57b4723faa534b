package servicetest

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/fusefs/noded"
	"github.com/squirefs/squire/internal/testenv"
)

// machineScript makes a machine of namespaces, with the host's /usr to read and nothing else of it, and has systemd be its
// first process.
//
//go:embed machine.sh
var machineScript string

// machine is one in which systemd runs the units of dist.
type machine struct {
	*lab
	t      *testing.T
	dir    string // seen inside under the same name
	init   int    // the first process
	squire string // where the units want the program, from outside
}

// boot starts a machine. It skips the test where systemd cannot run in namespaces.
func (l *lab) boot(t *testing.T) *machine {
	t.Helper()
	if _, err := os.Stat("/usr/lib/systemd/systemd"); err != nil {
		t.Skip("needs systemd: run testdata/deps.sh")
	}
	dir := l.mkdir(t, root)
	m := &machine{lab: l, t: t, dir: dir, squire: filepath.Join(dir, "bin", "squire")}
	group := newGroup(t)
	script := filepath.Join(dir, "machine.sh")
	for _, name := range []string{"bin", "root"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(script, []byte(machineScript), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, unit := range []string{"squire.service", "squire.socket"} {
		if err := copyFile(filepath.Join("../../../dist", unit), filepath.Join(dir, unit)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(l.squire, m.squire); err != nil {
		t.Fatal(err)
	}
	console, err := os.Create(filepath.Join(dir, "console"))
	if err != nil {
		t.Fatal(err)
	}
	defer console.Close()
	cmd := exec.Command("sh", "-c", `echo 0 >"$0/cgroup.procs" && exec unshare --mount --pid --fork --kill-child --cgroup --ipc --uts --net sh "$1" "$2" "$3"`,
		group, script, dir, l.dir)
	cmd.Stdout, cmd.Stderr, cmd.Dir = console, console, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err = cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		if t.Failed() {
			m.tellLogs()
		}
		if m.init != 0 {
			m.abort(group)
			_ = syscall.Kill(m.init, syscall.SIGKILL) // and with it all that runs there
		}
		_ = cmd.Process.Kill()
		<-ended
	})
	for end := time.Now().Add(bound); ; time.Sleep(20 * time.Millisecond) {
		select {
		case err = <-ended:
			ended <- err
			b, _ := os.ReadFile(console.Name())
			t.Skipf("systemd does not run in namespaces here: %v: %s", err, b)
		default:
		}
		m.init = childOf(cmd.Process.Pid)
		if m.init != 0 && m.try("systemctl", "is-active", "machine.target").stdout == "active\n" {
			return m
		}
		if time.Now().After(end) {
			b, _ := os.ReadFile(console.Name())
			t.Fatalf("systemd does not come up: %s", b)
		}
	}
}

// newGroup makes a cgroup of version 2 for a machine.
func newGroup(t *testing.T) string {
	t.Helper()
	for _, mount := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		if _, err := os.Stat(filepath.Join(mount, "cgroup.controllers")); err != nil {
			continue
		}
		dir := filepath.Join(mount, fmt.Sprintf("squire-machine-%d", os.Getpid()))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Skipf("needs a cgroup for systemd: %v", err)
		}
		t.Cleanup(func() {
			eventually(t, "the machine's cgroups are empty", func() bool {
				_ = exec.Command("find", dir, "-depth", "-type", "d", "-exec", "rmdir", "{}", ";").Run()
				_, err := os.Stat(dir)
				return os.IsNotExist(err)
			})
		})
		return dir
	}
	t.Skip("needs cgroups of version 2 for systemd")
	return ""
}

// abort ends what FUSE mounts the machine has left. If all of its processes died at the same moment, a server's thread
// could wait for ever for a page that nobody will bring.
func (m *machine) abort(group string) {
	found := make(map[string]bool)
	_ = filepath.WalkDir(group, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.Name() != "cgroup.procs" {
			return nil
		}
		b, _ := os.ReadFile(path)
		for pid := range strings.FieldsSeq(string(b)) {
			infos, _ := filepath.Glob("/proc/" + pid + "/task/*/fdinfo/*")
			for _, info := range infos {
				b, _ := os.ReadFile(info)
				if _, n, ok := strings.Cut(string(b), "fuse_connection:"); ok {
					found[strings.TrimSpace(n)] = true
				}
			}
		}
		return nil
	})
	if len(found) == 0 {
		return
	}
	control := m.mkdir(m.t, root)
	if err := unix.Mount("none", control, "fusectl", 0, ""); err != nil {
		m.t.Error(err)
		return
	}
	defer unix.Unmount(control, unix.MNT_DETACH)
	for n := range found {
		_ = os.WriteFile(filepath.Join(control, n, "abort"), []byte("1"), 0)
	}
}

// childOf returns a child of a process, 0 if there is none.
func childOf(pid int) int {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	child, _, _ := strings.Cut(string(b), " ")
	n, _ := strconv.Atoi(child)
	return n
}

// inside prepares a command of u in the machine.
func (m *machine) inside(u user, argv ...string) *exec.Cmd {
	enter := []string{
		"nsenter", "--target", strconv.Itoa(m.init), "--mount", "--pid", "--cgroup", "--ipc", "--uts", "--net", "--root",
	}
	if u != root {
		enter = append(enter, "setpriv", "--reuid", u.String(), "--regid", u.String(), "--clear-groups")
	}
	cmd := command(m.t, root, 4*bound, append(enter, argv...)...)
	cmd.Env = append(cmd.Env, "SQUIRE_SERVICE=node", "SQUIRE_TRACE=0", "SYSTEMD_PAGER=", "SYSTEMD_COLORS=0")
	return cmd
}

func (m *machine) try(argv ...string) result {
	m.t.Helper()
	return finish(m.t, m.inside(root, argv...))
}

// must runs a command of root that has to succeed, and returns what it printed.
func (m *machine) must(argv ...string) string {
	m.t.Helper()
	r := m.try(argv...)
	if r.status != 0 {
		m.t.Fatalf("%q: %+v", argv, r)
	}
	return strings.TrimSpace(r.stdout)
}

// shows returns a property of the service, as systemd has it.
func (m *machine) shows(property string) string {
	m.t.Helper()
	return m.must("systemctl", "show", "--value", "-p", property, "squire.service")
}

func (m *machine) number(property string) int {
	m.t.Helper()
	n, err := strconv.Atoi(m.shows(property))
	if err != nil {
		m.t.Errorf("%s: %v", property, err)
	}
	return n
}

// keeper sends a signal to the service's main process.
func (m *machine) keeper(signal string) {
	m.t.Helper()
	m.must("kill", "-"+signal, m.shows("MainPID"))
}

// report is what root gets from the service. Who asks for it has to be inside.
func (m *machine) report() (r noded.Report, ok bool) {
	m.t.Helper()
	got := m.try("squire", "stats", "--json")
	if got.status != 0 {
		return r, false
	}
	var all []noded.Report
	if err := json.Unmarshal([]byte(got.stdout), &all); err != nil || len(all) != 1 {
		m.t.Errorf("squire stats: %v, %+v", err, got)
		return r, false
	}
	return all[0], true
}

// task starts one that does nothing but have the image from the service, and returns what ends it. On a machine that is very
// busy a task may do without the service, as it does not wait for one for long: then there is another.
func (m *machine) task(u user) (end func() error) {
	m.t.Helper()
	for range 10 {
		cmd := m.inside(u, "squire", "run", m.image.path, "--", "/bin/probe", "wait")
		stdin, err := cmd.StdinPipe()
		if err != nil {
			m.t.Fatal(err)
		}
		var stdout io.ReadCloser
		if stdout, err = cmd.StdoutPipe(); err != nil {
			m.t.Fatal(err)
		}
		if err = cmd.Start(); err != nil {
			m.t.Fatal(err)
		}
		end = func() error {
			stdin.Close()
			return cmd.Wait()
		}
		if _, err = io.ReadFull(stdout, make([]byte, len("waiting\n"))); err != nil {
			m.t.Fatalf("%q: %v, %v", cmd.Args, err, end())
		}
		if r, ok := m.report(); ok && len(r.Images) == 1 && r.Images[0].References == 1 {
			return end
		}
		_ = end()
	}
	m.t.Fatal("no task uses the service")
	return nil
}

// readers compare the image for as long as work takes, with pages and names dropped, and must not see anything wrong.
func (m *machine) readers(work func()) {
	m.t.Helper()
	stop := filepath.Join(m.dir, "stop")
	_ = os.Remove(stop)
	loop := `while [ ! -e "$0" ]; do squire run "$1" -- /bin/probe cold / 0 || exit; done`
	var cmds []*exec.Cmd
	var outs []*bytes.Buffer
	for i := range 4 {
		cmd, out := m.inside(users[i], "sh", "-c", loop, stop, m.image.path), new(bytes.Buffer)
		cmd.Stdout, cmd.Stderr = out, out
		if err := cmd.Start(); err != nil {
			m.t.Fatal(err)
		}
		cmds, outs = append(cmds, cmd), append(outs, out)
	}
	eventually(m.t, "readers are at work", func() bool {
		r, ok := m.report()
		return ok && slices.ContainsFunc(r.Images, func(i noded.ImageReport) bool { return i.Stats.Read > 10 })
	})
	work()
	if err := os.WriteFile(stop, nil, 0o644); err != nil {
		m.t.Fatal(err)
	}
	for i, cmd := range cmds {
		err := cmd.Wait()
		if text := outs[i].String(); err != nil || !strings.HasPrefix(text, "device=") || strings.Contains(text, "squire:") {
			m.t.Errorf("reader %d: %v\n%s", i, err, text)
		}
	}
}

// tellLogs shows what there is to be known about a machine that fails.
func (m *machine) tellLogs() {
	b, _ := os.ReadFile(filepath.Join(m.dir, "console"))
	m.t.Logf("console:\n%s", b[max(0, len(b)-4000):])
	if m.init != 0 {
		for _, argv := range [][]string{
			{"systemctl", "status", "--no-pager", "squire.service", "squire.socket"}, {"journalctl", "--no-pager", "-n", "60"},
		} {
			r := m.try(argv...)
			m.t.Logf("%q:\n%s%s", argv, r.stdout, r.stderr)
		}
	}
}

// The units of dist under systemd itself, with every line of them: the service starts with the first client, is kept alive
// by the descriptor store and the watchdog, is upgraded and started anew in place, and waits for its users when it is to
// stop. Readers see nothing of all that.
func TestSystemd(t *testing.T) {
	l := newLab(t, "unshare", "nsenter", "setpriv", "pivot_root", "systemctl", "journalctl")
	newer := filepath.Join(l.mkdir(t, root), "squire")
	if err := testenv.Build(newer, "-X main.version=9.9.9-newer"); err != nil {
		t.Fatal(err)
	}
	m := l.boot(t)
	m.must("systemctl", "start", "squire.socket")
	if state := m.shows("ActiveState"); state != "inactive" {
		t.Errorf("the service is %s before anybody wants it", state)
	}
	eventually(t, "the service is there for its first client", func() bool {
		_, ok := m.report()
		return ok && m.shows("ActiveState") == "active"
	})
	end := m.task(users[0]) // which has the image from the beginning to the end
	if text := m.shows("StatusText"); text != "serving" {
		t.Errorf("systemd shows the status %q", text)
	}
	if n := m.number("NFileDescriptorStore"); n < 3 {
		t.Errorf("systemd keeps %d descriptors, want records, device and file of an image", n)
	}
	m.readers(func() {
		m.kill(3)
		m.reload(newer)
		m.restart()
		m.watchdog()
	})
	m.mountAsUser(users[1])
	m.stop(func() {
		if err := end(); err != nil {
			t.Errorf("the task that was there all the time: %v", err)
		}
	})
	m.wantJournal()
}

// squire mount of a user: the service enters the user's mount namespace, with all that the unit takes away from it.
func (m *machine) mountAsUser(u user) {
	dir := m.mkdir(m.t, u)
	script := `squire mount "$0" "$1" && sha256sum "$1"/list >/dev/null && squire umount "$1" && ! test -e "$1"/list`
	if r := finish(m.t, m.inside(u, "sh", "-c", script, m.image.path, dir)); r.status != 0 {
		m.t.Errorf("mount of a user: %+v", r)
	}
}

// kill has the keeper die so many times.
func (m *machine) kill(times int) {
	for range times {
		restarts := m.number("NRestarts")
		m.keeper("KILL")
		eventually(m.t, "systemd has started the service again", func() bool {
			_, ok := m.report()
			return ok && m.number("NRestarts") > restarts && m.shows("ActiveState") == "active"
		})
	}
}

// reload installs another version, which takes over as the same process.
func (m *machine) reload(newer string) {
	pid := m.shows("MainPID")
	next := m.squire + ".new"
	if err := copyFile(newer, next); err != nil {
		m.t.Fatal(err)
	}
	if err := os.Rename(next, m.squire); err != nil {
		m.t.Fatal(err)
	}
	m.must("systemctl", "reload", "squire.service")
	eventually(m.t, "the new version answers", func() bool {
		r, ok := m.report()
		return ok && r.Version == "9.9.9-newer"
	})
	if now := m.shows("MainPID"); now != pid {
		m.t.Errorf("process %s has become %s", pid, now)
	}
}

// restart has the service end and start, which does not take the time that its users need.
func (m *machine) restart() {
	pid := m.shows("MainPID")
	within(m.t, bound, "a restart", func() { m.must("systemctl", "restart", "squire.service") })
	if now := m.shows("MainPID"); now == pid || m.shows("ActiveState") != "active" {
		m.t.Errorf("process %s goes on, or nothing does (%s)", pid, now)
	}
	if r, ok := m.report(); !ok || len(r.Images) != 1 {
		m.t.Errorf("images after a restart: %+v", r.Images)
	}
}

// watchdog has the keeper stand still: systemd ends it and starts another.
func (m *machine) watchdog() {
	m.must("sh", "-c", `mkdir -p /run/systemd/system/squire.service.d &&
		printf '[Service]\nWatchdogSec=2s\nTimeoutAbortSec=2s\n' >/run/systemd/system/squire.service.d/test.conf`)
	m.must("systemctl", "daemon-reload")
	m.must("systemctl", "reload", "squire.service") // which tells the service of the time
	restarts := m.number("NRestarts")
	m.keeper("KILL")
	eventually(m.t, "it was started with the watchdog's time", func() bool {
		return m.number("NRestarts") > restarts && m.shows("ActiveState") == "active"
	})
	restarts = m.number("NRestarts")
	m.keeper("STOP")
	eventually(m.t, "systemd has ended a keeper that stands still", func() bool {
		return m.number("NRestarts") > restarts && m.shows("ActiveState") == "active"
	})
}

// stop has the service stop, which it does when its last user, whom end ends, is gone.
func (m *machine) stop(end func()) {
	m.must("systemctl", "stop", "squire.socket", "--no-block")
	m.must("systemctl", "stop", "squire.service", "--no-block")
	eventually(m.t, "the service says what it waits for", func() bool {
		return strings.HasPrefix(m.shows("StatusText"), "waiting for the users")
	})
	if state := m.shows("ActiveState"); state != "deactivating" {
		m.t.Errorf("a service that is to stop is %s", state)
	}
	if r := finish(m.t, m.inside(users[2], "squire", "run", m.image.path, "--", "/bin/probe", "hash", "/", "0")); r.status != 0 {
		m.t.Errorf("a task that comes while the service waits to end: %+v", r)
	}
	end()
	eventually(m.t, "the service has stopped", func() bool { return m.shows("ActiveState") == "inactive" })
	if result := m.shows("Result"); result != "success" {
		m.t.Errorf("the service stopped with %s", result)
	}
}

func (m *machine) wantJournal() {
	text := m.must("journalctl", "--no-pager", "-u", "squire.service", "-o", "cat")
	for _, want := range []string{`msg="service starts"`, `msg="images taken over"`, `msg="replacing the program"`, `msg="service ends"`} {
		if !strings.Contains(text, want) {
			m.t.Errorf("the journal has no %s:\n%s", want, text[max(0, len(text)-4000):])
		}
	}
}
