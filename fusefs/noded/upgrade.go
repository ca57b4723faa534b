package noded

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Names of descriptors that are passed on, beside those of images.
const (
	nameRecords = "records"
	nameListen  = "listen"
	nameLock    = "lock"
	nameMetrics = "metrics"
)

// gate holds up the loops that start processes.
type gate struct {
	mu   sync.Mutex
	open chan struct{} // closed while it is open
}

func newGate() *gate {
	g := &gate{open: make(chan struct{})}
	close(g.open)
	return g
}

func (g *gate) set(open bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if gone(g.open) == open {
		return
	}
	if open {
		close(g.open)
		return
	}
	g.open = make(chan struct{})
}

func (g *gate) closed() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return !gone(g.open)
}

// pass waits until the gate is open.
func (g *gate) pass(ctx context.Context) error {
	g.mu.Lock()
	open := g.open
	g.mu.Unlock()
	select {
	case <-open:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// upgrade replaces this program by the one that is installed now, which goes on with the same descriptors and as the same
// process. It returns only if that fails; then all goes on as before. It runs on the main thread, where nothing is forked
// meanwhile.
func (k *keeper) upgrade(l *listener) error {
	k.notify(fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", monotonic()))
	k.log.Info("replacing the program", "by", k.executable)
	err := k.quiesce(l)
	if err == nil {
		err = k.exec(l)
	}
	k.mu.Lock()
	k.paused = false
	k.mu.Unlock()
	k.starting.set(true)
	k.notify("READY=1\nSTATUS=serving; the program could not be replaced")
	return err
}

// quiesce ends requests and processes. What readers ask for meanwhile, the next server answers.
//
// Requests must have ended: exec waits for all threads of the process, and one that closes a file of a user's FUSE server
// may never end.
func (k *keeper) quiesce(l *listener) error {
	k.starting.set(false)
	_ = l.SetDeadline(time.Unix(1, 0))
	k.mu.Lock()
	k.paused = true
	k.less.Broadcast()
	for c := range k.clients {
		if c.reporter { // its process, which ends with it
			c.conn.Close()
		}
	}
	k.mu.Unlock()
	done := make(chan struct{})
	go func() {
		k.running.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(quiesceTimeout):
		return fmt.Errorf("requests have not ended after %s: those of %q", quiesceTimeout, k.busyClients())
	}
	k.count(0, countTimeout)
	if srv := k.server.peek(); srv != nil {
		srv.Stop()
		if !pause(k.ctx, 3*time.Second, srv.Done()) {
			<-srv.Done()
		} else {
			srv.Kill()
			<-srv.Done()
		}
	}
	if m := k.mounter.peek(); m != nil {
		m.Close()
		<-m.Done()
	}
	k.reporting.Wait()
	k.heir.dismiss()
	k.inheriting.Wait()
	return k.ctx.Err()
}

const quiesceTimeout = 10 * time.Second

// busyClients names those whose requests run.
func (k *keeper) busyClients() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var who []string
	for c := range k.clients {
		if c.busy {
			who = append(who, fmt.Sprintf("user %d (pid %d)", c.user.UID, c.peer.Pid))
		}
	}
	return strings.Join(who, ", ")
}

func (k *keeper) exec(l *listener) error {
	k.saveRecords()
	var list []string
	var fds []int
	for _, p := range k.possessions(l) {
		_ = withFD(p.file, func(fd int) error {
			fds = append(fds, fd)
			list = append(list, p.name+"="+strconv.Itoa(fd))
			return nil
		})
	}
	if err := closeOnExec(fds, false); err != nil {
		return err
	}
	// Until the new program heeds it, SIGHUP would end it; that is ignored outlives exec. What comes meanwhile asks for
	// what is being done.
	signal.Ignore(unix.SIGHUP)
	err := k.execve(k.executable, os.Args, append(os.Environ(), envInherit+"="+strings.Join(list, ",")))
	signal.Notify(k.signals, unix.SIGHUP)
	return fmt.Errorf("execute %s: %w", k.executable, errors.Join(err, closeOnExec(fds, true)))
}

func closeOnExec(fds []int, on bool) (err error) {
	flag := 0
	if on {
		flag = unix.FD_CLOEXEC
	}
	for _, fd := range fds {
		if _, e := unix.FcntlInt(uintptr(fd), unix.F_SETFD, flag); e != nil && err == nil {
			err = e
		}
	}
	return err
}

// monotonic is the time of CLOCK_MONOTONIC in µs, which systemd compares with its own.
func monotonic() int64 {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &t) != nil {
		return 0
	}
	return t.Nano() / 1000
}

// installed is where this program was executed from, which by now may have another one.
func installed() (string, error) {
	path, err := os.Executable()
	return strings.TrimSuffix(path, " (deleted)"), err
}
