package extract

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/sqfs"
)

// identity tells files of the host apart.
type identity struct {
	dev, ino uint64
}

func identityOf(st *unix.Stat_t) identity { return identity{st.Dev, st.Ino} }

// target is the directory to extract into.
type target struct {
	path  string
	force bool
	fd    int  // -1: not there yet
	made  bool // by us
}

const (
	openDir  = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	openNode = unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC
	newFile  = unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
)

// open opens the directory, if it is there.
func (t *target) open() error {
	fd, err := openat(unix.AT_FDCWD, t.path, openDir, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) {
		if to, lerr := os.Readlink(t.path); lerr == nil {
			return fmt.Errorf("%s: is a link to %s; put a slash behind it to go there", t.path, to)
		}
	}
	if err == nil && !t.made && !t.force {
		if err = checkEmpty(fd); err != nil {
			unix.Close(fd)
		}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", t.path, err)
	}
	t.fd = fd
	return nil
}

// make makes and opens the directory if it is not there. Links in what leads to it are
// followed, for the caller chose the path; but not one in its place, for a name like
// squashfs-root in a directory like /tmp could be another's trap.
func (t *target) make() error {
	if t.fd >= 0 {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(filepath.Clean(t.path)), 0o777); err != nil {
		return err
	}
	err := ignoringEINTR(func() error { return unix.Mkdir(t.path, 0o700) })
	t.made = err == nil
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make directory %s: %w", t.path, err)
	}
	if err := t.open(); err != nil {
		return err
	}
	if t.fd < 0 {
		return fmt.Errorf("%s: %w", t.path, unix.ENOENT)
	}
	return nil
}

// close closes the directory.
func (t *target) close() {
	if t.fd >= 0 {
		unix.Close(t.fd)
	}
}

// checkEmpty returns ErrNotEmpty if the directory has entries.
func checkEmpty(fd int) error {
	buf := make([]byte, 4096) // "." and ".." take some 50 bytes
	n, err := unix.ReadDirent(fd, buf)
	if err != nil {
		return err
	}
	if _, _, names := unix.ParseDirent(buf[:n], 1, nil); len(names) > 0 { // it leaves out "." and ".."
		return ErrNotEmpty
	}
	return nil
}

// dir is a directory on the way from the target to where the walk is.
type dir struct {
	ino  sqfs.Inode
	base int // its name is path[base:end] of whatever lies in it
	end  int
	fd   int   // -1: not open
	node *node // if it is made
	made bool  // it is there
	lost bool  // it could not be made, or is no longer where it was
}

// keepOpen is how many directories above the current one stay open. Those further up
// are opened again through "..", which must lead to what it led to before.
const keepOpen = 64

// errLost says that the directory of a file could not be made. That was told before.
var errLost = errors.New("directory is missing")

// parent returns the descriptor of the directory that is depth levels down, after
// making it, and those that lead to it, if they are not there. path leads to an entry
// of it.
func (x *extraction) parent(depth int, path []byte) (int, error) {
	first := depth // the uppermost that is missing
	for first > 0 && !x.dirs[first].made && !x.dirs[first].lost {
		first--
	}
	for i := first; i <= depth; i++ {
		d := &x.dirs[i]
		if i > 0 && x.dirs[i-1].lost {
			d.lost = true
		}
		if d.lost {
			return -1, errLost
		}
		if d.made {
			continue
		}
		if i == 0 {
			if err := x.makeTarget(d); err != nil {
				d.lost = true
				x.cancel(err)
				return -1, errLost
			}
			continue
		}
		if err := x.makeDir(&x.dirs[i-1], string(path[d.base:d.end]), d); err != nil {
			d.lost = true
			x.report(string(path[:d.end]), err)
			return -1, errLost
		}
		x.counts.dirs.Add(1)
		if far := i - keepOpen; far > 0 && x.dirs[far].fd >= 0 {
			unix.Close(x.dirs[far].fd)
			x.dirs[far].fd = -1
		}
	}
	return x.dirs[depth].fd, nil
}

// makeTarget makes the target, now that something is to go into it.
func (x *extraction) makeTarget(d *dir) error {
	if err := x.target.make(); err != nil {
		return err
	}
	x.began = x.began || x.target.made
	var st unix.Stat_t
	if err := unix.Fstat(x.target.fd, &st); err != nil {
		return fmt.Errorf("stat %s: %w", x.target.path, err)
	}
	d.fd, d.made = x.target.fd, true
	d.node = &node{id: identityOf(&st), ref: d.ino.Ref}
	return nil
}

// makeDir makes and opens a directory. Until it is complete only we may use it.
func (x *extraction) makeDir(above *dir, name string, d *dir) error {
	fd, made, err := x.openNew(above.fd, name)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil && made && !x.ours(above.fd, &st) {
		err = errSwapped
	}
	if err == nil && !made && x.euid != 0 && st.Mode&0o700 != 0o700 {
		err = unix.Fchmod(fd, 0o700)
	}
	if err != nil {
		unix.Close(fd)
		return host("open", err)
	}
	d.fd, d.made = fd, true
	d.node = &node{up: above.node, name: name, id: identityOf(&st), ref: d.ino.Ref}
	return nil
}

// openNew opens a directory, and says whether it made it. One that is there is never
// touched: not even tried to be removed, which a directory of another may forbid.
func (x *extraction) openNew(parent int, name string) (fd int, made bool, err error) {
	mkdir := func() error {
		return host("mkdir", ignoringEINTR(func() error { return unix.Mkdirat(parent, name, 0o700) }))
	}
	if err = mkdir(); errors.Is(err, unix.EEXIST) && x.opts.Force {
		fd, err = openat(parent, name, openDir, 0)
		if errors.Is(err, unix.EACCES) {
			fd, err = x.openOwn(parent, name)
		}
		if !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, unix.ELOOP) {
			return fd, false, host("open", err)
		}
		err = x.inTheWay(parent, name, mkdir)
	}
	if err != nil {
		return -1, false, err
	}
	x.began = true
	fd, err = openat(parent, name, openDir, 0)
	return fd, true, host("open", err)
}

// owner is whom new files on a file system belong to.
type owner struct {
	known bool
	dev   uint64
	uid   uint32
}

// ours reports whether st can be that of a file that was just made in parent, and of
// nothing that somebody put in its place. What we make belongs to us, but on network
// file systems that take root for nobody, and such as have one owner for everything
// (vfat): there it belongs to whom a file belongs that is ours for sure, because the
// call that opened it made it.
func (x *extraction) ours(parent int, st *unix.Stat_t) bool {
	if int64(st.Uid) == int64(x.euid) {
		return true
	}
	var dir unix.Stat_t
	if unix.Fstat(parent, &dir) != nil {
		return false
	}
	if !x.owner.known || x.owner.dev != dir.Dev {
		uid, err := probeOwner(parent)
		if err != nil {
			return false
		}
		x.owner = owner{known: true, dev: dir.Dev, uid: uid}
	}
	return st.Uid == x.owner.uid
}

// probeOwner returns whom new files in a directory belong to.
func probeOwner(parent int) (uint32, error) {
	name := fmt.Sprintf(".squire-%016x", rand.Uint64())
	fd, err := openat(parent, name, newFile, 0o600)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	return st.Uid, errors.Join(err, unix.Unlinkat(parent, name, 0))
}

// errSwapped says that somebody else works in the target.
var errSwapped = errors.New("was replaced by somebody while it was extracted")

// openOwn opens a directory of the caller's that its mode closes to the caller.
func (x *extraction) openOwn(parent int, name string) (int, error) {
	fd, err := openat(parent, name, openNode|unix.O_DIRECTORY, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fd)
	if err := chmodNode(fd, 0o700); err != nil {
		return -1, unix.EACCES
	}
	return openat(parent, name, openDir, 0)
}

// inTheWay calls create, and once more after removing what is in its way, if that is
// allowed. Directories are never removed: unlink refuses them.
func (x *extraction) inTheWay(parent int, name string, create func() error) error {
	err := create()
	if x.opts.Force && errors.Is(err, unix.EEXIST) {
		uerr := ignoringEINTR(func() error { return unix.Unlinkat(parent, name, 0) })
		if errors.Is(uerr, unix.EISDIR) {
			return fmt.Errorf("a directory is in the way: %w", err)
		}
		if uerr != nil && !errors.Is(uerr, unix.ENOENT) {
			return host("remove", uerr)
		}
		x.began = true
		err = create()
	}
	x.began = x.began || err == nil
	return err
}

// openAbove opens the directory above the one on top if it is not open: while that can
// be searched.
func (x *extraction) openAbove() {
	n := len(x.dirs) - 1
	top, above := &x.dirs[n], &x.dirs[n-1]
	if above.fd >= 0 || !above.made {
		return
	}
	above.lost = true
	if top.fd >= 0 {
		fd, err := reopen(top.fd, "..", above.node.id)
		above.fd, above.lost = fd, err != nil
	}
}

// closeDir closes the directory on top.
func (x *extraction) closeDir() {
	n := len(x.dirs) - 1
	if fd := x.dirs[n].fd; fd >= 0 {
		unix.Close(fd)
	}
	x.dirs = x.dirs[:n]
}

// reopen opens a directory that must be the one it was.
func reopen(at int, name string, id identity) (int, error) {
	fd, err := openat(at, name, openDir, 0)
	if err != nil {
		return -1, host("open", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || identityOf(&st) != id {
		unix.Close(fd)
		return -1, errSwapped
	}
	return fd, nil
}

// openat is unix.Openat, again after a signal.
func openat(at int, name string, flags int, mode uint32) (fd int, err error) {
	err = ignoringEINTR(func() (err error) {
		fd, err = unix.Openat(at, name, flags, mode)
		return err
	})
	return fd, err
}

// ignoringEINTR repeats a system call that a signal interrupted: on file systems like
// NFS and FUSE even opening can be.
func ignoringEINTR(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
