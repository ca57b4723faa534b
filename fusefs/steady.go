package fusefs

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrChanged is what reading an image gives once its file is no longer what it was.
var ErrChanged = errors.New("image was changed while it was mounted")

// Steady reads a file, or a block device, that has an image, and must stay as it was. It is an io.ReaderAt for NewSource
// and sqfs.New.
//
// # Changed files
//
// A file that was overwritten or truncated is another image. After each read of it the file's size and time of last
// modification are compared with those at the beginning, and when they differ, that read and all that follow fail with
// ErrChanged. Kernels change both before they show new bytes: so whoever gets bytes has old ones, but for three gaps.
//
//   - A file that is changed within a tick of the kernel's clock (1 to 10 ms) after it was last changed may keep its
//     time, if that happened before NewSteady; not so in file systems with multigrain time stamps (Linux 6.13: btrfs,
//     ext4, tmpfs, xfs).
//   - Who has the file mapped writably changes its time with the first write to each page, and then again only after
//     the kernel has written the page to storage.
//   - A network file system shows changes by other machines when it asks for them: NFS when its attribute cache has
//     expired, within 3 s to 60 s.
//
// Who sets the time back after writing, which takes the right to write, is not found out either. A file that is unlinked
// or replaced by rename stays what it is, and is read on. Of block devices only the size is compared.
//
// # Failing storage
//
// Errors of storage that may pass, those of network file systems above all, are tried again three times, within some
// seconds. A read that hangs is left to hang: no lock is held meanwhile.
type Steady struct {
	storage storage
	was     FileState
	changed atomic.Pointer[error] // why nothing is read any more
	stop    chan struct{}         // closed by Close
	close   sync.Once
}

// FileState is what must not change in a file: of a block device only Size is used. What a server knows of the file that
// its predecessor served is handed on in it.
type FileState struct {
	Dev, Ino uint64
	Size     int64 // bytes
	MTime    int64 // ns since 1970
	Device   bool  // it is a block device
}

// storage is what a Steady reads. Tests have others than imageFile.
type storage interface {
	pread(p []byte, off int64) (int, error)
	state() (FileState, error)
}

// NewSteady returns a reader of f, which must be a regular file or a block device, and be left open by the caller until
// the image is no longer used. Its file offset is left alone.
func NewSteady(f *os.File) (*Steady, error) {
	o, err := newImageFile(f)
	if err != nil {
		return nil, err
	}
	return newSteady(o)
}

func newSteady(st storage) (*Steady, error) {
	was, err := st.state()
	if err != nil {
		return nil, err
	}
	return &Steady{storage: st, was: was, stop: make(chan struct{})}, nil
}

// State returns what the file was like in the beginning.
func (s *Steady) State() FileState { return s.was }

// Expect is for a server that goes on where another one stopped, for which the file was as said: if it is not now, all
// reads fail with ErrChanged. It must be called before the first read.
func (s *Steady) Expect(was FileState) {
	if err := was.differs(&s.was); err != nil {
		s.changed.Store(&err)
	}
	s.was = was
}

// Changed returns the error that all reads fail with, nil as long as the file is what it was.
func (s *Steady) Changed() error {
	if err := s.changed.Load(); err != nil {
		return *err
	}
	return nil
}

// Close ends attempts to read again that are under way. The file stays open.
func (s *Steady) Close() { s.close.Do(func() { close(s.stop) }) }

// The attempts to read again what could not be read come after these pauses, but for those that would come later than
// patience after the beginning: storage that takes long to fail is not asked over and over.
var pauses = []time.Duration{20 * time.Millisecond, 150 * time.Millisecond, time.Second}

const patience = 5 * time.Second

// mayPass are errors of storage that may be gone a moment later. All others say that the call makes no sense, or that
// the caller may not.
var mayPass = []error{
	unix.EIO, unix.EAGAIN, unix.EINTR, unix.ETIMEDOUT, unix.ESTALE, unix.ENOLINK, unix.EREMOTEIO, unix.EBUSY,
	unix.ENOMEM, unix.ENOBUFS, unix.ENOTCONN, unix.ESHUTDOWN, unix.ECONNRESET, unix.ECONNREFUSED, unix.ECONNABORTED,
	unix.EPIPE, unix.EHOSTDOWN, unix.EHOSTUNREACH, unix.ENETDOWN, unix.ENETUNREACH, unix.ENETRESET, unix.EPROTO,
	unix.ECOMM, unix.EBADMSG, unix.ENODATA, unix.ETIME, errShort,
}

// errShort is the failure of a read that ended before the file did, though the file has not changed.
var errShort = errors.New("storage has fewer bytes than the file")

func passes(err error) bool {
	return slices.ContainsFunc(mayPass, func(e error) bool { return errors.Is(err, e) })
}

// ReadAt implements io.ReaderAt.
func (s *Steady) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read image at %d: %w", off, os.ErrInvalid)
	}
	var end error
	if left := max(s.was.Size-off, 0); int64(len(p)) > left {
		p, end = p[:left], io.EOF
	}
	if err := s.read(p, off); err != nil {
		return 0, err
	}
	return len(p), end
}

// read fills p, having tried several times if need be.
func (s *Steady) read(p []byte, off int64) error {
	begin := time.Now()
	err := s.try(p, off)
	for _, pause := range pauses {
		if err == nil || !passes(err) || time.Since(begin)+pause > patience || !s.sleep(pause) {
			break
		}
		err = s.try(p, off)
	}
	return err
}

// sleep reports false if it was cut short by Close.
func (s *Steady) sleep(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-s.stop:
		return false
	}
}

// try fills p once. All bytes that it has when it returns nil are of the file as it was.
func (s *Steady) try(p []byte, off int64) error {
	if err := s.changed.Load(); err != nil {
		return *err
	}
	var failed error
	for len(p) > 0 && failed == nil {
		var n int
		if n, failed = s.storage.pread(p, off); n == 0 && failed == nil {
			failed = errShort
		}
		p, off = p[max(n, 0):], off+int64(max(n, 0))
	}
	is, err := s.storage.state()
	if err != nil {
		if failed == nil {
			failed = err
		}
		return failed
	}
	if err = s.was.differs(&is); err != nil {
		s.noteChange(err)
		return err
	}
	return failed
}

func (s *Steady) noteChange(err error) { s.changed.CompareAndSwap(nil, &err) }

// differs returns an error that says what is different in a file that should be as was says; nil if nothing is.
func (was *FileState) differs(is *FileState) error {
	switch {
	case is.Size != was.Size:
		return fmt.Errorf("%w: it had %d bytes, now it has %d", ErrChanged, was.Size, is.Size)
	case was.Device || is.Device:
		if was.Device != is.Device {
			return fmt.Errorf("%w: it is another file", ErrChanged)
		}
		return nil
	case is.Dev != was.Dev || is.Ino != was.Ino:
		return fmt.Errorf("%w: it is another file", ErrChanged)
	case is.MTime != was.MTime:
		return fmt.Errorf("%w: it was written to at %s", ErrChanged, time.Unix(0, is.MTime).Format(time.RFC3339Nano))
	}
	return nil
}

// imageFile is a file of this process. A descriptor number could be another file's by the time a read that hung is tried
// again: os.File knows when it was closed.
type imageFile struct {
	conn  syscall.RawConn
	calls sync.Pool // of *fileCall
}

// fileCall is a system call on a file, in memory that lasts: what is given to RawConn.Control escapes.
type fileCall struct {
	p            []byte
	off          int64
	n            int
	is           FileState
	err          error
	pread, state func(fd uintptr)
}

func newImageFile(f *os.File) (*imageFile, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	o := &imageFile{conn: conn}
	o.calls.New = func() any {
		c := new(fileCall)
		c.pread, c.state = c.doPread, c.doState
		return c
	}
	return o, nil
}

func (o *imageFile) pread(p []byte, off int64) (int, error) {
	c := o.calls.Get().(*fileCall)
	defer o.calls.Put(c)
	c.p, c.off = p, off
	err := o.conn.Control(c.pread)
	c.p = nil
	if err != nil {
		return 0, os.ErrClosed
	}
	return c.n, os.NewSyscallError("pread", c.err)
}

func (o *imageFile) state() (FileState, error) {
	c := o.calls.Get().(*fileCall)
	defer o.calls.Put(c)
	if err := o.conn.Control(c.state); err != nil {
		return FileState{}, os.ErrClosed
	}
	return c.is, os.NewSyscallError("fstat", c.err)
}

func (c *fileCall) doPread(fd uintptr) {
	c.n, c.err = unix.Pread(int(fd), c.p, c.off)
	for errors.Is(c.err, unix.EINTR) {
		c.n, c.err = unix.Pread(int(fd), c.p, c.off)
	}
}

func (c *fileCall) doState(fd uintptr) {
	var st unix.Stat_t
	if c.err = unix.Fstat(int(fd), &st); c.err != nil {
		return
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		c.is = FileState{Dev: st.Dev, Ino: st.Ino, Size: st.Size, MTime: st.Mtim.Nano()}
	case unix.S_IFBLK:
		c.is = FileState{Device: true}
		c.is.Size, c.err = deviceSize(fd)
	default:
		c.err = errors.New("neither a regular file nor a block device")
	}
}

// blkGetSize64 is BLKGETSIZE64 (include/uapi/linux/fs.h), on the architectures that this runs on.
const blkGetSize64 = 0x80081272

func deviceSize(fd uintptr) (size int64, err error) {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, blkGetSize64, uintptr(unsafe.Pointer(&size)))
	if errno != 0 {
		return 0, errno
	}
	return size, nil
}
