package server

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/squirefs/squire/internal/rights"
	"github.com/squirefs/squire/testdata/hostile"
)

// TestHostile has one process serve all images of package hostile, one after the other, and look at them. Each is refused
// or served, and none of them does anything to the process, of which a sound image is served all the time.
func TestHostile(t *testing.T) {
	needRoot(t)
	if testing.Short() {
		t.Skip("takes long")
	}
	image, digest := newImage(t, 20, 60<<10)
	n := newNode(t, Config{})
	sound := newReader(t, n.mount(image, nil))
	for img := range hostile.Images() {
		t.Run(img.Name, func(t *testing.T) {
			n.t = t
			testHostile(t, n, img)
			if got := sound.read(); got != digest {
				t.Fatalf("the sound image: %s, want %s", got, digest)
			}
		})
	}
	n.t = t
	stats, err := n.server.Stats()
	if err != nil {
		t.Fatal(err)
	}
	if stats.Memory > 512<<20 && !rights.OneThread || len(stats.Images) != 1 {
		t.Errorf("%d MiB, %d images left", stats.Memory>>20, len(stats.Images))
	}
}

func testHostile(t *testing.T, n *node, img *hostile.Image) {
	body := img.Body()
	name := filepath.Join(t.TempDir(), "image")
	if err := writeSparse(name, body, body.Size); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	n.last++
	m := &mounted{Image: Image{ID: n.last, Name: img.Name, Restrict: true}, file: file}
	_, err = n.server.Open(m.Image, file, nil, nil)
	var refused *ImageError
	switch {
	case errors.As(err, &refused):
		return
	case err != nil:
		t.Fatalf("open: %v, want an ImageError", err)
	}
	n.attach(m)
	defer func() {
		m.unmount()
		m.device.Close()
		n.mounts = n.mounts[:len(n.mounts)-1]
	}()
	r := startReader(t, proberName, m, ".")
	t.Log("looked at", r.read())
	r.end()
	m.unmount()
	select {
	case <-n.server.Ended():
	case <-time.After(limit):
		t.Error("nobody tells that the mount is gone")
	}
}

// writeSparse writes size bytes of r to a file, zeros as holes.
func writeSparse(name string, r io.ReaderAt, size int64) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	buf, zeros := make([]byte, 1<<16), make([]byte, 1<<16)
	for off := int64(0); off < size; off += int64(len(buf)) {
		n, err := r.ReadAt(buf[:min(int64(len(buf)), size-off)], off)
		if err != nil && !errors.Is(err, io.EOF) {
			break // a source that fails: its file ends there
		}
		if string(buf[:n]) == string(zeros[:n]) {
			continue
		}
		if _, err := f.WriteAt(buf[:n], off); err != nil {
			return err
		}
	}
	return f.Truncate(size)
}
