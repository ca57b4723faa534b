// Command bench compares squire with its peers. Its first argument may be the name of a comparison, see commands.
//
// Without one it compares ways to mount one squashfs image: the kernel's squashfs, squashfuse in its two forms, and
// squire. That needs root.
//
// In every round each workload runs on a fresh mount of each peer in turn, with the image file in the page cache: that
// is the cold time; running it again on the same mount is the warm one. Workloads are child processes with a time
// limit. What comes out are medians over the rounds with their spread, and how many times longer than the kernel's
// squashfs a peer took.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// commands are the comparisons that have a name. They take the arguments behind it.
var commands = map[string]func(ctx context.Context, args []string) error{
	"codec":    codec,
	"metadata": metadata,
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == childName {
		exit(runChild(os.Args[2:], os.Stdout))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	command, args := run, os.Args[1:]
	if len(args) > 0 && commands[args[0]] != nil {
		command, args = commands[args[0]], args[1:]
	}
	exit(command(ctx, args))
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// options are what the command line says.
type options struct {
	image     string
	squire    string        // the binary
	rounds    int           // how often everything is measured
	limit     time.Duration // for one mount, and for one run of a workload
	python    string        // program of the import workloads
	peers     string        // names, separated by commas; empty: all that are installed
	workloads string        // words; a workload whose name has one of them is run; empty: all
	json      string        // file for all figures; empty: none
}

func parseOptions(args []string) (options, error) {
	var o options
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.StringVar(&o.squire, "squire", "squire", "the squire binary")
	flags.IntVar(&o.rounds, "rounds", 5, "how often to measure everything")
	flags.DurationVar(&o.limit, "limit", 2*time.Minute, "time limit of one mount or one run of a workload")
	flags.StringVar(&o.python, "python", "import numpy", "what the image's python3 runs in the import workloads")
	flags.StringVar(&o.peers, "peers", "", "comma-separated `names` of the peers: "+strings.Join(peerNames(), ", ")+" (default: all that are installed)")
	flags.StringVar(&o.workloads, "workloads", "", "comma-separated `words`: run the workloads whose name has one of them (default: all)")
	flags.StringVar(&o.json, "json", "", "write all figures to `file`")
	flags.Usage = func() {
		fmt.Fprintf(flags.Output(), "usage: bench [flags] IMAGE\n       bench codec [flags]\n")
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() != 1 || o.rounds < 1 {
		flags.Usage()
		return o, fmt.Errorf("want one image and at least one round")
	}
	o.image = flags.Arg(0)
	return o, nil
}

func run(ctx context.Context, args []string) error {
	o, err := parseOptions(args)
	if err != nil {
		return err
	}
	if os.Getuid() != 0 {
		return fmt.Errorf("needs root, to mount with the kernel and to change the root directory")
	}
	b, err := newBench(o)
	if err != nil {
		return err
	}
	defer b.close()
	// What was measured until a failure or a signal is worth seeing all the same.
	err = b.measure(ctx)
	rep := b.report()
	if werr := rep.print(os.Stdout); err == nil {
		err = werr
	}
	if o.json != "" {
		if werr := writeJSON(o.json, &rep); err == nil {
			err = werr
		}
	}
	if n := len(rep.Failures); err == nil && n > 0 {
		err = fmt.Errorf("%d measurements failed", n)
	}
	return err
}
