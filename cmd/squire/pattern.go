package main

import (
	"bytes"
	"fmt"
	"path"
	"strings"

	"github.com/squirefs/squire/sqfs"
)

// pattern is a path of an image in which each name may have wildcards. It is of any
// bytes, as names are.
type pattern struct {
	text  string
	names []string // none: the root, and with it everything
	used  bool     // something matched
}

// newPattern checks a pattern. Slashes at its ends, "." and ".." are taken out: what
// ".." leaves is never a link, for patterns do not follow any.
func newPattern(text string) (pattern, error) {
	p := pattern{text: text}
	clean := strings.TrimPrefix(path.Clean("/"+text), "/")
	if clean == "" {
		return p, nil
	}
	for name := range strings.SplitSeq(clean, "/") {
		name = strings.ReplaceAll(name, "[!", "[^") // as shells have it
		if _, err := path.Match(name, ""); err != nil {
			return p, fmt.Errorf("pattern %s: %w", printable(text), err)
		}
		p.names = append(p.names, name)
	}
	return p, nil
}

// newPatterns checks patterns.
func newPatterns(texts []string) ([]pattern, error) {
	var all []pattern
	for _, text := range texts {
		p, err := newPattern(text)
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	return all, nil
}

// match compares p with a path of an image: the path is what p names or lies below it,
// or it may lead to what p names.
func (p *pattern) match(file []byte) (at, above bool) {
	for i, name := range p.names {
		if len(file) == 0 {
			return false, true
		}
		var elem []byte
		elem, file, _ = bytes.Cut(file, []byte("/"))
		if !matchName(name, string(elem)) {
			return false, false
		}
		if i == len(p.names)-1 {
			return true, false
		}
	}
	return true, false
}

// wild reports whether the pattern can match more than one path.
func (p *pattern) wild() bool { return strings.ContainsAny(p.text, `*?[\`) }

// find walks the image and calls visit for what p matches, what lies below, and what is
// damaged on the way. It returns whether p matches anything. Without visit it stops
// there; else visit says whether to go on.
func (p *pattern) find(img *sqfs.Image, visit func(*sqfs.Visit, error) bool) (found bool) {
	root, err := img.Inode(img.Root())
	if err != nil {
		return false
	}
	for v, err := range img.Walk(&root) {
		at, above := p.match(v.Path)
		switch {
		case v.Leave:
		case !at && !above:
			v.Skip()
		case at && err == nil && visit == nil:
			return true
		case at || err != nil:
			found = found || at
			if visit != nil && !visit(v, err) {
				return found
			}
		}
	}
	return found
}

// matchName is fnmatch with FNM_PERIOD, as in unsquashfs: a dot at the beginning of a
// name is matched by a dot only.
func matchName(pattern, name string) bool {
	if name[0] == '.' && pattern[0] != '.' && !strings.HasPrefix(pattern, `\.`) {
		return false
	}
	ok, _ := path.Match(pattern, name) // newPattern checked it
	return ok
}

// selection is what patterns choose of an image.
type selection struct {
	take    []pattern // none: everything
	exclude []pattern
}

// choose is extract.Options.Select.
func (s *selection) choose(file []byte, _ bool) (take, within bool) {
	for i := range s.exclude {
		if at, _ := s.exclude[i].match(file); at {
			s.exclude[i].used = true
			return false, false
		}
	}
	if len(s.take) == 0 {
		return true, true
	}
	for i := range s.take {
		at, above := s.take[i].match(file)
		if at {
			s.take[i].used, take = true, true
		}
		within = within || at || above
	}
	return take, within
}

// unused returns the patterns that nothing matched.
func (s *selection) unused() (texts []string) {
	for _, list := range [][]pattern{s.take, s.exclude} {
		for _, p := range list {
			if !p.used && len(p.names) > 0 {
				texts = append(texts, p.text)
			}
		}
	}
	return texts
}
