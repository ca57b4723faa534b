// Package bench measures ways to mount one squashfs image, side by side.
//
// In every round each workload runs on a fresh mount of each peer in turn, with the image file in the page cache: that
// is the cold time; running it again on the same mount is the warm one. Workloads are child processes with a time
// limit. Wall time is taken by the workload itself, CPU time is what the whole machine was busy meanwhile: it is the
// one figure that means the same for a server process, a kernel thread and a reader that decompresses for itself.
//
// What comes out is a Report: all samples, medians with their spread, and how many times as long as the reference each
// peer took.
package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Options say what is measured. Only Image is needed.
type Options struct {
	Image     string        // path of the image
	Squire    string        // the program that mounts as peer "squire"; empty: this one
	Rounds    int           // how often everything is measured; 0: 5
	Limit     time.Duration // for one mount, and for one run of a workload; 0: two minutes
	Peers     []string      // names of those to measure; empty: all that can be used here
	Extra     []Peer        // more peers, always measured
	Workloads []string      // words, see WorkloadNames; a workload whose name has one of them is run; empty: all
	Python    string        // what the image's python3 runs; empty: DefaultPython
	File      string        // path in the image of the file for reads of one file; empty: the largest
	Readers   []int         // numbers of readers that read everything; empty: DefaultReaders
	Dir       string        // where to mount, and to unpack for peer "directory"; empty: the directory for temporary files
	Scaling   bool          // measure curves over the number of readers instead of the table of workloads

	// Note is told what is left out, and why. Progress is told what comes next. Both may be nil.
	Note     func(message string)
	Progress func(Progress)
}

// Progress says how far a comparison is.
type Progress struct {
	Done, Total int    // measurements
	Round       int    // from 1 on; 0 while something is prepared
	What        string // comes next
}

// Defaults of Options.
const (
	DefaultRounds = 5
	DefaultLimit  = 2 * time.Minute
	DefaultPython = "import numpy"
)

// DefaultReaders are the numbers of readers that read everything.
var DefaultReaders = []int{1, 4}

// ErrFailed says that some measurements failed; the report has the reasons.
var ErrFailed = errors.New("measurements failed")

// Run measures. The report is there with an error too, with what was measured until then: when ctx ended, or when
// some measurements failed, which is ErrFailed. Nothing stays mounted. Without a report nothing could be measured.
//
// The process becomes a subreaper (PR_SET_CHILD_SUBREAPER), and has to have no other children meanwhile.
func Run(ctx context.Context, o Options) (*Report, error) {
	b, err := newComparison(ctx, o)
	if err != nil {
		return nil, err
	}
	defer b.close()
	if err = adoptServers(); err != nil {
		return nil, err
	}
	if err = b.prepare(ctx); err != nil {
		return nil, err
	}
	err = b.measure(ctx)
	rep := b.report()
	rep.Interrupted = err != nil
	if n := len(rep.Failures); err == nil && n > 0 {
		err = fmt.Errorf("%d %w", n, ErrFailed)
	}
	return rep, err
}

func newComparison(ctx context.Context, o Options) (*comparison, error) {
	o.setDefaults()
	if err := o.check(); err != nil {
		return nil, err
	}
	b := &comparison{Options: o, samples: make(map[cell][]sample), counts: make(map[row]count)}
	var err error
	if b.Image, err = filepath.Abs(o.Image); err != nil {
		return nil, err
	}
	if b.Squire == "" {
		if b.Squire, err = os.Executable(); err != nil {
			return nil, err
		}
	}
	if b.image, err = lookInto(ctx, b.Image, o.File); err != nil {
		return nil, err
	}
	if b.peers, err = b.findPeers(); err != nil {
		return nil, err
	}
	if b.workloads, err = b.findWorkloads(); err != nil {
		return nil, err
	}
	if b.dir, err = os.MkdirTemp(b.Dir, "squire-bench"); err != nil {
		return nil, err
	}
	return b, nil
}

func (o *Options) setDefaults() {
	if o.Rounds == 0 {
		o.Rounds = DefaultRounds
	}
	if o.Limit == 0 {
		o.Limit = DefaultLimit
	}
	if o.Python == "" {
		o.Python = DefaultPython
	}
	if len(o.Readers) == 0 {
		o.Readers = DefaultReaders
	}
	if o.Note == nil {
		o.Note = func(string) {}
	}
	if o.Progress == nil {
		o.Progress = func(Progress) {}
	}
}

// maxReaders bounds the goroutines of a workload; each may hold a thread.
const maxReaders = 1024

func (o *Options) check() error {
	if o.Rounds < 1 {
		return fmt.Errorf("%d rounds: want at least one", o.Rounds)
	}
	if o.Limit < 0 {
		return fmt.Errorf("limit %v: want more than nothing", o.Limit)
	}
	for _, n := range o.Readers {
		if n < 1 || n > maxReaders {
			return fmt.Errorf("%d readers: want 1 to %d", n, maxReaders)
		}
	}
	return nil
}
