package servicetest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/fusefs/noded"
)

// attack is a user with a mount that the service has granted, descriptor 3, as root of a user and a mount namespace of
// their own. Each way to get rid of what keeps the mount harmless is tried; those that work are printed.
func attack([]string) error {
	const mount = 3
	a := &attacker{}
	flags := []uint64{unix.MOUNT_ATTR_NOSUID, unix.MOUNT_ATTR_NODEV, unix.MOUNT_ATTR_RDONLY, unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_RDONLY}
	for _, f := range flags {
		a.try(fmt.Sprintf("clear %#x of the descriptor", f), clearAttr(mount, "", f))
	}
	a.try("map ids of the descriptor", unix.MountSetattr(mount, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: ownNamespace()}))
	dir, err := os.MkdirTemp("", "attack")
	if err != nil {
		return err
	}
	// Only the mount is covered with one that can be written to.
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		return fmt.Errorf("tmpfs: %w", err)
	}
	at, lower := filepath.Join(dir, "at"), filepath.Join(dir, "lower")
	if err := errors.Join(os.Mkdir(at, 0o700), os.Mkdir(lower, 0o700)); err != nil {
		return err
	}
	if err := unix.MoveMount(mount, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach what was granted: %w", err)
	}
	for _, f := range flags {
		a.try(fmt.Sprintf("clear %#x when attached", f), clearAttr(unix.AT_FDCWD, at, f))
	}
	for _, f := range []uintptr{0, unix.MS_RDONLY, unix.MS_RDONLY | unix.MS_NODEV, unix.MS_RDONLY | unix.MS_NOSUID, unix.MS_NOSUID | unix.MS_NODEV} {
		a.try(fmt.Sprintf("remount as %#x", f), unix.Mount("", at, "", unix.MS_REMOUNT|unix.MS_BIND|f, ""))
		a.try(fmt.Sprintf("remount the superblock as %#x", f), unix.Mount("", at, "", unix.MS_REMOUNT|f, ""))
	}
	clone, err := unix.OpenTree(unix.AT_FDCWD, at, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err == nil {
		for _, f := range flags {
			a.try(fmt.Sprintf("clear %#x of a clone", f), clearAttr(clone, "", f))
		}
		unix.Close(clone)
	}
	if err := unix.Mount(at, lower, "", unix.MS_BIND, ""); err == nil {
		for _, f := range flags {
			a.try(fmt.Sprintf("clear %#x of a bind", f), clearAttr(unix.AT_FDCWD, lower, f))
		}
	}
	a.files(at)
	a.overlay(dir, at)
	fmt.Print(a.log.String())
	return nil
}

type attacker struct{ log strings.Builder }

// try notes an attempt that has worked.
func (a *attacker) try(what string, err error) {
	if err == nil {
		fmt.Fprintln(&a.log, what)
	}
}

func clearAttr(fd int, path string, flags uint64) error {
	how := uint(0)
	if path == "" {
		how = unix.AT_EMPTY_PATH
	}
	return unix.MountSetattr(fd, path, how, &unix.MountAttr{Attr_clr: flags})
}

func ownNamespace() uint64 {
	fd, err := unix.Open("/proc/self/ns/user", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	return uint64(fd)
}

// files looks for devices, privileged bits and attributes in a mount.
func (a *attacker) files(at string) {
	for _, name := range []string{"block", "char", "suid", "list"} {
		path := filepath.Join(at, name)
		if fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK, 0); err == nil {
			unix.Close(fd)
			a.try("open to write: "+name, nil)
		}
		var st unix.Stat_t
		if unix.Lstat(path, &st) != nil {
			continue
		}
		if k := st.Mode & unix.S_IFMT; k == unix.S_IFBLK || k == unix.S_IFCHR {
			fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK, 0)
			if err == nil {
				unix.Close(fd)
			}
			a.try("open a device: "+name, err)
			a.try("see a device: "+name, nil)
		}
		if st.Mode&(unix.S_ISUID|unix.S_ISGID) != 0 {
			a.try("see a set-id bit: "+name, nil)
		}
		for _, attr := range []string{"security.capability", "trusted.overlay.opaque", "user.overlay.redirect"} {
			_, err := unix.Lgetxattr(path, attr, make([]byte, 100))
			a.try("see "+attr+": "+name, err)
		}
		a.try("write to "+name, os.WriteFile(path, nil, 0o600))
		a.try("remove "+name, os.Remove(path))
	}
}

// overlay copies a program up, to see whether bits come along.
func (a *attacker) overlay(dir, lower string) {
	upper, work, merged := filepath.Join(dir, "upper"), filepath.Join(dir, "work"), filepath.Join(dir, "merged")
	if errors.Join(os.Mkdir(upper, 0o755), os.Mkdir(work, 0o755), os.Mkdir(merged, 0o755)) != nil {
		return
	}
	if unix.Mount("overlay", merged, "overlay", 0, "userxattr,lowerdir="+lower+",upperdir="+upper+",workdir="+work) != nil {
		return
	}
	for _, name := range []string{"block", "char"} {
		fd, err := unix.Open(filepath.Join(merged, name), unix.O_RDONLY|unix.O_NONBLOCK, 0)
		var st unix.Stat_t
		if err == nil && unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
			a.try("open a device through an overlay: "+name, nil)
		}
	}
	path := filepath.Join(merged, "suid")
	_ = os.Chtimes(path, st0, st0) // copies it up
	var st unix.Stat_t
	if unix.Lstat(filepath.Join(upper, "suid"), &st) == nil && st.Mode&(unix.S_ISUID|unix.S_ISGID) != 0 {
		a.try("copy a set-id bit up", nil)
	}
	if _, err := unix.Lgetxattr(filepath.Join(upper, "suid"), "security.capability", make([]byte, 100)); err == nil {
		a.try("copy capabilities up", nil)
	}
}

// inNamespaces runs the attacker as root, or under its own number, of namespaces of u's, with a mount.
func (l *lab) inNamespaces(t *testing.T, u user, mount *os.File, asUser bool) result {
	t.Helper()
	exe := filepath.Join(l.dir, "attacker")
	if err := os.Link(l.probe, exe); err != nil && !errors.Is(err, os.ErrExist) {
		t.Fatal(err)
	}
	called := "--map-root-user"
	if asUser {
		called = "--map-current-user"
	}
	cmd := command(t, u, bound, "unshare", "--user", "--mount", called, "--keep-caps", exe)
	cmd.ExtraFiles = []*os.File{mount}
	cmd.Env = append(cmd.Env, "TMPDIR="+l.mkdir(t, u))
	return finish(t, cmd)
}

// hostileImage has devices that everybody may open, a set-id program with capabilities, and attributes of overlays.
func (l *lab) hostileImage(t *testing.T) *image {
	t.Helper()
	img, err := l.makeImage("hostile", 13,
		"-p", "block b 666 0 0 7 0", "-p", "char c 666 0 0 1 5", "-p", "suid f 6755 0 0 echo program")
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// A user who has had an image made with devices and set-id programs gets it mounted, and can do nothing with it that
// they could not do before.
func TestHostileGrant(t *testing.T) {
	l := newLab(t, "unshare")
	d := l.start(t)
	img := l.hostileImage(t)
	me := users[1]
	for _, c := range []struct {
		what string
		req  noded.Request
	}{
		{"as run asks", squashed()},
		{"without restrict", noded.Request{Do: noded.VerbMount, View: noded.View{Squash: true}}},
		{"private", noded.Request{Do: noded.VerbMount, View: noded.View{Private: true}}},
		{"private, restricted", noded.Request{Do: noded.VerbMount, View: noded.View{Private: true, Restrict: true}}},
		{"with attributes", noded.Request{Do: noded.VerbMount, View: noded.View{Squash: true, Restrict: true}, Attrs: unix.MOUNT_ATTR_NOEXEC}},
	} {
		t.Run(c.what, func(t *testing.T) {
			for _, asUser := range []bool{false, true} {
				reply, files, err := d.greet(t, me).ask(c.req, openAs(t, me, img.path, os.O_RDONLY))
				if err != nil || reply.Code != noded.OK || len(files) != 1 {
					t.Fatalf("%+v, %d files, %v", reply, len(files), err)
				}
				defer files[0].Close()
				r := l.inNamespaces(t, me, files[0], asUser)
				out := r.stdout
				if !c.req.View.Squash && !c.req.View.Restrict {
					// A private mount shows what the image has, as fusermount3's do; none of it may work.
					var left []string
					for line := range strings.Lines(out) {
						if !strings.HasPrefix(line, "see ") {
							left = append(left, line)
						}
					}
					out = strings.Join(left, "")
				}
				if r.status != 0 || r.stderr != "" || out != "" {
					t.Errorf("status %d, %s; what worked:\n%s", r.status, r.stderr, out)
				}
			}
		})
	}
	// The same attacks by somebody else on what the first user holds: there is nothing to attack it by, see TestGuessing.
}

// What a user's squire mount makes: set-id programs and devices of the image do not work there, for anybody.
func TestHostileMount(t *testing.T) {
	l := newLab(t)
	d := l.start(t)
	img := l.hostileImage(t)
	dir := l.mkdir(t, users[1])
	if r := finish(t, d.client(t, users[1], "mount", img.path, dir)); r.status != 0 {
		t.Fatalf("%+v", r)
	}
	var line string
	b, _ := os.ReadFile("/proc/self/mountinfo")
	for l := range strings.Lines(string(b)) {
		if f := strings.Fields(l); f[4] == dir {
			line = f[5]
		}
	}
	for _, want := range []string{"ro", "nosuid", "nodev"} {
		if !strings.Contains(","+line+",", ","+want+",") {
			t.Errorf("mounted %q, without %s", line, want)
		}
	}
	users[1].do(func() {
		for _, name := range []string{"block", "char"} {
			if f, err := os.Open(filepath.Join(dir, name)); err == nil {
				f.Close()
				t.Errorf("%s can be opened", name)
			}
		}
	})
	for _, opts := range []string{"suid", "dev"} {
		if r := finish(t, d.client(t, users[1], "mount", "-o", opts, img.path, l.mkdir(t, users[1]))); r.status == 0 {
			t.Errorf("-o %s is taken from a user", opts)
		}
	}
	if r := finish(t, d.client(t, users[1], "umount", dir)); r.status != 0 {
		t.Errorf("%+v", r)
	}
}

// What root mounts for everybody is read by whom the modes in the image let in, through the service as well.
func TestModeBits(t *testing.T) {
	l := newLab(t)
	d := l.start(t)
	img, err := l.makeImage("modes", 22, "-p", "private f 600 0 0 echo text")
	if err != nil {
		t.Fatal(err)
	}
	dir := l.mkdir(t, root)
	if r := finish(t, d.client(t, root, "mount", img.path, dir)); r.status != 0 {
		t.Fatalf("%+v", r)
	}
	d.imageReport(t)
	for _, u := range []user{root, users[1], nobody} { // its owner first, so that it is in the page cache
		r := finish(t, command(t, u, bound, "cat", filepath.Join(dir, "private")))
		if (r.stdout == "text\n") != (u == root) || u != root && !strings.Contains(r.stderr, "Permission denied") {
			t.Errorf("user %v: %+v", u, r)
		}
	}
	if r := finish(t, d.client(t, root, "umount", dir)); r.status != 0 {
		t.Errorf("%+v", r)
	}
}

// A set-id program that is copied up in a container, or made there, is nothing to another user.
func TestCopyUp(t *testing.T) {
	l := newLab(t, "setpriv")
	d := l.start(t)
	img := l.hostileImage(t)
	home := l.mkdir(t, users[1])
	cmd := d.client(t, users[1], "run", "--writable", img.path, "--", "/bin/probe", "wait")
	cmd.Env = append(cmd.Env, "HOME="+home, "TMPDIR="+home)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	root := fmt.Sprintf("/proc/%d/root", d.inner(t, cmd.Process.Pid))
	// As the user, from outside: chmod copies it up.
	users[1].do(func() {
		if err := os.Chmod(root+"/suid", 0o6755); err != nil && !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EPERM) {
			t.Log(err)
		}
	})
	users[2].do(func() {
		if f, err := os.Open(root + "/suid"); err == nil {
			f.Close()
			t.Error("another user reaches what was copied up")
		}
	})
	stdin.Close()
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// inner returns the innermost process of a container: the probe in it.
func (d *daemon) inner(t *testing.T, runner int) (pid int) {
	t.Helper()
	if !eventually(t, fmt.Sprint("a probe runs below process ", runner), func() bool { pid = probeBelow(runner); return pid != 0 }) {
		t.FailNow()
	}
	return pid
}

func probeBelow(runner int) int {
	parents := make(map[int]int)
	dirs, _ := os.ReadDir("/proc")
	var found []int
	for _, dir := range dirs {
		pid, err := strconv.Atoi(dir.Name())
		if err != nil {
			continue
		}
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		// The name, in parentheses, may hold anything (proc_pid_stat(5)).
		name, rest, _ := strings.Cut(string(b), ") ")
		var state string
		var parent int
		fmt.Sscan(rest, &state, &parent)
		parents[pid] = parent
		if strings.HasSuffix(name, "(probe") {
			found = append(found, pid)
		}
	}
	for _, pid := range found {
		for p := pid; p > 1; p = parents[p] {
			if p == runner {
				return pid
			}
		}
	}
	return 0
}
