package main_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// script is a small program with a large start: it opens some hundred files and maps a few dozen libraries.
const script = `import numpy; print(numpy.arange(5).sum())`

func testPython(t *testing.T, l *lab, who user) {
	for _, image := range []string{"zstd", "gzip"} {
		r := l.run(t, who, l.squire, "run", l.images[image], "--", "python3", "-c", script)
		if r.status != 0 || r.stdout != "10\n" || r.stderr != "" {
			t.Errorf("%s: status %d, stdout %q, stderr %q", image, r.status, r.stdout, r.stderr)
		}
	}
	l.wantNothingLeft(t)
}

// testPythonAtOnce starts eight of them at the same time, as the tasks of one node start.
func testPythonAtOnce(t *testing.T, l *lab, who user) {
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 3*bound)
			defer cancel()
			out, err := l.command(ctx, who, l.squire, "run", l.images["zstd"], "--", "python3", "-c", script).CombinedOutput()
			if err != nil || string(out) != "10\n" {
				t.Errorf("task %d: %v, output %q", i, err, out)
			}
		})
	}
	wg.Wait()
	l.wantNothingLeft(t)
}

// testKilled kills squire in the middle of a run, as Slurm does at the end of a job, and wants neither a mount nor any
// process of the container left, not even one that left its process group and session.
func testKilled(t *testing.T, l *lab, who user) {
	// Arguments that no other process on the machine has.
	word := func(i int) string { return fmt.Sprintf("%d.%06d", 4000+i, time.Now().UnixNano()%1e6) }
	words := []string{word(1), word(2), word(3)}
	shell := fmt.Sprintf("(setsid sh -c 'sleep %s & sleep %s' &) ; sleep %s; true", words[0], words[1], words[2])

	ctx, cancel := context.WithTimeout(t.Context(), 3*bound)
	defer cancel()
	cmd := l.command(ctx, who, l.squire, "run", l.images["zstd"], "--", "sh", "-c", shell)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, pid := range l.processes(words...) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	})
	sleeping := func() bool {
		return !slices.ContainsFunc(words, func(w string) bool { return !l.sleeps(w) })
	}
	if !eventually(bound, sleeping) {
		t.Errorf("the container's processes did not start: %s", describe(l.processes(words...)))
	}
	// Where something is laid over the image, its mount is in no list of mounts: it lasts as long as these processes.
	if own := l.processes(); len(own) < 3 {
		t.Errorf("processes of squire are %s, want the runner, the image's server and the container's first", describe(own))
	}

	if err := syscall.Kill(cmd.Process.Pid, syscall.SIGKILL); err != nil {
		t.Errorf("kill squire: %v", err)
	}
	_ = cmd.Wait()
	l.wantNothingLeft(t, words...)
}

// sleeps says whether a process "sleep word" is running.
func (l *lab) sleeps(word string) bool {
	return slices.ContainsFunc(l.processes(word), func(pid int) bool {
		return strings.HasPrefix(describe([]int{pid}), fmt.Sprintf("[%d sleep %s", pid, word))
	})
}

// testStatus wants the status of the command to come through, and nothing else: not a word of squire's own.
func testStatus(t *testing.T, l *lab, who user) {
	tests := []struct {
		name  string
		shell string
		want  result
	}{
		{name: "success", shell: "echo out", want: result{stdout: "out\n"}},
		{name: "status", shell: "echo err >&2; exit 42", want: result{stderr: "err\n", status: 42}},
		{name: "signal", shell: "kill -TERM $$", want: result{status: 128 + 15}},
		{name: "killed", shell: "kill -KILL $$", want: result{status: 128 + 9}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := l.run(t, who, l.squire, "run", l.images["zstd"], "--", "sh", "-c", tt.shell); got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
	l.wantNothingLeft(t)
}
