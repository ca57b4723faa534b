package disk

// Numbers of directories.
const (
	DirHeaderSize = 12  // struct squashfs_dir_header
	DirEntrySize  = 8   // struct squashfs_dir_entry, without the name
	DirIndexSize  = 12  // struct squashfs_dir_index, without the name
	MaxRun        = 256 // SQUASHFS_DIR_COUNT: entries after one header
	MaxName       = 256 // SQUASHFS_NAME_LEN
	DirPseudo     = 3   // the size of a listing counts "." and ".." with 1 + 2 bytes
)

// DirHeader begins a run of directory entries whose inodes lie in one metadata block.
type DirHeader struct {
	Count  uint32 // entries, already + 1
	Start  uint32 // metadata block of the inodes, relative to the inode table
	Number uint32 // what the inode numbers of the entries are relative to
}

// DecodeDirHeader decodes DirHeaderSize bytes. Count wraps to 0 if all bits were set.
func DecodeDirHeader(b []byte) DirHeader {
	_ = b[DirHeaderSize-1]
	return DirHeader{Count: le.Uint32(b[0:]) + 1, Start: le.Uint32(b[4:]), Number: le.Uint32(b[8:])}
}

// Append appends DirHeaderSize bytes. Count is 1..MaxRun.
func (h DirHeader) Append(b []byte) []byte {
	b = le.AppendUint32(b, h.Count-1)
	b = le.AppendUint32(b, h.Start)
	return le.AppendUint32(b, h.Number)
}

// DirEntry is an entry without its name.
type DirEntry struct {
	Offset uint16 // of the inode in its metadata block
	Delta  int16  // inode number, less the header's
	Type   uint16 // basic type
	Name   int    // bytes of the name that follows, already + 1: 1..65536
}

// DecodeDirEntry decodes DirEntrySize bytes.
func DecodeDirEntry(b []byte) DirEntry {
	_ = b[DirEntrySize-1]
	return DirEntry{
		Offset: le.Uint16(b[0:]), Delta: int16(le.Uint16(b[2:])),
		Type: le.Uint16(b[4:]), Name: int(le.Uint16(b[6:])) + 1,
	}
}

// Append appends DirEntrySize bytes. Name is 1..65536.
func (e DirEntry) Append(b []byte) []byte {
	b = le.AppendUint16(b, e.Offset)
	b = le.AppendUint16(b, uint16(e.Delta))
	b = le.AppendUint16(b, e.Type)
	return le.AppendUint16(b, uint16(e.Name-1))
}

// DirIndex is an entry of the directory index, without its name.
type DirIndex struct {
	Index uint32 // position of a run header in the listing
	Start uint32 // metadata block of that position, relative to the directory table
	Name  uint32 // bytes of the name that follows, already + 1; wraps to 0
}

// DecodeDirIndex decodes DirIndexSize bytes.
func DecodeDirIndex(b []byte) DirIndex {
	_ = b[DirIndexSize-1]
	return DirIndex{Index: le.Uint32(b[0:]), Start: le.Uint32(b[4:]), Name: le.Uint32(b[8:]) + 1}
}

// Append appends DirIndexSize bytes. Name is not 0.
func (d DirIndex) Append(b []byte) []byte {
	b = le.AppendUint32(b, d.Index)
	b = le.AppendUint32(b, d.Start)
	return le.AppendUint32(b, d.Name-1)
}
