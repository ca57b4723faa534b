package slurmtest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Slurm passes on only the last value of an option, and what sbatch or salloc left together with what overrides it.
func TestOptionsOnTheWay(t *testing.T) {
	l := theLab(t)
	dirs := make([]string, 3)
	for i := range dirs {
		dirs[i] = l.userDir(t)
		if err := os.WriteFile(filepath.Join(dirs[i], "name"), fmt.Appendf(nil, "%c\n", 'a'+i), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	mount := func(i int) string { return fmt.Sprintf("--container-mounts=%s:/mnt/%c:ro", dirs[i], 'a'+i) }
	const show = "cat /mnt/?/name | tr '\\n' ' '; touch /new 2>/dev/null && echo writable || echo readonly"
	image := "--container-image=" + l.image
	for name, tt := range map[string]struct {
		args []string
		want string
	}{
		"srun":     {[]string{"srun", "-n1", image, mount(0), mount(1), "sh", "-c", show}, "a b readonly\n"},
		"no job's": {[]string{"srun", "-n1", "--export=NONE", image, mount(0), mount(1), "/bin/sh", "-c", show}, "a b readonly\n"},
		"salloc": {
			[]string{"salloc", "-Q", "-n1", image, "--container-writable", mount(0), mount(1), "srun", "sh", "-c", show},
			"a b writable\n",
		},
		"overridden": {
			[]string{"salloc", "-Q", "-n1", image, "--container-writable", mount(0), mount(1), "srun", "--container-readonly", mount(2), "sh", "-c", show},
			"c readonly\n",
		},
		"twice overridden": {
			[]string{"salloc", "-Q", "-n1", "--container-image=/no/such", mount(0), "srun", image, mount(1), mount(2), "sh", "-c", show},
			"b c readonly\n",
		},
	} {
		r := l.run(t, tt.args...)
		if r.code != 0 || r.stdout != tt.want {
			t.Errorf("%s: got %+v, want %q", name, r, tt.want)
		}
	}
}

// Wrong options end srun, sbatch and salloc with 255, before there is a job.
func TestOptionsRefused(t *testing.T) {
	l := theLab(t)
	image := "--container-image=" + l.image
	for _, args := range [][]string{
		{"srun", "-n1", image, "--container-image=/other", "true"},
		{"sbatch", "-n1", image, "--container-writable", "--container-readonly", "--wrap=true"},
		{"salloc", "-n1", image, "--container-unshare=pid", "true"},
		{"srun", "-n1", "--container-mounts=/tmp:/mnt", "true"},
	} {
		r := l.run(t, args...)
		if r.code != 255 || !strings.Contains(r.stderr, args[0]+": error: squire: --container-") || strings.Count(r.stderr, "\n") != 1 {
			t.Errorf("%s: got %+v", args, r)
		}
	}
}

// Heterogeneous steps have a container each.
func TestHeterogeneousStep(t *testing.T) {
	l := theLab(t)
	image := "--container-image=" + l.image
	const show = `echo $SLURM_PROCID $(awk '$5 == "/" {print $9}' /proc/self/mountinfo)`
	r := l.run(t, "srun", "-n1", image, "sh", "-c", show, ":", "-n1", image, "sh", "-c", show)
	if r.code != 0 || !strings.Contains(r.stdout, "0 ") || !strings.Contains(r.stdout, "1 ") {
		t.Errorf("got %+v", r)
	}
}
