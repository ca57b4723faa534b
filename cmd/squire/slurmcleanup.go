package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/fusefs/noded"
	"github.com/squirefs/squire/internal/rights"
	"github.com/squirefs/squire/runtime/container"
)

type slurmCleanupOptions struct {
	job     uint32
	sluid   string // the job's other number, as text, from Slurm 25.11 on
	uid     int
	timeout time.Duration
}

// slurmCleanupCommand is executed by the plugin when a job has ended on a node, or by an epilog script.
func slurmCleanupCommand() *cobra.Command {
	var o slurmCleanupOptions
	cmd := &cobra.Command{
		Use:   "cleanup --job ID --uid UID",
		Short: "Remove what a job has left on this node",
		Long: `Remove what a job of a user has left on this node: containers whose names were
the job's alone (plugin argument container_scope=job), and processes that prepared its
containers, if Slurm did not end them. Slurm's plugin does it when a job has ended; as a
line of Epilog= it does no harm:

  squire slurm cleanup --job $SLURM_JOB_ID --uid $SLURM_JOB_UID

As root it does all of it as the user, whose files they are. Where there is nothing, it
takes some milliseconds.

Exit status: 0, and 125 if something is still there when the time is over.`,
		Args:              needArgs(0, 0),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(c *cobra.Command, _ []string) error { return o.run(c.Context()) },
	}
	f := cmd.Flags()
	f.Uint32Var(&o.job, "job", 0, "number of the job")
	f.IntVar(&o.uid, "uid", -1, "number of the job's user")
	f.DurationVar(&o.timeout, "timeout", 20*time.Second, "give up after this long")
	return cmd
}

func (o *slurmCleanupOptions) run(ctx context.Context) error {
	switch {
	case o.job == 0:
		return errors.New("--job: which job?")
	case o.uid < 0:
		return errors.New("--uid: whose job?")
	}
	o.sluid = os.Getenv(sluidVariable)
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	if o.uid == os.Geteuid() {
		return o.clean(ctx)
	}
	// The process that is to be the user starts no other.
	if os.Geteuid() != 0 || !rights.AllIDsMapped() || os.Args[0] == cleanupName {
		return fmt.Errorf("--uid %d: only root cleans up for others", o.uid)
	}
	return o.asUser(ctx)
}

// sluidVariable is set by Slurm for an epilog, and by the plugin: without it the control group of a job may not be found,
// see isJobGroup.
const sluidVariable = "SLURM_JOB_SLUID"

// cleanupName is argv[0] of the user's process that cleans up for root.
const cleanupName = "squire-cleanup"

// cleanupStage is that process. It returns the exit status.
func cleanupStage() int { return execute(append([]string{"slurm", "cleanup"}, os.Args[1:]...)) }

// maxWords is how many bytes that process may say.
const maxWords = 64 << 10

// asUser has a process of the user's do it: all that is looked at and removed is the user's, who may have put links and
// file systems of their own there.
func (o *slurmCleanupOptions) asUser(ctx context.Context) error {
	words, err := wordsFile()
	if err != nil {
		return fmt.Errorf("clean up after job %d: %w", o.job, err)
	}
	defer words.Close()
	cmd := exec.CommandContext(ctx, "/proc/self/exe",
		"--job", strconv.FormatUint(uint64(o.job), 10), "--uid", strconv.Itoa(o.uid), "--timeout", o.timeout.String())
	cmd.Args[0] = cleanupName
	cmd.Env, cmd.Dir, cmd.Stderr = []string{"PATH=/usr/bin:/bin", sluidVariable + "=" + o.sluid}, "/", words
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid: true,
		// Of groups it needs none: it touches what is the user's own.
		Credential: &syscall.Credential{Uid: uint32(o.uid), Gid: rights.Nobody},
	}
	err = waitFor(ctx, cmd.Run)
	if ctx.Err() != nil {
		return fmt.Errorf("clean up after job %d: not done after %s", o.job, o.timeout)
	}
	said, readErr := io.ReadAll(io.NewSectionReader(words, 0, maxWords))
	text := strings.TrimSpace(strings.TrimRight(string(said), "\x00"))
	switch {
	case text != "":
		return errors.New(strings.TrimPrefix(printable(text), "squire: "))
	case err != nil || readErr != nil:
		return fmt.Errorf("clean up after job %d as user %d: %w", o.job, o.uid, cmp.Or(err, readErr))
	}
	return nil
}

// wordsFile makes a file in memory for what a process says. There is no pipe that somebody could hold open, and the file
// does not grow.
func wordsFile() (*os.File, error) {
	fd, err := unix.MemfdCreate("words", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "words")
	if err = f.Truncate(maxWords); err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_GROW|unix.F_SEAL_SHRINK)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// killGrace is how long a process may take to end when it was killed.
const killGrace = time.Second

// waitFor is for a run that ctx kills. One that does not end nevertheless is left: a process whose user has a file system
// that does not answer, or who stops it, would keep root waiting.
func waitFor(ctx context.Context, run func() error) error {
	done := make(chan error, 1)
	go func() { done <- run() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-done:
		return err
	case <-time.After(killGrace):
		return context.Cause(ctx)
	}
}

// clean is for the user's own process.
func (o *slurmCleanupOptions) clean(ctx context.Context) error {
	return errors.Join(o.endProcesses(ctx), o.removeContainers(ctx))
}

// stepGrace is how long a step process may take to end by itself, which it does when slurmstepd has ended.
const stepGrace = 2 * time.Second

// endProcesses ends step processes of the job. Those that serve an image or prepare a container for one end with it.
func (o *slurmCleanupOptions) endProcesses(ctx context.Context) error {
	steps := o.stepProcesses()
	if len(steps) == 0 {
		return nil
	}
	grace, cancel := context.WithTimeout(ctx, stepGrace)
	defer cancel()
	var errs []error
	for _, p := range steps {
		if o.isService(p.pid) || !p.ended(grace) {
			if err := unix.PidfdSendSignal(p.fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
				errs = append(errs, fmt.Errorf("end process %d: %w", p.pid, err))
			} else if !p.ended(ctx) {
				errs = append(errs, fmt.Errorf("process %d does not end", p.pid))
			}
		}
		unix.Close(p.fd)
	}
	return errors.Join(errs...)
}

// stepProcess is a process by descriptor: its number may become another's.
type stepProcess struct{ pid, fd int }

// ended waits for the end of a process.
func (p stepProcess) ended(ctx context.Context) bool {
	for {
		poll := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}
		wait := 0
		if ctx.Err() == nil {
			wait = 50 // ms
		}
		if n, err := unix.Poll(poll, wait); err == nil && n > 0 {
			return true
		}
		if wait == 0 {
			return false
		}
	}
}

// stepProcesses finds processes of the job that are this user's: step processes, which are called "squire slurm step
// JOB.STEP", and services of the user's own, which would stay for a while.
func (o *slurmCleanupOptions) stepProcesses() (found []stepProcess) {
	names, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, entry := range names {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		if !o.isStep(pid) && !o.isService(pid) {
			continue
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue
		}
		if !o.isStep(pid) && !o.isService(pid) { // the number was another's before there was the descriptor
			unix.Close(fd)
			continue
		}
		found = append(found, stepProcess{pid, fd})
	}
	return found
}

// isStep reports whether a process is a step process of the job, and its user is this process's.
func (o *slurmCleanupOptions) isStep(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return false
	}
	words := strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00")
	if len(words) != 4 || filepath.Base(words[0]) != "squire" || words[1] != "slurm" || words[2] != "step" {
		return false
	}
	job, _, ok := strings.Cut(words[3], ".")
	return ok && job == strconv.FormatUint(uint64(o.job), 10) && userOf(pid) == os.Geteuid()
}

// isService reports whether a process is a service of this user's own that a step of the job has started, or its heir: it is
// in its control group. What serves it ends with it.
func (o *slurmCleanupOptions) isService(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	words := strings.Split(strings.TrimRight(string(text), "\x00"), "\x00")
	if words[0] == noded.HeirName {
		words = words[1:]
	}
	if err != nil || len(words) != 1 || words[0] != ownName {
		return false
	}
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil || userOf(pid) != os.Geteuid() {
		return false
	}
	job := fmt.Sprintf("job_%d", o.job)
	return slices.ContainsFunc(strings.FieldsFunc(string(groups), func(r rune) bool { return r == '/' || r == '\n' }), func(name string) bool {
		return name == job || name == o.sluid && isJobGroup(name)
	})
}

// userOf is the user of a process, -1 if that is not one: all of its ids are to be the same. Who owns its directory in
// /proc says less: that is root where the process is not dumpable (proc(5)).
func userOf(pid int) int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return -1
	}
	for line := range strings.Lines(string(text)) {
		if ids, ok := strings.CutPrefix(line, "Uid:"); ok {
			f := strings.Fields(ids)
			id, err := strconv.Atoi(f[0])
			if err != nil || slices.ContainsFunc(f, func(other string) bool { return other != f[0] }) {
				return -1
			}
			return id
		}
	}
	return -1
}

// removeContainers removes the containers that were the job's alone. Those of a name that only looks like theirs stay, and
// those that run: somebody of another job is in them.
func (o *slurmCleanupOptions) removeContainers(ctx context.Context) error {
	dir, err := jobDataDir()
	if err != nil {
		return err
	}
	if _, err = os.Lstat(dir); err != nil {
		return nil
	}
	store, err := container.Open(dir) // which sweeps what killed processes have left
	if err != nil {
		return nil // it is somebody else's: then nothing of the job's is in it
	}
	defer dropEmptyStore()
	defer store.Close()
	all, err := store.List()
	if err != nil {
		return err
	}
	var names []string
	for _, c := range all {
		if c.Record != nil && c.Record.Job == o.job && strings.HasPrefix(c.Name, jobPrefix(o.job)) {
			names = append(names, c.Name)
		}
	}
	var errs []error
	remove := func(name string) {
		if err := store.Remove(ctx, name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	for _, name := range names {
		remove(name)
	}
	for _, name := range o.published(dir) {
		// With a record, also one that cannot be read, it is a container that the user has called so and keeps.
		c, err := store.Get(ctx, name)
		if err == nil {
			c.Close()
		} else if errors.Is(err, container.ErrNone) {
			remove(name)
		}
	}
	return errors.Join(errs...)
}

// published are the directories JOB.STEP by which others could join the job's steps, see container.Store.Publish.
func (o *slurmCleanupOptions) published(dir string) (names []string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		job, step, ok := strings.Cut(e.Name(), ".")
		if _, err := strconv.ParseUint(step, 10, 32); ok && err == nil && job == strconv.FormatUint(uint64(o.job), 10) {
			names = append(names, e.Name())
		}
	}
	return names
}

// jobPrefix begins the names of containers that are a job's alone.
func jobPrefix(job uint32) string { return strconv.FormatUint(uint64(job), 10) + "_" }

// jobDataDir is where these are. SQUIRE_DATA, which is the user's, names no other place for them: who cleans up after a
// job does not know it.
func jobDataDir() (string, error) {
	site, err := siteConfig()
	if err != nil {
		return "", err
	}
	return cmp.Or(site.Data, ownDataDir()), nil
}
