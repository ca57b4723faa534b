package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// maxOutput bounds what is kept of one test's output: the beginning says what went wrong, and a test that prints
// without end must not fill the memory.
const maxOutput = 1 << 20

// event is one line of "go test -json": see "go doc test2json" and, for the build events, "go help buildjson".
type event struct {
	Action      string
	Package     string
	Test        string
	ImportPath  string // of build events, with the tested package in brackets
	Output      string
	Elapsed     float64 // seconds
	FailedBuild string
}

// pack is a package under test.
type pack struct {
	running map[string]bool // tests that have begun and not ended
	tests   int
	failed  bool // a test of it has failed
}

type test struct{ pkg, name string }

// tally adds up events. Its zero value is not ready: see newTally.
type tally struct {
	out                     io.Writer
	packs                   map[string]*pack
	output                  map[test]*strings.Builder
	builds                  map[string]*strings.Builder // output of the compiler by import path
	skips                   map[string][]test           // by reason
	passed, failed, skipped int
}

func newTally(out io.Writer) *tally {
	return &tally{
		out:    out,
		packs:  make(map[string]*pack),
		output: make(map[test]*strings.Builder),
		builds: make(map[string]*strings.Builder),
		skips:  make(map[string][]test),
	}
}

// read takes in all of r. Lines that are no events, such as those of the go command itself, are passed on.
func (t *tally) read(r io.Reader) error {
	br := bufio.NewReader(r)
	for {
		line, err := br.ReadString('\n')
		if line != "" {
			t.line(line)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read events: %w", err)
		}
	}
}

func (t *tally) line(line string) {
	var e event
	if json.Unmarshal([]byte(line), &e) != nil || e.Action == "" {
		fmt.Fprintln(t.out, strings.TrimRight(line, "\n"))
		return
	}
	switch {
	case strings.HasPrefix(e.Action, "build-"):
		if e.Action == "build-output" {
			keep(t.builds, e.ImportPath, e.Output)
		}
	case e.Test == "":
		t.packageEvent(e)
	default:
		t.testEvent(e)
	}
}

func (t *tally) pack(name string) *pack {
	p := t.packs[name]
	if p == nil {
		p = &pack{running: make(map[string]bool)}
		t.packs[name] = p
	}
	return p
}

func (t *tally) testEvent(e event) {
	p, id := t.pack(e.Package), test{e.Package, e.Test}
	switch e.Action {
	case "run":
		p.running[e.Test] = true
	case "output":
		keep(t.output, id, e.Output)
	case "pass", "fail", "skip":
		delete(p.running, e.Test)
		p.tests++
		t.end(p, id, e.Action)
	}
}

// end counts a test that has ended and lets go of its output.
func (t *tally) end(p *pack, id test, action string) {
	text := take(t.output, id)
	switch action {
	case "pass":
		t.passed++
	case "skip":
		t.skipped++
		reason := skipReason(text)
		t.skips[reason] = append(t.skips[reason], id)
	default:
		t.failed++
		p.failed = true
		fmt.Fprintf(t.out, "--- FAIL %s %s\n%s", id.pkg, id.name, text)
	}
}

func (t *tally) packageEvent(e event) {
	switch e.Action {
	case "start":
		t.pack(e.Package)
	case "output":
		keep(t.output, test{pkg: e.Package}, e.Output)
	case "pass", "skip":
		t.unfinished(e.Package)
		t.closePackage(e)
	case "fail":
		t.unfinished(e.Package)
		t.failPackage(e)
		t.closePackage(e)
	}
}

// unfinished counts the tests of a package that never said how they ended as failed: a panic or a time limit cut them
// short.
func (t *tally) unfinished(pkg string) {
	p := t.pack(pkg)
	for _, name := range slices.Sorted(maps.Keys(p.running)) {
		p.tests++
		t.end(p, test{pkg, name}, "fail")
	}
	clear(p.running)
}

// failPackage tells of a failed package what its tests have not told.
func (t *tally) failPackage(e event) {
	p := t.pack(e.Package)
	build, text := take(t.builds, e.FailedBuild), take(t.output, test{pkg: e.Package})
	if p.failed && build == "" {
		return
	}
	t.failed++
	p.failed = true
	fmt.Fprintf(t.out, "--- FAIL %s\n%s%s", e.Package, build, text)
}

func (t *tally) closePackage(e event) {
	p := t.pack(e.Package)
	delete(t.packs, e.Package)
	delete(t.output, test{pkg: e.Package})
	word := "ok  "
	switch {
	case p.failed:
		word = "FAIL"
	case p.tests == 0:
		word = "-   "
	}
	fmt.Fprintf(t.out, "%s %7.2fs %5d tests  %s\n", word, e.Elapsed, p.tests, e.Package)
}

// close tells of packages that never ended, lists the reasons of skipped tests and prints the count. It says whether
// all is well.
func (t *tally) close() bool {
	for _, name := range slices.Sorted(maps.Keys(t.packs)) {
		t.packageEvent(event{Action: "output", Package: name, Output: "ended without a result\n"})
		t.packageEvent(event{Action: "fail", Package: name})
	}
	for _, name := range slices.Sorted(maps.Keys(t.builds)) {
		fmt.Fprint(t.out, take(t.builds, name))
	}
	t.listSkips()
	ran := t.passed + t.failed
	if ran == 0 {
		fmt.Fprintln(t.out, "no test ran")
	}
	fmt.Fprintf(t.out, "%d passed, %d failed, %d skipped\n", t.passed, t.failed, t.skipped)
	return ran > 0 && t.failed == 0
}

func (t *tally) listSkips() {
	if len(t.skips) == 0 {
		return
	}
	fmt.Fprintln(t.out, "skipped:")
	reasons := slices.SortedFunc(maps.Keys(t.skips), func(a, b string) int {
		return cmp.Or(-cmp.Compare(len(t.skips[a]), len(t.skips[b])), cmp.Compare(a, b))
	})
	for _, r := range reasons {
		first := t.skips[r][0]
		fmt.Fprintf(t.out, "%6d  %s (%s %s", len(t.skips[r]), r, first.pkg, first.name)
		if len(t.skips[r]) > 1 {
			fmt.Fprint(t.out, ", …")
		}
		fmt.Fprintln(t.out, ")")
	}
}

// frame matches the lines with which package testing surrounds what a test prints.
var frame = regexp.MustCompile(`^\s*(=== |--- )`)

// place matches the file and line that package testing puts before what a test logs.
var place = regexp.MustCompile(`^\s*[\w.-]+\.go:\d+: `)

// skipReason picks the last thing that a skipped test said.
func skipReason(output string) string {
	reason := "no reason given"
	for line := range strings.Lines(output) {
		if text := strings.TrimSpace(place.ReplaceAllString(line, "")); text != "" && !frame.MatchString(line) {
			reason = text
		}
	}
	return reason
}

// keep appends text to what is kept of key in m.
func keep[K comparable](m map[K]*strings.Builder, key K, text string) {
	b := m[key]
	if b == nil {
		b = new(strings.Builder)
		m[key] = b
	}
	if room := maxOutput - b.Len(); room > 0 && len(text) > room {
		b.WriteString(text[:room] + "\n… more left out\n")
	} else if room > 0 {
		b.WriteString(text)
	}
}

// take removes and returns what is kept of key in m.
func take[K comparable](m map[K]*strings.Builder, key K) string {
	b := m[key]
	if b == nil {
		return ""
	}
	delete(m, key)
	return b.String()
}
