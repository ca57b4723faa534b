package sqfs

import (
	"encoding/binary"
	"testing"
)

// patcher changes an image in which everything is stored uncompressed, so that each
// field can be found and set.
type patcher struct {
	t   *testing.T
	b   []byte
	img *Image // the image before any change
}

func (p *patcher) u16(at int64, v uint16) { binary.LittleEndian.PutUint16(p.b[at:], v) }
func (p *patcher) u32(at int64, v uint32) { binary.LittleEndian.PutUint32(p.b[at:], v) }

func (p *patcher) ino(names ...string) Inode { return find(p.t, p.img, names...) }

// inode returns where in the file an inode is.
func (p *patcher) inode(names ...string) int64 {
	ref := p.ino(names...).Ref
	return p.img.sb.InodeTable + ref.block() + 2 + int64(ref.offset())
}

// listing returns where the listing of a directory is.
func (p *patcher) listing(names ...string) int64 {
	ino := p.ino(names...)
	return p.img.sb.DirectoryTable + ino.start + 2 + int64(ino.offset)
}

// entryRef makes the first entry of directory sub a directory that refers to ref.
func (p *patcher) entryRef(ref InodeRef) {
	at := p.listing("sub")
	p.u32(at+4, uint32(ref.block()))
	p.u16(at+12, uint16(ref.offset()))
	p.u16(at+16, uint16(TypeDir))
}
