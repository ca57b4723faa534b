package noded

import (
	"fmt"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func (w *world) clearedNow() []uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Sorted(slices.Values(w.cleared))
}

// leave writes a note as a service that was killed leaves it.
func leave(t *testing.T, socket string, numbers ...uint64) {
	t.Helper()
	if err := writeNote(socket+".mounts", numbers); err != nil {
		t.Fatal(err)
	}
}

// What a killed service has left is unmounted once nobody serves it, and forgotten; what is this service's own by now, or
// was before the last start of the machine, is not touched.
func TestStale(t *testing.T) {
	socket := socketIn(t)
	leave(t, socket, 7, 8, 1001)
	scans := 0
	w := newWorld(t)
	k := run(t, w, Config{Socket: socket}, func(k *keeper) {
		k.serving = func(numbers []uint64) (map[uint64]bool, error) {
			if scans++; scans < 3 {
				return map[uint64]bool{8: true, 1001: true}, nil
			}
			return map[uint64]bool{1001: true}, nil
		}
	})
	if _, err := dialed(t, socket).Mount(all, imageFile(t, "a")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "dead mounts are gone", func() bool { return slices.Equal(w.clearedNow(), []uint64{7, 8}) })
	eventually(t, "the image is noted", func() bool {
		n, err := readNote(socket + ".mounts")
		return err == nil && slices.Equal(n.Superblocks, []uint64{1001})
	})
	if left := k.leftovers.list(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	k.stop(t)
	if got := w.clearedNow(); !slices.Equal(got, []uint64{7, 8, 1001}) {
		t.Errorf("unmounted at the end: %v", got)
	}
	if _, err := os.Lstat(socket + ".mounts"); !os.IsNotExist(err) {
		t.Errorf("the note: %v", err)
	}
}

// A service that systemd keeps descriptors for leaves its mounts to the next one.
func TestNotClearedUnderSystemd(t *testing.T) {
	m := newManager(t)
	t.Setenv(envNotify, m.socket)
	w := newWorld(t)
	k := run(t, w, Config{})
	if _, err := dialed(t, k.socket).Mount(all, imageFile(t, "a")); err != nil {
		t.Fatal(err)
	}
	k.stop(t)
	if got := w.clearedNow(); len(got) > 0 {
		t.Errorf("unmounted: %v", got)
	}
	if n, err := readNote(k.socket + ".mounts"); err != nil || !slices.Equal(n.Superblocks, []uint64{1001}) {
		t.Errorf("%v, %v", n, err)
	}
}

// A note that is not exactly what a service writes, and one of another boot, says nothing.
func TestForeignNotes(t *testing.T) {
	boot, err := bootID()
	if err != nil {
		t.Fatal(err)
	}
	good := fmt.Sprintf(`{"Version":1,"Boot":%q,"Superblocks":[7]}`, boot)
	for _, c := range []struct {
		what, text string
		mode       os.FileMode
		stale      int
	}{
		{"a note", good, 0o600, 1},
		{"another boot", `{"Version":1,"Boot":"x","Superblocks":[7]}`, 0o600, 0},
		{"another version", `{"Version":2,"Superblocks":[7]}`, 0o600, 0},
		{"more fields", `{"Version":1,"Boot":"x","Paths":["/"]}`, 0o600, 0},
		{"more text", good + good, 0o600, 0},
		{"torn", good[:len(good)-3], 0o600, 0},
		{"written by others", good, 0o622, 0},
	} {
		l := newLeftovers(Config{Socket: socketIn(t)})
		if err := os.WriteFile(l.path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(l.path, c.mode); err != nil {
			t.Fatal(err)
		}
		err := l.read()
		if got := len(l.list()); got != c.stale {
			t.Errorf("%s: %d stale, %v", c.what, got, err)
		}
	}
}

// The kernel's form of a device number has 20 bits for the minor.
func TestConnectionIn(t *testing.T) {
	n, ok := connectionIn("pos:\t0\nfuse_connection:\t300\n")
	if !ok || unix.Major(n) != 0 || unix.Minor(n) != 300 {
		t.Error(n, ok)
	}
	if _, ok = connectionIn("pos:\t0\nflags:\t02\n"); ok {
		t.Error("a file that is no device has a connection")
	}
}
