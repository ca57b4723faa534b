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

	"github.com/squirefs/squire/bench"
)

// runOptions are what the command line of "parts run" says.
type runOptions struct {
	squire string
	image  string
	user   string
	only   string
	crowd  int
	rounds int
	peers  []container
}

// A container is one way to run true in the files of an image. Of its words IMAGE is the image, ROOT the directory with
// all its files, BUNDLE the one that OCI runtimes want, and ID a name that no other container has.
type container struct {
	name string
	argv []string
	env  []string
	took [2][]time.Duration // alone, and as one of a crowd: until all of them have ended
	busy [2]time.Duration   // the machine's CPU time in all of these
}

// containers measures how long a container takes from its start to its end in which an ordinary user runs nothing, and
// many of them at once: with a node service that has the image or has to mount it, with a service of the user's own,
// without one and in a directory; beside bubblewrap and crun in that directory, enroot, and what else is asked for. All
// take turns.
func containers(ctx context.Context, args []string) error {
	o, err := parseRunOptions(args)
	if err != nil {
		return err
	}
	// Not below the system's temporary directory of root's own: the user has to reach all of it.
	dir, err := os.MkdirTemp("/var/tmp", "squire-parts-run")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b := runBench{runOptions: *o, dir: dir}
	if err = b.prepare(ctx); err != nil {
		return err
	}
	warm, cold := filepath.Join(dir, "warm"), filepath.Join(dir, "cold")
	for socket, idle := range map[string]string{warm: "0", cold: "1ms"} {
		service := serviceOptions{squire: b.squire}
		var stop func()
		if stop, err = service.daemon(ctx, socket, idle); err != nil {
			return err
		}
		defer stop()
	}
	all, err := b.able(ctx, b.contestants(warm, cold))
	if err != nil {
		return err
	}
	if len(all) == 0 {
		return fmt.Errorf("-only %s: nobody is left", b.only)
	}
	for crowd, n := range []int{1, b.crowd} {
		if err = b.compare(ctx, all, crowd, n); err != nil {
			return err
		}
	}
	return b.write(os.Stdout, all)
}

func parseRunOptions(args []string) (*runOptions, error) {
	var o runOptions
	flags := flag.NewFlagSet("parts run", flag.ContinueOnError)
	flags.StringVar(&o.squire, "squire", "squire", "the squire binary")
	flags.StringVar(&o.image, "image", "", "the `image`, with /bin/true")
	flags.StringVar(&o.user, "user", "nobody", "who runs the containers: a name or a number")
	flags.StringVar(&o.only, "only", "", "only those with one of these `words` in their names")
	flags.IntVar(&o.crowd, "crowd", 64, "how many at once")
	flags.IntVar(&o.rounds, "rounds", 21, "how often to measure everything; a third of that for many at once")
	flags.Func("peer", "one more contestant, `NAME=COMMAND` with the words IMAGE, ROOT, BUNDLE and ID; may be repeated", func(text string) error {
		name, command, _ := strings.Cut(text, "=")
		argv := strings.Fields(command)
		if name == "" || len(argv) == 0 {
			return fmt.Errorf("%q is not NAME=COMMAND", text)
		}
		o.peers = append(o.peers, container{name: name, argv: argv})
		return nil
	})
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if o.image == "" || o.rounds < 1 || o.crowd < 1 || flags.NArg() > 0 {
		flags.Usage()
		return nil, errors.New("want an image, at least one round and one container, and no other arguments")
	}
	return &o, nil
}

type runBench struct {
	runOptions
	dir        string
	credential *syscall.Credential
	started    int // containers so far, for their names
}

// prepare copies what the user has to reach, and unpacks the image as the user, whose files they then are.
func (b *runBench) prepare(ctx context.Context) (err error) {
	if os.Getuid() != 0 {
		return errors.New("only root can be a node service and other users")
	}
	if b.credential, err = credentialOf(b.user); err != nil {
		return err
	}
	if err = os.Chmod(b.dir, 0o755); err != nil {
		return err
	}
	if err = copyFile(&b.squire, filepath.Join(b.dir, "squire"), 0o755); err != nil {
		return err
	}
	if err = copyFile(&b.image, filepath.Join(b.dir, "image.sqsh"), 0o644); err != nil {
		return err
	}
	for _, name := range []string{"home", "bundle"} {
		if err = os.Mkdir(b.path(name), 0o755); err != nil {
			return err
		}
		if err = os.Chown(b.path(name), int(b.credential.Uid), int(b.credential.Gid)); err != nil {
			return err
		}
	}
	if err = os.WriteFile(b.path("bundle/config.json"), []byte(b.bundle()), 0o644); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	out, err := b.command(ctx, []string{b.squire, "extract", "-d", b.path("home/root"), b.image}, nil).CombinedOutput()
	if err != nil {
		return fmt.Errorf("unpack the image: %w: %s", err, out)
	}
	return nil
}

func (b *runBench) path(name string) string { return filepath.Join(b.dir, name) }

// credentialOf is a user that need not have an account.
func credentialOf(name string) (*syscall.Credential, error) {
	if n, err := strconv.ParseUint(name, 10, 32); err == nil {
		return &syscall.Credential{Uid: uint32(n), Gid: uint32(n)}, nil
	}
	who, err := user.Lookup(name)
	if err != nil {
		return nil, err
	}
	uid, err := strconv.ParseUint(who.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(who.Gid, 10, 32)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, err
}

// copyFile copies a file, which is then the one that path names.
func copyFile(path *string, to string, mode os.FileMode) error {
	content, err := os.ReadFile(*path)
	if err != nil {
		return err
	}
	*path = to
	return os.WriteFile(to, content, mode)
}

// hostDirs is what squire's containers have of the host and the others are asked for as well.
var hostDirs = []string{"/proc", "/sys", "/tmp"}

// bundle is the configuration of an OCI runtime for a container like squire's: namespaces of users and mounts, the rest
// is the host's; no capabilities.
func (b *runBench) bundle() string {
	var mounts strings.Builder
	for _, d := range hostDirs {
		fmt.Fprintf(&mounts, `{"destination":%q,"type":"none","source":%[1]q,"options":["rbind"]},`, d)
	}
	ids := func(id uint32) string { return fmt.Sprintf(`[{"containerID":%d,"hostID":%[1]d,"size":1}]`, id) }
	return fmt.Sprintf(`{
"ociVersion":"1.0.0",
"process":{"terminal":false,"user":{"uid":%d,"gid":%d},"args":["/bin/true"],"env":["PATH=/usr/bin:/bin"],"cwd":"/","noNewPrivileges":true},
"root":{"path":%q,"readonly":true},
"mounts":[%s
{"destination":"/dev","type":"tmpfs","source":"tmpfs","options":["nosuid","strictatime","mode=755","size=65536k"]},
{"destination":"/dev/pts","type":"devpts","source":"devpts","options":["nosuid","noexec","newinstance","ptmxmode=0666","mode=0620"]},
{"destination":"/dev/shm","type":"none","source":"/dev/shm","options":["rbind"]}],
"linux":{"uidMappings":%s,"gidMappings":%s,"namespaces":[{"type":"user"},{"type":"mount"}]}
}
`, b.credential.Uid, b.credential.Gid, b.path("home/root"), &mounts, ids(b.credential.Uid), ids(b.credential.Gid))
}

// contestants are those whose programs are there.
func (b *runBench) contestants(warm, cold string) (found []container) {
	run := []string{b.squire, "run", "IMAGE", "--", "/bin/true"}
	bwrap := []string{"bwrap", "--ro-bind", "ROOT", "/", "--dev", "/dev", "--bind", "/dev/shm", "/dev/shm"}
	for _, d := range hostDirs {
		bwrap = append(bwrap, "--bind", d, d)
	}
	node := func(socket string) []string { return []string{"SQUIRE_SERVICE=node", "SQUIRE_SOCKET=" + socket} }
	for _, c := range append([]container{
		{name: "squire, node service, image there", argv: run, env: node(warm)},
		{name: "squire, node service, image new", argv: run, env: node(cold)},
		{name: "squire, the user's own service", argv: run, env: []string{"SQUIRE_SERVICE=own"}},
		{name: "squire, no service", argv: run, env: []string{"SQUIRE_SERVICE=off"}},
		{name: "squire, directory", argv: []string{b.squire, "run", "ROOT", "--", "/bin/true"}},
		{name: "bwrap, directory", argv: append(bwrap, "--", "/bin/true")},
		{name: "crun, directory", argv: []string{"crun", "--cgroup-manager=disabled", "run", "--bundle", "BUNDLE", "ID"}},
		{name: "enroot, image", argv: []string{"enroot", "start", "IMAGE", "/bin/true"}},
		{name: "true, no container", argv: []string{"true"}},
	}, b.peers...) {
		if !wanted(c.name, b.only) {
			continue
		}
		path, err := exec.LookPath(c.argv[0])
		if err != nil {
			fmt.Fprintln(os.Stderr, "parts: left out:", err)
			continue
		}
		c.argv = slices.Clone(c.argv)
		c.argv[0] = path
		found = append(found, c)
	}
	return found
}

// able starts each once, and leaves out those of others that cannot run here, such as crun beside control groups of version 1.
func (b *runBench) able(ctx context.Context, all []container) (found []container, err error) {
	for _, c := range all {
		if _, _, err = b.measure(ctx, &c, 1); err == nil {
			found = append(found, c)
			continue
		}
		if c.argv[0] == b.squire || ctx.Err() != nil {
			return nil, fmt.Errorf("%s: %w", c.name, err)
		}
		fmt.Fprintf(os.Stderr, "parts: left out: %s: %v\n", c.name, err)
	}
	return found, nil
}

// wanted reports whether a name has one of the words, which are separated by commas, in it. Without words all have.
func wanted(name, words string) bool {
	return words == "" || slices.ContainsFunc(strings.Split(words, ","), func(w string) bool { return strings.Contains(name, w) })
}

// command is one of the user's, with the user's home and nothing of root's environment but PATH.
func (b *runBench) command(ctx context.Context, argv, env []string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = "/"
	home := b.path("home")
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "XDG_RUNTIME_DIR=" + home, "LC_ALL=C", "SQUIRE_TRACE=0"}, env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: b.credential}
	return cmd
}

// words puts what this run has in the places of a container's words.
func (b *runBench) words(argv []string) []string {
	b.started++
	has := map[string]string{"IMAGE": b.image, "ROOT": b.path("home/root"), "BUNDLE": b.path("bundle"), "ID": fmt.Sprintf("parts-run-%d-%d", os.Getpid(), b.started)}
	argv = slices.Clone(argv)
	for i, word := range argv {
		if w, ok := has[word]; ok {
			argv[i] = w
		}
	}
	return argv
}

// compare measures all in turn, n at once. The first round warms up.
func (b *runBench) compare(ctx context.Context, all []container, crowd, n int) error {
	rounds := b.rounds
	if crowd > 0 {
		rounds = (rounds + 2) / 3
	}
	for round := range rounds + 1 {
		for i := range all {
			c := &all[i]
			took, busy, err := b.measure(ctx, c, n)
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			if round > 0 {
				c.took[crowd] = append(c.took[crowd], took)
				c.busy[crowd] += busy
			}
		}
	}
	return nil
}

// runSettle is how long what a container leaves behind may go on, such as the unmounting of an image, before the next is
// measured. CPU time includes it.
const runSettle = 20 * time.Millisecond

// measure starts n containers at once, and waits for them.
func (b *runBench) measure(ctx context.Context, c *container, n int) (took, busy time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	cmds := make([]*exec.Cmd, n)
	outs := make([]strings.Builder, n)
	for i := range cmds {
		cmds[i] = b.command(ctx, b.words(c.argv), c.env)
		cmds[i].Stderr = &outs[i]
		// A server that stays may keep the pipe open.
		cmds[i].WaitDelay = time.Second
	}
	before, err := bench.MachineBusy()
	if err != nil {
		return 0, 0, err
	}
	begun := time.Now()
	for i := range cmds {
		if err = cmds[i].Start(); err != nil {
			return 0, 0, err
		}
	}
	for i := range cmds {
		if e := cmds[i].Wait(); e != nil && err == nil {
			err = fmt.Errorf("%w: %s", e, outs[i].String())
		}
	}
	took = time.Since(begun)
	time.Sleep(runSettle)
	after, e := bench.MachineBusy()
	return took, after - before, errors.Join(err, e)
}

// write prints a table for one at a time, and one for all at once.
func (b *runBench) write(w io.Writer, all []container) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', tabwriter.AlignRight)
	for crowd, n := range []int{1, b.crowd} {
		fmt.Fprintf(tw, "least ms\tmedian\t90 %%\tmost\t/ first\tCPU ms each\t  %d at once\n", n)
		var first float64
		for i, c := range all {
			took := c.took[crowd]
			slices.Sort(took)
			at := func(q int) float64 { return took[(len(took)-1)*q/100].Seconds() * 1e3 }
			if i == 0 {
				first = at(50)
			}
			for _, q := range []int{0, 50, 90, 100} {
				fmt.Fprintf(tw, "%.1f\t", at(q))
			}
			fmt.Fprintf(tw, "%.2f\t%.1f\t  %s\n", at(50)/first, c.busy[crowd].Seconds()*1e3/float64(len(took)*n), c.name)
		}
	}
	return tw.Flush()
}
