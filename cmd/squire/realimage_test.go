package main_test

import (
	"bytes"
	"context"
	"errors"
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
	if testing.Short() {
		t.Skip("uses a root file system; not in short mode")
	}
	if os.Getuid() != 0 {
		t.Skip("needs root, to mount with the kernel and to become other users")
	}
	if f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil {
		t.Skipf("needs FUSE: %v", err)
	} else {
		f.Close()
	}
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
		if err := linkOrCopy(from, l.images[comp]); errors.Is(err, os.ErrNotExist) {
			t.Skipf("no image: %v; run testdata/rootfs.sh", err)
		} else if err != nil {
			t.Fatal(err)
		}
	}
	l.squire = filepath.Join(l.dir, "squire")
	build := exec.Command("go", "build", "-o", l.squire, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build squire: %v\n%s", err, out)
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
		_ = syscall.Unmount(m.point, syscall.MNT_DETACH)
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

// mkdir makes a directory that belongs to who.
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
	dir, err := os.MkdirTemp(parent, "dir")
	if err != nil {
		t.Fatal(err)
	}
	if who.cred != nil {
		if err := os.Chown(dir, int(who.cred.Uid), int(who.cred.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { os.Remove(dir) })
	return dir
}

// result is how a command ended.
type result struct {
	stdout, stderr string
	status         int // as a shell shows it: 128+N after a signal
}

// command prepares a command that runs as who, in a process group of its own, and dies when ctx ends.
func (l *lab) command(ctx context.Context, who user, argv ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "HOME=/nonexistent", "SQUIRE_TRACE=0", "SQUIRE_SERVICE=off"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: who.cred, Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 2 * time.Second // whoever inherited the pipes must not hold up the test
	return cmd
}

// bound is how long may take what should take no time: not a measure, but the end of a test that hangs.
const bound = time.Minute

// run runs a command to its end, for at most three minutes.
func (l *lab) run(t *testing.T, who user, argv ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*bound)
	defer cancel()
	cmd := l.command(ctx, who, argv...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if ctx.Err() != nil {
		t.Fatalf("%q as %s: still running after three minutes; stderr: %s; processes: %s", argv, who.name, &stderr, describe(l.processes()))
	}
	if cmd.ProcessState == nil {
		t.Fatalf("%q as %s: %v", argv, who.name, err)
	}
	r := result{stdout: stdout.String(), stderr: stderr.String(), status: cmd.ProcessState.ExitCode()}
	if ws := cmd.ProcessState.Sys().(syscall.WaitStatus); ws.Signaled() {
		r.status = 128 + int(ws.Signal())
	}
	return r
}

// mount is one line of a mountinfo file.
type mount struct {
	dev, point, fstype, source string
}

// mounts lists, over the mount namespaces of all processes, squire's mounts of files in the lab and on directories in
// it.
func (l *lab) mounts() []mount {
	var found []mount
	infos, _ := filepath.Glob("/proc/[0-9]*/mountinfo")
	for _, info := range infos {
		text, err := os.ReadFile(info) // a process may be gone by now
		if err != nil || !bytes.Contains(text, []byte(filepath.Base(l.dir))) {
			continue
		}
		for line := range strings.Lines(string(text)) {
			m, err := parseMount(line)
			if err == nil && m.fstype == "fuse.squire" && (strings.Contains(m.source, filepath.Base(l.dir)) || strings.HasPrefix(m.point, l.dir) || strings.HasPrefix(m.point, l.hidden())) {
				found = append(found, m)
			}
		}
	}
	slices.SortFunc(found, func(a, b mount) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	return slices.Compact(found)
}

// parseMount parses a line of mountinfo: see proc(5).
func parseMount(line string) (mount, error) {
	before, after, ok := strings.Cut(line, " - ")
	f, g := strings.Fields(before), strings.Fields(after)
	if !ok || len(f) < 6 || len(g) < 2 {
		return mount{}, fmt.Errorf("mountinfo line %q: too few fields", line)
	}
	return mount{dev: f[2], point: f[4], fstype: g[0], source: g[1]}, nil
}

// abortFUSE ends a FUSE connection whatever its server does, so that nobody hangs on it.
func abortFUSE(m mount) {
	_, minor, _ := strings.Cut(m.dev, ":")
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

// eventually asks again and again until ok says yes or the time is up.
func eventually(limit time.Duration, ok func() bool) bool {
	for end := time.Now().Add(limit); ; time.Sleep(50 * time.Millisecond) {
		if ok() {
			return true
		}
		if time.Now().After(end) {
			return false
		}
	}
}

func linkOrCopy(from, to string) error {
	if err := os.Link(from, to); err == nil || errors.Is(err, os.ErrNotExist) {
		return err
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
	if _, err := io.Copy(dst, src); err != nil {
		dst.Close()
		return err
	}
	return dst.Close()
}

func TestParseMount(t *testing.T) {
	tests := []struct {
		name, line string
		want       mount
		bad        bool
	}{
		{
			name: "optional fields", line: "36 35 98:0 / /mnt\\040a ro,nosuid shared:1 master:2 - fuse.squire image.sqsh ro,user_id=0\n",
			want: mount{dev: "98:0", point: "/mnt\\040a", fstype: "fuse.squire", source: "image.sqsh"},
		},
		{name: "no optional field", line: "1 2 0:5 / / rw - tmpfs none rw", want: mount{dev: "0:5", point: "/", fstype: "tmpfs", source: "none"}},
		{name: "no separator", line: "1 2 0:5 / / rw tmpfs none rw", bad: true},
		{name: "empty", bad: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parseMount(tt.line)
			if (err != nil) != tt.bad || got != tt.want {
				t.Errorf("parseMount(%q) = %v, %v", tt.line, got, err)
			}
		})
	}
}
