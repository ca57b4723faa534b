package fusefs

import (
	"errors"
	"fmt"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Refuse goes on with a mount whose image is lost, as somebody has changed it: each request is answered with EIO, until the
// mount is gone or s.Stop is closed; then it returns nil. What the kernel has of the image already stays of use. If nobody
// answered, the mount would have to be aborted (ENOTCONN), for good, with whatever a later server could know better.
//
// Of s, Resume, Ready and Store count for nothing; a Store is not closed.
func Refuse(s Serving) error {
	defer s.Device.Close()
	t := &transport{fs: &FS{bounds: usualBounds}}
	if err := t.dev.open(int(s.Device.Fd())); err != nil {
		return fmt.Errorf("serve fuse: %w", err)
	}
	defer t.dev.release()
	stopped := t.heed(s.Stop)
	defer stopped()
	if !s.NoResend {
		stopResending := t.resend()
		defer stopResending()
	}
	in, out := touched(requestSize), touched(replySize)
	for {
		n, err := t.dev.wait(in)
		switch {
		case errors.Is(err, unix.ENODEV), errors.Is(err, errStopped):
			return nil
		case err != nil:
			return fmt.Errorf("serve fuse: read request: %w", err)
		}
		t.refuse(in[:n], out)
	}
}

// refuse answers one request.
func (t *transport) refuse(in, out []byte) {
	code := fuse.EIO
	switch opcode(in) {
	case opForget, opBatchForget: // have no answer
		return
	case opInterrupt: // see worker.answer
		code = fuse.ENOSYS
	}
	putHeader(out, (*fuse.InHeader)(unsafe.Pointer(&in[0])).Unique, 0, code)
	t.write(out[:outHeaderSize])
}
