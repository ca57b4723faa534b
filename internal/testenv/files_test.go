package testenv

import (
	"fmt"
	"os"
	"slices"
	"testing"
)

// Go's poller looks for pipes, as long as they are open.
func TestPolled(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", r.Fd()))
	if err != nil {
		t.Skip("needs /proc: ", err)
	}
	if names := Polled(os.Getpid()); !slices.Contains(names, name) {
		t.Errorf("%q are looked for, without %s", names, name)
	}
	r.Close()
	w.Close()
	if names := Polled(os.Getpid()); slices.Contains(names, name) {
		t.Errorf("%s is looked for when it is closed", name)
	}
}
