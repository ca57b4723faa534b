package trace

import (
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/sqfs/internal/disk"
)

// Key names an image in a [Store].
type Key [16]byte

// KeyOf returns the key of the image in the size bytes of r from offset on. Nothing of the
// image is understood for that, so that it can be done where strangers' bytes must not be
// parsed: the key is a hash of the superblock.
func KeyOf(r io.ReaderAt, offset, size int64) (Key, error) {
	b := make([]byte, disk.SuperblockSize)
	if _, err := r.ReadAt(b, offset); err != nil {
		return Key{}, fmt.Errorf("read superblock: %w", err)
	}
	if le.Uint32(b) == disk.MagicStreamed { // the superblock is at the end
		if _, err := r.ReadAt(b, offset+max(size-disk.SuperblockSize, 0)); err != nil {
			return Key{}, fmt.Errorf("read superblock: %w", err)
		}
	}
	sum := sha256.Sum256(b)
	return Key(sum[:]), nil
}

// ext ends the names of traces.
const ext = ".trace"

func (k Key) name() string { return hex.EncodeToString(k[:]) + ext }

// isName reports whether a file may be one of a Store's, or what a Put that was killed
// has left, whose name begins with a dot.
func isName(name string) bool {
	digits, ok := strings.CutSuffix(name, ext)
	k, err := hex.DecodeString(digits)
	return ok && (err == nil && len(k) == len(Key{}) || strings.HasPrefix(name, "."))
}

// Limits of a Store. When a trace is added beyond them, files go in which nothing was
// recorded, then the oldest.
const (
	maxFiles = 256
	maxBytes = 32 << 20
)

// Store is a directory with the traces of images. It must be its user's or root's, and
// nobody else may be able to write to it: then what is found in it is what they put there,
// and all names are looked up in the open directory, without following links.
type Store struct {
	dir  *os.File
	path string
	perm uint32 // of new files
}

// OpenStore opens the directory "traces" in the directory cache. With create, both are
// made if they are missing, but none above that, which may be for others, too, and would
// belong to whoever is first: for root so that others can read, else for the user alone.
func OpenStore(cache string, create bool) (*Store, error) {
	dir, err := openTraces(cache)
	if create && errors.Is(err, unix.ENOENT) {
		perm := os.FileMode(0o700)
		if os.Geteuid() == 0 {
			perm = 0o755
		}
		var failed error
		for _, name := range []string{cache, filepath.Join(cache, "traces")} {
			if e := os.Mkdir(name, perm); e != nil && !errors.Is(e, unix.EEXIST) && failed == nil {
				failed = e
			}
		}
		if dir, err = openTraces(cache); errors.Is(err, unix.ENOENT) && failed != nil {
			err = failed // why it is missing
		}
	}
	if err != nil {
		return nil, fmt.Errorf("directory of traces: %w", err)
	}
	s := &Store{dir: dir, path: filepath.Join(cache, "traces"), perm: 0o600}
	if os.Geteuid() == 0 {
		s.perm = 0o644
	}
	return s, nil
}

func openTraces(cache string) (*os.File, error) {
	parent, err := openDir(unix.AT_FDCWD, cache, cache, 0)
	if err != nil {
		return nil, err
	}
	defer parent.Close()
	return openDir(int(parent.Fd()), "traces", filepath.Join(cache, "traces"), unix.O_NOFOLLOW)
}

// openDir opens a directory, and refuses one that others can write to. Errors name path.
func openDir(at int, name, path string, flags int) (*os.File, error) {
	f, err := openFile(at, name, path, unix.O_RDONLY|unix.O_DIRECTORY|flags, 0)
	if err != nil {
		return nil, err
	}
	st, err := trusted(f)
	if err == nil && st.Mode&0o022 != 0 {
		err = fmt.Errorf("%s: others can write to it", path)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func openFile(at int, name, path string, flags int, perm uint32) (*os.File, error) {
	for {
		fd, err := unix.Openat(at, name, flags|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, perm)
		if err == nil {
			return os.NewFile(uintptr(fd), path), nil
		}
		if !errors.Is(err, unix.EINTR) {
			return nil, &os.PathError{Op: "open", Path: path, Err: err}
		}
	}
}

// trusted refuses what belongs to somebody else than the user or root.
func trusted(f *os.File) (st unix.Stat_t, err error) {
	if err = unix.Fstat(int(f.Fd()), &st); err == nil && st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		err = fmt.Errorf("%s: belongs to user %d", f.Name(), st.Uid)
	}
	return st, err
}

// Close closes the directory.
func (s *Store) Close() error { return s.dir.Close() }

// Path returns where the trace of an image is, or would be.
func (s *Store) Path(k Key) string { return filepath.Join(s.path, k.name()) }

// Open opens the trace of an image for reading.
func (s *Store) Open(k Key) (*os.File, error) { return s.open(k.name(), unix.O_RDONLY) }

// Record opens the trace of an image, which is made if it is missing, for reading and
// writing, and locks it: as long as that file, or one that a process inherited from here,
// is open, others get an error. They may still read it.
func (s *Store) Record(k Key) (*os.File, error) {
	f, err := s.open(k.name(), unix.O_RDWR)
	if errors.Is(err, unix.ENOENT) {
		s.prune()
		if f, err = s.open(k.name(), unix.O_RDWR|unix.O_CREAT|unix.O_EXCL); errors.Is(err, unix.EEXIST) {
			f, err = s.open(k.name(), unix.O_RDWR) // somebody was faster
		}
	}
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock trace: %w", err)
	}
	return f, nil
}

// open opens a regular file of the directory that nobody else has put there.
func (s *Store) open(name string, flags int) (*os.File, error) {
	f, err := openFile(int(s.dir.Fd()), name, filepath.Join(s.path, name), flags|unix.O_NOFOLLOW, s.perm)
	if err != nil {
		return nil, err
	}
	st, err := trusted(f)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = fmt.Errorf("%s: not a file", f.Name())
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Put makes t the trace of an image, in place of one that is there.
func (s *Store) Put(k Key, t *Trace) error {
	s.prune()
	temp := "." + rand.Text() + ext
	f, err := s.open(temp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL)
	if err != nil {
		return err
	}
	err = t.Write(f)
	err = errors.Join(err, f.Close())
	if err == nil {
		err = unix.Renameat(int(s.dir.Fd()), temp, int(s.dir.Fd()), k.name())
	}
	if err != nil {
		_ = unix.Unlinkat(int(s.dir.Fd()), temp, 0)
	}
	return err
}

// Remove removes the trace of an image.
func (s *Store) Remove(k Key) error {
	if err := unix.Unlinkat(int(s.dir.Fd()), k.name(), 0); err != nil {
		return &os.PathError{Op: "remove", Path: s.Path(k), Err: err}
	}
	return nil
}

// Clear removes all traces and returns how many there were.
func (s *Store) Clear() (int, error) {
	all, err := s.list()
	for i := range all {
		if e := unix.Unlinkat(int(s.dir.Fd()), all[i].name, 0); e != nil && !errors.Is(e, unix.ENOENT) {
			return i, fmt.Errorf("remove %s: %w", all[i].name, e)
		}
	}
	return len(all), err
}

// kept is a trace in the directory.
type kept struct {
	name  string
	size  int64
	mtime int64 // in nanoseconds
}

// list lists the traces of the directory in the order in which they may go.
func (s *Store) list() (all []kept, err error) {
	if _, err = s.dir.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	names, err := s.dir.Readdirnames(-1)
	for _, name := range names {
		var st unix.Stat_t
		if isName(name) && unix.Fstatat(int(s.dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil {
			all = append(all, kept{name, st.Size, st.Mtim.Nano()})
		}
	}
	slices.SortFunc(all, func(a, b kept) int {
		if (a.size == 0) != (b.size == 0) {
			return cmp.Compare(a.size, b.size)
		}
		return cmp.Or(cmp.Compare(a.mtime, b.mtime), cmp.Compare(a.name, b.name))
	})
	return all, err
}

// prune makes room for one more trace. Errors are left alone: whoever adds a trace next
// tries again.
func (s *Store) prune() {
	all, _ := s.list()
	var bytes int64
	for _, k := range all {
		bytes += k.size
	}
	for n := len(all); n > 0 && (n >= maxFiles || bytes > maxBytes-MaxSize); n-- {
		oldest := all[len(all)-n]
		_ = unix.Unlinkat(int(s.dir.Fd()), oldest.name, 0)
		bytes -= oldest.size
	}
}
