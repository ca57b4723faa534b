package runtime

import (
	"bufio"
	"bytes"
	"slices"
	"strings"
)

// DefaultPath is the search path where the image sets none: that of Debian's
// and Docker's base images.
const DefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// localeNames do not pass from the host: the image rarely has the host's
// locale, and programs fail or warn when it is missing. pyxis drops the same.
var localeNames = []string{"LANG", "LANGUAGE", "LC_ALL"}

// environment merges the task's environment the way pyxis does: the caller's
// variables without its locale, overwritten by the image's, except the names
// in s.KeepEnv; then s.SetEnv. PATH always is the image's or DefaultPath, as
// the host's names directories that the image need not have.
// The result is ordered as first seen and holds each name once. dir is the working
// directory.
func environment(s *Spec, image []string, dir string) []string {
	var e envList
	keep := func(name string) bool { return slices.Contains(s.KeepEnv, name) }
	for _, kv := range s.Environ {
		name, _, ok := strings.Cut(kv, "=")
		if ok && (keep(name) || !slices.Contains(localeNames, name)) {
			e.set(kv)
		}
	}
	inImage := append([]string{"PATH=" + DefaultPath}, image...)
	if s.RemapRoot {
		inImage = append([]string{"HOME=/root", "USER=root", "LOGNAME=root"}, inImage...)
	}
	for _, kv := range inImage {
		name, _, _ := strings.Cut(kv, "=")
		if _, set := e.get(name); !set || !keep(name) {
			e.set(kv)
		}
	}
	// These are of the host's directories.
	e.set("PWD=" + dir)
	e.unset("OLDPWD")
	e.torchRank()
	for _, kv := range s.SetEnv {
		e.set(kv)
	}
	return e.list
}

// envList is an environment in the form of os.Environ, each name once.
type envList struct {
	list []string
	at   map[string]int // name -> position in list
}

func (e *envList) get(name string) (string, bool) {
	i, ok := e.at[name]
	if !ok {
		return "", false
	}
	return e.list[i][len(name)+1:], true
}

// set takes a NAME=VALUE string.
func (e *envList) set(kv string) {
	name, _, _ := strings.Cut(kv, "=")
	if i, ok := e.at[name]; ok {
		e.list[i] = kv
		return
	}
	if e.at == nil {
		e.at = map[string]int{}
	}
	e.at[name] = len(e.list)
	e.list = append(e.list, kv)
}

func (e *envList) unset(name string) {
	i, ok := e.at[name]
	if !ok {
		return
	}
	e.list = append(e.list[:i], e.list[i+1:]...)
	delete(e.at, name)
	for n, at := range e.at {
		if at > i {
			e.at[n] = at - 1
		}
	}
}

// torchRank sets what PyTorch's env:// rendezvous wants from Slurm's ids, in
// images that name themselves PyTorch's, as pyxis does.
func (e *envList) torchRank() {
	if _, ok := e.get("PYTORCH_VERSION"); !ok {
		return
	}
	if v, ok := e.get("SLURM_PROCID"); ok {
		e.set("RANK=" + v)
	}
	if v, ok := e.get("SLURM_LOCALID"); ok {
		e.set("LOCAL_RANK=" + v)
	}
}

// parseEnvironment reads an image's /etc/environment: NAME=VALUE lines, one
// pair of quotes around the value stripped, comments and lines that are not
// assignments skipped, ENROOT_ names dropped, as enroot writes and reads it.
func parseEnvironment(text []byte) []string {
	var env envList
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, len(text)+1)
	for lines.Scan() {
		name, value, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(lines.Text()), "export "), "=")
		if !ok || !validName(name) || strings.HasPrefix(name, "ENROOT_") || strings.ContainsRune(value, 0) {
			continue
		}
		env.set(name + "=" + unquote(value))
	}
	return env.list
}

func unquote(s string) string {
	if n := len(s); n >= 2 && (s[0] == '"' || s[0] == '\'') && s[n-1] == s[0] {
		return s[1 : n-1]
	}
	return s
}

// validName reports whether a shell could set a variable of that name.
func validName(s string) bool {
	for i, c := range []byte(s) {
		letter := c == '_' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}
