package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jedib0t/go-pretty/v6/text"
	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/fusefs/noded"
)

// said is what a service said so many seconds after it began.
func said(seconds int, r *noded.Report) []seen {
	return []seen{{Service: "node", Socket: "/socket", at: began.Add(time.Duration(seconds) * time.Second), Report: *r}}
}

func TestRates(t *testing.T) {
	near := func(what string, got, want float64) {
		t.Helper()
		if math.Abs(got-want) > 1e-9 && !(math.IsNaN(got) && math.IsNaN(want)) {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	now := said(14, cannedReport(5))
	v := compare(said(10, cannedReport(3)), now)
	near("seconds", v.sum.seconds, 4)
	near("requests", v.sum.per(requestCount(&v.sum.Stats)), 1100*2/4.)
	near("storage", v.sum.per(v.sum.Storage), 2*(3<<20)/4.)
	near("served", v.images[0].rates.per(v.images[0].rates.ReadBytes), 2*(64<<20)/4.)
	near("errors", v.images[1].rates.per(v.images[1].rates.Errors), 14/4.)
	near("hits", v.sum.hitRate(), 0.99)
	near("hits of none", v.images[1].rates.hitRate(), math.NaN())
	if h := v.sum.Latency["read"]; h.Count() != 2000 {
		t.Errorf("%d reads in the interval", h.Count())
	}
	if n := v.images[0].rates.latency.Count(); n != 2200 {
		t.Errorf("%d requests in the interval", n)
	}

	// A service that is new, or was begun anew, has no rates yet.
	near("first look", compare(nil, now).sum.per(7), math.NaN())
	again := said(20, cannedReport(1))
	again[0].Since = began.Add(15 * time.Second)
	near("another service", compare(now, again).sum.per(7), math.NaN())
	near("the same look", compare(now, now).sum.per(7), math.NaN())

	// An image that was not there: all it did is new. One that is gone still counts in the sums.
	before := said(10, cannedReport(3))
	before[0].Images = before[0].Images[1:]
	near("a new image", float64(compare(before, now).images[0].rates.ReadBytes), 5*(64<<20))
	less := said(14, cannedReport(5))
	less[0].Images = less[0].Images[1:]
	near("without an image", float64(compare(said(10, cannedReport(3)), less).sum.ReadBytes), 2*(64<<20))

	// Those who are not told the sums of all see those of theirs, which do not jump when an image leaves.
	before = said(10, cannedReport(3))
	before[0].Totals, less[0].Totals = nil, nil
	v = compare(before, less)
	near("errors of those left", float64(v.sum.Errors), 14)
	near("reads of those left", float64(v.sum.ReadBytes), 0)

	// A server whose counts went back is one that lost them.
	near("a smaller counter", float64(compare(said(10, cannedReport(5)), said(11, cannedReport(1))).sum.ReadBytes), 64<<20)
}

func TestTopLines(t *testing.T) {
	v := topView{now: began.Add(time.Hour), delay: 2 * time.Second, sort: 8, what: compare(said(10, cannedReport(3)), said(12, cannedReport(5)))}
	got := strings.Join(v.lines(0, 0), "\n")
	wantPrintable(t, got)
	wantText(t, got, `
squire top, 13:00:00, every 2s, by SERVED/S
node service 1.2.0, pid 711, up 1h00m: 2 images, 3 clients, memory 312 MiB, cache 480 MiB of 512 MiB, restarts 2+1
a second: 1100 requests, hits 99.0%, storage 3 MiB, decoded 10 MiB, served 64 MiB, ahead 16 MiB, errors 7

OPERATION   REQ/S     P50     P90     P99     MAX
lookup        100    56µs    62µs    64µs    64µs
read         1000   1.8ms   2.0ms   2.0ms   2.0ms

ID        REFS  REQ/S    P50    P99   HITS STORAGE/S DECODED/S  SERVED/S   AHEAD/S  ERR STATE    IMAGE
1           12   1100  1.8ms  2.0ms  99.0%     3 MiB    10 MiB    64 MiB    16 MiB    0 served   /images/pytorch.sqsh
2            1      0      -      -      -       0 B       0 B       0 B       0 B   35 failed   `+hostileShown+`
`)
}

// Whatever the size of a terminal, nothing is longer or wider, and the keys are in the last line.
func TestTopFits(t *testing.T) {
	r := cannedReport(5)
	for i := range 30 {
		img := r.Images[i%2]
		img.ID = uint64(i + 3)
		r.Images = append(r.Images, img)
	}
	for _, what := range []*interval{nil, compare(nil, nil), compare(said(10, cannedReport(3)), said(12, r))} {
		for width := 1; width < 200; width += 3 {
			for height := 1; height < 50; height += 5 {
				v := topView{now: began, delay: time.Second, what: what, trouble: noService, skip: width}
				lines := v.lines(width, height)
				if len(lines) != height || width > 10 && !strings.HasPrefix(lines[height-1], "q quit") {
					t.Fatalf("%dx%d: %d lines %q", width, height, len(lines), lines)
				}
				for _, line := range lines {
					if n := text.StringWidthWithoutEscSequences(line); n > width {
						t.Fatalf("%dx%d: %d columns: %q", width, height, n, line)
					}
				}
			}
		}
	}
	v := topView{now: began, delay: time.Second, what: compare(said(10, cannedReport(3)), said(12, r))}
	v.skip = 1000
	lines := v.lines(120, 20)
	if v.skip >= 32 || !strings.HasPrefix(lines[18], "1 ") && !strings.HasPrefix(lines[18], "32 ") && !strings.Contains(lines[18], "sqsh") {
		t.Errorf("skip %d, at the end %q", v.skip, lines[18])
	}
}

func TestTopSort(t *testing.T) {
	what := compare(said(10, cannedReport(3)), said(12, cannedReport(5)))
	for i, name := range topSorts() {
		for _, reverse := range []bool{false, true} {
			v := topView{now: began, what: what, sort: i, reverse: reverse}
			table := v.images(0)
			first := strings.HasPrefix(table[1], "1 ")
			want := !reverse
			if name == "err" || name == "state" { // the other has more of these, or comes before
				want = reverse
			}
			if first != want {
				t.Errorf("by %s, reverse %v: %q", name, reverse, table[1])
			}
		}
	}
}

func TestKeys(t *testing.T) {
	for in, want := range map[string][]key{
		"q":                        {'q'},
		"\x1b[A\x1b[B\x1bOC\x1b[D": {keyUp, keyDown, keyRight, keyLeft},
		"\x1b[5~<\x1b[6~>":         {keyPageUp, '<', keyPageDown, '>'},
		"\x1b":                     nil,
		"\x1b[":                    nil,
		"\x1b[1;5":                 nil,
		"\x1b[1;5Ar":               {'r'},
		"\x1bxq":                   {'q'},
	} {
		if got := keysOf([]byte(in)); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%q: %v, want %v", in, got, want)
		}
	}
}

func FuzzKeys(f *testing.F) {
	f.Add([]byte("\x1b[1;5Aq\x1bO"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if keys := keysOf(b); len(keys) > len(b) {
			t.Errorf("%d keys in %q", len(keys), b)
		}
	})
}

func TestTopFlags(t *testing.T) {
	for _, args := range [][]string{
		{"--delay", "0"}, {"--delay", "-1"}, {"--delay", "NaN"}, {"--delay", "1e300"}, {"-n", "-1"}, {"--sort", "x"}, {"--once", "-n", "2"}, {"x"},
	} {
		if out, err := squire(t, append([]string{"top"}, args...)...); err == nil || out != "" {
			t.Errorf("%v: %q, %v", args, out, err)
		}
	}
}

func TestTopBatch(t *testing.T) {
	var n atomic.Uint64
	newStandIn(t, func() *noded.Report { return cannedReport(n.Add(1)) })
	out, err := squire(t, "top", "-n", "2", "-d", "0.1")
	if err != nil || strings.Count(out, "squire top") != 2 || strings.Count(out, "/images/pytorch.sqsh") != 2 || strings.Contains(out, "q quit") {
		t.Errorf("%v\n%s", err, out)
	}
	wantPrintable(t, out)
	if n.Load() != 3 {
		t.Errorf("it looked %d times", n.Load())
	}
}

func TestTopNoService(t *testing.T) {
	newStandIn(t, func() *noded.Report { return nil }).stop()
	out, err := squire(t, "top", "--once", "-d", "0.1")
	if err != nil || out != "" {
		t.Errorf("%q, %v", out, err)
	}
}

// ptyPair is a pseudo-terminal, and what was written to it.
type ptyPair struct {
	master, slave *os.File
	mu            sync.Mutex
	text          strings.Builder
}

func newPTY(t *testing.T) *ptyPair {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudo-terminals here: %v", err)
	}
	t.Cleanup(func() { master.Close() })
	if err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudo-terminals here: %v", err)
	}
	t.Cleanup(func() { slave.Close() })
	term := &ptyPair{master: master, slave: slave}
	term.resize(t, 160, 30)
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := master.Read(b)
			term.mu.Lock()
			term.text.Write(b[:max(n, 0)])
			term.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return term
}

func (term *ptyPair) resize(t *testing.T, columns, lines uint16) {
	t.Helper()
	if err := unix.IoctlSetWinsize(int(term.master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: columns, Row: lines}); err != nil {
		t.Fatal(err)
	}
}

func (term *ptyPair) has(s string) bool {
	term.mu.Lock()
	defer term.mu.Unlock()
	return strings.Contains(term.text.String(), s)
}

func (term *ptyPair) forget() {
	term.mu.Lock()
	defer term.mu.Unlock()
	term.text.Reset()
}

func (term *ptyPair) want(t *testing.T, s string) {
	t.Helper()
	if soon(func() bool { return term.has(s) }) {
		return
	}
	term.mu.Lock()
	defer term.mu.Unlock()
	text := term.text.String()
	t.Fatalf("no %q in time on the terminal, but at last %q", s, text[max(len(text)-1500, 0):])
}

// topOn runs top on a terminal.
func topOn(t *testing.T, term *ptyPair, args ...string) (cmd *exec.Cmd, signal func(os.Signal)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*testBound)
	t.Cleanup(cancel)
	c := command(ctx, os.Getuid(), append([]string{"top", "-d", "0.1"}, args...)...)
	c.Stdin, c.Stdout, c.Stderr = term.slave, term.slave, term.slave
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Process.Kill() })
	return c, func(s os.Signal) { _ = c.Process.Signal(s) }
}

// On a terminal top has it for itself, and gives it back however it ends.
func TestTopTerminal(t *testing.T) {
	var n atomic.Uint64
	s := newStandIn(t, func() *noded.Report { return cannedReport(n.Add(1)) })
	for name, end := range map[string]struct {
		press  string
		signal os.Signal
		want   string
	}{
		"q":       {press: "q"},
		"^C":      {press: "\x03"},
		"SIGINT":  {signal: unix.SIGINT},
		"SIGTERM": {signal: unix.SIGTERM, want: "exit status 143"},
		"SIGHUP":  {signal: unix.SIGHUP, want: "exit status 129"},
	} {
		t.Run(name, func(t *testing.T) {
			term := newPTY(t)
			before, err := unix.IoctlGetTermios(int(term.slave.Fd()), unix.TCGETS)
			if err != nil {
				t.Fatal(err)
			}
			cmd, signal := topOn(t, term)
			term.want(t, "/images/pytorch.sqsh")
			if end.press != "" {
				_, _ = io.WriteString(term.master, end.press)
			} else {
				signal(end.signal)
			}
			if err = cmd.Wait(); fmt.Sprint(err) != end.want && (err != nil || end.want != "") {
				t.Errorf("it ended with %v", err)
			}
			term.want(t, showCursor+normalScreen)
			after, err := unix.IoctlGetTermios(int(term.slave.Fd()), unix.TCGETS)
			if err != nil || *after != *before {
				t.Errorf("%v: the terminal was %+v and is %+v", err, before, after)
			}
		})
	}
	t.Run("keys", func(t *testing.T) { testTopKeys(t, s) })
}

func testTopKeys(t *testing.T, s *standIn) {
	term := newPTY(t)
	cmd, signal := topOn(t, term)
	term.want(t, "by SERVED/S")
	_, _ = io.WriteString(term.master, "<")
	term.want(t, "by DECODED/S")
	_, _ = io.WriteString(term.master, "\x1b[C\x1b[C")
	term.want(t, "by AHEAD/S")
	// Smaller, it is drawn smaller.
	term.resize(t, 30, 5)
	signal(unix.SIGWINCH)
	term.forget()
	term.want(t, cursorHome)
	term.resize(t, 160, 30)
	signal(unix.SIGWINCH)
	// A service that goes and comes back.
	s.stop()
	term.want(t, "no image service is running")
	s.start(t)
	term.forget()
	term.want(t, "/images/pytorch.sqsh")
	// Stopped, it leaves the terminal; going on, it takes it again.
	term.forget()
	_, _ = io.WriteString(term.master, "\x1a")
	term.want(t, showCursor+normalScreen)
	waitStopped(t, cmd.Process.Pid)
	term.forget()
	signal(unix.SIGCONT)
	term.want(t, alternateScreen)
	term.want(t, "/images/pytorch.sqsh")
	_, _ = io.WriteString(term.master, "q")
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// waitStopped waits until a process is stopped.
func waitStopped(t *testing.T, pid int) {
	t.Helper()
	var status []byte
	if !soon(func() bool {
		status, _ = os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		return strings.Contains(string(status), "State:\tT")
	}) {
		t.Fatalf("it does not stop: %s", status)
	}
}
