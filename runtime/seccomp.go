package runtime

import (
	"fmt"
	goruntime "runtime"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What the command's system calls are filtered for, in an OpFilter's flags.
const (
	// filterTerminal refuses the ioctls that put keys into a terminal's input, or
	// into a console's selection: the shell outside would read them when the
	// command has ended (CVE-2017-5226).
	filterTerminal = "terminal"
	// filterIDs answers calls that change owners and ids with success, and does
	// nothing. In a user namespace with one id they cannot succeed, and package
	// managers end at the first that fails. As enroot does.
	filterIDs = "ids"
)

// abi is one way to call the kernel. Numbers are those of
// arch/x86/entry/syscalls/*.tbl, arch/arm/tools/syscall.tbl and
// include/uapi/asm-generic/unistd.h.
type abi struct {
	arch  uint32
	ioctl uint32
	ids   []uint32 // chown and fchownat, setuid, setgroups and their kin
	fsids []uint32 // setfsuid, setfsgid
	x32   bool     // has another ABI, that of x32, in numbers with bit 30
}

var (
	abiAMD64 = abi{
		arch: unix.AUDIT_ARCH_X86_64, ioctl: 16,
		ids:   []uint32{92, 93, 94, 105, 106, 113, 114, 116, 117, 119, 260},
		fsids: []uint32{122, 123},
		x32:   true,
	}
	abiARM64 = abi{
		arch: unix.AUDIT_ARCH_AARCH64, ioctl: 29,
		ids:   []uint32{54, 55, 143, 144, 145, 146, 147, 149, 159},
		fsids: []uint32{151, 152},
	}
	// 32-bit programs: first the calls with ids of 16 bits, then those of 32.
	abi386 = abi{
		arch: unix.AUDIT_ARCH_I386, ioctl: 54,
		ids:   []uint32{16, 23, 46, 70, 71, 81, 95, 164, 170, 182, 198, 203, 204, 206, 207, 208, 210, 212, 213, 214, 298},
		fsids: []uint32{138, 139, 215, 216},
	}
	abiARM = abi{
		arch: unix.AUDIT_ARCH_ARM, ioctl: 54,
		ids:   []uint32{16, 23, 46, 70, 71, 81, 95, 164, 170, 182, 198, 203, 204, 206, 207, 208, 210, 212, 213, 214, 325},
		fsids: []uint32{138, 139, 215, 216},
	}
)

// abis are those of a machine. The kernel may lack the second.
func abis(machine string) []abi {
	switch machine {
	case "amd64":
		return []abi{abiAMD64, abi386}
	case "arm64":
		return []abi{abiARM64, abiARM}
	}
	return nil
}

// Offsets in struct seccomp_data (linux/seccomp.h), on little-endian machines.
const (
	dataNumber = 0
	dataArch   = 4
	dataArgs   = 16 // of 8 bytes each
)

const (
	allow = unix.SECCOMP_RET_ALLOW
	errno = unix.SECCOMP_RET_ERRNO // plus the number; 0 is success

	x32Bit = 0x40000000 // __X32_SYSCALL_BIT
)

// filter returns the program for the kernel. A call of an ABI that it does not
// know is answered as by a kernel that does not, either.
func filter(abis []abi, flags []string) []unix.SockFilter {
	p := load(dataArch)
	for _, a := range abis {
		p = append(p, when(a.arch, a.filter(flags))...)
	}
	return append(p, answer(errno|uint32(unix.ENOSYS))...)
}

// filter returns the part for one ABI, which answers every call.
func (a abi) filter(flags []string) []unix.SockFilter {
	p := load(dataNumber)
	if a.x32 {
		p = append(p, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, K: x32Bit, Jf: 1})
		p = append(p, answer(errno|uint32(unix.ENOSYS))...)
	}
	if slices.Contains(flags, filterTerminal) {
		// The kernel takes a request of 32 bits: what is above must not hide it.
		p = append(p, when(a.ioctl,
			load(dataArgs+8),
			when(unix.TIOCSTI, answer(errno|uint32(unix.EPERM))),
			when(unix.TIOCLINUX, answer(errno|uint32(unix.EPERM))),
			answer(allow))...)
	}
	if slices.Contains(flags, filterIDs) {
		for _, n := range a.ids {
			p = append(p, when(n, answer(errno))...)
		}
		for _, n := range a.fsids { // -1 asks which it is
			p = append(p, when(n,
				load(dataArgs),
				when(0xffffffff, answer(allow)),
				when(0xffff, answer(allow)),
				answer(errno))...)
		}
	}
	return append(p, answer(allow)...)
}

// load loads a word of the data.
func load(offset uint32) []unix.SockFilter {
	return []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}}
}

// answer ends the program.
func answer(with uint32) []unix.SockFilter {
	return []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: with}}
}

// when does what is in parts, at most 255 instructions, if the word loaded last is
// value.
func when(value uint32, parts ...[]unix.SockFilter) []unix.SockFilter {
	then := slices.Concat(parts...)
	jump := unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: value, Jf: uint8(len(then))}
	return append([]unix.SockFilter{jump}, then...)
}

// installFilter filters the system calls of this thread and what it starts. It
// needs no_new_privs. Kernels before 5.16 would otherwise slow filtered programs
// down on processors that speculate on stores; as others of the user are not
// slowed down either, nothing is lost with SPEC_ALLOW.
func installFilter(flags []string) error {
	known := abis(goruntime.GOARCH)
	if known == nil {
		return fmt.Errorf("no system call numbers are known for %s", goruntime.GOARCH)
	}
	p := filter(known, flags)
	prog := unix.SockFprog{Len: uint16(len(p)), Filter: &p[0]}
	_, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, uintptr(unsafe.Pointer(&prog)))
	switch e {
	case 0:
		return nil
	case unix.ENOSYS, unix.EINVAL:
		return fmt.Errorf("%w: the kernel was built without seccomp filters", e)
	}
	return e
}

// filterOp: ids are pretended where one that is root asked for it and there is but
// one.
func filterOp(s *Spec, h *Host) Op {
	op := Op{Do: OpFilter, Flags: []string{filterTerminal}}
	if s.pretendsIDs(h) {
		op.Flags = append(op.Flags, filterIDs)
	}
	return op
}

func (s *Spec) pretendsIDs(h *Host) bool { return s.RemapRoot && (!h.Root || !h.IDsMapped) }

// aptSandbox: apt fetches packages as another user, and wants to see that it has
// become that one. In an image of Debian's it is told not to.
func aptSandbox(s *Spec, h *Host) []Op {
	if !s.Writable || !s.pretendsIDs(h) {
		return nil
	}
	return []Op{{Do: OpFile, Target: "/etc/apt/apt.conf.d/99squire", Flags: []string{"when-directory"}, Args: []string{`APT::Sandbox::User "root";`}}}
}
