package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// serviceOptions are what the command line of "parts service" says.
type serviceOptions struct {
	squire string
	image  string
	rounds int
}

// starter is a way to have the files of an image.
type starter struct {
	name string
	argv []string // IMAGE and DIR stand for what they say; without DIR it is a container that ends by itself
	env  []string
	took []time.Duration
}

// service measures how long it takes from the start of a command that mounts to the first stat in the mount, with a node
// service whose image is there already, with one that has to mount it, without one, and by others; and containers that
// run nothing, with and without it.
func service(ctx context.Context, args []string) error {
	var o serviceOptions
	flags := flag.NewFlagSet("parts service", flag.ContinueOnError)
	flags.StringVar(&o.squire, "squire", "squire", "the squire binary")
	flags.StringVar(&o.image, "image", "", "the `image`, with /bin/true")
	flags.IntVar(&o.rounds, "rounds", 51, "how often to measure everything")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if o.image == "" || o.rounds < 1 || flags.NArg() > 0 || os.Getuid() != 0 {
		flags.Usage()
		return errors.New("want root, an image, at least one round and no other arguments")
	}
	work, err := os.MkdirTemp("", "squire-parts-service")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if o.squire, err = exec.LookPath(o.squire); err != nil {
		return err
	}
	// As it is installed. What a linker has written lies in the page cache in single pages, and takes longer to be mapped.
	if err = copyFile(&o.squire, filepath.Join(work, "squire"), 0o755); err != nil {
		return err
	}
	warm, cold := filepath.Join(work, "warm"), filepath.Join(work, "cold")
	for socket, idle := range map[string]string{warm: "0", cold: "1ms"} {
		stop, err := o.daemon(ctx, socket, idle)
		if err != nil {
			return err
		}
		defer stop()
	}
	all := o.starters(warm, cold)
	for round := range o.rounds + 1 {
		for i := range all {
			took, err := o.measure(ctx, &all[i], filepath.Join(work, "mnt"))
			if err != nil {
				return fmt.Errorf("%s: %w", all[i].name, err)
			}
			if round > 0 { // the first warms up
				all[i].took = append(all[i].took, took)
			}
		}
	}
	return writeStarters(os.Stdout, all)
}

// starters are those whose programs are there.
func (o *serviceOptions) starters(warm, cold string) (found []starter) {
	mount, run := []string{o.squire, "mount", "IMAGE", "DIR"}, []string{o.squire, "run", "IMAGE", "--", "/bin/true"}
	off, node := "SQUIRE_SERVICE=off", "SQUIRE_SERVICE=node"
	for _, s := range []starter{
		{name: "kernel", argv: []string{"mount", "-t", "squashfs", "-o", "loop,ro", "IMAGE", "DIR"}},
		{name: "squashfuse", argv: []string{"squashfuse", "IMAGE", "DIR"}},
		{name: "squashfuse_ll", argv: []string{"squashfuse_ll", "IMAGE", "DIR"}},
		{name: "squire mount, no service", argv: mount, env: []string{off}},
		{name: "squire mount, service, image new", argv: mount, env: []string{node, "SQUIRE_SOCKET=" + cold}},
		{name: "squire mount, service, image there", argv: mount, env: []string{node, "SQUIRE_SOCKET=" + warm}},
		{name: "squire run true, no service", argv: run, env: []string{off}},
		{name: "squire run true, service, image there", argv: run, env: []string{node, "SQUIRE_SOCKET=" + warm}},
	} {
		path, err := exec.LookPath(s.argv[0])
		if err != nil {
			fmt.Fprintln(os.Stderr, "parts: left out:", err)
			continue
		}
		s.argv = slices.Clone(s.argv)
		s.argv[0] = path
		s.env = append(append(os.Environ(), "SQUIRE_TRACE=0"), s.env...)
		found = append(found, s)
	}
	return found
}

// daemon starts a service, and returns what ends it.
func (o *serviceOptions) daemon(ctx context.Context, socket, idle string) (stop func(), err error) {
	cmd := exec.CommandContext(ctx, o.squire, "daemon", "--socket", socket, "--idle", idle, "--drain", "1s", "--log-level", "error")
	cmd.Stderr = os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	if err = cmd.Start(); err != nil {
		return nil, err
	}
	for range 500 {
		if _, err = os.Lstat(socket); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	return func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	}, err
}

// measure starts one once, and takes away what it has made.
func (o *serviceOptions) measure(ctx context.Context, s *starter, dir string) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return 0, err
	}
	argv, mounts := slices.Clone(s.argv), false
	for i, word := range argv {
		switch word {
		case "IMAGE":
			argv[i] = o.image
		case "DIR":
			argv[i], mounts = dir, true
		}
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = s.env
	begun := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("%w: %s", err, out)
	}
	if !mounts {
		return time.Since(begun), nil
	}
	var st unix.Stat_t
	err := unix.Stat(filepath.Join(dir, "usr", "bin"), &st)
	took := time.Since(begun)
	for range 100 { // squashfuse may still be at work
		if e := unix.Unmount(dir, 0); e == nil {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	time.Sleep(5 * time.Millisecond) // an image that nobody uses goes
	return took, err
}

func writeStarters(w io.Writer, all []starter) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "least ms\tmedian\t90 %\tmost\t")
	for _, s := range all {
		slices.Sort(s.took)
		for _, q := range []int{0, 50, 90, 100} {
			fmt.Fprintf(tw, "%.1f\t", s.took[(len(s.took)-1)*q/100].Seconds()*1e3)
		}
		fmt.Fprintf(tw, "  %s\n", s.name)
	}
	return tw.Flush()
}
