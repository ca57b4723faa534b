package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/fusefs"
	"github.com/squirefs/squire/internal/mountinfo"
	"github.com/squirefs/squire/runtime"
)

// mountType is how /proc/self/mountinfo names our mounts.
const mountType = "fuse.squire"

type mountOptions struct {
	options    []string
	foreground bool
	trace      *bool       // nil: no option says
	service    serviceMode // "": no option says
	helper     bool        // called by mount(8), whose options are those of all file systems
	sloppy     bool        // unknown options are ignored
	refused    error       // why the service did not mount on the directory
}

func mountCommand() *cobra.Command {
	var o mountOptions
	cmd := &cobra.Command{
		Use:   "mount [flags] IMAGE DIR",
		Short: "Mount an image",
		Long: `Mount the squashfs file IMAGE on DIR, read-only. Returns when the mount answers.
The service of the node serves it, see squire daemon; where there is none, a server
process stays until it is unmounted.

Root mounts for all users of the machine, who see owners and permissions as in
the image. Another user mounts for themselves, with the help of the service or of
fusermount3.

As mount.squire in /sbin it is the helper of mount(8), for "mount -t squire IMAGE DIR"
and for lines "IMAGE DIR squire ro,nofail 0 0" of /etc/fstab.

Options (-o, separated by commas):
  offset=N     the image starts at byte N of the file
  cache=N      keep N MiB of decoded blocks (64)
  uid=N,gid=N  show every file as owned by this user and group
  restrict     hide set-id bits, devices and privileged extended attributes
  allow_other  also for other users (root: the default; user_allow_other in
               /etc/fuse.conf is needed otherwise)
  suid, dev    honour set-id bits and devices (root only; not the default)
  noexec       do not execute programs from it
  notrace      neither use a trace of the image nor record one; see squire trace
  trace        do, in spite of SQUIRE_TRACE=0
  service=auto|node|off  use the service of the node if there is one (the default),
               or not; SQUIRE_SERVICE says it for all mounts
  nofail       for mount.squire: an image that is not there is no error
  ro, nosuid, nodev, exec, _netdev, x-*  accepted, as in fstab

A server of its own is started, whatever service there is, for cache=, with --foreground,
and for allow_other, uid= and gid= of an ordinary user.`,
		Example: `  squire mount pytorch.sqsh /mnt
  squire umount /mnt
  mount -t squire -o noexec pytorch.sqsh /mnt`,
		Args: needArgs(2, 2),
		RunE: func(_ *cobra.Command, args []string) error { return o.run(args[0], args[1]) },
		ValidArgsFunction: func(c *cobra.Command, args []string, s string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 1 {
				return nil, cobra.ShellCompDirectiveFilterDirs
			}
			return completeImage(c, args, s)
		},
	}
	cmd.Flags().StringSliceVarP(&o.options, "options", "o", nil, "mount options, see above")
	cmd.Flags().BoolVarP(&o.foreground, "foreground", "f", false, "stay in the foreground until it is unmounted")
	return cmd
}

func umountCommand() *cobra.Command {
	var lazy bool
	cmd := &cobra.Command{
		Use:     "umount DIR",
		Aliases: []string{"unmount"},
		Short:   "Unmount an image",
		Args:    needArgs(1, 1),
		RunE:    func(_ *cobra.Command, args []string) error { return umount(args[0], lazy) },
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return nil, cobra.ShellCompDirectiveFilterDirs
		},
	}
	cmd.Flags().BoolVarP(&lazy, "lazy", "l", false, "take it out of sight now, and let go of it when it is no longer used")
	return cmd
}

// parse sorts the options into those of the server and those of the mount.
func (o *mountOptions) parse(image string) (cfg serverConfig, m fusefs.MountOptions, err error) {
	root := os.Geteuid() == 0
	cfg.Image, cfg.Background = image, !o.foreground
	m = fusefs.MountOptions{Source: image, AllowOther: root, UID: os.Geteuid(), GID: os.Getegid()}
	owner := fusefs.Owner{UID: uint32(m.UID), GID: uint32(m.GID)}
	for _, opt := range o.options {
		key, value, _ := strings.Cut(opt, "=")
		var n int64
		switch key {
		case "offset", "cache", "uid", "gid":
			if n, err = strconv.ParseInt(value, 10, 64); err != nil || n < 0 || n >= 1<<43 || key[1:] == "id" && n >= 1<<32-1 {
				return cfg, m, fmt.Errorf("option %q: want %s=NUMBER", opt, key)
			}
		}
		switch {
		case key == "offset":
			cfg.Offset = n
		case key == "cache":
			cfg.Cache = max(n<<20, 1)
		case key == "uid":
			owner.UID, cfg.Owner = uint32(n), &owner
		case key == "gid":
			owner.GID, cfg.Owner = uint32(n), &owner
		case opt == "restrict":
			cfg.Restrict = true
		case opt == "allow_other":
			m.AllowOther = true
		case (opt == "suid" || opt == "dev") && !root:
			return cfg, m, fmt.Errorf("option %q is for root only", opt)
		case opt == "suid":
			m.Suid = true
		case opt == "dev":
			m.Dev = true
		case opt == "noexec":
			m.NoExec = true
		case opt == "trace" || opt == "notrace":
			on := opt == "trace"
			o.trace = &on
		case key == "service":
			if o.service, err = parseServiceMode("service", value); err != nil {
				return cfg, m, fmt.Errorf("option %w", err)
			}
		case opt == "rw" && o.helper: // mount(8) says so where nothing else is said
		case opt == "rw":
			return cfg, m, errors.New(`option "rw": squashfs images cannot be written to; use "squire run --writable"`)
		case acceptedOption(opt) || o.helper && mountOption(opt) || o.sloppy:
		default:
			return cfg, m, fmt.Errorf("unknown option %q", opt)
		}
	}
	return cfg, m, nil
}

// acceptedOption reports whether opt says what is so anyway, or is for others
// to read, as in fstab(5).
func acceptedOption(opt string) bool {
	switch opt {
	case "", "ro", "nosuid", "nodev", "exec", "loop", "defaults", "nofail", "_netdev", "auto", "noauto", "noatime":
		return true
	}
	return strings.HasPrefix(opt, "x-")
}

// mountOption reports whether opt is one of mount(8)'s own, which it passes on to
// its helpers, and which is without meaning here.
func mountOption(opt string) bool {
	key, _, _ := strings.Cut(opt, "=")
	switch key {
	case "user", "users", "nouser", "owner", "group", "sync", "async", "dirsync", "atime", "diratime", "nodiratime",
		"relatime", "norelatime", "strictatime", "nostrictatime", "lazytime", "nolazytime", "iversion", "noiversion",
		"mand", "nomand", "silent", "loud", "nosymfollow", "symfollow", "comment", "uhelper", "helper":
		return true
	}
	return strings.HasPrefix(opt, "X-")
}

func (o *mountOptions) run(image, dir string) error {
	path, err := filepath.Abs(image)
	if err != nil {
		return err
	}
	cfg, mo, err := o.parse(path)
	if err != nil {
		return err
	}
	if _, err = os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return missingImage(image, unwrapPath(image, err))
	}
	traced, err := tracesWanted(o.trace)
	if err != nil {
		return err
	}
	// Descriptors that we inherited must not live on in the server: whoever
	// waits for their other end to close would wait for the mount.
	if err = unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("close descriptors: %w", err)
	}
	done, err := o.fromService(dir, mo, cfg, traced)
	if done || err != nil {
		return err
	}
	err = o.fromServer(dir, mo, cfg, traced)
	if err != nil && o.refused != nil {
		err = fmt.Errorf("%w (the node's service: %w)", err, o.refused)
	}
	return err
}

// fromServer mounts with a server that is there for this mount alone.
func (o *mountOptions) fromServer(dir string, mo fusefs.MountOptions, cfg serverConfig, traced bool) error {
	if os.Geteuid() == 0 {
		// If this thread starts the server, that one has it in all of its threads;
		// if not, it sees to it itself. Nothing else is executed here, unlike where
		// fusermount3 is.
		_ = unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	}
	// The server comes before all that can be done while it starts.
	srv, err := startServer()
	if err != nil {
		return err
	}
	var signals chan os.Signal
	if o.foreground || os.Geteuid() != 0 {
		// From here to the end a signal must not leave a mount without a server.
		signals = make(chan os.Signal, 1)
		signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	}
	if err = srv.mountOn(dir, mo, cfg, traced); err != nil {
		srv.close()
		return err
	}
	if err = srv.startGuard(); err != nil {
		_ = fusefs.Unmount(dir, true)
		return err
	}
	if o.foreground {
		return srv.attend(dir, signals)
	}
	return nil
}

// mountOn mounts the image on dir, and returns when the mount answers.
func (s *server) mountOn(dir string, mo fusefs.MountOptions, cfg serverConfig, traced bool) error {
	file, err := openMountable(cfg.Image, dir)
	if err != nil {
		return err
	}
	defer file.Close()
	traces := tracesInTime(cfg.Image, file.File, cfg.Offset, traced)
	if os.Geteuid() != 0 {
		return s.mountFusermount(dir, mo, cfg, file, traces)
	}
	return s.mountPrepared(dir, mo, cfg, file, traces)
}

// mountPrepared makes a mount while the server starts, hands it the device with the
// image, and puts the mount on dir when it answers. Until then nobody sees it,
// and it goes with this process.
func (s *server) mountPrepared(dir string, mo fusefs.MountOptions, cfg serverConfig, image *openedImage, traces *traceFiles) error {
	m, err := fusefs.Prepare(dir, mo)
	if err != nil {
		return err
	}
	defer m.Close()
	err = s.open(cfg, image, traces, m.Device)
	m.Device.Close()
	if err != nil {
		return err
	}
	return m.Attach()
}

// mountFusermount has fusermount3 mount on dir, once the server has understood
// the image, hands over the device, and waits until the mount answers.
func (s *server) mountFusermount(dir string, mo fusefs.MountOptions, cfg serverConfig, image *openedImage, traces *traceFiles) error {
	if err := s.open(cfg, image, traces); err != nil {
		return err
	}
	device, err := fusefs.MountFusermount(dir, mo)
	if err != nil {
		return err
	}
	err = sendMessage(s.conn, new(serverDevice), device)
	device.Close()
	if err == nil {
		_, err = s.state()
	}
	if err != nil {
		_ = fusefs.Unmount(dir, true)
		return fmt.Errorf("%s: the image server ended: %w", dir, err)
	}
	return nil
}

// attend waits until the mount is gone, and unmounts when asked to end.
func (s *server) attend(dir string, signals <-chan os.Signal) error {
	go func() {
		for range signals {
			if err := fusefs.Unmount(dir, false); err != nil {
				fmt.Fprintln(os.Stderr, "squire:", runtime.OneLine(err))
			}
		}
	}()
	_, err := s.state()
	ws := s.close()
	if errors.Is(err, io.EOF) {
		_ = fusefs.Unmount(dir, true)
		err = fmt.Errorf("%s: %w", dir, endedEarly(ws))
	}
	return err
}

func umount(dir string, lazy bool) error {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	ours, err := isMounted(abs)
	if err != nil {
		return err
	}
	if !ours {
		if abs, err = withoutLinks(abs); err == nil {
			ours, err = isMounted(abs)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if !ours {
		return fmt.Errorf("%s: no image is mounted there", dir)
	}
	if os.Geteuid() != 0 {
		if done, err := unmountServed(abs, lazy); done || err != nil {
			return err
		}
	}
	return fusefs.Unmount(abs, lazy)
}

// withoutLinks resolves links in a path like filepath.EvalSymlinks, but does
// not stat what it leads to, whose server may be gone.
func withoutLinks(name string) (string, error) {
	for range 40 { // as Linux does (MAXSYMLINKS)
		parent, err := filepath.EvalSymlinks(filepath.Dir(name))
		if err != nil {
			return name, err
		}
		name = filepath.Join(parent, filepath.Base(name))
		to, err := os.Readlink(name)
		if err != nil {
			return name, nil // no link
		}
		if name = to; !filepath.IsAbs(to) {
			name = filepath.Join(parent, to)
		}
	}
	return name, fmt.Errorf("%s: %w", name, unix.ELOOP)
}

// isMounted reports whether one of our mounts is on dir, on top of others. It does not touch dir, whose server may be
// gone.
func isMounted(dir string) (bool, error) {
	mounts, err := mountinfo.Self()
	found := false
	for _, m := range mounts {
		if m.Point == dir {
			found = m.Type == mountType
		}
	}
	return found, err
}
