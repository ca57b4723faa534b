package sqfs

import (
	"sort"
	"sync"
)

// A listing can be read from its start only, or from where one of its runs begins: a
// million lookups in a directory of a million entries, or reading it in a thousand
// pieces, would take for ever. Of long directories samples are kept: runs that a walk
// from the start came to, one in about 8 KiB of listing. They are added by whoever
// walks beyond the last one, for a lookup or to list the directory, and found by
// position or, as names are sorted, by name.

const (
	longDir       = 16 << 10  // bytes of listing: shorter ones are walked from their start
	dirStride     = 8 << 10   // bytes of listing between samples
	maxDirIndex   = 256 << 10 // bytes of samples of one directory: some 40 MiB of listing before they get sparse
	maxDirIndexes = 4 << 20   // bytes of samples of an image
)

// dirSample is the place of a run of a listing, all entries before which are sound.
// The zero value is the start of the listing.
type dirSample struct {
	pos  int64  // of its header in the listing
	at   uint64 // of its header, for resume
	name string // of its first entry
}

// dirSampleCost is about what a sample takes beside its name, dirIndexCost what a
// dirIndex takes beside its samples.
const (
	dirSampleCost = 40
	dirIndexCost  = 200
)

// dirIndex holds the samples of one directory, ascending by position and by name. When
// there are too many, every other one goes and the stride doubles, so that no image
// can make it large. All of it is guarded by the mutex of dirIndexes.
type dirIndex struct {
	ref     InodeRef // of the directory
	samples []dirSample
	stride  int64
	bytes   int64 // of memory
	whole   bool  // the walk came to the end of the listing
	spent   int64 // bytes read by following hints
}

// dirIndexes holds the indexes of the long directories used last. There are two
// generations: an index that is used goes to the young one, and when that has half of
// what is allowed, it becomes the old one, in place of the old one before.
type dirIndexes struct {
	mu         sync.Mutex
	young, old map[InodeRef]*dirIndex
	bytes      int64 // of young
}

// get returns the index of the directory ref, making an empty one if there is none.
// The caller holds l.mu.
func (l *dirIndexes) get(ref InodeRef) *dirIndex {
	x := l.young[ref]
	if x != nil {
		return x
	}
	if x = l.old[ref]; x == nil {
		x = &dirIndex{ref: ref, stride: dirStride, bytes: dirIndexCost}
	}
	if l.young == nil {
		l.young = make(map[InodeRef]*dirIndex)
	}
	l.young[ref] = x
	l.grow(x.bytes)
	return x
}

// grow counts n more bytes of young indexes, which may age all of them. The caller
// holds l.mu.
func (l *dirIndexes) grow(n int64) {
	if l.bytes += n; l.bytes > maxDirIndexes/2 {
		l.old, l.young, l.bytes = l.young, nil, 0
	}
}

// before returns the last sample that after does not hold for, given that it holds for
// all behind the first it holds for. sure says that the place looked for lies in the
// part of the listing that was walked.
func (l *dirIndexes) before(ref InodeRef, after func(*dirSample) bool) (x *dirIndex, s dirSample, sure bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	x = l.get(ref)
	k := sort.Search(len(x.samples), func(i int) bool { return after(&x.samples[i]) })
	if k > 0 {
		s = x.samples[k-1]
	}
	return x, s, k < len(x.samples) || x.whole
}

// want returns the position from which on the next sample of x is wanted. The caller
// holds the mutex.
func (x *dirIndex) want() int64 {
	if n := len(x.samples); n > 0 {
		return x.samples[n-1].pos + x.stride
	}
	return x.stride
}

// wanted is want for others.
func (l *dirIndexes) wanted(x *dirIndex) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return x.want()
}

// add adds a sample to x, unless another goroutine was faster, and returns the position
// from which on the next one is wanted.
func (l *dirIndexes) add(x *dirIndex, pos int64, at uint64, name []byte) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if pos >= x.want() {
		before := x.bytes
		x.samples = append(x.samples, dirSample{pos: pos, at: at, name: string(name)})
		x.bytes += dirSampleCost + int64(len(name))
		if x.bytes > maxDirIndex {
			x.thin()
		}
		if l.young[x.ref] == x { // else it aged meanwhile, and is counted when it is used again
			l.grow(x.bytes - before)
		}
	}
	return x.want()
}

// thin drops every other sample. The caller holds the mutex.
func (x *dirIndex) thin() {
	kept := make([]dirSample, 0, len(x.samples))
	x.bytes = dirIndexCost
	for k := 1; k < len(x.samples); k += 2 {
		kept = append(kept, x.samples[k])
		x.bytes += dirSampleCost + int64(len(x.samples[k].name))
	}
	x.samples = kept
	x.stride *= 2
}

// finish notes that the samples of x are all there will be.
func (l *dirIndexes) finish(x *dirIndex) {
	l.mu.Lock()
	defer l.mu.Unlock()
	x.whole = true
}

// spent returns the number of bytes read by following hints.
func (l *dirIndexes) spent(x *dirIndex) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return x.spent
}

// spend adds to that number.
func (l *dirIndexes) spend(x *dirIndex, n int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	x.spent += n
}

// near goes to a run from which the position pos of the listing can be reached soon.
func (d *dirReader) near(dir *Inode, pos int64) error {
	if d.size <= longDir {
		return d.rewind(dir)
	}
	x, s, sure := d.img.longDirs.before(dir.Ref, func(s *dirSample) bool { return s.pos > pos })
	return d.jump(dir, x, s, sure)
}

// seek prepares d to find name in dir.
func (d *dirReader) seek(img *Image, dir *Inode, name string) error {
	if err := d.start(img, dir); err != nil {
		return err
	}
	if d.size <= longDir {
		return d.rewind(dir)
	}
	x, s, sure := img.longDirs.before(dir.Ref, func(s *dirSample) bool { return s.name > name })
	if !sure && d.followHint(dir, x, name) {
		return nil
	}
	return d.jump(dir, x, s, sure)
}

// jump goes to the run s. If it is not sure that x knows of all there is from there to
// where d is to go, samples are added to x on the way.
func (d *dirReader) jump(dir *Inode, x *dirIndex, s dirSample, sure bool) error {
	if !sure {
		d.x, d.want = x, d.img.longDirs.wanted(x)
	}
	if s.pos == 0 {
		return d.rewind(dir)
	}
	c, err := d.img.resume(&d.img.dirs, int64(s.at>>16), int(s.at&0xffff))
	d.stand(c, s.pos)
	return err
}

// lookAhead goes on to the next sample, for lookups of the names up to there, which
// would have to check the same entries again. What is wrong there is their affair.
func (d *dirReader) lookAhead() {
	if d.x == nil || d.err != nil {
		return
	}
	for want := d.want; d.want == want && d.next(); {
	}
}

// sample makes the run that d is in, one entry behind its header, a sample of d.x.
func (d *dirReader) sample() {
	d.want = d.img.longDirs.add(d.x, d.header, d.at, d.entry.Name)
}

// complete notes that d came to the end of the listing.
func (d *dirReader) complete() {
	if d.x != nil {
		d.img.longDirs.finish(d.x)
	}
}
