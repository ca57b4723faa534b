package fusefs

import "github.com/squirefs/squire/sqfs"

// counted is a decoder whose work is counted: for requests, or ahead of them.
type counted struct {
	*decoder
	counts *counters
	ahead  bool
}

// ReadBlock implements cache.Decoder.
func (c *counted) ReadBlock(dst []byte, b sqfs.Block) (int, error) {
	if !c.ahead {
		c.counts.missed.Add(1)
	}
	n, err := c.decoder.ReadBlock(dst, b)
	c.counts.decoded.Add(1)
	c.counts.decodedBytes.Add(uint64(max(n, 0)))
	return n, err
}
