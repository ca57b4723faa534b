package runtime

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Namespaces lists the words of [Spec.Unshare]. A mount namespace there always is,
// and for ordinary users a user namespace.
func Namespaces() []string { return []string{"pid", "net", "ipc", "uts", "cgroup"} }

var cloneFlags = map[string]uintptr{
	"pid": unix.CLONE_NEWPID, "net": unix.CLONE_NEWNET, "ipc": unix.CLONE_NEWIPC, "uts": unix.CLONE_NEWUTS, "cgroup": unix.CLONE_NEWCGROUP,
}

// unshares reports whether the container has a namespace of its own of that name.
func (s *Spec) unshares(name string) bool {
	return slices.Contains(s.Unshare, name) || name == "uts" && s.Hostname != ""
}

// checkNamespaces reports what the Spec asks for that there is not.
func (s *Spec) checkNamespaces() error {
	for _, n := range s.Unshare {
		switch {
		case n == "user" || n == "mount" || n == "mnt":
			return fmt.Errorf("namespace %q: there always is one where one is needed; to choose from are %s", n, strings.Join(Namespaces(), " "))
		case !slices.Contains(Namespaces(), n):
			return fmt.Errorf("unknown namespace %q; known are %s", n, strings.Join(Namespaces(), " "))
		}
	}
	return checkHostname(s.Hostname)
}

// checkHostname allows what programs expect of the name of a machine. The kernel
// takes any bytes, at most 64 (__NEW_UTS_LEN, linux/utsname.h).
func checkHostname(name string) error {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_"
	if len(name) > 64 || strings.Trim(name, letters) != "" || strings.HasPrefix(name, "-") || strings.HasPrefix(name, ".") {
		return fmt.Errorf("host name %q: want at most 64 letters, digits, dots, dashes and underscores", name)
	}
	return nil
}

// unshareOps are the operations on namespaces that do not mount. The namespaces
// are there when the init stage starts.
func unshareOps(s *Spec) (ops []Op) {
	var own []string
	for _, n := range Namespaces() {
		if s.unshares(n) {
			own = append(own, n)
		}
	}
	if len(own) > 0 {
		ops = append(ops, Op{Do: OpUnshare, Args: own})
	}
	if s.Hostname != "" {
		ops = append(ops, Op{Do: OpHostname, Target: s.Hostname})
	}
	return ops
}

// setupCaps are the capabilities in its own user namespace that the init stage
// needs when it does not look like root there: to mount and pivot, to make
// mount points in directories whose mode forbids it, and to give up the
// bounding set.
var setupCaps = []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_SYS_CHROOT, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER, unix.CAP_SETPCAP}

// namespaces: mounts always; a user namespace where the right to mount has to
// come from. Its map has one id, the caller's own, so that no helper with
// rights (newuidmap) is needed; supplementary groups stay as they are, since
// GPU devices are often reached through them. In one clone(2) the kernel makes
// the user namespace first, so that it owns the others.
func namespaces(s *Spec, h *Host) *syscall.SysProcAttr {
	// Init has a process group of its own, see order.Group, but for a PID
	// namespace: there the kernel ends the rest when it ends, and the command could
	// not join a group from outside.
	attr := &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS, Setpgid: !s.unshares("pid")}
	for name, flag := range cloneFlags {
		if s.unshares(name) {
			attr.Cloneflags |= flag
		}
	}
	if h.Root {
		// The same name, but a change of it is not the host's.
		attr.Cloneflags |= unix.CLONE_NEWUTS
		return attr
	}
	uid, gid := h.UID, h.GID
	if s.RemapRoot {
		uid, gid = 0, 0
	} else {
		attr.AmbientCaps = setupCaps
		if s.unshares("net") {
			attr.AmbientCaps = append(slices.Clone(setupCaps), unix.CAP_NET_ADMIN)
		}
	}
	attr.Cloneflags |= unix.CLONE_NEWUSER
	attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: uid, HostID: h.UID, Size: 1}}
	attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: gid, HostID: h.GID, Size: 1}}
	return attr
}

// idMaps are files of a new process's user namespace, below /proc/PID, with what to write, in this order.
type idMaps []struct{ file, text string }

// lateMaps takes the maps out of attr, to be written when the process has executed its program. A process that waits for
// them before it does has a copy of our memory meanwhile; one that does not shares it (CLONE_VM, CLONE_VFORK in
// syscall.forkAndExecInChild1), which saves the copy. What it keeps of its rights must not depend on being root there.
func lateMaps(attr *syscall.SysProcAttr) (maps idMaps) {
	if attr.AmbientCaps == nil || attr.UidMappings == nil {
		return nil
	}
	line := func(m syscall.SysProcIDMap) string { return fmt.Sprintf("%d %d %d\n", m.ContainerID, m.HostID, m.Size) }
	maps = idMaps{{"uid_map", line(attr.UidMappings[0])}, {"setgroups", "deny"}, {"gid_map", line(attr.GidMappings[0])}}
	attr.UidMappings, attr.GidMappings = nil, nil
	return maps
}

func (m idMaps) write(pid int) error {
	for _, f := range m {
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/%s", pid, f.file), []byte(f.text), 0); err != nil {
			return err
		}
	}
	return nil
}

func explainClone(err error, s *Spec, h *Host) error {
	for _, n := range s.Unshare {
		if readSysctl("/proc/sys/user/max_"+n+"_namespaces") == "0" {
			return fmt.Errorf("make a %s namespace: %w: they are switched off (user.max_%[1]s_namespaces=0); ask the administrator to set it to 65536", n, err)
		}
	}
	if h.Root {
		return fmt.Errorf("make a mount namespace: %w", err)
	}
	return fmt.Errorf("make a user namespace: %w: %s", err, namespaceHint())
}

// loopback brings up the one interface of a new network namespace.
func loopback() error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0) // any kind has the ioctl
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("bring up the loopback interface: %w", err)
	}
	return nil
}

// refused reports whether the kernel does not make a new file system of that kind
// here, so that the host's has to do. It makes a proc or sysfs in a user namespace
// only where nothing is mounted over parts of those that are in sight
// (mount_too_revealing, fs/namespace.c), as in containers of other engines.
func refused(err error) bool {
	return errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENODEV)
}
