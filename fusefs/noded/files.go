package noded

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// dup returns a descriptor of its own of what f has open.
func dup(f *os.File) (*os.File, error) {
	var fd int
	err := withFD(f, func(old int) (err error) {
		fd, err = unix.FcntlInt(uintptr(old), unix.F_DUPFD_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("duplicate descriptor of %s: %w", f.Name(), err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// withFD calls do with the descriptor of f, which is not closed meanwhile. File.Fd would clear O_NONBLOCK of what others
// have open too.
func withFD(f *os.File, do func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err = raw.Control(func(fd uintptr) { failed = do(int(fd)) }); err != nil {
		return err
	}
	return failed
}

// unpolled returns another file for a device, without Go's poller, and closes f; or f. The poller looks for all that
// os.NewFile gets that does not block, as a device that is served: each request to the mount would wake a thread here.
func unpolled(f *os.File) *os.File {
	// O_NONBLOCK is the server's as well, and must stay. So the file is made of what blocks, and what is under its
	// number changes then.
	number, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return f
	}
	other := os.NewFile(uintptr(number), f.Name())
	if err := withFD(f, func(fd int) error { return unix.Dup3(fd, number, unix.O_CLOEXEC) }); err != nil {
		other.Close()
		return f
	}
	f.Close()
	return other
}

func closeAll(files []*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}

// gone reports whether done is closed.
func gone(done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
		return false
	}
}

// pause waits for d. It reports false if ctx or one of ends came first.
func pause(ctx context.Context, d time.Duration, end <-chan struct{}) bool {
	if d <= 0 {
		return ctx.Err() == nil && !gone(end)
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
	case <-end:
	}
	return false
}
