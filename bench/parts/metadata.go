package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/bench"
	"github.com/squirefs/squire/sqfs"
)

// metadataOptions are what the command line of "parts metadata" says.
type metadataOptions struct {
	rounds     int
	limit      time.Duration // for one run of a peer
	inodes     int           // of the big tree
	entries    int           // of the big directory
	cache      int64         // Options.MetadataCache; 0: its default
	unsquashfs string        // programs, separated by commas
	only       string        // words; a row whose name has one of them is measured; empty: all
	dir        string        // for the images; empty: temporary
}

func parseMetadataOptions(args []string) (metadataOptions, error) {
	var o metadataOptions
	flags := flag.NewFlagSet("parts metadata", flag.ContinueOnError)
	flags.IntVar(&o.rounds, "rounds", 5, "how often to measure everything")
	flags.DurationVar(&o.limit, "limit", 20*time.Second, "time limit of one run of a peer")
	flags.IntVar(&o.inodes, "inodes", 1_000_000, "size of the trees to walk")
	flags.IntVar(&o.entries, "entries", 100_000, "size of the directories whose files are opened")
	flags.Int64Var(&o.cache, "cache", 0, "how many `bytes` of metadata squire may keep (default: that of the package)")
	flags.StringVar(&o.unsquashfs, "unsquashfs", "unsquashfs", "comma-separated `programs` to compare with")
	flags.StringVar(&o.only, "only", "", "comma-separated `words`: measure the rows whose name has one of them (default: all)")
	flags.StringVar(&o.dir, "dir", "", "keep the images in `directory`, and use those that are there (default: temporary)")
	flags.Usage = func() {
		fmt.Fprint(flags.Output(), "usage: parts metadata [flags]\n")
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() > 0 || o.rounds < 1 || o.inodes < 200 || o.entries < 1 {
		flags.Usage()
		return o, errors.New("want at least one round, 200 inodes, one entry and no other arguments")
	}
	return o, nil
}

// metadata compares how fast the metadata of images is read: walking trees of a million inodes, and opening every file
// of a directory of 100,000. squire reads the image from memory, in one thread and with a new sqfs.Image in each round;
// "again" is the same once more with that Image. The peers find the image in the page cache: "unsquashfs -lln", and if
// it can be mounted, "find -size", which looks at every inode. All take turns; CPU time is measured.
func metadata(ctx context.Context, args []string) error {
	o, err := parseMetadataOptions(args)
	if err != nil {
		return err
	}
	b := &metadataBench{metadataOptions: o, samples: make(map[string][]float64), tooSlow: make(map[string]bool)}
	if b.work, err = os.MkdirTemp("", "squire-parts-metadata"); err != nil {
		return err
	}
	defer os.RemoveAll(b.work)
	if b.dir == "" {
		b.dir = b.work
	}
	images, err := b.images(ctx)
	if err != nil {
		return err
	}
	for round := range b.rounds {
		fmt.Fprintf(os.Stderr, "round %d of %d\n", round+1, b.rounds)
		for _, i := range images {
			if err := b.measure(ctx, i); err != nil {
				return fmt.Errorf("%s: %w", i.name, err)
			}
		}
	}
	return b.print(os.Stdout)
}

// metadataBench is one run of "parts metadata".
type metadataBench struct {
	metadataOptions
	work    string               // a temporary directory
	rows    []string             // in the order of their first measurement
	samples map[string][]float64 // row to microseconds of CPU time per inode
	tooSlow map[string]bool      // rows of peers that exceeded the limit
}

// measure measures all that is to be done with an image, once.
func (b *metadataBench) measure(ctx context.Context, i metadataImage) error {
	img, err := sqfs.New(bytes.NewReader(i.data), int64(len(i.data)), &sqfs.Options{MetadataCache: b.cache})
	if err != nil {
		return err
	}
	for _, w := range i.works {
		// A walk has an image of its own; what comes after a walk finds it in memory.
		for _, heat := range []string{"", " again"} {
			if err := b.time(i, "squire, "+w.name+heat, func() (int, error) { return w.do(img) }); err != nil {
				return err
			}
		}
	}
	for program := range strings.SplitSeq(b.unsquashfs, ",") {
		if err := b.timeCommand(ctx, i, program+" -lln", program, "-lln", i.path); err != nil {
			return err
		}
	}
	return b.timeKernel(ctx, i)
}

// time measures f, which says how many inodes it saw.
func (b *metadataBench) time(i metadataImage, what string, f func() (int, error)) error {
	if !b.wanted(i.name + ": " + what) {
		_, err := f()
		return err
	}
	runtime.GC()
	before := usage(unix.RUSAGE_SELF)
	n, err := f()
	took := usage(unix.RUSAGE_SELF) - before
	if err == nil && n < i.inodes-2 {
		err = fmt.Errorf("%s: saw %d inodes of %d", what, n, i.inodes)
	}
	b.add(i, what, took)
	return err
}

// timeCommand measures a program.
func (b *metadataBench) timeCommand(ctx context.Context, i metadataImage, what string, argv ...string) error {
	row := i.name + ": " + what
	if !b.wanted(row) || b.tooSlow[row] {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, b.limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err := cmd.Run()
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		fmt.Fprintf(os.Stderr, "parts: left out %s: it takes longer than %v\n", row, b.limit)
		b.tooSlow[row] = true
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w: %s", what, err, bytes.TrimSpace(stderr.Bytes()))
	}
	b.add(i, what, cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime())
	return nil
}

// timeKernel measures find on a new mount of the kernel, if there is an image in a file and the kernel mounts it.
func (b *metadataBench) timeKernel(ctx context.Context, i metadataImage) error {
	if os.Getuid() != 0 {
		return nil
	}
	dir, unmount, err := bench.MountKernel(ctx, i.path, b.work, b.limit)
	if err != nil {
		fmt.Fprintln(os.Stderr, "parts: left out the kernel:", err)
		return nil
	}
	defer unmount()
	// No file is that large, so nothing is printed.
	return b.timeCommand(ctx, i, "kernel, find -size", "find", dir, "-size", "+9999999G")
}

func (b *metadataBench) wanted(row string) bool {
	for word := range strings.SplitSeq(b.only, ",") {
		if strings.Contains(row, word) {
			return true
		}
	}
	return false
}

func (b *metadataBench) add(i metadataImage, what string, took time.Duration) {
	row := i.name + ": " + what
	if b.samples[row] == nil {
		b.rows = append(b.rows, row)
	}
	b.samples[row] = append(b.samples[row], took.Seconds()/float64(i.inodes)*1e6)
}

// usage returns the CPU time that was used until now.
func usage(who int) time.Duration {
	var u unix.Rusage
	_ = unix.Getrusage(who, &u) // it fails for a wrong who only
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// print writes the table.
func (b *metadataBench) print(w io.Writer) error {
	fmt.Fprintf(w, "%s; CPU time, medians of %d rounds [fastest–slowest]\n\n", bench.ThisMachine().String(), b.rounds)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(tw, "\tµs per inode\tmillion inodes/s\n")
	for _, row := range b.rows {
		s := b.samples[row]
		fmt.Fprintf(tw, "%s\t%.3f [%.3f–%.3f]\t%.2f\n", row, bench.Median(s), slices.Min(s), slices.Max(s), 1/bench.Median(s))
	}
	return tw.Flush()
}

// work is something to do with an image. It returns how many inodes it saw.
type work struct {
	name string
	do   func(*sqfs.Image) (int, error)
}

// walkTree reads every inode below the root.
func walkTree(img *sqfs.Image) (int, error) {
	root, err := img.Inode(img.Root())
	if err != nil {
		return 0, err
	}
	return walkBelow(img, &root)
}

func walkBelow(img *sqfs.Image, dir *sqfs.Inode) (n int, err error) {
	for e, err := range img.Dirents(dir, 0) {
		if err != nil {
			return n, err
		}
		ino, err := img.Inode(e.Ref)
		if err != nil {
			return n, err
		}
		n++
		if ino.Type == sqfs.TypeDir {
			below, err := walkBelow(img, &ino)
			if err != nil {
				return n, err
			}
			n += below
		}
	}
	return n, nil
}

// openByInode opens every file of the directory "big" by Lookup, Inode and File, openByPath through io/fs. The names
// are those that the images are made with.
func openByInode(entries int) func(*sqfs.Image) (int, error) {
	return func(img *sqfs.Image) (int, error) {
		dir, err := img.Resolve("big", true)
		if err != nil {
			return 0, err
		}
		for i := range entries {
			e, err := img.Lookup(&dir, bigName(i))
			if err != nil {
				return i, err
			}
			ino, err := img.Inode(e.Ref)
			if err != nil {
				return i, err
			}
			if _, err := img.File(&ino); err != nil {
				return i, err
			}
		}
		return entries, nil
	}
}

func openByPath(entries int) func(*sqfs.Image) (int, error) {
	return func(img *sqfs.Image) (int, error) {
		for i := range entries {
			f, err := img.Open("big/" + bigName(i))
			if err != nil {
				return i, err
			}
			f.Close()
		}
		return entries, nil
	}
}

// imagePath is where an image is kept.
func (b *metadataBench) imagePath(name string) string { return filepath.Join(b.dir, name+".sqsh") }
