package sqfs

import (
	"io"

	"github.com/squirefs/squire/sqfs/internal/disk"
)

// NextInode returns the inode that follows ino in the inode table, [io.EOF] after the last one. Writers store inodes
// in the order in which they come by them in the tree, and the data of files in the same order: whoever reads file
// after file of a directory comes by them like this. It says nothing of the tree; an image may have inodes in its
// table that no directory leads to.
//
// It takes as many reads of metadata as ino has, which for files of many blocks is one for each 2048 of them.
func (img *Image) NextInode(ino *Inode) (Inode, error) {
	c, err := img.at(&img.inodes, ino.Ref.block(), ino.Ref.offset())
	if err != nil {
		return Inode{}, err
	}
	if err := c.skipInode(ino); err != nil {
		return Inode{}, err
	}
	if c.off == len(c.blk.data) {
		if c.blk.next >= c.end {
			return Inode{}, io.EOF
		}
		if err := c.more(); err != nil {
			return Inode{}, err
		}
	}
	return img.Inode(InodeRef(c.ref(&img.inodes)))
}

// skipInode steps over the inode that the cursor stands at, which is ino.
func (c *cursor) skipInode(ino *Inode) error {
	var scratch [disk.MaxInodeBody]byte
	b, err := c.next(disk.InodeHeaderSize, scratch[:])
	if err != nil {
		return err
	}
	typ := disk.DecodeInodeHeader(b).Type
	if typ == 0 || typ > disk.MaxType {
		return c.fault("inode %v has type %d", ino.Ref, typ)
	}
	if err := c.skip(int64(disk.InodeBodySize(typ))); err != nil {
		return err
	}
	switch typ {
	case disk.File, disk.File + disk.Extended:
		return c.skip(c.img.listLen(ino) * disk.WordSize)
	case disk.Symlink:
		return c.skip(ino.Size)
	case disk.Symlink + disk.Extended:
		return c.skip(ino.Size + 4) // the row of its attributes follows the target
	case disk.Dir + disk.Extended:
		return c.skipIndex(ino.index)
	}
	return nil
}

// skipIndex steps over n entries of a directory's index.
func (c *cursor) skipIndex(n uint32) error {
	var scratch [disk.DirIndexSize]byte
	for range n {
		b, err := c.next(disk.DirIndexSize, scratch[:])
		if err != nil {
			return err
		}
		name := disk.DecodeDirIndex(b).Name
		if name == 0 || name > disk.MaxName {
			return c.fault("directory index has a name of %d bytes", name)
		}
		if err := c.skip(int64(name)); err != nil {
			return err
		}
	}
	return nil
}
