package runtime

import (
	"bufio"
	"bytes"
	"slices"
	"strconv"
	"strings"
)

// DefaultPath is the search path where the image sets none: that of Debian's
// and Docker's base images.
const DefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// localeNames do not pass from the host: the image rarely has the host's
// locale, and programs fail or warn when it is missing. pyxis drops the same.
var localeNames = []string{"LANG", "LANGUAGE", "LC_ALL"}

// TaskEnvironment is the environment of a command in a container that is held: of what the caller has (s.Environ), and of
// what Hold says that the image sets. dir is the working directory.
func TaskEnvironment(s *Spec, image []string, dir string) []string { return environment(s, image, dir) }

// TaskVariables says which of the caller's variables TaskEnvironment looks at or changes: all others stay as they are. image
// is what Hold says that the image sets.
func TaskVariables(s *Spec, image []string) map[string]bool {
	touched := map[string]bool{"PATH": true, "HOME": true, "USER": true, "LOGNAME": true, "PWD": true, "OLDPWD": true}
	for _, names := range [][]string{localeNames, torchNames} {
		for _, name := range names {
			touched[name] = true
		}
	}
	for _, kv := range slices.Concat(image, s.SetEnv) {
		name, _, _ := strings.Cut(kv, "=")
		touched[name] = true
	}
	return touched
}

// heldEnviron is what an image sets, with what drivers of the host in the container need. It is called in the init stage.
func heldEnviron(ops []Op, image []string) []string {
	return driverEnvironment(ops, append([]string{"PATH=" + DefaultPath}, image...))
}

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
	e.torch()
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

// torchNames are the variables that torch looks at and sets.
var torchNames = []string{
	"PYTORCH_VERSION", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST", "SLURM_JOB_ID",
	"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
}

// torch sets what PyTorch's env:// rendezvous wants to know, in images that name themselves PyTorch's: the rank, from
// Slurm's ids, as pyxis does, and where the others meet unless that is said, as a hook does that comes with enroot.
func (e *envList) torch() {
	if _, ok := e.get("PYTORCH_VERSION"); !ok {
		return
	}
	if v, ok := e.get("SLURM_PROCID"); ok {
		e.set("RANK=" + v)
	}
	if v, ok := e.get("SLURM_LOCALID"); ok {
		e.set("LOCAL_RANK=" + v)
	}
	if v, ok := e.get("SLURM_STEP_NUM_TASKS"); ok {
		e.setDefault("WORLD_SIZE", v)
	}
	nodes, ok := e.get("SLURM_STEP_NODELIST")
	if !ok {
		return
	}
	e.setDefault("MASTER_ADDR", firstHost(nodes))
	id, _ := e.get("SLURM_JOB_ID")
	if job, err := strconv.ParseUint(id, 10, 32); err == nil {
		e.setDefault("MASTER_PORT", strconv.FormatUint(torchPort+job%torchPorts, 10))
	}
}

// The ports that jobs meet at, above those that Linux gives away (ip_local_port_range).
const (
	torchPort  = 61000
	torchPorts = 65536 - torchPort
)

// setDefault sets a variable that is not set, if there is a value.
func (e *envList) setDefault(name, value string) {
	if _, is := e.get(name); !is && value != "" {
		e.set(name + "=" + value)
	}
}

// firstHost is the first of a list of hosts as Slurm writes it: a,b or n[01-04,7]-x,m; "" if it is none.
func firstHost(list string) string {
	var host strings.Builder
	for list != "" {
		i := strings.IndexAny(list, ",[")
		if i < 0 {
			return host.String() + list
		}
		host.WriteString(list[:i])
		if list[i] == ',' {
			return host.String()
		}
		numbers, rest, ok := strings.Cut(list[i+1:], "]")
		if !ok {
			return ""
		}
		if end := strings.IndexAny(numbers, ",-"); end >= 0 {
			numbers = numbers[:end]
		}
		host.WriteString(numbers)
		list = rest
	}
	return host.String()
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
		if !ok || !ValidName(name) || strings.HasPrefix(name, "ENROOT_") || strings.ContainsRune(value, 0) {
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

// ValidName reports whether a shell could set a variable of that name.
func ValidName(s string) bool {
	for i, c := range []byte(s) {
		letter := c == '_' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}
