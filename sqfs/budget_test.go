package sqfs

import (
	"bytes"
	"errors"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/squirefs/squire/sqfs/internal/disk"
)

// walkBig looks at every inode of the directory big.
func walkBig(t *testing.T, img *Image, names []string) {
	t.Helper()
	dir := find(t, img, "big")
	n := 0
	for e, err := range img.Dirents(&dir, 0) {
		if err != nil {
			t.Error(err)
			return
		}
		if ino, err := img.Inode(e.Ref); err != nil || ino.Number != uint32(n+1) || string(e.Name) != names[n] {
			t.Errorf("entry %d: %q, inode %d, %v", n, e.Name, ino.Number, err)
			return
		}
		n++
	}
	if n != len(names) {
		t.Errorf("%d entries, want %d", n, len(names))
	}
}

// TestBudget shares a budget that is too small among images: all of them work, none takes all, and what is kept is given
// back.
func TestBudget(t *testing.T) {
	b := built{names: seqNames(20_000, 30, false)}
	data := b.image()
	const limit = 1 << 20
	budget := NewBudget(limit)
	open := func(r io.ReaderAt) *Image {
		img, err := New(r, int64(len(data)), &Options{Metadata: budget})
		if err != nil {
			t.Fatal(err)
		}
		return img
	}
	first := open(bytes.NewReader(data))
	walkBig(t, first, b.names)
	alone := first.meta.bytes.Load()
	if alone < limit/2 || alone > limit {
		t.Errorf("one image keeps %d bytes of a budget of %d", alone, limit)
	}
	images := []*Image{first}
	for range 5 {
		images = append(images, open(bytes.NewReader(data)))
	}
	var walks sync.WaitGroup
	for _, img := range images {
		walks.Go(func() { walkBig(t, img, b.names) })
	}
	walks.Wait()
	// Who found somebody else making room left some for the next one to do.
	if used := budget.Used(); used > limit+int64(len(images))*(disk.MetadataSize+metaOverhead) {
		t.Errorf("%d bytes are kept of a budget of %d", used, limit)
	}
	var sum int64
	for k, img := range images {
		bytes := img.meta.bytes.Load()
		if sum += bytes + img.meta.fixed; bytes > limit/2 {
			t.Errorf("image %d keeps %d bytes of %d, though there are %d images", k, bytes, limit, len(images))
		}
	}
	if used := budget.Used(); used != sum {
		t.Errorf("%d bytes are counted, images keep %d", used, sum)
	}
	for _, img := range images {
		if err := img.Close(); err != nil {
			t.Error(err)
		}
	}
	if used := budget.Used(); used != 0 || len(budget.images) != 0 {
		t.Errorf("%d bytes and %d images are left in the budget", used, len(budget.images))
	}
	if _, err := New(bytes.NewReader(data[:len(data)-9000]), int64(len(data)-9000), &Options{Metadata: budget}); err == nil {
		t.Error("half an image was taken")
	}
	if used := budget.Used(); used != 0 {
		t.Errorf("an image that was refused keeps %d bytes", used)
	}
}

// TestBudgetOfUsers: one user's many images take no more from another's than half of the budget.
func TestBudgetOfUsers(t *testing.T) {
	b := built{names: seqNames(20_000, 30, false)}
	data := b.image()
	const limit = 1 << 20
	budget := NewBudget(limit)
	open := func(user uint64) *Image {
		img, err := New(bytes.NewReader(data), int64(len(data)), &Options{Metadata: budget})
		if err != nil {
			t.Fatal(err)
		}
		img.SetUser(user)
		t.Cleanup(func() { img.Close() })
		return img
	}
	first := open(1)
	walkBig(t, first, b.names)
	var many []*Image
	for range 8 {
		many = append(many, open(2))
		walkBig(t, many[len(many)-1], b.names)
	}
	if kept := first.meta.bytes.Load(); kept < limit/3 {
		t.Errorf("a user's image keeps %d bytes of %d beside 8 of another user", kept, limit)
	}
	for _, img := range many {
		img.SetUser(1) // all are one user's now
	}
	walkBig(t, open(2), b.names)
	if kept := first.meta.bytes.Load(); kept > limit/3 {
		t.Errorf("the largest image of a user with nine keeps %d bytes of %d", kept, limit)
	}
	img, err := New(bytes.NewReader(data), int64(len(data)), nil)
	if err != nil {
		t.Fatal(err)
	}
	img.SetUser(1) // without a budget it is nobody's
}

// TestBudgetOfOne: an image keeps no more than its own limit, and with no budget at all it works.
func TestBudgetOfOne(t *testing.T) {
	b := built{names: seqNames(20_000, 30, false)}
	data := b.image()
	for _, tt := range []struct{ own, budget, most int64 }{
		{64 << 10, 1 << 30, 64 << 10},
		{1 << 30, 0, 0},
		{0, 1, 0},
	} {
		budget := NewBudget(tt.budget)
		img, err := New(bytes.NewReader(data), int64(len(data)), &Options{MetadataCache: tt.own, Metadata: budget})
		if err != nil {
			t.Fatal(err)
		}
		walkBig(t, img, b.names)
		if used := budget.Used() - img.meta.fixed; used > tt.most {
			t.Errorf("own limit %d, budget %d: %d bytes are kept", tt.own, tt.budget, used)
		}
		if err = img.Close(); err != nil || budget.Used() != 0 {
			t.Errorf("%v, %d bytes are left", err, budget.Used())
		}
	}
}

// late lets reads through when it is told to.
type late struct {
	io.ReaderAt
	begun, release chan struct{}
}

func (l *late) ReadAt(p []byte, off int64) (int, error) {
	if l.release != nil {
		l.begun <- struct{}{}
		<-l.release
	}
	return l.ReaderAt.ReadAt(p, off)
}

// TestBudgetLate: reads that hung, and end after their image was closed, leave nothing in the budget.
func TestBudgetLate(t *testing.T) {
	b := built{names: seqNames(20_000, 30, false)}
	data := b.image()
	budget := NewBudget(1 << 30)
	src := &late{ReaderAt: bytes.NewReader(data)}
	img, err := New(src, int64(len(data)), &Options{Metadata: budget})
	if err != nil {
		t.Fatal(err)
	}
	dir := find(t, img, "big")
	const readers = 4
	src.begun, src.release = make(chan struct{}, readers), make(chan struct{})
	var running sync.WaitGroup
	for i := range readers {
		running.Go(func() {
			_, _ = img.Lookup(&dir, b.names[i*1000])
		})
	}
	for begin := time.Now(); len(src.begun) < readers; time.Sleep(time.Millisecond) {
		if time.Since(begin) > 20*time.Second {
			t.Fatal("lookups read nothing")
		}
	}
	if err := img.Close(); err != nil {
		t.Error(err)
	}
	go func() {
		for range src.begun { // those, and what is read after that
		}
	}()
	close(src.release)
	running.Wait()
	close(src.begun)
	if used := budget.Used(); used != 0 {
		t.Errorf("%d bytes are left in the budget", used)
	}
}

// TestBudgetFixed: an image whose indexes would take much memory as long as it is open is refused where images share.
func TestBudgetFixed(t *testing.T) {
	var c metaCache
	budget := NewBudget(64 << 20)
	c.init(1<<30, 1<<20, budget)
	if err := c.addFixed(maxFixed / 2); err != nil {
		t.Error(err)
	}
	if err := c.addFixed(maxFixed / 2); !errors.Is(err, ErrUnsupported) { // with the table
		t.Errorf("%v, want %v", err, ErrUnsupported)
	}
	if budget.Used() < maxFixed/2 {
		t.Errorf("%d bytes are counted", budget.Used())
	}
	if c.close(); budget.Used() != 0 {
		t.Errorf("%d bytes are left", budget.Used())
	}
	var alone metaCache
	alone.init(1<<30, 1<<20, nil)
	if err := alone.addFixed(1 << 40); err != nil {
		t.Error(err)
	}
}
