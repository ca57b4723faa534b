package runtime

import (
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestMemoryLimit(t *testing.T) {
	root := t.TempDir()
	for name, text := range map[string]string{
		"system.slice/job_7/memory.max":                  "2000000\n",
		"system.slice/job_7/step_0/memory.max":           "max\n",
		"system.slice/job_7/step_0/user/memory.max":      "3000000\n",
		"memory/slurm/uid_5/memory.limit_in_bytes":       "9223372036854771712\n",
		"memory/slurm/uid_5/job_7/memory.limit_in_bytes": "1000000\n",
		"memory/other/memory.limit_in_bytes":             "1\n",
		"broken/memory.max":                              "-5\n",
	} {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for groups, want := range map[string]uint64{
		"0::/system.slice/job_7/step_0/user\n":                         2000000,
		"4:memory:/slurm/uid_5/job_7/step_0\n3:cpuset:/other\n0::/\n":  1000000,
		"4:memory:/slurm/uid_5\n":                                      9223372036854771712,
		"0::/system.slice/job_7/step_0\n4:memory:/slurm/uid_5/job_7\n": 1000000,
		"0::/../../memory/other\n":                                     math.MaxUint64,
		"0::/broken\nnonsense\n":                                       math.MaxUint64,
		"":                                                             math.MaxUint64,
	} {
		file := filepath.Join(t.TempDir(), "cgroup")
		if err := os.WriteFile(file, []byte(groups), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := memoryLimit(root, file); got != want {
			t.Errorf("%q: %d, want %d", groups, got, want)
		}
	}
	if got := memoryLimit(root, filepath.Join(root, "none")); got != math.MaxUint64 {
		t.Errorf("without groups: %d", got)
	}
}

// Only a layer that the command writes to, in memory, is limited.
func TestWrittenInMemory(t *testing.T) {
	for _, tt := range []struct {
		spec Spec
		want bool
	}{
		{Spec{Image: "i", Command: []string{"c"}}, false},
		{Spec{Image: "i", Command: []string{"c"}, Writable: true}, true},
		{Spec{Image: "i", Command: []string{"c"}, Writable: true, Upper: "/upper"}, false},
	} {
		ops, err := Plan(&tt.spec, &Host{UID: 7, GID: 7})
		if err != nil {
			t.Fatal(err)
		}
		if got := slices.ContainsFunc(ops, writtenInMemory); got != tt.want {
			t.Errorf("%+v: %v", tt.spec, got)
		}
	}
}
