package slurmtest

import (
	"os/exec"
	"strings"
	"testing"
)

// With srun's --pty a command has a terminal that it finds by its name, as tmux and GPG want it, with the size of srun's.
// Further tasks of the step have none. In a step without --pty that is started from such a one there is none either.
func TestPty(t *testing.T) {
	l := theLab(t)
	if _, err := exec.LookPath("script"); err != nil {
		t.Skip("needs script (Debian's bsdutils)")
	}
	for _, tasks := range []string{"-n1", "-n3"} {
		line := "stty rows 33 cols 77; srun " + tasks + " --pty --container-image=" + l.image + ` sh -c '[ "$SLURM_PROCID" != 0 ] || { tty; stty size; echo to >/dev/tty; exit 7; }'`
		r := l.run(t, "script", "-qec", line, "/dev/null")
		if got := strings.ReplaceAll(r.stdout, "\r", ""); r.code != 7 || !strings.Contains(got, "/dev/console\n33 77\nto\n") {
			t.Errorf("%s: got %+v", tasks, r)
		}
	}
	r := l.runAs(t, l.user, []string{"SLURM_PTY_PORT=1"}, l.user.home, "srun", "-n2", "--container-image="+l.image, "sh", "-c", "tty; ls /dev/console")
	if strings.Count(r.stdout, "not a tty\n") != 2 || strings.Contains(r.stdout, "/dev/console") {
		t.Errorf("got %+v", r)
	}
}
