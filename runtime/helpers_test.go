package runtime

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/squirefs/squire/internal/testenv"
)

// limit is of what takes much less, on a machine that has other things to do as well.
const limit = time.Minute

// limited kills a command when it takes too long, until the function that it returns is called.
func limited(t *testing.T, cmd *exec.Cmd) (stop func()) {
	timer := time.AfterFunc(limit, func() {
		t.Errorf("%q takes more than %v", cmd.Args, limit)
		if cmd.Process != nil {
			_ = cmd.Process.Kill()
		}
	})
	return func() { timer.Stop() }
}

// lines reads lines in the background.
type lines struct{ ch chan string }

func newLines(r io.Reader) *lines {
	l := &lines{make(chan string, 100)}
	go func() {
		defer close(l.ch)
		for s := bufio.NewScanner(r); s.Scan(); {
			l.ch <- s.Text()
		}
	}()
	return l
}

// want waits for a line, skipping others.
func (l *lines) want(t *testing.T, line string) {
	t.Helper()
	timeout := time.After(limit)
	var others []string
	for {
		select {
		case got, ok := <-l.ch:
			if !ok {
				t.Fatalf("output ended without %q, after %q", line, others)
			}
			if got == line {
				return
			}
			others = append(others, got)
		case <-timeout:
			t.Fatalf("no line %q within %v, but %q", line, limit, others)
		}
	}
}

// begin starts a command, and waits until it says that it has started. The end of the test
// is its end.
func begin(t *testing.T, cmd *exec.Cmd) *lines {
	t.Helper()
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	l := newLines(out)
	l.want(t, "started")
	return l
}

// startUntil starts a container, waits for a line, and returns what ends it.
func startUntil(t *testing.T, w who, s Spec, line string) (stop func()) {
	t.Helper()
	cmd := runner(t, w, s)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	t.Cleanup(stop)
	newLines(out).want(t, line)
	return stop
}

func waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	testenv.Await(t, limit, what, cond)
}

// withArgument lists the processes that have arg as an argument.
func withArgument(arg string) (pids []string) {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err == nil && slices.Contains(strings.Split(string(b), "\x00"), arg) {
			pids = append(pids, filepath.Base(filepath.Dir(f)))
		}
	}
	return pids
}
