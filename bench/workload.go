package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// count is what a workload saw.
type count struct {
	Files      int64 `json:"files"`
	Bytes      int64 `json:"bytes"`
	Operations int64 `json:"operations"`
}

// workload is something to do on a mount.
type workload struct {
	name     string
	coldOnly bool
	mounts   bool // is about mounting: nothing for a directory
	python   bool // needs the image's Python
	// run does it once.
	run func(ctx context.Context, m *mounted) (sample, count, error)
	// curve, if not empty, is what it is a point of, x the place.
	curve string
	x     int
}

// caches are the states of the caches that a workload is measured in, in their order on one mount.
func (w workload) caches() []string {
	switch {
	case w.mounts:
		return []string{""}
	case w.coldOnly:
		return []string{cold}
	}
	return []string{cold, warm}
}

// randomReads is how many pages a random reader reads, if the file has that many: enough for a time that can be
// measured, few enough not to become a sequential read of a middling file.
const randomReads = 2000

// pythonWord stands for the workloads of Python, whatever they run.
const pythonWord = "python"

// WorkloadNames are words that choose workloads, one for each kind of line in the table, or each curve.
func WorkloadNames(scaling bool) []string {
	if scaling {
		return []string{nameOfShuffled, nameOfRandom}
	}
	return []string{nameOfFirstStat, nameOfFirstByte, nameOfWalk, pythonWord, nameOfSmall, nameOfLarge, nameOfRandom, nameOfAll}
}

// has says whether a word chooses the workload.
func (w workload) has(word string) bool {
	return word != "" && strings.Contains(w.name, word) || w.python && word == pythonWord
}

// findWorkloads returns the workloads that one of the words chooses, or all where there are none.
func (b *comparison) findWorkloads() ([]workload, error) {
	all := b.tableWorkloads()
	if b.Scaling {
		all = b.scalingWorkloads()
	}
	for _, word := range b.Workloads {
		if !slices.ContainsFunc(all, func(w workload) bool { return w.has(word) }) {
			return nil, fmt.Errorf("no workload %q: there are %s", word, strings.Join(WorkloadNames(b.Scaling), ", "))
		}
	}
	if len(b.Workloads) > 0 {
		all = slices.DeleteFunc(all, func(w workload) bool { return !slices.ContainsFunc(b.Workloads, w.has) })
	}
	// What the image cannot give is left out.
	return slices.DeleteFunc(all, func(w workload) bool {
		var why error
		switch {
		case w.python && !b.image.python:
			why = errors.New("the image has no " + python3)
		case strings.HasPrefix(w.name, nameOfSmall) && len(b.image.small) == 0:
			why = errors.New("the image has no small files")
		case w.run == nil:
			why = errors.New("the image has no file to read")
		}
		if why != nil {
			b.leaveOut(w.name, why)
		}
		return why != nil
	}), nil
}

const (
	nameOfWalk      = "walk with stat"
	nameOfSmall     = "small files"
	nameOfShuffled  = nameOfSmall + " in random order"
	nameOfRandom    = "random 4 KiB reads"
	nameOfLarge     = "read one file"
	nameOfAll       = "read all"
	nameOfFirstStat = "mount to first stat"
	nameOfFirstByte = "mount to first byte"
)

// tableWorkloads are all that can be lines of the table.
func (b *comparison) tableWorkloads() []workload {
	all := []workload{
		{name: nameOfFirstStat, mounts: true, run: firstStat},
		{name: nameOfFirstByte, mounts: true, run: b.oneFile(b.firstByte)},
		{name: nameOfWalk, run: b.inChild(job{Do: "walk"})},
		{name: b.Python, python: true, run: b.inRoot(1)},
		{name: b.Python + ", 8 at once", coldOnly: true, python: true, run: b.inRoot(8)},
		{name: nameOfSmall, run: b.inChild(job{Do: "read-list", List: b.listOf("small"), Readers: 1})},
		{name: nameOfLarge, run: b.oneFile(b.inChild(job{Do: "read-file", File: []byte(b.image.file)}))},
		{name: nameOfRandom, run: b.oneFile(b.inChild(job{Do: "pread", File: []byte(b.image.file), Operations: randomReads, Readers: 1}))},
	}
	for _, n := range b.Readers {
		all = append(all, workload{name: nameOfAll + ", " + plural(n, "reader"), run: b.inChild(job{Do: "read", Readers: n})})
	}
	return all
}

// oneFile is run where the image has a file to read.
func (b *comparison) oneFile(run func(context.Context, *mounted) (sample, count, error)) func(context.Context, *mounted) (sample, count, error) {
	if b.image.file == "" {
		return nil
	}
	return run
}

func plural(n int, thing string) string {
	if n != 1 {
		thing += "s"
	}
	return fmt.Sprintf("%d %s", n, thing)
}

// firstStat was measured when it was mounted.
func firstStat(_ context.Context, m *mounted) (sample, count, error) { return m.toStat, count{}, nil }

// firstByte goes on from there to the first byte of a file.
func (b *comparison) firstByte(ctx context.Context, m *mounted) (s sample, n count, err error) {
	err = m.guarded(ctx, func() error {
		fd, failed := openFile(filepath.Join(m.dir, b.image.file))
		if failed != nil {
			return failed
		}
		defer unix.Close(fd)
		if _, failed = preadOnce(fd, make([]byte, 1), 0); failed != nil {
			return fmt.Errorf("read %s: %w", b.image.file, failed)
		}
		s, failed = m.watch.stop()
		return failed
	})
	return s, n, err
}

// inRoot makes a workload of the image's own Python: tasks of it at once, in the mount as their root directory. The
// time is that from the first start to the last end.
func (b *comparison) inRoot(tasks int) func(context.Context, *mounted) (sample, count, error) {
	return func(ctx context.Context, m *mounted) (s sample, n count, err error) {
		watch, err := startWatch()
		if err != nil {
			return s, n, err
		}
		errs := make([]error, tasks)
		err = m.guarded(ctx, func() error {
			var wg sync.WaitGroup
			for i := range tasks {
				wg.Go(func() { errs[i] = b.runPython(ctx, m) })
			}
			wg.Wait()
			return errors.Join(errs...)
		})
		if err == nil {
			s, err = watch.stop()
		}
		return s, n, err
	}
}

// runPython runs the program once. An ordinary user changes the root directory in a user namespace.
func (b *comparison) runPython(ctx context.Context, m *mounted) error {
	attr := &syscall.SysProcAttr{Chroot: m.dir}
	if ordinary {
		attr.Cloneflags = syscall.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: os.Geteuid(), HostID: os.Geteuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getegid(), HostID: os.Getegid(), Size: 1}}
	}
	out, err := runProgram(ctx, m.limit, attr, python3, "-c", b.Python)
	if err != nil {
		return fmt.Errorf("python3 -c %q: %w", b.Python, withOutput(err, lastLine(out)))
	}
	return nil
}

// lastLine is where Python says what is wrong.
func lastLine(out []byte) []byte {
	out = bytes.TrimSpace(out)
	return out[bytes.LastIndexByte(out, '\n')+1:]
}

// tryPython leaves out the workloads of Python if its program does not run at all.
func (b *comparison) tryPython(ctx context.Context) error {
	if !slices.ContainsFunc(b.workloads, func(w workload) bool { return w.python }) {
		return nil
	}
	m, err := b.open(ctx, b.peers[0])
	if err != nil {
		return fmt.Errorf("%s: %w", b.peers[0].Name, err)
	}
	defer m.unmount()
	if err = m.guarded(ctx, func() error { return b.runPython(ctx, m) }); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		b.leaveOut("Python's workloads", err)
		b.workloads = slices.DeleteFunc(b.workloads, func(w workload) bool { return w.python })
	}
	if len(b.workloads) == 0 {
		return errors.New("there is no workload left")
	}
	return nil
}

// inChild makes a workload of a function of this program, in a process of its own: it can be killed, and its memory
// does not matter to the next one. The child itself takes the time.
func (b *comparison) inChild(j job) func(context.Context, *mounted) (sample, count, error) {
	return func(ctx context.Context, m *mounted) (s sample, n count, err error) {
		j := j
		j.Dir = []byte(m.dir)
		order, err := json.Marshal(j)
		if err != nil {
			return s, n, err
		}
		var out []byte
		err = m.guarded(ctx, func() error {
			out, err = runAs(ctx, m.limit, nil, "/proc/self/exe", ChildName, string(order))
			return err
		})
		if err != nil {
			return s, n, withOutput(err, out)
		}
		var r childResult
		if err = json.Unmarshal(out, &r); err != nil {
			return s, n, fmt.Errorf("result %q: %w", out, err)
		}
		return sample{r.Wall, r.CPU}, r.count, nil
	}
}

// listOf is where a list of files is.
func (b *comparison) listOf(what string) string { return "list-" + what }

// writeLists writes the lists of small files: in order, and shuffled, always in the same way.
func (b *comparison) writeLists() error {
	if err := writeList(filepath.Join(b.dir, b.listOf("small")), b.image.small); err != nil {
		return err
	}
	shuffled := slices.Clone(b.image.small)
	rand.New(rand.NewPCG(seed, 0)).Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
	return writeList(filepath.Join(b.dir, b.listOf("shuffled")), shuffled)
}

// writeList writes paths as they are, each with a zero byte behind it.
func writeList(path string, names []string) error {
	var text []byte
	for _, name := range names {
		text = append(append(text, name...), 0)
	}
	return os.WriteFile(path, text, 0o644)
}
