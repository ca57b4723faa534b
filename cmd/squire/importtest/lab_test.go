// Package importtest imports images with the squire binary, from layouts and from Debian's docker-registry, and compares
// what comes of it with what others make of the same images.
package importtest

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/squirefs/squire/internal/testenv"
)

// lab is a directory that every user can read, with the binary in it.
type lab struct {
	dir    string
	squire string
}

// user is someone to run squire as.
type user struct {
	name string
	cred *syscall.Credential // nil: as the test itself
}

// users are root, and an ordinary user that no account exists for.
var users = []user{
	{name: "root"},
	{name: "ordinary", cred: &syscall.Credential{Uid: 12345, Gid: 12345}},
}

var root = users[0]

// newLab skips the test without the rights and the tools that it needs.
func newLab(t *testing.T, tools ...string) *lab {
	t.Helper()
	testenv.NeedTime(t, "imports with the binary and mounts")
	testenv.NeedRoot(t, "to own files as images do, to mount with the kernel and to become other users")
	testenv.NeedTools(t, tools...)
	dir := testenv.Dir(t, "", 0, 0)
	l := &lab{dir: dir, squire: filepath.Join(dir, "squire")}
	if err := testenv.Build(l.squire, ""); err != nil {
		t.Fatal(err)
	}
	return l
}

// mkdir makes a directory that belongs to who and goes with the test.
func (l *lab) mkdir(t *testing.T, who user) string {
	t.Helper()
	uid, gid := 0, 0
	if who.cred != nil {
		uid, gid = int(who.cred.Uid), int(who.cred.Gid)
	}
	return testenv.Dir(t, l.dir, uid, gid)
}

// result is how a command ended.
type result struct {
	stdout, stderr string
	status         int // as a shell shows it: 128+N after a signal
}

// command prepares a command that runs as who with home as its home directory, in a process group of its own, and dies
// when ctx ends.
func command(ctx context.Context, who user, home string, argv ...string) *exec.Cmd {
	cmd := testenv.Command(ctx, who.cred, argv...)
	cmd.Dir = home
	cmd.Env = []string{testenv.Path, "LC_ALL=C.UTF-8", "HOME=" + home, "SQUIRE_SERVICE=off"} // a service of the user's would outlive the test
	return cmd
}

// finish runs a command to its end.
func finish(t *testing.T, cmd *exec.Cmd) (r result) {
	t.Helper()
	if r.stdout, r.stderr, r.status = testenv.Finish(cmd); r.status < 0 {
		t.Fatalf("%q: %s", cmd.Args, r.stderr)
	}
	if r.status > 128 {
		t.Logf("%q: %s", cmd.Args, cmd.ProcessState)
	}
	return r
}

// importing is an import to be run.
type importing struct {
	lab  *lab
	who  user
	home string   // of the user; made when empty
	env  []string // beside that of command
	out  string   // the image; made in home when empty
}

// importer returns an import by who in a new home directory.
func (l *lab) importer(t *testing.T, who user) *importing {
	home := l.mkdir(t, who)
	return &importing{lab: l, who: who, home: home, out: filepath.Join(home, "out.sqsh")}
}

// command prepares "squire import" of a source.
func (i *importing) command(ctx context.Context, source string, args ...string) *exec.Cmd {
	argv := append([]string{i.lab.squire, "import", "-o", i.out}, args...)
	cmd := command(ctx, i.who, i.home, append(argv, source)...)
	cmd.Env = append(append(cmd.Env, "SQUIRE_CACHE_DIR="+filepath.Join(i.home, "cache")), i.env...)
	return cmd
}

// run imports, for at most two minutes.
func (i *importing) run(t *testing.T, source string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	r := finish(t, i.command(ctx, source, args...))
	if ctx.Err() != nil {
		t.Fatalf("import %s as %s: still running after two minutes: %s", source, i.who.name, r.stderr)
	}
	return r
}

// must imports, and the test fails if that does.
func (i *importing) must(t *testing.T, source string, args ...string) result {
	t.Helper()
	r := i.run(t, source, args...)
	if r.status != 0 {
		t.Fatalf("import %q as %s: status %d: %s", append(args, source), i.who.name, r.status, r.stderr)
	}
	return r
}

// fails imports, and the test fails if that succeeds, says none of words, or leaves something behind.
func (i *importing) fails(t *testing.T, source string, words []string, args ...string) {
	t.Helper()
	r := i.run(t, source, args...)
	if r.status != 125 && r.status != 1 {
		t.Errorf("import %q: status %d, want a failure: %s", append(args, source), r.status, r.stderr)
	}
	said := false
	for _, word := range words {
		said = said || strings.Contains(strings.ToLower(r.stderr), strings.ToLower(word))
	}
	if !said {
		t.Errorf("import %q: says none of %q: %s", append(args, source), words, r.stderr)
	}
	if n := strings.Count(strings.TrimSpace(r.stderr), "\n"); n > 12 {
		t.Errorf("import %q: an error of %d lines: %s", append(args, source), n+1, r.stderr)
	}
	i.wantNothing(t)
}

// wantNothing fails the test when there is an image, or a part of one beside it.
func (i *importing) wantNothing(t *testing.T) {
	t.Helper()
	names, err := os.ReadDir(filepath.Dir(i.out))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range names {
		if strings.Contains(e.Name(), filepath.Base(i.out)) || strings.HasSuffix(e.Name(), ".sqsh") {
			t.Errorf("%s is left after a failure", e.Name())
		}
	}
}

// mount mounts an image with the kernel until the test ends, and returns where.
func (l *lab) mount(t *testing.T, image string) string {
	t.Helper()
	point := l.mkdir(t, root)
	mountAt(t, point, "-t", "squashfs", "-o", "loop,ro", image)
	return point
}

// mountAt mounts by mount(8) until the test ends.
func mountAt(t *testing.T, point string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if r := finish(t, command(ctx, root, "/", append(append([]string{"mount"}, args...), point)...)); r.status != 0 {
		t.Fatalf("mount %q: %s", args, r.stderr)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(point, syscall.MNT_DETACH); err != nil && !errors.Is(err, syscall.EINVAL) {
			t.Errorf("umount %s: %v", point, err)
		}
	})
}

// must runs a tool, for at most two minutes, and the test fails if that does.
func must(t *testing.T, argv ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	r := finish(t, command(ctx, root, "/", argv...))
	if r.status != 0 {
		t.Fatalf("%q: status %d: %s%s", argv, r.status, r.stdout, r.stderr)
	}
	return r.stdout
}
