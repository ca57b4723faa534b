package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"testing"
	"time"
)

// readable is a pipe that stands in for a task's standard error.
func readable(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	_ = r.SetReadDeadline(time.Now().Add(testBound))
	return r, w
}

func wantWords(t *testing.T, r *os.File, want string) {
	t.Helper()
	b := make([]byte, len(want)+1)
	n := 0
	for n < len(want) {
		m, err := r.Read(b[n:])
		if err != nil {
			t.Fatalf("got %q, want %q: %v", b[:n], want, err)
		}
		n += m
	}
	if string(b[:n]) != want {
		t.Fatalf("got %q, want %q", b[:n], want)
	}
}

func TestStepWords(t *testing.T) {
	w, write, err := newStepWords()
	if err != nil {
		t.Fatal(err)
	}
	defer write.Close()
	first, firstEnd := readable(t)
	second, secondEnd := readable(t)
	say := func(text string) {
		if _, err := write.WriteString(text); err != nil {
			t.Fatal(err)
		}
	}
	say("before anybody listens, ")
	w.speakTo(firstEnd)
	w.speakTo(secondEnd) // is not the first, and closed
	wantWords(t, first, "before anybody listens, ")
	say("while somebody does, ")
	wantWords(t, first, "while somebody does, ")
	say("at last")
	w.silence()
	wantWords(t, first, "at last")
	w.silence()
	say("unheard")
	for _, r := range []*os.File{first, second} {
		if n, err := r.Read(make([]byte, 10)); n > 0 || !errors.Is(err, io.EOF) {
			t.Errorf("%d bytes more were said, %v", n, err)
		}
	}
}

// Whoever writes does not wait for a task, and what is kept meanwhile is bounded.
func TestStepWordsKept(t *testing.T) {
	w, write, err := newStepWords()
	if err != nil {
		t.Fatal(err)
	}
	defer write.Close()
	_ = write.SetWriteDeadline(time.Now().Add(testBound))
	if _, err = write.Write(bytes.Repeat([]byte{'x'}, 4*maxKept)); err != nil {
		t.Fatal(err)
	}
	r, end := readable(t)
	go func() { // a pipe holds no more than what is kept
		w.speakTo(end)
		w.silence()
	}()
	var all bytes.Buffer
	if _, err = all.ReadFrom(r); err != nil || all.Len() < maxKept || all.Len() > maxKept+64<<10 { // what the pipe holds, as well
		t.Errorf("got %d bytes, %v; want %d or so", all.Len(), err, maxKept)
	}
}
