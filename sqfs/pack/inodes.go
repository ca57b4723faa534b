package pack

import (
	"bytes"
	"fmt"
	"io"
	"math"

	"github.com/squirefs/squire/sqfs"
	"github.com/squirefs/squire/sqfs/internal/codec"
	"github.com/squirefs/squire/sqfs/internal/disk"
)

// inodes writes the inodes of a tree, and the listings of its directories.
type inodes struct {
	t       *tree
	table   *metadata
	dirs    *metadata
	listing bytes.Buffer // what dirs writes: it goes behind the inodes
	xattrs  *xattrs
	ids     []uint32 // in the order of their first use
	rows    map[uint32]uint16
	exports []uint64 // by number - 1; nil if there are to be none
	buf     []byte
}

// maxIDs is how many different users and groups an image may have: the superblock has 16
// bits for the number.
const maxIDs = 65535

// writeInodes writes the inodes of a tree to out: what is in a directory, then its
// listing, then the directory itself, and so the root at last.
func writeInodes(t *tree, out io.Writer, e codec.Encoder) (*inodes, error) {
	s := &inodes{t: t, table: newMetadata(out, e), xattrs: newXattrs(e), rows: map[uint32]uint16{}}
	s.dirs = newMetadata(&s.listing, e)
	if !t.w.o.NoExports {
		s.exports = make([]uint64, t.inodes)
	}
	return s, s.walk()
}

// walk goes through the directories in the order in which newTree entered them.
func (s *inodes) walk() error {
	t, next := s.t, 1
	root := t.root
	t.stack = append(t.stack[:0], frame{dir: root, list: t.lists[0]})
	for len(t.stack) > 0 && s.table.err == nil && s.dirs.err == nil {
		f := &t.stack[len(t.stack)-1]
		if f.next == len(f.list) {
			if err := s.leave(); err != nil {
				return err
			}
			continue
		}
		e := f.list[f.next]
		f.next++
		switch i := e.inode; {
		case i.Type == sqfs.TypeDir:
			t.stack = append(t.stack, frame{name: e.name, dir: i, list: t.lists[next]})
			t.lists[next] = nil
			next++
		case !i.written:
			if err := s.add(i); err != nil {
				return fmt.Errorf("pack: %s: %w", t.path(e.name), err)
			}
		}
	}
	s.table.flush()
	s.dirs.flush()
	s.xattrs.m.flush()
	for _, m := range []*metadata{s.table, s.dirs, s.xattrs.m} {
		if m.err != nil {
			return fmt.Errorf("pack: write image: %w", m.err)
		}
	}
	return nil
}

// leave writes the directory on top of the stack.
func (s *inodes) leave() error {
	t := s.t
	f := t.stack[len(t.stack)-1]
	parent := t.inodes + 1 // of the root: as mksquashfs, a number that no inode has
	if len(t.stack) > 1 {
		parent = t.stack[len(t.stack)-2].dir.number
	}
	l, err := s.list(f.list)
	if err == nil {
		err = s.addDir(f.dir, &l, parent)
	}
	if err != nil {
		return fmt.Errorf("pack: %s: %w", t.path(""), err)
	}
	t.leave()
	return nil
}

// begin appends the header of an inode, whose body is appended next, and notes where it
// is.
func (s *inodes) begin(i *Inode, extended bool) error {
	i.ref, i.written = s.table.ref(), true
	if s.exports != nil {
		s.exports[i.number-1] = i.ref
	}
	h := disk.InodeHeader{Type: uint16(i.Type), Mode: i.Mode & 0o7777, MTime: s.t.w.o.modTime(i.ModTime), Number: i.number}
	if extended {
		h.Type += disk.Extended
	}
	var err error
	if h.UID, err = s.id(i.UID); err != nil {
		return err
	}
	if h.GID, err = s.id(i.GID); err != nil {
		return err
	}
	s.buf = h.Append(s.buf[:0])
	return nil
}

// id returns the row of a user or group.
func (s *inodes) id(id uint32) (uint16, error) {
	row, ok := s.rows[id]
	if !ok {
		if len(s.ids) == maxIDs {
			return 0, fmt.Errorf("more than %d different users and groups", maxIDs)
		}
		row = uint16(len(s.ids))
		s.rows[id] = row
		s.ids = append(s.ids, id)
	}
	return row, nil
}

// add writes an inode that is no directory.
func (s *inodes) add(i *Inode) error {
	xattr := s.xattrs.row(i.Xattrs)
	if i.Type == sqfs.TypeFile {
		return s.addFile(i, xattr)
	}
	extended := xattr != disk.None
	if err := s.begin(i, extended); err != nil {
		return err
	}
	o := disk.OtherBody{Nlink: i.links, Value: i.Rdev, Xattr: xattr}
	typ := uint16(i.Type)
	if extended {
		typ += disk.Extended
	}
	if i.Type == sqfs.TypeSymlink {
		o.Value = uint32(len(i.Target))
	}
	s.buf = append(o.Append(s.buf, typ), i.Target...)
	if typ == disk.Symlink+disk.Extended {
		s.buf = disk.AppendUint32(s.buf, xattr)
	}
	s.table.write(s.buf)
	return nil
}

func (s *inodes) addFile(i *Inode, xattr uint32) error {
	d := i.Data
	if d == nil {
		d = &Data{fragment: disk.None}
	}
	b := disk.FileBody{
		Start: uint64(d.start), Size: uint64(d.size), Sparse: uint64(d.sparse(int64(s.t.w.o.BlockSize))),
		Nlink: i.links, Fragment: d.fragment, Offset: d.offset, Xattr: xattr,
	}
	if d.fragment != disk.None {
		b.Fragment = s.t.fragments[d.fragment]
	}
	// A basic file has neither links nor attributes nor known holes, and numbers of 32 bits.
	extended := b.Nlink > 1 || xattr != disk.None || b.Sparse > 0 || max(b.Start, b.Size) > math.MaxUint32
	if err := s.begin(i, extended); err != nil {
		return err
	}
	if extended {
		s.buf = b.AppendLong(s.buf)
	} else {
		s.buf = b.Append(s.buf)
	}
	for _, w := range d.blocks {
		if len(s.buf) > disk.MetadataSize {
			s.table.write(s.buf)
			s.buf = s.buf[:0]
		}
		s.buf = w.Append(s.buf)
	}
	s.table.write(s.buf)
	return nil
}

// sparse returns the bytes in holes. As mksquashfs does, it leaves one to files that are
// nothing else: with a st_blocks of 0, some programs take them for empty.
func (d *Data) sparse(blockSize int64) int64 {
	n := d.holes * blockSize
	if tail := d.size % blockSize; n > 0 && tail > 0 && d.fragment == disk.None && d.blocks[len(d.blocks)-1] == 0 {
		n -= blockSize - tail
	}
	return max(min(n, d.size-1), 0)
}

func (s *inodes) addDir(i *Inode, l *listing, parent uint32) error {
	b := disk.DirBody{
		Start: l.start, Offset: l.offset, Size: l.size + disk.DirPseudo, Nlink: i.links + 2,
		Parent: parent, Index: uint16(len(l.index)), Xattr: s.xattrs.row(i.Xattrs),
	}
	extended := b.Index > 0 || b.Size > math.MaxUint16 || b.Xattr != disk.None
	if err := s.begin(i, extended); err != nil {
		return err
	}
	if !extended {
		s.buf = b.Append(s.buf)
	} else {
		s.buf = b.AppendLong(s.buf)
	}
	for _, x := range l.index {
		e := disk.DirIndex{Index: x.at, Start: x.start, Name: uint32(len(x.name))}
		s.buf = append(e.Append(s.buf), x.name...)
	}
	s.table.write(s.buf)
	return nil
}
