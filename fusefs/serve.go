package fusefs

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Serving is how Serve serves a mount.
type Serving struct {
	// Device is a FUSE device that Mount or MountFusermount returned, maybe in another process. Serve closes it.
	Device *os.File
	// Store, if not nil, is a clone of Device (see Clone), through which Serve puts data into the page cache before it
	// is asked for. Serve closes it.
	Store *os.File
	// Resume, if not nil, is what Ready was given by the server that this one follows: the mount is in use. What that
	// one had taken and not answered is asked for once more.
	Resume []byte
	// NoResend says that what the last server had taken has failed by itself, as its Device was a clone of one that
	// somebody else holds. This is how to go on before Linux 6.9: who waited for that server gets ECONNABORTED, except
	// for most reads of files, which the kernel tries twice.
	NoResend bool
	// Ready, if not nil, is called once the mount can be used. init is for the Resume of a later server, which may be of
	// another version of this program.
	Ready func(init []byte)
	// Stop, when it is closed, ends Serve without ending the mount: nothing is taken any more, and what was taken is
	// answered. If that was so before Ready was called, the next server is without Resume too. It may be nil.
	Stop <-chan struct{}
}

// Serve answers the requests of a mount until it is unmounted, aborted or Stop is closed; then it returns nil.
//
// Whatever storage does, each request is answered within 25 s, with EIO if it comes to that, as most callers cannot be
// killed before. So Serve returns within 25 s of Stop, and soon after an unmount. Goroutines that still wait for storage
// then, or for the page cache, end by themselves once they are let go: until then they use the image and the cache, which
// may be closed and used on.
//
// Serve starts up to 128 goroutines, and two for each processor beside these; where storage is slow up to 640. An FS is
// served once. A process that serves should have more threads for Go code than processors (runtime.GOMAXPROCS):
// decoders keep theirs for a millisecond at a time, and a request that was read waits for a free one.
//
// Whoever holds another descriptor of the device may start a server after this one, at any time, however this one
// ended: what this one took is in the kernel until it is answered.
func (f *FS) Serve(s Serving) error {
	defer s.Device.Close()
	if s.Store != nil {
		defer s.Store.Close()
	}
	defer f.decoder.share.close()
	defer f.guest.close()
	defer f.places.close()
	defer f.Close() // what comes later, is used no more and goes with time
	t := &transport{fs: f, ps: fuse.NewProtocolServer(f, f.protocolOptions())}
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
	state, err := t.begin(s.Resume)
	if errors.Is(err, errStopped) {
		return nil
	}
	if err != nil {
		return err
	}
	if s.Ready != nil {
		s.Ready(state)
	}
	f.lull.init(func() bool { return f.retire(&t.dev) })
	defer f.lull.end()
	ends := []func(){f.startHelpers()}
	if s.Store != nil {
		ends = append(ends, f.startStorers(s.Store))
		defer f.storers.settled.Wait() // until then they share the table in which Store is closed
	}
	ends = append(ends, f.ahead.start())
	defer t.end(ends)
	t.dev.more = t.start
	stopOverseer := t.over.start(t) // before anybody who decodes ahead can want somebody at the device
	if f.source != nil {
		f.source.watch.Store(&t.dev)
		defer f.source.watch.Store(nil)
	}
	defer stopOverseer()
	t.hire()
	<-t.dev.ended
	t.answering.Wait()
	if err := t.failure.Load(); err != nil {
		return *err
	}
	return nil
}

// endPatience is how long Serve waits for those who work ahead: storage may not have answered. stopPatience is that when
// the mount lives on: who puts data into the page cache may wait for a page that somebody asked for whom only the next
// server answers, and everybody waits for that one.
const (
	endPatience  = time.Second
	stopPatience = 50 * time.Millisecond
)

// end calls all ends at once, and returns when all have returned or patience is at its end.
func (t *transport) end(ends []func()) {
	patience := endPatience
	if t.dev.halted.Load() {
		patience = stopPatience
	}
	var running sync.WaitGroup
	for _, end := range ends {
		running.Go(end)
	}
	ended := make(chan struct{})
	go func() { running.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(patience):
	}
}

// heed has the device left alone once stop is closed, and returns a function that ends this.
func (t *transport) heed(stop <-chan struct{}) (end func()) {
	quit, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case <-stop:
			t.dev.halt()
		case <-quit:
		}
	}()
	return func() {
		close(quit)
		<-ended
	}
}

// protocolOptions is what INIT asks of the kernel.
func (f *FS) protocolOptions() *fuse.MountOptions {
	return &fuse.MountOptions{
		Name:                 f.String(),
		MaxWrite:             maxRead, // also gives max_pages, the limit of READ
		MaxBackground:        maxBackground,
		EnableSymlinkCaching: true,
		// Nothing changes, so nothing is to be checked: without this a newer mtime would drop pages.
		ExplicitDataCacheControl: true,
		DisableSplice:            true,
		IDMappedMount:            f.idmap,
		DisabledCapabilities:     f.unwanted(),
		PanicHandler:             f.panicked,
		// What go-fuse logs are requests that it does not know and answers with ENOSYS.
		Logger: slog.NewLogLogger(f.report.log.Handler(), slog.LevelDebug),
	}
}

// unwanted are flags that go-fuse asks for by itself.
func (f *FS) unwanted() uint64 {
	// Passthrough would cost one level of file system stacking, of which there are two: overlayfs on overlayfs on this
	// mount would fail.
	flags := uint64(fuse.CAP_PASSTHROUGH)
	if !f.idmap {
		flags |= fuse.CAP_ALLOW_IDMAP
	}
	return flags
}

// begin answers INIT, or goes on as agreed on then. It returns what a later server needs to go on.
func (t *transport) begin(resume []byte) ([]byte, error) {
	if resume != nil {
		return resume, t.resume(resume)
	}
	in := touched(requestSize)
	n, err := t.dev.wait(in)
	switch {
	case errors.Is(err, unix.ENODEV):
		return nil, errors.New("serve fuse: unmounted before the kernel sent INIT")
	case err != nil:
		return nil, fmt.Errorf("serve fuse: read INIT: %w", err)
	}
	out, err := t.init(in[:n])
	if err != nil {
		return nil, fmt.Errorf("serve fuse: %w", err)
	}
	if _, err := unix.Write(t.dev.fd, out); err != nil {
		return nil, fmt.Errorf("serve fuse: answer INIT: %w", err)
	}
	state := newInitState(t.fs, in[:n], out)
	state.note(t.fs)
	return state.encode(), nil
}

// init has go-fuse answer INIT, and returns the answer.
func (t *transport) init(in []byte) ([]byte, error) {
	if len(in) < minInit || opcode(in) != opInit {
		return nil, errors.New("first request is not INIT; is the device served already?")
	}
	out := make([]byte, replySize)
	size, code := t.ps.HandleRequest([][]byte{in}, [][]byte{out})
	if !code.Ok() || size < outHeaderSize {
		return nil, fmt.Errorf("answer INIT: %v", code)
	}
	if status := (*fuse.OutHeader)(unsafe.Pointer(&out[0])).Status; status != 0 {
		return nil, fmt.Errorf("kernel's FUSE protocol is too old: %w", unix.Errno(-status))
	}
	if size >= outHeaderSize+int(unsafe.Offsetof(fuse.InitOut{}.TimeGran)) {
		(*fuse.InitOut)(unsafe.Pointer(&out[outHeaderSize])).MaxWrite = maxWrite
	}
	return out[:size], nil
}

// resume goes on with a mount whose INIT an earlier server has answered: go-fuse is told the same once more.
func (t *transport) resume(state []byte) error {
	s, err := decodeInitState(state)
	if err == nil {
		err = s.check(t.fs)
	}
	if err == nil {
		_, err = t.init(s.agreedInit())
	}
	if err != nil {
		return fmt.Errorf("serve fuse: go on with a mount: %w", err)
	}
	s.note(t.fs)
	return nil
}

const (
	// notifyResend is FUSE_NOTIFY_RESEND, since Linux 6.9: the kernel queues anew what a server has taken and not
	// answered, with bit 63 of its unique id set (fs/fuse/dev.c: fuse_resend). It does so without FUSE_HAS_RESEND in
	// INIT too. Older kernels answer EINVAL.
	notifyResend = 7
	// resendAgain is how long after the first the second one is written: threads of a server that was killed may still
	// take requests while they die, if its end was not waited for.
	resendAgain = 6 * time.Second
)

// resend asks for what earlier servers have taken and not answered, which may be INIT, now and once more later. It returns
// a function that ends this. What this server has taken itself comes once more then; the answer to what was taken first
// gets ENOENT.
func (t *transport) resend() (stop func()) {
	t.notify(notifyResend)
	quit, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case <-time.After(t.fs.bounds.again):
			t.notify(notifyResend)
		case <-quit:
		}
	}()
	return func() {
		close(quit)
		<-ended
	}
}

// notify sends a notification without data: a reply with unique 0 whose status is its code.
func (t *transport) notify(code int32) {
	var out [unsafe.Sizeof(fuse.OutHeader{})]byte
	*(*fuse.OutHeader)(unsafe.Pointer(&out[0])) = fuse.OutHeader{Length: uint32(len(out)), Status: code}
	t.write(out[:])
}
