package fusefs

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/internal/testenv"
)

func TestServeWhatIsNoDevice(t *testing.T) {
	image := smallImage(t)
	for name, data := range map[string][]byte{"nothing": nil, "short": make([]byte, 10), "zeros": make([]byte, 200)} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		if _, err = w.Write(data); err != nil {
			t.Fatal(err)
		}
		w.Close()
		err = openImage(t, image, Options{}).Serve(Serving{Device: r, Ready: func([]byte) { t.Error("ready") }})
		if err == nil || !strings.Contains(err.Error(), "INIT") {
			t.Errorf("%s: %v, want an error about INIT", name, err)
		}
	}
}

// fusectl returns where the control file system of FUSE is mounted, having done so if nobody has.
func fusectl(t *testing.T) string {
	t.Helper()
	const usual = "/sys/fs/fuse/connections"
	var st unix.Statfs_t
	if err := unix.Statfs(usual, &st); err == nil && st.Type == 0x65735543 { // FUSE_CTL_SUPER_MAGIC
		return usual
	}
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "fusectl", 0, ""); err != nil {
		t.Skip("needs the right to mount fusectl: ", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// abortPath returns the file that ends the connection of the mount on dir when it is written to.
func abortPath(t *testing.T, dir string) string {
	t.Helper()
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, dir, unix.AT_STATX_DONT_SYNC, 0, &st); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%s/%d/abort", fusectl(t), st.Dev_minor)
}

// TestAbort cuts the connection through sysfs. The server must end by itself, as after an unmount.
func TestAbort(t *testing.T) {
	s := mountImage(t, role{Image: smallImage(t)}, MountOptions{})
	abort := abortPath(t, s.dir)
	if err := os.WriteFile(abort, []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := os.ReadFile(s.path("hello")); err == nil {
		t.Error("an aborted mount can be read")
	}
}

// TestDeviceIsNotPolled: each request would wake a thread that waits in Go's poller for a timer.
func TestDeviceIsNotPolled(t *testing.T) {
	s := mountImage(t, role{Image: smallImage(t)}, MountOptions{})
	if names := testenv.Polled(s.cmd.Process.Pid); slices.Contains(names, device) {
		t.Errorf("the poller looks for %q", names)
	}
}

// TestSlowStorage checks that requests waiting for storage do not hold up others: all are there at the same time.
func TestSlowStorage(t *testing.T) {
	const n = 64
	r, files := hangingRole(t, n+1)
	r.Within = limit
	s := mountHanging(t, r, files)
	resume := hang(t, r)
	before := s.figures().Stats.Wanted
	var done atomic.Int32
	results := s.readAll(n, files, &done)
	await(t, "all reads to be at the storage", func() bool { return s.figures().Stats.Wanted >= before+n })
	resume()
	want(t, results, isNil)
}

// TestReplyPool checks that every buffer is long enough, whoever had it before.
func TestReplyPool(t *testing.T) {
	var p replyPool
	small := make([]byte, replySize)
	for _, n := range []int{0, 100, replySize, replySize + 1, 128<<10 + 16, maxRead + 16, maxRead + replySize + 1} {
		buf, class := p.get(n, small)
		if len(buf) < n {
			t.Errorf("get(%d): %d bytes", n, len(buf))
		}
		p.put(buf, class)
	}
}

func TestReporterIsBounded(t *testing.T) {
	var out bytes.Buffer
	r := reporter{log: slog.New(slog.NewTextHandler(&out, nil))}
	for i := range 1000 {
		r.line("answered EIO", "op", "test", "inode", i)
	}
	if n := strings.Count(out.String(), "\n"); n != reportLines {
		t.Errorf("%d lines, want %d", n, reportLines)
	}
	r.since = time.Now().Add(-2 * reportPeriod)
	r.line("answered EIO", "op", "test")
	if want := fmt.Sprintf("dropped=%d", 1000-reportLines); !strings.Contains(out.String(), want) {
		t.Errorf("log %q lacks %q", out.String(), want)
	}
	out.Reset()
	for range 1000 { // a program that does not give up
		r.line("answered EIO", "op", "again")
	}
	if n := strings.Count(out.String(), "\n"); n != 1 {
		t.Errorf("%d lines that are the same, want one", n)
	}
}
