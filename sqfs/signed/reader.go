package signed

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"sync"
)

// ErrAltered is that bytes of an image are not those that were signed.
var ErrAltered = errors.New("not what was signed")

// Reader reads an image and checks what it reads. It is an io.ReaderAt, safe for concurrent use, that returns no byte of a
// block whose hash is another.
type Reader struct {
	r    io.ReaderAt
	s    Statement
	list []byte

	mu     sync.Mutex
	recent [recentBlocks]recentBlock // of blocks that were asked for in part; the oldest is replaced
	next   int
}

// recentBlocks is how many blocks are kept for those who read on: metadata is read in pieces of some KiB.
const recentBlocks = 8

type recentBlock struct {
	at   int64 // offset in the image
	data []byte
}

// NewReader reads r, a file of size bytes, and checks it by a list. It is an error if the list is not that of s, or the
// size another.
func NewReader(r io.ReaderAt, size int64, s *Statement, list []byte) (*Reader, error) {
	if size != s.Size {
		return nil, fmt.Errorf("its file has %d bytes, %d were signed: %w", size, s.Size, ErrAltered)
	}
	if int64(len(list)) != s.ListSize() || sha256.Sum256(list) != s.Hashes {
		return nil, fmt.Errorf("its list of hashes is %w", ErrAltered)
	}
	return &Reader{r: r, s: *s, list: list}, nil
}

// Open is NewReader for a statement in text, and a file that has the list from its beginning.
func Open(r io.ReaderAt, size int64, statement string, list io.ReaderAt) (*Reader, error) {
	s, err := ParseStatement(statement)
	if err != nil {
		return nil, err
	}
	b := make([]byte, s.ListSize())
	if n, err := list.ReadAt(b, 0); n < len(b) {
		return nil, fmt.Errorf("read its list of hashes: %w", err)
	}
	return NewReader(r, size, s, b)
}

// ReadAt implements io.ReaderAt. Blocks that are asked for in part are read whole.
func (r *Reader) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("negative offset")
	}
	n := int(min(int64(len(p)), max(r.s.Size-off, 0)))
	for done := 0; done < n; {
		step, err := r.some(p[done:n], off+int64(done))
		if err != nil {
			return 0, err
		}
		done += step
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// some reads the whole blocks at the beginning of p, or a part of one block.
func (r *Reader) some(p []byte, off int64) (int, error) {
	at := off &^ (r.s.Block - 1)
	whole := int64(len(p))
	if off+whole < r.s.Size {
		whole &^= r.s.Block - 1
	}
	if at == off && whole > 0 {
		return int(whole), r.read(p[:whole], at)
	}
	block, err := r.block(at)
	if err != nil {
		return 0, err
	}
	return copy(p, block[off-at:]), nil
}

// read fills p, which is of whole blocks, and checks them.
func (r *Reader) read(p []byte, at int64) error {
	if n, err := r.r.ReadAt(p, at); n < len(p) {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	for len(p) > 0 {
		n := min(int64(len(p)), r.s.Block)
		sum := sha256.Sum256(p[:n])
		if i := at / r.s.Block * sha256.Size; !bytes.Equal(sum[:], r.list[i:i+sha256.Size]) {
			return fmt.Errorf("bytes %d to %d of the image are %w", at, at+n, ErrAltered)
		}
		p, at = p[n:], at+n
	}
	return nil
}

// block returns the block at an offset, which nobody must change.
func (r *Reader) block(at int64) ([]byte, error) {
	r.mu.Lock()
	for i := range r.recent {
		if b := &r.recent[i]; b.data != nil && b.at == at {
			r.mu.Unlock()
			return b.data, nil
		}
	}
	r.mu.Unlock()
	data := make([]byte, min(r.s.Block, r.s.Size-at))
	if err := r.read(data, at); err != nil {
		return nil, err
	}
	r.mu.Lock()
	r.recent[r.next] = recentBlock{at, data}
	r.next = (r.next + 1) % recentBlocks
	r.mu.Unlock()
	return data, nil
}
