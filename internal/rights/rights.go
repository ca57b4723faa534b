// Package rights gives up the rights of a process: what reads or executes the work of strangers is to have none.
package rights

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Nobody is the user and the group that processes of root turn into which read what strangers made.
const Nobody = 65534

// Confine leaves a process with no rights but its descriptors: what root started turns into nobody.
func Confine() error {
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if os.Geteuid() == 0 && AllIDsMapped() {
		err := becomeNobody()
		// EPERM: root without the right to change. Its other rights go below.
		if err != nil && !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("become nobody: %w", err)
		}
	}
	// Each of these goes to every thread, and is left out where all threads have it already: from the process that
	// started this one, or because they are no longer root's.
	if set, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0); err != nil || set != 1 {
		if err = NoNewPrivs(); err != nil {
			return err
		}
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var have, none [2]unix.CapUserData
	if err := unix.Capget(&hdr, &have[0]); err == nil && have == none {
		return nil
	}
	return NoCapabilities()
}

func becomeNobody() error {
	groups, err := os.Getgroups()
	if err != nil || len(groups) > 0 || os.Getgid() != Nobody || os.Getegid() != Nobody {
		err = errors.Join(syscall.Setgroups(nil), syscall.Setgid(Nobody))
	}
	return errors.Join(err, syscall.Setuid(Nobody))
}

// NoNewPrivs keeps this process, and what it will execute, from ever gaining rights through set-id files or file
// capabilities (prctl(2)).
func NoNewPrivs() error {
	if err := Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	return nil
}

// errCgo: with C in it, Go does not know all threads of the process.
var errCgo = errors.New("this binary was built with cgo, and cannot give up rights in all of its threads; build it with CGO_ENABLED=0, as make does")

// Prctl calls prctl(2) in every thread.
func Prctl(op int, a, b uintptr) error {
	_, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, uintptr(op), a, b, 0, 0, 0)
	if errno == unix.ENOTSUP && OneThread {
		_, _, errno = syscall.RawSyscall6(unix.SYS_PRCTL, uintptr(op), a, b, 0, 0, 0)
	}
	return allThreadsError(errno)
}

// NoCapabilities empties the permitted, effective and inheritable sets of every thread, which needs no right. Beside
// NoNewPrivs it leaves root without any.
func NoCapabilities() error { return OnlyCapabilities() }

// OnlyCapabilities takes from every thread all capabilities but those named (unix.CAP_*), which it must have.
func OnlyCapabilities(keep ...int) error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var set [2]unix.CapUserData
	for _, c := range keep {
		set[c/32].Permitted |= 1 << (c % 32)
		set[c/32].Effective |= 1 << (c % 32)
	}
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&hdr)), uintptr(unsafe.Pointer(&set[0])), 0)
	if errno == unix.ENOTSUP && OneThread {
		return unix.Capset(&hdr, &set[0])
	}
	return allThreadsError(errno)
}

func allThreadsError(errno syscall.Errno) error {
	switch errno {
	case 0:
		return nil
	case unix.ENOTSUP:
		return errCgo
	}
	return errno
}

// AllIDsMapped reports whether every user id of an image means something in this process's user namespace. Where not,
// files should be shown as owned by the caller. (user_namespaces(7): the initial one maps 0 0 4294967295.)
func AllIDsMapped() bool {
	b, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return true // no user namespaces in this kernel
	}
	f := strings.Fields(string(b)) // inside, outside, number
	return len(f) == 3 && f[0] == "0" && f[2] == "4294967295"
}
