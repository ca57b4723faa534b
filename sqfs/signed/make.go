package signed

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
)

// Hash reads an image of size bytes, on all processors, and returns what there is to be signed and the list of hashes.
func Hash(r io.ReaderAt, size int64) (*Statement, []byte, error) {
	if size <= 0 || size > MaxSize {
		return nil, nil, fmt.Errorf("%d bytes: an image that can be signed has 1 to %d", size, int64(MaxSize))
	}
	s := &Statement{Size: size, Block: blockFor(size)}
	list := make([]byte, s.ListSize())
	err := each(s, func(i int64, buf []byte) error {
		n, err := r.ReadAt(buf, i*s.Block)
		if n < len(buf) {
			if err == nil || errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		sum := sha256.Sum256(buf)
		copy(list[i*sha256.Size:], sum[:])
		return nil
	})
	s.Hashes = sha256.Sum256(list)
	return s, list, err
}

// Check reads all of an image, on all processors. The error is that of a block that is not what was signed, the first that
// was found.
func (r *Reader) Check() error {
	return each(&r.s, func(i int64, buf []byte) error { return r.read(buf, i*r.s.Block) })
}

// each calls do for each block with a buffer of its length, until one call fails.
func each(s *Statement, do func(i int64, buf []byte) error) error {
	blocks := (s.Size + s.Block - 1) / s.Block
	var next atomic.Int64
	var failed atomic.Pointer[error]
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			buf := make([]byte, s.Block)
			for i := next.Add(1) - 1; i < blocks && failed.Load() == nil; i = next.Add(1) - 1 {
				if err := do(i, buf[:min(s.Block, s.Size-i*s.Block)]); err != nil {
					failed.CompareAndSwap(nil, &err)
				}
			}
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		return *err
	}
	return nil
}
