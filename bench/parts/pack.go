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
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/squirefs/squire/bench"
)

// packCase is one way to compress, with the flags of squire pack and of mksquashfs that mean it.
type packCase struct {
	name               string
	squire, mksquashfs []string
}

var packCases = []packCase{
	{"zstd 3", []string{"--comp", "zstd", "--level", "3"}, []string{"-comp", "zstd", "-Xcompression-level", "3"}},
	{"zstd 15", []string{"--comp", "zstd", "--level", "15"}, []string{"-comp", "zstd", "-Xcompression-level", "15"}},
	{"gzip 9", []string{"--comp", "gzip", "--level", "9"}, []string{"-comp", "gzip", "-Xcompression-level", "9"}},
	{"lz4", []string{"--comp", "lz4"}, []string{"-comp", "lz4"}},
	{"lz4 hc", []string{"--comp", "lz4", "--level", "9"}, []string{"-comp", "lz4", "-Xhc"}},
	{"stored", []string{"--comp", "none"}, []string{"-comp", "gzip", "-noI", "-noId", "-noD", "-noF", "-noX"}},
}

// packOptions are what the command line of "parts pack" says.
type packOptions struct {
	squire     string
	mksquashfs string
	rounds     int
	limit      time.Duration // for one image
	tree       string        // to be packed; empty: image, unpacked
	image      string
	only       string // words; a case whose name has one of them is run; empty: all
	dir        string // for the tree and the images; empty: temporary
	json       string // file for all figures; empty: none
}

func parsePackOptions(args []string) (packOptions, error) {
	var o packOptions
	flags := flag.NewFlagSet("parts pack", flag.ContinueOnError)
	flags.StringVar(&o.squire, "squire", "squire", "the squire binary")
	flags.StringVar(&o.mksquashfs, "mksquashfs", "mksquashfs", "the `program` to compare with")
	flags.IntVar(&o.rounds, "rounds", 5, "how often to measure everything")
	flags.DurationVar(&o.limit, "limit", 5*time.Minute, "time limit for one image")
	flags.StringVar(&o.tree, "tree", "", "the `directory` to pack (default: the image, unpacked)")
	flags.StringVar(&o.image, "image", filepath.Join(os.Getenv("SQUIRE_TESTDIR"), "rootfs-zstd.sqsh"), "the image to unpack and pack again")
	flags.StringVar(&o.only, "only", "", "comma-separated `words`: run the cases whose name has one of them (default: all)")
	flags.StringVar(&o.dir, "dir", "", "make trees and images in this `directory` (default: temporary)")
	flags.StringVar(&o.json, "json", "", "write all figures to `file`")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() > 0 || o.rounds < 1 {
		flags.Usage()
		return o, errors.New("want at least one round and no other arguments")
	}
	return o, nil
}

// pack compares squire pack with mksquashfs. Both pack the same tree, which is in the page cache by the second time,
// with all processors and into the same file system, in turns. Before it is measured, each image is compared with the
// tree, file by file.
func pack(ctx context.Context, args []string) error {
	o, err := parsePackOptions(args)
	if err != nil {
		return err
	}
	b := &packBench{packOptions: o}
	if b.work, err = os.MkdirTemp(o.dir, "squire-parts-pack"); err != nil {
		return err
	}
	defer func() { _ = runTool(exec.Command("rm", "-rf", b.work)) }() // trees have directories without permissions
	if err = b.prepare(ctx); err != nil {
		return err
	}
	rep := packReport{Machine: bench.ThisMachine().String(), Rounds: b.rounds}
	for _, c := range packCases {
		if !hasWord(c.name, b.only) {
			continue
		}
		fmt.Fprintln(os.Stderr, c.name)
		res, merr := b.measure(ctx, c)
		if merr != nil {
			return errors.Join(fmt.Errorf("%s: %w", c.name, merr), rep.print(os.Stdout))
		}
		rep.Results = append(rep.Results, res)
	}
	err = rep.print(os.Stdout)
	if b.json != "" {
		err = errors.Join(err, writeJSON(b.json, &rep))
	}
	return err
}

// hasWord reports whether name has one of words, separated by commas.
func hasWord(name, words string) bool {
	return slices.ContainsFunc(strings.Split(words, ","), func(w string) bool { return strings.Contains(name, w) })
}

// packBench is one run of "parts pack".
type packBench struct {
	packOptions
	work string            // temporary directory
	want map[string]string // what is in the tree, by path
}

// prepare unpacks the image, unless there is a tree, and reads the tree.
func (b *packBench) prepare(ctx context.Context) (err error) {
	if b.squire, err = exec.LookPath(b.squire); err != nil {
		return err
	}
	if b.tree == "" {
		b.tree = filepath.Join(b.work, "tree")
		out, xerr := bench.RunProgram(ctx, b.limit, b.squire, "extract", "-q", "-d", b.tree, b.image)
		if xerr != nil {
			return fmt.Errorf("extract: %w %s", xerr, out)
		}
	}
	b.want, err = describeTree(b.tree)
	return err
}

// packResult is what came of a case.
type packResult struct {
	Case  string
	Files int
	Runs  []packRun // squire's first
}

// packRun is what one program needed.
type packRun struct {
	Name    string
	Seconds []float64
	CPU     []float64 // seconds, user and system
	Memory  []float64 // the most there was at once, MiB
	Size    int64     // of the image
}

// measure makes an image with both programs, and looks at what is in it, then measures them in turns.
func (b *packBench) measure(ctx context.Context, c packCase) (packResult, error) {
	res := packResult{Case: c.name, Files: len(b.want), Runs: []packRun{{Name: squireName}, {Name: "mksquashfs"}}}
	image := filepath.Join(b.work, "image")
	argv := [][]string{
		append([]string{b.squire, "pack", "-q", "--force", b.tree, image}, c.squire...),
		append([]string{b.mksquashfs, b.tree, image, "-noappend", "-quiet", "-no-progress"}, c.mksquashfs...),
	}
	for round := -1; round < b.rounds; round++ {
		for i := range argv {
			k := (i + max(round, 0)) % len(argv) // whoever runs first finds the machine warmer or colder
			took, err := runMeasured(ctx, b.limit, image, argv[k])
			if err != nil {
				return res, err
			}
			if round < 0 {
				if err = b.verify(image); err != nil {
					return res, fmt.Errorf("%s: %w", res.Runs[k].Name, err)
				}
			} else {
				res.Runs[k].add(took)
			}
			info, err := os.Stat(image)
			if err != nil {
				return res, err
			}
			res.Runs[k].Size = info.Size()
			if err := os.Remove(image); err != nil {
				return res, err
			}
		}
	}
	return res, nil
}

// packCost is what a process needed.
type packCost struct {
	wall, cpu time.Duration
	memory    int64 // bytes
}

// runMeasured runs a program that makes an image, and syncs that, which squire does by itself.
func runMeasured(ctx context.Context, limit time.Duration, image string, argv []string) (packCost, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var says bytes.Buffer
	cmd.Stdout, cmd.Stderr = &says, &says
	start := time.Now()
	err := cmd.Run()
	if err == nil {
		err = syncFile(image)
	}
	took := time.Since(start)
	if ctx.Err() != nil {
		return packCost{}, context.Cause(ctx)
	}
	if err != nil {
		return packCost{}, fmt.Errorf("%s: %w: %s", argv[0], err, bytes.TrimSpace(says.Bytes()))
	}
	state := cmd.ProcessState
	c := packCost{wall: took, cpu: state.UserTime() + state.SystemTime()}
	if u, ok := state.SysUsage().(*syscall.Rusage); ok {
		c.memory = u.Maxrss << 10 // KiB: getrusage(2)
	}
	return c, nil
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

func (r *packRun) add(c packCost) {
	r.Seconds = append(r.Seconds, c.wall.Seconds())
	r.CPU = append(r.CPU, c.cpu.Seconds())
	r.Memory = append(r.Memory, float64(c.memory)/(1<<20))
}

// packReport is what "parts pack" found.
type packReport struct {
	Machine string
	Rounds  int
	Results []packResult
}

// print writes the table. Ratios are squire's figure by that of mksquashfs.
func (r *packReport) print(w io.Writer) error {
	fmt.Fprintf(w, "%s; medians of %d rounds; ratios are squire / mksquashfs\n\n", r.Machine, r.Rounds)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(tw, "\twall s\t\tratio\tCPU s\t\tratio\tmemory MiB\t\tratio\tsize MiB\t\tratio\t\n")
	fmt.Fprint(tw, "\tsquire\tmksq.\t\tsquire\tmksq.\t\tsquire\tmksq.\t\tsquire\tmksq.\t\t\n")
	for _, res := range r.Results {
		ours, peers := &res.Runs[0], &res.Runs[1]
		fmt.Fprintf(tw, "%s\t", res.Case)
		for _, f := range []struct {
			form        string
			ours, peers float64
		}{
			{"%.2f", bench.Median(ours.Seconds), bench.Median(peers.Seconds)},
			{"%.2f", bench.Median(ours.CPU), bench.Median(peers.CPU)},
			{"%.0f", bench.Median(ours.Memory), bench.Median(peers.Memory)},
			{"%.1f", float64(ours.Size) / (1 << 20), float64(peers.Size) / (1 << 20)},
		} {
			fmt.Fprintf(tw, f.form+"\t"+f.form+"\t%.3f\t", f.ours, f.peers, f.ours/f.peers)
		}
		fmt.Fprintln(tw)
	}
	return tw.Flush()
}
