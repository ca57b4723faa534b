package extract

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/sqfs"
)

// madeFile is a file that exists and may get further names.
type madeFile struct {
	path string
	id   identity
}

// lateDir is a directory whose mode would keep an ordinary user out of it. It gets its
// attributes when nothing in it is needed any more.
type lateDir struct {
	path string
	id   identity
	ino  sqfs.Inode
}

// tree walks the image and makes what is in it, but for the bytes of files.
func (x *extraction) tree(root *sqfs.Inode, t target) {
	for v, err := range x.img.Walk(root) {
		switch {
		case x.ctx.Err() != nil:
			x.closeAll()
			return
		case err != nil:
			if take, within := x.opts.selects(v); take || within {
				x.report(string(v.Path), err)
			}
		case v.Depth == 0 && !v.Leave:
			x.dirs = append(x.dirs, dir{ino: v.Inode, fd: t.fd, made: true})
		case v.Leave:
			x.leave(v, t)
		case v.Inode.Type == sqfs.TypeDir:
			x.enter(v)
		default:
			if take, _ := x.opts.selects(v); take {
				x.make(v)
			}
		}
	}
}

// closeAll closes all directories but the target.
func (x *extraction) closeAll() {
	for _, d := range x.dirs {
		if d.fd >= 0 && d.fd != x.dirs[0].fd {
			unix.Close(d.fd)
		}
	}
}

// enter comes to a directory. It is made now if it is wanted for itself.
func (x *extraction) enter(v *sqfs.Visit) {
	take, within := x.opts.selects(v)
	if !take && !within {
		v.Skip()
		return
	}
	x.dirs = append(x.dirs, dir{ino: v.Inode, base: len(v.Path) - len(v.Name()), end: len(v.Path), fd: -1})
	if !take {
		return
	}
	if _, err := x.parent(v.Depth, v.Path); err != nil {
		x.closeDir()
		v.Skip()
	}
}

// leave completes a directory.
func (x *extraction) leave(v *sqfs.Visit, t target) {
	d := &x.dirs[v.Depth]
	if d.made && !d.lost && (v.Depth > 0 || t.made) {
		x.finishDir(d, string(v.Path))
	}
	if v.Depth > 0 {
		x.closeDir()
	}
}

// finishDir gives a directory its attributes, or puts that off.
func (x *extraction) finishDir(d *dir, path string) {
	if x.euid != 0 && d.ino.Mode&0o700 != 0o700 {
		if d.id == (identity{}) { // the target
			var st unix.Stat_t
			if unix.Fstat(d.fd, &st) == nil {
				d.id = identityOf(&st)
			}
		}
		x.late = append(x.late, lateDir{path, d.id, d.ino})
		return
	}
	x.attributes(d.fd, path, &d.ino)
}

// finishLate gives attributes to the directories that were put off, the deepest first.
func (x *extraction) finishLate(root int) {
	for i := range x.late {
		l := &x.late[i]
		fd, err := openPath(root, l.path)
		if err != nil {
			x.report(l.path, host("open", err))
			continue
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil || identityOf(&st) != l.id {
			x.report(l.path, errSwapped)
		} else {
			x.attributes(fd, l.path, &l.ino)
		}
		unix.Close(fd)
	}
}

// make makes what is no directory.
func (x *extraction) make(v *sqfs.Visit) {
	parent, err := x.parent(v.Depth-1, v.Path)
	if err != nil {
		return // told before
	}
	name := string(v.Name())
	if first, ok := x.links[v.Inode.Ref]; ok {
		err = x.link(parent, name, v, first)
		if err == nil {
			x.count(&x.counts.hardLinks)
			return
		}
		// The host has no hard links, or no more for one file: then it is a file of its own.
		if !errors.Is(err, unix.EMLINK) && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EOPNOTSUPP) {
			x.report(string(v.Path), err)
			return
		}
	}
	var id identity
	switch v.Inode.Type {
	case sqfs.TypeFile:
		id, err = x.file(parent, name, v)
	case sqfs.TypeSymlink:
		id, err = x.symlink(parent, name, v)
	default:
		id, err = x.special(parent, name, v)
	}
	if err != nil {
		x.report(string(v.Path), err)
	} else if v.Inode.Nlink > 1 && id != (identity{}) {
		x.links[v.Inode.Ref] = madeFile{string(v.Path), id}
	}
}

// link makes a further name for a file that exists, and checks that it is the file.
func (x *extraction) link(parent int, name string, v *sqfs.Visit, first madeFile) error {
	from, base, err := x.openFirst(parent, v, first)
	if err != nil {
		return host("open", err)
	}
	if from != parent {
		defer unix.Close(from)
	}
	err = x.inTheWay(parent, name, func() error {
		return host("link", ignoringEINTR(func() error { return unix.Linkat(from, base, parent, name, 0) }))
	})
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(parent, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil || identityOf(&st) != first.id {
		_ = unix.Unlinkat(parent, name, 0)
		return errSwapped
	}
	return nil
}

// openFirst opens the directory of a file that was made before, which may be parent.
func (x *extraction) openFirst(parent int, v *sqfs.Visit, first madeFile) (fd int, base string, err error) {
	slash := strings.LastIndexByte(first.path, '/')
	dir, base := first.path[:max(slash, 0)], first.path[slash+1:]
	here := bytes.TrimSuffix(v.Path[:len(v.Path)-len(v.Name())], []byte("/"))
	if string(here) == dir {
		return parent, base, nil
	}
	fd, err = openPath(x.dirs[0].fd, dir)
	return fd, base, err
}

// symlink makes a symlink.
func (x *extraction) symlink(parent int, name string, v *sqfs.Visit) (identity, error) {
	to, err := x.img.AppendLink(nil, &v.Inode)
	if err != nil {
		return identity{}, err
	}
	err = x.inTheWay(parent, name, func() error {
		return host("symlink", ignoringEINTR(func() error { return unix.Symlinkat(string(to), parent, name) }))
	})
	if err != nil {
		return identity{}, err
	}
	return x.finishNode(parent, name, v)
}

// special makes a device, fifo or socket.
func (x *extraction) special(parent int, name string, v *sqfs.Visit) (identity, error) {
	ino := &v.Inode
	device := ino.Type == sqfs.TypeBlock || ino.Type == sqfs.TypeChar
	if device && x.euid != 0 {
		x.count(&x.counts.noDevice)
		return identity{}, nil
	}
	err := x.inTheWay(parent, name, func() error {
		mode := ino.UnixMode()&unix.S_IFMT | 0o600
		return host("mknod", ignoringEINTR(func() error { return unix.Mknodat(parent, name, mode, deviceNumber(ino)) }))
	})
	if device && errors.Is(err, unix.EPERM) { // root of a user namespace
		x.count(&x.counts.noDevice)
		return identity{}, nil
	}
	if err != nil {
		return identity{}, err
	}
	return x.finishNode(parent, name, v)
}

// deviceNumber is the device in the form of the system calls (linux/kdev_t.h:
// new_decode_dev); 0 for what is no device.
func deviceNumber(ino *sqfs.Inode) int {
	r := ino.Rdev
	return int(unix.Mkdev(r>>8&0xfff, r&0xff|r>>12&0xfff00))
}

// finishNode gives attributes to what was just made and cannot be opened: the symlink,
// device, fifo or socket called name. Somebody may have put something else there, so
// it is looked at first: a set-id file of another, given to the owner that an image
// says, would be worth the trouble.
func (x *extraction) finishNode(parent int, name string, v *sqfs.Visit) (identity, error) {
	fd, err := openat(parent, name, openNode, 0)
	if err != nil {
		return identity{}, host("open", err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return identity{}, host("stat", err)
	}
	if st.Mode&unix.S_IFMT != v.Inode.UnixMode()&unix.S_IFMT || int(st.Uid) != x.euid || st.Nlink != 1 {
		return identity{}, errSwapped
	}
	x.attributes(fd, string(v.Path), &v.Inode)
	x.count(x.counter(v.Inode.Type))
	return identityOf(&st), nil
}

// counter returns where inodes of a type are counted.
func (x *extraction) counter(t sqfs.Type) *counter {
	switch t {
	case sqfs.TypeSymlink:
		return &x.counts.symlinks
	case sqfs.TypeFifo:
		return &x.counts.fifos
	case sqfs.TypeSocket:
		return &x.counts.sockets
	}
	return &x.counts.devices
}

// file makes a regular file and hands its bytes to the workers. It is complete, with
// its attributes, when the last of them is done.
func (x *extraction) file(parent int, name string, v *sqfs.Visit) (identity, error) {
	contents, err := x.img.File(&v.Inode)
	if err != nil {
		return identity{}, err
	}
	select {
	case x.slots <- struct{}{}:
	case <-x.ctx.Done():
		return identity{}, nil
	}
	f := &outFile{x: x, path: string(v.Path), ino: v.Inode, file: contents}
	err = x.inTheWay(parent, name, func() (err error) {
		f.fd, err = openat(parent, name, newFile, 0o600)
		return host("create", err)
	})
	if err != nil {
		<-x.slots
		return identity{}, err
	}
	f.left.Store(1) // until all is handed out
	defer f.done()
	var id identity
	if v.Inode.Nlink > 1 {
		var st unix.Stat_t
		if err := unix.Fstat(f.fd, &st); err != nil {
			return id, host("stat", err)
		}
		id = identityOf(&st)
	}
	x.handOut(f)
	return id, nil
}

// handOut makes the jobs of a file.
func (x *extraction) handOut(f *outFile) {
	blocks := f.file.NumBlocks()
	if blocks == 0 {
		return
	}
	last, err := f.file.Extent(blocks - 1)
	if err != nil {
		f.fail(fmt.Errorf("block %d: %w", blocks-1, err))
		return
	}
	if last.Block.Fragment {
		blocks--
	}
	run := max(runBytes/x.bs, 1)
	for first := int64(0); first < blocks && !f.broken.Load() && x.ctx.Err() == nil; first += run {
		f.left.Add(1)
		x.jobs <- job{f: f, first: first, n: min(run, blocks-first)}
	}
	if last.Block.Fragment {
		x.handOutTail(tail{f: f, start: last.Start, n: last.Len, off: blocks * x.bs}, last.Block)
	}
}

// handOutTail sees to it that the fragment block is expanded and the tail written.
func (x *extraction) handOutTail(t tail, block sqfs.Block) {
	t.f.left.Add(1)
	frag, isNew := x.frags.get(block)
	switch {
	case isNew:
		frag.waiting = append(frag.waiting, t)
		x.jobs <- job{frag: frag}
	case !frag.wait(t):
		x.jobs <- job{frag: frag, tail: t}
	}
}
