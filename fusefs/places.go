package fusefs

import (
	"sync"
	"sync/atomic"

	"github.com/squirefs/squire/sqfs"
)

// place is where a directory was found: in a directory, at an entry.
type place struct {
	dir sqfs.InodeRef
	pos sqfs.DirPos
}

// places knows where each directory was found first. Nothing in an image keeps a directory from having two names, and
// the kernel does not mind as long as there is no cycle: it moves its one dentry from one to the other (fs/dcache.c:
// d_splice_alias). So 40 directories of two entries each would show 2^40 paths to whoever walks through the mount.
//
// It grows with the directories that were looked at, some 60 bytes for each, up to a limit for all images of the process.
// Beyond that an image that has many forgets those that it has not come by for long, as a server does that ends. Of a
// sound image that changes nothing.
type places struct {
	mu         sync.Mutex
	young, old map[sqfs.InodeRef]place // old: as it was when young had half of what is allowed
}

// maxPlaces is how many directories all images of the process remember together: some 60 MiB. Each may have minPlaces,
// where 40 are enough to find out what is above.
const (
	maxPlaces = 1 << 20
	minPlaces = 1 << 10
)

// placesKept is how many they remember.
var placesKept atomic.Int64

// enter reports whether the directory at ref may be found at p: nowhere else before.
func (s *places) enter(ref sqfs.InodeRef, p place) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	first, seen := s.young[ref]
	if !seen {
		if first, seen = s.old[ref]; !seen {
			first = p
		}
		s.add(ref, first)
	}
	return first == p
}

// add remembers where a directory was found first. s.mu is held.
func (s *places) add(ref sqfs.InodeRef, p place) {
	if len(s.young) >= minPlaces/2 && placesKept.Load() >= maxPlaces {
		s.forget(&s.old)
		s.old, s.young = s.young, nil
	}
	if s.young == nil {
		s.young = map[sqfs.InodeRef]place{}
	}
	s.young[ref] = p
	placesKept.Add(1)
}

// forget empties a part of s. s.mu is held.
func (s *places) forget(part *map[sqfs.InodeRef]place) {
	placesKept.Add(-int64(len(*part)))
	*part = nil
}

// close forgets all, of an image that is served no longer.
func (s *places) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forget(&s.old)
	s.forget(&s.young)
}
