package sqfs

import (
	"bytes"
	"fmt"
	"io/fs"
	"iter"
	"sync"
	"syscall"

	"github.com/squirefs/squire/sqfs/internal/disk"
)

// Dirent is an entry of a directory.
type Dirent struct {
	// Name has 1..255 bytes, none of them '/' or NUL, and is neither "." nor "..". It
	// need not be UTF-8. It must not be changed; from Dirents it is valid until the
	// next step of the iteration, from Lookup as long as you like.
	Name   []byte
	Ref    InodeRef
	Number uint32 // of the inode, as the directory says; the inode itself is right in doubt
	Type   Type   // of the inode, likewise
	Pos    DirPos // where to go on after this entry
}

// DirPos is a place in a directory, between two entries. 0 is the start; the
// position after an entry is at least 512 and fits 42 bits. (FUSE takes 1 and 2 for
// the places after "." and "..", and signed 64-bit numbers.) Positions stay valid as
// long as the image exists, also in another process.
type DirPos uint64

// The 9 low bits of a DirPos count entries in a run (1..256 for a place after one),
// the bits above are 1 + the position of the run's header in the listing.
const posBits = 9

func makePos(header int64, entries int) DirPos {
	return DirPos(header+1)<<posBits | DirPos(entries)
}

func (p DirPos) header() int64 { return int64(p>>posBits) - 1 }
func (p DirPos) entries() int  { return int(p & (1<<posBits - 1)) }

// Dirents returns the entries of dir from pos on, sorted by the bytes of their names,
// without "." and "..". Iteration ends early after yielding an error, beside which
// the entry is empty. Entries whose name has 256 bytes, which squashfs allows and
// Linux cannot use, are left out. A pos that did not come from a Dirent of the same
// directory gives an error or nonsense.
func (img *Image) Dirents(dir *Inode, pos DirPos) iter.Seq2[Dirent, error] {
	return func(yield func(Dirent, error) bool) { img.readDir(dir, pos, yield) }
}

func (img *Image) readDir(dir *Inode, pos DirPos, yield func(Dirent, error) bool) {
	d := dirReaders.Get().(*dirReader)
	defer d.free()
	if err := d.open(img, dir, pos); err != nil {
		yield(Dirent{}, err)
		return
	}
	for d.next() {
		if !yield(d.entry, nil) {
			return
		}
	}
	if d.err != nil {
		yield(Dirent{}, d.err)
	}
}

// Lookup returns the entry of dir called name, or [fs.ErrNotExist] itself. Names that
// no directory can contain do not exist. Entries before it are not checked as Dirents
// checks them: in a corrupt directory Lookup may find what Dirents refuses to list.
func (img *Image) Lookup(dir *Inode, name string) (Dirent, error) {
	d := dirReaders.Get().(*dirReader)
	defer d.free()
	if err := d.seek(img, dir, name); err != nil {
		return Dirent{}, err
	}
	for d.next() {
		have := d.entry.Name
		if string(have) < name {
			d.pass(name)
			continue
		}
		if string(have) > name {
			break // directories are sorted: the kernel stops here as well (namei.c)
		}
		e := d.entry
		if d.straddled {
			e.Name = bytes.Clone(have) // it lies in d
		}
		return e, nil
	}
	if d.err != nil {
		return Dirent{}, d.err
	}
	return Dirent{}, fs.ErrNotExist
}

// dirReader reads the listing of one directory. It is kept in a pool, not on the
// stack, because names that lie across two metadata blocks are put together in it.
type dirReader struct {
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

	entry     Dirent // the result of next
	straddled bool   // entry.Name is in names
	err       error  // why next returned false; nil at the end
	scratch   [disk.DirHeaderSize]byte
}

var dirReaders = sync.Pool{New: func() any { return new(dirReader) }}

// free gives d back to the pool, without keeping an image alive.
func (d *dirReader) free() {
	d.c, d.prev, d.entry, d.err = cursor{}, nil, Dirent{}, nil
	dirReaders.Put(d)
}

// start prepares d for the listing of dir, at its beginning. An empty directory may
// point anywhere, even past the end of the table: there is nothing to read.
func (d *dirReader) start(img *Image, dir *Inode) (err error) {
	if dir.Type != TypeDir {
		return fmt.Errorf("read directory: %v %v: %w", dir.Type, dir.Ref, syscall.ENOTDIR)
	}
	d.dir, d.size, d.pos, d.header = dir.Ref, dir.Size-disk.DirPseudo, 0, 0
	d.run, d.seen, d.prev, d.odd, d.err = disk.DirHeader{}, 0, nil, 0, nil
	if d.size <= 0 {
		return nil
	}
	d.c, err = img.at(&img.dirs, dir.start, int(dir.offset))
	return err
}

// open prepares d to go on after pos.
func (d *dirReader) open(img *Image, dir *Inode, pos DirPos) error {
	if err := d.start(img, dir); err != nil || pos == 0 {
		return err
	}
	if pos.header() < 0 || pos.header() >= d.size {
		return fmt.Errorf("read directory %v: position %#x: %w", dir.Ref, uint64(pos), fs.ErrInvalid)
	}
	if err := d.c.skip(pos.header()); err != nil {
		return err
	}
	d.pos = pos.header()
	if !d.nextRun() {
		return d.err
	}
	for d.seen < min(pos.entries(), int(d.run.Count)) {
		if err := d.nextEntry(); err != nil {
			return err
		}
	}
	return nil
}

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

// pass steps over entries of the current run whose names are less than name, as long
// as they lie in the current metadata block: five times as fast as next, which goes on
// from there.
func (d *dirReader) pass(name string) {
	b := d.c.blk.data[d.c.off:]
	for d.seen < int(d.run.Count) && len(b) >= disk.DirEntrySize {
		n := disk.DirEntrySize + disk.DecodeDirEntry(b).Name
		if n > len(b) || n > disk.DirEntrySize+disk.MaxName || string(b[disk.DirEntrySize:n]) >= name {
			break
		}
		b = b[n:]
		d.seen++
	}
	n := len(d.c.blk.data) - d.c.off - len(b)
	d.c.off += n
	d.pos += int64(n)
	d.prev = nil // not worth keeping
}

// nextRun reads the header of a run. Like the kernel (dir.c) it compares the size of
// the listing only here and trusts the count of a run, which is at most 256: images
// by tools-ng before 1.1.3 have a size that is 3 too small.
func (d *dirReader) nextRun() bool {
	if d.pos >= d.size {
		return false
	}
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
	return d.check(e.Type)
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
	for _, c := range name {
		if c == '/' || c == 0 {
			return false
		}
	}
	return true
}

// seek prepares d to find name in dir: at the start of the last run that the index
// says begins with a name not greater than it. The index is a hint: if the run does
// not begin with the name that the index says, the search starts at the beginning.
func (d *dirReader) seek(img *Image, dir *Inode, name string) error {
	if err := d.start(img, dir); err != nil || dir.index == 0 || d.size <= 0 {
		return err
	}
	hint, ok := d.searchIndex(img, dir, name)
	if ok && d.follow(img, dir, hint) {
		return nil
	}
	return d.start(img, dir)
}

// follow moves d to the run that the index entry hint leads to, and reports whether
// that begins with the name of the hint, which is in d.prev.
func (d *dirReader) follow(img *Image, dir *Inode, hint disk.DirIndex) bool {
	// The listing starts at dir.offset of its first block, and blocks have 8192 bytes.
	off := (int64(dir.offset) + int64(hint.Index)) % disk.MetadataSize
	c, err := img.at(&img.dirs, int64(hint.Start), int(off))
	if err != nil {
		return false
	}
	want := d.prev
	d.c, d.pos, d.prev = c, int64(hint.Index), nil
	if !d.next() || !bytes.Equal(d.entry.Name, want) {
		return false
	}
	// It is the right place. Go back to in front of the entry.
	d.c, d.pos, d.prev = c, int64(hint.Index), nil
	d.run, d.seen = disk.DirHeader{}, 0
	return true
}

// searchIndex returns the last entry of the index of dir whose name is not greater
// than name, leaving that name in d.prev. It returns false if there is none or the
// index makes no sense.
func (d *dirReader) searchIndex(img *Image, dir *Inode, name string) (hint disk.DirIndex, ok bool) {
	c, err := img.tail(dir)
	if err != nil {
		return hint, false
	}
	last := int64(-1)
	for range dir.index {
		b, err := c.next(disk.DirIndexSize, d.scratch[:])
		if err != nil {
			return hint, false
		}
		x := disk.DecodeDirIndex(b)
		if x.Name == 0 || x.Name > disk.MaxName || int64(x.Index) <= last || int64(x.Index) >= d.size {
			return hint, false
		}
		last = int64(x.Index)
		found, err := c.next(int(x.Name), d.names[d.odd][:])
		if err != nil {
			return hint, false
		}
		if string(found) > name {
			break
		}
		hint, ok, d.prev = x, true, found
		d.odd ^= 1
	}
	return hint, ok
}
