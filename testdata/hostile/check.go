package hostile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
)

// View is how a reader shows an image. Paths have no slash in front; "" is the root.
type View interface {
	// File returns all that is said of a file but its contents and names, without
	// following a symlink.
	File(name string) (File, error)
	// List returns the names in a directory, and those before an error.
	List(name string) ([]string, error)
	// ReadAt reads from a file like an io.ReaderAt.
	ReadAt(name string, p []byte, off int64) (int, error)
}

const (
	maxVisits = 20000   // more than any image has, of those that are visited
	maxDepth  = 500     // who goes by paths, begins at the root each time
	maxNames  = 100     // of a directory with many names, this many at each end are visited
	maxRead   = 4 << 20 // of a longer file, only some places are read
)

// Check walks through all of v, which shows body, and returns what is not as it must be:
// errors where none are due and the other way around, wrong data, names that must not be
// passed on, no end.
func (i *Image) Check(v View, body Body) (problems []string) {
	c := checker{img: i, view: v, files: body.Files, failed: map[string]error{}}
	c.run()
	return c.problems
}

type checker struct {
	img      *Image
	view     View
	files    map[string]File
	failed   map[string]error
	visits   int
	problems []string
}

func (c *checker) run() {
	for todo := []string{""}; len(todo) > 0; {
		name := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if c.visits++; c.visits > maxVisits {
			c.problem("", "the walk does not end")
			return
		}
		children := c.visit(name)
		slices.Reverse(children) // so that the first comes off the stack first
		todo = append(todo, children...)
	}
	if c.img.Want != Partly {
		return
	}
	for _, name := range c.img.Bad {
		if !slices.ContainsFunc(slices.Collect(maps.Keys(c.failed)), func(at string) bool { return below(at, name) }) {
			c.problem(name, "no error, but: %s", c.img.Wrong)
		}
	}
}

// below reports whether name is dir or lies in it.
func below(name, dir string) bool {
	return dir == "" || name == dir || strings.HasPrefix(name, dir+"/")
}

// bad reports whether name may have an error.
func (c *checker) bad(name string) bool {
	if c.img.Want == Either && len(c.img.Bad) == 0 {
		return true
	}
	return slices.ContainsFunc(c.img.Bad, func(bad string) bool { return below(name, bad) })
}

func (c *checker) problem(name, format string, args ...any) {
	if len(c.problems) < 20 {
		c.problems = append(c.problems, fmt.Sprintf("%q: ", name)+fmt.Sprintf(format, args...))
	}
}

// fail records an error.
func (c *checker) fail(name string, err error) {
	c.failed[name] = err
	if !c.bad(name) {
		c.problem(name, "%v", err)
	}
}

// visit compares one file and returns what it contains.
func (c *checker) visit(name string) []string {
	got, err := c.view.File(name)
	if err != nil {
		c.fail(name, err)
		return nil
	}
	want, known := c.files[name]
	// What a reader says of a bad file cannot be right or wrong, as long as there is an
	// error in the end; but where it may be read as well, it must be right.
	compare := !c.bad(name) || c.img.Want == Either && known
	if compare && !known {
		c.problem(name, "is not in the image")
	}
	if compare {
		c.compare(name, got, want)
	}
	switch got.Mode & 0o170000 {
	case 0o040000:
		return c.list(name, want, compare)
	case 0o100000:
		c.read(name, got, want, compare)
	}
	return nil
}

// compare compares all but contents and names.
func (c *checker) compare(name string, got, want File) {
	differ := func(what string, got, want any) {
		if got != want {
			c.problem(name, "%s %v, want %v", what, got, want)
		}
	}
	differ("mode", fmt.Sprintf("%o", got.Mode), fmt.Sprintf("%o", want.Mode))
	differ("uid", got.UID, want.UID)
	differ("gid", got.GID, want.GID)
	differ("mtime", got.MTime, want.MTime)
	differ("rdev", got.Rdev, want.Rdev)
	differ("target", got.Target, want.Target)
	if got.Mode&0o170000 == 0o100000 {
		differ("size", got.Size, want.Size)
	}
	if !maps.Equal(got.Xattrs, want.Xattrs) {
		c.problem(name, "attributes %.300q, want %.300q", got.Xattrs, want.Xattrs)
	}
}

// list checks the names of a directory, and that another one is not found.
func (c *checker) list(dir string, want File, compare bool) (children []string) {
	names, err := c.view.List(dir)
	if err != nil {
		c.fail(dir, err)
	}
	for _, name := range names {
		if !validName(name) {
			c.problem(dir, "the name %q is passed on", name)
			return nil
		}
	}
	slices.Sort(names)
	if compare && err == nil && !slices.Equal(names, want.Names) {
		c.problem(dir, "%d names %.300q, want %d %.300q", len(names), names, len(want.Names), want.Names)
	}
	if !slices.Equal(names, slices.Compact(slices.Clone(names))) {
		c.problem(dir, "a name appears twice")
	}
	absent := path.Join(dir, "no such name")
	if _, err := c.view.File(absent); err == nil {
		c.problem(dir, "a name that is not there is found")
	} else if !errors.Is(err, fs.ErrNotExist) {
		c.fail(dir, err)
	}
	if strings.Count(dir, "/") >= maxDepth {
		return nil
	}
	for i, name := range names {
		if i < maxNames || i >= len(names)-maxNames {
			children = append(children, path.Join(dir, name))
		}
	}
	return children
}

// validName reports whether Linux can have a file of that name.
func validName(name string) bool {
	return name != "" && name != "." && name != ".." && len(name) <= 255 && !strings.ContainsAny(name, "/\x00")
}

// read compares the contents of a file, from end to end or in some places.
func (c *checker) read(name string, got, want File, compare bool) {
	size := got.Size
	pieces := [][2]int64{{0, size}}
	if size > maxRead {
		pieces = [][2]int64{{0, 1 << 16}, {size / 2, 1 << 16}, {size - 1<<16, 1 << 16}}
	}
	for _, p := range pieces {
		buf := make([]byte, p[1])
		n, err := c.view.ReadAt(name, buf, p[0])
		if err != nil && (n < len(buf) || !errors.Is(err, io.EOF)) {
			c.fail(name, fmt.Errorf("read %d bytes at %d: %w", p[1], p[0], err))
			continue
		}
		if compare && size == want.Size && !bytes.Equal(buf, want.contents(p[0], p[1])) {
			c.problem(name, "wrong data in %d bytes at %d", p[1], p[0])
		}
	}
}

// contents returns n bytes of a file.
func (f *File) contents(off, n int64) []byte {
	b := make([]byte, n)
	if f.At != nil {
		_, _ = f.At.ReadAt(b, off) // what it cannot read differs
		return b
	}
	if off < int64(len(f.Data)) {
		copy(b, f.Data[off:])
	}
	return b
}
