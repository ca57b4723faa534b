package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/cache"
	"github.com/squirefs/squire/fusefs"
	"github.com/squirefs/squire/runtime"
)

// The server is a process of its own: it alone reads the bytes of an image,
// and it can do little else. It is given the opened image and the opened FUSE
// device by descriptor, and never looks at a path. As root it turns into
// nobody first. It ends by itself when its mount is gone, or when its clients
// end before there was one.
//
// It talks over a SOCK_SEQPACKET socket, one JSON document per message:
//
//	client -> server  serverConfig, with the image's descriptor
//	server -> client  serverHello
//	client -> server  any message, with the descriptor of the mounted device
//	server -> client  serverState when the kernel's first request is answered
//	server -> client  serverState when the mount is gone

// serverName is argv[0] of the server stage; serverSocket its descriptor.
const (
	serverName   = "squire-serve"
	serverSocket = 3
)

type serverConfig struct {
	Image    string        // for messages
	Offset   int64         // of the image in its file
	Cache    int64         // bytes of decoded blocks to keep, 0 = default
	Owner    *fusefs.Owner // owner to show for every file, nil = the image's
	Restrict bool          // see fusefs.Options
}

type serverHello struct {
	Error string `json:",omitempty"`
	Size  int64  // bytes of the image
}

type serverState struct {
	Serving bool
	Error   string `json:",omitempty"`
	// Read is the number of bytes read from the image so far.
	Read     int64
	Requests uint64
}

const maxServerMessage = 64 << 10

// nobody is the user that the server turns into when started by root.
const nobody = 65534

// serve is the server stage. It returns the exit status.
func serve() int {
	unix.CloseOnExec(serverSocket)
	conn := os.NewFile(serverSocket, "client")
	if err := serveImage(conn); err != nil {
		return runtime.ExitFailed // the client has been told, or is gone
	}
	return 0
}

func serveImage(conn *os.File) error {
	var cfg serverConfig
	file, err := recvMessage(conn, &cfg)
	if err != nil {
		return err
	}
	if file == nil {
		return errors.New("no image came with the first message")
	}
	reader := &countingReader{r: file}
	fs, size, err := openServed(reader, file, &cfg)
	if err != nil {
		_ = sendMessage(conn, serverHello{Error: err.Error()}, nil)
		return err
	}
	if err = sendMessage(conn, serverHello{Size: size}, nil); err != nil {
		return err
	}
	device, err := recvMessage(conn, &struct{}{})
	if err != nil {
		return err
	}
	if device == nil {
		return errors.New("no device came with the second message")
	}
	err = fs.Serve(device, func() {
		_ = sendMessage(conn, serverState{Serving: true, Read: reader.n.Load()}, nil)
	})
	end := serverState{Read: reader.n.Load(), Requests: requests(fs.Stats())}
	if err != nil {
		end.Error = err.Error()
	}
	_ = sendMessage(conn, end, nil)
	return err
}

func requests(s fusefs.Stats) uint64 {
	return s.Lookup + s.GetAttr + s.Readlink + s.Open + s.ReadDir + s.Read + s.Xattr + s.StatFs
}

// openServed gives up rights, then looks at the image for the first time.
func openServed(r io.ReaderAt, file *os.File, cfg *serverConfig) (*fusefs.FS, int64, error) {
	if err := confine(); err != nil {
		return nil, 0, err
	}
	img, err := newImage(r, file, cfg.Offset)
	if err != nil {
		return nil, 0, err
	}
	budget := cfg.Cache
	if budget == 0 {
		budget = defaultCache
	}
	return fusefs.New(img, fusefs.Options{
		Cache:    cache.New(budget),
		Owner:    cfg.Owner,
		Restrict: cfg.Restrict,
		Log:      slog.New(slog.NewTextHandler(os.Stderr, nil)).With("image", cfg.Image),
	}), img.Superblock().BytesUsed, nil
}

// defaultCache is small, as the kernel's page cache keeps what is read whole;
// only fragments and parts of blocks are kept here.
const defaultCache = 64 << 20

// confine leaves the server with no rights but its descriptors.
func confine() error {
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if os.Geteuid() == 0 && runtime.AllIDsMapped() {
		if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(nobody), syscall.Setuid(nobody)); err != nil {
			return fmt.Errorf("become nobody: %w", err)
		}
	}
	return runtime.NoNewPrivs()
}

// countingReader counts what is read from the image.
type countingReader struct {
	r io.ReaderAt
	n atomic.Int64
}

func (c *countingReader) ReadAt(p []byte, off int64) (int, error) {
	n, err := c.r.ReadAt(p, off)
	c.n.Add(int64(n))
	return n, err
}

// server is the client's side of a server process.
type server struct {
	Size int64 // bytes of the image

	pid  int
	conn *os.File
}

// startServer starts a server process, which waits for open. With background,
// it is cut off from the terminal.
func startServer(background bool) (*server, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make a socket pair: %w", err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "client")
	defer theirs.Close()
	s := &server{conn: os.NewFile(uintptr(pair[0]), "server")}
	if s.pid, err = forkServer(theirs, background); err != nil {
		s.conn.Close()
		return nil, fmt.Errorf("start the image server: %w", err)
	}
	return s, nil
}

func forkServer(socket *os.File, background bool) (int, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	// Descriptors that we inherited must not live on in a server: whoever
	// waits for their other end to close would wait for the mount.
	files := runtime.OnlyFiles(null.Fd(), null.Fd(), 2, socket.Fd())
	if background {
		files[2] = null.Fd()
	}
	return syscall.ForkExec("/proc/self/exe", []string{serverName}, &syscall.ProcAttr{
		Env:   []string{},
		Files: files,
		// A session of its own: ^C on the terminal is not for the server.
		Sys: &syscall.SysProcAttr{Setsid: true},
	})
}

// open hands the opened image to the server and waits until it has understood
// it.
func (s *server) open(image *os.File, cfg serverConfig) error {
	if err := sendMessage(s.conn, cfg, image); err != nil {
		return fmt.Errorf("talk to the image server: %w", err)
	}
	var hello serverHello
	if _, err := recvMessage(s.conn, &hello); err != nil {
		return fmt.Errorf("talk to the image server: %w", err)
	}
	if hello.Error != "" {
		return fmt.Errorf("%s: %s", cfg.Image, hello.Error)
	}
	s.Size = hello.Size
	return nil
}

// state waits for the next message: first that the mount answers, then that
// it is gone.
func (s *server) state() (st serverState, err error) {
	if _, err = recvMessage(s.conn, &st); err == nil && st.Error != "" {
		err = errors.New(st.Error)
	}
	return st, err
}

// close lets go of the server and reaps it if it has ended, which it does when
// there is no mount.
func (s *server) close() {
	s.conn.Close()
	var ws unix.WaitStatus
	_, _ = unix.Wait4(s.pid, &ws, 0, nil)
}

func sendMessage(conn *os.File, v any, file *os.File) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	var rights []byte
	if file != nil {
		rights = unix.UnixRights(int(file.Fd()))
	}
	for {
		err := unix.Sendmsg(int(conn.Fd()), b, rights, nil, unix.MSG_NOSIGNAL)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// recvMessage reads one message into v and returns the file that came with
// it, if any. The end of the connection is io.EOF.
func recvMessage(conn *os.File, v any) (*os.File, error) {
	b, oob := make([]byte, maxServerMessage), make([]byte, unix.CmsgSpace(4))
	var n, oobn, flags int
	var err error
	for {
		n, oobn, flags, _, err = unix.Recvmsg(int(conn.Fd()), b, oob, unix.MSG_CMSG_CLOEXEC)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	file := receivedFile(oob[:oobn])
	switch {
	case n == 0:
		err = io.EOF
	case flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0:
		err = errors.New("message too long")
	default:
		err = json.Unmarshal(b[:n], v)
	}
	if err != nil && file != nil {
		file.Close()
		file = nil
	}
	return file, err
}

func receivedFile(oob []byte) *os.File {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(msgs) == 0 {
		return nil
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) == 0 {
		return nil
	}
	return os.NewFile(uintptr(fds[0]), "received")
}
