package sqfs

import (
	"bytes"
	"fmt"
	"io/fs"
	"iter"
	"strings"
	"sync"

	"github.com/squirefs/squire/sqfs/internal/disk"
)

// Xattr names an extended attribute of an inode.
type Xattr struct {
	Name string // full, such as "user.comment", at most 255 bytes
	Size int    // of the value
}

// xattrPrefixes are the name spaces that squashfs can store: SQUASHFS_XATTR_USER,
// _TRUSTED, _SECURITY.
var xattrPrefixes = [...]string{"user.", "trusted.", "security."}

// Limits of Linux (limits.h: XATTR_NAME_MAX, XATTR_SIZE_MAX), and one of ours for
// what a hostile image can make us look at: the list of names of an inode has at most
// 64 KiB in Linux (XATTR_LIST_MAX), so it has fewer than this many.
const (
	maxXattrName  = 255
	maxXattrValue = 65536
	maxXattrs     = 65536
)

// AppendXattr appends the value of attribute name of ino to dst and returns the
// longer slice. name is the full name, such as "security.capability". If ino has no
// such attribute, the error is [fs.ErrNotExist] itself. Values have 0..65536 bytes.
// On an error dst is returned as it was.
func (img *Image) AppendXattr(dst []byte, ino *Inode, name string) ([]byte, error) {
	kind, rest, ok := splitXattr(name)
	if !ok {
		return dst, fs.ErrNotExist
	}
	if ino.xattr == disk.None {
		return dst, fs.ErrNotExist
	}
	x := xattrReaders.Get().(*xattrReader)
	defer x.free()
	if err := x.open(img, ino); err != nil {
		return dst, err
	}
	for x.next() {
		if x.kind == kind && string(x.name) == rest {
			return x.appendValue(dst)
		}
	}
	if x.err != nil {
		return dst, x.err
	}
	return dst, fs.ErrNotExist
}

// splitXattr splits a full name into its name space and the rest.
func splitXattr(name string) (kind int, rest string, ok bool) {
	for i, p := range xattrPrefixes {
		if rest, ok := strings.CutPrefix(name, p); ok && rest != "" {
			return i, rest, true
		}
	}
	return 0, "", false
}

// Xattrs returns names and sizes of the extended attributes of ino, in the order of
// the image. Attributes in name spaces that squashfs does not know are left out.
// Iteration ends early after yielding an error. The names are allocated.
func (img *Image) Xattrs(ino *Inode) iter.Seq2[Xattr, error] {
	return func(yield func(Xattr, error) bool) {
		x := xattrReaders.Get().(*xattrReader)
		defer x.free()
		err := x.open(img, ino)
		for err == nil && x.next() {
			if x.kind >= len(xattrPrefixes) || len(x.name) == 0 {
				continue
			}
			a := Xattr{Name: xattrPrefixes[x.kind] + string(x.name)}
			if a.Size, err = x.valueSize(); err == nil && !yield(a, nil) {
				return
			}
		}
		if err == nil {
			err = x.err
		}
		if err != nil {
			yield(Xattr{}, err)
		}
	}
}

// set returns row i of the xattr id table.
func (img *Image) set(i uint32) (disk.XattrID, error) {
	b, err := img.sets.row(img, uint64(i))
	if err != nil {
		return disk.XattrID{}, err
	}
	return disk.DecodeXattrID(b), nil
}

// xattrReader walks over the attributes of an inode. Like a dirReader it is kept in a
// pool because of the names that are put together in it.
type xattrReader struct {
	c     cursor // behind the name of the current pair
	left  uint32 // pairs to come
	kind  int    // name space: index in xattrPrefixes, or above for unknown ones
	name  []byte // without the prefix
	away  bool   // the value lies out of line
	begun bool   // there is a current pair, whose value has to be stepped over
	err   error

	scratch [maxXattrName]byte
}

var xattrReaders = sync.Pool{New: func() any { return new(xattrReader) }}

// free gives x back to the pool, without keeping an image alive.
func (x *xattrReader) free() {
	x.c, x.name, x.err = cursor{}, nil, nil
	xattrReaders.Put(x)
}

// open prepares x for the attributes of ino, of which there may be none.
func (x *xattrReader) open(img *Image, ino *Inode) error {
	x.left, x.begun, x.err = 0, false, nil
	if ino.xattr == disk.None {
		return nil
	}
	set, err := img.set(ino.xattr)
	if err != nil {
		return err
	}
	if set.Count == 0 || set.Count > maxXattrs {
		return corrupt(img.sets.start, "row %d of the xattr id table has %d attributes, want 1..%d", ino.xattr, set.Count, maxXattrs)
	}
	x.left = set.Count
	x.c, err = img.xattrAt(set.Ref)
	return err
}

// xattrAt returns a cursor at a reference into the names and values.
func (img *Image) xattrAt(ref uint64) (cursor, error) {
	if ref>>48 != 0 {
		return cursor{}, corrupt(-1, "xattr reference %#x has more than 48 bits", ref)
	}
	return img.at(&img.xattrs, int64(ref>>16), int(ref&0xffff))
}

// next goes to the next attribute. It returns false at the end and after an error,
// which is in x.err then.
func (x *xattrReader) next() bool {
	if x.err = x.finish(); x.err != nil || x.left == 0 {
		return false
	}
	x.left--
	x.begun = true
	x.err = x.pair()
	return x.err == nil
}

// finish steps over the value of the current attribute: also of those out of line and
// of unknown name spaces there is a length and so many bytes.
func (x *xattrReader) finish() error {
	if !x.begun {
		return nil
	}
	n, err := x.c.uint32()
	if err != nil {
		return err
	}
	return x.c.skip(int64(n))
}

// pair reads type and name of an attribute.
func (x *xattrReader) pair() error {
	b, err := x.c.next(disk.XattrPairSize, x.scratch[:])
	if err != nil {
		return err
	}
	p := disk.DecodeXattrPair(b)
	x.kind, x.away = int(p.Type&disk.XattrPrefixMask), p.Type&disk.XattrOutOfLine != 0
	limit := maxXattrName
	if x.kind < len(xattrPrefixes) {
		limit -= len(xattrPrefixes[x.kind])
	}
	if p.Name > limit {
		return x.c.fault("extended attribute with a name of %d bytes", p.Name)
	}
	if x.name, err = x.c.next(p.Name, x.scratch[:]); err != nil {
		return err
	}
	if bytes.IndexByte(x.name, 0) >= 0 {
		return x.c.fault("extended attribute with the forbidden name %q", x.name)
	}
	return nil
}

// value returns a cursor at the bytes of the current value, and their number.
func (x *xattrReader) value() (cursor, int, error) {
	c := x.c
	n, err := c.uint32()
	if err == nil && x.away {
		c, n, err = c.follow(n)
	}
	if err == nil && n > maxXattrValue {
		err = c.fault("extended attribute with a value of %d bytes, want at most %d", n, maxXattrValue)
	}
	return c, int(n), err
}

// follow goes where a value of n bytes says that the real one lies. A value there is
// never a reference itself: what the first has to say about it is not asked, so there
// is no chain to follow.
func (c *cursor) follow(n uint32) (cursor, uint32, error) {
	var scratch [disk.XattrRefSize]byte
	if n != disk.XattrRefSize {
		return *c, 0, c.fault("reference to an extended attribute has %d bytes, want %d", n, disk.XattrRefSize)
	}
	b, err := c.next(disk.XattrRefSize, scratch[:])
	if err != nil {
		return *c, 0, err
	}
	to, err := c.img.xattrAt(disk.DecodeUint64(b))
	if err != nil {
		return *c, 0, err
	}
	n, err = to.uint32()
	return to, n, err
}

// uint32 reads a number.
func (c *cursor) uint32() (uint32, error) {
	var scratch [4]byte
	b, err := c.next(len(scratch), scratch[:])
	if err != nil {
		return 0, err
	}
	return disk.DecodeUint32(b), nil
}

// valueSize returns the length of the current value.
func (x *xattrReader) valueSize() (int, error) {
	_, n, err := x.value()
	return n, err
}

// appendValue appends the current value to dst.
func (x *xattrReader) appendValue(dst []byte) ([]byte, error) {
	c, n, err := x.value()
	if err != nil {
		return dst, err
	}
	out, err := c.appendTo(dst, n)
	if err != nil {
		return dst, fmt.Errorf("extended attribute: %w", err)
	}
	return out, nil
}
