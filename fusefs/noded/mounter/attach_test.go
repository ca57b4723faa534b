package mounter

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/fusefs"
)

// peer starts a process of user uid, in namespaces of its own by flags, and returns a pidfd of it.
func peer(t *testing.T, uid int, flags uintptr) *os.File {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	pidfd := -1
	sys := &syscall.SysProcAttr{PidFD: &pidfd, Cloneflags: flags, Pdeathsig: unix.SIGKILL}
	if flags&unix.CLONE_NEWUSER == 0 {
		sys.Credential = &syscall.Credential{Uid: uint32(uid), Gid: testGID, Groups: []uint32{7, 4242}}
	} else {
		sys.UidMappings = []syscall.SysProcIDMap{{ContainerID: uid, HostID: uid, Size: 1}}
		sys.Credential = &syscall.Credential{Uid: uint32(uid), NoSetGroups: true}
		sys.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: testGID, Size: 1}}
	}
	proc, err := os.StartProcess("/proc/self/exe", []string{idleName}, &os.ProcAttr{Files: []*os.File{r, nil, os.Stderr}, Sys: sys})
	if err != nil {
		w.Close()
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(pidfd), "pidfd")
	t.Cleanup(func() {
		w.Close()
		_ = proc.Kill()
		_, _ = proc.Wait()
		f.Close()
	})
	return f
}

// place makes a directory of uid's, and a descriptor of it.
func placeFor(t *testing.T, uid, gid int, mode os.FileMode) (string, *os.File) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "place")
	if err := errors.Join(os.Mkdir(dir, 0o700), os.Chmod(dir, mode), os.Chown(dir, uid, gid)); err != nil {
		t.Fatal(err)
	}
	f, err := openPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = unix.Unmount(dir, unix.MNT_DETACH)
		f.Close()
	})
	return dir, f
}

func TestAttach(t *testing.T) {
	needRoot(t)
	for _, s := range []setup{{}, {NoUnique: true}} {
		c := startMounter(t, s)
		m := served(t, c, hostileImage(t), "idmap", Options{Source: "image", User: testUser})
		clone := func() *os.File {
			t.Helper()
			f, err := c.Grant(1, m.Mount, Grantee{Owner: testUser, Root: true})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { f.Close() })
			return f
		}
		user := peer(t, testUID, 0)
		dir, fd := placeFor(t, testUID, testGID, 0o700)
		attached := clone()
		id, err := c.Attach(attached, fd, user, testUser)
		if err != nil {
			t.Fatal(err)
		}
		attached.Close() // it is the mount on the directory now
		if line := mountLine(t, dir); !strings.Contains(line, "fuse.squire") || !strings.Contains(line, "nosuid,nodev") || !strings.Contains(line, " ro,") {
			t.Errorf("mounted as %q", line)
		}
		ids, numbers, err := c.Attached([]uint64{id, id + 1<<40}, []uint64{m.Number, 12345})
		if err != nil || !slices.Equal(ids, []uint64{id}) || !slices.Equal(numbers, []uint64{m.Number}) {
			t.Errorf("attached are %v, %v, %v; want %d, %d", ids, numbers, err, id, m.Number)
		}
		parent, err := openPath(filepath.Dir(dir))
		if err != nil {
			t.Fatal(err)
		}
		defer parent.Close()
		open(t, dir)
		if _, err = c.Detach(parent, "place", []uint64{id + 1}, user, false); !errors.Is(err, unix.EPERM) {
			t.Errorf("detach somebody else's: %v", err)
		}
		for _, base := range []string{"", ".", "..", "place/", "../place", strings.Repeat("x", 300)} {
			if _, err = c.Detach(parent, base, []uint64{id}, user, false); !errors.Is(err, unix.EINVAL) {
				t.Errorf("detach %q: %v", base, err)
			}
		}
		if got, err := c.Detach(parent, "place", append(make([]uint64, maxNumbers), id), user, false); err != nil || got != id {
			t.Errorf("detach: %d, %v", got, err)
		}
		if line := mountLine(t, dir); line != "" {
			t.Errorf("still mounted: %q", line)
		}
		if ids, numbers, err = c.Attached([]uint64{id}, []uint64{m.Number}); err != nil || len(ids)+len(numbers) > 0 {
			t.Errorf("attached are %v, %v, %v after all was detached", ids, numbers, err)
		}
	}
}

func TestAttachRefuses(t *testing.T) {
	needRoot(t)
	c := startMounter(t, setup{})
	m := served(t, c, hostileImage(t), "idmap", Options{Source: "image", User: testUser})
	user := peer(t, testUID, 0)
	_, own := placeFor(t, testUID, testGID, 0o700)
	_, roots := placeFor(t, 0, 0, 0o755)
	_, sticky := placeFor(t, 0, 0, 0o777|os.ModeSticky)
	_, group := placeFor(t, 0, 4242, 0o770)
	_, readOnly := placeFor(t, testUID, testGID, 0o500)
	file, err := openPath(hostileImage(t))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	proc, err := openPath("/proc/self")
	if err != nil {
		t.Fatal(err)
	}
	defer proc.Close()
	type attempt struct {
		name string
		dir  *os.File
		peer *os.File
		want error
		says string
	}
	attempts := []attempt{
		{"root's directory", roots, user, unix.EACCES, "write"},
		{"sticky directory", sticky, user, unix.EPERM, "sticky"},
		{"read-only directory", readOnly, user, unix.EACCES, "write"},
		{"file", file, user, unix.ENOTDIR, ""},
		{"/proc", proc, user, unix.EPERM, "type 0x9fa0"},
		{"other user's process", own, peer(t, testUID+1, 0), unix.EPERM, "user"},
		{"foreign namespace", own, peer(t, testUID, unix.CLONE_NEWUSER|unix.CLONE_NEWNS), nil, "namespace"},
		{"not a process", own, own, nil, ""},
		{"a group's directory", group, user, nil, "OK"},
		{"own directory", own, user, nil, "OK"},
	}
	for fsType, dir := range strange(t, testUID) {
		attempts = append(attempts, attempt{fsType, dir, user, unix.EPERM, "file system of type"})
	}
	for _, test := range attempts {
		clone, err := c.Grant(1, m.Mount, Grantee{Owner: testUser, Root: true})
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.Attach(clone, test.dir, test.peer, testUser)
		clone.Close()
		switch {
		case test.says == "OK":
			if err != nil {
				t.Errorf("%s: %v", test.name, err)
			}
		case err == nil:
			t.Errorf("%s: mounted", test.name)
		case test.want != nil && !errors.Is(err, test.want), !strings.Contains(err.Error(), test.says):
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

// strange makes directories of uid's, to which they may write, on file systems that are for no people's files: what is
// there says programs how to see the machine. They are of the test's own, but for the one of control groups.
func strange(t *testing.T, uid int) map[string]*os.File {
	t.Helper()
	dirs := make(map[string]*os.File)
	for _, fsType := range []string{"cgroup2", "devpts", "bpf", "hugetlbfs"} {
		at := t.TempDir()
		if err := unix.Mount(fsType, at, fsType, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
			t.Logf("%s: %v", fsType, err)
			continue
		}
		t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) })
		dir := at
		if fsType == "cgroup2" {
			var err error
			if dir, err = os.MkdirTemp(at, "squire-mounter-test"); err != nil {
				t.Logf("%s: %v", fsType, err)
				continue
			}
			t.Cleanup(func() { os.Remove(dir) })
		}
		f, err := openPath(dir)
		if err = errors.Join(err, os.Chown(dir, uid, uid), os.Chmod(dir, 0o700)); err != nil {
			t.Fatal(fsType, err)
		}
		t.Cleanup(func() {
			_ = unix.Unmount(dir, unix.MNT_DETACH) // what should not be there
			f.Close()
		})
		dirs[fsType] = f
	}
	if len(dirs) == 0 {
		t.Log("needs one of these file systems")
	}
	return dirs
}

// mountLine returns the line of mountinfo about dir.
func mountLine(t *testing.T, dir string) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 && f[4] == dir {
			return line
		}
	}
	return ""
}

// Clear unmounts what is mounted of a superblock, in use or not, and nothing else.
func TestClear(t *testing.T) {
	needRoot(t)
	c := startMounter(t, setup{})
	attach := func(m *Mounted) string {
		clone, err := c.Grant(1, m.Mount, Grantee{Root: true, Attrs: safe})
		if err != nil {
			t.Fatal(err)
		}
		defer clone.Close()
		dir, fd := placeFor(t, 0, 0, 0o755)
		if err = fusefs.Attach(clone, dir); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH); fd.Close() })
		return dir
	}
	m := served(t, c, hostileImage(t), "idmap", Options{Source: "image", Everybody: true})
	first, second := attach(m), attach(m)
	used, err := os.Open(first)
	if err != nil {
		t.Fatal(err)
	}
	defer used.Close()
	if err = c.Clear([]uint64{m.Number + 1<<20}); err != nil || mountLine(t, first) == "" {
		t.Errorf("another number: %v, %q", err, mountLine(t, first))
	}
	if err = c.Clear([]uint64{m.Number}); err != nil {
		t.Error(err)
	}
	if one, two := mountLine(t, first), mountLine(t, second); one != "" || two != "" {
		t.Errorf("still mounted: %q, %q", one, two)
	}
}

// What a thread has copies of is closed when it has answered, and not when it ends: a mount among that would be busy for who
// unmounts it at once.
func TestThreadKeepsNothing(t *testing.T) {
	proc, err := openPath("/proc")
	if err != nil {
		t.Fatal(err)
	}
	defer proc.Close()
	r, w, err := os.Pipe() // Go has its poller from here on
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	w.Close()
	h := &host{proc: proc, netpoll: netpollFiles()}
	for range 200 {
		f, err := os.CreateTemp(t.TempDir(), "file")
		if err != nil {
			t.Fatal(err)
		}
		err = h.inThread([]*os.File{f}, func() error { return nil })
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		links, _ := filepath.Glob("/proc/self/task/*/fd/*")
		for _, link := range links {
			if to, _ := os.Readlink(link); to == f.Name() {
				t.Fatal("a thread has it still: ", link)
			}
		}
	}
}
