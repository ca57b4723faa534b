package runtime

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Targets are paths in a root that somebody else made: any component may be a
// symbolic link to anywhere. They are only ever resolved by the kernel, inside
// the root, into a descriptor, and used through it.

// maxLinks bounds the dangling links that are followed while a target is made,
// as MAXSYMLINKS (fs/namei.c) does for those that are not.
const maxLinks = 40

// openIn returns an O_PATH descriptor of name inside root, following links as
// if root were "/".
func openIn(root int, name string) (int, error) {
	for range 100 {
		fd, err := unix.Openat2(root, name, &unix.OpenHow{
			Flags:   unix.O_PATH | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
		})
		// EAGAIN: something was renamed meanwhile and the kernel could not
		// tell whether ".." stayed inside (openat2(2)).
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
	return -1, unix.EAGAIN
}

// errOutside is a source that is not where it may be.
var errOutside = errors.New("forbidden here: it leads")

// openWithin returns an O_PATH descriptor of a path of the host, if what was opened is in one of dirs. A name can lead
// elsewhere each time that it is looked up; the kernel's name for a descriptor has no links, and is that of what is
// mounted by it.
func openWithin(name string, dirs []string) (int, error) {
	// An automounted directory is there when it is opened as one only (follow_automount, fs/namei.c).
	fd, err := unix.Open(name, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOTDIR) {
		fd, err = unix.Open(name, unix.O_PATH|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return -1, err
	}
	is, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err == nil && !Below(is, dirs) {
		err = fmt.Errorf("%w to %s", errOutside, is)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// Below reports whether a path is one of dirs, or in one. Paths are absolute, and without links.
func Below(path string, dirs []string) bool {
	return slices.ContainsFunc(dirs, func(dir string) bool {
		rest, ok := strings.CutPrefix(path, strings.TrimSuffix(dir, "/"))
		return ok && (rest == "" || rest[0] == '/')
	})
}

// makeTarget returns an O_PATH descriptor of name inside root, after making
// it, and the directories above it, where they are missing. It checks that a
// target that is there is a directory, or not, as wanted.
func makeTarget(root int, name string, dir bool) (int, error) {
	m := maker{root: root, links: maxLinks}
	return m.make(name, dir)
}

// maker makes one target.
type maker struct {
	root  int
	links int // how many more links may be followed
}

func (m *maker) make(name string, dir bool) (int, error) {
	fd, err := openIn(m.root, name)
	if err == nil {
		return checkKind(fd, dir)
	}
	if !errors.Is(err, unix.ENOENT) {
		return -1, err
	}
	name = strings.TrimRight(name, "/")
	parent, base := path.Split(name)
	if base == "" || base == "." || base == ".." {
		return -1, err
	}
	if parent == "" {
		parent = "/"
	}
	pfd, err := m.make(parent, true)
	if err != nil {
		return -1, err
	}
	defer unix.Close(pfd)
	if err = m.mayCreate(pfd, parent); err != nil {
		return -1, err
	}
	err = create(pfd, base, dir)
	if errors.Is(err, unix.EEXIST) { // a link to something that is missing
		return m.followDangling(pfd, parent, base, dir)
	}
	if err != nil {
		return -1, err
	}
	return unix.Openat(pfd, base, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}

// followDangling makes what the link base in parent points to.
func (m *maker) followDangling(pfd int, parent, base string, dir bool) (int, error) {
	if m.links--; m.links < 0 {
		return -1, unix.ELOOP
	}
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(pfd, base, buf)
	if err != nil {
		return -1, err
	}
	to := string(buf[:n])
	if !path.IsAbs(to) {
		to = strings.TrimRight(parent, "/") + "/" + to
	}
	return m.make(to, dir)
}

// errForeign is a target that a link of the image leads out of it.
var errForeign = errors.New("a link in the image leads to a directory of the host, where nothing is made")

// mayCreate allows to make something in parent, open as pfd, if that is in the
// root file system, or in a mount on it that the target names without the help
// of a link. Otherwise links in an image could have files made on the host.
func (m *maker) mayCreate(pfd int, parent string) error {
	inRoot, err := sameMount(m.root, pfd)
	if err != nil || inRoot {
		return err
	}
	if m.links < maxLinks {
		return errForeign
	}
	fd, err := unix.Openat2(m.root, parent, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return errForeign
	}
	return unix.Close(fd)
}

func sameMount(a, b int) (bool, error) {
	var sa, sb unix.Statx_t
	err := unix.Statx(a, "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &sa)
	if err == nil {
		err = unix.Statx(b, "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &sb)
	}
	return sa.Mnt_id == sb.Mnt_id, err
}

func create(dirfd int, base string, dir bool) error {
	if dir {
		return unix.Mkdirat(dirfd, base, 0o755)
	}
	fd, err := unix.Openat(dirfd, base, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

// checkKind closes fd and returns an error if it is a directory and should
// not be, or the other way round: the kernel would only say "invalid".
func checkKind(fd int, dir bool) (int, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return -1, err
	}
	is := st.Mode&unix.S_IFMT == unix.S_IFDIR
	if is == dir {
		return fd, nil
	}
	unix.Close(fd)
	if dir {
		return -1, fmt.Errorf("the source is a directory, the target is not")
	}
	return -1, fmt.Errorf("the target is a directory, the source is not")
}

// symlinkIn makes a link at name inside root; one that is there already stays.
func symlinkIn(root int, to, name string) error {
	dir, base := path.Split(name)
	fd, err := makeTarget(root, dir, true)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Symlinkat(to, fd, base); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}
