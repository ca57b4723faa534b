package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/squirefs/squire/sqfs"
)

// pattern is a path of an image in which each name may have wildcards. It is of any
// bytes, as names are.
type pattern struct {
	text    string
	names   []string // none: the root, and with it everything
	literal bool     // the names are as they are
	anyDir  bool     // the only name is looked for in all directories
	used    bool     // something matched
}

// newPattern checks a pattern. Slashes at its ends, "." and ".." are taken out: what
// ".." leaves is never a link, for patterns do not follow any. What is in the image by
// that very name is meant by it, whatever wildcards the name has: there is a program [.
// Without an image nobody knows what there will be, and wildcards are wildcards.
func newPattern(img *sqfs.Image, text string) (pattern, error) {
	p := pattern{text: text, names: splitPath(text)}
	if text == "" {
		return p, errEmptyPath
	}
	p.literal = !p.wild()
	if img != nil && !p.literal {
		_, err := img.Resolve(strings.Join(p.names, "/"), false)
		p.literal = err == nil
	}
	if p.literal {
		return p, nil
	}
	return p, p.parse()
}

// newExclude checks a pattern of --exclude. A name without directories is looked for in
// all of them, and is always a pattern.
func newExclude(img *sqfs.Image, text string) (pattern, error) {
	if strings.Contains(strings.TrimRight(text, "/"), "/") || len(splitPath(text)) != 1 {
		return newPattern(img, text)
	}
	p := pattern{text: text, names: splitPath(text), anyDir: true}
	return p, p.parse()
}

// newPatterns checks patterns with newPattern or newExclude.
func newPatterns(img *sqfs.Image, texts []string, check func(*sqfs.Image, string) (pattern, error)) ([]pattern, error) {
	var all []pattern
	for _, text := range texts {
		p, err := check(img, text)
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	return all, nil
}

var errEmptyPath = errors.New("empty path")

// splitPath returns the names of a path from the root, none for the root.
func splitPath(name string) []string {
	clean := strings.TrimPrefix(path.Clean("/"+name), "/")
	if clean == "" {
		return nil
	}
	return strings.Split(clean, "/")
}

// parse makes names what path.Match takes.
func (p *pattern) parse() (err error) {
	for i, name := range p.names {
		if p.names[i], err = matchForm(name); err != nil {
			return fmt.Errorf("pattern %s: %w", printable(p.text), err)
		}
	}
	return nil
}

// matchForm turns a pattern for one name as shells have it, with [!...], into one for
// path.Match, with [^...].
func matchForm(name string) (string, error) {
	b := []byte(name)
	class := false
	for i := 0; i < len(b); i++ {
		switch {
		case b[i] == '\\':
			i++
		case class && bytes.HasPrefix(b[i:], []byte("[:")) && bytes.Contains(b[i:], []byte(":]")):
			return "", errors.New("[:...:] is not supported; write ranges like a-z")
		case class:
			class = b[i] != ']'
		case b[i] == '[':
			if class = true; i+1 < len(b) && b[i+1] == '!' {
				i++
				b[i] = '^'
			}
		}
	}
	_, err := path.Match(string(b), "")
	return string(b), err
}

// match compares p with a path of an image: the path is what p names or lies below it,
// or it may lead to what p names.
func (p *pattern) match(file []byte) (at, above bool) {
	if p.anyDir { // of what lies below a directory that matches nobody asks
		last := file[bytes.LastIndexByte(file, '/')+1:]
		return len(last) > 0 && p.matchName(p.names[0], string(last)), true
	}
	for i, name := range p.names {
		if len(file) == 0 {
			return false, true
		}
		var elem []byte
		elem, file, _ = bytes.Cut(file, []byte("/"))
		if !p.matchName(name, string(elem)) {
			return false, false
		}
		if i == len(p.names)-1 {
			return true, false
		}
	}
	return true, false
}

// wild reports whether the pattern can match more than one path.
func (p *pattern) wild() bool { return !p.literal && strings.ContainsAny(p.text, wildcards) }

const wildcards = `*?[\`

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
func (p *pattern) matchName(pattern, name string) bool {
	if p.literal {
		return pattern == name
	}
	if name[0] == '.' && pattern[0] != '.' && !strings.HasPrefix(pattern, `\.`) {
		return false
	}
	ok, _ := path.Match(pattern, name) // parse checked it
	return ok
}

// missing says that p matches nothing, and what to try if that is because of a link on
// the way.
func (p *pattern) missing(img *sqfs.Image) error {
	names := splitPath(p.text)
	for i := 1; i < len(names); i++ { // the last name may be a link
		if !p.literal && strings.ContainsAny(names[i-1], wildcards) {
			break
		}
		link := strings.Join(names[:i], "/")
		ino, err := img.Resolve(link, false)
		if err != nil {
			break
		}
		if ino.Type != sqfs.TypeSymlink {
			continue
		}
		to, err := img.AppendLink(nil, &ino)
		if err != nil || !p.leads(img, names, i) {
			break
		}
		target := string(to)
		if !path.IsAbs(target) {
			target = "/" + path.Join(path.Dir(link), target)
		}
		return fmt.Errorf("%s: %s is a link to %s and patterns do not follow links: try %s", shownPath(p.text),
			shownPath(link), shownPath(string(to)), shownPath(path.Join(target, path.Join(names[i:]...))))
	}
	return notIn(p.text, fs.ErrNotExist)
}

// leads reports whether there is something in the image when the links among names are
// followed: all of names, or where one has wildcards those before it, but at least n.
func (p *pattern) leads(img *sqfs.Image, names []string, n int) bool {
	for n < len(names) && (p.literal || !strings.ContainsAny(names[n], wildcards)) {
		n++
	}
	_, err := img.Resolve(strings.Join(names[:n], "/"), true)
	return err == nil
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

// unused returns the patterns of a list that nothing matched.
func unused(list []pattern) (none []*pattern) {
	for i := range list {
		if p := &list[i]; !p.used && len(p.names) > 0 {
			none = append(none, p)
		}
	}
	return none
}
