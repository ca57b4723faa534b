package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/runtime"
	"github.com/squirefs/squire/runtime/container"
)

// nameModes are the modes of --container-name.
var nameModes = map[string]container.Mode{
	nameAuto: container.Auto, nameCreate: container.Create, nameExec: container.Join, nameNoExec: container.Start,
}

// store opens the store that the step's containers are in.
func (s *slurmStep) store(o *slurmOptions) (*container.Store, error) {
	if o.Scope != scopeJob {
		return openStore()
	}
	dir, err := jobDataDir() // where the job's end is cleaned up
	if err != nil {
		return nil, err
	}
	return container.Open(dir)
}

// scoped is the name of a container in the store.
func (s *slurmStep) scoped(o *slurmOptions, name string) string {
	if o.Scope == scopeJob {
		return jobPrefix(uint32(s.order.Job)) + name
	}
	return name
}

// unnamed is the name by which the container of this step can be joined, if it was not given one.
func (s *slurmStep) unnamed() string { return fmt.Sprintf("%d.%d", s.order.Job, s.order.Step) }

// named has the container that --container-name or --container-save want. It returns nil if they are not given.
func (s *slurmStep) named(ctx context.Context, options *slurmOptions, flags *runOptions) (*slurmContainer, error) {
	if options.Name == "" && options.Save == "" {
		return nil, nil
	}
	if err := checkSlurmSave(options.Save); err != nil {
		return nil, err
	}
	store, err := s.store(options)
	if err != nil {
		return nil, err
	}
	defer store.Close()
	n := &namedRun{o: flags, image: options.Image, fetch: func(ctx context.Context, _ string) (*importedImage, error) {
		return options.importImage(ctx, os.Stderr)
	}}
	if options.Name == "" {
		n.c, err = store.Scratch()
	} else {
		n.name, n.mode = s.scoped(options, options.Name), nameModes[options.NameMode]
		n.c, err = store.Claim(ctx, n.name, n.mode)
	}
	if err != nil {
		return nil, nameError(err, options)
	}
	var c *slurmContainer
	switch state := n.c.State(); {
	case state == nil:
		c, err = s.startNamed(ctx, options, n)
	case n.mode == container.Start:
		c, err = s.startBeside(ctx, options, n)
	default:
		c, err = s.joinNamed(options, n)
	}
	if err != nil {
		n.close()
		return nil, nameError(err, options)
	}
	if options.Save != "" { // who saves has its tasks supervised
		c.save = func() error { return s.save(c, n, options) }
	}
	return c, nil
}

// nameError says it as pyxis does, where scripts look for it.
func nameError(err error, o *slurmOptions) error {
	switch {
	case errors.Is(err, errNoImage):
		return fmt.Errorf("a container with name %q does not exist, and --container-image is not set", o.Name)
	case o.NameMode == nameCreate && errors.Is(err, fs.ErrExist):
		return errors.New(`"create" flag was passed to --container-name but the container already exists`)
	case o.NameMode == nameExec && (errors.Is(err, container.ErrNotRunning) || errors.Is(err, fs.ErrNotExist)):
		return errors.New(`"exec" flag was passed to --container-name but the container is not running`)
	}
	return err
}

// startNamed starts a container that nobody runs.
func (s *slurmStep) startNamed(ctx context.Context, options *slurmOptions, n *namedRun) (*slurmContainer, error) {
	if n.c.Record() != nil {
		n.image = "" // it has one
	} else if options.Path != "" {
		n.image = options.Path
	} else if options.Source != "" {
		n.image = options.Source
	}
	if err := n.find(ctx); err != nil {
		return nil, err
	}
	if options.Scope == scopeJob && n.name != "" {
		n.rec.Job = uint32(s.order.Job)
	}
	return s.make(ctx, n.o, options, n.rec.Image, n)
}

// startBeside starts a container that shares the layer of one that runs.
func (s *slurmStep) startBeside(ctx context.Context, options *slurmOptions, n *namedRun) (*slurmContainer, error) {
	if n.rec = n.c.Record(); n.rec == nil {
		return nil, errors.New("the container runs, and has no layer that another one could share")
	}
	return s.make(ctx, n.o, options, n.rec.Image, n)
}

// joinNamed joins a container that runs.
func (s *slurmStep) joinNamed(options *slurmOptions, n *namedRun) (*slurmContainer, error) {
	state := n.c.State()
	n.rec = n.c.Record()
	if line := options.ignoredByJoining(); line != "" {
		fmt.Fprintln(os.Stderr, "squire:", line)
	}
	var kinds []string
	for _, ns := range state.Namespaces {
		kinds = append(kinds, ns.Kind)
	}
	if err := options.checkJoined(kinds); err != nil {
		return nil, err
	}
	spec := &runtime.Spec{
		Image: state.Image, Workdir: n.o.workdir, RemapRoot: state.RemapRoot,
		Environ: os.Environ(), KeepEnv: n.o.keepEnv, SetEnv: n.o.setEnv,
	}
	ops, err := runtime.PlanJoin(spec, runtime.Probe())
	if err != nil {
		return nil, err
	}
	c := &slurmContainer{
		namespaces: state.Namespaces, environ: state.Environ, dir: state.Workdir, spec: spec, filter: filterText(runtime.Filter(ops)),
		close: n.close,
	}
	if spec.Workdir != "" {
		c.dir = filepath.Join("/", spec.Workdir)
	}
	if runtime.KeepsCapabilities(ops) {
		c.capabilities = ^uint64(0)
	}
	return c, nil
}

// publish lets other steps of the job join a container without a name. They may do without.
func (s *slurmStep) publish(options *slurmOptions, held *runtime.Held, spec *runtime.Spec) *container.Container {
	store, err := s.store(options)
	if err != nil {
		return nil
	}
	defer store.Close()
	c, err := store.Publish(s.scoped(options, s.unnamed()), stateOf(held, spec))
	if err != nil {
		return nil
	}
	return c
}

// checkSlurmSave finds out before the tasks run what would be an error at their end.
func checkSlurmSave(output string) error {
	if err := checkSave(output); err != nil {
		return errors.New("--container-" + strings.TrimPrefix(err.Error(), "--"))
	}
	return nil
}

// save saves the step's container. Its tasks have ended; others may run in it.
func (s *slurmStep) save(c *slurmContainer, n *namedRun, options *slurmOptions) error {
	output, ours := s.saveTo(options.Save, c.nodeName())
	if !ours {
		fmt.Fprintf(os.Stderr, "squire: --container-save: %s is left to the first node of the step; %%N in its name stands for the node\n", printable(output))
		return nil
	}
	if n.rec == nil {
		return errors.New("--container-save: the container that was joined has no layer that could be saved")
	}
	if _, err := n.c.Leave(context.Background()); err != nil {
		return err
	}
	if err := saveContainer(n.c, n.rec, output, os.Stderr); err != nil {
		return fmt.Errorf("--container-save: %w", err)
	}
	return nil
}

// saveTo is the file that this node saves to. With several nodes each has its own container: where the file is one for
// all of them, only the first saves, and does so whole or not at all; where it is the node's own every one does.
// In the name %N stands for the node's name, %n for its number in the step, %j and %s for job and step, %% for %.
func (s *slurmStep) saveTo(output, host string) (file string, ours bool) {
	name := strings.NewReplacer("%%", "%", "%N", host, "%n", strconv.Itoa(s.order.NodeID),
		"%j", strconv.FormatInt(s.order.Job, 10), "%s", strconv.FormatInt(s.order.Step, 10)).Replace(output)
	marks := strings.ReplaceAll(output, "%%", "")
	each := strings.Contains(marks, "%N") || strings.Contains(marks, "%n")
	return name, each || s.order.NodeID == 0 || !onNetwork(filepath.Dir(name))
}

// nodeName is what Slurm calls this node, as its tasks say.
func (c *slurmContainer) nodeName() string {
	if name := c.host.Load(); name != nil {
		return *name
	}
	name, _ := os.Hostname()
	short, _, _ := strings.Cut(name, ".")
	return short
}

// networks are file systems that several nodes have, by their magic numbers (statfs(2), and the sources of those that are
// not Linux's own).
var networks = map[int64]bool{
	unix.NFS_SUPER_MAGIC: true, unix.SMB_SUPER_MAGIC: true, unix.SMB2_SUPER_MAGIC: true, unix.CIFS_SUPER_MAGIC: true,
	unix.CEPH_SUPER_MAGIC: true, unix.AFS_SUPER_MAGIC: true, unix.AFS_FS_MAGIC: true, unix.CODA_SUPER_MAGIC: true,
	unix.OCFS2_SUPER_MAGIC: true, unix.V9FS_MAGIC: true, unix.FUSE_SUPER_MAGIC: true,
	0x0bd00bd0: true, // Lustre
	0x47504653: true, // GPFS
	0x19830326: true, // BeeGFS
	0x01161970: true, // GFS2
	0x20030528: true, // OrangeFS
	0xaad7aaea: true, // PanFS
	0x013111a8: true, // IBRIX
	0x61636673: true, // ACFS
}

// onNetwork reports whether a directory may be the same on other nodes.
func onNetwork(dir string) bool {
	var st unix.Statfs_t
	return unix.Statfs(dir, &st) == nil && networks[st.Type]
}
