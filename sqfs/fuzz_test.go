package sqfs

import (
	"bytes"
	"os"
	"testing"

	"github.com/squirefs/squire/sqfs/internal/disk"
	"github.com/squirefs/squire/testdata/hostile"
)

// The targets check what invariants_test.go says, besides that nothing panics and all comes
// to an end. Small and valid images around the bytes in question let most changes reach the
// code that they are for.

// FuzzImage reads all it can of damaged images, through both doors.
func FuzzImage(f *testing.F) {
	for _, path := range append([]string{"testdata/stored.sqfs", "testdata/index-stored.sqfs"}, images(f)...) {
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		if len(b) < 70000 {
			f.Add(b)
		}
	}
	f.Fuzz(checkImage)
}

// FuzzFields changes fields of an image that has everything: four bytes for each change.
func FuzzFields(f *testing.F) {
	edits := hostile.BaseEdits()
	f.Add([]byte{0, 0, 1, 0})
	for i := range byte(200) {
		f.Add([]byte{i * 5, i / 8, i % 6, i * 3, i, i / 4, i % 5, i})
	}
	f.Fuzz(func(t *testing.T, script []byte) {
		checkImage(t, edits.Apply(script[:min(len(script), 64)]))
	})
}

func checkImage(t *testing.T, b []byte) {
	src := &countingReader{ReaderAt: bytes.NewReader(b)}
	img, err := New(src, int64(len(b)), &Options{MetadataCache: 1 << 20})
	if err != nil {
		known(t, err)
		return
	}
	c := newInvariants(t, img)
	c.walkBoth()
	if limit := int64(200000); src.n.Load() > limit {
		t.Errorf("%d reads, want at most %d", src.n.Load(), limit)
	}
}

// openRaw opens an image of package hostile, which may be one to refuse.
func openRaw(t *testing.T, b []byte) *Image {
	img, err := New(bytes.NewReader(b), int64(len(b)), nil)
	if err != nil {
		known(t, err)
		return nil
	}
	return img
}

// FuzzDirectory reads listings, by themselves and through an index.
func FuzzDirectory(f *testing.F) {
	p := hostile.BaseParts()
	f.Add(p.Listing, p.Index, p.IndexLen)
	f.Add(p.Listing[:1000], []byte(nil), uint16(0))
	f.Add([]byte("\x01\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x20\x00\x00\x00\x02\x00\x00\x00a\x40\x00\x01\x00\x01\x00\x00\x00b"), []byte(nil), uint16(0))
	f.Fuzz(func(t *testing.T, listing, index []byte, n uint16) {
		if img := openRaw(t, hostile.WithListing(listing, index, n)); img != nil {
			c := newInvariants(t, img)
			root := find(t, img)
			c.dir(&root)
		}
	})
}

// FuzzInode reads an inode at each byte of a table, and what it leads to.
func FuzzInode(f *testing.F) {
	p := hostile.BaseParts()
	for off := 0; off < len(p.Inodes); off += 500 {
		f.Add(p.Inodes[off:min(off+700, len(p.Inodes))])
	}
	f.Fuzz(func(t *testing.T, inodes []byte) {
		img := openRaw(t, hostile.WithInodes(inodes))
		if img == nil {
			return
		}
		c := newInvariants(t, img)
		for off := range min(len(inodes), 800) {
			ref := InodeRef(off/disk.MetadataSize*(disk.MetadataSize+disk.MetadataHeader))<<16 | InodeRef(off%disk.MetadataSize)
			ino, err := img.Inode(ref)
			if err != nil {
				known(t, err)
				continue
			}
			c.inode(&ino)
		}
	})
}

// FuzzXattr reads the attributes of all sets of a table.
func FuzzXattr(f *testing.F) {
	p := hostile.BaseParts()
	f.Add(p.Pairs, p.Sets)
	f.Add(p.Pairs[:60], p.Sets[:16])
	f.Fuzz(func(t *testing.T, pairs, sets []byte) {
		img := openRaw(t, hostile.WithXattrs(pairs, sets))
		if img == nil {
			return
		}
		c := newInvariants(t, img)
		root := find(t, img)
		for row := range min(len(sets)/disk.XattrIDSize+1, 30) {
			root.xattr = uint32(row)
			c.xattrs(&root)
		}
	})
}
