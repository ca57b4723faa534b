package pack

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/squirefs/squire/internal/testenv"
	"github.com/squirefs/squire/sqfs"
)

// memFile is a File in memory.
type memFile struct {
	mu sync.Mutex
	b  []byte
}

func (f *memFile) ReadAt(b []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return bytes.NewReader(f.b).ReadAt(b, off)
}

func (f *memFile) WriteAt(b []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if end := int(off) + len(b); end > len(f.b) {
		f.b = append(f.b, make([]byte, end-len(f.b))...)
	}
	return copy(f.b[off:], b), nil
}

func (f *memFile) Truncate(n int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.b = append(f.b[:min(int(n), len(f.b))], make([]byte, max(0, int(n)-len(f.b)))...)
	return nil
}

// model is a tree with the contents of its files.
type model struct {
	root  *Inode
	files map[*Inode][]byte
	order []*Inode // files, as they are to be added
}

// randomModel makes trees of inodes of all types, with hard links. Sizes of files are
// around multiples of the block size. Equal generators make equal trees.
type randomModel struct {
	model
	rnd    *rand.Rand
	block  int
	linked []*Inode
}

func newModel(rnd *rand.Rand, block int) *model {
	r := &randomModel{rnd: rnd, block: block}
	r.files = map[*Inode][]byte{}
	r.root = r.dir(0)
	if rnd.IntN(3) == 0 { // wide: runs and an index
		wide := r.inode(sqfs.TypeDir)
		for i := range 200 + rnd.IntN(600) {
			wide.Entries[fmt.Sprintf("%04d-%s", i, strings.Repeat("w", rnd.IntN(60)))] = r.file(rnd.IntN(3))
		}
		r.root.Entries["wide"] = wide
	}
	rnd.Shuffle(len(r.order), func(i, j int) { r.order[i], r.order[j] = r.order[j], r.order[i] })
	return &r.model
}

func (r *randomModel) dir(depth int) *Inode {
	d := r.inode(sqfs.TypeDir)
	for range r.rnd.IntN(14) {
		name := r.name()
		switch k := r.rnd.IntN(20); {
		case d.Entries[name] != nil:
		case k < 5 && depth < 6:
			d.Entries[name] = r.dir(depth + 1)
		case k < 13:
			d.Entries[name] = r.file(r.size())
		case k < 16 && len(r.linked) > 0:
			d.Entries[name] = r.linked[r.rnd.IntN(len(r.linked))]
		default:
			d.Entries[name] = r.inode(sqfs.TypeSymlink + sqfs.Type(r.rnd.IntN(5)))
		}
		if i := d.Entries[name]; i.Type != sqfs.TypeDir {
			r.linked = append(r.linked, i)
		}
	}
	return d
}

func (r *randomModel) name() string { return testenv.RandomName(r.rnd) }

// inode makes an inode that Linux can have as well, so that all readers agree about it.
func (r *randomModel) inode(typ sqfs.Type) *Inode {
	ids := []uint32{0, 0, 1, 1000, 65534, 65536, math.MaxUint32 - 1}
	i := &Inode{
		Type: typ, Mode: uint16(r.rnd.IntN(0o10000)), UID: ids[r.rnd.IntN(len(ids))], GID: ids[r.rnd.IntN(len(ids))],
		ModTime: []int64{0, 1, 1700000000, 1<<31 - 1, 1 << 31, 1<<32 - 1}[r.rnd.IntN(6)],
	}
	switch typ {
	case sqfs.TypeDir:
		i.Entries = map[string]*Inode{}
	case sqfs.TypeSymlink:
		i.Mode = 0o777
		i.Target = strings.Repeat("../", r.rnd.IntN(3)) + r.name()
		if r.rnd.IntN(10) == 0 {
			i.Target = strings.Repeat("t", 1+r.rnd.IntN(4000))
		}
	case sqfs.TypeBlock, sqfs.TypeChar:
		i.Rdev = r.rnd.Uint32N(1<<20)<<12&0xfff00000 | r.rnd.Uint32N(1<<20)
	}
	r.xattrs(i)
	return i
}

// xattrs adds attributes, of the name spaces that Linux lets the type have.
func (r *randomModel) xattrs(i *Inode) {
	for range max(0, r.rnd.IntN(8)-4) {
		spaces := []string{"trusted.", "security."}
		if i.Type == sqfs.TypeFile || i.Type == sqfs.TypeDir {
			spaces = []string{"user.", "trusted."}
		}
		x := Xattr{Name: spaces[r.rnd.IntN(2)] + fmt.Sprint("name", r.rnd.IntN(4))}
		if slices.ContainsFunc(i.Xattrs, func(y Xattr) bool { return x.Name == y.Name }) {
			continue
		}
		x.Value = bytes.Repeat([]byte{byte('a' + r.rnd.IntN(3))}, []int{0, 1, 7, 8, 100, 128, 129, 700}[r.rnd.IntN(8)])
		i.Xattrs = append(i.Xattrs, x)
	}
}

func (r *randomModel) size() int {
	b := r.block
	sizes := []int{0, 1, 2, 100, b - 1, b, b + 1, 2 * b, 2*b + r.rnd.IntN(b), r.rnd.IntN(b), r.rnd.IntN(b), 7 * b, r.rnd.IntN(100)}
	return sizes[r.rnd.IntN(len(sizes))]
}

// file makes a file with parts that compress, parts that do not, and zeros, or one with
// the contents of another.
func (r *randomModel) file(size int) *Inode {
	i := r.inode(sqfs.TypeFile)
	r.order = append(r.order, i)
	if k := r.rnd.IntN(len(r.order)); r.rnd.IntN(4) == 0 && r.order[k] != i {
		r.files[i] = r.files[r.order[k]]
		return i
	}
	b := make([]byte, size)
	for off := 0; off < size; {
		n := min(size-off, 1+r.rnd.IntN(2*r.block))
		switch part := b[off : off+n]; r.rnd.IntN(3) {
		case 0:
			for i := range part {
				part[i] = byte(r.rnd.Uint32())
			}
		case 1:
			copy(part, strings.Repeat(fmt.Sprint(r.rnd.IntN(1000), " words "), n/7+1))
		}
		off += n
	}
	r.files[i] = b
	return i
}

// pack adds all files to a writer and finishes the image. wrap, if not nil, makes the
// readers.
func (m *model) pack(t testing.TB, f File, o Options, wrap func(b []byte) io.Reader) Stats {
	t.Helper()
	w, err := NewWriter(f, o)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	if wrap == nil {
		wrap = func(b []byte) io.Reader { return bytes.NewReader(b) }
	}
	for _, i := range m.order {
		if i.Data, err = w.Add(wrap(m.files[i])); err != nil {
			t.Fatal(err)
		}
		if i.Data.Size() != int64(len(m.files[i])) {
			t.Fatalf("%d bytes became %d", len(m.files[i]), i.Data.Size())
		}
	}
	stats, err := w.Finish(m.root)
	if err != nil {
		t.Fatal(err)
	}
	return stats
}

// what is all that there is to know about an inode, for comparison.
type what struct {
	typ      sqfs.Type
	mode     uint16
	uid, gid uint32
	time     uint32
	links    uint32
	size     int64 // not of directories
	rdev     uint32
	same     string // the first path of an inode with several
	xattrs   string
	contents [sha256.Size]byte
	target   string
}

// describe returns what a model has, by path.
func (m *model) describe() map[string]what {
	all, links, first := map[string]what{}, map[*Inode]uint32{}, map[*Inode]string{}
	var walk func(path string, i *Inode)
	walk = func(path string, i *Inode) {
		x := what{typ: i.Type, mode: i.Mode, uid: i.UID, gid: i.GID, time: uint32(i.ModTime), rdev: i.Rdev, target: i.Target, links: links[i]}
		switch i.Type {
		case sqfs.TypeFile:
			x.size, x.contents = int64(len(m.files[i])), sha256.Sum256(m.files[i])
		case sqfs.TypeSymlink:
			x.size = int64(len(i.Target))
		}
		list := slices.Clone(i.Xattrs)
		slices.SortFunc(list, func(a, b Xattr) int { return strings.Compare(a.Name, b.Name) })
		for _, a := range list {
			x.xattrs += fmt.Sprintf("%s=%x ", a.Name, a.Value)
		}
		if i.Type == sqfs.TypeDir {
			x.links = 2
			for _, c := range i.Entries {
				if c.Type == sqfs.TypeDir {
					x.links++
				}
			}
		} else if links[i] > 1 {
			if first[i] == "" {
				first[i] = path
			}
			x.same = first[i]
		}
		all[path] = x
		for _, name := range slices.Sorted(maps.Keys(i.Entries)) {
			walk(path+"/"+name, i.Entries[name])
		}
	}
	var count func(i *Inode)
	count = func(i *Inode) {
		for _, c := range i.Entries {
			links[c]++
			count(c)
		}
	}
	count(m.root)
	walk("", m.root)
	return all
}

// describeImage returns what package sqfs finds in an image.
func describeImage(t testing.TB, r io.ReaderAt, size int64) map[string]what {
	t.Helper()
	img, err := sqfs.New(r, size, nil)
	if err != nil {
		t.Fatal(err)
	}
	root, err := img.Inode(img.Root())
	if err != nil {
		t.Fatal(err)
	}
	all, first := map[string]what{}, map[sqfs.InodeRef]string{}
	for v, err := range img.Walk(&root) {
		if err != nil {
			t.Fatalf("%q: %v", v.Path, err)
		}
		if v.Leave {
			continue
		}
		path, i := string(v.Path), &v.Inode
		if path != "" {
			path = "/" + path
		}
		x := what{typ: i.Type, mode: i.Mode, uid: i.UID, gid: i.GID, time: i.ModTime, rdev: i.Rdev, links: i.Nlink}
		switch i.Type {
		case sqfs.TypeFile:
			x.size, x.contents = i.Size, contentsOf(t, img, i)
		case sqfs.TypeSymlink:
			b, err := img.AppendLink(nil, i)
			if err != nil {
				t.Fatal(err)
			}
			x.size, x.target = i.Size, string(b)
		}
		for a, err := range img.Xattrs(i) {
			if err != nil {
				t.Fatal(err)
			}
			value, err := img.AppendXattr(nil, i, a.Name)
			if err != nil {
				t.Fatal(err)
			}
			x.xattrs += fmt.Sprintf("%s=%x ", a.Name, value)
		}
		if i.Type != sqfs.TypeDir && i.Nlink > 1 {
			if first[i.Ref] == "" {
				first[i.Ref] = path
			}
			x.same = first[i.Ref]
		}
		if ref, err := img.ByNumber(i.Number); img.Superblock().ExportTable >= 0 && (err != nil || ref != i.Ref) {
			t.Errorf("inode %d is at %v, the export table says %v, %v", i.Number, i.Ref, ref, err)
		}
		all[path] = x
	}
	return all
}

func contentsOf(t testing.TB, img *sqfs.Image, i *sqfs.Inode) [sha256.Size]byte {
	t.Helper()
	f, err := img.File(i)
	if err != nil {
		t.Fatal(err)
	}
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(&f, 0, i.Size)); err != nil {
		t.Fatal(err)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// compare reports where got is not as want.
func compare(t testing.TB, who string, got, want map[string]what) {
	t.Helper()
	for _, path := range slices.Sorted(maps.Keys(want)) {
		if got[path] != want[path] {
			t.Errorf("%s: %q is\n %+v, want\n %+v", who, path, got[path], want[path])
		}
	}
	for path := range got {
		if _, ok := want[path]; !ok {
			t.Errorf("%s: has %q", who, path)
		}
	}
}
