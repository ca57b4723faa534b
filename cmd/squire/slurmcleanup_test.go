package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/squirefs/squire/fusefs/noded"
	"github.com/squirefs/squire/runtime/container"
)

// pretend starts a process that has the command line of a step process, as a user. It lives until the test ends.
func pretend(t *testing.T, uid int, args ...string) *exec.Cmd {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, args[1]), []byte("echo ready; read x\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	openUp(t, dir)
	cmd := exec.Command("/bin/sh", args[1:]...)
	cmd.Args[0], cmd.Dir = args[0], dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err = cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if n, err := out.Read(make([]byte, 6)); n == 0 {
		t.Fatalf("%q did not start: %v", args, err)
	}
	return cmd
}

// openUp lets everybody into a directory of a test.
func openUp(t *testing.T, dir string) {
	t.Helper()
	for d := dir; d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// lives reports whether a process that is our child has not ended.
func lives(t *testing.T, cmd *exec.Cmd) bool {
	t.Helper()
	var ws syscall.WaitStatus
	pid, err := syscall.Wait4(cmd.Process.Pid, &ws, syscall.WNOHANG, nil)
	if err != nil {
		t.Fatal(err)
	}
	return pid == 0
}

// Processes of the job end, whoever asks, and nobody else's: not of another job, another user, or another name.
func TestCleanupProcesses(t *testing.T) {
	needRoot(t)
	const uid, other = 54321, 54322
	theirs := pretend(t, uid, "squire", "slurm", "step", "77.0")
	script := pretend(t, uid, "/usr/bin/squire", "slurm", "step", "77.4294967291")
	spared := []*exec.Cmd{
		pretend(t, uid, "squire", "slurm", "step", "777.0"),
		pretend(t, uid, "squire", "slurm", "step", "7.7"),
		pretend(t, uid, "squire", "slurm", "step", "77"),
		pretend(t, uid, "squire", "slurm", "step", "77.0", "x"),
		pretend(t, uid, "other", "slurm", "step", "77.0"),
		pretend(t, other, "squire", "slurm", "step", "77.0"),
		pretend(t, 0, "squire", "slurm", "step", "77.0"),
	}
	if _, err := squire(t, "slurm", "cleanup", "--job", "77", "--uid", "54321"); err != nil { // one is that it gave up
		t.Error(err)
	}
	for _, cmd := range []*exec.Cmd{theirs, script} {
		if lives(t, cmd) {
			t.Errorf("%q lives", cmd.Args)
		}
	}
	for _, cmd := range spared {
		if !lives(t, cmd) {
			t.Errorf("%q was ended", cmd.Args)
		}
	}
	if _, err := squire(t, "slurm", "cleanup", "--job", "77", "--uid", "54321"); err != nil {
		t.Error("with nothing left:", err)
	}
}

// jobGroup makes a control group as Slurm does for a job, and returns the file that takes processes in.
func jobGroup(t *testing.T, job string) (procs string) {
	t.Helper()
	for _, top := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/pids", "/sys/fs/cgroup/cpu"} {
		dir := filepath.Join(top, "squire-test-"+strconv.Itoa(os.Getpid()))
		procs = filepath.Join(dir, job, "cgroup.procs")
		if os.MkdirAll(filepath.Dir(procs), 0o755) != nil {
			continue
		}
		t.Cleanup(func() {
			for range 100 { // it takes a moment until who has ended is out
				if errors.Join(os.Remove(filepath.Dir(procs)), os.Remove(dir)) == nil {
					return
				}
				time.Sleep(10 * time.Millisecond)
			}
		})
		if _, err := os.Stat(procs); err == nil {
			return procs
		}
	}
	t.Skip("needs control groups")
	return ""
}

// Services of the user's own that steps of the job have started end, and their heirs, who would go on for them. Those of other
// jobs and other users do not.
func TestCleanupServices(t *testing.T) {
	needRoot(t)
	const sluid = "sEKNKTV3WPV500" // what Slurm 26.05 calls a job's group in cgroup/v2
	t.Setenv(sluidVariable, sluid)
	for _, group := range []string{"job_77", sluid} {
		t.Run(group, func(t *testing.T) { testCleanupServices(t, group) })
	}
}

func testCleanupServices(t *testing.T, group string) {
	const uid, other = 54321, 54322
	procs := jobGroup(t, group)
	dir := t.TempDir()
	openUp(t, dir)
	if err := syscall.Mkfifo(filepath.Join(dir, ownName), 0o666); err != nil {
		t.Fatal(err)
	}
	begin := func(uid int, in bool, args ...string) *exec.Cmd {
		cmd := exec.Command("/bin/cat") // which waits, by whatever name, for its input or for what writes to the pipe
		cmd.Args, cmd.Dir = args, dir
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
		stdin, err := cmd.StdinPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err == nil && in {
			err = os.WriteFile(procs, []byte(strconv.Itoa(cmd.Process.Pid)), 0)
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			stdin.Close()
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
		return cmd
	}
	ended := []*exec.Cmd{begin(uid, true, ownName), begin(uid, true, noded.HeirName, ownName)}
	spared := []*exec.Cmd{
		begin(uid, false, ownName), begin(uid, false, noded.HeirName, ownName), begin(other, true, ownName),
		begin(other, true, noded.HeirName, ownName), begin(uid, true, noded.HeirName), begin(uid, true, "other", ownName),
	}
	if _, err := squire(t, "slurm", "cleanup", "--job", "77", "--uid", "54321"); err != nil {
		t.Error(err)
	}
	for _, cmd := range ended {
		if lives(t, cmd) {
			t.Errorf("%q lives", cmd.Args)
		}
	}
	for _, cmd := range spared {
		if !lives(t, cmd) {
			t.Errorf("%q of user %d was ended", cmd.Args, cmd.SysProcAttr.Credential.Uid)
		}
	}
}

// Containers that were the job's alone go, with what is in them; those of a name that looks so stay.
func TestCleanupContainers(t *testing.T) {
	needRoot(t)
	dir := filepath.Join(t.TempDir(), "data")
	useSite(t, map[string]string{policyName: "data = '" + dir + "'\n"})
	store, err := container.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	// 77.1 and 77.2 are what --container-name=$SLURM_JOB_ID.1 keeps.
	for name, job := range map[string]uint32{"77_mine": 77, "77_old": 76, "mine": 77, "777_x": 777, "77.1": 77, "77.2": 77} {
		c, err := store.Claim(t.Context(), name, container.Create)
		if err == nil {
			err = c.Remember(&container.Record{Image: "/images/x.sqsh", Job: job})
			c.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(dir, "77_mine/layer/a/b"), 0); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "77.2/container.json"), []byte(`{"version":99}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"77.0", "77.x", "78.0", ".gone-1234"} { // a step's that was killed has no record
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if _, err := squire(t, "slurm", "cleanup", "--job", "77", "--uid", "0"); err != nil {
			t.Error(err)
		}
	}
	for name, want := range map[string]bool{"77_mine": false, "77_old": true, "mine": true, "777_x": true, "77.0": false, "77.1": true, "77.2": true, "77.x": true, "78.0": true, ".gone-1234": false} {
		if _, err := os.Lstat(filepath.Join(dir, name)); (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Somebody else's directory in the place of the user's does not keep a node from its next job.
func TestCleanupStrangers(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	if err := os.Chown(dir, 54322, 54322); err != nil {
		t.Fatal(err)
	}
	useSite(t, map[string]string{policyName: "data = '" + dir + "'\n"})
	if err := os.Mkdir(filepath.Join(dir, "77_mine"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := squire(t, "slurm", "cleanup", "--job", "77", "--uid", "0"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "77_mine")); err != nil {
		t.Error(err)
	}
	for _, args := range [][]string{{"--uid", "0"}, {"--job", "1"}, {"--job", "-1", "--uid", "0"}, {"--job", "1", "--uid", "x"}} {
		if _, err := squire(t, append([]string{"slurm", "cleanup"}, args...)...); err == nil {
			t.Errorf("%q: no error", args)
		}
	}
}

// What does not end when it is killed is not waited for. A function stands in for a process in uninterruptible sleep.
func TestCleanupWait(t *testing.T) {
	release, killed := make(chan struct{}), errors.New("killed")
	defer close(release)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	began := time.Now()
	if err := waitFor(ctx, func() error { <-release; return nil }); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
	if took := time.Since(began); took < killGrace { // were it to wait for the function, it would be for ever
		t.Errorf("it took %s", took)
	}
	if err := waitFor(ctx, func() error { return killed }); !errors.Is(err, killed) {
		t.Errorf("of one that ends when it is killed: error %v", err)
	}
	if err := waitFor(t.Context(), func() error { return nil }); err != nil {
		t.Error(err)
	}
}

// What a process says is kept up to a limit, and does not make it wait.
func TestCleanupWords(t *testing.T) {
	words, err := wordsFile()
	if err != nil {
		t.Fatal(err)
	}
	defer words.Close()
	if n, err := words.Write(make([]byte, 2*maxWords)); err == nil || n > maxWords {
		t.Errorf("wrote %d bytes, %v", n, err)
	}
	if fi, err := words.Stat(); err != nil || fi.Size() != maxWords {
		t.Errorf("size %v, %v", fi.Size(), err)
	}
}
