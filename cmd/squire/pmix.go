package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/runtime"
)

// pmixDir names the directory in which Slurm's PMIx server, in slurmstepd, shares memory with a step's tasks. It is below
// SlurmdSpoolDir, of which a container has nothing otherwise.
const pmixDir = "PMIX_SERVER_TMPDIR"

// pmixMounts bind the directory that a task's environment names, where it is what Slurm makes: the user's own, closed to
// others, pmix.JOB.STEP by name (src/plugins/mpi/pmix/pmixp_info.c). Of anything else a site may have forbidden mounts.
func pmixMounts(environ []string) []runtime.Mount {
	var dir string
	for _, kv := range environ {
		if v, ok := strings.CutPrefix(kv, pmixDir+"="); ok {
			dir = filepath.Clean(v)
		}
	}
	if !filepath.IsAbs(dir) || !strings.HasPrefix(filepath.Base(dir), "pmix.") {
		return nil
	}
	var st unix.Stat_t
	err := unix.Lstat(dir, &st)
	if err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR || st.Mode&0o077 != 0 || int(st.Uid) != os.Geteuid() {
		return nil
	}
	return []runtime.Mount{{Source: dir, Target: dir, Flags: []string{"bind", "nosuid", "nodev", "nofail"}}}
}

// pmixWait is for the first task of a step. What PMIx's server tells tasks is in their environment alone; that there is
// one, in the step's already (src/plugins/mpi/pmix/pmixp_info.c).
type pmixWait struct {
	once sync.Once
	told chan string
}

const pmixServes = "SLURM_PMIX_MAPPING_SERV"

func (w *pmixWait) first() chan string {
	w.once.Do(func() { w.told = make(chan string, 1) })
	return w.told
}

// tell takes notice of a task, which is nil if it makes no sense.
func (w *pmixWait) tell(task *slurmTask) {
	dir := ""
	if task != nil {
		for _, kv := range task.Env {
			if v, ok := strings.CutPrefix(kv, pmixDir+"="); ok {
				dir = v
			}
		}
	}
	select {
	case w.first() <- dir:
	default: // another one was first
	}
}

// wait puts into this process's environment what the first task has in its own, as soon as there is one.
func (w *pmixWait) wait(ctx context.Context) {
	if os.Getenv(pmixServes) == "" {
		return
	}
	select {
	case dir := <-w.first():
		_ = os.Setenv(pmixDir, dir)
	case <-ctx.Done():
	}
}
