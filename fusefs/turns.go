package fusefs

import (
	"slices"
	"sync"
	"time"
)

// Turns shares the processors of a process among the images that it serves: no more blocks are expanded at a time than
// it has turns. Those who have to wait are served in fair order: first those whom somebody waits for, then what is
// decoded ahead of need; among these the user who had least, and of that user's images the one that had least. What
// counts is the time that turns took, so that large blocks of a slow compressor cost as much as they are.
//
// A turn is taken when a block has been read, for as long as it takes to expand it. So storage that is slow or hangs
// keeps none from others.
//
// Turns may be used concurrently. While nobody waits, a turn costs two short locks and two looks at the clock, where to
// expand a block takes 50 to 1000 µs. It allocates nothing.
type Turns struct {
	clock func() int64 // the time in ns

	mu    sync.Mutex
	free  int // turns that nobody has; 0 while somebody waits
	all   party
	users map[uint64]*party
	spare waiters
}

// NewTurns returns Turns of n turns. With n <= 0 it is as many as decoders can run at once: half of GOMAXPROCS, see
// FS.Serve.
func NewTurns(n int) *Turns {
	if n <= 0 {
		n = processors()
	}
	begin := time.Now()
	clock := func() int64 { return int64(time.Since(begin)) }
	return &Turns{clock: clock, free: n, users: make(map[uint64]*party)}
}

// party is an image, a user with images, or all users. It is guarded by Turns.mu.
type party struct {
	of      *party // nil: these are all
	members int    // of a user: images

	used  int64 // ns of turns that have ended
	busy  int64 // turns that are taken
	begun int64 // sum of the times when these were taken; it may overflow, the difference in had does not
	level int64 // what the member that was served last had had then

	waiting [2]int   // how many wait for a turn, by urgency
	hungry  []*party // members with somebody who waits
	lines   [2]line  // of an image: who waits
}

// How urgent a turn is.
const (
	asked = iota // somebody waits for the block
	early        // nobody does yet
)

// had returns the ns that p has had at the given time.
func (p *party) had(at int64) int64 { return p.used + p.busy*at - p.begun }

// before reports whether p is to be served rather than q.
func (p *party) before(q *party, at int64) bool {
	if x, y := p.had(at), q.had(at); x != y {
		return x < y
	}
	return p.busy < q.busy
}

// catchUp is for an image that comes for a turn. Who had and wanted none for a while is taken to have had as much as
// others: nobody saves up for later.
func (p *party) catchUp() {
	for ; p.of != nil; p = p.of {
		if p.busy == 0 && p.waiting == [2]int{} {
			p.used = max(p.used, p.of.level)
		}
	}
}

// begin notes that an image has got a turn.
func (p *party) begin(at int64) {
	for ; p.of != nil; p = p.of {
		p.of.level = max(p.of.level, p.had(at))
		p.busy++
		p.begun += at
	}
}

// end notes that a turn of an image is over.
func (p *party) end(began, at int64) {
	for ; p.of != nil; p = p.of {
		p.busy--
		p.begun -= began
		p.used += at - began
	}
}

// enter has w wait for a turn of an image.
func (p *party) enter(w *waiter, urgency int) {
	p.lines[urgency].push(w)
	for ; p.of != nil; p = p.of {
		if p.waiting == [2]int{} {
			p.of.hungry = append(p.of.hungry, p)
		}
		p.waiting[urgency]++
	}
}

// leave takes who waits longest for a turn of an image out of its line.
func (p *party) leave(urgency int) *waiter {
	w := p.lines[urgency].pop()
	for ; p.of != nil; p = p.of {
		if p.waiting[urgency]--; p.waiting == [2]int{} {
			p.of.hungry = remove(p.of.hungry, p)
		}
	}
	return w
}

// next returns the image that is to be served next among those of p, nil if none waits with that urgency.
func (p *party) next(urgency int, at int64) *party {
	for len(p.hungry) > 0 {
		var best *party
		for _, m := range p.hungry {
			if m.waiting[urgency] > 0 && (best == nil || m.before(best, at)) {
				best = m
			}
		}
		if best == nil {
			return nil
		}
		p = best
	}
	if p.of == nil {
		return nil
	}
	return p
}

// share is what an image has of Turns.
type share struct {
	turns *Turns // nil: no need to take turns
	user  uint64 // guarded by turns.mu, as is
	party *party // nil before the first turn
}

// A turn is one that somebody has, or waits for.
type turn struct {
	began  int64
	waiter *waiter // nil: it has begun
}

// take takes a turn, or gets in line for one. Call wait before and give after making use of it.
func (s *share) take(urgency int) turn {
	t := s.turns
	if t == nil {
		return turn{}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.party == nil {
		s.join()
	}
	s.party.catchUp()
	if t.free > 0 {
		t.free--
		at := t.clock()
		s.party.begin(at)
		return turn{began: at}
	}
	w := t.spare.get()
	s.party.enter(w, urgency)
	return turn{waiter: w}
}

// wait waits for a turn to begin.
func (s *share) wait(u *turn) {
	w := u.waiter
	if w == nil {
		return
	}
	*u = turn{began: <-w.ready}
	t := s.turns
	t.mu.Lock()
	defer t.mu.Unlock()
	t.spare.put(w)
}

// give gives back a turn that has begun. It goes to who is next.
func (s *share) give(began int64) {
	t := s.turns
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	at := t.clock()
	s.party.end(began, at)
	for urgency := range s.party.lines {
		if next := t.all.next(urgency, at); next != nil {
			next.begin(at)
			next.leave(urgency).ready <- at
			return
		}
	}
	t.free++
}

// hurry makes turns urgent that are waited for early: somebody came who waits for a block of the image.
func (s *share) hurry() {
	t := s.turns
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.party == nil || s.party.waiting[early] == 0 {
		return
	}
	n := s.party.waiting[early]
	s.party.lines[asked].append(&s.party.lines[early])
	for p := s.party; p.of != nil; p = p.of {
		p.waiting[early] -= n
		p.waiting[asked] += n
	}
}

// join makes the image one of its user's. t.mu is held.
func (s *share) join() { s.party = &party{of: s.turns.user(s.user)} }

// user returns a user, who has one more image. t.mu is held.
func (t *Turns) user(id uint64) *party {
	u := t.users[id]
	if u == nil {
		u = &party{of: &t.all}
		t.users[id] = u
	}
	u.members++
	return u
}

// setUser makes the image another user's, with the turns that are under way or waited for.
func (s *share) setUser(user uint64) {
	t := s.turns
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.user == user || s.party == nil {
		s.user = user
		return
	}
	p, from, to := s.party, s.party.of, t.user(user)
	t.leave(s)
	s.user = user
	from.add(p, -1)
	to.catchUp()
	to.add(p, 1)
	p.of, p.used = to, to.level // nobody has more or less of the new user's turns for what was before
	if p.waiting != [2]int{} {
		from.hungry = remove(from.hungry, p)
		to.hungry = append(to.hungry, p)
	}
	for _, u := range []*party{from, to} {
		switch k := slices.Index(t.all.hungry, u); {
		case k < 0 && u.waiting != [2]int{}:
			t.all.hungry = append(t.all.hungry, u)
		case k >= 0 && u.waiting == [2]int{}:
			t.all.hungry = slices.Delete(t.all.hungry, k, k+1)
		}
	}
}

// add counts the turns that a member has, or waits for, once more, or with -1 no more.
func (p *party) add(m *party, sign int) {
	p.busy += int64(sign) * m.busy
	p.begun += int64(sign) * m.begun
	for urgency := range p.waiting {
		p.waiting[urgency] += sign * m.waiting[urgency]
	}
}

func remove(list []*party, p *party) []*party {
	k := slices.Index(list, p)
	return slices.Delete(list, k, k+1)
}

// close is for an image that is served no longer. Turns that are under way end as usual.
func (s *share) close() {
	t := s.turns
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.party != nil {
		t.leave(s)
	}
}

// leave takes the image away from its user. t.mu is held.
func (t *Turns) leave(s *share) {
	u := s.party.of
	if u.members--; u.members == 0 && t.users[s.user] == u {
		delete(t.users, s.user)
	}
}
