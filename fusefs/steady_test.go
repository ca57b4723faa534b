package fusefs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/sqfs"
)

// faulty is storage with 1 MiB of the byte 'x', whose next reads fail as said.
type faulty struct {
	mu    sync.Mutex
	fails []error // of the next reads
	short int     // what a read that does not fail has at most; 0: all
	is    FileState
	reads int
}

const faultySize = 1 << 20

func newFaulty(fails ...error) *faulty {
	return &faulty{fails: fails, is: FileState{Dev: 1, Ino: 2, Size: faultySize, MTime: 3}}
}

func (f *faulty) pread(p []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reads++
	if len(f.fails) > 0 {
		err := f.fails[0]
		f.fails = f.fails[1:]
		if err != nil {
			return -1, err
		}
	}
	n := int(min(int64(len(p)), max(0, f.is.Size-off)))
	if f.short > 0 {
		n = min(n, f.short)
	}
	copy(p, bytes.Repeat([]byte{'x'}, n))
	return n, nil
}

func (f *faulty) state() (FileState, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.is, nil
}

func (f *faulty) set(change func(*FileState)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(&f.is)
}

func steadyOn(t *testing.T, st storage) *Steady {
	t.Helper()
	s, err := newSteady(st)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// TestSteadyRetries: errors that may pass are tried again, three times, others are not.
func TestSteadyRetries(t *testing.T) {
	for _, tt := range []struct {
		fails []error
		want  error
		reads int
	}{
		{nil, nil, 1},
		{[]error{unix.EIO}, nil, 2},
		{[]error{unix.ESTALE, unix.ETIMEDOUT}, nil, 3},
		{[]error{unix.EIO, unix.EAGAIN, unix.ENOLINK, nil}, nil, 4},
		{[]error{unix.EIO, unix.EIO, unix.EIO, unix.EIO, unix.EIO}, unix.EIO, 4},
		{[]error{unix.EIO, unix.EBADF, unix.EIO}, unix.EBADF, 2},
		{[]error{unix.EINVAL}, unix.EINVAL, 1},
		{[]error{os.ErrClosed}, os.ErrClosed, 1},
	} {
		t.Run(fmt.Sprint(tt.fails), func(t *testing.T) {
			t.Parallel()
			f := newFaulty(tt.fails...)
			s := steadyOn(t, f)
			p := make([]byte, 1000)
			n, err := s.ReadAt(p, 5000)
			if !errors.Is(err, tt.want) || f.reads != tt.reads {
				t.Errorf("%v after %d reads, want %v after %d", err, f.reads, tt.want, tt.reads)
			}
			if err == nil && (n != len(p) || !bytes.Equal(p, bytes.Repeat([]byte{'x'}, n))) {
				t.Errorf("%d bytes, or not those of the file", n)
			}
			if s.Changed() != nil {
				t.Error(s.Changed())
			}
		})
	}
}

// TestSteadyClose: who waits to try again does not after Close, and storage that takes long to fail is not asked again.
func TestSteadyClose(t *testing.T) {
	f := newFaulty(unix.EIO, unix.EIO, unix.EIO, unix.EIO)
	s := steadyOn(t, f)
	s.Close()
	s.Close()
	if _, err := s.ReadAt(make([]byte, 10), 0); !errors.Is(err, unix.EIO) || f.reads != 1 {
		t.Errorf("%v after %d reads, want one", err, f.reads)
	}
	f.fails = nil
	if n, err := s.ReadAt(make([]byte, 10), 0); n != 10 || err != nil {
		t.Errorf("read after Close: %d, %v", n, err) // what is under way may need it
	}
}

// TestSteadyShort: storage may give a part at a time, but nothing where the file has something is an error.
func TestSteadyShort(t *testing.T) {
	f := newFaulty()
	f.short = 300
	s := steadyOn(t, f)
	if n, err := s.ReadAt(make([]byte, 1000), 0); n != 1000 || err != nil || f.reads != 4 {
		t.Errorf("%d bytes, %v, with %d reads", n, err, f.reads)
	}
	if n, err := s.ReadAt(make([]byte, 1000), faultySize-10); n != 10 || !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %d, %v", n, err)
	}
	if n, err := s.ReadAt(make([]byte, 1000), 2*faultySize); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("behind the end: %d, %v", n, err)
	}
	if _, err := s.ReadAt(make([]byte, 1), -1); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("before the beginning: %v", err)
	}
	if _, err := steadyOn(t, empty{f}).ReadAt(make([]byte, 10), 0); !errors.Is(err, errShort) {
		t.Errorf("%v, want %v", err, errShort)
	}
}

// empty is storage that has nothing, whatever it says.
type empty struct{ storage }

func (empty) pread([]byte, int64) (int, error) { return 0, nil }

// TestSteadyChanged: a file that is another one is never read again, whatever it becomes later.
func TestSteadyChanged(t *testing.T) {
	for name, tt := range map[string]struct {
		was     FileState
		change  func(*FileState)
		changed bool
	}{
		"nothing":      {FileState{1, 2, faultySize, 3, false}, func(*FileState) {}, false},
		"shorter":      {FileState{1, 2, faultySize, 3, false}, func(s *FileState) { s.Size-- }, true},
		"longer":       {FileState{1, 2, faultySize, 3, false}, func(s *FileState) { s.Size++ }, true},
		"written to":   {FileState{1, 2, faultySize, 3, false}, func(s *FileState) { s.MTime++ }, true},
		"other inode":  {FileState{1, 2, faultySize, 3, false}, func(s *FileState) { s.Ino++ }, true},
		"other device": {FileState{1, 2, faultySize, 3, false}, func(s *FileState) { s.Dev++ }, true},
		"no file":      {FileState{1, 2, faultySize, 3, false}, func(s *FileState) { s.Device = true }, true},
		"device":       {FileState{1, 2, faultySize, 3, true}, func(s *FileState) { s.MTime, s.Ino = 7, 7 }, false},
		"other size":   {FileState{1, 2, faultySize, 3, true}, func(s *FileState) { s.Size++ }, true},
	} {
		f := newFaulty()
		f.is = tt.was
		s := steadyOn(t, f)
		if _, err := s.ReadAt(make([]byte, 10), 0); err != nil {
			t.Fatal(name, err)
		}
		f.set(tt.change)
		for range 2 {
			n, err := s.ReadAt(make([]byte, 10), 0)
			if errors.Is(err, ErrChanged) != tt.changed || (n == 0) != tt.changed {
				t.Errorf("%s: %d bytes, %v", name, n, err)
			}
			f.set(func(is *FileState) { *is = tt.was }) // as it was: too late
		}
		if errors.Is(s.Changed(), ErrChanged) != tt.changed {
			t.Errorf("%s: Changed says %v", name, s.Changed())
		}
		later := steadyOn(t, newFaulty()) // of another process
		later.storage.(*faulty).set(tt.change)
		other, err := newSteady(later.storage)
		if err != nil {
			t.Fatal(err)
		}
		other.Expect(FileState{1, 2, faultySize, 3, tt.was.Device})
		if tt.was.Device {
			continue // the state of the file does not say device
		}
		if _, err := other.ReadAt(make([]byte, 10), 0); errors.Is(err, ErrChanged) != tt.changed {
			t.Errorf("%s, in another process: %v", name, err)
		}
	}
}

// numbered writes a file of blocks of 4 KiB, each of which has a number in every word, and returns it open for reading.
func numbered(t *testing.T, blocks int, number uint64) (path string, f *os.File) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, numbers(blocks, number), 0o644); err != nil {
		t.Fatal(err)
	}
	// A time that no write of this test can have.
	if err := os.Chtimes(path, time.Unix(1, 0), time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return path, f
}

func numbers(blocks int, number uint64) []byte {
	data := make([]byte, blocks*4096)
	for i := 0; i < len(data); i += 8 {
		binary.LittleEndian.PutUint64(data[i:], number+uint64(i))
	}
	return data
}

// TestSteadyFile overwrites and truncates a file while others read it: what they read is what it was, or nothing.
func TestSteadyFile(t *testing.T) {
	const blocks = 64
	want := numbers(blocks, 1<<32)
	for name, tt := range map[string]struct {
		change  func(t *testing.T, path string)
		changed bool
	}{
		"overwritten": {func(t *testing.T, path string) {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			other := numbers(blocks, 2<<32)
			for i := 0; i < len(other); i += 4096 {
				if _, err := f.WriteAt(other[i:i+4096], int64(i)); err != nil {
					t.Error(err)
				}
			}
		}, true},
		"written anew": {func(t *testing.T, path string) {
			if err := os.WriteFile(path, numbers(blocks, 3<<32), 0o644); err != nil {
				t.Error(err)
			}
		}, true},
		"truncated": {func(t *testing.T, path string) {
			if err := os.Truncate(path, 4096*blocks/2); err != nil {
				t.Error(err)
			}
		}, true},
		"punched": {func(t *testing.T, path string) {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 4096*blocks)
			if err != nil {
				t.Skip("file system without holes: ", err)
			}
		}, true},
		"longer": {func(t *testing.T, path string) {
			if err := os.Truncate(path, 4096*blocks+1); err != nil {
				t.Error(err)
			}
		}, true},
		"unlinked": {func(t *testing.T, path string) {
			if err := os.Remove(path); err != nil {
				t.Error(err)
			}
		}, false},
		"replaced": {func(t *testing.T, path string) {
			other := path + "2"
			if err := os.WriteFile(other, numbers(blocks, 4<<32), 0o644); err != nil {
				t.Error(err)
			}
			if err := os.Rename(other, path); err != nil {
				t.Error(err)
			}
		}, false},
		"chmod": {func(t *testing.T, path string) {
			if err := errors.Join(os.Chmod(path, 0o600), os.Link(path, path+"3")); err != nil {
				t.Error(err)
			}
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			path, file := numbered(t, blocks, 1<<32)
			s, err := NewSteady(file)
			if err != nil {
				t.Fatal(err)
			}
			var reads, after atomic.Int64
			var stop atomic.Bool
			var readers sync.WaitGroup
			for r := range 4 {
				readers.Go(func() {
					p := make([]byte, 3*4096)
					for i := int64(r); !stop.Load(); i++ {
						off := i % (blocks - 3) * 4096
						switch n, err := s.ReadAt(p, off); {
						case err == nil && (n != len(p) || !bytes.Equal(p, want[off:off+int64(n)])):
							t.Errorf("%d other bytes at %d", n, off)
							return
						case err == nil:
							reads.Add(1)
						case !errors.Is(err, ErrChanged):
							t.Errorf("read at %d: %v", off, err)
							return
						default:
							after.Add(1)
						}
					}
				})
			}
			await(t, "reads", func() bool { return reads.Load() > 1000 || t.Failed() })
			tt.change(t, path)
			await(t, "reads after the change", func() bool {
				return t.Failed() || after.Load() > 100 || !tt.changed && reads.Load() > 5000
			})
			stop.Store(true)
			readers.Wait()
			if got := errors.Is(s.Changed(), ErrChanged); got != tt.changed {
				t.Errorf("changed: %v, want %v", s.Changed(), tt.changed)
			}
		})
	}
}

// await waits for something.
func await(t *testing.T, what string, ready func() bool) {
	t.Helper()
	for begin := time.Now(); !ready(); time.Sleep(time.Millisecond) {
		if time.Since(begin) > moment {
			t.Fatalf("waited too long for %s", what)
		}
	}
}

// TestSteadyKinds: what is no file with a size is refused, what was closed is not read.
func TestSteadyKinds(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for _, f := range []*os.File{r, dir, null} {
		if _, err = NewSteady(f); err == nil {
			t.Errorf("%s was taken", f.Name())
		}
	}
	_, file := numbered(t, 1, 0)
	s, err := NewSteady(file)
	if err != nil {
		t.Fatal(err)
	}
	file.Close()
	if _, err = s.ReadAt(make([]byte, 10), 0); !errors.Is(err, os.ErrClosed) {
		t.Errorf("read of a closed file: %v", err)
	}
}

// TestSteadyImage writes another image over one that is mounted: no reader sees anything but what the first one had.
func TestSteadyImage(t *testing.T) {
	one, two := t.TempDir(), t.TempDir()
	const files, size = 40, 300 << 10
	for i := range files {
		for dir, b := range map[string]byte{one: 'a', two: 'b'} {
			data := bytes.Repeat([]byte{b + byte(i%3)}, size)
			copy(data, fmt.Sprint(dir == one, i))
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("f%02d", i)), data, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	image := mksquashfs(t, one, "-noD", "-noF", "-noI", "-all-time", "1") // nothing that would notice other bytes
	other, err := os.ReadFile(mksquashfs(t, two, "-noD", "-noF", "-noI", "-all-time", "1"))
	if err != nil {
		t.Fatal(err)
	}
	if err = os.Chtimes(image, time.Unix(1, 0), time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	steady, err := NewSteady(file)
	if err != nil {
		t.Fatal(err)
	}
	img, err := sqfs.New(steady, steady.State().Size, nil)
	if err != nil {
		t.Fatal(err)
	}
	f := New(img, Options{})
	var written atomic.Bool
	var writer sync.WaitGroup
	writer.Go(func() {
		defer written.Store(true)
		w, err := os.OpenFile(image, os.O_WRONLY, 0)
		if err != nil {
			t.Error(err)
			return
		}
		defer w.Close()
		for i := len(other); i > 0; i -= 64 << 10 { // from the end: the readers begin at the front
			from := max(0, i-64<<10)
			if _, err := w.WriteAt(other[from:i], int64(from)); err != nil {
				t.Error(err)
			}
		}
	})
	failed := 0
	buf := make([]byte, size)
	for round := 0; round < 3; round++ {
		for i := range files {
			if round == 2 {
				writer.Wait()
			}
			root, code := f.inode(1)
			if !code.Ok() {
				failed++
				continue
			}
			d, err := img.Lookup(&root, fmt.Sprintf("f%02d", i))
			if err != nil {
				failed++
				continue
			}
			n, code := f.read(uint64(d.Ref)+nodeBase, 0, buf)
			if !code.Ok() {
				failed++
				continue
			}
			want := bytes.Repeat([]byte{'a' + byte(i%3)}, size)
			copy(want, fmt.Sprint(true, i))
			if !bytes.Equal(buf[:n], want) {
				t.Fatalf("file %d has other bytes", i)
			}
		}
	}
	if failed < files {
		t.Errorf("%d reads failed, want those of all files at the end", failed)
	}
	if !errors.Is(steady.Changed(), ErrChanged) {
		t.Error(steady.Changed())
	}
}

func BenchmarkSteady(b *testing.B) {
	path := filepath.Join(b.TempDir(), "file")
	if err := os.WriteFile(path, make([]byte, 8<<20), 0o644); err != nil {
		b.Fatal(err)
	}
	file, err := os.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer file.Close()
	s, err := NewSteady(file)
	if err != nil {
		b.Fatal(err)
	}
	for _, size := range []int{4 << 10, 64 << 10} {
		for _, r := range []io.ReaderAt{file, s} {
			b.Run(fmt.Sprintf("%dKiB/%T", size>>10, r), func(b *testing.B) {
				p := make([]byte, size)
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					if _, err := r.ReadAt(p, int64(i%64)*64<<10); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
