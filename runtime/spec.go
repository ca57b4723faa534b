package runtime

import (
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// Spec is what the user asked for. The zero value of each field means its
// default. Strings are bytes as the kernel takes them, not always UTF-8.
type Spec struct {
	// Image names the root file system in messages and in the plan.
	Image string
	// Dir is a directory to use as root file system. Empty: the MountFunc
	// given to Init mounts it.
	Dir string
	// Command is the program and its arguments. Empty: what the image's Config
	// says, else /bin/sh.
	Command []string
	// Entrypoint lets the program that the image's Config names run, with Command
	// as its arguments.
	Entrypoint bool
	// Workdir is the working directory inside. Empty: what the image's Config
	// says, else "/".
	Workdir string
	// Mounts are bound on top of the root file system, in this order.
	Mounts []Mount
	// Writable puts a writable layer above the root file system.
	Writable bool
	// Upper is the host directory that keeps the writable layer, absolute.
	// Empty: a tmpfs that goes with the container.
	Upper string
	// RemapRoot shows the caller as root inside. Only for ordinary users:
	// root is root anyway.
	RemapRoot bool
	// Unshare names the namespaces of [Namespaces] that the container has of its
	// own. All others are the host's.
	Unshare []string
	// Hostname is the machine's name inside, in a uts namespace. Empty: the host's.
	Hostname string

	// Environ is the caller's environment, as of os.Environ.
	Environ []string
	// KeepEnv names variables whose value in Environ wins over the image's.
	KeepEnv []string
	// SetEnv holds NAME=VALUE settings that win over everything.
	SetEnv []string
}

// Mount is one bind mount that the user asked for.
type Mount struct {
	Source string   // path on the host, absolute
	Target string   // path inside, absolute, resolved inside the root
	Flags  []string // words of mountFlags
}

// mountFlags are the words that may stand in the FLAGS part of a mount, by
// what they set. They are those of mount(8) that make sense for a bind mount;
// pyxis passes unknown words to the kernel, which ignores them, so that a typo
// of "ro" gives a writable mount. Here a typo is an error. "rw" and "rbind" say
// what is so anyway; "nofail" is for sources that may not exist.
var mountFlags = []string{
	"ro", "rw", "bind", "rbind", "nosuid", "nodev", "noexec",
	"private", "rprivate", "slave", "rslave", "shared", "rshared", "unbindable", "runbindable",
	"nofail",
}

// ParseMounts reads the argument of --mounts: SRC[:DST[:FLAGS]], several
// separated by commas, flags joined by '+', as pyxis defines them. Relative
// sources are taken from dir. DST defaults to SRC.
func ParseMounts(arg, dir string) ([]Mount, error) {
	var ms []Mount
	for _, one := range strings.Split(arg, ",") {
		m, err := parseMount(one, dir)
		if err != nil {
			return nil, fmt.Errorf("mount %q: %w", one, err)
		}
		ms = append(ms, m)
	}
	return ms, nil
}

func parseMount(arg, dir string) (Mount, error) {
	part := strings.SplitN(arg, ":", 3)
	m := Mount{Source: part[0], Target: part[0]}
	if len(part) > 1 {
		m.Target = part[1]
	}
	if len(part) > 2 && part[2] != "" {
		m.Flags = strings.Split(part[2], "+")
	}
	if !isPath(m.Source) || strings.ContainsRune(arg, 0) {
		if slices.Contains(mountFlags, arg) {
			return m, errors.New("flags are joined by +, as in SRC:DST:ro+nosuid")
		}
		return m, errors.New(`the source must be a path that starts with "/" or "."; the form is SRC[:DST[:FLAGS]]`)
	}
	if !isPath(m.Target) {
		return m, errors.New(`the destination must be a path that starts with "/" or "."`)
	}
	for _, f := range m.Flags {
		if !slices.Contains(mountFlags, f) {
			return m, fmt.Errorf("unknown flag %q; known are %s", f, strings.Join(mountFlags, " "))
		}
	}
	if !filepath.IsAbs(m.Source) {
		m.Source = filepath.Join(dir, m.Source)
	}
	if !path.IsAbs(m.Target) { // relative to the root, as in pyxis
		m.Target = "/" + m.Target
	}
	if m.Target = path.Clean(m.Target); m.Target == "/" {
		return m, errors.New("the destination is the root itself; name another: SRC:DST")
	}
	return m, nil
}

func isPath(s string) bool { return strings.HasPrefix(s, "/") || strings.HasPrefix(s, ".") }

// check reports what in the Spec cannot work, before anything is started.
func (s *Spec) check() error {
	for _, e := range s.SetEnv {
		if name, _, ok := strings.Cut(e, "="); !ok || !validName(name) {
			return fmt.Errorf("environment %q: want NAME=VALUE", e)
		}
	}
	for _, n := range s.KeepEnv {
		if !validName(n) {
			return fmt.Errorf("environment variable name %q is not valid", n)
		}
	}
	if err := s.checkNamespaces(); err != nil {
		return err
	}
	for _, str := range slices.Concat(s.Command, s.SetEnv, []string{s.Workdir, s.Upper, s.Dir}) {
		if strings.ContainsRune(str, 0) {
			return fmt.Errorf("%q holds a NUL byte", str)
		}
	}
	return nil
}
