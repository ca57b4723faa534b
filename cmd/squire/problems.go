package main

import (
	"fmt"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/squirefs/squire/runtime"
)

// A hostile image of half a megabyte can have thousands of faults, each with a path of
// hundreds of kilobytes. So what is told and kept of them is bounded.
const (
	maxTold        = 1000     // problems that are told, each in a line
	maxListed      = 10000    // problems in lists of --json, with whole paths
	maxListedBytes = 16 << 20 // of the paths and messages in such a list
	maxPathTold    = 1000     // bytes of a path in a message
)

// problems are errors to be told at the end.
type problems struct {
	lines []string
	more  int64 // that are not in lines
}

func (p *problems) add(err error) {
	if len(p.lines) == maxTold {
		p.more++
		return
	}
	p.lines = append(p.lines, runtime.OneLine(err))
}

// tell prints the errors, and returns the exit status for them.
func (p *problems) tell(c *cobra.Command) error {
	w := c.ErrOrStderr()
	for _, line := range p.lines {
		fmt.Fprintln(w, "squire:", line)
	}
	if p.more > 0 {
		fmt.Fprintln(w, "squire:", andMore(p.more))
	}
	if len(p.lines) > 0 {
		return exitError(1)
	}
	return nil
}

// at says where in the image an error is.
func at(path string, err error) error { return fmt.Errorf("%s: %w", shownPath(path), err) }

// andMore ends a list that was cut off.
func andMore(n int64) string { return fmt.Sprintf("… and %d more", n) }

// shownPath is a path in a message: printable, and without its middle if it is long.
func shownPath(path string) string {
	if len(path) <= maxPathTold {
		return printable(path)
	}
	head, tail := maxPathTold/2, len(path)-maxPathTold/2
	for head > maxPathTold/2-utf8.UTFMax && !utf8.RuneStart(path[head]) {
		head--
	}
	for tail < len(path)-maxPathTold/2+utf8.UTFMax && !utf8.RuneStart(path[tail]) {
		tail++
	}
	return fmt.Sprintf("%s…(%d bytes)…%s", printable(path[:head]), tail-head, printable(path[tail:]))
}

// listBound says what still goes into a list of --json.
type listBound struct {
	n, bytes int
}

// admit reports whether a problem with this path and message goes into the list.
func (b *listBound) admit(path, message string) bool {
	size := len(path) + len(message)
	if !utf8.ValidString(path) { // the path is there in base64 as well
		size += len(path) * 4 / 3
	}
	if b.n == maxListed || size > maxListedBytes-b.bytes {
		return false
	}
	b.n++
	b.bytes += size
	return true
}
