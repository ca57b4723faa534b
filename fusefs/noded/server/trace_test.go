package server

import (
	"os"
	"path/filepath"
	"testing"
)

// TestTrace records what is read of an image, which the next mount of it finds, but not in a server that goes on where
// another one stopped.
func TestTrace(t *testing.T) {
	needRoot(t)
	image, digest := newImage(t, 60, 200<<10, "-b", "16K")
	n := newNode(t, Config{})
	traceFile := func(name string) *os.File {
		t.Helper()
		f, err := os.OpenFile(filepath.Join(filepath.Dir(image), name), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	mountRead := func(f *os.File, killed bool) *mounted {
		t.Helper()
		m := n.mount(image, func(i *Image) { i.Record = 1 }, f)
		if killed {
			n.server.Kill()
			n.restart()
		}
		r := newReader(t, m)
		if got := r.read(); got != digest {
			t.Fatalf("read %s, want %s", got, digest)
		}
		r.end()
		m.unmount()
		if id := <-n.server.Ended(); id != m.ID {
			t.Fatalf("image %d has ended, want %d", id, m.ID)
		}
		n.mounts = nil
		m.device.Close()
		m.file.Close()
		return m
	}
	size := func(f *os.File) int64 {
		fi, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		return fi.Size()
	}

	f := traceFile("a.trace")
	if m := mountRead(f, false); m.info.Replayed != 0 {
		t.Errorf("replayed %d blocks of nothing", m.info.Replayed)
	}
	eventually(t, "the trace", func() bool { return size(f) > 0 })
	var replayed int
	eventually(t, "a trace that is whole", func() bool {
		replayed = mountRead(traceFile("a.trace"), false).info.Replayed
		return replayed > 0
	})
	if replayed < 64 {
		t.Errorf("replayed %d blocks, want those that were read", replayed)
	}
	f = traceFile("b.trace")
	mountRead(f, true)
	if size(f) > 0 {
		t.Error("a server that came later recorded")
	}
}
