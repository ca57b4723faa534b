package fusefs

import (
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/sqfs"
)

// Numbers that go-fuse has no names for.
const (
	estale       = unix.ESTALE
	enametoolong = unix.ENAMETOOLONG
)

// eio turns an error about an inode into EIO and reports it.
func (f *FS) eio(op string, ref sqfs.InodeRef, err error) fuse.Status {
	f.counts.errors.Add(1)
	f.report.line("answered EIO", append([]any{"op", op, "inode", ref}, cause(err)...)...)
	return fuse.EIO
}

// eioAt is eio for a place in a file: the number of its block, -1 if it is not known, and the offset in bytes.
func (f *FS) eioAt(op string, ref sqfs.InodeRef, at failure) fuse.Status {
	f.counts.errors.Add(1)
	f.report.line("answered EIO", append([]any{"op", op, "inode", ref, "block", at.block, "offset", at.off}, cause(at.err)...)...)
	return fuse.EIO
}

// cause says what is wrong, and at which byte of the image if that is known.
func cause(err error) []any {
	attrs := []any{"err", err}
	var bad *sqfs.FormatError
	if errors.As(err, &bad) && bad.Off >= 0 {
		attrs = append(attrs, "byte", fmt.Sprintf("%#x", bad.Off))
	}
	return attrs
}

// panicked turns a panic in a handler into EIO. It is a fault of this program, so the stack is reported, but one bad
// request must not take the mount away from everybody.
func (f *FS) panicked(what any) fuse.Status {
	f.counts.errors.Add(1)
	f.report.line("panic while answering, answered EIO", "panic", fmt.Sprint(what), "stack", string(debug.Stack()))
	return fuse.EIO
}

// A reporter logs at a bounded rate: a damaged image that is read in a loop must not fill the disk with log. In each
// period it writes the first lines that differ and counts the rest: who reads a damaged block asks for it again.
type reporter struct {
	log *slog.Logger

	mu      sync.Mutex
	since   time.Time // begin of the period
	lines   []string  // written in it
	dropped int       // not written, since the last line that was
}

const (
	reportPeriod = 10 * time.Second
	reportLines  = 10
)

// line logs, or counts.
func (r *reporter) line(msg string, attrs ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := time.Now(); now.Sub(r.since) > reportPeriod {
		r.since, r.lines = now, nil
	}
	line := fmt.Sprintln(append([]any{msg}, attrs...)...)
	if len(r.lines) >= reportLines || slices.Contains(r.lines, line) {
		r.dropped++
		return
	}
	r.lines = append(r.lines, line)
	if r.dropped > 0 {
		attrs = append(attrs, "dropped", r.dropped)
		r.dropped = 0
	}
	r.log.Error(msg, attrs...)
}
