package extract

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/sqfs"
)

// tree walks the image and makes what is in it, but for the bytes of files.
func (x *extraction) tree(root *sqfs.Inode) {
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
			x.enterRoot(v)
		case v.Leave:
			x.leave(v)
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
		if d.fd >= 0 && d.fd != x.target.fd {
			unix.Close(d.fd)
		}
	}
}

// enterRoot begins with the target. It too is made now only if it is wanted for itself.
func (x *extraction) enterRoot(v *sqfs.Visit) {
	take, within := x.opts.selects(v)
	if !take && !within {
		v.Skip()
		return
	}
	x.dirs = append(x.dirs, dir{ino: v.Inode, fd: -1})
	if take {
		_, _ = x.parent(0, nil) // an error ends the extraction
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
func (x *extraction) leave(v *sqfs.Visit) {
	d := &x.dirs[v.Depth]
	if v.Depth > 0 {
		x.openAbove()
	}
	if d.made && !d.lost && (v.Depth > 0 || x.target.made) {
		x.finishDir(d)
	}
	if v.Depth > 0 {
		x.closeDir()
	}
}

// finishDir gives a directory its attributes. It puts that off if they would keep an
// ordinary user from files in it which get further names elsewhere.
func (x *extraction) finishDir(d *dir) {
	if x.euid != 0 && d.ino.Mode&0o700 != 0o700 && d.node.pins > 0 {
		d.node.late = true
		return
	}
	x.attributes(d.fd, place{dir: d.node}, &d.ino)
}

// make makes what is no directory.
func (x *extraction) make(v *sqfs.Visit) {
	parent, err := x.parent(v.Depth-1, v.Path)
	if err != nil {
		return // told before
	}
	at := place{x.dirs[v.Depth-1].node, string(v.Name())}
	ref := v.Inode.Ref
	if first, ok := x.links.files[ref]; ok {
		err = x.link(parent, at, first)
		x.named(ref)
		if err == nil {
			x.count(&x.counts.hardLinks)
			return
		}
		// The host has no hard links, or no more for one file: then it is a file of its own.
		if !errors.Is(err, unix.EMLINK) && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EOPNOTSUPP) {
			x.report(at.String(), err)
			return
		}
	}
	var id identity
	switch v.Inode.Type {
	case sqfs.TypeFile:
		id, err = x.file(parent, at, &v.Inode)
	case sqfs.TypeSymlink:
		id, err = x.symlink(parent, at, &v.Inode)
	default:
		id, err = x.special(parent, at, &v.Inode)
	}
	if err == nil && v.Inode.Nlink > 1 && id != (identity{}) {
		if !x.links.add(ref, madeFile{at, id, v.Inode.Nlink - 1}) {
			err = errManyLinks
		}
	}
	if err != nil {
		x.report(at.String(), err)
	}
}

// symlink makes a symlink.
func (x *extraction) symlink(parent int, at place, ino *sqfs.Inode) (identity, error) {
	to, err := x.img.AppendLink(nil, ino)
	if err != nil {
		return identity{}, err
	}
	err = x.inTheWay(parent, at.name, func() error {
		return host("symlink", ignoringEINTR(func() error { return unix.Symlinkat(string(to), parent, at.name) }))
	})
	if err != nil {
		return identity{}, err
	}
	return x.finishNode(parent, at, ino)
}

// special makes a device, fifo or socket.
func (x *extraction) special(parent int, at place, ino *sqfs.Inode) (identity, error) {
	device := ino.Type == sqfs.TypeBlock || ino.Type == sqfs.TypeChar
	if device && x.euid != 0 {
		x.count(&x.counts.noDevice)
		return identity{}, nil
	}
	err := x.inTheWay(parent, at.name, func() error {
		mode := ino.UnixMode()&unix.S_IFMT | 0o600
		return host("mknod", ignoringEINTR(func() error { return unix.Mknodat(parent, at.name, mode, deviceNumber(ino)) }))
	})
	if device && errors.Is(err, unix.EPERM) { // root of a user namespace
		x.count(&x.counts.noDevice)
		return identity{}, nil
	}
	if err != nil {
		return identity{}, err
	}
	return x.finishNode(parent, at, ino)
}

// deviceNumber is the device in the form of the system calls (linux/kdev_t.h:
// new_decode_dev); 0 for what is no device.
func deviceNumber(ino *sqfs.Inode) int {
	r := ino.Rdev
	return int(unix.Mkdev(r>>8&0xfff, r&0xff|r>>12&0xfff00))
}

// finishNode gives attributes to what was just made and cannot be opened: the symlink,
// device, fifo or socket at that place. Somebody may have put something else there, so
// it is looked at first: a set-id file of another, given to the owner that an image
// says, would be worth the trouble.
func (x *extraction) finishNode(parent int, at place, ino *sqfs.Inode) (identity, error) {
	fd, err := openat(parent, at.name, openNode, 0)
	if err != nil {
		return identity{}, host("open", err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return identity{}, host("stat", err)
	}
	if st.Mode&unix.S_IFMT != ino.UnixMode()&unix.S_IFMT || !x.ours(parent, &st) || st.Nlink != 1 {
		return identity{}, errSwapped
	}
	x.attributes(fd, at, ino)
	x.count(x.counter(ino.Type))
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
func (x *extraction) file(parent int, at place, ino *sqfs.Inode) (identity, error) {
	contents, err := x.img.File(ino)
	if err != nil {
		return identity{}, err
	}
	select {
	case x.slots <- struct{}{}:
	case <-x.ctx.Done():
		return identity{}, nil
	}
	f := &outFile{x: x, at: at, ino: *ino, file: contents}
	err = x.inTheWay(parent, at.name, func() (err error) {
		f.fd, err = openat(parent, at.name, newFile, 0o600)
		return host("create", err)
	})
	if err != nil {
		<-x.slots
		return identity{}, err
	}
	f.left.Store(1) // until all is handed out
	defer f.done()
	var id identity
	if ino.Nlink > 1 {
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
