package runtime

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"testing"

	"github.com/squirefs/squire/runtime/gpu"
	"github.com/squirefs/squire/runtime/gpu/fakehost"
)

// devicePlan is the part of a plan that the devices of a fake host make, with
// what else a Set says.
func devicePlan(t *testing.T, h *fakehost.Host, r *gpu.Request) string {
	t.Helper()
	found, err := gpu.Discover(h.Dir)
	if err != nil {
		t.Fatal(err)
	}
	defer found.Close()
	set, err := found.Choose(r)
	if err != nil {
		return "error: " + err.Error() + "\n"
	}
	ops, err := Plan(&Spec{Image: "/i.sqsh", Devices: set}, &Host{UID: 1000, GID: 1000})
	if err != nil {
		t.Fatal(err)
	}
	plain, err := Plan(&Spec{Image: "/i.sqsh"}, &Host{UID: 1000, GID: 1000})
	if err != nil {
		t.Fatal(err)
	}
	without := map[string]bool{}
	for _, op := range plain {
		without[op.String()] = true
	}
	var b strings.Builder
	for _, op := range ops {
		line := op.String()
		if op.Do == OpCache { // one a line
			line = Op{Do: op.Do, Target: op.Target, Flags: op.Flags}.String() + "\n\t" + strings.Join(op.Args, "\n\t")
		}
		if !without[op.String()] {
			b.WriteString(line + "\n")
		}
	}
	for _, l := range []struct {
		what string
		list []string
	}{{"env", set.Env}, {"unset", set.Unset}, {"note", set.Notes}} {
		for _, s := range l.list {
			b.WriteString(l.what + " " + s + "\n")
		}
	}
	return strings.ReplaceAll(b.String(), h.Dir, "HOST")
}

// TestDevicePlans compares the plans for hosts of many kinds with those in
// testdata/devices.
func TestDevicePlans(t *testing.T) {
	if goruntime.GOARCH != "amd64" {
		t.Skip("the hosts have libraries of amd64")
	}
	env := func(kvs ...string) *gpu.Request { return &gpu.Request{Environ: kvs} }
	tests := []struct {
		host, name string
		r          *gpu.Request
	}{
		{"h100", "default", env()},
		{"h100", "none", &gpu.Request{GPUs: "none"}},
		{"h100", "two", &gpu.Request{GPUs: "7," + fakehost.UUID(2), Environ: []string{"CUDA_VISIBLE_DEVICES=2,0,7", "NVIDIA_DRIVER_CAPABILITIES=compute,utility", "MELLANOX_VISIBLE_DEVICES=1,mlx5_2"}}},
		{"h100", "root", &gpu.Request{GPUs: "0", Root: true, Environ: []string{"NVIDIA_DRIVER_CAPABILITIES=utility"}}},
		{"h100", "slurm", env("SLURM_JOB_GPUS=0-7", "SLURM_STEP_GPUS=1,3", "CUDA_VISIBLE_DEVICES=3", "NVIDIA_DRIVER_CAPABILITIES=compat32,compute")},
		{"mig", "instance", &gpu.Request{GPUs: "0:1", Environ: []string{"NVIDIA_DRIVER_CAPABILITIES=utility"}}},
		{"mig", "default", env("NVIDIA_DRIVER_CAPABILITIES=utility")},
		{"gb200", "all", &gpu.Request{GPUs: "all", Environ: []string{"NVIDIA_DRIVER_CAPABILITIES=compute"}}},
		{"mi300", "default", env()},
		{"mi300", "one", env("ROCR_VISIBLE_DEVICES=2")},
		{"intel", "all", &gpu.Request{GPUs: "all"}},
		{"none", "default", env("CUDA_VISIBLE_DEVICES=0", "NVIDIA_VISIBLE_DEVICES=all", "SLURM_JOB_GPUS=0")},
		{"none", "all", &gpu.Request{GPUs: "all"}},
		{"hostile", "default", env()},
		{"hostile", "all", &gpu.Request{GPUs: "all"}},
		{"hostile", "missing", &gpu.Request{GPUs: "1"}},
	}
	hosts := fakehost.Cached(t)
	for _, tt := range tests {
		t.Run(tt.host+"-"+tt.name, func(t *testing.T) {
			got := devicePlan(t, hosts(tt.host), tt.r)
			golden := filepath.Join("testdata", "devices", tt.host+"-"+tt.name+".plan")
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

// fakeHostEnv names the root directory in which a test's runner looks for devices,
// gpusEnv what it asks for.
const (
	fakeHostEnv = "SQUIRE_TEST_HOST"
	gpusEnv     = "SQUIRE_TEST_GPUS"
	classEnv    = "SQUIRE_TEST_CLASS" // a directory of sysfs, of which one entry is chosen
)

// addDevices does what "squire run --gpus" does.
func addDevices(s *Spec) error {
	if dir := os.Getenv(classEnv); dir != "" {
		s.Devices = &gpu.Set{Classes: []gpu.Class{{
			Dir: dir, Links: []gpu.Link{{Name: "null", Target: "/sys/devices/virtual/mem/null"}}, Texts: []gpu.Link{{Name: "abi_version", Target: "6"}},
		}}}
		return nil
	}
	dir := os.Getenv(fakeHostEnv)
	if dir == "" {
		return nil
	}
	host, err := gpu.Discover(dir)
	if err != nil {
		return err
	}
	defer host.Close()
	s.Devices, err = host.Choose(&gpu.Request{GPUs: os.Getenv(gpusEnv), Environ: s.Environ})
	return err
}

// cProgram compiles a C source. Extra arguments go to gcc.
func cProgram(t *testing.T, out, source string, args ...string) {
	t.Helper()
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		t.Skip("needs gcc")
	}
	if err = os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(gcc, append([]string{"-o", out, "-x", "c", "-", "-x", "none"}, args...)...)
	cmd.Stdin = strings.NewReader(source)
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v: %s", err, msg)
	}
}

// driverHost is a host with one GPU whose driver's libraries can be loaded, but
// do nothing. libcuda needs another one of them.
func driverHost(t *testing.T) *fakehost.Host {
	t.Helper()
	h := fakehost.New(t)
	h.NVIDIA(0, "0000:01:00.0", fakehost.UUID(0), "NVIDIA H100")
	h.NVIDIA(1, "0000:02:00.0", fakehost.UUID(1), "NVIDIA H100")
	h.Driver("550.54.15")
	dir := filepath.Join(h.Dir, "usr/lib/x86_64-linux-gnu")
	cProgram(t, dir+"/libnvidia-ptxjitcompiler.so.550.54.15", "int jit(void) { return 42; }", "-shared", "-fPIC", "-Wl,-soname,libnvidia-ptxjitcompiler.so.1")
	cProgram(t, dir+"/libcuda.so.550.54.15", "int jit(void); int cuInit(int f) { return jit(); }", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1",
		dir+"/libnvidia-ptxjitcompiler.so.550.54.15")
	h.File("/usr/bin/nvidia-smi", "#!/bin/sh\necho smi\n")
	if err := os.Chmod(filepath.Join(h.Dir, "usr/bin/nvidia-smi"), 0o755); err != nil {
		t.Fatal(err)
	}
	return h
}

// addLoader puts glibc's loader and library and a program into a root, with a
// cache made by the host's ldconfig if there is to be one.
func addLoader(t *testing.T, root string, cache bool) {
	t.Helper()
	cProgram(t, root+"/bin/cuda", `
#include <dlfcn.h>
#include <stdio.h>
int main(int n, char **a) {
	void *h = dlopen(a[1], RTLD_NOW);
	if (!h) return puts(dlerror()), 1;
	return printf("%d\n", ((int (*)(int))dlsym(h, "cuInit"))(0)) < 0;
}`, "-ldl")
	out, err := exec.Command("ldd", root+"/bin/cuda").Output()
	if err != nil {
		t.Skip("ldd: ", err)
	}
	for _, f := range strings.Fields(string(out)) {
		if !filepath.IsAbs(f) {
			continue
		}
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if err = os.MkdirAll(filepath.Join(root, filepath.Dir(f)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err = os.WriteFile(filepath.Join(root, f), b, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if cache {
		if out, err := exec.Command("/sbin/ldconfig", "-r", root).CombinedOutput(); err != nil {
			t.Skipf("ldconfig: %v: %s", err, out)
		}
	}
}

// TestDriver loads libraries of a driver in a container, in which they are found
// without LD_LIBRARY_PATH, by their names with and without version.
func TestDriver(t *testing.T) {
	if goruntime.GOARCH != "amd64" {
		t.Skip("the host has libraries of amd64")
	}
	host := driverHost(t)
	if err := openForAll(host.Dir); err != nil {
		t.Fatal(err)
	}
	const script = `
cuda libcuda.so.1; cuda libcuda.so; cd /; nvidia-smi; /usr/bin/nvidia-smi
ls /dev/nvidia*[0-9] /dev/nvidiactl; echo LD=$LD_LIBRARY_PATH; env -i /bin/cuda libcuda.so.1
touch /dev/squire/nvidia/lib64/libcuda.so.1 2>&1 | grep -c Read-only`
	const want = "42\n42\nsmi\nsmi\n/dev/nvidia1\n/dev/nvidiactl\nLD=\n42\n1"
	for _, kind := range []string{"read-only", "writable", "no cache"} {
		t.Run(kind, func(t *testing.T) {
			forUsers(t, func(t *testing.T, w who, root string) {
				addLoader(t, root, kind != "no cache")
				if err := chownAll(root, w.uid); err != nil {
					t.Fatal(err)
				}
				t.Setenv(fakeHostEnv, host.Dir)
				t.Setenv(gpusEnv, "1")
				if got := sh(t, w, Spec{Dir: root, Workdir: "/bin", Writable: kind == "writable"}, script); got != want {
					t.Errorf("got:\n%s\nwant:\n%s", got, want)
				}
			})
		})
	}
}

// A directory of sysfs has what was chosen of it, and the files that it has beside adapters. The kernel's memory devices
// stand in for those of InfiniBand.
func TestDeviceClasses(t *testing.T) {
	const dir = "/sys/class/mem"
	if _, err := os.Stat(dir + "/zero"); err != nil {
		t.Skip(err)
	}
	forUsers(t, func(t *testing.T, w who, root string) {
		t.Setenv(classEnv, dir)
		got := sh(t, w, Spec{Dir: root}, "ls "+dir+"; cat "+dir+"/null/dev "+dir+"/abi_version")
		if want := "abi_version\nnull\n1:3\n6"; got != want {
			t.Errorf("got:\n%s\nwant:\n%s", got, want)
		}
	})
}

// TestDriverWithoutLayer: where an image's directories belong to somebody who
// has no id in the container, nothing can be made in them, and variables stand in.
func TestDriverWithoutLayer(t *testing.T) {
	if goruntime.GOARCH != "amd64" || os.Getuid() != 0 {
		t.Skip("needs root, on amd64")
	}
	host := driverHost(t)
	if err := openForAll(host.Dir); err != nil {
		t.Fatal(err)
	}
	w := who{"user", plainUID}
	if !mayUnshare(w) {
		t.Skip("user namespaces are not allowed here: " + namespaceHint())
	}
	root := makeRoot(t, who{"root", 0}, needBusybox(t))
	addLoader(t, root, false)
	if err := os.MkdirAll(filepath.Join(root, "usr/bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"etc/resolv.conf", "etc/hosts"} { // these have to have a place
		if err := os.WriteFile(filepath.Join(root, f), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv(fakeHostEnv, host.Dir)
	got := sh(t, w, Spec{Dir: root, Environ: []string{"LD_LIBRARY_PATH=/opt/lib"}}, "cuda libcuda.so.1; nvidia-smi; echo $LD_LIBRARY_PATH $PATH")
	if want := "42\nsmi\n/opt/lib:" + driverDir + "/lib64 " + DefaultPath + ":" + driverDir + "/bin"; got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

// TestDriverAndHostileImage: links in an image where the driver's links and the
// loader's cache go must not lead to the host.
func TestDriverAndHostileImage(t *testing.T) {
	if goruntime.GOARCH != "amd64" {
		t.Skip("the host has libraries of amd64")
	}
	host := driverHost(t)
	if err := openForAll(host.Dir); err != nil {
		t.Fatal(err)
	}
	forUsers(t, func(t *testing.T, w who, root string) {
		trap := publicDir(t, w) // below /tmp, which is the host's inside
		t.Setenv(fakeHostEnv, host.Dir)
		for name, to := range map[string]string{"usr": trap, "run": trap, "lib": trap} {
			if err := os.Symlink(to, filepath.Join(root, name)); err != nil {
				t.Fatal(err)
			}
		}
		for _, cache := range []string{trap + "/cache", "/proc/1/root" + trap + "/cache", "/dev/zero", "ld.so.cache"} {
			os.Remove(filepath.Join(root, "etc/ld.so.cache"))
			if err := os.Symlink(cache, filepath.Join(root, "etc/ld.so.cache")); err != nil {
				t.Fatal(err)
			}
			for _, writable := range []bool{false, true} {
				sh(t, w, Spec{Dir: root, Writable: writable}, "ls /dev/squire/nvidia/lib64/libcuda.so.1")
			}
		}
		names, err := os.ReadDir(trap)
		if err != nil {
			t.Fatal(err)
		}
		if len(names) > 0 {
			t.Errorf("the image made %v on the host", names)
		}
	})
}

func chownAll(root string, uid int) error {
	return filepath.Walk(root, func(p string, _ os.FileInfo, err error) error {
		return errors.Join(err, os.Lchown(p, uid, uid))
	})
}

// openForAll lets other users reach a directory of testing's.
func openForAll(dir string) error {
	var err error
	for ; strings.HasPrefix(dir, os.TempDir()+"/"); dir = filepath.Dir(dir) {
		err = errors.Join(err, os.Chmod(dir, 0o755))
	}
	return err
}
