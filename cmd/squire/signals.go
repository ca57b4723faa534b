package main

import (
	"context"
	"errors"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

// signalError is the cause of a context that a signal ended.
type signalError struct{ signal unix.Signal }

func (e signalError) Error() string { return e.signal.String() }

// untilSignal returns a context that ends with a signal that asks to end. A second one
// then does what it does to other programs.
func untilSignal(parent context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(parent)
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	go func() {
		select {
		case s := <-ch:
			if number, ok := s.(unix.Signal); ok {
				cancel(signalError{number})
			}
		case <-ctx.Done():
		}
		signal.Stop(ch)
	}()
	return ctx, func() { cancel(nil) }
}

// interrupted is the exit status of a command whose context has ended: 128+N for signal
// N, as shells have it.
func interrupted(ctx context.Context) exitError {
	var by signalError
	if !errors.As(context.Cause(ctx), &by) {
		by.signal = unix.SIGINT
	}
	return exitError(128 + int(by.signal))
}
