package runtime

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/internal/testenv"
)

// interpret runs a filter as the kernel does (Documentation/networking/filter.rst).
func interpret(t *testing.T, prog []unix.SockFilter, arch, number uint32, args ...uint64) uint32 {
	t.Helper()
	data := make([]byte, 64)
	binary.LittleEndian.PutUint32(data, number)
	binary.LittleEndian.PutUint32(data[4:], arch)
	for i, a := range args {
		binary.LittleEndian.PutUint64(data[16+8*i:], a)
	}
	var word uint32
	for pc := 0; pc < len(prog); pc++ {
		in := prog[pc]
		var jump bool
		switch in.Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			word = binary.LittleEndian.Uint32(data[in.K:])
			continue
		case unix.BPF_RET | unix.BPF_K:
			return in.K
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			jump = word == in.K
		case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
			jump = word >= in.K
		default:
			t.Fatalf("instruction %d: code %#x", pc, in.Code)
		}
		if jump {
			pc += int(in.Jt)
		} else {
			pc += int(in.Jf)
		}
	}
	t.Fatal("ran off the end")
	return 0
}

func TestFilter(t *testing.T) {
	const success, perm, nosys = errno, errno | 1, errno | 38
	for _, machine := range []string{"amd64", "arm64"} {
		terminal := filter(abis(machine), []string{filterTerminal})
		both := filter(abis(machine), []string{filterTerminal, filterIDs})
		check := func(what string, prog []unix.SockFilter, want, arch, number uint32, args ...uint64) {
			t.Helper()
			if got := interpret(t, prog, arch, number, args...); got != want {
				t.Errorf("%s, ABI %#x, call %d %x: %#x, want %#x", what, arch, number, args, got, want)
			}
		}
		for _, a := range abis(machine) {
			for _, prog := range [][]unix.SockFilter{terminal, both} {
				check("push a key", prog, perm, a.arch, a.ioctl, 0, unix.TIOCSTI)
				check("push a key, bits above", prog, perm, a.arch, a.ioctl, 0, 1<<32|unix.TIOCSTI)
				check("paste", prog, perm, a.arch, a.ioctl, 0, 0xffffffff<<32|unix.TIOCLINUX)
				check("window size", prog, allow, a.arch, a.ioctl, 0, unix.TIOCGWINSZ)
				check("bits above alone", prog, allow, a.arch, a.ioctl, 0, unix.TIOCSTI<<32)
			}
			for _, n := range a.ids {
				check("an id, not asked for", terminal, allow, a.arch, n, 1000)
				check("an id", both, success, a.arch, n, 1000)
			}
			for _, n := range a.fsids {
				check("fsuid", both, success, a.arch, n, 1000)
				check("which fsuid", both, allow, a.arch, n, 0xffffffffffffffff)
				check("which fsuid", both, allow, a.arch, n, 0xffffffff)
			}
			special := map[uint32]bool{a.ioctl: true}
			for _, n := range append(a.ids, a.fsids...) {
				if special[n] {
					t.Errorf("ABI %#x: call %d twice", a.arch, n)
				}
				special[n] = true
			}
			for n := range uint32(600) {
				if !special[n] {
					check("all others", both, allow, a.arch, n, 1000, unix.TIOCSTI)
				}
			}
		}
		check("another machine", terminal, nosys, unix.AUDIT_ARCH_RISCV64, 29, 0, unix.TIOCSTI)
		check("x32", terminal, map[string]uint32{"amd64": nosys, "arm64": nosys}[machine], unix.AUDIT_ARCH_X86_64, 0x40000000|514, 0, unix.TIOCSTI)
	}
	if len(abis("riscv64")) != 0 {
		t.Error("a machine is known that has no numbers here")
	}
}

// asm is a program of machine code that exits with the error of one system call.
func asm(t *testing.T, root, name string, number int32, args ...int32) {
	t.Helper()
	code := []byte{0xb8} // mov eax, number
	code = binary.LittleEndian.AppendUint32(code, uint32(number))
	for i, opcode := range []byte{0xbb, 0xb9, 0xba}[:len(args)] { // mov ebx, ecx, edx
		code = binary.LittleEndian.AppendUint32(append(code, opcode), uint32(args[i]))
	}
	// int 0x80; neg eax; mov ebx, eax; mov eax, 1 (exit); int 0x80
	code = append(code, 0xcd, 0x80, 0xf7, 0xd8, 0x89, 0xc3, 0xb8, 1, 0, 0, 0, 0xcd, 0x80)
	const base, head = 0x08048000, 52 + 32
	elf := append([]byte("\x7fELF\x01\x01\x01"), make([]byte, 9)...)
	le := binary.LittleEndian
	for _, v := range []uint16{2, 3} { // ET_EXEC, EM_386
		elf = le.AppendUint16(elf, v)
	}
	for _, v := range []uint32{1, base + head, 52, 0, 0} { // version, entry, program headers, none, flags
		elf = le.AppendUint32(elf, v)
	}
	for _, v := range []uint16{52, 32, 1, 0, 0, 0} {
		elf = le.AppendUint16(elf, v)
	}
	size := uint32(head + len(code))
	for _, v := range []uint32{1, 0, base, base, size, size, 5, 4096} { // PT_LOAD, readable and executable
		elf = le.AppendUint32(elf, v)
	}
	if err := os.WriteFile(filepath.Join(root, "bin", name), append(elf, code...), 0o755); err != nil {
		t.Fatal(err)
	}
}

// The kernel takes the filter, and holds 32-bit programs to it.
func TestRunFilter32(t *testing.T) {
	if goruntime.GOARCH != "amd64" {
		t.Skip("the programs are machine code of the 386")
	}
	forUsers(t, func(t *testing.T, w who, root string) {
		asm(t, root, "getpid", 20)
		asm(t, root, "push", 54, 0, unix.TIOCSTI, 0x08048000)
		asm(t, root, "size", 54, 99, unix.TIOCGWINSZ, 0)
		asm(t, root, "setuid16", 23, 77)
		asm(t, root, "chown32", 212, 0x08048001, 77, 77) // "ELF…", which is not there
		if r := run(t, w, Spec{Dir: root, Command: []string{"push"}}); r.status == ExitNoExec || r.status == exitSignalled+int(unix.SIGSEGV) {
			t.Skip("this kernel runs no 32-bit programs")
		} else if r.status != int(unix.EPERM) {
			t.Errorf("push: %+v, want %d", r, unix.EPERM)
		}
		for name, want := range map[string]int{"size": int(unix.EBADF), "setuid16": int(unix.EINVAL), "chown32": int(unix.ENOENT)} {
			if w.uid == 0 && name == "setuid16" {
				want = 0
			}
			if r := run(t, w, Spec{Dir: root, Command: []string{name}}); r.status != want {
				t.Errorf("%s: %+v, want %d", name, r, want)
			}
		}
		if w.uid == 0 {
			return
		}
		for _, name := range []string{"setuid16", "chown32"} {
			if r := run(t, w, Spec{Dir: root, Command: []string{name}, RemapRoot: true}); r.status != 0 {
				t.Errorf("%s, pretended: %+v", name, r)
			}
		}
	})
}

// probe is a command of the tests: it says what a number of calls answer.
func probe() int {
	for _, request := range []uintptr{unix.TIOCSTI, 1<<32 | unix.TIOCSTI, unix.TIOCLINUX, unix.TIOCGWINSZ} {
		_, _, e := unix.Syscall(unix.SYS_IOCTL, 99, request, 0)
		fmt.Println(e)
	}
	none := ^uintptr(0)
	for _, call := range [][4]uintptr{
		{unix.SYS_SETUID, 5},
		{unix.SYS_SETGID, 5},
		{unix.SYS_SETRESUID, 5, 5, none},
		{unix.SYS_SETRESGID, 5, none, 5},
		{unix.SYS_SETREUID, 5, 5},
		{unix.SYS_SETGROUPS},
		{unix.SYS_FCHOWN, 1, 5, 5},
		{unix.SYS_SETFSUID, none},
		{unix.SYS_SETFSGID, 5},
	} {
		got, _, e := unix.RawSyscall(call[0], call[1], call[2], call[3])
		fmt.Print(int(got), " ", int(e), " ")
	}
	fmt.Println()
	return 0
}

// The filter is on the command whatever the caller is.
func TestRunFilter(t *testing.T) {
	needStatic(t)
	forUsers(t, func(t *testing.T, w who, root string) {
		self, err := os.Readlink("/proc/self/exe")
		if err != nil {
			t.Fatal(err)
		}
		program := filepath.Join(publicDir(t, w), probeName)
		copyFile(t, self, program)
		s := Spec{Dir: root, Mounts: []Mount{{Source: program, Target: "/bin/" + probeName}}, Command: []string{probeName}}
		const ioctls = "operation not permitted\noperation not permitted\noperation not permitted\nbad file descriptor\n"
		if r := run(t, w, s); r.status != 0 || !strings.HasPrefix(r.out, ioctls) {
			t.Errorf("%+v", r)
		}
		if w.uid == 0 {
			return
		}
		if r := run(t, w, s); strings.Contains(r.out, "0 0 0 0") {
			t.Errorf("ids are pretended though root is not: %+v", r)
		}
		s.RemapRoot = true
		if r := run(t, w, s); r != (result{out: ioctls + "0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 \n"}) {
			t.Errorf("remapped: %+v", r)
		}
	})
}

// needStatic skips a test that runs its own binary in a container.
func needStatic(t *testing.T) {
	t.Helper()
	testenv.NeedStatic(t)
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	if err := testenv.CopyFile(from, to, 0o755); err != nil {
		t.Fatal(err)
	}
}

// A remapped root's changes of owner and id succeed, and do nothing; without
// --remap-root they fail as they do on the host.
func TestRunPretendedIDs(t *testing.T) {
	forUsers(t, func(t *testing.T, w who, root string) {
		if w.uid == 0 {
			t.Skip("root's succeed by themselves")
		}
		const script = "touch /tmp/%[1]s && chown 33:42 /tmp/%[1]s && chown -h 7 /tmp/%[1]s && stat -c %%u:%%g /tmp/%[1]s; rm /tmp/%[1]s"
		name := filepath.Base(root) + ".owned"
		s := Spec{Dir: root, RemapRoot: true, Command: []string{"/bin/sh", "-c", fmt.Sprintf(script, name)}}
		if r := run(t, w, s); r != (result{out: "0:0\n"}) {
			t.Errorf("%+v", r)
		}
		s.RemapRoot = false
		if r := run(t, w, s); !strings.Contains(r.err, "Operation not permitted") && !strings.Contains(r.err, "Invalid argument") {
			t.Errorf("not remapped: %+v", r)
		}
	})
}
