package layer

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"sync"
)

// ahead reads the archives of a stack in order, while the next ones are already read, each
// by its own goroutine, into chunks of memory that they share. Some of the chunks are only
// for the archive whose turn it is, so that it never waits for one that waits for it.
type ahead struct {
	ctx   context.Context
	order []Layer
	size  int // of a chunk
	limit int // chunks in all
	keep  int // of them for the current archive
	group sync.WaitGroup
	stop  func() bool

	mu      sync.Mutex
	cond    sync.Cond // something that a stream waits for may have changed
	current int       // number in order of the archive whose turn it is
	used    int
	spare   [][]byte
	streams []*stream // those that were begun
}

// stream is an archive that is being read. Read and Seek are for whom next gave it to.
type stream struct {
	a     *ahead
	index int
	full  [][]byte // chunks that wait, under a.mu
	ended bool     // nothing comes behind them, under a.mu
	err   error    // why, under a.mu; nil at the end of the archive

	chunk []byte // that is being consumed
	rest  []byte // of it
	pos   int64  // bytes that were consumed

	failed error // what Read failed with, if it was not the end
}

const chunkSize = 256 << 10

// newAhead begins to read the layers in the order given; the caller calls close.
func newAhead(ctx context.Context, order []Layer, memory int64) *ahead {
	a := &ahead{ctx: ctx, order: order, current: -1}
	a.cond.L = &a.mu
	// Little memory is divided into smaller chunks, so that there are still enough of them.
	a.size = int(min(max(memory/64, 4<<10), chunkSize))
	a.limit = int(max(memory/int64(a.size), 8))
	a.keep = max(a.limit/4, 2)
	a.stop = context.AfterFunc(ctx, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.cond.Broadcast()
	})
	return a
}

// close waits until all goroutines have ended. The context must be done, or all streams
// read to their ends.
func (a *ahead) close() {
	a.stop()
	a.group.Wait()
}

// width is how many archives are open at once. More do not expand faster than there are
// processors; but a few are always, as what they wait for may be a network.
func width() int { return min(max(runtime.GOMAXPROCS(0), 4), 8) }

// next gives the next archive of the order.
func (a *ahead) next() *stream {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.current++
	for len(a.streams) < min(len(a.order), a.current+width()) {
		s := &stream{a: a, index: len(a.streams)}
		a.streams = append(a.streams, s)
		a.group.Go(s.run)
	}
	a.cond.Broadcast()
	s := a.streams[a.current]
	a.streams[a.current] = nil
	return s
}

// run reads the archive into chunks until it ends.
func (s *stream) run() {
	err := s.fill()
	s.a.mu.Lock()
	defer s.a.mu.Unlock()
	s.ended, s.err = true, err
	s.a.cond.Broadcast()
}

func (s *stream) fill() error {
	r, err := s.a.order[s.index].Open(s.a.ctx)
	if err != nil {
		return err
	}
	for more := true; more && err == nil; {
		var b []byte
		if b, err = s.take(); err != nil {
			break
		}
		var n int
		n, more, err = fillChunk(r, b)
		s.put(b, n)
	}
	if e := r.Close(); e != nil && err == nil {
		err = fmt.Errorf("close: %w", e)
	}
	return err
}

// fillChunk reads until b is full or nothing more comes. It takes no reader that gives
// neither bytes nor an error again and again; and an error that io.EOF is only a part of
// is no end.
func fillChunk(r io.Reader, b []byte) (n int, more bool, err error) {
	for idle := 0; n < len(b); {
		k, err := r.Read(b[n:])
		if k < 0 || k > len(b)-n {
			return n, false, fmt.Errorf("its reader gave %d bytes for %d", k, len(b)-n)
		}
		n += k
		if err == io.EOF {
			return n, false, nil
		}
		if idle++; k > 0 {
			idle = 0
		} else if err == nil && idle >= 100 {
			err = io.ErrNoProgress
		}
		if err != nil {
			return n, false, err
		}
	}
	return n, true, nil
}

// take waits for a chunk that may be filled.
func (s *stream) take() ([]byte, error) {
	a := s.a
	a.mu.Lock()
	defer a.mu.Unlock()
	for {
		if err := a.ctx.Err(); err != nil {
			return nil, err
		}
		if limit := a.limit; a.used < limit-a.keep || s.index == a.current && a.used < limit {
			break
		}
		a.cond.Wait()
	}
	a.used++
	if n := len(a.spare); n > 0 {
		b := a.spare[n-1]
		a.spare = a.spare[:n-1]
		return b, nil
	}
	return make([]byte, a.size), nil
}

// put hands a chunk of n bytes to the reader, or back.
func (s *stream) put(b []byte, n int) {
	a := s.a
	a.mu.Lock()
	defer a.mu.Unlock()
	if n > 0 {
		s.full = append(s.full, b[:n])
	} else {
		a.used--
		a.spare = append(a.spare, b)
	}
	a.cond.Broadcast()
}

// advance makes the next chunk the one that is consumed; false is the end.
func (s *stream) advance() (bool, error) {
	a := s.a
	a.mu.Lock()
	defer a.mu.Unlock()
	if s.chunk != nil {
		a.used--
		a.spare = append(a.spare, s.chunk[:cap(s.chunk)])
		s.chunk, s.rest = nil, nil
		a.cond.Broadcast()
	}
	for {
		if s.failed = a.ctx.Err(); s.failed != nil {
			return false, s.failed
		}
		if len(s.full) > 0 {
			s.chunk, s.rest = s.full[0], s.full[0]
			s.full = s.full[1:]
			return true, nil
		}
		if s.ended {
			s.failed = s.err
			return false, s.err
		}
		a.cond.Wait()
	}
}

// Read gives the archive's bytes, and at the end the error of the layer's reader.
func (s *stream) Read(p []byte) (int, error) {
	if len(s.rest) == 0 {
		if more, err := s.advance(); err != nil {
			return 0, err
		} else if !more {
			return 0, io.EOF
		}
	}
	n := copy(p, s.rest)
	s.rest = s.rest[n:]
	s.pos += int64(n)
	return n, nil
}

// Seek passes bytes over without copying them, as archive/tar does between files if its
// reader can seek. It only goes on from where it is; behind the end it stays there, which
// archive/tar finds out.
func (s *stream) Seek(offset int64, whence int) (int64, error) {
	if whence != io.SeekCurrent || offset < 0 {
		return 0, fmt.Errorf("seek: %d from %d", offset, whence)
	}
	for offset > 0 {
		if len(s.rest) == 0 {
			if more, err := s.advance(); err != nil {
				return 0, err
			} else if !more {
				break
			}
		}
		n := min(offset, int64(len(s.rest)))
		s.rest = s.rest[n:]
		s.pos += n
		offset -= n
	}
	return s.pos, nil
}

// drain reads to the end, at most so many bytes.
func (s *stream) drain(limit int64) error {
	start := s.pos
	for s.pos-start <= limit {
		s.pos += int64(len(s.rest))
		if more, err := s.advance(); err != nil || !more {
			return err
		}
	}
	return fmt.Errorf("more than %d bytes follow the end of the archive", limit)
}
