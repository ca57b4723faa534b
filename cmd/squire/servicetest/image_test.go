package servicetest

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// image is a squashfs file, and how much is in it.
type image struct {
	path string
	size int64 // of the file
	data int64 // of the files in it
}

// Files of an image of the tests: small ones that share fragment blocks, and large ones of many blocks.
const (
	smallFiles = 400
	largeFiles = 8
	largeSize  = 3 << 20
)

// makeImage makes an image with the probe as its program, files that depend on seed, and a list of their hashes.
func (l *lab) makeImage(name string, seed uint64, args ...string) (*image, error) {
	tree, err := os.MkdirTemp(l.dir, "tree")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tree)
	if err = os.Chmod(tree, 0o755); err != nil {
		return nil, err
	}
	for _, dir := range []string{"bin", "dev", "proc", "sys", "tmp", "etc", "run", "data"} {
		if err = os.Mkdir(filepath.Join(tree, dir), 0o755); err != nil {
			return nil, err
		}
	}
	if err = os.Link(l.probe, filepath.Join(tree, "bin", "probe")); err != nil {
		return nil, err
	}
	img := &image{path: filepath.Join(l.dir, name+".sqsh")}
	if img.data, err = fill(tree, seed); err != nil {
		return nil, err
	}
	argv := append([]string{tree, img.path, "-noappend", "-no-progress", "-quiet", "-all-root", "-comp", "zstd", "-Xcompression-level", "3"}, args...)
	if out, err := exec.Command("mksquashfs", argv...).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("mksquashfs: %w\n%s", err, out)
	}
	fi, err := os.Stat(img.path)
	if err != nil {
		return nil, err
	}
	img.size = fi.Size()
	return img, os.Chmod(img.path, 0o644)
}

// fill makes the files and their list, and returns how many bytes they have.
func fill(tree string, seed uint64) (total int64, err error) {
	r := rand.New(rand.NewPCG(seed, seed))
	var list strings.Builder
	for i := range smallFiles + largeFiles {
		size := r.IntN(12 << 10)
		if i >= smallFiles {
			size = largeSize - r.IntN(5000)
		}
		b := make([]byte, (size+1)/2)
		for j := range b {
			b[j] = byte(r.Uint32())
		}
		text := hex.EncodeToString(b)[:size]
		dir := fmt.Sprintf("data/%02d", i%20)
		if err = os.MkdirAll(filepath.Join(tree, dir), 0o755); err != nil {
			return 0, err
		}
		name := fmt.Sprintf("%s/%03d", dir, i)
		if err = os.WriteFile(filepath.Join(tree, name), []byte(text), 0o644); err != nil {
			return 0, err
		}
		fmt.Fprintf(&list, "%x %s\n", sha256.Sum256([]byte(text)), name)
		total += int64(size)
	}
	return total, os.WriteFile(filepath.Join(tree, "list"), []byte(list.String()), 0o644)
}

// probe is the program in the images:
//
//	probe hash DIR SECONDS   compare the files of the list in DIR, until the time is over but once at least
//	probe cold DIR SECONDS   the same, with their pages dropped before
//	probe cold DIR stdin     the same, until the standard input ends
//	probe sick DIR N         the same, once, until N files have answered EIO
//	probe wait               wait for the end of the standard input
//	probe show FILE...       print those that there are
//	probe nodes              name what works of devices and set-id programs, and "looked"
//	probe reach              name what can be had of squire's processes, and "seen" if there are any
//
// It prints the device of DIR, how many files it has compared, and how many have answered EIO.
func probe(args []string) error {
	switch {
	case len(args) == 1 && args[0] == "reach":
		return reach()
	case len(args) == 1 && args[0] == "nodes":
		return nodes()
	case len(args) > 1 && args[0] == "show":
		return show(args[1:])
	case len(args) == 1 && args[0] == "wait":
		fmt.Println("waiting")
		_, err := io.Copy(io.Discard, os.Stdin)
		return err
	case len(args) == 3 && (args[0] == "hash" || args[0] == "cold" || args[0] == "sick"):
		if args[2] == "stdin" {
			var ended atomic.Bool
			go func() { _, _ = io.Copy(io.Discard, os.Stdin); ended.Store(true) }()
			return compareUntil(args[1], ended.Load, args[0] == "cold", 0)
		}
		n, err := strconv.ParseFloat(args[2], 64)
		if err != nil {
			return err
		}
		if args[0] == "sick" {
			return compareUntil(args[1], func() bool { return true }, true, int(n))
		}
		end := time.Now().Add(time.Duration(n * float64(time.Second)))
		return compareUntil(args[1], func() bool { return !time.Now().Before(end) }, args[0] == "cold", 0)
	}
	return fmt.Errorf("probe %q: what is that", args)
}

// entry is a line of the list.
type entry struct{ hash, name string }

func readList(dir string) (list []entry, err error) {
	b, err := os.ReadFile(filepath.Join(dir, "list"))
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(b)) {
		hash, name, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		list = append(list, entry{hash, name})
	}
	if len(list) != smallFiles+largeFiles {
		return nil, fmt.Errorf("the list has %d files", len(list))
	}
	return list, nil
}

// compareUntil compares the files of dir again and again until it is over, but each once, or until so many answer EIO.
func compareUntil(dir string, over func() bool, cold bool, failures int) error {
	compared, failed := 0, 0
	list, err := readList(dir)
	switch {
	case failures > 0 && errors.Is(err, unix.EIO): // then there is none to compare
		failed = 1
	case err != nil:
		return err
	}
	for again := true; again; again = !over() {
		rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
		for _, e := range list {
			err := compare(dir, e, cold)
			switch {
			case err == nil:
				compared++
			case failed < failures && errors.Is(err, unix.EIO):
				failed++
			default:
				return err
			}
			if failures > 0 && failed == failures || compared > len(list) && over() {
				break
			}
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, "data"), &st); err != nil && failed == 0 {
		return err
	}
	fmt.Printf("device=%d:%d compared=%d failed=%d\n", unix.Major(st.Dev), unix.Minor(st.Dev), compared, failed)
	return nil
}

func compare(dir string, e entry, cold bool) error {
	f, err := os.Open(filepath.Join(dir, e.name))
	if err != nil {
		return err
	}
	defer f.Close()
	if cold {
		_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	}
	h := sha256.New()
	if _, err = io.Copy(h, f); err != nil {
		return err
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != e.hash {
		return fmt.Errorf("%s: hash %s, want %s", e.name, got, e.hash)
	}
	return nil
}

// lockThread keeps the goroutine on its thread, which ends with it.
func lockThread() { goruntime.LockOSThread() }
