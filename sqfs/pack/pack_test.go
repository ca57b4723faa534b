package pack

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"testing/iotest"
	"time"

	"github.com/squirefs/squire/sqfs"
	"github.com/squirefs/squire/sqfs/verify"
)

// randomOptions returns options with which a test is quick.
func randomOptions(rnd *rand.Rand) Options {
	o := Options{
		Compression: []sqfs.Compression{sqfs.Gzip, sqfs.LZ4, sqfs.Zstd}[rnd.IntN(3)],
		BlockSize:   4096 << rnd.IntN(4), Time: time.Unix(1700000000, 0),
		Stored: rnd.IntN(6) == 0, NoFragments: rnd.IntN(4) == 0, NoExports: rnd.IntN(4) == 0, Duplicates: rnd.IntN(4) == 0,
		Processors: 1 + rnd.IntN(4), Memory: int64(rnd.IntN(2)) * 200000, Level: rnd.IntN(7),
	}
	return o
}

// sound checks an image with package verify.
func sound(t testing.TB, r io.ReaderAt, size int64) {
	t.Helper()
	img, err := sqfs.New(r, size, nil)
	if err != nil {
		t.Fatal(err)
	}
	rep, err := verify.Run(context.Background(), img, &verify.Options{Data: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range rep.Damage {
		t.Errorf("damaged: %+v", d)
	}
}

func TestRoundTrip(t *testing.T) {
	for seed := range uint64(60) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		o := randomOptions(rnd)
		m := newModel(rnd, o.BlockSize)
		f := &memFile{}
		stats := m.pack(t, f, o, nil)
		compare(t, fmt.Sprintf("seed %d, %+v", seed, o), describeImage(t, f, int64(len(f.b))), m.describe())
		sound(t, f, int64(len(f.b)))
		if len(f.b)%padding != 0 || stats.Bytes > int64(len(f.b)) || stats.Bytes <= int64(len(f.b))-padding {
			t.Errorf("seed %d: %d bytes in a file of %d", seed, stats.Bytes, len(f.b))
		}
		if t.Failed() {
			return
		}
	}
}

// TestSame packs trees in different ways: the image must be the same, whatever time is
// taken where.
func TestSame(t *testing.T) {
	for seed := range uint64(6) {
		rnd := rand.New(rand.NewPCG(seed, 2))
		o := randomOptions(rnd)
		m := newModel(rnd, o.BlockSize)
		var first []byte
		for _, processors := range []int{1, 2, 8} {
			for _, memory := range []int64{0, 1, 300000} {
				o.Processors, o.Memory = processors, memory
				f := &memFile{}
				m.pack(t, f, o, func(b []byte) io.Reader {
					if rnd.IntN(4) == 0 {
						runtime.Gosched()
						return iotest.HalfReader(bytes.NewReader(b))
					}
					return iotest.DataErrReader(bytes.NewReader(b))
				})
				if first == nil {
					first = f.b
				}
				if !bytes.Equal(f.b, first) {
					t.Errorf("seed %d: another image with %d processors, %d bytes of memory", seed, processors, memory)
				}
			}
		}
	}
}

// blocksOf returns how many blocks a file has, how many of them are holes, and whether it
// has a tail in a fragment.
func blocksOf(d *Data) string {
	holes := 0
	for _, w := range d.blocks {
		if w == 0 {
			holes++
		}
	}
	return fmt.Sprint(len(d.blocks), holes, int32(d.fragment))
}

// TestFragments looks at what becomes of files of lengths at borders.
func TestFragments(t *testing.T) {
	const bs = 4096
	full := bytes.Repeat([]byte("fragment"), 3*bs/8)
	for _, tt := range []struct {
		b           []byte
		want, never string // blocks, holes, fragment; without fragments
	}{
		{nil, "0 0 -1", "0 0 -1"},
		{full[:1], "0 0 0", "1 0 -1"},
		{full[:bs-1], "0 0 0", "1 0 -1"},
		{full[:bs], "1 0 -1", "1 0 -1"},
		{full[:bs+1], "2 0 -1", "2 0 -1"},
		{full[:2*bs+bs/2], "3 0 -1", "3 0 -1"},
		{make([]byte, 1), "1 1 -1", "1 1 -1"},
		{make([]byte, bs), "1 1 -1", "1 1 -1"},
		{make([]byte, bs+1), "2 2 -1", "2 2 -1"},
		{append(slices.Clone(full[:bs]), make([]byte, 5)...), "2 1 -1", "2 1 -1"},
		{append(make([]byte, bs), 1), "2 1 -1", "2 1 -1"},
		{append(make([]byte, bs-2), 1), "0 0 0", "1 0 -1"},
	} {
		for _, no := range []bool{false, true} {
			m := &model{files: map[*Inode][]byte{}, root: &Inode{Type: sqfs.TypeDir, Entries: map[string]*Inode{}}}
			i := &Inode{Type: sqfs.TypeFile}
			m.root.Entries["f"], m.files[i], m.order = i, tt.b, []*Inode{i}
			f := &memFile{}
			m.pack(t, f, Options{BlockSize: bs, NoFragments: no}, nil)
			want := tt.want
			if no {
				want = tt.never
			}
			if got := blocksOf(i.Data); got != want {
				t.Errorf("%d bytes, no fragments %v: %s, want %s", len(tt.b), no, got, want)
			}
			compare(t, fmt.Sprint(len(tt.b)), describeImage(t, f, int64(len(f.b))), m.describe())
		}
	}
}

// TestDuplicates adds files several times: short ones, such as are held back, and such as
// are written before they are known.
func TestDuplicates(t *testing.T) {
	const bs = 4096
	rnd := rand.New(rand.NewPCG(1, 1))
	noise := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		return b
	}
	long := noise(40*bs + 17)
	sparse := append(append(noise(bs), make([]byte, 50*bs)...), noise(30*bs)...)
	files := [][]byte{long, noise(100), sparse, noise(3 * bs), make([]byte, 20*bs), make([]byte, 20*bs+1), long[:len(long)-1], nil}
	f := &memFile{}
	w, err := NewWriter(f, Options{BlockSize: bs, Memory: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	root := &Inode{Type: sqfs.TypeDir, Entries: map[string]*Inode{}}
	m := &model{root: root, files: map[*Inode][]byte{}}
	first := make([]*Data, len(files))
	for round := range 3 {
		for k, b := range files {
			d, err := w.Add(bytes.NewReader(b))
			if err != nil {
				t.Fatal(err)
			}
			if round == 0 {
				first[k] = d
			} else if d != first[k] {
				t.Errorf("file %d is stored twice", k)
			}
			i := &Inode{Type: sqfs.TypeFile, Data: d}
			root.Entries[fmt.Sprint(round, k)], m.files[i] = i, b
		}
	}
	stats, err := w.Finish(root)
	if err != nil {
		t.Fatal(err)
	}
	if stats.Duplicates != int64(2*len(files)) || stats.Bytes > 117*bs+bs {
		t.Errorf("%+v", stats)
	}
	compare(t, "image", describeImage(t, f, int64(len(f.b))), m.describe())
	sound(t, f, int64(len(f.b)))
}

// TestOptions checks what is refused.
func TestOptions(t *testing.T) {
	for _, o := range []Options{
		{Compression: sqfs.XZ},
		{Compression: 77},
		{Level: 23},
		{Level: -1},
		{Compression: sqfs.Gzip, Level: 10},
		{Compression: sqfs.LZ4, Level: 10},
		{BlockSize: 2048},
		{BlockSize: 5000},
		{BlockSize: 2 << 20},
		{Processors: -1},
		{Memory: -1},
	} {
		if w, err := NewWriter(&memFile{}, o); err == nil {
			w.Abort()
			t.Errorf("%+v is accepted", o)
		}
	}
}

// TestTimes checks which times an image has.
func TestTimes(t *testing.T) {
	f := &memFile{}
	w, err := NewWriter(f, Options{Time: time.Unix(5000, 0), Newest: time.Unix(2000, 0)})
	if err != nil {
		t.Fatal(err)
	}
	root := &Inode{Type: sqfs.TypeDir, ModTime: 3000, Entries: map[string]*Inode{}}
	for name, at := range map[string]int64{"old": -5, "new": 1 << 40, "same": 1999} {
		root.Entries[name] = &Inode{Type: sqfs.TypeFifo, ModTime: at}
	}
	if _, err := w.Finish(root); err != nil {
		t.Fatal(err)
	}
	all := describeImage(t, f, int64(len(f.b)))
	for path, want := range map[string]uint32{"": 2000, "/old": 0, "/new": 2000, "/same": 1999} {
		if got := all[path].time; got != want {
			t.Errorf("%q: %d, want %d", path, got, want)
		}
	}
	img, _ := sqfs.New(f, int64(len(f.b)), nil)
	if got := img.Superblock().MkfsTime; got != 5000 {
		t.Errorf("image of %d", got)
	}
}

// TestProgress checks the counters.
func TestProgress(t *testing.T) {
	w, err := NewWriter(&memFile{}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	w.Add(bytes.NewReader(make([]byte, 1000)))
	w.Add(io.MultiReader(bytes.NewReader(make([]byte, 1<<20)), iotest.ErrReader(io.ErrUnexpectedEOF)))
	w.Add(bytes.NewReader([]byte("abc")))
	if p := w.Progress(); p.Files != 2 || p.In != 1003 {
		t.Errorf("%+v", p)
	}
}
