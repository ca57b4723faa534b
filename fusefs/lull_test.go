package fusefs

import (
	"bytes"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// TestLull: an image that nobody reads has few goroutines, also when it was read before, and it is read on as it was.
func TestLull(t *testing.T) {
	needRoot(t)
	dir := manyFiles(t, 900)
	s := mountImage(t, role{Image: mksquashfs(t, dir, "-b", "128K"), Lull: 50 * time.Millisecond}, MountOptions{})
	const few = 7 // main, the one who answers figures, and of Serve: itself, its helpers to stop, overseer and watcher
	names, err := filepath.Glob(dir + "/small-*")
	if err != nil {
		t.Fatal(err)
	}
	for round := range 3 {
		before := s.figures().Stats.Stored
		var readers sync.WaitGroup
		for part := range 3 {
			readers.Go(func() {
				from := (3*round + part) * 100
				for _, name := range names[from : from+100] {
					want, err := os.ReadFile(name)
					if err != nil {
						t.Error(err)
						return
					}
					if got, err := os.ReadFile(s.path(filepath.Base(name))); err != nil || !bytes.Equal(got, want) {
						t.Errorf("%s: %v, or not what was packed", name, err)
					}
				}
			})
		}
		readers.Wait()
		if stored := s.figures().Stats.Stored - before; stored == 0 {
			t.Errorf("round %d: nothing was read ahead", round)
		}
		await(t, "goroutines to end", func() bool { return s.figures().Goroutines <= few })
	}
}

// TestLullTells: a lull begins when there was nothing for a while, and again as long as something is left to end.
func TestLullTells(t *testing.T) {
	var l lull
	l.putOff() // before init
	begun := make(chan struct{}, 100)
	l.after = 20 * time.Millisecond
	left := 3
	l.init(func() bool { left--; begun <- struct{}{}; return left <= 0 })
	l.putOff()
	for k := range 4 {
		if k == 3 {
			l.putOff()
		}
		select {
		case <-begun:
		case <-time.After(moment):
			t.Fatal("no lull")
		}
	}
}

// TestLullEnds: what has ended is not kept by a timer.
func TestLullEnds(t *testing.T) {
	l := lull{after: time.Hour}
	l.init(func() bool { return true })
	l.putOff()
	if !l.timer.Stop() {
		t.Fatal("no timer runs")
	}
	l.armed.Store(false)
	l.putOff()
	l.end()
	l.putOff()
	if l.timer.Stop() {
		t.Error("the timer runs on")
	}
}
