package fusefs

import (
	"errors"
	"math"
	"testing"
	"time"
)

// gate is storage that answers nobody until it is opened.
type gate chan struct{}

func (g gate) ReadAt(p []byte, _ int64) (int, error) {
	<-g
	return len(p), nil
}

// stuck returns a Source with a read that hangs, and what that read comes to.
func stuck(t *testing.T, g gate) (*Source, <-chan error) {
	t.Helper()
	s, result := NewSource(g), make(chan error, 1)
	go func() {
		_, err := s.ReadAt(make([]byte, 1), 0)
		result <- err
	}()
	for s.under.Load() == 0 || s.moved.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	return s, result
}

func TestSuspect(t *testing.T) {
	g := make(gate)
	s, first := stuck(t, g)
	if s.suspect(time.Hour); s.out.Load() != nil {
		t.Fatal("a read that has just begun is taken for one that hangs")
	}
	time.Sleep(2 * time.Millisecond)
	s.suspect(time.Millisecond)
	h := s.out.Load()
	if h == nil {
		t.Fatal("a read that hangs is not seen")
	}
	h.next.Store(math.MaxInt64) // nobody is to try
	if _, err := s.ReadAt(make([]byte, 1), 0); !errors.Is(err, errHangs) {
		t.Errorf("a read while storage hangs: %v, want %v", err, errHangs)
	}
	close(g)
	if err := <-first; err != nil {
		t.Error(err)
	}
	if _, err := s.ReadAt(make([]byte, 1), 0); err != nil || s.out.Load() != nil {
		t.Errorf("once storage answers: %v, outage %v", err, s.out.Load())
	}
	if s.suspect(0); s.out.Load() != nil {
		t.Error("storage that nobody waits for is taken for one that hangs")
	}
}

// Who waits when the first read comes back reads then.
func TestHangIsOver(t *testing.T) {
	g := make(gate)
	s, first := stuck(t, g)
	h := &outage{wait: time.Minute, over: make(chan struct{})}
	h.next.Store(math.MaxInt64)
	s.out.Store(h)
	second := make(chan error, 1)
	go func() {
		_, err := s.ReadAt(make([]byte, 1), 0)
		second <- err
	}()
	close(g)
	for _, result := range []<-chan error{first, second} {
		select {
		case err := <-result:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(moment):
			t.Fatal("still waits")
		}
	}
}

// It is tried again and again whether storage still hangs, but not without end: each try may stay there. Whoever reads has an
// answer in the time of an outage, also when it is always the same reader.
func TestHangTries(t *testing.T) {
	g := make(gate)
	s, first := stuck(t, g)
	h := &outage{wait: time.Millisecond, over: make(chan struct{})}
	s.out.Store(h)
	answered := make(chan error, 1)
	go func() {
		for range 10 * maxTries {
			if _, err := s.ReadAt(make([]byte, 1), 0); !errors.Is(err, errHangs) {
				answered <- err
				return
			}
		}
		answered <- nil
	}()
	select {
	case err := <-answered:
		if err != nil {
			t.Errorf("a read while storage hangs: %v", err)
		}
	case <-time.After(moment):
		t.Fatal("a reader waits for the storage that it tries")
	}
	for s.under.Load() < 1+maxTries {
		time.Sleep(time.Millisecond) // they have only been started
	}
	if n := s.under.Load(); n != 1+maxTries {
		t.Errorf("%d reads wait for storage, want %d", n, 1+maxTries)
	}
	close(g)
	if err := <-first; err != nil {
		t.Error(err)
	}
	if _, err := s.ReadAt(make([]byte, 1), 0); err != nil {
		t.Errorf("once storage answers: %v", err)
	}
}
