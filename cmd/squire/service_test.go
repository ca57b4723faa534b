package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/squirefs/squire/fusefs/noded"
)

// The tasks of a step share a service; other steps and jobs do not.
func TestStepOf(t *testing.T) {
	for in, want := range map[string]string{
		"0::/system.slice/slurmstepd.scope/job_7/step_0/user/task_3":          "0::/system.slice/slurmstepd.scope/job_7/step_0",
		"0::/system.slice/slurmstepd.scope/job_7/step_batch/user":             "0::/system.slice/slurmstepd.scope/job_7/step_batch",
		"0::/system.slice/slurmstepd.scope/sEKNKTV3WPV500/step_0/user/task_3": "0::/system.slice/slurmstepd.scope/sEKNKTV3WPV500/step_0",
		"0::/system.slice/sEKNKTV3WPV50U/step_0/user/task_3":                  "0::/system.slice/sEKNKTV3WPV50U/step_0/user/task_3",
		"0::/home/step_1/job_7/step_2/user/task_0":                            "0::/home/step_1/job_7/step_2",
		"4:memory:/slurm/uid_1000/job_7/step_0/task_12":                       "4:memory:/slurm/uid_1000/job_7/step_0",
		"4:memory:/slurm/uid_1000/job_7/step_0":                               "4:memory:/slurm/uid_1000/job_7/step_0",
		"9:cpuset:/slurm_node1/uid_1000/job_7":                                "9:cpuset:/slurm_node1/uid_1000/job_7",
		"0::/user.slice/user-1000.slice/session-3.scope":                      "0::/user.slice/user-1000.slice/session-3.scope",
		"0::/home/task_4/step_2":                                              "0::/home/task_4/step_2",
		"0::/":                                                                "0::/",
	} {
		if got := stepOf(in); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

func TestOwnSocket(t *testing.T) {
	a, err := ownSocket()
	if err != nil {
		t.Fatal(err)
	}
	if b, err := ownSocket(); err != nil || a != b {
		t.Errorf("%s and %s, %v", a, b, err)
	}
	if !strings.HasPrefix(a, "@squire-") || len(a) > 100 {
		t.Errorf("name %q", a)
	}
}

func TestServiceMode(t *testing.T) {
	for value, want := range map[string]serviceMode{"": serviceAuto, "auto": serviceAuto, "node": serviceNode, "own": serviceOwn, "off": serviceOff} {
		t.Setenv("SQUIRE_SERVICE", value)
		if got, err := servicesWanted(); err != nil || got != want {
			t.Errorf("%q: %q, %v", value, got, err)
		}
	}
	t.Setenv("SQUIRE_SERVICE", "yes")
	if _, err := servicesWanted(); err == nil || !strings.Contains(err.Error(), "SQUIRE_SERVICE=yes: want") {
		t.Errorf("yes: %v", err)
	}
	if _, err := squire(t, "run", testImage, "true"); err == nil || !strings.Contains(err.Error(), "SQUIRE_SERVICE=yes: want") {
		t.Errorf("run: %v", err)
	}
	if _, err := squire(t, "mount", testImage, t.TempDir()); err == nil || !strings.Contains(err.Error(), "SQUIRE_SERVICE=yes: want") {
		t.Errorf("mount: %v", err)
	}
}

// Without a service, those who ask for one do without, whatever it is that is missing.
func TestNoService(t *testing.T) {
	dir := t.TempDir()
	stale := filepath.Join(dir, "stale")
	if err := os.WriteFile(stale, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, socket := range []string{filepath.Join(dir, "none"), stale, filepath.Join(stale, "below")} {
		t.Setenv("SQUIRE_SOCKET", socket)
		if c, err := dialService(serviceNode); err == nil {
			c.Close()
			t.Errorf("%s: a service", socket)
		}
	}
	if _, err := dialService(serviceOff); !errors.Is(err, errUnwanted) {
		t.Errorf("off: %v", err)
	}
	if isFinal(errUnwanted) || isFinal(&noded.ServiceError{Code: noded.Limit}) || !isFinal(&noded.ServiceError{Code: noded.BadImage}) {
		t.Error("wrong errors are final")
	}
}

func TestDaemonFlags(t *testing.T) {
	for args, want := range map[string]string{
		"--cache x":          "--cache",
		"--metadata -1":      "--metadata",
		"--idle -1s":         "--idle -1s: is negative",
		"--limit-images 0":   "--limit-images 0: want at least 1",
		"--log-level loud":   "--log-level loud: want debug",
		"--socket /x extra":  "extra: one argument too many",
		"--limit-clients -4": "--limit-clients -4",
	} {
		_, err := squire(t, append([]string{"daemon"}, strings.Fields(args)...)...)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", args, err, want)
		}
	}
}

// Who has no rights cannot serve a node, wherever it listens: a service that went on regardless would try for ever.
func TestDaemonNeedsRoot(t *testing.T) {
	users := importUsers()
	uid := users[len(users)-1]
	if uid == 0 {
		t.Skip("no ordinary user")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	out, err := command(ctx, uid, "daemon", "--socket", filepath.Join(publicDir(t, uid), "socket")).CombinedOutput()
	if ctx.Err() != nil || err == nil || !strings.Contains(string(out), "needs root") {
		t.Errorf("%v, %q, want that it needs root", err, out)
	}
}

// mount(8) tells by the status what went wrong, and passes options that are for all file systems.
func TestMountHelper(t *testing.T) {
	dir := t.TempDir()
	for args, want := range map[string]int{
		"":                               mountUsage,
		testImage:                        mountUsage,
		testImage + " DIR --nonsense":    mountUsage,
		testImage + " DIR -o nonsense":   mountUsage,
		testImage + " DIR -t squashfs":   mountUsage,
		"-f " + testImage + " DIR -o rw": 0,
		testImage + " DIR -sfnv -o nonsense,rw,relatime,X-mount.mkdir": 0,
		testImage + " DIR -fn -t squire -o ro,user=me,nofail,x-a.b":    0,
		testImage + " DIR -N /no/such":                                 mountSystem,
		"/no/such DIR -o ro":                                           mountFailed,
		"/no/such DIR -o ro,nofail":                                    0,
		testImage + " DIR/none -o ro,nofail":                           mountFailed,
	} {
		// A process of its own: one that mounts must not get rights, nor anything that is executed by the same thread.
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		cmd := exec.CommandContext(ctx, "/proc/self/exe")
		cmd.Args = append([]string{helperName}, strings.Fields(strings.ReplaceAll(args, "DIR", dir))...)
		out, err := cmd.CombinedOutput()
		cancel()
		if cmd.ProcessState == nil {
			t.Fatal(err)
		}
		if got := cmd.ProcessState.ExitCode(); got != want {
			t.Errorf("%q: status %d, want %d: %s", args, got, want, out)
		}
	}
}
