package layer

import (
	"archive/tar"
	"slices"
	"strings"
	"testing"

	"github.com/squirefs/squire/sqfs"
	"github.com/squirefs/squire/sqfs/pack"
)

// FuzzMerge merges any bytes, as one archive or cut into two: no panic, no tree that
// cannot be packed, the same result twice, within bounds.
func FuzzMerge(f *testing.F) {
	xattr := map[string]string{schily + "user.x": "1", archive + "user.y": "aGFsbG8"}
	f.Add(archived(f, dir("a"), item{name: "a/x", data: "1", pax: xattr}, link("b", "a/x"), symlink("l", "a")), 0, false)
	f.Add(slices.Concat(archived(f, reg("a", "1"), link("b", "a")), archived(f, wh(".wh.a"), reg("b/c", "2"), wh("d/.wh..wh..opq"))), 4096, false)
	f.Add(slices.Concat(archived(f, symlink("l", "d"), reg("l/a", "1")), archived(f, dir("l"), reg("l/a", "2"), typed("c", tar.TypeChar), typed("p", tar.TypeFifo))), 3072, false)
	f.Add(joined(oldSparse(20, 4, 8, 12, 4), "abcdABCD", rawHeader("l", 'L', 5).gnu(), "long\x00", rawHeader("a", '0', 1), "1"), 0, true)
	f.Add(joined(append(pax('x', "GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.realsize", "6"), rawHeader("s", '0', 515), "1\n2\n3\n", "abc")...), 512, false)
	f.Fuzz(func(t *testing.T, b []byte, cut int, plain bool) {
		layers := [][]byte{b}
		if cut > 0 && cut < len(b) && !plain {
			layers = [][]byte{b[:cut], b[cut:]}
		}
		o := Options{Plain: plain, Devices: len(b)%2 == 0, MaxBytes: 1 << 20, MaxMemory: 4 << 20, MaxEntries: 10_000}
		if len(b)%3 == 0 {
			o.Exclude = func(path string) bool { return strings.HasSuffix(path, "x") }
		}
		w := new(memory)
		root, report, err := merge(t.Context(), w, stack(layers...), o)
		if err != nil {
			if !strings.HasPrefix(err.Error(), map[bool]string{false: "merge ", true: "read "}[plain]) || len(err.Error()) > 4096 {
				t.Errorf("error %q", err)
			}
			return
		}
		if report.Hidden < 0 || report.HiddenBytes < 0 || len(report.Dropped) > 100 {
			t.Errorf("%+v", report)
		}
		check(t, root, w, o)
		again, _, w2, err := mergeAll(t, o, layers...)
		if err != nil || !slices.Equal(again, show(root, w.bytes)) || len(w2.all) != len(w.all) {
			t.Errorf("the second time is different: %v", err)
		}
	})
}

// check tells whether a tree is one that package pack takes.
func check(t *testing.T, i *pack.Inode, w *memory, o Options) {
	for name, e := range i.Entries {
		if name == "" || len(name) > 255 || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
			t.Errorf("name %q", name)
		}
		check(t, e, w, o)
	}
	_, known := w.bytes[i.Data]
	device := i.Type == sqfs.TypeChar || i.Type == sqfs.TypeBlock
	switch {
	case i.Mode&^0o7777 != 0,
		i.Type != sqfs.TypeDir && i.Entries != nil,
		i.Data != nil && (!known || i.Type != sqfs.TypeFile),
		(i.Type == sqfs.TypeSymlink) != (i.Target != ""),
		i.Type < sqfs.TypeDir || i.Type > sqfs.TypeFifo,
		device && !o.Devices:
		t.Errorf("inode %+v", i)
	}
	for k, x := range i.Xattrs {
		space, rest, _ := strings.Cut(x.Name, ".")
		if len(x.Name) > 255 || rest == "" || len(x.Value) > 65536 || space != "user" && space != "security" && (space != "trusted" || !o.Plain) ||
			slices.ContainsFunc(i.Xattrs[:k], func(y pack.Xattr) bool { return y.Name == x.Name }) {
			t.Errorf("attribute %+v", x)
		}
	}
}
