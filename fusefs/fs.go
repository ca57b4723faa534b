// Package fusefs serves a squashfs image to the Linux kernel over FUSE.
//
// An FS holds no state of a mount: the node id of a file is its inode reference plus 2 (the root is 1, as FUSE wants),
// so that there is no inode table, nothing to forget, and a new server can go on where another stopped. The kernel is
// told that nothing ever changes: entries, missing entries, attributes, pages, directories and link targets are cached
// for ever, and files are opened and closed without a message. What was read once is read again without the server.
//
// # Processes
//
// The process that calls Serve must never open, stat or execute anything on the mount it serves, and no child of it
// may inherit the device: exec closes files, closing waits for the server, and the server is the one that waits. Mount
// and Serve are therefore apart: the mounting process hands the device to the serving one.
//
// # Damaged images
//
// Damage gives EIO for the path it concerns, and one line of log that says where; see errno.go, the only file that logs.
package fusefs

import (
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"math"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/squirefs/squire/cache"
	"github.com/squirefs/squire/sqfs"
)

// Owner is a user and a group.
type Owner struct{ UID, GID uint32 }

// Options change what an FS shows. The zero value shows the image as it is.
type Options struct {
	// Cache keeps decompressed blocks; several file systems may share one. nil: a private one of 64 MiB.
	Cache *cache.Cache
	// Turns are shared by all file systems of the process, for whose processors they take turns; nil: none are taken.
	Turns *Turns
	// Room is shared as well, for what is under way; nil: each has what it wants.
	Room *Room
	// User is who gets the turns, the room and the part of the caches of this one. See SetUser.
	User uint64
	// Owner, if not nil, is shown as the owner of every inode, for users whose name space maps only themselves.
	Owner *Owner
	// Restrict hides what an image from an untrusted source must not bring along: set-uid and set-gid bits are not
	// shown, device nodes appear as empty files of mode 0, and the attributes security.*, trusted.* and
	// user.overlay.* do not exist.
	Restrict bool
	// IDMap asks the kernel to allow idmapped mounts (mount_setattr(2)) of the mount that is served, which Linux does
	// since 6.12; see Flags. The mount must have default_permissions, as those of Mount have, or INIT fails.
	IDMap bool
	// Source is what the image is read through. nil: every request is taken for one that reads the image, which makes
	// short ones slower.
	Source *Source
	// Record notes which blocks are read, for Touched. What the kernel has already does not come to be read again.
	Record bool
	// Replay are the blocks that Touched returned when the same image was used before: they are decoded ahead of their
	// readers. What is not in the image is left out; a wrong list costs time, never more.
	Replay []Touch
	// Log gets one line for each damaged place found, at a bounded rate. nil: no log.
	Log *slog.Logger
}

// defaultCache is the size of a private cache: 512 fragment blocks of the usual size.
const defaultCache = 64 << 20

// forever is the timeout of everything the kernel caches: about 292 years. An image does not change under a mount; a
// file that was replaced is another image.
const forever = time.Duration(math.MaxInt64)

// nameMax is NAME_MAX of POSIX. Squashfs stores one more (squashfs_fs.h: SQUASHFS_NAME_LEN is 256), which programs with
// buffers of NAME_MAX + 1 bytes cannot take.
const nameMax = 255

// FS serves one image. It implements fuse.RawFileSystem; all methods may be called concurrently.
type FS struct {
	fuse.RawFileSystem // ENOSYS for all that changes something

	img      *sqfs.Image
	id       uint64 // of img in cache
	cache    *cache.Cache
	owner    *Owner
	restrict bool
	idmap    bool
	report   reporter

	super     sqfs.Superblock
	blockSize int64
	initFlags atomic.Uint64 // what the kernel offered in INIT
	agreed    atomic.Uint64 // what it was answered
	guest     guest
	helpers   helpers
	lull      lull
	counts    counters
	latencies latencies
	places    places
	ahead     ahead
	reading   atomic.Int32  // READs that are being answered
	lastRead  atomic.Uint64 // sqfs.InodeRef of the file that was asked for last
	noStoring atomic.Bool
	bounds    bounds   // the usual ones, but in tests
	storers   *storers // nil if there are none
	trace     trace
	decoder   *decoder
	needed    *counted // decoder, for requests
	early     *counted // the same, ahead of them
	source    *Source  // nil: nobody says when a request takes long
}

var _ fuse.RawFileSystem = (*FS)(nil)

// New returns a file system that serves img. The image must stay open until Serve has returned.
func New(img *sqfs.Image, o Options) *FS {
	if o.Cache == nil {
		o.Cache = cache.New(defaultCache)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	super := img.Superblock()
	f := &FS{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		img:           img,
		id:            o.Cache.NewImage(o.User),
		cache:         o.Cache,
		owner:         o.Owner,
		restrict:      o.Restrict,
		idmap:         o.IDMap,
		report:        reporter{log: o.Log},
		source:        o.Source,
		super:         super,
		blockSize:     int64(super.BlockSize),
		bounds:        usualBounds,
		lull:          lull{after: lullAfter},
		guest:         guest{room: o.Room, user: o.User},
	}
	img.SetUser(o.User)
	f.decoder = &decoder{img, o.Source, f.cache, f.id, share{turns: o.Turns, user: o.User}}
	f.needed, f.early = &counted{f.decoder, &f.counts, false}, &counted{f.decoder, &f.counts, true}
	f.helpers.init()
	f.ahead.init(f, o.Replay)
	if o.Record {
		f.trace.seen = make(map[Touch]struct{})
	}
	return f
}

// SetUser says who gets the turns, the room and the part of the caches from now on, as Options.User did.
func (f *FS) SetUser(user uint64) {
	f.img.SetUser(user)
	f.decoder.share.setUser(user)
	f.guest.setUser(user)
	f.cache.SetUser(f.id, user)
}

// Kept returns how many bytes the cache keeps of the image.
func (f *FS) Kept() int64 { return f.cache.Kept(f.id) }

// Close drops what the cache keeps of the image. It is for an FS that is not served, and will not be.
func (f *FS) Close() { f.cache.Forget(f.id) }

// retire ends the goroutines and threads that wait for something to do, but for the one at the device, and reports whether
// there are no others.
func (f *FS) retire(dev *watch) bool {
	workers, helpers, ahead := dev.rest(), f.helpers.rest(), f.ahead.rest()
	storers := f.storers == nil || f.storers.rest()
	return workers && helpers && ahead && storers
}

// String returns the name of the file system type.
func (f *FS) String() string { return "squire" }

// Init notes what the kernel can do, when go-fuse's own server is used in place of Serve.
func (f *FS) Init(s *fuse.Server) { f.initFlags.Store(s.KernelSettings().Flags64()) }

// AllowIDMap is the flag of INIT that allows idmapped mounts (include/uapi/linux/fuse.h: FUSE_ALLOW_IDMAP).
const AllowIDMap = fuse.CAP_ALLOW_IDMAP

// Flags returns the flags of INIT that the kernel and the server of the mount have agreed on, once Serve has called
// Ready: with AllowIDMap if Options.IDMap asked for that and the kernel can.
func (f *FS) Flags() uint64 { return f.agreed.Load() }

// Stats says what an FS did: how many requests it answered, and what that took.
type Stats struct {
	Lookup   uint64 `json:"lookup"`
	GetAttr  uint64 `json:"getattr"`
	Readlink uint64 `json:"readlink"`
	Open     uint64 `json:"open"`
	ReadDir  uint64 `json:"readdir"`
	Read     uint64 `json:"read"`
	Xattr    uint64 `json:"xattr"`
	StatFs   uint64 `json:"statfs"`

	ReadBytes uint64 `json:"read_bytes"` // of file data in answers to READ
	Stored    uint64 `json:"stored"`     // bytes of file data that were put into the page cache before they were asked for
	Errors    uint64 `json:"errors"`     // answers of EIO
	Late      uint64 `json:"late"`       // of these those because storage did not answer in time

	Wanted       uint64 `json:"wanted"`        // blocks that requests needed
	Missed       uint64 `json:"missed"`        // of these those that a request decoded itself: nobody had before
	Decoded      uint64 `json:"decoded"`       // blocks that were decoded, for requests and ahead of them
	DecodedBytes uint64 `json:"decoded_bytes"` // that these have expanded

	Cache cache.Stats `json:"cache"`
	// Latency says how long requests took, by their kind, which is named as the counters above are, "other" beside these; nil:
	// Serve has answered none.
	Latency map[string]Histogram `json:"latency"`
}

// Add adds what another FS counted, such as one that served the same mount before. Cache stays: it is of all images.
func (s *Stats) Add(o *Stats) {
	s.counters(o, func(n *uint64, more uint64) { *n += more })
	sums := make(map[string]Histogram, max(len(s.Latency), len(o.Latency)))
	maps.Copy(sums, s.Latency)
	for name, h := range o.Latency {
		sum := sums[name]
		sum.Add(&h)
		sums[name] = sum
	}
	s.Latency = sums
}

// Since returns what was counted since an earlier state. If that has more of anything, s was begun anew in between, and
// all of it is new. Cache is left out.
func (s *Stats) Since(earlier *Stats) Stats {
	d, anew := *s, false
	d.counters(earlier, func(n *uint64, before uint64) {
		anew = anew || *n < before
		*n -= before
	})
	if anew {
		d = *s
	}
	d.Cache, d.Latency = cache.Stats{}, make(map[string]Histogram, len(s.Latency))
	for name, h := range s.Latency {
		if before := earlier.Latency[name]; !anew {
			h = h.Since(&before)
		}
		d.Latency[name] = h
	}
	return d
}

// counters calls do for each counter, with that of o.
func (s *Stats) counters(o *Stats, do func(n *uint64, other uint64)) {
	do(&s.Lookup, o.Lookup)
	do(&s.GetAttr, o.GetAttr)
	do(&s.Readlink, o.Readlink)
	do(&s.Open, o.Open)
	do(&s.ReadDir, o.ReadDir)
	do(&s.Read, o.Read)
	do(&s.Xattr, o.Xattr)
	do(&s.StatFs, o.StatFs)
	do(&s.ReadBytes, o.ReadBytes)
	do(&s.Stored, o.Stored)
	do(&s.Errors, o.Errors)
	do(&s.Late, o.Late)
	do(&s.Wanted, o.Wanted)
	do(&s.Missed, o.Missed)
	do(&s.Decoded, o.Decoded)
	do(&s.DecodedBytes, o.DecodedBytes)
}

// counters are what Stats shows.
type counters struct {
	lookup, getAttr, readlink, open, readDir, read, xattr, statFs, readBytes, stored, errors, late atomic.Uint64

	wanted, missed, decoded, decodedBytes atomic.Uint64
}

// Stats returns the counters since New. Those of Cache are of all images that share it.
func (f *FS) Stats() Stats {
	c := &f.counts
	return Stats{
		Lookup: c.lookup.Load(), GetAttr: c.getAttr.Load(), Readlink: c.readlink.Load(), Open: c.open.Load(),
		ReadDir: c.readDir.Load(), Read: c.read.Load(), Xattr: c.xattr.Load(), StatFs: c.statFs.Load(),
		ReadBytes: c.readBytes.Load(), Stored: c.stored.Load(), Errors: c.errors.Load(), Late: c.late.Load(),
		Wanted: c.wanted.Load(), Missed: c.missed.Load(),
		Decoded: c.decoded.Load(), DecodedBytes: c.decodedBytes.Load(),
		Cache: f.cache.Stats(), Latency: f.latencies.histograms(),
	}
}

// Node ids 0 and 1 mean "no such entry" and the root in FUSE (fs/fuse/fuse_i.h: FUSE_ROOT_ID), references of inodes
// begin at 0.
const nodeBase = 2

// maxRef is the largest inode reference: 48 bits (squashfs_fs.h: SQUASHFS_MKINODE).
const maxRef = 1<<48 - 1

// ref returns the reference that a node id stands for.
func (f *FS) ref(node uint64) sqfs.InodeRef {
	if node == fuse.FUSE_ROOT_ID {
		return f.img.Root()
	}
	return sqfs.InodeRef(node - nodeBase)
}

// inode returns the inode behind a node id. The kernel asks only for ids it was given, so an error means damage that
// came after, or a request resent to a server of another image.
func (f *FS) inode(node uint64) (sqfs.Inode, fuse.Status) {
	if node != fuse.FUSE_ROOT_ID && (node < nodeBase || node > maxRef+nodeBase) {
		return sqfs.Inode{}, fuse.Status(estale)
	}
	ref := f.ref(node)
	ino, err := f.img.Inode(ref)
	if err != nil {
		return ino, f.eio("inode", ref, err)
	}
	return ino, fuse.OK
}

// Lookup finds name in a directory. A missing name is answered with node 0 and a timeout, which the kernel keeps as a
// negative entry (fs/fuse/dir.c: fuse_lookup_name, fuse_dentry_revalidate); ENOENT would be asked again every time.
func (f *FS) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	f.counts.lookup.Add(1)
	dir, code := f.directory(h.NodeId)
	if !code.Ok() {
		return code
	}
	if len(name) > nameMax {
		return fuse.Status(enametoolong)
	}
	d, err := f.img.Lookup(&dir, name)
	if errors.Is(err, fs.ErrNotExist) {
		out.SetEntryTimeout(forever)
		return fuse.OK
	}
	if err != nil {
		return f.eio("lookup", dir.Ref, err)
	}
	ino, err := f.entry(dir.Ref, d, out)
	if err != nil {
		return f.eio("lookup", d.Ref, err)
	}
	f.ahead.lookedUp(&ino)
	return fuse.OK
}

var (
	errRootEntry  = errors.New("directory entry names the root of the image")
	errEntryType  = errors.New("directory entry is of another type than its inode")
	errTwoParents = errors.New("directory was found in another place before")
)

// entry fills out with the inode that d of the directory dir leads to, and returns it.
func (f *FS) entry(dir sqfs.InodeRef, d sqfs.Dirent, out *fuse.EntryOut) (ino sqfs.Inode, err error) {
	if d.Ref == f.img.Root() {
		return ino, errRootEntry // a loop; the kernel refuses FUSE_ROOT_ID here too (fs/fuse/dir.c: invalid_nodeid)
	}
	if ino, err = f.img.Inode(d.Ref); err != nil {
		return ino, err
	}
	if ino.Type != d.Type {
		return ino, errEntryType
	}
	if ino.Type == sqfs.TypeDir && !f.places.enter(d.Ref, place{dir, d.Pos}) {
		return ino, errTwoParents
	}
	out.NodeId = uint64(d.Ref) + nodeBase
	out.SetEntryTimeout(forever)
	out.SetAttrTimeout(forever)
	f.attr(&ino, &out.Attr)
	return ino, nil
}

// Forget has nothing to do: there is no table of inodes.
func (f *FS) Forget(uint64, uint64) {}

// GetAttr answers stat.
func (f *FS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	f.counts.getAttr.Add(1)
	ino, code := f.inode(in.NodeId)
	if !code.Ok() {
		return code
	}
	out.SetTimeout(forever)
	f.attr(&ino, &out.Attr)
	return fuse.OK
}

// statBlockSize is st_blksize: what a loop mount by the kernel's squashfs shows (SQUASHFS_DEVBLK_SIZE, set by
// squashfs_fill_super), whatever the block size of the image.
const statBlockSize = 1024

// attr fills out with what the kernel's squashfs shows of the inode (fs/squashfs/inode.c: squashfs_read_inode), as
// far as the options allow.
func (f *FS) attr(ino *sqfs.Inode, out *fuse.Attr) {
	out.Ino = uint64(ino.Number)
	out.Size = uint64(ino.Size)
	out.Blocks = ino.Blocks512()
	out.Mtime, out.Ctime, out.Atime = uint64(ino.ModTime), uint64(ino.ModTime), uint64(ino.ModTime)
	out.Mode = ino.UnixMode()
	out.Nlink = ino.Nlink
	out.Owner = fuse.Owner{Uid: ino.UID, Gid: ino.GID}
	out.Rdev = ino.Rdev
	out.Blksize = statBlockSize
	if f.owner != nil {
		out.Owner = fuse.Owner{Uid: f.owner.UID, Gid: f.owner.GID}
	}
	if f.restrict {
		restrictAttr(ino, out)
	}
}

// Readlink returns the target of a symbolic link. The kernel keeps it, as CACHE_SYMLINKS is asked for in INIT.
func (f *FS) Readlink(_ <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	f.counts.readlink.Add(1)
	ino, code := f.inode(h.NodeId)
	if !code.Ok() {
		return nil, code
	}
	if ino.Type != sqfs.TypeSymlink {
		return nil, fuse.EINVAL
	}
	if ino.Size > maxLink {
		return nil, fuse.Status(enametoolong)
	}
	link, err := f.img.AppendLink(nil, &ino)
	if err != nil {
		return nil, f.eio("readlink", ino.Ref, err)
	}
	return link, fuse.OK
}

// maxLink is the longest target that the kernel takes: it offers a page less one byte (fs/fuse/dir.c:
// fuse_readlink_page), and a reply longer than that fails. With larger pages the limit of path names is the same.
const maxLink = 4095

// Open answers ENOSYS, after which the kernel opens and closes files of this mount without a message and keeps their
// pages (fs/fuse/file.c: fuse_file_open sets fc->no_open; its default flags are FOPEN_KEEP_CACHE, for directories
// FOPEN_CACHE_DIR too). A kernel that cannot do that is told the same with each open.
func (f *FS) Open(_ <-chan struct{}, _ *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	f.counts.open.Add(1)
	if f.initFlags.Load()&fuse.CAP_NO_OPEN_SUPPORT != 0 {
		return fuse.ENOSYS
	}
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE
	return fuse.OK
}

// OpenDir is Open for directories (fc->no_opendir).
func (f *FS) OpenDir(_ <-chan struct{}, _ *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	f.counts.open.Add(1)
	if f.initFlags.Load()&fuse.CAP_NO_OPENDIR_SUPPORT != 0 {
		return fuse.ENOSYS
	}
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_CACHE_DIR
	return fuse.OK
}

// Flush answers ENOSYS, so that close never waits for the server (fs/fuse/file.c: fuse_flush sets fc->no_flush).
// ACCESS, which a mount with default_permissions does not send, is left at ENOSYS too (fs/fuse/dir.c: fuse_access).
func (f *FS) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.ENOSYS }

// StatFs answers statfs as fs/squashfs/super.c: squashfs_statfs does, but for the length of names (see nameMax).
// Without an answer overlayfs refuses the mount as a layer.
func (f *FS) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	f.counts.statFs.Add(1)
	out.Bsize = f.super.BlockSize
	out.Frsize = f.super.BlockSize
	out.Blocks = uint64((f.super.BytesUsed + f.blockSize - 1) / f.blockSize)
	out.Files = uint64(f.super.Inodes)
	out.NameLen = nameMax
	return fuse.OK
}
