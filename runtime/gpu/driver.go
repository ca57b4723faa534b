package gpu

import (
	"path"
	goruntime "runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// The user's half of NVIDIA's driver has to be of the same version as the
// kernel's half, so it is the host's, never the image's. Which files belong to
// it, and to which capability, follows libnvidia-container and
// nvidia-container-toolkit, which define NVIDIA_DRIVER_CAPABILITIES.

// Library is a file of a driver for the dynamic loader.
type Library struct {
	Source string   // on the host, without links
	File   string   // its name there: libcuda.so.550.54.15
	Names  []string // what programs ask for: libcuda.so.1, libcuda.so
	ABI    ABI
}

// File is a file, directory or socket of a driver.
type File struct {
	Source string // on the host, without links
	Name   string // below the driver's directory: bin/nvidia-smi
	Link   string // where programs look for it: /usr/bin/nvidia-smi
}

// Driver is the user's half of NVIDIA's driver.
type Driver struct {
	Version   string
	Libraries []Library
	Files     []File
}

// capability is one word of NVIDIA_DRIVER_CAPABILITIES.
type capability string

const (
	compute  capability = "compute"
	utility  capability = "utility"
	video    capability = "video"
	graphics capability = "graphics"
	display  capability = "display" // the files of graphics, and nvidia-modeset
	compat32 capability = "compat32"
)

// defaultCapabilities: enroot's default, utility, makes programs fail that
// find their GPU and not libcuda. Files that are not read cost next to nothing.
var defaultCapabilities = []capability{compute, utility, video, graphics}

var allCapabilities = []capability{compute, utility, video, graphics, display, compat32}

// libraryStems are names of libraries up to ".so", by capability. (Not maps:
// those are filled at every start of the program.)
var libraryStems = [...]struct {
	capability
	stems []string
}{
	{utility, []string{"libnvidia-ml", "libnvidia-cfg", "libnvidia-nscq", "libnvidia-sandboxutils"}},
	{compute, []string{
		"libcuda", "libcudadebugger", "libnvidia-opencl", "libnvidia-gpucomp", "libnvidia-ptxjitcompiler",
		"libnvidia-fatbinaryloader", "libnvidia-allocator", "libnvidia-compiler", "libnvidia-pkcs11",
		"libnvidia-pkcs11-openssl3", "libnvidia-nvvm", "libnvidia-nvvm70", "libnvidia-tileiras",
	}},
	{video, []string{"libvdpau_nvidia", "libnvidia-encode", "libnvidia-opticalflow", "libnvcuvid"}},
	{graphics, []string{
		"libnvidia-eglcore", "libnvidia-glcore", "libnvidia-tls", "libnvidia-glsi", "libnvidia-fbc", "libnvidia-ifr",
		"libnvidia-rtcore", "libnvoptix", "libGLX_nvidia", "libEGL_nvidia", "libGLESv2_nvidia", "libGLESv1_CM_nvidia",
		"libnvidia-glvkspirv", "libnvidia-cbl", "libnvidia-gpucomp", "libnvidia-ngx", "libnvidia-vulkan-producer",
		"libnvidia-egl-gbm", "libnvidia-egl-wayland", "libnvidia-egl-wayland2", "libnvidia-egl-xcb", "libnvidia-egl-xlib",
		"libnvidia-api",
	}},
}

// ownVersion are libraries of the driver that count their versions themselves.
var ownVersion = []string{
	"libnvidia-egl-gbm", "libnvidia-egl-wayland", "libnvidia-egl-wayland2", "libnvidia-egl-xcb", "libnvidia-egl-xlib",
	"libnvidia-nvvm70", "libnvidia-api",
}

// moreName is a link to a library that its SONAME does not account for.
func moreName(stem string) string {
	switch stem {
	case "libcuda", "libnvidia-opticalflow":
		return stem + ".so"
	case "libGLX_nvidia":
		return "libGLX_indirect.so.0"
	}
	return ""
}

var binaries = [...]struct {
	capability
	names []string
}{
	{utility, []string{"nvidia-smi", "nvidia-debugdump", "nvidia-persistenced", "nv-fabricmanager"}},
	{compute, []string{"nvidia-cuda-mps-control", "nvidia-cuda-mps-server"}},
}

var binaryDirs = []string{"/usr/bin", "/usr/sbin", "/usr/local/bin", "/bin", "/opt/bin", "/run/current-system/sw/bin"}

// configs are read by loaders of the image's, at these places.
var configs = [...]struct {
	capability
	files []string
}{
	{compute, []string{"/etc/OpenCL/vendors/nvidia.icd"}},
	{graphics, []string{
		"/usr/share/glvnd/egl_vendor.d/10_nvidia.json", "/usr/share/nvidia/nvoptix.bin",
		"/usr/share/egl/egl_external_platform.d/10_nvidia_wayland.json",
		"/usr/share/egl/egl_external_platform.d/15_nvidia_gbm.json",
		"/usr/share/vulkan/icd.d/nvidia_icd.json", "/etc/vulkan/icd.d/nvidia_icd.json",
		"/usr/share/vulkan/icd.d/nvidia_icd.x86_64.json", "/usr/share/vulkan/icd.d/nvidia_icd.aarch64.json",
		"/usr/share/vulkan/implicit_layer.d/nvidia_layers.json", "/etc/vulkan/implicit_layer.d/nvidia_layers.json",
	}},
}

// sockets of the driver's services.
var sockets = []string{"/run/nvidia-persistenced/socket", "/run/nvidia-fabricmanager/socket"}

// driver finds the files of the driver, nil if none is loaded.
func (h *Host) driver(caps []capability) *Driver {
	d := &Driver{Version: driverVersion(h.t.text(procDriver + "/version"))}
	if d.Version == "" {
		return nil
	}
	d.Libraries = h.libraries(d.Version, caps)
	for _, b := range binaries {
		if slices.Contains(caps, b.capability) {
			for _, name := range b.names {
				h.addBinary(d, name)
			}
		}
	}
	for _, c := range configs {
		if slices.Contains(caps, c.capability) {
			for _, name := range c.files {
				h.addFile(d, name, "share"+name, unix.S_IFREG)
			}
		}
	}
	if slices.Contains(caps, utility) {
		for _, name := range sockets {
			h.addFile(d, name, "run/"+path.Base(path.Dir(name)), unix.S_IFSOCK)
		}
		h.addFile(d, "/lib/firmware/nvidia/"+d.Version, "firmware", unix.S_IFDIR)
	}
	return d
}

// driverVersion reads the version out of a line such as "NVRM version: NVIDIA
// UNIX Open Kernel Module for x86_64  550.54.15  Release Build  (…)".
func driverVersion(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	for _, word := range strings.Fields(line) {
		if strings.Contains(word, ".") && strings.Trim(word, "0123456789.") == "" && word[0] != '.' && len(word) < 32 {
			return word
		}
	}
	return ""
}

func (h *Host) addFile(d *Driver, name, place string, kind uint32) {
	real, err := h.t.resolve(name)
	if err == nil && h.t.is(real, kind) {
		d.Files = append(d.Files, File{Source: h.t.source(real), Name: place, Link: name})
	}
}

func (h *Host) addBinary(d *Driver, name string) {
	for _, dir := range binaryDirs {
		real, err := h.t.resolve(path.Join(dir, name))
		if err == nil && h.t.is(real, unix.S_IFREG) {
			d.Files = append(d.Files, File{Source: h.t.source(real), Name: "bin/" + name, Link: "/usr/bin/" + name})
			return
		}
	}
}

// libraries finds those of a version and some capabilities, in the order of
// their names.
func (h *Host) libraries(version string, caps []capability) (libs []Library) {
	wanted := map[string]bool{}
	for _, l := range libraryStems {
		if slices.Contains(caps, l.capability) || l.capability == graphics && slices.Contains(caps, display) {
			for _, stem := range l.stems {
				wanted[stem] = true
			}
		}
	}
	abis := []ABI{nativeABI()}
	if slices.Contains(caps, compat32) && nativeABI() == ABIx64 {
		abis = append(abis, ABIx86)
	}
	at := map[string]int{} // source -> index of libs
	for _, e := range h.libraryNames() {
		stem, _, ok := strings.Cut(e.Name, ".so")
		if !ok || !wanted[stem] || !slices.Contains(abis, e.ABI) || path.Base(e.Name) != e.Name {
			continue
		}
		real, err := h.t.resolve(e.Path)
		if err != nil || !h.t.is(real, unix.S_IFREG) {
			continue
		}
		file := path.Base(real)
		if !strings.HasSuffix(file, ".so."+version) && !slices.Contains(ownVersion, stem) {
			continue
		}
		i, seen := at[real]
		if !seen {
			i = len(libs)
			at[real] = i
			libs = append(libs, Library{Source: h.t.source(real), File: file, ABI: e.ABI})
		}
		for _, name := range []string{e.Name, moreName(stem)} {
			if name != "" && name != file && !slices.Contains(libs[i].Names, name) {
				libs[i].Names = append(libs[i].Names, name)
			}
		}
	}
	return firstOfName(libs)
}

// firstOfName leaves out a library whose file's name another one has already:
// a host may have the driver in two places.
func firstOfName(libs []Library) []Library {
	seen := map[string]bool{}
	libs = slices.DeleteFunc(libs, func(l Library) bool {
		key := l.ABI.String() + " " + l.File
		dup := seen[key]
		seen[key] = true
		return dup
	})
	slices.SortFunc(libs, func(a, b Library) int { return strings.Compare(a.ABI.String()+a.File, b.ABI.String()+b.File) })
	for i := range libs {
		slices.Sort(libs[i].Names)
	}
	return libs
}

func nativeABI() ABI {
	if goruntime.GOARCH == "arm64" {
		return ABIarm64
	}
	return ABIx64
}

// libraryDirs are searched on hosts without a cache of the loader: musl's,
// NixOS, and Flatcar with the driver's installer.
var libraryDirs = []string{
	"/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib",
	"/usr/lib/x86_64-linux-gnu/nvidia/current", "/usr/lib/aarch64-linux-gnu/nvidia/current",
	"/run/opengl-driver/lib", "/opt/nvidia/lib64",
}

// libraryNames lists what the host's loader finds.
func (h *Host) libraryNames() []CacheEntry {
	if b, err := h.t.read("/etc/ld.so.cache", maxCache); err == nil {
		if c, err := parseCache(b); err == nil && len(c.entries) > 0 {
			return c.entries
		}
	}
	var list []CacheEntry
	for _, dir := range libraryDirs {
		for _, name := range h.t.list(dir) {
			if strings.HasPrefix(name, "lib") {
				list = append(list, CacheEntry{Name: name, Path: path.Join(dir, name), ABI: nativeABI()})
			}
		}
	}
	return list
}

// params is what /proc/driver/nvidia/params has to say in a container of
// root's: otherwise NVIDIA's libraries make the nodes of GPUs that were not
// selected, each time they look (ModifyDeviceFiles, the driver's README).
// "" if it says so already.
func (h *Host) params() string {
	text := h.t.text(procDriver + "/params")
	changed := strings.Replace(text, "ModifyDeviceFiles: 1", "ModifyDeviceFiles: 0", 1)
	if changed == text {
		return ""
	}
	return changed + "\n"
}

// mpsDir is the directory of the pipes of CUDA's multi-process service, ""
// unless it has one outside of /tmp, which containers share anyway.
func (h *Host) mpsDir(dir string) string {
	if !path.IsAbs(dir) || strings.ContainsRune(dir, 0) {
		return ""
	}
	dir = path.Clean(dir)
	if dir == "/" || strings.HasPrefix(dir+"/", "/tmp/") || !h.t.is(dir, unix.S_IFDIR) {
		return ""
	}
	return dir
}
