package testenv

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Path is the PATH of commands.
const Path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Build makes the squire of this tree, with flags of the linker: "-X main.version=…".
func Build(to, ldflags string) error {
	cmd := exec.Command("go", "build", "-o", to, "-ldflags", ldflags, "github.com/squirefs/squire/cmd/squire")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build squire: %w\n%s", err, out)
	}
	return nil
}

// Credential is that of a user and a group, in no other group; nil, that of the test itself, for root's.
func Credential(uid, gid uint32) *syscall.Credential {
	if uid == 0 {
		return nil
	}
	return &syscall.Credential{Uid: uid, Gid: gid}
}

// Command prepares a command with little in its environment and with a process group of its own, which is killed when ctx
// ends.
func Command(ctx context.Context, as *syscall.Credential, argv ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = "/"
	cmd.Env = []string{Path, "LC_ALL=C.UTF-8", "HOME=/nonexistent"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as, Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 2 * time.Second // whoever inherited the pipes must not hold up the test
	return cmd
}

// Finish runs a command to its end, and returns what it printed and its status as a shell shows it: 128+N after a signal.
// One that does not start has the status -1, and says why on its standard error.
func Finish(cmd *exec.Cmd) (stdout, stderr string, status int) {
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if cmd.ProcessState == nil {
		return "", err.Error(), -1
	}
	return out.String(), errs.String(), Status(cmd.ProcessState)
}

// Status is how a process ended, as a shell shows it: 128+N after a signal.
func Status(state *os.ProcessState) int {
	if ws := state.Sys().(syscall.WaitStatus); ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return state.ExitCode()
}

// Daemon starts a service of the node with a socket in a new directory below parent. With the test it is told to end,
// which has to succeed; what it said is shown if the test fails.
func Daemon(t testing.TB, squire, parent string, flags ...string) (socket string) {
	t.Helper()
	socket = filepath.Join(Dir(t, parent, 0, 0), "socket")
	var log Buffer
	cmd := exec.Command(squire, append([]string{"daemon", "--socket", socket}, flags...)...)
	cmd.Dir, cmd.Env, cmd.Stderr = "/", []string{Path}, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.WaitDelay = 2 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	var err error
	go func() { err = cmd.Wait(); close(ended) }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		timer := time.AfterFunc(2*time.Minute, func() { _ = cmd.Process.Kill() })
		defer timer.Stop()
		if <-ended; err != nil {
			t.Errorf("the service ended with %v", err)
		}
		if t.Failed() {
			t.Logf("the service said:\n%s", &log)
		}
	})
	there := func() bool { _, err := os.Stat(socket); return err == nil || Done(ended) }
	if !Eventually(time.Minute, there) || Done(ended) {
		t.Fatal("the service did not start")
	}
	return socket
}

// Buffer is what a process says, which may be read meanwhile.
type Buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements io.Writer.
func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

// String returns all that was written until now.
func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
