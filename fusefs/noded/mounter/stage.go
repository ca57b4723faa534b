package mounter

import (
	"errors"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/internal/rights"
	"github.com/squirefs/squire/internal/stage"
	"github.com/squirefs/squire/internal/wire"
)

// argv[0] of the helpers.
const (
	lockerName = Name + "-locker"
	idmapName  = Name + "-idmap"
)

// socket is the descriptor of a stage that leads to the process that started it.
const socket = 3

// Main is the stage. It returns the exit status.
func Main() int {
	stage.SetName(os.Args[0])
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM)
	closeInherited()
	notSpared()
	conn, err := wire.FileConn(os.NewFile(socket, "parent"))
	if err != nil {
		return 1
	}
	switch os.Args[0] {
	case lockerName:
		err = lock(conn)
	case idmapName:
		_, err = conn.Recv(new(lockRequest)) // until the other end is closed
	default:
		err = serve(conn)
	}
	if err != nil {
		return 1
	}
	return 0
}

// forker runs functions that fork on a thread that lives as long as this process: a child that is to end with its parent
// ends with the thread that forked it (prctl(2): PR_SET_PDEATHSIG).
var forker = sync.OnceValue(func() chan<- func() {
	forks := make(chan func())
	go func() {
		runtime.LockOSThread()
		for fork := range forks {
			fork()
		}
	}()
	return forks
})

// startStage starts this program once more as the stage name, with sock as its socket, which stays the caller's, and
// null as its standard input and output. It ends when this process ends, even if it is stopped or does not look at its
// socket.
func startStage(name string, attr *syscall.SysProcAttr, null, sock *os.File) (proc *os.Process, err error) {
	attr.Pdeathsig = unix.SIGKILL
	done := make(chan struct{})
	forker() <- func() {
		defer close(done)
		proc, err = os.StartProcess("/proc/self/exe", []string{name}, &os.ProcAttr{
			Env:   []string{"GOMAXPROCS=2"}, // system calls that wait do not count
			Files: []*os.File{null, null, os.Stderr, sock},
			Sys:   attr,
		})
	}
	<-done
	return proc, err
}

// closeInherited closes what this process was given by accident: all that Go opens is closed at exec.
func closeInherited() {
	dir, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return
	}
	for _, e := range dir {
		fd, err := strconv.Atoi(e.Name())
		if err != nil || fd <= socket {
			continue
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			_ = unix.Close(fd)
		}
	}
}

// notSpared gives up what protects the keeper when memory is short; a mounter is started again.
func notSpared() {
	const file = "/proc/self/oom_score_adj"
	if b, err := os.ReadFile(file); err == nil && strings.HasPrefix(string(b), "-") {
		_ = os.WriteFile(file, []byte("0"), 0)
	}
}

// capabilities of a mounter: to mount, to enter the mount namespaces of clients, and to look at directories as they do.
var capabilities = []int{
	unix.CAP_SYS_ADMIN, unix.CAP_SYS_CHROOT, unix.CAP_SYS_PTRACE, unix.CAP_SETUID, unix.CAP_SETGID,
}

// serve is the mounter: it answers requests until the keeper is gone.
func serve(conn *wire.Conn) error {
	var s setup
	files, err := conn.Recv(&s)
	closeFiles(files)
	if err != nil {
		return err
	}
	m, err := newMounter(conn, s)
	var ready reply
	ready.setError(err)
	if sent := conn.Send(&ready); sent != nil || err != nil {
		return errors.Join(err, sent)
	}
	for {
		var r request
		files, err := conn.Recv(&r)
		if err != nil {
			return err // the keeper is gone
		}
		go m.answer(&r, files)
	}
}

// mounter is the state of the stage.
type mounter struct {
	conn *wire.Conn
	send sync.Mutex
	home *home
	host *host

	// waiting has room for those that may wait for foreign file systems.
	waiting chan struct{}
}

// maxWaiting is how many requests may wait for foreign file systems at a time. Each keeps a thread.
const maxWaiting = 64

func newMounter(conn *wire.Conn, s setup) (*mounter, error) {
	m := &mounter{conn: conn, waiting: make(chan struct{}, maxWaiting)}
	var err error
	if m.host, err = openHost(s); err != nil { // while it is in sight
		return nil, err
	}
	if err = emptyNamespace(s); err != nil {
		return nil, err
	}
	keep := capabilities
	if s.Own {
		keep = []int{unix.CAP_SYS_ADMIN}
	}
	if err = errors.Join(rights.NoNewPrivs(), rights.OnlyCapabilities(keep...)); err != nil {
		return nil, err
	}
	m.home = newHome(s)
	if !s.Own {
		go m.home.warm()
	}
	return m, nil
}

// answer answers one request.
func (m *mounter) answer(r *request, files []*os.File) {
	out := reply{Seq: r.Seq}
	var back []*os.File
	err := error(unix.EINVAL)
	if want, ok := filesOf[r.Do]; ok && len(files) == want {
		if r.Do == doMount { // nobody takes a copy of the device while it is here
			devices.RLock()
			defer devices.RUnlock()
		}
		err = m.do(r, files, &out, &back)
	}
	out.setError(err)
	closeFiles(files) // a mount among them would be busy
	m.send.Lock()
	defer m.send.Unlock()
	var sent error
	if len(back) > 0 {
		sent = m.conn.Send(&reply{Seq: r.Seq, More: true}, back...)
		closeFiles(back)
	}
	if errors.Join(sent, m.conn.Send(&out)) != nil {
		m.conn.Close() // the keeper is gone: serve ends
	}
}
