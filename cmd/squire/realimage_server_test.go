package main_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// start starts a command and returns when a file that it makes in dir, called ready, is there.
func (l *lab) start(t *testing.T, who user, dir string, argv ...string) (cmd *exec.Cmd, stderr *bytes.Buffer) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*bound)
	t.Cleanup(cancel)
	cmd = l.command(ctx, who, argv...)
	stderr = new(bytes.Buffer)
	cmd.Stderr = stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ready := func() bool { _, err := os.Stat(filepath.Join(dir, "ready")); return err == nil }
	if !eventually(bound, ready) {
		t.Fatalf("%q did not get ready; processes: %s; stderr: %s", argv, describe(l.processes()), stderr)
	}
	t.Cleanup(func() { os.Remove(filepath.Join(dir, "ready")) })
	return cmd, stderr
}

// server returns the pid of the lab's only image server.
func (l *lab) server(t *testing.T) int {
	t.Helper()
	var found []int
	for _, pid := range l.processes() {
		if strings.Contains(describe([]int{pid}), " squire-serve ") {
			found = append(found, pid)
		}
	}
	if len(found) != 1 {
		t.Fatalf("servers are %s, want one", describe(found))
	}
	return found[0]
}

// testServerKilled wants the user to be told when the server was killed, as the kernel does when memory is short, and
// the container to end.
func testServerKilled(t *testing.T, l *lab, who user) {
	dir := l.mkdir(t, who)
	cmd, stderr := l.start(t, who, dir, l.squire, "run", "--stats", l.images["zstd"], "--",
		"sh", "-c", "touch "+dir+"/ready; while [ -e "+dir+"/ready ]; do sleep 0.05; done; python3 -c 'import numpy'")
	server := l.server(t)
	wantNoRights(t, server)
	if err := syscall.Kill(server, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	os.Remove(filepath.Join(dir, "ready"))
	err := cmd.Wait()
	if err == nil || !strings.Contains(stderr.String(), "the image server ended early (killed)") || strings.Contains(stderr.String(), "read ") && strings.Contains(stderr.String(), "requests") {
		t.Errorf("%v; stderr: %s", err, stderr)
	}
	l.wantNothingLeft(t)
}

// testServerKilledReading kills the server while programs read in order, when its threads may wait for pages that only it
// can bring: everybody has to go on with an error all the same, see fusefs/store.go.
func testServerKilledReading(t *testing.T, l *lab, who user) {
	for range 5 {
		dir := l.mkdir(t, who)
		cmd, stderr := l.start(t, who, dir, l.squire, "run", l.images["zstd"], "--",
			"sh", "-c", "touch "+dir+"/ready; for d in lib bin sbin share; do while [ -e "+dir+"/ready ]; do find /usr/$d -type f -exec cat {} + >/dev/null; done & done; wait; exit 3")
		time.Sleep(200 * time.Millisecond)
		server := l.server(t)
		if err := syscall.Kill(server, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		os.Remove(filepath.Join(dir, "ready")) // what is in the page cache could be read for ever
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		select {
		case err := <-ended:
			if err == nil || !strings.Contains(stderr.String(), "the image server ended early (killed)") {
				t.Errorf("%v; stderr: %s", err, stderr)
			}
		case <-time.After(bound):
			t.Fatalf("the container hangs after its server was killed: %s", describe(l.processes()))
		}
		l.wantNothingLeft(t)
	}
}

// wantNoRights wants every thread of a process, which reads what strangers made, to be nobody of note.
func wantNoRights(t *testing.T, pid int) {
	t.Helper()
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	for _, thread := range threads {
		status, err := os.ReadFile(thread)
		if err != nil {
			continue // ended meanwhile
		}
		for _, line := range []string{"CapInh:\t0000000000000000", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "CapAmb:\t0000000000000000", "NoNewPrivs:\t1"} {
			if !strings.Contains(string(status), line+"\n") {
				t.Errorf("%s lacks %q", thread, line)
			}
		}
		if strings.Contains(string(status), "Uid:\t0") && os.Getuid() == 0 {
			t.Errorf("%s is root's", thread)
		}
	}
	if len(threads) == 0 {
		t.Errorf("process %d has no threads", pid)
	}
}

// testServerAsMappedRoot has root of a user namespace start the server, whose capabilities there must go as well.
func testServerAsMappedRoot(t *testing.T, l *lab, who user) {
	dir := l.mkdir(t, who)
	cmd, stderr := l.start(t, who, dir, "unshare", "-Ur", l.squire, "run", l.images["zstd"], "--",
		"sh", "-c", "touch "+dir+"/ready; while [ -e "+dir+"/ready ]; do sleep 0.05; done")
	wantNoRights(t, l.server(t))
	os.Remove(filepath.Join(dir, "ready"))
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v; stderr: %s", err, stderr)
	}
	l.wantNothingLeft(t)
}

// testAllTold sends SIGTERM to every process of a run, as a service manager ends a job: the command must still be able
// to read the image in order to clean up.
func testAllTold(t *testing.T, l *lab, who user) {
	dir := l.mkdir(t, who)
	program := `
import signal, sys, time
def end(*_):
    time.sleep(0.2)
    import csv, numpy.fft
    print("cleaned up", file=sys.stderr)
    sys.exit(7)
signal.signal(signal.SIGTERM, end)
open("` + dir + `/ready", "w")
while True: time.sleep(1)`
	cmd, stderr := l.start(t, who, dir, l.squire, "run", l.images["zstd"], "--", "python3", "-c", program)
	for _, pid := range l.processes() {
		_ = syscall.Kill(pid, syscall.SIGTERM)
	}
	_ = cmd.Wait()
	if cmd.ProcessState.ExitCode() != 7 || !strings.Contains(stderr.String(), "cleaned up") {
		t.Errorf("status %d, stderr: %s", cmd.ProcessState.ExitCode(), stderr)
	}
	l.wantNothingLeft(t)
}

// testMountLife wants mounts to come and go as a user types it: the command returns while a reader waits for its
// output to end, a link to the directory will do, and a mount whose server died can be cleared away.
func testMountLife(t *testing.T, l *lab, who user) {
	dir := l.mountPoint(t, who)
	link := dir + ".link"
	if err := os.Symlink(filepath.Base(dir), link); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(link)
	mount := func() {
		t.Helper()
		if r := l.run(t, who, "sh", "-c", l.squire+" mount "+l.images["zstd"]+" "+dir+" 2>&1 | cat"); r != (result{}) {
			t.Fatalf("mount: %+v", r)
		}
		if r := l.run(t, who, "ls", dir+"/etc/os-release"); r.status != 0 {
			t.Fatalf("ls: %+v", r)
		}
	}
	mount()
	if r := l.run(t, who, l.squire, "umount", link); r != (result{}) {
		t.Errorf("umount by a link: %+v", r)
	}
	if r := l.run(t, who, l.squire, "umount", dir); r.status != 125 || !strings.Contains(r.stderr, "no image is mounted there") {
		t.Errorf("umount twice: %+v", r)
	}
	mount()
	if err := syscall.Kill(l.server(t), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if r := l.run(t, who, l.squire, "umount", dir); r != (result{}) {
		t.Errorf("umount after the server died: %+v", r)
	}
	l.wantNothingLeft(t)
}

// testForeground wants a mount in the foreground to end with the signal that asks it to, and to say so when its server
// died.
func testForeground(t *testing.T, l *lab, who user) {
	for _, tt := range []struct {
		name   string
		end    func(client, server int) error
		status int
		stderr string
	}{
		{name: "SIGTERM", end: func(client, _ int) error { return syscall.Kill(client, syscall.SIGTERM) }},
		{
			name: "server killed", end: func(_, server int) error { return syscall.Kill(server, syscall.SIGKILL) },
			status: 125, stderr: "the image server ended early (killed)",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := l.mountPoint(t, who)
			ctx, cancel := context.WithTimeout(t.Context(), 3*bound)
			defer cancel()
			cmd := l.command(ctx, who, l.squire, "mount", "-f", l.images["zstd"], dir)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			mounted := func() bool { return l.run(t, who, "test", "-e", dir+"/etc/os-release").status == 0 }
			if !eventually(bound, mounted) {
				t.Fatalf("no mount; stderr: %s", &stderr)
			}
			if err := tt.end(cmd.Process.Pid, l.server(t)); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			if cmd.ProcessState.ExitCode() != tt.status || !strings.Contains(stderr.String(), tt.stderr) {
				t.Errorf("status %d, stderr: %s", cmd.ProcessState.ExitCode(), &stderr)
			}
			l.wantNothingLeft(t)
		})
	}
}
