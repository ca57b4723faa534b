package slurmtest

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Tasks that are "squire run" have one container on each node, one reference to the image, and the service's one mount.
func TestLauncher(t *testing.T) {
	l := theLab(t)
	eventually(t, "nobody uses an image any more", func() bool { return len(l.images(t)) == 0 })
	const barrier = `touch /at$SLURM_LOCALID; until [ -e /at0 ] && [ -e /at1 ] && [ -e /at2 ]; do sleep 0.1; done
echo $SLURMD_NODENAME $(readlink /proc/self/ns/user) $(stat -c %d /); cat`
	cmd := l.command(t, l.user, nil, l.userDir(t), "srun", "-N2", "--ntasks-per-node=3", "--input=all", l.squire, "run", "--writable", l.image, "--", "sh", "-c", barrier)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	containers := map[string]int{}
	lines := bufio.NewScanner(stdout)
	for i := 0; i < 6 && lines.Scan(); i++ {
		containers[lines.Text()]++
	}
	if len(containers) != 2 {
		t.Errorf("two nodes have containers %v", containers)
	}
	for c, n := range containers {
		if n != 3 {
			t.Errorf("%s: %d tasks", c, n)
		}
	}
	if images := l.images(t); len(images) != 1 || images[0].References != 2 {
		t.Errorf("the service has %+v, want one image with a reference for each node", images)
	}
	stdin.Close()
	if err = cmd.Wait(); err != nil {
		t.Error(err)
	}
	l.clean(t)
}

// A task that comes when the first has ended already finds the container of those that are left.
func TestLauncherStaggered(t *testing.T) {
	l := theLab(t)
	dir := l.userDir(t)
	const inside = `cd "$1"; readlink /proc/self/ns/user >ns$SLURM_LOCALID
case $SLURM_LOCALID in
0) until [ -e ns1 ]; do sleep 0.1; done ;;
1) until [ -e ns2 ]; do sleep 0.1; done ;;
esac`
	const outside = `cd "$1" || exit
case $SLURM_LOCALID in
1) until [ -e ns0 ]; do sleep 0.1; done ;;
2) until [ -e gone ]; do sleep 0.1; done ;;
esac
"$2" run --mounts "$1" --writable "$3" -- sh -c "$4" sh "$1"
status=$?
[ $SLURM_LOCALID != 0 ] || touch gone
exit $status`
	r := l.run(t, "srun", "-N1", "-n3", "sh", "-c", outside, "sh", dir, l.squire, l.image, inside)
	if r.code != 0 {
		t.Fatalf("%+v", r)
	}
	var spaces [3]string
	for i := range spaces {
		b, err := os.ReadFile(filepath.Join(dir, fmt.Sprint("ns", i)))
		if err != nil {
			t.Fatal(err)
		}
		spaces[i] = string(b)
	}
	if spaces[0] != spaces[1] || spaces[0] != spaces[2] {
		t.Errorf("tasks are in user namespaces %q", spaces)
	}
}

// The status is the command's, and what is wrong for all tasks of a node is said once.
func TestLauncherStatus(t *testing.T) {
	l := theLab(t)
	for _, tt := range []struct {
		argv   []string
		code   int
		stderr string
		times  int
	}{
		{argv: []string{l.image, "--", "sh", "-c", "exit $((SLURM_PROCID + 3))"}, code: 6},
		{argv: []string{l.image, "--", "sh", "-c", "kill -TERM $$"}, code: 143},
		{argv: []string{l.image, "--", "nothing"}, code: 127, stderr: "command not found", times: 4},
		{argv: []string{"/nothing.sqsh", "--", "true"}, code: 125, stderr: "no such file", times: 1},
		{argv: []string{"--mounts", "/nothing", l.image, "--", "true"}, code: 125, stderr: "source path does not exist", times: 4},
	} {
		r := l.run(t, append([]string{"srun", "-N1", "-n4", l.squire, "run"}, tt.argv...)...)
		if n := strings.Count(r.stderr, tt.stderr); r.code != tt.code || tt.stderr != "" && n != tt.times {
			t.Errorf("%q: %+v, want status %d, and %q %d times", tt.argv, r, tt.code, tt.stderr, tt.times)
		}
	}
	// Also when they come one after the other.
	r := l.run(t, "srun", "-N1", "-n4", "sh", "-c", `sleep 0.$((SLURM_LOCALID * 3)); exec "$@"`, "sh", l.squire, "run", "/nothing.sqsh", "--", "true")
	if n := strings.Count(r.stderr, "no such file"); r.code != 125 || n != 1 {
		t.Errorf("%+v, want status 125, and the text once", r)
	}
	l.clean(t)
}

// A step of launchers that is cancelled leaves nothing.
func TestLauncherCancelled(t *testing.T) {
	l := theLab(t)
	for _, env := range [][]string{nil, {"SQUIRE_SERVICE=own"}, {"SQUIRE_SERVICE=off"}} {
		cmd := l.command(t, l.user, env, l.userDir(t), "srun", "-N2", "--ntasks-per-node=4", l.squire, "run", "--writable", l.image, "--",
			"sh", "-c", "trap '' TERM INT; (setsid sleep 600 &); echo $SLURM_JOB_ID; while :; do sleep 1; done")
		stdout, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(stdout)
		job := ""
		for range 8 {
			if !lines.Scan() {
				t.Fatalf("%q: the tasks did not start", env)
			}
			job = lines.Text()
		}
		if r := l.run(t, "scancel", job); r.code != 0 {
			t.Errorf("%+v", r)
		}
		if err = cmd.Wait(); err == nil {
			t.Errorf("%q: the step did not fail", env)
		}
		l.clean(t)
	}
}
