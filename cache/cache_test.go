package cache

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/squirefs/squire/sqfs"
)

// fakeImage decodes a block into bytes that follow from its offset.
type fakeImage struct {
	loads atomic.Int64
	hook  func(b sqfs.Block) error // runs before decoding, may block
}

func (f *fakeImage) ReadBlock(dst []byte, b sqfs.Block) (int, error) {
	f.loads.Add(1)
	if f.hook != nil {
		if err := f.hook(b); err != nil {
			return 0, err
		}
	}
	n := int(b.Len)
	if b.Fragment {
		n /= 2
	}
	fill(dst[:n], b)
	return n, nil
}

func fill(p []byte, b sqfs.Block) {
	for i := range p {
		p[i] = byte(b.Off) + byte(i)
	}
}

func check(t *testing.T, got []byte, b sqfs.Block) {
	t.Helper()
	want := make([]byte, b.Len)
	fill(want, b)
	if b.Fragment {
		want = want[:b.Len/2]
	}
	if !bytes.Equal(got, want) {
		t.Errorf("block at %d: wrong bytes (%d, want %d)", b.Off, len(got), len(want))
	}
}

func block(off int64, n uint32) sqfs.Block { return sqfs.Block{Off: off, Size: n, Len: n} }

// get gets, checks and releases a block.
func get(t *testing.T, c *Cache, d Decoder, b sqfs.Block) {
	t.Helper()
	buf, err := c.Get(d, 1, b)
	if err != nil {
		t.Fatal(err)
	}
	check(t, buf.Bytes(), b)
	buf.Release()
}

func TestHitMissEvict(t *testing.T) {
	c, img := New(3*4096), &fakeImage{}
	for _, off := range []int64{1, 2, 3, 1, 4, 1, 2} { // 4 evicts 2, 2 evicts 3
		get(t, c, img, block(off, 4096))
	}
	want := Stats{Hits: 2, Misses: 5, Evictions: 2, Bytes: 3 * 4096}
	if got := c.Stats(); got != want {
		t.Errorf("stats %+v, want %+v", got, want)
	}
}

func TestFragmentIsShort(t *testing.T) {
	c, img := New(1<<20), &fakeImage{}
	b := block(7, 128<<10)
	b.Fragment = true
	get(t, c, img, b)
	get(t, c, img, b)
}

func TestImagesAreApart(t *testing.T) {
	c, img := New(1<<20), &fakeImage{}
	one, two := c.NewImage(0), c.NewImage(0)
	for _, id := range []uint64{one, two, one} {
		buf, err := c.Get(img, id, block(1, 4096))
		if err != nil {
			t.Fatal(err)
		}
		buf.Release()
	}
	if got := img.loads.Load(); got != 2 {
		t.Errorf("%d loads, want 2", got)
	}
}

func TestErrorIsSharedAndForgotten(t *testing.T) {
	const waiters = 8
	c, boom := New(1<<20), errors.New("boom")
	img := &fakeImage{}
	img.hook = func(sqfs.Block) error {
		for c.Stats().Waits < waiters {
		}
		return boom
	}
	var wg sync.WaitGroup
	for range waiters + 1 {
		wg.Go(func() {
			if _, err := c.Get(img, 1, block(1, 4096)); !errors.Is(err, boom) {
				t.Errorf("got %v, want %v", err, boom)
			}
		})
	}
	wg.Wait()
	if got := img.loads.Load(); got != 1 {
		t.Errorf("%d loads, want 1", got)
	}
	img.hook = nil
	get(t, c, img, block(1, 4096))
}

func TestPanicDoesNotStrandWaiters(t *testing.T) {
	c, img := New(1<<20), &fakeImage{}
	waited := make(chan error)
	var once sync.Once
	img.hook = func(sqfs.Block) error {
		once.Do(func() {
			go func() {
				_, err := c.Get(img, 1, block(1, 4096))
				waited <- err
			}()
		})
		for c.Stats().Waits < 1 {
		}
		panic("decoder")
	}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("panic did not go on in the loader")
			}
		}()
		c.Get(img, 1, block(1, 4096))
	}()
	if err := <-waited; !errors.Is(err, ErrPanic) {
		t.Errorf("waiter got %v, want %v", err, ErrPanic)
	}
	img.hook = nil
	get(t, c, img, block(1, 4096))
}

func TestHeldBufferIsNotRecycled(t *testing.T) {
	c, img := New(4096), &fakeImage{}
	held, err := c.Get(img, 1, block(1, 4096))
	if err != nil {
		t.Fatal(err)
	}
	for off := int64(2); off < 20; off++ {
		get(t, c, img, block(off, 4096))
	}
	check(t, held.Bytes(), block(1, 4096))
	held.Release()
	if got := c.Stats().Bytes; got > 4096 {
		t.Errorf("%d bytes kept, budget 4096", got)
	}
}

func TestDoubleReleasePanics(t *testing.T) {
	c := New(0)
	buf, err := c.Get(&fakeImage{}, 1, block(1, 4096))
	if err != nil {
		t.Fatal(err)
	}
	buf.Release()
	defer func() {
		if recover() == nil {
			t.Error("second Release did not panic")
		}
	}()
	buf.Release()
}

func TestZeroBudgetAndHugeBlock(t *testing.T) {
	c, img := New(0), &fakeImage{}
	get(t, c, img, block(1, 128<<10))
	if got := c.Stats(); got.Bytes != 0 || got.Misses != 1 {
		t.Errorf("stats %+v, want nothing kept", got)
	}
	if _, err := c.Get(img, 1, block(1, maxBlock+1)); err == nil {
		t.Error("a block longer than 1 MiB was taken")
	}
}

func TestClassOf(t *testing.T) {
	for n, want := range map[uint32]int{0: 0, 1: 0, 4096: 0, 4097: 1, 8192: 1, 131072: 5, 131073: 6, maxBlock: 8} {
		if got := classOf(n); got != want || classSize(got) < int64(n) {
			t.Errorf("classOf(%d) = %d, want %d", n, got, want)
		}
	}
}

// TestModel runs random operations beside a model: the set of blocks that must be kept is the longest run of recently
// used blocks that fits. With one shard and one caller the cache must agree exactly as long as nothing is held across
// calls; with blocks held, the budget still bounds everything that is not held.
func TestModel(t *testing.T) {
	const budget = 64 << 10
	for seed := range uint64(6) {
		rng := rand.New(rand.NewPCG(seed, 1))
		c, img := newSharded(budget, 1), &fakeImage{}
		var held []*Buffer
		var heldBlocks []sqfs.Block
		var recent []sqfs.Block // model, latest first; only followed while nothing is held
		hold := seed%2 == 1
		for range 2000 {
			b := block(rng.Int64N(40), []uint32{100, 4096, 5000, 20000}[rng.IntN(4)])
			before := img.loads.Load()
			buf, err := c.Get(img, 1, b)
			if err != nil {
				t.Fatal(err)
			}
			check(t, buf.Bytes(), b)
			if hold && rng.IntN(3) == 0 {
				held, heldBlocks = append(held, buf), append(heldBlocks, b)
			} else {
				buf.Release()
			}
			if len(held) > 10 || (len(held) > 0 && rng.IntN(5) == 0) {
				i := rng.IntN(len(held))
				check(t, held[i].Bytes(), heldBlocks[i])
				held[i].Release()
				held = append(held[:i], held[i+1:]...)
				heldBlocks = append(heldBlocks[:i], heldBlocks[i+1:]...)
			}
			if got := c.Stats().Bytes; got > budget {
				t.Fatalf("seed %d: %d bytes, budget %d", seed, got, budget)
			}
			checkShard(t, &c.shards[0])
			if !hold {
				hit := img.loads.Load() == before
				recent = modelStep(t, recent, b, hit, budget)
			}
		}
		for _, b := range held {
			b.Release()
		}
	}
}

// modelStep checks hit against the model and returns the model after the use of b. A buffer that waits for its next
// use may take the place of one kept block, so the model's oldest block may be gone.
func modelStep(t *testing.T, recent []sqfs.Block, b sqfs.Block, hit bool, budget int64) []sqfs.Block {
	t.Helper()
	next := []sqfs.Block{b}
	bytes, found := classSize(classOf(b.Len)), false
	var room int64 = 32 << 10 // largest class in use
	for _, r := range recent {
		if r == b {
			found = bytes+room <= budget
			continue
		}
		bytes += classSize(classOf(r.Len))
		if bytes <= budget {
			next = append(next, r)
		}
	}
	inModel := false
	for _, r := range recent {
		inModel = inModel || r == b
	}
	if found && !hit {
		t.Errorf("block %+v was used recently and is gone", b)
	}
	if hit && !inModel {
		t.Errorf("block %+v should have been evicted", b)
	}
	return next
}

// checkShard recounts what the counters say.
func checkShard(t *testing.T, s *shard) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	var kept, free int64
	inLists := 0
	for _, u := range s.users {
		var ofUser int64
		for _, i := range u.images {
			var ofImage int64
			for b := i.kept.oldest(); b != nil && inLists <= len(s.kept); b = i.kept.next(b) {
				inLists++
				ofImage += b.size()
				if b.refs < 1 || s.kept[b.key] != b || b.image != i {
					t.Fatal("a kept block has no reference, is not found, or in the list of another image")
				}
			}
			if ofImage != i.bytes || i.user != u || s.images[i.id] != i {
				t.Fatalf("image %d keeps %d bytes, its counter says %d", i.id, ofImage, i.bytes)
			}
			ofUser += ofImage
		}
		if ofUser != u.bytes || len(u.images) == 0 {
			t.Fatalf("%d images of user %d keep %d bytes, the counter says %d", len(u.images), u.id, ofUser, u.bytes)
		}
		kept += ofUser
	}
	inOrder := 0
	for b := s.all.oldest(); b != nil && inOrder <= len(s.kept); b = s.all.next(b) {
		inOrder++
	}
	if inLists != len(s.kept) || inOrder != len(s.kept) {
		t.Fatalf("%d blocks are kept, %d in the lists of images, %d in that of all", len(s.kept), inLists, inOrder)
	}
	for class, list := range s.free {
		for _, b := range list {
			free += b.size()
			if b.refs != 0 || b.class != class {
				t.Fatalf("free buffer has %d references, class %d in list %d", b.refs, b.class, class)
			}
		}
	}
	if kept != s.keptBytes || free != s.freeBytes {
		t.Fatalf("counted %d kept and %d free bytes, counters say %d and %d", kept, free, s.keptBytes, s.freeBytes)
	}
	if kept+free > s.budget {
		t.Fatalf("%d bytes over the budget of %d", kept+free, s.budget)
	}
}

func TestConcurrent(t *testing.T) {
	for _, shards := range []int{1, 4} {
		t.Run(fmt.Sprint(shards), func(t *testing.T) {
			c, img := newSharded(1<<20, shards), &fakeImage{}
			bad := errors.New("bad block")
			img.hook = func(b sqfs.Block) error {
				if b.Off%10 == 9 {
					return bad
				}
				return nil
			}
			var wg sync.WaitGroup
			for g := range uint64(8) {
				wg.Go(func() { hammer(t, c, img, g, bad) })
			}
			wg.Wait()
			for i := range c.shards {
				checkShard(t, &c.shards[i])
			}
		})
	}
}

func hammer(t *testing.T, c *Cache, img *fakeImage, seed uint64, bad error) {
	rng := rand.New(rand.NewPCG(seed, 2))
	for range 500 {
		b := block(rng.Int64N(100), 20000)
		buf, err := c.Get(img, 1, b)
		switch {
		case b.Off%10 == 9:
			if !errors.Is(err, bad) {
				t.Errorf("got error %v, want %v", err, bad)
			}
			continue
		case err != nil:
			t.Error(err)
			return
		}
		check(t, buf.Bytes()[:20000], b)
		buf.Release()
	}
}

func TestHitDoesNotAllocate(t *testing.T) {
	c, img := New(1<<20), &fakeImage{}
	b := block(1, 128<<10)
	get(t, c, img, b)
	var d Decoder = img
	if n := testing.AllocsPerRun(1000, func() {
		buf, err := c.Get(d, 1, b)
		if err != nil {
			t.Fatal(err)
		}
		buf.Release()
	}); n != 0 {
		t.Errorf("%v allocations per hit, want 0", n)
	}
}

// TestMissRecycles holds the promise of the package comment: a miss allocates nothing, as the block comes to be in the
// place of another.
func TestMissRecycles(t *testing.T) {
	c, img := New(1<<20), &nullImage{}
	off := int64(0)
	next := func() {
		off++
		buf, err := c.Get(img, 1, block(off, 128<<10))
		if err != nil {
			t.Fatal(err)
		}
		buf.Release()
	}
	for range 100 {
		next()
	}
	if n := testing.AllocsPerRun(1000, next); n > 0 {
		t.Errorf("%v allocations per miss, want none", n)
	}
	r := testing.Benchmark(func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			next()
		}
	})
	if n := r.AllocedBytesPerOp(); n > 512 {
		t.Errorf("%d bytes allocated per miss, want at most 512", n)
	}
}

type nullImage struct{}

func (*nullImage) ReadBlock(dst []byte, b sqfs.Block) (int, error) { return int(b.Len), nil }

func BenchmarkHit(b *testing.B) { benchmarkHit(b, New(1<<30)) }

func benchmarkHit(b *testing.B, c *Cache) {
	img := &nullImage{}
	b.ReportAllocs()
	for b.Loop() {
		buf, _ := c.Get(img, 1, block(1, 128<<10))
		buf.Release()
	}
}

func BenchmarkHitParallel(b *testing.B) {
	for _, shards := range []int{1, 8} {
		b.Run(fmt.Sprintf("shards=%d", shards), func(b *testing.B) {
			c, img := newSharded(1<<30, shards), &nullImage{}
			var seed atomic.Uint64
			b.RunParallel(func(pb *testing.PB) {
				rng := rand.New(rand.NewPCG(seed.Add(1), 3))
				for pb.Next() {
					buf, _ := c.Get(img, 1, block(rng.Int64N(1000)<<17, 128<<10))
					buf.Release()
				}
			})
		})
	}
}

func BenchmarkMiss(b *testing.B) {
	c, img := New(4<<20), &nullImage{}
	b.ReportAllocs()
	off := int64(0)
	for b.Loop() {
		off++
		buf, _ := c.Get(img, 1, block(off, 128<<10))
		buf.Release()
	}
}

// waits counts how often somebody waits.
type waits struct{ n atomic.Int32 }

func (w *waits) Waiting() { w.n.Add(1) }

func TestFind(t *testing.T) {
	c, img := New(1<<20), &fakeImage{}
	b := block(5, 8192)
	if c.Find(1, b, new(waits)) != nil || c.Has(1, b) {
		t.Error("found a block that nobody loaded")
	}
	get(t, c, img, b)
	if !c.Has(1, b) {
		t.Error("does not have a block that is kept")
	}
	buf := c.Find(1, b, nil)
	if buf == nil {
		t.Fatal("did not find a block that is kept")
	}
	check(t, buf.Bytes(), b)
	buf.Release()
	if c.Find(2, b, nil) != nil {
		t.Error("found a block of another image")
	}
}

// TestDrop: a dropped block is decoded anew, but not taken from those who hold it.
func TestDrop(t *testing.T) {
	c, img := newSharded(1<<20, 1), &fakeImage{}
	b := block(5, 8192)
	get(t, c, img, b)
	first, second := c.Find(1, b, nil), c.Find(1, b, nil)
	first.Drop()
	check(t, second.Bytes(), b)
	if c.Find(1, b, nil) != nil {
		t.Error("a dropped block is still kept")
	}
	get(t, c, img, b)
	second.Drop() // the block that is kept now is another one
	if got := c.Find(1, b, nil); got == nil {
		t.Error("dropping an old block took the new one away")
	} else {
		got.Release()
	}
	checkShard(t, &c.shards[0])
	if n := img.loads.Load(); n != 2 {
		t.Errorf("decoded %d times, want 2", n)
	}
}

// TestLoadAhead: who asks while a block is loaded ahead waits for it, and nobody decodes it again.
func TestLoadAhead(t *testing.T) {
	started, proceed := make(chan struct{}), make(chan struct{})
	img := &fakeImage{hook: func(sqfs.Block) error {
		close(started)
		<-proceed
		return nil
	}}
	c, b := New(1<<20), block(5, 8192)
	loaded := make(chan bool)
	go func() {
		did, err := c.Load(img, 1, b)
		loaded <- did && err == nil
	}()
	<-started
	if c.Find(1, b, nil) != nil || !c.Has(1, b) {
		t.Error("found a block before it was decoded, or does not know that it will be there")
	}
	found := make(chan *Buffer)
	var waiting waits
	go func() { found <- c.Find(1, b, &waiting) }()
	if did, err := c.Load(img, 1, b); did || err != nil {
		t.Errorf("a second Load: %v, %v, want that it leaves the first alone", did, err)
	}
	close(proceed)
	if !<-loaded {
		t.Error("Load did not decode")
	}
	buf := <-found
	if buf == nil {
		t.Fatal("who waited got nothing")
	}
	if c.Stats().Waits != uint64(waiting.n.Load()) {
		t.Errorf("waited %d times, said so %d times", c.Stats().Waits, waiting.n.Load())
	}
	check(t, buf.Bytes(), b)
	buf.Release()
	if s := c.Stats(); img.loads.Load() != 1 || s.Ahead != 1 || s.Misses != 0 {
		t.Errorf("%d loads, %+v", img.loads.Load(), s)
	}
}

func TestLoadAheadFails(t *testing.T) {
	bad := errors.New("bad block")
	img := &fakeImage{hook: func(sqfs.Block) error { return bad }}
	c := newSharded(1<<20, 1)
	if did, err := c.Load(img, 1, block(5, 8192)); !did || !errors.Is(err, bad) {
		t.Errorf("got %v, %v, want the decoder's error", did, err)
	}
	if c.Find(1, block(5, 8192), new(waits)) != nil {
		t.Error("a block that failed is kept")
	}
	checkShard(t, &c.shards[0])
	if _, err := c.Load(img, 1, sqfs.Block{Len: maxBlock + 1}); err == nil {
		t.Error("a block over the largest size was loaded")
	}
}
