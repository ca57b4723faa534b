package disk

// Numbers of the superblock.
const (
	Magic          = 0x73717368 // "hsqs"
	MagicSwapped   = 0x68737173 // "sqsh": big-endian, 3.x and older
	MagicStreamed  = 0x53515348 // "HSQS": the superblock is the last 96 bytes (unsquash-4.c: read_super_4)
	Major          = 4
	Minor          = 0
	SuperblockSize = 96
	MinBlockLog    = 12 // mksquashfs.c: 4 KiB
	MaxBlockLog    = 20 // SQUASHFS_FILE_MAX_LOG: 1 MiB
	FlagOptions    = 0x0400
)

// Flags that say how an image was made: SQUASHFS_NOI and on. Readers need none of them.
const (
	FlagStoredInodes    = 0x0001
	FlagStoredData      = 0x0002
	FlagStoredFragments = 0x0008
	FlagNoFragments     = 0x0010
	FlagDuplicates      = 0x0040 // equal files are stored once
	FlagExports         = 0x0080
	FlagStoredXattrs    = 0x0100
	FlagNoXattrs        = 0x0200
	FlagStoredIDs       = 0x0800
)

// Superblock is struct squashfs_super_block. Positions count from the start of the
// image.
type Superblock struct {
	Magic          uint32
	Inodes         uint32
	MkfsTime       uint32
	BlockSize      uint32
	Fragments      uint32
	Compression    uint16
	BlockLog       uint16
	Flags          uint16
	IDs            uint16
	Major          uint16
	Minor          uint16
	RootInode      uint64
	BytesUsed      uint64
	IDTable        uint64
	XattrTable     uint64
	InodeTable     uint64
	DirectoryTable uint64
	FragmentTable  uint64
	ExportTable    uint64
}

// DecodeSuperblock decodes SuperblockSize bytes.
func DecodeSuperblock(b []byte) Superblock {
	_ = b[SuperblockSize-1]
	return Superblock{
		Magic:          le.Uint32(b[0:]),
		Inodes:         le.Uint32(b[4:]),
		MkfsTime:       le.Uint32(b[8:]),
		BlockSize:      le.Uint32(b[12:]),
		Fragments:      le.Uint32(b[16:]),
		Compression:    le.Uint16(b[20:]),
		BlockLog:       le.Uint16(b[22:]),
		Flags:          le.Uint16(b[24:]),
		IDs:            le.Uint16(b[26:]),
		Major:          le.Uint16(b[28:]),
		Minor:          le.Uint16(b[30:]),
		RootInode:      le.Uint64(b[32:]),
		BytesUsed:      le.Uint64(b[40:]),
		IDTable:        le.Uint64(b[48:]),
		XattrTable:     le.Uint64(b[56:]),
		InodeTable:     le.Uint64(b[64:]),
		DirectoryTable: le.Uint64(b[72:]),
		FragmentTable:  le.Uint64(b[80:]),
		ExportTable:    le.Uint64(b[88:]),
	}
}

// Append appends SuperblockSize bytes.
func (s *Superblock) Append(b []byte) []byte {
	for _, v := range []uint32{s.Magic, s.Inodes, s.MkfsTime, s.BlockSize, s.Fragments} {
		b = le.AppendUint32(b, v)
	}
	for _, v := range []uint16{s.Compression, s.BlockLog, s.Flags, s.IDs, s.Major, s.Minor} {
		b = le.AppendUint16(b, v)
	}
	for _, v := range []uint64{
		s.RootInode, s.BytesUsed, s.IDTable, s.XattrTable, s.InodeTable, s.DirectoryTable, s.FragmentTable, s.ExportTable,
	} {
		b = le.AppendUint64(b, v)
	}
	return b
}
