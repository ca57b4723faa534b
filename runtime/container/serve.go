package container

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/internal/wire"
	"github.com/squirefs/squire/runtime"
)

// State is a container that runs: what those who join it need.
type State struct {
	Namespaces []runtime.Namespace `json:"-"` // in the order in which to enter them
	Keep       []*os.File          `json:"-"` // whoever is in it holds these too, like the layer's lock

	Image     string   `json:"image"`
	RemapRoot bool     `json:"remap_root"` // the user is root inside
	Workdir   string   `json:"workdir"`    // to be in, inside
	Environ   []string `json:"environ"`    // what the image sets, as of runtime.Held
}

// maxState bounds the encoded State, in bytes: an image's configuration has at most 1 MiB.
const maxState = 4 << 20

// encode puts the state into a file without a name.
func (s *State) encode() (*os.File, error) {
	b, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("container", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), "container")
	if _, err = f.Write(b); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// decode reads what encode wrote.
func (s *State) decode(f *os.File) error {
	b, err := io.ReadAll(io.NewSectionReader(f, 0, maxState))
	if err != nil {
		return err
	}
	return json.Unmarshal(b, s)
}

// offer is what those who join get, with these descriptors: the encoded State, its
// namespaces, and what else is to be kept.
type offer struct {
	Kinds []string // of the namespaces
	Keep  int      // further descriptors
}

// Fields makes it a wire.Message.
func (o *offer) Fields(c *wire.Coder) {
	c.Strings(&o.Kinds)
	wire.Int(c, &o.Keep)
}

// running is what an offer is, with its descriptors.
func (o *offer) running(files []*os.File) (*running, error) {
	if len(o.Kinds) == 0 || o.Keep < 0 || len(files) != 1+len(o.Kinds)+o.Keep {
		return nil, errors.New("descriptors are missing")
	}
	r := &running{encoded: files[0]}
	if err := r.decode(files[0]); err != nil {
		return nil, err
	}
	for i, kind := range o.Kinds {
		r.Namespaces = append(r.Namespaces, runtime.Namespace{Kind: kind, File: files[1+i]})
	}
	r.Keep = files[1+len(o.Kinds):]
	return r, nil
}

// offerTimeout bounds the wait for a process that listens: it may be stopped.
const offerTimeout = 3 * time.Second

// running is a container that runs.
type running struct {
	State
	encoded *os.File
	conn    *wire.Conn // to whom it was got from; nil: it is our own
}

func (r *running) close() {
	r.encoded.Close()
	if r.conn == nil {
		return
	}
	r.conn.Close()
	for _, f := range r.files()[1:] {
		f.Close()
	}
}

// files are the descriptors of an offer.
func (r *running) files() []*os.File {
	files := []*os.File{r.encoded}
	for _, n := range r.Namespaces {
		files = append(files, n.File)
	}
	return append(files, r.Keep...)
}

// server gives a container to those who join it.
type server struct {
	dir     *os.Root // where the socket is
	name    string
	socket  *net.UnixListener
	running *running

	mu    sync.Mutex
	conns map[*wire.Conn]bool
	all   sync.WaitGroup
}

// Serve lets others join the container, which runs now, and which from here on anybody may
// claim. What is in the state stays the caller's, and has to be open until Close.
func (c *Container) Serve(state State) error {
	r := &running{State: state}
	var err error
	if r.encoded, err = state.encode(); err == nil {
		if err = c.serve(r); err != nil {
			r.close()
		}
	}
	if err != nil {
		return fmt.Errorf("container %s: %w", c.Name, err)
	}
	c.running = r
	c.release()
	return nil
}

// serve starts to listen.
func (c *Container) serve(r *running) error {
	if err := c.root.Mkdir(runName, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return plain(err)
	}
	dir, err := c.root.OpenRoot(runName)
	if err != nil {
		return plain(err)
	}
	s := &server{dir: dir, name: random(), running: r, conns: map[*wire.Conn]bool{}}
	if err = s.listen(); err != nil {
		dir.Close()
		return err
	}
	c.server = s
	s.all.Go(s.accept)
	return nil
}

// listen makes the socket. It gets its name when it listens: a name without a listener is
// one that a crash has left, and is removed by whoever finds it.
func (s *server) listen() error {
	at, err := s.dir.Open(".")
	if err != nil {
		return plain(err)
	}
	defer at.Close()
	tmp := "." + s.name
	// The name of a socket has 107 bytes (unix(7)), and our directories may be far down.
	s.socket, err = net.ListenUnix("unixpacket", &net.UnixAddr{Name: procPath(int(at.Fd())) + "/" + tmp, Net: "unixpacket"})
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	s.socket.SetUnlinkOnClose(false) // by another name
	if err = s.dir.Rename(tmp, s.name); err != nil {
		s.socket.Close()
		return plain(err)
	}
	return nil
}

// accept gives the container to all who come and may have it.
func (s *server) accept() {
	for {
		sock, err := s.socket.AcceptUnix()
		if err != nil {
			return
		}
		if !runtime.MayEnter(sock) {
			sock.Close()
			continue
		}
		s.all.Go(func() { s.give(wire.NewConn(sock)) })
	}
}

// give sends the descriptors, and waits until the other end is closed.
func (s *server) give(conn *wire.Conn) {
	if !s.enter(conn) {
		return
	}
	defer s.leave(conn)
	o := &offer{Keep: len(s.running.Keep)}
	for _, n := range s.running.Namespaces {
		o.Kinds = append(o.Kinds, n.Kind)
	}
	_ = conn.SetDeadline(time.Now().Add(offerTimeout))
	if conn.Send(o, s.running.files()...) != nil {
		return
	}
	_ = conn.SetDeadline(time.Time{})
	var nothing offer
	_, _ = conn.Recv(&nothing)
}

func (s *server) enter(conn *wire.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns == nil { // closed
		conn.Close()
		return false
	}
	s.conns[conn] = true
	return true
}

func (s *server) leave(conn *wire.Conn) {
	s.mu.Lock()
	delete(s.conns, conn)
	s.mu.Unlock()
	conn.Close()
}

// guests is how many are connected.
func (s *server) guests() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

func (s *server) close() {
	_ = s.dir.Remove(s.name) // or it is removed by who finds it
	s.socket.Close()
	s.mu.Lock()
	conns := s.conns
	s.conns = nil
	for conn := range conns {
		conn.Close()
	}
	s.mu.Unlock()
	s.all.Wait()
	s.dir.Close()
}

// Withdraw lets nobody join here any more: what is in the state is about to be closed.
func (c *Container) Withdraw() {
	if c.server != nil {
		c.server.close()
		c.server = nil
	}
}

// Shared reports whether somebody who joined the container here uses it now.
func (c *Container) Shared() bool { return c.server != nil && c.server.guests() > 0 }

// join joins the container if somebody runs it, and lets others join here as well. It
// removes the sockets of those who are gone.
func (c *Container) join() {
	dir, err := c.root.OpenRoot(runName)
	if err != nil {
		return
	}
	defer dir.Close()
	each(dir, func(conn *wire.Conn, _ int) bool {
		c.running = take(conn)
		return c.running == nil
	})
	if c.running == nil {
		return
	}
	_ = c.read()
	c.scratch = c.record == nil
	if err := c.serve(c.running); err != nil { // as when it was removed at this moment
		c.running.close()
		c.running = nil
	}
}

// take gets a container from who listens, nil if they do not give it.
func take(conn *wire.Conn) *running {
	var o offer
	_ = conn.SetDeadline(time.Now().Add(offerTimeout))
	files, err := conn.Recv(&o)
	if err == nil {
		var r *running
		if r, err = o.running(files); err == nil {
			_ = conn.SetDeadline(time.Time{})
			r.conn = conn
			return r
		}
	}
	for _, f := range files {
		f.Close()
	}
	conn.Close()
	return nil
}

// listeners are the processes that listen.
func (c *Container) listeners() (pids []int) {
	dir, err := c.root.OpenRoot(runName)
	if err != nil {
		return nil
	}
	defer dir.Close()
	each(dir, func(conn *wire.Conn, pid int) bool {
		conn.Close()
		pids = append(pids, pid)
		return true
	})
	return pids
}

// each connects to the processes that listen in dir, one after the other, as long as visit
// wants more of them. It is visit's to close the connections.
func each(dir *os.Root, visit func(conn *wire.Conn, pid int) bool) {
	at, err := dir.Open(".")
	if err != nil {
		return
	}
	defer at.Close()
	names, _ := at.Readdirnames(-1)
	for _, name := range names {
		if strings.HasPrefix(name, ".") {
			continue
		}
		sock, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: procPath(int(at.Fd())) + "/" + name, Net: "unixpacket"})
		if errors.Is(err, unix.ECONNREFUSED) {
			_ = dir.Remove(name)
		}
		if err != nil {
			continue
		}
		pid, uid := peer(sock)
		if uid != os.Geteuid() && uid != 0 {
			sock.Close()
			continue
		}
		if !visit(wire.NewConn(sock), pid) {
			return
		}
	}
}

// peer is the process at the other end, and its user.
func peer(sock *net.UnixConn) (pid, uid int) {
	raw, err := sock.SyscallConn()
	if err != nil {
		return 0, -1
	}
	uid = -1
	_ = raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			pid, uid = int(cred.Pid), int(cred.Uid)
		}
	})
	return pid, uid
}
