// Package fakehost makes directories that look like the root of a host with
// accelerators, for tests. What is in /proc, /sys and /dev is as the drivers
// have it; libraries are empty files.
package fakehost

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/runtime/gpu"
)

// Host is a root directory that is being filled.
type Host struct {
	t     *testing.T
	Dir   string
	cache []gpu.CacheEntry
}

// New starts an empty host, which goes with the test.
func New(t *testing.T) *Host {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return &Host{t: t, Dir: dir}
}

// Hosts are the ones that tests look at, by name.
var Hosts = map[string]func(t *testing.T) *Host{
	"h100": DGXH100, "mig": MIG, "gb200": GB200, "mi300": MI300, "intel": Intel, "none": New, "hostile": Hostile,
}

// Cached returns a function that makes each of Hosts once.
func Cached(t *testing.T) func(name string) *Host {
	made := map[string]*Host{}
	return func(name string) *Host {
		if made[name] == nil {
			made[name] = Hosts[name](t)
		}
		return made[name]
	}
}

func (h *Host) path(name string) string {
	h.t.Helper()
	p := filepath.Join(h.Dir, name)
	h.must(os.MkdirAll(filepath.Dir(p), 0o755))
	return p
}

func (h *Host) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

// Node makes a character device. It is number 0:0, which anybody may make and
// nobody open (vfs_mknod in fs/namei.c).
func (h *Host) Node(names ...string) {
	h.t.Helper()
	for _, name := range names {
		err := unix.Mknod(h.path(name), unix.S_IFCHR|0o666, 0)
		if errors.Is(err, unix.EPERM) {
			h.t.Skip("device nodes cannot be made in " + h.Dir + ": an overlay?")
		}
		h.must(err)
		h.must(os.Chmod(h.path(name), 0o666))
	}
}

// NodeLike makes a device a second time. Only root may.
func (h *Host) NodeLike(name, device string) {
	h.t.Helper()
	var st unix.Stat_t
	h.must(unix.Stat(device, &st))
	_ = os.Remove(h.path(name))
	h.must(unix.Mknod(h.path(name), unix.S_IFCHR|0o666, int(st.Rdev)))
	h.must(os.Chmod(h.path(name), 0o666))
}

// File makes a file.
func (h *Host) File(name, text string) {
	h.t.Helper()
	h.must(os.WriteFile(h.path(name), []byte(text), 0o644))
}

// Link makes a symbolic link.
func (h *Host) Link(name, to string) {
	h.t.Helper()
	h.must(os.Symlink(to, h.path(name)))
}

// Socket makes a socket that nobody listens on.
func (h *Host) Socket(name string) {
	h.t.Helper()
	h.must(os.MkdirAll(filepath.Dir(h.path(name)), 0o755))
	// The name of a socket is short: make it from inside.
	fd, err := unix.Open(filepath.Dir(h.path(name)), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	h.must(err)
	defer unix.Close(fd)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: fmt.Sprintf("/proc/self/fd/%d/%s", fd, filepath.Base(name)), Net: "unix"})
	h.must(err)
	l.SetUnlinkOnClose(false)
	h.must(l.Close())
}

// Library makes a library FILE in a directory with links to it, as a package
// of the driver does, and remembers them for the loader's cache.
func (h *Host) Library(dir, file string, abi gpu.ABI, names ...string) {
	h.t.Helper()
	h.File(filepath.Join(dir, file), "")
	h.cache = append(h.cache, gpu.CacheEntry{Name: file, Path: filepath.Join(dir, file), ABI: abi})
	for _, n := range names {
		h.Link(filepath.Join(dir, n), file)
		h.cache = append(h.cache, gpu.CacheEntry{Name: n, Path: filepath.Join(dir, n), ABI: abi})
	}
}

// Cache writes /etc/ld.so.cache for all libraries.
func (h *Host) Cache() {
	h.t.Helper()
	h.File("/etc/ld.so.cache", string(gpu.MergeCache(nil, h.cache)))
}

// NVIDIA adds a GPU with its node.
func (h *Host) NVIDIA(minor int, bus, uuid, model string) {
	h.t.Helper()
	h.Node(fmt.Sprintf("/dev/nvidia%d", minor))
	h.File("/proc/driver/nvidia/gpus/"+bus+"/information", fmt.Sprintf(
		"Model: \t\t %s\nIRQ:   \t\t 321\nGPU UUID: \t %s\nVideo BIOS: \t 96.00.74.00.1a\nBus Type: \t PCIe\nDMA Size: \t 52 bits\n"+
			"DMA Mask: \t 0xfffffffffffff\nBus Location: \t %s\nDevice Minor: \t %d\nGPU Excluded:\t No\n", model, uuid, bus, minor))
}

// UUID makes up the UUID of a GPU.
func UUID(n int) string { return fmt.Sprintf("GPU-%08x-0000-4000-8000-000000000000", n) }

// Driver adds NVIDIA's driver as Debian's and NVIDIA's packages lay it out.
func (h *Host) Driver(version string) {
	h.t.Helper()
	h.File("/proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  "+version+"  Release Build  (dvs-builder@U16-I1-N07-12-3)  Tue Mar  5 22:23:56 UTC 2024\nGCC version:  gcc version 11.4.0\n")
	h.File("/proc/driver/nvidia/params", "ResmanDebugLevel: 4294967295\nModifyDeviceFiles: 1\nDeviceFileUID: 0\n")
	h.Node("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset")
	abi, dir := gpu.ABIx64, "/usr/lib/x86_64-linux-gnu"
	for _, l := range strings.Fields("libcuda.so:1 libnvidia-ml.so:1 libnvidia-cfg.so:1 libcudadebugger.so:1 libnvidia-opencl.so:1 libnvidia-ptxjitcompiler.so:1 " +
		"libnvidia-allocator.so:1 libnvidia-nvvm.so:4 libnvidia-encode.so:1 libnvcuvid.so:1 libnvidia-opticalflow.so:1 libvdpau_nvidia.so:1 libnvoptix.so:1 " +
		"libGLX_nvidia.so:0 libEGL_nvidia.so:0 libnvidia-fbc.so:1") {
		stem, major, _ := strings.Cut(l, ":")
		h.Library(dir, stem+"."+version, abi, stem+"."+major)
	}
	for _, l := range strings.Fields("libnvidia-gpucomp libnvidia-glcore libnvidia-eglcore libnvidia-glsi libnvidia-tls libnvidia-rtcore libnvidia-glvkspirv") {
		h.Library(dir, l+".so."+version, abi)
	}
	h.Link(dir+"/libcuda.so", "libcuda.so.1")
	h.Library(dir, "libnvidia-egl-gbm.so.1.1.1", abi, "libnvidia-egl-gbm.so.1")
	h.Library(dir, "libcuda.so.470.1", abi) // left from another version
	h.Library(dir, "libc.so.6", abi)
	h.Library("/usr/lib/i386-linux-gnu", "libcuda.so."+version, gpu.ABIx86, "libcuda.so.1")
	h.Cache()
	for _, b := range []string{"nvidia-smi", "nvidia-debugdump", "nvidia-persistenced", "nvidia-cuda-mps-control", "nvidia-cuda-mps-server"} {
		h.File("/usr/bin/"+b, "")
	}
	h.Link("/lib", "usr/lib")
	h.Link("/bin", "usr/bin")
	h.Link("/var/run", "/run")
	h.File("/usr/lib/firmware/nvidia/"+version+"/gsp_ga10x.bin", "")
	h.File("/etc/OpenCL/vendors/nvidia.icd", "libnvidia-opencl.so.1\n")
	h.File("/usr/share/vulkan/icd.d/nvidia_icd.json", "{}\n")
	h.Socket("/run/nvidia-persistenced/socket")
}

// InfiniBand adds adapters mlx5_0 and on.
func (h *Host) InfiniBand(n int) {
	h.t.Helper()
	h.Node("/dev/infiniband/rdma_cm")
	for i := range n {
		name := fmt.Sprintf("mlx5_%d", i)
		h.Node(fmt.Sprintf("/dev/infiniband/uverbs%d", i), fmt.Sprintf("/dev/infiniband/umad%d", i))
		device := fmt.Sprintf("devices/pci0000:%02x/0000:%02x:00.0/", 0x10+i, 0x18+i)
		h.File("/sys/"+device+"infiniband/"+name+"/fw_ver", "28.39.1002\n")
		h.Link("/sys/class/infiniband/"+name, "../../"+device+"infiniband/"+name)
		for class, entry := range map[string]string{"infiniband_verbs": "uverbs", "infiniband_mad": "umad"} {
			entry += strconv.Itoa(i)
			h.File("/sys/"+device+class+"/"+entry+"/ibdev", name+"\n")
			h.Link("/sys/class/"+class+"/"+entry, "../../"+device+class+"/"+entry)
		}
	}
	h.File("/sys/class/infiniband_verbs/abi_version", "6\n")
	h.File("/sys/class/infiniband_mad/abi_version", "5\n")
}

// DGXH100 has eight GPUs, NVSwitches with their fabric manager, and InfiniBand.
// The minor numbers are not in the order of the addresses.
func DGXH100(t *testing.T) *Host {
	t.Helper()
	h := New(t)
	for i, bus := range []string{"1b", "43", "52", "61", "9d", "c3", "d1", "df"} {
		h.NVIDIA(7-i, "0000:"+bus+":00.0", UUID(i), "NVIDIA H100 80GB HBM3")
		h.Node(fmt.Sprintf("/dev/dri/card%d", i+1), fmt.Sprintf("/dev/dri/renderD%d", 128+i))
		h.File(fmt.Sprintf("/sys/bus/pci/devices/0000:%s:00.0/drm/card%d/dev", bus, i+1), "226:1\n")
		h.File(fmt.Sprintf("/sys/bus/pci/devices/0000:%s:00.0/drm/renderD%d/dev", bus, 128+i), "226:128\n")
	}
	h.Node("/dev/dri/card0") // the service processor's
	h.Driver("550.54.15")
	h.Node("/dev/nvidia-nvswitchctl", "/dev/nvidia-nvswitch0", "/dev/nvidia-nvswitch1", "/dev/gdrdrv", "/dev/nvidia-fs0", "/dev/xpmem", "/dev/knem", "/dev/cxi0")
	h.File("/usr/bin/nv-fabricmanager", "")
	h.Socket("/run/nvidia-fabricmanager/socket")
	h.InfiniBand(3)
	return h
}

// MIG has two A100, the first of which is partitioned.
func MIG(t *testing.T) *Host {
	t.Helper()
	h := New(t)
	h.NVIDIA(0, "0000:07:00.0", UUID(0), "NVIDIA A100-SXM4-40GB")
	h.NVIDIA(1, "0000:0f:00.0", UUID(1), "NVIDIA A100-SXM4-40GB")
	h.Driver("535.129.03")
	caps := "/proc/driver/nvidia/capabilities"
	access := func(name string, minor int) {
		h.File(caps+"/"+name, fmt.Sprintf("DeviceFileMinor: %d\nDeviceFileMode: 256\nDeviceFileModify: 1\n", minor))
		h.Node(fmt.Sprintf("/dev/nvidia-caps/nvidia-cap%d", minor))
	}
	access("mig/config", 1)
	access("mig/monitor", 2)
	access("gpu0/mig/gi2/access", 21)
	access("gpu0/mig/gi2/ci0/access", 22)
	access("gpu0/mig/gi11/access", 102)
	access("gpu0/mig/gi11/ci0/access", 103)
	access("gpu0/mig/gi11/ci1/access", 104)
	return h
}

// GB200 has four GPUs and channels to the memory of other nodes.
func GB200(t *testing.T) *Host {
	t.Helper()
	h := New(t)
	for i, bus := range []string{"0008:01:00.0", "0009:01:00.0", "0018:01:00.0", "0019:01:00.0"} {
		h.NVIDIA(i, bus, UUID(i), "NVIDIA GB200")
	}
	h.Driver("570.86.15")
	h.Node("/dev/nvidia-caps-imex-channels/channel0", "/dev/nvidia-caps-imex-channels/channel2047")
	return h
}

func (h *Host) drm(n int, vendor, device string) {
	h.t.Helper()
	card, render := fmt.Sprintf("card%d", n), fmt.Sprintf("renderD%d", 128+n)
	h.Node("/dev/dri/"+card, "/dev/dri/"+render)
	h.File("/sys/devices/"+device+"/vendor", vendor+"\n")
	h.File("/sys/devices/"+device+"/drm/"+card+"/dev", "")
	h.File("/sys/devices/"+device+"/drm/"+render+"/dev", "")
	h.Link("/sys/class/drm/"+render, "../../devices/"+device+"/drm/"+render)
	h.Link("/sys/devices/"+device+"/drm/"+render+"/device", "../../../"+filepath.Base(device))
}

// MI300 has four AMD GPUs and the service processor's display.
func MI300(t *testing.T) *Host {
	t.Helper()
	h := New(t)
	h.Node("/dev/kfd")
	for i := range 4 {
		device := fmt.Sprintf("pci0000:00/0000:%02d:00.0", 10+i)
		h.drm(i, "0x1002", device)
		h.File("/sys/devices/"+device+"/unique_id", fmt.Sprintf("%016x\n", 0xabc0+i))
	}
	h.Node("/dev/dri/card9")
	return h
}

// Intel has one GPU.
func Intel(t *testing.T) *Host {
	t.Helper()
	h := New(t)
	h.drm(0, "0x8086", "pci0000:00/0000:03:00.0")
	return h
}

// Hostile has what no driver makes: garbage, loops, huge files, names that
// climb, links that lead out.
func Hostile(t *testing.T) *Host {
	t.Helper()
	h := New(t)
	h.Node("/dev/nvidia0", "/dev/nvidiactl")
	h.File("/dev/nvidia1", "not a device")
	h.Link("/dev/nvidia2", "nvidia2")
	h.Link("/dev/nvidia3", "/dev/null") // the host's, were it not for the root
	h.File("/proc/driver/nvidia/gpus/0000:01:00.0/information", "Device Minor: 0\nDevice Minor: -1\nGPU UUID: GPU-../../..\n")
	h.File("/proc/driver/nvidia/gpus/0000:02:00.0/information", "Device Minor: 0/../../null\n")
	h.File("/proc/driver/nvidia/gpus/0000:03:00.0/information", "Device Minor: 0\nModel: x\x1b]0;owned\a\n")
	h.Link("/proc/driver/nvidia/gpus/0000:04:00.0", "../gpus")
	h.File("/proc/driver/nvidia/version", "NVRM version: x  1.2/../../3  550.54.15\n")
	h.File("/proc/driver/nvidia/capabilities/gpu0/mig/gi0/access", "DeviceFileMinor: 99999999999999999999\n")
	h.File("/proc/driver/nvidia/capabilities/gpu0/mig/gi0/ci-1/access", "")
	h.File("/etc/ld.so.cache", strings.Repeat("glibc-ld.so.cache1.1\xff\xff\xff\xff", 1000))
	h.Link("/usr/lib64/libcuda.so.1", "libcuda.so.2")
	h.Link("/usr/lib64/libcuda.so.2", "libcuda.so.1")
	h.Link("/usr/lib64/libnvidia-ml.so.1", "../../../../../../../../../etc/passwd")
	h.must(unix.Mkfifo(h.path("/usr/lib64/libnvidia-cfg.so.550.54.15"), 0o644))
	big := h.path("/usr/bin/nvidia-smi")
	h.must(os.WriteFile(big, nil, 0o644))
	h.must(os.Truncate(big, 1<<40))
	return h
}
