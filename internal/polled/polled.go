// Package polled tells tests what Go's poller looks for in a process.
package polled

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Files returns what the descriptors of a process are open on, as /proc/PID/fd shows it, that are in one of its sets of
// epoll(7). A process that is root's or the caller's is wanted.
func Files(pid int) (names []string, err error) {
	dir := fmt.Sprintf("/proc/%d", pid)
	sets, err := filepath.Glob(dir + "/fdinfo/*")
	for _, set := range sets {
		info, failed := os.ReadFile(set)
		if failed != nil {
			continue // closed meanwhile
		}
		for line := range strings.Lines(string(info)) {
			var fd string
			if _, err := fmt.Sscanf(line, "tfd: %s", &fd); err != nil { // proc_pid_fdinfo(5)
				continue
			}
			if name, err := os.Readlink(dir + "/fd/" + fd); err == nil {
				names = append(names, name)
			}
		}
	}
	return names, err
}
