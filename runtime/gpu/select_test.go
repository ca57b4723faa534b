package gpu_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/squirefs/squire/runtime/gpu"
	"github.com/squirefs/squire/runtime/gpu/fakehost"
)

// joinCgroupEnv names a control group that the test process joins.
const joinCgroupEnv = "SQUIRE_TEST_CGROUP"

func TestMain(m *testing.M) {
	if dir := os.Getenv(joinCgroupEnv); dir != "" {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0); err != nil {
			os.Stderr.WriteString(err.Error())
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

func choose(t *testing.T, h *fakehost.Host, r *gpu.Request) (*gpu.Set, error) {
	t.Helper()
	host, err := gpu.Discover(h.Dir)
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	return host.Choose(r)
}

// gpuNodes names the nodes of single GPUs and MIG instances in a Set, without
// what all need.
func gpuNodes(s *gpu.Set) string {
	var names []string
	for _, n := range s.Nodes {
		name := filepath.Base(n.Target)
		if strings.Trim(name[len(name)-1:], "0123456789") == "" && (strings.HasPrefix(name, "nvidia") && !strings.Contains(name, "-") || strings.HasPrefix(name, "nvidia-cap") || strings.HasPrefix(name, "renderD")) {
			names = append(names, strings.TrimPrefix(name, "nvidia"))
		}
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

const all = "0 1 2 3 4 5 6 7"

func TestChoose(t *testing.T) {
	uuid := fakehost.UUID
	tests := []struct {
		name, host, gpus string
		env              []string
		nodes            string // of the GPUs
		driver           bool
		set, unset       string // variables
	}{
		{name: "nothing", host: "h100", nodes: all, driver: true},
		{name: "all", host: "h100", gpus: "all", nodes: all, driver: true},
		{name: "none", host: "h100", gpus: "none"},
		{name: "none and variables", host: "h100", gpus: "none", env: []string{"NVIDIA_VISIBLE_DEVICES=all", "CUDA_VISIBLE_DEVICES=1"}},
		{name: "index", host: "h100", gpus: "0", nodes: "7", driver: true},
		{name: "UUID", host: "h100", gpus: uuid(3), nodes: "4", driver: true},
		{name: "twice", host: "h100", gpus: "0," + uuid(0), nodes: "7", driver: true},
		{name: "void", host: "h100", env: []string{"NVIDIA_VISIBLE_DEVICES=void"}},
		{name: "empty", host: "h100", env: []string{"NVIDIA_VISIBLE_DEVICES="}},
		{name: "driver only", host: "h100", env: []string{"NVIDIA_VISIBLE_DEVICES=none"}, driver: true},
		{name: "NVIDIA within Slurm", host: "h100", env: []string{"NVIDIA_VISIBLE_DEVICES=1", "SLURM_STEP_GPUS=4,6"}, nodes: "1", driver: true},
		{name: "all of Slurm's", host: "h100", env: []string{"NVIDIA_VISIBLE_DEVICES=all", "SLURM_STEP_GPUS=4,6"}, nodes: "1 3", driver: true},
		{name: "NVIDIA's nothing within Slurm", host: "h100", env: []string{"NVIDIA_VISIBLE_DEVICES=void", "SLURM_STEP_GPUS=4,6"}},
		{name: "flag before NVIDIA", host: "h100", gpus: "2", env: []string{"NVIDIA_VISIBLE_DEVICES=1"}, nodes: "5", driver: true},
		{name: "step before job", host: "h100", env: []string{"SLURM_JOB_GPUS=0,1", "SLURM_STEP_GPUS=1"}, nodes: "6", driver: true},
		{name: "Slurm counts by address", host: "h100", env: []string{"SLURM_JOB_GPUS=0-2"}, nodes: "5 6 7", driver: true},
		{name: "step of no GPUs", host: "h100", env: []string{"SLURM_JOB_GPUS=0,1", "SLURM_STEP_ID=3"}},
		{name: "step bound to none", host: "h100", env: []string{"SLURM_JOB_GPUS=0,1", "SLURM_STEP_ID=3", "SLURM_GPUS_ON_NODE=2"}, nodes: all, driver: true},
		{name: "interactive step", host: "h100", env: []string{"SLURM_JOB_GPUS=0,1", "SLURM_STEP_ID=4294967290", "SLURM_GPUS_ON_NODE=2"}, nodes: "6 7", driver: true},
		// A program that leaves one of its GPUs to others.
		{name: "CUDA within Slurm", host: "h100", env: []string{"SLURM_STEP_GPUS=6,7", "CUDA_VISIBLE_DEVICES=7"}, nodes: "0 1", driver: true, set: "CUDA_VISIBLE_DEVICES=1"},
		{
			name: "task of Slurm's", host: "h100", env: []string{"SLURM_STEP_GPUS=6", "CUDA_VISIBLE_DEVICES=6", "GPU_DEVICE_ORDINAL=6"}, nodes: "1", driver: true,
			set: "CUDA_VISIBLE_DEVICES=0 GPU_DEVICE_ORDINAL=0",
		},
		{name: "Slurm's numbers of no GPU", host: "h100", env: []string{"SLURM_JOB_GPUS=0,17"}, nodes: all, driver: true},
		{name: "Slurm's garbage", host: "h100", env: []string{"SLURM_JOB_GPUS=0,x"}, nodes: all, driver: true},
		{name: "Slurm and MIG devices", host: "mig", env: []string{"SLURM_JOB_GPUS=2", "CUDA_VISIBLE_DEVICES=MIG-cccc"}, nodes: "-cap102 -cap103 0", driver: true},
		{name: "Slurm and MIG", host: "mig", env: []string{"SLURM_JOB_GPUS=2"}, nodes: "-cap102 -cap103 -cap104 -cap21 -cap22 0 1", driver: true},
		{name: "CUDA", host: "h100", env: []string{"CUDA_VISIBLE_DEVICES=3,1"}, nodes: "4 6", driver: true, set: "CUDA_VISIBLE_DEVICES=1,0"},
		{name: "CUDA's UUIDs", host: "h100", env: []string{"CUDA_VISIBLE_DEVICES=GPU-00000002"}, nodes: "5", driver: true},
		{name: "CUDA's ambiguous UUID", host: "h100", env: []string{"CUDA_VISIBLE_DEVICES=1,GPU-0"}, nodes: "6", driver: true, set: "CUDA_VISIBLE_DEVICES=0"},
		{name: "CUDA's end", host: "h100", env: []string{"CUDA_VISIBLE_DEVICES=2,-1,3"}, nodes: "5", driver: true, set: "CUDA_VISIBLE_DEVICES=0"},
		{name: "CUDA's nothing", host: "h100", env: []string{"CUDA_VISIBLE_DEVICES="}, driver: true},
		{name: "Slurm's nothing", host: "h100", env: []string{"CUDA_VISIBLE_DEVICES=NoDevFiles"}, driver: true},
		{name: "CUDA's MIG", host: "mig", env: []string{"CUDA_VISIBLE_DEVICES=MIG-5"}, nodes: "-cap102 -cap103 -cap104 -cap21 -cap22 0 1", driver: true},
		{name: "flag against CUDA", host: "h100", gpus: "0", env: []string{"CUDA_VISIBLE_DEVICES=5"}, nodes: "7", driver: true, unset: "CUDA_VISIBLE_DEVICES"},
		{name: "flag within CUDA", host: "h100", gpus: "0,5", env: []string{"CUDA_VISIBLE_DEVICES=5,6"}, nodes: "2 7", driver: true, set: "CUDA_VISIBLE_DEVICES=1"},
		{name: "all keeps CUDA", host: "h100", gpus: "all", env: []string{"CUDA_VISIBLE_DEVICES=5,6"}, nodes: all, driver: true},
		{name: "MIG device", host: "mig", gpus: "0:2", nodes: "-cap102 -cap104 0", driver: true},
		{name: "MIG by ids", host: "mig", gpus: "MIG-" + uuid(0) + "/2/0", nodes: "-cap21 -cap22 0", driver: true},
		{name: "MIG by UUID", host: "mig", gpus: "MIG-cccc", nodes: "-cap102 -cap103 0", driver: true},
		{name: "partitioned GPU", host: "mig", gpus: "0", nodes: "-cap102 -cap103 -cap104 -cap21 -cap22 0", driver: true},
		{name: "AMD", host: "mi300", gpus: "1", nodes: "renderD129"},
		{name: "AMD by id", host: "mi300", gpus: "GPU-000000000000abc3", nodes: "renderD131"},
		{
			name: "AMD and Slurm", host: "mi300", env: []string{"SLURM_JOB_GPUS=1,2", "ROCR_VISIBLE_DEVICES=2", "GPU_DEVICE_ORDINAL=1,2"}, nodes: "renderD129 renderD130",
			set: "ROCR_VISIBLE_DEVICES=1 GPU_DEVICE_ORDINAL=0,1",
		},
		{name: "AMD and CUDA's variable", host: "mi300", env: []string{"CUDA_VISIBLE_DEVICES=0"}, nodes: "renderD128 renderD129 renderD130 renderD131"},
		{name: "no GPU", host: "none", env: []string{"NVIDIA_VISIBLE_DEVICES=0", "CUDA_VISIBLE_DEVICES=0", "SLURM_JOB_GPUS=0"}},
	}
	listMIG := func() ([]byte, error) {
		return []byte("GPU 0: NVIDIA A100-SXM4-40GB (UUID: " + uuid(0) + ")\n  MIG 3g.20gb     Device  0: (UUID: MIG-aaaa)\n  MIG 1c.2g.10gb  Device  1: (UUID: MIG-cccc)\nGPU 1: NVIDIA A100-SXM4-40GB (UUID: " + uuid(1) + ")\n"), nil
	}
	hosts := fakehost.Cached(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, err := choose(t, hosts(tt.host), &gpu.Request{GPUs: tt.gpus, Environ: tt.env, ListMIG: listMIG})
			if err != nil {
				t.Fatal(err)
			}
			got := gpuNodes(s)
			if s.Driver != nil || tt.driver {
				got = nvidiaOnly(got)
			}
			if got != tt.nodes {
				t.Errorf("nodes %q, want %q", got, tt.nodes)
			}
			if (s.Driver != nil) != tt.driver {
				t.Errorf("driver: %v", s.Driver)
			}
			if got := strings.Join(s.Env, " "); got != tt.set {
				t.Errorf("sets %q, want %q", got, tt.set)
			}
			if got := strings.Join(s.Unset, " "); got != tt.unset {
				t.Errorf("unsets %q, want %q", got, tt.unset)
			}
		})
	}
}

// nvidiaOnly leaves the render nodes out.
func nvidiaOnly(nodes string) string {
	return strings.Join(slices.DeleteFunc(strings.Fields(nodes), func(s string) bool { return strings.HasPrefix(s, "render") }), " ")
}

func TestChooseErrors(t *testing.T) {
	failing := func() ([]byte, error) { return nil, errors.New("not installed") }
	tests := []struct {
		name, host string
		r          gpu.Request
		want       []string // parts of the message
	}{
		{"index", "h100", gpu.Request{GPUs: "8"}, []string{`--gpus: "8": no such GPU; there are 0 (` + fakehost.UUID(0) + ", NVIDIA H100 80GB HBM3), 1 ("}},
		{"variable", "h100", gpu.Request{Environ: []string{"NVIDIA_VISIBLE_DEVICES=0,9"}}, []string{`NVIDIA_VISIBLE_DEVICES=0,9: "9": no such GPU`}},
		{"negative", "h100", gpu.Request{GPUs: "-1"}, []string{"no such GPU"}},
		{"huge", "h100", gpu.Request{GPUs: "99999999999999999999"}, []string{"no such GPU"}},
		{"beginning of a UUID", "h100", gpu.Request{GPUs: "GPU-00000002"}, []string{"no such GPU"}},
		{"empty item", "h100", gpu.Request{GPUs: "0,"}, []string{`"": no such GPU`}},
		{"path", "h100", gpu.Request{GPUs: "/dev/nvidia0"}, []string{"no such GPU"}},
		{"MIG", "mig", gpu.Request{GPUs: "1:0"}, []string{"no such MIG device", "0:2 (GPU instance 11, compute instance 1)"}},
		{"MIG ids", "mig", gpu.Request{GPUs: "MIG-" + fakehost.UUID(0) + "/3/0"}, []string{"no such MIG device"}},
		{"MIG UUID", "mig", gpu.Request{GPUs: "MIG-aaaa"}, []string{"known to nvidia-smi alone"}},
		{"MIG UUID without nvidia-smi", "mig", gpu.Request{GPUs: "MIG-aaaa", ListMIG: failing}, []string{"known to nvidia-smi alone", "not installed"}},
		{"no GPU", "none", gpu.Request{GPUs: "0"}, []string{"no GPU that you may use"}},
		{"capabilities", "h100", gpu.Request{Environ: []string{"NVIDIA_DRIVER_CAPABILITIES=compute,../../x"}}, []string{"NVIDIA_DRIVER_CAPABILITIES", "unknown word"}},
		{"adapter", "h100", gpu.Request{Environ: []string{"MELLANOX_VISIBLE_DEVICES=../../x"}}, []string{"MELLANOX_VISIBLE_DEVICES", "there are mlx5_0, mlx5_1, mlx5_2"}},
		{"device", "h100", gpu.Request{Devices: []string{"/etc/ld.so.cache"}}, []string{"--device /etc/ld.so.cache: not a character device"}},
		{"no device", "h100", gpu.Request{Devices: []string{"/dev/nothing"}}, []string{"no such file"}},
		{"relative device", "h100", gpu.Request{Devices: []string{"dev/nvidia0"}}, []string{"neither a path"}},
		{"device at the root", "h100", gpu.Request{Devices: []string{"/dev/nvidia0:/"}}, []string{"root itself"}},
		{"no CDI", "h100", gpu.Request{Devices: []string{"nvidia.com/gpu=0"}}, []string{"no CDI device is defined"}},
	}
	hosts := fakehost.Cached(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := choose(t, hosts(tt.host), &tt.r)
			if err == nil {
				t.Fatal("no error")
			}
			for _, part := range tt.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%v\ndoes not say %q", err, part)
				}
			}
		})
	}
}

func TestDevices(t *testing.T) {
	h := fakehost.Intel(t)
	h.Link("/dev/by-name/gpu", "../dri/renderD128")
	s, err := choose(t, h, &gpu.Request{GPUs: "none", Devices: []string{"/dev/by-name/gpu", "/dev/dri/renderD128:/dev/x", "/dev/dri:/dev/y"}})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, n := range s.Nodes {
		got = append(got, strings.TrimPrefix(n.Source, h.Dir)+" "+n.Target)
	}
	want := []string{"/dev/dri/renderD128 /dev/by-name/gpu", "/dev/dri/renderD128 /dev/x", "/dev/dri/card0 /dev/y/card0", "/dev/dri/renderD128 /dev/y/renderD128"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestDeviceCgroup: GPUs that a device cgroup refuses are not counted, and not
// shown when Slurm's variables say that a choice was made. The nodes of the fake
// host have number 0:0, so that one of them is replaced by null's.
func TestDeviceCgroup(t *testing.T) {
	const devices = "/sys/fs/cgroup/devices"
	if os.Getenv(joinCgroupEnv) == "" {
		if _, err := os.Stat(devices + "/devices.deny"); err != nil && os.Getuid() != 0 {
			t.Skip("needs root and the device controller of cgroup v1")
		}
		dir, err := os.MkdirTemp(devices, "squire-test-")
		if err != nil {
			t.Skip("needs root and the device controller of cgroup v1: ", err)
		}
		defer os.Remove(dir)
		if err = os.WriteFile(filepath.Join(dir, "devices.deny"), []byte("c 1:7 rw"), 0); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestDeviceCgroup$", "-test.v")
		cmd.Env = append(os.Environ(), joinCgroupEnv+"="+dir)
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "--- PASS") {
			t.Fatalf("%v: %s", err, out)
		}
		return
	}
	h := fakehost.DGXH100(t)
	for i := range 8 { // null may be opened, full not
		kind := "/dev/null"
		if i%2 == 1 {
			kind = "/dev/full"
		}
		h.NodeLike("/dev/nvidia"+string(rune('0'+i)), kind)
	}
	for _, tt := range []struct{ gpus, env, want string }{
		{"0", "", "6"},
		{"all", "", "0 2 4 6"},
		{"", "SLURM_STEP_GPUS=1", "0 2 4 6"},
		{"", "CUDA_VISIBLE_DEVICES=1", "4"},
	} {
		s, err := choose(t, h, &gpu.Request{GPUs: tt.gpus, Environ: []string{tt.env}})
		if err != nil {
			t.Fatal(err)
		}
		if got := nvidiaOnly(gpuNodes(s)); got != tt.want {
			t.Errorf("%+v: got %q", tt, got)
		}
	}
	if _, err := choose(t, h, &gpu.Request{GPUs: "4"}); err == nil {
		t.Error("a fifth GPU of four was found")
	}
}
