package fusefs

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Sizes of the messages on the device.
const (
	// maxRead is the longest READ that is asked for: 256 pages of 4 KiB, the kernel's limit since 4.20
	// (fs/fuse/fuse_i.h: FUSE_MAX_MAX_PAGES).
	maxRead = 1 << 20
	// requestSize is the room for a request: FUSE_MIN_READ_BUFFER, the least the kernel takes for a read of the
	// device (fs/fuse/dev.c: fuse_dev_do_read). It also asks for room for the longest WRITE, which is why INIT
	// promises WRITEs of no more than a page: this file system never gets any.
	requestSize = 8 << 10
	maxWrite    = 4 << 10
	// replySize is the room for a reply without file data: the longest is that of READLINK. Directories and file data
	// are answered in buffers of the sizes in replyClasses.
	replySize = 8 << 10

	outHeaderSize = int(unsafe.Sizeof(fuse.OutHeader{}))
)

// Numbers of concurrent requests.
const (
	// maxBackground is how many READs of the page cache the kernel may have in flight. With its own default of 12,
	// 64 tasks that wait 10 ms for each READ took three times as long.
	maxBackground = 512
	// maxReaders bounds the goroutines that answer requests, each with up to maxRead bytes of reply, except for those
	// that take long. A request beyond them waits in the kernel.
	maxReaders = 128
)

// transport moves messages between the device and a file system. This is instead of go-fuse's Server because that one
// has 2 to 16 readers, allocates 11 times for each READ and cannot go on with a device that another process has served.
// Which goroutine waits for the next request is in watch.go.
type transport struct {
	fs  *FS
	ps  *fuse.ProtocolServer
	dev watch

	over      overseer
	answering sync.WaitGroup // workers that have yet to answer, or to leave

	failure atomic.Pointer[error] // first unexpected error of the device
}

// start starts a worker, unless there are enough.
func (t *transport) start() {
	if !t.fs.guest.full(workerCost) && t.dev.enlist(maxReaders) {
		t.hire()
	}
}

// fail notes why a goroutine ended, if that is not because there are enough. ENODEV is the regular end: the mount is
// gone; every reader gets it. An abort through /sys/fs/fuse/connections looks the same, as FUSE_ABORT_ERROR is not asked
// for.
func (t *transport) fail(err error) {
	if errors.Is(err, unix.ENODEV) || errors.Is(err, errSpare) || errors.Is(err, errStopped) {
		return
	}
	err = fmt.Errorf("serve fuse: read request: %w", err)
	t.failure.CompareAndSwap(nil, &err)
}

// Request types that the transport looks at (include/uapi/linux/fuse.h: enum fuse_opcode).
const (
	opLookup      = 1
	opForget      = 2
	opRead        = 15
	opGetxattr    = 22
	opListxattr   = 23
	opInit        = 26
	opReaddir     = 28
	opInterrupt   = 36
	opIoctl       = 39
	opBatchForget = 42
	opReaddirplus = 44
)

// dataSize returns how much data the caller of a request has room for, as far as it is more than replySize holds.
func dataSize(in []byte, h *fuse.InHeader) int {
	switch h.Opcode {
	case opReaddir, opReaddirplus:
		return int((*fuse.ReadIn)(unsafe.Pointer(h)).Size)
	case opGetxattr, opListxattr:
		return int((*fuse.GetXAttrIn)(unsafe.Pointer(h)).Size)
	case opIoctl:
		return int((*fuse.IoctlIn)(unsafe.Pointer(h)).OutSize)
	}
	return 0
}

// putHeader writes the header of a reply with n bytes of data to out.
func putHeader(out []byte, unique uint64, n int, code fuse.Status) {
	*(*fuse.OutHeader)(unsafe.Pointer(&out[0])) = fuse.OutHeader{
		Length: uint32(outHeaderSize + n),
		Status: -int32(code),
		Unique: unique,
	}
}

// write writes a reply. Errors are left alone: ENOENT is a caller that was killed meanwhile, ENODEV the end of the
// mount, which the next read of the device finds too.
func (t *transport) write(out []byte) {
	for {
		if _, err := unix.Write(t.dev.fd, out); err != unix.EINTR {
			return
		}
	}
}
