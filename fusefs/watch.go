package fusefs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// watch is the order in which goroutines wait for requests at the device: one watches it, the others are parked.
//
// To wake a thread that sleeps on another processor costs some 30 µs where processors are virtual, several times what a
// request takes, and a program that starts sends thousands of them one after the other. So the one who watches looks at
// the device without sleeping for a while, and nobody else sleeps there, whom the kernel would wake for nothing. A
// request that comes 50 to 200 µs after the last takes 20 to 25 µs then, instead of 60 to 90.
//
// While the watcher answers a request, nobody watches, as most requests take less than to wake somebody. Before
// something that may take long, reading the image above all, relay sends somebody to the device; so it does when
// requests arrive faster than one goroutine answers them.
type watch struct {
	fd   int
	more func() // starts a goroutine that calls next in a loop

	watching atomic.Bool
	enlisted atomic.Int32  // goroutines that call next, one from the beginning; 0 is the end
	parked   atomic.Int32  // of these, those that wait for wake
	spare    int32         // how many may be parked
	wake     chan struct{} // without buffer: a send finds somebody parked, or nobody
	leave    chan struct{} // the same, to one who is to end
	gone     chan struct{} // closed when the device is
	close    sync.Once
	ended    chan struct{} // closed when nobody is enlisted any more

	halted atomic.Bool // nothing is to be taken any more
	alarm  int         // eventfd that wakes who sleeps at the device then

	poll     [2]unix.PollFd // the device and alarm
	patience time.Duration  // how long to look before sleeping; only the watcher touches it and poll
	load     loadMeter
}

// maxPatience is how long the watcher looks at the device before it sleeps, at most. A program that starts pauses about
// that long between requests.
const maxPatience = 500 * time.Microsecond

var (
	// errSpare ends a goroutine of which there are enough.
	errSpare = errors.New("enough goroutines wait for requests")
	// errStopped ends all of them: somebody else serves the mount from now on.
	errStopped = errors.New("stopped")
)

// open makes w the watch of a device. release frees what it has.
func (w *watch) open(fd int) error {
	if err := unix.SetNonblock(fd, true); err != nil {
		return fmt.Errorf("make the device non-blocking: %w", err)
	}
	alarm, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("make an eventfd: %w", err)
	}
	w.init(fd, alarm)
	return nil
}

func (w *watch) init(fd, alarm int) {
	w.fd, w.alarm = fd, alarm
	w.poll[0] = unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}
	w.poll[1] = unix.PollFd{Fd: int32(alarm), Events: unix.POLLIN}
	w.spare = int32(2 * runtime.GOMAXPROCS(0))
	w.wake, w.leave = make(chan struct{}), make(chan struct{})
	w.gone, w.ended = make(chan struct{}), make(chan struct{})
	w.enlisted.Store(1)
}

// release frees what a watch has, once nobody calls its methods any more.
func (w *watch) release() {
	w.load.close()
	_ = unix.Close(w.alarm)
}

// halt has next return errStopped, to those who wait in it too.
func (w *watch) halt() {
	w.halted.Store(true)
	_, _ = unix.Write(w.alarm, []byte{0, 0, 0, 0, 0, 0, 0, 1}) // any number but 0, see eventfd(2)
}

// enlist counts a goroutine that will call next, and reports false if there are limit already, or if all have ended:
// who decodes ahead may want somebody at the device when the mount is gone already. This and ended are instead of a
// WaitGroup, which must not grow again once it is empty.
func (w *watch) enlist(limit int32) bool {
	for {
		n := w.enlisted.Load()
		if n == 0 || n >= limit {
			return false
		}
		if w.enlisted.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (w *watch) discharge() {
	if w.enlisted.Add(-1) == 0 {
		close(w.ended)
	}
}

// next reads the next request. An error ends the caller: the mount is gone, errSpare or errStopped.
func (w *watch) next(in []byte) (int, error) {
	n, err := w.try(in)
	if err == nil {
		w.relay() // requests come faster than they are answered
		return n, nil
	}
	for errors.Is(err, unix.EAGAIN) {
		if w.watching.CompareAndSwap(false, true) {
			n, err = w.wait(in)
			w.watching.Store(false)
			break
		}
		if err = w.park(); err == nil {
			n, err = w.try(in)
		}
	}
	if err != nil && !errors.Is(err, errSpare) {
		w.close.Do(func() { close(w.gone) })
	}
	return n, err
}

// park waits until somebody is needed at the device.
func (w *watch) park() error {
	defer w.parked.Add(-1)
	if w.parked.Add(1) > w.spare {
		return errSpare
	}
	select {
	case <-w.wake:
		return nil
	case <-w.leave:
		return errSpare
	case <-w.gone:
		return unix.ENODEV
	}
}

// rest ends those who are parked, and reports whether there is nobody but the one who watches.
func (w *watch) rest() bool {
	for {
		select {
		case w.leave <- struct{}{}:
		default:
			return w.enlisted.Load() <= 1
		}
	}
}

// relay sees to it that somebody watches the device. It is for those who have read a request and may take long.
func (w *watch) relay() {
	if w.watching.Load() {
		return
	}
	select {
	case w.wake <- struct{}{}:
	default:
		w.more()
	}
}

// wait waits for a request: it looks for as long as that has paid of late, then sleeps. Who calls it has just looked in
// vain: to read the device once more before it sleeps would be a system call for nothing, one of five for each request where
// the processors are taken.
func (w *watch) wait(in []byte) (int, error) {
	start := time.Now()
	for waited := time.Duration(0); waited < w.patience && !w.load.high(); waited = time.Since(start) {
		for range 8 {
			if n, err := w.try(in); !errors.Is(err, unix.EAGAIN) {
				return n, err
			}
		}
	}
	for {
		_, _ = unix.Poll(w.poll[:], -1)
		if n, err := w.try(in); !errors.Is(err, unix.EAGAIN) {
			w.learn(time.Since(start))
			return n, err
		}
	}
}

// learn sets the patience by how long the last request took to come.
func (w *watch) learn(waited time.Duration) {
	if waited < maxPatience {
		w.patience = maxPatience
	} else if w.patience /= 2; w.patience < maxPatience/8 {
		w.patience = 0
	}
}

// try reads a request if there is one.
func (w *watch) try(in []byte) (int, error) {
	for {
		if w.halted.Load() {
			return 0, errStopped
		}
		n, err := unix.Read(w.fd, in)
		switch err {
		case unix.EINTR, // signal
			unix.ENOENT: // the caller was killed before the request got here (fs/fuse/dev.c: fuse_dev_do_read)
		default:
			return n, err
		}
	}
}

// loadMeter tells whether somebody else has use for the processors.
type loadMeter struct {
	once  sync.Once
	file  *os.File // nil if there is none
	cpus  int
	buf   [128]byte
	taken int // how often in a row the processors were
	spare int // how often that is still to be believed without asking
}

// lasting is how often in a row the processors have to be taken for that to be believed as often without asking: to ask costs
// a system call for each request where others work for long. Once they have ended, so many requests find us asleep.
const lasting = 8

// high reports whether more threads of the machine want to run than there are processors for this process.
func (l *loadMeter) high() bool {
	if l.spare > 0 {
		l.spare--
		return true
	}
	if !l.ask() {
		l.taken = 0
		return false
	}
	if l.taken++; l.taken >= lasting {
		l.spare = lasting
	}
	return true
}

// ask is high now. The fourth field of /proc/loadavg begins with the number of threads that want to run
// (fs/proc/loadavg.c: nr_running), which costs 0.4 µs to read.
func (l *loadMeter) ask() bool {
	l.once.Do(func() {
		l.cpus = processors()
		l.file, _ = os.Open("/proc/loadavg")
	})
	if l.file == nil {
		return true
	}
	n, _ := unix.Pread(int(l.file.Fd()), l.buf[:], 0)
	return running(l.buf[:n]) > l.cpus
}

func (l *loadMeter) close() {
	if l.file != nil {
		l.file.Close()
	}
}

// running returns the number in front of the slash in a line of /proc/loadavg; a very large one if there is none.
func running(line []byte) int {
	const none = 1 << 30
	i := bytes.IndexByte(line, '/')
	n, digits := 0, 1
	for i--; i >= 0 && '0' <= line[i] && line[i] <= '9'; i-- {
		n += int(line[i]-'0') * digits
		digits *= 10
	}
	if digits == 1 {
		return none
	}
	return n
}
