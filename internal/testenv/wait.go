package testenv

import (
	"testing"
	"time"
)

// Eventually asks again and again whether something holds, for at most limit: not a measure, but the end of a test that
// hangs.
func Eventually(limit time.Duration, holds func() bool) bool {
	// What holds at once is seen at once, and what takes a search of /proc is not asked for all the time.
	pause := time.Millisecond
	for end := time.Now().Add(limit); ; time.Sleep(pause) {
		if holds() {
			return true
		}
		if time.Now().After(end) {
			return false
		}
		pause = min(2*pause, 50*time.Millisecond)
	}
}

// Await ends the test unless something holds within limit.
func Await(t testing.TB, limit time.Duration, what string, holds func() bool) {
	t.Helper()
	if !Eventually(limit, holds) {
		t.Fatalf("not so after %s: %s", limit, what)
	}
}

// Done tells whether a channel is closed.
func Done(ended <-chan struct{}) bool {
	select {
	case <-ended:
		return true
	default:
		return false
	}
}
