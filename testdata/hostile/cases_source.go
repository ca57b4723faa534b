package hostile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
)

// boundaries are fields with positions at which parts of the image begin.
var boundaries = []string{
	"sb.inode_table", "sb.directory_table", "frags.index0", "sb.fragment_table", "exports.index0", "sb.export_table",
	"ids.index0", "sb.id_table", "xattrs.start", "sets.index0", "sb.xattr_table",
}

// sourceCases are images that end too early, or change while they are open.
func sourceCases() (list []spec) {
	for _, field := range boundaries {
		name := string(bytes.Map(func(r rune) rune {
			if r == '.' || r == '_' {
				return '-'
			}
			return r
		}, []byte(field)))
		list = append(list, spec{class: 22, name: "cut-at-" + name, wrong: "the file ends where this part begins", want: Refuse, wrap: func(im *image) Body {
			return bytesBody(im.b[:im.get(field)])
		}}, spec{class: 22, name: "cut-unseen-at-" + name, wrong: "the bytes end where this part begins, but the size does not say so", want: Either, wrap: func(im *image) Body {
			return Body{ReaderAt: bytes.NewReader(im.b[:im.get(field)]), Size: int64(len(im.b))}
		}})
	}
	for _, n := range []int{0, 1, 95, 96, 97} {
		list = append(list, spec{class: 22, name: fmt.Sprintf("cut-at-%d", n), wrong: fmt.Sprintf("the file has %d bytes", n), want: Refuse, wrap: func(im *image) Body { return bytesBody(im.b[:n]) }})
	}
	return append(list, []spec{
		{class: 22, name: "cut-padding", wrong: "the file ends with the image, without padding", want: Fine, wrap: func(im *image) Body {
			return bytesBody(im.b[:im.get("sb.bytes_used")])
		}},
		{class: 22, name: "trailing", wrong: "garbage behind the image", want: Fine, wrap: func(im *image) Body {
			return bytesBody(append(im.b, bytes.Repeat([]byte("garbage"), 1000)...))
		}},
		{class: 23, name: "change-cut", wrong: "the file is cut off after 40 reads", want: Either, wrap: after(40, func(im *image) io.ReaderAt { return bytes.NewReader(im.b[:100]) })},
		{class: 23, name: "change-empty", wrong: "the file is empty after 40 reads", want: Either, wrap: after(40, func(*image) io.ReaderAt { return bytes.NewReader(nil) })},
		{class: 23, name: "change-zeros", wrong: "the file is all zeros after 40 reads", want: Either, wrap: after(40, func(im *image) io.ReaderAt { return bytes.NewReader(make([]byte, len(im.b))) })},
		{class: 23, name: "change-ones", wrong: "the file is all ones after 40 reads", want: Either, wrap: after(40, func(im *image) io.ReaderAt { return bytes.NewReader(bytes.Repeat([]byte{0xff}, len(im.b))) })},
		{class: 23, name: "change-error", wrong: "the storage fails after 40 reads", want: Either, wrap: after(40, func(*image) io.ReaderAt { return failing{} })},
		{class: 23, name: "change-another", wrong: "the file is replaced by another image after 10 reads", want: Either, wrap: after(10, func(*image) io.ReaderAt {
			b := base()
			b.root.entries = b.root.entries[5:]
			return bytes.NewReader(b.build().b)
		})},
		{class: 23, name: "change-each-time", wrong: "a byte in every 64 is another in each read", want: Either, wrap: func(im *image) Body {
			return Body{ReaderAt: &flicker{b: im.b}, Size: int64(len(im.b)), Files: map[string]File{}}
		}},
		{class: 23, name: "change-behind-the-superblock", wrong: "a byte in every 512 behind the superblock is another in each read", want: Either, wrap: func(im *image) Body {
			return Body{ReaderAt: &flicker{b: im.b, keep: int64(im.get("sb.inode_table")), every: 512}, Size: int64(len(im.b)), Files: map[string]File{}}
		}},
	}...)
}

func bytesBody(b []byte) Body { return Body{ReaderAt: bytes.NewReader(b), Size: int64(len(b))} }

// after returns a body that is another one from the given read on. What a reader finds then
// may be anything.
func after(reads int64, next func(*image) io.ReaderAt) func(*image) Body {
	return func(im *image) Body {
		r := &changing{before: bytes.NewReader(im.b), after: next(im)}
		r.left.Store(reads)
		return Body{ReaderAt: r, Size: int64(len(im.b)), Files: map[string]File{}}
	}
}

type changing struct {
	before, after io.ReaderAt
	left          atomic.Int64
}

func (c *changing) ReadAt(p []byte, off int64) (int, error) {
	if c.left.Add(-1) >= 0 {
		return c.before.ReadAt(p, off)
	}
	return c.after.ReadAt(p, off)
}

// errStorage is what storage says that fails.
var errStorage = errors.New("storage failed")

type failing struct{}

func (failing) ReadAt([]byte, int64) (int, error) { return 0, errStorage }

// flicker is never the same twice behind its first bytes.
type flicker struct {
	b           []byte
	keep, every int64
	reads       atomic.Int64
}

func (f *flicker) ReadAt(p []byte, off int64) (int, error) {
	n, err := bytes.NewReader(f.b).ReadAt(p, off)
	every := max(f.every, 64)
	k := f.reads.Add(1)
	for i := k * 7 % every; i < int64(n); i += every {
		if off+i >= max(f.keep, superblockSize) {
			p[i] += byte(k)
		}
	}
	return n, err
}
