// Package mountinfo reads tables of mounts as the kernel shows them: see proc_pid_mountinfo(5).
package mountinfo

import (
	"os"
	"strconv"
	"strings"
)

// Mount is a line of a table.
type Mount struct {
	ID     uint64 // of the mount
	Device string // MAJOR:MINOR of its superblock, as st_dev
	Point  string // where it is, seen from the root directory of the table's process
	Type   string // of the file system
	Source string
	// Options are the superblock's, with commas between them.
	Options string
}

// Self returns the mounts that this process sees, without touching any: their servers may be gone. What is on top of
// others comes after them.
func Self() ([]Mount, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	return Parse(string(b)), nil
}

// Parse reads a table. It leaves out lines that it does not understand.
func Parse(table string) (list []Mount) {
	for line := range strings.Lines(table) {
		if m, ok := parseLine(strings.TrimSuffix(line, "\n")); ok {
			list = append(list, m)
		}
	}
	return list
}

func parseLine(line string) (m Mount, ok bool) {
	// ID, parent, MAJOR:MINOR, root, point, options, any number of tags, "-", type, source, options of the superblock.
	left, right, _ := strings.Cut(line, " - ")
	// Names may have other white space in them: what the kernel escapes is what separates fields and lines.
	l, r := strings.Split(left, " "), strings.Split(right, " ")
	if len(l) < 6 || len(r) < 3 {
		return m, false
	}
	id, err := strconv.ParseUint(l[0], 10, 64)
	return Mount{id, l[2], Unescape(l[4]), r[0], Unescape(r[1]), r[2]}, err == nil
}

// Unescape puts bytes in the place of \ooo, their octal numbers, as which mangle_path (fs/seq_file.c) writes blanks and
// backslashes, and fstab(5) has them.
func Unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
