package main

import (
	"context"
	"os"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// The terminal is that of the task that has one, whichever comes first; without one the wait ends when all tasks have come.
func TestPtyWait(t *testing.T) {
	t.Setenv(ptyServes, "1")
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("needs pseudo-terminals: %v", err)
	}
	defer master.Close()
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	name := "/dev/pts/" + strconv.Itoa(n)
	slave, err := os.OpenFile(name, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer slave.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for _, tt := range []struct {
		tell []*os.File
		want string
	}{
		{[]*os.File{slave, null, null}, name},
		{[]*os.File{null, slave}, name},
		{[]*os.File{null, null, null, null, slave}, ""}, // more tasks than there are
	} {
		var w ptyWait
		for _, f := range tt.tell {
			w.tell(f, 3)
		}
		if w.wait(t.Context()); w.terminal != tt.want {
			t.Errorf("got %q, want %q", w.terminal, tt.want)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	new(ptyWait).wait(ended)
}
