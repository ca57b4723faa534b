package sqfs

import (
	"iter"

	"github.com/squirefs/squire/sqfs/internal/disk"
)

// Table is a part of an image that consists of metadata blocks.
type Table struct {
	Name       string
	Start, End int64  // byte offsets in the image: of the first block, and behind the index if there is one
	Rows       uint64 // records; 0 for directories and xattrs, whose records are not counted anywhere

	index []int64 // where the blocks are, if the table has an index
	last  int64   // where they end
}

// Tables returns the parts of the image that hold metadata, in their order. Those that
// the image does not have are left out.
func (img *Image) Tables() []Table {
	list := []Table{
		{Name: img.inodes.name, Start: img.inodes.start, End: img.inodes.end, Rows: uint64(img.sb.Inodes), last: img.inodes.end},
		{Name: img.dirs.name, Start: img.dirs.start, End: img.dirs.end, last: img.dirs.end},
	}
	add := func(t *table) {
		if len(t.blocks) > 0 {
			list = append(list, Table{Name: t.name, Start: t.start, End: t.after(), Rows: t.rows, index: t.blocks, last: t.end})
		}
	}
	add(&img.frags)
	add(&img.exports)
	add(&img.ids)
	if img.HasXattrs() {
		list = append(list, Table{Name: img.xattrs.name, Start: img.xattrs.start, End: img.xattrs.end, last: img.xattrs.end})
	}
	add(&img.sets)
	return list
}

// MetadataBlock is a metadata block as it lies in the image.
type MetadataBlock struct {
	Off    int64 // byte offset in the image of its header
	Size   int   // bytes on disk, with the header
	Len    int   // expanded
	Stored bool  // not compressed
}

// MetadataBlocks expands the blocks of a table of this image, one after the other, and
// yields them, or for one that is damaged its offset and the error. It goes on behind a
// damaged block as long as there is a way to know where the next one is. Nothing is
// kept: this is for whoever wants to look at every block once.
func (img *Image) MetadataBlocks(t Table) iter.Seq2[MetadataBlock, error] {
	return func(yield func(MetadataBlock, error) bool) {
		if t.index == nil {
			for pos := t.Start; pos >= 0 && pos < t.last; {
				b, next, err := img.metadataBlock(pos, t.last)
				if !yield(b, err) {
					return
				}
				pos = next
			}
			return
		}
		for _, pos := range t.index {
			if b, _, err := img.metadataBlock(pos, t.last); !yield(b, err) {
				return
			}
		}
	}
}

// metadataBlock expands the block at pos. next is where it ends, -1 if that is unknown.
func (img *Image) metadataBlock(pos, end int64) (b MetadataBlock, next int64, err error) {
	b = MetadataBlock{Off: pos}
	blk, err := img.loadMetadata(pos, end)
	buf := metaBuffers.Get().(*[disk.MetadataHeader + disk.MetadataSize]byte)
	defer metaBuffers.Put(buf)
	if !within(pos, disk.MetadataHeader, end) || img.readAt(buf[:disk.MetadataHeader], pos) != nil {
		return b, -1, err
	}
	n, stored := disk.DecodeMetadataHeader(buf[:])
	if n == 0 || n > disk.MetadataSize {
		return b, -1, err
	}
	b.Size, b.Stored = disk.MetadataHeader+n, stored
	if err == nil {
		b.Len = len(blk.data)
	}
	return b, pos + int64(b.Size), err
}
