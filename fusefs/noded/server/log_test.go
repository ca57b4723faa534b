package server

import (
	"io"
	"strings"
	"testing"
)

// A log that nobody reads holds up nobody, and what was said first is there when somebody does.
func TestLog(t *testing.T) {
	r, w := io.Pipe()
	log := newLog(w)
	for range 10 * maxLines {
		log.Error("something", "image", "a b")
	}
	b := make([]byte, 4096)
	n, err := r.Read(b)
	if got := string(b[:n]); err != nil || !strings.HasSuffix(got, "level=ERROR msg=something image=\"a b\"\n") {
		t.Errorf("read %q, %v", got, err)
	}
}
