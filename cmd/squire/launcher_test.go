package main

import (
	"testing"

	"github.com/squirefs/squire/runtime"
)

func TestStepTasks(t *testing.T) {
	for _, tt := range []struct {
		step, node, tasks string
		want              int
	}{
		{"0", "0", "4", 4},
		{"0", "0", "1", 1},
		{"7", "1", "4(x2),3", 4},
		{"7", "2", "4(x2),3", 3},
		{"7", "3", "4(x2),3", 0},
		{"7", "0", "3,2(x5)", 3},
		{"7", "5", "3,2(x5)", 2},
		{"", "0", "4", 0},
		{"4294967290", "0", "4", 0}, // an interactive step
		{"batch", "0", "4", 0},
		{"0", "", "4", 0},
		{"0", "-1", "4", 4},
		{"0", "0", "", 0},
		{"0", "0", "4(x", 0},
		{"0", "0", "(x4)", 0},
		{"0", "1", "4(x0),5", 0},
		{"0", "9", "4(x99999999999999999999)", 0},
	} {
		env := map[string]string{"SLURM_STEP_ID": tt.step, "SLURM_NODEID": tt.node, "SLURM_STEP_TASKS_PER_NODE": tt.tasks, "SLURM_LOCALID": "0"}
		if got := stepTasks(func(name string) string { return env[name] }); got != tt.want {
			t.Errorf("%+v: got %d", tt, got)
		}
	}
	if got := stepTasks(func(string) string { return "" }); got != 0 {
		t.Errorf("outside of steps: %d", got)
	}
}

// TestTasksAddress: what makes the container another one makes another address, and what the command is does not.
func TestTasksAddress(t *testing.T) {
	address := func(change func(s *runtime.Spec)) string {
		t.Helper()
		s := &runtime.Spec{Image: "/a.sqsh", Command: []string{"true"}, Environ: []string{"A=1"}}
		change(s)
		ops, err := runtime.Plan(s, &runtime.Host{UID: 1, GID: 1})
		if err != nil {
			t.Fatal(err)
		}
		a, err := tasksAddress(ops)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	same := address(func(*runtime.Spec) {})
	for name, change := range map[string]func(s *runtime.Spec){
		"command":     func(s *runtime.Spec) { s.Command = []string{"false"} },
		"environment": func(s *runtime.Spec) { s.Environ, s.SetEnv = []string{"A=2"}, []string{"B=3"} },
		"directory":   func(s *runtime.Spec) { s.Workdir = "/tmp" },
	} {
		if address(change) != same {
			t.Errorf("%s: another address", name)
		}
	}
	for name, change := range map[string]func(s *runtime.Spec){
		"image":    func(s *runtime.Spec) { s.Image = "/b.sqsh" },
		"mounts":   func(s *runtime.Spec) { s.Mounts = []runtime.Mount{{Source: "/x", Target: "/x"}} },
		"writable": func(s *runtime.Spec) { s.Writable = true },
		"layer":    func(s *runtime.Spec) { s.Writable, s.Upper = true, "/layer" },
		"network":  func(s *runtime.Spec) { s.Unshare = []string{"net"} },
		"root":     func(s *runtime.Spec) { s.RemapRoot = true },
		"name":     func(s *runtime.Spec) { s.Hostname = "x" },
	} {
		if address(change) == same {
			t.Errorf("%s: the same address", name)
		}
	}
	t.Setenv("SLURMD_NODENAME", "n7")
	if address(func(*runtime.Spec) {}) == same {
		t.Error("node: the same address")
	}
}
