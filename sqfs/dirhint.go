package sqfs

import (
	"bytes"

	"github.com/squirefs/squire/sqfs/internal/disk"
)

// The index that an image may have for a directory says for some of its runs where
// they are and with which name they begin. It lets the first lookups in a long
// directory do without walking its listing, but it must be searched from its start,
// and it is a hint: it may be sparse, or wrong. So lookups that use it pay for what
// they read, and when that is as much as the listing has, the directory gets a
// dirIndex of its own.

// hint is what a dirReader knows of its use of the index in the image.
type hint struct {
	x    *dirIndex // pays for it; nil if the index was not used
	from int64     // where in the listing it led to
}

// followHint goes to the last run that the index of dir says begins with a name not
// greater than name, and reports whether there is one that does. x is charged for it.
func (d *dirReader) followHint(dir *Inode, x *dirIndex, name string) bool {
	l := &d.img.longDirs
	left := d.size - l.spent(x)
	if dir.index == 0 || left <= 0 {
		return false
	}
	found, read := d.searchIndex(dir, name, left)
	l.spend(x, read)
	ok := false
	if d.prev == nil { // name lies in front of the first one
		ok = d.rewind(dir) == nil
	} else {
		ok = d.goTo(dir, found)
	}
	if !ok {
		l.spend(x, d.size) // it is wrong: no more of it
		return false
	}
	d.hint = hint{x: x, from: d.pos}
	return true
}

// payHint charges for the part of the listing that was walked from where a hint led.
func (d *dirReader) payHint() {
	if d.hint.x != nil {
		d.img.longDirs.spend(d.hint.x, d.pos-d.hint.from)
	}
}

// searchIndex returns the last entry of the index of dir whose name is not greater
// than name, leaving that name in d.prev, or nil there. It stops where the index makes
// no sense, and after limit bytes. read is the number of bytes read.
func (d *dirReader) searchIndex(dir *Inode, name string, limit int64) (found disk.DirIndex, read int64) {
	c, err := d.img.tail(dir)
	if err != nil {
		return found, 0
	}
	last := int64(-1)
	for i := 0; i < int(dir.index) && read < limit; i++ {
		b, err := c.next(disk.DirIndexSize, d.scratch[:])
		if err != nil {
			break
		}
		x := disk.DecodeDirIndex(b)
		if x.Name == 0 || x.Name > disk.MaxName || int64(x.Index) <= last || int64(x.Index) >= d.size {
			break
		}
		last = int64(x.Index)
		have, err := c.next(int(x.Name), d.names[d.odd][:])
		if err != nil || string(have) > name {
			break
		}
		read += disk.DirIndexSize + int64(x.Name)
		found, d.prev = x, have
		d.odd ^= 1
	}
	return found, read
}

// goTo goes to the run that the index entry x leads to, and reports whether that
// begins with the name of x, which is in d.prev.
func (d *dirReader) goTo(dir *Inode, x disk.DirIndex) bool {
	// The listing starts at dir.offset of its first block, and blocks have 8192 bytes.
	off := (int64(dir.offset) + int64(x.Index)) % disk.MetadataSize
	c, err := d.img.at(&d.img.dirs, int64(x.Start), int(off))
	if err != nil {
		return false
	}
	want := d.prev
	d.c, d.pos, d.prev = c, int64(x.Index), nil // not stand: want may lie in a buffer of d
	ok := d.nextRun() && d.nextEntry() == nil && bytes.Equal(d.entry.Name, want)
	d.stand(c, int64(x.Index)) // back in front of it
	d.err = nil
	return ok
}
