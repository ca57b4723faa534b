package sqfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/squirefs/squire/sqfs/internal/disk"
)

// invariants checks what holds of every image that opens, however damaged.
type invariants struct {
	t    *testing.T
	img  *Image
	data int64 // bytes of files that were read
}

func newInvariants(t *testing.T, img *Image) *invariants { return &invariants{t: t, img: img} }

const (
	maxInodes  = 3000    // looked at through one door
	maxEntries = 2000    // of a directory
	maxData    = 8 << 20 // bytes of files
)

// walkBoth goes through an image by both doors, as far as a budget lasts.
func (c *invariants) walkBoth() {
	budget := maxInodes
	err := walkTree(c.img, func(_ string, ino *Inode) error {
		if budget--; budget < 0 {
			return io.EOF
		}
		c.inode(ino)
		return nil
	})
	if err != nil && !errors.Is(err, io.EOF) {
		known(c.t, err)
	}
	budget = maxInodes
	_ = fs.WalkDir(c.img, ".", func(name string, _ fs.DirEntry, err error) error {
		if budget--; budget < 0 {
			return fs.SkipAll
		}
		if err != nil {
			known(c.t, err)
			return nil
		}
		if !fs.ValidPath(name) { // not UTF-8
			return nil
		}
		if _, err := c.img.Stat(name); err != nil {
			known(c.t, err)
		}
		return nil
	})
	for i := range uint32(100) {
		ref, err := c.img.ByNumber(i)
		if err == nil {
			_, err = c.img.Inode(ref)
		}
		if err != nil {
			known(c.t, err)
		}
	}
}

// inode asks everything there is to ask about an inode.
func (c *invariants) inode(ino *Inode) {
	if ino.Type < TypeDir || ino.Type > TypeSocket || ino.Number == 0 || ino.Mode&^0o7777 != 0 || ino.Size < 0 || ino.Size > maxFileSize {
		c.t.Fatalf("inode %+v", ino)
	}
	if again, err := c.img.Inode(ino.Ref); err != nil || again != *ino {
		c.t.Fatalf("inode %+v, again %+v, %v", ino, again, err)
	}
	_, _ = ino.FileMode(), ino.Blocks512()
	c.xattrs(ino)
	switch ino.Type {
	case TypeDir:
		c.dir(ino)
	case TypeSymlink:
		if b, err := c.img.AppendLink(nil, ino); err != nil {
			known(c.t, err)
		} else if len(b) == 0 || len(b) > maxLink || len(b) != int(ino.Size) || bytes.IndexByte(b, 0) >= 0 {
			c.t.Fatalf("link %q of %d bytes", b, ino.Size)
		}
	case TypeFile:
		c.file(ino)
	}
}

// xattrs checks that names and sizes are bounded, and that values have the size that the list
// says.
func (c *invariants) xattrs(ino *Inode) {
	n := 0
	for x, err := range c.img.Xattrs(ino) {
		if err != nil {
			known(c.t, err)
			return
		}
		prefix := strings.HasPrefix(x.Name, "user.") || strings.HasPrefix(x.Name, "trusted.") || strings.HasPrefix(x.Name, "security.")
		if !prefix || len(x.Name) > maxXattrName || strings.Contains(x.Name, "\x00") || x.Size < 0 || x.Size > maxXattrValue {
			c.t.Fatalf("attribute %+v", x)
		}
		if n++; n > 40 { // a value is searched from the start
			continue
		}
		v, err := c.img.AppendXattr(nil, ino, x.Name)
		if err != nil {
			known(c.t, err)
		} else if len(v) > maxXattrValue {
			c.t.Fatalf("value of %d bytes", len(v))
		}
	}
}

// dir checks that names are valid and ascend, that a second reading gives the same, that it
// can go on after each entry, and that Lookup finds what is listed and nothing else.
func (c *invariants) dir(dir *Inode) {
	all, whole := c.list(dir, 0)
	for i, e := range all {
		name := string(e.Name)
		if name == "" || len(name) > 255 || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") || e.Type < TypeDir || e.Type > TypeSocket {
			c.t.Fatalf("entry %+v", e)
		}
		if i > 0 && (string(all[i-1].Name) >= name || all[i-1].Pos >= e.Pos) {
			c.t.Fatalf("entry %+v after %+v", e, all[i-1])
		}
	}
	if again, _ := c.list(dir, 0); !sameEntries(again, all) {
		c.t.Fatalf("directory %v has %d entries, then %d", dir.Ref, len(all), len(again))
	}
	step := max(1, len(all)/20)
	for i := 0; i < len(all); i += step {
		c.entry(dir, all, i, whole)
	}
}

// entry checks what is to be found from, and at, entry i.
func (c *invariants) entry(dir *Inode, all []Dirent, i int, whole bool) {
	e := all[i]
	if rest, ended := c.list(dir, e.Pos); whole && (!ended || !sameEntries(rest, all[i+1:])) {
		c.t.Fatalf("directory %v: from %#x on %d entries, want %d", dir.Ref, e.Pos, len(rest), len(all)-i-1)
	}
	got, err := c.img.Lookup(dir, string(e.Name))
	switch {
	case err == nil && string(got.Name) != string(e.Name):
		c.t.Fatalf("lookup %q found %q", e.Name, got.Name)
	case whole && dir.index == 0 && (err != nil || !sameEntry(got, e)): // an index may lie
		c.t.Fatalf("lookup %q found %+v, %v, want %+v", e.Name, got, err, e)
	case err != nil:
		known(c.t, err)
	}
	absent := string(e.Name) + "\x01"
	if i+1 < len(all) && string(all[i+1].Name) == absent {
		return
	}
	if got, err := c.img.Lookup(dir, absent); err == nil && whole && dir.index == 0 {
		c.t.Fatalf("lookup %q found %+v, which is not listed", absent, got)
	}
}

// list returns the entries from pos on, and whether these are all.
func (c *invariants) list(dir *Inode, pos DirPos) (all []Dirent, whole bool) {
	for e, err := range c.img.Dirents(dir, pos) {
		if err != nil {
			known(c.t, err)
			return all, false
		}
		if len(all) == maxEntries {
			return all, false
		}
		e.Name = bytes.Clone(e.Name)
		all = append(all, e)
	}
	return all, true
}

// file checks that all extents lie inside the image, make up the file, and are found one by
// one as well, and that reading twice gives the same.
func (c *invariants) file(ino *Inode) {
	f, err := c.img.File(ino)
	if err != nil {
		c.t.Fatal(err)
	}
	var sum int64
	i := int64(0)
	for e, err := range f.Extents(0) {
		if f.NumBlocks() == 0 {
			break // there is no block 0 to begin with
		}
		if err != nil {
			known(c.t, err)
			break
		}
		c.extent(e)
		if one, err := f.Extent(i); i%17 == 0 && (err != nil || one != e) {
			c.t.Fatalf("extent %d is %+v, then %+v, %v", i, e, one, err)
		}
		sum += int64(e.Len)
		if i++; i == 3000 {
			break
		}
	}
	if i == f.NumBlocks() && sum != f.Size() {
		c.t.Fatalf("extents of %d bytes make %d", f.Size(), sum)
	}
	c.read(&f)
}

func (c *invariants) extent(e Extent) {
	sb := &c.img.sb
	b := e.Block
	switch {
	case e.Len <= 0 || e.Start < 0 || e.Start+e.Len > int(sb.BlockSize) || b.Len > sb.BlockSize || b.Size > sb.BlockSize:
		c.t.Fatalf("extent %+v", e)
	case b.Size > 0 && (b.Off < disk.SuperblockSize || b.Off > sb.BytesUsed-int64(b.Size)):
		c.t.Fatalf("extent %+v outside an image of %d bytes", e, sb.BytesUsed)
	}
}

// read reads some places twice.
func (c *invariants) read(f *File) {
	var buf, again [10000]byte
	for _, off := range []int64{0, 5000, f.Size() - 5000, f.Size() / 2} {
		if c.data += int64(c.img.sb.BlockSize); c.data > maxData {
			return
		}
		n, err := f.ReadAt(buf[:], max(off, 0))
		if err != nil && !errors.Is(err, io.EOF) {
			known(c.t, err)
		} else if n == 0 && err == nil {
			c.t.Fatalf("nothing read at %d of %d", off, f.Size())
		}
		k, err2 := f.ReadAt(again[:], max(off, 0))
		if k != n || (err == nil) != (err2 == nil) || !bytes.Equal(buf[:n], again[:k]) {
			c.t.Fatalf("read at %d: %d bytes, %v; then %d, %v", off, n, err, k, err2)
		}
	}
}

// known wants err to be of a kind that the package promises.
func known(t *testing.T, err error) {
	t.Helper()
	for _, kind := range []error{ErrCorrupt, ErrNotSquashfs, ErrVersion, ErrUnsupported, fs.ErrNotExist, fs.ErrInvalid} {
		if errors.Is(err, kind) {
			return
		}
	}
	var pe *fs.PathError
	if errors.As(err, &pe) { // ENOTDIR, ELOOP, ENAMETOOLONG
		return
	}
	t.Errorf("unexpected kind of error: %v", err)
}

// mutationsVar says how many damaged images TestMutations reads, if not 300.
const mutationsVar = "SQFS_MUTATIONS"

// TestMutations damages a few bytes of an image at random: a fuzzer without guidance,
// but fast, and with more hits where it matters, in the metadata.
func TestMutations(t *testing.T) {
	n := 300
	if s := os.Getenv(mutationsVar); s != "" {
		fmt.Sscan(s, &n)
	}
	var bases [][]byte
	for _, name := range []string{"stored", "index-stored", "xattr-zstd", "sparse", "basic-xz-4K", "basic-gzip-4K", "ids"} {
		b, err := os.ReadFile("testdata/" + name + ".sqfs")
		if err != nil {
			t.Fatal(err)
		}
		bases = append(bases, b)
	}
	rnd := rand.New(rand.NewPCG(uint64(n), 3))
	for i := range n {
		b := bytes.Clone(bases[min(rnd.IntN(14), rnd.IntN(14))%len(bases)])
		start := int(binary.LittleEndian.Uint64(b[64:])) // the inode table
		for range 1 + rnd.IntN(6) {
			at := start + rnd.IntN(len(b)-start)
			switch rnd.IntN(20) {
			case 0:
				at = rnd.IntN(96)
			case 1:
				at = rnd.IntN(start)
			}
			b[at] = []byte{0, 1, 0x7f, 0x80, 0xff, b[at] + 1, b[at] - 1, b[at] ^ 1<<rnd.IntN(8), byte(rnd.Uint32())}[rnd.IntN(9)]
		}
		begin := time.Now()
		checkImage(t, b)
		if d := time.Since(begin); d > 20*time.Second || t.Failed() {
			name := filepath.Join(os.TempDir(), "sqfs-mutation")
			os.WriteFile(name, b, 0o644)
			t.Fatalf("image %d took %v: see %s", i, d, name)
		}
	}
}
