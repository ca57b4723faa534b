package sqfs

import (
	"io/fs"
	"iter"
	"unsafe"
)

// Dirent is an entry of a directory.
type Dirent struct {
	// Name has 1..255 bytes, none of them '/' or NUL, and is neither "." nor "..". It
	// need not be UTF-8. It must not be changed; from Dirents it is valid until the
	// next step of the iteration, from Lookup as long as the name given to it.
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
// Linux cannot use, are left out. A pos that no entry of this directory has gives an
// error that matches [fs.ErrInvalid], however it was made up.
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
// checks them, and the index that the image has for a long directory is believed as
// far as it agrees with the listing: in a corrupt directory Lookup may find what
// Dirents does not list.
func (img *Image) Lookup(dir *Inode, name string) (Dirent, error) {
	d := dirReaders.Get().(*dirReader)
	defer d.free()
	if err := d.seek(img, dir, name); err != nil {
		return Dirent{}, err
	}
	e, err := d.find(name)
	d.payHint()
	d.lookAhead()
	return e, err
}

// find returns the entry called name, which must not lie before the next entry.
func (d *dirReader) find(name string) (Dirent, error) {
	for d.next() {
		have := d.entry.Name
		if string(have) < name {
			if d.x == nil { // else all entries are to be checked
				d.pass(int(d.run.Count), name)
			}
			continue
		}
		if string(have) > name {
			break // directories are sorted: the kernel stops here as well (namei.c)
		}
		e := d.entry
		if d.straddled { // it lies in d
			e.Name = unsafe.Slice(unsafe.StringData(name), len(name))
		}
		return e, nil
	}
	if d.err != nil {
		return Dirent{}, d.err
	}
	return Dirent{}, fs.ErrNotExist
}
