package oci

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"hash"
	"strings"
	"sync"
)

// newHash returns the hash of a digest that was checked.
func newHash(digest string) hash.Hash {
	if strings.HasPrefix(digest, "sha512:") {
		return sha512.New()
	}
	return sha256.New()
}

func hashIs(h hash.Hash, digest string) bool {
	_, want, _ := strings.Cut(digest, ":")
	return hex.EncodeToString(h.Sum(nil)) == want
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// verify checks that b is what the digest says.
func verify(b []byte, digest string) error {
	h := newHash(digest)
	h.Write(b)
	if !hashIs(h, digest) {
		return fmt.Errorf("oci: %d bytes came that are not %s: refused", len(b), digest)
	}
	return nil
}

// sideHash is a hash in a goroutine of its own, beside the one that decompresses: a layer's two
// digests would otherwise be a third of the time that its reader takes.
type sideHash struct {
	hash hash.Hash
	full chan []byte
	free chan []byte
	fill []byte // that is being filled, nil before the first byte
	done chan struct{}
	once sync.Once
}

const (
	sideChunk  = 64 << 10
	sideChunks = 3 // one is filled, one hashed, one waits
)

// newSideHash starts the goroutine, which is or close ends.
func newSideHash(digest string) *sideHash {
	s := &sideHash{hash: newHash(digest), full: make(chan []byte, sideChunks), free: make(chan []byte, sideChunks), done: make(chan struct{})}
	for range sideChunks {
		s.free <- nil
	}
	go func() {
		defer close(s.done)
		for b := range s.full {
			s.hash.Write(b)
			s.free <- b[:0]
		}
	}()
	return s
}

func (s *sideHash) write(p []byte) {
	for len(p) > 0 {
		if s.fill == nil {
			if s.fill = <-s.free; s.fill == nil {
				s.fill = make([]byte, 0, sideChunk)
			}
		}
		n := min(len(p), sideChunk-len(s.fill))
		s.fill = append(s.fill, p[:n]...)
		if p = p[n:]; len(s.fill) == sideChunk {
			s.full <- s.fill
			s.fill = nil
		}
	}
}

// is says whether all that was written has a digest. Nothing can be written any more.
func (s *sideHash) is(digest string) bool {
	s.once.Do(func() {
		if s.fill != nil {
			s.full <- s.fill
		}
		close(s.full)
	})
	<-s.done
	return hashIs(s.hash, digest)
}

// close ends the goroutine if is was not called.
func (s *sideHash) close() { s.once.Do(func() { close(s.full) }) }
