package main

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// stepWords is what a step process and those that it starts write to standard error. Until a task lends its own that is
// kept, and from when the container is ready, nobody hears it: Slurm waits for all who have the other end of the pipe
// that is a task's standard error.
type stepWords struct {
	from *os.File // what is written to standard error

	mu   sync.Mutex
	kept []byte   // not yet said
	to   *os.File // nil: nobody
	shut bool     // nothing more is said
}

// maxKept bounds what is kept, in bytes.
const maxKept = 64 << 10

// divertWords makes standard error, of this process and its children to come, that of stepWords.
func divertWords() (*stepWords, error) {
	w, write, err := newStepWords()
	if err != nil {
		return nil, err
	}
	defer write.Close()
	if err = unix.Dup3(int(write.Fd()), 2, 0); err != nil {
		return nil, fmt.Errorf("divert standard error: %w", err)
	}
	return w, nil
}

// newStepWords returns the end of a pipe to write to as well.
func newStepWords() (*stepWords, *os.File, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("make a pipe: %w", err)
	}
	write := os.NewFile(uintptr(fds[1]), "standard error")
	if err := unix.SetNonblock(fds[0], true); err != nil { // for the poller
		return nil, nil, errors.Join(err, write.Close(), unix.Close(fds[0]))
	}
	w := &stepWords{from: os.NewFile(uintptr(fds[0]), "standard error")}
	go w.listen()
	return w, write, nil
}

// listen takes what is written.
func (w *stepWords) listen() {
	raw, err := w.from.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Read(func(fd uintptr) bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.drain(int(fd)) // false: wait for more
	})
}

// drain takes what is there. It reports whether there can be no more.
func (w *stepWords) drain(fd int) (ended bool) {
	var b [4096]byte
	for {
		n, err := unix.Read(fd, b[:])
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			w.say()
			return false
		case n <= 0:
			w.say()
			return true
		case !w.shut:
			w.kept = append(w.kept, b[:min(n, maxKept-len(w.kept))]...)
			w.say()
		}
	}
}

// say writes what is kept to a task's standard error.
func (w *stepWords) say() {
	if w.to != nil && len(w.kept) > 0 {
		writeAll(int(w.to.Fd()), w.kept)
		w.kept = w.kept[:0]
	}
}

// writeAll writes to a descriptor of any kind, which is not ours alone to change. What cannot be written is not.
func writeAll(fd int, b []byte) {
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return
		}
		b = b[n:]
	}
}

// speakTo has what is written said to a task's standard error until silence, if that is the first task. It closes stderr
// in time.
func (w *stepWords) speakTo(stderr *os.File) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.to != nil || w.shut {
		stderr.Close()
		return
	}
	w.to = stderr
	w.say()
}

// silence says what is there, and no more.
func (w *stepWords) silence() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.shut {
		return
	}
	raw, err := w.from.SyscallConn()
	if err == nil {
		_ = raw.Control(func(fd uintptr) { w.drain(int(fd)) })
	}
	w.to.Close() // nil is fine
	w.shut, w.to, w.kept = true, nil, nil
}
