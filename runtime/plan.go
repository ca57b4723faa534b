package runtime

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// Verb says what an Op does.
type Verb string

// The operations. Targets are paths inside the new root unless said otherwise.
const (
	OpUnshare  Verb = "unshare"  // the namespaces in Args are the container's own
	OpHostname Verb = "hostname" // Target is the machine's name
	OpIsolate  Verb = "isolate"  // mount events of the container stay in it; the host's still arrive
	OpScaffold Verb = "scaffold" // a tmpfs over Target of the host, seen only here: room to build the root in
	OpImage    Verb = "image"    // the MountFunc mounts the image
	OpDir      Verb = "dir"      // the directory Source becomes the root, read-only or not
	OpLayer    Verb = "layer"    // an overlay above the root, its upper in Source, or on the scaffold's tmpfs
	OpBind     Verb = "bind"     // Source of the host appears at Target
	OpTmpfs    Verb = "tmpfs"    // a new tmpfs at Target
	OpDevpts   Verb = "devpts"   // new pseudo-terminals at Target
	OpProc     Verb = "proc"     // the processes of the PID namespace at Target, or Source of the host where the kernel refuses
	OpSysfs    Verb = "sysfs"    // the devices of the network namespace at Target, or Source of the host likewise
	OpMqueue   Verb = "mqueue"   // the message queues of the IPC namespace at Target, or none where the kernel has none
	OpCgroup   Verb = "cgroup2"  // the control groups of the cgroup namespace at Target, or Source of the host likewise
	OpFile     Verb = "file"     // a file of the lines in Args appears at Target, if its directory is there
	OpAccount  Verb = "account"  // the database of users or groups at Target has the line in Args, too
	OpUmount   Verb = "umount"   // what is mounted last at Target goes
	OpSymlink  Verb = "symlink"  // Target points to Source
	OpCache    Verb = "ldcache"  // the loader's cache at Target has the libraries in Args, too
	OpSeal     Verb = "seal"     // the layer becomes read-only
	OpPivot    Verb = "pivot"    // the new root becomes /, the host's goes
	OpEnter    Verb = "enter"    // a container that was made before: only what concerns the command follows
	OpHide     Verb = "hide"     // the device nodes in Args are not there for the command
	OpChdir    Verb = "chdir"    // the working directory
	OpDrop     Verb = "drop"     // capabilities go, no_new_privs comes
	OpFilter   Verb = "filter"   // system calls of the command are filtered for Flags
	OpExec     Verb = "exec"     // the command
)

// Op is one step. A plan is a list of them, carried out in order.
type Op struct {
	Do     Verb   `json:"do"`
	Source string `json:"source,omitempty"`
	Target string `json:"target,omitempty"`
	// Flags are words of mountFlags for bind, where "nofail" says that the
	// source may be missing; options of the file system for tmpfs and devpts.
	// "unless-configured" is for chdir and exec: the image's Config, which is not
	// known before the pivot, may say something else. "after-entrypoint" is for
	// exec: the entrypoint in the Config comes before Args. "if-possible" is for
	// what the container can do without.
	Flags []string `json:"flags,omitempty"`
	// Args is the command of OpExec. For an OpLayer flagged "when-missing" it
	// lists the targets of which at least one must be missing from the image
	// for the layer to be made.
	Args []string `json:"args,omitempty"`
	// Within are directories, by paths without links, of which Source must be in one, wherever links in it lead when it
	// is opened. None: it may be anywhere.
	Within []string `json:"within,omitempty"`
}

// String is the line that shows the operation to a person.
func (o Op) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-9s", o.Do)
	if o.Source != "" {
		b.WriteString(" " + o.Source)
	}
	if o.Target != "" {
		if o.Source != "" {
			b.WriteString(" ->")
		}
		b.WriteString(" " + o.Target)
	}
	if len(o.Flags) > 0 {
		b.WriteString(" (" + strings.Join(o.Flags, ",") + ")")
	}
	if len(o.Args) > 0 {
		b.WriteString(" " + strings.Join(o.Args, " "))
	}
	if len(o.Within) > 0 {
		b.WriteString(" in " + strings.Join(o.Within, ", "))
	}
	return strings.TrimRight(b.String(), " ")
}

// scaffoldDir is covered by a tmpfs in the container's own mount namespace.
// Every host has it; bubblewrap uses the same. All sources are opened before.
const scaffoldDir = "/tmp"

// Plan lists the operations that run s on host h. It has no side effects.
func Plan(s *Spec, h *Host) ([]Op, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	on := slices.Concat(accountOps(s, h), systemMounts(s, h), aptSandbox(s, h), deviceMounts(s, h), acceleratorMounts(s))
	for i, m := range s.Mounts {
		if !slices.ContainsFunc(s.Mounts[:i], m.equal) { // as pyxis does
			on = append(on, mountOp(m))
		}
	}
	ops := append(unshareOps(s), Op{Do: OpIsolate}, Op{Do: OpScaffold, Target: scaffoldDir}, rootOp(s))
	seal := Op{Do: OpSeal}
	if s.Layered {
		seal.Flags = []string{sealRoot}
	} else {
		ops = append(ops, layerOp(s, h, on))
	}
	ops = append(ops, on...)
	if !s.Writable {
		ops = append(ops, seal)
	}
	return append(ops, Op{Do: OpPivot}, chdirOp(s), dropOp(s, h), filterOp(s, h), execOp(s)), nil
}

func chdirOp(s *Spec) Op {
	if s.Workdir == "" {
		return Op{Do: OpChdir, Target: "/", Flags: []string{unlessConfigured}}
	}
	return Op{Do: OpChdir, Target: path.Join("/", s.Workdir)}
}

func execOp(s *Spec) Op {
	switch {
	case len(s.Command) == 0: // an entrypoint is run without being asked for
		return Op{Do: OpExec, Args: []string{"/bin/sh"}, Flags: []string{unlessConfigured}}
	case s.Entrypoint:
		return Op{Do: OpExec, Args: s.Command, Flags: []string{afterEntrypoint}}
	}
	return Op{Do: OpExec, Args: s.Command}
}

// sealRoot is a flag of OpSeal: the root came writable.
const sealRoot = "root"

// whenMissing is a flag of OpLayer, and of OpAccount: for an id that the image does not know.
const whenMissing = "when-missing"

// sizeOption begins a flag of OpLayer: how large a layer in memory may become.
const sizeOption = "size="

// Flags of chdir and exec, see Op.
const (
	unlessConfigured = "unless-configured"
	afterEntrypoint  = "after-entrypoint"
)

func rootOp(s *Spec) Op {
	if s.Dir != "" {
		return Op{Do: OpDir, Source: s.Dir, Within: s.DirWithin}
	}
	return Op{Do: OpImage, Source: s.Image}
}

// layerOp decides about the writable layer. A read-only container needs one
// only when a mount has no place to go: an overlay makes each cold look-up
// dearer, and most images have all the places.
func layerOp(s *Spec, h *Host, on []Op) Op {
	op := Op{Do: OpLayer, Source: "tmpfs"}
	if s.Upper != "" {
		op.Source = s.Upper
	}
	if !h.Root || !h.IDsMapped {
		// Without it a directory that replaces one of the image is EIO: the
		// mark for that is a trusted xattr, which a user namespace cannot set.
		op.Flags = []string{"userxattr"}
	}
	if s.Writable && s.Upper == "" && s.UpperSize != "" {
		op.Flags = append(op.Flags, sizeOption+s.UpperSize)
	}
	if s.Writable || s.Upper != "" { // which others may share, and write to
		return op
	}
	op.Flags = append(op.Flags, whenMissing)
	for i, m := range on {
		if m.Do != OpUmount && m.Do != OpFile && m.Do != OpAccount && !below(m.Target, on[:i]) {
			op.Args = append(op.Args, m.Target)
		}
	}
	return op
}

// below reports whether target lies in a mount that is already in place, so
// that the image need not hold it.
func below(target string, mounted []Op) (in bool) {
	for _, m := range mounted {
		switch at := strings.TrimSuffix(m.Target, "/"); m.Do {
		case OpSymlink:
		case OpUmount:
			in = in && target != at && !strings.HasPrefix(target, at+"/")
		default:
			in = in || strings.HasPrefix(target, at+"/")
		}
	}
	return in
}

// systemMounts are what every program expects beside its files. Processes,
// network, IPC, /dev/shm and /tmp are the host's unless asked otherwise: MPI, NCCL, PMIx and CUDA IPC
// meet their peers through them, and tasks of one step each have a container
// of their own here.
func systemMounts(s *Spec, h *Host) (ops []Op) {
	// First, while nothing of the host is inside: in many images resolv.conf is
	// a link, whose end is made where it leads.
	for _, f := range []string{"/etc/resolv.conf", "/etc/hosts"} {
		if h.Has(f) {
			ops = append(ops, Op{Do: OpBind, Source: f, Target: f, Flags: []string{"ro"}})
		}
	}
	ops = append(ops, procMount(s))
	ops = append(ops, sysMounts(s, h)...)
	return append(ops, Op{Do: OpBind, Source: "/tmp", Target: "/tmp", Flags: []string{"rbind"}})
}

func procMount(s *Spec) Op {
	if s.unshares("pid") {
		return Op{Do: OpProc, Source: "/proc", Target: "/proc", Flags: []string{"nosuid", "nodev", "noexec"}}
	}
	return Op{Do: OpBind, Source: "/proc", Target: "/proc", Flags: []string{"rbind"}}
}

// sysMounts: the network's part of /sys is that of the namespace in which it was
// mounted, and so is the view of control groups. Those are read-only always: what
// is delegated to the job is the job's to change, not the command's.
func sysMounts(s *Spec, h *Host) (ops []Op) {
	const cgroups = "/sys/fs/cgroup"
	if s.unshares("net") {
		ops = append(ops,
			Op{Do: OpSysfs, Source: "/sys", Target: "/sys", Flags: []string{"ro", "nosuid", "nodev", "noexec"}},
			Op{Do: OpBind, Source: cgroups, Target: cgroups, Flags: []string{"rbind", "ro", "nofail"}})
	} else {
		ops = append(ops, Op{Do: OpBind, Source: "/sys", Target: "/sys", Flags: []string{"rbind", "ro"}})
	}
	if s.unshares("cgroup") && h.Has(cgroup2File) {
		ops = append(ops, Op{Do: OpCgroup, Source: cgroups, Target: cgroups, Flags: []string{"ro", "nosuid", "nodev", "noexec"}})
	}
	return ops
}

// ownDevices is what /dev is.
var ownDevices = Op{Do: OpTmpfs, Target: "/dev", Flags: []string{"mode=755", "size=64k", "nosuid", "noexec"}}

// deviceMounts build /dev from single nodes of the host; a node may be bound
// but not made in a user namespace. Pseudo-terminals are the container's own,
// as the host's /dev/ptmx does not find a bound /dev/pts (devpts_ptmx_path in
// fs/devpts/inode.c looks beside the original).
func deviceMounts(s *Spec, h *Host) []Op {
	ops := []Op{
		ownDevices,
		{Do: OpDevpts, Target: "/dev/pts", Flags: []string{"newinstance", "ptmxmode=0666", "mode=620"}},
	}
	shared := []string{"/dev/shm", "/dev/mqueue", "/dev/hugepages"}
	if s.unshares("ipc") {
		ops = append(ops,
			Op{Do: OpTmpfs, Target: "/dev/shm", Flags: []string{"mode=1777", "nosuid", "nodev"}},
			Op{Do: OpMqueue, Target: "/dev/mqueue", Flags: []string{"nosuid", "nodev", "noexec"}})
		shared = shared[2:]
	}
	for _, dir := range shared {
		if h.Has(dir) {
			ops = append(ops, Op{Do: OpBind, Source: dir, Target: dir, Flags: []string{"rbind"}})
		}
	}
	for _, node := range h.Devices {
		ops = append(ops, Op{Do: OpBind, Source: node, Target: node, Flags: []string{"nofail"}})
	}
	if h.Terminal != "" {
		// Programs that ask for the terminal's name find it here.
		ops = append(ops, Op{Do: OpBind, Source: h.Terminal, Target: "/dev/console", Flags: []string{"nofail"}})
	}
	for _, l := range [][2]string{
		{"pts/ptmx", "/dev/ptmx"},
		{"/proc/self/fd", "/dev/fd"},
		{"/proc/self/fd/0", "/dev/stdin"},
		{"/proc/self/fd/1", "/dev/stdout"},
		{"/proc/self/fd/2", "/dev/stderr"},
	} {
		ops = append(ops, Op{Do: OpSymlink, Source: l[0], Target: l[1]})
	}
	return ops
}

// dropOp: an ordinary user's command holds no capability at all. Remapped root
// keeps those of its own user namespace, and the administrator keeps theirs.
// Nobody gains any through set-id files or file capabilities.
func dropOp(s *Spec, h *Host) Op {
	if h.Root || s.RemapRoot {
		return Op{Do: OpDrop, Flags: []string{"no-new-privs"}}
	}
	return Op{Do: OpDrop, Flags: []string{"no-new-privs", "capabilities"}}
}
