package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	goruntime "runtime"
	"runtime/debug"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/cache"
	"github.com/squirefs/squire/fusefs"
	"github.com/squirefs/squire/internal/wire"
	"github.com/squirefs/squire/runtime"
)

// The server is a process of its own: it alone reads the bytes of an image,
// and it can do little else. It is given the opened image and the opened FUSE
// device by descriptor, and never looks at a path. As root it turns into
// nobody first. It ends by itself when its mount is gone, or when its clients
// end before there was one.
//
// It talks over a SOCK_SEQPACKET socket, one message of package wire at a time:
//
//	client -> server  serverConfig, with the descriptors of the image and of
//	                  files that may have its trace
//	server -> client  serverState when the image is understood
//	client -> server  serverDevice, with the descriptor of the device
//	server -> client  serverState when the kernel's first request is answered
//	server -> client  serverState when the mount is gone
//
// A client that has the device from the start sends it with the image; the
// second and the third message are then left out.

// serverName is argv[0] of the server stage; serverSocket its descriptor, and
// guardSocket that of the guard.
const (
	serverName   = "squire-serve"
	serverSocket = 3
	guardSocket  = 4
)

type serverConfig struct {
	Image    string        // for messages
	Offset   int64         // of the image in its file
	Cache    int64         // bytes of decoded blocks to keep, 0 = default
	Owner    *fusefs.Owner // owner to show for every file, nil = the image's
	Restrict bool          // see fusefs.Options
	// Steadfast: a SIGTERM is not for the server, as it is one of the processes
	// of a job that are told to end, and the others still read to do so.
	Steadfast bool
	// Background: it is cut off from the terminal, and from who reads the
	// client's standard error.
	Background bool
	// Processors is how many to use, once the server has given up its rights.
	Processors int
	// Traces is how many files that may have its trace come behind the image.
	Traces int
	// Record is the number of the one, from 1 on, that gets a trace if none of
	// the others has one. 0: none is recorded.
	Record int
	Whole  bool // record until the mount is gone, however little is read
}

// Fields makes it a wire.Message.
func (s *serverConfig) Fields(c *wire.Coder) {
	wire.String(c, &s.Image)
	wire.Int(c, &s.Offset)
	wire.Int(c, &s.Cache)
	owned := s.Owner != nil
	if c.Bool(&owned); owned {
		if s.Owner == nil {
			s.Owner = new(fusefs.Owner)
		}
		wire.Int(c, &s.Owner.UID)
		wire.Int(c, &s.Owner.GID)
	}
	c.Bool(&s.Restrict)
	c.Bool(&s.Steadfast)
	c.Bool(&s.Background)
	wire.Int(c, &s.Processors)
	wire.Int(c, &s.Traces)
	wire.Int(c, &s.Record)
	c.Bool(&s.Whole)
}

type serverState struct {
	Size    int64 // bytes of the image
	Serving bool  // the mount answers, or did
	Ended   bool  // the mount is gone
	Error   string
	// Read is the number of bytes read from the image so far.
	Read     int64
	Requests uint64
	Replayed int // blocks in the trace that was found, 0 if none was
	Recorded int // blocks in the trace that was written
}

// Fields makes it a wire.Message.
func (s *serverState) Fields(c *wire.Coder) {
	wire.Int(c, &s.Size)
	c.Bool(&s.Serving)
	c.Bool(&s.Ended)
	wire.String(c, &s.Error)
	wire.Int(c, &s.Read)
	wire.Int(c, &s.Requests)
	wire.Int(c, &s.Replayed)
	wire.Int(c, &s.Recorded)
}

// serverDevice goes with the mounted device. The end of the connection has no
// bytes, so it has one.
type serverDevice struct{ mark int }

// Fields makes it a wire.Message.
func (s *serverDevice) Fields(c *wire.Coder) { wire.Int(c, &s.mark) }

const (
	maxServerMessage = 64 << 10
	maxServerFiles   = 5
)

// nobody is the user that the server turns into when started by root.
const nobody = 65534

// serve is the server stage. It returns the exit status.
func serve() int {
	runtime.SetName(serverName)
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM)
	unix.CloseOnExec(serverSocket)
	unix.CloseOnExec(guardSocket)
	conn := os.NewFile(serverSocket, "client")
	if err := serveImage(conn); err != nil {
		return runtime.ExitFailed // the client has been told, or is gone
	}
	return 0
}

func serveImage(conn *os.File) error {
	var cfg serverConfig
	files, err := recvMessage(conn, &cfg)
	if err != nil {
		return err
	}
	if cfg.Traces < 0 || len(files) < 1+cfg.Traces {
		return errors.New("no image came with the first message")
	}
	if cfg.Steadfast {
		signal.Ignore(unix.SIGTERM)
	}
	if cfg.Background {
		if err = unix.Dup3(0, 2, 0); err != nil { // 0 is /dev/null
			return err
		}
	}
	source := fusefs.NewSource(files[0])
	traces, devices := files[1:1+cfg.Traces], files[1+cfg.Traces:]
	fs, state, rec, err := openServed(source, files[0], traces, &cfg)
	if err != nil {
		_ = sendMessage(conn, &serverState{Error: err.Error()})
		return err
	}
	if len(devices) == 0 {
		if err = sendMessage(conn, &state); err != nil {
			return err
		}
		if devices, err = recvMessage(conn, new(serverDevice)); err != nil {
			return err
		}
	}
	if len(devices) == 0 {
		return errors.New("no device came with the second message")
	}
	guard := os.NewFile(guardSocket, "guard")
	defer goruntime.KeepAlive(guard) // open until this process ends, by which the guard sees that
	heed(guard, fs)
	stop := rec.start()
	err = fs.Serve(devices[0], guarded(devices[0], guard), func() {
		state.Serving, state.Read = true, read(source)
		_ = sendMessage(conn, &state)
	})
	state.Serving, state.Ended, state.Read = true, true, read(source)
	state.Requests, state.Recorded = requests(fs.Stats()), stop()
	if err != nil {
		state.Error = err.Error()
	}
	_ = sendMessage(conn, &state)
	return err
}

func requests(s fusefs.Stats) uint64 {
	return s.Lookup + s.GetAttr + s.Readlink + s.Open + s.ReadDir + s.Read + s.Xattr + s.StatFs
}

// openServed gives up rights, then looks at the image and at traces for the
// first time. The recorder is nil if there is nothing to be recorded.
func openServed(source *fusefs.Source, file *os.File, traces []*os.File, cfg *serverConfig) (*fusefs.FS, serverState, *recorder, error) {
	if err := confine(); err != nil {
		return nil, serverState{}, nil, err
	}
	// Twice as many: whoever decodes keeps one for a millisecond at a time, and a
	// request that was read waits for a free one.
	goruntime.GOMAXPROCS(2 * max(cfg.Processors, 1))
	img, err := newImage(source, file, cfg.Offset, metadataCache)
	if err != nil {
		return nil, serverState{}, nil, err
	}
	sb := img.Superblock()
	replay, into := findTouches(traces, cfg.Record-1, &sb)
	budget := cfg.Cache
	if budget == 0 {
		budget = defaultCache
	}
	debug.SetMemoryLimit(budget + metadataCache + otherMemory)
	fs := fusefs.New(img, fusefs.Options{
		Cache:    cache.New(budget),
		Owner:    cfg.Owner,
		Restrict: cfg.Restrict,
		Source:   source,
		Record:   into != nil,
		Replay:   replay,
		Log:      slog.New(slog.NewTextHandler(os.Stderr, nil)).With("image", cfg.Image),
	})
	state := serverState{Size: sb.BytesUsed, Replayed: len(replay)}
	if into == nil {
		return fs, state, nil, nil
	}
	return fs, state, newRecorder(fs, sb, replay, into, cfg.Whole), nil
}

// defaultCache is small, as the kernel's page cache keeps what is read whole;
// only fragments and parts of blocks are kept here.
const defaultCache = 64 << 20

// The server is to have less than 96 MiB beside that cache, whatever the image.
const (
	// metadataCache is all that an image of a million inodes has, or most of it.
	metadataCache = 48 << 20
	// otherMemory is for replies on their way and what has yet to be collected.
	otherMemory = 32 << 20
)

// confine leaves the server with no rights but its descriptors.
func confine() error {
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if os.Geteuid() == 0 && runtime.AllIDsMapped() {
		err := becomeNobody()
		// EPERM: root without the right to change. Its other rights go below.
		if err != nil && !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("become nobody: %w", err)
		}
	}
	// Each of these goes to every thread, and is left out where all threads have
	// it already: from the client, or because they are no longer root's.
	if set, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0); err != nil || set != 1 {
		if err = runtime.NoNewPrivs(); err != nil {
			return err
		}
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var have, none [2]unix.CapUserData
	if err := unix.Capget(&hdr, &have[0]); err == nil && have == none {
		return nil
	}
	return runtime.NoCapabilities()
}

func becomeNobody() error {
	groups, err := os.Getgroups()
	if err != nil || len(groups) > 0 || os.Getgid() != nobody || os.Getegid() != nobody {
		err = errors.Join(syscall.Setgroups(nil), syscall.Setgid(nobody))
	}
	return errors.Join(err, syscall.Setuid(nobody))
}

// read returns how many bytes of the image were read.
func read(s *fusefs.Source) int64 {
	_, n := s.Reads()
	return int64(n)
}
