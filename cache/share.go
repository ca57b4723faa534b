package cache

import (
	"slices"
	"time"
)

// Shares of the budget. The blocks of a shard are in one list, in order of use, and in one for each image. When there has
// to be room,
//
//   - what nobody has used for a minute goes first, whoever's it is: so a user who is alone, or whom others leave room,
//     has all of it;
//   - else the user who keeps most gives up a block: of that user's images the one that keeps most, of it the block that
//     was used longest ago.
//
// So whoever streams through a hundred images pushes others down to as much as they keep themselves, and no further. What
// this costs on a hit is a number that is written, beside the places in the two lists.
//
// Rejected: a fixed part for each user, as nobody knows how many there will be; to evict the oldest block of all unless
// its user has less than a part, which needs the same lists, and lets who streams take what others use every few seconds.

// epoch is how long a block counts as in use after it was used, once to twice.
const epoch = 30 * time.Second

// user is who has images in a shard. It is guarded by shard.mu.
type user struct {
	id     uint64
	images []*image
	bytes  int64 // kept
}

// image is what a shard keeps of an image. It is guarded by shard.mu.
type image struct {
	user  *user
	id    uint64
	named bool // by NewImage: it is there until Forget; else, for as long as blocks of it are kept
	kept  order
	bytes int64
}

// imageLocked returns what s keeps of an image. One that nobody has named, or that is gone by the time that a block of it
// comes, belongs to user 0.
func (s *shard) imageLocked(id uint64) *image {
	i := s.images[id]
	if i == nil {
		i = &image{id: id, kept: order{by: byImage}}
		s.images[id] = i
		s.giveLocked(i, 0)
	}
	return i
}

// giveLocked makes i one of a user's.
func (s *shard) giveLocked(i *image, id uint64) {
	if i.user != nil {
		s.takeAwayLocked(i)
	}
	k := slices.IndexFunc(s.users, func(u *user) bool { return u.id == id })
	if k < 0 {
		k = len(s.users)
		s.users = append(s.users, &user{id: id})
	}
	i.user = s.users[k]
	i.user.images = append(i.user.images, i)
	i.user.bytes += i.bytes
}

// takeAwayLocked makes i nobody's.
func (s *shard) takeAwayLocked(i *image) {
	u := i.user
	i.user = nil
	u.bytes -= i.bytes
	u.images = remove(u.images, i)
	if len(u.images) == 0 {
		s.users = remove(s.users, u)
	}
}

func remove[E comparable](s []E, e E) []E {
	k := slices.Index(s, e)
	return slices.Delete(s, k, k+1)
}

// setUser is Cache.SetUser within s.
func (s *shard) setUser(id, user uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := s.imageLocked(id)
	i.named = true
	s.giveLocked(i, user)
}

// forget is Cache.Forget within s.
func (s *shard) forget(id uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := s.images[id]
	if i == nil {
		return
	}
	for b := i.kept.oldest(); b != nil; b = i.kept.oldest() {
		s.forgetLocked(b)
	}
	i.named = false
	s.dropImageLocked(i)
}

func (s *shard) keptOf(id uint64) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := s.images[id]; i != nil {
		return i.bytes
	}
	return 0
}

// dropImageLocked drops an image of which nothing is kept, and which has no name.
func (s *shard) dropImageLocked(i *image) {
	if i.named || i.bytes > 0 || i.user == nil {
		return
	}
	s.takeAwayLocked(i)
	delete(s.images, i.id)
}

// usedLocked notes that a kept block is used.
func (s *shard) usedLocked(b *Buffer) {
	b.epoch = s.epoch
	s.all.toEnd(b)
	b.image.kept.toEnd(b)
}

// keepLocked adds b to those that are kept.
func (s *shard) keepLocked(b *Buffer) {
	b.refs++
	b.epoch = s.epoch
	b.image = s.imageLocked(b.key.image)
	s.kept[b.key] = b
	s.all.add(b)
	b.image.kept.add(b)
	s.keptBytes += b.size()
	b.image.bytes += b.size()
	b.image.user.bytes += b.size()
}

// forgetLocked takes b out of those that are kept. Its buffer is free when nobody holds it.
func (s *shard) forgetLocked(b *Buffer) {
	i := b.image
	b.image = nil
	delete(s.kept, b.key)
	s.all.remove(b)
	i.kept.remove(b)
	s.keptBytes -= b.size()
	i.bytes -= b.size()
	i.user.bytes -= b.size()
	s.dropImageLocked(i)
	s.unrefLocked(b)
}

// victimLocked returns the block that is to make room for size bytes of the image called by. They count as kept already: who has as
// much as others takes from nobody but itself.
//
// REQUIRES: a block is kept.
func (s *shard) victimLocked(by uint64, size int64) *Buffer {
	if now := s.clock(); now.Sub(s.began) >= epoch {
		s.epoch, s.began = s.epoch+1, now
	}
	if b := s.all.oldest(); b.epoch+1 < s.epoch {
		return b
	}
	to := s.images[by]
	u := most(s.users, func(u *user) int64 {
		if to != nil && to.user == u && u.bytes > 0 {
			return u.bytes + size
		}
		return u.bytes
	})
	return most(u.images, func(i *image) int64 {
		if i == to && i.bytes > 0 {
			return i.bytes + size
		}
		return i.bytes
	}).kept.oldest()
}

// most returns the one that keeps most. all must not be empty.
func most[E any](all []E, bytes func(E) int64) E {
	best := all[0]
	for _, e := range all[1:] {
		if bytes(e) > bytes(best) {
			best = e
		}
	}
	return best
}

// order is a list of buffers in order of use, those of a shard or of an image: a ring with a buffer that is none.
type order struct {
	ring Buffer
	by   int // which of Buffer.places it is that the list has
}

// place is where a buffer is in a list.
type place struct{ before, after *Buffer }

// Which list.
const (
	byShard = iota
	byImage
)

// oldest returns the buffer that was used longest ago, nil if there is none.
func (o *order) oldest() *Buffer { return o.next(&o.ring) }

// next returns the buffer that was used next after b, nil if that is the last one.
func (o *order) next(b *Buffer) *Buffer {
	if after := b.places[o.by].after; after != &o.ring {
		return after
	}
	return nil
}

func (o *order) add(b *Buffer) {
	if o.ring.places[o.by].before == nil {
		o.ring.places[o.by] = place{&o.ring, &o.ring}
	}
	last := o.ring.places[o.by].before
	b.places[o.by] = place{last, &o.ring}
	last.places[o.by].after, o.ring.places[o.by].before = b, b
}

func (o *order) remove(b *Buffer) {
	p := &b.places[o.by]
	p.before.places[o.by].after, p.after.places[o.by].before = p.after, p.before
	*p = place{}
}

func (o *order) toEnd(b *Buffer) {
	if o.ring.places[o.by].before != b {
		o.remove(b)
		o.add(b)
	}
}
