package noded

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// listener is the socket of the service.
type listener struct {
	*net.UnixListener
	file *os.File // the same socket, to be passed on
	lock *os.File // of the socket's path; nil where the path is not ours: systemd's, or an abstract name
	path string
}

// Close closes the socket. Its path goes first, while the lock is held.
func (l *listener) Close() error {
	if l.lock != nil {
		_ = os.Remove(l.path)
	}
	err := l.UnixListener.Close()
	l.file.Close()
	if l.lock != nil {
		l.lock.Close()
	}
	return err
}

// listen listens: on the socket that was passed on, if any.
func (k *keeper) listen(in *inherited) (*listener, error) {
	l := &listener{path: k.cfg.Socket, lock: in.take(nameLock), file: in.listen}
	if l.file == nil {
		if l.lock != nil {
			l.lock.Close()
			l.lock = nil
		}
		if err := l.make(); err != nil {
			return nil, err
		}
	}
	sock, err := net.FileListener(l.file)
	if err != nil {
		return nil, fmt.Errorf("use the inherited socket: %w", err)
	}
	var ok bool
	if l.UnixListener, ok = sock.(*net.UnixListener); !ok {
		return nil, errors.New("the inherited socket is not a unix socket")
	}
	return l, nil
}

// make makes the socket. An abstract name is the first one's who takes it. On a path, the lock beside it keeps two services
// from taking each other's sockets for left over.
func (l *listener) make() error {
	if !strings.HasPrefix(l.path, "@") {
		if err := l.clear(); err != nil {
			return err
		}
	}
	sock, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: l.path, Net: "unixpacket"})
	if errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("listen on %s: another service does", l.path)
	}
	if err != nil {
		return fmt.Errorf("listen on %s: %w", l.path, err)
	}
	defer sock.Close()
	sock.SetUnlinkOnClose(false)
	if !strings.HasPrefix(l.path, "@") {
		if err = os.Chmod(l.path, 0o666); err != nil {
			return fmt.Errorf("let all users connect: %w", err)
		}
	}
	if l.file, err = sock.File(); err != nil {
		return fmt.Errorf("listen on %s: %w", l.path, err)
	}
	return nil
}

// clear makes place for the socket.
func (l *listener) clear() error {
	if err := ownDirectory(filepath.Dir(l.path)); err != nil {
		return err
	}
	const how = os.O_CREATE | os.O_RDWR | unix.O_NOFOLLOW
	var err error
	if l.lock, err = os.OpenFile(l.path+".lock", how, 0o600); err != nil {
		return fmt.Errorf("lock the socket: %w", err)
	}
	if err = unix.Flock(int(l.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		l.lock.Close()
		return fmt.Errorf("listen on %s: another service does: %w", l.path, err)
	}
	if err = removeStale(l.path); err != nil {
		l.lock.Close()
		return err
	}
	return nil
}

// ownDirectory makes the directory of the socket, or checks that nobody else can put a socket there.
func ownDirectory(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make a place for the socket: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return fmt.Errorf("look at %s: %w", dir, err)
	}
	if int(st.Uid) != os.Geteuid() && st.Uid != 0 {
		return fmt.Errorf("%s belongs to user %d: a socket is safe in a directory of one's own only", dir, st.Uid)
	}
	if st.Mode&0o022 != 0 {
		return fmt.Errorf("others may write to %s (mode %o): a socket is not safe there", dir, st.Mode&0o7777)
	}
	return nil
}

// removeStale removes a socket that nobody listens on.
func removeStale(path string) error {
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("look at the socket: %w", err)
	case st.Mode().Type() != os.ModeSocket:
		return fmt.Errorf("%s is there and is not a socket", path)
	}
	// One that somebody else made, such as systemd, has no lock.
	conn, err := net.Dial("unixpacket", path)
	if err == nil {
		conn.Close()
		return fmt.Errorf("listen on %s: another service does", path)
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("%s is there: %w", path, err)
	}
	return os.Remove(path)
}
