package layer

import (
	"errors"
	"fmt"
	"strings"

	"github.com/squirefs/squire/sqfs"
	"github.com/squirefs/squire/sqfs/pack"
)

const (
	maxLinks    = 255        // symlinks that are followed for one name, as in containerd
	maxFollowed = 20_000_000 // components of their targets in all: a bound of the time, a second or so
)

var (
	errLoop     = fmt.Errorf("more than %d symlinks in its directory", maxLinks)
	errFollowed = errors.New("too many symlinks in directories, in all")
	errNotDir   = errors.New("its parent is not a directory")
	errNoTarget = errors.New("the link's target does not exist")
)

// tree is what the layers applied so far make, lowest first.
type tree struct {
	m    *merger
	root *pack.Inode

	// The way to a directory: dirs[0] is the root, names[k] leads from dirs[k] to dirs[k+1].
	// Directories that do not exist yet are nil.
	dirs     []*pack.Inode
	names    []string
	way      uint32 // the name that dirs leads to
	wayKnown bool   // it does, and nothing was removed since
	todo     []string
	followed int

	// What the current layer did, as far as a whiteout can still come.
	touched map[place]bool // true: an entry of the layer; false: only above one
	cleared map[*pack.Inode]bool
}

// place is a name in a directory.
type place struct {
	dir  *pack.Inode
	name string
}

// apply makes the tree of all layers. It frees their headers.
func (m *merger) apply() (*pack.Inode, error) {
	t := &tree{m: m, root: m.implied()}
	for n := 1; n <= len(m.layers); n++ {
		m.layer = n
		if err := t.applyLayer(m.ops[n]); err != nil {
			return nil, fmt.Errorf("%s %s: %w", m.verb(), m.layerName(n), err)
		}
		m.ops[n] = nil
	}
	return t.root, nil
}

// implied makes a directory that no entry describes.
func (m *merger) implied() *pack.Inode {
	return &pack.Inode{Type: sqfs.TypeDir, Mode: 0o755, ModTime: m.o.Time}
}

func (t *tree) applyLayer(ops []op) error {
	last := -1
	for i, o := range ops {
		if o.node == nil {
			last = i
		}
	}
	t.touched, t.cleared = map[place]bool{}, map[*pack.Inode]bool{}
	for i, o := range ops {
		if i > last {
			t.touched = nil // no whiteout asks for it any more
		}
		if i%1024 == 0 && t.m.ctx.Err() != nil {
			return t.m.ctx.Err()
		}
		if err := t.apply(o); err != nil {
			return t.fault(o, err)
		}
	}
	return nil
}

// fault says which entry failed.
func (t *tree) fault(o op, err error) error {
	path := t.m.names.path(o.path)
	switch {
	case o.link == isWhiteout:
		return fmt.Errorf("whiteout of %.200q: %w", path, err)
	case o.link == isOpaque:
		return fmt.Errorf("opaque directory %.200q: %w", path, err)
	case o.link < notLink:
		return fmt.Errorf("%.200q: hard link to %.200q: %w", path, t.m.names.path(o.link), err)
	}
	return fmt.Errorf("%.200q: %w", path, err)
}

func (t *tree) apply(o op) error {
	if o.node == nil {
		return t.hide(o)
	}
	if o.path == root {
		return t.setRoot(o)
	}
	n := t.m.names.at(o.path)
	if err := t.resolve(n.parent); err != nil {
		return err
	}
	if err := t.make(); err != nil {
		return err
	}
	dir := t.dirs[len(t.dirs)-1]
	old := dir.Entries[n.name]
	if o.link == isEntry && o.node.Type == sqfs.TypeDir && old != nil && old.Type == sqfs.TypeDir {
		describe(old, o.node)
		t.touch(dir, n.name)
		return nil
	}
	t.remove(dir, n.name)
	node := o.node
	if o.link != isEntry {
		t.touch(dir, n.name) // before the way changes; a failure is the end of all
		var err error
		if node, err = t.target(o); err != nil {
			return err
		}
	}
	insert(dir, n.name, node)
	if o.link == isEntry {
		t.touch(dir, n.name)
	}
	return nil
}

func (t *tree) setRoot(o op) error {
	if o.link != isEntry {
		return errors.New("the root cannot be a link")
	}
	describe(t.root, o.node)
	return nil
}

// describe gives an inode the metadata of another.
func describe(i, from *pack.Inode) {
	i.Mode, i.UID, i.GID, i.ModTime, i.Xattrs = from.Mode, from.UID, from.GID, from.ModTime, from.Xattrs
}

func insert(dir *pack.Inode, name string, i *pack.Inode) {
	if dir.Entries == nil {
		dir.Entries = map[string]*pack.Inode{}
	}
	dir.Entries[name] = i
}

// remove takes a name away, with all that is below.
func (t *tree) remove(dir *pack.Inode, name string) {
	if old := dir.Entries[name]; old != nil {
		delete(dir.Entries, name)
		if old.Type == sqfs.TypeDir || old.Type == sqfs.TypeSymlink {
			t.wayKnown = false
		}
	}
}

// target finds the inode that a hard link refers to, and gives it the link's metadata.
func (t *tree) target(o op) (*pack.Inode, error) {
	if o.link == root {
		return nil, errors.New("the link's target is a directory")
	}
	n := t.m.names.at(o.link)
	if err := t.resolve(n.parent); err != nil {
		return nil, err
	}
	dir := t.dirs[len(t.dirs)-1]
	if dir == nil || dir.Entries[n.name] == nil {
		return nil, errNoTarget
	}
	i := dir.Entries[n.name]
	if i.Type == sqfs.TypeDir {
		return nil, errors.New("the link's target is a directory")
	}
	if !t.m.o.Plain {
		mode, attributes := i.Mode, i.Xattrs
		describe(i, o.node)
		if i.Type == sqfs.TypeSymlink {
			i.Mode = mode
		}
		i.Xattrs = attributes
		for _, x := range o.node.Xattrs {
			set(i, x)
		}
	}
	return i, nil
}

// set gives an inode an attribute, in place of one of the same name.
func set(i *pack.Inode, x pack.Xattr) {
	for k := range i.Xattrs {
		if i.Xattrs[k].Name == x.Name {
			i.Xattrs[k] = x
			return
		}
	}
	i.Xattrs = append(i.Xattrs, x)
}

// resolve finds the way to a directory, through symlinks. What does not exist is nil in
// t.dirs; anything but a directory is an error.
func (t *tree) resolve(id uint32) error {
	if t.wayKnown && t.way == id {
		return nil
	}
	t.todo = t.todo[:0]
	for p := id; p != root; p = t.m.names.at(p).parent {
		t.todo = append(t.todo, t.m.names.at(p).name)
	}
	t.wayKnown = false
	t.dirs, t.names = append(t.dirs[:0], t.root), t.names[:0]
	links := 0
	for len(t.todo) > 0 {
		name := t.todo[len(t.todo)-1]
		t.todo = t.todo[:len(t.todo)-1]
		dir := t.dirs[len(t.dirs)-1]
		if name == ".." {
			if up := len(t.names) - 1; up >= 0 {
				t.dirs, t.names = t.dirs[:up+1], t.names[:up]
			}
			continue
		}
		var next *pack.Inode
		if dir != nil {
			next = dir.Entries[name]
		}
		switch {
		case next == nil || next.Type == sqfs.TypeDir:
			t.dirs, t.names = append(t.dirs, next), append(t.names, name)
		case next.Type != sqfs.TypeSymlink:
			return errNotDir
		default:
			if links++; links > maxLinks {
				return errLoop
			}
			if err := t.follow(next.Target); err != nil {
				return err
			}
		}
	}
	t.way = id
	return nil
}

// follow puts the components of a symlink's target before what is to be resolved yet.
func (t *tree) follow(target string) error {
	if target[0] == '/' {
		t.dirs, t.names = t.dirs[:1], t.names[:0]
	}
	for target != "" {
		i := strings.LastIndexByte(target, '/')
		if name := target[i+1:]; name != "" && name != "." {
			t.todo = append(t.todo, name)
		}
		if t.followed++; t.followed > maxFollowed {
			return errFollowed
		}
		target = target[:max(i, 0)]
	}
	if len(t.todo) > 2*maxDepth+maxLinks*maxTarget/2 {
		return errLoop
	}
	return nil
}

// make makes the directories that are missing on the way.
func (t *tree) make() error {
	for k, dir := range t.dirs {
		if dir != nil {
			continue
		}
		name := t.names[k-1]
		if len(name) > maxName {
			return errLongName
		}
		if k > maxDepth {
			return errLongPath
		}
		if err := t.m.charge(opCost + dirCost + int64(len(name))); err != nil {
			return err
		}
		t.dirs[k] = t.m.implied()
		insert(t.dirs[k-1], name, t.dirs[k])
	}
	t.wayKnown = true
	return nil
}

// touch notes that the current layer has an entry of a name in the directory that the way
// leads to.
func (t *tree) touch(dir *pack.Inode, name string) {
	if t.touched == nil {
		return
	}
	t.touched[place{dir, name}] = true
	for k := len(t.names) - 1; k >= 0; k-- {
		p := place{t.dirs[k], t.names[k]}
		if _, ok := t.touched[p]; ok {
			return
		}
		t.touched[p] = false
	}
}

// hide applies a whiteout: what lower layers have goes, what this one has stays.
func (t *tree) hide(o op) error {
	id := o.path
	if o.link == isWhiteout {
		id = t.m.names.at(o.path).parent
	}
	switch err := t.resolve(id); {
	case errors.Is(err, errNotDir):
		return nil // what does not exist is hidden already
	case err != nil:
		return err
	}
	dir := t.dirs[len(t.dirs)-1]
	t.wayKnown = false
	if dir == nil {
		return nil
	}
	if o.link == isOpaque {
		t.clear(dir)
		return nil
	}
	if name := t.m.names.at(o.path).name; dir.Entries[name] != nil {
		t.hideName(dir, name)
	}
	return nil
}

// hideName removes a name unless the layer has it itself, and else what is below.
func (t *tree) hideName(dir *pack.Inode, name string) {
	own, ok := t.touched[place{dir, name}]
	i := dir.Entries[name]
	switch {
	case !ok:
		delete(dir.Entries, name)
	case i.Type == sqfs.TypeDir:
		if !own {
			describe(i, t.m.implied())
		}
		t.clear(i)
	}
}

// clear removes what lower layers have in a directory. Once a layer is enough for each
// directory: there is nothing left to remove, and many whiteouts cost no time.
func (t *tree) clear(dir *pack.Inode) {
	if t.cleared[dir] {
		return
	}
	t.cleared[dir] = true
	for name := range dir.Entries {
		t.hideName(dir, name)
	}
}

// finish leaves out what the image is not to have, and finds the files that it has but
// whose contents were passed over.
func (m *merger) finish(root *pack.Inode) map[*pack.Inode]bool {
	missing := map[*pack.Inode]bool{}
	if !m.o.Plain {
		for name := range root.Entries {
			if strings.HasPrefix(name, meta) { // .wh..wh.plnk: where AUFS kept hard links
				delete(root.Entries, name)
			}
		}
	}
	m.finishDir(root, nil, missing)
	return missing
}

func (m *merger) finishDir(dir *pack.Inode, path []byte, missing map[*pack.Inode]bool) {
	for name, i := range dir.Entries {
		path := path
		if m.o.Exclude != nil {
			path = append(append(path, '/'), name...)
			if m.o.Exclude(string(path[1:])) {
				m.report.Excluded += count(i)
				delete(dir.Entries, name)
				continue
			}
		}
		switch {
		case i.Type == sqfs.TypeDir:
			m.finishDir(i, path, missing)
		case !m.o.Devices && (i.Type == sqfs.TypeChar || i.Type == sqfs.TypeBlock):
			m.report.Devices++
			delete(dir.Entries, name)
		case i.Data == passedOver:
			missing[i] = true
		}
	}
}

// count returns how many names there are: one for the inode and all below.
func count(i *pack.Inode) int64 {
	n := int64(1)
	for _, e := range i.Entries {
		n += count(e)
	}
	return n
}
