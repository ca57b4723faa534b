package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/bench"
)

type benchOptions struct {
	bench.Options
	peer   []string
	from   string
	json   string
	report string
	quiet  bool
}

func benchCommand() *cobra.Command {
	var o benchOptions
	cmd := &cobra.Command{
		Use:   "bench [flags] [IMAGE]",
		Short: "Compare ways to mount an image",
		Long: `Measure how fast an image is read through squire, through the kernel's squashfs and
through squashfuse, and as a directory that it was unpacked into; and how much CPU
time that takes. Workloads find files (walk), start Python, read files from the
beginning to the end, and read pages here and there.

In each round every workload runs on a fresh mount of each peer, in turns, with the
image file in memory: that is the cold time. The same once more on that mount is
the warm one. Tables show medians over the rounds [fastest–slowest], and ratios to
the kernel or, without it, to the first peer: 2.00 took twice as long.

CPU seconds are what the whole machine was busy while a workload ran, from
/proc/stat: client, server and kernel threads together, and whatever else ran then.
So nothing else should. The kernel counts in steps of 10 ms; means are shown.

Workloads, as --workloads has them:
  mount to first stat, mount to first byte, walk with stat, python (what --python says,
  once, and 8 times at once), small files, read one file, random 4 KiB reads, read all
  with --scaling: small files in random order, random 4 KiB reads

Peers:
  kernel         mount -t squashfs -o loop,ro (root only)
  squashfuse, squashfuse_ll
  squire         this program, without traces (SQUIRE_TRACE=0), whatever was run before
  directory      the image unpacked, below --dir: an upper limit. Before a cold run the
                 pages of its files are dropped (posix_fadvise), names and inodes are
                 not; and they come back from the disk, not from an image in memory
  --peer NAME='COMMAND IMAGE DIR'
                 any command that mounts and returns; the words IMAGE and DIR are
                 replaced: 'traced=squire mount -o trace IMAGE DIR' is this program with
                 traces, those in the user's cache, where it records them too

An ordinary user measures what needs no root: FUSE through fusermount3, Python in a
user namespace. Where fusermount3 is missing, or refuses a user without an account,
"unshare --map-root-user --mount squire bench …" does without it. Files that are
not readable for everybody are then left out. What cannot be measured is named and
left out.

With --scaling, curves take the place of the workloads: what a read costs with 1 to
64 readers at once, each point on a fresh mount.

Exit status: 0 if all was measured, 1 if some of it failed, 128+N if signal N
interrupted it (what was measured is shown, nothing stays mounted), 125 if measuring
could not start.`,
		Example: `  squire bench pytorch.sqsh
  squire bench --image pytorch.sqsh --python 'import torch' --report report.html
  squire bench --rounds 9 --workloads walk,read --json results.json pytorch.sqsh
  squire bench --peer 'new=/opt/bin/squashfuse_ll IMAGE DIR' pytorch.sqsh
  squire bench --peer 'traced=squire mount -o trace IMAGE DIR' pytorch.sqsh
  squire bench --from results.json --report report.svg`,
		Args:              needArgs(0, 1),
		RunE:              func(c *cobra.Command, args []string) error { return o.run(c, args) },
		ValidArgsFunction: completeImage,
	}
	o.addFlags(cmd)
	return cmd
}

func (o *benchOptions) addFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.Image, "image", "", "the image, as the argument IMAGE")
	f.IntVar(&o.Rounds, "rounds", bench.DefaultRounds, "how often to measure everything")
	f.StringSliceVar(&o.Peers, "peers", nil, "names of the peers to measure, separated by commas (default: all that can be used)")
	f.StringArrayVar(&o.peer, "peer", nil, "one more peer, NAME='COMMAND IMAGE DIR'; may be repeated")
	f.StringSliceVar(&o.Workloads, "workloads", nil, "words, separated by commas: run the workloads whose name has one of them (default: all)")
	f.StringVar(&o.Python, "python", bench.DefaultPython, "what the image's python3 runs")
	f.StringVar(&o.File, "file", "", "the file in the image for reads of one file (default: the largest)")
	f.IntSliceVar(&o.Readers, "readers", bench.DefaultReaders, "how many readers read everything at once")
	f.BoolVar(&o.Scaling, "scaling", false, "measure curves over the number of readers")
	f.StringVar(&o.Dir, "dir", "", "the directory to mount in and to unpack into (default: a temporary one)")
	f.DurationVar(&o.Limit, "limit", bench.DefaultLimit, "time limit of one mount or one run of a workload")
	f.StringVar(&o.json, "json", "", "write all figures as JSON to this file, or to standard output (-) instead of the tables")
	f.StringVar(&o.report, "report", "", "write a report with plots to this file, .html or .svg")
	f.StringVar(&o.from, "from", "", "measure nothing, and show what --json wrote to this file")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "no progress and no notes, only results")
	_ = cmd.MarkFlagDirname("dir") // these fail for unknown flags only
	_ = cmd.MarkFlagFilename("from", "json")
	_ = cmd.MarkFlagFilename("report", "html", "svg")
	_ = cmd.RegisterFlagCompletionFunc("peers", completeList(bench.PeerNames))
	_ = cmd.RegisterFlagCompletionFunc("workloads", completeList(func() []string { return bench.WorkloadNames(o.Scaling) }))
	f.VisitAll(func(flag *pflag.Flag) {
		if !slices.Contains([]string{"from", "json", "report", "quiet"}, flag.Name) { // is about measuring
			cmd.MarkFlagsMutuallyExclusive("from", flag.Name)
		}
	})
}

// completeList completes the last of words that are separated by commas.
func completeList(names func() []string) cobra.CompletionFunc {
	return func(_ *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
		before := typed[:strings.LastIndexByte(typed, ',')+1]
		var lists []string
		for _, name := range names() {
			if list := before + name; strings.HasPrefix(list, typed) {
				lists = append(lists, list)
			}
		}
		return lists, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
	}
}

func (o *benchOptions) run(c *cobra.Command, args []string) error {
	if err := o.parse(c, args); err != nil {
		return err
	}
	if o.from != "" {
		rep, err := readReport(o.from)
		if err != nil {
			return err
		}
		return o.show(c.OutOrStdout(), rep)
	}
	ctx, stop := untilSignal(c.Context())
	defer stop()
	rep, err := o.measure(ctx, c)
	if rep == nil {
		return err
	}
	// What was measured until a failure or a signal is worth seeing all the same.
	if showErr := o.show(c.OutOrStdout(), rep); showErr != nil {
		return showErr
	}
	switch {
	case ctx.Err() != nil:
		fmt.Fprintln(c.ErrOrStderr(), "squire: interrupted")
		return interrupted(ctx)
	case errors.Is(err, bench.ErrFailed):
		fmt.Fprintln(c.ErrOrStderr(), "squire:", err)
		return exitError(1)
	}
	return err
}

// parse completes the options and looks for what can be known to be wrong before minutes have passed.
func (o *benchOptions) parse(c *cobra.Command, args []string) error {
	switch {
	case len(args) == 1 && (o.Image != "" || o.from != ""):
		return fmt.Errorf("%s: there is an image already, or --from; usage: %s", printable(args[0]), c.UseLine())
	case len(args) == 1:
		o.Image = args[0]
	case o.Image == "" && o.from == "":
		return fmt.Errorf("usage: %s", c.UseLine())
	}
	for _, text := range o.peer {
		p, err := bench.ParsePeer(text)
		if err != nil {
			return fmt.Errorf("--peer: %w", err)
		}
		o.Extra = append(o.Extra, p)
	}
	if o.Rounds < 1 || o.Limit <= 0 {
		return errors.New("want at least one round, and a time limit that is more than nothing")
	}
	return o.checkOutputs()
}

// checkOutputs makes sure that results can be written, and that they are not written over the image or each other.
func (o *benchOptions) checkOutputs() error {
	if ext := filepath.Ext(o.report); o.report != "" && ext != ".html" && ext != ".svg" {
		return fmt.Errorf("--report %s: want a file .html or .svg", o.report)
	}
	taken := make(map[string]os.FileInfo)
	if st, err := os.Stat(o.Image); o.Image != "" && err == nil {
		taken["the image"] = st
	}
	if st, err := os.Stdout.Stat(); err == nil && st.Mode().IsRegular() {
		taken["standard output"] = st
	}
	for _, path := range []string{o.json, o.report} {
		if path == "" || path == "-" {
			continue
		}
		st, err := checkOutput(path)
		if err != nil {
			return err
		}
		for what, other := range taken {
			if st != nil && os.SameFile(st, other) {
				return fmt.Errorf("%s: is %s; want another file for results", path, what)
			}
		}
		if st != nil {
			taken["--json too"] = st
		}
	}
	// Files that are not there yet can only be the same by their names.
	if o.json != "" && o.report != "" && filepath.Base(o.json) == filepath.Base(o.report) {
		one, err := os.Stat(filepath.Dir(o.json))
		other, err2 := os.Stat(filepath.Dir(o.report))
		if err == nil && err2 == nil && os.SameFile(one, other) {
			return fmt.Errorf("%s: is --json too; want another file for results", o.report)
		}
	}
	return nil
}

// checkOutput makes sure that a file can be written, or made: then what it returns is nil.
func checkOutput(path string) (os.FileInfo, error) {
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err = os.Lstat(path); err == nil {
			return nil, fmt.Errorf("%s: is a link to nothing", path)
		}
	} else if err != nil {
		return nil, err
	}
	switch {
	case st == nil || st.Mode().IsRegular():
		if err := unix.Access(filepath.Dir(path), unix.W_OK); err != nil {
			return nil, fmt.Errorf("%s: %w", filepath.Dir(path), err)
		}
	case st.IsDir():
		return nil, fmt.Errorf("%s: is a directory", path)
	case !isStream(st):
		return nil, fmt.Errorf("%s: is no file that results could be written to", path)
	default:
		if err := unix.Access(path, unix.W_OK); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	return st, nil
}

// isStream says that a file is a pipe or a device that takes bytes as they come, as /dev/null: no disk.
func isStream(st os.FileInfo) bool {
	return st.Mode()&fs.ModeNamedPipe != 0 || st.Mode()&fs.ModeCharDevice != 0
}

// measure runs the comparison, and shows how far it is.
func (o *benchOptions) measure(ctx context.Context, c *cobra.Command) (*bench.Report, error) {
	var progress benchProgress
	m := startMeter(c.ErrOrStderr(), o.quiet, progress.line)
	defer m.close()
	if !o.quiet {
		o.Note = m.say
		o.Progress = progress.set
	}
	rep, err := bench.Run(ctx, o.Options)
	if rep != nil {
		rep.Version, rep.Command = versionString(), os.Args
	}
	if rep == nil && ctx.Err() != nil {
		m.say("interrupted")
		return nil, interrupted(ctx)
	}
	return rep, err
}

// show writes results where they are wanted.
func (o *benchOptions) show(w io.Writer, rep *bench.Report) error {
	write := rep.WriteText
	if o.json == "-" {
		write = rep.WriteJSON
	}
	if err := write(w); err != nil {
		return err
	}
	if o.json != "" && o.json != "-" {
		if err := writeFile(o.json, rep.WriteJSON); err != nil {
			return err
		}
	}
	switch filepath.Ext(o.report) {
	case ".html":
		return writeFile(o.report, rep.WriteHTML)
	case ".svg":
		return writeFile(o.report, rep.WriteSVG)
	}
	return nil
}

// writeFile writes a file that is either there in full or not at all. A pipe or a device is written into, and the file
// that a link leads to is replaced, not the link.
func writeFile(path string, write func(io.Writer) error) error {
	switch st, err := os.Stat(path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case isStream(st):
		var f *os.File
		if f, err = os.OpenFile(path, os.O_WRONLY, 0); err != nil {
			return err
		}
		return errors.Join(write(f), f.Close())
	case !st.Mode().IsRegular():
		return fmt.Errorf("%s: is no file that results could be written to", path)
	default:
		if path, err = filepath.EvalSymlinks(path); err != nil {
			return err
		}
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if err := errors.Join(f.Chmod(0o644), write(f), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// readReport reads a report of --json; "-" is standard input.
func readReport(path string) (*bench.Report, error) {
	f := os.Stdin
	if path != "-" {
		var err error
		if f, err = os.Open(path); err != nil {
			return nil, unwrapPath(path, err)
		}
		defer f.Close()
	}
	rep, err := bench.ReadJSON(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return rep, nil
}

// benchProgress is how far a comparison is.
type benchProgress struct {
	mu  sync.Mutex
	now bench.Progress
}

func (p *benchProgress) set(now bench.Progress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.now = now
}

func (p *benchProgress) line() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.now.Round == 0 {
		return p.now.What
	}
	return fmt.Sprintf("[%s] round %d, %s", bar(int64(p.now.Done), int64(p.now.Total)), p.now.Round, p.now.What)
}
