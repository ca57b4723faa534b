// Command tally reads the output of "go test -json" and tells what happened: the output of what failed as it fails,
// the time of every package, why tests were skipped, and as the very last line
//
//	N passed, N failed, N skipped
//
// Every test and every subtest counts as one, and so does a package that fails without a failing test of its own (it
// does not build, it panics outside a test, it runs out of time). The exit status is 0 only when something ran and
// nothing failed.
package main

import (
	"fmt"
	"os"
)

func main() {
	t := newTally(os.Stdout)
	if err := t.read(os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, "tally:", err)
		t.failed++
	}
	if !t.close() {
		os.Exit(1)
	}
}
