// Package hostile makes squashfs images that are wrong in one way each, and says what a
// reader must do about it. It shares no code with package sqfs: what both misunderstand in
// the same way would not be found.
//
// All images but a few are made from one small tree, fully stored, with inodes of all
// kinds. A case of the tables in cases_*.go changes the tree or how it is written (and all
// else fits the change: positions are computed anew), or it changes a field of the image
// when all is done. [Image.Check] compares what a reader finds with what was put in.
package hostile

import (
	"bytes"
	"fmt"
	"io"
	"iter"
	"strings"
)

// Want says what a reader must do.
type Want int

const (
	// Fine means that all is read, as File says: the change is legal or harmless.
	Fine Want = iota
	// Refuse means that the image cannot be opened.
	Refuse
	// Partly means that there is an error at each of Image.Bad, and all else is read.
	Partly
	// Either means that an error and correct data are both right, at each of Image.Bad; if
	// there are none, anywhere and on open too.
	Either
)

func (w Want) String() string {
	return [...]string{"fine", "refuse", "partly", "either"}[w]
}

// Image is one hostile image.
type Image struct {
	Name  string // short, of letters, digits and dashes
	Class int    // the index in Classes
	Wrong string // what is wrong with it
	Want  Want
	Bad   []string // paths without a slash in front, "" for the root; what is below them is bad too
	make  func() Body
}

// Body is the contents of an image.
type Body struct {
	io.ReaderAt
	Size  int64
	Files map[string]File // by path, "" for the root: what the image holds where it is not Bad
}

// File is what a reader must find at a path.
type File struct {
	Mode     uint32 // st_mode
	UID, GID uint32
	MTime    uint32
	Rdev     uint32      // new_encode_dev
	Size     int64       // of a file
	Data     []byte      // of a file; zeros follow up to Size
	At       io.ReaderAt // of a file, in place of Data, if it is not nil
	Target   string
	Xattrs   map[string]string
	Names    []string // of a directory, ascending
}

// Body makes the image. That may take some 100 ms and some MiB; nothing is kept.
func (i *Image) Body() Body { return i.make() }

// Classes names the classes of attack.
var Classes = [...]string{
	1:  "directory cycle",
	2:  "giant count",
	3:  "huge file",
	4:  "block too big",
	5:  "block too short",
	6:  "fragment out of range",
	7:  "reference outside its table",
	8:  "damaged metadata block",
	9:  "integer overflow",
	10: "forbidden name",
	11: "duplicate or unsorted names",
	12: "extraction through links",
	13: "symlink target",
	14: "block size",
	15: "ids",
	16: "extended attributes",
	17: "inode number",
	18: "type",
	19: "overlap",
	20: "compressor",
	21: "amplification",
	22: "truncation",
	23: "change while open",
	24: "set-id and devices",
}

// spec is a row of the tables of cases.
type spec struct {
	class  int
	name   string
	wrong  string
	want   Want
	bad    string            // separated by spaces; "." is the root
	plan   func(*builder)    // before the image is made; nil for none
	edit   func(*image)      // after that; nil for none
	expect func(*image)      // what the change does to the contents; nil for nothing
	wrap   func(*image) Body // the bytes are not all; nil for none. Files may be nil
}

// Images returns all images, in the order of the tables. Names are unique.
func Images() iter.Seq[*Image] {
	return func(yield func(*Image) bool) {
		for _, list := range []func() []spec{superblockCases, tableCases, inodeCases, dirCases, treeCases, xattrCases, streamCases, sourceCases} {
			for _, s := range list() {
				if !yield(s.image()) {
					return
				}
			}
		}
	}
}

func (s *spec) image() *Image {
	img := &Image{Name: s.name, Class: s.class, Wrong: s.wrong, Want: s.want, make: s.body}
	for name := range strings.FieldsSeq(s.bad) {
		if name == "." {
			name = ""
		}
		img.Bad = append(img.Bad, name)
	}
	return img
}

func (s *spec) body() Body {
	b := base()
	if s.plan != nil {
		s.plan(b)
	}
	im := b.build()
	if s.edit != nil {
		s.edit(im)
	}
	if s.expect != nil {
		s.expect(im)
	}
	body := Body{ReaderAt: bytes.NewReader(im.b), Size: int64(len(im.b))}
	if s.wrap != nil {
		body = s.wrap(im)
	}
	if body.Files == nil {
		body.Files = im.files
	}
	return body
}

// set returns an edit that gives fields other values: name, value, name, value...
func set(pairs ...any) func(*image) {
	return func(im *image) {
		for i := 0; i < len(pairs); i += 2 {
			im.set(pairs[i].(string), number(pairs[i+1]))
		}
	}
}

// add returns an edit that adds v to a field.
func add(field string, v int64) func(*image) {
	return func(im *image) { im.set(field, im.get(field)+uint64(v)) }
}

// copyOf returns an edit that gives field to the value of field from.
func copyOf(to, from string) func(*image) {
	return func(im *image) { im.set(to, im.get(from)) }
}

// put returns an edit that overwrites the start of a field of bytes.
func put(field, s string) func(*image) {
	return func(im *image) { im.put(field, s) }
}

func number(v any) uint64 {
	switch v := v.(type) {
	case int:
		return uint64(v)
	case uint64:
		return v
	case uint32:
		return uint64(v)
	}
	panic(fmt.Sprintf("%T is no number", v))
}
