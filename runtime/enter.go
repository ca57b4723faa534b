package runtime

import (
	"errors"
	"fmt"
	"os"
	goruntime "runtime"
	"slices"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// PlanJoin lists the operations that run s in a container that is there already: those of
// [Plan] that concern the command alone. It has no side effects.
func PlanJoin(s *Spec, h *Host) ([]Op, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	ops := []Op{{Do: OpEnter}}
	if len(s.Hide) > 0 {
		ops = append(ops, Op{Do: OpHide, Args: s.Hide})
	}
	return append(ops, chdirOp(s), dropOp(s, h), filterOp(s, h), execOp(s)), nil
}

// crossing is a new process on its way into namespaces. The kernel lets nobody enter a user
// namespace who has several threads, as every Go program has (userns_install in
// kernel/user_namespace.c). A fork has one, until it executes a program: what happens in
// between is system calls and nothing else, on values that were laid out before.
type crossing struct {
	namespaces []uintptr // descriptors, in order
	keep       []uintptr // descriptors that the program gets, at the numbers that they have
	caps       []uintptr // capabilities that it gets as well
	exe        uintptr   // descriptor of the program
	argv, envv uintptr   // arrays of C strings
	empty      uintptr   // a C string
	report     uintptr   // descriptor of a pipe: told what failed
	mask       unix.Sigset_t
	header     unix.CapUserHeader
	data       [2]unix.CapUserData
	failed     [2]uintptr // which step, and the error
}

// What a crossing can fail at. A step of a namespace is its index.
const (
	stepCaps = 1000 + iota
	stepExec
)

// forkInto starts this program again in namespaces, as argv says, with files open beside 0,
// 1 and 2 and what this process was given by its parent. The files' numbers, which are
// appended to argv, are the same there.
func forkInto(ns []Namespace, argv []string, env []string, caps []uintptr, files []*os.File) (pid int, err error) {
	exe, err := os.OpenFile("/proc/self/exe", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer exe.Close()
	var pipe [2]int
	if err = unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return 0, err
	}
	defer unix.Close(pipe[0])
	e := &crossing{exe: exe.Fd(), report: uintptr(pipe[1]), caps: caps, header: unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}}
	for _, n := range ns {
		e.namespaces = append(e.namespaces, n.File.Fd())
	}
	for _, f := range files {
		e.keep = append(e.keep, f.Fd())
		argv = append(argv, fmt.Sprint(f.Fd()))
	}
	for _, c := range caps {
		e.data[c/32].Inheritable |= 1 << (c % 32)
	}
	cargv, err := syscall.SlicePtrFromStrings(argv)
	if err != nil {
		return 0, err
	}
	cenv, err := syscall.SlicePtrFromStrings(env)
	if err != nil {
		return 0, err
	}
	empty := [1]byte{}
	e.argv, e.envv = uintptr(unsafe.Pointer(&cargv[0])), uintptr(unsafe.Pointer(&cenv[0]))
	e.empty = uintptr(unsafe.Pointer(&empty[0]))
	// Nothing of this moves or goes while the numbers are in use.
	var pin goruntime.Pinner
	defer pin.Unpin()
	pin.Pin(&cargv[0])
	pin.Pin(&cenv[0])
	pin.Pin(&empty[0])
	pin.Pin(e)
	pid, errno := e.fork()
	unix.Close(pipe[1])
	goruntime.KeepAlive(files)
	goruntime.KeepAlive(ns)
	if errno != 0 {
		return 0, errno
	}
	if err = e.failure(pipe[0], ns); err != nil {
		var ws unix.WaitStatus
		for _, werr := unix.Wait4(pid, &ws, 0, nil); errors.Is(werr, unix.EINTR); _, werr = unix.Wait4(pid, &ws, 0, nil) {
		}
		return 0, err
	}
	return pid, nil
}

// failure waits until the program was executed, and says why it was not.
func (e *crossing) failure(pipe int, ns []Namespace) error {
	b := make([]byte, unsafe.Sizeof(e.failed))
	n, err := unix.Read(pipe, b)
	for errors.Is(err, unix.EINTR) {
		n, err = unix.Read(pipe, b)
	}
	if n <= 0 {
		return err
	}
	failed := *(*[2]uintptr)(unsafe.Pointer(&b[0]))
	errno := syscall.Errno(failed[1])
	switch at := int(failed[0]); {
	case at < len(ns):
		return fmt.Errorf("enter the container's %s namespace: %w", ns[at].Kind, errno)
	case at == stepCaps:
		return fmt.Errorf("keep capabilities in the container: %w", errno)
	}
	return fmt.Errorf("execute the init stage in the container: %w", errno)
}

// fork makes the process. No signal is handled in it: its handlers are this program's.
func (e *crossing) fork() (pid int, errno syscall.Errno) {
	goruntime.LockOSThread()
	defer goruntime.UnlockOSThread()
	syscall.ForkLock.Lock()
	defer syscall.ForkLock.Unlock()
	var all unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^all.Val[i]
	}
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, &e.mask); err != nil {
		errors.As(err, &errno)
		return 0, errno
	}
	r, errno := e.clone()
	_ = unix.PthreadSigmask(unix.SIG_SETMASK, &e.mask, nil)
	return int(r), errno
}

// clone forks, and returns in the parent only.
//
//go:noinline
//go:norace
//go:nosplit
func (e *crossing) clone() (pid uintptr, errno syscall.Errno) {
	pid, _, errno = syscall.RawSyscall6(syscall.SYS_CLONE, uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
	if errno == 0 && pid == 0 {
		e.child()
	}
	return pid, errno
}

// sigaction is the beginning of the kernel's struct sigaction, which is larger nowhere.
type sigaction struct{ handler, flags, restorer, mask, more uintptr }

// child enters the namespaces and executes the program. It allocates nothing, its stack
// does not grow, and it does not return.
//
//go:noinline
//go:norace
//go:nosplit
func (e *crossing) child() {
	// Ignored signals stay ignored.
	for sig := uintptr(1); sig <= 64; sig++ {
		var sa sigaction
		_, _, _ = syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, sig, 0, uintptr(unsafe.Pointer(&sa)), 8, 0, 0)
		if sa.handler > 1 { // neither SIG_DFL nor SIG_IGN
			sa = sigaction{}
			_, _, _ = syscall.RawSyscall6(syscall.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(&sa)), 0, 8, 0, 0)
		}
	}
	_, _, _ = syscall.RawSyscall(syscall.SYS_SETPGID, 0, 0, 0)
	for i := 0; i < len(e.namespaces); i++ {
		if _, _, errno := syscall.RawSyscall(unix.SYS_SETNS, e.namespaces[i], 0, 0); errno != 0 {
			e.fail(uintptr(i), errno)
		}
	}
	for i := 0; i < len(e.keep); i++ {
		_, _, _ = syscall.RawSyscall(syscall.SYS_FCNTL, e.keep[i], syscall.F_SETFD, 0)
	}
	if len(e.caps) > 0 {
		e.keepCaps()
	}
	_, _, _ = syscall.RawSyscall6(syscall.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&e.mask)), 0, 8, 0, 0)
	_, _, errno := syscall.RawSyscall6(unix.SYS_EXECVEAT, e.exe, e.empty, e.argv, e.envv, unix.AT_EMPTY_PATH, 0)
	e.fail(stepExec, errno)
}

// keepCaps makes capabilities ambient: all others go with exec.
//
//go:noinline
//go:norace
//go:nosplit
func (e *crossing) keepCaps() {
	wanted0, wanted1 := e.data[0].Inheritable, e.data[1].Inheritable
	_, _, errno := syscall.RawSyscall(syscall.SYS_CAPGET, uintptr(unsafe.Pointer(&e.header)), uintptr(unsafe.Pointer(&e.data[0])), 0)
	if errno != 0 {
		e.fail(stepCaps, errno)
	}
	e.data[0].Inheritable, e.data[1].Inheritable = wanted0, wanted1
	_, _, errno = syscall.RawSyscall(syscall.SYS_CAPSET, uintptr(unsafe.Pointer(&e.header)), uintptr(unsafe.Pointer(&e.data[0])), 0)
	if errno != 0 {
		e.fail(stepCaps, errno)
	}
	for i := 0; i < len(e.caps); i++ {
		_, _, errno = syscall.RawSyscall6(syscall.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, e.caps[i], 0, 0, 0)
		if errno != 0 {
			e.fail(stepCaps, errno)
		}
	}
}

// fail tells the parent, and ends the process.
//
//go:noinline
//go:norace
//go:nosplit
func (e *crossing) fail(step uintptr, errno syscall.Errno) {
	e.failed = [2]uintptr{step, uintptr(errno)}
	_, _, _ = syscall.RawSyscall(syscall.SYS_WRITE, e.report, uintptr(unsafe.Pointer(&e.failed)), unsafe.Sizeof(e.failed))
	for {
		_, _, _ = syscall.RawSyscall(syscall.SYS_EXIT_GROUP, 1, 0, 0)
	}
}

// joinable reports why no command can be started in namespaces.
func joinable(ns []Namespace) error {
	if len(ns) == 0 {
		return errors.New("the container has no namespaces")
	}
	if slices.ContainsFunc(ns, func(n Namespace) bool { return n.Kind == "pid" }) {
		return errors.New(`the container has processes of its own, which end with its first; "squire exec" adds others`)
	}
	return nil
}

// RootName is argv[0] of a stage of [RootOf]. A program that uses that must call
// [RootStage] at the start of main when it finds itself called so.
const RootName = "squire-root"

// RootOf returns a detached mount of the root of the container that has these namespaces,
// with its writable layer and nothing that is mounted on it, for another container that is
// to share the layer: the kernel does not know what two overlays of one do. A process in
// the container makes it, as nobody outside has the right.
func RootOf(ns []Namespace) (*os.File, error) {
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer ours.Close()
	pid, err := forkInto(ns, []string{RootName}, []string{"GOMAXPROCS=1"}, []uintptr{unix.CAP_SYS_ADMIN}, []*os.File{theirs})
	theirs.Close()
	if err != nil {
		return nil, err
	}
	var reply holdReply
	files, err := receiveMessage(ours, &reply, 1)
	var ws unix.WaitStatus
	for _, werr := unix.Wait4(pid, &ws, 0, nil); errors.Is(werr, unix.EINTR); _, werr = unix.Wait4(pid, &ws, 0, nil) {
	}
	switch {
	case err != nil:
	case reply.Error != "":
		err = errors.New(reply.Error)
	case len(files) == 1:
		return files[0], nil
	default:
		err = errors.New("it sent none")
	}
	closeFiles(files)
	return nil, fmt.Errorf("root of the container that runs: %w", err)
}

// RootStage is the process of [RootOf]. It returns the exit status.
func RootStage() int {
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) // for those in the container it is out of reach
	files, err := initFiles(os.Args[1:])
	if err != nil || len(files) != 1 {
		return ExitFailed
	}
	reply := new(holdReply)
	root, err := cloneRoot()
	if err != nil {
		reply.Error = OneLine(err)
		_ = sendMessage(files[0], reply)
		return ExitFailed
	}
	if sendMessage(files[0], reply, root) != nil {
		return ExitFailed
	}
	return 0
}

// cloneRoot returns a detached mount of the root directory, which can be written to also
// where the container's cannot.
func cloneRoot() (*os.File, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, "/", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("copy the mount: %w", err)
	}
	attr := unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY}
	if err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("make it writable: %w", err)
	}
	return os.NewFile(uintptr(fd), "root"), nil
}
