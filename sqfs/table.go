package sqfs

import (
	"fmt"
	"io/fs"

	"github.com/squirefs/squire/sqfs/internal/disk"
)

// table is one of the four lookup tables: rows of equal size in metadata blocks, and
// an index with the position of each block. The area it embeds is where its blocks
// lie; it ends where the index (of the xattr ids: the header before it) starts.
type table struct {
	area
	rows   uint64
	size   uint64  // of a row: a power of two, so that rows never cross blocks
	head   int64   // bytes in front of the index
	blocks []int64 // positions of the metadata blocks
}

// open reads the header and index at byte at and checks them: all of it inside the
// image and not before min; blocks ascending, no further apart than a metadata block
// is long (fs/squashfs/id.c, export.c, xattr_id.c, fragment.c).
//
// The index is kept whole. That is no allocation on the word of the image: each of
// its rows was read and belongs to at least three other bytes.
func (t *table) open(img *Image, at uint64, min int64) error {
	bytes := t.rows * t.size // at most 2^32 * 16
	n := int64((bytes + disk.MetadataSize - 1) / disk.MetadataSize)
	end := img.sb.BytesUsed
	if at > uint64(end) || !within(int64(at), t.head+n*disk.PositionSize, end) {
		return corrupt(-1, "%s with %d rows at %#x reaches past the end of the image at %#x", t.name, t.rows, at, end)
	}
	if err := img.meta.addFixed(n * disk.PositionSize); err != nil {
		return fmt.Errorf("%s with %d rows: %w", t.name, t.rows, err)
	}
	t.end = int64(at)
	if err := t.readIndex(img, t.end+t.head, n); err != nil {
		return err
	}
	t.start = t.blocks[0]
	if t.start < min {
		return corrupt(t.end, "%s starts at %#x, before %#x where the table in front of it ends", t.name, t.start, min)
	}
	return nil
}

// after returns where the index ends, and with it the table.
func (t *table) after() int64 {
	return t.end + t.head + int64(len(t.blocks))*disk.PositionSize
}

// readIndex reads n positions at byte pos, a piece at a time.
func (t *table) readIndex(img *Image, pos, n int64) error {
	var buf [disk.MetadataSize]byte
	for done := int64(0); done < n; {
		piece := buf[:min(int64(len(buf)), (n-done)*disk.PositionSize)]
		if err := img.readAt(piece, pos+done*disk.PositionSize); err != nil {
			return err
		}
		for ; len(piece) > 0; piece = piece[disk.PositionSize:] {
			if err := t.addBlock(disk.DecodeUint64(piece)); err != nil {
				return err
			}
			done++
		}
	}
	return t.checkStep(t.end)
}

// addBlock appends a position of the index.
func (t *table) addBlock(pos uint64) error {
	if pos >= uint64(t.end) {
		return corrupt(t.end, "%s has a block at %#x, behind its index", t.name, pos)
	}
	if err := t.checkStep(int64(pos)); err != nil {
		return err
	}
	t.blocks = append(t.blocks, int64(pos))
	return nil
}

// checkStep checks that pos can be where the last block so far ends.
func (t *table) checkStep(pos int64) error {
	if len(t.blocks) == 0 {
		return nil
	}
	last := t.blocks[len(t.blocks)-1]
	if pos-last <= disk.MetadataHeader || pos-last > disk.MetadataHeader+disk.MetadataSize {
		return corrupt(t.end, "%s has a block at %#x that would end at %#x", t.name, last, pos)
	}
	return nil
}

// row returns the bytes of row i. They must not be changed.
func (t *table) row(img *Image, i uint64) ([]byte, error) {
	if i >= t.rows {
		return nil, corrupt(t.end, "row %d of the %s, which has %d", i, t.name, t.rows)
	}
	per := log2(disk.MetadataSize / t.size)
	blk, err := img.metadata(t.blocks[i>>per], t.end)
	if err != nil {
		return nil, err
	}
	// unsquash-4.c, read_block: all blocks but the last are full, and that is exact.
	if want := min(disk.MetadataSize, (t.rows-i>>per<<per)*t.size); uint64(len(blk.data)) != want {
		return nil, corrupt(blk.pos, "block of the %s expands to %d bytes, want %d", t.name, len(blk.data), want)
	}
	off := (i & (1<<per - 1)) * t.size
	return blk.data[off : off+t.size], nil
}

// id returns user or group id number i of the image.
func (img *Image) id(i uint16) (uint32, error) {
	b, err := img.ids.row(img, uint64(i))
	if err != nil {
		return 0, err
	}
	return disk.DecodeUint32(b), nil
}

// ByNumber returns the reference of the inode with the given number, from the export
// table. It is what resolves [Inode.Parent]. Images need not have that table (see
// Superblock.ExportTable): then the error matches [fs.ErrNotExist]. The row is not
// compared with the inode it leads to.
func (img *Image) ByNumber(number uint32) (InodeRef, error) {
	if img.sb.ExportTable < 0 {
		return 0, fmt.Errorf("export table: %w", fs.ErrNotExist)
	}
	b, err := img.exports.row(img, uint64(number)-1)
	if err != nil {
		return 0, err
	}
	ref := disk.DecodeUint64(b)
	if ref>>48 != 0 {
		return 0, corrupt(img.exports.end, "export table has %#x for inode %d", ref, number)
	}
	return InodeRef(ref), nil
}
