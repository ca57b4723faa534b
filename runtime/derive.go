package runtime

import (
	"errors"
	"fmt"
	"os"
	"path"
	goruntime "runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// deriver makes mount namespaces from that of the init stage, which holds a container. It belongs to one goroutine.
type deriver struct {
	ops  []Op
	proc int // O_PATH descriptor of the host's /proc
}

// derive returns a copy of this process's mount namespace, in which /dev is without the nodes in hide. A thread may
// leave the others' mount namespace (unshare(2)): one does, and ends.
func (d *deriver) derive(hide []string) (*os.File, error) {
	if err := checkHidden(hide); err != nil {
		return nil, err
	}
	type result struct {
		ns  *os.File
		err error
	}
	done := make(chan result)
	go func() {
		goruntime.LockOSThread() // never unlocked
		ns, err := d.inThread(hide)
		done <- result{ns, err}
	}()
	r := <-done
	return r.ns, r.err
}

func checkHidden(nodes []string) error {
	for _, n := range nodes {
		if !strings.HasPrefix(n, "/dev/") || path.Clean(n) != n {
			return fmt.Errorf("%q: not a device node below /dev", n)
		}
	}
	return nil
}

// hide gives the calling thread, and the command that it will start, a mount namespace of its own, in which /dev is
// without nodes.
func hide(nodes []string) error {
	if err := checkHidden(nodes); err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	d := &deriver{ops: []Op{ownDevices}}
	return d.devices(nodes)
}

func (d *deriver) inThread(hide []string) (*os.File, error) {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return nil, fmt.Errorf("unshare: %w", err)
	}
	if err := d.devices(hide); err != nil {
		return nil, err
	}
	// thread-self would be this thread, too, but only since Linux 3.17, and where /proc is that of its PID namespace.
	fd, err := unix.Openat(d.proc, "thread-self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("own namespace: %w", err)
	}
	return os.NewFile(uintptr(fd), "mnt"), nil
}

// entry is something below /dev that goes along.
type entry struct {
	name  string // below /dev
	link  string // it is a link to that
	mount int    // it is this detached mount; -1: it is an own directory, or a link
	dir   bool   // what is mounted, or the link's place, is a directory
}

// devices puts a new file system in the place of /dev that has all that was there but hide.
func (d *deriver) devices(hide []string) error {
	place := slices.IndexFunc(d.ops, func(op Op) bool { return op.Do == OpTmpfs && op.Target == "/dev" })
	if len(hide) == 0 || place < 0 {
		return nil
	}
	old, err := unix.Open("/dev", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(old)
	entries, err := collect(old, "", hide)
	defer func() {
		for _, e := range entries {
			if e.mount >= 0 {
				unix.Close(e.mount)
			}
		}
	}()
	if err != nil {
		return err
	}
	if err = unix.Fchdir(old); err != nil {
		return err
	}
	if err = unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount /dev: %w", err)
	}
	root, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(root)
	b := &builder{root: root}
	if err = b.newFS(d.ops[place]); err != nil {
		return fmt.Errorf("mount /dev: %w", err)
	}
	return furnish(entries)
}

// collect lists what is in a directory, rel below /dev and open as dirfd, in detached copies. Where something of it is
// hidden, its own directories are taken apart.
func collect(dirfd int, rel string, hide []string) (entries []entry, err error) {
	again, err := unix.Openat(dirfd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	dir := os.NewFile(uintptr(again), "/dev/"+rel)
	defer dir.Close()
	list, err := dir.ReadDir(maxDevices + 1)
	if err != nil && len(list) == 0 {
		return nil, nil // io.EOF: it is empty
	}
	if len(list) > maxDevices {
		return nil, fmt.Errorf("/dev/%s: more than %d entries", rel, maxDevices)
	}
	for _, l := range list {
		e := entry{name: path.Join(rel, l.Name()), mount: -1, dir: l.IsDir()}
		full := "/dev/" + e.name
		switch {
		case slices.Contains(hide, full):
			continue
		case l.Type()&os.ModeSymlink != 0:
			buf := make([]byte, unix.PathMax)
			var n int
			if n, err = unix.Readlinkat(dirfd, l.Name(), buf); err != nil {
				return entries, err
			}
			e.link = string(buf[:n])
		case e.dir && slices.ContainsFunc(hide, func(h string) bool { return strings.HasPrefix(h, full+"/") }):
			var more []entry
			more, err = collectBelow(dirfd, l.Name(), e.name, hide)
			entries = append(append(entries, e), more...)
			if err != nil {
				return entries, err
			}
			continue
		default:
			e.mount, err = unix.OpenTree(dirfd, l.Name(), unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE|unix.AT_SYMLINK_NOFOLLOW)
			if errors.Is(err, unix.EINVAL) {
				continue // it is unbindable, and so in no copy
			}
			if err != nil {
				return entries, fmt.Errorf("copy %s: %w", full, err)
			}
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// maxDevices bounds the entries of a directory below /dev.
const maxDevices = 4096

func collectBelow(dirfd int, name, rel string, hide []string) ([]entry, error) {
	fd, err := unix.Openat(dirfd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	return collect(fd, rel, hide)
}

// furnish makes the entries in the new /dev. Nothing else is in there, so that no link leads anywhere.
func furnish(entries []entry) error {
	dev, err := unix.Open("/dev", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dev)
	defer unix.Umask(unix.Umask(0))
	for _, e := range entries {
		if e.link != "" {
			err = unix.Symlinkat(e.link, dev, e.name)
		} else {
			err = create(dev, e.name, e.dir)
		}
		if err == nil && e.mount >= 0 {
			err = attach(e.mount, dev, e.name)
		}
		if err != nil {
			return fmt.Errorf("/dev/%s: %w", e.name, err)
		}
	}
	return nil
}
