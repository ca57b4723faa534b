package runtime

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/squirefs/squire/runtime/gpu"
)

// Spec is what the user asked for. The zero value of each field means its
// default. Strings are bytes as the kernel takes them, not always UTF-8.
type Spec struct {
	// Image names the root file system in messages and in the plan.
	Image string
	// Dir is a directory to use as root file system. Empty: the MountFunc
	// given to Init mounts it.
	Dir string
	// DirWithin are the directories of which Dir must be in one, see Op. None: it may be anywhere.
	DirWithin []string
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
	// UpperSize is how much a writable layer in memory may hold, as in tmpfs(5): a number with k, m, g or %. Empty: half
	// of what the control group may have.
	UpperSize string
	// Layered: what the MountFunc mounts is the root of another container, see [RootOf],
	// whose writable layer this one shares. It has no Upper.
	Layered bool
	// RemapRoot shows the caller as root inside. Only for ordinary users:
	// root is root anyway.
	RemapRoot bool
	// Unshare names the namespaces of [Namespaces] that the container has of its
	// own. All others are the host's.
	Unshare []string
	// Hostname is the machine's name inside, in a uts namespace. Empty: the host's.
	Hostname string

	// Devices are accelerators and adapters of the host, with what they need. Nil:
	// none. It is in the plan, and not sent to the init stage. Its variables are the
	// caller's to add.
	Devices *gpu.Set

	// Hide are device nodes below /dev of a container that is joined, see [PlanJoin],
	// which the command does not have.
	Hide []string

	// Environ is the caller's environment, as of os.Environ.
	Environ []string
	// KeepEnv names variables whose value in Environ wins over the image's.
	KeepEnv []string
	// SetEnv holds NAME=VALUE settings that win over everything.
	SetEnv []string
}

// tmpfsSize is a size of a tmpfs that is not 0, which would be no limit.
var tmpfsSize = regexp.MustCompile(`^[1-9][0-9]{0,17}[kKmMgG%]?$`)

// check reports what in the Spec cannot work, before anything is started.
func (s *Spec) check() error {
	for _, e := range s.SetEnv {
		if name, _, ok := strings.Cut(e, "="); !ok || !ValidName(name) {
			return fmt.Errorf("environment %q: want NAME=VALUE", e)
		}
	}
	for _, n := range s.KeepEnv {
		if !ValidName(n) {
			return fmt.Errorf("environment variable name %q is not valid", n)
		}
	}
	if s.UpperSize != "" && !tmpfsSize.MatchString(s.UpperSize) {
		return fmt.Errorf("size %q of the writable layer: want a number with k, m, g or %%, as 10g", s.UpperSize)
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
