package wire

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Limits of one message. A sender's socket buffer holds some 200 KiB; the kernel passes up to 253 descriptors
// (net/core/scm.c: SCM_MAX_FD).
const (
	MaxSize  = 64 << 10
	MaxFiles = 16
)

// Errors of Recv beside those of the socket. Both end the use of a connection.
var (
	ErrTooLong = errors.New("message or its descriptors too long")
	ErrNoFiles = errors.New("descriptors of the message were lost; too many open files?")
)

// Conn carries messages and descriptors over a SOCK_SEQPACKET socket, which keeps messages apart. Send and Recv may be
// called by one goroutine each at a time; Close and SetDeadline by any.
type Conn struct{ sock *net.UnixConn }

// NewConn returns a Conn over an accepted or dialled connection, which it owns from then on.
func NewConn(sock *net.UnixConn) *Conn { return &Conn{sock} }

// FileConn returns a Conn over a socket that was inherited or received. It closes f, also when it fails.
func FileConn(f *os.File) (*Conn, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("use descriptor as a socket: %w", err)
	}
	sock, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, errors.New("descriptor is not a unix socket")
	}
	return &Conn{sock}, nil
}

// Pair returns two ends of a connection: one for this process, one for a child to inherit.
func Pair() (*Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a socket pair: %w", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "peer")
	ours, err := FileConn(os.NewFile(uintptr(fds[0]), "peer"))
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return ours, theirs, nil
}

// Send sends m with files, which stay the caller's. A receiver that does not read makes it wait, until the deadline.
func (c *Conn) Send(m Message, files ...*os.File) error {
	b := Encode(m)
	if len(b) > MaxSize || len(files) > MaxFiles {
		return fmt.Errorf("send %d bytes and %d descriptors: %w", len(b), len(files), ErrTooLong)
	}
	return withFDs(files, nil, func(fds []int) error {
		var rights []byte
		if len(fds) > 0 {
			rights = unix.UnixRights(fds...)
		}
		_, _, err := c.sock.WriteMsgUnix(b, rights, nil)
		return err
	})
}

// withFDs calls do with the descriptors of files, none of which is closed before it returns: its number may be another
// file's by then.
func withFDs(files []*os.File, fds []int, do func(fds []int) error) error {
	if len(files) == 0 {
		return do(fds)
	}
	raw, err := files[0].SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = withFDs(files[1:], append(fds, int(fd)), do) })
	return cmp.Or(err, failed)
}

// Recv receives one message into m, whose fields should be zero, and returns the files that came with it, which are the
// caller's. The end of the connection is io.EOF. After an error no descriptor is left open.
func (c *Conn) Recv(m Message) ([]*os.File, error) { return c.recv(m, MaxFiles) }

// RecvPlain is Recv for messages that come without files. If any do, the kernel drops them, so that nothing of theirs is
// ever open here.
func (c *Conn) RecvPlain(m Message) error {
	_, err := c.recv(m, 0)
	return err
}

// Wait waits until there is a message, or the end of the connection, for Recv.
func (c *Conn) Wait() error {
	raw, err := c.sock.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Read(func(fd uintptr) bool {
		_, _, err := unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR)
	})
}

func (c *Conn) recv(m Message, room int) (files []*os.File, err error) {
	raw, err := c.sock.SyscallConn()
	if err != nil {
		return nil, err
	}
	var failed error
	err = raw.Read(func(fd uintptr) bool {
		files, failed = recv(int(fd), m, room)
		return !errors.Is(failed, unix.EAGAIN)
	})
	if err = cmp.Or(err, failed); err != nil {
		closeAll(files)
		return nil, err
	}
	return files, nil
}

// buffers are for messages that are there: thousands of connections wait for one.
var buffers = sync.Pool{New: func() any { return new([MaxSize + 1]byte) }}

// recv takes a message from a socket if there is one, with room for so many files; EAGAIN if there is none. It returns
// files with an error too.
func recv(fd int, m Message, room int) (files []*os.File, err error) {
	buf := buffers.Get().(*[MaxSize + 1]byte)
	defer buffers.Put(buf)
	var oob []byte
	if room > 0 {
		oob = make([]byte, unix.CmsgSpace(room*4))
	}
	n, oobn, flags := -1, 0, 0
	for err = unix.EINTR; errors.Is(err, unix.EINTR); {
		n, oobn, flags, _, err = unix.Recvmsg(fd, buf[:], oob, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
	}
	if err != nil {
		return nil, err
	}
	files = received(oob[:oobn])
	switch {
	case n == 0 && len(files) == 0 && flags&unix.MSG_CTRUNC == 0:
		err = io.EOF
	case n > MaxSize || flags&unix.MSG_TRUNC != 0 || len(files) > room:
		err = ErrTooLong
	case room > 0 && flags&unix.MSG_CTRUNC != 0:
		err = ErrNoFiles
	default:
		err = Decode(buf[:n], m)
	}
	return files, err
}

// received takes over the descriptors of control messages.
func received(oob []byte) (files []*os.File) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			continue
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// SetDeadline bounds Send and Recv, those that wait already too. The zero time is none.
func (c *Conn) SetDeadline(t time.Time) error { return c.sock.SetDeadline(t) }

// Close closes the connection.
func (c *Conn) Close() error { return c.sock.Close() }

// Peer is the process at the other end as it was when it connected (unix(7), SO_PEERCRED), in the ids of this process's
// namespaces.
func (c *Conn) Peer() (*unix.Ucred, error) {
	var cred *unix.Ucred
	err := c.control(func(fd int) (err error) {
		cred, err = unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
		return err
	})
	return cred, err
}

// PeerPidfd refers to the process at the other end (SO_PEERPIDFD, Linux 6.5; before that by its number, which may be
// another's by then if it has ended).
func (c *Conn) PeerPidfd() (*os.File, error) {
	var pidfd int
	err := c.control(func(fd int) (err error) {
		pidfd, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
		if !errors.Is(err, unix.ENOPROTOOPT) {
			return err
		}
		cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err == nil {
			pidfd, err = unix.PidfdOpen(int(cred.Pid), 0)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("descriptor of the peer: %w", err)
	}
	return os.NewFile(uintptr(pidfd), "pidfd"), nil
}

func (c *Conn) control(do func(fd int) error) error {
	raw, err := c.sock.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err = raw.Control(func(fd uintptr) { failed = do(int(fd)) }); err != nil {
		return err
	}
	return failed
}
