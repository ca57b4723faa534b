package fusefs

import (
	"bytes"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/squirefs/squire/cache"
	"github.com/squirefs/squire/sqfs"
)

// turnGame plays with Turns in one goroutine, and a clock of its own.
type turnGame struct {
	t     *testing.T
	n     int
	turns *Turns
	now   int64
	queue []*player // those that have a turn, in the order in which it ends
}

// player is an image of a user that wants turn after turn.
type player struct {
	share
	urgency int
	length  int64 // of its turns
	turn    turn
	ends    int64
	had     int64
	turns   int
}

func newTurnGame(t *testing.T, n int) *turnGame {
	g := &turnGame{t: t, n: n, turns: NewTurns(n)}
	g.turns.clock = func() int64 { return g.now }
	return g
}

// join adds a player, who wants a turn from now on.
func (g *turnGame) join(user uint64, urgency int, length int64) *player {
	p := &player{share: share{turns: g.turns, user: user}, urgency: urgency, length: length}
	g.want(p)
	return p
}

func (g *turnGame) want(p *player) {
	if p.turn = p.take(p.urgency); p.turn.waiter == nil {
		g.begin(p)
	}
}

func (g *turnGame) begin(p *player) {
	p.ends = g.now + p.length
	g.queue = append(g.queue, p)
}

// play goes on until all players together had so many turns.
func (g *turnGame) play(players []*player, turns int) {
	g.t.Helper()
	for range turns {
		if len(g.queue) == 0 {
			g.t.Fatal("nobody has a turn")
		}
		next := 0
		for k, p := range g.queue {
			if p.ends < g.queue[next].ends {
				next = k
			}
		}
		p := g.queue[next]
		g.queue = append(g.queue[:next], g.queue[next+1:]...)
		g.now = p.ends
		p.had += p.length
		p.turns++
		p.give(p.turn.began)
		for _, q := range players {
			if q.turn.waiter != nil && len(q.turn.waiter.ready) > 0 {
				q.wait(&q.turn)
				g.begin(q)
			}
		}
		g.want(p)
		if free := g.turns.free; free+len(g.queue) != g.n {
			g.t.Fatalf("%d turns free, %d taken, of %d", free, len(g.queue), g.n)
		}
	}
}

// TestTurnsOfUsers: users get the same time, however many images they have and however long their blocks take.
func TestTurnsOfUsers(t *testing.T) {
	for _, n := range []int{1, 2, 5} {
		g := newTurnGame(t, n)
		var all []*player
		had := func(from, to int) (sum int64) {
			for _, p := range all[from:to] {
				sum += p.had
			}
			return sum
		}
		for range 50 {
			all = append(all, g.join(1, asked, 1000))
		}
		for range 10 { // a slow compressor
			all = append(all, g.join(2, asked, 30_000))
		}
		for range n { // as many as it could make use of
			all = append(all, g.join(3, asked, 1000))
		}
		g.play(all, 100_000)
		one, two, three := had(0, 50), had(50, 60), had(60, 60+n)
		mean := (one + two + three) / 3
		for user, x := range []int64{one, two, three} {
			if x < mean*95/100 || x > mean*105/100 {
				t.Errorf("%d turns: user %d had %d ns, the mean is %d", n, user+1, x, mean)
			}
		}
		least, most := all[0].had, all[0].had
		for _, p := range all[:50] {
			least, most = min(least, p.had), max(most, p.had)
		}
		if most-least > 2*1000 {
			t.Errorf("%d turns: images of one user had %d to %d ns", n, least, most)
		}
	}
}

// TestTurnsSave: who wanted nothing for a long time has no more of a claim later.
func TestTurnsSave(t *testing.T) {
	g := newTurnGame(t, 1)
	idle := g.join(1, asked, 10)
	g.now += 10
	idle.give(idle.turn.began)
	g.queue = nil
	busy := []*player{g.join(2, asked, 1000), g.join(3, asked, 1000)}
	g.play(busy, 1000)
	before := busy[0].had
	g.want(idle)
	idle.length, idle.had = 1000, 0
	g.play(append(busy, idle), 300)
	if idle.had < 90*1000 || idle.had > 110*1000 {
		t.Errorf("who was idle had %d ns of 300000, others %d", idle.had, busy[0].had-before)
	}
}

// TestTurnsAhead: what is decoded ahead waits for those whom somebody waits for, until somebody waits for it.
func TestTurnsAhead(t *testing.T) {
	g := newTurnGame(t, 1)
	var all []*player
	for range 3 {
		all = append(all, g.join(1, asked, 1000))
	}
	ahead := g.join(2, early, 1000)
	all = append(all, ahead)
	g.play(all, 100)
	if ahead.turns > 0 {
		t.Errorf("%d turns ahead of need, though others waited", ahead.turns)
	}
	ahead.hurry()
	g.play(all, 3)
	if ahead.turns != 1 { // its user had nothing so far
		t.Errorf("%d turns for a block that somebody came for, want 1", ahead.turns)
	}
	// Nobody else waits: all the turns that one image leaves.
	g = newTurnGame(t, 2)
	ahead = g.join(2, early, 1000)
	all = []*player{g.join(1, asked, 1000), ahead, g.join(3, early, 1000)}
	g.play(all, 100)
	if ahead.turns < 20 {
		t.Errorf("%d turns ahead of need of 100, though nobody waits", ahead.turns)
	}
}

// TestTurnsEnd: users are forgotten with their images, and turns under way end as usual.
func TestTurnsEnd(t *testing.T) {
	turns := NewTurns(1)
	a, b := share{turns: turns, user: 1}, share{turns: turns, user: 1}
	first := a.take(asked)
	second := b.take(asked)
	a.close()
	b.close()
	if len(turns.users) != 0 {
		t.Errorf("%d users are left", len(turns.users))
	}
	if first.waiter != nil || second.waiter == nil {
		t.Fatal("the only turn was taken twice, or not at all")
	}
	a.give(first.began)
	b.wait(&second)
	b.give(second.began)
	if turns.free != 1 || len(turns.all.hungry) != 0 {
		t.Errorf("%d turns free, %d wait", turns.free, len(turns.all.hungry))
	}
	var none share
	none.give(none.take(asked).began)
	none.hurry()
	none.setUser(1)
	none.close()
}

// TestTurnsAtOnce has many goroutines take turns, and counts them.
func TestTurnsAtOnce(t *testing.T) {
	const n = 3
	turns := NewTurns(n)
	var have, most atomic.Int32
	var running sync.WaitGroup
	for user := range uint64(4) {
		for range 4 {
			running.Go(func() {
				s := share{turns: turns, user: user}
				defer s.close()
				for i := range 500 {
					u := s.take(i % 2)
					if i%7 == 0 {
						s.hurry()
					}
					if i%50 == 0 {
						s.setUser(user + uint64(i/50)%2)
					}
					s.wait(&u)
					for now := have.Add(1); now > most.Load(); {
						most.Store(now)
					}
					have.Add(-1)
					s.give(u.began)
				}
			})
		}
	}
	running.Wait()
	if most.Load() > n || turns.free != n || len(turns.users) != 0 || len(turns.all.hungry) != 0 {
		t.Errorf("%d had a turn at once, %d are free, %d users left, %d wait", most.Load(), turns.free, len(turns.users), len(turns.all.hungry))
	}
}

// TestTurnsOfAnother: an image that becomes another user's takes along what it has and waits for.
func TestTurnsOfAnother(t *testing.T) {
	g := newTurnGame(t, 1)
	first, common, third := g.join(1, asked, 10), g.join(1, asked, 10), g.join(2, asked, 10)
	players := []*player{first, common, third}
	g.play(players, 400)
	if first.turns > 110 || common.turns > 110 || third.turns < 190 {
		t.Errorf("%d, %d and %d turns, want a quarter, a quarter and half", first.turns, common.turns, third.turns)
	}
	for _, p := range players { // one of them has a turn, the others wait
		p.had, p.turns = 0, 0
	}
	common.setUser(9)
	g.play(players, 300)
	for k, p := range players {
		if p.turns < 95 || p.turns > 105 {
			t.Errorf("image %d had %d turns of 300, want a third", k, p.turns)
		}
	}
	third.setUser(9)
	first.setUser(9)
	if n := len(g.turns.users); n != 1 || g.turns.users[9].members != 3 || g.turns.users[9].busy != 1 || g.turns.users[9].waiting[asked] != 2 {
		t.Errorf("%d users, %+v", n, g.turns.users[9])
	}
	for range 3 {
		g.play(players, 1)
	}
}

// stalling hangs on reads of data, once it is told to.
type stalling struct {
	io.ReaderAt
	from, to int64
	begun    chan struct{} // gets one for each
	release  chan struct{}
}

func (h *stalling) ReadAt(p []byte, off int64) (int, error) {
	if h.release != nil && off >= h.from && off < h.to {
		h.begun <- struct{}{}
		<-h.release
	}
	return h.ReaderAt.ReadAt(p, off)
}

// TestTurnsHang: images whose storage hangs keep no turn from others.
func TestTurnsHang(t *testing.T) {
	dir := t.TempDir()
	data := make([]byte, 4<<20)
	for i := range data {
		data[i] = "abcd"[rand.IntN(4)]
	}
	if err := os.WriteFile(filepath.Join(dir, "f"), data, 0o644); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(mksquashfs(t, dir, "-b", "128K"))
	if err != nil {
		t.Fatal(err)
	}
	turns, c := NewTurns(1), cache.New(1<<20)
	open := func(src io.ReaderAt) (*FS, uint64) {
		img, err := sqfs.New(src, int64(len(raw)), nil)
		if err != nil {
			t.Fatal(err)
		}
		f := New(img, Options{Cache: c, Turns: turns, User: 1})
		return f, uint64(lookUp(t, f, "f").Ref) + nodeBase
	}
	src := &stalling{ReaderAt: bytes.NewReader(raw), from: 96, begun: make(chan struct{}, 100)}
	slow, slowNode := open(src)
	src.to, src.release = slow.super.InodeTable, make(chan struct{})
	fast, fastNode := open(bytes.NewReader(raw))
	var reads sync.WaitGroup
	for i := range 8 {
		reads.Go(func() {
			buf := make([]byte, 128<<10)
			if _, code := slow.read(slowNode, int64(i)*128<<10, buf); !code.Ok() || !bytes.Equal(buf, data[i*128<<10:][:len(buf)]) {
				t.Errorf("what hung: %v, or other bytes", code)
			}
		})
	}
	await(t, "reads that hang", func() bool { return len(src.begun) == 8 })
	buf := make([]byte, 1<<20)
	for off := 0; off < len(data); off += len(buf) {
		if _, code := fast.read(fastNode, int64(off), buf); !code.Ok() || !bytes.Equal(buf, data[off:][:len(buf)]) {
			t.Fatalf("image beside one that hangs: %v, or other bytes", code)
		}
	}
	close(src.release)
	reads.Wait()
	if turns.free != 1 {
		t.Errorf("%d turns are free, want 1", turns.free)
	}
}

// TestTurnsWanted: somebody comes for a block that is being decoded ahead while others keep all turns busy.
func TestTurnsWanted(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f"), bytes.Repeat([]byte("abcdefgh"), 64<<10), 0o644); err != nil {
		t.Fatal(err)
	}
	image := mksquashfs(t, dir)
	t.Run("while it is read", func(t *testing.T) { testTurnsWanted(t, image, true) })
	t.Run("while it waits for its turn", func(t *testing.T) { testTurnsWanted(t, image, false) })
}

func testTurnsWanted(t *testing.T, image string, reading bool) {
	src := &stalling{begun: make(chan struct{}, 1)}
	f, ino := openFile(t, image, func(r io.ReaderAt) io.ReaderAt { src.ReaderAt = r; return src })
	turns := NewTurns(1)
	f.decoder.share = share{turns: turns, user: 1}
	other := share{turns: turns, user: 2}
	busy, next := other.take(asked), other.take(asked)
	file, err := f.img.File(&ino)
	if err != nil {
		t.Fatal(err)
	}
	e, err := file.Extent(0)
	if err != nil {
		t.Fatal(err)
	}
	src.from, src.to, src.release = 96, f.super.InodeTable, make(chan struct{})
	waiting := func(urgency, n int) func() bool {
		return func() bool {
			turns.mu.Lock()
			defer turns.mu.Unlock()
			u := turns.users[1]
			return u != nil && u.waiting[urgency] == n
		}
	}
	var running sync.WaitGroup
	running.Go(func() {
		if _, err := f.cache.Load(f.early, f.id, e.Block); err != nil {
			t.Error(err)
		}
	})
	await(t, "a read ahead", func() bool { return len(src.begun) == 1 })
	if !reading {
		close(src.release)
		await(t, "the decoder ahead", waiting(early, 1))
	}
	running.Go(func() {
		b, err := f.cache.Get(f.needed, f.id, e.Block)
		if err != nil {
			t.Error(err)
			return
		}
		b.Release()
	})
	await(t, "somebody who waits", func() bool { return f.cache.Wanted(f.id, e.Block) })
	if reading {
		close(src.release)
	}
	await(t, "the decoder to be in a hurry", waiting(asked, 1))
	other.give(busy.began)
	await(t, "its turn", waiting(asked, 0)) // user 1 had least: next has to wait
	running.Wait()
	other.wait(&next)
	other.give(next.began)
}

// TestTurnsAllocate: turns allocate nothing, with or without waiting.
func TestTurnsAllocate(t *testing.T) {
	turns := NewTurns(1)
	a, b := share{turns: turns, user: 1}, share{turns: turns, user: 2}
	if n := testing.AllocsPerRun(1000, func() {
		u := a.take(asked)
		v := b.take(early)
		b.hurry()
		a.give(u.began)
		b.wait(&v)
		b.give(v.began)
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkTurns(b *testing.B) {
	turns := NewTurns(0)
	b.Run("alone", func(b *testing.B) {
		s := share{turns: turns, user: 1}
		for b.Loop() {
			s.give(s.take(asked).began)
		}
	})
	b.Run("parallel", func(b *testing.B) {
		b.RunParallel(func(p *testing.PB) {
			s := share{turns: turns, user: rand.Uint64()}
			for p.Next() {
				u := s.take(asked)
				s.wait(&u)
				s.give(u.began)
			}
		})
	})
}
