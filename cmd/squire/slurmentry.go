package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// entrypointLog has what an entrypoint says, which is told at its end: to nobody, to the user who asks for it, or in part
// with the error.
type entrypointLog struct{ *os.File }

// maxEntrypointLog is how many bytes of it are told at most: the last ones.
const maxEntrypointLog = 1 << 20

// newEntrypointLog makes an empty log, in memory.
func newEntrypointLog() (entrypointLog, error) {
	fd, err := unix.MemfdCreate("entrypoint", unix.MFD_CLOEXEC)
	if err != nil {
		return entrypointLog{}, fmt.Errorf("make a log of the entrypoint: %w", err)
	}
	return entrypointLog{os.NewFile(uintptr(fd), "entrypoint")}, nil
}

// text is what was said.
func (l entrypointLog) text() []byte {
	var begin int64
	if fi, err := l.Stat(); err == nil {
		begin = max(0, fi.Size()-maxEntrypointLog)
	}
	text, _ := io.ReadAll(io.NewSectionReader(l, begin, maxEntrypointLog)) // what can be read
	return text
}

// tell writes all of it to w, as it was said.
func (l entrypointLog) tell(w io.Writer) {
	text := l.text()
	if len(text) > 0 && text[len(text)-1] != '\n' {
		text = append(text, '\n')
	}
	_, _ = w.Write(text)
}

// explain adds the last line to the error that the entrypoint ended with.
func (l entrypointLog) explain(err error) error {
	lines := bytes.Split(bytes.TrimSpace(l.text()), []byte("\n"))
	last := strings.ToValidUTF8(string(bytes.TrimSpace(lines[len(lines)-1])), "?")
	if err == nil || last == "" {
		return err
	}
	return fmt.Errorf("%w; it has said: %.500s", err, last)
}
