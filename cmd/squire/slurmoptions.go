package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/runtime"
	"github.com/squirefs/squire/sqfs/oci"
)

// slurmOptions are pyxis's options, and squire's beside them, of one step: understood, checked, with the defaults of the
// environment and of the plugin's arguments in them.
type slurmOptions struct {
	Image    string // as it was given; "": none
	Path     string // where it is on the node, absolute; "": see Source
	Source   string // what it is to be imported from, as "squire import" has it; "": see Path
	Name     string // of the container; "": none
	NameMode string // auto, create, exec or no_exec

	Mounts        []string // each in the form of runtime.MountParser
	Workdir       string   // "": the image's
	Save          string   // absolute; "": not
	MountHome     bool
	RemapRoot     bool
	Entrypoint    bool
	EntrypointLog bool
	Writable      bool
	KeepEnv       []string
	Unshare       []string
	GPUs          string // as --gpus; "": what Slurm says
	Trace         *bool  // nil: as without the option

	Batch    string    // container or host
	Scope    string    // of names: global or job
	Importer *importer // has images in place of registries; nil: none
}

// Values of slurmOptions.NameMode, Batch and Scope.
const (
	nameAuto   = "auto"
	nameCreate = "create"
	nameExec   = "exec"
	nameNoExec = "no_exec"

	batchContainer = "container"
	batchHost      = "host"

	scopeGlobal = "global"
	scopeJob    = "job"
)

// wanted reports whether there is to be a container.
func (o *slurmOptions) wanted() bool { return o.Image != "" || o.Name != "" }

// slurmKind is the kind of value that an option has.
type slurmKind int

const (
	kindOnce slurmKind = iota // one value: another one is an error
	kindList                  // values add up
	kindFlag                  // true or false
)

// slurmOption says where the value of an option comes from if it was not given: from the first of the variables
// SQUIRE_CONTAINER_NAME, PYXIS_CONTAINER_NAME and enroot that is set and not empty, or else from the plugin's argument.
type slurmOption struct {
	kind     slurmKind
	enroot   string // what enroot calls it: pyxis hands the job's environment on
	argument string // of the plugin
}

// slurmOptionTable has all options, by their name without "container-".
var slurmOptionTable = map[string]slurmOption{
	"image":          {},
	"mounts":         {kind: kindList},
	"workdir":        {},
	"name":           {},
	"save":           {},
	"mount-home":     {kind: kindFlag, enroot: "ENROOT_MOUNT_HOME", argument: "mount_home"},
	"remap-root":     {kind: kindFlag, enroot: "ENROOT_REMAP_ROOT", argument: "remap_root"},
	"entrypoint":     {kind: kindFlag, argument: "execute_entrypoint"},
	"entrypoint-log": {kind: kindFlag},
	"writable":       {kind: kindFlag, enroot: "ENROOT_ROOTFS_WRITABLE", argument: "writable"},
	"env":            {kind: kindList},
	"unshare":        {kind: kindList},
	"gpus":           {},
	"trace":          {kind: kindFlag},
	"batch":          {argument: "batch"},
}

// slurmArguments are the plugin's arguments that only squire understands, beside those in slurmOptionTable. Those of
// pyxis that mean nothing here are taken, so that a site changes nothing in plugstack.conf but the name of the plugin.
var slurmArguments = []string{"container_scope", "importer", "runtime_path", "use_enroot_load", "use_squashfuse", "sbatch_support", "squire"}

func isSlurmOption(name string) bool {
	_, ok := slurmOptionTable[name]
	return ok
}

// slurmFlag is how a user writes an option.
func slurmFlag(name string) string { return "--container-" + name }

// slurmVariable is the variable that has an option's value.
func slurmVariable(prefix, name string) string {
	return prefix + "CONTAINER_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
}

// resolve understands a document. What it finds wrong is an error of as many lines, each about one option.
// Without an image and a name nothing of the environment is looked at: it may be set for other steps.
func (d *slurmDocument) resolve() (*slurmOptions, error) {
	if err := d.check(); err != nil {
		return nil, err
	}
	r := &slurmResolver{slurmDocument: d}
	o := new(slurmOptions)
	r.arguments(o)
	r.batch(o)
	r.image(o)
	r.name(o)
	switch {
	case o.wanted() || len(r.errs) > 0:
		r.rest(o)
	default:
		r.without(o)
	}
	if len(r.errs) > 0 {
		return nil, slurmErrors(r.errs)
	}
	return o, nil
}

// without finds options that would do nothing, as there is no container: pyxis runs the command on the host. In an
// allocation, and for a batch script on the host, they are for the steps to come.
func (r *slurmResolver) without(o *slurmOptions) {
	host := o.Batch == batchHost && (r.Batch || r.Program == "sbatch")
	if host || r.Context == contextAllocator && r.Program != "sbatch" {
		r.rest(o)
		return
	}
	given := slices.DeleteFunc(slices.Sorted(maps.Keys(r.Options)), func(name string) bool {
		return name == "batch" || len(r.Options[name]) == 0
	})
	for i, name := range given {
		given[i] = slurmFlag(name)
	}
	if len(given) > 0 {
		r.bad(strings.Join(given, ", "), "neither --container-image nor --container-name is given, so that nothing would run in a container")
	}
}

// arguments checks those of the plugin.
func (r *slurmResolver) arguments(o *slurmOptions) {
	known := slices.Clone(slurmArguments)
	for _, opt := range slurmOptionTable {
		known = append(known, opt.argument)
	}
	for _, name := range slices.Sorted(maps.Keys(r.Arguments)) {
		if name == "" || !slices.Contains(known, name) {
			r.bad("plugstack.conf", "%s=%s: no such argument", printable(name), printable(r.Arguments[name]))
		}
	}
	switch o.Scope = r.Arguments["container_scope"]; o.Scope {
	case "":
		o.Scope = scopeGlobal
	case scopeGlobal, scopeJob:
	default:
		r.bad("plugstack.conf: container_scope", "%s: want global or job", printable(o.Scope))
	}
	if program := r.Arguments["importer"]; filepath.IsAbs(program) {
		o.Importer = &importer{program: program}
		if path := r.Arguments["runtime_path"]; path != "" {
			o.Importer.env = []string{"PYXIS_RUNTIME_PATH=" + path}
		}
	} else if program != "" {
		r.bad("plugstack.conf: importer", "%s: want an absolute path", printable(program))
	}
}

func (r *slurmResolver) batch(o *slurmOptions) {
	value, from := r.text("batch")
	switch o.Batch = value; {
	case from == "":
		o.Batch = batchContainer
	case value != "" && value != batchContainer && value != batchHost:
		r.bad(from, "%s: want container or host", printable(value))
	}
}

// image understands which image is meant. As for pyxis it is a file if it starts with "/" or "." (here also "~/"), and
// else in a registry.
func (r *slurmResolver) image(o *slurmOptions) {
	value, from := r.text("image")
	if o.Image = value; value == "" {
		return
	}
	if value == "~" || strings.HasPrefix(value, "~/") {
		home, _ := r.lookup("HOME")
		if !filepath.IsAbs(home) {
			r.bad(from, "%s: HOME is not set to a directory", printable(value))
			return
		}
		value = home + value[1:]
	}
	if strings.HasPrefix(value, "/") || strings.HasPrefix(value, ".") {
		o.Path = r.absolute(value)
		return
	}
	var err error
	if o.Source, err = imageSourceOf(value); err != nil {
		r.bad(from, "%w", plain(err))
	}
}

// absolute is a path of the step's node.
func (r *slurmResolver) absolute(name string) string {
	if filepath.IsAbs(name) {
		return filepath.Clean(name)
	}
	return filepath.Join("/", r.Cwd, name)
}

// name understands NAME[:MODE].
func (r *slurmResolver) name(o *slurmOptions) {
	value, from := r.text("name")
	if value == "" {
		return
	}
	name, mode, hasMode := strings.Cut(value, ":")
	if o.Name, o.NameMode = name, mode; !hasMode {
		o.NameMode = nameAuto
	}
	if !slices.Contains([]string{nameAuto, nameCreate, nameExec, nameNoExec}, o.NameMode) {
		r.bad(from, "%s: want NAME:auto, NAME:create, NAME:exec or NAME:no_exec", printable(value))
	}
	if err := checkContainerName(name); err != nil {
		r.bad(from, "%w", err)
	}
}

// maxContainerName leaves room in a file name (NAME_MAX) for what is added to it.
const maxContainerName = 200

// checkContainerName reports what is no name of a container: it becomes a part of paths.
func checkContainerName(name string) error {
	switch {
	case name == "":
		return errors.New("the name is empty")
	case len(name) > maxContainerName:
		return fmt.Errorf("the name has more than %d bytes", maxContainerName)
	case strings.ContainsRune(name, '/'):
		return fmt.Errorf("%s: a name has no /", printable(name))
	case strings.HasPrefix(name, "."), strings.HasPrefix(name, "-"):
		return fmt.Errorf("%s: a name starts with neither . nor -", printable(name))
	}
	for _, c := range name {
		if c <= ' ' || c == 0x7f || c == '\uFFFD' {
			return fmt.Errorf("%s: a name has no blanks and no control characters", printable(name))
		}
	}
	return nil
}

// rest understands the options of the container.
func (r *slurmResolver) rest(o *slurmOptions) {
	r.mounts(o)
	o.Workdir, _ = r.text("workdir")
	r.save(o)
	r.decide(o)
	o.Entrypoint, o.EntrypointLog = r.on("entrypoint"), r.on("entrypoint-log")
	o.Trace = r.flag("trace")
	r.env(o)
	r.unshare(o)
	o.GPUs, _ = r.text("gpus")
}

// decide finds what the site has a say in. That of the node counts, so it is asked there only.
func (r *slurmResolver) decide(o *slurmOptions) {
	said := choices{Writable: r.flag("writable"), RemapRoot: r.flag("remap-root"), MountHome: r.flag("mount-home")}
	site := new(site)
	if r.Context == "" {
		var err error
		if site, err = siteConfig(); err != nil {
			r.errs = append(r.errs, err)
			return
		}
	}
	var err error
	if o.Writable, o.RemapRoot, o.MountHome, err = site.decide(said); err != nil {
		r.errs = append(r.errs, err)
	}
}

// mounts checks the form of the mounts. Variables are expanded on the node, where more of them are set.
func (r *slurmResolver) mounts(o *slurmOptions) {
	v := r.value("mounts")
	if v == nil {
		return
	}
	parser := &runtime.MountParser{Dir: "/", Getenv: func(string) (string, bool) { return "/x", true }}
	for _, value := range v.values {
		for one := range strings.SplitSeq(value, ",") {
			_, target, _ := strings.Cut(one, ":")
			target, _, _ = strings.Cut(target, ":")
			if _, err := parser.Parse(one); err != nil {
				r.bad(v.from, "%w", err)
			} else if leadsOut(target) { // for "squire run" that is the root
				r.bad(v.from, "mount %q: the destination is outside of the container: %w", one, unix.EXDEV)
			} else if !slices.Contains(o.Mounts, one) {
				o.Mounts = append(o.Mounts, one)
			}
		}
	}
}

// leadsOut reports whether a path has more ".." than it can have below the root.
func leadsOut(name string) bool {
	depth := 0
	for part := range strings.SplitSeq(name, "/") {
		switch part {
		case "", ".":
		case "..":
			if depth--; depth < 0 {
				return true
			}
		default:
			depth++
		}
	}
	return false
}

// save is relative to PWD of the job, as for pyxis.
func (r *slurmResolver) save(o *slurmOptions) {
	value, from := r.text("save")
	switch base := filepath.Base(value); {
	case value == "":
		return
	case strings.HasSuffix(value, "/"), base == ".", base == "..":
		r.bad(from, "%s: is a directory; name the file", printable(value))
		return
	}
	if pwd, _ := r.lookup("PWD"); !filepath.IsAbs(value) && filepath.IsAbs(pwd) {
		value = filepath.Join(pwd, value)
	}
	o.Save = r.absolute(value)
	if fi, err := os.Stat(o.Save); err == nil && fi.IsDir() {
		r.bad(from, "%s: is a directory; name the file", printable(value))
	}
}

func (r *slurmResolver) env(o *slurmOptions) {
	var from string
	o.KeepEnv, from = r.list("env")
	for _, name := range o.KeepEnv {
		if strings.ContainsRune(name, '=') {
			r.bad(from, "%s: want the name of a variable; it is set with export, or srun's --export", printable(name))
		} else if !runtime.ValidName(name) {
			r.bad(from, "%s: not the name of a variable", printable(name))
		}
	}
}

// unshare knows a namespace for processes, too, which a task of Slurm's cannot enter: setns(2) moves the children only.
func (r *slurmResolver) unshare(o *slurmOptions) {
	var from string
	o.Unshare, from = r.list("unshare")
	for _, ns := range o.Unshare {
		switch {
		case ns == "pid":
			r.bad(from, "pid: tasks of Slurm cannot have processes of their own")
		case !slices.Contains(runtime.Namespaces(), ns):
			r.bad(from, "%s: unknown namespace; known are net, ipc, uts and cgroup", printable(ns))
		}
	}
	for _, ns := range []string{"net", "ipc", "uts"} { // as pyxis's users set it
		if value, _ := r.lookup("ENROOT_UNSHARE_" + strings.ToUpper(ns)); from == "" && value != "" {
			if on, ok := parseYes(value); ok && on {
				o.Unshare = append(o.Unshare, ns)
			}
		}
	}
}

// imageSourceOf is what "squire import" calls an image that pyxis's users name: docker://, dockerd:// or podman:// and
// [USER@][REGISTRY#]IMAGE[:TAG], where docker:// may be left out.
func imageSourceOf(image string) (string, error) {
	scheme, _, ok := strings.Cut(image, "://")
	switch {
	case !ok:
		if slices.Contains([]string{".sqsh", ".sqfs", ".squashfs"}, filepath.Ext(image)) {
			return "", fmt.Errorf("%s: looks like a file, and is a name in a registry; write ./%[1]s", printable(image))
		}
		image = "docker://" + image
	case scheme == "https", scheme == "http":
		return "", fmt.Errorf("%s: images are not read over %s; a registry's are docker://[USER@]REGISTRY#IMAGE[:TAG]", printable(image), scheme)
	case !slices.Contains(importedSchemes, scheme):
		return "", fmt.Errorf("%s: want the path of a file, that starts with / or ., or docker://, dockerd:// or podman://", printable(image))
	}
	_, err := oci.ParseSource(image)
	return image, err
}

// importedSchemes are what "squire run" and a step import before they start.
var importedSchemes = []string{"docker", "dockerd", "podman"}

// stepDefaults are variables for a batch script on the host, NAME=VALUE, that make its options the defaults of its steps. An
// image that is a file is named from the root: the script may change its directory.
func (d *slurmDocument) stepDefaults(o *slurmOptions) (set []string) {
	for _, name := range slices.Sorted(maps.Keys(d.Options)) {
		values := d.Options[name]
		if len(values) == 0 || name == "batch" {
			continue
		}
		value := strings.Join(values, ",")
		switch {
		case slurmOptionTable[name].kind == kindFlag:
			value = map[bool]string{true: "yes", false: "no"}[isYes(value)]
		case name == "image" && o.Path != "":
			value = o.Path
		}
		set = append(set, slurmVariable("SQUIRE_", name)+"="+value)
	}
	return append(set, slurmVariable("SQUIRE_", "batch")+"="+batchHost)
}

// runOptions are the flags of "squire run" that do the same. The entrypoint is not among them: it runs once for all tasks.
func (o *slurmOptions) runOptions() (*runOptions, error) {
	traced, err := tracesWanted(o.Trace)
	if err != nil {
		return nil, err
	}
	r := &runOptions{
		prefix: "container-", mounts: o.Mounts, workdir: o.Workdir, keepEnv: o.KeepEnv, remapRoot: o.RemapRoot,
		unshare: o.Unshare, mountHome: o.MountHome, traced: traced,
		devices: deviceOptions{gpus: o.GPUs, step: new(stepDevices)},
	}
	if o.Writable {
		r.writable = writableTmpfs
	}
	return r, nil
}

// ignoredByJoining is what pyxis says of mounts as the step joins a container that runs. "": nothing.
func (o *slurmOptions) ignoredByJoining() string {
	if len(o.Mounts) == 0 {
		return ""
	}
	return fmt.Sprintf("ignoring --container-mounts: the container %s runs already", printable(o.Name))
}

// checkJoined finds namespaces that a running container cannot have any more. own are the kinds that are its own.
func (o *slurmOptions) checkJoined(own []string) error {
	names := map[string]string{"net": "network", "ipc": "IPC", "uts": "UTS"} // as pyxis calls them
	for _, kind := range o.Unshare {
		if name, ok := names[kind]; ok && !slices.Contains(own, kind) {
			return fmt.Errorf("--container-unshare: the container %s runs already, and is not in a separate %s namespace", printable(o.Name), name)
		}
	}
	return nil
}

// slurmText is an error for the user of a step: a line that names options as Slurm has them, with the kernel's words as C
// programs write them, since scripts look for those in what pyxis says.
func slurmText(err error) string {
	text := runtime.OneLine(err)
	for name := range slurmOptionTable {
		text = strings.ReplaceAll(text, "--"+name, slurmFlag(name))
	}
	for _, no := range []unix.Errno{unix.ENOENT, unix.EACCES, unix.EROFS, unix.EXDEV, unix.ENOTDIR, unix.ECONNREFUSED, unix.ENETUNREACH} {
		words := no.Error()
		text = strings.ReplaceAll(text, ": "+words, ": "+strings.ToUpper(words[:1])+words[1:])
	}
	return text
}

// importImage has the image on the node: it imports one that is in a registry, and says so on progress, the standard
// error of a task. The caller releases it at the end. Nil: it need not be imported.
func (o *slurmOptions) importImage(ctx context.Context, progress *os.File) (i *importedImage, err error) {
	if o.Source == "" {
		return nil, nil
	}
	if o.Importer != nil {
		i, err = o.Importer.get(ctx, o.Source, o.Image, progress)
	} else {
		i, err = importImageAs(ctx, o.Source, o.Image, progress)
	}
	if err != nil {
		return nil, err
	}
	how := ""
	if i.Cached {
		how = ", which was there already"
	}
	fmt.Fprintf(progress, "squire: imported docker image: %s%s\n", printable(o.Image), how)
	return i, nil
}
