package pack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/sqfs"
)

// fileID identifies a file while it exists.
type fileID struct{ dev, ino uint64 }

// dirEntry is what a directory says of a name.
type dirEntry struct {
	name   string
	st     unix.Stat_t
	target string  // of symlinks
	xattrs []Xattr // of all but directories and regular files
	lost   int64   // attributes that squashfs cannot have
	err    error
}

// scan goes through the tree and submits the files that it finds.
func (d *dirSource) scan(ctx context.Context, root *Inode) error {
	var st unix.Stat_t
	if err := unix.Fstat(d.root, &st); err != nil {
		return d.failure("", err)
	}
	d.dev = st.Dev
	if err := d.directory(ctx, "", &st, root); err != nil {
		return err
	}
	return d.submitSorted(ctx)
}

// directory reads a directory and all that is below it. st says what was at path.
func (d *dirSource) directory(ctx context.Context, path string, st *unix.Stat_t, in *Inode) error {
	in.Entries = make(map[string]*Inode)
	d.fill(in, st)
	entries, err := d.list(path, in)
	if err != nil {
		return d.unreadable(path, err)
	}
	for i := range entries {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		e := &entries[i]
		ino, err := d.entry(ctx, join(path, e.name), e)
		if err != nil {
			return err
		}
		if ino != nil {
			in.Entries[e.name] = ino
		}
	}
	return nil
}

// unreadable tells that a directory is empty because it cannot be read, or returns the
// error if it is to be one.
func (d *dirSource) unreadable(path string, err error) error {
	err = vanished(err)
	if !d.o.Unreadable && !errors.Is(err, ErrChanged) {
		return d.failure(path, err)
	}
	d.problem(path, err)
	return nil
}

// vanished makes ErrChanged of errors that say that a file is not any more what the
// directory above it said.
func vanished(err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return fmt.Errorf("%w: %w", ErrChanged, err)
	}
	return err
}

// entry returns the inode for a name, nil to leave it out.
func (d *dirSource) entry(ctx context.Context, path string, e *dirEntry) (*Inode, error) {
	dir := e.st.Mode&unix.S_IFMT == unix.S_IFDIR
	id := fileID{e.st.Dev, e.st.Ino}
	switch {
	case d.o.Exclude != nil && d.o.Exclude(path, dir):
		d.count(&d.report.Excluded, 1)
		return nil, nil
	case e.err != nil:
		return nil, d.unreadable(path, e.err)
	case d.o.Leave != nil && d.o.Leave(id.dev, id.ino):
		return nil, nil
	case d.o.OneFileSystem && !dir && id.dev != d.dev:
		d.count(&d.report.Mounts, 1)
		return nil, nil
	}
	ino := &Inode{Target: e.target, Xattrs: e.xattrs}
	if dir {
		return ino, d.directory(ctx, path, &e.st, ino)
	}
	if f := d.links[id]; f != nil && e.st.Nlink > 1 {
		if d.o.Priority != nil {
			f.priority = max(f.priority, d.o.Priority(path))
		}
		return f.inode, nil
	}
	f := &dirFile{d: d, path: path, id: id, size: e.st.Size, inode: ino, fd: -1, ready: make(chan struct{})}
	if e.st.Nlink > 1 {
		d.links[id] = f
	}
	d.fill(ino, &e.st)
	d.count(&d.report.Xattrs, e.lost)
	switch {
	case ino.Type == 0:
		return nil, d.unreadable(path, fmt.Errorf("a file of unknown type %#o", e.st.Mode))
	case ino.Type != sqfs.TypeFile:
		return ino, nil
	case d.o.Priority != nil:
		f.priority = d.o.Priority(path)
		d.sorted = append(d.sorted, f)
		return ino, nil
	}
	return ino, d.submit(ctx, f)
}

// count adds to a count of the report.
func (d *dirSource) count(c *int64, n int64) {
	d.mu.Lock()
	*c += n
	d.mu.Unlock()
}

// fileTypes are the types of files as squashfs has them.
var fileTypes = map[uint32]sqfs.Type{
	unix.S_IFDIR: sqfs.TypeDir, unix.S_IFREG: sqfs.TypeFile, unix.S_IFLNK: sqfs.TypeSymlink,
	unix.S_IFBLK: sqfs.TypeBlock, unix.S_IFCHR: sqfs.TypeChar, unix.S_IFIFO: sqfs.TypeFifo, unix.S_IFSOCK: sqfs.TypeSocket,
}

// fill copies what stat says.
func (d *dirSource) fill(in *Inode, st *unix.Stat_t) {
	in.Type, in.Mode, in.ModTime = fileTypes[st.Mode&unix.S_IFMT], uint16(st.Mode&0o7777), st.Mtim.Sec
	in.UID, in.GID = st.Uid, st.Gid
	if d.o.Owner != nil {
		d.mu.Lock()
		in.UID, in.GID = d.o.Owner(st.Uid, st.Gid)
		d.mu.Unlock()
	}
	if in.Type == sqfs.TypeBlock || in.Type == sqfs.TypeChar {
		major, minor := unix.Major(st.Rdev), unix.Minor(st.Rdev)
		in.Rdev = minor&0xff | major<<8 | minor&^0xff<<12 // kdev_t.h: new_encode_dev
	}
}

// open opens what is at a path, through no link: what was a directory when it was listed
// may be one to somewhere else now. Longer paths than the kernel takes are opened in parts.
func (d *dirSource) open(path string, flags int) (int, error) {
	const most = unix.PathMax - 256 // bytes of a path at once
	at := d.root
	for {
		part, rest := path, ""
		if len(path) > most {
			end := strings.LastIndexByte(path[:most], '/')
			part, rest = path[:end], path[end+1:]
		}
		how := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC | unix.O_NOFOLLOW), Resolve: unix.RESOLVE_NO_SYMLINKS}
		if rest != "" {
			how.Flags = unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC
		}
		fd, err := retry(func() (int, error) { return unix.Openat2(at, part, &how) })
		if at != d.root {
			unix.Close(at)
		}
		if err != nil || rest == "" {
			return fd, err
		}
		at, path = fd, rest
	}
}

// list reads a directory: its own attributes into in, and if it is not of another file
// system that is left out, its entries, sorted. Only what is open is sure to be mounted.
func (d *dirSource) list(path string, in *Inode) ([]dirEntry, error) {
	name := path
	if name == "" {
		name = "."
	}
	fd, err := d.open(name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	dir := os.NewFile(uintptr(fd), path)
	defer dir.Close()
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("stat: %w", err)
	}
	d.fill(in, &st)
	if err = d.fileXattrs(fd, in); err != nil {
		return nil, err
	}
	if d.o.OneFileSystem && st.Dev != d.dev {
		d.count(&d.report.Mounts, 1)
		return nil, nil
	}
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	return d.look(fd, names), nil
}

// look asks for the attributes of all entries of a directory, of many at once: on a
// network file system that takes its time.
func (d *dirSource) look(dir int, names []string) []dirEntry {
	entries := make([]dirEntry, len(names))
	const share = 32 // entries for a goroutine at least
	step := max(share, (len(names)+dirReaders-1)/dirReaders)
	var all sync.WaitGroup
	for from := 0; from < len(names); from += step {
		to := min(from+step, len(names))
		part := func() {
			for i := from; i < to; i++ {
				entries[i].name = names[i]
				entries[i].err = d.lookAt(dir, &entries[i])
			}
		}
		if to == len(names) {
			part()
		} else {
			all.Go(part)
		}
	}
	all.Wait()
	return entries
}

// procFD has links to what is open.
const procFD = "/proc/self/fd"

// lookAt fills in an entry of a directory.
func (d *dirSource) lookAt(dir int, e *dirEntry) (err error) {
	if err = unix.Fstatat(dir, e.name, &e.st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	switch e.st.Mode & unix.S_IFMT {
	case unix.S_IFDIR, unix.S_IFREG: // what they have is read when they are open
		return nil
	case unix.S_IFLNK:
		if e.target, err = readlinkat(dir, e.name); err != nil {
			return fmt.Errorf("readlink: %w", err)
		}
	}
	if d.o.NoXattrs {
		return nil
	}
	// These cannot be opened, and a descriptor with O_PATH gives no attributes (EBADF).
	// The link in /proc leads to this very directory, wherever it is now.
	path := procFD + "/" + strconv.Itoa(dir) + "/" + e.name
	e.xattrs, e.lost, err = readXattrs(
		func(buf []byte) (int, error) { return unix.Llistxattr(path, buf) },
		func(name string, buf []byte) (int, error) { return unix.Lgetxattr(path, name, buf) })
	return err
}

// readlinkat returns the target of a link. Other file systems than Linux's own may have
// long ones.
func readlinkat(dir int, name string) (string, error) {
	for size := 256; ; size *= 4 {
		buf := make([]byte, size)
		n, err := unix.Readlinkat(dir, name, buf)
		if err != nil || n < size {
			return string(buf[:max(n, 0)]), err
		}
	}
}

// retry repeats a system call that a signal interrupted, as happens on network file
// systems.
func retry(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}
