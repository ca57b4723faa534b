package wire

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"
)

type text struct{ S string }

func (t *text) Fields(c *Coder) { String(c, &t.S) }

// ends returns both ends of a connection, closed when the test ends.
func ends(t *testing.T) (a, b *Conn) {
	t.Helper()
	a, f, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	if b, err = FileConn(f); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	for _, c := range []*Conn{a, b} {
		c.SetDeadline(time.Now().Add(10 * time.Second))
	}
	return a, b
}

func TestConnPassesFiles(t *testing.T) {
	a, b := ends(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err = a.Send(&text{"a pipe"}, w); err != nil {
		t.Fatal(err)
	}
	w.Close()
	var got text
	files, err := b.Recv(&got)
	if err != nil || got.S != "a pipe" || len(files) != 1 {
		t.Fatalf("%v, %d files, %v", got, len(files), err)
	}
	files[0].WriteString("through")
	files[0].Close()
	if all, _ := io.ReadAll(r); string(all) != "through" {
		t.Errorf("read %q", all)
	}
	peer, err := b.Peer()
	if err != nil || int(peer.Uid) != os.Getuid() || int(peer.Pid) != os.Getpid() {
		t.Errorf("peer is %v, %v", peer, err)
	}
}

func TestConnLimits(t *testing.T) {
	a, b := ends(t)
	if err := a.Send(&text{strings.Repeat("x", MaxSize)}); !errors.Is(err, ErrTooLong) {
		t.Error("a message too long was sent:", err)
	}
	long := make([]*os.File, MaxFiles+1)
	for i := range long {
		long[i] = os.Stdin
	}
	if err := a.Send(&text{}, long...); !errors.Is(err, ErrTooLong) {
		t.Error("a message with too many files was sent:", err)
	}
	// Somebody who does not use this package.
	if _, err := a.sock.Write(make([]byte, MaxSize+100)); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Recv(new(text)); !errors.Is(err, ErrTooLong) {
		t.Error("a message too long was received:", err)
	}
	if _, err := a.sock.Write([]byte{200}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Recv(new(text)); err == nil {
		t.Error("a malformed message was received")
	}
	a.Close()
	if _, err := b.Recv(new(text)); !errors.Is(err, io.EOF) {
		t.Error("the end of a connection is", err)
	}
}

// A Recv that waits already heeds a deadline that is set then.
func TestConnDeadline(t *testing.T) {
	a, _ := ends(t)
	for _, wait := range []func() error{
		func() error { _, err := a.Recv(new(text)); return err },
		func() error { return a.RecvPlain(new(text)) },
		a.Wait,
	} {
		done := make(chan error)
		go func() { done <- wait() }()
		a.SetDeadline(time.Unix(1, 0))
		if err := <-done; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
		}
		a.SetDeadline(time.Time{})
	}
}

// Files that come with a message that should have none are never open here.
func TestRecvPlain(t *testing.T) {
	a, b := ends(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err = a.Send(&text{"plain"}, w); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if err = b.Wait(); err != nil {
		t.Fatal(err)
	}
	var got text
	if err = b.RecvPlain(&got); err != nil || got.S != "plain" {
		t.Errorf("%v, %v", got, err)
	}
	if all, failed := io.ReadAll(r); failed != nil || len(all) > 0 {
		t.Error("the pipe is open:", failed)
	}
	a.Close()
	if err = b.Wait(); err != nil {
		t.Error("the end of a connection is to be waited for:", err)
	}
	if err = b.RecvPlain(&got); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
}
