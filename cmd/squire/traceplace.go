package main

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/sqfs/trace"
)

// tracePlace is a file that a trace may be written into. All that can be wrong
// with it is found out before there is a trace.
type tracePlace struct {
	name string
	into *os.File // the opened device or pipe of that name; nil: it is replaced, or made
}

// placeBeside is the place of the trace that travels with the image. A link there
// would not be used.
func placeBeside(image string, file *os.File) (*tracePlace, error) {
	name := sidecar(image)
	fi, err := os.Lstat(name)
	if err == nil && !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: not a file", name)
	}
	return placeIn(name, file)
}

// placeNamed is the place that the user has named: links are followed, and what is
// not a file is written into.
func placeNamed(name string, image *os.File) (*tracePlace, error) {
	fi, err := os.Stat(name)
	switch {
	case errors.Is(err, os.ErrNotExist) || err == nil && fi.Mode().IsRegular():
		if name, err = behindLinks(name); err != nil {
			return nil, err
		}
		return placeIn(name, image)
	case err != nil:
		return nil, unwrapPath(name, err)
	case fi.IsDir():
		return nil, fmt.Errorf("%s: is a directory", name)
	case fi.Mode()&(os.ModeCharDevice|os.ModeNamedPipe) == 0:
		return nil, fmt.Errorf("%s: not a file", name) // a disk, say
	}
	// Without waiting: a pipe that nobody reads is an error.
	f, err := os.OpenFile(name, os.O_WRONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, unwrapPath(name, err)
	}
	return &tracePlace{name, f}, nil
}

// placeIn is the place of a file that is made, or replaced if that loses nothing but
// an older trace.
func placeIn(name string, image *os.File) (*tracePlace, error) {
	dir := filepath.Dir(name)
	if err := unix.Faccessat(unix.AT_FDCWD, dir, unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
		return nil, fmt.Errorf("directory %s: %w", dir, err)
	}
	f, err := openTrace(name)
	if errors.Is(err, unix.ENOENT) {
		return &tracePlace{name: name}, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if same, err := sameFile(f, image); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	} else if same {
		return nil, fmt.Errorf("%s: is the image itself", name)
	}
	head := make([]byte, len(trace.Magic))
	if n, _ := f.ReadAt(head, 0); n > 0 && !bytes.Equal(head, []byte(trace.Magic)) {
		return nil, fmt.Errorf("%s: is there already, and is not a trace", name)
	}
	return &tracePlace{name: name}, nil
}

// sameFile reports whether two files are the same one, whatever their names.
func sameFile(a, b *os.File) (bool, error) {
	x, err := a.Stat()
	if err != nil {
		return false, err
	}
	y, err := b.Stat()
	return err == nil && os.SameFile(x, y), err
}

// behindLinks returns the name of the file that is opened, or made, by this name.
func behindLinks(name string) (string, error) {
	for range 40 { // as many as the kernel follows
		dir, err := filepath.EvalSymlinks(filepath.Dir(name))
		if err != nil {
			return "", fmt.Errorf("directory %w", unwrapPath(filepath.Dir(name), err))
		}
		to, err := os.Readlink(name)
		if err != nil {
			return filepath.Join(dir, filepath.Base(name)), nil // no link
		}
		if name = to; !filepath.IsAbs(to) {
			name = dir + "/" + to // not cleaned: what ".." is depends on links
		}
	}
	return "", fmt.Errorf("%s: %w", name, unix.ELOOP)
}

// close closes what was opened, if there is a place.
func (p *tracePlace) close() {
	if p != nil && p.into != nil {
		p.into.Close()
	}
}

// write puts t there: it appears complete, in place of what is there, except in
// what is not a file.
func (p *tracePlace) write(t *trace.Trace) error {
	if p.into == nil {
		return replaceFile(p.name, t)
	}
	if _, err := p.into.Write(t.Encode()); err != nil {
		return unwrapPath(p.name, err)
	}
	return nil
}

// replaceFile makes t the content of a file that appears complete, in place of
// one that is there. Links are replaced, not followed.
func replaceFile(name string, t *trace.Trace) error {
	temp := filepath.Join(filepath.Dir(name), "."+filepath.Base(name)+"."+rand.Text()[:8])
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return unwrapPath(name, err)
	}
	err = t.Write(f)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(temp, name)
	}
	if err != nil {
		os.Remove(temp)
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}
