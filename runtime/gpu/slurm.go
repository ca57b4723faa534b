package gpu

import (
	"cmp"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Slurm gives GPUs to a job on a node, of those to a step, and of those to a task. It tells each process what it has in
// variables, and a device cgroup lets it open that and no more, where the site has cgroups so (ConstrainDevices). Tried
// with Slurm 22.05, and read in its source (gres_g_step_set_env, gres_g_task_set_env and _get_usable_gres in
// src/common/gres.c, common_gres_set_env in src/plugins/gres/common/gres_common.c):
//
//	                            SLURM_JOB_GPUS   SLURM_STEP_GPUS         CUDA_VISIBLE_DEVICES
//	batch script                the job's        not set                 the job's
//	the step, no binding        the script's     the step's              the step's
//	a task with --gpus-per-task
//	  or --gpu-bind             the script's     the task's              the task's
//	  and with cgroups          the script's     the first of the step's 0 and on
//	a task, --gpu-bind=none     the script's     not set                 not set
//	a step, --gres=none         the script's     not set                 not set
//
// So with cgroups the variables of a bound task name others' GPUs, and the cgroup alone is right. SLURM_JOB_GPUS comes
// to a step with the script's environment, and is about the script's node. Numbers count the GPUs of the node, with
// CUDA_VISIBLE_DEVICES those that the cgroup leaves, in the order of their PCI addresses: so does NVML, which Slurm asks,
// and where gres.conf has another order CUDA counts so all the same.

// Share is which of a step's devices a task does not have, and what is different in its environment.
type Share struct {
	// Hidden are the targets of nodes of the step's Set.
	Hidden []string
	// Env holds NAME=VALUE settings, Unset names of variables to take away.
	Env, Unset []string
}

// Share says what a task has of the GPUs of step, which Choose returned for the whole step. r has the task's
// environment, and that of the step. denied are the nodes that the task's device cgroup refuses, which only a process
// in it can find out. A task for which Slurm bound no GPUs has all of the step's.
func (h *Host) Share(step *Set, r *Request, denied []string) (*Share, error) {
	caps, err := r.capabilities()
	if err != nil {
		return nil, err
	}
	task := h.without(denied)
	c, err := task.choose(r)
	if r.GPUs != "" { // its indices are the same for all tasks
		c, err = h.choose(r)
		task.adopt(h, &c)
	}
	if err != nil {
		return nil, err
	}
	var s Set
	task.gpuNodes(r, &c, caps, &s)
	task.environment(r, &c, &s)
	share := &Share{Env: s.Env, Unset: s.Unset}
	for _, n := range step.gpus {
		if !slices.Contains(s.Nodes, n) {
			share.Hidden = append(share.Hidden, n.Target)
		}
	}
	return share, nil
}

// Widen returns a Set that has the nodes of all GPUs beside what is in s, which Choose returned for one task, and the
// targets of those that s does not have: a container that tasks share has to have what any of them has.
func (h *Host) Widen(s *Set) (wide *Set, hidden []string) {
	var all Set
	all.addNode(h, h.everyNode()...)
	wide = new(Set)
	*wide = *s
	wide.Nodes = slices.Clone(s.Nodes)
	for _, n := range all.Nodes {
		if !slices.ContainsFunc(s.Nodes, func(o Node) bool { return o.Target == n.Target }) {
			wide.Nodes = append(wide.Nodes, n)
			hidden = append(hidden, n.Target)
		}
	}
	slices.SortFunc(wide.Nodes, func(a, b Node) int { return cmp.Or(cmp.Compare(a.Target, b.Target), cmp.Compare(a.Source, b.Source)) })
	return wide, hidden
}

// without is the same host as seen from a device cgroup that refuses more nodes. It is to be used no longer than h.
func (h *Host) without(denied []string) *Host {
	t := *h.t
	t.denied = maps.Clone(t.denied)
	if t.denied == nil {
		t.denied = map[string]bool{}
	}
	for _, n := range denied {
		t.denied[n] = true
	}
	other := &Host{t: &t, GPUs: slices.Clone(h.GPUs)}
	other.try()
	return other
}

// adopt makes a choice of another look at the same host one of this look, without what is denied here.
func (h *Host) adopt(other *Host, c *choice) {
	var picks []pick
	for _, p := range c.picks {
		g := &h.GPUs[slices.IndexFunc(other.GPUs, func(o GPU) bool { return o.Nodes[0] == p.gpu.Nodes[0] })]
		if !g.Denied {
			picks = append(picks, pick{g, p.instance})
		}
	}
	c.picks = picks
}

// slurmGPUs is what Slurm gave to a process. told is false where it has said nothing: outside of jobs, where the site
// has Slurm count no GPUs, and to a task that it bound to none in particular and whose step is not known.
func (h *Host) slurmGPUs(r *Request) (c choice, told bool) {
	c = choice{driver: true, picks: h.whole(h.usable())}
	bound := numbersOf(r.Environ)
	switch {
	case bound != "" || numbersOf(r.Step) != "":
	case inStep(r.Environ) && given(r.Environ, "SLURM_JOB_GPUS") && !given(r.Environ, "SLURM_GPUS_ON_NODE"):
		return choice{}, true // the job has some, the step none
	default:
		return choice{}, false
	}
	c.keep(h, r, r.Step)
	if !h.constrained() {
		c.keep(h, r, r.Environ)
	}
	return c, true
}

// numbersOf are the GPUs that an environment says Slurm gave. In a step the script's do not count.
func numbersOf(environ []string) string {
	v, _ := lookup(environ, "SLURM_STEP_GPUS")
	if v == "" && !inStep(environ) {
		v, _ = lookup(environ, "SLURM_JOB_GPUS")
	}
	return v
}

func given(environ []string, name string) bool {
	v, _ := lookup(environ, name)
	return v != ""
}

// inStep reports whether an environment is that of a step that srun started. That of an interactive step, which salloc
// starts, is like a script's; numbers as large are of such special steps (slurm/slurm.h: SLURM_INTERACTIVE_STEP).
func inStep(environ []string) bool {
	v, _ := lookup(environ, "SLURM_STEP_ID")
	n, err := strconv.ParseUint(v, 10, 32)
	return err == nil && n < 0xfffffff0
}

// keep leaves of the picks those that an environment names. Numbers that name no GPU of this host say nothing: a site may
// count what it likes. Neither do those of MIG devices, for which Slurm has CUDA's variable name them.
func (c *choice) keep(h *Host, r *Request, environ []string) {
	numbers, ok := ranges(numbersOf(environ))
	if !ok {
		return
	}
	if slices.ContainsFunc(h.GPUs, func(g GPU) bool { return len(g.Instances) > 0 }) {
		c.keepMIG(h, r, environ)
		return
	}
	counted := slices.DeleteFunc(slices.Clone(h.GPUs), func(g GPU) bool { return g.Vendor != h.GPUs[0].Vendor })
	if len(numbers) == 0 || slices.Max(numbers) >= len(counted) {
		return
	}
	c.picks = slices.DeleteFunc(c.picks, func(p pick) bool {
		at := slices.IndexFunc(counted, func(g GPU) bool { return g.Nodes[0] == p.gpu.Nodes[0] })
		return !slices.Contains(numbers, at)
	})
}

// keepMIG does so on a host with MIG devices, if the driver knows all that are named.
func (c *choice) keepMIG(h *Host, r *Request, environ []string) {
	list, _ := lookup(environ, visible(NVIDIA))
	var picks []pick
	for _, item := range strings.Split(list, ",") {
		p, err := find(r, item, h.usable())
		if !strings.HasPrefix(item, "MIG-") || err != nil {
			return
		}
		picks = append(picks, p)
	}
	c.picks = picks
}

// ranges reads a list such as 0,2-3.
func ranges(list string) (ns []int, ok bool) {
	for _, item := range strings.Split(list, ",") {
		a, b, isRange := strings.Cut(item, "-")
		if !isRange {
			b = a
		}
		from, ok1 := number(a)
		to, ok2 := number(b)
		if !ok1 || !ok2 || to < from || to-from > maxGPUs || len(ns) > maxGPUs {
			return nil, false
		}
		for n := from; n <= to; n++ {
			if !slices.Contains(ns, n) {
				ns = append(ns, n)
			}
		}
	}
	return ns, true
}
