package main

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestPMIxMounts: only a directory such as Slurm makes for PMIx is bound.
func TestPMIxMounts(t *testing.T) {
	dir := t.TempDir()
	make := func(name string, mode os.FileMode) string {
		t.Helper()
		name = filepath.Join(dir, name)
		if err := os.Mkdir(name, mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(name, mode); err != nil {
			t.Fatal(err)
		}
		return name
	}
	good := make("pmix.12.0", 0o700)
	link, file := filepath.Join(dir, "pmix.link"), filepath.Join(dir, "pmix.file")
	if err := os.Symlink(good, link); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, value := range []string{good, good + "/"} {
		m := pmixMounts([]string{"A=1", "PMIX_SERVER_TMPDIR=/nothing", "PMIX_SERVER_TMPDIR=" + value})
		if len(m) != 1 || m[0].Source != good || m[0].Target != good {
			t.Errorf("%s: %v", value, m)
		}
	}
	for _, value := range []string{"", "/", "/etc", "pmix.12.0", link, file, make("pmix.open", 0o750), make("other", 0o700), filepath.Join(dir, "pmix.missing"), good + "/.."} {
		if m := pmixMounts([]string{"PMIX_SERVER_TMPDIR=" + value}); m != nil {
			t.Errorf("%s: %v", value, m)
		}
	}
	if m := pmixMounts(nil); m != nil {
		t.Errorf("no variable: %v", m)
	}
	if os.Getuid() == 0 {
		if err := os.Chown(good, 23456, 23456); err != nil {
			t.Fatal(err)
		}
		if m := pmixMounts([]string{"PMIX_SERVER_TMPDIR=" + good}); m != nil {
			t.Errorf("somebody else's: %v", m)
		}
	}
}

// TestPMIxWait: a step with a PMIx server waits for its first task, and no other does.
func TestPMIxWait(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	t.Setenv(pmixDir, "")
	t.Setenv(pmixServes, "")
	new(pmixWait).wait(ctx) // returns
	t.Setenv(pmixServes, "(vector,(0,1,2))")
	var w pmixWait
	go func() {
		w.tell(&slurmTask{Env: []string{"A=1", pmixDir + "=/spool/pmix.1.0"}})
		w.tell(&slurmTask{Env: []string{pmixDir + "=/late"}})
		w.tell(nil)
	}()
	w.wait(ctx)
	if got := os.Getenv(pmixDir); got != "/spool/pmix.1.0" || ctx.Err() != nil {
		t.Errorf("the directory is %q, %v", got, ctx.Err())
	}
	gone, stop := context.WithCancel(ctx)
	stop()
	new(pmixWait).wait(gone) // returns
	if ctx.Err() != nil {
		t.Error("it waited")
	}
}
