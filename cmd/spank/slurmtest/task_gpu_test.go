package slurmtest

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// showGPUs prints a task's rank, what it has of /dev/nvidiaN, and which of these its control group lets it open.
const showGPUs = `cd /dev; for g in nvidia*; do [ -e $g ] && [ -r $g ] && [ -w $g ] && u="$u ${g#nvidia}"; done
echo $SLURM_PROCID: $(ls -d nvidia* 2>/dev/null | sed s/nvidia// | tr '\n' ' ')/$u / $CUDA_VISIBLE_DEVICES`

// gpusOf runs a step, and returns what its tasks print, without the last field where variables is false.
func (a *allocation) gpusOf(t *testing.T, argv []string) []string {
	t.Helper()
	r := a.l.runAs(t, a.l.user, []string{"SLURM_JOB_ID=" + a.id}, a.dir, argv...)
	lines := strings.Split(strings.TrimSpace(r.stdout), "\n")
	for i, l := range lines {
		lines[i] = strings.Join(strings.Fields(strings.ReplaceAll(l, "/", " / ")), " ")
	}
	slices.Sort(lines)
	if r.code != 0 {
		t.Errorf("%q: %+v", argv, r)
	}
	return lines
}

// Each task has the GPUs that Slurm has bound it to and no others, which it may open, and CUDA's variable counts them.
// The node has eight, and all are this job's.
func TestTaskGPUs(t *testing.T) {
	l := theLab(t)
	a := l.allocate(t, "-N1", "-n8", "--gpus=8")
	// CUDA's variable of tasks that are bound to none is Slurm's: 22.05 sets none, 25.11 that of the step's GPUs.
	const unbound = "-n2 --gpus-per-task=1 --gpu-bind=none"
	r := l.runAs(t, l.user, []string{"SLURM_JOB_ID=" + a.id}, a.dir, append(append([]string{"srun", "--overlap"}, strings.Fields(unbound)...), "printenv", "CUDA_VISIBLE_DEVICES")...)
	steps, _, _ := strings.Cut(" "+r.stdout, "\n")
	steps = strings.TrimRight(steps, " ")
	for _, tt := range []struct {
		srun string
		gpus string // --container-gpus, --gpus
		want []string
	}{
		{srun: "-n8 --gpus-per-task=1", want: []string{
			"0: 0 / 0 / 0", "1: 1 / 1 / 0", "2: 2 / 2 / 0", "3: 3 / 3 / 0", "4: 4 / 4 / 0", "5: 5 / 5 / 0", "6: 6 / 6 / 0", "7: 7 / 7 / 0",
		}},
		{srun: "-n2 --gpus-per-task=3", want: []string{"0: 0 1 2 / 0 1 2 / 0,1,2", "1: 3 4 5 / 3 4 5 / 0,1,2"}},
		{srun: "-n2 --gpus=8 --gpu-bind=map_gpu:6,1", want: []string{"0: 6 / 6 / 0", "1: 1 / 1 / 0"}},
		{srun: "-n2 --gpus=8 --gpu-bind=mask_gpu:0x3,0xc0", want: []string{"0: 0 1 / 0 1 / 0,1", "1: 6 7 / 6 7 / 0,1"}},
		{srun: "-n2 --gpus=3", want: []string{"0: 0 1 2 / 0 1 2 / 0,1,2", "1: 0 1 2 / 0 1 2 / 0,1,2"}},
		{srun: unbound, want: []string{"0: 0 1 / 0 1 /" + steps, "1: 0 1 / 0 1 /" + steps}},
		{srun: "-n2 --gres=none", want: []string{"0: / /", "1: / /"}},
		{srun: "-n2 --gpus=3", gpus: "none", want: []string{"0: / / 0,1,2", "1: / / 0,1,2"}},
		{srun: "-n2 --gpus=3", gpus: "2", want: []string{"0: 2 / 2 / 0", "1: 2 / 2 / 0"}},
	} {
		var options []string
		if tt.gpus != "" {
			options = []string{"gpus=" + tt.gpus}
		}
		for way, argv := range l.contained(l.image, strings.Fields("--overlap "+tt.srun), options, "sh", "-c", showGPUs) {
			t.Run(fmt.Sprintf("%s %s/%s", tt.srun, tt.gpus, way), func(t *testing.T) {
				if got := a.gpusOf(t, argv); !slices.Equal(got, tt.want) {
					t.Errorf("got  %q\nwant %q", got, tt.want)
				}
			})
		}
	}
	for way, argv := range l.contained(l.image, strings.Fields("--overlap -n2 --gpus=2"), []string{"gpus=5"}, "true") {
		r := l.runAs(t, l.user, []string{"SLURM_JOB_ID=" + a.id}, a.dir, argv...)
		if n := strings.Count(r.stderr, "no such GPU"); r.code == 0 || n == 0 || way == "plugin" && n > 1 {
			t.Errorf("%s: a GPU that there is not: %+v", way, r)
		}
	}
}

// Jobs on one node have other GPUs each.
func TestJobsGPUs(t *testing.T) {
	l := theLab(t)
	var lines []string
	for range 2 {
		a := l.allocate(t, "-w", "n1", "-n2", "--gpus-per-task=2")
		for way, argv := range l.contained(l.image, strings.Fields("--overlap -n2 --gpus-per-task=2"), nil, "sh", "-c", showGPUs) {
			got := a.gpusOf(t, argv)
			if way == "plugin" {
				lines = append(lines, got...)
			}
			if len(got) != 2 {
				t.Errorf("%s: %q", way, got)
			}
		}
	}
	want := []string{"0: 0 1 / 0 1 / 0,1", "1: 2 3 / 2 3 / 0,1", "0: 4 5 / 4 5 / 0,1", "1: 6 7 / 6 7 / 0,1"}
	if !slices.Equal(lines, want) {
		t.Errorf("got  %q\nwant %q", lines, want)
	}
}

// A namespace of its own is for a task that may not see all of the step's devices, and for no other.
func TestTaskNamespaces(t *testing.T) {
	l := theLab(t)
	a := l.allocate(t, "-N1", "-n4", "--gpus=4")
	for srun, want := range map[string]int{"-n4 --gpus=4": 1, "-n4 --gpus-per-task=1": 4, "-n4 --gpus=2 --gpu-bind=map_gpu:0,1,0,1": 2} {
		argv := append(append([]string{"srun", "--overlap"}, strings.Fields(srun)...), "--container-image="+l.image, "readlink", "/proc/self/ns/mnt")
		r := l.runAs(t, l.user, []string{"SLURM_JOB_ID=" + a.id}, a.dir, argv...)
		lines := strings.Fields(r.stdout)
		slices.Sort(lines)
		if n := len(slices.Compact(lines)); r.code != 0 || n != want {
			t.Errorf("%s: %d namespaces, want %d: %+v", srun, n, want, r)
		}
	}
}
