package sqfs

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
)

// find returns the inode at a path of names, through Lookup.
func find(t testing.TB, img *Image, names ...string) Inode {
	t.Helper()
	ino, err := img.Inode(img.Root())
	for _, name := range names {
		if err != nil {
			break
		}
		var e Dirent
		if e, err = img.Lookup(&ino, name); err == nil {
			ino, err = img.Inode(e.Ref)
		}
	}
	if err != nil {
		t.Fatalf("%q: %v", names, err)
	}
	return ino
}

// TestLookupAndResume checks on all directories of all images that Lookup finds what
// Dirents lists and nothing else, and that Dirents can go on after each entry.
func TestLookupAndResume(t *testing.T) {
	for _, path := range images(t) {
		t.Run(path, func(t *testing.T) {
			img := openTest(t, path)
			err := walkTree(img, func(name string, ino *Inode) error {
				if ino.Type == TypeDir && ino.Size < 1<<16 { // larger ones of the corpus would take minutes
					checkDir(t, img, name, ino)
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		})
	}
}

func checkDir(t *testing.T, img *Image, name string, dir *Inode) {
	t.Helper()
	all := list(t, img, dir, 0)
	for i, e := range all {
		got, err := img.Lookup(dir, string(e.Name))
		if err != nil || !sameEntry(got, e) {
			t.Fatalf("%s: lookup %q = %+v, %v, want %+v", name, e.Name, got, err, e)
		}
		for _, absent := range []string{string(e.Name) + "\x01", string(e.Name[:len(e.Name)-1]) + "\x02\x03"} {
			if _, err := img.Lookup(dir, absent); !errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("%s: lookup %q = %v, want %v", name, absent, err, fs.ErrNotExist)
			}
		}
		if i%7 == 0 || i > len(all)-3 || e.Pos.entries() > 254 {
			if rest := list(t, img, dir, e.Pos); !sameEntries(rest, all[i+1:]) {
				t.Fatalf("%s: from %#x there are %d entries, want %d", name, e.Pos, len(rest), len(all)-i-1)
			}
		}
		if e.Pos < 512 || e.Pos >= 1<<42 {
			t.Fatalf("%s: position %#x", name, e.Pos)
		}
	}
}

func list(t *testing.T, img *Image, dir *Inode, pos DirPos) (all []Dirent) {
	t.Helper()
	for e, err := range img.Dirents(dir, pos) {
		if err != nil {
			t.Fatal(err)
		}
		e.Name = bytes.Clone(e.Name)
		all = append(all, e)
	}
	return all
}

func sameEntry(a, b Dirent) bool {
	return string(a.Name) == string(b.Name) && a.Ref == b.Ref && a.Number == b.Number && a.Type == b.Type && a.Pos == b.Pos
}

func sameEntries(a, b []Dirent) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if !sameEntry(a[i], b[i]) {
			return false
		}
	}
	return true
}

// TestIndexIsUsed checks that a lookup near the end of a big directory does not read
// the blocks before it.
func TestIndexIsUsed(t *testing.T) {
	for _, path := range []string{"testdata/index-gzip.sqfs", "testdata/index-stored.sqfs"} {
		img := openTest(t, path)
		big := find(t, img, "big")
		if big.index == 0 {
			t.Fatalf("%s: no index", path)
		}
		var d dirReader
		if err := d.seek(img, &big, "zz-last"); err != nil || d.pos < 16384 {
			t.Errorf("%s: search for the last of %d bytes starts at %d: %v", path, big.Size, d.pos, err)
		}
	}
}

// TestReadAt compares pieces of files, at and across the ends of blocks, with the
// whole file.
func TestReadAt(t *testing.T) {
	for _, path := range images(t) {
		t.Run(path, func(t *testing.T) {
			img := openTest(t, path)
			bs := int64(img.Superblock().BlockSize)
			rnd := rand.New(rand.NewPCG(1, 2))
			files, buf := 0, make([]byte, 2*bs)
			var all bytes.Buffer
			err := walkTree(img, func(name string, ino *Inode) error {
				if ino.Type != TypeFile || ino.Size > 100<<20 || testing.Short() && ino.Size > 1<<20 {
					return nil
				}
				// All of a fragment is expanded for each small file: of long trees some files are enough.
				if files++; files > 200 && files%32 != 0 {
					return nil
				}
				all.Reset()
				if err := copyFile(&all, img, ino); err != nil {
					return err
				}
				f, err := img.File(ino)
				if err != nil {
					return err
				}
				for range 4 {
					off := rnd.Int64N(ino.Size + 1)
					if rnd.IntN(2) == 0 {
						off = off / bs * bs
					}
					p := buf[:rnd.Int64N(2*bs)+1]
					n, err := f.ReadAt(p, off)
					want := all.Bytes()[off:min(off+int64(len(p)), ino.Size)]
					if !bytes.Equal(p[:n], want) || errors.Is(err, io.EOF) != (n < len(p)) || err != nil && !errors.Is(err, io.EOF) {
						t.Fatalf("%s: read %d bytes at %d of %d: got %d, %v", name, len(p), off, ino.Size, n, err)
					}
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestExtents checks that Extent and Extents agree, in a file with sampled block list.
func TestExtents(t *testing.T) {
	img := openTest(t, "testdata/sparse.sqfs")
	ino := find(t, img, "long")
	f, err := img.File(&ino)
	if err != nil {
		t.Fatal(err)
	}
	if f.NumBlocks() < 5*sampleEvery-10 {
		t.Fatalf("%d blocks, want more than 4 samples", f.NumBlocks())
	}
	var all []Extent
	for e, err := range f.Extents(0) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, e)
	}
	var data int
	for _, i := range rand.New(rand.NewPCG(1, 2)).Perm(len(all)) {
		e, err := f.Extent(int64(i))
		if err != nil || e != all[i] {
			t.Fatalf("extent %d = %+v, %v, want %+v", i, e, err, all[i])
		}
		if e.Block.Size > 0 {
			data++
		}
	}
	if data < 4 || data > 10 {
		t.Errorf("%d blocks with data, want about 6", data)
	}
	for e, err := range f.Extents(9000) {
		if err != nil || e != all[9000] {
			t.Errorf("extents from 9000 = %+v, %v, want %+v", e, err, all[9000])
		}
		break
	}
	for _, i := range []int64{-1, f.NumBlocks()} {
		if _, err := f.Extent(i); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("extent %d: %v, want %v", i, err, fs.ErrInvalid)
		}
	}
	if x := img.lists.get(ino.Ref); len(x.samples) != int(f.NumBlocks()-1)/sampleEvery {
		t.Errorf("%d samples of %d blocks", len(x.samples), f.NumBlocks())
	}
}

// TestSamplesAreBounded checks that long lists lead to fewer samples, not to more.
func TestSamplesAreBounded(t *testing.T) {
	x := &listIndex{stride: sampleEvery}
	var last int64
	for i := range int64(100000) {
		if last = x.wanted(); last > i*sampleEvery {
			continue
		}
		x.add(sample{data: last}, last)
	}
	if len(x.samples) >= maxSamples || x.stride < 16*sampleEvery {
		t.Errorf("%d samples with stride %d", len(x.samples), x.stride)
	}
	for _, i := range []int64{0, 1, x.stride - 1, x.stride, 7*x.stride + 5, 1 << 40} {
		s, block, ok := x.before(i)
		if ok != (i >= x.stride) || block > i || s.data != block {
			t.Errorf("before %d: sample %+v of block %d, %v", i, s, block, ok)
		}
	}
}

// TestListIndexes checks that the latest files are kept.
func TestListIndexes(t *testing.T) {
	var l listIndexes
	first := l.get(1)
	for i := range InodeRef(listSlots - 1) {
		l.get(i + 2)
	}
	if l.get(1) != first {
		t.Error("the oldest of 16 files was forgotten")
	}
	l.get(100)
	if l.get(1) != first {
		t.Error("the file used last was forgotten")
	}
	for i := range InodeRef(listSlots) {
		l.get(i + 200)
	}
	if l.get(1) == first {
		t.Error("16 others did not replace a file")
	}
}

// TestSmallCache reads an image through a metadata cache that holds nearly nothing.
func TestSmallCache(t *testing.T) {
	for _, limit := range []int64{1, 10000, 40000, 1 << 40} {
		b, err := os.ReadFile("testdata/index-gzip.sqfs")
		if err != nil {
			t.Fatal(err)
		}
		img, err := New(bytes.NewReader(b), int64(len(b)), &Options{MetadataCache: limit})
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				if err := readAllOf(img); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		var used int64
		for i := range img.meta.buckets {
			used += img.meta.buckets[i].Load().total()
		}
		if used != img.meta.bytes.Load() || used > limit {
			t.Errorf("limit %d: %d bytes in use, %d accounted", limit, used, img.meta.bytes.Load())
		}
	}
}

// readAllOf reads whatever can be read of an image through the inode door, and
// returns the first error.
func readAllOf(img *Image) error {
	return walkTree(img, func(_ string, ino *Inode) error {
		for x, err := range img.Xattrs(ino) {
			if err != nil {
				return err
			}
			if _, err := img.AppendXattr(nil, ino, x.Name); err != nil {
				return err
			}
		}
		switch ino.Type {
		case TypeSymlink:
			_, err := img.AppendLink(nil, ino)
			return err
		case TypeFile:
			return copyFile(io.Discard, img, ino)
		}
		return nil
	})
}

// TestConcurrent reads one image from many goroutines, for the race detector.
func TestConcurrent(t *testing.T) {
	for _, path := range []string{"testdata/basic-zstd-4K.sqfs", "testdata/basic-gzip-4K.sqfs", "testdata/basic-xz-4K.sqfs", "testdata/sparse.sqfs"} {
		img := openTest(t, path)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				if err := readAllOf(img); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
}

// TestByNumber follows the export table to each inode.
func TestByNumber(t *testing.T) {
	img := openTest(t, "testdata/stored.sqfs")
	err := walkTree(img, func(name string, ino *Inode) error {
		ref, err := img.ByNumber(ino.Number)
		if err != nil || ref != ino.Ref {
			t.Errorf("%s: number %d leads to %v, %v, want %v", name, ino.Number, ref, err, ino.Ref)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []uint32{0, img.Superblock().Inodes + 1} {
		if _, err := img.ByNumber(n); !errors.Is(err, ErrCorrupt) {
			t.Errorf("number %d: %v, want %v", n, err, ErrCorrupt)
		}
	}
	img = openTest(t, "testdata/basic-nofragments.sqfs")
	if _, err := img.ByNumber(1); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a table: %v, want %v", err, fs.ErrNotExist)
	}
}

// TestStreamed opens an image with the superblock at its end.
func TestStreamed(t *testing.T) {
	b, err := os.ReadFile("testdata/stored.sqfs")
	if err != nil {
		t.Fatal(err)
	}
	b = append(b, b[:96]...)
	copy(b, "HSQS")
	img, err := New(bytes.NewReader(b), int64(len(b)), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := readAllOf(img); err != nil {
		t.Error(err)
	}
}

// TestWrongUse checks that methods for one type of inode refuse others.
func TestWrongUse(t *testing.T) {
	img := openTest(t, "testdata/stored.sqfs")
	dir, file := find(t, img, "sub"), find(t, img, "small")
	if _, err := img.File(&dir); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("file of a directory: %v", err)
	}
	if _, err := img.AppendLink(nil, &file); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("link of a file: %v", err)
	}
	if _, err := img.Lookup(&file, "x"); err == nil {
		t.Error("lookup in a file succeeded")
	}
	for _, err := range img.Dirents(&file, 0) {
		if err == nil {
			t.Error("list of a file has entries")
		}
	}
	if _, err := img.ReadBlock(make([]byte, 10), Block{Off: 96, Size: 11, Len: 11}); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("read into a short buffer: %v", err)
	}
	for _, name := range []string{"", "user", "user.", "system.x", "user.nothing", "trusted.short"} {
		if _, err := img.AppendXattr(nil, &file, name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("attribute %q: %v, want %v", name, err, fs.ErrNotExist)
		}
	}
}

// TestOpenImage opens files by name.
func TestOpenImage(t *testing.T) {
	img, err := OpenImage("testdata/basic-xz-4K.sqfs")
	if err != nil {
		t.Fatal(err)
	}
	sb := img.Superblock()
	if sb.Compression.String() != "xz" || sb.BlockSize != 4096 || sb.MkfsTime != 1700000000 || sb.Root != img.Root() || img.HasXattrs() {
		t.Errorf("superblock %+v", sb)
	}
	if err := img.Close(); err != nil {
		t.Error(err)
	}
	if _, err := img.Inode(img.Root() - 1<<16); err == nil {
		t.Error("read of a closed image succeeded")
	}
	for path, want := range map[string]error{
		"testdata/make.sh": ErrNotSquashfs, "testdata/none": fs.ErrNotExist, "testdata": nil, "/dev/null": ErrNotSquashfs,
	} {
		if _, err := OpenImage(path); err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("open %s: %v, want %v", path, err, want)
		}
	}
}

// brokenSource gives an error for all reads behind the superblock and the tables.
type brokenSource struct {
	*bytes.Reader
	from, to int64
	err      error
}

func (b *brokenSource) ReadAt(p []byte, off int64) (int, error) {
	if off >= b.from && off < b.to {
		return 0, b.err
	}
	return b.Reader.ReadAt(p, off)
}

// TestSourceError checks that errors of the source arrive as they are, are not taken
// for a corrupt image, and are forgotten when the source works again.
func TestSourceError(t *testing.T) {
	b, err := os.ReadFile("testdata/basic-zstd-4K.sqfs")
	if err != nil {
		t.Fatal(err)
	}
	src := &brokenSource{Reader: bytes.NewReader(b), err: errors.New("cable cut")}
	img, err := New(src, int64(len(b)), nil)
	if err != nil {
		t.Fatal(err)
	}
	src.to = img.Superblock().InodeTable
	if _, err := img.ReadFile("sizes/t004097"); !errors.Is(err, src.err) || errors.Is(err, ErrCorrupt) {
		t.Errorf("read: %v, want %v", err, src.err)
	}
	src.to = 0
	if got, err := img.ReadFile("sizes/t004097"); err != nil || len(got) != 4097 {
		t.Errorf("read: %d bytes, %v", len(got), err)
	}
}

// Only the last block of a table is short: a table of blocks of one byte would take a read for each.
func TestShortMetadataBlock(t *testing.T) {
	img := openTest(t, "testdata/basic-zstd-4K.sqfs")
	c, err := img.at(&img.inodes, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	short := *c.blk
	short.data = short.data[:100]
	c.blk = &short
	if err := c.skip(100); err != nil {
		t.Errorf("within the block: %v", err)
	}
	if err := c.skip(1); !errors.Is(err, ErrCorrupt) {
		t.Errorf("past a short block: %v, want %v", err, ErrCorrupt)
	}
}
