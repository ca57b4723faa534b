package sqfs

import (
	"bytes"
	"fmt"
	"io/fs"
	"time"

	"github.com/squirefs/squire/sqfs/internal/disk"
)

// InodeRef is the address of an inode: bits 47..16 are the position of a metadata
// block relative to the inode table, bits 15..0 the offset in that block, expanded.
// It is the identity of an inode: hard links have equal references. It fits 48 bits.
type InodeRef uint64

// block returns the position of the metadata block, relative to the inode table.
func (r InodeRef) block() int64 { return int64(r >> 16) }

// offset returns the offset of the inode in its expanded metadata block.
func (r InodeRef) offset() int { return int(r & 0xffff) }

// String shows the reference as mksquashfs -info style tools do, in hexadecimal.
func (r InodeRef) String() string { return fmt.Sprintf("%#x", uint64(r)) }

// Type is the class of an inode. The values are those of the basic inode types on
// disk (squashfs_fs.h: SQUASHFS_DIR_TYPE and on); extended types (8..14) are shown
// as the basic one.
type Type uint8

// The seven types of inode.
const (
	TypeDir     Type = disk.Dir
	TypeFile    Type = disk.File
	TypeSymlink Type = disk.Symlink
	TypeBlock   Type = disk.BlockDev
	TypeChar    Type = disk.CharDev
	TypeFifo    Type = disk.Fifo
	TypeSocket  Type = disk.Socket
)

// Inode is what an image says of a file, of fixed size and without pointers: copy
// and compare it freely. It comes from [Image.Inode] and belongs to that image.
type Inode struct {
	Ref     InodeRef // address and identity
	Number  uint32   // 1..Superblock.Inodes, what stat shows; not checked to be unique
	Type    Type
	Mode    uint16 // permissions, set-id and sticky bits: 07777
	UID     uint32
	GID     uint32
	ModTime uint32 // seconds since 1970, unsigned
	Nlink   uint32 // as stored, not to be trusted for anything; 1 for basic files
	Size    int64  // bytes, 0..2^62; length of the target of a symlink; listing + 3 of a directory
	Rdev    uint32 // of devices: Linux new_encode_dev, major in bits 19..8, minor in 31..20 and 7..0
	Parent  uint32 // of directories: number of the parent inode; meaningless for the root

	xattr     uint32 // row in the xattr id table, disk.None if it has none
	xattrSize uint32 // what that row says of the size of all names and values
	start     int64  // file: first data block; directory: first listing block, relative to the directory table
	frag      uint32 // file: row in the fragment table, disk.None if it has no tail there
	offset    uint32 // file: offset of the tail in the fragment; directory: offset of the listing in its block
	sparse    uint64 // file: bytes in holes, as far as st_blocks is concerned
	index     uint32 // directory: entries in its index
	tail      uint64 // what follows the fixed part: block list, directory index or link target; block << 16 | offset
}

// maxFileSize bounds the size of files so that offsets and sums cannot overflow.
// Larger ones cannot exist; the kernel got CVE-2025-40200 from trusting them.
const maxFileSize = 1 << 62

// maxLink bounds the target of a symlink: more does not fit what unsquashfs reads.
// Linux itself follows targets up to 4095 bytes only.
const maxLink = 65535

// Inode returns the inode at ref, read and checked.
func (img *Image) Inode(ref InodeRef) (Inode, error) {
	c, err := img.at(&img.inodes, ref.block(), ref.offset())
	if err != nil {
		return Inode{}, err
	}
	var scratch [disk.MaxInodeBody]byte
	b, err := c.next(disk.InodeHeaderSize, scratch[:])
	if err != nil {
		return Inode{}, err
	}
	h := disk.DecodeInodeHeader(b)
	if h.Type == 0 || h.Type > disk.MaxType || h.Number == 0 || h.Number > img.sb.Inodes {
		return Inode{}, c.fault("inode %v has type %d and number %d of %d", ref, h.Type, h.Number, img.sb.Inodes)
	}
	// Writers other than mksquashfs leave the S_IFMT bits in the mode.
	ino := Inode{
		Ref: ref, Number: h.Number, Type: Type(h.Type), Mode: h.Mode & 0o7777, ModTime: h.MTime,
		xattr: disk.None, frag: disk.None,
	}
	if h.Type > disk.Extended {
		ino.Type -= disk.Extended
	}
	if b, err = c.next(disk.InodeBodySize(h.Type), scratch[:]); err != nil {
		return Inode{}, err
	}
	if err := ino.decode(&c, h.Type, b); err != nil {
		return Inode{}, err
	}
	return ino, ino.lookup(h.UID, h.GID, img)
}

// lookup fills in what the inode refers to in other tables.
func (i *Inode) lookup(uid, gid uint16, img *Image) (err error) {
	if i.UID, err = img.id(uid); err != nil {
		return err
	}
	if i.GID, err = img.id(gid); err != nil {
		return err
	}
	// Without a table the row means nothing: tools-ng leaves values there, and the
	// kernel ignores them (inode.c tests msblk->xattr_id_table).
	if i.xattr == disk.None || !img.HasXattrs() {
		i.xattr = disk.None
		return nil
	}
	set, err := img.set(i.xattr)
	i.xattrSize = set.Size
	return err
}

// decode fills in what the body of an inode says. c stands behind the body.
func (i *Inode) decode(c *cursor, typ uint16, b []byte) error {
	i.tail = c.ref(&c.img.inodes)
	switch typ {
	case disk.Dir:
		i.setDir(disk.DecodeDir(b))
		return nil
	case disk.Dir + disk.Extended:
		i.setDir(disk.DecodeLongDir(b))
		return nil
	case disk.File:
		return i.setFile(c, disk.DecodeFile(b))
	case disk.File + disk.Extended:
		return i.setFile(c, disk.DecodeLongFile(b))
	}
	o := disk.DecodeOther(typ, b)
	i.Nlink, i.xattr = o.Nlink, o.Xattr
	switch i.Type {
	case TypeBlock, TypeChar:
		i.Rdev = o.Value
	case TypeSymlink:
		return i.setLink(c, o.Value, typ != disk.Symlink)
	}
	return nil
}

func (i *Inode) setDir(d disk.DirBody) {
	i.Nlink, i.Size, i.Parent, i.xattr = d.Nlink, int64(d.Size), d.Parent, d.Xattr
	i.start, i.offset, i.index = int64(d.Start), uint32(d.Offset), uint32(d.Index)
}

func (i *Inode) setFile(c *cursor, f disk.FileBody) error {
	if f.Size > maxFileSize {
		return c.fault("inode %v has %d bytes", i.Ref, f.Size)
	}
	i.Nlink, i.Size, i.xattr = f.Nlink, int64(f.Size), f.Xattr
	i.frag, i.offset, i.sparse = f.Fragment, f.Offset, min(f.Sparse, f.Size)
	// A file without data blocks may have any start; it is not looked at then.
	i.start = int64(min(f.Start, maxFileSize))
	return c.img.checkFile(c, i)
}

// checkFile checks the rules for the tail of a file and the length of its block list.
func (img *Image) checkFile(c *cursor, i *Inode) error {
	bs := int64(img.sb.BlockSize)
	if i.frag != disk.None {
		// inode.c: a tail of no bytes cannot be in a fragment.
		tail := i.Size & (bs - 1)
		if i.frag >= img.sb.Fragments || tail == 0 || !within(int64(i.offset), tail, bs) {
			return c.fault("inode %v of %d bytes has its tail at %d in fragment %d of %d", i.Ref, i.Size, i.offset, i.frag, img.sb.Fragments)
		}
	}
	// The list lies in the inode table, where 3 bytes make at most 8192: a cheap test
	// that keeps absurd sizes from looking sane until the list is read.
	area := img.inodes.end - img.inodes.start
	if img.listLen(i) > (area/3+1)*(disk.MetadataSize/disk.WordSize) {
		return c.fault("inode %v of %d bytes has more blocks than the inode table has room for", i.Ref, i.Size)
	}
	return nil
}

// listLen returns the number of words in the block list of a file: all its blocks but
// a tail that lies in a fragment.
func (img *Image) listLen(i *Inode) int64 {
	if i.frag != disk.None {
		return i.Size >> img.logs
	}
	return blockCount(i.Size, img.logs)
}

// setLink takes the length of the target of a symlink. The xattr row of an extended
// one comes after the target.
func (i *Inode) setLink(c *cursor, size uint32, extended bool) error {
	if size == 0 || size > maxLink {
		return c.fault("symlink %v has a target of %d bytes, want 1..%d", i.Ref, size, maxLink)
	}
	i.Size = int64(size)
	if !extended {
		return nil
	}
	if err := c.skip(i.Size); err != nil {
		return err
	}
	var scratch [4]byte
	b, err := c.next(len(scratch), scratch[:])
	if err != nil {
		return err
	}
	i.xattr = disk.DecodeUint32(b)
	return nil
}

// AppendLink appends the target of the symlink ino to dst and returns the longer
// slice. Targets have 1..65535 bytes, none of them NUL. On an error dst is returned as
// it was.
func (img *Image) AppendLink(dst []byte, ino *Inode) ([]byte, error) {
	if ino.Type != TypeSymlink {
		return dst, fmt.Errorf("read link of %v %v: %w", ino.Type, ino.Ref, fs.ErrInvalid)
	}
	c, err := img.tail(ino)
	if err != nil {
		return dst, err
	}
	out, err := c.appendTo(dst, int(ino.Size))
	if err != nil {
		return dst, err
	}
	if bytes.IndexByte(out[len(dst):], 0) >= 0 {
		return dst, c.fault("target of symlink %v contains a zero byte", ino.Ref)
	}
	return out, nil
}

// tail returns a cursor at what follows the fixed part of ino.
func (img *Image) tail(ino *Inode) (cursor, error) {
	return img.resume(&img.inodes, int64(ino.tail>>16), int(ino.tail&0xffff))
}

// UnixMode returns the st_mode of the inode: S_IFMT bits and 07777.
func (i *Inode) UnixMode() uint32 { return unixType[i.Type&7] | uint32(i.Mode) }

// FileMode returns the mode in the form of package io/fs.
func (i *Inode) FileMode() fs.FileMode {
	m := i.Type.fileMode() | fs.FileMode(i.Mode&0o777)
	if i.Mode&0o4000 != 0 {
		m |= fs.ModeSetuid
	}
	if i.Mode&0o2000 != 0 {
		m |= fs.ModeSetgid
	}
	if i.Mode&0o1000 != 0 {
		m |= fs.ModeSticky
	}
	return m
}

// Blocks512 returns st_blocks as Linux' squashfs computes it (fs/squashfs/inode.c):
// bytes of the file that are not in known holes, and bytes of extended attributes,
// each in units of 512 bytes rounded up. Directories and all others have no blocks.
func (i *Inode) Blocks512() uint64 {
	var n uint64
	if i.Type == TypeFile {
		n = (uint64(i.Size) - i.sparse + 511) / 512
	}
	return n + (uint64(i.xattrSize)+511)/512
}

// modTime returns the time of last modification.
func (i *Inode) modTime() time.Time { return time.Unix(int64(i.ModTime), 0) }

// unixType maps a Type to the S_IFMT bits of inode(7).
var unixType = [8]uint32{
	TypeDir: 0o040000, TypeFile: 0o100000, TypeSymlink: 0o120000, TypeBlock: 0o060000,
	TypeChar: 0o020000, TypeFifo: 0o010000, TypeSocket: 0o140000,
}

// fileMode returns the type bits of package io/fs.
func (t Type) fileMode() fs.FileMode { return fileType[t&7] }

var fileType = [8]fs.FileMode{
	TypeDir: fs.ModeDir, TypeFile: 0, TypeSymlink: fs.ModeSymlink, TypeBlock: fs.ModeDevice,
	TypeChar: fs.ModeDevice | fs.ModeCharDevice, TypeFifo: fs.ModeNamedPipe, TypeSocket: fs.ModeSocket,
}

// String returns the name of the type as ls or find -type would explain it.
func (t Type) String() string {
	switch t {
	case TypeDir:
		return "directory"
	case TypeFile:
		return "file"
	case TypeSymlink:
		return "symlink"
	case TypeBlock:
		return "block device"
	case TypeChar:
		return "character device"
	case TypeFifo:
		return "fifo"
	case TypeSocket:
		return "socket"
	}
	return fmt.Sprintf("type %d", uint8(t))
}
