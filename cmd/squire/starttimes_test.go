package main

import (
	"testing"
	"time"

	"github.com/squirefs/squire/runtime"
)

func TestStartTimes(t *testing.T) {
	phases := []runtime.Phase{{Name: "mount", Took: 1234567 * time.Nanosecond}, {Name: "exec", Took: 2 * time.Second}}
	if got, want := (&startTimes{image: runtime.Phase{Name: "server", Took: 3 * time.Millisecond}}).line(phases), "server 3.00 ms, mount 1.23 ms, exec 2000.00 ms"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := new(startTimes).line(phases), "mount 1.23 ms, exec 2000.00 ms"; got != want {
		t.Errorf("of a directory: got %q, want %q", got, want)
	}
	if none := new(runOptions).timesOfStart(); none.report() != nil {
		t.Error("times are reported though nobody asked")
	}
}
