package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// ChildName as argv[0] makes a program that calls Child then a workload's child process.
const ChildName = "squire-bench"

// job is what a child is to do, its only argument. Paths are bytes: they need not be UTF-8.
type job struct {
	Do         string `json:"do"`
	Dir        []byte `json:"dir"`        // where the image is
	File       []byte `json:"file"`       // read-file, pread: path below Dir
	List       string `json:"list"`       // read-list: a file of paths below Dir, beside Dir
	Readers    int    `json:"readers"`    // that share the work
	Operations int    `json:"operations"` // pread, read-list: how many at most; 0: all
}

// childResult is what a child says on its standard output. Times are in nanoseconds.
type childResult struct {
	Wall time.Duration `json:"wall_ns"`
	CPU  time.Duration `json:"cpu_ns"`
	count
}

// Child does what the arguments say and returns the exit status. What went wrong is written to errors.
func Child(args []string, out, errs io.Writer) int {
	err := errors.New("a child wants one job")
	if len(args) == 1 {
		var j job
		if err = json.Unmarshal([]byte(args[0]), &j); err == nil {
			err = j.run(out)
		}
	}
	if err != nil {
		fmt.Fprintln(errs, err)
		return 1
	}
	return 0
}

// run prepares, takes the time of what is left to do, and writes the result.
func (j *job) run(out io.Writer) error {
	work, err := j.prepare()
	if err != nil {
		return err
	}
	watch, err := startWatch()
	if err != nil {
		return err
	}
	n, err := work()
	if err != nil {
		return err
	}
	s, err := watch.stop()
	if err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(childResult{s.wall, s.cpu, n})
}

// prepare returns the work, without touching the mount.
func (j *job) prepare() (func() (count, error), error) {
	dir := string(j.Dir)
	switch j.Do {
	case "walk":
		return func() (count, error) {
			n, err := walk(dir, nil)
			return count{Files: n, Operations: n}, err
		}, nil
	case "read":
		return func() (count, error) { return readAll(dir, j.Readers) }, nil
	case "read-file":
		return func() (count, error) { return readFiles([]string{filepath.Join(dir, string(j.File))}, 1) }, nil
	case "read-list":
		paths, err := readList(filepath.Join(filepath.Dir(dir), j.List), dir)
		if j.Operations > 0 && j.Operations < len(paths) {
			paths = paths[:j.Operations]
		}
		return func() (count, error) { return readFiles(paths, j.Readers) }, err
	case "pread":
		return func() (count, error) { return j.pread(filepath.Join(dir, string(j.File))) }, nil
	}
	return nil, fmt.Errorf("no workload %q", j.Do)
}

// readList reads the list of paths below dir.
func readList(path, dir string) ([]string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var paths []string
	for name := range strings.SplitSeq(strings.TrimSuffix(string(text), "\x00"), "\x00") {
		paths = append(paths, filepath.Join(dir, name))
	}
	return paths, nil
}

// walk stats everything below dir, as "find -size +0" does, and returns how much there is. Regular files are told to
// file, which may be nil. What does not count for an ordinary user is passed over: see readable; and devices, which
// such a user cannot unpack.
func walk(dir string, file func(path string)) (int64, error) {
	f, err := os.Open(dir)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return 0, err
	}
	var n int64
	for _, name := range names {
		var st unix.Stat_t
		path := filepath.Join(dir, name)
		if err := unix.Fstatat(int(f.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return n, fmt.Errorf("stat %s: %w", path, err)
		}
		kind := st.Mode & unix.S_IFMT
		if kind != unix.S_IFCHR && kind != unix.S_IFBLK || !ordinary {
			n++
		}
		switch {
		case !readable(st.Mode, kind == unix.S_IFDIR):
		case kind == unix.S_IFDIR:
			below, err := walk(path, file)
			n += below
			if err != nil {
				return n, err
			}
		case kind == unix.S_IFREG && file != nil:
			file(path)
		}
	}
	return n, nil
}

// readAll reads every regular file below dir, once for every name. The list of files is made first, so that one reader
// is one request at a time.
func readAll(dir string, readers int) (count, error) {
	var paths []string
	if _, err := walk(dir, func(path string) { paths = append(paths, path) }); err != nil {
		return count{}, err
	}
	return readFiles(paths, readers)
}

// readFiles reads files from their beginning to their end.
func readFiles(paths []string, readers int) (count, error) {
	var total atomic.Int64
	err := share(len(paths), readers, func() func(int) error {
		buf := make([]byte, 256<<10)
		return func(i int) error {
			n, err := readFile(paths[i], buf)
			total.Add(n)
			return err
		}
	})
	return count{Files: int64(len(paths)), Bytes: total.Load(), Operations: int64(len(paths))}, err
}

// share has workers do n things, whoever has time the next one. start makes one of them.
func share(n, workers int, start func() func(i int) error) error {
	var next atomic.Int64
	errs := make([]error, workers)
	var wg sync.WaitGroup
	for i := range workers {
		wg.Go(func() {
			do := start()
			for j := next.Add(1) - 1; j < int64(n) && errs[i] == nil; j = next.Add(1) - 1 {
				errs[i] = do(int(j))
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// openFile opens a file with a plain system call: what package os adds is not what is measured.
func openFile(path string) (int, error) {
	for {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		if err == nil {
			return fd, nil
		}
		if !errors.Is(err, unix.EINTR) {
			return -1, fmt.Errorf("open %s: %w", path, err)
		}
	}
}

func readFile(path string, buf []byte) (int64, error) {
	fd, err := openFile(path)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	var total int64
	for {
		n, err := unix.Read(fd, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return total, fmt.Errorf("read %s at %d: %w", path, total, err)
		}
		if n == 0 {
			return total, nil
		}
		total += int64(n)
	}
}

// pageSize is the length of random reads.
const pageSize = 4 << 10

// seed makes random choices the same for all peers, and in all runs.
const seed = 20091213

// pread reads pages of a file in an order without order. No page is read twice.
func (j *job) pread(path string) (count, error) {
	fd, err := openFile(path)
	if err != nil {
		return count{}, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err != nil {
		return count{}, fmt.Errorf("stat %s: %w", path, err)
	}
	pages := randomPages((st.Size+pageSize-1)/pageSize, j.Operations)
	var total atomic.Int64
	err = share(len(pages), j.Readers, func() func(int) error {
		buf := make([]byte, pageSize)
		return func(i int) error {
			n, failed := preadOnce(fd, buf, pages[i]*pageSize)
			if failed != nil {
				return fmt.Errorf("read %s at %d: %w", path, pages[i]*pageSize, failed)
			}
			total.Add(int64(n))
			return nil
		}
	})
	return count{Files: 1, Bytes: total.Load(), Operations: int64(len(pages))}, err
}

// preadOnce reads something: the end of the file is an error.
func preadOnce(fd int, buf []byte, off int64) (int, error) {
	for {
		n, err := unix.Pread(fd, buf, off)
		switch {
		case err == nil && n == 0:
			return 0, io.ErrUnexpectedEOF
		case !errors.Is(err, unix.EINTR):
			return n, err
		}
	}
}

// randomPages chooses n of all pages, or all if there are no more.
func randomPages(all int64, n int) []int64 {
	r := rand.New(rand.NewPCG(seed, 0))
	if int64(n) >= all {
		pages := make([]int64, all)
		for i, p := range r.Perm(int(all)) {
			pages[i] = int64(p)
		}
		return pages
	}
	pages, seen := make([]int64, 0, n), make(map[int64]bool, n)
	for len(pages) < n {
		if p := r.Int64N(all); !seen[p] {
			seen[p] = true
			pages = append(pages, p)
		}
	}
	return pages
}
