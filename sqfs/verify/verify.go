// Package verify finds out what an image consists of and whether all of it can be read.
//
// [Run] walks the tree and, if asked to, expands every block of the image once: all
// metadata, every data block and fragment however many files share it. Squashfs has no
// checksum of its own. What a compressor notices is found, and what breaks the format;
// with gzip and xz, which carry checksums, that is nearly every change, with others and
// in blocks that are stored it is not.
package verify

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	goruntime "runtime"

	"github.com/squirefs/squire/sqfs"
)

// Options are the settings of [Run]. The zero value, like nil, means the defaults.
type Options struct {
	// Data says to expand all blocks. Without it only the tree is walked, which takes
	// about a microsecond for each file.
	Data bool
	// Workers is how many goroutines expand blocks, at most 1024. Default, and for
	// anything below 1: GOMAXPROCS.
	Workers int
	// Done, if not nil, is counted up by the bytes of the image that were expanded.
	// They come near to Total in the end.
	Done *atomic.Int64
}

// Total returns how many bytes of the image there are to expand.
func Total(img *sqfs.Image) int64 { return img.Superblock().BytesUsed }

// Damage is a place that cannot be read. Paths that cannot be read for the same error in
// the same place are one Damage, with the damage of the table if it lies in one.
type Damage struct {
	Path  string // of the first file concerned; "" for the root and if there is none, see HasPath
	Paths int64  // number of paths concerned (of damage to attributes: of inodes); 0 if none is known
	Inode uint32 // number of the inode at Path, 0 if it is not known
	Block int64  // number of the block in the file at Path, -1 if it is none
	Off   int64  // byte offset in the image of the block, -1 if it has no place
	Err   error
}

// HasPath reports whether a path is concerned, which is the root if Path is empty.
func (d *Damage) HasPath() bool { return d.Paths > 0 }

// A hostile image can have millions of faults, whose paths can have a MiB each and the
// names in their errors a KiB: so many are listed, the others are only counted.
const (
	maxDamage = 1 << 16
	maxText   = 32 << 20 // bytes of paths and errors in the list
)

// maxWorkers bounds Options.Workers, and with it memory: each has a block.
const maxWorkers = 1024

// Run looks at all of img. The error is that of ctx; the report then has what was found
// until then. Memory is bounded by one block for each worker, 300 MiB for what was seen
// and the list of damage, and what [sqfs.Image.Walk] keeps of directories, whatever the
// image has.
func Run(ctx context.Context, img *sqfs.Image, opts *Options) (*Report, error) {
	if opts == nil {
		opts = &Options{}
	}
	v := &verification{
		ctx: ctx, img: img, opts: opts, bs: int64(img.Superblock().BlockSize),
		jobs: make(chan job, 64), links: make(map[sqfs.InodeRef]struct{}), sets: make(map[uint32]fault),
		room: maxText, faults: make(map[cause]fault),
		blocks: newSeen[struct{}](), frags: newSeen[*fragment](), bad: make(map[sqfs.Block]*badBlock),
	}
	var workers sync.WaitGroup
	if opts.Data {
		n := opts.Workers
		if n <= 0 {
			n = goruntime.GOMAXPROCS(0)
		}
		for range min(n, maxWorkers) {
			workers.Go(v.work)
		}
	}
	v.tables()
	v.tree()
	close(v.jobs)
	workers.Wait()
	v.finish()
	return &v.report, ctx.Err()
}

// verification is one call of Run. What has no other comment belongs to the goroutine
// that walks.
type verification struct {
	ctx  context.Context
	img  *sqfs.Image
	opts *Options
	bs   int64
	jobs chan job

	report Report
	links  map[sqfs.InodeRef]struct{} // inodes with more than one name, seen so far
	sets   map[uint32]fault           // sets of extended attributes
	faults map[cause]fault            // what is listed
	room   int                        // bytes left of maxText
	last   string                     // the path that was kept last
	buf    []byte
	blocks seen[struct{}]
	frags  seen[*fragment]

	mu   sync.Mutex
	bad  map[sqfs.Block]*badBlock // guarded by mu
	more int64                    // bad blocks that are not in it; guarded by mu
}

// job is a block to expand, and what is known of it if it is a fragment block.
type job struct {
	block sqfs.Block
	frag  *fragment
}

// fragment is a fragment block.
type fragment struct {
	mu   sync.Mutex
	need int  // the most bytes that a file has asked for so far
	done bool // it was expanded, to
	n    int  // so many bytes
}

// badBlock is a block that is damaged, or a fragment that is too short for some files.
type badBlock struct {
	err      error // nil: it is only too short
	n        int   // bytes there are
	first    Damage
	unlisted bool // there was no room for the path of the first file
}

// hurts reports whether a file with this extent in the block is concerned.
func (b *badBlock) hurts(e sqfs.Extent) bool { return b.err != nil || e.Start+e.Len > b.n }

// cause is what damage that is listed once has in common.
type cause struct {
	off  int64
	text string
}

// causeOf leaves out what was said around the error of the image: whether a table was
// looked at, or a file for its attributes.
func causeOf(off int64, err error) cause {
	var f *sqfs.FormatError
	if errors.As(err, &f) {
		err = f
	}
	return cause{off, err.Error()}
}

// fault says where damage is listed: 1 + its place, 0 if there is none, or
type fault int

const unlisted fault = -1 // it was only counted

// add adds to the list of damage, to what is there of the same cause if there is.
func (v *verification) add(c cause, d Damage) fault {
	if f := v.faults[c]; f != 0 {
		v.report.Damage[f-1].Paths += d.Paths
		return f
	}
	v.report.DamageCount++
	n := 2 * len(c.text) // in the error, and in faults
	if len(v.report.Damage) >= maxDamage || n > v.room {
		return unlisted
	}
	v.room -= n
	v.report.Damage = append(v.report.Damage, d)
	f := fault(len(v.report.Damage))
	v.faults[c] = f
	return f
}

// path returns the path of a visit to be kept, if there is room for it. All that is
// found at one path has one copy.
func (v *verification) path(at *sqfs.Visit) (path string, fits bool) {
	if string(at.Path) == v.last {
		return v.last, true
	}
	if len(at.Path) > v.room {
		return "", false
	}
	v.room -= len(at.Path)
	v.last = string(at.Path)
	return v.last, true
}

// damaged reports that the inode of a visit, or what belongs to it, is.
func (v *verification) damaged(at *sqfs.Visit, block int64, err error) fault {
	off := offsetOf(err)
	return v.damagedBy(causeOf(off, err), at, Damage{Block: block, Off: off, Err: err})
}

// damagedBy is damaged for a cause that the error does not say.
func (v *verification) damagedBy(c cause, at *sqfs.Visit, d Damage) fault {
	f := v.faults[c]
	if f != 0 && v.report.Damage[f-1].HasPath() {
		v.report.Damage[f-1].Paths++
		return f
	}
	path, fits := v.path(at)
	switch {
	case !fits && f == 0:
		v.report.DamageCount++
		return unlisted
	case !fits: // the table is listed without a path
		return f
	}
	d.Path, d.Paths, d.Inode = path, 1, at.Inode.Number
	if f == 0 {
		return v.add(c, d)
	}
	d.Err = v.report.Damage[f-1].Err // which names the table
	v.report.Damage[f-1] = d
	return f
}

// tables expands all metadata, also what no path leads to.
func (v *verification) tables() {
	for _, t := range v.img.Tables() {
		stat := TableStat{Name: t.Name, Start: t.Start, Bytes: t.End - t.Start, Rows: t.Rows}
		if v.opts.Data {
			for b, err := range v.img.MetadataBlocks(t) {
				if v.ctx.Err() != nil {
					return
				}
				stat.add(b)
				if err != nil {
					v.add(causeOf(b.Off, err), Damage{Block: -1, Off: b.Off, Err: fmt.Errorf("%s: %w", t.Name, err)})
				}
			}
			v.count(stat.Bytes)
		}
		v.report.Tables = append(v.report.Tables, stat)
	}
}

// tree walks the image.
func (v *verification) tree() {
	root, err := v.img.Inode(v.img.Root())
	if err != nil { // New checked it, but the source may have failed since
		off := offsetOf(err)
		v.add(causeOf(off, err), Damage{Paths: 1, Block: -1, Off: off, Err: err})
		return
	}
	for at, err := range v.img.Walk(&root) {
		switch {
		case v.ctx.Err() != nil:
			return
		case err != nil:
			v.damaged(at, -1, err)
		case !at.Leave:
			v.visit(at)
		}
	}
}

// manyBlocks is how many blocks a file has at least whose further names are known
// without a count of them: one list of a million holes, found again under each of
// 4000 names, took minutes in an image of 28 KB.
const manyBlocks = 64

// visit looks at all that an inode has.
func (v *verification) visit(at *sqfs.Visit) {
	ino := &at.Inode
	v.report.Entries++
	if ino.Type != sqfs.TypeDir && (ino.Nlink > 1 || ino.Size > manyBlocks*v.bs) {
		if _, again := v.links[ino.Ref]; again {
			v.report.HardLinks++
			return
		}
		keep(v.links, ino.Ref, struct{}{})
	}
	v.report.Types[ino.Type&7]++
	v.checkXattrs(at)
	switch ino.Type {
	case sqfs.TypeSymlink:
		var err error
		if v.buf, err = v.img.AppendLink(v.buf[:0], ino); err != nil {
			v.damaged(at, -1, err)
		}
	case sqfs.TypeFile:
		v.file(at)
	}
	if v.opts.Data {
		v.checkExport(at)
	}
}

// checkExport checks what the table that leads from numbers to inodes says of an inode.
func (v *verification) checkExport(at *sqfs.Visit) {
	if v.img.Superblock().ExportTable < 0 {
		return
	}
	ref, err := v.img.ByNumber(at.Inode.Number)
	switch {
	case err != nil:
		v.damaged(at, -1, err)
	case ref != at.Inode.Ref: // likely the first of many, of which each says something else
		err = &sqfs.FormatError{What: fmt.Sprintf("export table has %v for inode %d, which is %v", ref, at.Inode.Number, at.Inode.Ref), Off: -1}
		v.damagedBy(cause{-1, "export table"}, at, Damage{Block: -1, Off: -1, Err: err})
	}
}

// checkXattrs reads a set of extended attributes when the first inode has it.
func (v *verification) checkXattrs(at *sqfs.Visit) {
	set, has := at.Inode.XattrSet()
	if !has {
		return
	}
	v.report.WithXattrs++
	if f, again := v.sets[set]; again {
		if f > 0 {
			v.report.Damage[f-1].Paths++
		}
		return
	}
	v.report.XattrSets++
	keep(v.sets, set, v.readSet(at))
}

// readSet reads the extended attributes of an inode.
func (v *verification) readSet(at *sqfs.Visit) fault {
	for a, err := range v.img.XattrValues(&at.Inode, v.buf) {
		if err != nil {
			return v.damaged(at, -1, fmt.Errorf("extended attributes: %w", err))
		}
		if v.buf = a.Value; v.ctx.Err() != nil {
			break
		}
	}
	return 0
}

// file looks at the blocks of a file.
func (v *verification) file(at *sqfs.Visit) {
	r := &v.report
	r.FileBytes += at.Inode.Size
	f, err := v.img.File(&at.Inode)
	if err != nil {
		v.damaged(at, -1, err)
		return
	}
	if f.NumBlocks() == 0 {
		return
	}
	i := int64(0)
	for e, err := range f.Extents(0) {
		switch {
		case v.ctx.Err() != nil:
			return
		case err != nil:
			v.damaged(at, i, err)
		case e.Block.Fragment:
			v.tail(e)
		case e.Block.Size == 0:
			r.Holes++
			r.HoleBytes += int64(e.Len)
		default:
			v.block(e.Block)
		}
		i++
	}
}

// block has a data block expanded that was not seen before.
func (v *verification) block(b sqfs.Block) {
	if _, isNew := v.blocks.get(b, nil); !isNew {
		v.report.Shared++
		return
	}
	v.report.Data.add(b)
	if v.opts.Data {
		v.jobs <- job{block: b}
	}
}

// tail has the fragment block of a tail expanded, once, and sees to it that the tail is
// compared with its length.
func (v *verification) tail(e sqfs.Extent) {
	v.report.Tails++
	v.report.TailBytes += int64(e.Len)
	frag, isNew := v.frags.get(e.Block, func() *fragment { return &fragment{} })
	if isNew {
		v.report.Fragments.add(e.Block)
	}
	frag.mu.Lock()
	if more := e.Start + e.Len - frag.need; more > 0 {
		frag.need += more
		v.report.TailRoom += int64(more)
	}
	short := frag.done && frag.need > frag.n
	n := frag.n
	frag.mu.Unlock()
	if short {
		v.found(e.Block, nil, n)
	}
	if isNew && v.opts.Data {
		v.jobs <- job{e.Block, frag}
	}
}

// count tells of progress.
func (v *verification) count(n int64) {
	if v.opts.Done != nil {
		v.opts.Done.Add(n)
	}
}

// work expands blocks.
func (v *verification) work() {
	buf := make([]byte, v.bs+sqfs.ReadSlack)
	for j := range v.jobs {
		if v.ctx.Err() != nil {
			continue
		}
		n, err := v.img.ReadBlock(buf, j.block)
		v.count(int64(j.block.Size))
		if err != nil {
			v.found(j.block, err, 0)
			continue // all of its files are told of then
		}
		if j.frag == nil {
			continue
		}
		j.frag.mu.Lock()
		j.frag.done, j.frag.n = true, n
		short := j.frag.need > n
		j.frag.mu.Unlock()
		if short {
			v.found(j.block, nil, n)
		}
	}
}

// found remembers a bad block. Which files have it is found out at the end, if at all:
// most images have no bad block.
func (v *verification) found(b sqfs.Block, err error, n int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if old := v.bad[b]; old != nil {
		return
	}
	if len(v.bad) < maxDamage {
		v.bad[b] = &badBlock{err: err, n: n}
	} else {
		v.more++
	}
}

// finish finds the paths of bad blocks and completes the report. The workers are done.
func (v *verification) finish() {
	if len(v.bad) > 0 && v.ctx.Err() == nil {
		v.findUsers()
	}
	blocks := make([]Damage, 0, len(v.bad))
	for b, bad := range v.bad {
		if bad.unlisted {
			v.more++
			continue
		}
		d := bad.first
		d.Off, d.Err = b.Off, bad.err
		if d.Err == nil {
			d.Err = &sqfs.FormatError{What: fmt.Sprintf("fragment has %d bytes expanded, which is too few", bad.n), Off: b.Off}
		}
		blocks = append(blocks, d)
	}
	slices.SortFunc(blocks, func(a, b Damage) int { return cmp.Compare(a.Off, b.Off) })
	for _, d := range blocks {
		v.add(causeOf(d.Off, d.Err), d)
	}
	v.report.DamageCount += v.more
}

// findUsers walks the tree once more, for the files that have bad blocks.
func (v *verification) findUsers() {
	root, err := v.img.Inode(v.img.Root())
	if err != nil {
		return
	}
	for at, err := range v.img.Walk(&root) {
		if v.ctx.Err() != nil {
			return
		}
		if err != nil || at.Leave || at.Inode.Type != sqfs.TypeFile {
			continue
		}
		f, err := v.img.File(&at.Inode)
		if err != nil || f.NumBlocks() == 0 {
			continue
		}
		v.findIn(at, &f)
	}
}

// findIn looks for bad blocks in a file, which has none twice: they lie one behind the other.
func (v *verification) findIn(at *sqfs.Visit, f *sqfs.File) {
	i := int64(-1)
	for e, err := range f.Extents(0) {
		if i++; err != nil {
			return
		}
		bad := v.bad[e.Block]
		if bad == nil || !bad.hurts(e) {
			continue
		}
		if bad.first.Paths++; bad.first.Paths == 1 {
			path, fits := v.path(at)
			bad.first = Damage{Path: path, Paths: 1, Inode: at.Inode.Number, Block: i}
			bad.unlisted = !fits
		}
	}
}
