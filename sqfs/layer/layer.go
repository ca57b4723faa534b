// Package layer merges stacks of tar archives, as container images have them, into the
// tree and the contents of a squashfs image, without unpacking anything.
package layer

import (
	"context"
	"errors"
	"io"

	"github.com/squirefs/squire/sqfs/pack"
)

// Layer is a tar archive of a stack. Open is called once, and a second time if contents
// are needed after all that were passed over the first time; calls for different layers
// may come from different goroutines.
type Layer interface {
	Name() string                                    // for messages
	Open(ctx context.Context) (io.ReadCloser, error) // the tar archive itself, expanded
}

// Options say how archives are read. The zero value is for layers of container images.
type Options struct {
	Plain      bool                   // one archive as it is: names like .wh.x are nothing special
	Devices    bool                   // keep block and character devices; otherwise they are left out and counted
	AllRoot    bool                   // owner and group of everything are 0
	Time       int64                  // of directories that are only implied, seconds since 1970
	Exclude    func(path string) bool // leaves out a path of the result, such as "usr/share/doc", and all below it
	MaxEntries int64                  // of all archives; 0 is 20 million
	MaxBytes   int64                  // of files in all archives, holes included; 0 is 16 TiB
	Ahead      int64                  // bytes of expanded archives that are held ready, in all; 0 is 256 MiB
}

// Report says what came of a merge.
type Report struct {
	Entries     int64 // in all archives
	Hidden      int64 // files that a layer above hides and that were not packed
	HiddenBytes int64
	Devices     int64 // that were left out
	Excluded    int64
	Reread      int64    // layers that had to be read a second time
	Dropped     []string // at most 100 lines: attributes and entries that were left out, and why
}

// Merge reads the layers, lowest first in the slice, adds the contents of the files that
// the stack shows to w, and returns the root of the tree for w.Finish.
func Merge(ctx context.Context, w *pack.Writer, layers []Layer, o Options) (*pack.Inode, *Report, error) {
	return nil, nil, errors.New("layer: skeleton")
}

// Expand returns the tar archive in r, which may be compressed by gzip or zstd, as its
// first bytes say, or not at all.
func Expand(r io.Reader) (io.ReadCloser, error) { return nil, errors.New("layer: skeleton") }
