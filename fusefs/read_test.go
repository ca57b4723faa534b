package fusefs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/cache"
	"github.com/squirefs/squire/sqfs"
)

func TestHoles(t *testing.T) {
	needRoot(t)
	s := mountImage(t, role{Image: mksquashfs(t, makeTree(t))}, MountOptions{})
	f, err := os.Open(s.path("sparse"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const mib, block = 1 << 20, 128 << 10
	for _, test := range []struct {
		off    int64
		whence int
		want   int64
		err    error
	}{
		{0, unix.SEEK_HOLE, 0, nil},
		{0, unix.SEEK_DATA, mib, nil},
		{mib + 10, unix.SEEK_DATA, mib + 10, nil},
		{mib, unix.SEEK_HOLE, mib + block, nil},
		{2 * mib, unix.SEEK_DATA, 3 * mib, nil},
		{4 * mib, unix.SEEK_DATA, 0, unix.ENXIO},
		{4*mib + 1, unix.SEEK_HOLE, 4*mib + 1, nil},
		{5 * mib, unix.SEEK_HOLE, 0, unix.ENXIO},
	} {
		got, err := unix.Seek(int(f.Fd()), test.off, test.whence)
		if !errors.Is(err, test.err) || (err == nil && got != test.want) {
			t.Errorf("seek %d, %d: %d, %v, want %d, %v", test.off, test.whence, got, err, test.want, test.err)
		}
	}
}

// TestConcurrent reads random pieces of random files from many goroutines, with a cache far too small.
func TestConcurrent(t *testing.T) {
	needRoot(t)
	tree := makeTree(t)
	image := mksquashfs(t, tree, "-comp", "zstd", "-b", "256K")
	s := mountImage(t, role{Image: image, Cache: 1 << 20}, MountOptions{})
	var names []string
	err := filepath.WalkDir(tree, func(path string, d fs.DirEntry, err error) error {
		if rel, _ := filepath.Rel(tree, path); err == nil && d.Type().IsRegular() {
			names = append(names, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for g := range uint64(32) {
		wg.Go(func() { readPieces(t, tree, s.dir, names, rand.New(rand.NewPCG(g, 7))) })
	}
	wg.Wait()
	if f := s.figures(); f.Goroutines > maxReaders {
		t.Errorf("%d goroutines in the server", f.Goroutines)
	}
}

func readPieces(t *testing.T, want, got string, names []string, rng *rand.Rand) {
	for range 60 {
		name := names[rng.IntN(len(names))]
		a, err1 := os.Open(filepath.Join(want, name))
		b, err2 := os.Open(filepath.Join(got, name))
		if err := errors.Join(err1, err2); err != nil {
			t.Error(err)
			return
		}
		off, size := rng.Int64N(1<<21), 1+rng.IntN(1<<19)
		p, q := make([]byte, size), make([]byte, size)
		n, _ := a.ReadAt(p, off)
		m, _ := b.ReadAt(q, off)
		if n != m || !bytes.Equal(p[:n], q[:m]) {
			t.Errorf("%s at %d: %d bytes, want %d, or different ones", name, off, m, n)
		}
		a.Close()
		b.Close()
	}
}

// damage overwrites the first block of a file in an image.
func damage(t *testing.T, image, name string) {
	t.Helper()
	img, err := sqfs.OpenImage(image)
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	st, err := img.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	file, err := img.File(st.Sys().(*sqfs.Inode))
	if err != nil {
		t.Fatal(err)
	}
	e, err := file.Extent(0)
	if err != nil {
		t.Fatal(err)
	}
	w, err := os.OpenFile(image, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if _, err := w.WriteAt(bytes.Repeat([]byte{0xff}, int(e.Block.Size)), e.Block.Off); err != nil {
		t.Fatal(err)
	}
}

func TestDamagedBlock(t *testing.T) {
	needRoot(t)
	tree := makeTree(t)
	image := mksquashfs(t, tree)
	damage(t, image, "sizes/text1048577")
	s := mountImage(t, role{Image: image}, MountOptions{})
	for range 30 {
		if _, err := os.ReadFile(s.path("sizes/text1048577")); !errors.Is(err, unix.EIO) {
			t.Fatalf("read of the damaged file: %v, want EIO", err)
		}
	}
	for _, name := range []string{"sizes/text131073", "sizes/random1048577", "owned"} {
		got, err1 := os.ReadFile(s.path(name))
		want, err2 := os.ReadFile(filepath.Join(tree, name))
		if err := errors.Join(err1, err2); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s beside the damaged file: %v", name, err)
		}
	}
	log := s.log.String()
	if !strings.Contains(log, "op=read inode=0x") || !strings.Contains(log, "block=0 offset=0") {
		t.Errorf("log does not say where: %s", log)
	}
	if n := strings.Count(log, "\n"); n < 1 || n > reportLines {
		t.Errorf("%d lines of log, want 1 to %d: %s", n, reportLines, log)
	}
}

// TestHostileImages flips bytes all over an image. Whatever the kernel then asks, the server must live.
func TestHostileImages(t *testing.T) {
	needRoot(t)
	tree := makeTree(t)
	good, err := os.ReadFile(mksquashfs(t, tree, "-noI", "-no-duplicates"))
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(5, 5))
	img := openImage(t, writeImage(t, good), Options{})
	tables := int64(96)
	if n := img.super.BytesUsed; n > 200<<10 {
		tables = n - 100<<10 // the tables stand at the end
	}
	mounted := 0
	for i := range 12 {
		bad := bytes.Clone(good)
		for range 1 + 20*i {
			bad[tables+rng.Int64N(int64(len(bad))-tables)] ^= byte(1 << rng.IntN(8))
		}
		path := writeImage(t, bad)
		if check, err := sqfs.OpenImage(path); err != nil {
			continue // refused as a whole
		} else {
			check.Close()
		}
		mounted++
		s := mountImage(t, role{Image: path}, MountOptions{})
		walkAnything(s.dir)
		s.figures() // it lives
		s.stop()
		if log := s.log.String(); strings.Contains(log, "panic") {
			t.Errorf("image %d: %s", i, log)
		}
	}
	if mounted == 0 {
		t.Error("no image could be mounted: the test tests nothing")
	}
}

func writeImage(t *testing.T, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// walkAnything touches what there is, up to a bound, and ignores errors.
func walkAnything(root string) {
	left := 3000
	_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if left--; left < 0 {
			return fs.SkipAll
		}
		if err != nil {
			return nil
		}
		if st, err := os.Lstat(path); err == nil && st.Mode().IsRegular() && st.Size() < 8<<20 {
			_, _ = os.ReadFile(path)
		}
		_, _ = os.Readlink(path)
		_, _ = listxattr(path)
		return nil
	})
}

// TestReadDoesNotAllocate holds the promise of FS.read for all the ways of readExtent.
func TestReadDoesNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("sync.Pool drops some of its contents under the race detector")
	}
	f := openImage(t, mksquashfs(t, makeTree(t), "-comp", "zstd"), Options{Cache: cache.New(1 << 20)})
	defer f.startHelpers()()
	for name, test := range map[string]struct {
		path string
		off  int64
		size int
	}{
		"whole blocks": {"sizes/text1048576", 0, 1 << 20},
		"part":         {"sizes/text1048576", 4096, 4096},
		"stored part":  {"sizes/random1048576", 8192, 4096},
		"fragment":     {"many/file-with-a-longish-name-0100", 0, 4096},
		"hole":         {"sparse", 0, 128 << 10},
	} {
		t.Run(name, func(t *testing.T) {
			node := nodeOf(t, f, test.path)
			dst := make([]byte, test.size)
			if n := testing.AllocsPerRun(100, func() {
				if n, code := f.read(node, test.off, dst); !code.Ok() || n == 0 {
					t.Fatal(n, code)
				}
			}); n != 0 {
				t.Errorf("%v allocations per READ, want 0", n)
			}
		})
	}
}

// TestHelpers reads with helpers, many READs at once, and damage among the pieces.
func TestHelpers(t *testing.T) {
	tree := makeTree(t)
	image := mksquashfs(t, tree, "-comp", "zstd")
	damage(t, image, "sizes/text1048577")
	f := openImage(t, image, Options{})
	defer f.startHelpers()()
	want, err := os.ReadFile(filepath.Join(tree, "sizes/text1048576"))
	if err != nil {
		t.Fatal(err)
	}
	good, bad := nodeOf(t, f, "sizes/text1048576"), nodeOf(t, f, "sizes/text1048577")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			dst := make([]byte, 1<<20)
			for range 20 {
				clear(dst)
				if n, code := f.read(good, 0, dst); !code.Ok() || !bytes.Equal(dst[:n], want) {
					t.Errorf("read %d bytes, %v, or wrong ones", n, code)
				}
				if _, code := f.read(bad, 0, dst); code != fuse.EIO {
					t.Errorf("read of the damaged file: %v, want EIO", code)
				}
			}
		})
	}
	wg.Wait()
}

func nodeOf(t testing.TB, f *FS, name string) uint64 {
	t.Helper()
	st, err := f.img.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	return uint64(st.Sys().(*sqfs.Inode).Ref) + nodeBase
}

// BenchmarkDecode answers READs of 1 MiB without a kernel.
func BenchmarkDecode(b *testing.B) {
	f := openImage(b, mksquashfs(b, makeTree(b), "-comp", "zstd"), Options{})
	node := nodeOf(b, f, "sizes/text1048576")
	dst := make([]byte, 1<<20)
	bench := func(b *testing.B) {
		b.SetBytes(int64(len(dst)))
		b.ReportAllocs()
		for b.Loop() {
			if _, code := f.read(node, 0, dst); !code.Ok() {
				b.Fatal(code)
			}
		}
	}
	b.Run("alone", bench)
	defer f.startHelpers()()
	b.Run("helpers", bench)
}

// BenchmarkRead reads through a mount, with direct I/O so that each read is a READ.
func BenchmarkRead(b *testing.B) {
	needRoot(b)
	tree := b.TempDir()
	data := make([]byte, 64<<20)
	rng := rand.New(rand.NewPCG(3, 3))
	for i := range data {
		data[i] = byte(rng.Uint32() & 0x0f) // compresses to about a half
	}
	if err := os.WriteFile(filepath.Join(tree, "file"), data, 0o644); err != nil {
		b.Fatal(err)
	}
	for image, args := range map[string][]string{"zstd": {"-comp", "zstd"}, "stored": {"-noD", "-noF"}} {
		path := mksquashfs(b, tree, args...)
		for _, goFuse := range []bool{false, true} {
			b.Run(fmt.Sprintf("%s/go-fuse=%v", image, goFuse), func(b *testing.B) {
				s := mountImage(b, role{Image: path, GoFuse: goFuse, Cache: 128 << 20}, MountOptions{})
				b.Run("random4K", func(b *testing.B) { benchmarkReads(b, s, 4<<10) })
				b.Run("128K", func(b *testing.B) { benchmarkReads(b, s, 128<<10) })
			})
		}
	}
}

func benchmarkReads(b *testing.B, s *server, size int) {
	fd, err := unix.Open(s.path("file"), unix.O_RDONLY, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Close(fd)
	// Without read-ahead each pread is one READ of its own size, as no page is cached after the advice.
	_ = unix.Fadvise(fd, 0, 0, unix.FADV_RANDOM)
	_ = unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED)
	buf := make([]byte, size)
	rng := rand.New(rand.NewPCG(9, 9))
	before := s.figures()
	b.SetBytes(int64(size))
	for b.Loop() {
		off := rng.Int64N(64<<20/int64(size)) * int64(size)
		if _, err := unix.Pread(fd, buf, off); err != nil {
			b.Fatal(err)
		}
		_ = unix.Fadvise(fd, off, int64(size), unix.FADV_DONTNEED)
	}
	b.StopTimer()
	after := s.figures()
	reads := float64(after.Stats.Read - before.Stats.Read)
	b.ReportMetric(reads/float64(b.N), "READ/op")
	b.ReportMetric(float64(after.Mallocs-before.Mallocs)/reads, "mallocs/READ")
	b.ReportMetric(float64((after.UserTime+after.SysTime-before.UserTime-before.SysTime).Microseconds())/reads, "cpu-µs/READ")
}

// TestSeekIsBounded: nobody can kill the caller of lseek while it is answered, so a file of nothing but holes must not
// be searched to its end at once.
func TestSeekIsBounded(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	const size = (maxSeek + 1000) * 4096
	if err := os.Truncate(filepath.Join(dir, "f"), size); err != nil {
		t.Fatal(err)
	}
	f, ino := openFile(t, mksquashfs(t, dir, "-b", "4096"), nil)
	for _, tt := range []struct {
		off  int64
		hole bool
		want int64
		code fuse.Status
	}{
		{0, true, 0, fuse.OK},
		{0, false, maxSeek * 4096, fuse.OK}, // a hole, taken for data
		{5000 * 4096, false, 0, fuse.Status(unix.ENXIO)},
	} {
		if got, code := f.seek(&ino, tt.off, tt.hole); got != tt.want || code != tt.code {
			t.Errorf("seek(%d, hole %v) = %d, %v, want %d, %v", tt.off, tt.hole, got, code, tt.want, tt.code)
		}
	}
}

// openFile returns a file system for an image and the inode of the file f in it. wrap, if not nil, goes around the
// image's bytes.
func openFile(t *testing.T, image string, wrap func(io.ReaderAt) io.ReaderAt) (*FS, sqfs.Inode) {
	t.Helper()
	raw, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	var src io.ReaderAt = bytes.NewReader(raw)
	if wrap != nil {
		src = wrap(src)
	}
	img, err := sqfs.New(src, int64(len(raw)), nil)
	if err != nil {
		t.Fatal(err)
	}
	root, err := img.Inode(img.Root())
	if err != nil {
		t.Fatal(err)
	}
	d, err := img.Lookup(&root, "f")
	if err != nil {
		t.Fatal(err)
	}
	ino, err := img.Inode(d.Ref)
	if err != nil {
		t.Fatal(err)
	}
	return New(img, Options{}), ino
}

// panicky panics for a read at one place, and takes its time for all others.
type panicky struct {
	io.ReaderAt
	at atomic.Int64
}

func (p *panicky) ReadAt(b []byte, off int64) (int, error) {
	switch p.at.Load() {
	case 0:
	case off:
		panic("a fault of the decoder")
	default:
		time.Sleep(50 * time.Millisecond)
	}
	return p.ReaderAt.ReadAt(b, off)
}

// TestPanicWaitsForHelpers: after a panic in the middle of a READ its buffer goes back to the pool, so no helper may
// write to it any more.
func TestPanicWaitsForHelpers(t *testing.T) {
	dir := t.TempDir()
	data := make([]byte, 8<<17)
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	if err := os.WriteFile(filepath.Join(dir, "f"), data, 0o644); err != nil {
		t.Fatal(err)
	}
	src := new(panicky)
	f, ino := openFile(t, mksquashfs(t, dir, "-noD"), func(r io.ReaderAt) io.ReaderAt { src.ReaderAt = r; return src })
	stop := f.startHelpers()
	defer stop()
	file, err := f.img.File(&ino)
	if err != nil {
		t.Fatal(err)
	}
	last, err := file.Extent(file.NumBlocks() - 1)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(20 * time.Millisecond) // for the helpers to wait for work
	src.at.Store(last.Block.Off)
	buf := make([]byte, len(data))
	tr := &transport{fs: f}
	in := &fuse.ReadIn{InHeader: fuse.InHeader{NodeId: uint64(ino.Ref) + nodeBase}, Size: uint32(len(buf))}
	if _, code := tr.guardedRead(in, buf); code != fuse.EIO {
		t.Errorf("answer %v, want %v", code, fuse.EIO)
	}
	before := bytes.Clone(buf)
	time.Sleep(200 * time.Millisecond)
	if !bytes.Equal(before, buf) {
		t.Error("helpers wrote to the buffer after the READ had ended")
	}
}
