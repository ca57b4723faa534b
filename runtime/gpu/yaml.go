package gpu

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// CDI files are written by programs (nvidia-ctk, ROCm's and Intel's tools), in a
// small part of YAML: mappings and sequences by indentation, scalars on one line,
// brackets. That part is read here, and all else is refused, never guessed:
// anchors, tags, block scalars, values on several lines. A library for all of YAML costs each start of
// the program 0.2 ms, or 0.3 ms with the CNCF's on top (GODEBUG=inittrace=1),
// four times for a container, whether it has devices or not.

const (
	maxYAMLDepth = 32
	maxYAMLLines = 1 << 17
)

// yamlLine is a line that is not empty and not a comment.
type yamlLine struct {
	number int
	indent int
	text   string // without indentation and trailing blanks
}

type yamlParser struct {
	lines []yamlLine
	at    int
	depth int
}

// parseYAML returns maps, lists, strings, nil, and json.Number for what YAML
// takes for something other than a string.
func parseYAML(b []byte) (any, error) {
	if !utf8.Valid(b) {
		return nil, errors.New("not UTF-8")
	}
	p := &yamlParser{}
	if err := p.split(string(b)); err != nil {
		return nil, err
	}
	if len(p.lines) == 0 {
		return nil, nil
	}
	v, err := p.block(p.lines[0].indent)
	if err == nil && p.at < len(p.lines) {
		err = p.errorf("does not belong to what is above it")
	}
	if err != nil {
		return nil, err
	}
	return v, nil
}

func (p *yamlParser) split(text string) error {
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimRight(line, "\r\n")
		trimmed := strings.TrimLeft(line, " ")
		if n > maxYAMLLines {
			return errors.New("too many lines")
		}
		for _, r := range line {
			if r < ' ' || r == 0x7f || r == 0xfeff || r == 0x85 || r == 0x2028 || r == 0x2029 || r >= 0x80 && r < 0xa0 {
				return fmt.Errorf("line %d: a control character or a tab", n)
			}
		}
		if trimmed == "" || trimmed[0] == '#' {
			continue
		}
		if line == "---" && len(p.lines) == 0 {
			continue
		}
		if strings.HasPrefix(line, "---") || strings.HasPrefix(line, "...") || strings.HasPrefix(line, "%") {
			return fmt.Errorf("line %d: more than one document, or a directive", n)
		}
		p.lines = append(p.lines, yamlLine{n, len(line) - len(trimmed), strings.TrimRight(trimmed, " ")})
	}
	return nil
}

func (p *yamlParser) errorf(format string, args ...any) error {
	n := 0
	if at := min(p.at, len(p.lines)-1); at >= 0 {
		n = p.lines[at].number
	}
	return fmt.Errorf("line %d: %s", n, fmt.Sprintf(format, args...))
}

// block reads the mapping or sequence whose lines are indented by indent.
func (p *yamlParser) block(indent int) (any, error) {
	if p.depth++; p.depth > maxYAMLDepth {
		return nil, p.errorf("too deep")
	}
	defer func() { p.depth-- }()
	if isItem(p.lines[p.at].text) {
		return p.sequence(indent)
	}
	return p.mapping(indent)
}

func isItem(s string) bool { return s == "-" || strings.HasPrefix(s, "- ") }

func (p *yamlParser) more(indent int) bool {
	return p.at < len(p.lines) && p.lines[p.at].indent == indent
}

func (p *yamlParser) sequence(indent int) (any, error) {
	list := []any{}
	for p.more(indent) && isItem(p.lines[p.at].text) {
		l := &p.lines[p.at]
		rest := strings.TrimLeft(l.text[1:], " ")
		if rest == "" || rest[0] == '#' {
			v, err := p.nested(indent, false)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
			continue
		}
		if key, _, err := p.key(rest); isItem(rest) || err == nil && key != "" {
			// What stands behind the dash is the first line of a block.
			l.indent += len(l.text) - len(rest)
			l.text = rest
			v, err := p.block(l.indent)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
			continue
		}
		v, err := p.value(rest, indent)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return list, nil
}

// nested reads the block below a line that ends with its key or dash. A
// sequence may be as far to the left as its key.
func (p *yamlParser) nested(indent int, inMapping bool) (any, error) {
	p.at++
	if p.at < len(p.lines) {
		l := p.lines[p.at]
		if l.indent > indent || inMapping && l.indent == indent && isItem(l.text) {
			return p.block(l.indent)
		}
	}
	return nil, nil
}

func (p *yamlParser) mapping(indent int) (any, error) {
	m := map[string]any{}
	for p.more(indent) && !isItem(p.lines[p.at].text) {
		key, rest, err := p.key(p.lines[p.at].text)
		if err != nil {
			return nil, err
		}
		if key == "" {
			return nil, p.errorf("neither a key nor an item")
		}
		if _, dup := m[key]; dup {
			return nil, p.errorf("key %q is there twice", key)
		}
		if rest == "" || rest[0] == '#' {
			m[key], err = p.nested(indent, true)
		} else {
			m[key], err = p.value(rest, indent)
		}
		if err != nil {
			return nil, err
		}
	}
	return m, nil
}

// key splits "key: rest". Keys are plain words: those of CDI are, and so are
// the names of annotations. No key at all gives an empty one.
func (p *yamlParser) key(s string) (key, rest string, err error) {
	i := 0
	for i < len(s) && (isAlnum(s[i]) || i > 0 && strings.IndexByte("_-./", s[i]) >= 0) {
		i++
	}
	if i == 0 || i == len(s) || s[i] != ':' || i+1 < len(s) && s[i+1] != ' ' {
		return "", "", nil
	}
	if _, isText := plain(s[:i]).(string); !isText {
		return "", "", p.errorf("key %q is not a word", s[:i])
	}
	return s[:i], strings.TrimLeft(s[i+1:], " "), nil
}

// value reads the scalar or the brackets that end a line.
func (p *yamlParser) value(s string, indent int) (any, error) {
	f := flow{text: s}
	v, err := f.value(false, 0)
	if err == nil && !f.atEnd() {
		err = errors.New("something follows the value")
	}
	if err != nil {
		return nil, p.errorf("%v", err)
	}
	p.at++
	if p.at < len(p.lines) && p.lines[p.at].indent > indent {
		return nil, p.errorf("a value on several lines is not read")
	}
	return v, nil
}

// flow reads one line's scalars and brackets.
type flow struct {
	text string
	at   int
}

func (f *flow) space() {
	for f.at < len(f.text) && f.text[f.at] == ' ' {
		f.at++
	}
}

// atEnd reports whether nothing but a comment is left.
func (f *flow) atEnd() bool {
	f.space()
	return f.at == len(f.text) || f.text[f.at] == '#' && f.text[f.at-1] == ' '
}

func (f *flow) value(inside bool, depth int) (any, error) {
	if depth > maxYAMLDepth {
		return nil, errors.New("too deep")
	}
	if f.at == len(f.text) {
		return nil, errors.New("a value is missing")
	}
	switch c := f.text[f.at]; c {
	case '[':
		return f.sequence(depth)
	case '{':
		return f.mapping(depth)
	case '"', '\'':
		return f.quoted(c)
	default:
		return f.plain(inside)
	}
}

// items reads what stands between brackets, separated by commas.
func (f *flow) items(end byte, item func() error) error {
	f.at++
	for n := 0; ; n++ {
		f.space()
		if f.at < len(f.text) && f.text[f.at] == end {
			f.at++
			return nil
		}
		if n > 0 {
			if f.at == len(f.text) || f.text[f.at] != ',' {
				return errors.New("a bracket is not closed on its line")
			}
			f.at++
			f.space()
		}
		if err := item(); err != nil {
			return err
		}
	}
}

func (f *flow) sequence(depth int) (any, error) {
	list := []any{}
	err := f.items(']', func() error {
		v, err := f.value(true, depth+1)
		list = append(list, v)
		return err
	})
	return list, err
}

func (f *flow) mapping(depth int) (any, error) {
	m := map[string]any{}
	err := f.items('}', func() error {
		k, err := f.value(true, depth+1)
		if err != nil {
			return err
		}
		key, isText := k.(string)
		if _, dup := m[key]; dup || !isText || f.at+1 >= len(f.text) || f.text[f.at] != ':' || f.text[f.at+1] != ' ' {
			return errors.New("want KEY: VALUE, each key once")
		}
		f.at++
		f.space()
		m[key], err = f.value(true, depth+1)
		return err
	})
	return m, err
}

// quoted reads a string in quotes of one kind.
func (f *flow) quoted(quote byte) (any, error) {
	var b strings.Builder
	for f.at++; f.at < len(f.text); f.at++ {
		c := f.text[f.at]
		switch {
		case c == quote && quote == '\'' && strings.HasPrefix(f.text[f.at+1:], "'"):
			f.at++
			b.WriteByte(c)
		case c == quote:
			f.at++
			return b.String(), nil
		case c == '\\' && quote == '"':
			f.at++
			if f.at == len(f.text) || strings.IndexByte(`"\`, f.text[f.at]) < 0 {
				return nil, errors.New(`an escape other than \" and \\ is not read`)
			}
			b.WriteByte(f.text[f.at])
		default:
			b.WriteByte(c)
		}
	}
	return nil, errors.New("a quote is not closed on its line")
}

// plain reads a scalar without quotes. Characters that mean something in YAML
// are refused at its start, and inside brackets.
func (f *flow) plain(inside bool) (any, error) {
	start := f.at
	if strings.IndexByte("&*!|>%@`,[]{}?:#=<", f.text[start]) >= 0 || isItem(f.text[start:]) {
		return nil, fmt.Errorf("%q at the start of a value is not read", f.text[start])
	}
	for ; f.at < len(f.text); f.at++ {
		c := f.text[f.at]
		next := byte(' ')
		if f.at+1 < len(f.text) {
			next = f.text[f.at+1]
		}
		switch {
		case c == '#' && f.text[f.at-1] == ' ':
			return f.scalar(start), nil
		case c == ':' && next == ' ' && !inside:
			return nil, errors.New("a key inside of a value")
		case inside && c == ':' && next == ' ':
			return f.scalar(start), nil
		case inside && strings.IndexByte(",]}", c) >= 0:
			return f.scalar(start), nil
		case inside && strings.IndexByte("[{?:", c) >= 0:
			return nil, fmt.Errorf("%q inside of brackets is not read", c)
		}
	}
	return f.scalar(start), nil
}

func (f *flow) scalar(start int) any {
	return plain(strings.TrimRight(f.text[start:f.at], " "))
}

// plain types a scalar without quotes. What YAML, in any of its versions, would
// take for a number, a boolean, a date and so on is no string: a json.Number with
// its text, which only fields for numbers take.
func plain(s string) any {
	switch strings.ToLower(s) {
	case "~", "null", "":
		return nil
	case "y", "n", "yes", "no", "on", "off", "true", "false", ".nan", ".inf", "<<", "=", "-", "--":
		return json.Number(s)
	}
	first := strings.TrimLeft(s, "+-.")
	switch {
	case first == "" || first[0] < '0' || first[0] > '9':
	case strings.Trim(s, "0123456789.") == "" && strings.Count(s, ".") > 1: // a version
	case strings.Trim(s, "0123456789abcdefABCDEFxXoO_+-.:tTzZ ") == "":
		return json.Number(s)
	}
	if strings.HasPrefix(strings.ToLower(strings.TrimLeft(s, "+-")), ".inf") {
		return json.Number(s)
	}
	return s
}
