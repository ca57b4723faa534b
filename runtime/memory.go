package runtime

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// layerLimit is a mount option for the tmpfs that has the writable layer in memory, behind others: its size.
//
// The kernel gives a tmpfs half of the machine's memory, whatever the control group may have. What is in it stays when
// processes are killed for memory, so a layer that fills the group's limit takes one after the other with it: of a step of
// Slurm's slurmstepd too, after which nobody ends the job. So it gets half of the limit, and whoever writes more is told
// ENOSPC. Unless the user says another.
func layerLimit(layer Op) string {
	for _, f := range layer.Flags {
		if strings.HasPrefix(f, sizeOption) {
			return "," + f
		}
	}
	limit := memoryLimit("/sys/fs/cgroup", "/proc/self/cgroup")
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err == nil && limit < info.Totalram*uint64(info.Unit) {
		return fmt.Sprintf(",size=%d", max(limit/2, 1<<20)) // 0 would be no limit
	}
	return ""
}

// memoryLimit returns how many bytes the control groups that a file like /proc/self/cgroup names may have, of both
// versions and with those above them; the largest number if nothing says so. See Documentation/admin-guide/cgroup-v2.rst
// (memory.max) and cgroup-v1/memory.rst (memory.limit_in_bytes).
func memoryLimit(root, groups string) uint64 {
	limit := uint64(math.MaxUint64)
	text, _ := os.ReadFile(groups) // without it nothing is known
	for line := range strings.Lines(string(text)) {
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3) // number, controllers, path
		if len(fields) != 3 {
			continue
		}
		top, name := root, "memory.max"
		switch fields[1] {
		case "":
		case "memory":
			top, name = filepath.Join(root, "memory"), "memory.limit_in_bytes"
		default:
			continue
		}
		for dir := filepath.Clean("/" + fields[2]); ; dir = filepath.Dir(dir) {
			b, _ := os.ReadFile(filepath.Join(top, dir, name))
			if n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64); err == nil { // else it is "max", or not there
				limit = min(limit, n)
			}
			if dir == "/" {
				break
			}
		}
	}
	return limit
}
