package server

import (
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/internal/stage"
	"github.com/squirefs/squire/internal/wire"
)

// Client is the keeper's side. Its methods may be called concurrently; those that wait for storage are bounded in time
// (20 s).
type Client struct {
	conn  *wire.Conn
	pid   int
	ended chan uint64
	done  chan struct{}
	over  sync.Once // closes done

	timeout time.Duration // callTimeout, but in tests

	sending sync.Mutex

	mu    sync.Mutex
	last  uint64 // number of the last request
	calls map[uint64]chan *reply
	mine  map[uint64]bool // images that are served
	gone  []uint64        // of them, those whose mounts are gone, of which is to be told
	more  sync.Cond
	close bool // done is closed

	reaping sync.Mutex    // pid is not signalled once it is reaped
	reaped  chan struct{} // closed then
	status  unix.WaitStatus
}

const (
	// callTimeout bounds the wait for storage.
	callTimeout = 20 * time.Second
	// dyingTimeout is how long a process that was killed may take to close its socket. A thread that waits for a disk
	// cannot be killed, and keeps it open; but it answers nobody any more.
	dyingTimeout = 2 * time.Second
)

// reapTimeout is how long a process may take to die once its socket is closed, before nobody waits for it.
const reapTimeout = time.Second

var errGone = errors.New("the image server has ended")

// Start starts a server process. It must get none of the descriptors that this process inherited: those have to be closed
// on exec.
func Start(c Config) (*Client, error) {
	conn, theirs, err := wire.Pair()
	if err != nil {
		return nil, fmt.Errorf("start the image server: %w", err)
	}
	defer theirs.Close()
	pid, err := fork(theirs)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("start the image server: %w", err)
	}
	s := &Client{
		conn:  conn,
		pid:   pid,
		ended: make(chan uint64),
		done:  make(chan struct{}),
		calls: make(map[uint64]chan *reply),
		mine:  make(map[uint64]bool),

		reaped:  make(chan struct{}),
		timeout: callTimeout,
	}
	s.more.L = &s.mu
	go s.reap()
	go s.receive()
	go s.tell()
	if err := s.conn.Send(&setting{c, runtime.GOMAXPROCS(0)}); err != nil {
		s.Kill()
		return nil, fmt.Errorf("start the image server: %w", err)
	}
	return s, nil
}

func fork(socket *os.File) (pid int, err error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	return stage.Fork(Name, null.Fd(), null.Fd(), 2, socket.Fd())
}

// reap waits for the process.
func (c *Client) reap() {
	var info unix.Siginfo
	for unix.Waitid(unix.P_PID, c.pid, &info, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
	}
	c.reaping.Lock()
	defer c.reaping.Unlock()
	defer close(c.reaped)
	for {
		if _, err := unix.Wait4(c.pid, &c.status, 0, nil); err != unix.EINTR {
			return
		}
	}
}

// receive passes on what the process says.
func (c *Client) receive() {
	defer c.finish()
	for {
		r := new(reply)
		files, err := c.conn.Recv(r)
		for _, f := range files {
			f.Close() // it has none to give
		}
		if err != nil {
			return
		}
		c.mu.Lock()
		if c.mine[r.Ended] {
			delete(c.mine, r.Ended)
			c.gone = append(c.gone, r.Ended)
			c.more.Signal()
		} else if ch := c.calls[r.Number]; ch != nil {
			ch <- r // has room for it
			delete(c.calls, r.Number)
		}
		c.mu.Unlock()
	}
}

// finish notes that the process is gone, or as good as gone.
func (c *Client) finish() {
	c.over.Do(func() {
		close(c.done)
		c.conn.Close()
		c.mu.Lock()
		c.close = true
		c.more.Signal()
		c.mu.Unlock()
	})
}

// tell tells of images whose mounts are gone, whenever somebody listens.
func (c *Client) tell() {
	defer close(c.ended)
	for {
		c.mu.Lock()
		for len(c.gone) == 0 && !c.close {
			c.more.Wait()
		}
		gone := c.gone
		c.gone = nil
		c.mu.Unlock()
		if len(gone) == 0 {
			return
		}
		for _, id := range gone {
			select {
			case c.ended <- id:
			case <-c.done:
				return
			}
		}
	}
}

// call sends a request with files, which stay the caller's, and waits for the reply.
func (c *Client) call(r *request, timeout time.Duration, files ...*os.File) (*reply, error) {
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	ch := make(chan *reply, 1)
	c.mu.Lock()
	c.last++
	r.Number = c.last
	c.calls[r.Number] = ch
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.calls, r.Number)
		c.mu.Unlock()
	}()
	if err := c.send(r, files...); err != nil {
		return nil, err
	}
	select {
	case p := <-ch:
		return p, p.err()
	case <-c.done:
		select {
		case p := <-ch: // it came before the end
			return p, p.err()
		default:
			return nil, errGone
		}
	case <-timer.C:
		return nil, os.ErrDeadlineExceeded
	}
}

// send sends a request. The process reads what it is sent at once, whatever it waits for: one that does not is dead.
func (c *Client) send(r *request, files ...*os.File) error {
	c.sending.Lock()
	defer c.sending.Unlock()
	stuck := time.AfterFunc(callTimeout, c.Kill)
	defer stuck.Stop()
	err := c.conn.Send(r, files...)
	select {
	case <-c.done:
		return errGone
	default:
	}
	if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
		return errGone
	}
	return err
}

func (r *reply) err() error {
	switch {
	case r.Refused:
		return &ImageError{r.Error}
	case r.Error != "":
		return errors.New(r.Error)
	}
	return nil
}

// wrap says what did not work with an image.
func wrap(name string, err error) error {
	var refused *ImageError
	switch {
	case err == nil || errors.As(err, &refused):
		return err
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("%s: its storage does not answer", name)
	}
	return fmt.Errorf("%s: %w", name, err)
}

// Superblock reads the superblock of the image at offset in file, for a user, without looking at it.
func (c *Client) Superblock(user uint32, file *os.File, offset int64) (string, error) {
	p, err := c.call(&request{Do: verbSuperblock, Image: Image{User: user, Offset: offset}}, c.timeout, file)
	if err != nil {
		return "", wrap("image", err)
	}
	return p.Info.Superblock, nil
}

// Open has the server understand an image, and keep it until its mount has ended, or Forget. list has the hashes of one
// that is signed, nil of others. Files stay the caller's.
func (c *Client) Open(img Image, file, list *os.File, traces []*os.File) (Info, error) {
	if img.ID == 0 || len(traces) > wire.MaxFiles-2 || (list != nil) != (img.Signed != "") {
		return Info{}, fmt.Errorf("%s: an image needs an id, its hashes if it is signed, and has at most %d traces", img.Name, wire.MaxFiles-2)
	}
	img.Traces = len(traces)
	files := []*os.File{file}
	if list != nil {
		files = append(files, list)
	}
	p, err := c.call(&request{Do: verbOpen, Image: img}, c.timeout, append(files, traces...)...)
	if err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			c.Forget(img.ID)
		}
		return Info{}, wrap(img.Name, err)
	}
	return p.Info, nil
}

// Serve has it answer the device of an opened image, and returns when the mount answers. init is Info.Init of the server
// that did so before; nil: the mount is new. device stays the caller's, who must not close it before the mount has ended:
// it is what keeps the mount when this process dies.
func (c *Client) Serve(id uint64, device *os.File, init []byte) (Info, error) {
	c.mu.Lock()
	c.mine[id] = true
	c.mu.Unlock()
	r := &request{Do: verbServe, Image: Image{ID: id}, Resume: init != nil, Init: init}
	p, err := c.call(r, c.timeout, device)
	if err == nil {
		return p.Info, nil
	}
	c.mu.Lock()
	delete(c.mine, id)
	c.mu.Unlock()
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return Info{}, fmt.Errorf("image %d: the kernel does not begin with its mount", id)
	}
	return Info{}, wrap(fmt.Sprint("image ", id), err)
}

// Forget drops an image that is not served.
func (c *Client) Forget(id uint64) { c.order(verbForget, id) }

// Common says that several users have an image, which is open, from now on: its share of what there is is no longer that of
// who came first.
func (c *Client) Common(id uint64) { c.order(verbCommon, id) }

// order sends a request that has no reply.
func (c *Client) order(do verb, id uint64) { _ = c.send(&request{Do: do, Image: Image{ID: id}}) }

// Ended tells of images whose mount is gone. It is closed with the process.
func (c *Client) Ended() <-chan uint64 { return c.ended }

// Ping reports whether the server answers, within the given time.
func (c *Client) Ping(timeout time.Duration) error {
	_, err := c.call(&request{Do: verbPing}, timeout)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("the image server does not answer within %v", timeout)
	}
	return err
}

// statsTimeout bounds Stats, which wait for nothing.
const statsTimeout = 5 * time.Second

// Stats asks for the counters.
func (c *Client) Stats() (*Stats, error) {
	s := &Stats{Images: make(map[uint64]ImageStats)}
	for after := uint64(0); ; {
		p, err := c.call(&request{Do: verbStats, Image: Image{ID: after}}, statsTimeout)
		if err != nil {
			return nil, fmt.Errorf("ask the image server what it did: %w", err)
		}
		s.Memory = p.Memory
		if len(p.Stats) == 0 {
			return s, nil
		}
		for i := range p.Stats {
			s.Images[p.Stats[i].id] = p.Stats[i].ImageStats
		}
		if after = p.Stats[len(p.Stats)-1].id; after == math.MaxUint64 {
			return s, nil
		}
	}
}

// Done is closed when the process has closed its socket: it is dead, or as good as. Its last thread may end later.
func (c *Client) Done() <-chan struct{} { return c.done }

// Crashed reports, after Done, whether the process ended as it should not have: neither because it was told to, nor by
// SIGKILL. Of one that is not quite dead yet it says no.
func (c *Client) Crashed() bool {
	select {
	case <-c.reaped:
		return c.status.Exited() && c.status.ExitStatus() != 0 || c.status.Signaled() && c.status.Signal() != unix.SIGKILL
	case <-time.After(reapTimeout): // its socket is closed a moment before
		return false
	}
}

// Stop has the process end by itself, when all is answered that it has taken, within 2 s. It returns at once. So does a
// process whose keeper is gone.
func (c *Client) Stop() { c.order(verbStop, 0) }

// Kill ends it. If it cannot die, as a thread waits for a disk, Done is closed after 2 s all the same.
func (c *Client) Kill() {
	c.reaping.Lock()
	defer c.reaping.Unlock()
	select {
	case <-c.reaped:
	default:
		_ = unix.Kill(c.pid, unix.SIGKILL)
	}
	time.AfterFunc(dyingTimeout, c.finish)
}
