package pack

import (
	"bufio"
	"fmt"
	"io"
	"math"
	"math/bits"

	"github.com/squirefs/squire/sqfs/internal/codec"
	"github.com/squirefs/squire/sqfs/internal/disk"
)

// padding is what the length of an image is a multiple of: a loop device has no shorter
// sectors to its end (mksquashfs.c does the same).
const padding = 4096

// finish writes all tables and the superblock. The superblock comes last, when all else is
// in its place: what is there of an image before is none.
func (w *Writer) finish(root *Inode) (Stats, error) {
	t, err := newTree(w, root)
	if err != nil {
		return Stats{}, err
	}
	e, err := w.o.encoder(disk.MetadataSize)
	if err != nil {
		return Stats{}, fmt.Errorf("pack: %w", err)
	}
	start := w.p.end.Load()
	out := bufio.NewWriterSize(io.NewOffsetWriter(w.f, start), 1<<20)
	s, err := writeInodes(t, out, e)
	if err != nil {
		return Stats{}, err
	}
	sb := w.superblock(t, s)
	err = w.tables(&sb, t, s, out, e)
	if err == nil {
		err = out.Flush()
	}
	end := int64(sb.BytesUsed)
	if err == nil {
		err = w.f.Truncate((end + padding - 1) / padding * padding)
	}
	if err == nil {
		_, err = w.f.WriteAt(sb.Append(nil), 0)
	}
	if err != nil {
		return Stats{}, fmt.Errorf("pack: write image: %w", err)
	}
	w.p.end.Store(end)
	return Stats{
		Progress: w.Progress(), Bytes: end, Inodes: int64(t.inodes), Duplicates: w.duplicates, Saved: w.saved,
		Blocks: w.p.blocks, Fragments: int64(t.used), Metadata: end - start,
	}, nil
}

// superblock returns what is known when the inodes are written.
func (w *Writer) superblock(t *tree, s *inodes) disk.Superblock {
	start := w.p.end.Load()
	return disk.Superblock{
		Magic: disk.Magic, Inodes: t.inodes, MkfsTime: uint32(min(max(w.o.Time.Unix(), 0), math.MaxUint32)),
		BlockSize: uint32(w.o.BlockSize), Fragments: t.used, Compression: uint16(w.o.Compression),
		BlockLog: uint16(bits.TrailingZeros(uint(w.o.BlockSize))), Flags: w.o.flags(), IDs: uint16(len(s.ids)),
		Major: disk.Major, Minor: disk.Minor, RootInode: t.root.ref,
		InodeTable: uint64(start), DirectoryTable: uint64(start + s.table.size),
		FragmentTable: disk.NoTable, ExportTable: disk.NoTable, XattrTable: disk.NoTable,
	}
}

// tables writes all that follows the inodes, in the order that readers want, and says in
// the superblock where.
func (w *Writer) tables(sb *disk.Superblock, t *tree, s *inodes, out io.Writer, e codec.Encoder) error {
	m := newMetadata(out, e)
	begin := int64(sb.DirectoryTable)
	m.put(s.listing.Bytes())
	if t.used > 0 {
		var used []disk.Fragment
		for i, n := range t.fragments {
			if n != disk.None {
				used = append(used, w.p.fragments[i])
			}
		}
		sb.FragmentTable = m.table(begin, len(used), disk.FragmentSize, nil, func(b []byte, i int) []byte { return used[i].Append(b) })
	}
	if s.exports != nil {
		sb.ExportTable = m.table(begin, len(s.exports), disk.ExportSize, nil, func(b []byte, i int) []byte { return disk.AppendUint64(b, s.exports[i]) })
	}
	sb.IDTable = m.table(begin, len(s.ids), disk.IDSize, nil, func(b []byte, i int) []byte { return disk.AppendUint32(b, s.ids[i]) })
	if x := s.xattrs; len(x.rows) > 0 {
		head := disk.XattrHeader{Start: uint64(begin + m.size), Count: uint32(len(x.rows))}
		m.put(x.buf.Bytes())
		sb.XattrTable = m.table(begin, len(x.rows), disk.XattrIDSize, head.Append(nil), func(b []byte, i int) []byte { return x.rows[i].Append(b) })
	}
	sb.BytesUsed = uint64(begin + m.size)
	return m.err
}
