package runtime

import (
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/squirefs/squire/internal/mountinfo"
)

// Mount is one change to what the container sees that the user or the site asked for.
type Mount struct {
	// Source is an absolute path on the host, which is bound, or one of two words:
	// "tmpfs" makes a new tmpfs, "umount" takes away what is mounted.
	Source string
	Target string   // path inside, absolute, resolved inside the root
	Flags  []string // words of mountFlags, tmpfsFlags and tmpfsOptions, umountFlags
	Within []string // see Op; none: Source may be anywhere
}

// Sources that are no path.
const (
	sourceTmpfs  = "tmpfs"
	sourceUmount = "umount"
)

// Host reports whether m needs its source on the host.
func (m Mount) Host() bool { return m.Source != sourceTmpfs && m.Source != sourceUmount }

// MayFail reports whether m is left out where its source is missing.
func (m Mount) MayFail() bool { return slices.Contains(m.Flags, "nofail") }

func (m Mount) equal(o Mount) bool {
	return m.Source == o.Source && m.Target == o.Target && slices.Equal(m.Flags, o.Flags)
}

// The words that may stand in the FLAGS part of a mount. They are those of mount(8)
// that make sense for it, and enroot's x-create; pyxis passes unknown words to the
// kernel, which ignores them with a bind mount, so that a typo of "ro" gives a
// writable one. Here a typo is an error. "defaults", "rw" and the like say what is so
// anyway; nothing makes a mount of the host's more than it is.
var (
	mountFlags = []string{
		"ro", "rw", "bind", "rbind", "nosuid", "nodev", "noexec",
		"private", "rprivate", "slave", "rslave", "shared", "rshared", "unbindable", "runbindable",
		"nofail", "noatime", "relatime", "strictatime", "nodiratime",
		"x-create=auto", "x-create=file", "x-create=dir",
		"defaults", "suid", "dev", "exec", "async", "silent",
	}
	tmpfsFlags   = []string{"ro", "rw", "nosuid", "nodev", "noexec", "x-create=auto", "x-create=dir", "defaults", "silent", "noswap", "inode32", "inode64"}
	tmpfsOptions = []string{"size", "nr_blocks", "nr_inodes", "mode", "uid", "gid", "huge", "mpol"} // =VALUE, which the kernel checks
	umountFlags  = []string{"nofail", "silent"}
	// silentFlags need nothing to be done.
	silentFlags = []string{"rw", "defaults", "suid", "dev", "exec", "async", "silent", "x-create=auto"}
)

// MountParser understands what users and sites write about mounts.
type MountParser struct {
	Dir    string                      // relative sources are taken from it
	Getenv func(string) (string, bool) // as os.LookupEnv
}

// Parse reads the argument of --mounts: SRC[:DST[:FLAGS]], several separated by
// commas, flags joined by '+', as pyxis defines them. SRC may be "tmpfs" or "umount",
// with a DST. In SRC and DST, $NAME and ${NAME} stand for variables, "~" at the start
// for HOME and \$ for a dollar sign. DST defaults to SRC.
func (p *MountParser) Parse(arg string) ([]Mount, error) {
	var ms []Mount
	for _, one := range strings.Split(arg, ",") {
		m, err := p.parse(one)
		if err != nil {
			return nil, fmt.Errorf("mount %q: %w", one, err)
		}
		ms = append(ms, m)
	}
	return ms, nil
}

func (p *MountParser) parse(arg string) (Mount, error) {
	part := strings.SplitN(arg, ":", 3)
	if len(part) == 1 {
		if slices.Contains(mountFlags, arg) {
			return Mount{}, errors.New("flags are joined by +, as in SRC:DST:ro+nosuid")
		}
		part = append(part, arg)
	}
	m := Mount{Source: part[0], Target: part[1]}
	if len(part) > 2 && part[2] != "" {
		m.Flags = strings.Split(part[2], "+")
	}
	return p.complete(m)
}

// complete makes a Mount of what was written.
func (p *MountParser) complete(m Mount) (Mount, error) {
	var err error
	if m.Source, err = p.expand(m.Source); err != nil {
		return m, err
	}
	if m.Target, err = p.expand(m.Target); err != nil {
		return m, err
	}
	if m.Host() && !isPath(m.Source) || strings.ContainsRune(m.Source+m.Target, 0) {
		return m, errors.New(`the source must be a path that starts with "/", "." or "~", or tmpfs, or umount; the form is SRC[:DST[:FLAGS]]`)
	}
	if !isPath(m.Target) {
		return m, errors.New(`the destination must be a path that starts with "/", "." or "~"`)
	}
	if m.Host() && !filepath.IsAbs(m.Source) {
		m.Source = filepath.Join(p.Dir, m.Source)
	}
	if !path.IsAbs(m.Target) { // relative to the root, as in pyxis
		m.Target = "/" + m.Target
	}
	if m.Target = path.Clean(m.Target); m.Target == "/" {
		return m, errors.New("the destination is the root itself; name another: SRC:DST")
	}
	return m, m.checkFlags()
}

func isPath(s string) bool { return strings.HasPrefix(s, "/") || strings.HasPrefix(s, ".") }

// checkFlags refuses unknown words.
func (m Mount) checkFlags() error {
	known, options := mountFlags, []string(nil)
	switch m.Source {
	case sourceTmpfs:
		known, options = tmpfsFlags, tmpfsOptions
	case sourceUmount:
		known = umountFlags
	}
	for _, f := range m.Flags {
		name, value, hasValue := strings.Cut(f, "=")
		if slices.Contains(known, f) || hasValue && value != "" && slices.Contains(options, name) {
			continue
		}
		for _, o := range options {
			known = append(slices.Clone(known), o+"=…")
		}
		return fmt.Errorf("unknown flag %q; known are %s", f, strings.Join(known, " "))
	}
	return nil
}

// expand puts values in the place of variables.
func (p *MountParser) expand(s string) (string, error) {
	if s == "~" || strings.HasPrefix(s, "~/") {
		s = "${HOME}" + s[1:]
	}
	var out strings.Builder
	for {
		i := strings.IndexByte(s, '$')
		if i < 0 {
			return out.String() + s, nil
		}
		if i > 0 && s[i-1] == '\\' {
			out.WriteString(s[:i-1] + "$")
			s = s[i+1:]
			continue
		}
		out.WriteString(s[:i])
		name, rest, err := variable(s[i+1:])
		if err != nil {
			return "", err
		}
		s = rest
		if name == "" {
			out.WriteByte('$')
			continue
		}
		value, ok := p.Getenv(name)
		if !ok || value == "" {
			return "", &unsetError{name}
		}
		out.WriteString(value)
	}
}

// unsetError: an empty value would make another path, such as / of $DATA/.
type unsetError struct{ name string }

func (e *unsetError) Error() string { return "the variable " + e.name + " is not set or empty" }

// variable cuts NAME or {NAME} from the start of s. Without either it is empty, as
// for a shell.
func variable(s string) (name, rest string, err error) {
	if strings.HasPrefix(s, "{") {
		name, rest, ok := strings.Cut(s[1:], "}")
		if !ok || !ValidName(name) {
			return "", "", fmt.Errorf("%q: want ${NAME}", "$"+s)
		}
		return name, rest, nil
	}
	n := 0
	for n < len(s) && ValidName("_"[:min(n, 1)]+s[n:n+1]) { // digits not at the start
		n++
	}
	return s[:n], s[n:], nil
}

// mountOp is the operation for m.
func mountOp(m Mount) Op {
	var flags []string
	for _, f := range m.Flags {
		if !slices.Contains(silentFlags, f) {
			flags = append(flags, f)
		}
	}
	switch m.Source {
	case sourceUmount:
		return Op{Do: OpUmount, Target: m.Target, Flags: flags}
	case sourceTmpfs:
		for _, f := range []string{"nosuid", "nodev"} {
			if !slices.Contains(flags, f) {
				flags = append(flags, f)
			}
		}
		return Op{Do: OpTmpfs, Target: m.Target, Flags: slices.DeleteFunc(flags, func(f string) bool { return f == "x-create=dir" })}
	}
	return Op{Do: OpBind, Source: m.Source, Target: m.Target, Flags: flags, Within: m.Within}
}

// FstabMount is a line of a file of mounts.
type FstabMount struct {
	Mount
	Line int // from 1
}

// ParseFstab reads mounts in the form of fstab(5), as far as enroot's files have it: SRC
// DST TYPE OPTIONS and two numbers, which are ignored. Missing fields are guessed, from the
// third on and for "SRC OPTIONS". TYPE is none or tmpfs. A line with the option x-detach
// unmounts DST. Variables are expanded; a line with nofail is left out where one is
// not set. An error names the line.
func (p *MountParser) ParseFstab(text string) ([]FstabMount, error) {
	var ms []FstabMount
	n := 0
	for line := range strings.Lines(text) {
		n++
		fields := strings.Fields(line)
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		m, err := fstabMount(fields)
		if err == nil {
			m, err = p.complete(m)
		}
		var unset *unsetError
		if errors.As(err, &unset) && m.MayFail() {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		ms = append(ms, FstabMount{m, n})
	}
	return ms, nil
}

// fstabMount sorts the fields of a line.
func fstabMount(fields []string) (m Mount, err error) {
	next := func() (f string) {
		f, fields = mountinfo.Unescape(fields[0]), fields[1:]
		return f
	}
	m.Source = next()
	m.Target = m.Source
	if len(fields) > 0 && strings.ContainsAny(fields[0][:1], "/.~$\\") {
		m.Target = next()
	}
	kind := "none"
	if len(fields) > 0 && slices.Contains([]string{"none", "bind", "rbind", "tmpfs"}, fields[0]) {
		kind = next()
	}
	if len(fields) > 0 {
		m.Flags = strings.Split(next(), ",")
	}
	if len(fields) > 2 {
		return m, fmt.Errorf("%q: too many fields; want SRC DST TYPE OPTIONS", fields[0])
	}
	for _, f := range fields {
		if _, err := strconv.Atoi(f); err != nil {
			return m, fmt.Errorf("%q: want SRC DST TYPE OPTIONS, where TYPE is none or tmpfs", f)
		}
	}
	switch detach := slices.Index(m.Flags, "x-detach"); {
	case detach >= 0:
		m.Source, m.Flags = sourceUmount, slices.Delete(m.Flags, detach, detach+1)
	case kind == "tmpfs":
		m.Source = sourceTmpfs
	case kind == "bind":
		m.Flags = append(m.Flags, kind)
	}
	return m, nil
}
