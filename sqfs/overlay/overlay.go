// Package overlay packs an image together with the writable layer of an overlay file
// system that was mounted over it, as the one image that the overlay showed.
//
// Neither is mounted for that, and nothing needs rights: the image is read as squashfs,
// the layer as the directory that it is, and what overlayfs has noted in the layer is
// applied to their trees (fs/overlayfs, Documentation/filesystems/overlayfs.rst):
//
//   - A character device 0:0 is a whiteout: the name is not there. So is an empty regular
//     file with the attribute overlay.whiteout in a directory whose overlay.opaque is "x".
//   - A directory over a directory shows the entries of both, unless its overlay.opaque is
//     "y". Anything else hides what is below it.
//   - overlay.redirect names the directory or file of the image that belongs to one that
//     was renamed: a path from the root, or a name beside.
//   - overlay.metacopy is on a file whose contents are the image's still.
//   - The attributes of overlayfs, "trusted.overlay." or "user.overlay.", are not the
//     files'. Of those that an overlay inside has made, one level is taken away.
//
// Hard links that overlayfs has broken stay so. Attributes and owners are the layer's,
// where it has something of a name, but see [Options].
package overlay

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/squirefs/squire/sqfs"
	"github.com/squirefs/squire/sqfs/pack"
)

// Options say how a layer is understood.
type Options struct {
	// Owned: all files of the layer belong to one user, who could not give them anybody
	// else. Those that the image has keep its owner, and others become root's.
	Owned bool
	// Anew: no blocks are copied, also where they could be.
	Anew bool
	// Places are paths that were made in the layer to mount something on. Those that are
	// empty and that the image does not have are left out, and so are directories that
	// are there only because of them.
	Places []string
}

// maxDepth bounds how far down a tree is merged, as the walk of an image does.
const maxDepth = 4096

// merge puts the tree of a layer over that of an image, which becomes that of the result.
// What it takes of the layer is not copied. same is told of files of the layer whose
// contents are those of a file of the image.
func merge(base, layer *pack.Inode, o Options, same func(top, origin *pack.Inode)) error {
	if base.Type != sqfs.TypeDir || layer.Type != sqfs.TypeDir {
		return errors.New("overlay: the root is no directory")
	}
	m := &merger{o: o, root: base, same: same, met: map[*pack.Inode]bool{}, places: map[string]bool{}}
	for _, p := range o.Places {
		for p = strings.Trim(path.Clean("/"+p), "/"); p != "" && p != "."; p = path.Dir(p) {
			m.places[p] = true
		}
	}
	m.redirected = m.lookups(layer)
	// The directory of the layer itself was made by who mounted it, and is not the root's.
	return m.dir("", base, layer, 0)
}

// merger merges two trees.
type merger struct {
	o          Options
	root       *pack.Inode
	places     map[string]bool // and the directories above them
	redirected map[*pack.Inode]*pack.Inode
	met        map[*pack.Inode]bool // files of the layer
	same       func(top, origin *pack.Inode)
}

// lookups finds what renamed directories and files of the layer were in the image, before
// that is changed.
func (m *merger) lookups(layer *pack.Inode) map[*pack.Inode]*pack.Inode {
	found := map[*pack.Inode]*pack.Inode{}
	var walk func(ino, below *pack.Inode, depth int)
	walk = func(ino, below *pack.Inode, depth int) {
		for name, e := range ino.Entries {
			var under *pack.Inode
			if below != nil && !opaque(ino) {
				under = below.Entries[name]
			}
			if to, ok := attribute(e, "redirect"); ok {
				if strings.HasPrefix(to, "/") {
					under = m.find(to)
				} else if below != nil {
					under = below.Entries[to]
				}
				found[e] = under
			}
			if e.Type == sqfs.TypeDir && depth < maxDepth {
				if under != nil && under.Type != sqfs.TypeDir {
					under = nil
				}
				walk(e, under, depth+1)
			}
		}
	}
	walk(layer, m.root, 0)
	return found
}

// find looks a path of the image up, through no links.
func (m *merger) find(name string) *pack.Inode {
	at := m.root
	for part := range strings.SplitSeq(strings.Trim(name, "/"), "/") {
		if at == nil {
			return nil
		}
		at = at.Entries[part]
	}
	return at
}

// dir puts the entries of a directory of the layer into that of the image.
func (m *merger) dir(at string, base, layer *pack.Inode, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("overlay: %s: more than %d directories deep", at, maxDepth)
	}
	if base.Entries == nil {
		base.Entries = map[string]*pack.Inode{}
	}
	for _, name := range slices.Sorted(maps.Keys(layer.Entries)) {
		if err := m.entry(strings.TrimPrefix(at+"/"+name, "/"), name, base, layer, depth); err != nil {
			return err
		}
	}
	return nil
}

// entry applies an entry of the layer.
func (m *merger) entry(at, name string, base, layer *pack.Inode, depth int) error {
	top, under := layer.Entries[name], base.Entries[name]
	if whiteout(top, layer) {
		delete(base.Entries, name)
		return nil
	}
	origin, renamed := m.redirected[top]
	if !renamed {
		origin = under
	}
	if top.Type != sqfs.TypeDir {
		if under == nil && m.place(at) && emptyFile(top) {
			return nil
		}
		if err := m.file(top, origin); err != nil {
			return fmt.Errorf("overlay: %s: %w", at, err)
		}
		base.Entries[name] = top
		return nil
	}
	result := &pack.Inode{Type: sqfs.TypeDir, Entries: map[string]*pack.Inode{}}
	if origin != nil && origin.Type == sqfs.TypeDir && !opaque(top) {
		result.Entries = origin.Entries
		if renamed { // the old place may be merged as well: its own map is not to be shared
			result.Entries = maps.Clone(origin.Entries)
		}
	}
	had := len(result.Entries)
	m.describe(result, top, origin)
	if err := m.dir(at, result, top, depth+1); err != nil {
		return err
	}
	if under == nil && had == 0 && len(result.Entries) == 0 && m.place(at) {
		return nil
	}
	base.Entries[name] = result
	return nil
}

// place reports whether something may be there only because of a mount.
func (m *merger) place(at string) bool { return m.places[at] }

// emptyFile reports whether this could have been made to mount something on.
func emptyFile(i *pack.Inode) bool {
	return i.Type == sqfs.TypeFile && (i.Data == nil || i.Data.Size() == 0)
}

// file makes a file of the layer one of the result.
func (m *merger) file(top, origin *pack.Inode) error {
	if m.met[top] {
		return nil // under another name
	}
	m.met[top] = true
	if _, ok := attribute(top, "metacopy"); ok && top.Type == sqfs.TypeFile {
		if origin == nil || origin.Type != sqfs.TypeFile {
			return errors.New("its contents are those of a file that the image does not have")
		}
		m.same(top, origin)
	}
	m.describe(top, top, origin)
	return nil
}

// describe gives an inode owner, mode, time and attributes of the layer's.
func (m *merger) describe(result, top, origin *pack.Inode) {
	result.Mode, result.ModTime = top.Mode, top.ModTime
	result.UID, result.GID = top.UID, top.GID
	result.Xattrs = ownXattrs(top.Xattrs)
	if !m.o.Owned {
		return
	}
	result.UID, result.GID = 0, 0
	if origin != nil {
		result.UID, result.GID = origin.UID, origin.GID
	}
}

// Prefixes of the attributes of overlayfs, and of those of an overlay inside, of which one
// level is escaped (fs/overlayfs/xattrs.c).
var prefixes = []string{"user.overlay.", "trusted.overlay."}

const escaped = "overlay."

// ownXattrs leaves those out that are not the file's.
func ownXattrs(list []pack.Xattr) (own []pack.Xattr) {
	for _, x := range list {
		keep := true
		for _, p := range prefixes {
			if rest, ok := strings.CutPrefix(x.Name, p); ok {
				rest, keep = strings.CutPrefix(rest, escaped)
				x.Name = p + rest
			}
		}
		if keep {
			own = append(own, x)
		}
	}
	return own
}

// attribute returns what overlayfs has noted with a file.
func attribute(i *pack.Inode, name string) (string, bool) {
	for _, x := range i.Xattrs {
		for _, p := range prefixes {
			if x.Name == p+name {
				return string(bytes.TrimRight(x.Value, "\x00")), true
			}
		}
	}
	return "", false
}

// opaque reports whether a directory hides the image's.
func opaque(dir *pack.Inode) bool {
	v, _ := attribute(dir, "opaque")
	return v == "y"
}

// whiteout reports whether an entry of a directory says that there is none.
func whiteout(i, dir *pack.Inode) bool {
	if i.Type == sqfs.TypeChar {
		return i.Rdev == 0
	}
	_, marked := attribute(i, "whiteout")
	v, _ := attribute(dir, "opaque")
	return marked && v == "x" && emptyFile(i)
}
