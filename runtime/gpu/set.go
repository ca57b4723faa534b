package gpu

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Set is what a container is given of the host's devices.
type Set struct {
	// Nodes are device nodes.
	Nodes []Node
	// Mounts are files and directories at places that somebody else chose.
	Mounts []Mount
	// Driver is NVIDIA's; nil: none.
	Driver *Driver
	// Cache holds libraries among Mounts, for the loader.
	Cache []CacheEntry
	// Classes take the place of directories in which sysfs lists adapters, where not all are chosen.
	Classes []Class
	// Params is the text to show as /proc/driver/nvidia/params. Empty: the host's.
	Params string
	// Env holds NAME=VALUE settings, Unset names of variables to take away.
	Env, Unset []string
	// Notes are for the user to read, one line each.
	Notes []string

	gpus []Node // those of Nodes that are there for the GPUs
}

// Node is a device node: Source of the host appears at Target.
type Node struct{ Source, Target string }

// Mount is a bind mount: Source of the host appears at Target.
type Mount struct {
	Source, Target string
	Flags          []string // words of mount(8)
}

// Class is a directory of sysfs with what was chosen of it.
type Class struct {
	Dir   string
	Links []Link
	Texts []Link // files: Target is what is in them
}

// Link is an entry of a Class: where Name leads.
type Link struct{ Name, Target string }

// Choose says what a container gets: the GPUs and devices of r, RDMA adapters,
// and the driver's files. Where nothing selects a GPU, that is all there are. An
// error names the flag or variable that asks for what is not there.
func (h *Host) Choose(r *Request) (*Set, error) {
	s := &Set{}
	c, err := h.choose(r)
	if err != nil {
		return nil, err
	}
	caps, err := r.capabilities()
	if err != nil {
		return nil, err
	}
	h.gpuNodes(r, &c, caps, s)
	s.gpus = slices.Clone(s.Nodes)
	if err = h.rdmaNodes(r, s); err != nil {
		return nil, err
	}
	h.environment(r, &c, s)
	if c.driver && (h.has(NVIDIA) || h.t.is("/dev/nvidiactl", unix.S_IFCHR)) {
		s.Driver = h.driver(caps)
		h.driverMounts(r, &c, caps, s)
	}
	if err = h.addDevices(r, s); err != nil {
		return nil, err
	}
	return s, nil
}

// addNode adds a node of the host at its own place.
func (s *Set) addNode(h *Host, nodes ...string) {
	for _, n := range nodes {
		node := Node{Source: h.t.source(n), Target: n}
		if !slices.Contains(s.Nodes, node) {
			s.Nodes = append(s.Nodes, node)
		}
	}
}

// allNodes are those of GPUs, by directory and pattern.
var allNodes = [][2]string{
	{"/dev", "nvidia*"},
	{"/dev/nvidia-caps", "*"},
	{"/dev/nvidia-caps-imex-channels", "*"},
	{"/dev", "gdrdrv"},
	{"/dev", "kfd"},
	{"/dev/dri", "*"},
}

// everyNode lists the nodes that are there for GPUs.
func (h *Host) everyNode() (nodes []string) {
	for _, n := range allNodes {
		nodes = append(nodes, h.t.devices(n[0], n[1])...)
	}
	return nodes
}

// gpuNodes adds the nodes of the GPUs that were chosen, and those that all
// GPUs of a vendor need.
func (h *Host) gpuNodes(r *Request, c *choice, caps []capability, s *Set) {
	if c.everything {
		for _, node := range h.everyNode() {
			if h.t.mayOpen(node) != unix.EPERM { //nolint:errorlint // an errno, the device cgroup's
				s.addNode(h, node)
			}
		}
		return
	}
	if c.hasVendor(NVIDIA) {
		h.nvidiaNodes(r, caps, s)
	}
	if c.hasVendor(AMD) {
		s.addNode(h, h.t.devices("/dev", "kfd")...)
	}
	for _, p := range c.picks {
		s.addNode(h, p.gpu.Nodes...)
		instances := p.gpu.Instances
		if p.instance != nil {
			instances = []Instance{*p.instance}
		}
		for _, i := range instances {
			for _, n := range i.Nodes {
				if h.t.mayOpen(n) == nil {
					s.addNode(h, n)
				}
			}
		}
	}
}

// nvidiaNodes adds those that are not of a GPU. nvidia-uvm is the memory that
// CUDA shares between processor and GPU, IMEX channels open the memory of other
// nodes (GB200), gdrdrv and nvidia-fs are for copies past the processor.
// NVSwitches are the fabric manager's: not among them.
func (h *Host) nvidiaNodes(r *Request, caps []capability, s *Set) {
	s.addNode(h, h.t.devices("/dev", "nvidiactl")...)
	if slices.Contains(caps, compute) {
		s.addNode(h, h.t.devices("/dev", "nvidia-uvm")...)
		s.addNode(h, h.t.devices("/dev", "nvidia-uvm-tools")...)
		s.addNode(h, h.t.devices("/dev/nvidia-caps-imex-channels", "channel*")...)
		s.addNode(h, h.t.devices("/dev", "gdrdrv")...)
		s.addNode(h, h.t.devices("/dev", "nvidia-fs*")...)
	}
	if slices.Contains(caps, graphics) || slices.Contains(caps, display) {
		s.addNode(h, h.t.devices("/dev", "nvidia-modeset")...)
	}
	for name, file := range map[string]string{"NVIDIA_MIG_CONFIG_DEVICES": "config", "NVIDIA_MIG_MONITOR_DEVICES": "monitor"} {
		if v, _ := r.env(name); v == "all" {
			s.addNode(h, h.caps(path.Join(procDriver, "capabilities/mig", file))...)
		}
	}
}

// driverMounts adds what the driver needs beside its own files.
func (h *Host) driverMounts(r *Request, c *choice, caps []capability, s *Set) {
	if s.Driver == nil {
		return
	}
	if dir, _ := r.env("CUDA_MPS_PIPE_DIRECTORY"); slices.Contains(caps, compute) {
		if dir = h.mpsDir(dir); dir != "" {
			s.Mounts = append(s.Mounts, Mount{Source: h.t.source(dir), Target: dir, Flags: []string{"nosuid", "nodev", "noexec"}})
		}
	}
	if r.Root && !c.everything {
		s.Params = h.params()
	}
	if slices.Contains(caps, compute) && !slices.ContainsFunc(s.Driver.Libraries, func(l Library) bool { return strings.HasPrefix(l.File, "libcuda.so.") }) {
		s.Notes = append(s.Notes, fmt.Sprintf("the host has no libcuda of its driver's version %s: CUDA will not work", s.Driver.Version))
	}
}

// rdmaNodes adds the adapters of InfiniBand and its like, and the memory maps
// that MPI uses between processes. MELLANOX_VISIBLE_DEVICES, as enroot has it,
// chooses among the adapters: all, none, or a list of names and indices.
func (h *Host) rdmaNodes(r *Request, s *Set) error {
	for _, p := range []string{"knem", "xpmem", "cxi[0-9]*"} {
		s.addNode(h, h.t.devices("/dev", p)...)
	}
	nodes := h.t.devices("/dev/infiniband", "*")
	list, _ := r.env("MELLANOX_VISIBLE_DEVICES")
	switch list {
	case "", "void", "all":
		s.addNode(h, nodes...)
		return nil
	case "none":
		h.rdmaClasses(nil, s)
		return nil
	}
	adapters := h.t.list("/sys/class/infiniband")
	if len(adapters) == 0 {
		return nil
	}
	wanted, err := listed(list, adapters)
	if err != nil {
		return fmt.Errorf("MELLANOX_VISIBLE_DEVICES: %w; there are %s", err, strings.Join(adapters, ", "))
	}
	for _, n := range nodes {
		if owner := h.adapter(path.Base(n)); owner == "" || slices.Contains(wanted, owner) {
			s.addNode(h, n)
		}
	}
	h.rdmaClasses(wanted, s)
	return nil
}

// rdmaClasses hides the other adapters from programs that look for them in sysfs, as libibverbs, UCX and NCCL do, which
// fail or warn where an adapter is listed and has no node. It is no barrier: /sys/devices has them all.
func (h *Host) rdmaClasses(wanted []string, s *Set) {
	for _, name := range []string{"infiniband", "infiniband_verbs", "infiniband_mad", "infiniband_cm"} {
		dir := path.Join("/sys/class", name)
		if !h.t.is(dir, unix.S_IFDIR) {
			continue
		}
		c := Class{Dir: dir}
		for _, entry := range h.t.list(dir) {
			owner := entry
			if name != "infiniband" {
				owner = h.adapter(entry)
			}
			at := path.Join(dir, entry)
			real, err := h.t.resolve(at)
			switch {
			case err != nil:
			case h.t.is(at, unix.S_IFREG): // abi_version, which libibverbs reads
				c.Texts = append(c.Texts, Link{entry, h.t.text(at)})
			case slices.Contains(wanted, owner) && real != at:
				c.Links = append(c.Links, Link{entry, real})
			}
		}
		s.Classes = append(s.Classes, c)
	}
}

// adapter returns which adapter a node is of, "" for one that serves all, such
// as rdma_cm.
func (h *Host) adapter(node string) string {
	for _, class := range []string{"infiniband_verbs", "infiniband_mad", "infiniband_cm"} {
		if dev := h.t.text(path.Join("/sys/class", class, node, "ibdev")); dev != "" {
			return dev
		}
	}
	return ""
}

// listed looks up names or indices.
func listed(list string, names []string) (found []string, err error) {
	for _, item := range strings.Split(list, ",") {
		if n, ok := number(item); ok && n < len(names) {
			item = names[n]
		}
		if !slices.Contains(names, item) {
			return nil, fmt.Errorf("no adapter %q", item)
		}
		found = append(found, item)
	}
	return found, nil
}
