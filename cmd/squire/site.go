package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/internal/rights"
	"github.com/squirefs/squire/runtime"
)

// siteDir is where the administrator of a node says how containers are there. No
// variable changes it: what it says is not the user's choice. Only tests do.
var siteDir = "/etc/squire"

// maxSiteFile bounds a file of the site's.
const maxSiteFile = 1 << 20

// readSiteFile reads a file below siteDir. It must be root's, and closed to others
// for writing: as root we do what it says.
func readSiteFile(name string) ([]byte, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, unwrapPath(name, err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err = unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size > maxSiteFile:
		return nil, fmt.Errorf("%s: not a plain file of at most %s", name, sizeString(maxSiteFile))
	case !isSites(&st):
		return nil, fmt.Errorf("%s: must belong to root, and nobody else may write to it", name)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxSiteFile))
	if err != nil {
		return nil, unwrapPath(name, err)
	}
	return text, nil
}

// isSites reports whether nobody but root can have written to a file. In a user
// namespace without a mapping of root, root's files are the overflow user's
// (user_namespaces(7)).
func isSites(st *unix.Stat_t) bool {
	const overflow = 65534
	root := st.Uid == 0 || st.Uid == overflow && !rights.AllIDsMapped()
	group := st.Gid == 0 || st.Mode&0o020 == 0
	return root && group && st.Mode&0o002 == 0
}

// siteMounts are those of the files in mounts.d, in the order of their names. Where
// there is no such directory there are none.
func siteMounts(parser *runtime.MountParser) ([]runtime.Mount, error) {
	dir := filepath.Join(siteDir, "mounts.d")
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, unwrapPath(dir, err)
	}
	var mounts []runtime.Mount
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".fstab") || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		ms, err := readFstab(filepath.Join(dir, e.Name()), parser)
		if err != nil {
			return nil, err
		}
		mounts = append(mounts, ms...)
	}
	return mounts, nil
}

// readFstab reads one file of mounts, and finds what is missing on this node.
func readFstab(name string, parser *runtime.MountParser) (mounts []runtime.Mount, err error) {
	text, err := readSiteFile(name)
	if err != nil {
		return nil, err
	}
	lines, err := parser.ParseFstab(string(text))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	for _, m := range lines {
		if m.Host() && !m.MayFail() {
			if _, err := os.Stat(m.Source); err != nil {
				return nil, fmt.Errorf("%s: line %d: source %w", name, m.Line, unwrapPath(m.Source, err))
			}
		}
		mounts = append(mounts, m.Mount)
	}
	return mounts, nil
}
