package layer

import (
	"errors"
	"fmt"
	"hash/maphash"
	"strings"
)

// root is the number of the root directory among the names.
const root = 0

const (
	maxName  = 255   // bytes of a component: NAME_MAX of Linux, and what squashfs holds less one
	maxPath  = 65536 // bytes of the name of an entry
	maxDepth = 4095  // components of it: package sqfs walks trees of 4096 levels
)

var (
	errLongName = errors.New("the name of a component has more than 255 bytes")
	errLongPath = fmt.Errorf("the path has more than %d bytes or %d components", maxPath, maxDepth)
)

// name is a path that entries of any layer spelled, and what the layers read so far do to
// it. Layers have numbers from 1 up; as they are read from the top down, the first to do
// something is the topmost. 0 is none.
type name struct {
	name   string // the last component
	parent uint32 // number of the directory
	entry  uint16 // topmost layer with an entry of this name, of any type
	cover  uint16 // topmost that has no directory here, or a whiteout: nothing here or below shines through
	opaque uint16 // topmost that hides the lower children
	want   uint16 // topmost layer with a hard link to the file that lower layers have here
	last   uint16 // the layer that had an entry of this name last
	flags  uint8
}

const (
	judged   = 1 << iota // it is known whether the path is excluded
	excluded             // it is, or one above it
)

// names is the tree of all names: a million take some 50 MB, each once. Children are
// found in a hash table of numbers, as a map would take more than all the rest.
type names struct {
	chunks [][]name // by number; in pieces, so that growing copies nothing
	count  uint32
	cost   int64    // bytes of memory, about
	table  []uint32 // open addressing; 0 is free, as the root is in no directory
	seed   maphash.Seed

	dir   string // the directory that was spelled last, as spelled
	dirID uint32
	depth int // of dirID
}

const chunkNames = 4096

// nameCost is what a name takes in memory beside its bytes: itself, its share of the
// table, what rounding up its bytes wastes.
const nameCost = 32 + 8 + 8

func newNames() *names {
	n := &names{table: make([]uint32, 1024), seed: maphash.MakeSeed()}
	n.add(name{})
	return n
}

func (n *names) at(id uint32) *name { return &n.chunks[id/chunkNames][id%chunkNames] }

func (n *names) add(v name) uint32 {
	if n.count%chunkNames == 0 {
		n.chunks = append(n.chunks, make([]name, chunkNames))
	}
	n.count++
	n.cost += nameCost + int64(len(v.name))
	*n.at(n.count - 1) = v
	return n.count - 1
}

func (n *names) slot(parent uint32, s string) uint64 {
	return (maphash.String(n.seed, s) + uint64(parent)) * 0x9e3779b97f4a7c15 >> 20
}

// child returns the number of a name in a directory.
func (n *names) child(parent uint32, s string) uint32 {
	mask := uint64(len(n.table) - 1)
	i := n.slot(parent, s) & mask
	for ; n.table[i] != 0; i = (i + 1) & mask {
		if v := n.at(n.table[i]); v.parent == parent && v.name == s {
			return n.table[i]
		}
	}
	id := n.add(name{name: strings.Clone(s), parent: parent})
	n.table[i] = id
	if int(n.count) > len(n.table)/4*3 {
		n.grow()
	}
	return id
}

func (n *names) grow() {
	n.table = make([]uint32, 2*len(n.table))
	mask := uint64(len(n.table) - 1)
	for id := uint32(1); id < n.count; id++ {
		v := n.at(id)
		i := n.slot(v.parent, v.name) & mask
		for n.table[i] != 0 {
			i = (i + 1) & mask
		}
		n.table[i] = id
	}
}

// parse returns the number of a path as an archive spells it. It is cleaned as text:
// nothing leads out of the root.
func (n *names) parse(path string) (uint32, error) {
	if len(path) > maxPath {
		return 0, errLongPath
	}
	path = strings.TrimRight(path, "/")
	id, depth := uint32(root), 0
	// Most entries are in the directory of the one before.
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		if path[:i] == n.dir {
			id, depth, path = n.dirID, n.depth, path[i+1:]
		} else {
			var err error
			if id, depth, err = n.walk(id, depth, path[:i]); err != nil {
				return 0, err
			}
			n.dir, n.dirID, n.depth, path = strings.Clone(path[:i]), id, depth, path[i+1:]
		}
	}
	id, _, err := n.walk(id, depth, path)
	return id, err
}

func (n *names) walk(id uint32, depth int, path string) (uint32, int, error) {
	for more := true; more; {
		var s string
		switch s, path, more = strings.Cut(path, "/"); s {
		case "", ".":
		case "..":
			if depth > 0 {
				id, depth = n.at(id).parent, depth-1
			}
		default:
			if len(s) > maxName {
				return 0, 0, errLongName
			}
			if depth++; depth > maxDepth {
				return 0, 0, errLongPath
			}
			id = n.child(id, s)
		}
	}
	return id, depth, nil
}

// path spells a name out, without a leading slash; the root is "".
func (n *names) path(id uint32) string {
	var parts []string
	for ; id != root; id = n.at(id).parent {
		parts = append(parts, n.at(id).name)
	}
	var b strings.Builder
	for i := len(parts) - 1; i >= 0; i-- {
		b.WriteString(parts[i])
		if i > 0 {
			b.WriteByte('/')
		}
	}
	return b.String()
}
