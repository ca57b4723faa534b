package runtime

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// report prints what a process has of its parent. Numbers of processes and the like,
// which differ from one to the next, are left out.
const report = `cat /proc/self/limits; umask; cat /proc/self/oom_score_adj; cut -d" " -f18,19,40,41 /proc/self/stat;` +
	` grep -E "^(SigBlk|Groups|Cpus_allowed_list|Mems_allowed_list|THP_enabled)" /proc/self/status; cut -d: -f2,3 /proc/self/cgroup; cat /proc/self/timerslack_ns 2>/dev/null`

// What the caller has set for its children arrives in the command: Slurm sets all
// of these. Go raises the limit of open files for itself, and the setup needs
// another umask.
func TestRunProcessAttributes(t *testing.T) {
	for _, tool := range []string{"bash", "nice", "taskset", "env"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("needs ", tool)
		}
	}
	if err := exec.Command("env", "--block-signal=USR1", "true").Run(); err != nil {
		t.Skip("needs an env that blocks signals (coreutils 8.31)")
	}
	forUsers(t, func(t *testing.T, w who, root string) {
		for name, change := range map[string]string{
			"unchanged": "exec",
			"changed": `ulimit -S -n 321; ulimit -H -n 654; ulimit -c 0; ulimit -S -s 4096; ulimit -l 64; ulimit -u 5000; ulimit -v 33554432; umask 0123
				echo 321 >/proc/self/oom_score_adj; exec nice -n 7 taskset -c 0 env --block-signal=USR1 --block-signal=RTMIN+3`,
		} {
			t.Run(name, func(t *testing.T) {
				outside := attributes(t, w, root, change+` bash -c '`+report+`'`)
				inside := attributes(t, w, root, change+` bash -c 'exec -a `+runnerName+` /proc/self/fd/3'`)
				// Busybox prints a leading zero more than bash or not.
				outside, inside = strings.ReplaceAll(outside, "\n0", "\n"), strings.ReplaceAll(inside, "\n0", "\n")
				if w.uid != os.Getuid() { // groups without a mapping show as nogroup
					outside = strings.Replace(outside, groupsOutside, "Groups:\t65534 ", 1)
				}
				if outside != inside {
					t.Errorf("outside:\n%s\ninside:\n%s", outside, inside)
				}
			})
		}
	})
}

const groupsOutside = "Groups:\t23457 "

// attributes runs a shell script as w, in which descriptor 3 is the runner of a
// container that reports.
func attributes(t *testing.T, w who, root, script string) string {
	t.Helper()
	cmd := runner(t, w, Spec{Dir: root, Command: []string{"/bin/sh", "-c", report}})
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	cmd.Env = append(cmd.Env, keepUmask+"=1")
	cmd.Path, cmd.Args, cmd.ExtraFiles = "/bin/bash", []string{"bash", "-c", script}, []*os.File{self}
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v", script, err)
	}
	return string(out)
}
