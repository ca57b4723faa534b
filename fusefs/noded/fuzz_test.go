package noded

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/internal/wire"
)

// FuzzProtocol has a client say anything, with descriptors of any kind: the service survives it, serves others as before,
// and keeps nothing.
//
// The first byte is the client's user. Then come messages: a byte that says how many descriptors come along, a byte for
// each, which says of what kind, a byte for the length, and as many bytes.
func FuzzProtocol(f *testing.F) {
	k, odd := fuzzedKeeper(f)
	message := func(m wire.Message, kinds ...byte) []byte {
		b := wire.Encode(m)
		return append(append(append([]byte{byte(len(kinds))}, kinds...), byte(len(b))), b...)
	}
	greeting := message(&Hello{Magic: helloMagic, Version: Version, Program: "x"})
	session := func(user byte, messages ...[]byte) (all []byte) {
		all = append([]byte{user}, greeting...)
		for _, m := range messages {
			all = append(all, m...)
		}
		return all
	}
	squash := View{Squash: true}
	f.Add([]byte{0})
	f.Add([]byte{1, 0, 0, 0, 0})
	f.Add(append([]byte{0}, message(&Hello{Magic: "x", Version: 99})...))
	f.Add(session(1, message(&Request{Do: VerbMount, View: squash}, 0)))
	f.Add(session(0, message(&Request{Do: VerbMount, NoGrant: true}, 0), message(&Request{Do: VerbReport})))
	f.Add(session(1, message(&Request{Do: VerbMount, View: squash, Traces: 2, Record: 2}, 0, 0, 9)))
	f.Add(session(1, message(&Request{Do: VerbMount, View: View{Private: true}}, 0), message(&Request{Do: VerbAttach, ID: 1}, 1),
		message(&Request{Do: VerbDetach, Base: "m1"}, 1)))
	for kind := range odd {
		f.Add(session(1, message(&Request{Do: VerbMount, View: squash}, byte(kind))))
		f.Add(session(0, message(&Request{Do: VerbMount}, byte(kind))))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) == 0 || len(b) > 4096 {
			return
		}
		talk(t, k, odd, uint32(b[0]%3)*1000, b[1:])
		k.mu.Lock()
		defer k.mu.Unlock()
		for _, img := range k.images {
			if len(img.refs) > 0 {
				t.Errorf("image %d keeps %d references", img.id, len(img.refs))
			}
		}
	})
}

// talk says what b has, and reads the answers, as a client of its own; then another client is served.
func talk(t *testing.T, k *keeper, odd []*os.File, user uint32, b []byte) {
	conn, err := k.connection(user)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(limit))
	var reading sync.WaitGroup
	reading.Go(func() {
		for buf, oob := make([]byte, wire.MaxSize), make([]byte, 1024); ; {
			n, oobn, _, _, failed := conn.ReadMsgUnix(buf, oob)
			closeRights(oob[:max(oobn, 0)])
			if errors.Is(failed, os.ErrDeadlineExceeded) {
				t.Error("the service does not answer")
			}
			if failed != nil || n == 0 {
				return
			}
		}
	})
	for len(b) > 0 {
		n := int(b[0]) % (wire.MaxFiles + 1)
		b = b[1:]
		var files []*os.File
		for ; n > 0 && len(b) > 0; n-- {
			files = append(files, odd[int(b[0])%len(odd)])
			b = b[1:]
		}
		if len(b) == 0 {
			break
		}
		size := min(int(b[0]), len(b)-1)
		var fds []int
		for _, f := range files {
			fds = append(fds, int(f.Fd()))
		}
		if _, _, err = conn.WriteMsgUnix(b[1:1+size], unix.UnixRights(fds...), nil); err != nil {
			break
		}
		b = b[1+size:]
	}
	_ = conn.CloseWrite()
	reading.Wait()
	good, err := Dial(k.cfg.Socket)
	if err != nil {
		t.Fatal(err)
	}
	if _, err = good.Mount(Request{NoGrant: true}, odd[0]); err != nil {
		t.Error(err)
	}
	good.Close()
	for end := time.Now().Add(limit); ; time.Sleep(50 * time.Microsecond) {
		k.mu.Lock()
		left := len(k.clients)
		k.mu.Unlock()
		if left == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatal("the service keeps a client that is gone")
		}
	}
}

// fuzzedKeeper runs a keeper with fakes, and returns descriptors of many kinds, of which the first is an image.
func fuzzedKeeper(f *testing.F) (*keeper, []*os.File) {
	dir := f.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		f.Fatal(err)
	}
	image, fifo := filepath.Join(dir, "image"), filepath.Join(dir, "fifo")
	if err := errors.Join(os.WriteFile(image, []byte("image"), 0o600), unix.Mkfifo(fifo, 0o600)); err != nil {
		f.Fatal(err)
	}
	var odd []*os.File
	add := func(fd int, err error) {
		if err == nil {
			odd = append(odd, os.NewFile(uintptr(fd), "odd"))
		}
	}
	for path, flags := range map[string]int{
		dir: unix.O_RDONLY, fifo: unix.O_RDWR | unix.O_NONBLOCK, "/dev/zero": unix.O_RDONLY, "/dev/fuse": unix.O_RDWR,
		"/proc/self/mountinfo": unix.O_RDONLY, "/proc/self/mem": unix.O_RDONLY,
	} {
		add(unix.Open(path, flags|unix.O_CLOEXEC, 0))
	}
	for _, flags := range []int{unix.O_PATH, unix.O_WRONLY, unix.O_RDWR} {
		add(unix.Open(image, flags|unix.O_CLOEXEC, 0))
	}
	add(unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0))
	add(unix.Eventfd(0, unix.EFD_CLOEXEC))
	add(unix.EpollCreate1(unix.EPOLL_CLOEXEC))
	add(unix.MemfdCreate("odd", unix.MFD_CLOEXEC))
	add(unix.PidfdOpen(os.Getpid(), 0))
	good, err := os.Open(image)
	if err != nil {
		f.Fatal(err)
	}
	odd = append([]*os.File{good}, odd...)

	ctx, cancel := context.WithCancel(context.Background())
	k := newKeeper(ctx, Config{Socket: filepath.Join(dir, "s"), Idle: time.Hour, Log: slog.New(slog.DiscardHandler)},
		newWorld(nil).parts())
	k.noIDMap.Store(false)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = k.run(cancel)
	}()
	f.Cleanup(func() {
		cancel()
		<-done
		closeAll(odd)
	})
	for end := time.Now().Add(limit); ; time.Sleep(time.Millisecond) {
		c, err := Dial(k.cfg.Socket)
		if err == nil {
			c.Close()
			return k, odd
		}
		if time.Now().After(end) {
			f.Fatal(err)
		}
	}
}
