package sqfs

import (
	"fmt"
	"io/fs"
	"sync"

	"github.com/squirefs/squire/sqfs/internal/disk"
)

// The place of a data block is the start of the file plus the lengths of all blocks
// before, which stand one after the other in the inode table: 2048 in each metadata
// block. For all but long files adding them up is faster than remembering anything.
// Of long files samples are kept, like the kernel's meta_index (fs/squashfs/file.c).

const (
	sampleEvery = disk.MetadataSize / disk.WordSize // 2048 blocks: 256 MiB of file at 128 KiB
	maxSamples  = 4096                              // of one file: 96 KiB
	listSlots   = 16                                // files with samples, of one image
)

// sample is the state of an extentReader.
type sample struct {
	ref  uint64 // of the cursor in the block list
	data int64
}

// listIndex holds the samples of one file: number k is for block k * stride. When
// there are too many, every other one goes and the stride doubles, so that no image
// can make it large.
type listIndex struct {
	ref InodeRef

	mu      sync.Mutex
	stride  int64
	samples []sample
}

// listIndexes holds the indexes of the long files used last, the latest first.
type listIndexes struct {
	mu    sync.Mutex
	slots [listSlots]*listIndex
}

// get returns the index of the file ref, making an empty one if there is none, and
// moves it to the front.
func (l *listIndexes) get(ref InodeRef) *listIndex {
	l.mu.Lock()
	defer l.mu.Unlock()
	i := 0
	for i < listSlots-1 && l.slots[i] != nil && l.slots[i].ref != ref {
		i++
	}
	x := l.slots[i]
	if x == nil || x.ref != ref {
		x = &listIndex{ref: ref, stride: sampleEvery}
	}
	copy(l.slots[1:i+1], l.slots[:i])
	l.slots[0] = x
	return x
}

// before returns the last sample at or before block i, and its block; ok is false if
// there is none but the start of the list.
func (x *listIndex) before(i int64) (s sample, block int64, ok bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	k := min(i/x.stride, int64(len(x.samples)))
	if k == 0 {
		return s, 0, false
	}
	return x.samples[k-1], k * x.stride, true
}

// wanted returns the block that the next sample is to be for.
func (x *listIndex) wanted() int64 {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.stride * int64(len(x.samples)+1)
}

// add remembers s for the given block, unless another goroutine was faster.
func (x *listIndex) add(s sample, block int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if block != x.stride*int64(len(x.samples)+1) {
		return
	}
	if x.samples = append(x.samples, s); len(x.samples) == maxSamples {
		x.thin()
	}
}

// thin drops every other sample. The caller holds x.mu.
func (x *listIndex) thin() {
	for k := range maxSamples / 2 {
		x.samples[k] = x.samples[2*k+1]
	}
	x.samples = x.samples[:maxSamples/2]
	x.stride *= 2
}

// seek returns a reader that stands before block i.
func (f *File) seek(i int64) (extentReader, error) {
	if i < 0 || i >= f.NumBlocks() {
		return extentReader{}, fmt.Errorf("block %d of file %v, which has %d: %w", i, f.ino.Ref, f.NumBlocks(), fs.ErrInvalid)
	}
	w := extentReader{f: f, data: f.ino.start}
	if i == f.words { // the tail is found without the list
		w.i = i
		return w, nil
	}
	var err error
	if w.c, err = f.img.tail(&f.ino); err != nil {
		return w, err
	}
	if i < sampleEvery {
		return w, w.forward(i)
	}
	return w, w.leap(f.img.lists.get(f.ino.Ref), i)
}

// leap goes to block i from the nearest sample, adding samples on the way. x is not
// locked while metadata is read.
func (w *extentReader) leap(x *listIndex, i int64) error {
	if s, block, ok := x.before(i); ok {
		c, err := w.f.img.resume(&w.f.img.inodes, int64(s.ref>>16), int(s.ref&0xffff))
		if err != nil {
			return err
		}
		w.c, w.data, w.i = c, s.data, block
	}
	for want := x.wanted(); w.i < want && want <= i; want = x.wanted() {
		if err := w.forward(want); err != nil {
			return err
		}
		x.add(sample{w.c.ref(&w.f.img.inodes), w.data}, want)
	}
	return w.forward(i)
}

// forward goes on to block i.
func (w *extentReader) forward(i int64) error {
	var scratch [disk.WordSize]byte
	for w.i < i {
		list := w.c.blk.data[w.c.off:]
		n := min(i-w.i, int64(len(list)/disk.WordSize))
		sum, ok := sumWords(list[:n*disk.WordSize])
		if n == 0 { // a word across two metadata blocks, or none left in this one
			b, err := w.c.next(disk.WordSize, scratch[:])
			if err != nil {
				return err
			}
			sum, ok = sumWords(b)
			w.i++
		}
		if !ok {
			return w.c.fault("block list of file %v has a length word with unused bits set", w.f.ino.Ref)
		}
		w.c.off += int(n) * disk.WordSize
		w.i += n
		w.data += sum
	}
	return nil
}

// sumWords returns the sum of the lengths in list, and whether all words are valid.
func sumWords(list []byte) (sum int64, ok bool) {
	var all disk.Word
	for ; len(list) >= disk.WordSize; list = list[disk.WordSize:] {
		w := disk.DecodeWord(list)
		sum += int64(w.Size())
		all |= w
	}
	return sum, all.Valid()
}
