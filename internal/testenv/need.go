// Package testenv is what tests of real mounts, processes and users have in common: what they need and skip without, how
// they run squire and others as somebody, wait for what takes its time, and take away what is left.
//
// Only tests import it, which testdata/arrows.sh checks.
package testenv

import (
	"os"
	"os/exec"
	"testing"

	"github.com/squirefs/squire/internal/rights"
)

// NeedTime skips a test that does a lot, of which what says a few words, where only short ones are wanted.
func NeedTime(t testing.TB, what string) {
	t.Helper()
	if testing.Short() {
		t.Skipf("%s; not in short mode", what)
	}
}

// NeedRoot skips a test that an ordinary user cannot run. what says what for: "to mount".
func NeedRoot(t testing.TB, what string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, " + what)
	}
}

// NeedFUSE skips a test that mounts, where there is no /dev/fuse for it.
func NeedFUSE(t testing.TB) {
	t.Helper()
	dev, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("needs FUSE: %v", err)
	}
	dev.Close()
}

// NeedStatic skips a test that runs its own program where the host's files are not. With C in it, as the race detector
// is, that needs shared libraries.
func NeedStatic(t testing.TB) {
	t.Helper()
	if rights.OneThread {
		t.Skip("a program with C in it (the race detector) needs shared libraries, which are not where it is run")
	}
}

// NeedTools skips a test of which a program is not in PATH.
func NeedTools(t testing.TB, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("needs %s: run testdata/deps.sh", name)
		}
	}
}
