package hostile

import (
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// DirView is the view of a mounted or extracted image in a directory.
type DirView string

// File implements [View]. Attributes that only root may see need root.
func (d DirView) File(name string) (File, error) {
	full := d.path(name)
	var st unix.Stat_t
	if err := unix.Lstat(full, &st); err != nil {
		return File{}, &os.PathError{Op: "lstat", Path: name, Err: err}
	}
	f := File{Mode: st.Mode, UID: st.Uid, GID: st.Gid, MTime: uint32(st.Mtim.Sec), Size: st.Size}
	major, minor := unix.Major(st.Rdev), unix.Minor(st.Rdev)
	f.Rdev = minor&0xff | major<<8 | minor&^0xff<<12
	var err error
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		if f.Target, err = os.Readlink(full); err != nil {
			return File{}, err
		}
	}
	f.Xattrs, err = xattrsOf(full)
	return f, err
}

// List implements [View].
func (d DirView) List(name string) ([]string, error) {
	f, err := os.Open(d.path(name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}

// ReadAt implements [View].
func (d DirView) ReadAt(name string, p []byte, off int64) (int, error) {
	f, err := os.Open(d.path(name))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return f.ReadAt(p, off)
}

func (d DirView) path(name string) string { return filepath.Join(string(d), name) }

// xattrsOf returns the attributes of a file, nil if it has none.
func xattrsOf(name string) (map[string]string, error) {
	buf := make([]byte, 1<<16)
	n, err := unix.Llistxattr(name, buf)
	if err == unix.EOPNOTSUPP {
		return nil, nil
	}
	if err != nil {
		return nil, &os.PathError{Op: "listxattr", Path: name, Err: err}
	}
	var all map[string]string
	value := make([]byte, 1<<16)
	for attr := range strings.SplitSeq(strings.TrimRight(string(buf[:n]), "\x00"), "\x00") {
		if attr == "" || strings.HasPrefix(attr, "system.") {
			continue
		}
		k, err := unix.Lgetxattr(name, attr, value)
		if err != nil {
			return nil, &os.PathError{Op: "getxattr " + attr, Path: name, Err: err}
		}
		if all == nil {
			all = map[string]string{}
		}
		all[attr] = string(value[:k])
	}
	return all, nil
}
