package noded

import (
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// heirs are processes that never look at what they are given.
type heirs struct {
	mu  sync.Mutex
	all []*os.Process
}

func (h *heirs) start(socket *os.File) (*os.Process, error) {
	p, err := os.StartProcess("/bin/sleep", []string{"sleep", "600"}, &os.ProcAttr{Files: []*os.File{nil, nil, nil, socket}})
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all = append(h.all, p)
	return p, err
}

func (h *heirs) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.all)
}

// An heir that stands still keeps the keeper for a moment only: it is ended, as it would be a second keeper once it goes on,
// and there is another. At the end none is left.
func TestHeirStandsStill(t *testing.T) {
	var h heirs
	k := run(t, newWorld(t), Config{Limits: Limits{Images: 10000, UserImages: 10000}}, func(k *keeper) { k.parts.heir = h.start })
	eventually(t, "there is an heir", func() bool { return h.count() == 1 })
	c := dialed(t, k.socket)
	begin := time.Now()
	for i := 0; h.count() < 2 && time.Since(begin) < limit; i++ { // until the socket has no more room
		if _, err := c.Mount(Request{}, imageFile(t, fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
	}
	if h.count() < 2 {
		t.Fatal("it is not replaced")
	}
	h.mu.Lock()
	first := h.all[0]
	h.mu.Unlock()
	if unix.Kill(first.Pid, 0) == nil {
		t.Errorf("process %d is still there", first.Pid)
	}
	k.stop(t)
	for _, p := range h.all {
		if unix.Kill(p.Pid, 0) == nil {
			t.Errorf("process %d has outlived the keeper", p.Pid)
		}
	}
}

// What the heir is given replaces what had the same name, what is withdrawn is closed, and the end of the keeper is told
// from what cannot be understood.
func TestReceiveEstate(t *testing.T) {
	for _, c := range []struct {
		what, text string // the last message
		bad        bool
	}{{"the end", "", false}, {"a name without a descriptor", "+late", true}} {
		conn, theirs, err := socketPair()
		if err != nil {
			t.Fatal(err)
		}
		defer theirs.Close()
		h := &heir{conn: conn, proc: &os.Process{Pid: -1}}
		a, b := imageFile(t, "a"), imageFile(t, "b")
		h.add("one", a)
		h.add("two", a)
		h.add("one", b)
		h.add("three", b)
		h.remove("two")
		h.remove("four")
		if c.text != "" {
			h.send(c.text, nil)
		}
		conn.Close()
		estate := map[string]int{}
		if err := receiveEstate(int(theirs.Fd()), estate); (err != nil) != c.bad {
			t.Errorf("%s: %v", c.what, err)
		}
		if len(estate) != 2 || !sameFile(t, estate["one"], b) || !sameFile(t, estate["three"], b) {
			t.Errorf("%s: %v", c.what, estate)
		}
		for _, fd := range estate {
			unix.Close(fd)
		}
	}
}

func sameFile(t *testing.T, fd int, f *os.File) bool {
	t.Helper()
	var have, want unix.Stat_t
	if err := unix.Fstat(fd, &have); err != nil {
		t.Fatal(err)
	}
	if err := withFD(f, func(fd int) error { return unix.Fstat(fd, &want) }); err != nil {
		t.Fatal(err)
	}
	return have.Ino == want.Ino
}
