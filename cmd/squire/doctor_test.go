package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/fusefs/noded"
)

// healthy is a host where all is well, below a directory that the test may spoil.
func healthy(t *testing.T) *doctor {
	t.Helper()
	useSite(t, nil)
	d := &doctor{
		root: t.TempDir(), release: func() string { return "6.18.1-generic" }, probe: func() probeResult { return probeResult{} },
		services: func() ([]seen, error) { return []seen{{Report: noded.Report{Version: versionString(), PID: 5}}}, nil },
	}
	for name, text := range map[string]string{
		"proc/sys/user/max_user_namespaces": "65536\n",
		"proc/sys/user/max_mnt_namespaces":  "65536\n",
		"proc/5/cgroup":                     "0::/system.slice/squire.service\n",
		"usr/bin/fusermount3":               "",
		"usr/local/bin/squire":              "",
		"etc/slurm/slurm.conf":              "ClusterName=x\nProctrackType=proctrack/cgroup # why not\n",
		"etc/slurm/plugstack.conf":          "# plugins\ninclude plugstack.conf.d/*.conf\n",
		"etc/slurm/plugstack.conf.d/s.conf": "required /usr/lib/slurm/spank_squire.so\n",
	} {
		d.write(t, name, text)
	}
	mode := map[string]os.FileMode{"usr/bin/fusermount3": 0o755 | os.ModeSetuid, "usr/local/bin/squire": 0o755}
	for name, m := range mode {
		if err := os.Chmod(d.path(name), m); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(d.path("dev"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mknod(d.path("dev/fuse"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		t.Skip("needs a device node:", err)
	}
	if err := os.Chmod(d.path("dev/fuse"), 0o666); err != nil {
		t.Fatal(err)
	}
	return d
}

func (d *doctor) write(t *testing.T, name, text string) {
	t.Helper()
	name = d.path(name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), 0o644)); err != nil {
		t.Fatal(err)
	}
}

// of is what was found about something.
func (d *doctor) of(check string) finding {
	i := slices.IndexFunc(d.findings, func(f finding) bool { return f.Check == check })
	if i < 0 {
		return finding{}
	}
	return d.findings[i]
}

// Directories of the site's that users cannot make are found.
func TestDoctorPlaces(t *testing.T) {
	needRoot(t)
	d := healthy(t)
	useSite(t, map[string]string{"squire.toml": "data = \"/scratch/squire/%U\"\ncache = \"/scratch/cache/%U\"\n"})
	if err := os.MkdirAll(d.path("scratch/cache"), 0o777); err != nil {
		t.Fatal(err)
	}
	d.places()
	if f := d.of("data"); f.State != findingWarning || f.Mend != "install -d -m 1777 /scratch/squire" || !strings.Contains(f.Text, "/scratch/squire is missing") {
		t.Errorf("%+v, want that the directory is missing", f)
	}
	if f := d.of("cache"); f.State != findingOK {
		t.Errorf("%+v, want that all is well", f)
	}
}

// What is wrong is found, in its own check alone, and there is a word on how to mend it.
func TestDoctor(t *testing.T) {
	needRoot(t)
	well := healthy(t)
	well.examine()
	var usual []string // that are no better on any machine of tests
	for _, f := range well.findings {
		if f.State != findingOK {
			usual = append(usual, f.Check)
		}
		if f.State == findingFailed {
			t.Errorf("failed where all is well: %+v", f)
		}
	}
	for _, tt := range []struct {
		name  string
		check string
		state findingState
		text  string
		spoil func(t *testing.T, d *doctor)
	}{
		{"old kernel", "kernel", findingFailed, "4.18", func(_ *testing.T, d *doctor) { d.release = func() string { return "4.18.0-el8" } }},
		{"kernel without resend", "kernel", findingNote, "reads under way fail", func(_ *testing.T, d *doctor) { d.release = func() string { return "6.8.0" } }},
		{"kernel without idmap", "kernel", findingNote, "once for each user", func(_ *testing.T, d *doctor) { d.release = func() string { return "6.9" } }},
		{"no fuse", "fuse", findingFailed, "no /dev/fuse", func(t *testing.T, d *doctor) { d.alone(t).remove(t, "dev/fuse") }},
		{"closed fuse", "fuse", findingWarning, "mode 0600", func(t *testing.T, d *doctor) { d.chmod(t, "dev/fuse", 0o600) }},
		{"forbidden fuse", "fuse", findingWarning, "operation not permitted", func(_ *testing.T, d *doctor) { d.probed(probeResult{Device: "operation not permitted"}) }},
		{"switched off", "namespaces", findingFailed, "user.max_user_namespaces is 0", func(t *testing.T, d *doctor) {
			d.write(t, "proc/sys/user/max_user_namespaces", "0\n")
			d.probed(probeResult{Namespace: "no space left on device"})
		}},
		{"AppArmor", "namespaces", findingFailed, "apparmor_restrict", func(t *testing.T, d *doctor) {
			d.write(t, "proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1\n")
			d.probed(probeResult{Namespace: "permission denied"})
		}},
		{"forbidden", "namespaces", findingFailed, "permission denied", func(_ *testing.T, d *doctor) { d.probed(probeResult{Namespace: "permission denied"}) }},
		{"few namespaces", "namespaces", findingWarning, "is 10", func(t *testing.T, d *doctor) { d.write(t, "proc/sys/user/max_mnt_namespaces", "10\n") }},
		{"no overlay", "overlayfs", findingWarning, "no such device", func(_ *testing.T, d *doctor) { d.probed(probeResult{Overlay: "no such device"}) }},
		{"no fusermount", "fusermount3", findingNote, "is not there", func(t *testing.T, d *doctor) { d.remove(t, "usr/bin/fusermount3") }},
		{"weak fusermount", "fusermount3", findingWarning, "not set-user-ID", func(t *testing.T, d *doctor) { d.alone(t).chmod(t, "usr/bin/fusermount3", 0o755) }},
		{"no service", "service", findingNote, "no service", func(t *testing.T, d *doctor) { d.alone(t) }},
		{"dead service", "service", findingWarning, "does not answer: x", func(_ *testing.T, d *doctor) { d.services = func() ([]seen, error) { return nil, errors.New("x") } }},
		{"old service", "service", findingWarning, "version 0.0.1", func(_ *testing.T, d *doctor) {
			d.services = func() ([]seen, error) { return []seen{{Report: noded.Report{Version: "0.0.1"}}}, nil }
		}},
		{"service in a job", "service", findingWarning, "cgroup of a job", func(t *testing.T, d *doctor) {
			d.write(t, "proc/5/cgroup", "0::/system.slice/slurmstepd.scope/job_12/step_0/user/task_0\n")
		}},
		{"service in a job of 26.05", "service", findingWarning, "cgroup of a job", func(t *testing.T, d *doctor) {
			d.write(t, "proc/5/cgroup", "0::/system.slice/slurmstepd.scope/sEKNKTV3WPV500/step_0/user/task_0\n")
		}},
		{"bad policy", "site", findingFailed, `unknown key "x"`, func(t *testing.T, _ *doctor) { useSite(t, map[string]string{policyName: "x = 1\n"}) }},
		{"a policy", "site", findingOK, "images in /images; writable forbid", func(t *testing.T, _ *doctor) {
			useSite(t, map[string]string{policyName: "[images]\ndirectories = ['/images']\n[containers]\nwritable = 'forbid'\n"})
		}},
		{"bad mounts", "mounts.d", findingFailed, "a.fstab: line 1", func(t *testing.T, _ *doctor) { useSite(t, map[string]string{"mounts.d/a.fstab": "/no/such /x\n"}) }},
		{"no driver", "gpus", findingWarning, "1 GPU of NVIDIA without a driver", func(t *testing.T, d *doctor) {
			d.write(t, "sys/bus/pci/devices/0000:01:00.0/vendor", "0x10de\n")
			d.write(t, "sys/bus/pci/devices/0000:01:00.0/class", "0x030200\n")
		}},
		{"no Slurm", "slurm", findingNote, "no Slurm here", func(t *testing.T, d *doctor) { d.remove(t, "etc/slurm/slurm.conf") }},
		{"no plugstack", "slurm", findingNote, "no plugstack.conf", func(t *testing.T, d *doctor) { d.remove(t, "etc/slurm/plugstack.conf") }},
		{"no line", "slurm", findingNote, "does not have spank_squire.so", func(t *testing.T, d *doctor) { d.write(t, "etc/slurm/plugstack.conf", "optional /x/other.so\n") }},
		{"pyxis too", "slurm", findingWarning, "spank_pyxis.so too", func(t *testing.T, d *doctor) {
			d.write(t, "etc/slurm/plugstack.conf.d/p.conf", "required /usr/lib/slurm/spank_pyxis.so\n")
		}},
		{"no plugin", "slurm", findingWarning, "no such file", func(*testing.T, *doctor) {}},
		{"no ELF", "slurm", findingWarning, "spank_squire.so: ", func(t *testing.T, d *doctor) { d.write(t, "usr/lib/slurm/spank_squire.so", "text") }},
		{"circle", "slurm", findingNote, "too deep", func(t *testing.T, d *doctor) {
			d.write(t, "etc/slurm/plugstack.conf.d/c.conf", "include /etc/slurm/plugstack.conf\n")
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := healthy(t)
			tt.spoil(t, d)
			d.examine()
			got := d.of(tt.check)
			if got.State != tt.state || !strings.Contains(got.Text, tt.text) {
				t.Errorf("%+v, want %s with %q", got, tt.state, tt.text)
			}
			for _, f := range d.findings {
				if f.State != findingOK && f.Check != tt.check && !slices.Contains(usual, f.Check) && f.Check != "service" && f.Check != "fuse" {
					t.Errorf("another was found: %+v", f)
				}
			}
		})
	}
}

func (d *doctor) probed(r probeResult) { d.probe = func() probeResult { return r } }

// alone takes the service away.
func (d *doctor) alone(*testing.T) *doctor {
	d.services = func() ([]seen, error) { return nil, nil }
	return d
}

func (d *doctor) remove(t *testing.T, name string) {
	t.Helper()
	if err := os.Remove(d.path(name)); err != nil {
		t.Fatal(err)
	}
}

func (d *doctor) chmod(t *testing.T, name string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(d.path(name), mode); err != nil {
		t.Fatal(err)
	}
}

// What is printed is for people, or for programs; the status says whether something failed.
func TestDoctorTell(t *testing.T) {
	d := new(doctor)
	d.ok("kernel", "Linux %s", "6.18")
	d.found("service", findingWarning, "start it", "is gone\x1b[31m")
	var out bytes.Buffer
	if err := d.tell(&out, false); err != nil {
		t.Error(err)
	}
	if got := out.String(); !strings.Contains(got, "ok       kernel: Linux 6.18\nwarning  service: is gone") || strings.Contains(got, "\x1b") || !strings.HasSuffix(got, "start it\n") {
		t.Errorf("%q", got)
	}
	d.found("fuse", findingFailed, "", "no")
	out.Reset()
	if err := d.tell(&out, true); !errors.Is(err, exitError(1)) {
		t.Errorf("error %v", err)
	}
	var list []finding
	if err := json.Unmarshal(out.Bytes(), &list); err != nil || len(list) != 3 || list[1].Mend != "start it" || list[2].State != findingFailed {
		t.Errorf("%v: %s", err, out.Bytes())
	}
}

// This host is one where containers work, or these tests could not run; the attempt says so, and leaves nothing behind.
func TestDoctorProbe(t *testing.T) {
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("needs FUSE")
	}
	r := probe()
	if r.Namespace != "" {
		t.Skip("needs user namespaces:", r.Namespace)
	}
	if r.Device == "" && r.FUSE != "" || r.Overlay != "" {
		t.Errorf("%+v", r)
	}
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || bytes.Contains(mounts, []byte("upperdir=/tmp/upper")) {
		t.Errorf("a mount is left: %v\n%s", err, mounts)
	}
}

// A plugin says which Slurm it was built for; one that was built for another, or that others can write to, is found.
func TestDoctorPlugin(t *testing.T) {
	needRoot(t)
	var plugin string
	for _, dir := range pluginDirs {
		if names, _ := filepath.Glob(filepath.Join(dir, "select_*.so")); len(names) > 0 {
			plugin = names[0]
			break
		}
	}
	if plugin == "" {
		t.Skip("needs Slurm's plugins")
	}
	built, err := pluginVersion(plugin)
	if err != nil || built.major < 20 {
		t.Fatalf("%s: %v, %v", plugin, built, err)
	}
	text, err := os.ReadFile(plugin)
	if err != nil {
		t.Fatal(err)
	}
	const ours = "usr/lib/slurm/spank_squire.so"
	for _, tt := range []struct {
		state findingState
		text  string
		spoil func(d *doctor)
	}{
		{findingOK, "spank_squire.so for Slurm", func(*doctor) {}},
		{findingWarning, "others than root can write", func(d *doctor) { d.chmod(t, ours, 0o666) }},
		{findingWarning, "not a program of root's", func(d *doctor) { d.chmod(t, "usr/local/bin/squire", 0o644) }},
		{findingWarning, "which is not a program", func(d *doctor) {
			d.write(t, "etc/slurm/plugstack.conf.d/s.conf", "required spank_squire.so squire=/opt/squire\n")
		}},
		{findingWarning, "by their group", func(d *doctor) { d.write(t, "etc/slurm/slurm.conf", "proctracktype=proctrack/pgid\n") }},
		{findingWarning, "was built for Slurm", func(d *doctor) {
			// The version follows the type in the plugin's data; another one takes its place.
			other := bytes.ReplaceAll(text, versionBytes(built), versionBytes(version2{built.major - 1, built.minor}))
			d.write(t, "usr/lib/slurm/select_x.so", string(other))
		}},
	} {
		d := healthy(t)
		d.write(t, ours, string(text))
		tt.spoil(d)
		d.slurm()
		if got := d.of("slurm"); got.State != tt.state || !strings.Contains(got.Text, tt.text) {
			t.Errorf("%+v, want %s with %q", got, tt.state, tt.text)
		}
	}
}

// Of several Slurms the one in PATH is the one that is used, wherever a link to it is.
func TestSlurmPlugins(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"slurm/bin", "bin"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	srun := filepath.Join(dir, "slurm/bin/srun")
	if err := errors.Join(os.WriteFile(srun, nil, 0o755), os.Symlink(srun, filepath.Join(dir, "bin/srun"))); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", filepath.Join(dir, "bin"))
	if got := slurmPlugins(""); !slices.Contains(got[:2], filepath.Join(dir, "slurm/lib/slurm")) {
		t.Errorf("%q", got)
	}
	if got := slurmPlugins("/a:/b"); !slices.Equal(got, []string{"/a", "/b"}) {
		t.Errorf("PluginDir: %q", got)
	}
}

// versionBytes is a version as a plugin has it, but for the last number.
func versionBytes(v version2) []byte { return []byte{byte(v.minor), byte(v.major), 0} }

func TestPluginProgram(t *testing.T) {
	for _, tt := range []struct {
		plugin spankPlugin
		want   string
	}{
		{spankPlugin{"/usr/local/lib/squire/spank_squire.so", nil}, "/usr/local/bin/squire"},
		{spankPlugin{"/opt/squire/lib/squire/spank_squire.so", nil}, "/opt/squire/bin/squire"},
		{spankPlugin{"/opt/lib/squire/spank_squire.so", []string{"batch=host", "squire=/sw/squire"}}, "/sw/squire"},
		{spankPlugin{"/usr/lib/slurm/spank_squire.so", nil}, "/usr/local/bin/squire"},
		{spankPlugin{"spank_squire.so", nil}, "/usr/local/bin/squire"},
	} {
		if got := tt.plugin.program(); got != tt.want {
			t.Errorf("%v: %s, want %s", tt.plugin, got, tt.want)
		}
	}
}
