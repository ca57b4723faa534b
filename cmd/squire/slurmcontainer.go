package main

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/squirefs/squire/runtime"
	"github.com/squirefs/squire/runtime/container"
)

// slurmContainer is the container of a step on this node.
type slurmContainer struct {
	namespaces   []runtime.Namespace
	environ      []string // what the image sets
	dir          string   // where tasks start
	spec         *runtime.Spec
	capabilities uint64
	filter       string // see filterText

	touchedOnce sync.Once
	touched     map[string]bool // see variables

	held     *runtime.Held          // nil: somebody else made it
	devices  *stepDevices           // nil likewise
	first    bool                   // this is the first node of the step
	host     atomic.Pointer[string] // the node's name, as the tasks say
	finished sync.Once
	save     func() error // nil: it is not to be saved
	account  *stepAccount // nil: nobody wants it
	close    func()

	script []string // variables for a batch script on the host, where there is no container
}

// prepare makes the container.
func (s *slurmStep) prepare(ctx context.Context) (*slurmContainer, error) {
	options, err := s.order.resolve()
	if err != nil {
		return nil, err
	}
	if s.order.Batch && options.Batch == batchHost {
		return &slurmContainer{script: s.order.stepDefaults(options), close: func() {}}, nil
	}
	if !options.wanted() && len(s.order.Given) == 0 { // there are only variables, with defaults for other steps
		return &slurmContainer{close: func() {}}, nil
	}
	if !options.wanted() {
		return nil, errors.New("neither --container-image nor --container-name was given")
	}
	flags, err := options.runOptions()
	if err != nil {
		return nil, err
	}
	named, err := s.named(ctx, options, flags)
	if named != nil || err != nil {
		return named, err
	}
	imported, err := options.importImage(ctx, os.Stderr)
	if err != nil {
		return nil, err
	}
	if imported == nil {
		return s.make(ctx, flags, options, options.Path, nil)
	}
	c, err := s.make(ctx, flags, options, imported.Path, nil)
	if err != nil {
		imported.release()
		return nil, err
	}
	end := c.close
	c.close = func() {
		end()
		imported.release()
	}
	return c, nil
}

// make makes a container of the step's own, in n's if that is not nil.
func (s *slurmStep) make(ctx context.Context, flags *runOptions, options *slurmOptions, image string, n *namedRun) (*slurmContainer, error) {
	if os.Chdir(s.order.Cwd) != nil {
		_ = os.Chdir("/tmp") // where Slurm starts the tasks then, and says so
	}
	defer func() { _ = os.Chdir("/") }() // nothing keeps a file system busy
	s.pmix.wait(ctx)
	s.pty.wait(ctx)
	spec, err := s.spec(flags, options, image, n)
	if err != nil {
		return nil, err
	}
	if flags.account, err = newStepAccount(&s.order, image); err != nil {
		return nil, err
	}
	log, err := newEntrypointLog()
	if err != nil {
		return nil, err
	}
	defer log.Close()
	beside := n.beside()
	held, end, err := s.hold(flags, spec, n, log.File)
	if err != nil {
		return nil, log.explain(err)
	}
	if options.EntrypointLog {
		log.tell(os.Stderr)
	}
	flags.account.holds(held)
	c := &slurmContainer{
		namespaces: held.Namespaces, environ: held.Environ, dir: held.Workdir, spec: spec, filter: filterText(held.Filter()), held: held,
		devices: flags.devices.step, account: flags.account, first: s.order.NodeID == 0,
	}
	if held.KeepsCapabilities() {
		c.capabilities = ^uint64(0)
	}
	if d := c.devices; d == nil || d.set == nil || len(d.set.Nodes) == 0 {
		c.settle() // all tasks see the same
	}
	if n != nil {
		c.close = c.closeNamed(flags, n, beside)
	} else {
		c.close = c.closeUnnamed(flags, s.publish(options, held, spec), end)
	}
	return c, nil
}

// spec is what is asked for.
func (s *slurmStep) spec(flags *runOptions, options *slurmOptions, image string, n *namedRun) (*runtime.Spec, error) {
	spec, err := flags.spec(image, nil)
	if err != nil {
		return nil, err
	}
	spec.Entrypoint = options.Entrypoint
	if s.order.Batch && s.order.Script != "" {
		spec.Mounts = append(spec.Mounts, runtime.Mount{Source: s.order.Script, Target: s.order.Script, Flags: []string{"ro"}})
	}
	switch {
	case n.beside():
		spec.Layered, spec.Dir = true, ""
	case n != nil:
		spec.Upper = n.c.Layer()
	}
	return spec, nil
}

// hold makes what is asked for. end is to be called when it was closed.
func (s *slurmStep) hold(flags *runOptions, spec *runtime.Spec, n *namedRun, log *os.File) (held *runtime.Held, end func(), err error) {
	host := runtime.Probe()
	host.Terminal = s.pty.terminal
	ops, err := runtime.Plan(spec, host)
	if err == nil {
		err = runtime.CheckHold(spec)
	}
	if err == nil {
		err = flags.checkSources(spec)
	}
	switch {
	case err != nil:
	case n.beside():
		held, err = flags.holdLayered(spec, host, ops, n.c.State().Namespaces, log)
		end = func() {}
	case n != nil:
		err = n.hold(spec, host, ops, log)
		held, end = n.held, n.end
	default:
		held, end, err = flags.hold(spec, host, ops, log)
	}
	return held, end, err
}

// beside reports whether the container runs already, and another one is to share its layer.
func (n *namedRun) beside() bool { return n != nil && n.c.State() != nil }

// closeNamed returns what lets go of a container with a name, or of one beside it. Who has joined it keeps it.
func (c *slurmContainer) closeNamed(flags *runOptions, n *namedRun, beside bool) func() {
	return func() {
		c.tell()
		c.devices.close()
		flags.shared = n.c.Shared()
		n.c.Withdraw()
		if beside {
			c.held.Close()
		}
		n.close()
	}
}

// closeUnnamed is closeNamed for one without a name; published lets others join it, and may be nil.
func (c *slurmContainer) closeUnnamed(flags *runOptions, published *container.Container, end func()) func() {
	return func() {
		c.tell()
		c.devices.close()
		if published != nil {
			flags.shared = published.Shared()
			published.Withdraw()
			defer dropEmptyStore()
			defer published.Close()
		}
		c.held.Close()
		end()
	}
}

// reply is what a task has to do.
func (c *slurmContainer) reply(_ *slurmStep, task *slurmTask) (*slurmReply, error) {
	if host := valueOf(task.Env, "SLURMD_NODENAME"); host != "" {
		c.host.Store(&host)
	}
	if c.namespaces == nil {
		return &slurmReply{set: c.script}, nil
	}
	r := &slurmReply{namespaces: c.namespaces, dir: c.dir, capabilities: c.capabilities, filter: c.filter, supervised: c.save != nil}
	r.set, r.unset = taskEnviron(c.spec, c.variables(), task.Env, c.environ, c.dir)
	return r, c.devices.share(c.held, task, r)
}

// variables are those of a task that may have to change.
func (c *slurmContainer) variables() map[string]bool {
	c.touchedOnce.Do(func() { c.touched = runtime.TaskVariables(c.spec, c.environ) })
	return c.touched
}

// settle says that no task's view of the container will be another one's any more.
func (c *slurmContainer) settle() {
	if c.held != nil {
		c.held.Settle()
	}
}

// tell ends the account.
func (c *slurmContainer) tell() {
	if c.account != nil {
		c.account.Node = c.nodeName()
		c.account.write(c.first)
	}
}

// finish does what is to be done when all tasks have ended, once.
func (c *slurmContainer) finish() (err error) {
	c.finished.Do(func() {
		if c.tell(); c.save != nil {
			err = c.save()
		}
	})
	return err
}

// valueOf is the value of a variable in an environment.
func valueOf(env []string, name string) string {
	for _, kv := range env {
		if value, ok := strings.CutPrefix(kv, name+"="); ok {
			return value
		}
	}
	return ""
}
