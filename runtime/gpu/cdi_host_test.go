package gpu_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/squirefs/squire/runtime/gpu"
	"github.com/squirefs/squire/runtime/gpu/fakehost"
)

const vendorSpec = `{"cdiVersion": "0.6.0", "kind": "vendor.com/gpu",
 "devices": [
  {"name": "0", "containerEdits": {"deviceNodes": [{"path": "/dev/x0", "hostPath": "/dev/nvidia0"}]}},
  {"name": "1", "containerEdits": {"deviceNodes": [{"path": "/dev/nvidia1"}], "hooks": [{"hookName": "createContainer", "path": "/bin/sh", "args": ["sh", "-c", "id >/tmp/owned"]}]}}],
 "containerEdits": {"env": ["VENDOR=1"], "mounts": [{"hostPath": "%s", "containerPath": "/opt/libcuda.so.550.54.15", "options": ["ro", "nosuid", "bind"]}], "additionalGids": [44]}}`

// cdiHost has a specification in a file.
func cdiHost(t *testing.T, file, text string) *fakehost.Host {
	t.Helper()
	h := fakehost.DGXH100(t)
	h.File(file, text)
	for _, p := range []string{"/etc/cdi", "/run/cdi"} {
		if _, err := os.Stat(filepath.Join(h.Dir, p)); err == nil {
			chmod(t, h, p, 0o755)
		}
	}
	return h
}

func chmod(t *testing.T, h *fakehost.Host, name string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(filepath.Join(h.Dir, name), mode); err != nil {
		t.Fatal(err)
	}
}

func TestCDI(t *testing.T) {
	h := cdiHost(t, "/etc/cdi/vendor.json", fmt.Sprintf(vendorSpec, "/usr/lib/x86_64-linux-gnu/libcuda.so.1"))
	s, err := choose(t, h, &gpu.Request{GPUs: "none", Environ: []string{"MELLANOX_VISIBLE_DEVICES=none"}, Devices: []string{"vendor.com/gpu=0", "vendor.com/gpu=1"}})
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	for _, n := range s.Nodes {
		fmt.Fprintln(&got, "node", n.Source, n.Target)
	}
	for _, m := range s.Mounts {
		fmt.Fprintln(&got, "mount", m.Source, m.Target, m.Flags)
	}
	for _, e := range s.Cache {
		fmt.Fprintln(&got, "cache", e.Name, e.Path)
	}
	fmt.Fprintln(&got, s.Env, s.Notes)
	want := `node HOST/dev/knem /dev/knem
node HOST/dev/xpmem /dev/xpmem
node HOST/dev/cxi0 /dev/cxi0
node HOST/dev/nvidia0 /dev/x0
node HOST/dev/nvidia1 /dev/nvidia1
mount HOST/usr/lib/x86_64-linux-gnu/libcuda.so.550.54.15 /opt/libcuda.so.550.54.15 [ro nosuid]
cache libcuda.so.550.54.15 /opt/libcuda.so.550.54.15
cache libcuda.so.1 /opt/libcuda.so.550.54.15
[VENDOR=1] [additionalGids of CDI devices is ignored hooks of CDI devices are not run]
`
	if got := strings.ReplaceAll(got.String(), h.Dir, "HOST"); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

func TestCDIRefuses(t *testing.T) {
	good := fmt.Sprintf(vendorSpec, "/usr/bin/nvidia-smi")
	tests := []struct {
		name, file, text string
		change           func(h *fakehost.Host)
		device, want     string
	}{
		{name: "unknown", file: "/etc/cdi/a.json", text: good, device: "vendor.com/gpu=2", want: "there are vendor.com/gpu=0, vendor.com/gpu=1"},
		{name: "file for all to write", file: "/etc/cdi/a.json", text: good, change: func(h *fakehost.Host) { chmod(t, h, "/etc/cdi/a.json", 0o666) }, want: "a.json: refused: others may write to it"},
		{name: "directory for all to write", file: "/etc/cdi/a.json", text: good, change: func(h *fakehost.Host) { chmod(t, h, "/etc/cdi", 0o1777) }, want: "/etc/cdi: refused: others may write to it"},
		{name: "garbage", file: "/etc/cdi/a.json", text: "{", want: "/etc/cdi/a.json: unexpected EOF"},
		{name: "other suffix", file: "/etc/cdi/a.txt", text: good, want: "no CDI device is defined"},
		{name: "twice", file: "/etc/cdi/a.json", text: good, change: func(h *fakehost.Host) { h.File("/etc/cdi/b.json", good) }, want: "defined in both"},
		{name: "no such source", file: "/etc/cdi/a.json", text: fmt.Sprintf(vendorSpec, "/nothing"), want: "mount of /nothing: no such file"},
		{name: "device as a mount", file: "/etc/cdi/a.json", text: fmt.Sprintf(vendorSpec, "/dev/nvidia3"), want: "a device is no mount"},
		{name: "file as a node", file: "/etc/cdi/a.json", text: strings.ReplaceAll(good, "/dev/nvidia0", "/etc/ld.so.cache"), want: "not a character device"},
		{name: "another device", file: "/etc/cdi/a.json", text: strings.ReplaceAll(good, `"/dev/nvidia0"`, `"/dev/nvidia0", "major": 195, "minor": 0`), want: "is device 0:0, not 195:0"},
		{name: "not a name", file: "/etc/cdi/a.json", text: good, device: "vendor.com/gpu=../0", want: "neither a path"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := cdiHost(t, tt.file, tt.text)
			if tt.change != nil {
				tt.change(h)
			}
			if tt.device == "" {
				tt.device = "vendor.com/gpu=0"
			}
			_, err := choose(t, h, &gpu.Request{Devices: []string{tt.device}})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// TestCDIOwner: a file of somebody else's is refused.
func TestCDIOwner(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	h := cdiHost(t, "/etc/cdi/a.json", fmt.Sprintf(vendorSpec, "/usr/bin/nvidia-smi"))
	if err := os.Chown(filepath.Join(h.Dir, "etc/cdi/a.json"), 23456, 0); err != nil {
		t.Fatal(err)
	}
	_, err := choose(t, h, &gpu.Request{Devices: []string{"vendor.com/gpu=0"}})
	if err == nil || !strings.Contains(err.Error(), "belongs to neither root nor you") {
		t.Errorf("got %v", err)
	}
}

// TestCDIOrder: /var/run/cdi wins over /etc/cdi.
func TestCDIOrder(t *testing.T) {
	h := cdiHost(t, "/run/cdi/a.json", fmt.Sprintf(vendorSpec, "/usr/bin/nvidia-smi"))
	h.File("/etc/cdi/a.json", strings.ReplaceAll(fmt.Sprintf(vendorSpec, "/usr/bin/nvidia-smi"), "/dev/x0", "/dev/old"))
	s, err := choose(t, h, &gpu.Request{GPUs: "none", Devices: []string{"vendor.com/gpu=0"}})
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Nodes[len(s.Nodes)-1].Target; got != "/dev/x0" {
		t.Errorf("got %s", got)
	}
}
