package fusefs

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
)

// TestRoomShares: whoever takes what they can leaves room for others.
func TestRoomShares(t *testing.T) {
	const total = 1 << 20
	r := NewRoom(total)
	fill := func(user uint64) int64 {
		g := &guest{room: r, user: user}
		var sum int64
		for ; g.try(1 << 10); sum += 1 << 10 {
		}
		if !g.full(1 << 10) {
			t.Error("an image that gets nothing is told that there is room")
		}
		return sum
	}
	if n := fill(1); n < total/3-1<<10 || n > total/3+1<<10 {
		t.Errorf("the first image got %d bytes of %d, want a third", n, total)
	}
	if n := fill(1); n < total/10 {
		t.Errorf("the user's second image got %d bytes of %d", n, total)
	}
	for range 20 {
		fill(1)
	}
	if n := r.users[1].used; n < total/3 || n > total/2 {
		t.Errorf("one user got %d bytes of %d, want no more than half", n, total)
	}
	if n := fill(2); n < total/7 {
		t.Errorf("the second user got %d bytes of %d", n, total)
	}
}

// TestRoomWaits: requests wait for room in order, but an image always gets one.
func TestRoomWaits(t *testing.T) {
	r := NewRoom(1000)
	a, b := &guest{room: r, user: 1}, &guest{room: r, user: 2}
	enter := func(g *guest, n int64) (in, waits *atomic.Bool) {
		in, waits = new(atomic.Bool), new(atomic.Bool)
		go func() {
			g.enter(n, func() { waits.Store(true) })
			in.Store(true)
		}()
		await(t, "room or to wait", func() bool { return in.Load() || waits.Load() })
		return in, waits
	}
	in := func(what string, g *guest, n int64) {
		t.Helper()
		if in, waits := enter(g, n); waits.Load() {
			t.Errorf("%s has to wait", what)
			await(t, what, in.Load)
		}
	}
	in("the first request", a, 5000) // more than there is
	second, waits := enter(a, 10)
	if !waits.Load() {
		t.Error("there was room though everything was taken")
	}
	third, _ := enter(a, 10)
	in("the first of another user", b, 10)
	if second.Load() || third.Load() {
		t.Error("a request got in without room")
	}
	a.leave(5000)
	await(t, "the second request", second.Load)
	await(t, "the third request", third.Load)
	a.leave(10)
	a.leave(10)
	b.leave(10)
	a.close()
	b.close()
	if r.free != 1000 || len(r.users) != 0 || len(r.hungry) != 0 {
		t.Errorf("%d bytes are free of 1000, %d users left, %d wait", r.free, len(r.users), len(r.hungry))
	}
}

// TestRoomAtOnce: many take and give, and in the end all is there.
func TestRoomAtOnce(t *testing.T) {
	const total = 1 << 20
	r := NewRoom(total)
	var used, most atomic.Int64
	var running sync.WaitGroup
	for user := range uint64(4) {
		for range 3 {
			g := &guest{room: r, user: user}
			var requests sync.WaitGroup
			for range 8 {
				requests.Go(func() {
					for range 500 {
						n := rand.Int64N(total / 8)
						g.enter(n, func() {})
						if now := used.Add(n); now > most.Load() {
							most.Store(now)
						}
						if g.try(100) {
							g.give(100)
						}
						if n%50 == 0 {
							g.setUser(user + uint64(n)%3)
						}
						used.Add(-n)
						g.leave(n)
					}
				})
			}
			running.Go(func() { requests.Wait(); g.close() })
		}
	}
	running.Wait()
	if r.free != total || len(r.users) != 0 || len(r.hungry) != 0 {
		t.Errorf("%d bytes are free of %d, %d users left, %d wait", r.free, total, len(r.users), len(r.hungry))
	}
	if most.Load() > total+12*total/8 { // and one for each image
		t.Errorf("%d bytes were taken of %d", most.Load(), total)
	}
	var none guest
	none.enter(1<<40, func() { t.Error("waits without a Room") })
	none.leave(1 << 40)
	none.add(1)
	if none.full(1<<40) || !none.try(1<<40) {
		t.Error("no room without a Room")
	}
	none.setUser(1)
	none.close()
}

// TestRoomOfAnother: an image that becomes another user's takes along what it has, and so makes room for the first one's.
func TestRoomOfAnother(t *testing.T) {
	const total = 900
	r := NewRoom(total)
	one, common := &guest{room: r, user: 1}, &guest{room: r, user: 1}
	for common.try(1) {
	}
	had := common.used
	one.enter(1, func() {})
	waits := one.line(total * 4 / 9)
	if waits == nil {
		t.Fatalf("room for a second image of a user of whom one has %d bytes", had)
	}
	common.setUser(9)
	if len(waits.ready) == 0 {
		t.Errorf("no room for a user whose image with %d bytes has become another's", had)
	}
	if r.users[9].used != had || r.users[1].used != one.used || r.users[1].images != 1 || r.users[9].images != 1 {
		t.Errorf("%+v, %+v, want %d and %d bytes, and an image each", r.users[9], r.users[1], had, one.used)
	}
}

func BenchmarkRoom(b *testing.B) {
	g := &guest{room: NewRoom(0), user: 1}
	b.ReportAllocs()
	for b.Loop() {
		g.enter(400<<10, func() {})
		g.leave(400 << 10)
	}
}
