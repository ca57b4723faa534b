package container

import (
	"errors"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// maxDepth is how many directories are open at once while a tree is removed. What lies
// deeper is moved up first.
const maxDepth = 100

// removeTree removes a directory of root and all that is in it. It is the user's, as is
// everything in it, but the modes may say anything: overlayfs leaves a directory with mode
// 000, and so may a command in the container. Others may be at it, too: who opens a store
// removes what somebody has begun to remove.
func removeTree(root *os.Root, name string) error {
	parent, err := root.Open(".")
	if err != nil {
		return plain(err)
	}
	defer parent.Close()
	r := remover{top: int(parent.Fd())}
	if err = r.dir(r.top, name, 0); err != nil {
		return err
	}
	for len(r.moved) > 0 {
		next := r.moved[len(r.moved)-1]
		r.moved = r.moved[:len(r.moved)-1]
		if err = r.dir(r.top, next, 0); err != nil {
			return err
		}
	}
	return nil
}

// remover removes a tree.
type remover struct {
	top   int      // descriptor of the directory that the tree is in
	moved []string // directories that were moved there
}

// dir removes a directory of the directory at.
func (r *remover) dir(at int, name string, depth int) error {
	fd, err := openDir(at, name)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return &fs.PathError{Op: "open", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	_ = unix.Fchmod(fd, 0o700) // so that what is in it can be unlinked and moved; or it says so itself
	if depth == maxDepth {
		return r.moveUp(at, name)
	}
	for {
		names, err := f.Readdirnames(1000)
		for _, n := range names {
			if failed := r.entry(fd, n, depth+1); failed != nil {
				return failed
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, unix.ENOENT) { // somebody else has removed it
			break
		}
		if err != nil {
			return &fs.PathError{Op: "read", Path: name, Err: err}
		}
	}
	return unlink(at, name, unix.AT_REMOVEDIR)
}

// entry removes what has a name in a directory.
func (r *remover) entry(at int, name string, depth int) error {
	err := unlink(at, name, 0)
	if errors.Is(err, unix.EISDIR) {
		return r.dir(at, name, depth)
	}
	return err
}

// moveUp puts a directory where it is found later.
func (r *remover) moveUp(at int, name string) error {
	to := goingPrefix + random()
	err := unix.Renameat(at, name, r.top, to)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return &fs.PathError{Op: "move", Path: name, Err: err}
	}
	r.moved = append(r.moved, to)
	return nil
}

// openDir opens a directory, whatever its mode says, and no link.
func openDir(at int, name string) (int, error) {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(at, name, flags, 0)
	if !errors.Is(err, unix.EACCES) {
		return fd, err
	}
	path, err := unix.Openat(at, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(path)
	// fchmod(2) takes no O_PATH descriptors.
	if err = unix.Chmod(procPath(path), 0o700); err != nil {
		return -1, err
	}
	return unix.Openat(at, name, flags, 0)
}

func unlink(at int, name string, flags int) error {
	err := unix.Unlinkat(at, name, flags)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return &fs.PathError{Op: "remove", Path: name, Err: err}
}
