package runtime

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/internal/wire"
)

// sendFiles sends a message, and files along with its first bytes.
func sendFiles(conn *net.UnixConn, m wire.Message, files ...*os.File) error {
	b := wire.Encode(m)
	if len(b) > maxOrder {
		return fmt.Errorf("command and environment of %d bytes are too large", len(b))
	}
	var fds []int
	for _, f := range files {
		fds = append(fds, int(f.Fd()))
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	if _, _, err := conn.WriteMsgUnix(binary.BigEndian.AppendUint32(nil, uint32(len(b))), rights, nil); err != nil {
		return err
	}
	_, err := conn.Write(b)
	return err
}

// readFiles reads what sendFiles sent, with at most n files.
func readFiles(conn *net.UnixConn, m wire.Message, n int) ([]*os.File, error) {
	head, oob := make([]byte, 4), make([]byte, unix.CmsgSpace(4*n))
	got, oobn, flags, _, err := conn.ReadMsgUnix(head, oob) // sets close-on-exec
	files := receivedFiles(oob[:oobn])
	if err == nil && flags&unix.MSG_CTRUNC != 0 {
		err = errors.New("too many descriptors")
	}
	if err == nil {
		_, err = io.ReadFull(conn, head[got:])
	}
	if err == nil {
		err = readBody(conn, head, m)
	}
	if err != nil {
		closeFiles(files)
		return nil, err
	}
	return files, nil
}

// receiveFiles reads into b from a socket that has no deadline, and returns at most n
// files that came along.
func receiveFiles(socket *os.File, b []byte, n int) (int, []*os.File, error) {
	oob := make([]byte, unix.CmsgSpace(4*n))
	raw, err := socket.SyscallConn()
	if err != nil {
		return 0, nil, err
	}
	var got, oobn int
	waited := raw.Read(func(fd uintptr) (done bool) {
		return uninterrupted(func() error {
			got, oobn, _, _, err = unix.Recvmsg(int(fd), b, oob, unix.MSG_CMSG_CLOEXEC)
			return err
		})
	})
	if err = errors.Join(err, waited); err == nil && got == 0 {
		err = io.EOF
	}
	if err != nil {
		return 0, nil, err
	}
	return got, receivedFiles(oob[:oobn]), nil
}

// uninterrupted calls f until no signal comes in between, and reports whether it need not be called again when the
// descriptor, of those that do not block, is ready.
func uninterrupted(f func() error) (done bool) {
	err := f()
	for errors.Is(err, unix.EINTR) {
		err = f()
	}
	return !errors.Is(err, unix.EAGAIN)
}

// sendMessage sends a message over a socket that has no deadline, and files along with its first bytes.
func sendMessage(socket *os.File, m wire.Message, files ...*os.File) error {
	b := wire.Encode(m)
	if len(b) > maxOrder {
		return fmt.Errorf("message of %d bytes", len(b))
	}
	if len(files) == 0 {
		return writeMessage(socket, m)
	}
	var fds []int
	for _, f := range files {
		fds = append(fds, int(f.Fd()))
	}
	head := binary.BigEndian.AppendUint32(nil, uint32(len(b)))
	raw, err := socket.SyscallConn()
	if err != nil {
		return err
	}
	waited := raw.Write(func(fd uintptr) (done bool) {
		return uninterrupted(func() error {
			err = unix.Sendmsg(int(fd), head, unix.UnixRights(fds...), nil, unix.MSG_NOSIGNAL)
			return err
		})
	})
	if err = errors.Join(err, waited); err == nil {
		_, err = socket.Write(b)
	}
	return err
}

// receiveMessage reads what sendMessage sent, with at most n files.
func receiveMessage(socket *os.File, m wire.Message, n int) ([]*os.File, error) {
	head := make([]byte, 4)
	got, files, err := receiveFiles(socket, head, n)
	if err == nil {
		_, err = io.ReadFull(socket, head[got:])
	}
	if err == nil {
		err = readBody(socket, head, m)
	}
	if err != nil {
		closeFiles(files)
		return nil, err
	}
	return files, nil
}

func receivedFiles(oob []byte) (files []*os.File) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			continue
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files
}
