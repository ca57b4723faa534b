package fusefs

import (
	"bytes"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
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
	// maxReaders bounds the goroutines that answer requests, each with up to maxRead bytes of reply. A request beyond
	// them waits in the kernel.
	maxReaders = 128
)

// transport moves messages between the device and a file system. This is instead of go-fuse's Server because that one
// has 2 to 16 readers, allocates 11 times for each READ and cannot go on with a device that another process has served.
// Which goroutine waits for the next request is in watch.go.
type transport struct {
	fs      *FS
	ps      *fuse.ProtocolServer
	dev     watch
	replies replyPool

	failure atomic.Pointer[error] // first unexpected error of the device
}

// start starts a goroutine that answers requests, unless there are enough.
func (t *transport) start() {
	if t.dev.enlist(maxReaders) {
		t.run()
	}
}

// run starts a goroutine that is enlisted.
func (t *transport) run() {
	go func() {
		defer t.dev.discharge()
		in, out := touched(requestSize), touched(replySize)
		for {
			n, err := t.dev.next(in)
			if err != nil {
				t.fail(err)
				return
			}
			begin := time.Now()
			if t.fs.source == nil {
				t.dev.relay()
			}
			t.answer(in[:n], out)
			t.fs.latencies.observe(opcode(in), time.Since(begin))
		}
	}()
}

// touched returns a buffer whose memory is there. A server that is killed while the kernel copies a request to it takes
// the request along if not all of that can be done without a page fault: its caller gets EIO (fs/fuse/dev.c:
// fuse_dev_do_read).
func touched(n int) []byte {
	b := make([]byte, n)
	clear(b)
	return b
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

// answer answers one request. small is room for a reply without data.
func (t *transport) answer(in, small []byte) {
	if len(in) < int(unsafe.Sizeof(fuse.InHeader{})) {
		return // cannot be: the kernel writes whole messages
	}
	h := (*fuse.InHeader)(unsafe.Pointer(&in[0]))
	switch h.Opcode {
	case opForget, opBatchForget: // have no answer, and there is nothing to forget
	case opInterrupt:
		// ENOSYS makes the kernel stop sending these (fs/fuse/dev.c: fuse_dev_do_write sets fc->no_interrupt). No
		// request here can be given up halfway; EAGAIN, go-fuse's answer to an unknown one, would be sent again
		// and again until the request is done.
		t.reply(h.Unique, small, 0, fuse.ENOSYS)
	case opIoctl:
		// Python asks each file that it opens whether it is a terminal. The kernel makes ENOTTY of ENOSYS, but asks again.
		t.reply(h.Unique, small, 0, fuse.Status(unix.ENOTTY))
	case opLookup:
		t.answerLookup(h, in[unsafe.Sizeof(*h):], small)
	case opRead:
		t.answerRead((*fuse.ReadIn)(unsafe.Pointer(h)), small)
	default:
		t.answerOther(in, h, small)
	}
}

// answerLookup answers LOOKUP without go-fuse, which shows a file of its own in every root (fuse/poll.go: pollHackName),
// and allocates.
func (t *transport) answerLookup(h *fuse.InHeader, payload, out []byte) {
	name, _, _ := bytes.Cut(payload, []byte{0})
	entry := (*fuse.EntryOut)(unsafe.Pointer(&out[outHeaderSize]))
	*entry = fuse.EntryOut{}
	n, code := int(unsafe.Sizeof(*entry)), t.guardedLookup(h, string(name), entry)
	if !code.Ok() {
		n = 0
	}
	t.reply(h.Unique, out, n, code)
}

func (t *transport) guardedLookup(h *fuse.InHeader, name string, out *fuse.EntryOut) (code fuse.Status) {
	defer func() {
		if p := recover(); p != nil {
			code = t.fs.panicked(p)
		}
	}()
	return t.fs.Lookup(nil, h, name, out)
}

// answerRead answers READ without go-fuse, whose way costs four allocations.
func (t *transport) answerRead(in *fuse.ReadIn, small []byte) {
	out, class := t.replies.get(outHeaderSize+int(in.Size), small)
	defer t.replies.put(out, class)
	n, code := t.guardedRead(in, out[outHeaderSize:outHeaderSize+int(in.Size)])
	t.reply(in.Unique, out, n, code)
}

func (t *transport) guardedRead(in *fuse.ReadIn, dst []byte) (n int, code fuse.Status) {
	defer func() {
		if p := recover(); p != nil {
			n, code = 0, t.fs.panicked(p)
		}
	}()
	return t.fs.read(in.NodeId, int64(in.Offset), dst)
}

// answerOther has go-fuse take the request apart and put the reply together.
func (t *transport) answerOther(in []byte, h *fuse.InHeader, small []byte) {
	out, class := t.replies.get(replySize+dataSize(in, h), small)
	defer t.replies.put(out, class)
	n, code := t.ps.HandleRequest([][]byte{in}, [][]byte{out})
	if !code.Ok() {
		t.reply(h.Unique, out, 0, code)
	} else if n > 0 {
		t.write(out[:n])
	}
}

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

// reply writes the header for n bytes of data, which are in out behind it, and both to the device.
func (t *transport) reply(unique uint64, out []byte, n int, code fuse.Status) {
	*(*fuse.OutHeader)(unsafe.Pointer(&out[0])) = fuse.OutHeader{
		Length: uint32(outHeaderSize + n),
		Status: -int32(code),
		Unique: unique,
	}
	t.write(out[:outHeaderSize+n])
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
