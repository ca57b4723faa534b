// Package cache keeps decompressed squashfs blocks in memory, within a budget of bytes, for all images of a process.
//
// The kernel's page cache is the main cache of a mounted image: a page that was read once does not come back to
// user space. What it cannot hold is the rest of a block of which only a part was asked for: fragment blocks, in which
// the tails of many files lie together, and blocks longer than a request. Those live here.
//
// Four properties matter more than the hit rate:
//
//   - A block is decoded once. Whoever comes second waits for the first and gets the same bytes, or the same error.
//     Errors are not remembered: the next caller tries again.
//   - Memory is bounded. Blocks that are kept and buffers that wait for their next use never exceed the budget
//     together. Beyond it there are only blocks that a caller holds at this moment.
//   - Buffers are recycled, but never while somebody holds them. In the steady state neither a hit nor a miss allocates.
//   - Nobody pushes out what others use: each user's images get as much of the budget as any other's, and what others do
//     not use. See share.go.
package cache

import (
	"fmt"
	"runtime"
	"sync/atomic"

	"github.com/squirefs/squire/sqfs"
)

// Decoder decodes one block into dst, whose length is at least b.Len, and returns the number of bytes decoded.
// *sqfs.Image is one.
type Decoder interface {
	ReadBlock(dst []byte, b sqfs.Block) (int, error)
}

var _ Decoder = (*sqfs.Image)(nil)

// Waiter may be implemented by a Decoder that wants to know when its caller is about to wait for a block that somebody
// else decodes, which may take as long as the storage does.
type Waiter interface{ Waiting() }

// Cache is a set of decompressed blocks. All methods may be called concurrently.
type Cache struct {
	budget int64
	shards []shard
	images atomic.Uint64
}

// Stats counts what a Cache did since it was made.
type Stats struct {
	Hits      uint64 `json:"hits"`      // block was there
	Misses    uint64 `json:"misses"`    // block was decoded by the caller
	Waits     uint64 `json:"waits"`     // block was being decoded by somebody else
	Ahead     uint64 `json:"ahead"`     // block was decoded ahead of need, by Load
	Evictions uint64 `json:"evictions"` // blocks dropped to make room
	Bytes     int64  `json:"bytes"`     // memory of the blocks kept and of the buffers waiting for use, at this moment
}

// minShardBytes is the least budget of one shard: 32 blocks of the largest size. With less, a few blocks that fall
// into the same shard evict each other while the rest of the cache is idle.
const minShardBytes = 32 << 20

// New returns a Cache that keeps up to about bytes of decompressed data. With bytes <= 0 it keeps nothing, but still
// lets concurrent callers share one decoding.
//
// The number of shards is a guess. On two processors one shard is as good as eight (BenchmarkHitParallel: 103 and
// 100 ns), as a hit takes the lock twice for some 30 ns, in a request that takes 10 µs; so that many processors are
// needed before the lock shows. Larger machines were not measured; one shard for four processors is far from the limit.
func New(bytes int64) *Cache {
	n := min(int64(runtime.GOMAXPROCS(0)+3)/4, bytes/minShardBytes)
	return newSharded(bytes, int(max(n, 1)))
}

func newSharded(bytes int64, n int) *Cache {
	c := &Cache{budget: max(bytes, 0), shards: make([]shard, n)}
	for i := range c.shards {
		c.shards[i].init(max(bytes, 0) / int64(n))
	}
	return c
}

// Budget returns how many bytes the Cache keeps at most.
func (c *Cache) Budget() int64 { return c.budget }

// NewImage returns a number that no other image of this Cache has, for an image of a user's. Blocks are kept under it: two
// mounts of the same image that use the same number share their blocks.
func (c *Cache) NewImage(user uint64) uint64 {
	image := c.images.Add(1)
	c.SetUser(image, user)
	return image
}

// SetUser says whose image it is from now on, with all that is kept of it.
func (c *Cache) SetUser(image, user uint64) {
	for i := range c.shards {
		c.shards[i].setUser(image, user)
	}
}

// Forget drops all that is kept of an image, which is of use to nobody any more.
func (c *Cache) Forget(image uint64) {
	for i := range c.shards {
		c.shards[i].forget(image)
	}
}

// Get returns block b of image, decoding it with d if it is not kept. The caller must call Release on the result
// exactly once and must not touch its bytes afterwards. A hit does not allocate.
//
// A block is decoded by the goroutine that asked first, without any lock held; if its decoder panics, the panic goes
// on in that goroutine and those who wait get ErrPanic.
func (c *Cache) Get(d Decoder, image uint64, b sqfs.Block) (*Buffer, error) {
	if b.Len > maxBlock {
		return nil, errTooLong(b)
	}
	k := key{image, b}
	return c.shards[k.shard(len(c.shards))].get(d, k)
}

func errTooLong(b sqfs.Block) error {
	return fmt.Errorf("cache block at %#x: length %d is over the largest block of squashfs, %d", b.Off, b.Len, maxBlock)
}

// Find returns block b of image if it is kept, else nil. If it is being decoded, Find waits for that, unless wait is nil;
// the result is nil too if that failed. The caller must call Release or Drop on the result exactly once.
func (c *Cache) Find(image uint64, b sqfs.Block, wait Waiter) *Buffer {
	k := key{image, b}
	return c.shards[k.shard(len(c.shards))].find(k, wait)
}

// Has reports whether block b of image is kept, or being decoded. It counts for nothing.
func (c *Cache) Has(image uint64, b sqfs.Block) bool {
	k := key{image, b}
	return c.shards[k.shard(len(c.shards))].has(k)
}

// Wanted reports whether somebody waits for block b of image, which is being decoded. Who comes to wait after Wanted said
// no calls Waiter.Waiting later than that.
func (c *Cache) Wanted(image uint64, b sqfs.Block) bool {
	k := key{image, b}
	return c.shards[k.shard(len(c.shards))].wanted(k)
}

// Load decodes block b of image ahead of need, unless it is kept or being decoded, and reports whether it did.
func (c *Cache) Load(d Decoder, image uint64, b sqfs.Block) (bool, error) {
	if b.Len > maxBlock {
		return false, errTooLong(b)
	}
	k := key{image, b}
	return c.shards[k.shard(len(c.shards))].loadAhead(d, k)
}

// Kept returns how many bytes are kept of an image.
func (c *Cache) Kept(image uint64) (bytes int64) {
	for i := range c.shards {
		bytes += c.shards[i].keptOf(image)
	}
	return bytes
}

// Stats returns the counters, summed over the shards one after the other.
func (c *Cache) Stats() Stats {
	var sum Stats
	for i := range c.shards {
		s := c.shards[i].stats()
		sum.Hits += s.Hits
		sum.Misses += s.Misses
		sum.Waits += s.Waits
		sum.Ahead += s.Ahead
		sum.Evictions += s.Evictions
		sum.Bytes += s.Bytes
	}
	return sum
}

// key names a block of an image.
type key struct {
	image uint64
	block sqfs.Block
}

// shard spreads keys over n shards: Fibonacci hashing, the high bits of a product with 2^64/φ, scaled to n. Offsets
// of blocks are as good as random in their low bits, but equal in their high ones.
func (k key) shard(n int) int {
	h := (uint64(k.block.Off) + k.image<<48) * 0x9e3779b97f4a7c15
	return int((h >> 32) * uint64(n) >> 32)
}
