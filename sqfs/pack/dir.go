package pack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// DirOptions say how a directory is read. With the zero value all is packed as it is.
//
// Paths are relative to the directory, such as "usr/share/doc"; names are of any bytes.
// Exclude, Leave and Owner are called by one goroutine at a time, and so is Problem.
type DirOptions struct {
	Exclude       func(path string, dir bool) bool              // leaves out a path, and all below it
	Leave         func(dev, ino uint64) bool                    // leaves out a file wherever it is, such as the image itself
	Owner         func(uid, gid uint32) (newUID, newGID uint32) // nil: owners are kept
	Priority      func(path string) int                         // contents of files with a higher one come first; nil: all in the order of paths
	NoXattrs      bool                                          // no extended attributes
	OneFileSystem bool                                          // directories of other file systems are empty, other files of them left out
	Unreadable    bool                                          // files that cannot be read are left out, and directories empty, instead of an error
	Problem       func(path string, err error)                  // is told what is not packed as it was found; may be nil
}

// DirReport counts what of a directory was not packed as it is.
type DirReport struct {
	Excluded   int64 // paths; what is below them is not counted
	Mounts     int64 // of other file systems
	Unreadable int64 // files and directories, all told to Problem
	Changed    int64 // while they were read, all told to Problem
	Xattrs     int64 // that squashfs cannot have, such as ACLs
}

// ErrChanged is told of files that changed while they were read. What was read of them is
// in the image. Of those that vanished nothing is; directories that did are empty.
var ErrChanged = errors.New("changed while it was read")

// Dir adds the contents of all files below the directory dir, which may be a link to
// one, to w, and returns the tree for [Writer.Finish]. Files with several names there
// keep them, sockets, fifos and devices are packed as such, and so are holes.
//
// Files are added in the order of the sorted tree, directories where their name has its
// place, whatever the directory's own order is. While w compresses them, others are read
// ahead by several goroutines, 32 MiB at most. Nothing is opened through a link, and
// nothing outside of dir whatever happens to it meanwhile. When Dir returns all is closed
// and no goroutine is left. After an error the Writer is of no use.
func Dir(ctx context.Context, w *Writer, dir string, o DirOptions) (*Inode, *DirReport, error) {
	fd, err := retry(func() (int, error) {
		return unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, nil, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(fd)
	if !o.NoXattrs && unix.Access(procFD, unix.F_OK) != nil {
		return nil, nil, errors.New("pack: /proc is not mounted, and attributes of links are read by way of it")
	}
	d := newDirSource(dir, fd, o)
	root, err := d.pack(ctx, w.Add)
	if err != nil {
		return nil, nil, err
	}
	return root, &d.report, nil
}

// dirSource is a directory that is being packed. One goroutine goes through the tree,
// some read files, and the caller's adds them.
type dirSource struct {
	o      DirOptions
	name   string              // for messages
	root   int                 // descriptor
	dev    uint64              // of the root
	links  map[fileID]*dirFile // files that have several names, for the goroutine of the tree
	sorted []*dirFile          // with Priority: all files, until the tree is there
	queue  chan *dirFile       // files in order
	work   chan *dirFile       // the same, for who reads them
	room   chan struct{}       // one for each roomUnit of files that are held
	gone   map[*Inode]error    // what is not in the tree after all, and why

	mu     sync.Mutex
	report DirReport
}

func newDirSource(name string, root int, o DirOptions) *dirSource {
	return &dirSource{o: o, name: name, root: root, links: make(map[fileID]*dirFile), gone: make(map[*Inode]error)}
}

const (
	dirReaders = 8        // goroutines that read files: enough to keep a network file system busy
	roomUnit   = 64 << 10 // bytes
	roomUnits  = 512
	smallFile  = 1 << 20 // bytes; larger files are read when it is their turn
)

// pack goes through the tree, while readers read files and add adds them in order.
func (d *dirSource) pack(ctx context.Context, add func(io.Reader) (*Data, error)) (*Inode, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	d.queue, d.work = make(chan *dirFile, roomUnits), make(chan *dirFile)
	d.room = make(chan struct{}, roomUnits)
	root := &Inode{}
	var all sync.WaitGroup
	all.Go(func() {
		defer close(d.queue)
		defer close(d.work)
		if err := d.scan(ctx, root); err != nil {
			cancel(err)
		}
	})
	for range dirReaders {
		all.Go(func() {
			for f := range d.work {
				f.read(ctx)
				close(f.ready)
			}
		})
	}
	if err := d.addAll(ctx, add); err != nil {
		cancel(err)
	}
	all.Wait()
	for f := range d.queue { // after an error
		f.close()
	}
	err := context.Cause(ctx)
	cancel(nil)
	if err != nil {
		return nil, err
	}
	if len(d.gone) > 0 {
		d.prune(root, "")
	}
	return root, nil
}

// submit puts a file into the queue once there is room for what is read of it ahead.
// Only the goroutine of the tree does so, so nobody else takes the room it waits for.
func (d *dirSource) submit(ctx context.Context, f *dirFile) error {
	f.units = 1
	if f.size <= smallFile {
		f.units += int(f.size / roomUnit)
	}
	for range f.units {
		select {
		case d.room <- struct{}{}:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	select {
	case d.work <- f:
		d.queue <- f // it has room for all that have room
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// submitSorted submits the files of all the tree, the most important first.
func (d *dirSource) submitSorted(ctx context.Context) error {
	slices.SortStableFunc(d.sorted, func(a, b *dirFile) int { return b.priority - a.priority })
	for i, f := range d.sorted {
		d.sorted[i] = nil
		if err := d.submit(ctx, f); err != nil {
			return err
		}
	}
	return nil
}

// addAll adds the files of the queue.
func (d *dirSource) addAll(ctx context.Context, add func(io.Reader) (*Data, error)) error {
	for f := range d.queue {
		select {
		case <-f.ready:
		case <-ctx.Done():
		}
		if err := context.Cause(ctx); err != nil {
			<-f.ready // somebody has it
			f.close()
			return err
		}
		err := d.add(f, add)
		f.close()
		for range f.units {
			<-d.room
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// add adds one file.
func (d *dirSource) add(f *dirFile, add func(io.Reader) (*Data, error)) error {
	if f.err == nil && f.size > 0 {
		data, err := add(f)
		if err != nil && f.err == nil {
			return err // of the Writer
		}
		f.inode.Data = data
	}
	if f.err == nil {
		f.compare()
	}
	switch {
	case f.err != nil:
		d.gone[f.inode] = f.err
		if !errors.Is(f.err, ErrChanged) && !d.o.Unreadable {
			return d.failure(f.path, f.err)
		}
	case f.changed:
		d.problem(f.path, ErrChanged)
	}
	return nil
}

// prune takes out of the tree what is gone, under all names that it has.
func (d *dirSource) prune(dir *Inode, path string) {
	for _, name := range sortedNames(dir.Entries) {
		ino, at := dir.Entries[name], join(path, name)
		if err, gone := d.gone[ino]; gone {
			delete(dir.Entries, name)
			d.problem(at, err)
			continue
		}
		d.prune(ino, at)
	}
}

// problem counts and tells what is not as it was found.
func (d *dirSource) problem(path string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if errors.Is(err, ErrChanged) {
		d.report.Changed++
	} else {
		d.report.Unreadable++
	}
	if d.o.Problem != nil {
		d.o.Problem(path, err)
	}
}

// failure is an error of the directory, as opposed to those of the Writer.
func (d *dirSource) failure(path string, err error) error {
	return fmt.Errorf("%s: %w", join(strings.TrimRight(d.name, "/"), path), err)
}

func sortedNames(entries map[string]*Inode) []string {
	names := make([]string, 0, len(entries))
	for name := range entries {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// join is the path of an entry of a directory.
func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}
