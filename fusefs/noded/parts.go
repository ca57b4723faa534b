package noded

import (
	"context"
	"os"
	"sync"
	"time"

	"github.com/squirefs/squire/fusefs"
	"github.com/squirefs/squire/fusefs/noded/mounter"
	"github.com/squirefs/squire/fusefs/noded/server"
)

// imageServer is what the keeper needs of a server process. *server.Client is one.
type imageServer interface {
	Superblock(user uint32, file *os.File, offset int64) (string, error)
	Open(img server.Image, file, list *os.File, traces []*os.File) (server.Info, error)
	Serve(id uint64, device *os.File, init []byte) (server.Info, error)
	Forget(id uint64)
	Common(id uint64)
	Ended() <-chan uint64
	Ping(timeout time.Duration) error
	Stats() (*server.Stats, error)
	Done() <-chan struct{}
	Stop()
	Kill()
}

// crashed reports whether a server that is gone ended by itself, and not by a SIGKILL.
func crashed(s imageServer) bool {
	c, ok := s.(interface{ Crashed() bool })
	return ok && c.Crashed()
}

// mountMaker is what the keeper needs of a mounter process. *mounter.Client is one.
type mountMaker interface {
	Mount(o mounter.Options) (*mounter.Mounted, error)
	Grant(id uint64, mount *os.File, to mounter.Grantee) (*os.File, error)
	Attach(clone, dir, peer *os.File, user fusefs.Owner) (uint64, error)
	Detach(parent *os.File, base string, ids []uint64, peer *os.File, lazy bool) (uint64, error)
	Attached(ids, numbers []uint64) (liveIDs, liveNumbers []uint64, err error)
	Clear(numbers []uint64) error
	Drop(id uint64)
	Done() <-chan struct{}
	Close()
}

// parts starts the processes.
type parts struct {
	server  func(server.Config) (imageServer, error)
	mounter func(own bool) (mountMaker, error)
	heir    func(socket *os.File) (*os.Process, error) // nil: there is none
}

var processes = parts{
	server: func(c server.Config) (imageServer, error) {
		s, err := server.Start(c)
		if err != nil {
			return nil, err
		}
		return s, nil
	},
	mounter: func(own bool) (mountMaker, error) {
		m, err := mounter.Start(own)
		if err != nil {
			return nil, err
		}
		return m, nil
	},
	heir: startHeir,
}

// process is one of the two kinds.
type process interface {
	comparable
	Done() <-chan struct{}
}

// slot is the place of a process that is started again when it ends.
type slot[P process] struct {
	mu      sync.Mutex
	now     P             // zero: none
	changed chan struct{} // closed when now is set
}

func newSlot[P process]() *slot[P] { return &slot[P]{changed: make(chan struct{})} }

// set puts a process in place; the zero value: there is none.
func (s *slot[P]) set(p P) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var none P
	s.now = p
	if p != none {
		close(s.changed)
		s.changed = make(chan struct{})
	}
}

// peek returns the process that is there, or the zero value.
func (s *slot[P]) peek() P {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}

// get waits until a process is there.
func (s *slot[P]) get(ctx context.Context) (P, error) {
	var none P
	for {
		s.mu.Lock()
		now, changed := s.now, s.changed
		s.mu.Unlock()
		if now != none && !gone(now.Done()) {
			return now, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return none, ctx.Err()
		}
	}
}
