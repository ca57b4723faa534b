package fusefs

import (
	"sync"

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
// It grows with the directories that were looked at, some 60 bytes for each.
type places struct {
	mu    sync.Mutex
	first map[sqfs.InodeRef]place
}

// enter reports whether the directory at ref may be found at p: nowhere else before.
func (s *places) enter(ref sqfs.InodeRef, p place) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	first, seen := s.first[ref]
	if seen {
		return first == p
	}
	if s.first == nil {
		s.first = map[sqfs.InodeRef]place{}
	}
	s.first[ref] = p
	return true
}
