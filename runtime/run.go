package runtime

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Runner runs one container: Start, then Send, then Wait. It belongs to one
// goroutine, which should be the main one.
type Runner struct {
	// Files are given to the MountFunc in the init stage.
	Files []*os.File
	// Join, if not nil, are the namespaces of a container that is there already, in the
	// order in which they have to be entered: the command is run there, by a plan of
	// [PlanJoin]. They stay the caller's.
	Join []Namespace
	// Environ, with Join, is what the image sets, as of Held.Environ.
	Environ []string
	// Log gets the output of an entrypoint that Hold runs. Nil: standard error.
	Log *os.File
	// Spare are child processes that are not of the container. Start adds those
	// that this process has already: a shell that executed it in its place may
	// have left some.
	Spare []int
	// Phases, if not nil, is called once when the command was started, by another
	// goroutine, with how long each part of the setup took. Wait waits for it.
	Phases func([]Phase)

	pid     int
	socket  *os.File
	control *os.File // connections for the init stage
	spec    *Spec
	upper   *upperDir
	signals chan os.Signal
	slack   int         // of timers, see relax
	running atomic.Bool // the command was started
}

// Start starts the init stage in its namespaces, where it waits for Send: its
// start-up overlaps with whatever the caller does meanwhile. Until then it has no
// children, and this process is not yet the one that orphans come to.
func (r *Runner) Start(s *Spec, h *Host) (err error) {
	r.Spare = append(r.Spare, children()...)
	if r.Join == nil {
		r.upper, err = openUpper(s.Upper)
	} else {
		err = joinable(r.Join)
	}
	if err != nil {
		return err
	}
	var theirs, control *os.File
	if r.socket, theirs, err = socketPair(); err != nil {
		return err
	}
	defer theirs.Close()
	if r.control, control, err = socketPair(); err != nil {
		return err
	}
	defer control.Close()
	r.spec = s
	extra := append([]*os.File{theirs, control}, r.Files...)
	if r.Log != nil {
		extra = append(extra, r.Log)
	}
	if r.upper != nil {
		extra = append(extra, r.upper.lock) // held as long as the container lives
	}
	if r.pid, err = r.fork(s, h, extra); err != nil {
		r.close()
	}
	return err
}

// fork starts the init stage with files.
func (r *Runner) fork(s *Spec, h *Host, extra []*os.File) (pid int, err error) {
	// The command's is sent with the plan, and is for it alone. More than one
	// processor would give init threads, which each have to drop its rights.
	env := []string{"GOMAXPROCS=1"}
	attr := namespaces(s, h)
	if r.Join != nil {
		return forkInto(r.Join, []string{InitName}, env, attr.AmbientCaps, extra)
	}
	files, at := childFiles(extra...)
	argv := []string{InitName}
	for _, n := range at {
		argv = append(argv, strconv.Itoa(n))
	}
	maps := lateMaps(attr)
	goruntime.LockOSThread()
	defer goruntime.UnlockOSThread()
	r.slack = relax()
	defer tighten(r.slack)
	pid, err = syscall.ForkExec("/proc/self/exe", argv, &syscall.ProcAttr{Env: env, Files: files, Sys: attr})
	if err != nil {
		return 0, explainClone(err, s, h)
	}
	if err = maps.write(pid); err != nil {
		_ = unix.Kill(pid, unix.SIGKILL)
		var ws unix.WaitStatus
		_, _ = unix.Wait4(pid, &ws, 0, nil)
		return 0, explainClone(err, s, h)
	}
	return pid, nil
}

func socketPair() (ours, theirs *os.File, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a socket pair: %w", err)
	}
	// Ours is waited for by Go's poller, see awaitEnd. The flag is that of one end.
	if err = unix.SetNonblock(pair[0], true); err != nil {
		return nil, nil, err
	}
	return os.NewFile(uintptr(pair[0]), "init"), os.NewFile(uintptr(pair[1]), "runner"), nil
}

// Send sends the plan. From here on the container runs, and signals are the
// command's: init builds while they come to be caught, and waits with the command.
func (r *Runner) Send(ops []Op) error {
	if err := r.sendOrder(ops); err != nil {
		return err
	}
	r.signals = catchSignals()
	_, _ = r.control.Write([]byte{caught}) // if init has ended, Wait tells why
	return nil
}

func (r *Runner) sendOrder(ops []Op) error {
	if err := becomeSubreaper(); err != nil {
		return fmt.Errorf("become a subreaper: %w", err)
	}
	o := &order{Spec: *r.spec, Ops: ops, Group: unix.Getpgrp(), Files: len(r.Files), Timed: r.Phases != nil, Environ: r.Environ, Slack: r.slack}
	if r.spec.unshares("pid") {
		o.Group = 0 // init is in it already
	}
	return writeMessage(r.socket, o)
}

// Wait forwards signals until the container has ended, ends what is left of
// it, and returns its exit status.
func (r *Runner) Wait() (int, error) {
	done := make(chan struct{})
	go r.forward(done)
	// Somebody may have the name. Then this container takes no further commands.
	if socket, err := net.ListenUnix("unix", controlName(os.Getpid())); err == nil {
		defer socket.Close()
		go r.admit(socket)
	}
	heard := make(chan struct{})
	go func() {
		defer close(heard)
		r.listen()
	}()
	awaitEnd(r.pid)
	var ws unix.WaitStatus
	for {
		_, err := unix.Wait4(r.pid, &ws, 0, nil)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EINTR) {
			return ExitFailed, fmt.Errorf("wait for the init stage: %w", err)
		}
	}
	close(done)
	<-heard // the other end of the socket is closed
	r.pid = 0
	endChildren(r.Spare...)
	r.close()
	return exitStatus(ws), nil
}

// Abandon ends a container that was started but is not wanted any more.
func (r *Runner) Abandon() {
	r.socket.Close() // init exits at the end of its input
	timer := time.AfterFunc(time.Second, func() { _ = unix.Kill(r.pid, unix.SIGKILL) })
	defer timer.Stop()
	var ws unix.WaitStatus
	for {
		if _, err := unix.Wait4(r.pid, &ws, 0, nil); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	r.close()
}

func (r *Runner) close() {
	r.socket.Close()
	r.control.Close()
	r.upper.close()
}

// listen waits for init to say that the command runs.
func (r *Runner) listen() {
	var b [1]byte
	if n, _ := r.socket.Read(b[:]); n == 1 && b[0] == started {
		r.running.Store(true)
		if r.Phases != nil {
			r.hearPhases()
		}
	}
}

// forward sends signals to init. What the terminal sent has reached the
// command, if there is one: they are in one process group.
func (r *Runner) forward(done <-chan struct{}) {
	for {
		select {
		case <-done:
			return
		case s := <-r.signals:
			if !r.running.Load() || !fromTerminal(s) {
				_, _ = r.socket.Write([]byte{byte(s.(syscall.Signal))})
			}
		}
	}
}

// upperDir is a writable layer on the host, locked for one container.
type upperDir struct {
	root *os.Root
	lock *os.File
}

// openUpper makes and locks the directory of a writable layer. Two overlays
// on one upper directory corrupt it, and overlayfs empties its work directory:
// a directory that holds anything but a layer is refused. An empty path gives
// nil, which is usable.
func openUpper(dir string) (*upperDir, error) {
	if dir == "" {
		return nil, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("writable layer: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("writable layer: %w", err)
	}
	if err = ours(root, dir); err != nil {
		root.Close()
		return nil, fmt.Errorf("writable layer %s: %w", dir, err)
	}
	lock, err := root.OpenFile(lockName, os.O_CREATE|os.O_RDWR, 0o600)
	if err == nil {
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		lock.Close() // nil is fine
		root.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("writable layer %s: in use by another container", dir)
		}
		return nil, fmt.Errorf("writable layer %s: %w", dir, err)
	}
	return &upperDir{root, lock}, nil
}

// IsLayer reports whether dir is one that holds a writable layer.
func IsLayer(dir string) bool {
	_, err := os.Lstat(filepath.Join(dir, lockName))
	_, err2 := os.Lstat(filepath.Join(dir, "upper"))
	return err == nil && err2 == nil
}

// ours returns an error unless the directory has our mark, or is empty.
func ours(root *os.Root, dir string) error {
	if _, err := root.Lstat(lockName); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	names, err := os.ReadDir(dir)
	if err == nil && len(names) > 0 {
		err = errors.New("holds other files; name a new or an empty directory")
	}
	return err
}

// lockName marks a directory as one of ours.
const lockName = ".lock"

// close unlocks, and removes overlayfs's work directory, which is left with mode 000 and
// empty, unless another process holds the lock as well: the layer is in use there. Errors
// do not matter: the next use finds and reuses what is left.
func (u *upperDir) close() {
	if u == nil {
		return
	}
	defer u.root.Close()
	u.lock.Close()
	lock, err := u.root.OpenFile(lockName, os.O_RDWR, 0)
	if err != nil {
		return
	}
	defer lock.Close()
	if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		return
	}
	_ = u.root.Chmod("work/work", 0o700)
	for _, name := range []string{"work/work", "work/index", "work"} {
		_ = u.root.Remove(name)
	}
}
