package fusefs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestRunning(t *testing.T) {
	for line, want := range map[string]int{
		"0.20 0.18 0.12 1/80 11206\n": 1,
		"0.20 0.18 0.12 137/4000 1\n": 137,
		"":                            1 << 30,
		"0.20 0.18 /80":               1 << 30,
	} {
		if got := running([]byte(line)); got != want {
			t.Errorf("running(%q) = %d, want %d", line, got, want)
		}
	}
}

// loadOf returns a loadMeter of two processors that reads a file in place of /proc/loadavg, and what writes that.
func loadOf(t *testing.T, l *loadMeter) (set func(line string)) {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), "loadavg"))
	if err != nil {
		t.Fatal(err)
	}
	l.once.Do(func() { l.cpus, l.file = 2, file })
	return func(line string) {
		if _, err := file.WriteAt([]byte(line), 0); err != nil {
			t.Fatal(err)
		}
	}
}

// TestLoadMeter: where the processors are taken for long that is asked for more and more seldom, and where it changes it is
// soon known.
func TestLoadMeter(t *testing.T) {
	var l loadMeter
	set := loadOf(t, &l)
	defer l.close()
	set("0.20 0.18 0.12 3/80 11206\n")
	for range lasting - 1 {
		if !l.high() {
			t.Fatal("three threads on two processors are not too many")
		}
	}
	set("0.20 0.18 0.12 2/80 11206\n")
	if l.high() {
		t.Error("what was high for a moment is believed without asking")
	}
	set("0.20 0.18 0.12 3/80 11206\n")
	for range lasting {
		l.high()
	}
	set("0.20 0.18 0.12 2/80 11206\n")
	n := 0
	for l.high() {
		n++
	}
	if n != lasting {
		t.Errorf("what was high for long is believed %d times without asking, want %d", n, lasting)
	}
}

// TestWatchReads: where the processors are taken a request that comes alone costs two reads: one in vain, and its own.
func TestWatchReads(t *testing.T) {
	w, requests := pipeWatch(t)
	w.more = func() {}
	loadOf(t, &w.load)("0.20 0.18 0.12 3/80 11206\n")
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	const n = 400
	go func() {
		defer requests.Close()
		for range n {
			time.Sleep(200 * time.Microsecond)
			_, _ = requests.Write([]byte{1})
		}
	}()
	before := readsOfThread(t)
	for range n {
		if _, err := w.next(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	if reads := readsOfThread(t) - before; reads > n*5/2 {
		t.Errorf("%d reads for %d requests", reads, n)
	}
}

// readsOfThread returns how many system calls that read the calling thread has made.
func readsOfThread(t *testing.T) (n int) {
	t.Helper()
	text, err := os.ReadFile("/proc/thread-self/io")
	if err != nil {
		t.Skip("the kernel does not count reads: ", err)
	}
	_, after, _ := strings.Cut(string(text), "syscr:")
	if _, err := fmt.Sscan(after, &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// pipeWatch returns a watch of a pipe in place of a device, and its other end. Each byte is a request.
func pipeWatch(t *testing.T) (*watch, *os.File) {
	t.Helper()
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	w := new(watch)
	if err := w.open(fds[0]); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		w.release()
		unix.Close(fds[0])
	})
	return w, os.NewFile(uintptr(fds[1]), "requests")
}

// TestWatchGoesOn: while one request takes for ever, and says so, others are answered; all goroutines end with the device.
func TestWatchGoesOn(t *testing.T) {
	w, requests := pipeWatch(t)
	stuck, answered := make(chan struct{}), make(chan byte, 100)
	var done sync.WaitGroup
	var started atomic.Int32
	w.more = func() {
		select {
		case <-w.gone: // the end of a pipe is no error, so that each who meets it would have one more started
			return
		default:
		}
		if !w.enlist(8) {
			return
		}
		started.Add(1)
		done.Go(func() {
			defer w.discharge()
			in := make([]byte, 1)
			for {
				n, err := w.next(in)
				if err != nil || n == 0 {
					if n == 0 && err == nil { // the pipe's way to say that the device is gone
						w.close.Do(func() { close(w.gone) })
					} else if !errors.Is(err, unix.ENODEV) && !errors.Is(err, errSpare) {
						t.Error(err)
					}
					return
				}
				if in[0] == 's' {
					w.relay() // what a Source does
					<-stuck
				}
				answered <- in[0]
			}
		})
	}
	w.more()
	for _, c := range []byte("sasbsc") {
		if _, err := requests.Write([]byte{c}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond) // alone, as a program that waits for the answer
	}
	var got strings.Builder
	for range 3 {
		select {
		case c := <-answered:
			got.WriteByte(c)
		case <-time.After(moment):
			t.Fatalf("answered %q only: somebody has to watch while others are stuck", &got)
		}
	}
	if got.String() != "abc" {
		t.Errorf("answered %q, want abc", &got)
	}
	close(stuck)
	for range 3 {
		<-answered
	}
	requests.Close()
	ended := make(chan struct{})
	go func() { done.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(moment):
		t.Fatal("goroutines go on after the device has gone")
	}
	if n := started.Load(); n > 8 {
		t.Errorf("%d goroutines, more than allowed", n)
	}
}

// TestWatchHalts: nothing is taken after halt, and who sleeps at the device wakes.
func TestWatchHalts(t *testing.T) {
	w, requests := pipeWatch(t)
	defer requests.Close()
	w.more = func() {}
	asleep := make(chan error)
	go func() {
		_, err := w.next(make([]byte, 1))
		asleep <- err
	}()
	for !w.watching.Load() {
		time.Sleep(time.Millisecond)
	}
	w.halt()
	select {
	case err := <-asleep:
		if !errors.Is(err, errStopped) {
			t.Error(err)
		}
	case <-time.After(moment):
		t.Fatal("still waits for a request")
	}
	if _, err := requests.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.next(make([]byte, 1)); !errors.Is(err, errStopped) {
		t.Errorf("took a request: %v", err)
	}
	if _, err := unix.Read(w.fd, make([]byte, 1)); err != nil {
		t.Errorf("the request is gone: %v", err)
	}
}

// TestWatchEnds: whoever wants one more goroutine while the last ends gets it in time, or not at all.
func TestWatchEnds(t *testing.T) {
	for range 1000 {
		w := new(watch)
		w.init(-1, -1)
		enlist := func() {
			if w.enlist(4) {
				go w.discharge()
			}
		}
		var others sync.WaitGroup
		for range 2 {
			others.Go(func() {
				for range 10 {
					enlist()
				}
			})
		}
		w.discharge()
		<-w.ended
		if others.Wait(); w.enlist(4) || w.enlisted.Load() != 0 {
			t.Fatal("one more was enlisted after the end")
		}
	}
}
