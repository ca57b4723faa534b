package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// count is what a workload saw.
type count struct {
	Files int64 `json:"files"`
	Bytes int64 `json:"bytes"`
}

// workload is something to do on a mount.
type workload struct {
	name     string
	coldOnly bool
	// run does it once and says how long it took.
	run func(ctx context.Context, m *mounted, limit time.Duration) (time.Duration, count, error)
}

// heats are the states of the caches that a workload is measured in, in their order on one mount.
func (w workload) heats() []string {
	if w.coldOnly {
		return []string{"cold"}
	}
	return []string{"cold", "warm"}
}

// findWorkloads returns the workloads with one of words in their name, or all when words is empty.
func findWorkloads(words, python string) ([]workload, error) {
	all := []workload{
		{name: "walk with stat", run: inChild("walk", 1)},
		{name: python, run: inRoot(python, 1)},
		{name: python + ", 8 at once", coldOnly: true, run: inRoot(python, 8)},
		{name: "read all, 1 reader", run: inChild("read", 1)},
		{name: "read all, 4 readers", run: inChild("read", 4)},
	}
	if words == "" {
		return all, nil
	}
	chosen := slices.DeleteFunc(all, func(w workload) bool {
		return !slices.ContainsFunc(strings.Split(words, ","), func(word string) bool { return strings.Contains(w.name, word) })
	})
	if len(chosen) == 0 {
		return nil, fmt.Errorf("no workload has one of %q in its name", words)
	}
	return chosen, nil
}

// inRoot makes a workload of the image's own Python: tasks of them at once, in the mount as their root directory. The
// time is that from the first start to the last end.
func inRoot(program string, tasks int) func(context.Context, *mounted, time.Duration) (time.Duration, count, error) {
	return func(ctx context.Context, m *mounted, limit time.Duration) (time.Duration, count, error) {
		watchdog := time.AfterFunc(limit, m.abort)
		defer watchdog.Stop()
		errs := make([]error, tasks)
		start := time.Now()
		var wg sync.WaitGroup
		for i := range tasks {
			wg.Go(func() {
				attr := &syscall.SysProcAttr{Chroot: m.dir}
				if out, err := command(ctx, limit, attr, "/usr/bin/python3", "-c", program); err != nil {
					errs[i] = fmt.Errorf("python3 -c %q: %w: %s", program, err, out)
				}
			})
		}
		wg.Wait()
		return time.Since(start), count{}, errors.Join(errs...)
	}
}

// childName as the first argument makes this program a workload's child process.
const childName = "workload-in-child"

// inChild makes a workload of a function of this program, in a process of its own: it can be killed, and its memory
// does not matter to the next one. The child itself takes the time.
func inChild(what string, readers int) func(context.Context, *mounted, time.Duration) (time.Duration, count, error) {
	return func(ctx context.Context, m *mounted, limit time.Duration) (time.Duration, count, error) {
		watchdog := time.AfterFunc(limit, m.abort)
		defer watchdog.Stop()
		self, err := os.Executable()
		if err != nil {
			return 0, count{}, err
		}
		out, err := command(ctx, limit, nil, self, childName, what, m.dir, strconv.Itoa(readers))
		if err != nil {
			return 0, count{}, fmt.Errorf("%w: %s", err, out)
		}
		var r childResult
		if err := json.Unmarshal(out, &r); err != nil {
			return 0, count{}, fmt.Errorf("result %q: %w", out, err)
		}
		return time.Duration(r.Nanoseconds), r.count, nil
	}
}

// childResult is what a child says on its standard output.
type childResult struct {
	Nanoseconds int64 `json:"ns"`
	count
}

func runChild(args []string, out io.Writer) error {
	if len(args) != 3 {
		return errors.New("a child wants a workload, a directory and a number of readers")
	}
	readers, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	start := time.Now()
	var n count
	switch args[0] {
	case "walk":
		n.Files, err = walk(args[1], nil)
	case "read":
		n, err = readAll(args[1], readers)
	default:
		err = fmt.Errorf("no workload %q", args[0])
	}
	if err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(childResult{time.Since(start).Nanoseconds(), n})
}

// walk stats everything below dir, as "find -size +0" does, and returns how much there is. Regular files are told to
// file, which may be nil.
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
		n++
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			below, err := walk(path, file)
			n += below
			if err != nil {
				return n, err
			}
		case unix.S_IFREG:
			if file != nil {
				file(path)
			}
		}
	}
	return n, nil
}

// readAll reads every regular file below dir, once for every name, with as many readers as said. The list of files is
// made first, so that one reader is one request at a time.
func readAll(dir string, readers int) (count, error) {
	var paths []string
	if _, err := walk(dir, func(path string) { paths = append(paths, path) }); err != nil {
		return count{}, err
	}
	var next, total atomic.Int64
	errs := make([]error, readers)
	var wg sync.WaitGroup
	for i := range readers {
		wg.Go(func() {
			buf := make([]byte, 256<<10)
			for j := next.Add(1) - 1; j < int64(len(paths)); j = next.Add(1) - 1 {
				n, err := readFile(paths[j], buf)
				total.Add(n)
				if err != nil {
					errs[i] = err
					return
				}
			}
		})
	}
	wg.Wait()
	return count{Files: int64(len(paths)), Bytes: total.Load()}, errors.Join(errs...)
}

// readFile reads a file with plain system calls: what package os adds is not what is measured.
func readFile(path string, buf []byte) (int64, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return 0, fmt.Errorf("open %s: %w", path, err)
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
