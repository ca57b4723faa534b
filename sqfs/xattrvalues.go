package sqfs

import (
	"iter"

	"github.com/squirefs/squire/sqfs/internal/disk"
)

// XattrSet returns the number of the set of extended attributes that the inode has:
// inodes with equal sets share one. It returns false if the inode has none.
func (i *Inode) XattrSet() (uint32, bool) { return i.xattr, i.xattr != disk.None }

// XattrValue is an extended attribute with its value.
type XattrValue struct {
	Name  string // full, such as "user.comment"
	Value []byte // 0..65536 bytes, valid until the next step
}

// XattrValues is [Image.Xattrs] with the values, which it appends to buf[:0], one at a
// time. It goes through the attributes once, where a call of AppendXattr for each name
// would go through them for each name.
func (img *Image) XattrValues(ino *Inode, buf []byte) iter.Seq2[XattrValue, error] {
	return func(yield func(XattrValue, error) bool) {
		x := xattrReaders.Get().(*xattrReader)
		defer x.free()
		err := x.open(img, ino)
		for err == nil && x.next() {
			if x.kind >= len(xattrPrefixes) || len(x.name) == 0 {
				continue
			}
			name := xattrPrefixes[x.kind] + string(x.name)
			if buf, err = x.appendValue(buf[:0]); err == nil && !yield(XattrValue{name, buf}, nil) {
				return
			}
		}
		if err == nil {
			err = x.err
		}
		if err != nil {
			yield(XattrValue{}, err)
		}
	}
}
