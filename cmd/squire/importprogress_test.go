package main

import (
	"bytes"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/sqfs/oci"
	"github.com/squirefs/squire/sqfs/pack"
)

func packedSoFar() pack.Progress { return pack.Progress{Files: 3, In: 3 << 20, Out: 1 << 20} }

// Without a terminal there is a line for each tenth and for each 10 s, none more often
// than every 2 s.
func TestImportProgressPlain(t *testing.T) {
	var out bytes.Buffer
	p := newImportProgress(&out, false)
	p.begin([]string{"a", "b"}, []int64{600, 400}, packedSoFar)
	close(p.stop) // the test tells the time
	p.done.Wait()
	p.stop = make(chan struct{})
	at := func(seconds int, want string) {
		t.Helper()
		out.Reset()
		p.tick(p.start.Add(time.Duration(seconds) * time.Second))
		if got := out.String(); got != want {
			t.Errorf("after %d s: %q, want %q", seconds, got, want)
		}
	}
	p.event(oci.Event{Layer: 1, Bytes: 300, Used: 50, Total: 400})
	at(1, "")
	at(5, "")
	at(10, "squire: 5%: read 300 B of 1000 B, packed 3 MiB into 1 MiB, 307.2 KiB/s, 3m10s left\n")
	p.event(oci.Event{Layer: 1, Bytes: 400, Used: 400, Total: 400, Done: true})
	at(11, "")
	at(20, "squire: 40%: read 400 B of 1000 B, packed 3 MiB into 1 MiB, 153.6 KiB/s, 30s left\n")
	p.event(oci.Event{Layer: 1, Bytes: 400, Used: 100, Total: 400}) // read a second time: no step back
	at(29, "")
	p.event(oci.Event{Layer: 0, Bytes: 600, Used: 600, Total: 600, Done: true})
	at(48, "squire: 100%: read 1000 B of 1000 B, packed 3 MiB into 1 MiB, 64 KiB/s\n")
	out.Reset()
	p.event(oci.Event{Layer: -1, Message: "once\nmore\x1b[2J"})
	p.event(oci.Event{Layer: 7, Bytes: 1})
	if got := out.String(); got != "squire: once?more?[2J\n" {
		t.Errorf("%q", got)
	}
	p.close(nil)
}

// Archives of unknown length, and directories, have no share and no end.
func TestImportProgressUnknown(t *testing.T) {
	for _, read := range []int64{0, 1 << 20} {
		var out bytes.Buffer
		p := newImportProgress(&out, false)
		p.begin([]string{"archive"}, []int64{0}, packedSoFar)
		if read > 0 {
			p.event(oci.Event{Bytes: read, Used: read})
		}
		p.tick(p.start.Add(16 * time.Second))
		p.close(nil)
		want := "squire: packed 3 MiB into 1 MiB, 192 KiB/s\n"
		if read > 0 {
			want = "squire: read 1 MiB, packed 3 MiB into 1 MiB, 192 KiB/s\n"
		}
		if got := out.String(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestImportProgressQuiet(t *testing.T) {
	var out bytes.Buffer
	p := newImportProgress(&out, true)
	p.say("x")
	p.begin([]string{"a"}, []int64{10}, packedSoFar)
	p.event(oci.Event{Bytes: 10, Message: "y", Done: true})
	p.close(nil)
	if out.Len() > 0 {
		t.Errorf("%q", out.String())
	}
}

// terminal is a pseudo-terminal of so many columns, and what was written to it.
type terminal struct {
	slave *os.File
	mu    sync.Mutex
	text  strings.Builder
}

func newTerminal(t *testing.T, columns uint16) *terminal {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip("needs pseudo-terminals: ", err)
	}
	t.Cleanup(func() { master.Close() })
	fd := int(master.Fd())
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: columns})
	}
	if err != nil {
		t.Fatal(err)
	}
	w := &terminal{}
	if w.slave, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.slave.Close() })
	go io.Copy(w, master) // ends with an error when the slave is closed
	return w
}

func (w *terminal) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.Write(b)
}

// wait waits until all of the words were written, in this order.
func (w *terminal) wait(t *testing.T, words ...string) string {
	t.Helper()
	var text string
	for end := time.Now().Add(testBound); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		w.mu.Lock()
		text = w.text.String()
		w.mu.Unlock()
		rest, found := text, true
		for _, word := range words {
			_, after, ok := strings.Cut(rest, word)
			rest, found = after, found && ok
		}
		if found {
			return text
		}
	}
	t.Fatalf("no %q in time in\n%q", words, text)
	return ""
}

// On a terminal each layer under way has a line, and none is longer than the terminal.
func TestImportProgressTerminal(t *testing.T) {
	const columns = 70
	for _, failed := range []error{nil, os.ErrInvalid} {
		w := newTerminal(t, columns)
		p := newImportProgress(w.slave, false)
		p.begin([]string{"layer 1/3 aaaa", "layer 2/3 bbbb", "layer 3/3 cccc"}, []int64{600 << 20, 400, 400}, packedSoFar)
		p.event(oci.Event{Layer: 1, Bytes: 400, Used: 400, Total: 400, Cached: true, Done: true})
		p.event(oci.Event{Layer: 0, Bytes: 300 << 20, Used: 150 << 20, Total: 600 << 20})
		w.wait(t, "layer 2/3 bbbb, cached", "done", "layer 1/3 aaaa", " 50%", "packing 3 MiB into 1 MiB", " 25%")
		p.say("a message")
		w.wait(t, "squire: a message")
		p.event(oci.Event{Layer: 1, Bytes: 100, Total: 400})
		text := w.wait(t, "layer 2/3 bbbb, again", " 25%")
		if strings.Contains(text, "cccc") {
			t.Errorf("a layer that waits has a line: %q", text)
		}
		p.close(failed)
		p.say("at the end")
		end := "done"
		if failed != nil {
			end = "stopped"
		}
		text = w.wait(t, "squire: a message", "packing 3 MiB into 1 MiB", end, "squire: at the end\r\n")
		for line := range strings.Lines(text) {
			line = strings.TrimRight(strings.NewReplacer("\x1b[K", "", "\x1b[1A", "", "\x1b[A", "", "\x1b[2K", "").Replace(line), "\r\n")
			if len(line) > columns {
				t.Errorf("a line of %d characters: %q", len(line), line)
			}
		}
	}
}

// A directory has no layers: the line for packing tells what was read.
func TestImportProgressDirectory(t *testing.T) {
	w := newTerminal(t, 100)
	p := newImportProgress(w.slave, false)
	p.begin(nil, nil, packedSoFar)
	w.wait(t, "packing 3 MiB into 1 MiB", "[3 MiB in ")
	p.close(nil)
}

// However soon the end comes, close returns.
func TestImportProgressShort(t *testing.T) {
	w := newTerminal(t, 80)
	for range 20 {
		p := newImportProgress(w.slave, false)
		p.begin(nil, nil, packedSoFar)
		p.close(nil)
	}
	newImportProgress(w.slave, false).close(nil) // without a beginning
}
