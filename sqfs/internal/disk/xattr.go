package disk

// Numbers of extended attributes.
const (
	XattrHeaderSize = 16     // struct squashfs_xattr_id_table
	XattrIDSize     = 16     // struct squashfs_xattr_id
	XattrPairSize   = 4      // struct squashfs_xattr_entry, without the name
	XattrValueSize  = 4      // struct squashfs_xattr_val, without the value
	XattrRefSize    = 8      // the value of a pair whose real value lies elsewhere
	XattrOutOfLine  = 0x0100 // SQUASHFS_XATTR_VALUE_OOL
	XattrPrefixMask = 0x00ff // SQUASHFS_XATTR_PREFIX_MASK
)

// XattrHeader says where the names and values lie and how many rows the xattr id
// table has; the index of that table follows it.
type XattrHeader struct {
	Start uint64
	Count uint32
}

// DecodeXattrHeader decodes XattrHeaderSize bytes. The last four are unused.
func DecodeXattrHeader(b []byte) XattrHeader {
	_ = b[XattrHeaderSize-1]
	return XattrHeader{Start: le.Uint64(b[0:]), Count: le.Uint32(b[8:])}
}

// Append appends XattrHeaderSize bytes.
func (h XattrHeader) Append(b []byte) []byte {
	b = le.AppendUint64(b, h.Start)
	b = le.AppendUint32(b, h.Count)
	return le.AppendUint32(b, 0)
}

// XattrID is a row of the xattr id table: the set of attributes of some inodes.
type XattrID struct {
	Ref   uint64 // metadata block << 16 | offset, relative to XattrHeader.Start
	Count uint32 // pairs
	Size  uint32 // bytes of all names and values; writers disagree how to count
}

// DecodeXattrID decodes XattrIDSize bytes.
func DecodeXattrID(b []byte) XattrID {
	_ = b[XattrIDSize-1]
	return XattrID{Ref: le.Uint64(b[0:]), Count: le.Uint32(b[8:]), Size: le.Uint32(b[12:])}
}

// Append appends XattrIDSize bytes.
func (x XattrID) Append(b []byte) []byte {
	b = le.AppendUint64(b, x.Ref)
	b = le.AppendUint32(b, x.Count)
	return le.AppendUint32(b, x.Size)
}

// XattrPair begins an attribute: its name without the prefix follows, then a value.
type XattrPair struct {
	Type uint16
	Name int // bytes of the name
}

// DecodeXattrPair decodes XattrPairSize bytes.
func DecodeXattrPair(b []byte) XattrPair {
	_ = b[XattrPairSize-1]
	return XattrPair{Type: le.Uint16(b[0:]), Name: int(le.Uint16(b[2:]))}
}

// Append appends XattrPairSize bytes.
func (p XattrPair) Append(b []byte) []byte {
	b = le.AppendUint16(b, p.Type)
	return le.AppendUint16(b, uint16(p.Name))
}
