package server

import (
	"bytes"
	"io"
	"log/slog"
)

// lines are log lines on their way to where nobody may take them, a file on storage that hangs, say. Who logs does not
// wait for that: what is too much is lost.
type lines chan []byte

// maxLines may be on their way.
const maxLines = 256

// newLog returns a log that w gets.
func newLog(w io.Writer) *slog.Logger {
	l := make(lines, maxLines)
	go func() {
		for b := range l {
			_, _ = w.Write(b)
		}
	}()
	return slog.New(slog.NewTextHandler(l, nil))
}

// Write implements io.Writer.
func (l lines) Write(b []byte) (int, error) {
	select {
	case l <- bytes.Clone(b):
	default:
	}
	return len(b), nil
}
