package main

import (
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/squirefs/squire/runtime"
	"github.com/squirefs/squire/runtime/gpu"
)

// stepDevices are the devices of a step on its node. Its container has all of them, and each task those that Slurm bound
// it to: a task that may not see all gets a mount namespace in which /dev is without the rest. Tasks that see the same
// share one.
type stepDevices struct {
	host    *gpu.Host
	set     *gpu.Set
	request gpu.Request // of the step

	mu      sync.Mutex
	derived map[string]*os.File // mount namespaces, by what is hidden in them
}

// choose finds the step's devices. Variables that count them are the tasks' matter, see share.
func (d *stepDevices) choose(r *gpu.Request) (*gpu.Set, error) {
	host, err := gpu.Discover("/")
	if err != nil {
		return nil, err
	}
	r.Flag, r.Step = "--container-gpus", r.Environ
	set, err := host.Choose(r)
	if err != nil {
		host.Close()
		return nil, err
	}
	set.Env, set.Unset = nil, nil
	d.host, d.set, d.request, d.derived = host, set, *r, map[string]*os.File{}
	return set, nil
}

// share makes of the reply to a task one that gives it its own devices. In a container that somebody else holds there
// are the devices of that one.
func (d *stepDevices) share(held *runtime.Held, task *slurmTask, reply *slurmReply) error {
	if d == nil || d.set == nil || held == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	r := d.request
	r.Environ = task.Env
	share, err := d.host.Share(d.set, &r, task.Denied)
	if err != nil {
		return err
	}
	reply.set = append(reply.set, share.Env...)
	reply.unset = append(reply.unset, share.Unset...)
	if len(share.Hidden) == 0 {
		return nil
	}
	ns, err := d.derive(held, share.Hidden)
	if err != nil {
		return err
	}
	reply.namespaces = slices.Clone(reply.namespaces)
	for i, n := range reply.namespaces {
		if n.Kind == "mnt" {
			reply.namespaces[i].File = ns
		}
	}
	return nil
}

// derive returns the mount namespace in which these nodes are hidden.
func (d *stepDevices) derive(held *runtime.Held, hidden []string) (*os.File, error) {
	key := strings.Join(hidden, "\n")
	if ns := d.derived[key]; ns != nil {
		return ns, nil
	}
	ns, err := held.Derive(hidden)
	if err != nil {
		return nil, err
	}
	d.derived[key] = ns
	return ns, nil
}

// close lets go of the mount namespaces, which live on as long as there are tasks in them.
func (d *stepDevices) close() {
	if d == nil || d.set == nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, ns := range d.derived {
		ns.Close()
	}
	d.host.Close()
	d.derived, d.set = nil, nil
}
