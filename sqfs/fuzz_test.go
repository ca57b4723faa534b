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
	"testing"
	"time"
)

// FuzzImage reads all it can of damaged images, through both doors. Images in which
// nothing is compressed let the changes reach the parser; they come first.
func FuzzImage(f *testing.F) {
	for _, path := range append([]string{"testdata/stored.sqfs", "testdata/index-stored.sqfs"}, images(f)...) {
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		if len(b) < 70000 {
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		img, err := New(bytes.NewReader(b), int64(len(b)), &Options{MetadataCache: 1 << 20})
		if err != nil {
			known(t, err)
			return
		}
		walkBoth(t, img)
	})
}

// walkBoth goes through an image by both doors, as far as a budget lasts.
func walkBoth(t *testing.T, img *Image) {
	budget := 3000
	_ = walkTree(img, func(_ string, ino *Inode) error {
		if budget--; budget < 0 {
			return io.EOF
		}
		fuzzInode(t, img, ino)
		return nil
	})
	_ = fs.WalkDir(img, ".", func(name string, d fs.DirEntry, err error) error {
		if budget--; budget < -3000 {
			return fs.SkipAll
		}
		if err != nil {
			known(t, err)
			return nil
		}
		if !fs.ValidPath(name) { // not UTF-8
			return nil
		}
		if _, err := img.Stat(name); err != nil {
			known(t, err)
		}
		return nil
	})
}

// fuzzInode asks everything there is to ask about an inode.
func fuzzInode(t *testing.T, img *Image, ino *Inode) {
	for x, err := range img.Xattrs(ino) {
		if err != nil {
			known(t, err)
			break
		}
		if v, err := img.AppendXattr(nil, ino, x.Name); err == nil && len(v) > maxXattrValue {
			t.Errorf("value of %d bytes", len(v))
		}
	}
	_, _ = ino.FileMode(), ino.UnixMode()
	switch ino.Type {
	case TypeDir:
		fuzzDir(t, img, ino)
	case TypeSymlink:
		if b, err := img.AppendLink(nil, ino); err != nil {
			known(t, err)
		} else if len(b) != int(ino.Size) || bytes.IndexByte(b, 0) >= 0 {
			t.Errorf("link %q of %d bytes", b, ino.Size)
		}
	case TypeFile:
		fuzzFile(t, img, ino)
	}
}

func fuzzDir(t *testing.T, img *Image, dir *Inode) {
	n := 0
	for e, err := range img.Dirents(dir, 0) {
		if err != nil {
			known(t, err)
			return
		}
		if len(e.Name) == 0 || len(e.Name) > 255 || bytes.ContainsAny(e.Name, "/\x00") || e.Type < 1 || e.Type > 7 {
			t.Fatalf("entry %+v", e)
		}
		if n++; n%50 == 0 {
			if got, err := img.Lookup(dir, string(e.Name)); err != nil {
				known(t, err)
			} else if string(got.Name) != string(e.Name) {
				t.Fatalf("lookup %q found %q", e.Name, got.Name)
			}
			for _, err := range img.Dirents(dir, e.Pos) {
				if err != nil {
					known(t, err)
				}
				break
			}
		}
		if n > 2000 {
			return
		}
	}
}

func fuzzFile(t *testing.T, img *Image, ino *Inode) {
	f, err := img.File(ino)
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 10000)
	for _, off := range []int64{0, 5000, f.Size() - 5000, f.Size() / 2} {
		if n, err := f.ReadAt(buf, max(off, 0)); err != nil && !errors.Is(err, io.EOF) {
			known(t, err)
		} else if n == 0 && err == nil {
			t.Fatalf("nothing read at %d of %d", off, f.Size())
		}
	}
	if f.NumBlocks() > 0 {
		if _, err := f.Extent(min(f.NumBlocks()-1, 100000)); err != nil {
			known(t, err)
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
		if img, err := New(bytes.NewReader(b), int64(len(b)), nil); err != nil {
			known(t, err)
		} else {
			walkBoth(t, img)
		}
		if d := time.Since(begin); d > 20*time.Second || t.Failed() {
			name := filepath.Join(os.TempDir(), "sqfs-mutation")
			os.WriteFile(name, b, 0o644)
			t.Fatalf("image %d took %v: see %s", i, d, name)
		}
	}
}
