package servicetest

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/fusefs/noded"
	"github.com/squirefs/squire/internal/testenv"
)

// daemon is a service of the node.
type daemon struct {
	*lab
	home   string // its directory; its program has a name there, by which its processes are known
	exe    string
	socket string
	log    *testenv.Buffer
	cmd    *exec.Cmd // nil: a manager's
	ended  chan struct{}
}

// Names of the processes beside the keeper.
const (
	serverName  = "squire-server"
	mounterName = "squire-mounter"
	heirName    = "squire-heir"
)

// newDaemon prepares one, and sees to it that nothing of it stays.
func (l *lab) newDaemon(t *testing.T) *daemon {
	t.Helper()
	home := l.mkdir(t, root)
	d := &daemon{lab: l, home: home, exe: filepath.Join(home, "squire"), socket: filepath.Join(home, "socket"), log: new(testenv.Buffer)}
	if err := os.Link(l.squire, d.exe); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		d.clear(t)
		if text := d.log.String(); t.Failed() && text != "" {
			t.Logf("the daemon says:\n%s", text[max(0, len(text)-6000):])
		}
	})
	return d
}

// args is its command line.
func (d *daemon) args(flags ...string) []string {
	return append([]string{"daemon", "--socket", d.socket, "--log-level", "info"}, flags...)
}

// start starts a daemon and waits until it answers.
func (l *lab) start(t *testing.T, flags ...string) *daemon {
	t.Helper()
	d := l.newDaemon(t)
	d.startAgain(t, flags...)
	return d
}

func (d *daemon) startAgain(t *testing.T, flags ...string) {
	t.Helper()
	d.launch(t, exec.Command(d.exe, d.args(flags...)...))
	d.wantAnswer(t)
}

// startInFile is startAgain for a daemon whose log is to go on when its first process has ended.
func (d *daemon) startInFile(t *testing.T, flags ...string) {
	t.Helper()
	f, err := os.Create(filepath.Join(d.home, "log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		f.Close()
		if b, _ := os.ReadFile(f.Name()); t.Failed() {
			_, _ = d.log.Write(b)
		}
	})
	cmd := exec.Command(d.exe, d.args(flags...)...)
	cmd.Stderr = f
	d.launch(t, cmd)
	d.wantAnswer(t)
}

// launch starts a prepared daemon.
func (d *daemon) launch(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	cmd.Dir = "/"
	if cmd.Stderr == nil {
		cmd.Stderr = d.log
	}
	cmd.Env = append(cmd.Env, "PATH=/usr/sbin:/usr/bin:/sbin:/bin")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	// A child that outlives the keeper would keep the pipe of the log open.
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	d.cmd, d.ended = cmd, ended
	go func() { _ = cmd.Wait(); close(ended) }()
}

func (d *daemon) wantAnswer(t *testing.T) {
	t.Helper()
	if !eventually(t, "the daemon answers", func() bool { return d.ask() != nil }) {
		t.FailNow()
	}
}

// ask returns the report that root gets, nil if there is none.
func (d *daemon) ask() *noded.Report {
	c, err := noded.Dial(d.socket)
	if err != nil {
		return nil
	}
	defer c.Close()
	r, err := c.Report()
	if err != nil {
		return nil
	}
	return r
}

// report is that of a service that should be able to give one.
func (d *daemon) report(t *testing.T) *noded.Report {
	t.Helper()
	var r *noded.Report
	if !eventually(t, "the daemon reports", func() bool { r = d.ask(); return r != nil }) {
		t.FailNow()
	}
	return r
}

// stop asks the daemon to end, and waits until it has.
func (d *daemon) stop(t *testing.T) int {
	t.Helper()
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	if !d.wait(t) {
		return -1
	}
	return testenv.Status(d.cmd.ProcessState)
}

func (d *daemon) wait(t *testing.T) bool {
	t.Helper()
	select {
	case <-d.ended:
		return true
	case <-time.After(bound):
		t.Error("the daemon does not end")
		return false
	}
}

// process is one of a daemon's.
type process struct {
	pid  int
	name string // argv[0], or "" for one whose command line is gone
}

// processes returns those that run the daemon's program, whatever became of its name.
func (d *daemon) processes() (all []process) { return processesOf(d.exe) }

func processesOf(exe string) (all []process) {
	dirs, _ := os.ReadDir("/proc")
	for _, dir := range dirs {
		pid, err := strconv.Atoi(dir.Name())
		if err != nil {
			continue
		}
		to, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		if err != nil || strings.TrimSuffix(to, " (deleted)") != exe {
			continue
		}
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		name, _, _ := strings.Cut(string(line), "\x00")
		all = append(all, process{pid, name})
	}
	return all
}

// serving returns the process of a name, and waits for it: there is none between two.
func (d *daemon) serving(t *testing.T, name string) (pid int) {
	t.Helper()
	if !eventually(t, "there is a "+name, func() bool { pid = d.find(name); return pid != 0 }) {
		t.FailNow()
	}
	return pid
}

// wantNoClients wants the processes of clients to be gone, and servers of their own.
func (l *lab) wantNoClients(t *testing.T) {
	t.Helper()
	var left []process
	if !eventually(t, "clients are gone", func() bool { left = processesOf(l.squire); return len(left) == 0 }) {
		t.Errorf("they are %v", left)
	}
}

// find returns the process of a name, 0 if there is none just now.
func (d *daemon) find(name string) int {
	for _, p := range d.processes() {
		if p.name == name {
			return p.pid
		}
	}
	return 0
}

// kill kills the process of a name, if there is one just now.
func (d *daemon) kill(name string) {
	if pid := d.find(name); pid != 0 {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

// clear ends what there is of the daemon, by force where asking does not help.
func (d *daemon) clear(t *testing.T) {
	t.Helper()
	if d.cmd != nil {
		_ = d.cmd.Process.Signal(syscall.SIGCONT)
	}
	killAll(d.processes)
	if d.cmd != nil {
		<-d.ended
	}
	if left := d.processes(); len(left) > 0 {
		t.Errorf("processes of the daemon are left: %v", left)
	}
}

// killAll kills processes until there are none. All of them stand still before the first one dies: who sees that would
// start others, which could do something in their turn.
func killAll(processes func() []process) {
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		all, stopped := processes(), 0
		if len(all) == 0 {
			return
		}
		for len(all) > stopped {
			stopped = len(all)
			signalAll(all, syscall.SIGSTOP)
			all = processes()
		}
		signalAll(all, syscall.SIGKILL)
	}
}

func signalAll(all []process, s syscall.Signal) {
	for _, p := range all {
		_ = syscall.Kill(p.pid, s)
	}
}

// client prepares a command that uses the service.
func (d *daemon) client(t *testing.T, u user, args ...string) *exec.Cmd {
	t.Helper()
	cmd := command(t, u, 4*bound+duration(t, "SQUIRE_STORM", 0), append([]string{d.squire}, args...)...)
	cmd.Env = append(cmd.Env, "SQUIRE_SOCKET="+d.socket, "SQUIRE_SERVICE=node", "SQUIRE_TRACE=0")
	return cmd
}

// run prepares a container with the probe in it.
func (d *daemon) run(t *testing.T, u user, img *image, args ...string) *exec.Cmd {
	t.Helper()
	return d.client(t, u, append([]string{"run", img.path, "--", "/bin/probe"}, args...)...)
}

// holding is a container that does nothing.
type holding struct {
	cmd   *exec.Cmd
	stdin io.Closer
}

// hold starts a container that keeps its image until it is let go.
func (d *daemon) hold(t *testing.T, u user, img *image) *holding {
	t.Helper()
	return d.holdBy(t, d.run(t, u, img, "wait"))
}

// holdSick is hold for an image that is to become sick: the program is not the image's, see daemon.beside.
func (d *daemon) holdSick(t *testing.T, u user, img *image) *holding {
	t.Helper()
	return d.holdBy(t, d.client(t, u, "run", "--mounts", d.shown+":/run", img.path, "--", "/run/probe", "wait"))
}

func (d *daemon) holdBy(t *testing.T, cmd *exec.Cmd) *holding {
	t.Helper()
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err = cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err = io.ReadFull(stdout, make([]byte, len("waiting\n"))); err != nil {
		t.Fatalf("%q: %v", cmd.Args, err)
	}
	h := &holding{cmd, stdin}
	t.Cleanup(func() { _ = h.end() })
	return h
}

// end lets go of it, and returns how it ended.
func (h *holding) end() error {
	h.stdin.Close()
	return h.cmd.Wait()
}

// wantRun runs the probe to its end and checks that it has found nothing wrong. It returns what it printed.
func (d *daemon) wantRun(t *testing.T, u user, img *image, args ...string) string {
	t.Helper()
	r := finish(t, d.run(t, u, img, args...))
	if r.status != 0 || r.stderr != "" {
		t.Errorf("user %v, probe %q: %+v", u, args, r)
	}
	return r.stdout
}

// imageReport returns the only image of the service.
func (d *daemon) imageReport(t *testing.T) noded.ImageReport {
	t.Helper()
	r := d.report(t)
	if len(r.Images) != 1 {
		t.Fatalf("%d images, want 1: %+v", len(r.Images), r.Images)
	}
	return r.Images[0]
}

// devicesOf returns how many FUSE devices a process has open. They were opened in the mounter's namespace, where the path is
// another; the mounter has a descriptor of the path, which is no device.
func devicesOf(pid int) (n int) {
	dir := fmt.Sprintf("/proc/%d/", pid)
	fds, _ := os.ReadDir(dir + "fd")
	for _, fd := range fds {
		to, _ := os.Readlink(dir + "fd/" + fd.Name())
		info, _ := os.ReadFile(dir + "fdinfo/" + fd.Name())
		_, flags, _ := strings.Cut(string(info), "flags:")
		word, _, _ := strings.Cut(strings.TrimSpace(flags), "\n")
		bits, err := strconv.ParseInt(word, 8, 64)
		if err == nil && filepath.Base(to) == "fuse" && bits&unix.O_PATH == 0 {
			n++
		}
	}
	return n
}

// connections returns the FUSE connections that processes of the daemon hold, with who holds them.
func (d *daemon) connections() map[string]string {
	found := make(map[string]string)
	for _, p := range d.processes() {
		dir := fmt.Sprintf("/proc/%d/fdinfo", p.pid)
		fds, _ := os.ReadDir(dir)
		for _, fd := range fds {
			b, _ := os.ReadFile(filepath.Join(dir, fd.Name()))
			for line := range strings.Lines(string(b)) {
				if n, ok := strings.CutPrefix(line, "fuse_connection:"); ok {
					found[strings.TrimSpace(n)] += " " + p.name
				}
			}
		}
	}
	return found
}

// wantUnmounted waits until the service has no image, and no process of it a device.
func (d *daemon) wantUnmounted(t *testing.T) {
	t.Helper()
	if !eventually(t, "no image is left", func() bool { return len(d.report(t).Images) == 0 && len(d.connections()) == 0 }) {
		t.Errorf("images %+v, connections %v\n%s", d.report(t).Images, d.connections(), d.mountHolders())
	}
}

// forgetNames has the kernel forget names and inodes that nobody uses, so that they are asked for again. Pages are another
// matter: who reads cold drops those of the files itself. (Doing so for all would wait for every superblock of the machine,
// sick ones too.)
func forgetNames() { _ = os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0) }
