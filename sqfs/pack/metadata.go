package pack

import (
	"fmt"
	"io"
	"math"

	"github.com/squirefs/squire/sqfs/internal/codec"
	"github.com/squirefs/squire/sqfs/internal/disk"
)

// metadata writes metadata blocks. The first error is kept.
//
// It works alone: where a block lies depends on how short those before it became, and
// nearly every block of inodes has a directory in it, or of a listing, a run, that must
// say where another block lies.
type metadata struct {
	out   io.Writer
	e     codec.Encoder // nil compresses nothing
	size  int64         // bytes that were written
	raw   []byte        // the block that is being filled, never full
	coded []byte
	err   error
}

func newMetadata(out io.Writer, e codec.Encoder) *metadata {
	return &metadata{
		out: out, e: e, raw: make([]byte, 0, disk.MetadataSize),
		coded: make([]byte, disk.MetadataHeader+disk.MetadataSize+codec.EncodeSlack),
	}
}

// write appends b.
func (m *metadata) write(b []byte) {
	for {
		n := copy(m.raw[len(m.raw):cap(m.raw)], b)
		m.raw, b = m.raw[:len(m.raw)+n], b[n:]
		if len(m.raw) < cap(m.raw) {
			return
		}
		m.flush()
	}
}

// ref returns where the next byte goes: the block, and the offset in it.
func (m *metadata) ref() uint64 { return uint64(m.size)<<16 | uint64(len(m.raw)) }

// flush ends the block, if there is anything in it.
func (m *metadata) flush() {
	if len(m.raw) == 0 || m.err != nil {
		m.raw = m.raw[:0]
		return
	}
	n := 0
	if m.e != nil {
		n, m.err = m.e.Encode(m.coded[disk.MetadataHeader:], m.raw)
	}
	stored := n == 0
	if stored {
		n = copy(m.coded[disk.MetadataHeader:], m.raw)
	}
	m.raw = m.raw[:0]
	disk.AppendMetadataHeader(m.coded[:0], n, stored)
	m.put(m.coded[:disk.MetadataHeader+n])
	// References have 32 bits for the position of a block.
	if m.size > math.MaxUint32 && m.err == nil {
		m.err = fmt.Errorf("a table of more than 4 GiB")
	}
}

func (m *metadata) put(b []byte) {
	if m.err != nil {
		return
	}
	n, err := m.out.Write(b)
	m.size += int64(n)
	m.err = err
}

// table writes a table of n rows of the given size and then the index of its blocks, and
// returns where the index is. begin is where the first byte of m went, head what stands
// before the index. row appends a row to b.
func (m *metadata) table(begin int64, n, size int, head []byte, row func(b []byte, i int) []byte) uint64 {
	var blocks []byte
	b := make([]byte, 0, size)
	for i := range n {
		if len(m.raw) == 0 {
			blocks = disk.AppendUint64(blocks, uint64(begin+m.size))
		}
		m.write(row(b, i))
	}
	m.flush()
	index := uint64(begin + m.size)
	m.put(head)
	m.put(blocks)
	return index
}
