package runtime

import (
	"strings"
	"testing"
)

// The parts of the setup are told however short the command is, and not of one that
// was not started.
func TestRunPhases(t *testing.T) {
	forUsers(t, func(t *testing.T, w who, root string) {
		t.Setenv(tellNames, "1")
		r := run(t, w, Spec{Dir: root, Command: []string{"true"}})
		want := "scaffold true\nmount true\nlayer true\nmounts true\npivot true\ndrop true\nexec true\n"
		if r.status != 0 || r.err != want {
			t.Errorf("%+v, want %q", r, want)
		}
		if r = run(t, w, Spec{Dir: root, Command: []string{"no-such"}}); r.status != ExitNotFound || strings.Count(r.err, "\n") != 1 {
			t.Errorf("%+v", r)
		}
	})
}
