// Package programtest runs programs that people use, as they come from Debian, in containers: compilers, package managers,
// debuggers, MPI, shells on terminals. As root and as an ordinary user, with the node's service and without.
package programtest

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/squirefs/squire/internal/testenv"
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
	testenv.NeedTime(t, "runs programs in containers")
	testenv.NeedRoot(t, "to become other users")
	testenv.NeedFUSE(t)
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
	if err = errors.Join(os.Chmod(dir, 0o755), testenv.LinkOrCopy(image, l.image), os.CopyFS(filepath.Join(dir, "testdata"), os.DirFS("testdata"))); err != nil {
		return l, err
	}
	return l, testenv.Build(l.squire, "")
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
			w.home = testenv.Dir(t, l.dir, int(w.uid), int(w.uid))
			test(t, w)
			w.wantNothingRunning(t)
		})
	}
}

// daemon starts a service of the node for the test.
func (l *lab) daemon(t *testing.T) string {
	t.Helper()
	return testenv.Daemon(t, l.squire, l.dir, "--idle", "1s")
}

func eventually(holds func() bool) bool { return testenv.Eventually(time.Minute, holds) }

// file is a file of testdata, which is bound into all containers at the same place.
func (w *who) file(name string) string { return filepath.Join(w.l.dir, "testdata", name) }

// command prepares a command of squire.
func (w *who) command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), bound)
	t.Cleanup(cancel)
	cmd := testenv.Command(ctx, testenv.Credential(w.uid, w.uid), append([]string{w.l.squire}, args...)...)
	cmd.Dir = w.home
	cmd.Env = []string{
		testenv.Path, "HOME=" + w.home, "USER=tester", "XDG_CACHE_HOME=" + w.home + "/cache", "TERM=xterm",
		"SQUIRE_SERVICE=" + w.service, "SQUIRE_SOCKET=" + w.socket, "SQUIRE_DATA=" + w.home + "/data", "SQUIRE_TRACE=0",
	}
	if w.uid == 0 {
		cmd.Env = append(cmd.Env, "USER=root")
	}
	return cmd
}

// result is how a command ended.
type result struct {
	stdout, stderr string
	status         int // as a shell shows it; -1: it did not start
}

// squire runs a command of squire.
func (w *who) squire(t *testing.T, args ...string) (r result) {
	t.Helper()
	r.stdout, r.stderr, r.status = testenv.Finish(w.command(t, args...))
	return r
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
