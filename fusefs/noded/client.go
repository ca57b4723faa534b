package noded

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/internal/wire"
)

// ErrNoService is that nobody listens there.
var ErrNoService = errors.New("no service")

// ServiceError is a request that the service answered with something other than OK.
type ServiceError struct {
	Code Code
	Text string
}

func (e *ServiceError) Error() string { return e.Text }

// Fallback reports whether somebody who can do without the service should: it is not the request that is wrong.
func (e *ServiceError) Fallback() bool { return e.Code >= Limit }

// Times that a client waits. The service bounds what it does for a request to less than requestTimeout.
const (
	helloTimeout   = 3 * time.Second
	requestTimeout = 60 * time.Second
)

// Client is a connection to a service. It is a reference to all that was mounted over it, for as long as it is open and
// its process lives. One request at a time; it is safe for concurrent use.
//
// A connection that ends, as the service's keeper was started again, is replaced by the next request, and what was
// mounted over it is mounted over the new one, so that the references are there again. Keep does so at once.
type Client struct {
	socket string
	ctx    context.Context // until Close
	cancel context.CancelFunc

	mu   sync.Mutex // one request at a time; and held
	held []*held

	linkMu sync.Mutex
	link   *link // never nil
}

// held is an image that was mounted: what it takes to do so again.
type held struct {
	given   uint64 // id that the caller knows
	id      uint64 // id in the service that is there now
	request Request
	files   []*os.File // ours: the image, and the list of one that is signed
}

// Mounted is a mount that was received.
type Mounted struct {
	ID       uint64
	Size     int64
	Replayed int
	Shared   bool
	// Mount is a detached mount (open_tree(2)), for move_mount(2). The caller closes it. nil with NoGrant.
	Mount *os.File
}

// Dial connects to the service at socket, a path or "@NAME" for an abstract one, and greets it, within 3 s. It must be
// root's or the caller's own: anybody may take an abstract name. ErrNoService is in the chain if nobody listens.
func Dial(socket string) (*Client, error) {
	ctx, cancel := context.WithCancel(context.Background())
	l, err := connect(ctx, socket)
	if err != nil {
		cancel()
		return nil, err
	}
	return &Client{socket: socket, ctx: ctx, cancel: cancel, link: l}, nil
}

// Mount has an image served. r.Do and r.Traces are set here. image and traces stay the caller's.
func (c *Client) Mount(r Request, image *os.File, traces ...*os.File) (*Mounted, error) {
	r.Do, r.Traces = VerbMount, len(traces)
	return c.mount(&r, []*os.File{image}, traces)
}

// MountSigned is Mount for an image that is to be what r.Signature says, with the list of its hashes, see VerbMountSigned.
func (c *Client) MountSigned(r Request, image, list *os.File, traces ...*os.File) (*Mounted, error) {
	r.Do, r.Traces = VerbMountSigned, len(traces)
	return c.mount(&r, []*os.File{image, list}, traces)
}

func (c *Client) mount(r *Request, image, traces []*os.File) (*Mounted, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	reply, files, err := c.do(r, slices.Concat(image, traces)...)
	if err != nil {
		return nil, err
	}
	m := &Mounted{ID: reply.ID, Size: reply.Size, Replayed: reply.Replayed, Shared: reply.Shared}
	if !r.NoGrant {
		if len(files) != 1 {
			closeAll(files)
			return nil, errors.New("the service sent no mount")
		}
		m.Mount = files[0]
	}
	return m, c.hold(r, reply.ID, image)
}

// hold notes what it takes to mount the image again.
func (c *Client) hold(r *Request, id uint64, image []*os.File) error {
	for _, h := range c.held {
		if h.id == id {
			return nil
		}
	}
	h := &held{given: id, id: id, request: *r}
	for _, f := range image {
		ours, err := dup(f)
		if err != nil {
			closeAll(h.files)
			return err
		}
		h.files = append(h.files, ours)
	}
	h.request.Traces, h.request.Record, h.request.NoGrant, h.request.Known = 0, 0, true, true
	c.held = append(c.held, h)
	return nil
}

// Attach has the service put image id on the directory dir, an O_PATH descriptor, for a user who may not mount.
func (c *Client) Attach(id uint64, dir *os.File, attrs int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range c.held {
		if h.given == id {
			id = h.id
			break
		}
	}
	_, files, err := c.do(&Request{Do: VerbAttach, ID: id, Attrs: attrs}, dir)
	closeAll(files)
	return err
}

// Detach has the service unmount what Attach has put on base in parent, an O_PATH descriptor, for the same user.
func (c *Client) Detach(parent *os.File, base string, lazy bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, files, err := c.do(&Request{Do: VerbDetach, Base: base, Lazy: lazy}, parent)
	closeAll(files)
	return err
}

// Report asks what the service does.
func (c *Client) Report() (*Report, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, files, err := c.do(&Request{Do: VerbReport})
	if err != nil {
		return nil, err
	}
	defer closeAll(files)
	if len(files) != 1 {
		return nil, errors.New("the service sent no report")
	}
	r := new(Report)
	// A file that is not in memory, of a user's service, may never answer.
	err = withFD(files[0], func(fd int) (err error) {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
		return err
	})
	if err == nil {
		err = json.NewDecoder(io.NewSectionReader(files[0], 0, maxReport)).Decode(r)
	}
	if err != nil {
		return nil, fmt.Errorf("read the service's report: %w", err)
	}
	return r, nil
}

// maxReport is the longest report that is read, in bytes.
const maxReport = 64 << 20

// Keep has a connection that ends replaced at once, again and again until Close, and says so in log.
func (c *Client) Keep(log *slog.Logger) {
	go func() {
		for c.ctx.Err() == nil {
			select {
			case <-c.current().ended:
			case <-c.ctx.Done():
				return
			}
			c.again(log)
		}
	}()
}

// again connects until there is a service.
func (c *Client) again(log *slog.Logger) {
	const longest = 2 * time.Second
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, longest) {
		c.mu.Lock()
		err := c.connected()
		c.mu.Unlock()
		if err == nil || c.ctx.Err() != nil {
			return
		}
		if wait < longest && 2*wait >= longest {
			log.Warn("the image service does not come back, still trying", "socket", c.socket, "error", err)
		}
		if !pause(c.ctx, wait, nil) {
			return
		}
	}
}

// Peer is who listens, or made the socket for who does: pid, user and group of the service.
func (c *Client) Peer() (*unix.Ucred, error) { return c.current().conn.Peer() }

// Close drops the references. What waits for a reply ends.
func (c *Client) Close() error {
	c.cancel()
	err := c.current().conn.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range c.held {
		closeAll(h.files)
	}
	c.held = nil
	return err
}

func (c *Client) current() *link {
	c.linkMu.Lock()
	defer c.linkMu.Unlock()
	return c.link
}

// do sends a request and waits for its reply; c.mu is held. If the connection breaks it is replaced, and the request
// repeated once, unless it could then be done twice.
func (c *Client) do(r *Request, files ...*os.File) (*Reply, []*os.File, error) {
	for again := false; ; again = true {
		if err := c.connected(); err != nil {
			return nil, nil, err
		}
		reply, got, err := c.current().do(r, files...)
		if err == nil && reply.Code != OK {
			closeAll(got)
			return nil, nil, &ServiceError{reply.Code, reply.Error}
		}
		once := r.Do == VerbAttach || r.Do == VerbDetach
		if err == nil || again || once || !errors.Is(err, errEnded) || c.ctx.Err() != nil {
			return reply, got, err
		}
	}
}

// connected replaces a connection that has ended; c.mu is held. Images that cannot be mounted again are let go of: their
// mounts have ended with the service that made them.
func (c *Client) connected() error {
	select {
	case <-c.current().ended:
	default:
		return nil
	}
	l, err := connect(c.ctx, c.socket)
	if err != nil {
		return err
	}
	kept := c.held[:0]
	for _, h := range c.held {
		reply, files, err := l.do(&h.request, h.files...)
		closeAll(files)
		if err != nil {
			l.conn.Close()
			return err
		}
		if reply.Code != OK {
			closeAll(h.files)
			continue
		}
		h.id = reply.ID
		kept = append(kept, h)
	}
	c.held = kept
	c.linkMu.Lock()
	c.link = l
	c.linkMu.Unlock()
	if c.ctx.Err() != nil { // Close came in between, and has closed the link before this one
		l.conn.Close()
	}
	return c.ctx.Err()
}

// errEnded: the connection broke.
var errEnded = errors.New("the service closed the connection")

// link is one connection, greeted, and who reads it.
type link struct {
	conn    *wire.Conn
	replies chan answer
	ended   chan struct{} // closed when nothing more comes
}

type answer struct {
	reply *Reply
	files []*os.File
}

// connect dials and greets, again if the service ends meanwhile: it may be about to be replaced by another.
func connect(ctx context.Context, socket string) (*link, error) {
	ctx, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	for {
		l, err := connectOnce(ctx, socket)
		if !errors.Is(err, errEnded) || !pause(ctx, 20*time.Millisecond, nil) {
			return l, err
		}
	}
}

func connectOnce(ctx context.Context, socket string) (*link, error) {
	sock, err := dial(ctx, socket)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ECONNREFUSED):
		return nil, fmt.Errorf("%s: %w", socket, ErrNoService)
	case err != nil:
		return nil, fmt.Errorf("connect to the image service: %w", err)
	}
	conn := wire.NewConn(sock)
	if err = greet(ctx, conn, socket); err != nil {
		conn.Close()
		return nil, err
	}
	l := &link{conn: conn, replies: make(chan answer, 1), ended: make(chan struct{})}
	go l.read()
	return l, nil
}

// dial waits for room in the queue of a service that many call at once, which connect(2) of such sockets does not.
func dial(ctx context.Context, socket string) (*net.UnixConn, error) {
	for {
		conn, err := new(net.Dialer).DialContext(ctx, "unixpacket", socket)
		if err == nil {
			return conn.(*net.UnixConn), nil
		}
		if !errors.Is(err, unix.EAGAIN) {
			return nil, err
		}
		if !pause(ctx, 5*time.Millisecond, nil) {
			return nil, err
		}
	}
}

func greet(ctx context.Context, conn *wire.Conn, socket string) error {
	peer, err := conn.Peer()
	if err != nil {
		return fmt.Errorf("image service at %s: %w", socket, err)
	}
	if peer.Uid != 0 && int(peer.Uid) != os.Geteuid() {
		return fmt.Errorf("the service at %s is neither root's nor your own but user %d's", socket, peer.Uid)
	}
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	var w Welcome
	// A service that refuses at once may have closed already: what it said is there all the same.
	_ = conn.Send(&Hello{Magic: helloMagic, Version: Version})
	err = conn.RecvPlain(&w)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("the image service at %s does not answer", socket)
	case errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET):
		return fmt.Errorf("greet the image service at %s: %w", socket, errEnded)
	case err != nil:
		return fmt.Errorf("greet the image service at %s: %w", socket, err)
	case w.Error != "":
		return fmt.Errorf("image service at %s: %w", socket, &ServiceError{Failed, w.Error})
	case w.Version != Version:
		return fmt.Errorf("image service at %s: %w", socket, &ServiceError{Failed, fmt.Sprintf(
			"it is of version %s and speaks version %d of the protocol, this program %d", w.Program, w.Version, Version)})
	}
	if !stop() {
		return ctx.Err()
	}
	return conn.SetDeadline(time.Time{})
}

// receive takes one answer, with the descriptors that came before it.
func (l *link) receive() (answer, error) {
	var a answer
	for {
		a.reply = new(Reply)
		files, err := l.conn.Recv(a.reply)
		if a.files = append(a.files, files...); err == nil && len(a.files) > wire.MaxFiles {
			err = wire.ErrTooLong
		}
		if err != nil {
			closeAll(a.files)
			return answer{}, err
		}
		if !a.reply.More {
			return a, nil
		}
	}
}

// read delivers replies until the connection ends. One that nobody asked for ends it.
func (l *link) read() {
	defer close(l.ended)
	defer l.conn.Close()
	for {
		a, err := l.receive()
		if err != nil {
			return
		}
		select {
		case l.replies <- a:
		default:
			closeAll(a.files)
			return
		}
	}
}

// do sends a request and waits for its reply. An error is the end of the connection.
func (l *link) do(r *Request, files ...*os.File) (*Reply, []*os.File, error) {
	if err := l.conn.Send(r, files...); err != nil {
		if !errors.Is(err, wire.ErrTooLong) {
			l.conn.Close()
			err = errors.Join(errEnded, err)
		}
		return nil, nil, err
	}
	timer := time.NewTimer(requestTimeout)
	defer timer.Stop()
	select {
	case a := <-l.replies:
		return a.reply, a.files, nil
	case <-timer.C:
		l.conn.Close()
		return nil, nil, fmt.Errorf("the image service did not answer within %s", requestTimeout)
	case <-l.ended:
	}
	select {
	case a := <-l.replies: // came before the end
		return a.reply, a.files, nil
	default:
		return nil, nil, errEnded
	}
}
