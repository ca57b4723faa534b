package runtime

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path"
	goruntime "runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/internal/rights"
	"github.com/squirefs/squire/internal/stage"
	"github.com/squirefs/squire/internal/wire"
)

// InitName is argv[0] of the init stage. A program that uses a [Runner] must call
// [Init] at the start of main when it finds itself called so.
const InitName = "squire-init"

// order is what the runner tells the init stage.
type order struct {
	Spec Spec
	Ops  []Op
	// Group is the runner's process group, which the command joins: the
	// terminal's foreground group, if any is. Init has a group of its own, so
	// that what kills the group leaves somebody to end the rest. 0: init is in
	// the group, as the first process of a PID namespace, whose end ends the rest.
	Group int
	// Files is how many descriptors are for the MountFunc. More are only held.
	Files int
	// Timed: the runner wants to know how long the parts of the setup took.
	Timed bool
	// Environ is what the image sets, in a container that is there already.
	Environ []string
	// Hold: no command, see Runner.Hold.
	Hold bool
	// Log: the next descriptor is for the output of an entrypoint that is not the command.
	Log bool
	// Slack is that of the command's timers, see relax.
	Slack int
}

// Fields makes it a wire.Message.
func (o *order) Fields(c *wire.Coder) {
	s := &o.Spec
	wire.String(c, &s.Image)
	wire.String(c, &s.Dir)
	c.Strings(&s.DirWithin)
	c.Strings(&s.Command)
	c.Bool(&s.Entrypoint)
	wire.String(c, &s.Workdir)
	wire.Slice(c, &s.Mounts, func(c *wire.Coder, m *Mount) {
		wire.String(c, &m.Source)
		wire.String(c, &m.Target)
		c.Strings(&m.Flags)
		c.Strings(&m.Within)
	})
	c.Bool(&s.Writable)
	wire.String(c, &s.Upper)
	wire.String(c, &s.UpperSize)
	c.Bool(&s.Layered)
	c.Strings(&s.Hide)
	c.Bool(&s.RemapRoot)
	c.Strings(&s.Unshare)
	wire.String(c, &s.Hostname)
	c.Strings(&s.Environ)
	c.Strings(&s.KeepEnv)
	c.Strings(&s.SetEnv)
	wire.Slice(c, &o.Ops, func(c *wire.Coder, op *Op) {
		wire.String(c, &op.Do)
		wire.String(c, &op.Source)
		wire.String(c, &op.Target)
		c.Strings(&op.Flags)
		c.Strings(&op.Args)
		c.Strings(&op.Within)
	})
	wire.Int(c, &o.Group)
	wire.Int(c, &o.Files)
	c.Bool(&o.Timed)
	c.Strings(&o.Environ)
	c.Bool(&o.Hold)
	c.Bool(&o.Log)
	wire.Int(c, &o.Slack)
}

// maxOrder bounds the order's size. Arguments and environment of a command are
// at most 6 MiB (execve(2): 3/4 of the kernel's _STK_LIM).
const maxOrder = 16 << 20

// Init is the init stage: it takes the order from the runner, carries it out,
// and returns the exit status for this process. The arguments after argv[0]
// are descriptor numbers: the runner's two sockets, then the files for mount.
// config may be nil.
func Init(mount MountFunc, config ConfigFunc) int {
	// Pdeathsig is sent when the thread that forked ends, not the process.
	goruntime.LockOSThread()
	stage.SetName(InitName)
	files, err := initFiles(os.Args[1:])
	if err != nil {
		return fail(ExitFailed, err)
	}
	// Who signals every process of a job means the command, which gets its own
	// and the runner's; init has to see it through.
	outliveSignals()
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	// Now, while the runner is busy and there are few threads. drop does it if this failed, and says why.
	_ = rights.NoNewPrivs()
	if len(files) < 2 {
		return fail(ExitFailed, errors.New("want two sockets"))
	}
	runner, control := files[0], files[1]
	var o order
	if err = readMessage(runner, &o); err != nil {
		return ExitFailed // the runner gave up, and has said why
	}
	tighten(o.Slack)
	if o.Hold {
		control.Close()
		return hold(&o, newBuilder(&o, mount, config, files[2:2+o.Files]), runner, o.log(files))
	}
	if runner, err = polled(runner); err != nil {
		return fail(ExitFailed, err)
	}
	t := &task{pidfd: -1, sessions: make(chan *session), running: map[int]*session{}}
	go t.dieWith(runner)
	b := newBuilder(&o, mount, config, files[2:2+o.Files])
	if err := b.apply(); err != nil {
		return fail(ExitFailed, explain(err, &o.Spec))
	}
	t.spec, t.ops, t.imageEnv, t.workdir = &o.Spec, o.Ops, b.config.environ(), b.workdir
	if o.Environ != nil {
		t.imageEnv = o.Environ
	}
	return t.run(&o, b, runner, control, children)
}

// task is the command, for the goroutine that starts it and the ones that
// signal it, and what further commands need.
type task struct {
	mu    sync.Mutex
	pidfd int // -1 before the command was started; a pid could be reused

	sessions chan *session    // to be started
	running  map[int]*session // by process id; of the goroutine that starts them
	spec     *Spec
	ops      []Op
	imageEnv []string
	workdir  string
}

// environment is that of a command that s asks for, in directory dir.
func (t *task) environment(s *Spec, dir string) []string {
	return driverEnvironment(t.ops, environment(s, t.imageEnv, dir))
}

// run starts the command, waits for it, and ends what it left behind.
func (t *task) run(o *order, b *builder, runner, control *os.File, children <-chan os.Signal) int {
	if err := becomeSubreaper(); err != nil {
		return fail(ExitFailed, err)
	}
	var told [1]byte
	if _, err := io.ReadFull(control, told[:]); err != nil || told[0] != caught {
		return ExitFailed // the runner is gone
	}
	argv := b.config.command(o.Ops[len(o.Ops)-1])
	begin := time.Now()
	pid, err := t.start(argv, t.environment(t.spec, t.workdir), o.Group)
	if err != nil {
		code := ExitNoExec
		if errors.Is(err, os.ErrNotExist) {
			code = ExitNotFound
		}
		return fail(code, fmt.Errorf("%s: %w", o.Spec.Image, err))
	}
	_, _ = runner.Write([]byte{started})
	if o.Timed {
		b.phases.since(begin, Op{Do: OpExec}.phase())
		tellPhases(runner, &b.phases)
	}
	for _, fd := range inherited() { // these were the command's
		unix.CloseOnExec(fd)
	}
	if control, err = polled(control); err != nil {
		return fail(ExitFailed, err)
	}
	go t.admit(control)
	status := t.supervise(pid, children)
	endAll()
	return status
}

// polled has a socket be waited for by Go's poller. A thread that waits in a system call of another kind keeps the runtime's
// one processor until the runtime looks, up to stageSlack later, and nobody hears meanwhile that the command has ended.
func polled(socket *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(socket.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		return nil, fmt.Errorf("socket of the container: %w", err)
	}
	name := socket.Name()
	socket.Close()
	return os.NewFile(uintptr(fd), name), nil
}

// supervise starts further commands and reaps every child until pid has ended. It
// returns pid's exit status.
func (t *task) supervise(pid int, children <-chan os.Signal) int {
	for {
		select {
		case s := <-t.sessions:
			s.started <- t.startSession(s)
		case <-children:
			if status, ended := t.reap(pid); ended {
				return status
			}
		}
	}
}

// started is what the runner is told when the command runs: from then on, the
// terminal reaches it.
const started = 1

// caught is what the init stage is told, before connections, when signals to the runner
// are caught. To catch them all takes as long as half of the setup.
const caught = 1

// start looks the command up in the container's PATH and starts it. A signal
// that comes meanwhile waits for its end.
func (t *task) start(argv, env []string, group int) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	file, err := lookPath(argv[0], env)
	if err != nil {
		return 0, err
	}
	pid, err := syscall.ForkExec(file, argv, &syscall.ProcAttr{
		Env:   env,
		Files: []uintptr{0, 1, 2}, // with those that the caller left open, see childFiles
		Sys:   &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: group != 0, Pgid: group, PidFD: &t.pidfd},
	})
	return pid, explainExec(file, err)
}

func explainExec(file string, err error) error {
	switch {
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("%s: its interpreter or dynamic loader is not in the image", file)
	case errors.Is(err, unix.ENOEXEC):
		return fmt.Errorf("%s: not a program for this machine, or a script without #!: %w", file, err)
	case err != nil:
		return fmt.Errorf("execute %s: %w", file, err)
	}
	return nil
}

// lookPath finds a program as execvp(3) does. It has to be found here and not
// on the host, whose directories are not the container's.
func lookPath(name string, env []string) (string, error) {
	if name == "" {
		return "", fmt.Errorf("the command is empty: %w", errNotFound)
	}
	if strings.Contains(name, "/") {
		return name, executable(name)
	}
	var e envList
	for _, kv := range env {
		e.set(kv)
	}
	search, _ := e.get("PATH")
	var denied error
	for _, dir := range strings.Split(search, ":") {
		file := path.Join(dir, name)
		if dir == "" {
			file = "./" + name
		}
		err := executable(file)
		if err == nil {
			return file, nil
		}
		if denied == nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
			denied = err
		}
	}
	if denied != nil {
		return "", denied
	}
	return "", fmt.Errorf("%s: %w in the container's PATH (%s)", name, errNotFound, search)
}

// errNotFound reads better than "file does not exist".
var errNotFound error = notFound{}

type notFound struct{}

func (notFound) Error() string        { return "command not found" }
func (notFound) Is(target error) bool { return target == os.ErrNotExist }

func executable(file string) error {
	var st unix.Stat_t
	switch err := unix.Stat(file, &st); {
	case errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR):
		return fmt.Errorf("%s: %w", file, errNotFound)
	case err != nil:
		return fmt.Errorf("%s: %w", file, err)
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return fmt.Errorf("%s: is a directory", file)
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return fmt.Errorf("%s: not a regular file", file)
	}
	if err := unix.Access(file, unix.X_OK); err != nil {
		return fmt.Errorf("%s: not executable: %w", file, err)
	}
	return nil
}

// reap reaps the children that have ended, up to pid.
func (t *task) reap(pid int) (status int, ended bool) {
	for {
		var ws unix.WaitStatus
		got, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fail(ExitFailed, fmt.Errorf("wait for the command: %w", err)), true
		case got == 0:
			return 0, false
		case got == pid:
			return exitStatus(ws), true
		default:
			t.sessionEnded(got, exitStatus(ws))
		}
	}
}

// sessionEnded tells the client of the command that was process pid.
func (t *task) sessionEnded(pid, status int) {
	s, ok := t.running[pid]
	if !ok {
		return
	}
	delete(t.running, pid)
	t.mu.Lock()
	s.pid = 0
	unix.Close(s.pidfd)
	t.mu.Unlock()
	s.ended <- status
}

// dieWith passes on the runner's signals, and ends the container when the
// runner is gone. Each message is one byte: the signal.
func (t *task) dieWith(runner *os.File) {
	var b [1]byte
	for {
		if _, err := io.ReadFull(runner, b[:]); err != nil {
			endAll()
			os.Exit(exitSignalled + int(unix.SIGKILL)) //nolint:forbidigo // the main goroutine waits in the kernel
		}
		t.signal(unix.Signal(b[0]))
	}
}

// endAll ends the rest of the container, in the init stage. In a PID namespace of
// its own that is left to the kernel, which does it when the first process ends and
// before anybody hears of it (zap_pid_ns_processes, kernel/pid_namespace.c): /proc
// may be the host's there, and its numbers mean others here.
func endAll() {
	if unix.Getpid() != 1 {
		endChildren()
	}
}

// signal passes a signal on. One that comes before the command runs is
// answered as the command would without a handler.
func (t *task) signal(sig unix.Signal) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.pidfd >= 0:
		_ = unix.PidfdSendSignal(t.pidfd, sig, nil, 0)
	case sig == unix.SIGWINCH || sig == unix.SIGIO || sig == unix.SIGPWR:
	default:
		os.Exit(exitSignalled + int(sig)) //nolint:forbidigo // as in dieWith
	}
}

// log is the file for an entrypoint's output.
func (o *order) log(files []*os.File) *os.File {
	if o.Log {
		return files[2+o.Files]
	}
	return os.Stderr
}

func initFiles(args []string) ([]*os.File, error) {
	if len(args) == 0 {
		return nil, errors.New("this name is for squire's own use; call it squire")
	}
	var files []*os.File
	for _, a := range args {
		n, err := strconv.Atoi(a)
		if err != nil || n < 3 {
			return nil, fmt.Errorf("descriptor %q: not a number above 2", a)
		}
		unix.CloseOnExec(n)
		files = append(files, os.NewFile(uintptr(n), "descriptor "+a))
	}
	return files, nil
}

// explain adds what the user can do about a failed operation.
func explain(err error, s *Spec) error {
	var op *OpError
	if !errors.As(err, &op) {
		return err
	}
	switch {
	case op.Op.Do == OpChdir && errors.Is(err, os.ErrNotExist):
		if s.Workdir == "" {
			return fmt.Errorf("working directory %s: not in %s, whose configuration names it; --workdir chooses another", op.Op.Target, s.Image)
		}
		return fmt.Errorf("working directory %s: %w; it is not in %s", op.Op.Target, unix.ENOENT, s.Image)
	case errors.Is(err, unix.EOVERFLOW):
		// overlayfs cannot copy up what belongs to an id without a mapping.
		return fmt.Errorf("%w; %s has directories of other users, which cannot be added to", err, s.Image)
	case op.Op.Do == OpBind && errors.Is(err, unix.EROFS):
		return fmt.Errorf("%w; the place for the mount cannot be made there", err)
	}
	return err
}

// fail reports err on standard error, one line, and returns code.
func fail(code int, err error) int {
	// Init is in the background of its terminal. With "stty tostop" writing
	// there would stop it, unless the signal for that is blocked.
	var ttou unix.Sigset_t
	ttou.Val[0] = 1 << (unix.SIGTTOU - 1)
	_ = unix.PthreadSigmask(unix.SIG_BLOCK, &ttou, nil)
	fmt.Fprintln(os.Stderr, "squire:", OneLine(err))
	return code
}

// OneLine is the text of an error, which may quote names from an image, on one
// line and free of what a terminal would obey.
func OneLine(err error) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return '?'
		}
		return r
	}, err.Error())
}

func writeMessage(w io.Writer, m wire.Message) error {
	b := wire.Encode(m)
	if len(b) > maxOrder {
		return fmt.Errorf("command and environment of %d bytes are too large", len(b))
	}
	_, err := w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
	return err
}

func readMessage(r io.Reader, m wire.Message) error {
	var n [4]byte
	if _, err := io.ReadFull(r, n[:]); err != nil {
		return err
	}
	return readBody(r, n[:], m)
}

// readBody reads what follows the length of a message.
func readBody(r io.Reader, head []byte, m wire.Message) error {
	size := binary.BigEndian.Uint32(head)
	if size > maxOrder {
		return fmt.Errorf("message of %d bytes", size)
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(r, b); err != nil {
		return err
	}
	return wire.Decode(b, m)
}
