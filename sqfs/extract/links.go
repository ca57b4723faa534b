package extract

import (
	"errors"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/sqfs"
)

// node is a directory that was made or was there, as long as something needs the way
// to it. Nobody keeps whole paths: they may be a MiB long, and an image of some KiB has
// many thousand of them.
type node struct {
	up   *node // nil: the target
	name string
	id   identity
	ref  sqfs.InodeRef

	pins int  // entries in the table of links, and directories below that have such
	late bool // gets its attributes when there are none any more
}

// place is where something lies: name in dir, or dir itself if name is empty.
type place struct {
	dir  *node
	name string
}

// String returns the path in the image.
func (p place) String() string {
	var names []string
	if p.name != "" {
		names = append(names, p.name)
	}
	for n := p.dir; n.up != nil; n = n.up {
		names = append(names, n.name)
	}
	slices.Reverse(names)
	return strings.Join(names, "/")
}

// madeFile is a file that exists and gets further names.
type madeFile struct {
	place
	id   identity
	left uint32 // names to come
}

// linkTable has the files whose further names are still to come, and the directories
// that lead to them. An image can have millions: there is a bound to what they take.
type linkTable struct {
	files map[sqfs.InodeRef]madeFile
	bytes int // about
	limit int // of bytes
}

const (
	linkBytes = 64 << 20 // the limit of a linkTable: some 300000 files
	linkCost  = 160      // of a file or directory in it, and the length of its name
)

// errManyLinks says that a file is not in the linkTable.
var errManyLinks = errors.New("too many files wait for further names: those of this one become files of their own")

// add remembers a file that has left names more. It returns false if there is no room.
func (t *linkTable) add(ref sqfs.InodeRef, f madeFile) bool {
	if t.bytes+linkCost+len(f.name) > t.limit {
		return false
	}
	if _, old := t.files[ref]; old { // the host took no more links for it
		return true
	}
	t.files[ref] = f
	t.bytes += linkCost + len(f.name)
	for n := f.dir; n != nil; n = n.up {
		if n.pins++; n.pins > 1 {
			break
		}
		t.bytes += linkCost + len(n.name)
	}
	return true
}

// remove forgets a file, and calls free for each directory that nothing needs any more,
// the deepest first.
func (t *linkTable) remove(ref sqfs.InodeRef, free func(*node)) {
	f := t.files[ref]
	delete(t.files, ref)
	t.bytes -= linkCost + len(f.name)
	for n := f.dir; n != nil; n = n.up {
		if n.pins--; n.pins > 0 {
			break
		}
		t.bytes -= linkCost + len(n.name)
		free(n)
	}
}

// link makes a further name for a file that exists, and checks that it is the file.
func (x *extraction) link(parent int, at place, first madeFile) error {
	from := parent
	if at.dir != first.dir {
		var err error
		if from, err = x.openNode(first.dir); err != nil {
			return host("open", err)
		}
		defer unix.Close(from)
	}
	err := x.inTheWay(parent, at.name, func() error {
		return host("link", ignoringEINTR(func() error { return unix.Linkat(from, first.name, parent, at.name, 0) }))
	})
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(parent, at.name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil || identityOf(&st) != first.id {
		_ = unix.Unlinkat(parent, at.name, 0)
		return errSwapped
	}
	return nil
}

// named counts a name of a file in the table of links, which forgets it with the last.
func (x *extraction) named(ref sqfs.InodeRef) {
	f := x.links.files[ref]
	if f.left--; f.left == 0 {
		x.links.remove(ref, x.finishLate)
		return
	}
	x.links.files[ref] = f
}

// finishLinks forgets all files whose names did not all come.
func (x *extraction) finishLinks() {
	for ref := range x.links.files {
		x.links.remove(ref, x.finishLate)
	}
}

// finishLate gives attributes to a directory that was left before, if it waits for them.
func (x *extraction) finishLate(n *node) {
	if !n.late || x.ctx.Err() != nil {
		return
	}
	n.late = false
	if err := x.finishNow(n); err != nil {
		x.report(place{dir: n}.String(), err)
	}
}

// finishNow opens a directory again and gives it its attributes.
func (x *extraction) finishNow(n *node) error {
	ino, err := x.img.Inode(n.ref)
	if err != nil {
		return err
	}
	fd, err := x.openNode(n)
	if err != nil {
		return host("open", err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || identityOf(&st) != n.id {
		return errSwapped
	}
	x.attributes(fd, place{dir: n}, &ino)
	return nil
}

// openNode opens a directory from the target on, one name after the other: a path may
// be longer than the host takes.
func (x *extraction) openNode(n *node) (int, error) {
	var way []string
	for ; n.up != nil; n = n.up {
		way = append(way, n.name)
	}
	fd, err := openat(x.target.fd, ".", openDir, 0)
	for _, name := range slices.Backward(way) {
		if err != nil {
			break
		}
		at := fd
		fd, err = openat(at, name, openDir, 0)
		unix.Close(at)
	}
	return fd, err
}
