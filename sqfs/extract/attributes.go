package extract

import (
	"errors"
	"fmt"
	"math"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/sqfs"
)

// attributes gives a file its owner, extended attributes, mode and times, in this
// order: a new owner takes set-id bits and capabilities away, a mode without write
// permission forbids attributes to an ordinary user, and all of it changes times. fd
// is open for reading or writing if ino is a regular file or directory, else for
// nothing (O_PATH).
func (x *extraction) attributes(fd int, at place, ino *sqfs.Inode) {
	mode := uint32(ino.Mode)
	owned, err := x.chown(fd, ino)
	if err != nil {
		x.report(at.String(), err)
	}
	if !owned {
		x.counts.noOwner.Add(1)
	}
	if (x.euid != 0 || !owned) && mode&0o6000 != 0 {
		mode &^= 0o6000 // they would be the caller's rights, for anyone
		x.counts.noSetID.Add(1)
	}
	if _, has := ino.XattrSet(); has && !x.opts.NoXattrs {
		if err = x.xattrs(fd, ino); err != nil {
			x.report(at.String(), err)
		}
	}
	if err = chmod(fd, ino, mode); err != nil {
		x.report(at.String(), host("chmod", err))
	}
	when := unix.Timespec{Sec: int64(ino.ModTime)}
	err = unix.UtimesNanoAt(fd, "", []unix.Timespec{when, when}, unix.AT_EMPTY_PATH)
	if err != nil {
		x.report(at.String(), host("set times", err))
	}
}

// chown gives a file to its owner, and reports whether it has that owner now.
func (x *extraction) chown(fd int, ino *sqfs.Inode) (bool, error) {
	if x.euid != 0 {
		return int64(ino.UID) == int64(x.euid), nil
	}
	if ino.UID == math.MaxUint32 || ino.GID == math.MaxUint32 {
		return false, nil // -1 says to leave it as it is
	}
	err := unix.Fchownat(fd, "", int(ino.UID), int(ino.GID), unix.AT_EMPTY_PATH)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPERM) {
		return false, nil // root of a user namespace that has no such id
	}
	return err == nil, host("chown", err)
}

// chmod sets the mode of a file. Symlinks have none.
func chmod(fd int, ino *sqfs.Inode, mode uint32) error {
	switch ino.Type {
	case sqfs.TypeSymlink:
		return nil
	case sqfs.TypeFile, sqfs.TypeDir:
		err := unix.Fchmod(fd, mode)
		if errors.Is(err, unix.EPERM) && mode&0o1000 != 0 {
			return unix.Fchmod(fd, mode&^0o1000) // BSDs keep the sticky bit of files to root
		}
		return err
	}
	return chmodNode(fd, mode)
}

// chmodNode is chmod for descriptors with O_PATH: fchmodat2 came with Linux 6.6.
func chmodNode(fd int, mode uint32) error {
	err := unix.Fchmodat(fd, "", mode, unix.AT_EMPTY_PATH)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) {
		return unix.Chmod(procPath(fd), mode)
	}
	return err
}

// procPath is a name that leads to the very file of a descriptor.
func procPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// xattrs sets extended attributes.
func (x *extraction) xattrs(fd int, ino *sqfs.Inode) error {
	set := func(a sqfs.XattrValue) error { return unix.Fsetxattr(fd, a.Name, a.Value, 0) }
	if ino.Type != sqfs.TypeFile && ino.Type != sqfs.TypeDir {
		name := procPath(fd)
		set = func(a sqfs.XattrValue) error { return unix.Setxattr(name, a.Name, a.Value, 0) }
	}
	var buf [256]byte // most are shorter
	for a, err := range x.img.XattrValues(ino, buf[:0]) {
		if err != nil {
			return fmt.Errorf("extended attributes: %w", err)
		}
		if x.euid != 0 && !strings.HasPrefix(a.Name, "user.") {
			x.counts.noXattr.Add(1)
			continue
		}
		err = set(a)
		switch {
		case err == nil:
		case errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPERM):
			// The file system has none or not of this kind, or root is that of a
			// user namespace only, or user.* is not for files of this type.
			x.counts.noXattr.Add(1)
		default:
			// Many file systems have room for a few KiB in all: a full disk is
			// not what ENOSPC means here.
			return fmt.Errorf("set extended attribute %s: %w", a.Name, err)
		}
	}
	return nil
}
