package oci

import (
	"errors"
	"strconv"
	"strings"
)

// parseRC understands the /etc/rc that enroot's import writes, as far as it can be understood
// without a shell. It returns nil if the file is no such script.
func parseRC(s string) *Record {
	r := &Record{}
	head, enroot, cd := true, false, false
	var execs [][]string
	for line := range strings.Lines(s) {
		line = strings.TrimRight(line, "\r\n")
		text, comment := strings.CutPrefix(line, "# ")
		if head = head && comment; head {
			if src, ok := strings.CutPrefix(text, "enroot-provenance: "); ok {
				r.Source, enroot = oneLine(src), true
			} else if key, value, _ := strings.Cut(text, " "); key != "" {
				if r.Config.Labels == nil {
					r.Config.Labels = map[string]string{}
				}
				r.Config.Labels[key] = value
			}
			continue
		}
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "cd "):
			words, _ := splitWords(line)
			if len(words) >= 2 && !cd {
				r.Config.WorkingDir, cd = words[1], true
			}
		case line == "if [ $# -gt 0 ]; then":
			enroot = enroot || cd
		case strings.HasPrefix(line, "exec "):
			words, err := splitWords(strings.TrimSuffix(line, ` "$@"`))
			if err != nil {
				words = nil
			}
			execs = append(execs, words)
		}
	}
	if !enroot || len(execs) != 2 {
		return nil
	}
	// exec ENTRYPOINT "$@", and without arguments exec ENTRYPOINT CMD
	if with, without := execs[0], execs[1]; len(with) > 0 && len(without) >= len(with) {
		r.Config.Entrypoint = with[1:]
		r.Config.Cmd = without[len(with):]
	}
	if len(r.Config.Entrypoint) == 0 {
		r.Config.Entrypoint = nil
	}
	if len(r.Config.Cmd) == 0 {
		r.Config.Cmd = nil
	}
	if r.Config.check() != nil {
		return nil
	}
	return r
}

func parseEnvironment(s string) []string {
	var env []string
	for line := range strings.Lines(s) {
		line = strings.TrimLeft(strings.TrimRight(line, "\r\n"), " \t")
		if name, _, ok := strings.Cut(line, "="); ok && isName(name) && !strings.ContainsRune(line, 0) {
			env = append(env, line)
		}
	}
	return env
}

func isName(s string) bool {
	for i := range len(s) {
		if c := s[i]; c != '_' && !isAlnum(c) || i == 0 && c >= '0' && c <= '9' {
			return false
		}
	}
	return s != ""
}

// parseVolumes finds what enroot made of volumes: binds of a directory onto itself.
func parseVolumes(s string) map[string]struct{} {
	var all map[string]struct{}
	unescape := strings.NewReplacer(`\134`, `\`, `\040`, " ", `\011`, "\t", `\012`, "\n")
	for line := range strings.Lines(s) {
		f := strings.Fields(line)
		if len(f) < 4 || f[0] != "${ENROOT_ROOTFS}"+f[1] || !strings.HasPrefix(f[3], "x-create=dir,bind") || strings.ContainsRune(line, 0) {
			continue
		}
		if all == nil {
			all = map[string]struct{}{}
		}
		all[unescape.Replace(f[1])] = struct{}{}
	}
	return all
}

var errShell = errors.New("this needs a shell")

// splitWords splits a line into words as a shell does, without expanding anything: quotes of
// all kinds, also $'...', which bash writes for control characters. A list of commands ends
// at its first.
func splitWords(s string) ([]string, error) {
	var words []string
	var word strings.Builder
	in := false
	for i := 0; i < len(s); {
		n := 1
		switch c := s[i]; {
		case c == ' ' || c == '\t':
			if in {
				words = append(words, word.String())
				word.Reset()
				in = false
			}
		case c == '\'' || c == '"' || c == '$' && strings.HasPrefix(s[i:], "$'"):
			text, size, err := unquote(s[i:])
			if err != nil {
				return words, err
			}
			word.WriteString(text)
			n, in = size, true
		case c == '\\' && i+1 < len(s):
			word.WriteByte(s[i+1])
			n, in = 2, true
		case strings.IndexByte("$`\\;&|<>(){}*?[]~#", c) >= 0:
			return words, errShell
		default:
			word.WriteByte(c)
			in = true
		}
		i += n
	}
	if in {
		words = append(words, word.String())
	}
	return words, nil
}

// unquote reads what stands in quotes at the beginning of s, and how long that is.
func unquote(s string) (text string, size int, err error) {
	var b strings.Builder
	start, end := 1, s[0]
	if s[0] == '$' {
		start, end = 2, '\''
	}
	for i := start; i < len(s); i++ {
		c := s[i]
		switch {
		case c == end:
			return b.String(), i + 1, nil
		case c == '\\' && s[0] == '$':
			r, n := unescapeANSI(s[i+1:])
			if n == 0 {
				return "", 0, errShell
			}
			b.WriteString(r)
			i += n
		case c == '\\' && end == '"' && i+1 < len(s) && strings.IndexByte("$`\"\\", s[i+1]) >= 0:
			b.WriteByte(s[i+1])
			i++
		case (c == '$' || c == '`') && end == '"':
			return "", 0, errShell
		default:
			b.WriteByte(c)
		}
	}
	return "", 0, errShell
}

// unescapeANSI reads an escape of $'...', bash(1) QUOTING, and how long it is; 0: none that bash writes.
func unescapeANSI(s string) (string, int) {
	if s == "" {
		return "", 0
	}
	if i := strings.IndexByte(`abtnvfrE\'"?`, s[0]); i >= 0 {
		return "\a\b\t\n\v\f\r\x1b\\'\"?"[i : i+1], 1
	}
	if len(s) >= 3 {
		if v, err := strconv.ParseUint(s[:3], 8, 8); err == nil {
			return string([]byte{byte(v)}), 3
		}
	}
	return "", 0
}
