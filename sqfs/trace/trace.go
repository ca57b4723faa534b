// Package trace keeps which blocks of an image were read when it was used before, and in
// what order, so that the next time they can be read ahead of whoever wants them.
//
// # Format
//
// A trace is a file of at most 1 MiB; numbers are little-endian, varints those of
// encoding/binary:
//
//	"squire trace 1\n"
//	superblock of the image, as in [sqfs.Superblock]: 86 bytes
//	number of touches (uvarint), and for each of them
//	    reference of the inode, less that of the touch before it (varint)
//	    number of the block, less that which follows the block of the touch before it
//	    in the same file; 0 comes first in another (varint)
//	CRC-32C of all this: 4 bytes
//
// A trace has one form only: what [Decode] accepts is what Encode would write. A file that
// was cut off, or is being written, is no trace.
package trace

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"os"

	"github.com/squirefs/squire/sqfs"
)

// Magic is how a trace begins: a line that says what it is to people, too.
const Magic = "squire trace 1\n"

// Limits of a trace. With both deltas at their longest, 7 and 5 bytes, the most touches
// fit into the longest file.
const (
	MaxSize    = 1 << 20
	MaxTouches = 1 << 16
)

// Touch is a block of a file that somebody read.
type Touch struct {
	Ref   sqfs.InodeRef
	Block uint32 // number of the block in the file
}

// Trace says which blocks of an image were read first.
type Trace struct {
	// Image is the superblock of the image. Sizes, positions and the time of its making
	// tell it from others, and from what it was before it was changed.
	Image sqfs.Superblock
	// Touches are in the order of reading, at most MaxTouches.
	Touches []Touch
}

// ErrEmpty is what Decode says of no bytes at all: a trace that was not recorded yet.
var ErrEmpty = errors.New("trace is empty")

const crcSize = 4

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	le         = binary.LittleEndian
)

// Encode returns the bytes of a trace. Touches beyond MaxTouches are left out.
func (t *Trace) Encode() []byte {
	touches := t.Touches[:min(len(t.Touches), MaxTouches)]
	b, err := binary.Append([]byte(Magic), le, &t.Image)
	if err != nil {
		panic(err) // a field of the superblock has no fixed size
	}
	b = binary.AppendUvarint(b, uint64(len(touches)))
	var last Touch
	for _, touch := range touches {
		b = binary.AppendVarint(b, int64(touch.Ref)-int64(last.Ref))
		b = binary.AppendVarint(b, int64(touch.Block)-expected(last, touch.Ref))
		last = touch
	}
	return le.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// expected is the block of ref that is read most often after last.
func expected(last Touch, ref sqfs.InodeRef) int64 {
	if last.Ref == ref {
		return int64(last.Block) + 1
	}
	return 0
}

// Decode returns the trace in b, which may come from anybody. It takes no more memory than
// some multiple of b has, and accepts no touch that an image with such a superblock
// cannot have; whether there is such a block only the image knows.
func Decode(b []byte) (*Trace, error) {
	switch {
	case len(b) == 0:
		return nil, ErrEmpty
	case !bytes.HasPrefix(b, []byte(Magic)):
		return nil, notTrace(b)
	case len(b) > MaxSize:
		return nil, fmt.Errorf("trace is longer than %d bytes", MaxSize)
	}
	t := new(Trace)
	head := len(Magic) + binary.Size(&t.Image)
	if len(b) < head+1+crcSize {
		return nil, fmt.Errorf("trace is cut off: %d bytes", len(b))
	}
	body, sum := b[:len(b)-crcSize], le.Uint32(b[len(b)-crcSize:])
	if got := crc32.Checksum(body, castagnoli); got != sum {
		return nil, fmt.Errorf("trace is damaged or cut off: its checksum is %#08x, want %#08x", got, sum)
	}
	if _, err := binary.Decode(b[len(Magic):], le, &t.Image); err != nil {
		return nil, fmt.Errorf("trace: %w", err)
	}
	if err := t.decodeTouches(body[head:]); err != nil {
		return nil, err
	}
	if !bytes.Equal(t.Encode(), b) {
		return nil, errors.New("trace has numbers in a longer form than needed")
	}
	return t, nil
}

// notTrace says what is wrong with a file that does not begin with Magic.
func notTrace(b []byte) error {
	const name = "squire trace "
	line, _, _ := bytes.Cut(b[:min(len(b), 32)], []byte("\n"))
	if !bytes.HasPrefix(line, []byte(name)) {
		return errors.New("not a trace")
	}
	return fmt.Errorf("trace of version %q, want 1", line[len(name):])
}

// decodeTouches decodes the list of touches, which is all of b.
func (t *Trace) decodeTouches(b []byte) error {
	c := cursor{b: b}
	n := c.uvarint()
	// A touch has two bytes at least: the count is checked before it is believed.
	if n > MaxTouches || n > uint64(len(c.b)/2) {
		return fmt.Errorf("trace of %d touches in %d bytes", n, len(c.b))
	}
	t.Touches = make([]Touch, 0, n)
	var last Touch
	for i := range n {
		ref := int64(last.Ref) + c.varint(1<<48)
		block := c.varint(1 << 33)
		if c.bad || !t.has(ref) {
			return fmt.Errorf("touch %d: no inode of such an image", i)
		}
		if block += expected(last, sqfs.InodeRef(ref)); block < 0 || block > math.MaxUint32 {
			return fmt.Errorf("touch %d: block %d", i, block)
		}
		last = Touch{sqfs.InodeRef(ref), uint32(block)}
		t.Touches = append(t.Touches, last)
	}
	if len(c.b) > 0 || c.bad {
		return fmt.Errorf("trace has %d bytes behind its touches", len(c.b))
	}
	return nil
}

// has reports whether an inode of the image can have this reference: a block of the inode
// table, and a place in the 8 KiB that it expands to.
func (t *Trace) has(ref int64) bool {
	return ref >= 0 && ref>>16 < t.Image.DirectoryTable-t.Image.InodeTable && ref&0xffff < 8<<10
}

// cursor takes numbers from the front of b. What is none sets bad.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) uvarint() uint64 {
	v, n := binary.Uvarint(c.b)
	if n <= 0 {
		c.bad, n = true, 0
	}
	c.b = c.b[n:]
	return v
}

// varint returns a number of a size below limit.
func (c *cursor) varint(limit int64) int64 {
	v, n := binary.Varint(c.b)
	if n <= 0 || v <= -limit || v >= limit {
		c.bad, v, n = true, 0, max(n, 0)
	}
	c.b = c.b[n:]
	return v
}

// Read returns the trace in a file, whatever that is positioned at.
func Read(f io.ReaderAt) (*Trace, error) {
	b, err := io.ReadAll(io.NewSectionReader(f, 0, MaxSize+1))
	if err != nil {
		return nil, fmt.Errorf("read trace: %w", err)
	}
	return Decode(b)
}

// Write puts the trace in place of what is in f. Until all of it is there the file is no
// trace, neither the old one nor a part of the new.
func (t *Trace) Write(f *os.File) error {
	err := f.Truncate(0)
	if err == nil {
		_, err = f.WriteAt(t.Encode(), 0)
	}
	if err != nil {
		return fmt.Errorf("write trace: %w", err)
	}
	return nil
}
