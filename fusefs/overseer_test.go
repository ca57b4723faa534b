package fusefs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// hanging is a mount whose storage hangs at times.
type hanging struct {
	*server
	files map[string][]byte
}

// hangingRole returns an image of n files, of a block each, and what is needed to serve it so that storage can hang.
func hangingRole(t *testing.T, n int) (role, map[string][]byte) {
	t.Helper()
	tree, files := t.TempDir(), make(map[string][]byte)
	for i := range n {
		name := fmt.Sprint(i)
		files[name] = bytes.Repeat([]byte(name+" "), 2000)
		if err := os.WriteFile(filepath.Join(tree, name), files[name], 0o644); err != nil {
			t.Fatal(err)
		}
	}
	image := mksquashfs(t, tree, "-no-fragments")
	return role{Image: image, Hang: filepath.Join(t.TempDir(), "hang")}, files
}

// mountHanging mounts it, and has all metadata read.
func mountHanging(t *testing.T, r role, files map[string][]byte) *hanging {
	t.Helper()
	s := &hanging{mountImage(t, r, MountOptions{}), files}
	s.warm()
	return s
}

// warm has the metadata read, and the file 0.
func (s *server) warm() {
	s.t.Helper()
	entries, err := os.ReadDir(s.dir)
	for _, e := range entries {
		if err == nil {
			_, err = e.Info()
		}
	}
	if err == nil {
		_, err = os.ReadFile(s.path("0"))
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// hang has storage hang until the function that it returns is called.
func hang(t *testing.T, r role) (stop func()) {
	t.Helper()
	if err := os.WriteFile(r.Hang, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	stop = func() { _ = os.Remove(r.Hang) }
	t.Cleanup(stop) // else the server would not end
	return stop
}

// readAll reads the files 1 to n, all at once. What it returns yields one error, or nil, for each; done is how many have
// been read so far.
func (s *server) readAll(n int, files map[string][]byte, done *atomic.Int32) <-chan error {
	results := make(chan error, n)
	var running sync.WaitGroup
	for i := range n {
		running.Go(func() {
			name := fmt.Sprint(i + 1)
			data, err := os.ReadFile(s.path(name))
			if err == nil && !bytes.Equal(data, files[name]) {
				err = fmt.Errorf("%s: wrong bytes", name)
			}
			done.Add(1)
			results <- err
		})
	}
	go func() { running.Wait(); close(results) }()
	return results
}

// want wants all results to be of one kind.
func want(t *testing.T, results <-chan error, ok func(error) bool) {
	t.Helper()
	for err := range results {
		if !ok(err) {
			t.Error(err)
		}
	}
}

// recover waits until a file can be read that storage was asked for in vain.
func (s *hanging) recover() {
	s.t.Helper()
	end := time.Now().Add(moment)
	for _, err := os.ReadFile(s.path("1")); err != nil; _, err = os.ReadFile(s.path("1")) {
		if time.Now().After(end) {
			s.t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func isNil(err error) bool { return err == nil }
func isEIO(err error) bool { return errors.Is(err, unix.EIO) }

// TestHangLeavesOthers: more requests hang than there are seats for those who answer. Others go on all the same, and in
// the end all are answered.
func TestHangLeavesOthers(t *testing.T) {
	const n = maxReaders + 50
	r, files := hangingRole(t, n+1)
	r.Within = 50 * time.Second // a look every 2 s
	s := mountHanging(t, r, files)
	resume := hang(t, r)
	var done atomic.Int32
	results := s.readAll(n, files, &done)
	for s.figures().Stats.Wanted < maxReaders { // all seats are taken
		time.Sleep(10 * time.Millisecond)
	}
	for i := range 100 { // each is a request for the server, which it can answer
		if _, err := os.Lstat(s.path(fmt.Sprint("none", i))); !os.IsNotExist(err) {
			t.Error(err)
		}
	}
	if done.Load() != 0 {
		t.Fatal("storage does not hang, so this tests nothing")
	}
	resume()
	want(t, results, isNil)
	if late := s.figures().Stats.Late; late != 0 {
		t.Errorf("%d requests were late", late)
	}
}

// TestHang wants callers to get EIO while storage hangs, and everything to be as before once it answers.
func TestHang(t *testing.T) {
	const n = 40
	r, files := hangingRole(t, n+1)
	r.Within = time.Second
	s := mountHanging(t, r, files)
	resume := hang(t, r)
	var done atomic.Int32
	want(t, s.readAll(n, files, &done), isEIO)
	if late := s.figures().Stats.Late; late < n {
		t.Errorf("%d requests were late, want %d at least", late, n)
	}
	if log := s.log.String(); !strings.Contains(log, "op=read") || !strings.Contains(log, "no answer from storage") {
		t.Errorf("log does not say why: %s", log)
	}
	resume()
	s.recover()
	want(t, s.readAll(n, files, &done), isNil)
	for i := range 10 { // a request is counted when it was answered already
		if _, err := os.Lstat(s.path(fmt.Sprint("none", i))); !os.IsNotExist(err) {
			t.Error(err)
		}
	}
	latency := s.figures().Stats.Latency
	if h := latency["read"]; h.Max() < r.Within || h.Count() == 0 {
		t.Errorf("latency of read does not show the hang: %v", h)
	}
	if h := latency["lookup"]; h.Count() == 0 {
		t.Error("no latency of lookup")
	}
}

// TestHangOverrun wants all to get EIO soon when storage holds too many requests, and no more of them to wait there.
func TestHangOverrun(t *testing.T) {
	const n = 60
	r, files := hangingRole(t, n+1)
	r.Within, r.MaxLate = time.Second, 8
	s := mountHanging(t, r, files)
	resume := hang(t, r)
	var done atomic.Int32
	want(t, s.readAll(int(r.MaxLate), files, &done), isEIO)
	before := s.figures().Stats
	want(t, s.readAll(n, files, &done), isEIO)
	after := s.figures().Stats
	if after.Wanted != before.Wanted || after.Late < before.Late+n {
		t.Errorf("%d blocks wanted, %d requests late, want 0 and %d at least",
			after.Wanted-before.Wanted, after.Late-before.Late, n)
	}
	resume()
	s.recover()
	want(t, s.readAll(n, files, &done), isNil)
}

// TestHangEnds: neither an unmount nor a server that is to stop waits for storage.
func TestHangEnds(t *testing.T) {
	const n = 20
	r, files := hangingRole(t, n+1)
	r.Within = 2 * time.Second
	t.Run("unmount", func(t *testing.T) {
		s := mountHanging(t, r, files)
		hang(t, r)
		var done atomic.Int32
		want(t, s.readAll(n, files, &done), isEIO)
		s.stop() // fails if the server does not end
	})
	t.Run("stop", func(t *testing.T) {
		s := mountKept(t, r)
		s.warm()
		resume := hang(t, r)
		var done atomic.Int32
		results := s.readAll(n, files, &done)
		time.Sleep(100 * time.Millisecond)
		resumeLater := time.AfterFunc(moment, resume)
		defer resumeLater.Stop()
		if s.endServer("stop"); !resumeLater.Stop() {
			t.Error("the server did not stop before storage answered")
		}
		resume()
		s.awaitKept("again")
		for err := range results {
			if err != nil && !isEIO(err) {
				t.Error(err)
			}
		}
		want(t, s.readAll(n, files, &done), isNil)
		s.endKept()
	})
}
