package mounter

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/internal/rights"
	"github.com/squirefs/squire/internal/wire"
)

// locker is the mounter's side of the process whose clones are locked.
type locker struct {
	conn *wire.Conn
	proc *os.Process
}

// lockRequest asks for a clone of the mount at Name, a file of the root directory.
type lockRequest struct{ Name string }

// Fields makes it a wire.Message.
func (r *lockRequest) Fields(c *wire.Coder) { wire.String(c, &r.Name) }

// lockReply comes with a clone, or says why not.
type lockReply struct{ Errno int }

// Fields makes it a wire.Message.
func (r *lockReply) Fields(c *wire.Coder) { wire.Int(c, &r.Errno) }

// lockerUser is who the locker is outside: the highest id there is, and nobody else. As the user nobody the server could
// send it signals.
const lockerUser = 1<<32 - 2

// newLocker starts the process, in a user namespace in which it is root, and in a mount namespace of that, which gets
// what is mounted in this one from now on, locked.
func newLocker() (*locker, error) {
	conn, theirs, err := wire.Pair()
	if err != nil {
		return nil, fmt.Errorf("start locker: %w", err)
	}
	defer theirs.Close()
	proc, err := startHelper(lockerName, &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: lockerUser, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: lockerUser, Size: 1}},
		// So that it can give up the groups.
		GidMappingsEnableSetgroups: true,
		Credential:                 &syscall.Credential{},
		Setsid:                     true,
	}, theirs)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("start locker: %w%s", err, withoutUserNamespaces(err))
	}
	return &locker{conn, proc}, nil
}

// withoutUserNamespaces explains why root cannot make one (user_namespaces(7)).
func withoutUserNamespaces(err error) string {
	if errors.Is(err, unix.ENOSPC) {
		return "; user namespaces are switched off or used up (user.max_user_namespaces), and no mount can be locked for a user without them"
	}
	return ""
}

// startHelper starts a stage of the mounter while no device is open here, of which it would have a copy until it is
// executed.
func startHelper(name string, attr *syscall.SysProcAttr, sock *os.File) (*os.Process, error) {
	devices.Lock()
	defer devices.Unlock()
	return startStage(name, attr, os.Stdin, sock) // which is /dev/null
}

// devices is held for reading by who has a FUSE device open, for writing by who makes a copy of all descriptors.
var devices sync.RWMutex

// clone returns a locked detached clone of the mount at name. It is for one goroutine at a time. After an error that is
// not a unix.Errno the locker must be started again.
func (l *locker) clone(name string) (*os.File, error) {
	// It waits for nothing but a processor.
	if err := l.conn.SetDeadline(time.Now().Add(patience / 2)); err != nil {
		return nil, err
	}
	if err := l.conn.Send(&lockRequest{name}); err != nil {
		return nil, fmt.Errorf("ask the locker: %w", errors.Join(errLocker, err))
	}
	var r lockReply
	files, err := l.conn.Recv(&r)
	switch {
	case err != nil:
		return nil, fmt.Errorf("ask the locker: %w", errors.Join(errLocker, err))
	case r.Errno != 0:
		closeFiles(files)
		return nil, fmt.Errorf("clone a mount, locked: %w", syscall.Errno(r.Errno))
	case len(files) != 1:
		closeFiles(files)
		return nil, errLocker
	}
	return files[0], nil
}

// errLocker: the locker does not work any more.
var errLocker = errors.New("the locker does not answer")

func (l *locker) close() {
	_ = l.proc.Kill()
	l.conn.Close()
	go func() { _, _ = l.proc.Wait() }()
}

// lock is the stage of the locker.
func lock(conn *wire.Conn) error {
	if err := errors.Join(rights.NoNewPrivs(), rights.OnlyCapabilities(unix.CAP_SYS_ADMIN)); err != nil {
		return err
	}
	for {
		var r lockRequest
		files, err := conn.Recv(&r)
		closeFiles(files)
		if err != nil {
			return err // the mounter is gone
		}
		clone, err := openTree(unix.AT_FDCWD, "/"+r.Name)
		if err != nil {
			var errno syscall.Errno
			errors.As(err, &errno)
			err = conn.Send(&lockReply{int(errno)})
		} else {
			err = conn.Send(&lockReply{}, clone)
			clone.Close()
		}
		if err != nil {
			return err
		}
	}
}

// newIDMap returns a user namespace in which o is 0. A process makes it and ends; the descriptor keeps it.
func newIDMap(o owner) (*os.File, error) {
	conn, theirs, err := wire.Pair()
	if err != nil {
		return nil, fmt.Errorf("make a user namespace: %w", err)
	}
	defer conn.Close()
	defer theirs.Close()
	proc, err := startHelper(idmapName, &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(o.uid), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(o.gid), Size: 1}},
	}, theirs)
	if err != nil {
		return nil, fmt.Errorf("make a user namespace: %w%s", err, withoutUserNamespaces(err))
	}
	defer func() {
		_ = proc.Kill()
		go func() { _, _ = proc.Wait() }()
	}()
	ns, err := os.Open("/proc/" + strconv.Itoa(proc.Pid) + "/ns/user")
	return ns, wrap("open a user namespace", err)
}
