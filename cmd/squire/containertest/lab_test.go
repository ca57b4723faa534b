// Package containertest runs named containers as users meet them: the real binary, with a service and without, as root
// and as ordinary users, many at once, and killed.
package containertest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/squirefs/squire/internal/testenv"
)

// bound is how long commands may take that should take no time: not a measure, but the end of a test that hangs.
const bound = 2 * time.Minute

// lab is a directory that every user can read, with the binary and an image of a shell.
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
	testenv.NeedTime(t, "runs containers")
	testenv.NeedRoot(t, "to become other users")
	testenv.NeedFUSE(t)
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("needs a static busybox: run testdata/deps.sh")
	}
	shared.once.Do(func() { shared.lab, shared.err = makeLab(busybox) })
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.lab
}

func makeLab(busybox string) (*lab, error) {
	// Not t.TempDir: its parent is closed to other users, and it ends with the first test.
	dir, err := os.MkdirTemp("", "squire-container")
	if err != nil {
		return nil, err
	}
	l := &lab{dir: dir, squire: filepath.Join(dir, "squire"), image: filepath.Join(dir, "image.sqsh")}
	if err = os.Chmod(dir, 0o755); err != nil {
		return l, err
	}
	if err = testenv.Build(l.squire, ""); err != nil {
		return l, err
	}
	return l, l.makeImage(busybox)
}

// makeImage packs a tree with a shell, files of several owners, one with several names, and a set-user-id program.
func (l *lab) makeImage(busybox string) error {
	tree := filepath.Join(l.dir, "tree")
	script := fmt.Sprintf(`set -e
mkdir -p %[1]s/bin %[1]s/etc %[1]s/home/somebody %[1]s/usr/share %[1]s/proc %[1]s/dev %[1]s/sys %[1]s/tmp
cp %[2]s %[1]s/bin/busybox
for a in sh cat ls echo sleep rm mkdir chmod readlink touch mv ln id stat head wc true pwd tr seq dd; do ln -s busybox %[1]s/bin/$a; done
echo mine > %[1]s/home/somebody/file; chown -R 1234:1234 %[1]s/home/somebody
echo one > %[1]s/etc/one; echo two > %[1]s/etc/two; ln %[1]s/etc/one %[1]s/etc/first
mkdir %[1]s/usr/share/many; for i in $(seq 200); do echo $i > %[1]s/usr/share/many/$i; done
dd if=/dev/urandom of=%[1]s/usr/share/large bs=100k count=30 2>/dev/null
cp %[2]s %[1]s/bin/suid; chmod 4755 %[1]s/bin/suid
chmod -R go+rX %[1]s`, tree, busybox)
	if out, err := exec.Command("sh", "-c", script).CombinedOutput(); err != nil {
		return fmt.Errorf("make a tree: %w\n%s", err, out)
	}
	defer os.RemoveAll(tree)
	if out, err := exec.Command(l.squire, "pack", "--quiet", tree, l.image).CombinedOutput(); err != nil {
		return fmt.Errorf("squire pack: %w\n%s", err, out)
	}
	return os.Chmod(l.image, 0o644)
}

// who runs squire, and how the image is served.
type who struct {
	l       *lab
	name    string
	uid     uint32
	service string // of SQUIRE_SERVICE
	socket  string // of the node's service
	home    string // a directory of theirs
	data    string // where their containers are
}

// each runs a test for all users with all services, at once.
func each(t *testing.T, test func(t *testing.T, w *who)) {
	l := newLab(t)
	socket := l.daemon(t)
	for i, name := range []string{"root", "user"} {
		for _, service := range []string{"off", "node", "own"} {
			if name == "root" && service == "own" {
				continue // root has none
			}
			w := &who{l: l, name: name, service: service, socket: socket}
			if i > 0 {
				w.uid = 24000
			}
			t.Run(name+"/"+service, func(t *testing.T) {
				w := *w
				w.dirs(t)
				test(t, &w)
				w.wantNothingRunning(t)
			})
		}
	}
}

func (w *who) dirs(t *testing.T) {
	t.Helper()
	w.home = testenv.Dir(t, w.l.dir, int(w.uid), int(w.uid))
	w.data = filepath.Join(w.home, "data")
}

// daemon starts a service of the node for the test.
func (l *lab) daemon(t *testing.T) string {
	t.Helper()
	return testenv.Daemon(t, l.squire, l.dir, "--idle", "1s")
}

func done(ended <-chan struct{}) bool { return testenv.Done(ended) }

func eventually(holds func() bool) bool { return testenv.Eventually(bound/2, holds) }

// command prepares a command of squire.
func (w *who) command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), bound)
	t.Cleanup(cancel)
	cmd := testenv.Command(ctx, testenv.Credential(w.uid, w.uid), append([]string{w.l.squire}, args...)...)
	cmd.Dir = w.home
	cmd.Env = []string{
		testenv.Path, "HOME=" + w.home, "XDG_CACHE_HOME=" + w.home + "/cache", "XDG_RUNTIME_DIR=" + w.home,
		"SQUIRE_SERVICE=" + w.service, "SQUIRE_SOCKET=" + w.socket, "SQUIRE_DATA=" + w.data,
	}
	return cmd
}

// result is how a command ended.
type result struct {
	stdout, stderr string
	status         int // as a shell shows it; -1: it did not start
}

func finish(cmd *exec.Cmd) (r result) {
	r.stdout, r.stderr, r.status = testenv.Finish(cmd)
	return r
}

// squire runs a command of squire.
func (w *who) squire(t *testing.T, args ...string) result {
	t.Helper()
	return finish(w.command(t, args...))
}

// want runs a command of squire that has to succeed without a word on standard error, and to print something.
func (w *who) want(t *testing.T, stdout string, args ...string) {
	t.Helper()
	if r := w.squire(t, args...); r.status != 0 || r.stderr != "" || r.stdout != stdout {
		t.Errorf("squire %q: status %d, standard output %q, error %q; want %q", args, r.status, r.stdout, r.stderr, stdout)
	}
}

// holder is a command that goes on until the test ends it.
type holder struct {
	cmd    *exec.Cmd
	out    bytes.Buffer // to be read when it has ended
	ended  chan struct{}
	status int
}

// hold starts a command of squire, and waits until another, looking whether it runs, succeeds.
func (w *who) hold(t *testing.T, look []string, args ...string) *holder {
	t.Helper()
	h := &holder{cmd: w.command(t, args...), ended: make(chan struct{})}
	h.cmd.Stdout, h.cmd.Stderr = &h.out, &h.out
	if err := h.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = h.cmd.Wait()
		h.status = h.cmd.ProcessState.ExitCode()
		close(h.ended)
	}()
	t.Cleanup(func() { _ = h.cmd.Process.Kill(); <-h.ended })
	var r result
	if !eventually(func() bool { r = w.squire(t, look...); return r.status == 0 || done(h.ended) }) || r.status != 0 {
		what := "goes on"
		if done(h.ended) {
			what = fmt.Sprintf("has ended with %d, %s", h.status, h.out.String())
		}
		t.Fatalf("squire %q %s, and squire %q ends with %+v; processes: %q", args, what, look, r, w.processes())
	}
	return h
}

// end waits for its end, which has to be a good one.
func (h *holder) end(t *testing.T) {
	t.Helper()
	<-h.ended
	if h.status != 0 || h.out.Len() > 0 {
		t.Errorf("%q: status %d, %s", h.cmd.Args, h.status, h.out.String())
	}
}

// kill kills it, and it alone.
func (h *holder) kill() {
	_ = h.cmd.Process.Kill()
	<-h.ended
}

// save runs a command in an image and saves what comes of it, of which it says a line.
func (w *who) save(t *testing.T, to string, args ...string) {
	t.Helper()
	r := w.squire(t, append([]string{"run", "--writable", "--save", to}, args...)...)
	if r.status != 0 || !strings.HasPrefix(r.stderr, "squire: saved the container to ") || strings.Count(r.stderr, "\n") != 1 {
		t.Errorf("save %q: %+v", args, r)
	}
}

// refuse runs a command of squire that has to fail with one line that has words in it.
func (w *who) refuse(t *testing.T, status int, words string, args ...string) {
	t.Helper()
	r := w.squire(t, args...)
	if r.status != status || !strings.Contains(r.stderr, words) || strings.Count(r.stderr, "\n") != 1 {
		t.Errorf("squire %q: status %d, standard error %q; want %d and %q in one line", args, r.status, r.stderr, status, words)
	}
}

// wantNothingRunning wants no container to run and no process to be left in one.
func (w *who) wantNothingRunning(t *testing.T) {
	t.Helper()
	var r result
	gone := func() bool {
		r = w.squire(t, "container", "list", "--json")
		return r.status == 0 && !strings.Contains(r.stdout, `"running": true`)
	}
	if !eventually(gone) {
		t.Errorf("a container still runs: %+v; processes: %q", r, w.processes())
	}
	if !eventually(func() bool { return len(w.processes()) == 0 }) {
		t.Errorf("processes are left: %q", w.processes())
	}
}

// processes describes those of runs and containers of theirs.
func (w *who) processes() []string { return w.stages("squire-init", w.l.squire+" run") }

// stages describes processes of theirs whose command lines begin so. Those of other labs are told by the program that they
// run.
func (w *who) stages(begin ...string) (all []string) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		line, _ := os.ReadFile(dir + "/cmdline")
		text := strings.ReplaceAll(string(line), "\x00", " ")
		exe, err := os.Readlink(dir + "/exe")
		if err != nil || exe != w.l.squire || !slices.ContainsFunc(begin, func(b string) bool { return strings.HasPrefix(text, b) }) {
			continue
		}
		if env, err := os.ReadFile(dir + "/environ"); err == nil && strings.Contains(string(env), w.data) {
			status, _ := os.ReadFile(dir + "/status")
			_, state, _ := strings.Cut(string(status), "State:\t")
			state, _, _ = strings.Cut(state, "\n")
			all = append(all, fmt.Sprintf("%s %s %s", filepath.Base(dir), state, text))
		}
	}
	return all
}
