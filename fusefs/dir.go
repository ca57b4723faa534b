package fusefs

import (
	"bytes"
	"errors"
	"io/fs"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/sqfs"
)

// Offsets in a directory stream. The offset of an entry is where to go on after it; those from posEntries on are
// sqfs.DirPos, which never is 0, 1 or 2 for an entry.
const (
	posStart   = 0
	posDot     = 1 // after "."
	posEntries = 2 // after "..", before the first entry
)

// directory returns the inode behind a node id, which must be a directory.
func (f *FS) directory(node uint64) (sqfs.Inode, fuse.Status) {
	dir, code := f.inode(node)
	if code.Ok() && dir.Type != sqfs.TypeDir {
		code = fuse.ENOTDIR
	}
	return dir, code
}

// ReadDir lists a directory from in.Offset on, as far as the reply has room.
func (f *FS) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return f.readDir(in, func(e fuse.DirEntry, _ sqfs.Dirent) bool { return out.AddDirEntry(e) })
}

// ReadDirPlus lists a directory with the attributes of all entries: one message primes the kernel's dentries and
// inodes for a whole directory, where READDIR needs a LOOKUP for each of them.
//
// An entry whose inode is damaged is listed without attributes (node 0; fs/fuse/readdir.c: fuse_direntplus_link), so
// that only those who look it up get an error. "." and ".." never have any.
func (f *FS) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	dir := f.ref(in.NodeId)
	return f.readDir(in, func(e fuse.DirEntry, d sqfs.Dirent) bool {
		entry := out.AddDirLookupEntry(e)
		if entry != nil && d.Name != nil {
			if ino, err := f.entry(dir, d, entry); err == nil { // an error leaves node 0; LOOKUP will report it
				f.ahead.listed(&ino)
			}
		}
		return entry != nil
	})
}

// readDir calls add with the entries from in.Offset on, until it returns false; without name for "." and "..", whose inodes
// are of no interest. Damage in the middle ends the reply early; the next request begins with it and fails.
func (f *FS) readDir(in *fuse.ReadIn, add func(fuse.DirEntry, sqfs.Dirent) bool) fuse.Status {
	f.counts.readDir.Add(1)
	dir, code := f.directory(in.NodeId)
	if !code.Ok() {
		return code
	}
	some := in.Offset < posEntries
	if !addDots(&dir, in.Offset, add) {
		return fuse.OK
	}
	pos := sqfs.DirPos(in.Offset)
	if in.Offset <= posEntries {
		pos = posStart
	}
	for d, err := range f.img.Dirents(&dir, pos) {
		if err != nil {
			if some {
				return fuse.OK
			}
			if errors.Is(err, fs.ErrInvalid) { // an offset that lseek made up
				return fuse.EINVAL
			}
			return f.eio("readdir", dir.Ref, err)
		}
		if !validName(d.Name) {
			continue
		}
		// AddDirEntry copies the name, so it may be a view of memory that lasts for this step only.
		name := unsafe.String(unsafe.SliceData(d.Name), len(d.Name))
		if !add(fuse.DirEntry{Name: name, Ino: uint64(d.Number), Mode: f.direntMode(d.Type), Off: uint64(d.Pos)}, d) {
			break
		}
		some = true
	}
	return fuse.OK
}

// addDots adds "." and "..", which squashfs does not store, with the inode numbers that fs/squashfs/dir.c:
// squashfs_readdir shows: the parent's is in the directory's inode.
func addDots(dir *sqfs.Inode, off uint64, add func(fuse.DirEntry, sqfs.Dirent) bool) bool {
	if off == posStart &&
		!add(fuse.DirEntry{Name: ".", Ino: uint64(dir.Number), Mode: unix.S_IFDIR, Off: posDot}, sqfs.Dirent{}) {
		return false
	}
	return off > posDot ||
		add(fuse.DirEntry{Name: "..", Ino: uint64(dir.Parent), Mode: unix.S_IFDIR, Off: posEntries}, sqfs.Dirent{})
}

// validName reports whether a name can be an entry of a Linux directory. The kernel fails the whole listing for a
// slash (fs/fuse/readdir.c: parse_dirfile); here only the entry is left out, which no path can name anyway.
func validName(name []byte) bool {
	switch {
	case len(name) == 0, len(name) > nameMax:
		return false
	case bytes.IndexByte(name, '/') >= 0, bytes.IndexByte(name, 0) >= 0:
		return false
	}
	return string(name) != "." && string(name) != ".."
}

// direntMode returns the S_IFMT bits of a directory entry, d_type in user space. The list takes only these.
func (f *FS) direntMode(t sqfs.Type) uint32 {
	if f.restrict && isDevice(t) {
		return unix.S_IFREG
	}
	ino := sqfs.Inode{Type: t}
	return ino.UnixMode()
}
