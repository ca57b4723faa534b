// Package servicetest runs the node service as those on a node meet it: the real binary, a daemon with root's rights on a
// socket of its own, clients of several users, and what can go wrong with any of them.
//
// SQUIRE_STORM (a duration) and SQUIRE_CYCLES (a number) make the tests that look for rare things longer than the suite
// has time for.
package servicetest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/internal/testenv"
)

// stages are what this program is when it is called by one of these names: parts that need a process of their own, and
// what runs in containers.
var stages = map[string]func(args []string) error{
	"probe":    probe,
	"attacker": attack,
	"attach":   attachEach,
	"faultfs":  faultMain,
	"storer":   storeMain,
}

func TestMain(m *testing.M) {
	if stage := stages[filepath.Base(os.Args[0])]; stage != nil {
		if err := stage(os.Args[1:]); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	status := m.Run()
	if l := shared.lab; l != nil {
		os.RemoveAll(l.dir)
		os.RemoveAll(l.shown)
	}
	os.Exit(status)
}

// lab is a directory that every user can read, with what all tests share.
//
// Containers, those of other packages' tests too, bind the host's /tmp with all that is mounted there, and would keep mounts
// of the service for as long as they live. Of /var, where the directory is, they have nothing.
type lab struct {
	dir    string
	squire string
	probe  string // this program by that name
	image  *image
	shown  string // a directory with what containers do see: the probe, for those whose image has none that works
}

var shared struct {
	once sync.Once
	lab  *lab
	err  error
}

// newLab skips the test without the rights and the tools that it needs.
func newLab(t *testing.T, tools ...string) *lab {
	t.Helper()
	testenv.NeedTime(t, "runs a service with mounts")
	testenv.NeedRoot(t, "to mount for others and to become other users")
	testenv.NeedFUSE(t)
	testenv.NeedTools(t, append(tools, "mksquashfs")...)
	shared.once.Do(func() { shared.lab, shared.err = makeLab() })
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.lab
}

func makeLab() (*lab, error) {
	// Not t.TempDir: its parent is closed to other users, and it ends with the first test.
	dir, err := os.MkdirTemp("/var/lib", "squire-service")
	if err != nil {
		return nil, err
	}
	l := &lab{dir: dir, squire: filepath.Join(dir, "squire"), probe: filepath.Join(dir, "probe")}
	if err = os.Chmod(dir, 0o755); err != nil {
		return l, err
	}
	if err = testenv.Build(l.squire, ""); err != nil {
		return l, err
	}
	if err = copyFile("/proc/self/exe", l.probe); err != nil {
		return l, err
	}
	if l.shown, err = os.MkdirTemp("", "squire-shown"); err == nil {
		err = errors.Join(os.Chmod(l.shown, 0o755), copyFile(l.probe, filepath.Join(l.shown, "probe")))
	}
	if err != nil {
		return l, err
	}
	l.image, err = l.makeImage("first", 1)
	return l, err
}

func copyFile(from, to string) error { return testenv.CopyFile(from, to, 0o755) }

// user is somebody on the node, without an account.
type user struct{ uid, gid uint32 }

var (
	root  = user{}
	users = []user{{23001, 23001}, {23002, 23002}, {23003, 23003}, {23004, 23004}}
	// nobody is whom the server is as well.
	nobody = user{65534, 65534}
)

func (u user) String() string { return strconv.Itoa(int(u.uid)) }

func (u user) credential() *syscall.Credential { return testenv.Credential(u.uid, u.gid) }

// do calls f in a thread that has the rights of u, which then ends: what f opens and whom it connects to are u's.
func (u user) do(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		lockThread()
		if u != root {
			unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0)
			unix.RawSyscall(unix.SYS_SETRESGID, uintptr(u.gid), uintptr(u.gid), uintptr(u.gid))
			if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(u.uid), uintptr(u.uid), uintptr(u.uid)); errno != 0 {
				panic(errno)
			}
		}
		f()
	}()
	<-done
}

// mkdir makes a directory that belongs to u and goes with the test, mounts on it too.
func (l *lab) mkdir(t *testing.T, u user) string {
	t.Helper()
	return mkdirIn(t, l.dir, u)
}

func mkdirIn(t *testing.T, parent string, u user) string {
	t.Helper()
	return testenv.Dir(t, parent, int(u.uid), int(u.gid))
}

func mountsBelow(dir string) []string { return testenv.MountsBelow(dir) }

// mountHolders tells which mounts of the lab's images there are, in the namespaces of which processes: as long as there is
// one anywhere, its image is not gone.
func (l *lab) mountHolders() string {
	var b strings.Builder
	seen := make(map[string]bool)
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		ns, err := os.Readlink(dir + "/ns/mnt")
		if err != nil || seen[ns] {
			continue
		}
		seen[ns] = true
		text, _ := os.ReadFile(dir + "/mountinfo")
		for line := range strings.Lines(string(text)) {
			if strings.Contains(line, " fuse.squire ") && strings.Contains(line, l.dir) {
				argv, _ := os.ReadFile(dir + "/cmdline")
				fmt.Fprintf(&b, "process %s, %q: %s", filepath.Base(dir), argv, line)
			}
		}
	}
	return b.String()
}

// result is how a command ended.
type result struct {
	stdout, stderr string
	status         int // as a shell shows it: 128+N after a signal
}

// bound is how long commands may take that should take no time: not a measure, but the end of a test that hangs.
const bound = time.Minute

// command prepares a command of u in a session of its own, for at most limit.
func command(t *testing.T, u user, limit time.Duration, argv ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	cmd := testenv.Command(ctx, u.credential(), argv...)
	cmd.SysProcAttr.Setpgid, cmd.SysProcAttr.Setsid = false, true
	return cmd
}

// finish runs a command to its end.
func finish(t *testing.T, cmd *exec.Cmd) (r result) {
	t.Helper()
	if r.stdout, r.stderr, r.status = testenv.Finish(cmd); r.status < 0 {
		t.Errorf("%q: %s", cmd.Args, r.stderr)
	}
	return r
}

// within fails the test if f has not returned in time. f then goes on: what it waits for ends with the test's clean-up.
func within(t *testing.T, limit time.Duration, what string, f func()) bool {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
		return true
	case <-time.After(limit):
		t.Errorf("%s takes longer than %s", what, limit)
		return false
	}
}

// eventually waits until what holds, for at most the bound of commands.
func eventually(t *testing.T, what string, holds func() bool) bool {
	t.Helper()
	if testenv.Eventually(bound, holds) {
		return true
	}
	t.Errorf("not so after %s: %s", bound, what)
	return false
}

// duration reads a length from the environment.
func duration(t *testing.T, name string, otherwise time.Duration) time.Duration {
	s := os.Getenv(name)
	if s == "" {
		return otherwise
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return d
}
