package gpu

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// tree is the root directory that discovery reads. Names are absolute; links,
// absolute ones too, lead nowhere outside.
type tree struct {
	fd     int
	path   string          // without links; "" for "/"
	denied map[string]bool // devices that may not be opened, whatever the kernel says
	found  *found
}

// found has what was found before: a /dev has hundreds of entries, every kind of device is asked for, and each task of a
// step asks for its own.
type found struct {
	mu    sync.Mutex
	names map[string][]string    // in directories
	nodes map[[2]string][]string // by directory and pattern
}

// openTree opens a root directory. The caller closes it.
func openTree(root string) (*tree, error) {
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", root, err)
	}
	t := &tree{fd: fd, found: &found{names: map[string][]string{}, nodes: map[[2]string][]string{}}}
	p, err := descriptorPath(fd)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	t.path = strings.TrimSuffix(p, "/")
	return t, nil
}

func (t *tree) close() { unix.Close(t.fd) }

func descriptorPath(fd int) (string, error) {
	return os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
}

func (t *tree) open(name string, flags uint64) (int, error) {
	how := unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	for range 100 {
		fd, err := unix.Openat2(t.fd, name, &how)
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) { // as in runtime.openIn
			return fd, err
		}
	}
	return -1, unix.EAGAIN
}

// read returns a plain file's contents, which may be limit bytes at most.
func (t *tree) read(name string, limit int64) ([]byte, error) {
	fd, err := t.open(name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: not a regular file", name)
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s: larger than %d bytes", name, limit)
	}
	return b, err
}

// maxNames is how many entries of a directory count.
const maxNames = 1 << 14

// list returns the names in a directory, numbers in them in numeric order, which
// belong to the tree. A directory that cannot be read is as good as an empty one.
// Each is read once in the life of a tree.
func (t *tree) list(dir string) []string {
	t.found.mu.Lock()
	defer t.found.mu.Unlock()
	return t.listLocked(dir)
}

func (t *tree) listLocked(dir string) []string {
	names, ok := t.found.names[dir]
	if !ok {
		names = t.readNames(dir)
		t.found.names[dir] = names
	}
	return names
}

func (t *tree) readNames(dir string) []string {
	fd, err := t.open(dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil
	}
	f := os.NewFile(uintptr(fd), dir)
	defer f.Close()
	names, _ := f.Readdirnames(maxNames)
	slices.SortFunc(names, compareNames)
	return names
}

// compareNames orders nvidia2 before nvidia10.
func compareNames(a, b string) int {
	if c := compareLibraries(a, b); c != 0 {
		return c
	}
	return cmp.Compare(a, b) // 1 and 01
}

// stat follows links.
func (t *tree) stat(name string) (st unix.Stat_t, err error) {
	fd, err := t.open(name, unix.O_PATH)
	if err != nil {
		return st, err
	}
	defer unix.Close(fd)
	err = unix.Fstat(fd, &st)
	return st, err
}

// is reports whether name is of a type, one of unix.S_IF*.
func (t *tree) is(name string, kind uint32) bool {
	st, err := t.stat(name)
	return err == nil && st.Mode&unix.S_IFMT == kind
}

// devices lists the character devices in dir whose names match a pattern of
// path.Match. They are looked for once in the life of a tree. The caller changes nothing of the list.
func (t *tree) devices(dir, pattern string) []string {
	t.found.mu.Lock()
	defer t.found.mu.Unlock()
	key := [2]string{dir, pattern}
	nodes, ok := t.found.nodes[key]
	if !ok {
		nodes = t.devicesLocked(dir, pattern)
		t.found.nodes[key] = nodes
	}
	return nodes
}

func (t *tree) devicesLocked(dir, pattern string) (nodes []string) {
	for _, n := range t.listLocked(dir) {
		if ok, _ := path.Match(pattern, n); ok && t.is(path.Join(dir, n), unix.S_IFCHR) {
			nodes = append(nodes, path.Join(dir, n))
		}
	}
	return nodes
}

// resolve returns the path of name in the tree without links.
func (t *tree) resolve(name string) (string, error) {
	fd, err := t.open(name, unix.O_PATH)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	p, err := descriptorPath(fd)
	if err != nil {
		return "", err
	}
	in, ok := strings.CutPrefix(p, t.path)
	if !ok || !path.IsAbs(in) {
		return "", unix.ENOENT // moved or removed meanwhile
	}
	return in, nil
}

// source is the host's path of a path in the tree without links.
func (t *tree) source(name string) string { return t.path + name }

// mayOpen reports whether the caller could open a device for reading and
// writing. The answer includes the device cgroup's, through which Slurm gives
// a job its devices (devcgroup_inode_permission, called by inode_permission in
// fs/namei.c). To open it would tell as well, but wakes a GPU that sleeps.
func (t *tree) mayOpen(name string) error {
	if t.denied[name] {
		return unix.EPERM
	}
	fd, err := t.open(name, unix.O_PATH)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// Not Faccessat: that takes EPERM for a kernel without the system call.
	return unix.Faccessat2(fd, "", unix.R_OK|unix.W_OK, unix.AT_EACCESS|unix.AT_EMPTY_PATH)
}

// text reads a small file of proc or sysfs, "" when there is none.
func (t *tree) text(name string) string {
	b, err := t.read(name, 1<<16)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// number reads an unsigned decimal number. Those of the kernel have no sign
// and no leading zeros; neither are the user's to have more than 9 digits.
func number(s string) (int, bool) {
	if s == "" || len(s) > 9 {
		return 0, false
	}
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return 0, false
		}
	}
	n, err := strconv.Atoi(s)
	return n, err == nil
}

// suffixNumber reads the number in a name such as nvidia7.
func suffixNumber(name, prefix string) (int, bool) {
	rest, ok := strings.CutPrefix(name, prefix)
	if !ok {
		return 0, false
	}
	return number(rest)
}
