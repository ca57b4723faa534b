package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/squirefs/squire/bench"
)

// inodesOptions are what the command line of "parts inodes" says.
type inodesOptions struct {
	squire string
	rounds int
	limit  time.Duration // for one walk
	sizes  []int         // of the trees
	comp   string
	peers  string // names, separated by commas; empty: the kernel, squashfuse_ll and squire
	dir    string // for the images; empty: temporary
	json   string // file for all figures; empty: none
}

func parseInodesOptions(args []string) (inodesOptions, error) {
	var o inodesOptions
	flags := flag.NewFlagSet("parts inodes", flag.ContinueOnError)
	flags.StringVar(&o.squire, "squire", "squire", "the squire binary")
	flags.IntVar(&o.rounds, "rounds", 3, "how often to measure everything")
	flags.DurationVar(&o.limit, "limit", 2*time.Minute, "time limit of one walk")
	sizes := flags.String("sizes", "1000,10000,100000,1000000", "comma-separated `numbers` of inodes")
	flags.StringVar(&o.comp, "comp", "zstd", "`compressor` of sqfstar")
	flags.StringVar(&o.peers, "peers", "", "comma-separated `names` of the peers (default: kernel, squashfuse_ll and squire)")
	flags.StringVar(&o.dir, "dir", "", "keep the images in `directory`, and use those that are there (default: temporary)")
	flags.StringVar(&o.json, "json", "", "write all figures to `file`, for \"squire bench --from\"")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	for text := range strings.SplitSeq(*sizes, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n < 200 {
			return o, fmt.Errorf("size %q: want a number of inodes, 200 or more", text)
		}
		o.sizes = append(o.sizes, n)
	}
	if flags.NArg() > 0 || o.rounds < 1 {
		flags.Usage()
		return o, errors.New("want at least one round and no other arguments")
	}
	return o, nil
}

// inodes compares what an inode costs a walk with stat through mounts of trees of more and more inodes: with a cost
// that grows, there is something that is not linear.
func inodes(ctx context.Context, args []string) error {
	o, err := parseInodesOptions(args)
	if err != nil {
		return err
	}
	work, err := os.MkdirTemp("", "squire-parts-inodes")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if o.dir == "" {
		o.dir = work
	}
	rep, err := o.measure(ctx)
	if rep == nil {
		return err
	}
	err = errors.Join(err, rep.WriteText(os.Stdout))
	if o.json != "" {
		err = errors.Join(err, writeJSON(o.json, rep))
	}
	return err
}

// measure walks the trees, and returns what was measured until something went wrong.
func (o *inodesOptions) measure(ctx context.Context) (*bench.Report, error) {
	var all *bench.Report
	curves := map[string]*bench.Curve{}
	for _, n := range o.sizes {
		rep, err := o.walk(ctx, n)
		if rep == nil {
			return all, err
		}
		for _, row := range rep.Rows {
			c := curves[row.Cache]
			if c == nil {
				c = &bench.Curve{Operation: row.Workload + ", " + row.Cache, X: bench.CurveOverInodes}
				curves[row.Cache] = c
			}
			c.Points = append(c.Points, bench.Point{X: n, Row: row})
		}
		rep.Curves = nil
		for _, cache := range []string{"cold", "warm"} {
			if c := curves[cache]; c != nil {
				rep.Curves = append(rep.Curves, *c)
			}
		}
		rep.Rows, all = nil, rep
		if err != nil {
			return all, err
		}
	}
	return all, nil
}

// walk measures one tree.
func (o *inodesOptions) walk(ctx context.Context, n int) (*bench.Report, error) {
	b := &metadataBench{metadataOptions: metadataOptions{inodes: n, dir: o.dir}}
	path := b.imagePath(fmt.Sprintf("tree of %d, %s", n, o.comp))
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if _, err := os.Stat(path); err != nil {
		fmt.Fprintln(os.Stderr, "making", path)
		if err := makeFile(path, func(tmp string) error { return b.sqfstar(ctx, tmp, o.comp) }); err != nil {
			return nil, err
		}
	}
	squire, err := filepath.Abs(o.squire)
	if err != nil {
		return nil, err
	}
	opts := bench.Options{
		Image: path, Squire: squire, Rounds: o.rounds, Limit: o.limit, Workloads: []string{"walk"},
		Peers: []string{"kernel", "squashfuse_ll", "squire"},
		Note:  func(s string) { fmt.Fprintln(os.Stderr, "parts:", s) },
	}
	if o.peers != "" {
		opts.Peers = strings.Split(o.peers, ",")
	}
	fmt.Fprintln(os.Stderr, "walking", path)
	return bench.Run(ctx, opts)
}
