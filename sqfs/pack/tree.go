package pack

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/squirefs/squire/sqfs"
	"github.com/squirefs/squire/sqfs/internal/disk"
)

// tree is what Finish knows of the inodes of an image. It goes through them twice, with a
// stack of its own, for a tree may be deeper than goroutines like: first to check them
// and to number them, then to write them.
type tree struct {
	w         *Writer
	root      *Inode
	stack     []frame
	lists     [][]entry // of all directories, sorted, in the order in which they are entered
	inodes    uint32
	fragments []uint32 // new numbers of fragments: those that no inode uses are left out
	used      uint32   // fragments that are not
}

// frame is a directory on the way from the root to where a walk is.
type frame struct {
	name string
	dir  *Inode
	list []entry
	next int // in list
}

// entry is a name in a directory.
type entry struct {
	name  string
	inode *Inode
}

// maxTarget is the longest target of a symlink that unsquashfs reads (unsquash-4.c). Linux
// takes 4096 bytes.
const maxTarget = 65535

// newTree checks the tree below root and numbers its inodes: in the order of a walk
// through sorted directories, a directory before what is in it, and the root last, as
// mksquashfs does.
func newTree(w *Writer, root *Inode) (*tree, error) {
	t := &tree{w: w, root: root, fragments: slices.Repeat([]uint32{disk.None}, int(w.fragments))}
	if root == nil || root.Type != sqfs.TypeDir {
		return nil, fmt.Errorf("pack: the root is no directory")
	}
	if err := t.meet(root); err != nil {
		return nil, fmt.Errorf("pack: /: %w", err)
	}
	t.inodes = 0
	t.enter("", root)
	for len(t.stack) > 0 {
		f := &t.stack[len(t.stack)-1]
		if f.next == len(f.list) {
			t.leave()
			continue
		}
		e := f.list[f.next]
		f.next++
		if err := t.visit(f.dir, e); err != nil {
			return nil, fmt.Errorf("pack: %s: %w", t.path(e.name), err)
		}
		if e.inode.Type == sqfs.TypeDir {
			t.enter(e.name, e.inode)
		}
	}
	t.inodes++
	root.number = t.inodes
	for i, n := range t.fragments {
		if n != disk.None {
			t.fragments[i] = t.used
			t.used++
		}
	}
	return t, nil
}

// enter goes into a directory for the first time.
func (t *tree) enter(name string, dir *Inode) {
	list := make([]entry, 0, len(dir.Entries))
	for name, i := range dir.Entries {
		list = append(list, entry{name, i})
	}
	slices.SortFunc(list, func(a, b entry) int { return cmp.Compare(a.name, b.name) })
	t.lists = append(t.lists, list)
	t.stack = append(t.stack, frame{name: name, dir: dir, list: list})
}

func (t *tree) leave() {
	t.stack[len(t.stack)-1] = frame{}
	t.stack = t.stack[:len(t.stack)-1]
}

// path returns the path of a name in the directory on top of the stack.
func (t *tree) path(name string) string {
	var b strings.Builder
	for _, f := range t.stack[1:] {
		b.WriteString("/" + f.name)
	}
	return b.String() + "/" + name
}

// visit looks at an entry of dir.
func (t *tree) visit(dir *Inode, e entry) error {
	if err := checkName(e.name); err != nil {
		return err
	}
	if e.inode == nil {
		return fmt.Errorf("no inode")
	}
	if e.inode.w != t.w {
		if err := t.meet(e.inode); err != nil {
			return err
		}
	} else if e.inode.Type == sqfs.TypeDir {
		return fmt.Errorf("the directory has another name already, or contains itself")
	}
	if e.inode.Type == sqfs.TypeDir {
		dir.links++
	} else {
		e.inode.links++
	}
	return nil
}

func checkName(name string) error {
	switch {
	case name == "" || name == "." || name == "..":
		return fmt.Errorf("%q cannot be a name", name)
	case len(name) >= disk.MaxName:
		return fmt.Errorf("name of %d bytes, more than %d", len(name), disk.MaxName-1)
	case strings.ContainsAny(name, "/\x00"):
		return fmt.Errorf("a slash or a zero byte in a name")
	}
	return nil
}

// meet checks an inode that was not seen before and gives it a number.
func (t *tree) meet(i *Inode) error {
	if t.inodes == math.MaxUint32-1 {
		return fmt.Errorf("more than %d inodes", t.inodes)
	}
	if i.Type < sqfs.TypeDir || i.Type > sqfs.TypeSocket {
		return fmt.Errorf("inode of %v", i.Type)
	}
	if i.Data != nil && i.Type != sqfs.TypeFile || len(i.Entries) > 0 && i.Type != sqfs.TypeDir || i.Target != "" && i.Type != sqfs.TypeSymlink {
		return fmt.Errorf("a %v with contents of another type", i.Type)
	}
	if i.Type == sqfs.TypeSymlink && (i.Target == "" || len(i.Target) > maxTarget || strings.Contains(i.Target, "\x00")) {
		return fmt.Errorf("symlink with a target of %d bytes or a zero byte in it, want 1..%d", len(i.Target), maxTarget)
	}
	if i.Data != nil && i.Data.w != t.w {
		return fmt.Errorf("contents that were added to another image")
	}
	if err := checkXattrs(i.Xattrs); err != nil {
		return err
	}
	if i.Data != nil && i.Data.fragment != disk.None {
		t.fragments[i.Data.fragment] = 0
	}
	t.inodes++
	i.w, i.number, i.links, i.written, i.ref = t.w, t.inodes, 0, false, 0
	return nil
}
