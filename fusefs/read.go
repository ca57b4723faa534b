package fusefs

import (
	"fmt"
	"io"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/cache"
	"github.com/squirefs/squire/sqfs"
)

// Read answers READ through go-fuse, in the reply buffer that it offers.
func (f *FS) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	n, code := f.read(in.NodeId, int64(in.Offset), buf[:len(buf):len(buf)])
	if !code.Ok() {
		return nil, code
	}
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

// read fills dst with the bytes of a file from off on and returns their number, less than len(dst) only at the end of
// the file. Between len(dst) and cap(dst) it may write something. It does not allocate once the metadata is cached and the block cache is full.
func (f *FS) read(node uint64, off int64, dst []byte) (int, fuse.Status) {
	f.counts.read.Add(1)
	f.reading.Add(1)
	defer f.reading.Add(-1)
	ino, code := f.inode(node)
	if !code.Ok() {
		return 0, code
	}
	switch {
	case ino.Type == sqfs.TypeDir:
		return 0, fuse.EISDIR
	case f.restrict && isDevice(ino.Type):
		return 0, fuse.OK
	case ino.Type != sqfs.TypeFile, off < 0:
		return 0, fuse.EINVAL
	case off >= ino.Size, len(dst) == 0:
		return 0, fuse.OK
	}
	dst = dst[:min(int64(len(dst)), ino.Size-off)]
	if code := f.readFile(&ino, off, dst); !code.Ok() {
		return 0, code
	}
	f.counts.readBytes.Add(uint64(len(dst)))
	return len(dst), fuse.OK
}

// readFile fills dst, which ends within the file.
func (f *FS) readFile(ino *sqfs.Inode, off int64, dst []byte) fuse.Status {
	file, err := f.img.File(ino)
	if err != nil {
		return f.eioAt("read", ino.Ref, failure{-1, off, err})
	}
	f.lastRead.Store(uint64(ino.Ref))
	var handed *pieces
	failed := func() (failed *failure) {
		// Deferred, as a panic must not give dst back to its pool while helpers write to it.
		defer func() {
			if handed != nil {
				f.decoder.Waiting()
			}
			if other := handed.wait(); failed == nil {
				failed = other
			}
		}()
		return f.readPieces(ino, &file, off, dst, &handed)
	}()
	if failed != nil {
		return f.eioAt("read", ino.Ref, *failed)
	}
	return fuse.OK
}

// readPieces reads the extents of dst, those that find an idle helper with it as *handed. The caller must wait for
// these in any case, as they write to dst.
func (f *FS) readPieces(ino *sqfs.Inode, file *sqfs.File, off int64, dst []byte, handed **pieces) *failure {
	i, skip := off/f.blockSize, int(off%f.blockSize)
	first := i
	for e, err := range file.Extents(i) {
		if err != nil {
			return &failure{i, off, err}
		}
		n := min(e.Len-skip, len(dst))
		if n <= 0 {
			break // an extent shorter than its place in the file
		}
		if e.Block.Size != 0 {
			f.trace.add(ino.Ref, i)
			f.ahead.read(ino, i, &e.Block, i == first)
		}
		// The last piece is never handed off: this goroutine would only wait for it.
		if n == len(dst) || !f.handOff(piece{ref: ino.Ref, dst: dst[:n:n], e: e, skip: skip, block: i, off: off}, handed) {
			if err := f.readExtent(dst[:n], &e, skip, ino.Ref, off); err != nil {
				return &failure{i, off, err}
			}
		}
		if dst = dst[n:]; len(dst) == 0 {
			return nil
		}
		i, off, skip = i+1, off+int64(n), 0
	}
	return &failure{i, off, io.ErrUnexpectedEOF}
}

// readExtent fills dst with the bytes of an extent from skip on, which are those of the file ref from off on. There are
// four ways, from the cheapest on:
//
//   - a hole is zeros;
//   - a block that is wanted whole is decoded into the reply. It is not cached: the kernel keeps its pages;
//   - part of a stored block is read from the image straight into the reply;
//   - anything else is decoded into the cache and copied: fragments, which other files share, and blocks longer than
//     the request, whose rest the kernel will want next. Stored fragments too, as one read brings many small files.
func (f *FS) readExtent(dst []byte, e *sqfs.Extent, skip int, ref sqfs.InodeRef, off int64) error {
	b, n := &e.Block, len(dst)
	switch {
	case b.Size == 0:
		clear(dst)
		return nil
	case !b.Fragment && skip == 0 && n == int(b.Len):
		return f.readWhole(dst, *b)
	case !b.Fragment && b.Stored && skip+n <= int(b.Size):
		part := sqfs.Block{Off: b.Off + int64(skip), Size: uint32(n), Len: uint32(n), Stored: true}
		return f.readWhole(dst, part)
	}
	buf, err := f.cached(dst, *b, e.Start+skip)
	if err != nil {
		return err
	}
	if b.Fragment || f.storers == nil || !f.storers.put(f.rest(buf, int(b.Len), ref, off-int64(skip), skip, skip+n), false) {
		buf.Release()
	}
	return nil
}

// rest is the job to put into the page cache what a block at off in the file ref has before byte from and behind byte
// to: the kernel's squashfs does so too, and whoever reads a page of a block often reads another.
func (f *FS) rest(buf *cache.Buffer, size int, ref sqfs.InodeRef, off int64, from, to int) storeJob {
	j := storeJob{buf: buf}
	if from > 0 {
		j.parts = append(j.parts, part{ref, off, 0, from})
	}
	if to < size {
		j.parts = append(j.parts, part{ref, off + int64(to), to, size - to})
	}
	return j
}

// short says that a block ends before the bytes of the file do.
func short(b sqfs.Block, n int) error {
	return &sqfs.FormatError{What: fmt.Sprintf("block has %d bytes expanded, too few for the file", n), Off: b.Off}
}

// readWhole fills dst with a block, which is not of use here any more.
func (f *FS) readWhole(dst []byte, b sqfs.Block) error {
	f.counts.wanted.Add(1)
	if buf := f.cache.Find(f.id, b, f.decoder); buf != nil {
		defer buf.Drop()
		if copy(dst, buf.Bytes()) < len(dst) {
			return short(b, len(buf.Bytes()))
		}
		return nil
	}
	n, err := f.needed.ReadBlock(dst[:min(cap(dst), len(dst)+sqfs.ReadSlack)], b)
	if err == nil && n < len(dst) {
		err = short(b, n)
	}
	return err
}

// cached fills dst with the bytes of a block from start on, and returns the block.
func (f *FS) cached(dst []byte, b sqfs.Block, start int) (*cache.Buffer, error) {
	f.counts.wanted.Add(1)
	buf, err := f.cache.Get(f.needed, f.id, b)
	if err != nil {
		return nil, err
	}
	src := buf.Bytes()
	if start < 0 || start+len(dst) > len(src) {
		buf.Release()
		return nil, short(b, len(src))
	}
	copy(dst, src[start:])
	return buf, nil
}

// Lseek finds data and holes; the kernel handles the other kinds of lseek itself (fs/fuse/file.c: fuse_file_llseek).
// The grain is a block: squashfs stores holes of whole blocks only.
func (f *FS) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	ino, code := f.inode(in.NodeId)
	if !code.Ok() {
		return code
	}
	if ino.Type != sqfs.TypeFile || (in.Whence != unix.SEEK_DATA && in.Whence != unix.SEEK_HOLE) {
		return fuse.EINVAL
	}
	if in.Offset >= uint64(ino.Size) {
		return fuse.Status(unix.ENXIO)
	}
	off, code := f.seek(&ino, int64(in.Offset), in.Whence == unix.SEEK_HOLE)
	out.Offset = uint64(off)
	return code
}

// maxSeek is how many blocks one lseek looks at, at most: its caller cannot be killed meanwhile, and a file of holes may
// have millions of them.
const maxSeek = 1 << 18

// seek returns the first offset from off on that is in a hole, or in data. The end of the file counts as a hole. Beyond
// maxSeek blocks it takes a hole for data, or the end of the file for the next hole, as lseek(2) allows.
func (f *FS) seek(ino *sqfs.Inode, off int64, hole bool) (int64, fuse.Status) {
	file, err := f.img.File(ino)
	if err != nil {
		return 0, f.eioAt("lseek", ino.Ref, failure{-1, off, err})
	}
	i := off / f.blockSize
	last := i + maxSeek
	for e, err := range file.Extents(i) {
		if err != nil {
			return 0, f.eioAt("lseek", ino.Ref, failure{i, off, err})
		}
		if (e.Block.Size == 0) == hole {
			return max(off, i*f.blockSize), fuse.OK
		}
		if i++; i == last {
			break
		}
	}
	switch {
	case hole:
		return ino.Size, fuse.OK
	case i == last:
		return min(i*f.blockSize, ino.Size-1), fuse.OK
	}
	return 0, fuse.Status(unix.ENXIO)
}
