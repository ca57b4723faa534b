package noded

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/fusefs"
	"github.com/squirefs/squire/internal/wire"
)

// replyTimeout is how long a client may take to read an answer.
const replyTimeout = 5 * time.Second

// client is one connection, served by one goroutine. It is a reference to images.
type client struct {
	conn     *wire.Conn
	peer     *unix.Ucred
	user     fusefs.Owner // of peer
	program  string
	reporter bool              // the keeper's own metrics process: asks for reports and nothing else
	images   map[uint64]*image // that it has a reference to; guarded by keeper.mu, as is busy
	busy     bool              // a request of it runs
}

func (c *client) all() bool { return c.reporter || c.user.UID == 0 }

// accept takes connections until the listener is closed.
func (k *keeper) accept(l *net.UnixListener) {
	refusing := make(chan struct{}, 64)
	said := seldom{}
	for {
		sock, err := l.AcceptUnix()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case errors.Is(err, os.ErrDeadlineExceeded): // an upgrade: who comes now waits for the next keeper, or for this one
			if k.starting.pass(k.ctx) != nil {
				return
			}
			_ = l.SetDeadline(time.Time{})
			continue
		case err != nil: // too many files, no memory
			if said.due(err.Error(), time.Now()) {
				k.log.Warn("cannot take connections", "error", err)
			}
			if !pause(k.ctx, 100*time.Millisecond, nil) {
				return
			}
			continue
		}
		c := &client{conn: wire.NewConn(sock), images: map[uint64]*image{}}
		why := k.admit(c)
		if why == "" {
			go k.serveClient(c)
			continue
		}
		select {
		case refusing <- struct{}{}:
			go func() {
				k.refuse(c.conn, why)
				<-refusing
			}()
		default:
			c.conn.Close()
		}
	}
}

// admit counts a connection in, or says why not.
func (k *keeper) admit(c *client) (why string) {
	var err error
	if c.peer, err = c.conn.Peer(); err != nil {
		return "who are you?"
	}
	c.user = fusefs.Owner{UID: c.peer.Uid, GID: c.peer.Gid}
	if k.cfg.Own && c.user.UID != k.uid && c.user.UID != 0 {
		return fmt.Sprintf("this is the service of user %d alone", k.uid)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	// Some connections are left for root, to see what is going on.
	most, mine := k.limits.Clients-k.limits.Clients/64, k.limits.UserClients
	if c.user.UID == 0 {
		most, mine = k.limits.Clients, k.limits.Clients
	}
	switch {
	case k.closing:
		return "the service is about to end"
	case len(k.clients) >= most:
		return "the service has too many clients"
	case k.connected[c.user.UID] >= mine:
		return fmt.Sprintf("user %d has too many connections", c.user.UID)
	}
	k.clients[c] = true
	k.connected[c.user.UID]++
	return ""
}

// refuse answers a client's greeting with why it is not let in. It is read first, as to close a connection with something
// unread in it takes away what was sent.
func (k *keeper) refuse(conn *wire.Conn, why string) {
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	_ = conn.RecvPlain(new(Hello))
	_ = conn.Send(&Welcome{Version: Version, Program: k.cfg.Version, Error: why})
}

// serveClient serves one connection to its end, which is that of its references.
func (k *keeper) serveClient(c *client) {
	defer k.left(c)
	defer c.conn.Close()
	log := k.log.With("user", c.user.UID, "pid", c.peer.Pid)
	if err := k.hello(c); err != nil {
		log.Debug("client not let in", "error", err)
		return
	}
	for {
		err := c.conn.Wait()
		if err == nil {
			if !k.begin(c) {
				return
			}
			err = k.serveRequest(c, log)
			k.end(c)
		}
		if err != nil {
			log.Debug("client gone", "why", err)
			return
		}
	}
}

// serveRequest takes and answers one request. An error ends the connection.
func (k *keeper) serveRequest(c *client, log *slog.Logger) error {
	r := new(Request)
	files, slow, err := k.receive(c, r)
	if err != nil {
		return err
	}
	reply, out := k.answer(c, r, files, log)
	_ = c.conn.SetDeadline(time.Now().Add(replyTimeout))
	if (r.Do == VerbMount || r.Do == VerbMountSigned) && len(out) > 0 {
		err = c.conn.Send(&Reply{More: true}, out...)
		closeAll(out)
		out = nil
	}
	if err == nil {
		err = c.conn.Send(reply, out...)
	}
	_ = c.conn.SetDeadline(time.Time{})
	closeAll(out)
	closeAll(files) // which may wait, so it comes last
	if slow != nil {
		<-slow
	}
	return err
}

// left counts a connection out.
func (k *keeper) left(c *client) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, img := range c.images {
		k.unrefer(c, img)
	}
	delete(k.clients, c)
	if k.connected[c.user.UID]--; k.connected[c.user.UID] == 0 {
		delete(k.connected, c.user.UID)
	}
	k.touched()
}

func (k *keeper) hello(c *client) error {
	if c.reporter {
		return nil
	}
	_ = c.conn.SetDeadline(time.Now().Add(helloTimeout))
	var h Hello
	err := c.conn.RecvPlain(&h)
	w := Welcome{Version: Version, Program: k.cfg.Version}
	switch {
	case err != nil && (errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, unix.ECONNRESET)):
		return err
	case err != nil || h.Magic != helloMagic:
		w.Error = "that is no greeting of squire's"
	case h.Version != Version:
		w.Error = fmt.Sprintf("the service is of version %s and speaks version %d of the protocol, the client speaks %d",
			k.cfg.Version, Version, h.Version)
	}
	c.program = h.Program
	if err = c.conn.Send(&w); err == nil && w.Error != "" {
		err = errors.New(w.Error)
	}
	_ = c.conn.SetDeadline(time.Time{})
	return err
}

// answer does what a client asks for. The descriptors that it returns are to be closed after they were sent; of files some
// are nil, and it takes some away, for which it leaves nil.
func (k *keeper) answer(c *client, r *Request, files []*os.File, log *slog.Logger) (*Reply, []*os.File) {
	var reply Reply
	var out *os.File
	var refused *ServiceError
	switch {
	case c.reporter && r.Do != VerbReport:
		refused = refuse(Denied, "only reports are for this connection")
	case r.Do == VerbMount, r.Do == VerbMountSigned:
		out, refused = k.mount(c, r, files, &reply)
	case r.Do == VerbAttach:
		refused = k.attach(c, r, files)
	case r.Do == VerbDetach:
		refused = k.detach(c, r, files)
	case r.Do == VerbReport:
		out, refused = k.report(c)
	default:
		refused = refuse(Invalid, "the service knows no request %d", r.Do)
	}
	if refused != nil {
		level := slog.LevelDebug
		if k.refusals.take(time.Now()) {
			level = slog.LevelInfo
		}
		log.Log(k.ctx, level, "request refused", "do", r.Do.String(), "image", r.Image, "id", r.ID, "why", refused.Text)
		return &Reply{Code: refused.Code, Error: shorten(refused.Text)}, nil
	}
	if out == nil {
		return &reply, nil
	}
	return &reply, []*os.File{out}
}

func (v Verb) String() string {
	switch v {
	case VerbMount, VerbMountSigned:
		return "mount"
	case VerbAttach:
		return "attach"
	case VerbDetach:
		return "detach"
	case VerbReport:
		return "report"
	}
	return fmt.Sprint(int(v))
}

// shorten keeps a message within what fits a reply.
func shorten(s string) string {
	const most = 4096
	if len(s) > most {
		return s[:most]
	}
	return s
}
