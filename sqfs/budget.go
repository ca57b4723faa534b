package sqfs

import (
	"slices"
	"sync"
	"sync/atomic"
)

// Budget is how much expanded metadata several images keep together, see
// [Options.Metadata]. When it is used up, of the user whose images keep most, see
// [Image.SetUser], the image that keeps most loses some of it, which it reads and
// expands again when it needs it. All methods may be called concurrently.
type Budget struct {
	limit int64
	used  atomic.Int64

	mu     sync.Mutex
	images []*metaCache
	sums   map[uint64]int64 // of users, while it is looked for who keeps most
}

// NewBudget returns a Budget of about as many bytes.
func NewBudget(bytes int64) *Budget {
	return &Budget{limit: max(bytes, 0), sums: make(map[uint64]int64)}
}

// Used returns how many bytes are kept at this moment. For as long as it takes to make
// room this may be more than the limit, by the blocks that are being added.
func (b *Budget) Used() int64 { return b.used.Load() }

// add has c use the budget, which what c keeps in any case counts against.
func (b *Budget) add(c *metaCache) {
	b.used.Add(c.fixed)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.images = append(b.images, c)
}

// remove is for a c that is about to be cleared.
func (b *Budget) remove(c *metaCache) {
	b.used.Add(-c.fixed)
	b.mu.Lock()
	defer b.mu.Unlock()
	if k := slices.Index(b.images, c); k >= 0 {
		b.images = slices.Delete(b.images, k, k+1)
	}
}

// slack is the part of the budget that is made free at a time, 1 in so many: to look
// for the image that keeps most takes a while.
const slack = 32

// shrink makes room if the budget is used up. It does not wait for another goroutine
// that does so.
func (b *Budget) shrink() {
	if b.used.Load() <= b.limit || !b.mu.TryLock() {
		return
	}
	defer b.mu.Unlock()
	for b.used.Load() > b.limit-b.limit/slack {
		c := b.largest()
		if c == nil || c.bytes.Load() <= 0 {
			return
		}
		for range max(1, len(c.buckets)/slack) {
			c.drop()
		}
	}
}

// largest returns the image that keeps most of those of the user who keeps most, nil if
// there is none. b.mu is held.
func (b *Budget) largest() (most *metaCache) {
	clear(b.sums)
	for _, c := range b.images {
		b.sums[c.user] += c.bytes.Load()
	}
	for _, c := range b.images {
		if most == nil || b.sums[c.user] > b.sums[most.user] ||
			c.user == most.user && c.bytes.Load() > most.bytes.Load() {
			most = c
		}
	}
	return most
}

// SetUser says whose image it is, for whom it counts in [Options.Metadata]; until then it
// is user 0's. Who is what user is up to the caller.
func (img *Image) SetUser(user uint64) {
	b := img.meta.budget
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	img.meta.user = user
}
