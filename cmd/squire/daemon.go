package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/fusefs/noded"
	"github.com/squirefs/squire/sqfs/signed"
)

// daemonOptions are the flags of squire daemon.
type daemonOptions struct {
	noded.Config
	cache, metadata string // sizes
	logLevel        string
	jsonLog         bool
}

func daemonCommand() *cobra.Command {
	var o daemonOptions
	cmd := &cobra.Command{
		Use:   "daemon [flags]",
		Short: "Run the node service",
		Long: `Serve images for all tasks of the node: each is mounted once, however many tasks
use it, and all share one cache. "squire run" and "squire mount" find the service
by its socket, and do without where there is none. The unit squire.service runs it
under systemd.

A client opens its image itself and passes it on, so that nobody reaches through the
service what they could not open. Programs that use an image notice nothing when one of
the service's processes dies, or when it is replaced by a newer version with SIGHUP.

SIGTERM ends the service once nobody uses its images any more, or after --drain;
a second one, or SIGUSR1, at once.

An ordinary user who starts a container where there is no service gets one of
their own, for the tasks of the same user in the same step of a job. It ends when it
was not used for half a minute. --own starts one by hand. SQUIRE_SERVICE says which
are used: auto, node, own, or off; SQUIRE_SOCKET where that of the node listens.`,
		Example: `  squire daemon
  squire daemon --cache 2G --idle 1h --metrics 127.0.0.1:9469
  SQUIRE_SERVICE=off squire run pytorch.sqsh -- true`,
		Args:              needArgs(0, 0),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := o.complete(); err != nil {
				return err
			}
			return o.run()
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(&o.Socket, "socket", "", `socket to listen on, or "@NAME" for an abstract one (default `+nodeSocket+`)`)
	f.BoolVar(&o.Own, "own", false, "serve this user only, without any rights")
	f.DurationVar(&o.Idle, "idle", 5*time.Minute, "keep an image this long after its last use; 0: for ever")
	f.DurationVar(&o.Linger, "linger", 0, "end when there were no images and clients for this long; 0: never")
	f.DurationVar(&o.Drain, "drain", 0, "after SIGTERM, wait this long for images that are in use; 0: until none is")
	f.StringVar(&o.cache, "cache", "512M", "memory for decoded blocks of all images")
	f.StringVar(&o.metadata, "metadata", "256M", "memory for expanded metadata of all images")
	f.IntVar(&o.Limits.Images, "limit-images", 1024, "images at most")
	f.IntVar(&o.Limits.UserImages, "limit-user-images", 64, "images of one user at most")
	f.IntVar(&o.Limits.Clients, "limit-clients", 8192, "connections at most")
	f.IntVar(&o.Limits.UserClients, "limit-user-clients", 1024, "connections of one user at most")
	f.IntVar(&o.Limits.UserAttached, "limit-user-mounts", 64, `directories of one user with a "squire mount" at most`)
	f.StringVar(&o.Metrics, "metrics", "", "where Prometheus may ask: HOST:PORT or the path of a socket")
	f.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
	levels := cobra.FixedCompletions([]string{"debug", "info", "warn", "error"}, cobra.ShellCompDirectiveNoFileComp)
	_ = cmd.RegisterFlagCompletionFunc("log-level", levels) // there is such a flag
	f.BoolVar(&o.jsonLog, "json-log", false, "log as JSON")
	f.BoolVar(&o.NoIDMap, "no-idmap", false, "do without idmapped mounts (Linux 6.12): one mount per image and user")
	f.BoolVar(&o.NoResend, "no-resend", false, "do without resent requests (Linux 6.9): those under way fail when the server dies")
	return cmd
}

// complete turns the flags into a noded.Config.
func (o *daemonOptions) complete() (err error) {
	o.Version = versionString()
	if o.Cache, err = parseSize(o.cache); err != nil {
		return fmt.Errorf("--cache: %w", err)
	}
	if o.Metadata, err = parseSize(o.metadata); err != nil {
		return fmt.Errorf("--metadata: %w", err)
	}
	for _, d := range []struct {
		flag  string
		value time.Duration
	}{{"idle", o.Idle}, {"linger", o.Linger}, {"drain", o.Drain}} {
		if d.value < 0 {
			return fmt.Errorf("--%s %s: is negative", d.flag, d.value)
		}
	}
	for _, l := range []struct {
		flag  string
		value int
	}{
		{"images", o.Limits.Images},
		{"user-images", o.Limits.UserImages},
		{"clients", o.Limits.Clients},
		{"user-clients", o.Limits.UserClients},
		{"user-mounts", o.Limits.UserAttached},
	} {
		if l.value < 1 {
			return fmt.Errorf("--limit-%s %d: want at least 1", l.flag, l.value)
		}
	}
	if err = o.setLog(); err != nil {
		return err
	}
	switch {
	case !o.Own && os.Geteuid() != 0:
		return errors.New("the service of a node needs root; --own is a user's")
	case o.Socket != "":
	case o.Own:
		o.Socket, err = ownSocket()
	default:
		o.Socket = siteSocket()
	}
	if err == nil && !o.Own {
		err = o.limit()
	}
	return err
}

// limit has the service of a node serve users what the site lets them run, as far as that can be told of an opened file.
func (o *daemonOptions) limit() error {
	site, err := siteConfig()
	if err != nil {
		return err
	}
	if o.Keys = site.Images.keys; o.Keys == nil && site.Images.Keys != nil {
		o.Keys = []signed.Key{} // an empty list is no key, not no limit
	}
	if o.Owners = site.Images.owners; o.Owners == nil && site.Images.Owners != nil {
		o.Owners = []uint32{}
	}
	o.Directories = site.Images.Directories
	return nil
}

func (o *daemonOptions) setLog() error {
	var level slog.Level
	if err := level.UnmarshalText([]byte(o.logLevel)); err != nil {
		return fmt.Errorf("--log-level %s: want debug, info, warn or error", printable(o.logLevel))
	}
	h := &slog.HandlerOptions{Level: level}
	if o.jsonLog {
		o.Log = slog.New(slog.NewJSONHandler(os.Stderr, h))
	} else {
		o.Log = slog.New(slog.NewTextHandler(os.Stderr, h))
	}
	return nil
}

// A service that was started by itself counts as a part of its job, whose memory
// it takes, and outlives its last client by little.
const (
	ownCache    = 128 << 20
	ownMetadata = 96 << 20
	ownIdle     = 30 * time.Second
)

// ownDaemon is the service that a user's first container starts.
func ownDaemon() *daemonOptions {
	return &daemonOptions{Config: noded.Config{
		Own: true, Idle: ownIdle, Linger: ownIdle, Cache: ownCache, Metadata: ownMetadata,
		Version: versionString(), Log: slog.New(slog.DiscardHandler),
	}}
}

func (o *daemonOptions) run() error {
	closeInherited()
	if err := os.Chdir("/"); err != nil {
		return err
	}
	return noded.Run(context.Background(), o.Config)
}

// closeInherited closes the descriptors that whoever started this process happened
// to have open, and would wait for. What systemd passes (sd_listen_fds(3)) and what
// a service passes to its successor stays.
func closeInherited() {
	if os.Getenv("SQUIRE_INHERIT") != "" {
		return
	}
	first := 3
	if os.Getenv("LISTEN_PID") == strconv.Itoa(os.Getpid()) {
		n, _ := strconv.Atoi(os.Getenv("LISTEN_FDS"))
		first += max(n, 0)
	}
	dir, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return
	}
	for _, e := range dir {
		fd, err := strconv.Atoi(e.Name())
		if err != nil || fd < first {
			continue
		}
		// All that Go opens is closed at exec; what is not, came from outside.
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			unix.Close(fd)
		}
	}
}
