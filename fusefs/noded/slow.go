package noded

import (
	"errors"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// To close a file of FUSE waits for its server, which may be a user's and never answer (FUSE_FLUSH; not even SIGKILL ends
// that). A child that is forked while the keeper has one open closes its copy in exec, and would hang there, with the
// keeper waiting for it. So what a user sends is looked at while nothing can be forked, and if it is of that kind it
// leaves the table of descriptors before anything is.

// receive takes a request of c. Of its files, those of a user's FUSE file system are nil; slow is closed when they are
// closed, nil if there are none.
func (k *keeper) receive(c *client, r *Request) (files []*os.File, slow chan struct{}, err error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	if files, err = c.conn.Recv(r); err != nil || k.cfg.Own || c.user.UID == 0 {
		return files, nil, err
	}
	var closing sync.WaitGroup
	for i, f := range files {
		st := usersFUSE(f)
		if st == nil {
			continue
		}
		files[i] = nil
		if slow == nil {
			slow = make(chan struct{})
		}
		fd := -1
		_ = withFD(f, func(n int) error { fd = n; return nil })
		closing.Go(func() { f.Close() })
		awaitFree(fd, st)
	}
	if slow != nil {
		go func() {
			closing.Wait()
			close(slow)
		}()
	}
	return files, slow, nil
}

// usersFUSE returns what is known of a file that lies on a FUSE file system of a user's which the keeper sees, or which
// does not let it look (then that is nothing, but not nil); nil of others. It asks the kernel only.
func usersFUSE(f *os.File) *unix.Statx_t {
	st, refused := examine(f, unix.O_RDONLY, unix.O_WRONLY, unix.O_RDWR)
	if refused != nil && refused.Code == Limit {
		return new(unix.Statx_t)
	}
	if refused != nil || st.Dev_major != 0 {
		return nil
	}
	if fs, known, _ := keeperMounts(st); !known || !fs.users {
		return nil
	}
	return st
}

// awaitFree waits until fd, which is being closed, is free or another file's, which it is before anybody waits.
func awaitFree(fd int, was *unix.Statx_t) {
	for end := time.Now().Add(100 * time.Millisecond); time.Now().Before(end); time.Sleep(10 * time.Microsecond) {
		var is unix.Statx_t
		err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_BASIC_STATS, &is)
		if errors.Is(err, unix.EACCES) && was.Ino == 0 {
			continue
		}
		if err != nil || is.Ino != was.Ino || is.Dev_minor != was.Dev_minor || is.Dev_major != was.Dev_major {
			return
		}
	}
}
