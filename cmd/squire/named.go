package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/squirefs/squire/runtime"
	"github.com/squirefs/squire/runtime/container"
	"github.com/squirefs/squire/sqfs/oci"
)

// dataDir is where named containers of this user are: what SQUIRE_DATA says, the site, or a directory for each user on
// the node's own disk.
func dataDir() (string, error) {
	if dir := os.Getenv("SQUIRE_DATA"); dir != "" {
		if !filepath.IsAbs(dir) {
			return "", fmt.Errorf("SQUIRE_DATA=%s: want an absolute path", printable(dir))
		}
		return dir, nil
	}
	site, err := siteConfig()
	if err != nil {
		return "", err
	}
	if site.Data != "" {
		return site.Data, nil
	}
	return ownDataDir(), nil
}

// dataTop is where users' directories of named containers are if nobody says otherwise. Tests of the whole program link it
// with another one.
var dataTop = "/var/tmp"

// ownDataDir is the user's there. It is made when it is needed, and goes when it is empty.
func ownDataDir() string { return filepath.Join(dataTop, "squire-"+strconv.Itoa(os.Geteuid())) }

// dropEmptyStore removes the directory of the default if nothing is in it: most users have no containers.
func dropEmptyStore() { _ = os.Remove(ownDataDir()) }

// openStore opens the store of named containers, and makes it if it is missing.
func openStore() (*container.Store, error) {
	dir, err := dataDir()
	if err != nil {
		return nil, err
	}
	return container.Open(dir)
}

// namedRun is a command in a container with a name, or in one whose layer is to be saved.
type namedRun struct {
	o     *runOptions
	name  string // "": none, the layer is only there to be saved
	mode  container.Mode
	image string // as it was given; "": what the container was made from
	fetch func(ctx context.Context, source string) (*importedImage, error)
	c     *container.Container
	spec  *runtime.Spec // of the container, if it was made here; nil: it was joined
	held  *runtime.Held
	end   func()
	rec   *container.Record
}

// wantsContainer reports whether a run is a namedRun.
func (o *runOptions) wantsContainer() bool { return o.name != "" || o.save != "" }

// runNamed runs a command in a named container, and saves it.
func (o *runOptions) runNamed(image string, command []string) error {
	n := &namedRun{o: o, name: o.name, mode: container.Auto, image: image, fetch: func(ctx context.Context, source string) (*importedImage, error) {
		return importImage(ctx, source, os.Stderr)
	}}
	if err := checkSave(o.save); err != nil {
		return err
	}
	if err := n.open(context.Background(), command); err != nil {
		return err
	}
	status, err := n.command(command)
	if err == nil && o.save != "" {
		err = n.save()
	}
	n.close()
	switch {
	case err != nil:
		return err
	case status != 0:
		return exitError(status)
	}
	return nil
}

// open joins the container, or makes it.
func (n *namedRun) open(ctx context.Context, command []string) error {
	open := openStore
	if n.mode == container.Join {
		open = existingStore
	}
	store, err := open()
	if err != nil {
		return err
	}
	if store == nil {
		return fmt.Errorf("container %s: %w", n.name, container.ErrNone)
	}
	defer store.Close()
	if n.name == "" {
		n.c, err = store.Scratch()
	} else {
		n.c, err = store.Claim(ctx, n.name, n.mode)
	}
	if err != nil {
		return err
	}
	if n.c.State() != nil {
		err = n.joined()
	} else {
		err = n.start(ctx, command)
	}
	if err != nil {
		n.close()
	}
	return err
}

// joined checks what is asked for of a container that runs.
func (n *namedRun) joined() error {
	n.rec = n.c.Record()
	if n.image != "" && n.rec != nil && !madeFrom(n.rec, n.image) {
		return n.otherImage()
	}
	if len(n.o.mounts) > 0 || n.o.mountHome {
		fmt.Fprintf(os.Stderr, "squire: ignoring %s: the container %s runs already\n", n.o.flag("mounts"), n.name)
	}
	return nil
}

// otherImage says that a container cannot become one of another image.
func (n *namedRun) otherImage() error {
	return fmt.Errorf("container %s: was made from %s; leave the image out, or remove it first: squire container rm %[1]s", n.name, printable(n.rec.Image))
}

// madeFrom reports whether a container was made from what is called image.
func madeFrom(rec *container.Record, image string) bool {
	if importedSource(image) {
		src, err := oci.ParseSource(image)
		return err == nil && src.String() == rec.Source
	}
	path, err := filepath.Abs(image)
	return err == nil && path == rec.Image
}

// start makes the container run, which is ours to start.
func (n *namedRun) start(ctx context.Context, command []string) error {
	if err := n.find(ctx); err != nil {
		return err
	}
	spec, err := n.o.spec(n.rec.Image, command)
	if err != nil {
		return err
	}
	spec.Upper = n.c.Layer()
	host := runtime.Probe()
	ops, err := runtime.Plan(spec, host)
	if err == nil {
		err = runtime.CheckHold(spec)
	}
	if err == nil {
		err = n.o.checkSources(spec)
	}
	if err == nil {
		err = n.hold(spec, host, ops, nil)
	}
	return err
}

// find has the image at hand, which is imported if need be, and makes sure that it is the one that the layer belongs to.
func (n *namedRun) find(ctx context.Context) error {
	if n.rec = n.c.Record(); n.rec == nil {
		if n.image == "" {
			return fmt.Errorf("container %s: %w", n.name, errNoImage)
		}
		n.rec = &container.Record{Created: time.Now()}
	} else if n.image != "" && !madeFrom(n.rec, n.image) {
		return n.otherImage()
	}
	source, path := n.rec.Source, n.rec.Image
	if path == "" {
		if importedSource(n.image) {
			source = n.image
		} else {
			var err error
			if path, err = filepath.Abs(n.image); err != nil {
				return err
			}
		}
	}
	if source != "" && path != "" {
		isImported(path) // and so it is in use, and stays in the cache
	}
	if _, err := os.Stat(path); source != "" && (path == "" || errors.Is(err, fs.ErrNotExist)) {
		imported, err := n.fetch(ctx, source)
		if err != nil {
			return err
		}
		path, source = imported.Path, imported.Source
	}
	identity, err := imageIdentity(path)
	if err != nil {
		return n.explain(err)
	}
	if n.rec.Image != "" && n.rec.Identity != identity {
		return fmt.Errorf("container %s: its image %s is another one now, and the layer does not belong to it; put the old one back, or squire container rm %[1]s", n.name, printable(path))
	}
	n.rec.Image, n.rec.Source, n.rec.Identity = path, source, identity
	return nil
}

// explain says what may be wrong with an image that is not there.
func (n *namedRun) explain(err error) error {
	switch {
	case !errors.Is(err, fs.ErrNotExist):
	case n.rec.Image != "":
		return fmt.Errorf("container %s: %w, from which it was made", n.name, err)
	case n.name != "" && filepath.Base(n.image) == n.image:
		return fmt.Errorf("%w; to run a command in a container that there is: squire run --name %s -- %s", err, n.name, n.image)
	}
	return err
}

var errNoImage = errors.New("there is none, and no image is given to make it from")

// imageIdentity is what an image is known by, "" for a directory: its size, its superblock, and the tables at its end.
// Where it is, on which node and since when does not matter, so that a copy is the same.
func imageIdentity(path string) (string, error) {
	if fi, err := os.Stat(path); err == nil && fi.IsDir() {
		return "", nil
	}
	f, err := openImage(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	size, err := fileSize(f)
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	const head, tail = 96, 64 << 10
	h := sha256.New()
	fmt.Fprintln(h, size)
	for _, part := range [][2]int64{{0, head}, {max(size-tail, 0), tail}} {
		if _, err = io.Copy(h, io.NewSectionReader(f, part[0], part[1])); err != nil {
			return "", fmt.Errorf("%s: %w", path, err)
		}
	}
	return "squashfs:" + hex.EncodeToString(h.Sum(nil)), nil
}

// hold makes the container, remembers it, and lets others join it.
func (n *namedRun) hold(spec *runtime.Spec, host *runtime.Host, ops []runtime.Op, log *os.File) (err error) {
	n.rec.Owned = !host.Root || !host.IDsMapped
	n.rec.Started = time.Now()
	n.rec.AddTargets(targetsOf(ops))
	if n.name != "" {
		if err = n.c.Remember(n.rec); err != nil {
			return err
		}
	}
	if n.held, n.end, err = n.o.hold(spec, host, ops, log); err != nil {
		return err
	}
	n.spec = spec
	return n.c.Serve(stateOf(n.held, spec))
}

// stateOf is what those need who join a container.
func stateOf(held *runtime.Held, spec *runtime.Spec) container.State {
	s := container.State{
		Namespaces: held.Namespaces, Image: spec.Image, RemapRoot: spec.RemapRoot,
		Workdir: held.Workdir, Environ: held.Environ,
	}
	if lock := held.Lock(); lock != nil {
		s.Keep = append(s.Keep, lock)
	}
	return s
}

// targetsOf are the places where a plan mounts something.
func targetsOf(ops []runtime.Op) (targets []string) {
	for _, op := range ops {
		switch op.Do {
		case runtime.OpBind, runtime.OpTmpfs, runtime.OpDevpts, runtime.OpProc, runtime.OpSysfs, runtime.OpMqueue, runtime.OpCgroup, runtime.OpFile:
			targets = append(targets, op.Target)
		}
	}
	slices.Sort(targets)
	return slices.Compact(targets)
}

// command runs the command in the container.
func (n *namedRun) command(command []string) (int, error) {
	state, o := n.c.State(), n.o
	spec := &runtime.Spec{
		Image: state.Image, Command: command, Entrypoint: o.entry, Workdir: o.workdir, RemapRoot: state.RemapRoot,
		Environ: os.Environ(), KeepEnv: o.keepEnv, SetEnv: o.setEnv,
	}
	if n.spec != nil { // with what the devices that it has want to be set
		spec.Environ, spec.KeepEnv, spec.SetEnv = n.spec.Environ, n.spec.KeepEnv, n.spec.SetEnv
	}
	if spec.Workdir == "" {
		spec.Workdir = state.Workdir
	}
	host := runtime.Probe()
	ops, err := runtime.PlanJoin(spec, host)
	if err != nil {
		return 0, err
	}
	if n.held != nil {
		n.held.Settle()
	}
	r := &runtime.Runner{Join: state.Namespaces, Environ: state.Environ, Phases: o.timesOfStart().report()}
	return runContainer(r, spec, host, ops, func() error { return nil })
}

// save saves the container, if nobody else is in it: then they will.
func (n *namedRun) save() error {
	last, err := n.c.Leave(context.Background())
	if err != nil {
		return err
	}
	if n.o.shared = !last; !last {
		fmt.Fprintf(os.Stderr, "squire: %s: %s is left to those who still run in the container\n", n.name, n.o.flag("save"))
		return nil
	}
	return saveContainer(n.c, n.rec, n.o.save, os.Stderr)
}

// close lets go of the container.
func (n *namedRun) close() {
	if n.c != nil {
		n.o.shared = n.o.shared || n.c.Shared()
		n.c.Withdraw()
	}
	if n.held != nil {
		n.held.Close()
		n.end()
	}
	if n.c != nil {
		n.c.Close()
		dropEmptyStore()
	}
}
