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
	// Workers is how many goroutines expand blocks. Default: GOMAXPROCS.
	Workers int
	// Done, if not nil, is counted up by the bytes of the image that were expanded.
	// They come near to Total in the end.
	Done *atomic.Int64
}

// Total returns how many bytes of the image there are to expand.
func Total(img *sqfs.Image) int64 { return img.Superblock().BytesUsed }

// Damage is a thing that cannot be read.
type Damage struct {
	Path  string // of the first file concerned; "" for the root and if there is none
	Paths int64  // number of paths concerned (of damage to attributes: of inodes); 0 if it is a table
	Inode uint32 // number of the inode at Path, 0 if it is not known
	Block int64  // number of the block in the file at Path, -1 if it is none
	Off   int64  // byte offset in the image of the block, -1 if it has no place
	Err   error
}

// maxDamage bounds the list of a report: a hostile image can have millions of faults.
const maxDamage = 1 << 16

// Run looks at all of img. The error is that of ctx; the report then has what was found
// until then. Memory is bounded by one block for each worker and some 100 MiB for what
// was seen, whatever the size of the image.
func Run(ctx context.Context, img *sqfs.Image, opts *Options) (*Report, error) {
	if opts == nil {
		opts = &Options{}
	}
	v := &verification{
		ctx: ctx, img: img, opts: opts, bs: int64(img.Superblock().BlockSize),
		jobs: make(chan job, 64), links: make(map[sqfs.InodeRef]struct{}), sets: make(map[uint32]fault),
		blocks: newSeen[struct{}](), frags: newSeen[*fragment](), bad: make(map[sqfs.Block]*badBlock),
	}
	var workers sync.WaitGroup
	if opts.Data {
		n := opts.Workers
		if n <= 0 {
			n = goruntime.GOMAXPROCS(0)
		}
		for range n {
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
	export fault                      // of the table that leads from numbers to inodes
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
	err   error // nil: it is only too short
	n     int   // bytes there are
	first Damage
}

// hurts reports whether a file with this extent in the block is concerned.
func (b *badBlock) hurts(e sqfs.Extent) bool { return b.err != nil || e.Start+e.Len > b.n }

// add adds to the list of damage.
func (v *verification) add(d Damage) {
	if v.report.DamageCount++; len(v.report.Damage) < maxDamage {
		v.report.Damage = append(v.report.Damage, d)
	}
}

// fault is damage that several inodes share: 1 + its place in the list, 0 for none.
type fault int

// shared reports damage of the inode of a visit that may be that of others too: it is
// listed once.
func (v *verification) shared(f *fault, at *sqfs.Visit, err error) {
	if *f == 0 {
		v.damaged(at, -1, err)
		*f = fault(len(v.report.Damage))
		return
	}
	v.report.Damage[*f-1].Paths++
}

// damaged reports that the inode of a visit, or what belongs to it, is.
func (v *verification) damaged(at *sqfs.Visit, block int64, err error) {
	v.add(Damage{Path: string(at.Path), Paths: 1, Inode: at.Inode.Number, Block: block, Off: offsetOf(err), Err: err})
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
					v.add(Damage{Block: -1, Off: b.Off, Err: fmt.Errorf("%s: %w", t.Name, err)})
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
		v.add(Damage{Paths: 1, Block: -1, Off: offsetOf(err), Err: err})
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

// visit looks at all that an inode has.
func (v *verification) visit(at *sqfs.Visit) {
	ino := &at.Inode
	v.report.Entries++
	if ino.Nlink > 1 && ino.Type != sqfs.TypeDir {
		if _, again := v.links[ino.Ref]; again {
			v.report.HardLinks++
			return
		}
		v.links[ino.Ref] = struct{}{}
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
	if err == nil && ref != at.Inode.Ref {
		err = &sqfs.FormatError{What: fmt.Sprintf("export table has %v for inode %d, which is %v", ref, at.Inode.Number, at.Inode.Ref), Off: -1}
	}
	if err != nil {
		v.shared(&v.export, at, err)
	}
}

// checkXattrs reads a set of extended attributes when the first inode has it.
func (v *verification) checkXattrs(at *sqfs.Visit) {
	set, has := at.Inode.XattrSet()
	if !has {
		return
	}
	v.report.WithXattrs++
	f, seen := v.sets[set]
	var err error
	if !seen {
		for a, xerr := range v.img.XattrValues(&at.Inode, v.buf) {
			if v.buf, err = a.Value, xerr; v.ctx.Err() != nil {
				break
			}
		}
	}
	if err != nil || f != 0 {
		v.shared(&f, at, fmt.Errorf("extended attributes: %w", err))
	}
	v.sets[set] = f
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
	buf := make([]byte, v.bs)
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
	v.report.XattrSets = int64(len(v.sets))
	if len(v.bad) > 0 && v.ctx.Err() == nil {
		v.findUsers()
	}
	blocks := make([]Damage, 0, len(v.bad))
	for b, bad := range v.bad {
		d := bad.first
		d.Off, d.Err = b.Off, bad.err
		if d.Err == nil {
			d.Err = &sqfs.FormatError{What: fmt.Sprintf("fragment has %d bytes expanded, which is too few", bad.n), Off: b.Off}
		}
		blocks = append(blocks, d)
	}
	slices.SortFunc(blocks, func(a, b Damage) int { return cmp.Compare(a.Off, b.Off) })
	for _, d := range blocks {
		v.add(d)
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

// findIn looks for bad blocks in a file, and counts each once.
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
			bad.first = Damage{Path: string(at.Path), Paths: 1, Inode: at.Inode.Number, Block: i}
		}
	}
}
