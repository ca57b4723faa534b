package sqfs

import (
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"syscall"
)

// The path door. Besides the map of entered directories nothing in this file and in
// fsfile.go knows more of an image than the methods of the inode door say.

var (
	_ fs.FS         = (*Image)(nil)
	_ fs.StatFS     = (*Image)(nil)
	_ fs.ReadDirFS  = (*Image)(nil)
	_ fs.ReadFileFS = (*Image)(nil)
	_ fs.ReadLinkFS = (*Image)(nil)
)

const (
	maxFollow   = 40      // symlinks in one path, as Linux (MAXSYMLINKS)
	maxReadFile = 1 << 30 // bytes
	maxDepth    = 4096    // directories in one path: as many as a path of Linux can have, and a bound for walks
)

// Open opens the named file or directory, following symlinks inside the image: an
// absolute target starts at the root of the image, and ".." at the root stays there.
// Regular files implement [io.Seeker], [io.ReaderAt] and [io.WriterTo]; directories
// implement [fs.ReadDirFile], to be read in pieces;
// devices, fifos and sockets read as empty files.
//
// Names must satisfy [fs.ValidPath], which demands UTF-8. Files with other names
// appear in listings and can be reached by [Image.Resolve] and [Image.Lookup].
//
// A directory that is found in a second place of the tree is an error there: such an
// image is corrupt, and following it could go on for ever.
func (img *Image) Open(name string) (fs.File, error) {
	ino, err := img.resolve("open", name, true)
	if err != nil {
		return nil, err
	}
	info := fileInfo{name: path.Base(name), ino: ino}
	switch ino.Type {
	case TypeDir:
		return &openDir{fileInfo: info, img: img}, nil
	case TypeFile:
		f, err := img.File(&ino)
		if err != nil {
			return nil, &fs.PathError{Op: "open", Path: name, Err: err}
		}
		return &openFile{fileInfo: info, file: f, have: -1}, nil
	}
	return &openOther{fileInfo: info}, nil
}

// ReadDir returns the entries of the named directory, sorted by the bytes of their
// names.
func (img *Image) ReadDir(name string) ([]fs.DirEntry, error) {
	ino, err := img.resolve("readdir", name, true)
	if err != nil {
		return nil, err
	}
	if ino.Type != TypeDir {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: syscall.ENOTDIR}
	}
	dir := &openDir{fileInfo: fileInfo{name: path.Base(name), ino: ino}, img: img}
	return dir.ReadDir(-1)
}

// Stat returns what the image says of the named file, after following symlinks. The
// Sys method of the result returns an *[Inode].
func (img *Image) Stat(name string) (fs.FileInfo, error) {
	return img.stat("stat", name, true)
}

// Lstat is Stat, but for a symlink it returns what the image says of the link.
func (img *Image) Lstat(name string) (fs.FileInfo, error) {
	return img.stat("lstat", name, false)
}

func (img *Image) stat(op, name string, follow bool) (fs.FileInfo, error) {
	ino, err := img.resolve(op, name, follow)
	if err != nil {
		return nil, err
	}
	return &fileInfo{name: path.Base(name), ino: ino}, nil
}

// ReadLink returns the target of the named symlink, as it is.
func (img *Image) ReadLink(name string) (string, error) {
	ino, err := img.resolve("readlink", name, false)
	if err != nil {
		return "", err
	}
	b, err := img.AppendLink(nil, &ino)
	if err != nil {
		return "", &fs.PathError{Op: "readlink", Path: name, Err: err}
	}
	return string(b), nil
}

// ReadFile returns the contents of the named file. A few bytes of an image can stand for
// a huge file of zeros: who does not trust an image asks Stat for the size first, or
// reads a file from Open. Files of more than 1 GiB are refused with [syscall.EFBIG].
func (img *Image) ReadFile(name string) ([]byte, error) {
	ino, err := img.resolve("readfile", name, true)
	if err != nil {
		return nil, err
	}
	if ino.Type > TypeSymlink { // as Open has it
		return []byte{}, nil
	}
	f, err := img.File(&ino)
	if err != nil {
		return nil, &fs.PathError{Op: "readfile", Path: name, Err: err}
	}
	b, err := readAll(&f)
	if err != nil {
		return nil, &fs.PathError{Op: "readfile", Path: name, Err: err}
	}
	return b, nil
}

// readAll returns all of f, in a buffer that grows as bytes are found: what the inode
// says is no reason to allocate.
func readAll(f *File) ([]byte, error) {
	if f.Size() > maxReadFile {
		return nil, fmt.Errorf("%d bytes to read at once, want at most %d: %w", f.Size(), maxReadFile, syscall.EFBIG)
	}
	var b []byte
	for size := f.Size(); int64(len(b)) < size; {
		n := len(b)
		more := int(min(size-int64(n), int64(max(n, 1<<20))))
		b = slices.Grow(b, more)[:n+more]
		if _, err := f.ReadAt(b[n:], int64(n)); err != nil {
			return nil, err
		}
	}
	return slices.Clip(b), nil
}

// Resolve returns the inode at path, a string of any bytes as Linux takes them: names
// need not be UTF-8, slashes may be doubled, a path may start with "/" and may contain
// "." and "..". All paths start at the root of the image and none leaves it; "" is the
// root too. Symlinks on the way are followed inside the image, at most 40 of them; one
// at the end is followed if follow is set, or if a slash stands behind it. Errors are
// of type [*fs.PathError]; those that have to do with the path match
// [fs.ErrNotExist], [syscall.ENOTDIR], [syscall.ELOOP] or [syscall.ENAMETOOLONG].
func (img *Image) Resolve(path string, follow bool) (Inode, error) {
	return img.find("resolve", path, follow)
}

// resolve is Resolve for names as package io/fs has them.
func (img *Image) resolve(op, name string, follow bool) (Inode, error) {
	if !fs.ValidPath(name) {
		return Inode{}, &fs.PathError{Op: op, Path: name, Err: fs.ErrInvalid}
	}
	return img.find(op, name, follow)
}

// find is Resolve, in the name of op.
func (img *Image) find(op, name string, follow bool) (Inode, error) {
	w := walker{img: img}
	err := w.root()
	if err == nil {
		err = w.walk(name, follow)
	}
	if err != nil {
		return Inode{}, &fs.PathError{Op: op, Path: name, Err: err}
	}
	return w.at, nil
}

// walker follows paths through an image.
type walker struct {
	img   *Image
	at    Inode   // where it is
	above []Inode // the directories that lead there, the root first
	links int     // symlinks followed
}

// root goes to the root.
func (w *walker) root() (err error) {
	w.above = w.above[:0]
	w.at, err = w.img.Inode(w.img.Root())
	return err
}

// walk goes along name. When it meets a symlink, its target takes the place of the
// element. A symlink at the end is followed if follow is set.
func (w *walker) walk(name string, follow bool) error {
	for more := true; more; {
		var elem string
		elem, name, more = strings.Cut(name, "/")
		if err := w.step(elem); err != nil {
			return err
		}
		if w.at.Type != TypeSymlink || !more && !follow {
			continue
		}
		target, err := w.follow()
		if err != nil {
			return err
		}
		if more {
			target += "/" + name
		}
		name, more = target, true
	}
	return nil
}

// step goes to one element of a path.
func (w *walker) step(elem string) error {
	switch {
	case w.at.Type != TypeDir:
		return syscall.ENOTDIR
	case elem == "" || elem == ".":
		return nil
	case elem == "..":
		w.up()
		return nil
	case len(w.above) == maxDepth:
		return fmt.Errorf("more than %d directories deep: %w", maxDepth, syscall.ENAMETOOLONG)
	}
	e, err := w.img.Lookup(&w.at, elem)
	if err != nil {
		return err
	}
	child, err := w.img.Inode(e.Ref)
	if err != nil {
		return err
	}
	if err := w.img.enter(&w.at, &e, &child); err != nil {
		return err
	}
	w.above = append(w.above, w.at)
	w.at = child
	return nil
}

// follow leaves a symlink for the directory that its target counts from, and returns
// the target.
func (w *walker) follow() (string, error) {
	if w.links++; w.links > maxFollow {
		return "", fmt.Errorf("more than %d symlinks: %w", maxFollow, syscall.ELOOP)
	}
	b, err := w.img.AppendLink(nil, &w.at)
	if err != nil {
		return "", err
	}
	if b[0] == '/' {
		return string(b), w.root()
	}
	w.up()
	return string(b), nil
}

// up goes to the directory above; the root is above itself.
func (w *walker) up() {
	if n := len(w.above); n > 0 {
		w.at, w.above = w.above[n-1], w.above[:n-1]
	}
}

// place is where a directory was found: in a directory, at an entry.
type place struct {
	dir InodeRef
	pos DirPos
}

// enter checks that the inode is what its entry in dir says, and that a directory is
// not found in two places. The first place at which a directory was seen counts. That
// bounds all walks: no cycles, and none of the trees in which two entries for each
// next directory make 2^n paths (unsquashfs refuses both too, inumber_lookup).
func (img *Image) enter(dir *Inode, e *Dirent, child *Inode) error {
	if e.Type != child.Type {
		return corrupt(-1, "entry %q of directory %v is a %v, but its inode %v a %v", e.Name, dir.Ref, e.Type, e.Ref, child.Type)
	}
	if child.Type != TypeDir {
		return nil
	}
	here := place{dir.Ref, e.Pos}
	if first, seen := img.entered.LoadOrStore(e.Ref, here); seen && first != here {
		return corrupt(-1, "directory %v is entry %q of directory %v, but was found elsewhere before", e.Ref, e.Name, dir.Ref)
	}
	return nil
}
