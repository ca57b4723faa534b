package bench

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
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/fusefs"
	"github.com/squirefs/squire/internal/mountinfo"
)

// mounted is an image on a directory.
type mounted struct {
	dir    string
	mount  bool          // or else the directory that the image was unpacked into
	dev    string        // major:minor
	before []int         // children that were there before it
	watch  stopwatch     // since the start of the mount command
	toStat sample        // from there to the first stat
	limit  time.Duration // for whatever touches it
}

// mount mounts image on a new directory in parent.
func (p Peer) mount(ctx context.Context, image, parent string, limit time.Duration) (*mounted, error) {
	dir, err := os.MkdirTemp(parent, "mnt")
	if err != nil {
		return nil, err
	}
	m := &mounted{dir: dir, mount: true, before: children(), limit: limit}
	if err := m.start(ctx, p.words(image, dir)); err != nil {
		m.unmount()
		return nil, err
	}
	return m, nil
}

// MountKernel mounts an image with the kernel's squashfs on a new directory in parent, for at most limit. unmount must
// be called.
func MountKernel(ctx context.Context, image, parent string, limit time.Duration) (dir string, unmount func(), err error) {
	m, err := knownPeers[0].mount(ctx, image, parent, limit)
	if err != nil {
		return "", nil, err
	}
	return m.dir, m.unmount, nil
}

func (m *mounted) start(ctx context.Context, argv []string) (err error) {
	if m.watch, err = startWatch(); err != nil {
		return err
	}
	out, err := runProgram(ctx, m.limit, nil, argv...)
	if err != nil {
		return fmt.Errorf("%s: %w", strings.Join(argv, " "), withOutput(err, out))
	}
	if m.dev, err = deviceOf(m.dir); err != nil {
		return err
	}
	return m.guarded(ctx, func() error {
		var st unix.Stat_t
		if failed := unix.Stat(m.dir, &st); failed != nil {
			return fmt.Errorf("stat %s: %w", m.dir, failed)
		}
		m.toStat, err = m.watch.stop()
		return err
	})
}

// guarded runs f, which touches the mount, and ends the mount when that takes too long, or when ctx ends: nothing else
// frees whoever waits for a FUSE server that is stuck.
func (m *mounted) guarded(ctx context.Context, f func() error) error {
	watchdog := time.AfterFunc(m.limit, m.abort)
	defer watchdog.Stop()
	stop := context.AfterFunc(ctx, m.abort)
	defer stop()
	return f()
}

// unmount unmounts, and waits a while for the server to end, which would otherwise take time from what is measured
// next.
func (m *mounted) unmount() {
	if !m.mount {
		return
	}
	for range 100 {
		if mountedOn, err := isMounted(m.dir); err == nil && !mountedOn {
			break
		}
		if err := fusefs.Unmount(m.dir, false); err == nil {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if still, err := isMounted(m.dir); err != nil || still {
		_ = fusefs.Unmount(m.dir, true) // nothing better is left
	}
	if !m.await() {
		m.kill()
		m.await()
	}
	_ = os.Remove(m.dir)
}

// abort ends the connection to a FUSE server, so that whoever waits for it goes on with an error. Where the file
// system for that is not mounted, root ends it with a forced unmount, and an ordinary user by ending the server.
func (m *mounted) abort() {
	if !m.mount {
		return
	}
	if _, minor, ok := strings.Cut(m.dev, ":"); ok {
		if os.WriteFile("/sys/fs/fuse/connections/"+minor+"/abort", []byte("1"), 0) == nil {
			return
		}
	}
	_ = unix.Unmount(m.dir, unix.MNT_FORCE)
	m.kill()
}

// deviceOf finds the mount on dir without touching it, and returns its major:minor. An error says that nothing is
// mounted there: measuring the empty directory would look fast.
func deviceOf(dir string) (string, error) {
	list, err := mountinfo.Self()
	if err != nil {
		return "", err
	}
	for _, m := range list {
		if m.Point == dir {
			return m.Device, nil
		}
	}
	return "", fmt.Errorf("%w on %s", errNotMounted, dir)
}

var errNotMounted = errors.New("nothing is mounted")

func isMounted(dir string) (bool, error) {
	_, err := deviceOf(dir)
	if errors.Is(err, errNotMounted) {
		return false, nil
	}
	return err == nil, err
}

// adoptServers makes this process the parent of servers that go into the background: so they can be told from those of
// others, whatever they are called, and ended if they are stuck.
func adoptServers() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become a subreaper: %w", err)
	}
	return nil
}

// children lists the processes whose parent this one is.
func children() (pids []int) {
	paths, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // gone
		}
		// proc_pid_stat(5): the parent is the second field behind the name, which may hold anything.
		fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err == nil && len(fields) > 1 && fields[1] == strconv.Itoa(os.Getpid()) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// servers are the children that came with the mount.
func (m *mounted) servers() []int {
	return slices.DeleteFunc(children(), func(pid int) bool { return slices.Contains(m.before, pid) })
}

// await waits for the servers to end, two seconds at most, and says whether they did. There must be no other children.
func (m *mounted) await() bool {
	for range 100 {
		servers := m.servers()
		if len(servers) == 0 {
			return true
		}
		for _, pid := range servers {
			_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil) // takes leave of it if it ended
		}
		time.Sleep(20 * time.Millisecond)
	}
	return false
}

// kill ends the servers, and whatever else was started since the mount.
func (m *mounted) kill() {
	for _, pid := range m.servers() {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
}

// withOutput adds to a program's error what it printed, if it did.
func withOutput(err error, out []byte) error {
	if out = bytes.TrimSpace(out); len(out) == 0 {
		return err
	}
	return fmt.Errorf("%w: %s", err, out)
}

// RunProgram runs a program to its end, for at most limit, and returns the first 64 KiB that it wrote.
func RunProgram(ctx context.Context, limit time.Duration, argv ...string) ([]byte, error) {
	return runProgram(ctx, limit, nil, argv...)
}

// runProgram sets what attr says, too, which may be nil.
func runProgram(ctx context.Context, limit time.Duration, attr *syscall.SysProcAttr, argv ...string) ([]byte, error) {
	return runAs(ctx, limit, attr, argv[0], argv...)
}

// runAs runs the program in a file, under another name if argv[0] is one.
func runAs(ctx context.Context, limit time.Duration, attr *syscall.SysProcAttr, path string, argv ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("still running after %v", limit))
	defer cancel()
	cmd := exec.CommandContext(ctx, path)
	cmd.Args = argv
	// Python would write its compiled files into a directory, which is the next round's input.
	// Without a trace, unless a peer has the option: what an earlier round read must not help a later one.
	// Nor may a service do, which keeps what it has mounted.
	cmd.Env = append(os.Environ(), "LC_ALL=C", "PYTHONDONTWRITEBYTECODE=1", "SQUIRE_TRACE=0", "SQUIRE_SERVICE=off")
	if cmd.SysProcAttr = attr; attr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true // a server that stays is not ours to interrupt with a Ctrl-C before it is unmounted
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	// A file and not a pipe: a server that goes into the background may keep it open.
	out, err := os.CreateTemp("", "squire-bench-out")
	if err != nil {
		return nil, err
	}
	defer out.Close()
	_ = os.Remove(out.Name())
	cmd.Stdout, cmd.Stderr = out, out
	err = cmd.Run()
	if cause := context.Cause(ctx); cause != nil && err != nil {
		err = cause
	}
	text := make([]byte, 64<<10)
	n, _ := out.ReadAt(text, 0)
	return text[:n], err
}
