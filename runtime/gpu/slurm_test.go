package gpu_test

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/squirefs/squire/runtime/gpu"
	"github.com/squirefs/squire/runtime/gpu/fakehost"
)

// TestShare: what tasks have of their step's GPUs. The environments are those that Slurm 22.05 makes.
func TestShare(t *testing.T) {
	step := func(gpus string) []string {
		return []string{"SLURM_STEP_ID=0", "SLURM_STEP_GPUS=" + gpus, "CUDA_VISIBLE_DEVICES=" + gpus, "SLURM_GPUS_ON_NODE=4"}
	}
	bound := func(numbers, cuda string) []string {
		return []string{"SLURM_STEP_ID=0", "SLURM_STEP_GPUS=" + numbers, "CUDA_VISIBLE_DEVICES=" + cuda, "SLURM_GPUS_ON_NODE=4"}
	}
	unbound := []string{"SLURM_STEP_ID=0", "SLURM_GPUS_ON_NODE=4"}
	// On this host GPU N by address is nvidia7-N.
	tests := []struct {
		name, flag string
		step, task []string
		denied     string // GPUs by minor number
		nodes      string // of the step
		hidden     string
		set        string
	}{
		{name: "bound", step: step("0,1,2,3"), task: bound("2", "2"), nodes: "4 5 6 7", hidden: "4 6 7", set: "CUDA_VISIBLE_DEVICES=0"},
		{name: "bound to two", step: step("0,1,2,3"), task: bound("2,3", "2,3"), nodes: "4 5 6 7", hidden: "6 7", set: "CUDA_VISIBLE_DEVICES=0,1"},
		{name: "not bound", step: step("1,2"), task: unbound, nodes: "5 6"},
		{name: "all of the step's", step: step("1,2"), task: step("1,2"), nodes: "5 6", set: "CUDA_VISIBLE_DEVICES=0,1"},
		{name: "cgroup", step: step("1,2"), task: bound("1", "0"), denied: "0 1 2 3 4 6 7", nodes: "5 6", hidden: "6"},
		{name: "cgroup, all of the step's", step: step("1,2"), task: bound("1,2", "0,1"), denied: "0 1 2 3 4 7", nodes: "5 6"},
		{name: "cgroup of the job", step: step("1"), task: bound("1", "0"), denied: "0 1 2 3 7", nodes: "6"},
		{name: "step of none", step: []string{"SLURM_STEP_ID=0", "SLURM_JOB_GPUS=0"}, task: []string{"SLURM_STEP_ID=0", "SLURM_JOB_GPUS=0"}},
		{name: "batch", step: []string{"SLURM_JOB_GPUS=0,3"}, task: []string{"SLURM_JOB_GPUS=0,3", "CUDA_VISIBLE_DEVICES=0,3"}, nodes: "4 7", set: "CUDA_VISIBLE_DEVICES=0,1"},
		{name: "no Slurm's GPUs", step: []string{"SLURM_STEP_ID=0"}, task: []string{"SLURM_STEP_ID=0"}, nodes: all},
		{name: "no Slurm's GPUs, a cgroup", step: []string{"SLURM_STEP_ID=0"}, task: []string{"SLURM_STEP_ID=0"}, denied: "1 2", nodes: all, hidden: "1 2"},
		{name: "all for each", flag: "all", step: step("0,1,2,3"), task: bound("2", "2"), nodes: "4 5 6 7", set: ""},
		{name: "all for each, the last ones", flag: "all", step: step("4,5"), task: bound("5", "5"), nodes: "2 3", set: "CUDA_VISIBLE_DEVICES=1"},
		{name: "one of the step's", flag: "1", step: step("4,5"), task: bound("5", "5"), nodes: "2", set: "CUDA_VISIBLE_DEVICES=0"},
		{name: "none", flag: "none", step: step("4,5"), task: bound("5", "5")},
		{name: "all for each that a cgroup lets", flag: "all", step: step("0,1"), task: bound("0", "0"), denied: "0 1 2 3 4 5 7", nodes: "6 7", hidden: "7"},
	}
	h := fakehost.DGXH100(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			host, err := gpu.Discover(h.Dir)
			if err != nil {
				t.Fatal(err)
			}
			defer host.Close()
			set, err := host.Choose(&gpu.Request{GPUs: tt.flag, Environ: tt.step, Step: tt.step})
			if err != nil {
				t.Fatal(err)
			}
			if got := nvidiaOnly(gpuNodes(set)); got != tt.nodes {
				t.Errorf("the step has %q, want %q", got, tt.nodes)
			}
			var denied []string
			for _, n := range strings.Fields(tt.denied) {
				denied = append(denied, "/dev/nvidia"+n)
			}
			share, err := host.Share(set, &gpu.Request{GPUs: tt.flag, Environ: tt.task, Step: tt.step}, denied)
			if err != nil {
				t.Fatal(err)
			}
			if got := minors(share.Hidden); got != tt.hidden {
				t.Errorf("hidden is %q, want %q (%q)", got, tt.hidden, share.Hidden)
			}
			if got := strings.Join(share.Env, " "); got != tt.set {
				t.Errorf("sets %q, want %q", got, tt.set)
			}
			if len(share.Unset) > 0 {
				t.Errorf("unsets %q", share.Unset)
			}
			if tt.hidden == "" && len(share.Hidden) > 0 {
				t.Errorf("hides %q where nothing need be", share.Hidden)
			}
		})
	}
}

// minors are the numbers of the nodes that are of one GPU.
func minors(nodes []string) string {
	var numbers []string
	for _, n := range nodes {
		if m, ok := strings.CutPrefix(filepath.Base(n), "nvidia"); ok && strings.Trim(m, "0123456789") == "" {
			numbers = append(numbers, m)
		}
	}
	slices.Sort(numbers)
	return strings.Join(numbers, " ")
}

// TestShareHidesRenderNodes: a GPU's other nodes go with it, and those that all GPUs need stay.
func TestShareHidesRenderNodes(t *testing.T) {
	host, err := gpu.Discover(fakehost.MI300(t).Dir)
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	step := []string{"SLURM_STEP_ID=0", "SLURM_STEP_GPUS=1,2", "ROCR_VISIBLE_DEVICES=1,2"}
	set, err := host.Choose(&gpu.Request{Environ: step, Step: step})
	if err != nil {
		t.Fatal(err)
	}
	task := []string{"SLURM_STEP_ID=0", "SLURM_STEP_GPUS=2", "ROCR_VISIBLE_DEVICES=2"}
	share, err := host.Share(set, &gpu.Request{Environ: task, Step: step}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"/dev/dri/renderD129", "/dev/dri/card1"}; !slices.Equal(share.Hidden, want) {
		t.Errorf("hidden are %q, want %q", share.Hidden, want)
	}
	if want := []string{"ROCR_VISIBLE_DEVICES=0"}; !slices.Equal(share.Env, want) {
		t.Errorf("sets %q, want %q", share.Env, want)
	}
}

// TestStepErrors: a flag chooses among what Slurm gave.
func TestStepErrors(t *testing.T) {
	hosts := fakehost.Cached(t)
	for _, tt := range []struct{ gpus, step, want string }{
		{"2", "SLURM_STEP_GPUS=0,1", `--container-gpus: "2": no such GPU; there are 0 (`},
		{fakehost.UUID(3), "SLURM_STEP_GPUS=0,1", "no such GPU"},
		{"all", "SLURM_JOB_GPUS=0", "--container-gpus: Slurm gave none of this node's GPUs"},
	} {
		r := &gpu.Request{GPUs: tt.gpus, Flag: "--container-gpus", Step: []string{"SLURM_STEP_ID=0", tt.step}}
		if _, err := choose(t, hosts("h100"), r); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: %v, want %q", tt.gpus, err, tt.want)
		}
	}
}

// TestWiden: a container that tasks share has the nodes of all GPUs, and each task hides what it does not have.
func TestWiden(t *testing.T) {
	h := fakehost.DGXH100(t)
	host, err := gpu.Discover(h.Dir)
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	var first *gpu.Set
	for task, gpus := range []string{"0", "5,6", "none"} {
		set, err := host.Choose(&gpu.Request{GPUs: gpus, Devices: []string{"/dev/nvidia3:/dev/nvidia3"}})
		if err != nil {
			t.Fatal(err)
		}
		wide, hidden := host.Widen(set)
		if first == nil {
			first = wide
		}
		if !slices.Equal(wide.Nodes, first.Nodes) {
			t.Errorf("task %d: the container has %v, for the first one %v", task, wide.Nodes, first.Nodes)
		}
		if got := nvidiaOnly(gpuNodes(wide)); got != all {
			t.Errorf("task %d: the container has %q", task, got)
		}
		if got, want := minors(hidden), []string{"0 1 2 4 5 6", "0 4 5 6 7", "0 1 2 4 5 6 7"}[task]; got != want {
			t.Errorf("task %d: hidden are %q, want %q", task, got, want)
		}
	}
}
