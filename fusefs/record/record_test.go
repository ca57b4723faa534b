package record

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/squirefs/squire/fusefs"
	"github.com/squirefs/squire/sqfs"
	"github.com/squirefs/squire/sqfs/trace"
)

var testSuper = sqfs.Superblock{Inodes: 1, BlockSize: 4096, BytesUsed: 1 << 20, InodeTable: 96, DirectoryTable: 1 << 16}

// someTouches are n touches of blocks from first on.
func someTouches(first, n int) (touches []fusefs.Touch) {
	for i := range n {
		touches = append(touches, fusefs.Touch{Ref: 32, Block: uint32(first + i)})
	}
	return touches
}

// traceFile returns an opened file with a trace, or an empty one.
func traceFile(t *testing.T, touches []fusefs.Touch) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "x.trace"))
	if err != nil {
		t.Fatal(err)
	}
	tr := trace.Trace{Image: testSuper}
	for _, touch := range touches {
		tr.Touches = append(tr.Touches, trace.Touch(touch))
	}
	if touches != nil {
		if err := tr.Write(f); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// When a start is over, by how many requests there were up to a second.
func TestWait(t *testing.T) {
	const until = 100000 * time.Second
	for name, tt := range map[string]struct {
		reads func(second int) uint64
		want  time.Duration // 0: with the mount
	}{
		"nothing was read": {func(int) uint64 { return 0 }, 0},
		"read at once":     {func(int) uint64 { return 7 }, 12 * time.Second},
		"read late":        {func(s int) uint64 { return uint64(min(max(s-1000, 0), 3)) }, 1014 * time.Second},
		"a pause":          {func(s int) uint64 { return 1 + uint64(min(s/8, 4)) }, 42 * time.Second},
		"no end":           {func(s int) uint64 { return 1 + uint64(s) }, 122 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start, gone := time.Now(), make(chan struct{})
				defer time.AfterFunc(until, func() { close(gone) }).Stop()
				r := Recorder{reads: func() uint64 { return tt.reads(int(time.Since(start).Seconds())) }}
				r.wait(gone)
				got := time.Since(start)
				if tt.want == 0 && got != until || tt.want != 0 && (got < tt.want || got > tt.want+4*time.Second) {
					t.Errorf("ended after %v, want %v", got, tt.want)
				}
			})
		})
	}
}

func TestWrite(t *testing.T) {
	for name, tt := range map[string]struct {
		known, touched []fusefs.Touch
		whole          bool
		want           int
	}{
		"too little":       {nil, someTouches(0, minTouches-1), false, 0},
		"enough":           {nil, someTouches(0, minTouches), false, minTouches},
		"one, as wanted":   {nil, someTouches(0, 1), true, 1},
		"none, as wanted":  {nil, nil, true, 0},
		"all known":        {someTouches(0, 200), someTouches(0, 100), false, 0},
		"half known":       {someTouches(0, 1000), someTouches(900, 200), false, 1100},
		"more than half":   {someTouches(0, 1000), someTouches(899, 201), false, 0},
		"a little known":   {someTouches(0, 200), someTouches(199, minTouches), false, 0},
		"known but little": {someTouches(0, 10), someTouches(10, minTouches-1), false, 0},
		"no room":          {someTouches(0, trace.MaxTouches), someTouches(trace.MaxTouches, trace.MaxTouches), false, 0},
		"little room":      {someTouches(0, 1000), someTouches(900, trace.MaxTouches), false, trace.MaxTouches},
	} {
		t.Run(name, func(t *testing.T) {
			f := traceFile(t, tt.known)
			r := Recorder{file: f, image: testSuper, known: tt.known, whole: tt.whole}
			r.touched = func() []fusefs.Touch { return tt.touched }
			if got := r.Start()(); got != tt.want {
				t.Errorf("wrote %d, want %d", got, tt.want)
			}
			want := tt.want
			if want == 0 {
				want = len(tt.known)
			}
			again, err := os.Open(f.Name())
			if err != nil {
				t.Fatal(err)
			}
			if got, _ := Find([]*os.File{again}, -1, &testSuper); len(got) != want {
				t.Errorf("the file has %d touches, want %d", len(got), want)
			}
		})
	}
}

// Which of several files counts, which one is recorded into, and that no other stays open.
func TestFind(t *testing.T) {
	other := testSuper
	other.MkfsTime++
	for name, tt := range map[string]struct {
		files  []*os.File
		into   int
		sb     sqfs.Superblock
		want   int
		record bool
	}{
		"no files":         {nil, -1, testSuper, 0, false},
		"first wins":       {[]*os.File{traceFile(t, someTouches(0, 3)), traceFile(t, someTouches(0, 4))}, 1, testSuper, 3, false},
		"empty":            {[]*os.File{traceFile(t, nil)}, 0, testSuper, 0, true},
		"empty, locked":    {[]*os.File{traceFile(t, nil)}, -1, testSuper, 0, false},
		"its own":          {[]*os.File{traceFile(t, nil), traceFile(t, someTouches(0, 4))}, 1, testSuper, 4, true},
		"root's":           {[]*os.File{traceFile(t, nil), traceFile(t, someTouches(0, 4))}, 0, testSuper, 4, true},
		"beside, root's":   {[]*os.File{traceFile(t, someTouches(0, 2)), traceFile(t, nil), traceFile(t, someTouches(0, 4))}, 1, testSuper, 2, false},
		"another image's":  {[]*os.File{traceFile(t, someTouches(0, 3)), traceFile(t, nil)}, 1, other, 0, true},
		"no such file":     {[]*os.File{traceFile(t, nil)}, 7, testSuper, 0, false},
		"a trace of none":  {[]*os.File{traceFile(t, []fusefs.Touch{}), traceFile(t, someTouches(0, 2))}, 0, testSuper, 2, true},
		"not to be read":   {[]*os.File{os.NewFile(1<<20, "closed"), traceFile(t, someTouches(0, 2))}, -1, testSuper, 2, false},
		"damaged, writing": {[]*os.File{damagedTrace(t)}, 0, testSuper, 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			touches, record := Find(tt.files, tt.into, &tt.sb)
			if len(touches) != tt.want || (record != nil) != tt.record {
				t.Errorf("%d touches, recording into %v", len(touches), record)
			}
			open := slices.DeleteFunc(slices.Clone(tt.files), func(f *os.File) bool { return f.Close() != nil })
			if tt.record != (len(open) == 1) || tt.record && open[0] != record {
				t.Errorf("%d files were left open", len(open))
			}
		})
	}
}

func damagedTrace(t *testing.T) *os.File {
	f := traceFile(t, someTouches(0, 100))
	if _, err := f.WriteAt([]byte{0xff}, 60); err != nil {
		t.Fatal(err)
	}
	return f
}
