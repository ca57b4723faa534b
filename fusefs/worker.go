package fusefs

import (
	"bytes"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/sqfs"
)

// A worker is a goroutine that answers requests, one at a time. It has a seat, of which there are maxReaders; if a request
// takes long the overseer gives its seat to another one.
type worker struct {
	t       *transport
	in, out []byte // of requests, and of replies that are short

	// turn is odd while there is a request to be answered. Who makes it even is who answers: the worker, or the overseer
	// if it takes too long.
	turn    atomic.Uint64
	mine    uint64 // value of turn for the request that the worker is at
	claimed bool   // the worker has made it even
	late    bool   // the overseer has
	seat    atomic.Bool

	seen  uint64 // odd value of turn that the overseer saw last
	looks int    // how often it did
}

// hire starts a worker, on a seat that is enlisted.
func (t *transport) hire() {
	w := &worker{t: t, in: touched(requestSize), out: touched(replySize)}
	w.seat.Store(true)
	t.answering.Add(1)
	t.fs.guest.add(workerCost)
	t.fs.lull.putOff()
	t.over.watch(w)
	go w.run()
}

// touched returns a buffer whose memory is there. A server that is killed while the kernel copies a request to it takes
// the request along if not all of that can be done without a page fault: its caller gets EIO (fs/fuse/dev.c:
// fuse_dev_do_read).
func touched(n int) []byte {
	b := make([]byte, n)
	clear(b)
	return b
}

// run answers requests until the worker has lost its seat, or there are none for it any more.
func (w *worker) run() {
	defer w.leave()
	t := w.t
	for w.seat.Load() {
		n, err := t.dev.next(w.in)
		if err != nil {
			t.fail(err)
			return
		}
		begin := time.Now()
		w.mine, w.claimed = w.turn.Add(1), false
		t.over.stir()
		if t.fs.source == nil {
			t.dev.relay()
		}
		w.answer(w.in[:n])
		if !w.claimed && !w.claim() { // else it was a request without an answer
			w.late = true
			return
		}
		t.fs.latencies.observe(opcode(w.in), time.Since(begin))
	}
}

// claim reports whether the request is the worker's to answer: the overseer has not done so.
func (w *worker) claim() bool {
	w.claimed = w.turn.CompareAndSwap(w.mine, w.mine+1)
	return w.claimed
}

// leave gives up what the worker has, as far as the overseer has not taken it.
func (w *worker) leave() {
	w.t.over.forget(w)
	w.t.fs.guest.give(workerCost)
	if w.seat.CompareAndSwap(true, false) {
		w.t.dev.discharge()
	} else {
		w.t.over.standing.Add(-1)
	}
	if w.late {
		w.t.over.late.Add(-1)
	} else {
		w.t.answering.Done()
	}
}

// answer answers one request.
func (w *worker) answer(in []byte) {
	if len(in) < int(unsafe.Sizeof(fuse.InHeader{})) {
		return // cannot be: the kernel writes whole messages
	}
	h := (*fuse.InHeader)(unsafe.Pointer(&in[0]))
	switch h.Opcode {
	case opForget, opBatchForget: // have no answer, and there is nothing to forget
		return
	case opInterrupt:
		// ENOSYS makes the kernel stop sending these (fs/fuse/dev.c: fuse_dev_do_write sets fc->no_interrupt). No
		// request here can be given up halfway; EAGAIN, go-fuse's answer to an unknown one, would be sent again
		// and again until the request is done.
		w.reply(h.Unique, w.out, 0, fuse.ENOSYS)
		return
	case opIoctl:
		// Python asks each file that it opens whether it is a terminal. The kernel makes ENOTTY of ENOSYS, but asks again.
		w.reply(h.Unique, w.out, 0, fuse.Status(unix.ENOTTY))
		return
	}
	switch {
	case w.t.over.overrun():
		w.reply(h.Unique, w.out, 0, w.t.fs.tooLate(in))
	case h.Opcode == opLookup:
		w.answerLookup(h, in[unsafe.Sizeof(*h):])
	case h.Opcode == opRead:
		w.answerRead((*fuse.ReadIn)(unsafe.Pointer(h)))
	default:
		w.answerOther(in, h)
	}
}

// answerLookup answers LOOKUP without go-fuse, which shows a file of its own in every root (fuse/poll.go: pollHackName),
// and allocates.
func (w *worker) answerLookup(h *fuse.InHeader, payload []byte) {
	out := w.out
	name, _, _ := bytes.Cut(payload, []byte{0})
	entry := (*fuse.EntryOut)(unsafe.Pointer(&out[outHeaderSize]))
	*entry = fuse.EntryOut{}
	n, code := int(unsafe.Sizeof(*entry)), w.t.guardedLookup(h, string(name), entry)
	if !code.Ok() {
		n = 0
	}
	w.reply(h.Unique, out, n, code)
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
func (w *worker) answerRead(in *fuse.ReadIn) {
	size := outHeaderSize + int(in.Size) + sqfs.ReadSlack
	room := w.t.fs.roomForRead(size)
	w.t.fs.guest.enter(room, w.t.dev.relay)
	defer w.t.fs.guest.leave(room)
	out, class := replies.get(size, w.out)
	defer replies.put(out, class)
	n, code := w.t.guardedRead(in, out[outHeaderSize:outHeaderSize+int(in.Size)])
	w.reply(in.Unique, out, n, code)
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
func (w *worker) answerOther(in []byte, h *fuse.InHeader) {
	size := replySize + dataSize(in, h)
	if size > replySize {
		w.t.fs.guest.enter(int64(size), w.t.dev.relay)
		defer w.t.fs.guest.leave(int64(size))
	}
	out, class := replies.get(size, w.out)
	defer replies.put(out, class)
	n, code := w.t.ps.HandleRequest([][]byte{in}, [][]byte{out})
	if !code.Ok() {
		w.reply(h.Unique, out, 0, code)
	} else if n > 0 && w.claim() {
		w.t.write(out[:n])
	}
}

// reply writes the header for n bytes of data, which are in out behind it, and both to the device, unless the overseer has
// answered.
func (w *worker) reply(unique uint64, out []byte, n int, code fuse.Status) {
	if !w.claim() {
		return
	}
	putHeader(out, unique, n, code)
	w.t.write(out[:outHeaderSize+n])
}
