package runtime

import (
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/internal/rights"
)

// Host is what a plan depends on beside the Spec. [Probe] fills it from the
// machine; tests write it by hand.
type Host struct {
	// Root: the caller may mount without a user namespace of their own.
	Root bool
	// IDsMapped: every user id of an image means something here.
	IDsMapped bool

	UID int
	GID int
	// User and Group are the lines of /etc/passwd and /etc/group for these, "" where there is none.
	User, Group string
	// Devices are the device nodes to show beside Spec.Devices, absolute paths.
	Devices []string
	// Terminal is the path of the terminal on standard input, if it is one.
	Terminal string
	// Present lists the optional host paths that exist.
	Present []string
}

// Has reports whether an optional path exists on the host.
func (h *Host) Has(p string) bool { return slices.Contains(h.Present, p) }

// cgroup2File is there where the host has control groups in their second version,
// and in no other (cgroups(7)).
const cgroup2File = "/sys/fs/cgroup/cgroup.controllers"

var optionalPaths = []string{"/etc/resolv.conf", "/etc/hosts", "/dev/shm", "/dev/mqueue", "/dev/hugepages", cgroup2File}

// deviceNodes are harmless nodes that programs expect. Those of accelerators
// are in Spec.Devices.
var deviceNodes = []string{"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/fuse"}

// Probe looks at this machine and process.
func Probe() *Host {
	h := &Host{UID: os.Geteuid(), GID: os.Getegid(), Root: maySetUpMounts(), IDsMapped: rights.AllIDsMapped()}
	if h.UID != 0 {
		h.User, h.Group = hostAccount(userFile, h.UID), hostAccount(groupFile, h.GID)
	}
	for _, p := range optionalPaths {
		if _, err := os.Stat(p); err == nil {
			h.Present = append(h.Present, p)
		}
	}
	for _, n := range deviceNodes {
		if fi, err := os.Stat(n); err == nil && fi.Mode()&os.ModeCharDevice != 0 {
			h.Devices = append(h.Devices, n)
		}
	}
	if tty, err := os.Readlink("/proc/self/fd/0"); err == nil && strings.HasPrefix(tty, "/dev/pts/") {
		h.Terminal = tty
	}
	return h
}

// maySetUpMounts reports whether this process is root with CAP_SYS_ADMIN, as
// in a plain root shell, but not in most container engines' containers.
func maySetUpMounts() bool {
	if os.Geteuid() != 0 {
		return false
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return false
	}
	return data[0].Effective&(1<<unix.CAP_SYS_ADMIN) != 0
}

// namespaceHint says why an ordinary user may not make a user namespace here
// and who can change that.
func namespaceHint() string {
	for _, s := range []struct{ file, bad, hint string }{
		{"/proc/sys/user/max_user_namespaces", "0", "user namespaces are switched off (user.max_user_namespaces=0); ask the administrator to set it to 65536"},
		{"/proc/sys/user/max_mnt_namespaces", "0", "mount namespaces are switched off (user.max_mnt_namespaces=0); ask the administrator to set it to 65536"},
		{"/proc/sys/kernel/unprivileged_userns_clone", "0", "ordinary users may not make user namespaces (kernel.unprivileged_userns_clone=0); ask the administrator to set it to 1"},
		{"/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "AppArmor keeps ordinary users from user namespaces (kernel.apparmor_restrict_unprivileged_userns=1); ask the administrator for a profile that allows squire \"userns,\""},
	} {
		if readSysctl(s.file) == s.bad {
			return s.hint
		}
	}
	return "user namespaces may be exhausted or forbidden here (sysctl user.max_user_namespaces, security modules, a chroot, an id without a mapping)"
}

// readSysctl returns the value of a setting of the kernel, "" if there is none.
func readSysctl(file string) string {
	b, _ := os.ReadFile(file)
	return strings.TrimSpace(string(b))
}
