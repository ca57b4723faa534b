package main

import (
	"errors"
	"io"
	"log/slog"
	"os"
	"os/signal"
	goruntime "runtime"
	"runtime/debug"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/cache"
	"github.com/squirefs/squire/fusefs"
	"github.com/squirefs/squire/fusefs/record"
	"github.com/squirefs/squire/internal/rights"
	"github.com/squirefs/squire/internal/stage"
	"github.com/squirefs/squire/internal/wire"
	"github.com/squirefs/squire/runtime"
	"github.com/squirefs/squire/sqfs/signed"
)

// The server is a process of its own: it alone reads the bytes of an image,
// and it can do little else. It is given the opened image and the opened FUSE
// device by descriptor, and never looks at a path. As root it turns into
// nobody first. It ends by itself when its mount is gone, or when its clients
// end before there was one.
//
// It talks over a SOCK_SEQPACKET socket, one message of package wire at a time:
//
//	client -> server  serverConfig, with the descriptors of the image, of the list
//	                  of its hashes if it is signed, and of files that may have its
//	                  trace
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
	Signed   string        // the signed.Statement that it must agree with, in text; "": it is read as it is
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
	wire.String(c, &s.Signed)
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
	maxServerFiles   = 6
)

// serve is the server stage. It returns the exit status.
func serve() int {
	stage.SetName(serverName)
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
	var list *os.File
	if cfg.Signed != "" && len(files) > 1 {
		list, files[1] = files[1], files[0]
		files = files[1:]
	}
	if cfg.Traces < 0 || len(files) < 1+cfg.Traces || (list != nil) != (cfg.Signed != "") {
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
	fs, state, rec, err := openServed(source, files[0], list, traces, &cfg)
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
	stop := rec.Start()
	err = fs.Serve(fusefs.Serving{
		Device: devices[0],
		Store:  guarded(devices[0], guard),
		Ready: func([]byte) {
			state.Serving, state.Read = true, read(source)
			_ = sendMessage(conn, &state)
		},
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
func openServed(source *fusefs.Source, file, list *os.File, traces []*os.File, cfg *serverConfig) (*fusefs.FS, serverState, *record.Recorder, error) {
	if err := rights.Confine(); err != nil {
		return nil, serverState{}, nil, err
	}
	// Twice as many: whoever decodes keeps one for a millisecond at a time, and a
	// request that was read waits for a free one.
	goruntime.GOMAXPROCS(2 * max(cfg.Processors, 1))
	reader := io.ReaderAt(source)
	if cfg.Signed != "" {
		size, err := fileSize(file)
		if err != nil {
			return nil, serverState{}, nil, err
		}
		if reader, err = signed.Open(source, size, cfg.Signed, list); err != nil {
			return nil, serverState{}, nil, err
		}
	}
	img, err := newImage(reader, file, cfg.Offset, metadataCache)
	if err != nil {
		return nil, serverState{}, nil, err
	}
	sb := img.Superblock()
	replay, into := record.Find(traces, cfg.Record-1, &sb)
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
	return fs, state, record.New(fs, sb, replay, into, cfg.Whole), nil
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

// read returns how many bytes of the image were read.
func read(s *fusefs.Source) int64 {
	_, n := s.Reads()
	return int64(n)
}
