package disk

// MetadataSize is what every metadata block but the last of a table expands to:
// SQUASHFS_METADATA_SIZE.
const MetadataSize = 8192

// MetadataHeader is the size of the header before each metadata block.
const MetadataHeader = 2

// DecodeMetadataHeader returns the length of the block that follows the header, and
// whether it is stored uncompressed: SQUASHFS_COMPRESSED_BIT, bit 15. A length of 0
// is never valid; the macro SQUASHFS_COMPRESSED_SIZE makes 32768 of it.
func DecodeMetadataHeader(b []byte) (n int, stored bool) {
	h := le.Uint16(b)
	return int(h & 0x7fff), h&0x8000 != 0
}

// AppendMetadataHeader appends the header of a block of n bytes, 1..MetadataSize.
func AppendMetadataHeader(b []byte, n int, stored bool) []byte {
	h := uint16(n)
	if stored {
		h |= 0x8000
	}
	return le.AppendUint16(b, h)
}

// Word says how a data block or fragment block lies on disk.
type Word uint32

// DecodeWord decodes 4 bytes.
func DecodeWord(b []byte) Word { return Word(le.Uint32(b)) }

// NewWord returns the word of a block of n bytes, below 1 << 24.
func NewWord(n int, stored bool) Word {
	w := Word(n)
	if stored {
		w |= 1 << 24
	}
	return w
}

// Append appends 4 bytes.
func (w Word) Append(b []byte) []byte { return le.AppendUint32(b, uint32(w)) }

// Size returns the length on disk: bits 23..0. 0 is a hole.
func (w Word) Size() uint32 { return uint32(w) & 0xffffff }

// Stored reports whether the block is not compressed: SQUASHFS_COMPRESSED_BIT_BLOCK,
// bit 24.
func (w Word) Stored() bool { return w&(1<<24) != 0 }

// Valid reports whether the unused bits 31..25 are clear, as squashfs_block_size in
// fs/squashfs/block.c wants them.
func (w Word) Valid() bool { return w>>25 == 0 }

// WordSize is the size of a Word in the block list of a file.
const WordSize = 4

// FragmentSize is the size of a row of the fragment table.
const FragmentSize = 16

// Fragment is struct squashfs_fragment_entry: where a fragment block lies.
type Fragment struct {
	Start uint64
	Word  Word
}

// DecodeFragment decodes FragmentSize bytes. The last four are unused.
func DecodeFragment(b []byte) Fragment {
	return Fragment{Start: le.Uint64(b), Word: DecodeWord(b[8:])}
}

// Append appends FragmentSize bytes.
func (f Fragment) Append(b []byte) []byte {
	b = le.AppendUint64(b, f.Start)
	return le.AppendUint32(f.Word.Append(b), 0)
}

// ExportSize is the size of a row of the export table, IDSize of the id table, and
// PositionSize of a row of the index of any table.
const (
	ExportSize   = 8
	IDSize       = 4
	PositionSize = 8
)

// DecodeUint64 decodes a row of the export table or of the index of a table.
func DecodeUint64(b []byte) uint64 { return le.Uint64(b) }

// DecodeUint32 decodes a row of the id table.
func DecodeUint32(b []byte) uint32 { return le.Uint32(b) }

// AppendUint64 appends a row of the export table or of the index of a table.
func AppendUint64(b []byte, v uint64) []byte { return le.AppendUint64(b, v) }

// AppendUint32 appends a row of the id table.
func AppendUint32(b []byte, v uint32) []byte { return le.AppendUint32(b, v) }
