package layer

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/squirefs/squire/sqfs"
	"github.com/squirefs/squire/sqfs/pack"
)

// image merges layers into an image and opens it.
func image(t *testing.T, o Options, archives ...[]byte) (*sqfs.Image, []byte, pack.Stats) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	w, err := pack.NewWriter(f, pack.Options{Time: time.Unix(1, 0), Processors: 1 + rand.IntN(3)})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	root, _, err := Merge(t.Context(), w, stack(archives...), o)
	if err != nil {
		t.Fatal(err)
	}
	stats, err := w.Finish(root)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	img, err := sqfs.New(f, int64(len(b)), nil)
	if err != nil {
		t.Fatal(err)
	}
	return img, b, stats
}

// Images show what trees show, and are the same each time.
func TestImages(t *testing.T) {
	for seed := range uint64(50) {
		g := &generator{Rand: rand.New(rand.NewPCG(seed, 3))}
		layers, m := g.stack()
		if m == nil {
			continue
		}
		var archives [][]byte
		for _, l := range layers {
			archives = append(archives, archived(t, l...))
		}
		img, b, _ := image(t, Options{Time: 5}, archives...)
		_, again, _ := image(t, Options{Time: 5, Ahead: 1}, archives...)
		if !slices.Equal(b, again) {
			t.Fatalf("seed %d: two images differ", seed)
		}
		if got, want := showImage(t, img), m.lines(); !slices.Equal(got, want) {
			t.Fatalf("seed %d: got\n%s\n\nwant\n%s", seed, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
}

// Holes of sparse entries are holes of the image: nobody reads them.
func TestHoles(t *testing.T) {
	const size = 1 << 34
	h := rawHeader("s", 'S', 8)
	h.number(386, 12, 1<<20+5).number(398, 12, 4).number(410, 12, size-100).number(422, 12, 4).number(483, 12, size).gnu()
	img, b, stats := image(t, Options{}, joined(h, "abcdABCD"))
	if len(b) > 64<<20 || stats.In != size {
		t.Errorf("%d bytes, %+v", len(b), stats)
	}
	f, err := img.Open("s")
	if err != nil {
		t.Fatal(err)
	}
	r := f.(io.ReaderAt)
	for at, want := range map[int64]string{1<<20 + 4: "\x00abcd\x00", size - 101: "\x00ABCD\x00"} {
		got := make([]byte, len(want))
		if _, err := r.ReadAt(got, at); err != nil || string(got) != want {
			t.Errorf("at %d: %q, %v", at, got, err)
		}
	}
}

var _ pack.HoleReader = (*sparse)(nil)

// showImage shows an image as show does a tree.
func showImage(t *testing.T, img *sqfs.Image) []string {
	t.Helper()
	var lines []string
	first := map[sqfs.InodeRef]string{}
	start, err := img.Inode(img.Root())
	if err != nil {
		t.Fatal(err)
	}
	for v, err := range img.Walk(&start) {
		if err != nil {
			t.Fatal(err)
		}
		if v.Leave {
			continue
		}
		path, ino := string(v.Path), v.Inode
		if path == "" {
			path = "."
		}
		if p, ok := first[ino.Ref]; ok {
			lines = append(lines, fmt.Sprintf("= %s %s", path, p))
			continue
		}
		first[ino.Ref] = path
		switch ino.Type {
		case sqfs.TypeDir:
			lines = append(lines, fmt.Sprintf("d %o %d %s", ino.Mode, ino.UID, path))
		case sqfs.TypeSymlink:
			target, err := img.AppendLink(nil, &ino)
			if err != nil {
				t.Fatal(err)
			}
			lines = append(lines, fmt.Sprintf("l %s -> %s", path, target))
		case sqfs.TypeFile:
			f, err := img.File(&ino)
			if err != nil {
				t.Fatal(err)
			}
			b := make([]byte, f.Size())
			if _, err := f.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
				t.Fatal(err)
			}
			lines = append(lines, fmt.Sprintf("f %o %d %s %s", ino.Mode, ino.UID, path, b))
		default:
			lines = append(lines, fmt.Sprintf("%c %o %d %s %#x", "?dflbcps"[ino.Type], ino.Mode, ino.UID, path, ino.Rdev))
		}
	}
	return lines
}
