// Package record keeps between mounts of an image what its readers touched first, in files of package trace.
package record

import (
	"os"
	"time"

	"github.com/squirefs/squire/fusefs"
	"github.com/squirefs/squire/sqfs"
	"github.com/squirefs/squire/sqfs/trace"
)

// When a recording ends, if its mount does not end before, and what is kept of it. A start is over when nothing has been
// read for a while; what is read after that, or for longer, is work. A command that reads less than minTouches blocks
// gains nothing by a trace: of a Debian system with blocks of 128 KiB "ls -l" reads 31, Python 76, with numpy 335.
const (
	quiet      = 10 * time.Second
	longest    = 2 * time.Minute
	minTouches = 64
)

// Recorder writes which blocks were read first into a file: when the mount is gone, or before, when the start is over,
// so that a server that is killed has not lost it.
//
// A trace that is there grows when it had no more than half of what was read: else the first command that somebody ran
// in an image would decide for all others. Each time it is by minTouches or more, until there are trace.MaxTouches.
type Recorder struct {
	file    *os.File
	image   sqfs.Superblock
	known   []fusefs.Touch // the trace that is there
	whole   bool
	reads   func() uint64 // requests so far
	touched func() []fusefs.Touch
}

// New returns a Recorder of what is read through fs, which was made with Options.Record, into a file that it closes. known
// is the trace that Find found. whole: it ends with the mount, however little is read.
func New(fs *fusefs.FS, sb sqfs.Superblock, known []fusefs.Touch, into *os.File, whole bool) *Recorder {
	r := &Recorder{file: into, image: sb, known: known, whole: whole, touched: fs.Touched}
	r.reads = func() uint64 { return fs.Stats().Read }
	return r
}

// Start begins a recording. The function that it returns ends it, if it has not ended yet, and returns how many touches
// were written. A nil Recorder writes none.
func (r *Recorder) Start() (stop func() int) {
	if r == nil {
		return func() int { return 0 }
	}
	gone, written := make(chan struct{}), make(chan int, 1)
	go func() {
		r.wait(gone)
		written <- r.write()
	}()
	return func() int {
		close(gone)
		return <-written
	}
}

// wait returns when the start is over, or the mount gone.
func (r *Recorder) wait(gone <-chan struct{}) {
	if r.whole {
		<-gone
		return
	}
	tick := time.NewTicker(quiet / 4)
	defer tick.Stop()
	var reads uint64
	var began, last time.Time // of the reading
	for {
		select {
		case <-gone:
			return
		case now := <-tick.C:
			if n := r.reads(); n != reads {
				reads, last = n, now
				if began.IsZero() {
					began = now
				}
			}
			if reads > 0 && (now.Sub(last) >= quiet || now.Sub(began) >= longest) {
				return
			}
		}
	}
}

// write writes the trace, if it is worth it, and lets go of the file.
func (r *Recorder) write() int {
	defer r.file.Close()
	all, seen := make([]trace.Touch, 0, len(r.known)), make(map[fusefs.Touch]bool)
	add := func(touches []fusefs.Touch) (fresh int) {
		for _, touch := range touches {
			if !seen[touch] {
				seen[touch] = true
				all = append(all, trace.Touch(touch))
				fresh++
			}
		}
		return fresh
	}
	known, touched := add(r.known), r.touched()
	least := max(minTouches, (len(touched)+1)/2)
	if r.whole {
		least = 1
	}
	if add(touched) < least || known == trace.MaxTouches {
		return 0
	}
	t := trace.Trace{Image: r.image, Touches: all[:min(len(all), trace.MaxTouches)]}
	if t.Write(r.file) != nil {
		return 0 // a full disk, say: what is there is no trace, and the next mount tries again
	}
	return len(t.Touches)
}

// Find returns what the first of the files that has a trace of the image says, and the file into which one is to be
// recorded: files[into], if there is that, unless a trace was found before it, which would count the next time, too. One
// found behind it, root's, grows into the user's own. All others are closed. A trace that is damaged, or of something
// else, is as good as none: whoever wants to know has "squire trace".
func Find(files []*os.File, into int, sb *sqfs.Superblock) (touches []fusefs.Touch, record *os.File) {
	if into < 0 || into >= len(files) {
		into = -1
	}
	for i, f := range files {
		t, err := trace.Read(f)
		if err != nil || t.Image != *sb || len(t.Touches) == 0 {
			continue
		}
		for _, touch := range t.Touches {
			touches = append(touches, fusefs.Touch(touch))
		}
		if i < into {
			into = -1
		}
		break
	}
	for i, f := range files {
		if i != into {
			f.Close()
		}
	}
	if into >= 0 {
		record = files[into]
	}
	return touches, record
}
