// Package extract unpacks squashfs images into directories of the host.
//
// An image is not trusted, and neither is the directory it is unpacked into: others
// may write there too. Nothing is ever written outside of it. Every system call takes
// one name, relative to the descriptor of a directory that was opened without
// following links; files are made with O_EXCL, never opened when they exist; and
// owner, mode, attributes and times are set through the descriptor of what was made,
// never by name. (Package [os.Root] guards names as well, but can set neither times nor
// attributes of descriptors, nor make devices.)
//
// One goroutine walks the tree and makes files, which gives them their order; as many
// as there are processors expand blocks and write them where they belong. A block is
// expanded once for each file, fragment blocks once for all their files as long as
// those are not far apart in the tree. Memory is bounded by a few blocks for each
// goroutine, 32 MiB of fragments, 64 MiB for files of which more names are to come, and
// what [sqfs.Image.Walk] keeps, file descriptors by some hundreds, whatever the image
// says.
package extract

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	goruntime "runtime"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/sqfs"
)

// Options are the settings of [Run]. The zero value, like nil, means the defaults.
type Options struct {
	// Select says what is extracted: take, whether the file or directory at path (as
	// [sqfs.Visit] has it) itself is, and within, whether anything below it may be.
	// A directory that is not taken is made when something in it is. It is called once
	// for each path that can be reached, by one goroutine. Default: everything.
	Select func(path []byte, dir bool) (take, within bool)
	// Force allows to extract into a directory that is not empty. What stands in the
	// way of a file is removed, directories are used; a directory in the way of a file
	// stays, and is a problem.
	Force bool
	// NoXattrs leaves out extended attributes.
	NoXattrs bool
	// Workers is how many goroutines expand blocks, at most 1024. Default, and for
	// anything below 1: GOMAXPROCS.
	Workers int
	// Problem is told of each thing that could not be extracted as the image has it.
	// It is called by one goroutine at a time. Default: they are only counted.
	Problem func(path string, err error)
	// Progress, if not nil, is counted up while files are written.
	Progress *Progress
}

// Progress says how far an extraction is. It may be read at any time.
type Progress struct {
	Files atomic.Int64 // everything but directories
	Bytes atomic.Int64 // of regular files, holes included
}

// Result says what was extracted.
type Result struct {
	Files     int64 // regular files, without further names of the same file
	Bytes     int64 // their sizes
	Dirs      int64
	Symlinks  int64
	Devices   int64
	Fifos     int64
	Sockets   int64
	HardLinks int64 // further names of files of all kinds

	// Problems is how often something could not be extracted: damage in the image and
	// refusals of the host. The rest was.
	Problems int64

	// What an ordinary user may not set, or the host's file system not hold. This is
	// no problem, but worth a note.
	DevicesSkipped int64 // were not made
	OwnersSkipped  int64 // files belong to the caller instead of their owner
	SetIDsSkipped  int64 // set-user-id and set-group-id bits left out
	XattrsSkipped  int64 // extended attributes left out
}

// ErrNotEmpty says that the target has something in it and Options.Force is not set.
var ErrNotEmpty = errors.New("directory not empty")

// ErrStopped says that an extraction began and ended early. Its cause, like ENOSPC or
// [context.Canceled], is wrapped beside it.
var ErrStopped = errors.New("extraction stopped")

// Run extracts img into the directory dir, which it makes if need be, with parents, when
// the first thing is to go into it. A directory that it made gets mode, owner and times
// of the image's root; one that was there keeps its own, for the caller may be at home
// in it.
//
// As root everything is as in the image. For others files are their own and set-id
// bits are dropped (both as unsquashfs has it), devices are left out, and of extended
// attributes only user.* is set; Result counts these.
//
// Damage in the image and refusals of the host concern the path where they are met:
// they go to Options.Problem, and the rest is extracted. A file in which blocks are
// damaged is made with zeros in their place. The error of Run is for what ends an
// extraction: a target that cannot be used, a full disk, a cancelled ctx. If
// it is [ErrStopped], the target has what was done so far, files that are not complete
// among it. Any other means that nothing was made, removed or changed, but perhaps the
// directories that lead to dir.
func Run(ctx context.Context, img *sqfs.Image, dir string, opts *Options) (Result, error) {
	if opts == nil {
		opts = &Options{}
	}
	root, err := img.Inode(img.Root())
	if err != nil {
		return Result{}, err
	}
	x := newExtraction(ctx, img, opts)
	defer x.cancel(nil)
	return x.run(&root, dir)
}

// run extracts everything into dir.
func (x *extraction) run(root *sqfs.Inode, dir string) (Result, error) {
	x.target = target{path: dir, force: x.opts.Force, fd: -1}
	if err := x.target.open(); err != nil {
		return Result{}, err
	}
	defer func() { x.target.close() }()
	var workers sync.WaitGroup
	for range x.workers {
		workers.Go(x.work)
	}
	x.tree(root)
	close(x.jobs)
	workers.Wait()
	if x.ctx.Err() == nil {
		x.finishLinks()
	}
	err := context.Cause(x.ctx)
	if err != nil && x.began {
		err = fmt.Errorf("%w: %w", ErrStopped, err)
	}
	return x.counts.result(), err
}

// Total returns how many files, without directories, and how many bytes of regular
// files Run would extract, for a display of its progress. It reads all metadata.
func Total(ctx context.Context, img *sqfs.Image, opts *Options) (files, bytes int64, err error) {
	root, err := img.Inode(img.Root())
	if err != nil {
		return 0, 0, err
	}
	links := make(map[sqfs.InodeRef]struct{})
	for v, err := range img.Walk(&root) {
		if ctx.Err() != nil {
			return 0, 0, ctx.Err()
		}
		if err != nil || v.Leave {
			continue
		}
		take, within := opts.selects(v)
		if v.Inode.Type == sqfs.TypeDir {
			if !within {
				v.Skip()
			}
			continue
		}
		if !take {
			continue
		}
		files++
		if v.Inode.Type != sqfs.TypeFile {
			continue
		}
		if v.Inode.Nlink > 1 {
			if _, seen := links[v.Inode.Ref]; seen {
				continue
			}
			links[v.Inode.Ref] = struct{}{}
		}
		bytes += v.Inode.Size
	}
	return files, bytes, nil
}

// selects says what Select says of a visit.
func (o *Options) selects(v *sqfs.Visit) (take, within bool) {
	if o.Select == nil {
		return true, true
	}
	return o.Select(v.Path, v.Inode.Type == sqfs.TypeDir)
}

// extraction is one call of Run.
type extraction struct {
	ctx     context.Context
	cancel  context.CancelCauseFunc
	img     *sqfs.Image
	opts    *Options
	workers int
	euid    int
	bs      int64

	jobs  chan job
	slots chan struct{} // one for each open file
	frags fragmentCache // of the goroutine that walks

	target target
	began  bool  // something was made or removed
	owner  owner // if it is not us

	dirs  []dir // on the way to where the walk is
	links linkTable

	counts  counters
	problem sync.Mutex // while Problem is called
}

const (
	maxOpen    = 256  // files that are being written at once
	maxWorkers = 1024 // each has a block
)

func newExtraction(ctx context.Context, img *sqfs.Image, opts *Options) *extraction {
	x := &extraction{
		img: img, opts: opts, workers: min(opts.Workers, maxWorkers), euid: unix.Geteuid(),
		bs: int64(img.Superblock().BlockSize), links: linkTable{files: make(map[sqfs.InodeRef]madeFile), limit: linkBytes},
	}
	x.ctx, x.cancel = context.WithCancelCause(ctx)
	if x.workers <= 0 {
		x.workers = goruntime.GOMAXPROCS(0)
	}
	x.jobs = make(chan job, 4*x.workers+16)
	open := maxOpen
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) == nil {
		open = int(max(min(uint64(open), limit.Cur/4), 4))
	}
	x.slots = make(chan struct{}, open)
	x.frags.init(img)
	return x
}

// counter counts one kind of thing, from any goroutine.
type counter = atomic.Int64

// counters are what Result has, while it is counted.
type counters struct {
	files, bytes, dirs, symlinks, devices, fifos, sockets, hardLinks counter
	problems, noDevice, noOwner, noSetID, noXattr                    counter
}

func (c *counters) result() Result {
	return Result{
		Files: c.files.Load(), Bytes: c.bytes.Load(), Dirs: c.dirs.Load(), Symlinks: c.symlinks.Load(),
		Devices: c.devices.Load(), Fifos: c.fifos.Load(), Sockets: c.sockets.Load(), HardLinks: c.hardLinks.Load(),
		Problems: c.problems.Load(), DevicesSkipped: c.noDevice.Load(), OwnersSkipped: c.noOwner.Load(),
		SetIDsSkipped: c.noSetID.Load(), XattrsSkipped: c.noXattr.Load(),
	}
}

// report counts a problem at path and tells of it. If err means that nothing more can
// be written, it ends the extraction instead.
func (x *extraction) report(path string, err error) {
	if ends(err) {
		x.cancel(fmt.Errorf("%q: %w", path, err))
		return
	}
	x.counts.problems.Add(1)
	if x.opts.Problem == nil {
		return
	}
	x.problem.Lock()
	defer x.problem.Unlock()
	x.opts.Problem(path, err)
}

// ends reports whether an error of the host will meet the next file as well. EIO is
// such when it comes from the target; from the source of the image it comes wrapped,
// with the bytes that could not be read, and concerns only these.
func ends(err error) bool {
	var host hostError
	if !errors.As(err, &host) {
		return false
	}
	for _, e := range []error{unix.ENOSPC, unix.EDQUOT, unix.EROFS, unix.EIO, unix.EMFILE, unix.ENFILE} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// hostError is what a system call on the target said.
type hostError struct {
	call string
	err  error
}

func (e hostError) Error() string { return e.call + ": " + e.err.Error() }
func (e hostError) Unwrap() error { return e.err }

// host makes a hostError, or nil of nil.
func host(call string, err error) error {
	if err == nil {
		return nil
	}
	return hostError{call, err}
}

// count counts a file that is done.
func (x *extraction) count(n *counter) {
	n.Add(1)
	if p := x.opts.Progress; p != nil {
		p.Files.Add(1)
	}
}

// countBytes tells of progress within a file.
func (x *extraction) countBytes(n int64) {
	if p := x.opts.Progress; p != nil {
		p.Bytes.Add(n)
	}
}
