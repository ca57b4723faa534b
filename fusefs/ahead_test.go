package fusefs

import (
	"bytes"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/squirefs/squire/cache"
	"github.com/squirefs/squire/internal/testenv"
	"github.com/squirefs/squire/sqfs"
)

// manyFiles makes a directory of n small files and one long one, and returns it.
func manyFiles(t *testing.T, n int) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	write := func(name string, size int) {
		data := make([]byte, size)
		for i := range data {
			data[i] = "abcdefgh"[rng.IntN(8)]
		}
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for i := range n {
		write(fmt.Sprintf("small-%04d", i), 3000+rng.IntN(9000))
	}
	write("zlong", 5<<20+1234)
	return dir
}

// TestReadInOrder reads a mount in the order of the image: most of it has to be in the page cache before it is asked
// for, and all of it has to be right.
func TestReadInOrder(t *testing.T) {
	needRoot(t)
	dir := manyFiles(t, 1500)
	for _, args := range [][]string{{"-b", "128K"}, {"-b", "1M", "-no-fragments"}, {"-b", "4K", "-always-use-fragments"}} {
		s := mountImage(t, role{Image: mksquashfs(t, dir, args...)}, MountOptions{})
		var bytesRead uint64
		err := filepath.WalkDir(s.dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			want, err := os.ReadFile(filepath.Join(dir, d.Name()))
			if err != nil {
				return err
			}
			got, err := os.ReadFile(path)
			if err == nil && !bytes.Equal(got, want) {
				t.Errorf("%v: %s is not what was packed", args, d.Name())
			}
			bytesRead += uint64(len(got))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		st := s.figures().Stats
		if st.Read > 1000 || st.Stored < bytesRead/3 {
			t.Errorf("%v: %d READs and %d bytes stored ahead for %d bytes of 1501 files read in order", args, st.Read, st.Stored, bytesRead)
		}
	}
}

// TestReadAtRandom: who jumps about gets no more decoded than blocks of which it asked for a part.
func TestReadAtRandom(t *testing.T) {
	needRoot(t)
	dir := manyFiles(t, 0)
	image := mksquashfs(t, dir, "-b", "128K")
	s := mountImage(t, role{Image: image}, MountOptions{})
	f, err := os.Open(s.path("zlong"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want, err := os.ReadFile(filepath.Join(dir, "zlong"))
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(3, 4))
	for range 300 {
		off, buf := rng.Int64N(int64(len(want)-4096)), make([]byte, 4096)
		if _, err := f.ReadAt(buf, off); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(buf, want[off:off+4096]) {
			t.Fatalf("wrong bytes at %d", off)
		}
	}
	st := s.figures().Stats
	// 41 blocks; the kernel asks for a page or some around it, and finds the rest in the page cache.
	if blocks := st.Cache.Misses + st.Cache.Ahead; blocks > 60 {
		t.Errorf("%d blocks decoded for a file of 41", blocks)
	}
	if st.Read > 200 {
		t.Errorf("%d READs for 300 reads in 41 blocks", st.Read)
	}
}

// startAhead starts the goroutines of ahead on an image that is not mounted.
func startAhead(t *testing.T, f *FS) {
	t.Helper()
	t.Cleanup(f.ahead.start())
}

// eventually waits until ok, which is asked again and again.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	testenv.Await(t, moment, what, ok)
}

func lookUp(t *testing.T, f *FS, name string) sqfs.Inode {
	t.Helper()
	var out fuse.EntryOut
	if code := f.Lookup(nil, &fuse.InHeader{NodeId: fuse.FUSE_ROOT_ID}, name, &out); !code.Ok() || out.NodeId == 0 {
		t.Fatalf("lookup %s: %v", name, code)
	}
	ino, err := f.img.Inode(f.ref(out.NodeId))
	if err != nil {
		t.Fatal(err)
	}
	return ino
}

// TestLookedUp: a file that is looked up is decoded, unless nobody ever reads what is.
func TestLookedUp(t *testing.T) {
	dir := manyFiles(t, 400)
	f := openImage(t, mksquashfs(t, dir, "-b", "4K", "-no-fragments"), Options{})
	startAhead(t, f)
	ino := lookUp(t, f, "small-0007")
	eventually(t, "its first block", func() bool { return f.Stats().Cache.Ahead == 1 })
	buf := make([]byte, ino.Size)
	if n, code := f.read(uint64(ino.Ref)+nodeBase, 0, buf); n != len(buf) || !code.Ok() {
		t.Fatal(n, code)
	}
	for i := range 400 {
		lookUp(t, f, fmt.Sprintf("small-%04d", i))
	}
	eventually(t, "all that was looked up", func() bool {
		f.ahead.mu.Lock()
		defer f.ahead.mu.Unlock()
		return len(f.ahead.found) == 0
	})
	time.Sleep(50 * time.Millisecond)
	if n := f.Stats().Cache.Ahead; n > maxCredit+2 {
		t.Errorf("%d blocks decoded for nobody, at most %d may be", n, maxCredit)
	}
	f.ahead.mu.Lock()
	defer f.ahead.mu.Unlock()
	if n := len(f.ahead.pending); n > maxCredit+maxStreams {
		t.Errorf("%d blocks are remembered", n)
	}
}

// TestReplay: what was read before is decoded before anybody asks, as far as there is room, and as far as it is there.
func TestReplay(t *testing.T) {
	dir := manyFiles(t, 50)
	image := mksquashfs(t, dir, "-b", "128K")
	first := openImage(t, image, Options{Record: true})
	for _, name := range []string{"zlong", "small-0003", "small-0002"} {
		ino := lookUp(t, first, name)
		if _, code := first.read(uint64(ino.Ref)+nodeBase, 0, make([]byte, 300<<10)); !code.Ok() {
			t.Fatal(code)
		}
	}
	touches := first.Touched()
	ref := lookUp(t, first, "zlong").Ref
	if len(touches) != 5 || touches[0] != (Touch{ref, 0}) || touches[2] != (Touch{ref, 2}) {
		t.Fatalf("recorded %v, want three blocks of %v and two files", touches, ref)
	}
	if again := first.Touched(); again != nil {
		t.Errorf("still records: %v", again)
	}

	hostile := []Touch{{1, 0}, {1 << 47, 9}, {sqfs.InodeRef(^uint64(0)), 1 << 31}, {ref, 1 << 31}, {first.img.Root(), 0}}
	f := openImage(t, image, Options{Replay: append(hostile, touches...)})
	startAhead(t, f)
	// Two small files share a fragment.
	eventually(t, "four blocks", func() bool { return f.Stats().Cache.Ahead == 4 })
	misses := f.Stats().Cache.Misses
	buf := make([]byte, 300<<10)
	if n, code := f.read(uint64(ref)+nodeBase, 0, buf); n != len(buf) || !code.Ok() {
		t.Fatal(n, code)
	}
	want, err := os.ReadFile(filepath.Join(dir, "zlong"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(buf, want[:len(buf)]) {
		t.Error("wrong bytes")
	}
	if n := f.Stats().Cache.Misses; n != misses {
		t.Errorf("%d blocks were decoded again", n-misses)
	}
}

// TestReplayIsBounded: what is replayed leaves half of the cache to others until somebody asks for it.
func TestReplayIsBounded(t *testing.T) {
	image := mksquashfs(t, manyFiles(t, 0), "-b", "128K")
	ref := lookUp(t, openImage(t, image, Options{}), "zlong").Ref
	var touches []Touch
	for i := range uint32(41) {
		touches = append(touches, Touch{ref, i})
	}
	f := openImage(t, image, Options{Replay: touches, Cache: cache.New(2 << 20)})
	startAhead(t, f)
	eventually(t, "half of the cache", func() bool { return f.Stats().Cache.Ahead >= 8 })
	time.Sleep(50 * time.Millisecond)
	if n := f.Stats().Cache.Ahead; n > 8+8 {
		t.Errorf("%d blocks of 128 KiB replayed into a cache of 2 MiB", n)
	}
}

// TestStorable: what the kernel does not clear behind the end of a file is left to READ.
func TestStorable(t *testing.T) {
	for release, want := range map[string]bool{
		"6.18.44": true, "6.11.0-rc1": true, "7.0": true, "6.10.7": false, "5.14.0-503.el9": false, "6.1.0-28-amd64": false, "odd": false,
	} {
		if got := clearsTails(release); got != want {
			t.Errorf("clearsTails(%q) = %v", release, got)
		}
	}
	for _, test := range []struct {
		off       int64
		n         int
		all, safe int
	}{{0, 100, 100, 0}, {0, int(pageSize), int(pageSize), int(pageSize)}, {pageSize, int(pageSize) + 1, int(pageSize) + 1, int(pageSize)}} {
		p := part{off: test.off, len: test.n}
		if all, safe := p.storable(true), p.storable(false); all != test.all || safe != test.safe {
			t.Errorf("%d bytes at %d: %d and %d may be stored, want %d and %d", test.n, test.off, all, safe, test.all, test.safe)
		}
	}
}

// TestAheadEnds: holes, a long trace and small blocks hold nobody up when the mount has gone, and take no memory.
func TestAheadEnds(t *testing.T) {
	dir := manyFiles(t, 600)
	if err := os.Truncate(filepath.Join(dir, "zlong"), 256<<20); err != nil {
		t.Fatal(err)
	}
	image := mksquashfs(t, dir, "-b", "4K", "-no-fragments")
	f := openImage(t, image, Options{})
	stop := f.ahead.start()
	for i := range 20 {
		ino := lookUp(t, f, fmt.Sprintf("small-%04d", i))
		if _, code := f.read(uint64(ino.Ref)+nodeBase, 0, make([]byte, ino.Size)); !code.Ok() {
			t.Fatal(code)
		}
	}
	ino := lookUp(t, f, "zlong")
	for i := range int64(10) {
		if _, code := f.read(uint64(ino.Ref)+nodeBase, i<<20, make([]byte, 1<<20)); !code.Ok() {
			t.Fatal(code)
		}
	}
	f.ahead.mu.Lock()
	for _, s := range f.ahead.streams {
		if len(s.queue) > maxQueue+maxDecoders {
			t.Errorf("%d blocks wait for one reader", len(s.queue))
		}
	}
	f.ahead.mu.Unlock()
	begin := userTime()
	stop()
	if d := userTime() - begin; d > 500*time.Millisecond {
		t.Errorf("ending took %v of processor time", d)
	}
}

// TestPanicAhead: a panic in a decoder costs what it was about to do, not the server.
func TestPanicAhead(t *testing.T) {
	f := openImage(t, smallImage(t), Options{})
	f.ahead.mu.Lock()
	f.ahead.unlocked(func() { panic("in a test") })
	f.ahead.mu.Unlock()
	if n := f.Stats().Errors; n != 1 {
		t.Errorf("%d errors counted", n)
	}
}
