package fusefs

import (
	"github.com/squirefs/squire/cache"
	"github.com/squirefs/squire/sqfs"
)

// counted is a decoder for requests, or for what is decoded ahead of them. It takes turns with those of other images,
// and its work is counted.
type counted struct {
	*decoder
	counts *counters
	ahead  bool
}

var _ interface {
	cache.Decoder
	cache.Waiter
	sqfs.Turns
} = (*counted)(nil)

// ReadBlock implements cache.Decoder.
func (c *counted) ReadBlock(dst []byte, b sqfs.Block) (int, error) {
	if !c.ahead {
		c.counts.missed.Add(1)
	}
	n, err := c.img.ReadBlockInTurn(dst, b, c)
	c.counts.decoded.Add(1)
	c.counts.decodedBytes.Add(uint64(max(n, 0)))
	return n, err
}

// Take implements sqfs.Turns.
func (c *counted) Take(b sqfs.Block) int64 {
	urgency := asked
	if c.ahead {
		urgency = early
	}
	t := c.share.take(urgency)
	// Somebody may have come for the block while it was read. Who comes later finds the turn in line: see Waiting.
	if c.ahead && t.waiter != nil && c.cache.Wanted(c.id, b) {
		c.share.hurry()
	}
	c.share.wait(&t)
	return t.began
}

// Give implements sqfs.Turns.
func (c *counted) Give(began int64) { c.share.give(began) }
