package main_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/squirefs/squire/internal/mountinfo"
	"github.com/squirefs/squire/internal/testenv"
)

// TestRealImage drives the squire binary on the images that testdata/rootfs.sh makes: a Debian system with Python.
// All of it hangs below one test, so that the binary is built once and everything is cleared away at its end.
func TestRealImage(t *testing.T) {
	l := newLab(t)
	for _, name := range []string{"zstd", "gzip"} {
		t.Run("compare/"+name, func(t *testing.T) { testCompare(t, l, l.images[name]) })
	}
	for _, who := range users {
		t.Run("python/"+who.name, func(t *testing.T) { testPython(t, l, who) })
		t.Run("python-at-once/"+who.name, func(t *testing.T) { testPythonAtOnce(t, l, who) })
		t.Run("killed/"+who.name, func(t *testing.T) { testKilled(t, l, who) })
		t.Run("server-killed/"+who.name, func(t *testing.T) { testServerKilled(t, l, who) })
		t.Run("server-killed-reading/"+who.name, func(t *testing.T) { testServerKilledReading(t, l, who) })
		t.Run("all-told/"+who.name, func(t *testing.T) { testAllTold(t, l, who) })
		t.Run("status/"+who.name, func(t *testing.T) { testStatus(t, l, who) })
		t.Run("bad-input/"+who.name, func(t *testing.T) { testBadInput(t, l, who) })
		t.Run("exec/"+who.name, func(t *testing.T) { testExec(t, l, who) })
		t.Run("gpu/"+who.name, func(t *testing.T) { testGPU(t, l, who) })
		t.Run("trace/"+who.name, func(t *testing.T) { testTrace(t, l, who) })
		t.Run("sign/"+who.name, func(t *testing.T) { testSign(t, l, who) })
		t.Run("pack/"+who.name, func(t *testing.T) { testPack(t, l, who) })
		t.Run("pack-signals/"+who.name, func(t *testing.T) { testPackSignals(t, l, who) })
	}
	t.Run("server-of-mapped-root", func(t *testing.T) { testServerAsMappedRoot(t, l, users[1]) })
	for _, who := range mounters {
		t.Run("mount-life/"+who.name, func(t *testing.T) { testMountLife(t, l, who) })
		t.Run("foreground/"+who.name, func(t *testing.T) { testForeground(t, l, who) })
		t.Run("trace-of-mount/"+who.name, func(t *testing.T) { testTraceOfMount(t, l, who) })
	}
	t.Run("pack-same", func(t *testing.T) { testPackSame(t, l) })
	t.Run("pack-race", func(t *testing.T) { testPackRace(t, l) })
	t.Run("pack-full-disk", func(t *testing.T) { testPackFullDisk(t, l) })
	t.Run("pack-input", func(t *testing.T) { testPackInput(t, l) })
	t.Run("pack-changing", func(t *testing.T) { testPackChanging(t, l) })
	t.Run("bad-host", func(t *testing.T) { testBadHost(t, l) })
}

// user is someone to run squire as.
type user struct {
	name string
	cred *syscall.Credential // nil: as the test itself
}

// users are root, and an ordinary user that no account exists for: a node of a cluster may not know every user's name.
var users = []user{
	{name: "root"},
	{name: "ordinary", cred: &syscall.Credential{Uid: 12345, Gid: 12345}},
}

// mounters are root, and a user with an account, which fusermount3 insists on.
var mounters = []user{
	{name: "root"},
	{name: "nobody", cred: &syscall.Credential{Uid: 65534, Gid: 65534}},
}

// lab is a directory that every user can read, with the binary and the images in it.
type lab struct {
	dir    string
	squire string
	images map[string]string // by compressor
}

// newLab skips the test where the images or the rights to use them are missing.
func newLab(t *testing.T) *lab {
	t.Helper()
	testenv.NeedTime(t, "uses a root file system")
	testenv.NeedRoot(t, "to mount with the kernel and to become other users")
	testenv.NeedFUSE(t)
	src := os.Getenv("SQUIRE_TESTDIR")
	if src == "" {
		t.Skip("SQUIRE_TESTDIR does not name a directory with images: run make test")
	}
	l := &lab{images: make(map[string]string)}
	// Not t.TempDir: its parent is closed to other users.
	var err error
	if l.dir, err = os.MkdirTemp("", "squire-lab"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.clear)
	for _, comp := range []string{"zstd", "gzip"} {
		// The name is ours alone: mounts and processes are found by it.
		l.images[comp] = filepath.Join(l.dir, filepath.Base(l.dir)+"-"+comp+".sqsh")
		from := filepath.Join(src, "rootfs-"+comp+".sqsh")
		if err := testenv.LinkOrCopy(from, l.images[comp]); errors.Is(err, os.ErrNotExist) {
			t.Skipf("no image: %v; run testdata/rootfs.sh", err)
		} else if err != nil {
			t.Fatal(err)
		}
	}
	l.squire = filepath.Join(l.dir, "squire")
	if err := testenv.Build(l.squire, ""); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(l.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return l
}

// hidden is a place for mounts. Containers, other tests' too, bind the host's /tmp with all that is mounted there, and would
// keep the mount, and its server, for as long as they live. Of /var they have nothing.
func (l *lab) hidden() string {
	if os.Getuid() != 0 {
		return filepath.Join(l.dir, "hidden")
	}
	return filepath.Join("/var/lib", filepath.Base(l.dir))
}

// clear removes all that the lab may have left: servers and containers, mounts, files.
func (l *lab) clear() {
	for _, m := range l.mounts() {
		abortFUSE(m)
		_ = syscall.Unmount(m.Point, syscall.MNT_DETACH)
	}
	for _, pid := range l.processes() {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	os.RemoveAll(l.hidden())
	os.RemoveAll(l.dir)
}

// file makes a file that everyone can read.
func (l *lab) file(t *testing.T, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(l.dir, filepath.Base(l.dir)+"-"+name)
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(path) })
	return path
}

// mkdir makes a directory that who alone can use.
func (l *lab) mkdir(t *testing.T, who user) string {
	t.Helper()
	return mkdirIn(t, l.dir, who)
}

// mountPoint makes one to mount on, which containers do not see.
func (l *lab) mountPoint(t *testing.T, who user) string {
	t.Helper()
	if err := errors.Join(os.MkdirAll(l.hidden(), 0o755), os.Chmod(l.hidden(), 0o755)); err != nil {
		t.Fatal(err)
	}
	return mkdirIn(t, l.hidden(), who)
}

func mkdirIn(t *testing.T, parent string, who user) string {
	t.Helper()
	uid, gid := 0, 0
	if who.cred != nil {
		uid, gid = int(who.cred.Uid), int(who.cred.Gid)
	}
	dir := testenv.Dir(t, parent, uid, gid)
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

// result is how a command ended.
type result struct {
	stdout, stderr string
	status         int // as a shell shows it: 128+N after a signal
}

// command prepares a command that runs as who, in a process group of its own, and dies when ctx ends.
func (l *lab) command(ctx context.Context, who user, argv ...string) *exec.Cmd {
	cmd := testenv.Command(ctx, who.cred, argv...)
	cmd.Env = append(cmd.Env, "SQUIRE_TRACE=0", "SQUIRE_SERVICE=off")
	return cmd
}

// bound is how long may take what should take no time: not a measure, but the end of a test that hangs.
const bound = time.Minute

// run runs a command to its end, for at most three minutes.
func (l *lab) run(t *testing.T, who user, argv ...string) (r result) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*bound)
	defer cancel()
	r.stdout, r.stderr, r.status = testenv.Finish(l.command(ctx, who, argv...))
	if ctx.Err() != nil {
		t.Fatalf("%q as %s: still running after three minutes; stderr: %s; processes: %s", argv, who.name, r.stderr, describe(l.processes()))
	}
	if r.status < 0 {
		t.Fatalf("%q as %s: %s", argv, who.name, r.stderr)
	}
	return r
}

// mounts lists, over the mount namespaces of all processes, squire's mounts of files in the lab and on directories in
// it.
func (l *lab) mounts() []mountinfo.Mount {
	var found []mountinfo.Mount
	infos, _ := filepath.Glob("/proc/[0-9]*/mountinfo")
	for _, info := range infos {
		text, err := os.ReadFile(info) // a process may be gone by now
		if err != nil || !bytes.Contains(text, []byte(filepath.Base(l.dir))) {
			continue
		}
		for _, m := range mountinfo.Parse(string(text)) {
			if m.Type == "fuse.squire" && (strings.Contains(m.Source, filepath.Base(l.dir)) || strings.HasPrefix(m.Point, l.dir) || strings.HasPrefix(m.Point, l.hidden())) {
				m.ID = 0 // another one in each namespace
				found = append(found, m)
			}
		}
	}
	slices.SortFunc(found, func(a, b mountinfo.Mount) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	return slices.Compact(found)
}

// abortFUSE ends a FUSE connection whatever its server does, so that nobody hangs on it.
func abortFUSE(m mountinfo.Mount) {
	_, minor, _ := strings.Cut(m.Device, ":")
	_ = os.WriteFile("/sys/fs/fuse/connections/"+minor+"/abort", []byte("1"), 0)
}

// processes lists the processes that run the lab's binary, under whatever name, or have the lab's name or one of words
// in their command line.
func (l *lab) processes(words ...string) []int {
	words = append(words, filepath.Base(l.dir))
	var pids []int
	cmdlines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range cmdlines {
		text, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		exe, _ := os.Readlink(filepath.Dir(path) + "/exe")
		has := func(w string) bool { return bytes.Contains(text, []byte(w)) }
		if strings.HasPrefix(exe, l.squire) || slices.ContainsFunc(words, has) {
			pid, err := strconv.Atoi(strings.Split(path, "/")[2])
			if err == nil && pid != os.Getpid() {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// wantNothingLeft fails the test when squire's mounts or processes stay, or processes with one of words in their command
// line.
func (l *lab) wantNothingLeft(t *testing.T, words ...string) {
	t.Helper()
	if !eventually(leaving, func() bool { return len(l.mounts()) == 0 && len(l.processes(words...)) == 0 }) {
		t.Errorf("%s later there are still mounts %v, in the namespaces of %s, and processes %s", leaving, l.mounts(), l.mounters(), describe(l.processes(words...)))
	}
}

// leaving is how long what ends by itself may take for it on a machine that is busy with other tests.
const leaving = 20 * time.Second

// mounters describes the processes in whose namespaces the lab's mounts are.
func (l *lab) mounters() string {
	var pids []int
	infos, _ := filepath.Glob("/proc/[0-9]*/mountinfo")
	for _, info := range infos {
		text, _ := os.ReadFile(info)
		for line := range strings.Lines(string(text)) {
			if strings.Contains(line, "fuse.squire") && strings.Contains(line, filepath.Base(l.dir)) {
				pid, _ := strconv.Atoi(strings.Split(info, "/")[2])
				pids = append(pids, pid)
				break
			}
		}
	}
	return describe(pids)
}

func describe(pids []int) string {
	var b strings.Builder
	for _, pid := range pids {
		cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		fmt.Fprintf(&b, "[%d %s]", pid, bytes.ReplaceAll(cmdline, []byte{0}, []byte{' '}))
	}
	return b.String()
}

func eventually(limit time.Duration, ok func() bool) bool { return testenv.Eventually(limit, ok) }
