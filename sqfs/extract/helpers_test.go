package extract

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/sqfs"
)

// order is what a test asks its own binary to do as another user.
type order struct {
	Image, Dir string
	Force      bool
}

// answer is what that comes to.
type answer struct {
	Result   Result
	Problems []string
	Error    string
}

// orderVar has the order, as JSON.
const orderVar = "SQUIRE_TEST_EXTRACT"

func TestMain(m *testing.M) {
	text := os.Getenv(orderVar)
	if text == "" {
		os.Exit(m.Run())
	}
	var o order
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		panic(err)
	}
	var a answer
	img, err := sqfs.OpenImage(o.Image)
	if err == nil {
		a.Result, err = Run(context.Background(), img, o.Dir, &Options{Force: o.Force, Problem: func(path string, err error) {
			a.Problems = append(a.Problems, path+": "+err.Error())
		}})
	}
	if err != nil {
		a.Error = err.Error()
	}
	_ = json.NewEncoder(os.Stdout).Encode(a)
}

// asUser runs an order as an ordinary user. What it names must be open to everyone.
func asUser(t *testing.T, o order) answer {
	t.Helper()
	needRoot(t)
	text, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(openBinary(t))
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), orderVar+"="+string(text))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: otherUser, Gid: otherUser}}
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var a answer
	if err := json.Unmarshal(out, &a); err != nil {
		t.Fatal(err)
	}
	return a
}

// otherUser needs no account.
const otherUser = 12345

// openBinary copies the test's binary to where all can execute it.
func openBinary(t *testing.T) string {
	t.Helper()
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(openDirectory(t), "test")
	if err := os.WriteFile(name, self, 0o755); err != nil {
		t.Fatal(err)
	}
	return name
}

// openDirectory makes a directory that belongs to otherUser and that all can reach.
func openDirectory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "squire-extract")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	err = os.Chmod(dir, 0o755)
	if err == nil && os.Geteuid() == 0 {
		err = os.Chown(dir, otherUser, otherUser)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// tool runs a program of the host for at most two minutes. It skips the test if the
// program is missing.
func tool(t *testing.T, stdin io.Reader, name string, args ...string) (string, error) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("%s is not installed", name)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin = stdin
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// mksquashfs makes an image of a directory, in one that all can reach.
func mksquashfs(t *testing.T, dir string, args ...string) string {
	t.Helper()
	image := filepath.Join(openDirectory(t), "x.sqfs")
	out, err := tool(t, nil, "mksquashfs", append([]string{dir, image, "-noappend", "-no-progress", "-quiet"}, args...)...)
	if err != nil {
		t.Fatalf("mksquashfs: %v\n%s", err, out)
	}
	return image
}

// sqfstar makes an image of a tar archive, which can have what a directory of the host
// can hardly.
func sqfstar(t *testing.T, headers []tar.Header) string {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		h.ModTime = time.Unix(1700000000, 0)
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(bytes.Repeat([]byte("x"), int(h.Size))); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	image := filepath.Join(openDirectory(t), "x.sqfs")
	if out, err := tool(t, &b, "sqfstar", "-no-progress", "-quiet", image); err != nil {
		t.Fatalf("sqfstar: %v\n%s", err, out)
	}
	return image
}

// run extracts an image and wants no error and no problem.
func run(t *testing.T, img *sqfs.Image, dir string, opts Options) Result {
	t.Helper()
	opts.Problem = func(path string, err error) { t.Errorf("%s: %v", path, err) }
	r, err := Run(context.Background(), img, dir, &opts)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// snapshot is a line for each file of a tree, with all that an extraction sets.
func snapshot(t *testing.T, root string) map[string]string {
	t.Helper()
	lines := make(map[string]string)
	first := make(map[uint64]string)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrPermission) { // a directory whose line is there already
			return nil
		}
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		name, _ := filepath.Rel(root, path)
		line := fmt.Sprintf("%o %d:%d rdev %#x mtime %d", st.Mode, st.Uid, st.Gid, st.Rdev, st.Mtim.Sec)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			line += fmt.Sprintf(" size %d sum %s", st.Size, sum(t, path))
		case unix.S_IFLNK:
			to, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " to " + to
		}
		if !d.IsDir() && st.Nlink > 1 {
			if other, ok := first[st.Ino]; ok {
				line += " same as " + other
			} else {
				first[st.Ino] = name
			}
		}
		lines[name] = line + xattrLine(t, path)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

func sum(t *testing.T, path string) string {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrPermission) {
		return "closed to us"
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > 1<<30 {
		return "too long to read"
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:8])
}

func xattrLine(t *testing.T, path string) (line string) {
	buf := make([]byte, 1<<16)
	n, err := unix.Llistxattr(path, buf)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return ""
	}
	if err != nil {
		t.Fatal(err)
	}
	names := strings.Split(string(buf[:n]), "\x00")
	slices.Sort(names)
	value := make([]byte, 1<<16)
	for _, name := range names {
		if name == "" {
			continue
		}
		n, err := unix.Lgetxattr(path, name, value)
		if errors.Is(err, unix.EACCES) {
			n, err = 0, nil
		}
		if err != nil {
			t.Fatal(err)
		}
		line += fmt.Sprintf(" %s=%x", name, sha256.Sum256(value[:n]))
	}
	return line
}

// compare reports how trees differ.
func compare(t *testing.T, got, want map[string]string) {
	t.Helper()
	bad := 0
	for name, line := range want {
		if got[name] != line && bad < 10 {
			bad++
			t.Errorf("%q:\n got %.400s\nwant %.400s", name, got[name], line)
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok && bad < 10 {
			bad++
			t.Errorf("%q should not be there", name)
		}
	}
}
