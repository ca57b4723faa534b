package sqfs

import (
	"bytes"
	"fmt"
	"io/fs"
	"strings"
	"sync"
	"syscall"

	"github.com/squirefs/squire/sqfs/internal/disk"
)

// dirReader reads the listing of one directory. It is kept in a pool, not on the
// stack, because names that lie across two metadata blocks are put together in it.
type dirReader struct {
	img    *Image
	c      cursor
	dir    InodeRef
	size   int64 // of the listing
	pos    int64 // in the listing
	header int64 // position of the header of this run
	run    disk.DirHeader
	seen   int    // entries of this run that were read
	prev   []byte // name of the entry before: in a metadata block or in names
	names  [2][disk.MaxName]byte
	odd    int // which of names the next name may use: prev is in the other

	// Of a long directory, see dirIndex. While x is set all entries are checked, from
	// the start of the listing or a sample on, and runs from want on become samples.
	x    *dirIndex
	want int64
	at   uint64 // where the cursor was at the header of this run
	hint hint

	entry     Dirent // the result of next
	straddled bool   // entry.Name is in names
	err       error  // why next returned false; nil at the end
	scratch   [disk.DirHeaderSize]byte
}

var dirReaders = sync.Pool{New: func() any { return new(dirReader) }}

// free gives d back to the pool, without keeping an image alive.
func (d *dirReader) free() {
	d.img, d.c, d.prev, d.entry, d.err, d.x, d.hint = nil, cursor{}, nil, Dirent{}, nil, nil, hint{}
	dirReaders.Put(d)
}

// start prepares d for the listing of dir, without a place in it.
func (d *dirReader) start(img *Image, dir *Inode) error {
	if dir.Type != TypeDir {
		return fmt.Errorf("read directory: %v %v: %w", dir.Type, dir.Ref, syscall.ENOTDIR)
	}
	d.img, d.dir, d.size, d.err = img, dir.Ref, dir.Size-disk.DirPseudo, nil
	d.stand(cursor{}, 0)
	return nil
}

// stand puts d at the header of the run at pos, where c is.
func (d *dirReader) stand(c cursor, pos int64) {
	d.c, d.pos, d.header = c, pos, 0
	d.run, d.seen, d.prev, d.odd = disk.DirHeader{}, 0, nil, 0
}

// rewind goes to the first run. An empty directory may point anywhere, even past the
// end of the table: there is nothing to read.
func (d *dirReader) rewind(dir *Inode) error {
	if d.size <= 0 {
		return nil
	}
	c, err := d.img.at(&d.img.dirs, dir.start, int(dir.offset))
	d.stand(c, 0)
	return err
}

// open prepares d to go on after pos. Whoever may list a directory can ask for any
// pos (lseek, telldir): it counts only if the walk over the runs meets it.
func (d *dirReader) open(img *Image, dir *Inode, pos DirPos) error {
	if err := d.start(img, dir); err != nil {
		return err
	}
	header, n := pos.header(), pos.entries()
	if pos != 0 && (n == 0 || header < 0 || header >= d.size) {
		return noSuchPos(dir, pos)
	}
	if err := d.near(dir, header); err != nil || pos == 0 {
		return err
	}
	for d.err == nil && d.pos < header && d.nextRun() {
		d.err = d.skim(int(d.run.Count))
	}
	if d.err == nil && d.pos == header && d.nextRun() && n <= int(d.run.Count) {
		return d.skim(n)
	}
	if d.err != nil {
		return d.err
	}
	return noSuchPos(dir, pos)
}

func noSuchPos(dir *Inode, pos DirPos) error {
	return fmt.Errorf("read directory %v: position %#x: %w", dir.Ref, uint64(pos), fs.ErrInvalid)
}

// skim steps over entries of the current run until n of them are behind. The last is
// read, so that the next one is compared with it.
func (d *dirReader) skim(n int) error {
	for d.seen < n {
		if d.x == nil { // else all entries are to be checked
			d.pass(n-1, behindAll)
		}
		if err := d.nextEntry(); err != nil {
			return err
		}
	}
	return nil
}

// behindAll is greater than any name.
var behindAll = strings.Repeat("\xff", disk.MaxName+1)

// next reads the next entry into d.entry. It returns false at the end and after an
// error, which is in d.err then.
func (d *dirReader) next() bool {
	for {
		if d.seen == int(d.run.Count) && !d.nextRun() {
			return false
		}
		if d.err = d.nextEntry(); d.err != nil {
			return false
		}
		if len(d.entry.Name) < disk.MaxName {
			return true
		}
	}
}

// pass steps over entries of the current run whose names are less than name, until n
// are behind, as long as they lie in the current metadata block: five times as fast as
// next, which goes on from there.
func (d *dirReader) pass(n int, name string) {
	all := d.c.blk.data[d.c.off:]
	b := all
	for d.seen < n && len(b) >= disk.DirEntrySize {
		size := disk.DirEntrySize + disk.DecodeDirEntry(b).Name
		if size > len(b) || size > disk.DirEntrySize+disk.MaxName || string(b[disk.DirEntrySize:size]) >= name {
			break
		}
		b = b[size:]
		d.seen++
	}
	passed := len(all) - len(b)
	d.c.off += passed
	d.pos += int64(passed)
	d.prev = nil // not worth keeping
}

// nextRun reads the header of a run. Like the kernel (dir.c) it compares the size of
// the listing only here and trusts the count of a run, which is at most 256: images
// by tools-ng before 1.1.3 have a size that is 3 too small.
func (d *dirReader) nextRun() bool {
	if d.pos >= d.size {
		d.complete()
		return false
	}
	d.at = d.c.ref(&d.img.dirs)
	b, err := d.c.next(disk.DirHeaderSize, d.scratch[:])
	if err != nil {
		d.err = err
		return false
	}
	d.header, d.seen, d.run = d.pos, 0, disk.DecodeDirHeader(b)
	d.pos += disk.DirHeaderSize
	if d.run.Count == 0 || d.run.Count > disk.MaxRun {
		d.err = d.c.fault("directory %v has a run of %d entries, want 1..%d", d.dir, d.run.Count, disk.MaxRun)
		return false
	}
	return true
}

// nextEntry reads an entry of the current run and checks it.
func (d *dirReader) nextEntry() error {
	b, err := d.c.next(disk.DirEntrySize, d.scratch[:])
	if err != nil {
		return err
	}
	e := disk.DecodeDirEntry(b)
	if e.Name > disk.MaxName {
		return d.c.fault("directory %v has a name of %d bytes, want 1..%d", d.dir, e.Name, disk.MaxName)
	}
	d.straddled = e.Name > len(d.c.blk.data)-d.c.off
	name, err := d.c.next(e.Name, d.names[d.odd][:])
	if err != nil {
		return err
	}
	if d.straddled {
		d.odd ^= 1
	}
	d.pos += int64(disk.DirEntrySize + e.Name)
	d.seen++
	to := &d.entry // field by field: a literal would be made aside and copied
	to.Name = name
	to.Ref = InodeRef(d.run.Start)<<16 | InodeRef(e.Offset)
	to.Number = d.run.Number + uint32(int32(e.Delta))
	to.Type = Type(e.Type)
	to.Pos = makePos(d.header, d.seen)
	if err := d.check(e.Type); err != nil {
		return err
	}
	if d.x != nil && d.seen == 1 && d.header >= d.want {
		d.sample()
	}
	return nil
}

// check applies the rules for entries. Sorted and unique names are what lookups rely
// on, and what keeps an extractor from following a link that it just made
// (CVE-2021-41072).
func (d *dirReader) check(typ uint16) error {
	e := &d.entry
	if typ == 0 || typ > disk.MaxType {
		return d.c.fault("entry %q of directory %v has type %d", e.Name, d.dir, typ)
	}
	if typ > disk.Extended {
		e.Type -= disk.Extended // writers may give the extended type
	}
	if !validName(e.Name) {
		return d.c.fault("directory %v has an entry with the forbidden name %q", d.dir, e.Name)
	}
	if d.prev != nil && bytes.Compare(d.prev, e.Name) >= 0 {
		return d.c.fault("directory %v has %q after %q: not sorted", d.dir, e.Name, d.prev)
	}
	if e.Ref == d.dir || e.Ref == d.c.img.sb.Root {
		return d.c.fault("entry %q of directory %v leads to itself or the root", e.Name, d.dir)
	}
	d.prev = e.Name
	return nil
}

// validName reports whether a directory may contain name (unsquashfs: check_name).
func validName(name []byte) bool {
	if name[0] == '.' && (len(name) == 1 || len(name) == 2 && name[1] == '.') {
		return false
	}
	return bytes.IndexByte(name, '/') < 0 && bytes.IndexByte(name, 0) < 0
}
