package sqfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/squirefs/squire/sqfs/internal/disk"
)

var longDirs = map[string]built{
	"no index":        {names: seqNames(2500, 20, false), gzip: true},
	"mksquashfs":      {names: seqNames(2500, 20, false), gzip: true, index: sparseIndex},
	"tools-ng":        {names: seqNames(2500, 20, true), gzip: true, index: everyRun},
	"short runs":      {names: seqNames(2500, 20, true), run: 3, index: everyRun},
	"runs of one":     {names: seqNames(2500, 15, true), run: 1},
	"long names":      {names: seqNames(1000, 250, true), index: sparseIndex},
	"size without 3":  {names: seqNames(2000, 30, false), noPlus: true},
	"first run only":  {names: seqNames(2000, 20, false), index: func(r []builtRun) []builtRun { return r[:1] }},
	"index not there": {names: seqNames(2000, 20, false), index: badIndex(func(_ int, r builtRun) builtRun { r.block = 1 << 30; return r })},
	"index shifted":   {names: seqNames(2000, 20, false), index: badIndex(func(_ int, r builtRun) builtRun { r.pos++; return r })},
	"index early":     {names: seqNames(2000, 20, false), index: badIndex(func(_ int, r builtRun) builtRun { r.name = "a" + r.name; return r })},
	"index late":      {names: seqNames(2000, 20, false), index: badIndex(func(_ int, r builtRun) builtRun { r.name = "z" + r.name; return r })},
	"index backwards": {names: seqNames(2000, 20, false), index: func(r []builtRun) []builtRun { r = sparseIndex(r); slices.Reverse(r); return r }},
	"index of others": {names: seqNames(2000, 20, false), index: func(r []builtRun) []builtRun {
		for i, x := range r { // the place of each run with the name of the next
			r[i] = builtRun{x.pos, x.block, r[min(i+1, len(r)-1)].name}
		}
		return r
	}},
}

// TestLongDirs compares lookups and positions in long directories with their names.
func TestLongDirs(t *testing.T) {
	for name, b := range longDirs {
		t.Run(name, func(t *testing.T) {
			img, dir := b.open(t, nil)
			var want []string
			for _, s := range b.names {
				if len(s) < disk.MaxName {
					want = append(want, s)
				}
			}
			lookupAll(t, img, &dir, want) // before anything else made an index
			all := list(t, img, &dir, 0)
			if got := names(all); !slices.Equal(got, want) {
				t.Fatalf("%d names, want %d", len(got), len(want))
			}
			lookupAll(t, img, &dir, want)
			img, dir = b.open(t, nil)
			checkPositions(t, img, &dir, all)
		})
	}
}

func names(all []Dirent) (s []string) {
	for _, e := range all {
		s = append(s, string(e.Name))
	}
	return s
}

// lookupAll looks up all names in a random order, and others that are not there.
func lookupAll(t *testing.T, img *Image, dir *Inode, names []string) {
	t.Helper()
	rnd := rand.New(rand.NewPCG(uint64(len(names)), 1))
	for _, i := range rnd.Perm(len(names)) {
		e, err := img.Lookup(dir, names[i])
		if err != nil || string(e.Name) != names[i] {
			t.Fatalf("lookup %q: %q, %v", names[i], e.Name, err)
		}
		if ino, err := img.Inode(e.Ref); err != nil || ino.Number != e.Number {
			t.Fatalf("lookup %q: inode %d, want %d, %v", names[i], ino.Number, e.Number, err)
		}
		for _, absent := range []string{names[i] + "\x01", names[i][:len(names[i])-1] + "\x02\x03", fmt.Sprintf("%-256s", names[i])} {
			if _, err := img.Lookup(dir, absent); !errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("lookup %q: %v, want %v", absent, err, fs.ErrNotExist)
			}
		}
	}
	for _, absent := range []string{"", "a", "zz", "\xff", strings.Repeat("z", 300)} {
		if _, err := img.Lookup(dir, absent); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("lookup %q: %v, want %v", absent, err, fs.ErrNotExist)
		}
	}
}

// checkPositions goes on at each position of a directory, whose entries are all, and
// at positions it does not have.
func checkPositions(t *testing.T, img *Image, dir *Inode, all []Dirent) {
	t.Helper()
	rnd := rand.New(rand.NewPCG(uint64(len(all)), 2))
	after := make(map[DirPos]int) // how many entries come before
	for i, e := range all {
		after[e.Pos] = i + 1
	}
	for _, i := range rnd.Perm(len(all)) {
		for e, err := range img.Dirents(dir, all[i].Pos) {
			if err != nil || !sameEntry(e, all[i+1]) {
				t.Fatalf("behind %q: %+v, %v, want %+v", all[i].Name, e, err, all[i+1])
			}
			break
		}
	}
	for range 20 {
		i := rnd.IntN(len(all))
		if rest := list(t, img, dir, all[i].Pos); !sameEntries(rest, all[i+1:]) {
			t.Fatalf("behind %q: %d entries, want %d", all[i].Name, len(rest), len(all)-i-1)
		}
	}
	wrong := func(pos DirPos) {
		if _, ok := after[pos]; ok || pos == 0 {
			return
		}
		for e, err := range img.Dirents(dir, pos) {
			// A place behind a name that is left out is one, though nobody is told of it.
			if i := slices.IndexFunc(all, func(o Dirent) bool { return o.Pos == e.Pos }); err == nil && i >= 0 && sameEntry(e, all[i]) {
				break
			}
			if !errors.Is(err, fs.ErrInvalid) {
				t.Fatalf("position %#x: %+v, %v, want %v", pos, e, err, fs.ErrInvalid)
			}
		}
	}
	for range 1000 {
		wrong(DirPos(rnd.Uint64()))
		wrong(makePos(rnd.Int64N(dir.Size+10), rnd.IntN(1<<posBits)))
		e := all[rnd.IntN(len(all))]
		wrong(e.Pos + 1<<posBits)
		wrong(e.Pos - 1<<posBits)
		wrong(makePos(e.Pos.header(), 0))
		wrong(makePos(e.Pos.header(), disk.MaxRun+1))
	}
	wrong(1)
	wrong(makePos(dir.Size-disk.DirPseudo, 1))
	wrong(1<<64 - 1)
}

// TestLongDirsAtOnce uses one long directory from many goroutines, while there is room
// for little metadata.
func TestLongDirsAtOnce(t *testing.T) {
	b := longDirs["tools-ng"]
	img, dir := b.open(t, &Options{MetadataCache: 100_000})
	all := list(t, img, &dir, 0)
	img, dir = b.open(t, &Options{MetadataCache: 100_000})
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(g), 3))
			for range 300 {
				i := rnd.IntN(len(all) - 1)
				if e, err := img.Lookup(&dir, string(all[i].Name)); err != nil || !sameEntry(e, all[i]) {
					t.Errorf("lookup %q: %+v, %v", all[i].Name, e, err)
				}
				for e, err := range img.Dirents(&dir, all[i].Pos) {
					if err != nil || !sameEntry(e, all[i+1]) {
						t.Errorf("behind %q: %+v, %v", all[i].Name, e, err)
					}
					break
				}
			}
			if g == 0 {
				n := 0
				for _, err := range img.Dirents(&dir, 0) {
					if err != nil {
						t.Error(err)
					}
					n++
				}
				if n != len(all) {
					t.Errorf("%d entries, want %d", n, len(all))
				}
			}
		})
	}
	wg.Wait()
}

// countingReader counts calls of ReadAt.
type countingReader struct {
	io.ReaderAt
	n atomic.Int64
}

func (r *countingReader) ReadAt(p []byte, off int64) (int, error) {
	r.n.Add(1)
	return r.ReaderAt.ReadAt(p, off)
}

// TestFirstLookup checks that the index in the image saves the first lookup the walk
// over the listing, and that later ones do without either.
func TestFirstLookup(t *testing.T) {
	for _, c := range []struct {
		b      built
		first  int64 // reads that the first lookup may take
		repeat int   // lookups after which no hint is wanted any more
	}{
		{built{names: seqNames(100_000, 20, false), gzip: true, index: sparseIndex}, 8, 2000},
		{built{names: seqNames(100_000, 20, false), gzip: true, index: everyRun}, 12, 2000},
		{built{names: seqNames(30_000, 20, false), gzip: true, run: 1, index: everyRun}, 200, 20},
	} {
		data := c.b.image()
		src := &countingReader{ReaderAt: bytes.NewReader(data)}
		img, err := New(src, int64(len(data)), nil)
		if err != nil {
			t.Fatal(err)
		}
		dir := find(t, img, "big")
		before := src.n.Load()
		last := c.b.names[len(c.b.names)-1]
		if _, err := img.Lookup(&dir, last); err != nil {
			t.Fatal(err)
		}
		if n := src.n.Load() - before; n > c.first {
			t.Errorf("the first lookup reads %d times, want at most %d", n, c.first)
		}
		for i := range c.repeat {
			if _, err := img.Lookup(&dir, c.b.names[len(c.b.names)-1-i]); err != nil {
				t.Fatal(err)
			}
		}
		x := img.longDirs.get(dir.Ref)
		if len(x.samples) == 0 || x.spent > 2*dir.Size+1<<16 {
			t.Errorf("after %d lookups: %d samples, %d bytes spent on hints", c.repeat, len(x.samples), x.spent)
		}
	}
}

// TestDirIndexMemory checks the bounds of what is kept for long directories.
func TestDirIndexMemory(t *testing.T) {
	b := built{names: seqNames(40_000, 250, false), run: 10}
	img, dir := b.open(t, nil)
	all := list(t, img, &dir, 0)
	x := img.longDirs.get(dir.Ref)
	if x.stride <= dirStride || x.bytes > maxDirIndex || !x.whole {
		t.Errorf("%d samples, %d bytes apart, %d bytes, whole: %v", len(x.samples), x.stride, x.bytes, x.whole)
	}
	for i := 0; i < len(all)-1; i += 97 {
		if e, err := img.Lookup(&dir, string(all[i].Name)); err != nil || !sameEntry(e, all[i]) {
			t.Fatalf("lookup %q: %+v, %v", all[i].Name, e, err)
		}
		for e, err := range img.Dirents(&dir, all[i].Pos) {
			if err != nil || !sameEntry(e, all[i+1]) {
				t.Fatalf("behind %q: %+v, %v", all[i].Name, e, err)
			}
			break
		}
	}
}

// TestDirIndexesMemory uses as many directories as would take ten times what is allowed,
// first a little and then more.
func TestDirIndexesMemory(t *testing.T) {
	var l dirIndexes
	count := func(m map[InodeRef]*dirIndex) (n int64) {
		for _, x := range m {
			n += x.bytes
		}
		return n
	}
	for _, samples := range []int{0, 1, 10, 100, 10} {
		for ref := range InodeRef(10 * maxDirIndexes / (dirIndexCost + 10*(dirSampleCost+20))) {
			l.mu.Lock()
			x := l.get(ref)
			pos := x.want()
			l.mu.Unlock()
			for range samples {
				pos = l.add(x, pos, 0, make([]byte, 20))
			}
			if ref%5000 != 0 {
				continue
			}
			young, old := count(l.young), count(l.old)
			if young != l.bytes || young > maxDirIndexes/2 || old > maxDirIndexes/2+maxDirIndex {
				t.Fatalf("%d and %d bytes, accounted %d", young, old, l.bytes)
			}
		}
	}
}

// TestCorruptLongDir damages the order in the middle of a long directory: what lies
// before is found, what lies behind is not, whoever walked how far.
func TestCorruptLongDir(t *testing.T) {
	b := built{names: seqNames(5000, 20, false)}
	b.names[3000] = "a-is-not-sorted-here"
	img, dir := b.open(t, nil)
	for range 2 {
		for _, i := range []int{0, 1000, 2990} {
			if e, err := img.Lookup(&dir, b.names[i]); err != nil || string(e.Name) != b.names[i] {
				t.Errorf("lookup %q: %q, %v", b.names[i], e.Name, err)
			}
		}
		for _, i := range []int{3100, 4000, 4999} {
			if _, err := img.Lookup(&dir, b.names[i]); !errors.Is(err, ErrCorrupt) {
				t.Errorf("lookup %q: %v, want %v", b.names[i], err, ErrCorrupt)
			}
		}
		n := 0
		var last error
		for _, err := range img.Dirents(&dir, 0) {
			if last = err; err == nil {
				n++
			}
		}
		if n != 3000 || !errors.Is(last, ErrCorrupt) {
			t.Errorf("%d entries, then %v", n, last)
		}
	}
}

// TestLongDirAllocs holds the promise of doc.go for long directories.
func TestLongDirAllocs(t *testing.T) {
	b := longDirs["mksquashfs"]
	img, dir := b.open(t, nil)
	all := list(t, img, &dir, 0)
	i := 0
	if got := testing.AllocsPerRun(len(all)-2, func() {
		if _, err := img.Lookup(&dir, b.names[i]); err != nil {
			t.Error(err)
		}
		for _, err := range img.Dirents(&dir, all[i].Pos) {
			if err != nil {
				t.Error(err)
			}
			break
		}
		i++
	}); got > 0 && !raceEnabled {
		t.Errorf("a lookup and a step allocate %v objects", got)
	}
}
