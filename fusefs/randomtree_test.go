package fusefs

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/internal/testenv"
)

// randomTree makes trees of files of all kinds. Equal seeds give equal trees.
type randomTree struct {
	t     *testing.T
	rnd   *rand.Rand
	block int      // the block size that the image will have: sizes are around it
	made  []string // all paths, directories before what is in them
	files []string // what can have another name
}

// build fills the empty directory root.
func (r *randomTree) build(root string) {
	r.made = append(r.made, root)
	r.fill(root, 0)
	if r.rnd.IntN(4) == 0 { // wide: runs, and an index
		wide := filepath.Join(root, "wide")
		r.dir(wide)
		for i := range 200 + r.rnd.IntN(500) {
			r.write(filepath.Join(wide, fmt.Sprintf("%04d-%s", i, strings.Repeat("w", r.rnd.IntN(60)))), r.rnd.IntN(3))
		}
	}
	if r.rnd.IntN(4) == 0 { // deep
		for deep := root; len(deep) < 1000; {
			next := filepath.Join(deep, r.name())
			if r.exists(next) {
				continue
			}
			r.dir(next)
			deep = next
		}
	}
	// From the last to the first: making a file changes the time of its directory.
	for i := len(r.made) - 1; i >= 0; i-- {
		r.attributes(r.made[i])
	}
}

func (r *randomTree) fill(dir string, depth int) {
	for range r.rnd.IntN(12) {
		path := filepath.Join(dir, r.name())
		if r.exists(path) {
			continue
		}
		switch k := r.rnd.IntN(20); {
		case k < 5 && depth < 5:
			r.dir(path)
			r.fill(path, depth+1)
		case k < 13:
			r.write(path, r.size())
			r.files = append(r.files, path)
		case k < 15:
			r.check(os.Symlink(r.target(), path))
			r.files = append(r.files, path)
			r.made = append(r.made, path)
		case k < 17 && len(r.files) > 0:
			r.check(os.Link(r.files[r.rnd.IntN(len(r.files))], path))
		default:
			r.node(path)
		}
	}
}

func (r *randomTree) check(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *randomTree) exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func (r *randomTree) name() string { return testenv.RandomName(r.rnd) }

func (r *randomTree) dir(path string) {
	r.check(os.Mkdir(path, 0o755))
	r.made = append(r.made, path)
}

// size returns a length near a border, or any.
func (r *randomTree) size() int {
	b := r.block
	sizes := []int{0, 1, 2, 100, b - 1, b, b + 1, 2 * b, 2*b + r.rnd.IntN(b), r.rnd.IntN(b), r.rnd.IntN(b), r.rnd.IntN(100)}
	return sizes[r.rnd.IntN(len(sizes))]
}

// write makes a file with parts that compress, parts that do not, and zeros; some of these
// are holes on disk too.
func (r *randomTree) write(path string, size int) {
	b := make([]byte, size)
	for off := 0; off < size; {
		n := min(size-off, 1+r.rnd.IntN(r.block))
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
	r.check(os.WriteFile(path, b, 0o644))
	if r.rnd.IntN(10) == 0 {
		r.check(os.Truncate(path, int64(size+r.rnd.IntN(3*r.block))))
	}
	r.made = append(r.made, path)
}

func (r *randomTree) target() string {
	if r.rnd.IntN(10) == 0 {
		return strings.Repeat("t", 1+r.rnd.IntN(4000))
	}
	return strings.Repeat("../", r.rnd.IntN(3)) + r.name()
}

// node makes a device, a fifo or a socket.
func (r *randomTree) node(path string) {
	kinds := []uint32{unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFCHR, unix.S_IFBLK}
	kind, dev := kinds[r.rnd.IntN(len(kinds))], uint64(0)
	if kind == unix.S_IFCHR || kind == unix.S_IFBLK {
		dev = unix.Mkdev(r.rnd.Uint32N(4096), r.rnd.Uint32N(1<<20))
	}
	r.check(unix.Mknod(path, kind|0o644, int(dev)))
	r.made = append(r.made, path)
}

// attributes sets owner, mode, attributes and time.
func (r *randomTree) attributes(path string) {
	ids := []int{0, 0, 1, 1000, 65534, 65536, 4294967294}
	r.check(os.Lchown(path, ids[r.rnd.IntN(len(ids))], ids[r.rnd.IntN(len(ids))]))
	info, err := os.Lstat(path)
	r.check(err)
	if info.Mode()&os.ModeSymlink == 0 {
		r.check(unix.Chmod(path, r.rnd.Uint32N(0o10000)))
	}
	for range max(0, r.rnd.IntN(8)-4) {
		name := []string{"trusted.", "security."}[r.rnd.IntN(2)] + fmt.Sprintf("name%d", r.rnd.IntN(4))
		if info.Mode().IsRegular() || info.IsDir() {
			name = []string{"user.", "trusted."}[r.rnd.IntN(2)] + fmt.Sprintf("name%d", r.rnd.IntN(4))
		}
		value := strings.Repeat(string(rune('a'+r.rnd.IntN(3))), []int{0, 1, 7, 8, 100, 129, 700}[r.rnd.IntN(7)])
		r.check(unix.Lsetxattr(path, name, []byte(value), 0))
	}
	when := []int64{0, 1, 1700000000, 1<<31 - 1, 1 << 31, 1<<32 - 1}[r.rnd.IntN(6)]
	ts := unix.NsecToTimespec(time.Unix(when, 0).UnixNano())
	r.check(unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW))
}
