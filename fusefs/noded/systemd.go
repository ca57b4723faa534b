package noded

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Where systemd, or a keeper that became this one by exec, says what it passes on: see sd_listen_fds(3).
const (
	envPID     = "LISTEN_PID"
	envFDs     = "LISTEN_FDS"
	envNames   = "LISTEN_FDNAMES"
	envNotify  = "NOTIFY_SOCKET"
	envDog     = "WATCHDOG_USEC"
	envInherit = "SQUIRE_INHERIT" // NAME=FD,NAME=FD…

	firstFD = 3
)

// inherited are descriptors that this process was started with.
type inherited struct {
	listen *os.File            // listening socket; nil: none
	files  map[string]*os.File // others, by name
}

// take returns the file of that name, if any, which is the caller's from then on.
func (in *inherited) take(name string) *os.File {
	f := in.files[name]
	delete(in.files, name)
	return f
}

// inherit takes over what was passed on. Children are told nothing of it.
func inherit() (*inherited, error) {
	in := &inherited{files: map[string]*os.File{}}
	passed, err := fromExec(os.Getenv(envInherit))
	if err != nil {
		return nil, err
	}
	if os.Getenv(envPID) == strconv.Itoa(os.Getpid()) {
		n, _ := strconv.Atoi(os.Getenv(envFDs))
		names := strings.Split(os.Getenv(envNames), ":")
		for i := range n {
			name := ""
			if i < len(names) {
				name = names[i]
			}
			passed = append(passed, passedFD{name, firstFD + i})
		}
	}
	for _, name := range []string{envInherit, envPID, envFDs, envNames} {
		os.Unsetenv(name)
	}
	for _, p := range passed {
		unix.CloseOnExec(p.fd)
		f := os.NewFile(uintptr(p.fd), p.name)
		switch {
		case f == nil:
			return nil, fmt.Errorf("inherited descriptor %d is not one", p.fd)
		case in.listen == nil && listens(p.fd) && p.name != nameMetrics:
			in.listen = f
		case in.files[p.name] != nil: // the store may hold a socket of that name twice
			f.Close()
		case strings.HasSuffix(p.name, deviceSuffix):
			in.files[p.name] = unpolled(f)
		default:
			in.files[p.name] = f
		}
	}
	return in, nil
}

type passedFD struct {
	name string
	fd   int
}

func fromExec(list string) (out []passedFD, err error) {
	for item := range strings.SplitSeq(list, ",") {
		name, number, ok := strings.Cut(item, "=")
		fd, err := strconv.Atoi(number)
		if item != "" && (!ok || err != nil || fd < firstFD) {
			return nil, fmt.Errorf("malformed %s", envInherit)
		}
		if item != "" {
			out = append(out, passedFD{name, fd})
		}
	}
	return out, nil
}

// listens reports whether fd is a socket of the service's kind that listens.
func listens(fd int) bool {
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil || kind != unix.SOCK_SEQPACKET {
		return false
	}
	on, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	return err == nil && on == 1
}

// store is systemd: it is told how the service is, and keeps descriptors for it. nil: there is none.
type store struct {
	socket string
	log    *slog.Logger
}

func findStore(log *slog.Logger) *store {
	socket := os.Getenv(envNotify)
	if socket == "" || socket[0] != '/' && socket[0] != '@' {
		return nil
	}
	return &store{socket, log}
}

// add has a descriptor kept. FDPOLL=0: else systemd drops a device whose mount has ended, whose number may be another's
// by the time that the keeper hears of it.
func (s *store) add(name string, f *os.File) {
	if f != nil {
		s.send("FDSTORE=1\nFDPOLL=0\nFDNAME="+name, f)
	}
}

func (s *store) remove(name string) { s.send("FDSTOREREMOVE=1\nFDNAME="+name, nil) }

// send sends what sd_notify(3) describes.
func (s *store) send(state string, file *os.File) {
	if s == nil {
		return
	}
	err := s.trySend(state, file)
	if err != nil {
		s.log.Warn("cannot tell systemd", "what", state, "error", err)
	}
}

func (s *store) trySend(state string, file *os.File) error {
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: s.socket, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer conn.Close()
	if err = conn.SetWriteDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if file == nil {
		_, err = conn.Write([]byte(state))
		return err
	}
	return withFD(file, func(fd int) error { return sendFile(conn, state, fd) })
}

// sendFile sends a datagram with a descriptor over a connected socket, which UnixConn refuses to.
func sendFile(conn *net.UnixConn, text string, fd int) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Write(func(sock uintptr) bool {
		failed = unix.Sendmsg(int(sock), []byte(text), unix.UnixRights(fd), nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
		return !errors.Is(failed, unix.EAGAIN)
	})
	return cmp.Or(err, failed)
}

// notify tells systemd how the service is.
func (k *keeper) notify(state string) { k.store.send(state, nil) }

// health tells systemd's watchdog that all is well, for as long as the image server answers.
func (k *keeper) health() {
	usec, err := strconv.ParseInt(os.Getenv(envDog), 10, 64)
	if err != nil || usec <= 0 || k.store == nil {
		return
	}
	every := time.Duration(usec) * time.Microsecond / 2
	for {
		if monotonic()-k.answered.Load() < (pingEvery + pingTimeout).Microseconds() {
			k.notify("WATCHDOG=1")
		}
		if !pause(k.ctx, every, nil) {
			return
		}
	}
}
