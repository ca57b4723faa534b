package runtime

import (
	"bufio"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

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
	timeout := time.After(10 * time.Second)
	for {
		select {
		case got, ok := <-l.ch:
			if !ok {
				t.Fatalf("output ended without %q", line)
			}
			if got == line {
				return
			}
		case <-timeout:
			t.Fatalf("no line %q within 10 s", line)
		}
	}
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
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if cond() {
			return
		}
	}
	t.Fatalf("waited 10 s for %s", what)
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

func childrenOf(pid int) (pids []int) {
	files, _ := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*/children")
	for _, f := range files {
		b, _ := os.ReadFile(f)
		for _, s := range strings.Fields(string(b)) {
			if n, err := strconv.Atoi(s); err == nil {
				pids = append(pids, n)
			}
		}
	}
	return pids
}
