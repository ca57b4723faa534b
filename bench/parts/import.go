package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/squirefs/squire/bench"
	"github.com/squirefs/squire/internal/registry"
)

// importOptions are what the command line of "parts import" says.
type importOptions struct {
	squire string
	layout string // DIR:TAG
	rounds int
	limit  time.Duration // for one import
	only   string        // words; a contestant whose name has one of them is measured; empty: all
	dir    string        // for all that is written; empty: temporary
	json   string        // file for all figures; empty: none
	peers  []importer
}

// importer is a way to make a squashfs image of a container image. URL, OUT and WORK in its words stand for the image in
// the registry, as docker://HOST:PORT/NAME:TAG, the file to make, and an empty directory for all else.
type importer struct {
	name string
	argv []string
	warm bool // WORK is that of the import before, with its cache
}

func parseImportOptions(args []string) (importOptions, error) {
	var o importOptions
	flags := flag.NewFlagSet("parts import", flag.ContinueOnError)
	flags.StringVar(&o.squire, "squire", "squire", "the squire binary")
	flags.StringVar(&o.layout, "image", "", "the image, `DIR:TAG` of an OCI layout")
	flags.IntVar(&o.rounds, "rounds", 3, "how often to measure everything")
	flags.DurationVar(&o.limit, "limit", 10*time.Minute, "time limit of one import")
	flags.StringVar(&o.only, "only", "", "comma-separated `words`: measure the contestants whose name has one of them (default: all)")
	flags.StringVar(&o.dir, "dir", "", "write below `directory`, on a file system that nobody else writes to meanwhile (default: temporary)")
	flags.StringVar(&o.json, "json", "", "write all figures to `file`")
	flags.Func("peer", "one more contestant, `NAME='COMMAND URL OUT WORK'`; may be repeated", func(text string) error {
		name, command, _ := strings.Cut(text, "=")
		argv := strings.Fields(command)
		if strings.TrimSpace(name) == "" || !slices.Contains(argv, "URL") || !slices.Contains(argv, "OUT") {
			return fmt.Errorf("want NAME=COMMAND with the words URL and OUT")
		}
		o.peers = append(o.peers, importer{name: strings.TrimSpace(name), argv: argv})
		return nil
	})
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() > 0 || o.rounds < 1 || o.layout == "" {
		flags.Usage()
		return o, errors.New("want -image, at least one round and no other arguments")
	}
	return o, nil
}

// imports compares ways from a registry to a squashfs image: squire, and peers that the command line names. The registry
// is Debian's, on this machine, so that the network costs little. Each import begins with nothing, but for "layers
// cached", which has the cache of the import before it. All take turns.
func imports(ctx context.Context, args []string) error {
	o, err := parseImportOptions(args)
	if err != nil {
		return err
	}
	if o.squire, err = filepath.Abs(o.squire); err != nil {
		return err
	}
	b := &importBench{importOptions: o}
	if b.work, err = os.MkdirTemp(o.dir, "squire-parts-import"); err != nil {
		return err
	}
	defer os.RemoveAll(b.work)
	r, err := b.serve(ctx)
	if err != nil {
		return err
	}
	defer r.Stop()
	b.address = r.Address
	err = b.measureAll(ctx, b.contestants())
	if len(b.Runs) > 0 {
		err = errors.Join(err, b.print(os.Stdout))
	}
	if o.json != "" {
		err = errors.Join(err, writeJSON(o.json, b))
	}
	return err
}

// importBench is one run of "parts import".
type importBench struct {
	importOptions
	work    string // a temporary directory
	address string // of the registry
	Machine bench.Machine
	Runs    []importRun
}

// importRun is one import.
type importRun struct {
	Name    string
	Seconds float64 // from start to end
	CPU     float64 // seconds, of all processes
	Memory  int64   // bytes, of all processes at once, at the worst moment that was seen
	Disk    int64   // bytes on the file system at the worst moment that was seen, without the output
	Output  int64   // bytes
}

// serve starts a registry with the image in it.
func (b *importBench) serve(ctx context.Context) (*registry.Registry, error) {
	storage := filepath.Join(b.work, "registry")
	if err := os.Mkdir(storage, 0o755); err != nil {
		return nil, err
	}
	r, err := registry.Start(registry.Options{Storage: storage})
	if err != nil {
		return nil, err
	}
	// Docker's form of the manifest is known to all.
	out, err := bench.RunProgram(ctx, 5*time.Minute, "skopeo", "--insecure-policy", "copy", "-q", "--format", "v2s2", "--dest-tls-verify=false",
		"oci:"+b.layout, "docker://"+r.Address+"/image:1")
	if err != nil {
		r.Stop()
		return nil, fmt.Errorf("push %s: %w %s", b.layout, err, out)
	}
	return r, nil
}

// contestants are squire's ways and the peers.
func (b *importBench) contestants() []importer {
	squire := func(name string, warm bool, args ...string) importer {
		argv := []string{b.squire, "import", "--quiet", "--insecure", b.address, "--comp", "zstd", "--level", "3", "--block-size", "128K", "-o", "OUT"}
		return importer{name: name, argv: append(append(argv, args...), "URL"), warm: warm}
	}
	all := []importer{
		squire("squire", false, "--no-cache"),
		squire("squire, layers kept", false, "--cache-dir", "WORK"),
		squire("squire, layers cached", true, "--cache-dir", "WORK"),
	}
	return append(all, b.peers...)
}

func (b *importBench) wanted(name string) bool {
	return slices.ContainsFunc(strings.Split(b.only, ","), func(word string) bool { return strings.Contains(name, word) })
}

// measureAll measures all contestants in turns.
func (b *importBench) measureAll(ctx context.Context, all []importer) error {
	b.Machine = bench.ThisMachine()
	for round := range b.rounds {
		for _, c := range all {
			if !b.wanted(c.name) {
				continue
			}
			fmt.Fprintf(os.Stderr, "round %d of %d: %s\n", round+1, b.rounds, c.name)
			run, err := b.measure(ctx, c)
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			b.Runs = append(b.Runs, *run)
		}
	}
	return nil
}

// names are the contestants, in the order of their first run.
func (b *importBench) names() []string {
	var names []string
	for _, r := range b.Runs {
		if !slices.Contains(names, r.Name) {
			names = append(names, r.Name)
		}
	}
	return names
}

// samples are the figures of a contestant.
func (b *importBench) samples(name string, figure func(importRun) float64) []float64 {
	var s []float64
	for _, r := range b.Runs {
		if r.Name == name {
			s = append(s, figure(r))
		}
	}
	return s
}

// print writes the table.
func (b *importBench) print(w io.Writer) error {
	fmt.Fprintf(w, "%s; medians of %d rounds [lowest–highest]\n\n", b.Machine.String(), b.rounds)
	columns := []struct {
		title  string
		form   string
		figure func(importRun) float64
	}{
		{"s", "%.1f", func(r importRun) float64 { return r.Seconds }},
		{"CPU s", "%.1f", func(r importRun) float64 { return r.CPU }},
		{"memory MiB", "%.0f", func(r importRun) float64 { return float64(r.Memory) / (1 << 20) }},
		{"temporary disk MiB", "%.0f", func(r importRun) float64 { return float64(r.Disk) / (1 << 20) }},
		{"image MiB", "%.1f", func(r importRun) float64 { return float64(r.Output) / (1 << 20) }},
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, c := range columns {
		fmt.Fprint(tw, "\t", c.title)
	}
	fmt.Fprintln(tw)
	for _, name := range b.names() {
		fmt.Fprint(tw, name)
		for _, c := range columns {
			s := b.samples(name, c.figure)
			fmt.Fprintf(tw, "\t"+c.form+" ["+c.form+"–"+c.form+"]", bench.Median(s), slices.Min(s), slices.Max(s))
		}
		fmt.Fprintln(tw)
	}
	return tw.Flush()
}
