package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// meter is the line on a terminal that says how far something is, and the way past it
// for messages. Without a terminal it only passes on messages.
type meter struct {
	mu   sync.Mutex
	w    io.Writer
	line func() string // nil: no terminal
	has  bool          // the line is there
	stop chan struct{}
	done sync.WaitGroup
}

// meterInterval is how often the line changes.
const meterInterval = 200 * time.Millisecond

// startMeter shows line on w, if that is a terminal and quiet is not set.
func startMeter(w io.Writer, quiet bool, line func() string) *meter {
	m := &meter{w: w, stop: make(chan struct{})}
	if quiet || width(w) == 0 {
		return m
	}
	m.line = line
	m.done.Go(func() {
		tick := time.NewTicker(meterInterval)
		defer tick.Stop()
		for {
			select {
			case <-m.stop:
				return
			case <-tick.C:
				m.draw()
			}
		}
	})
	return m
}

// width returns the columns of a terminal, 0 if w is none.
func width(w io.Writer) int {
	f, ok := w.(*os.File)
	if !ok {
		return 0
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0
	}
	if size.Col == 0 { // serial lines do not know
		return 80
	}
	return int(size.Col)
}

func (m *meter) draw() {
	m.mu.Lock()
	defer m.mu.Unlock()
	line := m.line()
	if n := width(m.w) - 1; len(line) > n {
		line = line[:max(n, 0)]
	}
	fmt.Fprint(m.w, "\r", line, clearLine)
	m.has = true
}

// clearLine clears the rest of a line of any terminal since the VT100.
const clearLine = "\x1b[K"

// say prints a message, which has lines of its own.
func (m *meter) say(message string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.clear()
	fmt.Fprintln(m.w, "squire:", message)
}

// clear takes the line away. The caller holds m.mu.
func (m *meter) clear() {
	if m.has {
		fmt.Fprint(m.w, "\r", clearLine)
		m.has = false
	}
}

// close takes the line away for good.
func (m *meter) close() {
	close(m.stop)
	m.done.Wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.clear()
}

// bar draws a share of something.
func bar(done, total int64) string {
	const columns = 24
	if total <= 0 {
		return strings.Repeat("#", columns)
	}
	n := int(float64(min(done, total)) / float64(total) * columns)
	return strings.Repeat("#", n) + strings.Repeat(".", columns-n)
}
