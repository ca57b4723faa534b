package noded

import (
	"log/slog"
	"time"

	"github.com/squirefs/squire/sqfs/signed"
)

// Config is how a service is run.
type Config struct {
	// Socket is the path to listen on, or "@NAME" for an abstract one. Where systemd passes a socket, that is used.
	Socket string
	// Own: a user's own service, without rights. Only processes of that user and root are let in.
	Own bool
	// Idle is how long an image is kept after its last reference, Linger how long a service without images and clients
	// stays; 0: for ever.
	Idle, Linger time.Duration
	// Drain is how long SIGTERM waits for the users of images, 0: until they are gone.
	Drain time.Duration
	// Cache is the budget of decoded blocks of all images, Metadata that of their expanded metadata; bytes.
	Cache, Metadata int64
	Limits          Limits
	// Keys are those of which one must have signed what users have served; nil: none need be signed. Owners are the users
	// whose files may be served to others than root; nil: everybody's.
	Keys   []signed.Key
	Owners []uint32
	// Directories are those of which what users have served must lie in one, wherever links in their names lead; nil:
	// anywhere.
	Directories []string
	// NoIDMap and NoResend do without idmapped mounts (Linux 6.12) and FUSE_NOTIFY_RESEND (6.9), as older kernels have
	// to; for tests and for kernels that claim more than they can.
	NoIDMap, NoResend bool
	// Metrics is where Prometheus may ask, HOST:PORT or the path of a socket; "": nowhere.
	Metrics string
	// Version is that of the program.
	Version string
	Log     *slog.Logger
}

// Limits bound what clients can take. The zero value of each stands for its default.
type Limits struct {
	Images       int // mounts in all (1024)
	UserImages   int // mounts that one user asked for (64)
	Clients      int // connections in all (8192)
	UserClients  int // connections of one user (1024)
	UserAttached int // directories of one user that mounts are on (64)

	requests int // that run at the same time
}
