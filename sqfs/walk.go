package sqfs

import (
	"iter"

	"github.com/squirefs/squire/sqfs/internal/disk"
)

// Visit is one step of [Image.Walk]. It belongs to the walk, which changes it: what
// is to be kept must be copied.
type Visit struct {
	// Path leads from where the walk started to the inode: names, which need not be
	// UTF-8, with '/' between them. It is empty for the start itself.
	Path []byte
	// Depth is the number of names in Path.
	Depth int
	// Inode is the inode that Path leads to. Beside an error only Ref and Type are
	// sure to be set, as its directory has them.
	Inode Inode
	// Leave says that Inode is a directory and all in it was visited.
	Leave bool

	base int // where the last name begins in Path
	skip bool
}

// Name returns the last name of Path. It is empty for the start of the walk.
func (v *Visit) Name() []byte { return v.Path[v.base:] }

// Skip keeps the walk out of the directory that is being visited, which then is not
// left either. It does nothing for all else.
func (v *Visit) Skip() { v.skip = true }

// Walk visits start and, if it is a directory, all below it: each directory before
// what is in it, and once more with Leave set behind it; entries in the order of the
// directory, which is that of their bytes.
//
// What is damaged does not end the walk. It is a step with an error: for an entry that
// leads to no inode, or to one that contradicts it, the path of the entry; for a
// directory whose listing breaks off, the path of the directory (before it is left).
// Whoever ranges over the walk decides whether to go on.
//
// The walk ends on any image. A directory that was visited before is refused, so that
// there are no cycles and none of the trees in which two entries for each next
// directory make 2^n paths; no more directories are entered than the superblock has
// inodes, no deeper than 4096 levels; and listings that overlap, of which few bytes
// can make many, are cut off when there were more entries than the directory table
// can hold.
//
// The stack is one reader and 300 bytes for each level; the references of visited
// directories are kept, nothing else. Once the metadata is cached, entries that are
// no directories cost no allocation. A walk is used by one goroutine; there may be any
// number of walks at once.
func (img *Image) Walk(start *Inode) iter.Seq2[*Visit, error] {
	return func(yield func(*Visit, error) bool) {
		w := treeWalk{img: img, yield: yield, entered: make(map[InodeRef]struct{})}
		defer w.free()
		w.run(start)
	}
}

// treeWalk is a walk under way.
type treeWalk struct {
	img     *Image
	yield   func(*Visit, error) bool
	visit   Visit
	path    []byte
	stack   []level
	entered map[InodeRef]struct{} // directories
	entries int64                 // so far
}

// level is a directory on the way from the start to where the walk is.
type level struct {
	dir    Inode
	path   int // length of its path
	base   int // where its name begins there
	reader *dirReader
}

// free gives the readers back, also those of a walk that was broken off.
func (w *treeWalk) free() {
	for i := range w.stack {
		w.stack[i].reader.free()
	}
}

// run walks. Each method that it calls returns false when nobody wants more.
func (w *treeWalk) run(start *Inode) {
	more := w.see(start, 0)
	for more && len(w.stack) > 0 {
		top := &w.stack[len(w.stack)-1]
		switch {
		case top.reader.next():
			more = w.entry(top)
		case top.reader.err != nil:
			more = w.breakOff(top.reader.err) && w.leave()
		default:
			more = w.leave()
		}
	}
}

// entry visits the entry that the reader of top stands at.
func (w *treeWalk) entry(top *level) bool {
	e := &top.reader.entry
	base := top.path
	w.path = w.path[:base]
	if base > 0 {
		w.path = append(w.path, '/')
		base++
	}
	w.path = append(w.path, e.Name...)
	if w.entries++; w.entries > w.img.maxEntries() {
		top.reader.exhaust()
		return w.breakOff(corrupt(-1, "directory %v is part of a tree of more than %d entries: listings overlap", top.dir.Ref, w.img.maxEntries()))
	}
	child, err := w.img.Inode(e.Ref)
	if err == nil && child.Type != e.Type {
		err = corrupt(-1, "entry %q of directory %v is a %v, but its inode %v a %v", e.Name, top.dir.Ref, e.Type, e.Ref, child.Type)
	}
	if err != nil {
		return w.show(&Inode{Ref: e.Ref, Type: e.Type}, base, err)
	}
	return w.see(&child, base)
}

// maxEntries bounds the entries of all directories: a metadata block takes at least 3
// bytes of the table, a header and a byte, and expands to 8192 at most; an entry has
// at least one byte of name.
func (img *Image) maxEntries() int64 {
	return ((img.dirs.end-img.dirs.start)/3 + 1) * disk.MetadataSize / (disk.DirEntrySize + 1)
}

// see visits an inode, whose path is w.path, and goes into it if it is a directory.
func (w *treeWalk) see(ino *Inode, base int) bool {
	if ino.Type != TypeDir {
		return w.show(ino, base, nil)
	}
	if err := w.enter(ino); err != nil {
		return w.show(ino, base, err)
	}
	if !w.show(ino, base, nil) {
		return false
	}
	if w.visit.skip {
		return true
	}
	d := dirReaders.Get().(*dirReader)
	w.stack = append(w.stack, level{dir: *ino, path: len(w.path), base: base, reader: d})
	if err := d.open(w.img, ino, 0); err != nil {
		d.exhaust()
		return w.breakOff(err)
	}
	return true
}

// enter remembers a directory, and refuses one that was visited before.
func (w *treeWalk) enter(dir *Inode) error {
	if _, seen := w.entered[dir.Ref]; seen {
		return corrupt(-1, "directory %v was found in another place before", dir.Ref)
	}
	if uint32(len(w.entered)) >= w.img.sb.Inodes {
		return corrupt(-1, "directory %v is one more than the %d inodes of the image", dir.Ref, w.img.sb.Inodes)
	}
	if len(w.stack) >= maxDepth {
		return corrupt(-1, "directory %v is more than %d levels deep", dir.Ref, maxDepth)
	}
	w.entered[dir.Ref] = struct{}{}
	return nil
}

// exhaust makes d a directory of which nothing is left to read.
func (d *dirReader) exhaust() {
	d.pos, d.seen, d.run, d.err, d.x = d.size, 0, disk.DirHeader{}, nil, nil
}

// breakOff shows the directory on top of the stack with an error.
func (w *treeWalk) breakOff(err error) bool {
	top := &w.stack[len(w.stack)-1]
	w.path = w.path[:top.path]
	w.visit = Visit{Path: w.path, Depth: len(w.stack) - 1, Inode: top.dir, base: top.base}
	return w.yield(&w.visit, err)
}

// leave shows the directory on top of the stack for the last time.
func (w *treeWalk) leave() bool {
	n := len(w.stack) - 1
	top := w.stack[n]
	w.stack = w.stack[:n]
	top.reader.free()
	w.path = w.path[:top.path]
	w.visit = Visit{Path: w.path, Depth: n, Inode: top.dir, Leave: true, base: top.base}
	return w.yield(&w.visit, nil)
}

// show shows what is at w.path.
func (w *treeWalk) show(ino *Inode, base int, err error) bool {
	w.visit = Visit{Path: w.path, Depth: len(w.stack), Inode: *ino, base: base}
	return w.yield(&w.visit, err)
}
