package main

import (
	"context"
	"os"
	"strings"
	"sync"
)

// ptyServes is in the environment of a step with srun's --pty, and of those that are started from its shell.
const ptyServes = "SLURM_PTY_PORT"

// ptyWait is for the terminal of such a step, which its first task has. A container has pseudo-terminals of its own: so
// that programs in it find the name of theirs, that has to be bound when the container is made.
type ptyWait struct {
	terminal string // its path on the host, after wait; "": none

	mu    sync.Mutex
	tasks int // that have come
	path  string
	told  chan struct{} // see done
}

// done is closed when one has told, or all have come. The caller holds mu.
func (w *ptyWait) done() chan struct{} {
	if w.told == nil {
		w.told = make(chan struct{})
	}
	return w.told
}

// tell takes notice of the standard error of one of so many tasks.
func (w *ptyWait) tell(stderr *os.File, tasks int) {
	path, err := os.Readlink(procPath(int(stderr.Fd())))
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.tasks++; w.path != "" || w.tasks > tasks {
		return // it has been told already
	}
	if err == nil && strings.HasPrefix(path, "/dev/pts/") {
		w.path = path
	}
	if w.path != "" || w.tasks == tasks {
		close(w.done())
	}
}

// wait waits for the task that has a terminal.
func (w *ptyWait) wait(ctx context.Context) {
	if os.Getenv(ptyServes) == "" {
		return
	}
	w.mu.Lock()
	told := w.done()
	w.mu.Unlock()
	select {
	case <-told:
		w.mu.Lock()
		defer w.mu.Unlock()
		w.terminal = w.path
	case <-ctx.Done():
	}
}
