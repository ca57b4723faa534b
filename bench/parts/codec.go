package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/squirefs/squire/bench"
)

// codecCase is one compressor, with settings of mksquashfs.
type codecCase struct {
	name string
	args []string // of mksquashfs
	libs []string // the C libraries that expand it: names for peer.c; squire is compared with the first
	goal float64  // how many times as fast as the first squire is to be
}

// codecCases are the compressors with their defaults, and where it matters to a decoder, with another setting.
var codecCases = []codecCase{
	{"gzip", []string{"-comp", "gzip", "-Xcompression-level", "9"}, []string{"zlib", "libdeflate"}, 1.3},
	{"lzma", []string{"-comp", "lzma"}, []string{"lzma"}, 0.9},
	{"xz", []string{"-comp", "xz", "-Xdict-size", "100%"}, []string{"xz"}, 0.9},
	{"xz-x86", []string{"-comp", "xz", "-Xdict-size", "100%", "-Xbcj", "x86"}, []string{"xz"}, 0.9},
	{"lzo", []string{"-comp", "lzo", "-Xalgorithm", "lzo1x_999"}, []string{"lzo"}, 1.1},
	{"lz4", []string{"-comp", "lz4"}, []string{"lz4"}, 0.85},
	{"lz4-hc", []string{"-comp", "lz4", "-Xhc"}, []string{"lz4"}, 0.85},
	{"zstd-15", []string{"-comp", "zstd", "-Xcompression-level", "15"}, []string{"zstd"}, 0.85},
	{"zstd-3", []string{"-comp", "zstd", "-Xcompression-level", "3"}, []string{"zstd"}, 0.85},
}

// codecShape is a size of blocks: that of file data, and that of metadata, with which setting up a decoder counts.
type codecShape struct {
	block int  // bytes
	part  int  // this part of the input is enough
	goals bool // of the cases count here
}

var codecShapes = []codecShape{{128 << 10, 1, true}, {8 << 10, 4, false}}

// codecOptions are what the command line of "parts codec" says.
type codecOptions struct {
	rounds   int
	limit    time.Duration // for a round of one contestant
	size     int           // MiB of files
	texts    string        // glob patterns of directories, separated by commas
	binaries string
	cases    string // words; a case whose name has one of them is run; empty: all
	dir      string // for the images; empty: temporary
	json     string // file for all figures; empty: none
}

func parseCodecOptions(args []string) (codecOptions, error) {
	var o codecOptions
	flags := flag.NewFlagSet("parts codec", flag.ContinueOnError)
	flags.IntVar(&o.rounds, "rounds", 5, "how often to measure everything")
	flags.DurationVar(&o.limit, "limit", 2*time.Minute, "time limit of one round of one contestant")
	flags.IntVar(&o.size, "size", 64, "how many `MiB` of files to take: a third texts, the rest binaries")
	flags.StringVar(&o.texts, "texts", "/usr/lib/python3*", "comma-separated `directories` (or patterns) of Python files")
	flags.StringVar(&o.binaries, "binaries", "/usr/lib,/usr/bin", "comma-separated `directories` (or patterns) of programs and libraries")
	flags.StringVar(&o.cases, "only", "", "comma-separated `words`: run the compressors whose name has one of them (default: all)")
	flags.StringVar(&o.dir, "dir", "", "keep the images in `directory`, and use those that are there: delete it to change the input (default: temporary)")
	flags.StringVar(&o.json, "json", "", "write all figures to `file`")
	flags.Usage = func() {
		fmt.Fprint(flags.Output(), "usage: parts codec [flags]\n"+
			"CFLAGS and LDFLAGS from the environment find other libraries than the system's.\n")
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() > 0 || o.rounds < 1 || o.size < 1 || o.size > 1024 {
		flags.Usage()
		return o, errors.New("want at least one round, 1 to 1024 MiB and no other arguments")
	}
	return o, nil
}

// findCases returns the cases with one of words in their name, or all when words is empty.
func findCases(words string) ([]codecCase, error) {
	var chosen []codecCase
	for _, c := range codecCases {
		for word := range strings.SplitSeq(words, ",") {
			if strings.Contains(c.name, word) {
				chosen = append(chosen, c)
				break
			}
		}
	}
	if len(chosen) == 0 {
		return nil, fmt.Errorf("no compressor has one of %q in its name", words)
	}
	return chosen, nil
}

// codec compares squire's decoders with C libraries. Both sides are processes that expand the same blocks, taken from
// an image of mksquashfs into a file, in one thread and from memory to memory. They do so in turns, so that whatever
// else the machine does meets all alike; CPU time is measured.
func codec(ctx context.Context, args []string) error {
	o, err := parseCodecOptions(args)
	if err != nil {
		return err
	}
	cases, err := findCases(o.cases)
	if err != nil {
		return err
	}
	work, err := os.MkdirTemp("", "squire-parts-codec")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	b := &codecBench{codecOptions: o, work: work, programs: make(map[string]string)}
	if b.dir == "" {
		b.dir = work
	}
	if err := os.MkdirAll(b.dir, 0o755); err != nil {
		return err
	}
	if err := b.build(ctx, cases); err != nil {
		return err
	}
	return b.run(ctx, cases)
}

// codecBench is one comparison of decoders.
type codecBench struct {
	codecOptions
	work     string            // temporary directory
	programs map[string]string // contestants that could be built: library to file
}

// run measures all cases and reports what came out, which is worth seeing after a failure or a signal all the same.
func (b *codecBench) run(ctx context.Context, cases []codecCase) error {
	rep := codecReport{Machine: bench.ThisMachine().String(), Rounds: b.rounds}
	err := b.measureAll(ctx, cases, &rep)
	err = errors.Join(err, rep.print(os.Stdout))
	if b.json != "" {
		err = errors.Join(err, writeJSON(b.json, &rep))
	}
	if n := len(rep.Failures); n > 0 {
		err = errors.Join(err, fmt.Errorf("%d comparisons failed", n))
	}
	return err
}

// measureAll notes failures and goes on, unless ctx has ended.
func (b *codecBench) measureAll(ctx context.Context, cases []codecCase, rep *codecReport) error {
	for _, shape := range codecShapes {
		for _, c := range cases {
			name := fmt.Sprintf("%s, blocks of %d KiB", c.name, shape.block>>10)
			fmt.Fprintln(os.Stderr, name)
			res, err := b.measure(ctx, c, shape)
			if ctx.Err() != nil {
				return errors.New("interrupted")
			}
			if err != nil {
				rep.Failures = append(rep.Failures, fmt.Sprintf("%s: %v", name, err))
				continue
			}
			rep.Results = append(rep.Results, res)
		}
	}
	return nil
}

// measure compares all who can expand a case, in blocks of one size.
func (b *codecBench) measure(ctx context.Context, c codecCase, shape codecShape) (codecResult, error) {
	res := codecResult{Case: c.name, BlockSize: shape.block}
	image, err := b.image(ctx, c, shape)
	if err != nil {
		return res, err
	}
	file := filepath.Join(b.work, "blocks")
	sum, err := dumpBlocks(image, file)
	if err != nil {
		return res, err
	}
	res.Blocks, res.Compressed, res.Expanded = sum.blocks, sum.compressed, sum.expanded

	var all []*contestant
	defer func() {
		for _, p := range all {
			p.stop()
		}
	}()
	for _, name := range append([]string{squireName}, c.libs...) {
		program, ok := b.programs[name]
		if !ok {
			continue
		}
		p, err := startContestant(name, program, file, b.limit)
		if err != nil {
			return res, err
		}
		all = append(all, p)
	}
	if err := sameOutput(all); err != nil {
		return res, err
	}
	for _, p := range all {
		t := codecTimes{Name: p.name}
		if p.name == c.libs[0] && shape.goals {
			t.Goal = c.goal
		}
		res.Times = append(res.Times, t)
	}
	for round := range b.rounds {
		for i := range all {
			// Whoever runs first finds the processor colder or cooler: take turns.
			k := (i + round) % len(all)
			t, err := all[k].time()
			if err != nil {
				return res, err
			}
			if ctx.Err() != nil {
				return res, ctx.Err()
			}
			res.Times[k].Seconds = append(res.Times[k].Seconds, t)
		}
	}
	res.finish()
	return res, nil
}
