// Package layer merges stacks of tar archives, as container images have them, into the
// tree and the contents of a squashfs image, without unpacking anything.
//
// The layers are read once, from the top down, so that contents which a layer above hides
// are never packed, while the next layers are already being expanded. Of every entry only
// the header is kept. When all have been read, the headers are applied from the bottom up,
// as an unpacker would apply them to a directory. Which contents are hidden is only
// guessed on the way down; if the tree shows a file after all that was passed over, its
// layer is read a second time.
//
// # What a stack means
//
// The rules are those of the OCI image specification, layer.md. Where it is silent they
// are containerd's (pkg/archive/tar.go), but for what is said to differ here.
//
//   - Names are cleaned as text, inside the root: "/x", "./x", "../x" and "a/../x" are x.
//     Names are bytes. Components of more than 255 bytes, paths of more than 64 KiB or
//     4095 components are errors.
//   - Symlinks in the parents of a name are followed as the kernel would inside the root,
//     never out of it; at most 255. A dangling one makes the directory that it points to.
//     A parent that is anything else than a directory is an error. The last component is
//     never followed: a directory replaces a symlink to a directory.
//   - Parents that are missing are made: mode 0755, owner 0, Options.Time. Parents that
//     exist stay as they are.
//   - A directory over a directory merges: it brings all its metadata and keeps the
//     children. Its attributes replace those below, as in an overlay (containerd adds
//     them). Everything else replaces what had its name, with all that was below.
//   - An entry for the root gives the root its metadata (containerd leaves it out). It must
//     be a directory.
//   - ".wh.NAME" hides NAME of lower layers, ".wh..wh..opq" all that lower layers have in
//     its directory, wherever among the entries of their layer they stand: the layer's own
//     files stay. (containerd removes those that came before a whiteout.) Directories of
//     lower layers that only hold such files lose their metadata. A whiteout that hides
//     nothing makes no parents. Others of ".wh..wh." are left out. ".wh.", ".wh.." and
//     ".wh..." are errors.
//   - A hard link refers to what its target is at that point: in its own layer so far, and
//     all below. It is an error if that is missing, a directory, or itself. A link to a
//     symlink is another name of the symlink. The link's header changes mode, owner and
//     time of the file, as in containerd and Docker, but not if Options.Plain.
//   - Global PAX headers are ignored, labels of GNU archives left out, unknown types are
//     errors. Sparse files of all GNU formats are files.
//   - Devices replace what they replace and are then left out, unless Options.Devices.
//   - Owners that Linux cannot have are errors; times that squashfs cannot are clamped.
//   - Attributes: user.*, and security.* but for security.selinux, stay. What overlays and
//     fuse-overlayfs keep for themselves goes, and so do trusted.*, system.* (ACLs) and all
//     others. With Options.Plain, trusted.*, user.* and security.* stay.
package layer

import (
	"context"
	"io"

	"github.com/squirefs/squire/sqfs/pack"
)

// Layer is a tar archive of a stack. Open is called once, and a second time if contents
// are needed after all that were passed over the first time; calls for different layers
// may come from different goroutines. What Open returns is read to its end, unless
// something fails, and closed by the goroutine that read it. Its Read must return soon
// after ctx is done: Merge waits for it.
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
	MaxMemory  int64                  // bytes that headers, names and attributes may take, about; 0 is 512 MiB
	Ahead      int64                  // bytes of expanded archives that are held ready, in all; 0 is 256 MiB
}

// Report says what came of a merge.
type Report struct {
	Entries     int64 // in all archives
	Hidden      int64 // files that a layer above hides and that were not packed
	HiddenBytes int64
	Devices     int64    // that were left out
	Excluded    int64    // names, and those below them
	Reread      int64    // layers that had to be read a second time
	Dropped     []string // at most 100 lines: attributes and entries that were left out, and why
}

const (
	defaultEntries = 20_000_000
	defaultBytes   = 16 << 40
	defaultMemory  = 512 << 20
	defaultAhead   = 256 << 20

	maxLayers = 10_000 // Docker's storage takes 127; numbers of layers are 16 bits wide here
)

// Merge reads the layers, lowest first in the slice, adds the contents of the files that
// the stack shows to w, and returns the root of the tree for w.Finish. What w is given,
// and in which order, depends on the archives and the options only.
//
// Errors name the layer and the entry. When Merge returns, everything that it opened is
// closed and no goroutine is left.
func Merge(ctx context.Context, w *pack.Writer, layers []Layer, o Options) (*pack.Inode, *Report, error) {
	return merge(ctx, w, layers, o)
}

// contents is what a merge needs of a pack.Writer.
type contents interface {
	Add(r io.Reader) (*pack.Data, error)
}
