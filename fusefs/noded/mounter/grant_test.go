package mounter

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/internal/testenv"
)

func deadline() time.Time { return time.Now().Add(time.Minute) }

const deviceClear = unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_RDONLY

// attack attaches a grant, as its user may in a mount namespace of the user's own, and tries what the user must not get.
func attack(how string) error {
	got := results{}
	try := func(name string, err error) {
		got[name] = ""
		if err != nil {
			got[name] = err.Error()
		}
	}
	if how != "nested" {
		if err := unix.Mount("tmpfs", "/tmp", "tmpfs", 0, ""); err != nil {
			return err
		}
		for _, dir := range []string{"/tmp/g", "/tmp/upper", "/tmp/work", "/tmp/o", "/tmp/c"} {
			if err := os.Mkdir(dir, 0o755); err != nil {
				return err
			}
		}
		if err := unix.MoveMount(3, "", unix.AT_FDCWD, "/tmp/g", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return fmt.Errorf("attach the grant: %w", err)
		}
	}
	unix.Close(3)
	var st unix.Stat_t
	try("stat", unix.Stat("/tmp/g/file", &st))
	got["owner"] = fmt.Sprintf("%d:%d", st.Uid, st.Gid)
	got["self"] = fmt.Sprintf("%d:%d", os.Getuid(), os.Getgid())
	b, err := os.ReadFile("/tmp/g/etc/conf")
	try("read", err)
	got["content"] = string(b)
	b, err = os.ReadFile("/tmp/g/secret")
	try("read own", err)
	got["secret"] = string(b)
	try("write", os.WriteFile("/tmp/g/new", nil, 0o644))
	try("device", openDevice("/tmp/g/null"))
	try("clone and clear", cloneAndClear())
	for name, clear := range map[string]uint64{"nodev": unix.MOUNT_ATTR_NODEV, "nosuid": unix.MOUNT_ATTR_NOSUID, "ro": unix.MOUNT_ATTR_RDONLY} {
		try("clear "+name, unix.MountSetattr(unix.AT_FDCWD, "/tmp/g", 0, &unix.MountAttr{Attr_clr: clear}))
	}
	try("remount", unix.Mount("", "/tmp/g", "", unix.MS_REMOUNT|unix.MS_BIND, ""))
	try("remount superblock", unix.Mount("", "/tmp/g", "", unix.MS_REMOUNT, ""))
	try("device again", openDevice("/tmp/g/null"))
	if how == "overlay" {
		try("overlay", unix.Mount("overlay", "/tmp/o", "overlay", 0, "lowerdir=/tmp/g,upperdir=/tmp/upper,workdir=/tmp/work,userxattr"))
		try("overlay device", openDevice("/tmp/o/null"))
		try("overlay append", appendTo("/tmp/o/etc/conf"))
		try("overlay unlink", os.Remove("/tmp/o/file"))
		try("overlay opaque", errors.Join(os.RemoveAll("/tmp/o/etc"), os.Mkdir("/tmp/o/etc", 0o755)))
	}
	if how == "plain" { // and all of it once more from a namespace below
		nested, err := nestedAttack()
		try("nested", err)
		for name, s := range nested {
			got["nested "+name] = s
		}
	}
	return json.NewEncoder(os.Stdout).Encode(got)
}

func openDevice(name string) error {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err == nil {
		f.Close()
	}
	return err
}

func appendTo(name string) error {
	f, err := os.OpenFile(name, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString("more")
	return errors.Join(err, f.Close())
}

// cloneAndClear tries a clone of the mount, which is nowhere yet and then in another place.
func cloneAndClear() error {
	fd, err := unix.OpenTree(unix.AT_FDCWD, "/tmp/g", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	clear := unix.MountAttr{Attr_clr: deviceClear}
	if unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &clear) == nil {
		return nil
	}
	if err = unix.MoveMount(fd, "", unix.AT_FDCWD, "/tmp/c", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return err
	}
	if err = unix.MountSetattr(unix.AT_FDCWD, "/tmp/c", 0, &clear); err == nil {
		return nil
	}
	return openDevice("/tmp/c/null")
}

func nestedAttack() (got results, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	null, err := os.Open("/tmp/g/file")
	if err != nil {
		return nil, err
	}
	defer null.Close()
	proc, err := os.StartProcess("/proc/self/exe", []string{userName, "nested"}, &os.ProcAttr{
		Files: []*os.File{os.Stdin, w, os.Stderr, null},
		Sys: &syscall.SysProcAttr{
			Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		},
	})
	w.Close()
	if err != nil {
		return nil, err
	}
	defer func() { _, _ = proc.Wait() }()
	return got, json.NewDecoder(r).Decode(&got)
}

// wantRefused checks that every attempt failed.
func (got results) wantRefused(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		said, tried := got[name]
		if !tried || said == "" {
			t.Errorf("%s: worked (%v)", name, tried)
		} else if !strings.Contains(said, "not permitted") && !strings.Contains(said, "denied") && !strings.Contains(said, "read-only") {
			t.Errorf("%s: %s", name, said)
		}
	}
}

func (got results) wantDone(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if said, tried := got[name]; !tried || said != "" {
			t.Errorf("%s: %q (%v)", name, said, tried)
		}
	}
}

var forbidden = []string{"write", "device", "clear nodev", "clear nosuid", "clear ro", "remount", "remount superblock", "clone and clear", "device again"}

func TestGrantIsLocked(t *testing.T) {
	needLocker(t)
	image := hostileImage(t)
	for _, s := range []setup{{}, {NoDetached: true}} {
		c := startMounter(t, s)
		m := served(t, c, image, "idmap", Options{Source: "image", Everybody: true})
		for _, inside := range []int{0, testUID} {
			for _, how := range []string{"plain", "overlay"} {
				t.Run(fmt.Sprintf("%v/%d/%s", s.NoDetached, inside, how), func(t *testing.T) {
					clone, err := c.Grant(1, m.Mount, Grantee{Owner: testUser, IDMap: true})
					if err != nil {
						t.Fatal(err)
					}
					defer clone.Close()
					got := attempt(t, clone, inside, how)
					got.wantDone(t, "stat", "read", "read own")
					got.wantRefused(t, forbidden...)
					if got["content"] != "etc/conf" || got["secret"] != "secret" {
						t.Errorf("read %q and %q", got["content"], got["secret"])
					}
					if got["owner"] != got["self"] {
						t.Errorf("files are of %s, the user is %s", got["owner"], got["self"])
					}
					if how == "overlay" {
						got.wantDone(t, "overlay", "overlay append", "overlay unlink", "overlay opaque")
						got.wantRefused(t, "overlay device")
						return
					}
					got.wantDone(t, "nested")
					for _, name := range forbidden {
						got.wantRefused(t, "nested "+name)
					}
				})
			}
		}
	}
}

// What the tests of locked clones refuse works with one that is not locked.
func TestUnlocked(t *testing.T) {
	needRoot(t)
	c := startMounter(t, setup{})
	m := served(t, c, hostileImage(t), "idmap", Options{Source: "image", Everybody: true})
	clone, err := c.Grant(1, m.Mount, Grantee{Owner: testUser, Root: true, IDMap: true, Attrs: safe})
	if err != nil {
		t.Fatal(err)
	}
	defer clone.Close()
	got := attempt(t, clone, 0, "plain")
	got.wantDone(t, "clear nodev", "clear nosuid", "clear ro", "remount", "clone and clear", "device again")
	got.wantRefused(t, "device", "write", "remount superblock")
}

// A mount of one user lets nobody else in, root neither.
func TestPrivate(t *testing.T) {
	needLocker(t)
	c := startMounter(t, setup{})
	m := served(t, c, hostileImage(t), "idmap", Options{Source: "image", User: testUser})
	clone, err := c.Grant(1, m.Mount, Grantee{Owner: testUser})
	if err != nil {
		t.Fatal(err)
	}
	defer clone.Close()
	got := attempt(t, clone, testUID, "plain")
	got.wantDone(t, "stat", "read")
	got.wantRefused(t, forbidden...)
	var st unix.Stat_t
	if err = unix.Fstatat(int(clone.Fd()), "file", &st, 0); !errors.Is(err, unix.EACCES) {
		t.Errorf("root looks into a mount of a user: %v", err)
	}
}

func TestGrantForRoot(t *testing.T) {
	needRoot(t)
	c := startMounter(t, setup{})
	m := served(t, c, hostileImage(t), "idmap", Options{Source: "image", Everybody: true})
	clone, err := c.Grant(1, m.Mount, Grantee{Root: true, Attrs: unix.MOUNT_ATTR_NOEXEC})
	if err != nil {
		t.Fatal(err)
	}
	defer clone.Close()
	var fs unix.Statfs_t
	if err = unix.Fstatfs(int(clone.Fd()), &fs); err != nil {
		t.Fatal(err)
	}
	if want := int64(unix.ST_NOEXEC | unix.ST_RDONLY); fs.Flags&(want|unix.ST_NODEV|unix.ST_NOSUID) != want {
		t.Errorf("flags %#x", fs.Flags)
	}
	if _, err = c.Grant(1, m.Mount, Grantee{Owner: testUser, Attrs: 1 << 30}); !errors.Is(err, unix.EINVAL) {
		t.Errorf("unknown flags: %v", err)
	}
}

// What a mounter held is of use to the next one, and its helper may die.
func TestRestart(t *testing.T) {
	needLocker(t)
	image := hostileImage(t)
	c := startMounter(t, setup{})
	m := served(t, c, image, "idmap", Options{Source: "image", Everybody: true})
	grant := func(c *Client) *os.File {
		t.Helper()
		clone, err := c.Grant(1, m.Mount, Grantee{Owner: testUser, IDMap: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { clone.Close() })
		return clone
	}
	first := grant(c)
	for _, pid := range testenv.Children(c.proc.Pid) {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	second := grant(c)
	c.Close()
	<-c.Done()
	if _, err := c.Grant(1, m.Mount, Grantee{Owner: testUser}); err == nil {
		t.Error("a mounter that has ended made a grant")
	}
	third := grant(startMounter(t, setup{}))
	for i, clone := range []*os.File{first, second, third} {
		got := attempt(t, clone, 0, "overlay")
		got.wantDone(t, "stat", "read", "overlay append")
		got.wantRefused(t, forbidden...)
		if t.Failed() {
			t.Fatal("grant ", i+1)
		}
	}
}

// The superblock ends when the last clone does, and not before, whatever the mounter still has.
func TestDrop(t *testing.T) {
	needLocker(t)
	c := startMounter(t, setup{})
	m, err := c.Mount(Options{Source: "image", Everybody: true})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Device.Close()
	end, err := startServing(hostileImage(t), "idmap", m.Device)
	if err != nil {
		t.Fatal(err)
	}
	defer end()
	clone, err := c.Grant(1, m.Mount, Grantee{Owner: testUser, IDMap: true})
	if err != nil {
		t.Fatal(err)
	}
	m.Mount.Close()
	c.Drop(1)
	if gone(m.Device, 200*time.Millisecond) {
		t.Error("the superblock ended with a clone left")
	}
	clone.Close()
	if !gone(m.Device, time.Minute) {
		t.Error("the superblock stays though nobody has a clone")
	}
}

// gone reports whether the mount of a device ends in time.
func gone(device *os.File, within time.Duration) bool {
	fds := []unix.PollFd{{Fd: int32(device.Fd())}}
	for end := time.Now().Add(within); time.Now().Before(end); {
		if n, _ := unix.Poll(fds, 10); n > 0 && fds[0].Revents&unix.POLLERR != 0 {
			return true
		}
	}
	return false
}

// ownTest is a user with a mounter of their own, without any rights.
func ownTest(image string) error {
	c, err := Start(true)
	if err != nil {
		return err
	}
	defer c.Close()
	m, err := c.Mount(Options{Source: "image"})
	if err != nil {
		return err
	}
	end, err := startServing(image, "own", m.Device)
	if err != nil {
		return err
	}
	defer end()
	clone, err := c.Grant(1, m.Mount, Grantee{Owner: testUser})
	if err != nil {
		return err
	}
	// A sibling of the mounter's namespace takes it.
	proc, err := os.StartProcess("/proc/self/exe", []string{userName, "overlay"}, &os.ProcAttr{
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr, clone},
		Sys: &syscall.SysProcAttr{
			Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: testUID, Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: testGID, Size: 1}},
		},
	})
	if err != nil {
		return err
	}
	if st, err := proc.Wait(); err != nil || !st.Success() {
		return fmt.Errorf("%v: %w", st, err)
	}
	// The next mounter goes on with what this one had, also where it has to attach that to clone it.
	for _, how := range []setup{{Own: true}, {Own: true, NoDetached: true}, {Own: true, NoPivot: true}} {
		c.Close()
		<-c.Done()
		if c, err = start(how); err != nil {
			return err
		}
		defer c.Close()
		next, err := c.Grant(1, m.Mount, Grantee{Owner: testUser})
		if err != nil {
			return fmt.Errorf("grant by another mounter: %w", err)
		}
		next.Close()
	}
	return nil
}

func TestOwn(t *testing.T) {
	needRoot(t)
	image := hostileImage(t)
	open(t, image)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	proc, err := os.StartProcess("/proc/self/exe", []string{ownName, image}, &os.ProcAttr{
		Files: []*os.File{os.Stdin, w, os.Stderr},
		Sys:   &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: testUID, Gid: testGID}},
	})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	stuck := time.AfterFunc(time.Minute, func() { _ = proc.Kill() })
	defer stuck.Stop()
	var got results
	decoded := json.NewDecoder(r).Decode(&got)
	if st, err := proc.Wait(); err != nil || !st.Success() || decoded != nil {
		t.Fatal(st, err, decoded)
	}
	got.wantDone(t, "stat", "read", "overlay", "overlay append", "overlay unlink", "overlay opaque")
	got.wantRefused(t, "write", "device", "remount superblock", "overlay device")
	if got["owner"] != got["self"] {
		t.Errorf("files are of %s, the user is %s", got["owner"], got["self"])
	}
}

// open lets everybody reach a file.
func open(t *testing.T, name string) {
	t.Helper()
	for dir := filepath.Dir(name); dir != "/" && dir != os.TempDir(); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}
