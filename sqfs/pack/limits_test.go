package pack

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/sqfs"
)

// part is data or a hole.
type part struct {
	data []byte
	hole int64
}

// holey is a HoleReader.
type holey []part

func (h *holey) Read(b []byte) (int, error) {
	for len(*h) > 0 {
		p := &(*h)[0]
		if p.hole > 0 {
			return 0, errors.New("a hole is read")
		}
		n := copy(b, p.data)
		if p.data = p.data[n:]; n > 0 || len(b) == 0 {
			return n, nil
		}
		*h = (*h)[1:]
	}
	return 0, io.EOF
}

func (h *holey) Hole() (int64, error) {
	for len(*h) > 0 && len((*h)[0].data) == 0 {
		n := (*h)[0].hole
		if *h = (*h)[1:]; n != 0 {
			return n, nil
		}
	}
	return 0, nil
}

// expand returns what h stands for.
func (h holey) expand() []byte {
	var b []byte
	for _, p := range h {
		b = append(append(b, p.data...), make([]byte, p.hole)...)
	}
	return b
}

// TestHoles adds files with holes as such and as zeros: they must be the same.
func TestHoles(t *testing.T) {
	const bs = 4096
	rnd := rand.New(rand.NewPCG(8, 8))
	w, err := NewWriter(&memFile{}, Options{BlockSize: bs, Memory: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	for k := range 300 {
		var h holey
		for range rnd.IntN(8) {
			if rnd.IntN(2) == 0 {
				h = append(h, part{hole: []int64{1, 10, bs - 1, bs, bs + 1, 20 * bs, rnd.Int64N(30 * bs)}[rnd.IntN(7)]})
			} else {
				b := make([]byte, []int{1, 10, bs - 1, bs, bs + 1, rnd.IntN(9 * bs)}[rnd.IntN(6)])
				for i := range b {
					b[i] = byte(rnd.IntN(3))
				}
				h = append(h, part{data: b})
			}
		}
		want := h.expand()
		a, err := w.Add(bytes.NewReader(want))
		if err != nil {
			t.Fatal(err)
		}
		if b, err := w.Add(&h); err != nil || a != b || a.Size() != int64(len(want)) {
			t.Fatalf("file %d of %d bytes: holes make another, %v", k, len(want), err)
		}
	}
}

// TestTooManyHoles asks for more than there is memory for. What fails must leave nothing
// behind.
func TestTooManyHoles(t *testing.T) {
	w, err := NewWriter(&memFile{}, Options{BlockSize: 4096})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	for _, h := range []holey{
		{{hole: 1 << 50}},
		{{hole: math.MaxInt64}},
		{{hole: -1}},
		{{data: []byte("x")}, {hole: 1 << 62}},
		{{hole: maxHoles / 2 * 4096}, {hole: (maxHoles/2 + 1) * 4096}},
	} {
		if _, err := w.Add(&h); err == nil {
			t.Errorf("%v is accepted", h)
		}
	}
	if _, err := w.Add(&holey{{hole: 1 << 20}}); err != nil {
		t.Error(err)
	}
	if p := w.Progress(); p.In != 1<<20 || w.holes != 256 {
		t.Errorf("%+v, %d holes", p, w.holes)
	}
}

// temp returns a File on disk.
func temp(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// finish finishes an image, checks it with sqfs, and with the kernel if there is one.
func finish(t *testing.T, w *Writer, f *os.File, root *Inode) (*sqfs.Image, string) {
	t.Helper()
	if _, err := w.Finish(root); err != nil {
		t.Fatal(err)
	}
	img, err := sqfs.OpenImage(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { img.Close() })
	if os.Getuid() != 0 {
		return img, ""
	}
	return img, mount(t, f.Name())
}

// TestBig has files and positions of more than 32 bits. None of it is anywhere on disk.
func TestBig(t *testing.T) {
	f := temp(t)
	w, err := NewWriter(f, Options{Time: time.Unix(0, 0)})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	add := func(h holey) *Inode {
		d, err := w.Add(&h)
		if err != nil {
			t.Fatal(err)
		}
		return &Inode{Type: sqfs.TypeFile, Mode: 0o644, Data: d}
	}
	const size = 5<<30 + 12345
	before := add(holey{{data: []byte("begin")}, {hole: size - 8}, {data: []byte("end")}})
	w.p.end.Store(6 << 30) // as if there were so much before what follows
	after := add(holey{{data: bytes.Repeat([]byte("after"), 100000)}})
	small := add(holey{{data: []byte("small")}})
	full := add(holey{{hole: 1 << 40}})
	root := &Inode{Type: sqfs.TypeDir, Mode: 0o755, Entries: map[string]*Inode{"before": before, "after": after, "small": small, "holes": full}}
	img, dir := finish(t, w, f, root)
	for name, want := range map[string]string{"after": strings.Repeat("after", 100000), "small": "small"} {
		if b, err := img.ReadFile(name); err != nil || string(b) != want {
			t.Errorf("%s: %d bytes, %v", name, len(b), err)
		}
		if b, err := os.ReadFile(filepath.Join(dir, name)); dir != "" && (err != nil || string(b) != want) {
			t.Errorf("kernel, %s: %d bytes, %v", name, len(b), err)
		}
	}
	ends := func(r io.ReaderAt) string {
		b := make([]byte, 10)
		r.ReadAt(b[:5], 0)
		r.ReadAt(b[5:], size-5)
		return string(b)
	}
	ino, err := img.Resolve("before", false)
	if err != nil {
		t.Fatal(err)
	}
	file, err := img.File(&ino)
	if err != nil || ino.Size != size || ends(&file) != "begin\x00\x00end" || ino.Blocks512() != (128<<10+12345+511)/512 {
		t.Errorf("%+v, %v", ino, err)
	}
	if dir == "" {
		return
	}
	k, err := os.Open(filepath.Join(dir, "before"))
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	if got := ends(k); got != "begin\x00\x00end" {
		t.Errorf("kernel: %q", got)
	}
	var s unix.Stat_t
	if err := unix.Lstat(filepath.Join(dir, "holes"), &s); err != nil || s.Size != 1<<40 || s.Blocks != 1 {
		t.Errorf("%+v, %v", s, err)
	}
}

// TestManyIDs has as many users and groups as there can be.
func TestManyIDs(t *testing.T) {
	f := temp(t)
	w, err := NewWriter(f, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	root := &Inode{Type: sqfs.TypeDir, UID: 7, GID: 7, Entries: map[string]*Inode{}}
	for i := range maxIDs {
		root.Entries[fmt.Sprint("f", i)] = &Inode{Type: sqfs.TypeFifo, UID: uint32(i) * 3, GID: uint32(maxIDs-1-i) * 3}
	}
	root.UID, root.GID = 0, 3
	img, dir := finish(t, w, f, root)
	if n := img.Superblock().IDs; n != maxIDs {
		t.Errorf("%d ids", n)
	}
	for _, i := range []uint32{0, 1, 30000, maxIDs - 1} {
		name := fmt.Sprint("f", i)
		ino, err := img.Resolve(name, false)
		if err != nil || ino.UID != i*3 || ino.GID != (maxIDs-1-i)*3 {
			t.Errorf("%+v, %v", ino, err)
		}
		var s unix.Stat_t
		if dir == "" {
			continue
		}
		if err := unix.Lstat(filepath.Join(dir, name), &s); err != nil || s.Uid != ino.UID || s.Gid != ino.GID {
			t.Errorf("kernel: %+v, %v", s, err)
		}
	}
}

// TestBigDirectories has directories of 100,000 entries with short and with long names.
func TestBigDirectories(t *testing.T) {
	f := temp(t)
	w, err := NewWriter(f, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	const n = 100000
	root := &Inode{Type: sqfs.TypeDir, Mode: 0o755, Entries: map[string]*Inode{}}
	one := &Inode{Type: sqfs.TypeFile, Mode: 0o644}
	name := func(dir string, i int) string {
		if dir == "long" {
			return fmt.Sprintf("%0255d", i)
		}
		return fmt.Sprint(i)
	}
	for _, dir := range []string{"short", "long", "links"} {
		d := &Inode{Type: sqfs.TypeDir, Mode: 0o755, Entries: make(map[string]*Inode, n)}
		root.Entries[dir] = d
		for i := range n {
			if d.Entries[name(dir, i)] = one; dir != "links" {
				d.Entries[name(dir, i)] = &Inode{Type: sqfs.TypeFile, Mode: uint16(i % 512)}
			}
		}
	}
	img, mnt := finish(t, w, f, root)
	for dir, d := range root.Entries {
		ino, err := img.Resolve(dir, false)
		if err != nil {
			t.Fatal(err)
		}
		count := 0
		for e, err := range img.Dirents(&ino, 0) {
			if err != nil {
				t.Fatalf("%s: %v", dir, err)
			}
			if d.Entries[string(e.Name)] == nil {
				t.Fatalf("%s: there is no %s", dir, e.Name)
			}
			count++
		}
		if count != n {
			t.Errorf("%s: %d entries", dir, count)
		}
		for i := 0; i < n; i += 997 {
			want := uint32(d.Entries[name(dir, i)].Mode) | unix.S_IFREG
			if got, err := img.Resolve(dir+"/"+name(dir, i), false); err != nil || got.UnixMode() != want {
				t.Errorf("%s/%d: %+v, %v", dir, i, got, err)
			}
			var s unix.Stat_t
			if mnt == "" {
				continue
			}
			if err := unix.Lstat(filepath.Join(mnt, dir, name(dir, i)), &s); err != nil || s.Mode != want {
				t.Errorf("kernel: %s/%d: %+v, %v", dir, i, s, err)
			}
		}
		if mnt == "" {
			continue
		}
		if list, err := os.ReadDir(filepath.Join(mnt, dir)); err != nil || len(list) != n {
			t.Errorf("kernel: %s: %d entries, %v", dir, len(list), err)
		}
		var s unix.Stat_t
		if err := unix.Lstat(filepath.Join(mnt, dir, "zzz"), &s); err != unix.ENOENT {
			t.Errorf("kernel: %s/zzz: %v", dir, err)
		}
	}
}

// TestDeep has a tree deeper than any path can be.
func TestDeep(t *testing.T) {
	f := &memFile{}
	w, err := NewWriter(f, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	root := &Inode{Type: sqfs.TypeDir}
	const depth = 300000
	deep := root
	for range depth {
		next := &Inode{Type: sqfs.TypeDir}
		deep.Entries = map[string]*Inode{"d": next, "f": {Type: sqfs.TypeFile}}
		deep = next
	}
	stats, err := w.Finish(root)
	if err != nil || stats.Inodes != 2*depth+1 {
		t.Fatalf("%+v, %v", stats, err)
	}
	img, err := sqfs.New(f, int64(len(f.b)), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := img.Resolve(strings.Repeat("d/", 1000)+"f", false); err != nil {
		t.Error(err)
	}
}

// TestXattrPlaces checks what of attributes is stored once.
func TestXattrPlaces(t *testing.T) {
	f := &memFile{}
	w, err := NewWriter(f, Options{Stored: true})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	long := bytes.Repeat([]byte("long"), 10000)
	root := &Inode{Type: sqfs.TypeDir, Entries: map[string]*Inode{}}
	for i := range 2000 {
		x := []Xattr{
			{"user.z", []byte("short")},
			{"user.inline", []byte("inline value")},
			{"user.a", []byte("inline value")},
			{"trusted.long", long},
			{"security.long", long},
			{"user.same", fmt.Append(nil, "number ", i/2)},
		}
		rand.Shuffle(len(x), func(i, j int) { x[i], x[j] = x[j], x[i] })
		root.Entries[fmt.Sprint(i)] = &Inode{Type: sqfs.TypeFifo, Xattrs: x}
	}
	stats, err := w.Finish(root)
	if err != nil {
		t.Fatal(err)
	}
	// 1000 sets of some 130 bytes, 2000 inodes of 24, entries of 12, export rows of 8.
	if most := int64(len(long) + 1000*150 + 2000*45); stats.Bytes > most {
		t.Errorf("%d bytes, want at most %d", stats.Bytes, most)
	}
	img, err := sqfs.New(f, int64(len(f.b)), nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2000 {
		ino, err := img.Resolve(fmt.Sprint(i), false)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for a, err := range img.Xattrs(&ino) {
			if err != nil {
				t.Fatal(err)
			}
			names = append(names, a.Name)
		}
		if got := fmt.Sprint(names); got != "[security.long trusted.long user.a user.inline user.same user.z]" {
			t.Fatal(got)
		}
		for name, want := range map[string]string{"user.a": "inline value", "user.same": fmt.Sprint("number ", i/2), "security.long": string(long)} {
			if b, err := img.AppendXattr(nil, &ino, name); err != nil || string(b) != want {
				t.Fatalf("%d: %s: %d bytes, %v", i, name, len(b), err)
			}
		}
	}
}

// TestUnused adds contents that no inode has: readers refuse images with more fragments
// than inodes.
func TestUnused(t *testing.T) {
	f := &memFile{}
	w, err := NewWriter(f, Options{BlockSize: 4096})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	root := &Inode{Type: sqfs.TypeDir, Entries: map[string]*Inode{}}
	want := map[string][sha256.Size]byte{}
	for i := range 100 {
		b := bytes.Repeat([]byte{byte(i)}, 3000+i)
		d, err := w.Add(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		if i%40 == 11 {
			root.Entries[fmt.Sprint(i)] = &Inode{Type: sqfs.TypeFile, Data: d}
			want[fmt.Sprint("/", i)] = sha256.Sum256(b)
		}
	}
	stats, err := w.Finish(root)
	if err != nil || stats.Fragments != 3 {
		t.Fatalf("%+v, %v", stats, err)
	}
	all := describeImage(t, f, int64(len(f.b)))
	for path, sum := range want {
		if all[path].contents != sum {
			t.Errorf("%s: %+v", path, all[path])
		}
	}
}
