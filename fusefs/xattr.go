package fusefs

import (
	"errors"
	"io/fs"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/sqfs"
)

// Both methods answer ENOSYS when the image has no attributes at all. The kernel then never asks again (fs/fuse/xattr.c:
// fc->no_getxattr, fc->no_listxattr); without that, each execution of a program may ask for file capabilities. Programs
// are told EOPNOTSUPP, where the kernel's squashfs gives an empty list and ENODATA: both mean "none" to those that copy
// or list attributes.

// GetXAttr copies an attribute to dest and returns its length. With an empty dest only the length is asked for;
// go-fuse takes ERANGE there for success.
func (f *FS) GetXAttr(_ <-chan struct{}, h *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	f.counts.xattr.Add(1)
	if !f.img.HasXattrs() {
		return 0, fuse.ENOSYS
	}
	ino, code := f.inode(h.NodeId)
	if !code.Ok() {
		return 0, code
	}
	if f.hidden(name) {
		return 0, fuse.ENODATA
	}
	value, err := f.img.AppendXattr(dest[:0:len(dest)], &ino, name)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, fuse.ENODATA
	}
	if err != nil {
		return 0, f.eio("getxattr", ino.Ref, err)
	}
	return fit(value, dest)
}

// ListXAttr copies the names of all attributes, each with a zero byte, to dest and returns their length.
func (f *FS) ListXAttr(_ <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	f.counts.xattr.Add(1)
	if !f.img.HasXattrs() {
		return 0, fuse.ENOSYS
	}
	ino, code := f.inode(h.NodeId)
	if !code.Ok() {
		return 0, code
	}
	list := dest[:0:len(dest)]
	for x, err := range f.img.Xattrs(&ino) {
		if err != nil {
			return 0, f.eio("listxattr", ino.Ref, err)
		}
		if f.listed(x, h.Uid) {
			list = append(append(list, x.Name...), 0)
		}
		if len(list) > xattrMax {
			break // too long, whatever follows; a small image can name a gigabyte
		}
	}
	return fit(list, dest)
}

// listed reports whether an attribute is shown to a user. As in the kernel's squashfs, trusted.* is for the
// administrator only (fs/squashfs/xattr.c: squashfs_trusted_xattr_handler_list); the kernel itself guards reading.
func (f *FS) listed(x sqfs.Xattr, uid uint32) bool {
	return !f.hidden(x.Name) && (uid == 0 || !isTrusted(x.Name))
}

// xattrMax is the longest value, and the longest list of names, that the kernel takes (linux/limits.h: XATTR_SIZE_MAX,
// XATTR_LIST_MAX).
const xattrMax = 64 << 10

// fit moves value to dest, if it is not there already because it fitted.
func fit(value, dest []byte) (uint32, fuse.Status) {
	switch {
	case len(value) > xattrMax:
		return 0, fuse.Status(unix.E2BIG)
	case len(value) > len(dest):
		return uint32(len(value)), fuse.ERANGE
	}
	return uint32(copy(dest, value)), fuse.OK
}
