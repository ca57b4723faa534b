// Package disk knows the records of a squashfs 4.0 image as they lie on disk: sizes,
// constants, decoding and encoding, without I/O and without judgement of what the values
// mean.
//
// All integers are little-endian, nothing is aligned. Names in comments are those of
// Linux' fs/squashfs/squashfs_fs.h and of squashfs-tools. Each Decode function wants
// at least as many bytes as the size constant that stands beside it says, and panics
// with an index error when given fewer: callers check once, before. Each Append method
// appends what the Decode function beside it takes.
package disk

import "encoding/binary"

var le = binary.LittleEndian

// None in a 32-bit row number says that there is no such row: SQUASHFS_INVALID_FRAG
// for fragments, SQUASHFS_INVALID_XATTR for extended attributes.
const None = 0xffffffff

// NoTable in the superblock says that a table is absent: SQUASHFS_INVALID_BLK.
const NoTable = 0xffffffffffffffff
