package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/fusefs"
	"github.com/squirefs/squire/runtime"
)

type runOptions struct {
	prefix    string   // of the flags' names in messages: with Slurm they have another
	mounts    []string // of --mounts and --tmpfs, as --mounts has them
	tmpfs     []string // those of them that are of --tmpfs
	writable  string
	readonly  bool
	workdir   string
	entry     bool
	keepEnv   []string
	setEnv    []string
	remapRoot bool
	unshare   []string
	hostname  string
	mountHome bool
	plan      bool
	json      bool
	stats     bool
	noTrace   bool
	name      string // of the container
	save      string // the file that it is saved to
	verbose   bool

	devices deviceOptions

	shared bool     // others are in the container that ends here, see hold
	traced bool     // use the image's trace, or record one
	into   *os.File // record all that is read into this file instead; nil: no

	account *stepAccount // what the step of a job has used; nil: nobody asks
}

// writableTmpfs is what --writable without a value means.
const writableTmpfs = "tmpfs"

func runCommand() *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use:   "run [flags] IMAGE [--] [COMMAND [ARG...]]",
		Short: "Run a command inside an image",
		Long: `Run COMMAND with IMAGE, a squashfs file or a directory, as its root file system. IMAGE may
also be docker://, dockerd:// or podman://, as for "squire import": it is imported first, with
the flags in SQUIRE_IMPORT_FLAGS, into ~/.cache/squire/images or below SQUIRE_CACHE_DIR, a file
for each digest, and stays there for the next time.

Without COMMAND what the image was made for runs: the entrypoint and command of
the container image that "squire import" or enroot made it from, or /bin/sh. With
--entrypoint the entrypoint runs with COMMAND as its arguments. The container
image's working directory is used unless --workdir names another. Its user is
not: a container here has the one user who started it.

The container has the host's processes, network, IPC, /dev/shm and /tmp, and a
/dev, /etc/hosts and /etc/resolv.conf made from the host's. The image is
read-only unless --writable is given.

--unshare gives it namespaces of its own: pid (the command sees its own processes,
which all end with it), net (a loopback interface and nothing else), ipc (System V
IPC, message queues and an empty /dev/shm), uts (see --hostname), cgroup.

The environment is the caller's without its locale, overwritten by the container
image's, else by /etc/environment; PATH is the image's, PWD the working directory. HOME, TMPDIR
and the like arrive as they are: bind their directories where they are needed.

--mounts binds SRC of the host on DST, which is made if it is missing. SRC is a
path that starts with "/", "." or "~", DST a path inside, by default the same as SRC
("./x" is then /x). $NAME and ${NAME} stand for variables, \$ for a dollar sign. FLAGS
are ro, rw, bind, rbind, nosuid, nodev, noexec, noatime, nodiratime, relatime,
strictatime, [r]private, [r]slave, [r]shared, [r]unbindable, x-create=auto|file|dir, and
nofail for a SRC that may be missing. Two words stand in the place of SRC: tmpfs:DST
mounts an empty file system in memory, with FLAGS like size=10G and mode=1777;
umount:DST takes a mount away, as umount:/tmp does with the host's /tmp. What the
site mounts everywhere (/etc/squire/mounts.d/*.fstab) comes first.

--name runs in a container that is kept under this name, with a writable layer unless
--readonly is given. The first run makes it from IMAGE, which it remembers; later ones need no
IMAGE: squire run --name NAME -- COMMAND. If it runs already, this command joins it, in its
namespaces and mounts as they are; --unshare pid does not go with that. --save writes what the
container is in the end into FILE as an image, in place of what is there; with several runs in one
container the last does. See "squire container".

Everything that the command started ends with it.

Exit status: the command's; 128+N when signal N ended it; 125 when squire itself
failed, 126 when the command cannot be executed, 127 when it is not in the
image.`,
		Example: `  squire run pytorch.sqsh -- python3 -c 'import torch'
  squire run --mounts /lustre/datasets:/data:ro,$PWD --workdir $PWD pytorch.sqsh -- python3 train.py
  squire run --writable --remap-root debian.sqsh -- /bin/bash
  squire run --plan debian.sqsh -- true`,
		Args: func(c *cobra.Command, args []string) error {
			if o.name != "" { // then the image is known, perhaps
				return nil
			}
			return needArgs(1, -1)(c, args)
		},
		ValidArgsFunction: completeImage,
		RunE: func(c *cobra.Command, args []string) error {
			if o.name != "" && (len(args) == 0 || c.ArgsLenAtDash() == 0) {
				args = append([]string{""}, args...)
			}
			if err := o.check(c, args); err != nil {
				return err
			}
			return o.run(c, args[0], args[1:])
		},
	}
	o.addFlags(cmd)
	f := cmd.Flags()
	f.StringVar(&o.name, "name", "", "run in the container of this `NAME`, which is kept, and made from the image if it is not there")
	f.StringVar(&o.save, "save", "", "afterwards, save the container as an image, in place of `FILE`")
	_ = cmd.RegisterFlagCompletionFunc("name", completeContainers) // fails for unknown flags only
	f.BoolVar(&o.plan, "plan", false, "print the operations instead of doing them")
	f.BoolVar(&o.json, "json", false, "with --plan: as JSON")
	f.BoolVar(&o.noTrace, "no-trace", false, `neither use a trace of the image nor record one; see "squire trace"`)
	return cmd
}

// addFlags adds what "squire trace record" has as well.
func (o *runOptions) addFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.SetInterspersed(false)
	f.Var(&mountsFlag{list: &o.mounts}, "mounts", "bind host paths: SRC[:DST[:FLAGS]][,...], flags joined by +; see above")
	f.Var(&mountsFlag{list: &o.mounts, tmpfs: &o.tmpfs}, "tmpfs", "mount an empty file system in memory: DST[:size=SIZE,mode=MODE,...]")
	f.StringVar(&o.writable, "writable", "", "put a writable layer over the image, in memory, of tmpfs:size=SIZE, or in a directory of yours that keeps it: --writable=DIR")
	f.Lookup("writable").NoOptDefVal = writableTmpfs
	f.BoolVar(&o.readonly, "readonly", false, "keep the root file system read-only (the default)")
	f.StringVar(&o.workdir, "workdir", "", `working directory inside (default: the container image's, or "/")`)
	f.BoolVar(&o.entry, "entrypoint", false, "run the container image's entrypoint, with the command as its arguments")
	f.StringSliceVar(&o.keepEnv, "env", nil, "variables whose host value wins over the image's: NAME[,...]")
	f.StringArrayVar(&o.setEnv, "set-env", nil, "set a variable inside: NAME=VALUE")
	f.BoolVar(&o.remapRoot, "remap-root", false, "appear as root inside")
	f.StringSliceVar(&o.unshare, "unshare", nil, "namespaces of the container's own: NS[,...] of "+strings.Join(runtime.Namespaces(), ", "))
	f.StringVar(&o.hostname, "hostname", "", "name of the machine inside; implies --unshare uts")
	f.BoolVar(&o.mountHome, "mount-home", false, "bind the home directory")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "say on standard error how long each part of the start took")
	o.devices.addFlags(f)
	_ = cmd.RegisterFlagCompletionFunc("unshare", completeList(runtime.Namespaces)) // there is such a flag
	f.BoolVar(&o.stats, "stats", false, "afterwards, say on standard error how much of the image was read")
}

// flag is how the user has written a flag.
func (o *runOptions) flag(name string) string { return "--" + o.prefix + name }

// mountsFlag is the value of --mounts, and of --tmpfs, which is one more of those:
// they are carried out in the order in which they were given.
type mountsFlag struct {
	list  *[]string
	tmpfs *[]string // those of list that came by --tmpfs; nil: the flag is --mounts
}

// mountFlag is the name of the flag by which a mount was given.
func (o *runOptions) mountFlag(mount string) string {
	if slices.Contains(o.tmpfs, mount) {
		return "tmpfs"
	}
	return "mounts"
}

func (f *mountsFlag) String() string { return "" }
func (f *mountsFlag) Type() string   { return "string" }

func (f *mountsFlag) Set(arg string) error {
	if f.tmpfs != nil {
		arg = "tmpfs:" + strings.ReplaceAll(arg, ",", "+")
		*f.tmpfs = append(*f.tmpfs, arg)
	}
	*f.list = append(*f.list, arg)
	return nil
}

// checkEnvNames finds a NAME=VALUE, which docker and others take as --env, among names.
func checkEnvNames(names []string) error {
	for _, name := range names {
		if strings.Contains(name, "=") {
			return fmt.Errorf("--env %s: want the name alone; --set-env %[1]s sets a variable", printable(name))
		}
	}
	return nil
}

// check finds flags that contradict each other or stand in the wrong place.
func (o *runOptions) check(c *cobra.Command, args []string) (err error) {
	var flag *bool
	if on := !o.noTrace; c.Flags().Changed("no-trace") {
		flag = &on
	}
	if o.traced, err = tracesWanted(flag); err != nil {
		return err
	}
	if err = checkEnvNames(o.keepEnv); err != nil {
		return err
	}
	switch writable := c.Flags().Changed("writable"); {
	case writable && o.readonly:
		return errors.New("--writable and --readonly exclude each other")
	case writable && o.writable == "":
		return errors.New("--writable: the directory's name is empty")
	case o.wantsContainer() && writable && o.writable != writableTmpfs:
		return errors.New("--writable=DIR does not go with --name and --save, which have a layer of their own")
	case o.name != "" && o.stats:
		return errors.New("--stats does not go with --name: others may read the image as well")
	case o.name != "" && slices.Contains(o.unshare, "pid"):
		return errors.New("--unshare pid does not go with --name: others may share the container, and would end with its first process")
	case c.Flags().Changed("name") && o.name == "":
		return errors.New("--name: the name is empty")
	case c.Flags().Changed("save") && o.save == "":
		return errors.New("--save: the file's name is empty")
	case o.json && !o.plan:
		return errors.New("--json goes with --plan")
	case len(args) > 1 && args[1] != "--" && strings.HasPrefix(args[1], "-"):
		return fmt.Errorf("%s: flags of squire go before the image", args[1])
	}
	return o.decide(c)
}

// decide lets the site have its say in what the flags leave open.
func (o *runOptions) decide(c *cobra.Command) error {
	site, err := siteConfig()
	if err != nil {
		return err
	}
	said := func(value bool, flags ...string) *bool {
		if slices.ContainsFunc(flags, c.Flags().Changed) {
			return &value
		}
		return nil
	}
	var writable bool
	writable, o.remapRoot, o.mountHome, err = site.decide(choices{
		Writable:  said(o.writable != "", "writable", "readonly"),
		RemapRoot: said(o.remapRoot, "remap-root"),
		MountHome: said(o.mountHome, "mount-home"),
	})
	if o.name != "" && !o.readonly && o.writable == "" && site.Containers.Writable != siteForbid {
		writable = true
	}
	if writable && o.writable == "" {
		o.writable = writableTmpfs
	}
	return err
}

// completeImage completes the first argument to a file name.
func completeImage(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return []string{"sqsh", "sqfs", "squashfs"}, cobra.ShellCompDirectiveFilterFileExt
	}
	return nil, cobra.ShellCompDirectiveDefault
}

// completeImageOnly does no more than that: what follows are paths in the image.
func completeImageOnly(c *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return completeImage(c, args, word)
}

func (o *runOptions) run(c *cobra.Command, image string, command []string) error {
	if len(command) > 0 && command[0] == "--" {
		command = command[1:]
	}
	if o.wantsContainer() && !o.plan {
		return o.runNamed(image, command)
	}
	if os.Args[0] == tasksName {
		return o.keepTogether(image)
	}
	o.devices.widen = o.together()
	image, err := o.importFirst(image)
	if err != nil {
		return err
	}
	spec, err := o.spec(image, command)
	if err != nil {
		return err
	}
	host := runtime.Probe()
	ops, err := runtime.Plan(spec, host)
	if err != nil {
		return err
	}
	if o.plan {
		return printPlan(c.OutOrStdout(), ops, o.json)
	}
	if err = o.checkSources(spec); err != nil {
		return err
	}
	status, done := 0, false
	if o.devices.widen {
		status, done, err = o.startTogether(spec, host)
	}
	if !done {
		status, err = o.start(spec, host, ops)
	}
	if err != nil {
		return err
	}
	if status != 0 {
		return exitError(status)
	}
	return nil
}

// importFirst has an image of a registry at hand, and returns where.
func (o *runOptions) importFirst(image string) (string, error) {
	if !importedSource(image) || o.plan {
		return image, nil
	}
	imported, err := importImage(context.Background(), image, os.Stderr)
	if err != nil {
		return "", err
	}
	return imported.Path, nil
}

// spec makes the runtime's Spec from the flags and this process.
func (o *runOptions) spec(image string, command []string) (*runtime.Spec, error) {
	s := &runtime.Spec{
		Image: image, Command: command, Entrypoint: o.entry, Workdir: o.workdir, RemapRoot: o.remapRoot,
		Unshare: o.unshare, Hostname: o.hostname,
		Environ: os.Environ(), KeepEnv: o.keepEnv, SetEnv: o.setEnv,
	}
	if fi, err := os.Stat(image); err == nil && fi.IsDir() {
		if s.Dir, err = filepath.Abs(image); err != nil {
			return nil, err
		}
		if runtime.IsLayer(s.Dir) {
			return nil, fmt.Errorf("%s: is a writable layer, not an image; write --writable=%[1]s", image)
		}
	}
	cwd, cwdErr := os.Getwd() // may be gone or forbidden, and not be needed
	if o.mountHome {
		home := os.Getenv("HOME")
		if !filepath.IsAbs(home) {
			return nil, errors.New(o.flag("mount-home") + ": HOME is not set to a directory")
		}
		target := home
		if o.remapRoot {
			target = "/root"
		}
		s.Mounts = append(s.Mounts, runtime.Mount{Source: home, Target: target})
	}
	parser := &runtime.MountParser{Dir: cwd, Getenv: os.LookupEnv}
	for _, arg := range o.mounts {
		ms, err := parser.Parse(arg)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", o.flag(o.mountFlag(arg)), err)
		}
		if cwdErr != nil && slices.ContainsFunc(ms, func(m runtime.Mount) bool { return m.Host() && !filepath.IsAbs(m.Source) }) {
			return nil, fmt.Errorf("%s: working directory of a relative source: %w", o.flag("mounts"), cwdErr)
		}
		s.Mounts = append(s.Mounts, ms...)
	}
	if o.writable != "" {
		s.Writable = true
		if size, ok := strings.CutPrefix(o.writable, writableTmpfs+":size="); ok {
			if s.UpperSize = size; size == "" {
				return nil, errors.New("--writable: want tmpfs:size=SIZE")
			}
		} else if o.writable != writableTmpfs {
			var err error
			if s.Upper, err = filepath.Abs(o.writable); err != nil {
				return nil, fmt.Errorf("--writable: %w", err)
			}
		}
	}
	site, err := siteConfig()
	if err != nil {
		return nil, err
	}
	if len(o.devices.devices) > 0 && site.Containers.Devices == siteForbid {
		return nil, site.forbids("--device %s", o.devices.devices[0])
	}
	if err := site.enforce(s, parser); err != nil {
		return nil, err
	}
	s.Mounts = append(s.Mounts, pmixMounts(s.Environ)...)
	if err := o.devices.apply(s); err != nil {
		return nil, err
	}
	return s, nil
}

// checkSources finds what is missing before anything is started, for the sake
// of the message.
func (o *runOptions) checkSources(s *runtime.Spec) error {
	for _, m := range s.Mounts {
		if !m.Host() || m.MayFail() {
			continue
		}
		if _, err := os.Stat(m.Source); errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s: source path does not exist: %w", o.flag("mounts"), unwrapPath(m.Source, err))
		} else if err != nil {
			return fmt.Errorf("%s: source %w", o.flag("mounts"), unwrapPath(m.Source, err))
		}
	}
	return nil
}

func printPlan(w io.Writer, ops []runtime.Op, asJSON bool) error {
	if asJSON {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(ops)
	}
	for _, op := range ops {
		if _, err := fmt.Fprintln(w, printable(op.String())); err != nil {
			return err
		}
	}
	return nil
}

// start runs the container and returns its exit status.
func (o *runOptions) start(spec *runtime.Spec, host *runtime.Host, ops []runtime.Op) (int, error) {
	times := o.timesOfStart()
	if spec.Dir != "" {
		if text := othersFiles(spec, host); text != "" {
			fmt.Fprintln(os.Stderr, "squire:", text)
		}
		return runContainer(&runtime.Runner{Phases: times.report()}, spec, host, ops, func() error { return nil })
	}
	site, err := siteConfig()
	if err != nil {
		return 0, err
	}
	file, err := site.openImage(spec.Image)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	return o.runImage(spec, host, ops, file, times)
}

// othersFiles says of a directory what a writable layer over it cannot do, "" for nothing. The files of an image
// appear as the caller's; those of a directory are whose they are, and in a namespace with one id the kernel copies up none
// that belong to others.
func othersFiles(spec *runtime.Spec, host *runtime.Host) string {
	var st unix.Stat_t
	if !spec.Writable || host.Root || unix.Stat(spec.Dir, &st) != nil || int(st.Uid) == host.UID {
		return ""
	}
	return fmt.Sprintf("%s belongs to user %d, and what is theirs in it stays as it is, in a writable layer too; in an image made of it (squire pack) all is yours", printable(spec.Dir), st.Uid)
}

// traces are the files for the image's trace.
func (o *runOptions) traces(image string, file *os.File) *traceFiles {
	if o.into != nil {
		return &traceFiles{files: []*os.File{o.into}, record: 1, whole: true}
	}
	return tracesInTime(image, file, 0, o.traced)
}

func printStats(srv *server, last serverState) {
	trace := ""
	if srv.Replayed > 0 {
		trace += fmt.Sprintf(", a trace of %s replayed", plural(int64(srv.Replayed), "block"))
	}
	if last.Recorded > 0 {
		trace += fmt.Sprintf(", a trace of %s recorded", plural(int64(last.Recorded), "block"))
	}
	fmt.Fprintf(os.Stderr, "squire: read %s of the image's %s (%.1f %%), %d requests%s\n",
		sizeString(last.Read), sizeString(srv.Size), 100*float64(last.Read)/float64(max(srv.Size, 1)), last.Requests, trace)
}

// runContainer starts the init stage, prepares the root file system while that
// starts, and lets it run.
func runContainer(r *runtime.Runner, spec *runtime.Spec, host *runtime.Host, ops []runtime.Op, prepare func() error) (int, error) {
	if err := r.Start(spec, host); err != nil {
		return 0, err
	}
	err := prepare()
	if err == nil {
		err = r.Send(ops)
	}
	if err != nil {
		r.Abandon()
		return 0, err
	}
	return r.Wait()
}

// owner decides whose files the image's appear to be: the caller's, where the
// image's own ids mean nothing.
func owner(s *runtime.Spec, h *runtime.Host) *fusefs.Owner {
	switch {
	case h.Root && h.IDsMapped:
		return nil
	case h.Root || s.RemapRoot:
		return &fusefs.Owner{}
	}
	return &fusefs.Owner{UID: uint32(h.UID), GID: uint32(h.GID)}
}
