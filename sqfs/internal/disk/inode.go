package disk

// Inode types: SQUASHFS_DIR_TYPE and on. Extended types are the basic ones + 7.
const (
	Dir      = 1
	File     = 2
	Symlink  = 3
	BlockDev = 4
	CharDev  = 5
	Fifo     = 6
	Socket   = 7

	Extended = 7
	MaxType  = Socket + Extended
)

// InodeHeaderSize is the size of what all inodes begin with, MaxInodeBody the
// longest body after it.
const (
	InodeHeaderSize = 16
	MaxInodeBody    = 40
)

// bodySize is the size of the fixed part after the header, by type: the structs
// squashfs_dir_inode ... squashfs_lipc_inode. What follows it (block list, directory
// index, link target) is not counted.
var bodySize = [MaxType + 1]int{
	Dir: 16, File: 16, Symlink: 8, BlockDev: 8, CharDev: 8, Fifo: 4, Socket: 4,
	Dir + Extended: 24, File + Extended: 40, Symlink + Extended: 8,
	BlockDev + Extended: 12, CharDev + Extended: 12, Fifo + Extended: 8, Socket + Extended: 8,
}

// InodeBodySize returns the size of the fixed part after the header of an inode of
// type 1..MaxType.
func InodeBodySize(typ uint16) int { return bodySize[typ] }

// InodeHeader is struct squashfs_base_inode.
type InodeHeader struct {
	Type   uint16
	Mode   uint16
	UID    uint16 // row in the id table
	GID    uint16 // row in the id table
	MTime  uint32
	Number uint32
}

// DecodeInodeHeader decodes InodeHeaderSize bytes.
func DecodeInodeHeader(b []byte) InodeHeader {
	_ = b[InodeHeaderSize-1]
	return InodeHeader{
		Type: le.Uint16(b[0:]), Mode: le.Uint16(b[2:]), UID: le.Uint16(b[4:]),
		GID: le.Uint16(b[6:]), MTime: le.Uint32(b[8:]), Number: le.Uint32(b[12:]),
	}
}

// Append appends InodeHeaderSize bytes.
func (h InodeHeader) Append(b []byte) []byte {
	b = le.AppendUint16(b, h.Type)
	b = le.AppendUint16(b, h.Mode)
	b = le.AppendUint16(b, h.UID)
	b = le.AppendUint16(b, h.GID)
	b = le.AppendUint32(b, h.MTime)
	return le.AppendUint32(b, h.Number)
}

// DirBody is the body of struct squashfs_dir_inode and squashfs_ldir_inode.
type DirBody struct {
	Start  uint32 // metadata block of the listing, relative to the directory table
	Offset uint16 // in that block
	Size   uint32 // of the listing, + 3
	Nlink  uint32
	Parent uint32
	Index  uint16 // entries of the directory index
	Xattr  uint32
}

// DecodeDir decodes the body of a basic directory.
func DecodeDir(b []byte) DirBody {
	_ = b[15]
	return DirBody{
		Start: le.Uint32(b[0:]), Nlink: le.Uint32(b[4:]), Size: uint32(le.Uint16(b[8:])),
		Offset: le.Uint16(b[10:]), Parent: le.Uint32(b[12:]), Xattr: None,
	}
}

// Append appends the body of a basic directory, whose Size is below 1 << 16.
func (d DirBody) Append(b []byte) []byte {
	b = le.AppendUint32(b, d.Start)
	b = le.AppendUint32(b, d.Nlink)
	b = le.AppendUint16(b, uint16(d.Size))
	b = le.AppendUint16(b, d.Offset)
	return le.AppendUint32(b, d.Parent)
}

// DecodeLongDir decodes the body of an extended directory.
func DecodeLongDir(b []byte) DirBody {
	_ = b[23]
	return DirBody{
		Nlink: le.Uint32(b[0:]), Size: le.Uint32(b[4:]), Start: le.Uint32(b[8:]),
		Parent: le.Uint32(b[12:]), Index: le.Uint16(b[16:]), Offset: le.Uint16(b[18:]),
		Xattr: le.Uint32(b[20:]),
	}
}

// AppendLong appends the body of an extended directory.
func (d DirBody) AppendLong(b []byte) []byte {
	b = le.AppendUint32(b, d.Nlink)
	b = le.AppendUint32(b, d.Size)
	b = le.AppendUint32(b, d.Start)
	b = le.AppendUint32(b, d.Parent)
	b = le.AppendUint16(b, d.Index)
	b = le.AppendUint16(b, d.Offset)
	return le.AppendUint32(b, d.Xattr)
}

// FileBody is the body of struct squashfs_reg_inode and squashfs_lreg_inode.
type FileBody struct {
	Start    uint64 // position of the first data block
	Size     uint64
	Sparse   uint64 // bytes in holes
	Nlink    uint32
	Fragment uint32 // row in the fragment table, or None
	Offset   uint32 // of the tail in the fragment
	Xattr    uint32
}

// DecodeFile decodes the body of a basic file. Its link count is always 1
// (fs/squashfs/inode.c: set_nlink(inode, 1)).
func DecodeFile(b []byte) FileBody {
	_ = b[15]
	return FileBody{
		Start: uint64(le.Uint32(b[0:])), Fragment: le.Uint32(b[4:]), Offset: le.Uint32(b[8:]),
		Size: uint64(le.Uint32(b[12:])), Nlink: 1, Xattr: None,
	}
}

// Append appends the body of a basic file, whose Start and Size are below 1 << 32.
func (f FileBody) Append(b []byte) []byte {
	b = le.AppendUint32(b, uint32(f.Start))
	b = le.AppendUint32(b, f.Fragment)
	b = le.AppendUint32(b, f.Offset)
	return le.AppendUint32(b, uint32(f.Size))
}

// DecodeLongFile decodes the body of an extended file.
func DecodeLongFile(b []byte) FileBody {
	_ = b[39]
	return FileBody{
		Start: le.Uint64(b[0:]), Size: le.Uint64(b[8:]), Sparse: le.Uint64(b[16:]),
		Nlink: le.Uint32(b[24:]), Fragment: le.Uint32(b[28:]), Offset: le.Uint32(b[32:]),
		Xattr: le.Uint32(b[36:]),
	}
}

// AppendLong appends the body of an extended file.
func (f FileBody) AppendLong(b []byte) []byte {
	b = le.AppendUint64(b, f.Start)
	b = le.AppendUint64(b, f.Size)
	b = le.AppendUint64(b, f.Sparse)
	b = le.AppendUint32(b, f.Nlink)
	b = le.AppendUint32(b, f.Fragment)
	b = le.AppendUint32(b, f.Offset)
	return le.AppendUint32(b, f.Xattr)
}

// OtherBody is the body of symlinks, devices, fifos and sockets: a link count, and
// for symlinks the length of the target, for devices the device number.
type OtherBody struct {
	Nlink uint32
	Value uint32
	Xattr uint32 // of extended symlinks it follows the target and is not decoded here
}

// DecodeOther decodes the body of an inode of the given type, which must be none of
// the directories and files.
func DecodeOther(typ uint16, b []byte) OtherBody {
	o := OtherBody{Nlink: le.Uint32(b), Xattr: None}
	switch typ {
	case Symlink, Symlink + Extended, BlockDev, CharDev:
		o.Value = le.Uint32(b[4:])
	case BlockDev + Extended, CharDev + Extended:
		o.Value, o.Xattr = le.Uint32(b[4:]), le.Uint32(b[8:])
	case Fifo + Extended, Socket + Extended:
		o.Xattr = le.Uint32(b[4:])
	}
	return o
}

// Append appends the body of an inode of the given type, which must be none of the
// directories and files. The xattr row of extended symlinks is not appended.
func (o OtherBody) Append(b []byte, typ uint16) []byte {
	b = le.AppendUint32(b, o.Nlink)
	switch typ {
	case Symlink, Symlink + Extended, BlockDev, CharDev:
		b = le.AppendUint32(b, o.Value)
	case BlockDev + Extended, CharDev + Extended:
		b = le.AppendUint32(b, o.Value)
		b = le.AppendUint32(b, o.Xattr)
	case Fifo + Extended, Socket + Extended:
		b = le.AppendUint32(b, o.Xattr)
	}
	return b
}
