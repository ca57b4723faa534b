package extract

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

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
	fd   int
	made bool // by us
}

const (
	openDir  = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	openNode = unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC
	newFile  = unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
)

// openTarget opens the directory, and makes it if it is not there. Links in what leads
// to it are followed, for the caller chose the path; but not one in its place, for a
// name like squashfs-root in a directory like /tmp could be another's trap.
func openTarget(dir string, force bool) (target, error) {
	if err := os.MkdirAll(filepath.Dir(filepath.Clean(dir)), 0o777); err != nil {
		return target{}, err
	}
	err := ignoringEINTR(func() error { return unix.Mkdir(dir, 0o700) })
	made := err == nil
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return target{}, fmt.Errorf("make directory %s: %w", dir, err)
	}
	fd, err := openat(unix.AT_FDCWD, dir, openDir, 0)
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) {
		if to, lerr := os.Readlink(dir); lerr == nil {
			return target{}, fmt.Errorf("%s: is a link to %s; put a slash behind it to go there", dir, to)
		}
	}
	if err != nil {
		return target{}, fmt.Errorf("%s: %w", dir, err)
	}
	if !made && !force {
		if err := checkEmpty(fd); err != nil {
			unix.Close(fd)
			return target{}, fmt.Errorf("%s: %w", dir, err)
		}
	}
	return target{fd: fd, made: made}, nil
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
	fd   int // -1: not open
	id   identity
	made bool // it is there
	lost bool // it could not be made, or is no longer where it was
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
		if err := x.makeDir(x.dirs[i-1].fd, string(path[d.base:d.end]), d); err != nil {
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

// makeDir makes and opens a directory. Until it is complete only we may use it.
func (x *extraction) makeDir(parent int, name string, d *dir) error {
	err := x.inTheWay(parent, name, func() error {
		return host("mkdir", ignoringEINTR(func() error { return unix.Mkdirat(parent, name, 0o700) }))
	})
	made := err == nil
	if err != nil && (!x.opts.Force || !errors.Is(err, unix.EEXIST)) {
		return err
	}
	fd, err := openat(parent, name, openDir, 0)
	if errors.Is(err, unix.EACCES) && !made {
		fd, err = x.openOwn(parent, name)
	}
	if err != nil {
		return host("open", err)
	}
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil && made && int(st.Uid) != x.euid {
		err = errSwapped
	}
	if err == nil && !made && x.euid != 0 && st.Mode&0o700 != 0o700 {
		err = unix.Fchmod(fd, 0o700)
	}
	if err != nil {
		unix.Close(fd)
		return host("open", err)
	}
	d.fd, d.id, d.made = fd, identityOf(&st), true
	return nil
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
	if err == nil || !x.opts.Force || !errors.Is(err, unix.EEXIST) {
		return err
	}
	uerr := ignoringEINTR(func() error { return unix.Unlinkat(parent, name, 0) })
	if errors.Is(uerr, unix.EISDIR) {
		return fmt.Errorf("a directory is in the way: %w", err)
	}
	if uerr != nil && !errors.Is(uerr, unix.ENOENT) {
		return host("remove", uerr)
	}
	return create()
}

// closeDir closes the directory on top, and opens the one above if it is not open.
func (x *extraction) closeDir() {
	n := len(x.dirs) - 1
	top, above := &x.dirs[n], &x.dirs[n-1]
	if top.fd >= 0 && above.fd < 0 && above.made {
		fd, err := reopen(top.fd, "..", above.id)
		above.fd, above.lost = fd, err != nil
	}
	if above.fd < 0 && above.made {
		above.lost = true
	}
	if top.fd >= 0 {
		unix.Close(top.fd)
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

// openPath opens the directory at path in the target, one name after the other: a path
// may be longer than the host takes.
func openPath(root int, path string) (int, error) {
	fd, err := openat(root, ".", openDir, 0)
	for path != "" && err == nil {
		var name string
		name, path, _ = strings.Cut(path, "/")
		at := fd
		fd, err = openat(at, name, openDir, 0)
		unix.Close(at)
	}
	return fd, err
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
