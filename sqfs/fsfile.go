package sqfs

import (
	"errors"
	"io"
	"io/fs"
	"time"
)

// fileInfo is the fs.FileInfo of an inode. What Open returns embeds one.
type fileInfo struct {
	name string
	ino  Inode
}

func (i *fileInfo) Name() string       { return i.name }
func (i *fileInfo) Size() int64        { return i.ino.Size }
func (i *fileInfo) Mode() fs.FileMode  { return i.ino.FileMode() }
func (i *fileInfo) ModTime() time.Time { return i.ino.modTime() }
func (i *fileInfo) IsDir() bool        { return i.ino.Type == TypeDir }
func (i *fileInfo) Sys() any           { return &i.ino }
func (i *fileInfo) String() string     { return fs.FormatFileInfo(i) }

// dirEntry is the fs.DirEntry of an entry.
type dirEntry struct {
	img  *Image
	dir  *Inode
	name string
	e    Dirent // without a name
}

func (d *dirEntry) Name() string      { return d.name }
func (d *dirEntry) IsDir() bool       { return d.e.Type == TypeDir }
func (d *dirEntry) Type() fs.FileMode { return d.e.Type.fileMode() }
func (d *dirEntry) String() string    { return fs.FormatDirEntry(d) }

func (d *dirEntry) Info() (fs.FileInfo, error) {
	ino, err := d.img.Inode(d.e.Ref)
	if err == nil {
		err = d.img.enter(d.dir, &d.e, &ino)
	}
	if err != nil {
		return nil, &fs.PathError{Op: "stat", Path: d.name, Err: err}
	}
	return &fileInfo{name: d.name, ino: ino}, nil
}

// openDir is an open directory.
type openDir struct {
	fileInfo
	img *Image
	pos DirPos
}

var _ fs.ReadDirFile = (*openDir)(nil)

func (d *openDir) Stat() (fs.FileInfo, error) { return &d.fileInfo, nil }
func (d *openDir) Close() error               { return nil }

func (d *openDir) Read([]byte) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: d.name, Err: fs.ErrInvalid}
}

// ReadDir implements [fs.ReadDirFile].
func (d *openDir) ReadDir(n int) ([]fs.DirEntry, error) {
	var list []fs.DirEntry
	for e, err := range d.img.Dirents(&d.ino, d.pos) {
		if err != nil {
			return list, &fs.PathError{Op: "readdir", Path: d.name, Err: err}
		}
		name := string(e.Name)
		e.Name = nil
		list = append(list, &dirEntry{img: d.img, dir: &d.ino, name: name, e: e})
		d.pos = e.Pos
		if len(list) == n {
			return list, nil
		}
	}
	if n > 0 && len(list) == 0 {
		return nil, io.EOF
	}
	return list, nil
}

// openFile is an open regular file. It keeps the block it read last, so that reading
// in small pieces does not expand blocks again and again.
type openFile struct {
	fileInfo
	file File
	off  int64
	have int64  // the block that buf holds, -1 for none
	buf  []byte // of at most the block size
}

var (
	_ io.ReadSeekCloser = (*openFile)(nil)
	_ io.ReaderAt       = (*openFile)(nil)
	_ io.WriterTo       = (*openFile)(nil)
)

func (f *openFile) Stat() (fs.FileInfo, error) { return &f.fileInfo, nil }
func (f *openFile) Close() error               { return nil }

// Read implements [io.Reader].
func (f *openFile) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	b, err := f.rest()
	n := copy(p, b)
	f.off += int64(n)
	return n, err
}

// WriteTo implements [io.WriterTo].
func (f *openFile) WriteTo(w io.Writer) (int64, error) {
	start := f.off
	for {
		b, err := f.rest()
		if errors.Is(err, io.EOF) {
			return f.off - start, nil
		}
		if err != nil {
			return f.off - start, err
		}
		n, err := w.Write(b)
		f.off += int64(n)
		if err != nil {
			return f.off - start, err
		}
	}
}

// rest returns the bytes from the current offset to the end of the block there.
func (f *openFile) rest() ([]byte, error) {
	if f.off >= f.file.Size() {
		return nil, io.EOF
	}
	bs := int64(f.file.img.Superblock().BlockSize)
	block := f.off / bs
	if f.have != block {
		if err := f.load(block, bs); err != nil {
			return nil, &fs.PathError{Op: "read", Path: f.name, Err: err}
		}
	}
	return f.buf[f.off-block*bs:], nil
}

// load reads a block into f.buf.
func (f *openFile) load(block, bs int64) error {
	n := min(bs, f.file.Size()-block*bs)
	if int64(cap(f.buf)) < n {
		f.buf = make([]byte, n)
	}
	f.buf, f.have = f.buf[:n], -1
	if _, err := f.file.ReadAt(f.buf, block*bs); err != nil {
		return err
	}
	f.have = block
	return nil
}

// ReadAt implements [io.ReaderAt], and as that demands may be called concurrently.
func (f *openFile) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.file.ReadAt(p, off)
	if err != nil && !errors.Is(err, io.EOF) {
		err = &fs.PathError{Op: "read", Path: f.name, Err: err}
	}
	return n, err
}

// Seek implements [io.Seeker].
func (f *openFile) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekStart:
	case io.SeekCurrent:
		offset += f.off
	case io.SeekEnd:
		offset += f.file.Size()
	default:
		offset = -1
	}
	if offset < 0 {
		return 0, &fs.PathError{Op: "seek", Path: f.name, Err: fs.ErrInvalid}
	}
	f.off = offset
	return offset, nil
}

// openOther is an open device, fifo or socket. It reads as an empty file: the image
// holds no data for it, and fstest.TestFS wants that all which can be opened can be
// read. (A symlink cannot be opened.)
type openOther struct{ fileInfo }

func (f *openOther) Stat() (fs.FileInfo, error) { return &f.fileInfo, nil }
func (f *openOther) Close() error               { return nil }
func (f *openOther) Read([]byte) (int, error)   { return 0, io.EOF }
