package main

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// output is a file that is to appear under its name whole or not at all. Until commit it
// has no name where the file system can do that, so that nothing is left of it however
// the program ends; elsewhere it has a hidden name beside the one that it is to get.
type output struct {
	path   string // for messages
	name   string // in dir
	hidden string // in dir; empty: the file has no name
	force  bool   // a file that has the name already is replaced
	dir    *os.File
	file   *os.File // nil: it was committed or discarded
}

// newOutput makes a file that commit will call path, with the mode that the umask leaves
// of 0666. What is there already is an error, or with force, if it is a regular file or
// a link, what commit replaces.
func newOutput(path string, force bool) (*output, error) {
	o := &output{path: path, name: filepath.Base(path), force: force}
	if path == "" || strings.HasSuffix(path, "/") || o.name == "." || o.name == ".." {
		return nil, fmt.Errorf("%s: not the name of a file", printable(path))
	}
	if path == "-" { // whoever means a file writes ./-
		return nil, errors.New("-: an image is not written in one go, so it cannot go to standard output")
	}
	fd, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: filepath.Dir(path), Err: err}
	}
	o.dir = os.NewFile(uintptr(fd), filepath.Dir(path))
	if err = o.check(); err == nil {
		err = o.create()
	}
	if err != nil {
		o.dir.Close()
		return nil, err
	}
	return o, nil
}

// check looks at what has the name already.
func (o *output) check() error {
	var st unix.Stat_t
	err := unix.Fstatat(o.fd(), o.name, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch typ := st.Mode & unix.S_IFMT; {
	case errors.Is(err, unix.ENOENT):
		return nil
	case err != nil:
		return &fs.PathError{Op: "stat", Path: o.path, Err: err}
	case typ == unix.S_IFDIR:
		return fmt.Errorf("%s: is a directory", printable(o.path))
	case typ != unix.S_IFREG && typ != unix.S_IFLNK:
		return fmt.Errorf("%s: is not a regular file", printable(o.path))
	case !o.force:
		return o.exists()
	}
	return nil
}

func (o *output) exists() error {
	return fmt.Errorf("%s: %w; --force replaces it", printable(o.path), fs.ErrExist)
}

// fd is the descriptor of the directory.
func (o *output) fd() int { return int(o.dir.Fd()) }

// create makes the file: without a name if it can get one later, by way of /proc.
func (o *output) create() error {
	fd, err := unix.Openat(o.fd(), ".", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o666)
	if err == nil {
		if unix.Access(procPath(fd), unix.F_OK) == nil {
			o.file = os.NewFile(uintptr(fd), o.path)
			return nil
		}
		unix.Close(fd)
	}
	// NFS and Lustre do not have O_TMPFILE (EOPNOTSUPP). Whatever the reason was, if the
	// directory cannot be written the other way says so as well.
	o.hidden = o.hiddenName()
	fd, err = unix.Openat(o.fd(), o.hidden, unix.O_CREAT|unix.O_EXCL|unix.O_RDWR|unix.O_CLOEXEC, 0o666)
	if err != nil {
		return &fs.PathError{Op: "create", Path: o.path, Err: err}
	}
	o.file = os.NewFile(uintptr(fd), o.path)
	return nil
}

// hiddenName returns a name that nothing has, of at most NAME_MAX bytes.
func (o *output) hiddenName() string {
	var b [6]byte
	_, _ = rand.Read(b[:]) // it never fails
	const dot, end = ".", ".tmp"
	random := "." + hex.EncodeToString(b[:])
	return dot + o.name[:min(len(o.name), unix.NAME_MAX-len(dot)-len(random)-len(end))] + random + end
}

// procPath is another name of an open file, for linkat (open(2), O_TMPFILE).
func procPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// File returns the file to write to. It is closed by commit and discard.
func (o *output) File() *os.File { return o.file }

// is reports whether a file is this one, or the one that it is to replace.
func (o *output) is(dev, ino uint64) bool {
	var st unix.Stat_t
	same := func(err error) bool { return err == nil && st.Dev == dev && st.Ino == ino }
	return same(unix.Fstat(int(o.file.Fd()), &st)) ||
		same(unix.Fstatat(o.fd(), o.name, &st, unix.AT_SYMLINK_NOFOLLOW))
}

// commit gives the file its name once all of it is on the disk. After an error there is
// nothing of it left.
func (o *output) commit() error {
	defer o.discard()
	if err := o.file.Sync(); err != nil { // a full disk on a network file system is told here
		return err
	}
	var err error
	if o.hidden == "" {
		err = o.link()
	} else {
		err = o.rename()
	}
	switch {
	case errors.Is(err, unix.EEXIST):
		return o.exists()
	case err != nil:
		return &fs.PathError{Op: "rename", Path: o.path, Err: err}
	}
	o.syncDir()
	return nil
}

// link names a file without a name. A link replaces nothing, so with force it gets a
// hidden name if the other is taken.
func (o *output) link() error {
	proc := procPath(int(o.file.Fd()))
	err := unix.Linkat(unix.AT_FDCWD, proc, o.fd(), o.name, unix.AT_SYMLINK_FOLLOW)
	if !o.force || !errors.Is(err, unix.EEXIST) {
		return err
	}
	hidden := o.hiddenName()
	if err := unix.Linkat(unix.AT_FDCWD, proc, o.fd(), hidden, unix.AT_SYMLINK_FOLLOW); err != nil {
		return err
	}
	o.hidden = hidden
	return o.rename()
}

// rename gives the file its name in place of the hidden one.
func (o *output) rename() error {
	err := unix.Renameat2(o.fd(), o.hidden, o.fd(), o.name, o.renameFlags())
	if !o.force && (errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS)) {
		// NFS cannot rename without replacing, but a link never replaces. The hidden
		// name is then discarded.
		return unix.Linkat(o.fd(), o.hidden, o.fd(), o.name, 0)
	}
	if err == nil {
		o.hidden = ""
	}
	return err
}

func (o *output) renameFlags() uint {
	if o.force {
		return 0
	}
	return unix.RENAME_NOREPLACE
}

// syncDir brings the name to the disk, where the directory may be read for that.
func (o *output) syncDir() {
	fd, err := unix.Openat(o.fd(), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	_ = unix.Fsync(fd) // the file is whole whatever it says
	unix.Close(fd)
}

// discard removes the file, unless it was committed. It may be called again.
func (o *output) discard() {
	if o.file == nil {
		return
	}
	if o.hidden != "" {
		_ = unix.Unlinkat(o.fd(), o.hidden, 0) // at the end there is nobody to tell
	}
	o.file.Close()
	o.dir.Close()
	o.file = nil
}
