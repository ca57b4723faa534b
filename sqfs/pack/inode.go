package pack

import "github.com/squirefs/squire/sqfs"

// Inode is a node of the tree that an image shows. An inode that is no directory may have
// several names: hard links are entries that share a pointer.
type Inode struct {
	Type    sqfs.Type
	Mode    uint16 // permissions, set-id and sticky bits: 07777
	UID     uint32
	GID     uint32
	ModTime int64             // seconds since 1970; what does not fit 32 bits unsigned becomes the nearest that does
	Xattrs  []Xattr           // in any order, names unique
	Data    *Data             // of regular files; nil is empty
	Target  string            // of symlinks, 1..65535 bytes
	Rdev    uint32            // of devices, as sqfs.Inode.Rdev
	Entries map[string]*Inode // of directories: names of 1..255 bytes, no '/' or NUL, not "." or ".."

	// What Finish finds out. It is good for one Writer, so that Finish need not look at the
	// tree before to take away what another has left.
	w       *Writer
	number  uint32 // 1 and on
	links   uint32 // names; of directories, subdirectories
	written bool
	ref     uint64 // where it is in the inode table, once it is written
}

// Xattr is an extended attribute. The name begins with "user.", "trusted." or "security.";
// values have at most 65536 bytes.
type Xattr struct {
	Name  string
	Value []byte
}
