package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/internal/stage"
	"github.com/squirefs/squire/internal/wire"
	"github.com/squirefs/squire/runtime"
)

// Tasks of one step that srun starts as "squire run" share a container on each node, as with Slurm's plugin: one user
// namespace, without which they could not map each other's memory as MPI and CUDA do, one writable layer, one entry in
// the service. The first of them starts a process that holds the container and ends when the last of them has: none of
// them depends on another. Tasks of the same step that want something else have a container of their own.

// tasksName is argv[0] of the process that holds the container. The arguments are those of "squire run"; with
// tasksFork before them it is the process between, as for ownName.
const (
	tasksName   = "squire-tasks"
	tasksFork   = "fork"
	tasksSocket = 3 // its listening socket
)

const (
	tasksPatience = 10 * time.Second // for the first of the tasks
	tasksTries    = 20
)

// together reports whether the container is to be shared with other tasks on this node.
func (o *runOptions) together() bool {
	return os.Args[0] != tasksName && stepTasks(os.Getenv) > 1 && o.into == nil && !o.stats && !o.plan && !slices.Contains(o.unshare, "pid")
}

// stepTasks is how many tasks Slurm's step has on this node, 0 where there is none.
func stepTasks(getenv func(string) string) int {
	step, err := strconv.ParseUint(getenv("SLURM_STEP_ID"), 10, 32)
	if err != nil || step >= firstSpecialStep || getenv("SLURM_LOCALID") == "" {
		return 0
	}
	node, err := strconv.Atoi(getenv("SLURM_NODEID"))
	if err != nil {
		return 0
	}
	// As in 2(x3),1: three nodes with two tasks, and one with one.
	for part := range strings.SplitSeq(getenv("SLURM_STEP_TASKS_PER_NODE"), ",") {
		tasks, times, repeated := strings.Cut(part, "(x")
		n, err := strconv.Atoi(tasks)
		count := 1
		if repeated && err == nil {
			count, err = strconv.Atoi(strings.TrimSuffix(times, ")"))
		}
		if err != nil || count < 1 {
			return 0
		}
		if node < count {
			return n
		}
		node -= count
	}
	return 0
}

// firstSpecialStep is the least number of steps that srun does not start (slurm/slurm.h: SLURM_MAX_NORMAL_STEP_ID).
const firstSpecialStep = 0xfffffff0

// tasksReply is what a task gets, with a file of a tasksState and, in the order of its kinds, namespaces. A connection
// that ends without one was too late.
type tasksReply struct {
	Error string
	Again bool // Error was told a task before
	Kinds []string
}

// Fields makes it a wire.Message.
func (r *tasksReply) Fields(c *wire.Coder) {
	wire.String(c, &r.Error)
	c.Bool(&r.Again)
	c.Strings(&r.Kinds)
}

// tasksState is what a task has to know of the container.
type tasksState struct {
	Environ []string
	Workdir string
}

// Fields makes it a wire.Message.
func (s *tasksState) Fields(c *wire.Coder) {
	c.Strings(&s.Environ)
	wire.String(c, &s.Workdir)
}

// startTogether runs the command in the container that the tasks share, which is that of spec with the devices of all. ok
// is false if nothing can be shared.
func (o *runOptions) startTogether(spec *runtime.Spec, host *runtime.Host) (status int, ok bool, err error) {
	shared := *spec
	shared.Devices = o.devices.wide
	ops, err := runtime.Plan(&shared, host)
	if err != nil {
		return 0, true, err
	}
	name, err := tasksAddress(ops)
	if err != nil {
		return 0, false, nil
	}
	conn, reply, state, files, err := meetTasks(name)
	if err != nil {
		o.without(fmt.Errorf("a container with other tasks: %w", err))
		return 0, false, nil
	}
	defer conn.Close()
	defer closeAll(files)
	switch {
	case reply.Again:
		return runtime.ExitFailed, true, nil
	case reply.Error != "":
		return 0, true, errors.New(reply.Error)
	}
	own := *spec
	own.Hide, own.Devices = o.devices.hidden, nil
	if own.Workdir == "" {
		own.Workdir = state.Workdir
	}
	if ops, err = runtime.PlanJoin(&own, host); err != nil {
		return 0, true, err
	}
	r := &runtime.Runner{Environ: state.Environ, Phases: o.timesOfStart().report()}
	for i, kind := range reply.Kinds {
		r.Join = append(r.Join, runtime.Namespace{Kind: kind, File: files[1+i]})
	}
	status, err = runContainer(r, &own, host, ops, func() error { return nil })
	return status, true, err
}

// tasksAddress is the abstract name at which tasks find who holds their container: of the step on this node, and of what
// the container is like.
func tasksAddress(ops []runtime.Op) (string, error) {
	own, err := ownSocket()
	if err != nil {
		return "", err
	}
	h := sha256.New()
	for _, s := range []string{own, os.Getenv("SLURM_JOB_ID"), os.Getenv("SLURM_STEP_ID"), os.Getenv("SLURMD_NODENAME")} {
		fmt.Fprintf(h, "%q\n", s)
	}
	for _, op := range ops {
		if op.Do == runtime.OpChdir || op.Do == runtime.OpExec { // they are the command's
			continue
		}
		fmt.Fprintf(h, "%q %q %q %q %q\n", op.Do, op.Source, op.Target, op.Flags, op.Args)
	}
	return fmt.Sprintf("@squire-tasks-%d-%s", os.Geteuid(), hex.EncodeToString(h.Sum(nil)[:12])), nil
}

// meetTasks asks for the container at an address, and has somebody hold it if there is none.
func meetTasks(name string) (conn *wire.Conn, reply *tasksReply, state *tasksState, files []*os.File, err error) {
	for range tasksTries {
		conn, err = dialTasks(name)
		if errors.Is(err, unix.ECONNREFUSED) {
			if err = startTasks(name); err != nil && !errors.Is(err, unix.EADDRINUSE) {
				return nil, nil, nil, nil, err
			}
			continue
		}
		if err != nil {
			return nil, nil, nil, nil, err
		}
		reply, state = new(tasksReply), new(tasksState)
		if files, err = hearTasks(conn, reply, state); err == nil {
			return conn, reply, state, files, nil
		}
		conn.Close()
		if !errors.Is(err, io.EOF) && !errors.Is(err, unix.ECONNRESET) {
			return nil, nil, nil, nil, err
		}
		time.Sleep(ownPause)
	}
	return nil, nil, nil, nil, err
}

// dialTasks connects to a process of the same user: anybody may take an abstract name.
func dialTasks(name string) (*wire.Conn, error) {
	sock, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: name, Net: "unixpacket"})
	if err != nil {
		return nil, err
	}
	if !runtime.MayEnter(sock) {
		sock.Close()
		return nil, errors.New("its name is taken by somebody else")
	}
	return wire.NewConn(sock), nil
}

// hearTasks waits for the reply, however long it takes: an image may have to be imported.
func hearTasks(conn *wire.Conn, reply *tasksReply, state *tasksState) ([]*os.File, error) {
	files, err := conn.Recv(reply)
	if err != nil {
		return nil, err
	}
	if reply.Error == "" && !reply.Again {
		if len(reply.Kinds) == 0 || len(files) != 1+len(reply.Kinds) {
			err = errors.New("descriptors are missing")
		} else {
			var b []byte
			if b, err = io.ReadAll(io.NewSectionReader(files[0], 0, maxTasksState)); err == nil {
				err = wire.Decode(b, state)
			}
		}
	}
	if err != nil {
		closeAll(files)
		return nil, err
	}
	return files, nil
}

// maxTasksState bounds an encoded tasksState, in bytes: an image's configuration has at most 1 MiB.
const maxTasksState = 4 << 20

// startTasks starts the process that holds the container, listening at an address: it will do as this process was told.
func startTasks(name string) error {
	listener, err := listenOwn(name)
	if err != nil {
		return err
	}
	defer listener.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	var pid int
	// Descriptors that we inherited are for the command.
	runtime.Shielded(func() {
		pid, err = syscall.ForkExec("/proc/self/exe", append([]string{tasksName, tasksFork}, os.Args[1:]...), &syscall.ProcAttr{
			Env:   os.Environ(),
			Files: []uintptr{null.Fd(), null.Fd(), os.Stderr.Fd(), listener.Fd()},
			Sys:   &syscall.SysProcAttr{Setsid: true},
		})
	})
	if err != nil {
		return err
	}
	if ws := wait(pid); ws.ExitStatus() != 0 {
		return errors.New("who holds it did not start")
	}
	return nil
}

// tasksStage is the process that holds a container for the tasks of a step.
func tasksStage() int {
	if len(os.Args) > 1 && os.Args[1] == tasksFork {
		argv := append([]string{tasksName}, os.Args[2:]...)
		if _, err := syscall.ForkExec("/proc/self/exe", argv, &syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{0, 1, 2, tasksSocket}}); err != nil {
			return runtime.ExitFailed
		}
		return 0
	}
	stage.SetName(tasksName)
	return execute(os.Args[1:])
}

// tasksKeeper is the state of that process.
type tasksKeeper struct {
	listener *net.UnixListener
	ready    chan struct{} // closed when there is a container, or failed is set
	failed   error
	held     *runtime.Held
	state    *os.File

	mu    sync.Mutex
	told  int  // how many tasks have heard of failed
	late  bool // nobody is waited for any more
	conns int
	empty chan struct{} // told when there are no tasks any more
}

// keepTogether holds the container of this command line for tasks that come, until all of them have ended.
func (o *runOptions) keepTogether(image string) error {
	unix.CloseOnExec(tasksSocket)
	// A client sees who called listen(2) last (net/unix/af_unix.c: unix_listen), and that has to be one who stays.
	if err := unix.Listen(tasksSocket, unix.SOMAXCONN); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	f := os.NewFile(tasksSocket, "tasks")
	l, err := net.FileListener(f)
	f.Close()
	if err != nil {
		return err
	}
	ch := make(chan os.Signal, 8)
	signal.Notify(ch, stepSignals...) // for the tasks; they end, and so does this
	k := &tasksKeeper{listener: l.(*net.UnixListener), ready: make(chan struct{}), empty: make(chan struct{}, math.MaxInt8)}
	go k.accept()
	end, err := k.hold(o, image)
	k.failed = err
	close(k.ready)
	k.quiet()
	timer := time.AfterFunc(tasksPatience, k.lose)
	<-k.empty
	timer.Stop()
	if k.held != nil {
		k.held.Close()
		end()
	}
	return nil
}

// hold makes the container.
func (k *tasksKeeper) hold(o *runOptions, image string) (end func(), err error) {
	if image, err = o.importFirst(image); err != nil {
		return nil, err
	}
	o.devices.widen = true
	spec, err := o.spec(image, nil)
	if err != nil {
		return nil, err
	}
	spec.Devices, spec.Entrypoint = o.devices.wide, false
	host := runtime.Probe()
	ops, err := runtime.Plan(spec, host)
	if err == nil {
		err = o.checkSources(spec)
	}
	if err != nil {
		return nil, err
	}
	if k.held, end, err = o.hold(spec, host, ops, nil); err != nil {
		return nil, err
	}
	k.held.Settle()
	fd, err := unix.MemfdCreate("tasks", unix.MFD_CLOEXEC)
	if err != nil {
		return end, err
	}
	k.state = os.NewFile(uintptr(fd), "tasks")
	_, err = k.state.Write(wire.Encode(&tasksState{Environ: k.held.Environ, Workdir: k.held.Workdir}))
	return end, err
}

// quiet lets go of the first task's standard error, for whose end Slurm waits.
func (k *tasksKeeper) quiet() {
	if null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0); err == nil {
		_ = unix.Dup3(int(null.Fd()), 2, 0)
		null.Close()
	}
}

// accept takes tasks until the listener is closed.
func (k *tasksKeeper) accept() {
	for {
		sock, err := k.listener.AcceptUnix()
		if err != nil {
			return
		}
		if !runtime.MayEnter(sock) {
			sock.Close()
			continue
		}
		k.mu.Lock()
		k.conns++
		k.mu.Unlock()
		go k.serve(wire.NewConn(sock))
	}
}

// serve gives a task the container, and waits until it has ended.
func (k *tasksKeeper) serve(conn *wire.Conn) {
	defer k.leave(1)
	defer conn.Close()
	<-k.ready
	reply, files := k.reply()
	_ = conn.SetDeadline(time.Now().Add(replyTimeout))
	if conn.Send(reply, files...) != nil {
		return
	}
	_ = conn.SetDeadline(time.Time{})
	_ = conn.RecvPlain(new(tasksReply))
}

func (k *tasksKeeper) reply() (*tasksReply, []*os.File) {
	if k.failed != nil {
		k.mu.Lock()
		defer k.mu.Unlock()
		r := &tasksReply{Error: runtime.OneLine(k.failed), Again: k.told > 0}
		k.told++
		return r, nil
	}
	r, files := new(tasksReply), []*os.File{k.state}
	for _, n := range k.held.Namespaces {
		r.Kinds, files = append(r.Kinds, n.Kind), append(files, n.File)
	}
	return r, files
}

// leave counts down. Whoever connects after the last one finds nobody, and another container.
func (k *tasksKeeper) leave(n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.conns -= n
	// What is wrong is to be told once, also when a task comes after others have heard it and ended.
	if waits := k.failed != nil && !k.late && k.told < stepTasks(os.Getenv); waits || k.conns > 0 {
		return
	}
	k.listener.Close()
	select {
	case k.empty <- struct{}{}:
	default:
	}
}

// lose is for when the patience has ended.
func (k *tasksKeeper) lose() {
	k.mu.Lock()
	k.late = true
	k.mu.Unlock()
	k.leave(0)
}
