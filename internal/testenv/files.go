package testenv

import (
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/internal/mountinfo"
)

// Dir makes a directory that belongs to somebody, that all can reach if they can reach parent ("": the one for temporary
// files), and that goes with the test, whatever is mounted on it or below. The parents of t.TempDir are closed to others.
func Dir(t testing.TB, parent string, uid, gid int) string {
	t.Helper()
	dir, err := os.MkdirTemp(parent, "squire-test-")
	if err == nil {
		err = errors.Join(os.Chmod(dir, 0o755), os.Chown(dir, uid, gid))
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		UnmountBelow(dir)
		os.RemoveAll(dir)
	})
	return dir
}

// MemoryDir makes a directory that goes with the test, in memory if possible: that has room for all attributes.
func MemoryDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "squire-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// MountsBelow returns the directories at and below dir that something is mounted on, the innermost first.
func MountsBelow(dir string) (dirs []string) {
	list, _ := mountinfo.Self()
	for _, m := range list {
		if m.Point == dir || strings.HasPrefix(m.Point, dir+"/") {
			dirs = append([]string{m.Point}, dirs...)
		}
	}
	return dirs
}

// UnmountBelow takes away what is mounted at and below dir.
func UnmountBelow(dir string) {
	for _, m := range MountsBelow(dir) {
		_ = unix.Unmount(m, unix.MNT_DETACH)
	}
}

// CopyFile copies a file.
func CopyFile(from, to string, mode os.FileMode) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Close())
}

// LinkOrCopy gives a file that nobody changes another name, on another file system too.
func LinkOrCopy(from, to string) error {
	if err := os.Link(from, to); err == nil || errors.Is(err, os.ErrNotExist) {
		return err
	}
	return CopyFile(from, to, 0o644)
}

// Children lists the processes that a process has started.
func Children(pid int) (pids []int) {
	lists, _ := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*/children")
	for _, list := range lists {
		b, _ := os.ReadFile(list) // a thread may be gone by now
		for _, s := range strings.Fields(string(b)) {
			if n, err := strconv.Atoi(s); err == nil {
				pids = append(pids, n)
			}
		}
	}
	return pids
}

// RandomName returns a name of any bytes that Linux allows, often of such that are easily taken for something else.
func RandomName(rnd *rand.Rand) string {
	n := 1 + rnd.IntN(12)
	if rnd.IntN(20) == 0 {
		n = 255
	}
	b := make([]byte, n)
	for i := range b {
		if b[i] = "abcXYZ019._- \n\\'\"*"[rnd.IntN(18)]; rnd.IntN(10) == 0 {
			b[i] = byte(1 + rnd.IntN(255))
		}
		if b[i] == '/' {
			b[i] = '|'
		}
	}
	if s := string(b); s != "." && s != ".." {
		return s
	}
	return "dots"
}

// Polled returns what the descriptors of a process are open on, as /proc/PID/fd shows it, that are in one of its sets of
// epoll(7): see proc_pid_fdinfo(5). A process that is root's or the caller's is wanted.
func Polled(pid int) (names []string) {
	dir := "/proc/" + strconv.Itoa(pid)
	sets, _ := filepath.Glob(dir + "/fdinfo/*")
	for _, set := range sets {
		info, _ := os.ReadFile(set) // a descriptor may be closed by now
		for line := range strings.Lines(string(info)) {
			f := strings.Fields(line) // tfd: NUMBER events: …
			if len(f) < 2 || f[0] != "tfd:" {
				continue
			}
			if name, err := os.Readlink(dir + "/fd/" + f[1]); err == nil {
				names = append(names, name)
			}
		}
	}
	return names
}
