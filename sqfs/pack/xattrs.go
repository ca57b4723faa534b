package pack

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/squirefs/squire/sqfs/internal/codec"
	"github.com/squirefs/squire/sqfs/internal/disk"
)

// Limits of extended attributes: XATTR_NAME_MAX and XATTR_SIZE_MAX of linux/limits.h, and
// the length from which a value does not stand in its set (XATTR_INLINE_MAX of
// squashfs-tools).
const (
	maxXattrName   = 255
	maxXattrValue  = 65536
	maxXattrInline = 128
)

// xattrPrefixes are the only name spaces that squashfs has, by their number.
var xattrPrefixes = []string{"user.", "trusted.", "security."}

func checkXattrs(list []Xattr) error {
	for k, x := range list {
		typ, rest := splitXattr(x.Name)
		switch {
		case typ < 0 || rest == "" || len(x.Name) > maxXattrName || strings.Contains(rest, "\x00"):
			return fmt.Errorf("squashfs has no place for the extended attribute %q", x.Name)
		case len(x.Value) > maxXattrValue:
			return fmt.Errorf("extended attribute %s of %d bytes, more than %d", x.Name, len(x.Value), maxXattrValue)
		}
		for _, y := range list[:k] {
			if x.Name == y.Name {
				return fmt.Errorf("two extended attributes %s", x.Name)
			}
		}
	}
	return nil
}

// splitXattr returns the number of the name space, -1 if there is none, and the rest.
func splitXattr(name string) (int, string) {
	for typ, p := range xattrPrefixes {
		if rest, ok := strings.CutPrefix(name, p); ok {
			return typ, rest
		}
	}
	return -1, ""
}

// xattrs collects the sets of attributes of an image.
type xattrs struct {
	buf    bytes.Buffer
	m      *metadata
	rows   []disk.XattrID
	sets   map[[sha256.Size]byte]uint32 // rows
	values map[[sha256.Size]byte]uint64 // where values lie
}

func newXattrs(e codec.Encoder) *xattrs {
	x := &xattrs{sets: map[[sha256.Size]byte]uint32{}, values: map[[sha256.Size]byte]uint64{}}
	x.m = newMetadata(&x.buf, e)
	return x
}

// row returns the row of a set, disk.None for an empty one. Sets that have been there
// before share it.
func (x *xattrs) row(list []Xattr) uint32 {
	if len(list) == 0 {
		return disk.None
	}
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b Xattr) int { return cmp.Compare(a.Name, b.Name) })
	h := sha256.New()
	var n [8]byte
	for _, a := range list {
		binary.LittleEndian.PutUint32(n[:], uint32(len(a.Name)))
		binary.LittleEndian.PutUint32(n[4:], uint32(len(a.Value)))
		h.Write(n[:])
		h.Write([]byte(a.Name))
		h.Write(a.Value)
	}
	key := [sha256.Size]byte(h.Sum(nil))
	row, ok := x.sets[key]
	if !ok {
		row = uint32(len(x.rows))
		x.sets[key] = row
		x.rows = append(x.rows, x.write(list))
	}
	return row
}

// write writes a sorted set. Long values go before it, and so does nothing that has been
// written anywhere, if that is longer than saying where.
func (x *xattrs) write(list []Xattr) disk.XattrID {
	lies := make([]uint64, len(list)) // 1 + where the value lies, 0 if it is to stand here
	for k, a := range list {
		if len(a.Value) < disk.XattrRefSize {
			continue
		}
		key := sha256.Sum256(a.Value)
		ref, ok := x.values[key]
		if !ok && len(a.Value) > maxXattrInline {
			ref, ok = x.m.ref(), true
			x.values[key] = ref
			x.m.write(disk.AppendUint32(nil, uint32(len(a.Value))))
			x.m.write(a.Value)
		}
		if ok {
			lies[k] = ref + 1
		}
	}
	id := disk.XattrID{Ref: x.m.ref(), Count: uint32(len(list))}
	for k, a := range list {
		// As squashfs-tools count: what listxattr and getxattr would return.
		id.Size += uint32(len(a.Name) + 1 + len(a.Value))
		x.pair(a, lies[k])
	}
	return id
}

// pair writes a name and its value, or where that lies.
func (x *xattrs) pair(a Xattr, lies uint64) {
	typ, rest := splitXattr(a.Name)
	p := disk.XattrPair{Type: uint16(typ), Name: len(rest)}
	if lies > 0 {
		p.Type |= disk.XattrOutOfLine
	}
	x.m.write(append(p.Append(nil), rest...))
	if lies > 0 {
		x.m.write(disk.AppendUint64(disk.AppendUint32(nil, disk.XattrRefSize), lies-1))
		return
	}
	if len(a.Value) >= disk.XattrRefSize {
		key := sha256.Sum256(a.Value)
		if _, ok := x.values[key]; !ok { // it may stand twice in this set
			x.values[key] = x.m.ref()
		}
	}
	x.m.write(disk.AppendUint32(nil, uint32(len(a.Value))))
	x.m.write(a.Value)
}
