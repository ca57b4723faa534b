package gpu

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Request is what the user asked for.
type Request struct {
	// GPUs is all, none, or a list of indices, UUIDs and MIG devices. Empty:
	// the environment says, see [Host.Choose].
	GPUs string
	// Flag names GPUs in messages. Empty: --gpus.
	Flag string
	// Devices are device nodes of the host and names of CDI devices.
	Devices []string
	// Environ is the caller's environment, as of os.Environ.
	Environ []string
	// Step is the environment of Slurm's step, of which the caller is a task or
	// the keeper: GPUs chooses among the step's. Nil: there is none, or it is not
	// known, and GPUs chooses among all.
	Step []string
	// Root: the command has CAP_MKNOD.
	Root bool
	// ListMIG returns what "nvidia-smi -L" prints. It is called only for a MIG
	// UUID in GPUs, which the driver alone can tell. May be nil.
	ListMIG func() ([]byte, error)
}

// env returns a variable's value.
func (r *Request) env(name string) (value string, ok bool) { return lookup(r.Environ, name) }

// lookup returns a variable's value; the last one counts, as in a shell.
func lookup(environ []string, name string) (value string, ok bool) {
	for _, kv := range environ {
		if v, found := strings.CutPrefix(kv, name+"="); found {
			value, ok = v, true
		}
	}
	return value, ok
}

// choice is which GPUs a container gets.
type choice struct {
	everything bool // nothing was selected: all nodes of the host
	picks      []pick
	driver     bool // with NVIDIA's driver
}

// pick is a GPU, or one instance of it.
type pick struct {
	gpu      *GPU
	instance *Instance // nil: all of the GPU
}

// choose finds out which GPUs are wanted. What counts is, the first that is set:
//
//	--gpus                  indices, UUIDs and MIG devices; all; none
//	NVIDIA_VISIBLE_DEVICES  the same, among those that Slurm gave; none: the
//	                        driver without a GPU; void or empty: nothing (as for
//	                        NVIDIA's container tools)
//	SLURM_STEP_GPUS, …      what Slurm gave, see slurmGPUs
//	CUDA_VISIBLE_DEVICES    indices and UUIDs as CUDA takes them
//	ROCR_VISIBLE_DEVICES    the same of AMD's
//
// Slurm's come before CUDA's, which goes on to hold inside: a program may leave
// some of its GPUs to others that it starts.
func (h *Host) choose(r *Request) (choice, error) {
	given, told := h.slurmGPUs(r)
	if r.GPUs != "" {
		from := h.usable()
		if r.Step != nil {
			if of, ok := h.slurmGPUs(&Request{Environ: r.Step, ListMIG: r.ListMIG}); ok {
				from = of.gpus()
			}
		}
		return h.chooseListed(r, cmp.Or(r.Flag, "--gpus"), r.GPUs, from)
	}
	if v, ok := r.env("NVIDIA_VISIBLE_DEVICES"); ok && h.has(NVIDIA) {
		switch {
		case v == "" || v == "void":
			return choice{}, nil
		case v == "none":
			return choice{driver: true}, nil
		case told && (v == "all" || len(given.picks) == 0):
			return given, nil
		case told:
			return h.chooseListed(r, "NVIDIA_VISIBLE_DEVICES="+v, v, given.gpus())
		}
		return h.chooseListed(r, "NVIDIA_VISIBLE_DEVICES="+v, v, h.usable())
	}
	if told {
		return given, nil
	}
	for _, vendor := range []Vendor{NVIDIA, AMD} {
		if v, ok := r.env(visible(vendor)); ok && h.has(vendor) {
			return h.chooseVisible(vendor, v), nil
		}
	}
	return choice{everything: true, driver: true}, nil
}

func (h *Host) has(v Vendor) bool {
	return slices.ContainsFunc(h.GPUs, func(g GPU) bool { return g.Vendor == v })
}

// chooseListed reads a list. Indices count the GPUs in from.
func (h *Host) chooseListed(r *Request, what, list string, from []*GPU) (c choice, err error) {
	c.driver = true
	switch {
	case list == "none":
		return choice{}, nil
	case len(h.usable()) == 0:
		return c, fmt.Errorf("%s: this host has no GPU that you may use", what)
	case len(from) == 0:
		return c, fmt.Errorf("%s: Slurm gave none of this node's GPUs", what)
	case list == "all":
		c.picks = h.whole(from)
		return c, nil
	}
	for _, item := range strings.Split(list, ",") {
		p, err := find(r, item, from)
		if err != nil {
			return c, fmt.Errorf("%s: %q: %w; there are %s", what, item, err, describe(from))
		}
		if !slices.Contains(c.picks, p) {
			c.picks = append(c.picks, p)
		}
	}
	return c, nil
}

func (h *Host) whole(gpus []*GPU) (picks []pick) {
	for _, g := range gpus {
		picks = append(picks, pick{gpu: g})
	}
	return picks
}

var errNoGPU = errors.New("no such GPU")

// find looks up one item: 1, GPU-UUID, 1:0, MIG-GPU-UUID/GI/CI or MIG-UUID.
func find(r *Request, item string, gpus []*GPU) (pick, error) {
	index, instance, isMIG := strings.Cut(item, ":")
	if n, ok := number(index); ok {
		if n >= len(gpus) {
			return pick{}, errNoGPU
		}
		if !isMIG {
			return pick{gpu: gpus[n]}, nil
		}
		i, ok := number(instance)
		if !ok || i >= len(gpus[n].Instances) {
			return pick{}, errors.New("no such MIG device")
		}
		return pick{gpus[n], &gpus[n].Instances[i]}, nil
	}
	if id, ok := strings.CutPrefix(item, "MIG-"); ok {
		return findMIG(r, id, gpus)
	}
	for _, g := range gpus {
		if g.UUID != "" && g.UUID == item {
			return pick{gpu: g}, nil
		}
	}
	return pick{}, errNoGPU
}

// findMIG looks up a MIG device, GPU-UUID/GI/CI of drivers before 470, or a
// UUID of its own, which is in no file of the driver's.
func findMIG(r *Request, id string, gpus []*GPU) (pick, error) {
	if uuid, rest, ok := strings.Cut(id, "/"); ok {
		gi, ci, _ := strings.Cut(rest, "/")
		g, gok := number(gi)
		c, cok := number(ci)
		for _, gpu := range gpus {
			for i := range gpu.Instances {
				in := &gpu.Instances[i]
				if gok && cok && gpu.UUID == uuid && in.GI == g && in.CI == c {
					return pick{gpu, in}, nil
				}
			}
		}
		return pick{}, errors.New("no such MIG device")
	}
	if r.ListMIG == nil {
		return pick{}, errMIG
	}
	out, err := r.ListMIG()
	if err != nil {
		return pick{}, fmt.Errorf("%w (%w)", errMIG, err)
	}
	name, ok := migNames(string(out))["MIG-"+id]
	if !ok {
		return pick{}, errors.New("nvidia-smi knows no such MIG device")
	}
	return find(r, name, gpus)
}

var errMIG = errors.New("the UUIDs of MIG devices are known to nvidia-smi alone; name it GPU:DEVICE, as in 0:1, or MIG-GPU-UUID/GI/CI")

// migNames reads the output of nvidia-smi -L, and maps the UUIDs of MIG devices
// to the form GPU:DEVICE. Its lines are
//
//	GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-…)
//	  MIG 3g.20gb     Device  0: (UUID: MIG-…)
func migNames(out string) map[string]string {
	names := map[string]string{}
	gpu := ""
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		head, uuid, ok := strings.Cut(line, "(UUID: ")
		uuid, _, closed := strings.Cut(uuid, ")")
		words := strings.Fields(head)
		switch {
		case !ok || !closed || len(words) < 2:
		case words[0] == "GPU":
			gpu = strings.TrimSuffix(words[1], ":")
		case words[0] == "MIG" && gpu != "":
			names[uuid] = gpu + ":" + strings.TrimSuffix(words[len(words)-1], ":")
		}
	}
	return names
}

// describe names GPUs, for messages.
func describe(gpus []*GPU) string {
	var names []string
	for i, g := range gpus {
		s := strconv.Itoa(i)
		about := make([]string, 0, 2)
		for _, a := range []string{g.UUID, g.Model} {
			if a != "" {
				about = append(about, a)
			}
		}
		if len(about) > 0 {
			s += " (" + strings.Join(about, ", ") + ")"
		}
		names = append(names, s)
		for j, in := range g.Instances {
			names = append(names, fmt.Sprintf("%d:%d (GPU instance %d, compute instance %d)", i, j, in.GI, in.CI))
		}
	}
	return strings.Join(names, ", ")
}

// visible is the variable in which CUDA's or ROCm's runtime takes the GPUs that
// a program may see. Indices count those that the driver lets it open, by PCI
// address: CUDA's default, the fastest first, is the same where all are alike.
func visible(v Vendor) string {
	if v == AMD {
		return "ROCR_VISIBLE_DEVICES"
	}
	return "CUDA_VISIBLE_DEVICES"
}

// of returns the usable GPUs of one vendor.
func (h *Host) of(v Vendor) []*GPU {
	return slices.DeleteFunc(h.usable(), func(g *GPU) bool { return g.Vendor != v })
}

// chooseVisible takes a list as CUDA does: it ends at the first item that is
// no GPU, such as -1, NoDevFiles, or nothing at all.
func (h *Host) chooseVisible(v Vendor, list string) choice {
	c := choice{driver: true}
	for _, item := range strings.Split(list, ",") {
		g, mig := h.visibleItem(v, item)
		switch {
		case mig: // CUDA knows which; all that may be opened stays open
			c.picks = h.whole(h.of(v))
			return c
		case g == nil:
			return c
		case !slices.Contains(c.picks, pick{gpu: g}):
			c.picks = append(c.picks, pick{gpu: g})
		}
	}
	return c
}

// visibleItem looks up an index, or a UUID, of which CUDA takes the beginning as
// well if only one begins so.
func (h *Host) visibleItem(v Vendor, item string) (found *GPU, mig bool) {
	gpus := h.of(v)
	item = strings.TrimSpace(item)
	if n, ok := number(item); ok {
		if n < len(gpus) {
			found = gpus[n]
		}
		return found, false
	}
	if strings.HasPrefix(item, "MIG-") {
		return nil, true
	}
	for _, g := range gpus {
		if len(item) > len("GPU-") && strings.HasPrefix(g.UUID, item) {
			if found != nil {
				return nil, false
			}
			found = g
		}
	}
	return found, false
}

// renumber says what CUDA_VISIBLE_DEVICES or its like has to be inside, where
// the GPUs that are not picked do not count. The value is empty if none is left.
func (h *Host) renumber(v Vendor, list string, c *choice) string {
	var inside []*GPU
	for _, g := range h.of(v) {
		if c.has(g) {
			inside = append(inside, g)
		}
	}
	var items []string
	for _, item := range strings.Split(list, ",") {
		g, mig := h.visibleItem(v, item)
		_, isIndex := number(strings.TrimSpace(item))
		switch at := slices.Index(inside, g); {
		case mig:
			items = append(items, item)
		case g == nil: // the list ends here
			return strings.Join(items, ",")
		case at < 0:
		case isIndex:
			items = append(items, strconv.Itoa(at))
		default:
			items = append(items, item)
		}
	}
	return strings.Join(items, ",")
}

// gpus are those that are picked, or an instance of which is.
func (c *choice) gpus() (gpus []*GPU) {
	for _, p := range c.picks {
		if !slices.Contains(gpus, p.gpu) {
			gpus = append(gpus, p.gpu)
		}
	}
	return gpus
}

func (c *choice) has(g *GPU) bool {
	return c.everything || slices.ContainsFunc(c.picks, func(p pick) bool { return p.gpu == g })
}

// hasVendor reports whether a GPU of v is picked.
func (c *choice) hasVendor(v Vendor) bool {
	return slices.ContainsFunc(c.picks, func(p pick) bool { return p.gpu.Vendor == v })
}

// environment sets the variables that have to change for the choice to hold.
func (h *Host) environment(r *Request, c *choice, s *Set) {
	for _, v := range []Vendor{NVIDIA, AMD, Intel} {
		gpus := h.of(v)
		if !slices.ContainsFunc(gpus, func(g *GPU) bool { return !c.has(g) }) || !c.hasVendor(v) {
			continue
		}
		for _, name := range h.counting(r, v) {
			list, _ := r.env(name)
			value := h.renumber(v, list, c)
			switch {
			case value == list:
			case value == "" && list != "": // --gpus and the variable agree on nothing; the flag is meant
				s.Unset = append(s.Unset, name)
			default:
				s.Env = append(s.Env, name+"="+value)
			}
		}
	}
}

// counting lists the variables that are set and count GPUs of a vendor. Beside
// CUDA's and ROCm's there are OpenCL's and Level Zero's, which Slurm sets to the same
// numbers (gres_common_gpu_set_env in src/plugins/gres/common); in other forms than a
// list of numbers they stay as they are.
func (h *Host) counting(r *Request, v Vendor) (names []string) {
	if _, ok := r.env(visible(v)); ok && v != Intel {
		names = append(names, visible(v))
	}
	more := map[Vendor]string{AMD: "GPU_DEVICE_ORDINAL", Intel: "ZE_AFFINITY_MASK"}[v]
	if v == NVIDIA && !h.has(AMD) {
		more = "GPU_DEVICE_ORDINAL"
	}
	list, ok := r.env(more)
	for item := range strings.SplitSeq(list, ",") {
		_, isNumber := number(item)
		ok = ok && isNumber
	}
	if ok {
		names = append(names, more)
	}
	return names
}

// capabilities reads NVIDIA_DRIVER_CAPABILITIES.
func (r *Request) capabilities() ([]capability, error) {
	v, _ := r.env("NVIDIA_DRIVER_CAPABILITIES")
	switch v {
	case "":
		return defaultCapabilities, nil
	case "all":
		return allCapabilities, nil
	}
	var caps []capability
	for _, word := range strings.Split(v, ",") {
		c := capability(strings.TrimSpace(word))
		if c == "ngx" {
			c = graphics
		}
		if !slices.Contains(allCapabilities, c) {
			return nil, fmt.Errorf("NVIDIA_DRIVER_CAPABILITIES: unknown word %q; known are all, compute, utility, video, graphics, display, compat32", word)
		}
		if !slices.Contains(caps, c) {
			caps = append(caps, c)
		}
	}
	return caps, nil
}
