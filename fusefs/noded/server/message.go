package server

import (
	"maps"
	"slices"

	"github.com/squirefs/squire/fusefs"
	"github.com/squirefs/squire/internal/wire"
)

// The first message is the keeper's setting. All others of the keeper's are requests. Each gets one reply with its number,
// in any order, unless that is 0. A reply with number 0 says that the mount of an image is gone.

// setting is what a process is told first.
type setting struct {
	Config
	Processors int // how many to use
}

// Fields makes it a wire.Message.
func (s *setting) Fields(c *wire.Coder) {
	wire.Int(c, &s.Cache)
	wire.Int(c, &s.Metadata)
	c.Bool(&s.NoResend)
	wire.Int(c, &s.Processors)
}

type verb int

// What is asked of the process, with the descriptors that go along.
const (
	verbSuperblock verb = iota + 1 // the image file
	verbOpen                       // the image file, if Image.Signed its list of hashes, then Image.Traces files
	verbServe                      // the device
	verbForget                     // number 0
	verbCommon                     // number 0
	verbStop                       // number 0
	verbPing
	verbStats // of images whose ids are above Image.ID, ascending, as many as fit
)

// statsRoom is how many bytes of a message the counters of images may take.
const statsRoom = wire.MaxSize / 2

type request struct {
	Number uint64
	Do     verb
	Image  Image // of most verbs only the ID
	Resume bool
	Init   []byte
}

// Fields makes it a wire.Message.
func (r *request) Fields(c *wire.Coder) {
	wire.Int(c, &r.Number)
	wire.Int(c, &r.Do)
	i := &r.Image
	wire.Int(c, &i.ID)
	wire.String(c, &i.Name)
	wire.Int(c, &i.Offset)
	wire.Int(c, &i.User)
	c.Bool(&i.Common)
	c.Bool(&i.Restrict)
	owned := i.Owner != nil
	if c.Bool(&owned); owned {
		if i.Owner == nil {
			i.Owner = new(fusefs.Owner)
		}
		wire.Int(c, &i.Owner.UID)
		wire.Int(c, &i.Owner.GID)
	}
	c.Bool(&i.IDMap)
	octets(c, &i.Init)
	wire.String(c, &i.Signed)
	wire.Int(c, &i.Traces)
	wire.Int(c, &i.Record)
	c.Bool(&r.Resume)
	octets(c, &r.Init)
}

type reply struct {
	Number  uint64
	Ended   uint64 // with number 0: the image whose mount is gone
	Error   string
	Refused bool // it is an ImageError
	Info    Info
	Memory  int64
	Stats   []imageStats
}

// Fields makes it a wire.Message.
func (r *reply) Fields(c *wire.Coder) {
	wire.Int(c, &r.Number)
	wire.Int(c, &r.Ended)
	wire.String(c, &r.Error)
	c.Bool(&r.Refused)
	wire.Int(c, &r.Info.Size)
	wire.String(c, &r.Info.Superblock)
	wire.Int(c, &r.Info.Replayed)
	octets(c, &r.Info.Init)
	wire.Int(c, &r.Info.Flags)
	wire.Int(c, &r.Memory)
	wire.Slice(c, &r.Stats, func(c *wire.Coder, s *imageStats) { s.Fields(c) })
}

type imageStats struct {
	id uint64
	ImageStats
}

// Fields makes it a wire.Message.
func (s *imageStats) Fields(c *wire.Coder) {
	for _, v := range []*uint64{
		&s.id, &s.ReadFrom,
		&s.Lookup, &s.GetAttr, &s.Readlink, &s.Open, &s.ReadDir, &s.Read, &s.Xattr, &s.StatFs,
		&s.ReadBytes, &s.Stored, &s.Errors, &s.Late, &s.Wanted, &s.Missed, &s.Decoded, &s.DecodedBytes,
		&s.Cache.Hits, &s.Cache.Misses, &s.Cache.Waits, &s.Cache.Ahead, &s.Cache.Evictions,
	} {
		wire.Int(c, v)
	}
	wire.Int(c, &s.Cache.Bytes)
	wire.Int(c, &s.Kept)
	kinds := slices.Sorted(maps.Keys(s.Latency))
	c.Strings(&kinds)
	if s.Latency == nil && len(kinds) > 0 {
		s.Latency = make(map[string]fusefs.Histogram)
	}
	for _, kind := range kinds {
		h := s.Latency[kind]
		histogram(c, &h)
		s.Latency[kind] = h
	}
}

// histogram visits the numbers up to the last that is not 0.
func histogram(c *wire.Coder, h *fusefs.Histogram) {
	n := len(h.Counts)
	for n > 0 && h.Counts[n-1] == 0 {
		n--
	}
	wire.Int(c, &n)
	for i := range min(max(n, 0), len(h.Counts)) {
		wire.Int(c, &h.Counts[i])
	}
	wire.Int(c, &h.Sum)
}

// octets visits a string of bytes.
func octets(c *wire.Coder, v *[]byte) {
	s := string(*v)
	if wire.String(c, &s); s != "" {
		*v = []byte(s)
	}
}
