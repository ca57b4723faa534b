package sqfs

import (
	"bytes"
	"errors"
	"runtime"
	"strings"
	"testing"

	"github.com/squirefs/squire/sqfs/internal/disk"
)

// TestMetadataMemory walks an image with more metadata than may be kept.
func TestMetadataMemory(t *testing.T) {
	b := built{names: seqNames(60_000, 30, false)}
	data := b.image()
	for _, limit := range []int64{1, 64 << 10, 1 << 20} {
		before := heap()
		img, err := New(bytes.NewReader(data), int64(len(data)), &Options{MetadataCache: limit})
		if err != nil {
			t.Fatal(err)
		}
		dir := find(t, img, "big")
		n := 0
		for e, err := range img.Dirents(&dir, 0) {
			if err != nil {
				t.Fatal(err)
			}
			if ino, err := img.Inode(e.Ref); err != nil || ino.Number != uint32(n+1) || string(e.Name) != b.names[n] {
				t.Fatalf("entry %d: %q, inode %d, %v", n, e.Name, ino.Number, err)
			}
			// A block that alone is more than the limit is kept until the next one.
			if used := img.meta.bytes.Load(); used > max(limit, disk.MetadataSize+metaOverhead) {
				t.Fatalf("limit %d: %d bytes are kept", limit, used)
			}
			n++
		}
		if n != len(b.names) {
			t.Errorf("limit %d: %d entries, want %d", limit, n, len(b.names))
		}
		// Pools, and the samples of the directory, are not metadata.
		if used := heap() - before; used > limit+1<<20 {
			t.Errorf("limit %d: %d bytes are in use after the walk", limit, used)
		}
		runtime.KeepAlive(img)
	}
}

// heap returns the bytes of memory in use.
func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // what pools hold survives the first
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestMetaLists fills one bucket of the table, as an image of tiny metadata blocks can.
func TestMetaLists(t *testing.T) {
	var c metaCache
	c.init(1<<30, 64<<20, nil)
	first := c.bucket(0)
	for pos, n := int64(0), 0; n < 1000; pos++ {
		if c.bucket(pos) != first {
			continue
		}
		n++
		c.insert(&metaBlock{pos: pos, data: make([]byte, 1)})
		if c.find(pos) == nil {
			t.Fatalf("block at %d is not there", pos)
		}
		long := 0
		for b := first.Load(); b != nil; b = b.link {
			long++
		}
		if long > maxLinks+1 {
			t.Fatalf("%d blocks in one list", long)
		}
		if got, want := c.bytes.Load(), first.Load().total(); got != want {
			t.Fatalf("%d bytes accounted, %d there", got, want)
		}
	}
}

// TestCounts checks numbers that must agree with others.
func TestCounts(t *testing.T) {
	good := built{names: []string{"a", "b"}}.image()
	for want, patch := range map[string]func(p *patcher){
		"":                           func(*patcher) {},
		"5 fragments":                func(p *patcher) { p.u32(16, 5) },
		"9 ids":                      func(p *patcher) { p.u16(26, 9) },
		"number 4 of 3":              func(p *patcher) { p.u32(4, 3) },
		"expands to 4 bytes, want 8": func(p *patcher) { p.u16(26, 2) },
	} {
		p := &patcher{t: t, b: bytes.Clone(good)}
		patch(p)
		_, err := New(bytes.NewReader(p.b), int64(len(p.b)), nil)
		if (err == nil) != (want == "") || err != nil && (!errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), want)) {
			t.Errorf("%v, want an error that says %q", err, want)
		}
	}
}
