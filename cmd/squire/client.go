package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	goruntime "runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/internal/stage"
	"github.com/squirefs/squire/internal/wire"
)

// server is the client's side of a server process.
type server struct {
	Size     int64 // bytes of the image
	Replayed int   // blocks in its trace, 0 if there is none

	pid  int
	conn *os.File

	guardPID int      // 0 while there is none
	guard    *os.File // its end of its connection with the server; closed once it was started
}

// startServer starts a server process, which waits for open. It must get none
// of the descriptors that this process inherited.
func startServer() (*server, error) {
	var pairs [2][2]*os.File
	for i := range pairs {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("make a socket pair: %w", err)
		}
		pairs[i] = [2]*os.File{os.NewFile(uintptr(pair[0]), "server"), os.NewFile(uintptr(pair[1]), "client")}
		defer pairs[i][1].Close()
	}
	s := &server{conn: pairs[0][0], guard: pairs[1][0]}
	var err error
	if s.pid, err = forkServer(pairs[0][1], pairs[1][1]); err != nil {
		s.conn.Close()
		s.guard.Close()
		return nil, fmt.Errorf("start the image server: %w", err)
	}
	return s, nil
}

func forkServer(socket, guard *os.File) (pid int, err error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	return stage.Fork(serverName, null.Fd(), null.Fd(), 2, socket.Fd(), guard.Fd())
}

// open hands the opened image and its traces, which it closes, to the server, and
// waits until it has understood the image. Where there is a device already, it
// goes with them, and what is waited for is that the mount answers.
func (s *server) open(cfg serverConfig, image *openedImage, traces *traceFiles, device ...*os.File) error {
	cfg.Processors = goruntime.GOMAXPROCS(0)
	cfg.Traces, cfg.Record, cfg.Whole = len(traces.files), traces.record, traces.whole
	cfg.Signed = image.statement
	err := sendMessage(s.conn, &cfg, slices.Concat(image.files(), traces.files, device)...)
	closeAll(traces.files)
	if err != nil {
		return fmt.Errorf("talk to the image server: %w", err)
	}
	st, err := s.state()
	switch {
	case st.Error != "":
		return fmt.Errorf("%s: %w", cfg.Image, err)
	case err != nil:
		return fmt.Errorf("talk to the image server: %w", err)
	}
	s.Size, s.Replayed = st.Size, st.Replayed
	return nil
}

// state waits for the next message: that the image is understood, that the
// mount answers, that it is gone.
func (s *server) state() (st serverState, err error) {
	if _, err = recvMessage(s.conn, &st); err == nil && st.Error != "" {
		err = errors.New(st.Error)
	}
	return st, err
}

// finishTimeout bounds the wait for a server whose mount should be gone.
const finishTimeout = 2 * time.Second

// finish waits for the server's end, when its mount should be gone or never
// was, and returns what it said last. The error is that it ended before its
// mount did. A server that goes on, as somebody else keeps the mount, is left.
func (s *server) finish() (last serverState, err error) {
	// It may still wait for a device that will not come.
	_ = unix.Shutdown(int(s.conn.Fd()), unix.SHUT_WR)
	timer := time.AfterFunc(finishTimeout, func() { _ = unix.Shutdown(int(s.conn.Fd()), unix.SHUT_RD) })
	defer timer.Stop()
	for {
		st, err := s.state()
		if err != nil {
			break
		}
		last = st
	}
	if !timer.Stop() {
		return last, nil
	}
	ws := s.close()
	if last.Serving && !last.Ended {
		return last, endedEarly(ws)
	}
	return last, nil
}

func endedEarly(ws unix.WaitStatus) error {
	how := fmt.Sprintf("exit status %d", ws.ExitStatus())
	if ws.Signaled() {
		how = ws.Signal().String()
	}
	return fmt.Errorf("the image server ended early (%s)", how)
}

// close lets go of a server without a mount, which then ends, and returns how.
func (s *server) close() (ws unix.WaitStatus) {
	s.conn.Close()
	s.guard.Close()
	ws = wait(s.pid)
	if s.guardPID != 0 {
		wait(s.guardPID)
	}
	return ws
}

func wait(pid int) (ws unix.WaitStatus) {
	for {
		if _, err := unix.Wait4(pid, &ws, 0, nil); !errors.Is(err, unix.EINTR) {
			return ws
		}
	}
}

func sendMessage(conn *os.File, m wire.Message, files ...*os.File) error {
	b := wire.Encode(m)
	var rights []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		rights = unix.UnixRights(fds...)
	}
	for {
		err := unix.Sendmsg(int(conn.Fd()), b, rights, nil, unix.MSG_NOSIGNAL)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// recvMessage reads one message into m and returns the files that came with
// it, at most maxServerFiles. The end of the connection is io.EOF.
func recvMessage(conn *os.File, m wire.Message) ([]*os.File, error) {
	b, oob := make([]byte, maxServerMessage), make([]byte, unix.CmsgLen(maxServerFiles*4)) // CmsgSpace has room for one more
	var n, oobn, flags int
	var err error
	for {
		n, oobn, flags, _, err = unix.Recvmsg(int(conn.Fd()), b, oob, unix.MSG_CMSG_CLOEXEC)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	files := receivedFiles(oob[:oobn])
	switch {
	case n == 0:
		err = io.EOF
	case flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0:
		err = errors.New("message too long")
	default:
		err = wire.Decode(b[:n], m)
	}
	if err != nil {
		closeAll(files)
		return nil, err
	}
	return files, nil
}

func receivedFiles(oob []byte) (files []*os.File) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(msgs) == 0 {
		return nil
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil {
		return nil
	}
	for _, fd := range fds {
		files = append(files, os.NewFile(uintptr(fd), "received"))
	}
	return files
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
