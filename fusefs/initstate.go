package fusefs

import (
	"encoding/json"
	"errors"
	"fmt"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/squirefs/squire/sqfs"
)

// initState is what a server passes on to the next one of the same mount, as JSON. Node ids say all else.
type initState struct {
	Version int
	Request []byte // INIT as the kernel sent it
	Answer  []byte // what it was told
	Image   imageMark
}

// initStateVersion is that of initState. A program refuses what it does not know, so a new field needs none that old
// ones can do without.
const initStateVersion = 1

// maxInitState bounds what is looked at: it is about 600 bytes long.
const maxInitState = 64 << 10

// imageMark tells images apart: in another one node ids would mean other files.
type imageMark struct {
	Inodes, Time uint32
	Bytes        int64
	Root         sqfs.InodeRef
}

func (f *FS) mark() imageMark {
	return imageMark{f.super.Inodes, f.super.MkfsTime, f.super.BytesUsed, f.super.Root}
}

// Lengths that INIT and its answer have at least: up to Linux 5.15, INIT had no second word of flags.
const (
	minInit       = int(unsafe.Offsetof(fuse.InitIn{}.Flags2))
	minInitAnswer = outHeaderSize + int(unsafe.Offsetof(fuse.InitOut{}.MaxBackground))
)

func newInitState(f *FS, request, answer []byte) *initState {
	return &initState{initStateVersion, request, answer, f.mark()}
}

func (s *initState) encode() []byte {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err) // there is nothing in it that JSON cannot say
	}
	return b
}

// decodeInitState checks form and version.
func decodeInitState(b []byte) (*initState, error) {
	if len(b) > maxInitState {
		return nil, fmt.Errorf("its state has %d bytes, more than %d", len(b), maxInitState)
	}
	s := new(initState)
	if err := json.Unmarshal(b, s); err != nil {
		return nil, fmt.Errorf("read its state: %w", err)
	}
	switch {
	case s.Version != initStateVersion:
		return nil, fmt.Errorf("its state is of version %d, this program knows %d", s.Version, initStateVersion)
	case len(s.Request) < minInit || opcode(s.Request) != opInit:
		return nil, errors.New("its state has no INIT")
	case len(s.Answer) < minInitAnswer:
		return nil, errors.New("its state has no answer to INIT")
	}
	return s, nil
}

// check reports whether the state is that of a mount of the same image.
func (s *initState) check(f *FS) error {
	if mark := f.mark(); s.Image != mark {
		return fmt.Errorf("it is one of another image: %+v, not %+v", s.Image, mark)
	}
	return nil
}

// note tells f what was agreed on.
func (s *initState) note(f *FS) {
	f.initFlags.Store(offeredFlags(s.Request))
	f.agreed.Store(agreedFlags(s.Answer))
}

// offeredFlags returns the flags in INIT.
func offeredFlags(in []byte) uint64 {
	var i fuse.InitIn
	copy((*[unsafe.Sizeof(i)]byte)(unsafe.Pointer(&i))[:], in)
	return i.Flags64()
}

// agreedInit returns INIT as if the kernel had offered no more than was agreed on, which a later go-fuse might ask for.
func (s *initState) agreedInit() []byte {
	var i fuse.InitIn
	raw := (*[unsafe.Sizeof(i)]byte)(unsafe.Pointer(&i))[:]
	n := copy(raw, s.Request)
	flags := agreedFlags(s.Answer) | fuse.CAP_INIT_EXT
	i.Flags &= uint32(flags)
	i.Flags2 &= uint32(flags >> 32)
	return raw[:n]
}

// agreedFlags returns the flags in an answer to INIT.
func agreedFlags(out []byte) uint64 {
	var o fuse.InitOut
	copy((*[unsafe.Sizeof(o)]byte)(unsafe.Pointer(&o))[:], out[outHeaderSize:])
	return o.Flags64()
}

// opcode returns the type of a request, which has a whole header.
func opcode(in []byte) uint32 { return (*fuse.InHeader)(unsafe.Pointer(&in[0])).Opcode }
