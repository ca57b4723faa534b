package importtest

import (
	"archive/tar"
	"fmt"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
)

// randomStack makes layers of entries that may follow each other in layers of real images: no entry is below a file,
// and hard links have a target. It knows what the stack shows so far, and what the layer has.
func randomStack(seed uint64) stack {
	g := &generator{Rand: rand.New(rand.NewPCG(seed, 7)), shown: map[string]byte{}}
	s := stack{name: fmt.Sprint("random ", seed), noOverlay: "parents are implied and links lead to layers below"}
	for range 2 + g.IntN(4) {
		s.layers = append(s.layers, g.layer())
	}
	return s
}

type generator struct {
	*rand.Rand
	shown map[string]byte // path to its kind: what is there when the layers so far are unpacked
	own   map[string]bool // paths that the layer has entries of or below
}

// layer makes a layer of 5 to 60 entries.
func (g *generator) layer() []entry {
	g.own = map[string]bool{}
	var l []entry
	for range 5 + g.IntN(56) {
		if e, ok := g.entry(); ok {
			l = append(l, e)
		}
	}
	return l
}

// names are few, so that layers have much to say about the same ones.
var names = []string{"a", "b", "c", "d", "lib", "usr"}

// path returns a random one of one to four names.
func (g *generator) path() string {
	var p []string
	for range 1 + g.IntN(4) {
		p = append(p, names[g.IntN(len(names))])
	}
	return path.Join(p...)
}

// clear says whether all parents of a path are directories or nothing: an entry below a file is none of a real layer,
// and one below a symlink is for the fixed stacks.
func (g *generator) clear(p string) bool {
	for d := path.Dir(p); d != "."; d = path.Dir(d) {
		if k, ok := g.shown[d]; ok && k != 'd' {
			return false
		}
	}
	return true
}

// put notes an entry of a kind, and the directories that it implies.
func (g *generator) put(p string, kind byte) {
	if kind != 'd' {
		g.remove(p, false)
	}
	g.shown[p], g.own[p] = kind, true
	for d := path.Dir(p); d != "."; d = path.Dir(d) {
		g.shown[d], g.own[d] = 'd', true
	}
}

// remove notes that a path is gone with all below it; or, for whiteouts, all that is not the layer's own.
func (g *generator) remove(p string, keepOwn bool) {
	for q := range g.shown {
		if (q == p || strings.HasPrefix(q, p+"/")) && (!keepOwn || !g.own[q]) {
			delete(g.shown, q)
		}
	}
}

// entry makes an entry, unless chance chose one that cannot be.
func (g *generator) entry() (e entry, ok bool) {
	p := g.path()
	if !g.clear(p) {
		return e, false
	}
	own, kind := g.own[p], g.shown[p]
	switch g.IntN(12) {
	case 0, 1, 2, 3: // a file
		if own && kind == 'd' {
			return e, false
		}
		g.put(p, 'f')
		return g.dress(file(p, strings.Repeat(p+".", g.IntN(3000)))), true
	case 4, 5, 6: // a directory
		if own && kind != 'd' {
			return e, false
		}
		if kind != 'd' {
			g.remove(p, false)
		}
		g.put(p, 'd')
		return g.dress(dir(p)), true
	case 7: // a symlink
		if own && kind == 'd' {
			return e, false
		}
		g.put(p, 'l')
		return symlink(p, g.path()).owner(g.IntN(5), g.IntN(5)), true
	case 8: // a hard link to something that is there
		var files []string
		for q, k := range g.shown {
			if k == 'f' && q != p && !strings.HasPrefix(q, p+"/") {
				files = append(files, q)
			}
		}
		if len(files) == 0 || own && kind == 'd' {
			return e, false
		}
		slices.Sort(files)
		to := files[g.IntN(len(files))]
		g.put(p, 'f')
		return hardlink(p, to), true
	case 9: // an opaque directory, before what the layer has in it: umoci keeps the owner of an implied one otherwise
		below := func(q string) bool { return strings.HasPrefix(q, p+"/") }
		if kind != 'd' || slices.ContainsFunc(slices.Collect(maps.Keys(g.own)), below) {
			return e, false
		}
		for q := range g.shown {
			if strings.HasPrefix(q, p+"/") && !g.own[q] {
				delete(g.shown, q)
			}
		}
		return opaque(p), true
	default: // a whiteout
		if own || kind == 0 {
			return e, false
		}
		g.remove(p, true)
		return whiteout(path.Dir(p), path.Base(p)), true
	}
}

// dress gives an entry an owner, a mode, and perhaps attributes. A directory gets no set-group-ID bit: what umoci makes
// in it because it is implied would inherit that from the kernel.
func (g *generator) dress(e entry) entry {
	e = e.owner(g.IntN(5), g.IntN(5)).perm([]int64{0o755, 0o644, 0o700, 0o4755, 0o1777, none, 0o2755}[g.IntN(7)])
	if e.kind == tar.TypeDir {
		e = e.perm(max(e.mode&^0o2000, none))
	}
	if g.IntN(4) == 0 {
		e = e.attr(map[string]string{"user." + names[g.IntN(len(names))]: e.name, "user.same": "same"})
	}
	return e
}
