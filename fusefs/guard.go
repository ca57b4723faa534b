package fusefs

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// devIocClone is FUSE_DEV_IOC_CLONE (include/uapi/linux/fuse.h), since Linux 4.2.
const devIocClone = 0x8004e500

// Clone opens the device once more for the mount of dev. The kernel gives both what is asked of the mount, and ends the
// mount when the last of them is closed; what one of them took and did not answer fails when that one is closed.
func Clone(dev *os.File) (*os.File, error) {
	// It blocks: Go's poller looks for what does not, and each request would wake a thread for nothing.
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, openError(err)
	}
	from := uint32(dev.Fd())
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), devIocClone, uintptr(unsafe.Pointer(&from))); errno != 0 {
		unix.Close(fd)
		return nil, fmt.Errorf("clone %s: %w", device, errno)
	}
	return os.NewFile(uintptr(fd), device), nil
}

// Drain refuses all that is asked of a mount whose server is about to end, until it has: then the mount is at its end
// too, once dev is closed. dev is a clone of the server's device, server a pidfd. Without it a thread of the server that
// waits for a page (see store.go) would keep the server from ending, and the device from being closed.
//
// The calling process must hold no other device of the mount, and nothing in it.
func Drain(dev *os.File, server int) error {
	fd := int(dev.Fd())
	if err := unix.SetNonblock(fd, true); err != nil {
		return fmt.Errorf("make the device non-blocking: %w", err)
	}
	in := make([]byte, requestSize)
	for {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(server), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for the server to end: %w", err)
		}
		if fds[1].Revents != 0 || fds[0].Revents&unix.POLLERR != 0 {
			return nil // it has ended, or the mount has
		}
		if fds[0].Revents != 0 {
			refuse(fd, in)
		}
	}
}

// refuse answers one request with ENOTCONN, what the kernel says of a mount without a server.
func refuse(fd int, in []byte) {
	n, err := unix.Read(fd, in)
	if err != nil || n < int(unsafe.Sizeof(fuse.InHeader{})) {
		return // somebody else took it, or the caller was killed
	}
	h := (*fuse.InHeader)(unsafe.Pointer(&in[0]))
	if h.Opcode == opForget || h.Opcode == opBatchForget {
		return // have no answer
	}
	out := fuse.OutHeader{Length: uint32(outHeaderSize), Status: -int32(unix.ENOTCONN), Unique: h.Unique}
	_, _ = unix.Write(fd, (*[unsafe.Sizeof(out)]byte)(unsafe.Pointer(&out))[:])
}
