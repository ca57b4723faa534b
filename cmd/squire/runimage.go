package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/fusefs"
	"github.com/squirefs/squire/fusefs/noded"
	"github.com/squirefs/squire/internal/wire"
	"github.com/squirefs/squire/runtime"
)

// containerImage is the image of a container, from a service if there is one, else
// from a server of its own. The init stage is started before it is known from
// which, and is told over a socket.
type containerImage struct {
	o      *runOptions
	spec   *runtime.Spec
	host   *runtime.Host
	times  *startTimes
	file   *openedImage
	mode   serviceMode
	client *noded.Client // nil: there is no service
	srv    *server       // nil: not started
	init   *os.File      // where the init stage is told
	runner runtime.Runner
}

// imageMount tells the init stage how it gets at the image, with a descriptor: that
// of the mount, which only has to be put into its place, or that of the connection
// to a server, which waits for a device.
type imageMount struct{ Mounted bool }

// Fields makes it a wire.Message. The end of the connection has no bytes, and this one has.
func (m *imageMount) Fields(c *wire.Coder) { c.Bool(&m.Mounted) }

// runImage runs a container on an opened image and returns its exit status.
func (o *runOptions) runImage(spec *runtime.Spec, host *runtime.Host, ops []runtime.Op, file *openedImage, times *startTimes) (int, error) {
	i := &containerImage{o: o, spec: spec, host: host, times: times, file: file}
	if err := i.begin(); err != nil {
		return 0, err
	}
	theirs, err := i.connect()
	if err != nil {
		return 0, err
	}
	defer i.init.Close()
	defer theirs.Close()
	i.runner.Phases = times.report()
	status, err := runContainer(&i.runner, spec, host, ops, i.prepare)
	return status, i.end(err)
}

// connect makes the socket over which the init stage is told. It returns the other end, which that one inherits.
func (i *containerImage) connect() (theirs *os.File, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make a socket pair: %w", err)
	}
	i.init, theirs = os.NewFile(uintptr(pair[0]), "init"), os.NewFile(uintptr(pair[1]), "runner")
	i.runner.Files = []*os.File{theirs}
	return theirs, nil
}

// begin is before the init stage is started. If it is known that a server of this run's
// own will be needed, that one, which takes longer to be ready, comes first.
func (i *containerImage) begin() (err error) {
	if i.mode, err = servicesWanted(); err != nil {
		return err
	}
	if i.o.privately(i.host) {
		i.mode = serviceOff
	}
	if i.mode == serviceOff {
		return i.startServer()
	}
	return nil
}

// find finds a service, or starts a server. A service of the user's own is started here,
// before this process becomes the one that orphans come to (Send, Hold): it must not end
// with the container.
func (i *containerImage) find() (err error) {
	if i.srv != nil {
		return nil
	}
	if i.client, err = dialService(i.mode); err == nil {
		return nil
	}
	i.o.without(err)
	return i.startServer()
}

// privately reports whether no service will do: what is asked for is about what this
// run alone reads, or this is root with fewer rights than a service grants root.
func (o *runOptions) privately(h *runtime.Host) bool {
	return o.stats || o.into != nil || h.UID == 0 && h.IDsMapped && !h.Root
}

// without says, if asked for, why there is no service.
func (o *runOptions) without(err error) {
	if o.verbose && !errors.Is(err, errUnwanted) {
		fmt.Fprintln(os.Stderr, "squire: without a service:", runtime.OneLine(err))
	}
}

func (i *containerImage) startServer() (err error) {
	// Descriptors that we inherited are for the command, not for the server.
	runtime.Shielded(func() { i.srv, err = startServer() })
	if err == nil {
		i.runner.Spare = append(i.runner.Spare, i.srv.pid)
	}
	return err
}

// prepare has the image served, while the init stage starts.
func (i *containerImage) prepare() error {
	if err := i.find(); err != nil {
		return err
	}
	if i.client != nil {
		err := i.fromService()
		if err == nil || isFinal(err) {
			return imageError(i.spec.Image, err)
		}
		i.o.without(err)
		i.client.Close()
		i.client = nil
		if err = i.startServer(); err != nil {
			return err
		}
	}
	return i.fromServer()
}

// fromService asks the service for the image. The connection to it, which is what
// keeps the image, stays open until the container has ended.
func (i *containerImage) fromService() error {
	traces := i.o.traces(i.spec.Image, i.file.File)
	defer closeAll(traces.files)
	view := noded.View{Squash: true, Restrict: true}
	if i.host.Root && i.host.IDsMapped {
		view.Squash = false
	}
	name, err := filepath.Abs(i.spec.Image)
	if err != nil {
		name = i.spec.Image
	}
	m, err := i.file.mount(i.client, noded.Request{
		Image: name, View: view, Traces: len(traces.files), Record: traces.record, Fallback: true,
	}, traces.files)
	if err != nil {
		return err
	}
	defer m.Mount.Close()
	i.client.Keep(slog.New(slog.DiscardHandler))
	i.times.served("service")
	i.o.account.served(i, m.ID)
	return sendMessage(i.init, &imageMount{Mounted: true}, m.Mount)
}

// fromServer has the server of this run look at the image.
func (i *containerImage) fromServer() (err error) {
	cfg := serverConfig{Image: i.spec.Image, Owner: owner(i.spec, i.host), Restrict: true, Steadfast: true}
	if err = i.srv.open(cfg, i.file, i.o.traces(i.spec.Image, i.file.File)); err != nil {
		return err
	}
	runtime.Shielded(func() { err = i.srv.startGuard() })
	i.runner.Spare = append(i.runner.Spare, i.srv.guardPID)
	i.times.served("server")
	i.o.account.served(i, 0)
	if err != nil {
		return err
	}
	return sendMessage(i.init, new(imageMount), i.srv.conn)
}

// end lets go of the image, and says what went wrong with it, or how it went. It
// returns err.
func (i *containerImage) end(err error) error {
	if i.client != nil {
		i.client.Close()
	}
	if i.srv == nil {
		return err
	}
	last, early := i.srv.finish()
	if err == nil && early != nil {
		fmt.Fprintf(os.Stderr, "squire: %s\n", runtime.OneLine(fmt.Errorf("%s: %w; what was not read before could not be read", i.spec.Image, early)))
	} else if i.o.stats && err == nil {
		printStats(i.srv, last)
	}
	return err
}

// leave lets go of the image while others have it mounted: a server of this run goes on without us.
func (i *containerImage) leave() {
	if i.client != nil {
		i.client.Close()
	}
	if i.srv != nil {
		i.srv.conn.Close()
		i.srv.guard.Close()
	}
}

// mountImage is the init stage's runtime.MountFunc: it puts the mount of the service
// on dir, or mounts a FUSE file system there and hands the device to the server.
func mountImage(image, dir string, files []*os.File) error {
	if len(files) != 1 {
		return errors.New("no image server")
	}
	runner := files[0]
	defer runner.Close()
	var from imageMount
	got, err := recvMessage(runner, &from)
	if err != nil {
		return fmt.Errorf("no image server: %w", err)
	}
	defer closeAll(got)
	switch {
	case len(got) != 1:
		return errors.New("no image server")
	case from.Mounted:
		return fusefs.Attach(got[0], dir)
	}
	device, err := fusefs.Mount(dir, fusefs.MountOptions{
		Source: image, AllowOther: true, UID: os.Getuid(), GID: os.Getgid(),
	})
	if err != nil {
		return err
	}
	defer device.Close()
	return sendMessage(got[0], new(serverDevice), device)
}
