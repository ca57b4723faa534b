package main

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/runtime"
	"github.com/squirefs/squire/runtime/container"
)

// ended is a task whose command ends: it sends the wait status, and returns what it is answered.
func ended(t *testing.T, s *slurmStep) string {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "task"), os.NewFile(uintptr(pair[1]), "step")
	defer ours.Close()
	if err = s.supervise(theirs); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	if _, err = ours.WriteString("0"); err != nil {
		t.Fatal(err)
	}
	var answer [1000]byte
	n, err := ours.Read(answer[:])
	if err != nil {
		t.Fatal(err)
	}
	return string(answer[:n])
}

// The container is saved when the last task has ended, once, and a save that fails is that task's error.
func TestSaveFailureIsTold(t *testing.T) {
	saves := 0
	s := &slurmStep{container: &slurmContainer{save: func() error { saves++; return errors.New("the disk is full\x1b[2J") }}}
	s.order.Tasks = 2
	if got := ended(t, s); got != "+" || saves != 0 {
		t.Errorf("the first task is told %q, after %d saves", got, saves)
	}
	if got := ended(t, s); got != `-the disk is full\033[2J` || saves != 1 {
		t.Errorf("the last task is told %q, after %d saves", got, saves)
	}
	// The step's end does what no task has come to, and no more.
	if err := s.container.finish(); err != nil || saves != 1 {
		t.Errorf("at the end: %v, %d saves", err, saves)
	}
	s.answers.Wait()
}

// A task that did not come in keeps nothing from being saved: the step's end does it, and has the error.
func TestSaveWithoutTasks(t *testing.T) {
	failed := errors.New("full")
	c := &slurmContainer{save: func() error { return failed }}
	if err := c.finish(); !errors.Is(err, failed) {
		t.Errorf("got %v", err)
	}
}

// Only tasks of a step that is to be saved are supervised: each costs a process for as long as it runs.
func TestWhoIsSupervised(t *testing.T) {
	for _, save := range []func() error{nil, func() error { return nil }} {
		c := &slurmContainer{namespaces: []runtime.Namespace{}, spec: new(runtime.Spec), save: save}
		r, err := c.reply(nil, new(slurmTask))
		if err != nil {
			t.Fatal(err)
		}
		if r.supervised != (save != nil) {
			t.Errorf("to be saved: %v, supervised: %v", save != nil, r.supervised)
		}
	}
}

// An image of the cache that a named container is made from is in use, each time that the container is.
func TestNamedNotesUse(t *testing.T) {
	store, err := container.Open(filepath.Join(t.TempDir(), "store"))
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	c, err := store.Scratch()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	image := copyImage(t, t.TempDir())
	then := time.Now().Add(-50 * 24 * time.Hour)
	if err = os.Chtimes(image, then, then); err != nil {
		t.Fatal(err)
	}
	identity, err := imageIdentity(image)
	if err != nil {
		t.Fatal(err)
	}
	if err = os.Chtimes(image, then, then); err != nil { // it was read
		t.Fatal(err)
	}
	if err = c.Remember(&container.Record{Created: then, Image: image, Source: "docker://x", Identity: identity}); err != nil {
		t.Fatal(err)
	}
	n := &namedRun{o: new(runOptions), name: "x", c: c}
	if err = n.find(t.Context()); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err = unix.Stat(image, &st); err != nil || time.Since(time.Unix(st.Atim.Unix())) > time.Hour || st.Mtim.Sec != then.Unix() {
		t.Errorf("used at %v, changed at %v, %v", time.Unix(st.Atim.Unix()), time.Unix(st.Mtim.Unix()), err)
	}
}
