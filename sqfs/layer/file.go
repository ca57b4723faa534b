package layer

import (
	"archive/tar"
	"context"
	"io"
	"strings"
)

// file reads the contents of an entry; a context ends it even where there is nothing to
// wait for, as in a hole of terabytes.
type file struct {
	ctx context.Context
	r   io.Reader
}

func (f *file) Read(p []byte) (int, error) {
	if err := f.ctx.Err(); err != nil {
		return 0, err
	}
	return f.r.Read(p)
}

// isSparse tells whether archive/tar fills holes in the contents of an entry.
func isSparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// sparse is a file that tells where it has holes, a pack.HoleReader. archive/tar does not
// say where they are; but what it gives without reading anything from the archive is
// zeros, and it makes those much faster than anybody compares them.
type sparse struct {
	file
	s       *stream
	scratch []byte
	ahead   []byte // of it: what was read and not given yet
	err     error  // comes behind that; nil is more
	end     bool   // err is the end of the file
}

const sparseChunk = 256 << 10

// Hole passes over holes until data come.
func (f *sparse) Hole() (n int64, err error) {
	if f.scratch == nil {
		f.scratch = make([]byte, sparseChunk)
	}
	for len(f.ahead) == 0 && f.err == nil {
		if err := f.ctx.Err(); err != nil {
			return 0, err
		}
		at := f.s.pos
		k, err := f.r.Read(f.scratch)
		f.err, f.end = err, err == io.EOF
		if f.s.pos == at {
			n += int64(k)
			continue
		}
		f.ahead = f.scratch[:k]
	}
	if f.err != nil && !f.end && len(f.ahead) == 0 {
		return 0, f.err
	}
	return n, nil
}

// Read gives data, with the zeros of small holes.
func (f *sparse) Read(p []byte) (int, error) {
	if len(f.ahead) == 0 {
		if f.err != nil {
			return 0, f.err
		}
		return f.file.Read(p)
	}
	n := copy(p, f.ahead)
	f.ahead = f.ahead[n:]
	return n, nil
}
