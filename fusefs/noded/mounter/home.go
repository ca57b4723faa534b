package mounter

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/internal/mountinfo"
)

// home makes clones of mounts. Those that are to be locked are attached in the root directory of the mounter's mount
// namespace, once for each image, owner and set of flags: their names are ID-UID-GID-FLAGS. A mount that this kernel can
// only clone where it is attached has the name ID.
//
// Nothing here ever waits for a file system: that of the root is a tmpfs, and of the mounts none is ever looked at.
type home struct {
	own        bool
	noDetached bool

	mu     sync.Mutex // also one after the other to the locker
	locker *locker
	idmaps *recent[owner, *os.File] // user namespaces that map 0 to the owner
	places *recent[place, struct{}] // that grants are cloned from
	bases  map[uint64]bool          // images whose mounts are attached themselves
}

type owner struct{ uid, gid uint32 }

// place is where the mount is of which grants to one owner are clones.
type place struct {
	id    uint64
	owner owner // zero if it is for everybody
	idmap bool
	attrs int
}

func (p place) name() string {
	if !p.idmap {
		return fmt.Sprintf("%d-%x", p.id, p.attrs)
	}
	return fmt.Sprintf("%d-%d-%d-%x", p.id, p.owner.uid, p.owner.gid, p.attrs)
}

// How much is kept for further grants. What was thrown out is made again, in about a millisecond.
const (
	maxIDMaps = 64
	maxPlaces = 256
)

func newHome(s setup) *home {
	h := &home{own: s.Own, noDetached: s.NoDetached, bases: make(map[uint64]bool)}
	h.idmaps = newRecent(maxIDMaps, func(_ owner, ns *os.File) { ns.Close() })
	h.places = newRecent(maxPlaces, func(p place, _ struct{}) { vacate(p.name()) })
	return h
}

// warm starts the locker before it is needed. If that fails, the first grant that needs it tells why.
func (h *home) warm() {
	h.mu.Lock()
	defer h.mu.Unlock()
	_ = h.startLocker()
}

func (h *home) startLocker() (err error) {
	if h.locker == nil {
		h.locker, err = newLocker()
	}
	return err
}

// Flags of mounts: grantable are those that a Grantee may ask for, safe those that a user gets in any case.
const (
	grantable = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC |
		unix.MOUNT_ATTR_NODIRATIME | unix.MOUNT_ATTR_NOSYMFOLLOW
	safe = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV
)

// grant returns a detached clone of mount, and, if mount had to be attached for that, another one in its place.
func (h *home) grant(id uint64, mount *os.File, to Grantee) (files []*os.File, err error) {
	switch {
	case to.Attrs&^grantable != 0:
		return nil, fmt.Errorf("flags %#x of a mount: %w", to.Attrs&^grantable, unix.EINVAL)
	case to.IDMap && h.own:
		return nil, fmt.Errorf("an idmapped mount in a user namespace: %w", unix.EINVAL)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if to.Root || h.own {
		attrs := to.Attrs | unix.MOUNT_ATTR_RDONLY
		if h.own {
			attrs |= safe
		}
		return h.clone(id, mount, to, attrs)
	}
	if err = h.startLocker(); err != nil {
		return nil, err
	}
	p := place{id: id, idmap: to.IDMap, attrs: to.Attrs | safe}
	if p.idmap {
		p.owner = owner{to.UID, to.GID}
	}
	if _, ok := h.places.get(p); !ok {
		if files, err = h.settle(p, mount, to); err != nil {
			return nil, err
		}
	}
	clone, err := h.locker.clone(p.name())
	if errors.Is(err, errLocker) { // a new one sees only what is mounted from then on, or was in its copy
		h.locker.close()
		h.locker = nil
		if err = h.startLocker(); err == nil {
			clone, err = h.locker.clone(p.name())
		}
	}
	if err != nil {
		closeFiles(files)
		return nil, err
	}
	return append([]*os.File{clone}, files...), nil
}

// settle attaches a clone at p, and returns what stands in for the mount, if that had to be attached.
func (h *home) settle(p place, mount *os.File, to Grantee) (standIn []*os.File, err error) {
	files, err := h.clone(p.id, mount, to, p.attrs)
	if err != nil {
		return nil, err
	}
	defer files[0].Close()
	if err = attachAt(files[0], p.name()); err != nil {
		closeFiles(files[1:])
		return nil, err
	}
	h.places.put(p, struct{}{})
	return files[1:], nil
}

// clone returns a detached clone with exactly the flags attrs, and maybe a stand-in for mount.
func (h *home) clone(id uint64, mount *os.File, to Grantee, attrs int) ([]*os.File, error) {
	clone, standIn, err := h.cloneOf(id, mount)
	if err != nil {
		return nil, err
	}
	files := []*os.File{clone}
	if standIn != nil {
		files = append(files, standIn)
	}
	attr := unix.MountAttr{Attr_set: uint64(attrs), Attr_clr: uint64(grantable &^ attrs)}
	if to.IDMap {
		var ns *os.File
		if ns, err = h.idmap(owner{to.UID, to.GID}); err != nil {
			closeFiles(files)
			return nil, err
		}
		attr.Attr_set |= unix.MOUNT_ATTR_IDMAP
		attr.Userns_fd = uint64(ns.Fd())
	}
	if err = unix.MountSetattr(int(clone.Fd()), "", unix.AT_EMPTY_PATH, &attr); err != nil {
		closeFiles(files)
		return nil, fmt.Errorf("flags of a clone: %w", err)
	}
	return files, nil
}

// cloneOf clones mount. Before Linux 6.15 only mounts of one's own namespace can be cloned (fs/namespace.c:
// may_copy_tree), so there the mount itself is attached, and another one returned that keeps the superblock.
func (h *home) cloneOf(id uint64, mount *os.File) (clone, standIn *os.File, err error) {
	if !h.bases[id] && !h.noDetached {
		if clone, err = openTree(int(mount.Fd()), ""); !errors.Is(err, unix.EINVAL) {
			return clone, nil, wrap("clone a mount", err)
		}
	}
	name := strconv.FormatUint(id, 10)
	if !h.bases[id] {
		if err = attachAt(mount, name); err != nil {
			return nil, nil, fmt.Errorf("%w (%w)", ErrLost, err)
		}
		h.bases[id] = true
		if standIn, err = openTree(unix.AT_FDCWD, "/"+name); err != nil {
			return nil, nil, wrap("clone a mount", err)
		}
	}
	if clone, err = openTree(unix.AT_FDCWD, "/"+name); err != nil && standIn != nil {
		standIn.Close()
	}
	return clone, standIn, wrap("clone a mount", err)
}

func wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}

// openTree clones the mount at path, or of the descriptor dir. The error is the kernel's alone.
func openTree(dir int, path string) (*os.File, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if path == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	fd, err := unix.OpenTree(dir, path, flags)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "mount"), nil
}

// attachAt puts a detached mount on a new directory of the root.
func attachAt(mount *os.File, name string) error {
	path := "/" + name
	if err := unix.Mkdir(path, 0o755); err != nil && err != unix.EEXIST {
		return fmt.Errorf("make a mount point: %w", err)
	}
	if err := unix.MoveMount(int(mount.Fd()), "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		_ = unix.Rmdir(path)
		return fmt.Errorf("attach a mount: %w", err)
	}
	return nil
}

// vacate undoes attachAt, in the locker's namespace too.
func vacate(name string) {
	path := "/" + name
	_ = unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	_ = unix.Rmdir(path)
}

// idmap returns the user namespace that maps 0 to o.
func (h *home) idmap(o owner) (*os.File, error) {
	if ns, ok := h.idmaps.get(o); ok {
		return ns, nil
	}
	ns, err := newIDMap(o)
	if err == nil {
		h.idmaps.put(o, ns)
	}
	return ns, err
}

// drop forgets an image.
func (h *home) drop(id uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.places.drop(func(p place) bool { return p.id == id })
	if h.bases[id] {
		delete(h.bases, id)
		vacate(strconv.FormatUint(id, 10))
	}
}

// emptyNamespace leaves this process's mount namespace with an empty root directory and /proc. Kernels that cannot
// change the root, as it is an initramfs, keep that, and as root at least nothing that was mounted on it.
func emptyNamespace(s setup) error {
	// What happens on the host from now on shall be seen here, but not the other way round.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("separate from the mounts of the host: %w", err)
	}
	root, err := newTmpfs()
	if err != nil {
		return err
	}
	defer unix.Close(root)
	proc, err := unix.OpenTree(unix.AT_FDCWD, "/proc", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return fmt.Errorf("clone /proc: %w", err)
	}
	defer unix.Close(proc)
	if err = unix.MoveMount(root, "", unix.AT_FDCWD, "/", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount a root directory: %w", err)
	}
	if err = unix.Fchdir(root); err != nil {
		return err
	}
	if err = unix.Mkdir("proc", 0o755); err != nil {
		return fmt.Errorf("make /proc: %w", err)
	}
	if err = unix.MoveMount(proc, "", unix.AT_FDCWD, "proc", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	err = unix.EINVAL
	if !s.NoPivot {
		err = unix.PivotRoot(".", ".")
	}
	switch {
	case err == nil:
		// Both are at "/" now, the old one on top, as pivot_root(2) tells.
		err = unix.Unmount(".", unix.MNT_DETACH)
	case errors.Is(err, unix.EINVAL):
		unmountOthers()
		err = unix.Chroot(".")
	}
	if err == nil {
		err = unix.Chdir("/")
	}
	if err == nil && !s.Own {
		err = unix.Mount("", "/", "", unix.MS_SHARED, "") // with the locker's namespace
	}
	return wrap("change the root directory", err)
}

// newTmpfs returns a detached tmpfs. Its root can be searched by all: the locker is another user.
func newTmpfs() (int, error) {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("open tmpfs: %w", err)
	}
	defer unix.Close(fs)
	if err = unix.FsconfigSetString(fs, "mode", "0755"); err == nil {
		err = unix.FsconfigCreate(fs)
	}
	if err != nil {
		return -1, fmt.Errorf("make a tmpfs: %w", err)
	}
	root, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	return root, wrap("mount a tmpfs", err)
}

// unmountOthers unmounts what is on the root directory, but for the tmpfs on top, which hides it. What cannot be
// unmounted, as it is locked, stays until the host unmounts it.
func unmountOthers() {
	list, err := mountinfo.Self()
	if err != nil {
		return
	}
	for _, m := range list {
		if m.Point != "/" && m.Point != "/proc" && !strings.HasPrefix(m.Point, "/proc/") {
			_ = unix.Unmount(m.Point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		}
	}
}
