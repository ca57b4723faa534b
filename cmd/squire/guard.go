package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/fusefs"
	"github.com/squirefs/squire/internal/rights"
	"github.com/squirefs/squire/internal/stage"
	"github.com/squirefs/squire/internal/wire"
	"github.com/squirefs/squire/runtime"
)

// The guard is a small process that waits for the end of a server, and sees to
// it that the mount ends with it, see fusefs.Drain. The server sends it a clone
// of the device and a descriptor of itself, with one message of package wire,
// and gets one back; nothing else is ever said. It parses nothing of the image's.

// guardName is argv[0] of the guard stage; its socket is serverSocket.
const guardName = "squire-guard"

// guardCharge goes with the clone of the device and the server's pidfd.
type guardCharge struct{ mark int }

// Fields makes it a wire.Message.
func (g *guardCharge) Fields(c *wire.Coder) { wire.Int(c, &g.mark) }

// guard is the guard stage. It returns the exit status.
func guard() int {
	stage.SetName(guardName)
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM)
	unix.CloseOnExec(serverSocket)
	if err := rights.Confine(); err != nil {
		return runtime.ExitFailed
	}
	conn := os.NewFile(serverSocket, "server")
	files, err := recvMessage(conn, new(guardCharge))
	if err != nil || len(files) != 2 {
		return 0 // there is no mount
	}
	if err = sendMessage(conn, new(guardCharge)); err != nil {
		return 0
	}
	if _, err = recvMessage(conn, new(guardCharge)); !errors.Is(err, io.EOF) {
		return runtime.ExitFailed
	}
	if err = fusefs.Drain(files[0], int(files[1].Fd())); err != nil {
		return runtime.ExitFailed
	}
	return 0
}

// startGuard starts the guard of a server. With it or without, whoever started
// the server needs do no more.
func (s *server) startGuard() error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	defer s.guard.Close()
	if s.guardPID, err = stage.Fork(guardName, null.Fd(), null.Fd(), null.Fd(), s.guard.Fd()); err != nil {
		return fmt.Errorf("start the guard of the image server: %w", err)
	}
	return nil
}

// guarded gives the guard what it needs, and returns another clone of the
// device for what only a server with a guard may do; nil if there is no guard,
// or no way to clone.
func guarded(device, conn *os.File) *os.File {
	self, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return nil
	}
	pidfd := os.NewFile(uintptr(self), "server")
	defer pidfd.Close()
	store, err := fusefs.Clone(device)
	if err != nil {
		return nil
	}
	// One clone for both: what is stored needs no answer.
	if err = sendMessage(conn, new(guardCharge), store, pidfd); err != nil {
		store.Close()
		return nil
	}
	return store
}

// heed lets the server store while it has a guard, which says that it is there.
func heed(guard *os.File, fs *fusefs.FS) {
	fs.AllowStoring(false)
	go func() {
		_, err := recvMessage(guard, new(guardCharge))
		fs.AllowStoring(err == nil)
		if err == nil {
			_, _ = recvMessage(guard, new(guardCharge)) // until it ends
			fs.AllowStoring(false)
		}
	}()
}
