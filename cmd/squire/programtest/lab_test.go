// Package programtest runs programs that people use, as they come from Debian, in containers: compilers, package managers,
// debuggers, MPI, shells on terminals. As root and as an ordinary user, with the node's service and without.
package programtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// bound is how long commands may take that should take seconds.
const bound = 3 * time.Minute

// user is an ordinary user's number, for whom there is no account: their name is in the environment alone.
const user = 24100

// lab is a directory that every user can read, with the binary, the image that testdata/programs.sh makes, and what is in
// testdata.
type lab struct {
	dir, squire, image string
}

var shared struct {
	once sync.Once
	lab  *lab
	err  error
}

func TestMain(m *testing.M) {
	status := m.Run()
	if shared.lab != nil {
		os.RemoveAll(shared.lab.dir)
	}
	os.Exit(status)
}

func newLab(t *testing.T) *lab {
	t.Helper()
	if testing.Short() {
		t.Skip("runs programs in containers; not in short mode")
	}
	if os.Getuid() != 0 {
		t.Skip("needs root, to become other users")
	}
	if f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil {
		t.Skipf("needs FUSE: %v", err)
	} else {
		f.Close()
	}
	from := filepath.Join(os.Getenv("SQUIRE_TESTDIR"), "programs.sqsh")
	if _, err := os.Stat(from); err != nil {
		t.Skipf("needs an image with programs: run testdata/programs.sh: %v", err)
	}
	shared.once.Do(func() { shared.lab, shared.err = makeLab(from) })
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.lab
}

func makeLab(image string) (*lab, error) {
	// Not t.TempDir: its parent is closed to other users, and it ends with the first test.
	dir, err := os.MkdirTemp("", "squire-program")
	if err != nil {
		return nil, err
	}
	l := &lab{dir: dir, squire: filepath.Join(dir, "squire"), image: filepath.Join(dir, "programs.sqsh")}
	if err = errors.Join(os.Chmod(dir, 0o755), linkOrCopy(image, l.image), os.CopyFS(filepath.Join(dir, "testdata"), os.DirFS("testdata"))); err != nil {
		return l, err
	}
	cmd := exec.Command("go", "build", "-o", l.squire, "..")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return l, fmt.Errorf("build squire: %w\n%s", err, out)
	}
	return l, nil
}

func linkOrCopy(from, to string) error {
	if os.Link(from, to) == nil {
		return nil
	}
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Close())
}

// who runs squire, and how images are served.
type who struct {
	l       *lab
	name    string
	uid     uint32
	service string // of SQUIRE_SERVICE
	socket  string // of the node's service
	home    string // a directory of theirs
}

// The ways to run programs that tests choose from.
const (
	alone  = "user/off"  // an ordinary user, with a server for each container
	served = "user/node" // the same with the node's service, whose mount gives them the files of the image's root
	asRoot = "root/off"
)

// each runs a test in some ways, one after the other: most programs use all processors.
func each(t *testing.T, ways []string, test func(t *testing.T, w *who)) {
	l := newLab(t)
	for _, way := range ways {
		t.Run(way, func(t *testing.T) {
			w := &who{l: l, name: way, service: filepath.Base(way)}
			if way != asRoot {
				w.uid = user
			}
			if way == served {
				w.socket = l.daemon(t)
			}
			var err error
			if w.home, err = os.MkdirTemp(l.dir, "home"); err == nil {
				err = os.Chown(w.home, int(w.uid), int(w.uid))
			}
			if err != nil {
				t.Fatal(err)
			}
			test(t, w)
			w.wantNothingRunning(t)
			os.RemoveAll(w.home)
		})
	}
}

// daemon starts a service of the node for the test.
func (l *lab) daemon(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(l.dir, "service")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "socket")
	var log bytes.Buffer
	cmd := exec.Command(l.squire, "daemon", "--socket", socket, "--idle", "1s")
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.Stderr = &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.WaitDelay = 2 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		timer := time.AfterFunc(20*time.Second, func() { _ = cmd.Process.Kill() })
		defer timer.Stop()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("the service says:\n%s", log.String())
		}
	})
	if !eventually(func() bool { _, err := os.Stat(socket); return err == nil }) {
		t.Fatal("the service did not start")
	}
	return socket
}

func eventually(holds func() bool) bool {
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if holds() {
			return true
		}
	}
	return false
}

// file is a file of testdata, which is bound into all containers at the same place.
func (w *who) file(name string) string { return filepath.Join(w.l.dir, "testdata", name) }

// command prepares a command of squire.
func (w *who) command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), bound)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, w.l.squire, args...)
	cmd.Dir = w.home
	cmd.Env = []string{
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + w.home, "USER=tester", "XDG_CACHE_HOME=" + w.home + "/cache", "TERM=xterm",
		"SQUIRE_SERVICE=" + w.service, "SQUIRE_SOCKET=" + w.socket, "SQUIRE_DATA=" + w.home + "/data", "SQUIRE_TRACE=0",
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if w.uid == 0 {
		cmd.Env = append(cmd.Env, "USER=root")
	} else {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: w.uid, Gid: w.uid}
	}
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// result is how a command ended.
type result struct {
	stdout, stderr string
	status         int
}

// squire runs a command of squire.
func (w *who) squire(t *testing.T, args ...string) result {
	t.Helper()
	cmd := w.command(t, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if cmd.ProcessState == nil {
		return result{stderr: err.Error(), status: -1}
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// run runs a command in the image, with flags of squire run.
func (w *who) run(t *testing.T, flags []string, command ...string) result {
	t.Helper()
	return w.squire(t, append(append([]string{"run"}, flags...), append([]string{w.l.image, "--"}, command...)...)...)
}

// want runs a command in the image that has to succeed without a word on standard error, and to print something.
func (w *who) want(t *testing.T, stdout string, flags []string, command ...string) {
	t.Helper()
	if r := w.run(t, flags, command...); r.status != 0 || r.stderr != "" || r.stdout != stdout {
		t.Errorf("%q with %q: status %d, standard error %q, output\n%swant\n%s", command, flags, r.status, r.stderr, r.stdout, stdout)
	}
}

// processes are those of the test's containers: squire's and all that have the test's directory in their environment.
func (w *who) processes() (all []string) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		env, err := os.ReadFile(dir + "/environ")
		if err == nil && bytes.Contains(env, []byte("HOME="+w.home+"\x00")) {
			line, _ := os.ReadFile(dir + "/cmdline")
			all = append(all, filepath.Base(dir)+" "+strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return all
}

// wantNothingRunning wants no process of a container to be left, whatever became of it.
func (w *who) wantNothingRunning(t *testing.T) {
	t.Helper()
	if !eventually(func() bool { return len(w.processes()) == 0 }) {
		t.Errorf("processes are left: %q", w.processes())
	}
}
