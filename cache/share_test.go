package cache

import (
	"math/rand/v2"
	"testing"
	"time"
)

// shared is a cache of one shard, with a clock that the test sets.
type shared struct {
	*Cache
	t   *testing.T
	img *fakeImage
	now time.Time
}

func newShared(t *testing.T, blocks int64) *shared {
	s := &shared{Cache: newSharded(blocks<<12, 1), t: t, img: &fakeImage{}, now: time.Unix(1, 0)}
	s.shards[0].clock, s.shards[0].began = func() time.Time { return s.now }, s.now
	return s
}

// read reads blocks from one to another of an image.
func (s *shared) read(image uint64, from, to int64) {
	s.t.Helper()
	for off := from; off < to; off++ {
		b, err := s.Get(s.img, image, block(off, 4096))
		if err != nil {
			s.t.Fatal(err)
		}
		b.Release()
	}
	checkShard(s.t, &s.shards[0])
}

// keeps returns how many of the first blocks of an image are kept.
func (s *shared) keeps(image uint64) (n int) {
	for off := range int64(1000) {
		if s.Has(image, block(off, 4096)) {
			n++
		}
	}
	return n
}

func (s *shared) want(image uint64, n int) {
	s.t.Helper()
	if got, bytes := s.keeps(image), s.Kept(image); got != n || bytes != int64(n)<<12 {
		s.t.Errorf("%d blocks and %d bytes of image %d are kept, want %d blocks", got, bytes, image, n)
	}
}

// TestUsersShare: who streams through many images takes from another user what is over an equal part, and no more,
// while who is alone has everything.
func TestUsersShare(t *testing.T) {
	s := newShared(t, 100)
	victim := s.NewImage(1)
	s.read(victim, 0, 80)
	s.want(victim, 80)
	for range 100 {
		stream := s.NewImage(2)
		s.read(stream, 0, 50)
	}
	s.want(victim, 50)
	s.read(victim, 30, 80) // those that were used last
	if misses := s.Stats().Misses; misses != 80+100*50 {
		t.Errorf("%d misses: blocks of the first user are gone that should not be", misses)
	}
	third := s.NewImage(3)
	s.read(third, 0, 1000)
	s.want(third, 34)
	s.want(victim, 33)
}

// TestImagesOfUserShare: of a user's own images those that keep much make room for others.
func TestImagesOfUserShare(t *testing.T) {
	s := newShared(t, 90)
	large, small := s.NewImage(1), s.NewImage(1)
	s.read(small, 0, 10)
	s.read(large, 0, 1000)
	s.want(small, 10)
	s.want(large, 80)
}

// TestUnusedIsBorrowed: what its user does not use any more is for others, but only after a while.
func TestUnusedIsBorrowed(t *testing.T) {
	s := newShared(t, 100)
	idle, busy := s.NewImage(1), s.NewImage(2)
	s.read(idle, 0, 100)
	s.read(busy, 0, 1000)
	s.want(idle, 50)
	s.now = s.now.Add(epoch)
	s.read(busy, 0, 1000)
	s.want(idle, 50) // not long enough
	for range 3 {
		s.now = s.now.Add(epoch)
		s.read(idle, 990, 1000) // of which 10 are in use
		s.read(busy, 0, 1000)
	}
	if n := s.keeps(idle); n != 10 {
		t.Errorf("%d blocks of an image are kept of which 10 are in use", n)
	}
	s.read(idle, 900, 1000)
	s.want(idle, 50) // it is there again, and gets its part
}

// TestLongPause: the time between two evictions says nothing about what is in use.
func TestLongPause(t *testing.T) {
	s := newShared(t, 100)
	one, two := s.NewImage(1), s.NewImage(2)
	s.read(one, 0, 50)
	s.read(two, 0, 50)
	s.now = s.now.Add(time.Hour)
	s.read(one, 0, 50) // hits
	s.read(two, 50, 1000)
	s.want(one, 50)
}

// TestSetUser: an image that more users have is no longer the first one's.
func TestSetUser(t *testing.T) {
	s := newShared(t, 100)
	common := s.NewImage(1)
	s.read(common, 0, 60)
	s.SetUser(common, 7)
	s.read(s.NewImage(1), 0, 1000)
	s.read(s.NewImage(1), 0, 1000)
	s.want(common, 50)
	if n := len(s.shards[0].users); n != 2 {
		t.Errorf("%d users, want 2", n)
	}
}

func TestForget(t *testing.T) {
	s := newShared(t, 100)
	one, two := s.NewImage(1), s.NewImage(2)
	s.read(one, 0, 30)
	s.read(two, 0, 30)
	held := s.Find(one, block(5, 4096), nil)
	s.Forget(one)
	s.Forget(one)
	s.want(one, 0)
	s.want(two, 30)
	check(t, held.Bytes(), block(5, 4096))
	held.Release()
	s.read(one, 0, 3) // which came late
	checkShard(t, &s.shards[0])
	s.Forget(one)
	s.Forget(two)
	s.Forget(99)
	sh := &s.shards[0]
	if len(sh.users)+len(sh.images)+len(sh.kept) != 0 || sh.keptBytes != 0 || sh.all.oldest() != nil {
		t.Errorf("%d users, %d images, %d blocks, %d bytes are left", len(sh.users), len(sh.images), len(sh.kept), sh.keptBytes)
	}
}

// TestSharesAtRandom: whatever happens, the lists and counters agree, and no user is left with less than an equal part who
// wanted that much.
func TestSharesAtRandom(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 4))
		s := newShared(t, 64)
		images := make([]uint64, 12)
		for k := range images {
			images[k] = s.NewImage(uint64(k) % 4)
		}
		for range 300 {
			k := rng.IntN(len(images))
			switch rng.IntN(12) {
			case 0:
				s.Forget(images[k])
				images[k] = s.NewImage(uint64(k) % 4)
			case 1:
				s.SetUser(images[k], uint64(rng.IntN(5)))
			case 2:
				s.now = s.now.Add(time.Duration(rng.IntN(40)) * time.Second)
			case 3:
				if b := s.Find(images[k], block(rng.Int64N(20), 4096), nil); b != nil {
					b.Drop()
				}
			default:
				from := rng.Int64N(40)
				s.read(images[k], from, from+rng.Int64N(30))
			}
		}
		checkShard(t, &s.shards[0])
	}
}

// BenchmarkMissManyUsers: who has to make room is looked for among all users.
func BenchmarkMissManyUsers(b *testing.B) {
	c, img := newSharded(64<<20, 1), &nullImage{}
	var images []uint64
	for user := range uint64(256) {
		images = append(images, c.NewImage(user))
	}
	b.ReportAllocs()
	off := int64(0)
	for b.Loop() {
		off++
		buf, _ := c.Get(img, images[off%256], block(off, 128<<10))
		buf.Release()
	}
}
