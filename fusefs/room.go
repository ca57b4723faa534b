package fusefs

import (
	"slices"
	"sync"
)

// Room bounds the memory that is taken by what is under way in all images of a process: replies, blocks on their way
// into them, and goroutines with their threads, which storage that hangs may keep for long. What caches keep does not
// count.
//
// No image can take all of it: each user gets at most as much as is free for others, and each image as much as is left
// for the user's other ones. So a user whose storage hangs ends up with half of it, an image with a third. An image
// always gets room for one request. All methods may be called concurrently.
type Room struct {
	mu     sync.Mutex
	free   int64 // bytes; those who always get something may make it negative
	users  map[uint64]*lodger
	hungry []*guest // with somebody who waits
	spare  waiters
}

// lodger is a user who has images.
type lodger struct {
	used   int64
	images int
}

// defaultRoom is enough for one image to have all its workers read what they may at a time.
const defaultRoom = 384 << 20

// NewRoom returns a Room of so many bytes, with 0 of 384 MiB.
func NewRoom(bytes int64) *Room {
	if bytes <= 0 {
		bytes = defaultRoom
	}
	return &Room{free: bytes, users: make(map[uint64]*lodger)}
}

// guest is what an image has of a Room.
type guest struct {
	room *Room // nil: there is room for everything

	// All of this is guarded by room.mu.
	user     uint64
	lodger   *lodger // nil before anything was taken
	used     int64
	requests int // that have room
	waiting  line
}

// workerCost is what a goroutine costs that may wait for storage: 16 KiB for messages, as much stack, and a thread, with
// some 64 KiB of memory in the kernel and here.
const workerCost = 96 << 10

// roomForRead returns the bytes that a READ takes with a reply of the given size: beside that a block is read and
// expanded.
func (f *FS) roomForRead(reply int) int64 { return int64(reply) + 2*f.blockSize }

// fits reports whether there is room for n more bytes. g.room.mu is held.
func (g *guest) fits(n int64) bool { return g.used+n <= g.room.free-g.lodger.used }

// count counts n more bytes, or fewer if n is negative. g.room.mu is held.
func (g *guest) count(n int64) {
	g.used += n
	g.lodger.used += n
	g.room.free -= n
}

// join makes the image one of its user's. g.room.mu is held.
func (g *guest) join() {
	if g.lodger != nil {
		return
	}
	if g.lodger = g.room.users[g.user]; g.lodger == nil {
		g.lodger = new(lodger)
		g.room.users[g.user] = g.lodger
	}
	g.lodger.images++
}

// leaveLodger takes the image away from its user. g.room.mu is held.
func (g *guest) leaveLodger() {
	if g.lodger.images--; g.lodger.images == 0 && g.room.users[g.user] == g.lodger {
		delete(g.room.users, g.user)
	}
}

// setUser makes the image another user's, with what it has taken.
func (g *guest) setUser(user uint64) {
	if g.room == nil {
		return
	}
	g.room.mu.Lock()
	defer g.room.mu.Unlock()
	if g.user == user || g.lodger == nil {
		g.user = user
		return
	}
	g.lodger.used -= g.used
	g.leaveLodger()
	g.lodger, g.user = nil, user
	g.join()
	g.lodger.used += g.used
	g.room.admit()
}

// close is for an image that is served no longer. What is still under way gives back its room as usual.
func (g *guest) close() {
	if g.room == nil {
		return
	}
	g.room.mu.Lock()
	defer g.room.mu.Unlock()
	if g.lodger != nil {
		g.leaveLodger()
	}
}

// add takes n bytes, whether there is room for them or not.
func (g *guest) add(n int64) {
	if g.room == nil {
		return
	}
	g.room.mu.Lock()
	defer g.room.mu.Unlock()
	g.join()
	g.count(n)
}

// try takes n bytes if there is room for them.
func (g *guest) try(n int64) bool {
	if g.room == nil {
		return true
	}
	g.room.mu.Lock()
	defer g.room.mu.Unlock()
	g.join()
	if !g.fits(n) {
		return false
	}
	g.count(n)
	return true
}

// full reports whether there is no room for n bytes.
func (g *guest) full(n int64) bool {
	if g.room == nil {
		return false
	}
	g.room.mu.Lock()
	defer g.room.mu.Unlock()
	g.join()
	return !g.fits(n)
}

// give gives back n bytes that were taken by add or try.
func (g *guest) give(n int64) {
	if g.room == nil {
		return
	}
	g.room.mu.Lock()
	defer g.room.mu.Unlock()
	g.count(-n)
	g.room.admit()
}

// enter takes n bytes for a request, as soon as there is room; before it waits it calls waiting.
func (g *guest) enter(n int64, waiting func()) {
	if g.room == nil {
		return
	}
	w := g.line(n)
	if w == nil {
		return
	}
	waiting()
	<-w.ready
	g.room.mu.Lock()
	defer g.room.mu.Unlock()
	g.room.spare.put(w)
}

// line takes n bytes for a request, or returns w to wait for.
func (g *guest) line(n int64) (w *waiter) {
	g.room.mu.Lock()
	defer g.room.mu.Unlock()
	g.join()
	if g.waiting.first == nil && g.letIn(n) {
		return nil
	}
	w = g.room.spare.get()
	w.size = n
	if g.waiting.first == nil {
		g.room.hungry = append(g.room.hungry, g)
	}
	g.waiting.push(w)
	return w
}

// letIn takes n bytes for a request if there is room for them, or if it would be the only one. g.room.mu is held.
func (g *guest) letIn(n int64) bool {
	if g.requests > 0 && !g.fits(n) {
		return false
	}
	g.requests++
	g.count(n)
	return true
}

// leave gives back what enter took.
func (g *guest) leave(n int64) {
	if g.room == nil {
		return
	}
	g.room.mu.Lock()
	defer g.room.mu.Unlock()
	g.requests--
	g.count(-n)
	g.room.admit()
}

// admit lets in those who wait and for whom there is room now, the images in turns. r.mu is held.
func (r *Room) admit() {
	for {
		k := slices.IndexFunc(r.hungry, func(g *guest) bool { return g.letIn(g.waiting.first.size) })
		if k < 0 {
			return
		}
		g := r.hungry[k]
		r.hungry = slices.Delete(r.hungry, k, k+1)
		g.waiting.pop().ready <- 0
		if g.waiting.first != nil {
			r.hungry = append(r.hungry, g)
		}
	}
}
