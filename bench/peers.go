package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// peer is a way to mount an image.
type peer struct {
	name string
	// argv is the command that mounts and returns when the mount is there. IMAGE and DIR stand for what they say.
	argv []string
}

// kernelPeer is the one that all are compared with.
const kernelPeer = "kernel"

var allPeers = []peer{
	{kernelPeer, []string{"mount", "-t", "squashfs", "-o", "loop,ro", "IMAGE", "DIR"}},
	{"squashfuse", []string{"squashfuse", "IMAGE", "DIR"}},
	{"squashfuse_ll", []string{"squashfuse_ll", "IMAGE", "DIR"}},
	{"squire", []string{"squire", "mount", "IMAGE", "DIR"}},
}

func peerNames() []string {
	var names []string
	for _, p := range allPeers {
		names = append(names, p.name)
	}
	return names
}

// findPeers finds the peers with the given names, or all whose program is installed when names is empty.
func findPeers(names, squire string) ([]peer, error) {
	var peers []peer
	for _, p := range allPeers {
		p.argv = slices.Clone(p.argv)
		if p.name == "squire" {
			p.argv[0] = squire
		}
		wanted := slices.Contains(strings.Split(names, ","), p.name)
		if names != "" && !wanted {
			continue
		}
		path, err := exec.LookPath(p.argv[0])
		if err == nil {
			path, err = filepath.Abs(path)
		}
		switch {
		case err == nil:
			p.argv[0] = path
			peers = append(peers, p)
		case wanted || p.name == "squire":
			return nil, fmt.Errorf("peer %s: %w", p.name, err)
		default:
			fmt.Fprintf(os.Stderr, "bench: left out %s: %v\n", p.name, err)
		}
	}
	for name := range strings.SplitSeq(names, ",") {
		if name != "" && !slices.Contains(peerNames(), name) {
			return nil, fmt.Errorf("no peer %q: there are %s", name, strings.Join(peerNames(), ", "))
		}
	}
	return peers, nil
}

// mounted is an image on a directory.
type mounted struct {
	dir  string
	prog string        // that mounted it, and may serve it now
	dev  string        // major:minor
	took time.Duration // from the start of the mount command to the first stat
}

// mountPeer mounts image on a new directory in parent.
func mountPeer(ctx context.Context, p peer, image, parent string, limit time.Duration) (*mounted, error) {
	dir, err := os.MkdirTemp(parent, p.name)
	if err != nil {
		return nil, err
	}
	m := &mounted{dir: dir, prog: p.argv[0]}
	argv := slices.Clone(p.argv)
	for i, word := range argv {
		argv[i] = strings.NewReplacer("IMAGE", image, "DIR", dir).Replace(word)
	}
	start := time.Now()
	out, err := command(ctx, limit, nil, argv...)
	if err != nil {
		m.unmount()
		return nil, fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, bytes.TrimSpace(out))
	}
	if m.dev, err = deviceOf(dir); err != nil {
		m.unmount()
		return nil, err
	}
	watchdog := time.AfterFunc(limit, m.abort)
	defer watchdog.Stop()
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		m.unmount()
		return nil, fmt.Errorf("stat %s on %s: %w", dir, p.name, err)
	}
	m.took = time.Since(start)
	return m, nil
}

// unmount unmounts, and waits a while for the server to end, which would otherwise take time from what is measured
// next.
func (m *mounted) unmount() {
	for range 100 {
		err := unix.Unmount(m.dir, 0)
		if !errors.Is(err, unix.EBUSY) {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	// Nothing happens here when all went well.
	_ = unix.Unmount(m.dir, unix.MNT_DETACH)
	for range 100 {
		if !serverRuns(m) {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	os.Remove(m.dir)
}

// abort ends the connection to a FUSE server, so that whoever waits for the server goes on with an error: nothing else
// frees them when it is stuck.
func (m *mounted) abort() {
	if _, minor, ok := strings.Cut(m.dev, ":"); ok {
		_ = os.WriteFile("/sys/fs/fuse/connections/"+minor+"/abort", []byte("1"), 0)
	}
}

// deviceOf finds the mount on dir without touching it, and returns its major:minor. An error says that nothing is
// mounted there: measuring the empty directory would look fast.
func deviceOf(dir string) (string, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 5 && f[4] == dir { // proc(5): fields 3 and 5
			return f[2], nil
		}
	}
	return "", fmt.Errorf("nothing is mounted on %s", dir)
}

// serverRuns says whether a process runs the program that mounted m, or has m's directory in its command line.
func serverRuns(m *mounted) bool {
	paths, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	return slices.ContainsFunc(paths, func(path string) bool {
		text, err := os.ReadFile(path)
		if err != nil {
			return false
		}
		exe, _ := os.Readlink(filepath.Dir(path) + "/exe")
		return exe == m.prog || bytes.Contains(text, []byte(m.dir))
	})
}

// command runs a program to its end, for at most limit, and returns what it wrote. attr may be nil.
func command(ctx context.Context, limit time.Duration, attr *syscall.SysProcAttr, argv ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("still running after %v", limit))
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
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
	os.Remove(out.Name())
	cmd.Stdout, cmd.Stderr = out, out
	err = cmd.Run()
	if cause := context.Cause(ctx); cause != nil && err != nil {
		err = cause
	}
	text := make([]byte, 64<<10)
	n, _ := out.ReadAt(text, 0)
	return text[:n], err
}
