package sqfs

import (
	"fmt"
	"math/bits"

	"github.com/squirefs/squire/sqfs/internal/codec"
	"github.com/squirefs/squire/sqfs/internal/disk"
)

// Compression is the number of a compressor in the superblock.
type Compression uint16

// The compressors of squashfs 4.0.
const (
	Gzip Compression = codec.Gzip
	LZMA Compression = codec.LZMA
	LZO  Compression = codec.LZO
	XZ   Compression = codec.XZ
	LZ4  Compression = codec.LZ4
	Zstd Compression = codec.Zstd
)

// String returns the name that mksquashfs -comp knows.
func (c Compression) String() string {
	if s := codec.Name(uint16(c)); s != "" {
		return s
	}
	return fmt.Sprintf("compressor %d", uint16(c))
}

// Supported reports whether images with this compressor can be read.
func (c Compression) Supported() bool { return codec.For(uint16(c)) != nil }

// Superblock is what the superblock of an image says. Table positions are byte
// offsets in the image, -1 if it has no such table.
type Superblock struct {
	Inodes      uint32 // number of inodes, 1 or more
	MkfsTime    uint32 // seconds since 1970
	BlockSize   uint32 // of file data: a power of two, 4096..1048576
	Fragments   uint32 // number of fragment blocks
	Compression Compression
	Flags       uint16
	IDs         uint16 // number of different user and group ids, 1 or more
	Root        InodeRef
	BytesUsed   int64 // length of the image, without padding

	InodeTable     int64
	DirectoryTable int64
	FragmentTable  int64 // position of its index, like the following
	ExportTable    int64
	IDTable        int64
	XattrTable     int64
}

// checkSuperblock checks all of the superblock that can be checked by itself (the
// order and rules are those of squashfs_fill_super, fs/squashfs/super.c) and keeps
// it. size is what the source has.
func (img *Image) checkSuperblock(raw disk.Superblock, size int64) error {
	switch {
	case raw.Magic == disk.MagicSwapped:
		return fmt.Errorf("%w: big-endian squashfs, want 4.0 little-endian", ErrVersion)
	case raw.Magic != disk.Magic:
		return fmt.Errorf("%w: magic %#08x, want %#08x", ErrNotSquashfs, raw.Magic, uint32(disk.Magic))
	case raw.Major != disk.Major || raw.Minor != disk.Minor:
		return fmt.Errorf("%w: squashfs %d.%d, want 4.0", ErrVersion, raw.Major, raw.Minor)
	}
	comp := Compression(raw.Compression)
	if img.codec = codec.For(raw.Compression); img.codec == nil {
		return fmt.Errorf("%w: %v", ErrUnsupported, comp)
	}
	if err := checkSizes(&raw, size); err != nil {
		return err
	}
	img.logs = uint(raw.BlockLog)
	img.sb = Superblock{
		Inodes: raw.Inodes, MkfsTime: raw.MkfsTime, BlockSize: raw.BlockSize, Fragments: raw.Fragments,
		Compression: comp, Flags: raw.Flags, IDs: raw.IDs,
		Root: InodeRef(raw.RootInode), BytesUsed: int64(raw.BytesUsed),
		InodeTable: int64(raw.InodeTable), DirectoryTable: int64(raw.DirectoryTable),
		FragmentTable: -1, ExportTable: -1, IDTable: -1, XattrTable: -1, // openTables fills in what is there
	}
	return nil
}

// checkSizes checks the numbers of the superblock. It leaves the positions of the
// tables at the end to openTables.
func checkSizes(raw *disk.Superblock, size int64) error {
	if raw.BlockLog < disk.MinBlockLog || raw.BlockLog > disk.MaxBlockLog || raw.BlockSize != 1<<raw.BlockLog {
		return corrupt(12, "block size %d with log %d, want a power of two in 4096..1048576", raw.BlockSize, raw.BlockLog)
	}
	if raw.BytesUsed > uint64(size) {
		return corrupt(40, "image has %d bytes, but there are only %d: is the file cut off?", raw.BytesUsed, size)
	}
	if raw.Inodes == 0 || raw.IDs == 0 {
		return corrupt(4, "%d inodes and %d ids, want at least one of each", raw.Inodes, raw.IDs)
	}
	// A fragment has at least one inode, an id is its user or group: more of them are
	// never looked at (unsquash-4.c, read_filesystem_tables).
	if raw.Fragments > raw.Inodes || uint64(raw.IDs) > 2*uint64(raw.Inodes) {
		return corrupt(4, "%d fragments and %d ids for %d inodes", raw.Fragments, raw.IDs, raw.Inodes)
	}
	// BytesUsed is at most an int64 now, and with it all that is compared.
	if raw.InodeTable < disk.SuperblockSize || raw.InodeTable >= raw.DirectoryTable || raw.DirectoryTable > raw.BytesUsed {
		return corrupt(64, "inode table at %#x and directory table at %#x of %#x", raw.InodeTable, raw.DirectoryTable, raw.BytesUsed)
	}
	if raw.RootInode>>48 != 0 {
		return corrupt(32, "root inode reference %#x has more than 48 bits", raw.RootInode)
	}
	return nil
}

// openTables opens the tables behind the directories. They must follow each other in
// the order fragments, exports, ids, xattrs, as the kernel demands too; gaps between
// them are legal. Where the first begins the directory table ends.
func (img *Image) openTables(raw disk.Superblock) error {
	sb := &img.sb
	head, err := img.xattrHeader(raw.XattrTable)
	if err != nil {
		return err
	}
	// A writer may leave any position when there are no fragments: mksquashfs the one
	// where the table would be, tools-ng -1. The count decides.
	if raw.Fragments == 0 {
		raw.FragmentTable = disk.NoTable
	}
	img.frags = table{area: area{name: "fragment table"}, rows: uint64(sb.Fragments), size: disk.FragmentSize}
	img.exports = table{area: area{name: "export table"}, rows: uint64(sb.Inodes), size: disk.ExportSize}
	img.ids = table{area: area{name: "id table"}, rows: uint64(sb.IDs), size: disk.IDSize}
	img.sets = table{area: area{name: "xattr id table"}, rows: uint64(head.Count), size: disk.XattrIDSize, head: disk.XattrHeaderSize}

	img.dirs = area{name: "directory table", start: sb.DirectoryTable}
	after := sb.DirectoryTable
	for _, s := range []struct {
		t  *table
		at uint64
		to *int64
	}{
		{&img.frags, raw.FragmentTable, &sb.FragmentTable},
		{&img.exports, raw.ExportTable, &sb.ExportTable},
		{&img.ids, raw.IDTable, &sb.IDTable},
		{&img.sets, raw.XattrTable, &sb.XattrTable},
	} {
		if s.at == disk.NoTable && s.t != &img.ids { // there are always ids
			continue
		}
		if err := s.t.open(img, s.at, after); err != nil {
			return err
		}
		if img.dirs.end == 0 {
			img.dirs.end = s.t.start
		}
		*s.to, after = s.t.end, s.t.after()
	}
	return img.openXattrs(head)
}

// openXattrs finds the names and values: behind the ids, and up to the xattr ids
// (xattr_id.c).
func (img *Image) openXattrs(head disk.XattrHeader) error {
	if !img.HasXattrs() {
		return nil
	}
	if head.Start < uint64(img.ids.after()) || head.Start >= uint64(img.sets.start) {
		return corrupt(img.sb.XattrTable, "xattrs start at %#x, want %#x..%#x", head.Start, img.ids.after(), img.sets.start)
	}
	img.xattrs = area{"xattrs", int64(head.Start), img.sets.start}
	return nil
}

// xattrHeader reads the header before the index of the xattr id table, if there is
// one. Bit 0x200 of the flags says "no xattrs", but only the position is reliable
// (fs/squashfs/super.c tests for SQUASHFS_INVALID_BLK only).
func (img *Image) xattrHeader(at uint64) (disk.XattrHeader, error) {
	if at == disk.NoTable {
		return disk.XattrHeader{}, nil
	}
	buf := make([]byte, disk.XattrHeaderSize)
	if at > uint64(img.sb.BytesUsed) {
		return disk.XattrHeader{}, corrupt(56, "xattr id table at %#x of %#x", at, img.sb.BytesUsed)
	}
	if err := img.readAt(buf, int64(at)); err != nil {
		return disk.XattrHeader{}, err
	}
	h := disk.DecodeXattrHeader(buf)
	if h.Count == 0 {
		return h, corrupt(int64(at), "xattr id table without rows")
	}
	return h, nil
}

// checkOptions checks the block of compressor options behind the superblock. Nothing
// in it is needed to read, and values are not trusted; only LZ4 has a version there,
// which lz4_wrapper.c of the kernel checks.
func (img *Image) checkOptions() error {
	if img.sb.Flags&disk.FlagOptions == 0 {
		if img.sb.Compression == LZ4 { // lz4_wrapper.c, in the kernel and in unsquashfs
			return corrupt(-1, "lz4 without compressor options")
		}
		return nil
	}
	blk, err := img.metadata(disk.SuperblockSize, img.sb.InodeTable)
	if err != nil {
		return fmt.Errorf("compressor options: %w", err)
	}
	if img.sb.Compression != LZ4 {
		return nil
	}
	if len(blk.data) < 8 {
		return corrupt(disk.SuperblockSize, "lz4 with compressor options of %d bytes, want 8", len(blk.data))
	}
	if v := disk.DecodeUint32(blk.data); v != 1 {
		return fmt.Errorf("%w: lz4 stream version %d, want 1", ErrUnsupported, v)
	}
	return nil
}

// blockCount returns how many blocks of 1<<logs bytes hold n bytes.
func blockCount(n int64, logs uint) int64 {
	return int64((uint64(n) + 1<<logs - 1) >> logs)
}

// log2 returns the exponent of the power of two n.
func log2(n uint64) uint { return uint(bits.TrailingZeros64(n)) }
