package mounter

import (
	"github.com/squirefs/squire/fusefs"
	"github.com/squirefs/squire/internal/wire"
)

// setup is the first message to a mounter, which is answered with a reply when it is ready.
type setup struct {
	Own bool
	// NoDetached does without clones of mounts that have no place (Linux 6.15), NoUnique without unique ids of mounts
	// (Linux 6.8), NoPivot without pivot_root(2), which fails on an initramfs: what others have to, for tests.
	NoDetached, NoUnique, NoPivot bool
}

// Fields makes it a wire.Message.
func (s *setup) Fields(c *wire.Coder) {
	c.Bool(&s.Own)
	c.Bool(&s.NoDetached)
	c.Bool(&s.NoUnique)
	c.Bool(&s.NoPivot)
}

// verb is what a request asks for.
type verb int

// The methods of Client, with the descriptors that go along, and come back.
const (
	doMount    verb = iota + 1 // back: device, mount
	doGrant                    // mount; back: clone, and the mount's stand-in if it had to be attached itself
	doAttach                   // clone, directory, pidfd
	doDetach                   // parent, pidfd
	doAttached                 //
	doDrop                     //
	doClear                    //
)

// filesOf is how many descriptors each needs.
var filesOf = map[verb]int{doMount: 0, doGrant: 1, doAttach: 3, doDetach: 2, doAttached: 0, doDrop: 0, doClear: 0}

// maxName is the longest name of a file (NAME_MAX).
const maxName = 255

// request asks a mounter for something. Fields that the verb does not need are zero.
type request struct {
	Seq       uint64
	Do        verb
	Source    string
	Everybody bool
	Owner     fusefs.Owner
	ID        uint64
	Root      bool
	IDMap     bool
	Attrs     int
	Base      string
	Lazy      bool
	IDs       []uint64
	Numbers   []uint64
}

// Fields makes it a wire.Message.
func (r *request) Fields(c *wire.Coder) {
	wire.Int(c, &r.Seq)
	wire.Int(c, &r.Do)
	wire.String(c, &r.Source)
	c.Bool(&r.Everybody)
	wire.Int(c, &r.Owner.UID)
	wire.Int(c, &r.Owner.GID)
	wire.Int(c, &r.ID)
	c.Bool(&r.Root)
	c.Bool(&r.IDMap)
	wire.Int(c, &r.Attrs)
	wire.String(c, &r.Base)
	c.Bool(&r.Lazy)
	wire.Slice(c, &r.IDs, wire.Int[uint64])
	wire.Slice(c, &r.Numbers, wire.Int[uint64])
}

// reply answers the request with the same number.
type reply struct {
	Seq     uint64
	Errno   int    // the kernel's, 0: none
	Error   string // what was attempted; with Errno 0 the whole of what is wrong
	Lost    bool   // ErrLost
	More    bool   // only the descriptors: the answer follows once the mounter has let go of them
	Number  uint64
	IDs     []uint64
	Numbers []uint64
}

// Fields makes it a wire.Message.
func (r *reply) Fields(c *wire.Coder) {
	wire.Int(c, &r.Seq)
	wire.Int(c, &r.Errno)
	wire.String(c, &r.Error)
	c.Bool(&r.Lost)
	c.Bool(&r.More)
	wire.Int(c, &r.Number)
	wire.Slice(c, &r.IDs, wire.Int[uint64])
	wire.Slice(c, &r.Numbers, wire.Int[uint64])
}
