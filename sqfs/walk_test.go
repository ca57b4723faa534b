package sqfs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// walkLines walks img and returns a line for each step: its path, "/" behind that of a
// directory, "<" in front of one that is left, "!" in front of an error.
func walkLines(t *testing.T, img *Image, skip string) (lines []string) {
	t.Helper()
	root, err := img.Inode(img.Root())
	if err != nil {
		t.Fatal(err)
	}
	open := 0
	for v, err := range img.Walk(&root) {
		line := string(v.Path)
		if v.Depth != 0 && v.Depth != 1+strings.Count(line, "/") {
			t.Errorf("%q: depth %d", line, v.Depth)
		}
		if !strings.HasSuffix(line, string(v.Name())) || strings.Contains(string(v.Name()), "/") {
			t.Errorf("%q: name %q", line, v.Name())
		}
		switch {
		case err != nil:
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("%s: %v", line, err)
			}
			line = "!" + line
		case v.Leave:
			line = "<" + line
			open--
		case v.Inode.Type == TypeDir:
			line += "/"
			if open++; skip == string(v.Path)+"/" {
				v.Skip()
				open--
			}
		}
		lines = append(lines, line)
	}
	if open != 0 {
		t.Errorf("%d directories were not left", open)
	}
	return lines
}

// TestWalk compares walks with the trees that TestGolden compares with unsquashfs.
func TestWalk(t *testing.T) {
	for _, path := range images(t) {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".sqfs"), func(t *testing.T) {
			testWalk(t, openTest(t, path))
		})
	}
}

func testWalk(t *testing.T, img *Image) {
	var want []string
	err := walkTree(img, func(name string, ino *Inode) error {
		name = strings.TrimPrefix(name, "/")
		if ino.Type == TypeDir {
			name += "/"
		}
		want = append(want, name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	inside := []string{}
	for _, line := range walkLines(t, img, "none") {
		if rest, leave := strings.CutPrefix(line, "<"); leave {
			if last := inside[len(inside)-1]; last != rest+"/" {
				t.Fatalf("left %q inside of %q", rest, last)
			}
			inside = inside[:len(inside)-1]
			continue
		}
		if strings.HasSuffix(line, "/") {
			inside = append(inside, line)
		}
		got = append(got, line)
	}
	if !slices.Equal(got, want) {
		t.Error("the walk differs from the tree")
	}
}

// TestWalkSkip keeps a walk out of a directory, breaks one off, and starts one below
// the root and at a file.
func TestWalkSkip(t *testing.T) {
	img := openTest(t, "testdata/stored.sqfs")
	all, some := walkLines(t, img, ""), walkLines(t, img, "big/")
	if want := slices.DeleteFunc(all, func(s string) bool {
		return strings.HasPrefix(s, "big/entry") || s == "<big"
	}); !slices.Equal(some, want) {
		t.Errorf("without big:\n%q", some)
	}
	big := find(t, img, "big")
	n := 0
	for v, err := range img.Walk(&big) {
		if n++; err != nil || n == 3 && string(v.Path) != "entry-001-x" {
			t.Errorf("step %d: %q, %v", n, v.Path, err)
		}
		if n == 3 {
			break
		}
	}
	file := find(t, img, "big", "entry-001-x")
	n = 0
	for v, err := range img.Walk(&file) {
		if n++; err != nil || len(v.Path) != 0 || v.Inode != file {
			t.Errorf("walk of a file: %q, %v", v.Path, err)
		}
	}
	if n != 1 {
		t.Errorf("walk of a file has %d steps", n)
	}
}

// TestWalkDamaged walks images with one fault and compares the steps with those of the
// sound image: what the fault is not about must still be there.
func TestWalkDamaged(t *testing.T) {
	base, err := os.ReadFile("testdata/stored.sqfs")
	if err != nil {
		t.Fatal(err)
	}
	first := firstOf(t, "sub")
	tests := []struct {
		name  string
		patch func(p *patcher)
		bad   string // the step that is an error
		gone  string // prefix of the steps that are missing
	}{
		{"cycle", func(p *patcher) { p.entryRef(p.ino("sub").Ref) }, "!sub", "sub/"},
		{"two parents", func(p *patcher) { p.entryRef(p.ino("big").Ref) }, "!" + first, first},
		{"no inode", func(p *patcher) { p.u16(p.inode("sub"), 99) }, "!sub", "sub"},
		{"other type", func(p *patcher) { p.u16(p.listing("sub")+16, uint16(TypeFifo)) }, "!" + first, first},
		{"bad listing", func(p *patcher) { p.u32(p.listing("big"), 1000) }, "!big", "big/entry"},
		{"no listing", func(p *patcher) { p.u32(p.inode("sub")+24, 1<<30) }, "!sub", "sub/"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := &patcher{t: t, b: bytes.Clone(base), img: openTest(t, "testdata/stored.sqfs")}
			sound := walkLines(t, p.img, "")
			tt.patch(p)
			img, err := New(bytes.NewReader(p.b), int64(len(p.b)), nil)
			if err != nil {
				t.Fatal(err)
			}
			got := walkLines(t, img, "")
			if !slices.Contains(got, tt.bad) {
				t.Errorf("no step %q among %d", tt.bad, len(got))
			}
			rest := slices.DeleteFunc(got, func(s string) bool { return s[min(1, len(s)):] == tt.bad[1:] && s[0] == '!' })
			if i := slices.IndexFunc(rest, func(s string) bool { return strings.HasPrefix(s, "!") }); i >= 0 {
				t.Errorf("another error: %q", rest[i])
			}
			missing := func(s string) bool {
				s = strings.TrimPrefix(s, "<")
				return strings.HasPrefix(s, tt.gone) && s != "sub/"
			}
			if tt.name == "no inode" {
				missing = func(s string) bool { return strings.HasPrefix(strings.TrimPrefix(s, "<"), "sub") }
			}
			if a, b := slices.DeleteFunc(rest, missing), slices.DeleteFunc(sound, missing); !slices.Equal(a, b) {
				t.Errorf("of the rest there are %d steps, want %d", len(a), len(b))
			}
		})
	}
}

// firstOf returns the path of the first entry of a directory of stored.sqfs.
func firstOf(t *testing.T, dir string) string {
	t.Helper()
	img := openTest(t, "testdata/stored.sqfs")
	ino := find(t, img, dir)
	for e, err := range img.Dirents(&ino, 0) {
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%s/%s", dir, e.Name)
	}
	t.Fatalf("%s is empty", dir)
	return ""
}

// TestWalkTooMuch lets the superblock promise fewer inodes than there are directories,
// and a directory table so small that the entries cannot all lie in it.
func TestWalkTooMuch(t *testing.T) {
	root := find(t, openTest(t, "testdata/stored.sqfs"))
	count := func(img *Image) (steps, bad int) {
		for _, err := range img.Walk(&root) {
			if steps++; err != nil {
				bad++
			}
		}
		return steps, bad
	}
	img := openTest(t, "testdata/stored.sqfs")
	entered := make(map[InodeRef]struct{})
	for i := range InodeRef(img.sb.Inodes) {
		entered[1<<47+i] = struct{}{} // as many directories as there can be, all elsewhere
	}
	var errs []error
	full := treeWalk{img: img, entered: entered, yield: func(_ *Visit, err error) bool {
		errs = append(errs, err)
		return true
	}}
	full.run(&root)
	if len(errs) != 1 || !errors.Is(errs[0], ErrCorrupt) {
		t.Errorf("a directory more than inodes: %v", errs)
	}
	img = openTest(t, "testdata/stored.sqfs")
	all, _ := count(img)
	w := treeWalk{img: img, entered: make(map[InodeRef]struct{}), entries: img.maxEntries() - 5}
	steps, bad := 0, 0
	w.yield = func(_ *Visit, err error) bool {
		if steps++; err != nil {
			bad++
		}
		return true
	}
	w.run(&root)
	if bad == 0 || steps > 30 || all < 300 {
		t.Errorf("five entries more than fit: %d steps of %d, %d errors", steps, all, bad)
	}
}

// TestWalkAllocs holds the promise that entries cost no allocation.
func TestWalkAllocs(t *testing.T) {
	img := openTest(t, "testdata/stored.sqfs")
	root := find(t, img)
	got := testing.AllocsPerRun(20, func() {
		for _, err := range img.Walk(&root) {
			if err != nil {
				t.Error(err)
			}
		}
	})
	// The walk, its map and stack, and the path: nothing for 300 entries.
	if got > 25 && !raceEnabled {
		t.Errorf("a walk allocates %v objects", got)
	}
}

func BenchmarkWalk(b *testing.B) {
	img := openTest(b, "testdata/stored.sqfs")
	root := find(b, img)
	n := 0
	for b.Loop() {
		n = 0
		for range img.Walk(&root) {
			n++
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/step")
}
