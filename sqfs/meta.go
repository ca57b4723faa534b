package sqfs

import (
	"fmt"
	"math/bits"
	"sync"
	"sync/atomic"

	"github.com/squirefs/squire/sqfs/internal/disk"
)

// area is a part of the image filled with metadata blocks back to back.
type area struct {
	name       string
	start, end int64
}

// metaBlock is one expanded metadata block. It never changes after it was published,
// so that slices of data stay valid for ever, also after it left the cache.
type metaBlock struct {
	pos   int64  // of its header, absolute
	next  int64  // where it ends: the header of the next block of its table
	data  []byte // 1..8192 bytes
	link  *metaBlock
	depth int // blocks linked behind it
}

// metaOverhead is about what a metaBlock costs beside its data.
const metaOverhead = 64

// metaCache is a hash table of decoded metadata blocks, without locks: the buckets
// are linked lists that grow at the head by compare-and-swap. Blocks stay for the
// life of the image while they fit the limit. Beyond it a newcomer replaces all its
// bucket holds, and if that is not enough, other buckets in turn; nothing is recorded
// on hits, which is what keeps them cheap. It does the same when the list has grown
// long, which only an image made of tiny blocks can bring about.
//
// INVARIANT: bytes is the cost of all published blocks, but for the moment between
// an insert and its accounting; and it is counted in budget, if there is one.
type metaCache struct {
	buckets []atomic.Pointer[metaBlock] // a power of two of them
	shift   uint
	limit   int64
	bytes   atomic.Int64
	hand    atomic.Uint32 // the next bucket to empty
	budget  *Budget       // shared with other images; nil: there is none
	user    uint64        // guarded by budget.mu
	closed  atomic.Bool   // nothing is kept any more
	fixed   int64         // bytes of the table, and of indexes, while the image is open
}

// maxLinks bounds the blocks behind another in a bucket. With blocks of 8192 bytes there
// are two or three on average.
const maxLinks = 15

// maxBuckets bounds the table at 512 KiB for limits beyond 1 GiB.
const maxBuckets = 1 << 16

// init sizes the table for metadata of span bytes on disk, of which limit bytes are
// kept expanded. Metadata compresses to a third or so: one bucket for 4 KiB on disk
// or 16 KiB of cache gives lists of two or three blocks.
func (c *metaCache) init(span, limit int64, budget *Budget) {
	n := min(max(span/4096, 16), limit/(2*disk.MetadataSize)+16, maxBuckets)
	log := bits.Len64(uint64(n - 1))
	c.buckets = make([]atomic.Pointer[metaBlock], 1<<log)
	c.shift = uint(64 - log)
	c.limit = limit
	c.fixed = int64(len(c.buckets)) * 8
	if c.budget = budget; budget != nil {
		budget.add(c)
	}
}

// maxFixed is what an image with a budget may keep in indexes of tables, which stay as
// long as it is open: those of 100 million inodes.
const maxFixed = 1 << 20

// addFixed counts n bytes of indexes. It is called while the image is opened.
func (c *metaCache) addFixed(n int64) error {
	if c.budget == nil {
		return nil
	}
	if c.fixed+n > maxFixed {
		return fmt.Errorf("indexes take more than %d bytes: %w", maxFixed, ErrUnsupported)
	}
	c.fixed += n
	c.budget.used.Add(n)
	return nil
}

// account counts n more bytes.
func (c *metaCache) account(n int64) {
	c.bytes.Add(n)
	if c.budget != nil {
		c.budget.used.Add(n)
	}
}

// bucket returns the list that a block at pos belongs to (Fibonacci hashing: the
// upper bits of the product depend on all bits of pos).
func (c *metaCache) bucket(pos int64) *atomic.Pointer[metaBlock] {
	return &c.buckets[uint64(pos)*0x9e3779b97f4a7c15>>c.shift]
}

// find returns the block at pos, or nil.
func (c *metaCache) find(pos int64) *metaBlock {
	return c.bucket(pos).Load().find(pos)
}

// find returns the block at pos among b and those linked behind it, or nil.
func (b *metaBlock) find(pos int64) *metaBlock {
	for b != nil && b.pos != pos {
		b = b.link
	}
	return b
}

// insert publishes b, unless another goroutine was faster, and returns the block that
// is in the table now.
func (c *metaCache) insert(b *metaBlock) *metaBlock {
	slot := c.bucket(b.pos)
	for {
		head := slot.Load()
		if old := head.find(b.pos); old != nil {
			return old
		}
		b.link, b.depth = head, 0
		if head != nil {
			b.depth = head.depth + 1
		}
		if b.depth > maxLinks || c.bytes.Load()+b.cost() > c.limit {
			b.link, b.depth = nil, 0
		}
		if !slot.CompareAndSwap(head, b) {
			continue
		}
		c.account(b.cost())
		if b.link == nil {
			c.account(-head.total())
		}
		c.shrink()
		return b
	}
}

// shrink empties buckets until the limit holds, going at most once around.
func (c *metaCache) shrink() {
	if c.closed.Load() { // meanwhile
		c.clear()
		return
	}
	for range c.buckets {
		if c.bytes.Load() <= c.limit {
			break
		}
		c.drop()
	}
	if c.budget != nil {
		c.budget.shrink()
	}
}

// drop empties the next bucket.
func (c *metaCache) drop() {
	i := int(c.hand.Add(1)) & (len(c.buckets) - 1)
	c.account(-c.buckets[i].Swap(nil).total())
}

// clear empties all buckets.
func (c *metaCache) clear() {
	for i := range c.buckets {
		c.account(-c.buckets[i].Swap(nil).total())
	}
}

// close empties the table for good: what is inserted later leaves it at once.
func (c *metaCache) close() {
	if c.closed.Swap(true) {
		return
	}
	if c.budget != nil {
		c.budget.remove(c)
	}
	c.clear()
}

// cost returns what b counts against the limit.
func (b *metaBlock) cost() int64 { return int64(cap(b.data)) + metaOverhead }

// total returns the cost of b and all blocks linked behind it.
func (b *metaBlock) total() (n int64) {
	for ; b != nil; b = b.link {
		n += b.cost()
	}
	return n
}

// metaBuffers holds buffers for one metadata block on disk with its header.
var metaBuffers = sync.Pool{New: func() any {
	return new([disk.MetadataHeader + disk.MetadataSize]byte)
}}

// metadata returns the expanded metadata block whose header is at pos, and which must
// not reach past end.
func (img *Image) metadata(pos, end int64) (*metaBlock, error) {
	b := img.meta.find(pos)
	if b == nil {
		var err error
		if b, err = img.loadMetadata(pos, end); err != nil {
			return nil, err
		}
		b = img.meta.insert(b)
	}
	if b.next > end {
		return nil, corrupt(pos, "metadata block reaches past the end of its table at %#x", end)
	}
	return b, nil
}

// loadMetadata reads and expands the block at pos. It reads as much as the block can
// be long at once: a second read for the header would cost more than the bytes.
func (img *Image) loadMetadata(pos, end int64) (*metaBlock, error) {
	buf := metaBuffers.Get().(*[disk.MetadataHeader + disk.MetadataSize]byte)
	defer metaBuffers.Put(buf)
	if !within(pos, disk.MetadataHeader+1, end) {
		return nil, corrupt(pos, "metadata block starts outside its table, which ends at %#x", end)
	}
	src := buf[:min(int64(len(buf)), end-pos)]
	if err := img.readAt(src, pos); err != nil {
		return nil, err
	}
	n, stored := disk.DecodeMetadataHeader(src)
	// cache.c and block.c of the kernel: 0 means 32768, and nothing exceeds 8192. A
	// block may be longer than what it expands to: gensquashfs 1.2 writes such.
	if n == 0 || n > disk.MetadataSize {
		return nil, corrupt(pos, "metadata block has length %d, want 1..%d", n, disk.MetadataSize)
	}
	src = src[disk.MetadataHeader:]
	if n > len(src) {
		return nil, corrupt(pos, "metadata block reaches past the end of its table at %#x", end)
	}
	data, err := img.expandMetadata(pos, src[:n], stored)
	if err != nil {
		return nil, err
	}
	return &metaBlock{pos: pos, next: pos + disk.MetadataHeader + int64(n), data: data}, nil
}

// expandMetadata returns the contents of a metadata block in memory of its own, not
// much larger than they are.
func (img *Image) expandMetadata(pos int64, src []byte, stored bool) ([]byte, error) {
	if stored {
		return append(make([]byte, 0, len(src)), src...), nil
	}
	dst := make([]byte, disk.MetadataSize)
	n, err := img.codec.Decode(dst, src)
	if err != nil {
		return nil, &FormatError{What: img.sb.Compression.String() + " metadata block", Off: pos, Err: err}
	}
	if n == 0 {
		return nil, corrupt(pos, "metadata block expands to nothing")
	}
	if n <= len(dst)/2 {
		return append(make([]byte, 0, n), dst[:n]...), nil
	}
	return dst[:n], nil
}

// cursor reads the expanded bytes of an area forward, across its blocks.
type cursor struct {
	img *Image
	blk *metaBlock
	off int   // 0..len(blk.data)
	end int64 // of the area
}

// at returns a cursor at byte off of the block that lies block bytes into the area,
// as references have it.
func (img *Image) at(a *area, block int64, off int) (cursor, error) {
	c, err := img.resume(a, block, off)
	if err == nil && off == len(c.blk.data) {
		return cursor{}, c.fault("reference to the end of a metadata block of the %s", a.name)
	}
	return c, err
}

// resume is at for places where a cursor stood before, which may be behind the last
// byte of a block.
func (img *Image) resume(a *area, block int64, off int) (cursor, error) {
	if !within(block, 1, a.end-a.start) {
		return cursor{}, corrupt(-1, "reference to byte %#x of the %s, which has %#x", block, a.name, a.end-a.start)
	}
	blk, err := img.metadata(a.start+block, a.end)
	if err != nil {
		return cursor{}, err
	}
	if off > len(blk.data) {
		return cursor{}, corrupt(blk.pos, "reference to byte %d of a metadata block of the %s of %d bytes", off, a.name, len(blk.data))
	}
	return cursor{img: img, blk: blk, off: off, end: a.end}, nil
}

// ref packs the place of the cursor into block << 16 | offset, relative to a.
func (c *cursor) ref(a *area) uint64 {
	return uint64(c.blk.pos-a.start)<<16 | uint64(c.off)
}

// next returns the next n bytes and steps over them: a slice of the block if they lie
// in one, else a copy in scratch, which must have room for them. Both must not be
// changed.
func (c *cursor) next(n int, scratch []byte) ([]byte, error) {
	if b := c.blk.data[c.off:]; n <= len(b) {
		c.off += n
		return b[:n:n], nil
	}
	return scratch[:n], c.read(scratch[:n])
}

// read fills dst.
func (c *cursor) read(dst []byte) error {
	for len(dst) > 0 {
		if err := c.more(); err != nil {
			return err
		}
		n := copy(dst, c.blk.data[c.off:])
		c.off += n
		dst = dst[n:]
	}
	return nil
}

// appendTo appends the next n bytes to dst, which grows as bytes are found.
func (c *cursor) appendTo(dst []byte, n int) ([]byte, error) {
	for n > 0 {
		if err := c.more(); err != nil {
			return dst, err
		}
		b := c.blk.data[c.off:]
		b = b[:min(n, len(b))]
		dst = append(dst, b...)
		c.off += len(b)
		n -= len(b)
	}
	return dst, nil
}

// skip steps over n bytes.
func (c *cursor) skip(n int64) error {
	for n > 0 {
		if err := c.more(); err != nil {
			return err
		}
		k := min(n, int64(len(c.blk.data)-c.off))
		c.off += int(k)
		n -= k
	}
	return nil
}

// more makes sure that at least one byte is left in the block, by going to the next
// one at the end.
func (c *cursor) more() error {
	if c.off < len(c.blk.data) {
		return nil
	}
	// Writers fill all blocks but the last. A table of one-byte blocks would take a
	// read of the image for each byte: a small image would hang whoever looks at it.
	if len(c.blk.data) < disk.MetadataSize {
		return c.fault("metadata block of %d bytes is not the last of its table", len(c.blk.data))
	}
	blk, err := c.img.metadata(c.blk.next, c.end)
	if err != nil {
		return err
	}
	c.blk, c.off = blk, 0
	return nil
}

// fault makes a FormatError for what the cursor stands at.
func (c *cursor) fault(format string, args ...any) error {
	return corrupt(c.blk.pos, format, args...)
}
