package runtime

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// MountFunc mounts image, the Spec's, read-only on dir, a path in the
// container's own mount namespace. It runs in the init stage, single and with
// the right to mount; files are those given to the Runner. When it returns, the mount
// answers or will answer soon, and no descriptor of it is left open here: the
// first program to be executed would otherwise wait for itself.
type MountFunc func(image, dir string, files []*os.File) error

// Where the root is built, on the scaffold's tmpfs.
const (
	imageDir = scaffoldDir + "/image" // the image or directory
	layerDir = scaffoldDir + "/root"  // the overlay above it
	keepDir  = scaffoldDir + "/keep"  // upper and work directories
)

// builder carries out a plan. It belongs to one goroutine.
type builder struct {
	ops     []Op
	mount   MountFunc
	files   []*os.File
	sources map[int]int // index of op -> detached copy of the mounts at its source
	rootDir string      // the root so far: imageDir or layerDir
	root    int         // O_PATH descriptor of rootDir, -1 before there is one
	image   string      // its name, for messages
	ask     ConfigFunc  // may be nil
	config  *Config     // of the image; there is one since OpPivot
	workdir string      // where OpChdir went
	held    bool        // no command will be executed here
	phases  phases
}

func newBuilder(o *order, mount MountFunc, ask ConfigFunc, files []*os.File) *builder {
	return &builder{ops: o.Ops, mount: mount, files: files, sources: map[int]int{}, root: -1, image: o.Spec.Image, ask: ask, held: o.Hold}
}

// apply carries out every operation but OpExec, and what is for its process alone where there is none, in order. It leaves the
// process inside the new root. On error the caller exits: the mount namespace
// and everything in it go with the process.
func (b *builder) apply() error {
	// The caller's umask is for the command's files, not for its root.
	defer unix.Umask(unix.Umask(0))
	for i, op := range b.ops {
		if op.Do == OpChdir {
			op = b.config.chdir(op)
			b.workdir = op.Target
		}
		if op.Do == OpExec || b.held && op.Do == OpDrop {
			break
		}
		begin := time.Now()
		if err := b.do(i, op); err != nil && !slices.Contains(op.Flags, ifPossible) {
			return &OpError{Op: op, Err: err}
		}
		b.phases.since(begin, op.phase())
	}
	return nil
}

// OpError is the failure of one operation.
type OpError struct {
	Op  Op
	Err error
}

func (e *OpError) Error() string {
	what := string(e.Op.Do)
	for _, s := range []string{e.Op.Source, e.Op.Target} {
		if s != "" && !strings.HasSuffix(what, " "+s) {
			what += " " + s
		}
	}
	return what + ": " + e.Err.Error()
}

func (e *OpError) Unwrap() error { return e.Err }

func (b *builder) do(i int, op Op) error {
	switch op.Do {
	case OpUnshare:
		if slices.Contains(op.Args, "net") {
			return loopback()
		}
		return nil
	case OpHostname:
		return unix.Sethostname([]byte(op.Target))
	case OpIsolate:
		return unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, "")
	case OpScaffold:
		return b.scaffold()
	case OpImage:
		if err := b.mount(op.Source, imageDir, b.files); err != nil {
			return err
		}
		return b.enter(imageDir)
	case OpDir:
		return b.dir(i)
	case OpLayer:
		return b.layer(i, op)
	case OpBind:
		return b.bind(i, op)
	case OpTmpfs, OpDevpts:
		return b.newFS(op)
	case OpProc, OpSysfs, OpMqueue, OpCgroup:
		return b.newOrHosts(i, op)
	case OpUmount:
		return b.umount(op)
	case OpFile:
		return b.file(i, op)
	case OpAccount:
		return b.account(op)
	case OpSymlink:
		return b.link(op)
	case OpCache:
		return b.cache(op)
	case OpSeal:
		return b.seal(op)
	case OpPivot:
		if err := b.pivot(); err != nil {
			return err
		}
		b.config = readConfig(b.ask, b.image)
		return nil
	case OpEnter:
		b.config = readConfig(b.ask, b.image)
		return nil
	case OpHide:
		return hide(op.Args)
	case OpChdir:
		return chdir(op.Target)
	case OpDrop:
		return drop(slices.Contains(op.Flags, "capabilities"))
	case OpFilter:
		return installFilter(op.Flags)
	}
	return fmt.Errorf("unknown operation")
}

// scaffold opens every source while the host is still in sight, then covers
// scaffoldDir with a tmpfs and makes the directories of the building site.
// The sources must be copied after OpIsolate: a copy of a shared mount is
// shared, and what is mounted on it would appear on the host.
func (b *builder) scaffold() error {
	for i, op := range b.ops {
		if !hasSource(op) {
			continue
		}
		fd, err := openTree(op)
		if errors.Is(err, unix.ENOENT) && slices.Contains(op.Flags, "nofail") {
			continue
		}
		if err != nil {
			return fmt.Errorf("open %s: %w", op.Source, err)
		}
		b.sources[i] = fd
	}
	options := "mode=755"
	if i := slices.IndexFunc(b.ops, writtenInMemory); i >= 0 {
		options += layerLimit(b.ops[i])
	}
	if err := unix.Mount("tmpfs", scaffoldDir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return err
	}
	for _, d := range []string{imageDir, layerDir, keepDir} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// writtenInMemory reports whether op makes a layer on the scaffold's tmpfs that the command
// writes to.
func writtenInMemory(op Op) bool {
	return op.Do == OpLayer && op.Source == "tmpfs" && !slices.Contains(op.Flags, "when-missing")
}

// hasSource reports whether op needs its Source of the host, if only when the
// kernel makes no new file system.
func hasSource(op Op) bool {
	switch op.Do {
	case OpBind, OpDir, OpProc, OpSysfs, OpCgroup:
		return true
	case OpLayer:
		return op.Source != "tmpfs"
	}
	return false
}

// openTree returns a detached copy of the mounts at op.Source.
func openTree(op Op) (int, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_RECURSIVE)
	if slices.Contains(op.Flags, "bind") {
		flags &^= unix.AT_RECURSIVE
	}
	if len(op.Within) == 0 {
		return unix.OpenTree(unix.AT_FDCWD, op.Source, flags)
	}
	fd, err := openWithin(op.Source, op.Within)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fd)
	return unix.OpenTree(fd, "", flags|unix.AT_EMPTY_PATH)
}

// enter makes dir the root that later operations build on.
func (b *builder) enter(dir string) error {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if b.root >= 0 {
		unix.Close(b.root)
	}
	b.root, b.rootDir = fd, dir
	return nil
}

func (b *builder) dir(i int) error {
	fd := b.sources[i]
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr); err != nil {
		return err
	}
	if err := attach(fd, unix.AT_FDCWD, imageDir); err != nil {
		return err
	}
	return b.enter(imageDir)
}

// layer mounts an overlay above the root, unless the plan wants one only for
// missing targets and none is missing.
func (b *builder) layer(i int, op Op) error {
	if slices.Contains(op.Flags, whenMissing) && !b.anyMissing(op.Args) {
		return nil
	}
	if fd, ok := b.sources[i]; ok {
		if err := attach(fd, unix.AT_FDCWD, keepDir); err != nil {
			return err
		}
	}
	for _, d := range []string{keepDir + "/upper", keepDir + "/work"} {
		if err := os.Mkdir(d, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	data := "lowerdir=" + b.rootDir + ",upperdir=" + keepDir + "/upper,workdir=" + keepDir + "/work"
	if slices.Contains(op.Flags, "userxattr") {
		data += ",userxattr"
	}
	if err := unix.Mount("overlay", layerDir, "overlay", unix.MS_NOSUID|unix.MS_NODEV, data); err != nil {
		return fmt.Errorf("mount overlay: %w", err)
	}
	// overlayfs falls back to read-only without an error when it cannot write
	// to the upper directory (ovl_get_workdir in fs/overlayfs/super.c).
	var st unix.Statfs_t
	if err := unix.Statfs(layerDir, &st); err != nil {
		return err
	}
	if st.Flags&unix.ST_RDONLY != 0 {
		return errors.New("the kernel can only read there; use a directory of your own on a local file system with xattrs (not NFS or Lustre)")
	}
	return b.enter(layerDir)
}

func (b *builder) anyMissing(targets []string) bool {
	for _, t := range targets {
		fd, err := openIn(b.root, t)
		if err != nil {
			return true
		}
		unix.Close(fd)
	}
	return false
}

// bind puts a source's mounts at their target.
func (b *builder) bind(i int, op Op) error {
	src, ok := b.sources[i]
	if !ok {
		return nil // nofail, and missing on the host
	}
	defer func() { unix.Close(src) }()
	attr, recursive := bindAttr(op.Flags)
	if attr != (unix.MountAttr{}) {
		if err := unix.MountSetattr(src, "", unix.AT_EMPTY_PATH|recursive, &attr); err != nil {
			return fmt.Errorf("set %s: %w", strings.Join(op.Flags, ","), err)
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(src, &st); err != nil {
		return err
	}
	dir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	switch {
	case dir && slices.Contains(op.Flags, "x-create=file"):
		return errors.New("x-create=file: the source is a directory")
	case !dir && slices.Contains(op.Flags, "x-create=dir"):
		return errors.New("x-create=dir: the source is not a directory")
	}
	dst, err := b.place(op.Target, dir)
	if err != nil {
		return err
	}
	defer unix.Close(dst)
	return attach(src, dst, "")
}

// umount takes away what was mounted last at op.Target.
func (b *builder) umount(op Op) error {
	fd, err := openIn(b.root, op.Target)
	if err == nil {
		defer unix.Close(fd)
		err = unix.Unmount(fmt.Sprintf("/proc/self/fd/%d", fd), unix.MNT_DETACH)
	}
	switch {
	case err != nil && slices.Contains(op.Flags, "nofail"):
		return nil
	case errors.Is(err, unix.EINVAL):
		return errors.New("nothing is mounted there by itself")
	}
	return err
}

// file makes a small file on the scaffold's tmpfs and binds it at op.Target, where
// an empty one is made if there is none.
func (b *builder) file(i int, op Op) error {
	dir, err := openIn(b.root, path.Dir(op.Target))
	if err != nil {
		return nil // not such an image
	}
	unix.Close(dir)
	name := fmt.Sprintf("%s/file-%d", scaffoldDir, i)
	if err = os.WriteFile(name, []byte(strings.Join(op.Args, "\n")+"\n"), 0o644); err != nil {
		return err
	}
	if b.sources[i], err = openTree(Op{Source: name}); err != nil {
		return err
	}
	return b.bind(i, Op{Target: op.Target, Flags: []string{"ro"}})
}

// newOrHosts mounts a new file system, or what the host has where that is refused.
func (b *builder) newOrHosts(i int, op Op) error {
	err := b.newFS(op)
	if refused(err) {
		return b.bind(i, op)
	}
	if fd, ok := b.sources[i]; ok {
		unix.Close(fd)
	}
	return err
}

// mountAttrs are the words that set an attribute of a mount.
var mountAttrs = map[string]int{
	"ro": unix.MOUNT_ATTR_RDONLY, "nosuid": unix.MOUNT_ATTR_NOSUID, "nodev": unix.MOUNT_ATTR_NODEV, "noexec": unix.MOUNT_ATTR_NOEXEC,
	"nodiratime": unix.MOUNT_ATTR_NODIRATIME,
}

// accessTimes are the words that choose one value of an attribute.
var accessTimes = map[string]uint64{
	"relatime": unix.MOUNT_ATTR_RELATIME, "noatime": unix.MOUNT_ATTR_NOATIME, "strictatime": unix.MOUNT_ATTR_STRICTATIME,
}

// bindAttr translates words of mountFlags. Everything applies to all mounts
// below the source as well, unless "bind" asks for the one mount alone: a
// read-only bind whose sub-mounts stay writable is never what is meant.
func bindAttr(flags []string) (attr unix.MountAttr, recursive uint) {
	recursive = unix.AT_RECURSIVE
	propagation := map[string]uint64{"private": unix.MS_PRIVATE, "slave": unix.MS_SLAVE, "shared": unix.MS_SHARED, "unbindable": unix.MS_UNBINDABLE}
	for _, f := range flags {
		attr.Attr_set |= uint64(mountAttrs[f])
		if t, ok := accessTimes[f]; ok {
			attr.Attr_set, attr.Attr_clr = attr.Attr_set|t, unix.MOUNT_ATTR__ATIME
		}
		if p, ok := propagation[strings.TrimPrefix(f, "r")]; ok {
			attr.Propagation = p
		}
		if f == "bind" {
			recursive = 0
		}
	}
	return attr, recursive
}

// newFS mounts a new file system, whose type is that of op, at op.Target. Words of
// op.Flags that are attributes of a mount are set on it, others are given to
// the file system.
func (b *builder) newFS(op Op) error {
	fs, err := unix.Fsopen(string(op.Do), unix.FSOPEN_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fs)
	attrs := 0
	for _, w := range op.Flags {
		key, value, hasValue := strings.Cut(w, "=")
		attr, isAttr := mountAttrs[w]
		switch {
		case isAttr:
			attrs |= attr
		case hasValue:
			err = unix.FsconfigSetString(fs, key, value)
		default:
			err = unix.FsconfigSetFlag(fs, key)
		}
		if err != nil {
			return fmt.Errorf("option %s: %w", w, err)
		}
	}
	if err = unix.FsconfigCreate(fs); err != nil {
		return err
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	dst, err := b.place(op.Target, true)
	if err != nil {
		return err
	}
	defer unix.Close(dst)
	return attach(fd, dst, "")
}

// place opens the place of a mount, and makes it if it is missing. Where the kernel's own file systems go an image may
// have no link: what is mounted where that leads could be hidden by what is mounted later, and the container be without.
func (b *builder) place(target string, dir bool) (int, error) {
	if !slices.Contains([]string{"/dev", "/proc", "/sys"}, target) {
		return makeTarget(b.root, target, dir)
	}
	fd, err := unix.Openat2(b.root, target, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS,
	})
	switch {
	case err == nil:
		return checkKind(fd, dir)
	case errors.Is(err, unix.ELOOP):
		return -1, fmt.Errorf("%s is a link in the image, and must be a directory", target)
	}
	return makeTarget(b.root, target, dir)
}

// attach moves a detached mount to a place given by descriptor or path.
func attach(mount, dirfd int, name string) error {
	flags := unix.MOVE_MOUNT_F_EMPTY_PATH
	if name == "" {
		flags |= unix.MOVE_MOUNT_T_EMPTY_PATH
	}
	return unix.MoveMount(mount, "", dirfd, name, flags)
}

func (b *builder) seal(op Op) error {
	if b.rootDir != layerDir && !slices.Contains(op.Flags, sealRoot) {
		return nil // the image itself cannot be written to
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	return unix.MountSetattr(b.root, "", unix.AT_EMPTY_PATH, &attr)
}

// pivot makes the root that was built the process's root and lets go of the
// host's. pivot_root(2), NOTES: with both arguments "." the old root ends up
// stacked on the new one, and is unmounted from there.
func (b *builder) pivot() error {
	if err := unix.Fchdir(b.root); err != nil {
		return err
	}
	unix.Close(b.root)
	b.root = -1
	err := unix.PivotRoot(".", ".")
	if errors.Is(err, unix.EINVAL) {
		return moveRoot()
	}
	if err != nil {
		return err
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return err
	}
	return unix.Chdir("/")
}

// moveRoot stands in for pivot_root where the host's root is the initial
// ramfs, which cannot be pivoted away from, as on diskless nodes.
func moveRoot() error {
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return err
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	return unix.Chdir("/")
}

// chdir enters the working directory, and makes sure that it lies inside.
func chdir(dir string) error {
	if err := unix.Chdir(dir); err != nil {
		return err
	}
	cwd, err := unix.Getwd()
	if err == nil && !path.IsAbs(cwd) {
		err = fmt.Errorf("it lies outside of the container (%s)", cwd)
	}
	return err
}
