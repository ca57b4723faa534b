package pack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// dirFile is a regular file of a directory that is being packed. It is read by one
// goroutine after the other.
type dirFile struct {
	d        *dirSource
	path     string
	id       fileID
	size     int64 // bytes, as the directory said, then as the open file says
	priority int
	inode    *Inode
	units    int           // of room
	ready    chan struct{} // closed when it is open, or all of it read

	ctx     context.Context
	fd      int // -1: not open
	when    unix.Timespec
	buf     []byte // the contents, if the file is small
	whole   bool   // buf has them
	at      int64  // bytes that were read
	holes   bool   // the file has some
	hole    int64  // the next one begins there
	err     error  // why it cannot be read
	changed bool
}

// read opens a file and reads a small one.
func (f *dirFile) read(ctx context.Context) {
	f.ctx = ctx
	if f.err = context.Cause(ctx); f.err != nil {
		return
	}
	room := f.size
	if f.err = f.open(); f.err != nil || f.size > min(room, smallFile) {
		return
	}
	f.buf, f.whole = make([]byte, f.size), true
	n := 0
	for n < len(f.buf) && f.err == nil {
		var m int
		m, f.err = f.pread(f.buf[n:], int64(n))
		if n += m; m == 0 {
			break
		}
	}
	f.buf = f.buf[:n]
	if f.err == nil {
		f.compare()
	}
	f.closeFile()
}

// open opens the file, and takes its attributes as they belong to what is read then.
func (f *dirFile) open() error {
	// Something else may have its name now, and opening a fifo waits.
	fd, err := f.d.open(f.path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
	if err != nil {
		return vanished(err)
	}
	f.fd = fd
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return fmt.Errorf("%w: no regular file any more", ErrChanged)
	}
	f.d.fill(f.inode, &st)
	f.changed = f.id != fileID{st.Dev, st.Ino}
	f.id, f.size, f.when = fileID{st.Dev, st.Ino}, st.Size, st.Mtim
	f.holes = st.Blocks*512 < st.Size
	if f.size > smallFile {
		_ = unix.Fadvise(fd, 0, 0, unix.FADV_SEQUENTIAL) // advice only
	}
	return f.d.fileXattrs(fd, f.inode)
}

// compare notes whether the file is another one now than when it was opened.
func (f *dirFile) compare() {
	if f.fd < 0 {
		return
	}
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil || st.Size != f.size || st.Mtim != f.when {
		f.changed = true
	}
}

// Read gives the contents, as long as the file was when it was opened. What goes wrong
// is in err as well, so that it can be told from what goes wrong in the Writer.
func (f *dirFile) Read(p []byte) (int, error) {
	if f.whole {
		n := copy(p, f.buf[f.at:])
		f.at += int64(n)
		if n == 0 {
			return 0, io.EOF
		}
		return n, nil
	}
	if f.err = context.Cause(f.ctx); f.err != nil {
		return 0, f.err
	}
	end := f.size
	if f.at < f.hole { // what is behind is Hole's
		end = f.hole
	}
	n, err := f.pread(p[:min(int64(len(p)), end-f.at)], f.at)
	f.at += int64(n)
	if f.err = err; n == 0 && err == nil {
		err = io.EOF // the end, or what is the end by now
	}
	return n, err
}

// Hole makes a file a [HoleReader].
func (f *dirFile) Hole() (int64, error) {
	if f.whole || !f.holes || f.at < f.hole || f.at == f.size {
		return 0, nil
	}
	data := int64(0)
	data, f.hole = f.extent(f.at)
	n := data - f.at
	f.at = data
	return n, nil
}

// extent finds where there is data again, and where that ends.
func (f *dirFile) extent(from int64) (data, hole int64) {
	data, err := unix.Seek(f.fd, from, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return f.size, f.size
	}
	if err == nil {
		hole, err = unix.Seek(f.fd, data, unix.SEEK_HOLE)
	}
	if err != nil || data < from || hole <= data { // a file system that does not tell, or a new hole
		return from, f.size
	}
	return min(data, f.size), min(hole, f.size)
}

func (f *dirFile) pread(p []byte, off int64) (int, error) {
	n, err := retry(func() (int, error) { return unix.Pread(f.fd, p, off) })
	if err != nil {
		return 0, fmt.Errorf("read: %w", err)
	}
	return n, nil
}

func (f *dirFile) closeFile() {
	if f.fd >= 0 {
		unix.Close(f.fd)
		f.fd = -1
	}
}

// close lets go of all that the file holds.
func (f *dirFile) close() {
	f.closeFile()
	f.buf = nil
}

// fileXattrs reads the attributes of an open file.
func (d *dirSource) fileXattrs(fd int, in *Inode) error {
	if d.o.NoXattrs {
		return nil
	}
	xattrs, lost, err := readXattrs(
		func(buf []byte) (int, error) { return unix.Flistxattr(fd, buf) },
		func(name string, buf []byte) (int, error) { return unix.Fgetxattr(fd, name, buf) })
	in.Xattrs = xattrs
	d.count(&d.report.Xattrs, lost)
	return err
}

// readXattrs reads attributes, and counts those that squashfs cannot have.
func readXattrs(list func([]byte) (int, error), get func(string, []byte) (int, error)) (xattrs []Xattr, lost int64, err error) {
	names, err := growing(list)
	if err != nil {
		return nil, 0, fmt.Errorf("list attributes: %w", err)
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		if !slices.ContainsFunc([]string{"user.", "trusted.", "security."}, func(p string) bool { return strings.HasPrefix(name, p) }) {
			lost++
			continue
		}
		value, err := growing(func(buf []byte) (int, error) { return get(name, buf) })
		if errors.Is(err, unix.ENODATA) { // removed meanwhile
			continue
		}
		if err != nil {
			return nil, 0, fmt.Errorf("attribute %s: %w", name, err)
		}
		xattrs = append(xattrs, Xattr{Name: name, Value: value})
	}
	return xattrs, lost, nil
}

// growing calls a function that wants a buffer first to hear how large that must be
// (getxattr(2)). The usual answer is that there is nothing.
func growing(call func([]byte) (int, error)) ([]byte, error) {
	for {
		size, err := call(nil)
		if errors.Is(err, unix.ENOTSUP) {
			return nil, nil
		}
		if err != nil || size == 0 {
			return nil, err
		}
		buf := make([]byte, size)
		n, err := call(buf)
		if errors.Is(err, unix.ERANGE) { // it has grown meanwhile
			continue
		}
		return buf[:max(n, 0)], err
	}
}
