package runtime

import (
	"errors"
	"fmt"
	"os"
	goruntime "runtime"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/internal/wire"
)

// A container can be held: its namespaces and mounts are made as for a command, and live by descriptors of them, for
// processes that others start and that join. The init stage sends the descriptors instead of executing a command. It
// stays, outside of what processes in the container may touch, while it may still be asked for something: for the
// namespaces of a process that shall see other devices. Then it ends.

// Held is a container that is held. It belongs to one goroutine at a time, but for its fields, which do not change.
type Held struct {
	// Namespaces are those that are not this process's own, in the order in which to join them (setns(2)).
	Namespaces []Namespace
	// Workdir is the directory to be in, inside, as the plan and the image's Config have it.
	Workdir string
	// Environ is what the image sets, its entrypoint, and drivers of the host in it: see TaskEnvironment.
	Environ []string
	// Digest is that of the image's Config.
	Digest string
	// Phases are how long the parts of the setup took.
	Phases []Phase

	r       *Runner
	ops     []Op
	settled sync.Once
}

// Namespace is a namespace by descriptor.
type Namespace struct {
	Kind string // the name of its file in /proc/PID/ns
	File *os.File
}

// namespaceKinds are the files in /proc/self/ns in the order in which to join them: the rights to join the others come
// with the user namespace.
var namespaceKinds = []string{"user", "cgroup", "mnt", "ipc", "uts", "net"}

// CheckHold reports what cannot be held: a PID namespace ends with its first process.
func CheckHold(s *Spec) error {
	if s.unshares("pid") {
		return errors.New("a PID namespace needs a process in it, and cannot be joined by tasks")
	}
	return nil
}

// holdRequest asks the init stage that holds a container for a mount namespace without the device nodes in Hide, paths
// below /dev.
type holdRequest struct{ Hide []string }

// Fields makes it a wire.Message.
func (h *holdRequest) Fields(c *wire.Coder) { c.Strings(&h.Hide) }

// holdReply is what the init stage answers: first, with the descriptors of all namespaceKinds, how the setup went; then
// once to each holdRequest.
type holdReply struct {
	Error   string
	Workdir string
	Environ []string
	Digest  string
	Phases  phases
}

// Fields makes it a wire.Message.
func (h *holdReply) Fields(c *wire.Coder) {
	wire.String(c, &h.Error)
	wire.String(c, &h.Workdir)
	c.Strings(&h.Environ)
	wire.String(c, &h.Digest)
	h.Phases.Fields(c)
}

// Hold is instead of Send and Wait: it sends the plan and waits until the container is there. The caller closes what it
// returns. On error the container is gone, as after Abandon.
func (r *Runner) Hold(ops []Op) (*Held, error) {
	h, err := r.hold(ops)
	if err != nil {
		r.Abandon()
		return nil, err
	}
	return h, nil
}

func (r *Runner) hold(ops []Op) (*Held, error) {
	if err := CheckHold(r.spec); err != nil {
		return nil, err
	}
	o := &order{Spec: *r.spec, Ops: ops, Files: len(r.Files), Hold: true, Log: r.Log != nil, Slack: r.slack}
	if err := becomeSubreaper(); err != nil {
		return nil, fmt.Errorf("become a subreaper: %w", err)
	}
	if err := writeMessage(r.socket, o); err != nil {
		return nil, fmt.Errorf("talk to the init stage: %w", err)
	}
	r.control.Close() // there will be no connections
	var reply holdReply
	files, err := receiveMessage(r.socket, &reply, len(namespaceKinds))
	switch {
	case err != nil:
		return nil, fmt.Errorf("the init stage ended early: %w", err)
	case reply.Error != "":
		return nil, errors.New(reply.Error)
	case len(files) != len(namespaceKinds):
		closeFiles(files)
		return nil, errors.New("the init stage sent no namespaces")
	}
	h := &Held{Workdir: reply.Workdir, Environ: reply.Environ, Digest: reply.Digest, Phases: reply.Phases.list, r: r, ops: ops}
	for i, f := range files {
		if kind := namespaceKinds[i]; isOwnNamespace(f, kind) {
			f.Close()
		} else {
			h.Namespaces = append(h.Namespaces, Namespace{kind, f})
		}
	}
	return h, nil
}

// isOwnNamespace reports whether this process is in the namespace f.
func isOwnNamespace(f *os.File, kind string) bool {
	var own, other unix.Stat_t
	err := errors.Join(unix.Stat("/proc/self/ns/"+kind, &own), unix.Fstat(int(f.Fd()), &other))
	return err == nil && own.Dev == other.Dev && own.Ino == other.Ino
}

// Derive returns a mount namespace for a single process. It is the container's but for its /dev, which is a copy of the
// container's /dev without the device nodes in hide, absolute paths. The caller closes it.
func (h *Held) Derive(hide []string) (*os.File, error) {
	var reply holdReply
	var files []*os.File
	err := sendMessage(h.r.socket, &holdRequest{Hide: hide})
	if err == nil {
		files, err = receiveMessage(h.r.socket, &reply, 1)
	}
	switch {
	case err != nil:
	case reply.Error != "":
		err = errors.New(reply.Error)
	case len(files) != 1:
		err = errors.New("the init stage sent no namespace")
	}
	if err != nil {
		closeFiles(files)
		return nil, fmt.Errorf("make a mount namespace of other devices: %w", err)
	}
	return files[0], nil
}

// Settle says that Derive will not be called any more: the init stage ends. It does not wait for that.
func (h *Held) Settle() {
	h.settled.Do(func() { _ = unix.Shutdown(int(h.r.socket.Fd()), unix.SHUT_WR) })
}

// Filter is the program that filters the system calls of the container's processes (struct sock_filter, seccomp(2)). They
// need no_new_privs. Nil: none.
func (h *Held) Filter() []unix.SockFilter { return Filter(h.ops) }

// Filter is that of a plan.
func Filter(ops []Op) []unix.SockFilter {
	i := slices.IndexFunc(ops, func(op Op) bool { return op.Do == OpFilter })
	known := abis(goruntime.GOARCH)
	if i < 0 || known == nil {
		return nil
	}
	return filter(known, ops[i].Flags)
}

// KeepsCapabilities reports whether processes keep the capabilities that they have in the container's user namespace.
func (h *Held) KeepsCapabilities() bool { return KeepsCapabilities(h.ops) }

// KeepsCapabilities is that of a plan.
func KeepsCapabilities(ops []Op) bool {
	return !slices.ContainsFunc(ops, func(op Op) bool { return op.Do == OpDrop && slices.Contains(op.Flags, "capabilities") })
}

// Lock is the lock of the container's writable layer, nil if it has none on the host. Whoever is in the container has to
// hold it: no other container may have the layer.
func (h *Held) Lock() *os.File {
	if h.r.upper == nil {
		return nil
	}
	return h.r.upper.lock
}

// Close lets go of the container. It lives on while a process is in it. What an entrypoint has left behind is killed, if
// it is not of the plan's Spare.
func (h *Held) Close() {
	h.Settle()
	for _, n := range h.Namespaces {
		n.File.Close()
	}
	h.r.Abandon()
	endChildren(h.r.Spare...)
}

// hold is the init stage of a container that is held. It returns the exit status.
func hold(o *order, b *builder, runner, log *os.File) int {
	reply, proc, files, err := makeHeld(o, b, log)
	if err != nil {
		reply = &holdReply{Error: OneLine(explain(err, &o.Spec))}
	}
	if sendMessage(runner, reply, files...) != nil || err != nil {
		return ExitFailed
	}
	closeFiles(files)
	d := &deriver{ops: b.ops, proc: proc}
	for {
		var q holdRequest
		if err := readMessage(runner, &q); err != nil {
			return 0 // nothing more is wanted
		}
		ns, err := d.derive(q.Hide)
		if err != nil {
			_ = writeMessage(runner, &holdReply{Error: OneLine(err)})
			continue
		}
		_ = sendMessage(runner, new(holdReply), ns)
		ns.Close()
	}
}

// makeHeld makes the container. It returns the host's /proc as well, and all namespaces.
func makeHeld(o *order, b *builder, log *os.File) (reply *holdReply, proc int, files []*os.File, err error) {
	// While the host is in sight.
	if proc, err = unix.Open("/proc", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return nil, -1, nil, fmt.Errorf("open /proc: %w", err)
	}
	if files, err = ownNamespaces(); err != nil {
		return nil, proc, nil, err
	}
	if err = b.apply(); err != nil {
		return nil, proc, nil, err
	}
	// What will be in the container is of the same user, and has less rights.
	if err = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return nil, proc, nil, fmt.Errorf("set not dumpable: %w", err)
	}
	reply = &holdReply{Phases: b.phases}
	env, dir, err := enterHeld(o, b, log)
	if err != nil {
		return nil, proc, nil, err
	}
	reply.Environ, reply.Workdir, reply.Digest = heldEnviron(o.Ops, env), dir, b.config.Digest
	return reply, proc, files, nil
}

func ownNamespaces() (files []*os.File, err error) {
	for _, kind := range namespaceKinds {
		f, err := os.Open("/proc/self/ns/" + kind)
		if err != nil {
			return nil, fmt.Errorf("own namespace: %w", err)
		}
		files = append(files, f)
	}
	return files, nil
}

// enterHeld runs the entrypoint, if one is wanted, in a thread that gives up what that must not have, and so ends. It
// returns what the image sets, and the directory to be in.
func enterHeld(o *order, b *builder, log *os.File) (env []string, dir string, err error) {
	image := b.config.environ()
	if !o.Spec.Entrypoint || len(b.config.Entrypoint) == 0 {
		return image, b.workdir, nil
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		goruntime.LockOSThread() // never unlocked: the thread ends with the goroutine
		tighten(o.Slack)
		if err = dropForCommand(o.Ops); err == nil {
			env, dir, err = b.config.runEntrypoint(&o.Spec, image, b.workdir, log)
		}
	}()
	<-done
	return env, dir, err
}

// dropForCommand does in this thread alone what the plan wants to be done before the command is executed.
func dropForCommand(ops []Op) (err error) {
	for _, op := range ops {
		switch op.Do {
		case OpDrop:
			err = dropThread(slices.Contains(op.Flags, "capabilities"))
		case OpFilter:
			err = installFilter(op.Flags)
		}
		if err != nil {
			return &OpError{op, err}
		}
	}
	return nil
}
