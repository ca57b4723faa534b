package main

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

func TestEntrypointLog(t *testing.T) {
	for said, want := range map[string]string{
		"":                       "failed",
		"\n \n":                  "failed",
		"first\nlast words\n\n":  "failed; it has said: last words",
		"a\xffb":                 "failed; it has said: a?b",
		strings.Repeat("x", 999): "failed; it has said: " + strings.Repeat("x", 500),
	} {
		log, err := newEntrypointLog()
		if err != nil {
			t.Fatal(err)
		}
		defer log.Close()
		if _, err = log.WriteString(said); err != nil {
			t.Fatal(err)
		}
		if got := log.explain(errors.New("failed")); got.Error() != want {
			t.Errorf("%q: got %q, want %q", said, got, want)
		}
		if log.explain(nil) != nil {
			t.Errorf("%q: an error of none", said)
		}
		var told bytes.Buffer
		log.tell(&told)
		if got := told.String(); strings.TrimSuffix(got, "\n") != strings.TrimSuffix(said, "\n") || said != "" && !strings.HasSuffix(got, "\n") {
			t.Errorf("%q: told %q", said, got)
		}
	}
}

// Of an entrypoint that says without end, the end is told.
func TestEntrypointLogLong(t *testing.T) {
	log, err := newEntrypointLog()
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	if _, err = log.WriteAt([]byte("\nend"), 3*maxEntrypointLog); err != nil {
		t.Fatal(err)
	}
	if got := log.text(); len(got) != maxEntrypointLog || !bytes.HasSuffix(got, []byte("\nend")) {
		t.Errorf("got %d bytes that end with %q", len(got), got[len(got)-4:])
	}
}
