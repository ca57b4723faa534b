package fusefs

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/squirefs/squire/internal/testenv"
)

// nobody returns the credentials of the user nobody, and a directory under /tmp that it may search, with a copy of
// the test binary.
func nobody(t *testing.T) (cred *syscall.Credential, dir, binary string) {
	t.Helper()
	needRoot(t)
	u, err := user.Lookup("nobody")
	if err != nil {
		t.Skip("needs the user nobody: ", err)
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir() // /tmp/TestName/001
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	binary = filepath.Join(dir, "test")
	copyFile(t, self(t), binary, 0o755)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, dir, binary
}

func copyFile(t *testing.T, from, to string, mode os.FileMode) {
	t.Helper()
	if err := testenv.CopyFile(from, to, mode); err != nil {
		t.Fatal(err)
	}
}

// smallImage makes an image of two files that everybody may read.
func smallImage(t testing.TB) string {
	t.Helper()
	tree := t.TempDir()
	for name, data := range map[string]string{"hello": "hello\n", "private": "secret\n"} {
		if err := os.WriteFile(filepath.Join(tree, name), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(tree, "private"), 0o600); err != nil {
		t.Fatal(err)
	}
	return mksquashfs(t, tree)
}

func TestFusermount(t *testing.T) {
	needTool(t, "fusermount3")
	cred, dir, binary := nobody(t)
	image := filepath.Join(dir, "image")
	copyFile(t, smallImage(t), image, 0o644)
	mnt := filepath.Join(dir, "mnt")
	if err := errors.Join(os.Mkdir(mnt, 0o755), os.Chown(mnt, int(cred.Uid), int(cred.Gid))); err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, dir: mnt}
	s.cmd = exec.Command(binary)
	s.cmd.Env = append(os.Environ(), roleEnv+"="+mustJSON(role{Image: image, Dir: mnt}))
	s.cmd.Stderr = &s.log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
	s.launch()
	s.awaitReady()

	cat := exec.Command("cat", s.path("hello"))
	cat.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
	if out, err := cat.CombinedOutput(); string(out) != "hello\n" {
		t.Errorf("cat as nobody: %q, %v", out, err)
	}
	if _, err := os.ReadFile(s.path("hello")); !errors.Is(err, os.ErrPermission) {
		t.Errorf("read as root: %v, want EACCES: the mount is nobody's", err)
	}
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(info), "\n") {
		if strings.Contains(line, mnt) && (!strings.Contains(line, "ro,nosuid,nodev") ||
			!strings.Contains(line, "fuse.squire test,image ro,")) {
			t.Errorf("mountinfo: %s", line)
		}
	}
	unmount := exec.Command(binary)
	unmount.Env = append(os.Environ(), roleEnv+"="+mustJSON(role{Script: []string{"unmount", mnt}}))
	unmount.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
	if out, err := unmount.CombinedOutput(); err != nil {
		t.Errorf("unmount as nobody: %v: %s", err, out)
	}
	s.once.Do(func() {}) // it is unmounted
	if err := s.cmd.Wait(); err != nil {
		t.Errorf("server: %v: %s", err, s.log.String())
	}
}

// runScript runs in the process that stands in for another user, or for root of a user namespace.
func (r *role) runScript() {
	switch r.Script[0] {
	case "unmount":
		if err := Unmount(r.Script[1], false); err != nil {
			fatal(err)
		}
	case "userns":
		r.runInNamespace(r.Script[1])
	}
}

// runInNamespace mounts as root of a user namespace, with another process as the server, and reads a file.
func (r *role) runInNamespace(dir string) {
	dev, err := Mount(dir, MountOptions{})
	if err != nil {
		fatal(err)
	}
	inner := *r
	inner.Script = nil
	var log bytes.Buffer
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleEnv+"="+mustJSON(inner))
	cmd.ExtraFiles = []*os.File{dev}
	cmd.Stderr = &log
	out, err := cmd.StdoutPipe()
	if err != nil {
		fatal(err)
	}
	if err = cmd.Start(); err != nil {
		fatal(err)
	}
	watchdog := time.AfterFunc(moment, func() { _ = cmd.Process.Kill() })
	defer watchdog.Stop()
	dev.Close()
	if _, err = out.Read(make([]byte, 6)); err != nil {
		fatal(errors.New(log.String()))
	}
	data, err := os.ReadFile(filepath.Join(dir, "hello"))
	if err == nil {
		_, err = os.Stdout.Write(data)
	}
	if err = errors.Join(err, Unmount(dir, false), cmd.Wait()); err != nil {
		fatal(err)
	}
}

func TestUserNamespace(t *testing.T) {
	cred, dir, binary := nobody(t)
	image := filepath.Join(dir, "image")
	copyFile(t, smallImage(t), image, 0o644)
	mnt := filepath.Join(dir, "mnt")
	if err := os.Mkdir(mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, inside := range map[string]int{"root": 0, "same id": int(cred.Uid)} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command(binary)
			cmd.Env = append(os.Environ(), roleEnv+"="+mustJSON(role{Image: image, Script: []string{"userns", mnt}}))
			cmd.SysProcAttr = &syscall.SysProcAttr{
				Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
				UidMappings: []syscall.SysProcIDMap{{ContainerID: inside, HostID: int(cred.Uid), Size: 1}},
				GidMappings: []syscall.SysProcIDMap{{ContainerID: inside, HostID: int(cred.Gid), Size: 1}},
				Credential:  &syscall.Credential{Uid: uint32(inside), Gid: uint32(inside), NoSetGroups: true},
				AmbientCaps: []uintptr{21}, // CAP_SYS_ADMIN, which only root has after exec otherwise
			}
			out, err := cmd.CombinedOutput()
			if string(out) != "hello\n" {
				t.Errorf("in the namespace: %q, %v", out, err)
			}
		})
	}
}

func TestMountErrors(t *testing.T) {
	needRoot(t)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct{ dir, want string }{
		"missing":  {file + "none", "no such directory; create it"},
		"file":     {file, "not a directory"},
		"unmapped": {t.TempDir(), "invalid argument; in a user namespace"},
	} {
		t.Run(name, func(t *testing.T) {
			o := MountOptions{UID: -2} // not an id: makes the last one fail
			dev, err := Mount(test.dir, o)
			if err == nil {
				dev.Close()
				_ = Unmount(test.dir, true)
			}
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), test.dir) {
				t.Errorf("got %v, want %s: ... %q", err, test.dir, test.want)
			}
		})
	}
	if err := Unmount(filepath.Dir(file), false); err == nil || !strings.Contains(err.Error(), "not a mount point") {
		t.Errorf("unmount of a plain directory: %v", err)
	}
	if _, err := MountFusermount(t.TempDir(), MountOptions{Suid: true}); err == nil {
		t.Error("fusermount with suid was not refused")
	}
	t.Setenv("PATH", t.TempDir())
	if _, err := MountFusermount(t.TempDir(), MountOptions{}); err == nil || !strings.Contains(err.Error(), "install") {
		t.Errorf("without fusermount3: %v", err)
	}
}

// TestBusy checks that a mount in use is not unmounted, and what is said about it.
func TestBusy(t *testing.T) {
	s := mountImage(t, role{Image: smallImage(t)}, MountOptions{})
	f, err := os.Open(s.path("hello"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := Unmount(s.dir, false); err == nil || !strings.Contains(err.Error(), "lazy unmount") {
		t.Errorf("unmount of a mount in use: %v", err)
	}
}

// TestPrepare wants a mount that is served before it has a place, and that goes away without one.
func TestPrepare(t *testing.T) {
	needRoot(t)
	dir, image := t.TempDir(), smallImage(t)
	for _, attached := range []bool{true, false} {
		m, err := Prepare(dir, MountOptions{Source: strings.Repeat("long/", 1000) + "name"})
		if err != nil {
			t.Fatal(err)
		}
		if attached {
			if err = m.Attach(); err != nil {
				t.Fatal(err)
			}
		}
		m.Close()
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(string(mounts), " "+dir+" "); got != attached {
			t.Errorf("mounted: %v, want %v", got, attached)
		}
		if attached {
			if !strings.Contains(string(mounts), "long/name") {
				t.Error("mounted without the end of its name")
			}
			if err = Unmount(dir, false); err != nil {
				t.Error(err)
			}
		}
		err = openImage(t, image, Options{}).Serve(Serving{Device: m.Device})
		if err == nil || !strings.Contains(err.Error(), "unmounted before") {
			t.Errorf("attached %v, then gone: %v", attached, err)
		}
	}
}
