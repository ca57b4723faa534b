package extract

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/internal/testenv"
	"github.com/squirefs/squire/sqfs"
	"github.com/squirefs/squire/testdata/hostile"
)

// TestHostile extracts all images of package hostile, as root into a directory beside and
// above which things stand that must stay as they are. There must be a problem where one is
// due and nowhere else, and right files everywhere else.
func TestHostile(t *testing.T) {
	testenv.NeedRoot(t, "for owners and devices")
	t.Parallel()
	hostile.Hold(t, hostile.Limits{CPU: 4 * time.Second, Memory: 256 << 20}, extractHostile)
}

func extractHostile(want *hostile.Image, body hostile.Body) (problems []string) {
	img, err := sqfs.New(body, body.Size, nil)
	if err != nil {
		return nil // package sqfs says whether that is right
	}
	guard, err := newGuard()
	if err != nil {
		return []string{err.Error()}
	}
	defer guard.remove()
	v := extracted{
		DirView: hostile.DirView(guard.target), files: body.Files, bad: want.Bad,
		problems: map[string]error{}, entries: map[string]int{}, left: map[string][]string{}, gone: map[string]bool{},
	}
	_, err = Run(context.Background(), img, guard.target, &Options{Problem: v.problem, Select: v.choose})
	if err != nil {
		v.problem("", err)
	}
	v.followLinks()
	return append(want.Check(&v, body), guard.changes()...)
}

// guard is a directory for an image to be extracted into, and what is around it.
type guard struct {
	root, target string
	before       map[string]string
}

func newGuard() (*guard, error) {
	base := "/dev/shm" // in memory: many thousand files are made and removed
	if _, err := os.Stat(base); err != nil {
		base = ""
	}
	root, err := os.MkdirTemp(base, "hostile")
	if err != nil {
		return nil, err
	}
	g := &guard{root: root, target: filepath.Join(root, "a", "b", "target")}
	for _, dir := range []string{"outside", "a/outside", "a/b/outside"} {
		dir = filepath.Join(root, dir)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
		for _, name := range []string{"file", "evil", "pwned"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte("untouched"), 0o600); err != nil {
				return nil, err
			}
		}
	}
	g.before = g.look()
	return g, nil
}

// look describes everything outside the target, and the places in /tmp that images name.
func (g *guard) look() map[string]string {
	seen := map[string]string{}
	note := func(name string, _ fs.DirEntry, _ error) error {
		if name == g.target {
			return fs.SkipDir
		}
		info, err := os.Lstat(name)
		if err != nil {
			seen[name] = err.Error()
			return nil
		}
		seen[name] = info.Mode().String()
		if name != filepath.Dir(g.target) { // in which the target appears
			b, _ := os.ReadFile(name)
			seen[name] += fmt.Sprint(info.Size(), string(b), info.ModTime())
		}
		return nil
	}
	_ = filepath.WalkDir(g.root, note)
	for _, name := range []string{"/tmp/evil", "/evil", "/pwned", "/tmp/pwned", "/outside"} {
		_ = note(name, nil, nil)
	}
	return seen
}

// changes returns what is not as it was.
func (g *guard) changes() (list []string) {
	after := g.look()
	for name, was := range g.before {
		if after[name] != was {
			list = append(list, fmt.Sprintf("%s was %q, is %q", name, was, after[name]))
		}
	}
	for name := range after {
		if _, ok := g.before[name]; !ok {
			list = append(list, "new: "+name)
		}
	}
	return list
}

func (g *guard) remove() { _ = os.RemoveAll(g.root) }

// extracted is the view of a directory that an image was extracted into: what was told of a
// path is an error there.
type extracted struct {
	hostile.DirView
	files    map[string]hostile.File
	bad      []string
	entries  map[string]int      // of a directory, so far
	left     map[string][]string // by directory: names of files that choose left out
	gone     map[string]bool     // their paths
	mu       sync.Mutex
	problems map[string]error
	damaged  map[uint64]error // by inode number
}

func (e *extracted) problem(name string, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	name = strings.TrimPrefix(strings.TrimPrefix(name, "/"), ".")
	e.problems[name] = err
}

// manyFiles is how many entries of a directory are all extracted.
const manyFiles = 24

// choose is Options.Select. It leaves out most of the empty files of large directories, of
// which nearly all images have one, as long as they are what the image should hold: making
// and removing those is most of the time and proves nothing. Names that are not expected,
// and all that is bad, are taken.
func (e *extracted) choose(file []byte, _ bool) (take, within bool) {
	name := string(file)
	dir, base := filepath.Split(name)
	e.entries[dir]++
	if e.entries[dir] <= manyFiles || e.entries[dir]%manyFiles == 0 || !e.dull(name) {
		return true, true
	}
	dir = strings.TrimSuffix(dir, "/")
	e.left[dir] = append(e.left[dir], base)
	e.gone[name] = true
	return false, true
}

// dull reports whether an empty regular file without a fault should be at name.
func (e *extracted) dull(name string) bool {
	f, ok := e.files[name]
	if !ok || f.Mode&unix.S_IFMT != unix.S_IFREG || f.Size != 0 || len(f.Xattrs) > 0 {
		return false
	}
	return !slices.ContainsFunc(e.bad, func(bad string) bool { return name == bad || strings.HasPrefix(name, bad+"/") })
}

// followLinks finds out which files were damaged: what is told of one name concerns all.
func (e *extracted) followLinks() {
	e.damaged = map[uint64]error{}
	for name, err := range e.problems {
		if ino, linked := e.inode(name); linked {
			e.damaged[ino] = err
		}
	}
}

// inode returns the number of a file that has several names.
func (e *extracted) inode(name string) (ino uint64, linked bool) {
	var st unix.Stat_t
	err := unix.Lstat(filepath.Join(string(e.DirView), name), &st)
	return st.Ino, err == nil && st.Nlink > 1 && st.Mode&unix.S_IFMT == unix.S_IFREG
}

// List has the names of what was left out too: File tells why.
func (e *extracted) List(name string) ([]string, error) {
	names, err := e.DirView.List(name)
	names = append(names, e.left[name]...)
	for problem := range e.problems {
		dir, base := filepath.Split(problem)
		if strings.TrimSuffix(dir, "/") == name && problem != "" && !slices.Contains(names, base) {
			names = append(names, base)
		}
	}
	return names, err
}

func (e *extracted) File(name string) (hostile.File, error) {
	if err := e.problems[name]; err != nil {
		if f, ok := e.files[name]; ok && hostLimit(err) {
			return f, nil
		}
		return hostile.File{}, err
	}
	if e.gone[name] {
		return e.files[name], nil
	}
	if ino, linked := e.inode(name); linked && e.damaged[ino] != nil {
		return hostile.File{}, e.damaged[ino]
	}
	return e.DirView.File(name)
}

// ReadAt has nothing of what was left out: it is empty.
func (e *extracted) ReadAt(name string, p []byte, off int64) (int, error) {
	if e.gone[name] {
		return 0, io.EOF
	}
	return e.DirView.ReadAt(name, p, off)
}

// hostLimit reports whether an image is right and the file system of the test too small for
// it: ext4 has room for 4 KiB of attributes.
func hostLimit(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.E2BIG) || errors.Is(err, unix.ERANGE) || errors.Is(err, unix.EMLINK)
}
