package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
)

// slurmOptions are what the command line of "parts slurm" says.
type slurmOptions struct {
	squire string
	plugin string
	lab    string
	image  string
	user   string
	port   int
	rounds int
	peers  []stack
}

// A stack is what starts containers in a cluster: a line of plugstack.conf. Without one there is no container.
type stack struct {
	name string
	line string
}

// A launch is a step that runs nothing.
type launch struct {
	name string
	argv []string // of srun
	took [][]time.Duration
}

// slurmSettle is how long a step's daemons may go on after srun's end, before the next step is measured.
const slurmSettle = 100 * time.Millisecond

// slurm measures the time of srun with a container, by squire's plugin and those of others, and without one, in a cluster
// of its own with a node service. All take turns; each starts when all nodes are idle.
func slurm(ctx context.Context, args []string) error {
	o, err := parseSlurmOptions(args)
	if err != nil {
		return err
	}
	// Not below the system's temporary directory of root's own: the user has to reach all of it.
	dir, err := os.MkdirTemp("/var/tmp", "squire-parts-slurm")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b := slurmBench{slurmOptions: *o, dir: dir, socket: filepath.Join(dir, "socket")}
	if err = b.prepare(); err != nil {
		return err
	}
	service := serviceOptions{squire: b.squire}
	stop, err := service.daemon(ctx, b.socket, "0")
	if err != nil {
		return err
	}
	defer stop()
	if err = b.cluster(ctx, "start", "nodes=2", "cpus=64", "memory=64000", "port="+strconv.Itoa(b.port)); err != nil {
		return err
	}
	// Also when the measurement was interrupted.
	defer func() { _ = b.cluster(context.WithoutCancel(ctx), "stop") }()
	launches := []launch{
		{name: "2 nodes, 8 tasks each", argv: []string{"srun", "-N2", "--ntasks-per-node=8"}},
		{name: "1 node, 64 tasks", argv: []string{"srun", "-N1", "-n64"}},
		{name: "1 node, 1 task", argv: []string{"srun", "-N1", "-n1"}},
	}
	for i := range launches {
		if err = b.compare(ctx, &launches[i]); err != nil {
			return fmt.Errorf("%s: %w", launches[i].name, err)
		}
	}
	return b.write(os.Stdout, launches)
}

func parseSlurmOptions(args []string) (*slurmOptions, error) {
	var o slurmOptions
	flags := flag.NewFlagSet("parts slurm", flag.ContinueOnError)
	flags.StringVar(&o.squire, "squire", "squire", "the squire binary")
	flags.StringVar(&o.plugin, "plugin", "bin/spank_squire.so", "squire's plugin")
	flags.StringVar(&o.lab, "lab", "testdata/slurm.sh", "the script that makes a cluster")
	flags.StringVar(&o.image, "image", "", "the `image`, with /bin/true")
	flags.StringVar(&o.user, "user", "nobody", "who starts the steps")
	flags.IntVar(&o.port, "port", 28817, "the cluster's first TCP port")
	flags.IntVar(&o.rounds, "rounds", 21, "how often to measure everything")
	flags.Func("peer", "one more contestant, `NAME='LINE of plugstack.conf'`; may be repeated", func(text string) error {
		name, line, found := strings.Cut(text, "=")
		if !found || line == "" {
			return fmt.Errorf("%q is not NAME='LINE of plugstack.conf'", text)
		}
		o.peers = append(o.peers, stack{name: name, line: line})
		return nil
	})
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if o.image == "" || o.rounds < 1 || flags.NArg() > 0 || os.Getuid() != 0 {
		flags.Usage()
		return nil, errors.New("want root, an image, at least one round and no other arguments")
	}
	return &o, nil
}

type slurmBench struct {
	slurmOptions
	dir, socket string
	stacks      []stack
	credential  *syscall.Credential
}

// prepare copies what users have to reach, and writes all plugins down: slurmd loads them when it starts.
func (b *slurmBench) prepare() error {
	who, err := user.Lookup(b.user)
	if err != nil {
		return err
	}
	uid, _ := strconv.ParseUint(who.Uid, 10, 32)
	gid, _ := strconv.ParseUint(who.Gid, 10, 32)
	b.credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	if err = os.Chmod(b.dir, 0o755); err != nil {
		return err
	}
	for _, file := range []struct {
		path *string
		name string
		mode os.FileMode
	}{{&b.squire, "squire", 0o755}, {&b.plugin, "spank_squire.so", 0o644}, {&b.image, "image.sqsh", 0o644}} {
		content, err := os.ReadFile(*file.path)
		if err != nil {
			return err
		}
		*file.path = filepath.Join(b.dir, file.name)
		if err = os.WriteFile(*file.path, content, file.mode); err != nil {
			return err
		}
	}
	ours := fmt.Sprintf("required %s squire=%s", b.plugin, b.squire)
	b.stacks = append([]stack{{name: "no container"}, {name: "squire", line: ours}}, b.peers...)
	var lines []string
	for _, s := range b.stacks {
		lines = append(lines, s.line+"\n")
	}
	return b.plugstack(strings.Join(lines, ""))
}

// plugstack is read afresh by every srun and slurmstepd.
func (b *slurmBench) plugstack(content string) error {
	return os.WriteFile(filepath.Join(b.dir, "plugstack.conf"), []byte(content), 0o644)
}

func (b *slurmBench) cluster(ctx context.Context, verb string, settings ...string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, b.lab, append([]string{verb, b.dir}, settings...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", b.lab, verb, err, out)
	}
	return nil
}

// compare measures one launch with every stack in turn. The first round warms up.
func (b *slurmBench) compare(ctx context.Context, l *launch) error {
	l.took = make([][]time.Duration, len(b.stacks))
	for round := range b.rounds + 1 {
		for i, s := range b.stacks {
			took, err := b.measure(ctx, l, s)
			if err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			if round > 0 {
				l.took[i] = append(l.took[i], took)
			}
		}
	}
	return nil
}

func (b *slurmBench) measure(ctx context.Context, l *launch, s stack) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := b.plugstack(s.line + "\n"); err != nil {
		return 0, err
	}
	if err := b.idle(ctx); err != nil {
		return 0, err
	}
	argv := slices.Clone(l.argv)
	if s.line != "" {
		argv = append(argv, "--container-image="+b.image)
	}
	cmd := exec.CommandContext(ctx, argv[0], append(argv[1:], "true")...)
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "SLURM_CONF="+filepath.Join(b.dir, "slurm.conf"), "SQUIRE_SOCKET="+b.socket, "SQUIRE_TRACE=0")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: b.credential}
	begun := time.Now()
	out, err := cmd.CombinedOutput()
	took := time.Since(begun)
	if err != nil {
		return 0, fmt.Errorf("%w: %s", err, out)
	}
	return took, nil
}

// idle waits until no node has anything to do any more.
func (b *slurmBench) idle(ctx context.Context) error {
	for {
		cmd := exec.CommandContext(ctx, "sinfo", "-h", "-t", "idle", "-o", "%D")
		cmd.Env = append(os.Environ(), "SLURM_CONF="+filepath.Join(b.dir, "slurm.conf"))
		out, err := cmd.Output()
		if ctx.Err() != nil {
			return fmt.Errorf("the nodes do not become idle: %w", ctx.Err())
		}
		time.Sleep(slurmSettle)
		if err == nil && strings.TrimSpace(string(out)) == "2" {
			return nil
		}
	}
}

// write prints what a container costs: the medians' differences, and how many times squire's the others' are.
func (b *slurmBench) write(w io.Writer, launches []launch) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', tabwriter.AlignRight)
	for _, l := range launches {
		fmt.Fprintf(tw, "least ms\tmedian\t90 %%\tcontainer\t/ squire's\t  %s\n", l.name)
		median := make([]float64, len(b.stacks))
		for i, s := range b.stacks {
			slices.Sort(l.took[i])
			at := func(q int) float64 { return l.took[i][(len(l.took[i])-1)*q/100].Seconds() * 1e3 }
			median[i] = at(50)
			fmt.Fprintf(tw, "%.1f\t%.1f\t%.1f\t", at(0), median[i], at(90))
			if i == 0 {
				fmt.Fprintf(tw, "\t\t  %s\n", s.name)
				continue
			}
			cost := median[i] - median[0]
			fmt.Fprintf(tw, "%.1f\t%.1f\t  %s\n", cost, cost/(median[1]-median[0]), s.name)
		}
	}
	return tw.Flush()
}
