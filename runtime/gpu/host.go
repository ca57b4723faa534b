package gpu

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Vendor is who made a GPU.
type Vendor string

// The vendors whose GPUs are told apart.
const (
	NVIDIA Vendor = "nvidia"
	AMD    Vendor = "amd"
	Intel  Vendor = "intel"
)

// GPU is one device.
type GPU struct {
	Vendor Vendor
	// Number is NVIDIA's minor number, else the place among the render nodes of
	// the vendor.
	Number int
	// UUID is GPU-… as the driver prints it, for AMD GPU- and the unique id.
	// May be empty.
	UUID string
	// Bus is the PCI address, such as 0000:3b:00.0. May be empty.
	Bus string
	// Model is the product's name. May be empty.
	Model string
	// Nodes are the device nodes that are this GPU's alone.
	Nodes []string
	// Instances are those of a GPU that is partitioned (MIG), in NVML's order.
	Instances []Instance
	// Denied: the device cgroup, or the node's mode, keeps the caller out.
	Denied bool
	// Constrained: it is the device cgroup.
	Constrained bool
}

// Instance is a compute instance of a MIG GPU.
type Instance struct {
	GI, CI int      // ids of GPU instance and compute instance
	Nodes  []string // the two capabilities that open it, see caps
}

// Host is what a host has. Discover fills it.
type Host struct {
	t *tree
	// GPUs in the order in which indices count them: NVIDIA's by PCI address,
	// as nvidia-smi does, then AMD's and Intel's by render node.
	GPUs []GPU
}

// Discover looks at the host whose root directory is root. A host without GPUs
// gives an empty Host; so does what cannot be read or makes no sense. The
// caller closes the Host.
func Discover(root string) (*Host, error) {
	t, err := openTree(root)
	if err != nil {
		return nil, fmt.Errorf("look for devices: %w", err)
	}
	h := &Host{t: t}
	h.GPUs = slices.Concat(h.nvidiaGPUs(), h.drmGPUs())
	h.try()
	return h, nil
}

// try finds out which GPUs the caller may open.
func (h *Host) try() {
	for i := range h.GPUs {
		g := &h.GPUs[i]
		if err := h.t.mayOpen(g.Nodes[0]); err != nil {
			// The cgroup answers EPERM, the node's mode EACCES.
			g.Denied, g.Constrained = true, err == unix.EPERM //nolint:errorlint // an errno
		}
	}
}

// Close lets go of the root directory.
func (h *Host) Close() { h.t.close() }

// maxGPUs bounds what a directory of devices may claim.
const maxGPUs = 256

const procDriver = "/proc/driver/nvidia"

// nvidiaGPUs reads what the driver says of each GPU in proc, and failing that
// takes the nodes in /dev.
func (h *Host) nvidiaGPUs() (gpus []GPU) {
	for _, bus := range h.t.list(procDriver + "/gpus") {
		if len(gpus) >= maxGPUs {
			break
		}
		info := fields(h.t.text(path.Join(procDriver, "gpus", bus, "information")))
		minor, ok := number(info["Device Minor"])
		if !ok {
			continue
		}
		g := GPU{Vendor: NVIDIA, Number: minor, Bus: bus, Model: info["Model"]}
		if u := info["GPU UUID"]; isUUID(u) { // ?s while the GPU sleeps
			g.UUID = u
		}
		if h.addNodes(&g) {
			gpus = append(gpus, g)
		}
	}
	if len(gpus) == 0 {
		for _, node := range h.t.devices("/dev", "nvidia[0-9]*") {
			if minor, ok := suffixNumber(path.Base(node), "nvidia"); ok && len(gpus) < maxGPUs {
				gpus = append(gpus, GPU{Vendor: NVIDIA, Number: minor, Nodes: []string{node}, Instances: h.instances(minor)})
			}
		}
	}
	slices.SortStableFunc(gpus, func(a, b GPU) int { return strings.Compare(busKey(a.Bus), busKey(b.Bus)) })
	return gpus
}

// addNodes finds the nodes of an NVIDIA GPU, and reports whether it has any.
func (h *Host) addNodes(g *GPU) bool {
	node := "/dev/nvidia" + strconv.Itoa(g.Number)
	if !h.t.is(node, unix.S_IFCHR) {
		return false
	}
	g.Nodes = append([]string{node}, h.drmNodes(path.Join("/sys/bus/pci/devices", strings.ToLower(g.Bus), "drm"))...)
	g.Instances = h.instances(g.Number)
	return true
}

// drmNodes lists the nodes in /dev/dri that a directory of sysfs names.
func (h *Host) drmNodes(dir string) (nodes []string) {
	for _, name := range h.t.list(dir) {
		if node := "/dev/dri/" + name; h.t.is(node, unix.S_IFCHR) {
			nodes = append(nodes, node)
		}
	}
	return nodes
}

// busKey makes addresses of a 16-bit and a 32-bit PCI domain comparable.
func busKey(bus string) string {
	return strings.Repeat("0", max(0, 16-len(bus))) + strings.ToLower(bus)
}

// fields reads lines of the form "Name: value".
func fields(text string) map[string]string {
	m := map[string]string{}
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(line, ":"); ok {
			m[strings.TrimSpace(name)] = strings.TrimSpace(value)
		}
	}
	return m
}

// isUUID reports whether s has the form GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx.
func isUUID(s string) bool {
	s, ok := strings.CutPrefix(s, "GPU-")
	if !ok || len(s) != 36 {
		return false
	}
	for i, c := range []byte(s) {
		dash := i == 8 || i == 13 || i == 18 || i == 23
		if dash != (c == '-') || !dash && !isHex(c) {
			return false
		}
	}
	return true
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

// instances reads the MIG instances of a GPU: each GPU instance and each
// compute instance in it is opened by a node of nvidia-caps, whose number a
// file in proc tells (MIG user guide, "Device nodes and capabilities").
func (h *Host) instances(gpu int) (list []Instance) {
	dir := fmt.Sprintf("%s/capabilities/gpu%d/mig", procDriver, gpu)
	for _, gi := range h.t.list(dir) {
		g, ok := suffixNumber(gi, "gi")
		if !ok {
			continue
		}
		for _, ci := range h.t.list(path.Join(dir, gi)) {
			c, ok := suffixNumber(ci, "ci")
			if !ok || len(list) >= maxGPUs {
				continue
			}
			i := Instance{GI: g, CI: c}
			i.Nodes = append(h.caps(path.Join(dir, gi, "access")), h.caps(path.Join(dir, gi, ci, "access"))...)
			list = append(list, i)
		}
	}
	slices.SortFunc(list, func(a, b Instance) int { return cmp.Or(a.GI-b.GI, a.CI-b.CI) })
	return list
}

// caps returns the node that a capability's file in proc names, if it exists.
func (h *Host) caps(file string) []string {
	minor, ok := number(fields(h.t.text(file))["DeviceFileMinor"])
	if !ok {
		return nil
	}
	node := "/dev/nvidia-caps/nvidia-cap" + strconv.Itoa(minor)
	if !h.t.is(node, unix.S_IFCHR) {
		return nil
	}
	return []string{node}
}

// pciVendor knows the numbers of sysfs.
func pciVendor(number string) Vendor {
	switch number {
	case "0x1002":
		return AMD
	case "0x8086":
		return Intel
	}
	return ""
}

// drmGPUs lists the render nodes of AMD's and Intel's GPUs.
func (h *Host) drmGPUs() []GPU {
	byVendor := map[Vendor][]GPU{}
	for _, node := range h.t.devices("/dev/dri", "renderD*") {
		device := path.Join("/sys/class/drm", path.Base(node), "device")
		v := pciVendor(h.t.text(device + "/vendor"))
		if v == "" || len(byVendor[v]) >= maxGPUs {
			continue
		}
		g := GPU{Vendor: v, Number: len(byVendor[v]), Nodes: []string{node}, Model: h.t.text(device + "/product_name")}
		for _, other := range h.drmNodes(device + "/drm") {
			if other != node {
				g.Nodes = append(g.Nodes, other)
			}
		}
		if dir, err := h.t.resolve(device); err == nil {
			g.Bus = path.Base(dir)
		}
		if id := h.t.text(device + "/unique_id"); v == AMD && id != "" {
			g.UUID = "GPU-" + id
		}
		byVendor[v] = append(byVendor[v], g)
	}
	return slices.Concat(byVendor[AMD], byVendor[Intel])
}

// usable returns the GPUs that the caller may open: those that the driver, and
// with it nvidia-smi and CUDA, shows the caller, and that indices count.
func (h *Host) usable() (gpus []*GPU) {
	for i := range h.GPUs {
		if !h.GPUs[i].Denied {
			gpus = append(gpus, &h.GPUs[i])
		}
	}
	return gpus
}

// constrained reports whether a device cgroup has chosen among the GPUs.
func (h *Host) constrained() bool {
	return slices.ContainsFunc(h.GPUs, func(g GPU) bool { return g.Constrained })
}
