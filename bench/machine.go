package bench

import (
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Machine says where figures come from.
type Machine struct {
	Kernel       string `json:"kernel"`
	Architecture string `json:"architecture"`
	CPUs         int    `json:"cpus"` // that this process may use
	CPUModel     string `json:"cpu_model,omitempty"`
	MemoryBytes  int64  `json:"memory_bytes"`
}

func (m Machine) String() string {
	s := fmt.Sprintf("Linux %s, %s", m.Kernel, plural(m.CPUs, "CPU"))
	if m.CPUModel != "" {
		s += " (" + m.CPUModel + ")"
	}
	return s
}

// ThisMachine describes the machine that this program runs on.
func ThisMachine() Machine {
	var info unix.Sysinfo_t
	_ = unix.Sysinfo(&info) // it fails for a bad address only
	return Machine{
		Kernel: kernelRelease(), Architecture: runtime.GOARCH, CPUs: runtime.NumCPU(), CPUModel: cpuModel(),
		MemoryBytes: int64(info.Totalram) * int64(info.Unit),
	}
}

// kernelRelease is what uname -r says.
func kernelRelease() string {
	var uts unix.Utsname
	_ = unix.Uname(&uts) // like Sysinfo
	return unix.ByteSliceToString(uts.Release[:])
}

// cpuModel is the processor's name where /proc/cpuinfo has one: arm64 has none.
func cpuModel() string {
	text, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(text)) {
		if name, value, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
