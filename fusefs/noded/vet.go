package noded

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/internal/mountinfo"
	"github.com/squirefs/squire/sqfs/signed"
)

// identity says which image a descriptor has open. What it says comes from the kernel without asking the file system,
// which may be a user's own, or hang.
type identity struct {
	device, inode uint64
	size          int64
	sec           int64 // of the time of the last change
	nsec          uint32
	offset        int64
	superblock    string
	signed        string // the signed.Statement that it is read by, in text; "": it is not signed
}

// opened is a file that a client passed.
type opened struct {
	identity
	// loose: its file system may say of any file what it likes (FUSE), or other things at other times (overlay). What is
	// read from it is shown to nobody else.
	loose bool
	owner uint32 // of the file
}

func refuse(code Code, format string, args ...any) *ServiceError {
	return &ServiceError{code, fmt.Sprintf(format, args...)}
}

// vet looks at a file that the user passed as an image.
//
// The keeper must never wait for a user: so a node's service takes nothing that lies on a user's own FUSE file system,
// which may never answer. Even to close such a file may wait, without end, and a child that the keeper forks would do so
// in its exec. The user's own server, which is what the client falls back to, hurts nobody else.
func vet(f *os.File, user uint32, own bool) (opened, *ServiceError) {
	if f == nil {
		return opened{}, refuseFUSE() // see receive
	}
	st, err := examine(f, unix.O_RDONLY)
	if err != nil {
		return opened{}, err
	}
	switch mode := uint32(st.Mode) & unix.S_IFMT; {
	case mode == unix.S_IFREG, mode == unix.S_IFBLK && user == 0:
	case mode == unix.S_IFBLK:
		return opened{}, refuse(Denied, "only root may have a block device served")
	default:
		return opened{}, refuse(Invalid, "an image is a regular file or a block device")
	}
	o := opened{identity: identity{
		device: unix.Mkdev(st.Dev_major, st.Dev_minor),
		inode:  st.Ino,
		size:   int64(st.Size),
		sec:    st.Mtime.Sec,
		nsec:   st.Mtime.Nsec,
	}}
	if uint32(st.Mode)&unix.S_IFMT == unix.S_IFBLK {
		o.inode = unix.Mkdev(st.Rdev_major, st.Rdev_minor)
	}
	fs, err := fileSystem(f, st)
	if err != nil {
		return opened{}, err
	}
	if fs.users && !own && user != 0 {
		return opened{}, refuseFUSE()
	}
	o.loose, o.owner = fs.loose, st.Uid
	return o, nil
}

// mayServe refuses what the site does not let users have served, and says by what the image is to be read. list is the
// descriptor that came with a signature, nil of others: it is in memory, so that nobody waits for it.
func (k *keeper) mayServe(r *Request, o *opened, image, list *os.File, user uint32) *ServiceError {
	limited := !k.cfg.Own && user != 0
	if limited && k.cfg.Owners != nil && !slices.Contains(k.cfg.Owners, o.owner) {
		return refuse(Denied, "only images of some users may be run here")
	}
	if limited && k.cfg.Directories != nil {
		if refused := mustLieIn(image, k.cfg.Directories); refused != nil {
			return refused
		}
	}
	if r.Do != VerbMountSigned {
		if limited && k.cfg.Keys != nil {
			return refuse(Denied, "only signed images may be run here")
		}
		return nil
	}
	sig, err := signed.Parse([]byte(r.Signature))
	if err != nil {
		return refuse(Invalid, "%s", err)
	}
	if limited && k.cfg.Keys != nil {
		if _, err = sig.Verify(k.cfg.Keys); err != nil {
			return refuse(Denied, "%s", err)
		}
	}
	if !sealed(list, sig.ListSize()) {
		return refuse(Invalid, "the list of hashes must be a sealed file in memory, of the length that the signature says")
	}
	o.signed = sig.Statement.String()
	return nil
}

// mustLieIn refuses a file that is in none of dirs. Its name is the kernel's, in which no link is left, and is true if the
// file was opened by a mount that is there where the keeper is: what is mounted in a user's own namespace may be anything
// under any name. Of that, the user's own server has to judge, as where there is no service.
func mustLieIn(f *os.File, dirs []string) *ServiceError {
	name, ours, err := placeOf(f)
	switch {
	case err != nil:
		return refuse(Failed, "find out where the file lies: %s", err)
	case !ours:
		return refuse(Limit, "from another mount namespace it cannot be told whether it lies in a directory of the site's images")
	case !liesIn(name, dirs):
		return refuse(Denied, "only images in some directories may be run here")
	}
	return nil
}

// placeOf returns the kernel's name for an open file, and whether the mount that it was opened by is one of the keeper's
// namespace. The file keeps that mount, whose number so is nobody else's, and no file system is asked.
func placeOf(f *os.File) (name string, ours bool, err error) {
	var info []byte
	err = withFD(f, func(fd int) (err error) {
		if info, err = os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd)); err == nil {
			name, err = os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
		}
		return err
	})
	if err != nil {
		return "", false, err
	}
	_, text, _ := strings.Cut(string(info), "mnt_id:")
	text, _, _ = strings.Cut(text, "\n")
	id, err := strconv.ParseUint(strings.TrimSpace(text), 10, 64)
	if err != nil {
		return "", false, errors.New("/proc/self/fdinfo does not tell the mount")
	}
	mounts, err := mountinfo.Self()
	ours = slices.ContainsFunc(mounts, func(m mountinfo.Mount) bool { return m.ID == id })
	return name, ours, err
}

// liesIn reports whether a path without links lies in one of dirs. Links in their names are followed only if it must be:
// that may wait for the file server that they are on, and with it the connection that asks.
func liesIn(name string, dirs []string) bool {
	in := func(dir string) bool {
		rest, err := filepath.Rel(dir, name)
		return err == nil && filepath.IsLocal(rest)
	}
	return slices.ContainsFunc(dirs, in) || slices.ContainsFunc(dirs, func(dir string) bool {
		real, err := filepath.EvalSymlinks(dir)
		return err == nil && in(real)
	})
}

// sealed reports whether nobody can change a file, which is in memory then, and has size bytes.
func sealed(f *os.File, size int64) bool {
	const want = unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW
	seals := 0
	var st unix.Stat_t
	err := withFD(f, func(fd int) (err error) {
		if seals, err = unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0); err == nil {
			err = unix.Fstat(fd, &st)
		}
		return err
	})
	return err == nil && seals&want == want && st.Size == size
}

func refuseFUSE() *ServiceError {
	return refuse(Limit, "it lies on a FUSE file system of a user's, from which the node's service does not read")
}

// vetTrace looks at a file that the user passed as one that may have the image's trace.
func vetTrace(f *os.File, user uint32, own bool) bool {
	st, err := examine(f, unix.O_RDONLY, unix.O_RDWR)
	if err != nil || uint32(st.Mode)&unix.S_IFMT != unix.S_IFREG {
		return false
	}
	fs, err := fileSystem(f, st)
	return err == nil && (own || user == 0 || !fs.users)
}

// examine checks how a file is opened, and returns what the kernel has in memory of it. FUSE without allow_other refuses
// even that to all but its user (fs/fuse/dir.c: fuse_update_get_attr), which says nothing of the client, who has the
// file open: it is the service that cannot look.
func examine(f *os.File, modes ...int) (*unix.Statx_t, *ServiceError) {
	var flags int
	st := new(unix.Statx_t)
	err := withFD(f, func(fd int) (err error) {
		if flags, err = unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil {
			return err
		}
		const how = unix.AT_EMPTY_PATH | unix.AT_STATX_DONT_SYNC | unix.AT_NO_AUTOMOUNT
		return unix.Statx(fd, "", how, unix.STATX_BASIC_STATS, st)
	})
	switch {
	case errors.Is(err, unix.EACCES) && flags&unix.O_PATH == 0:
		return nil, refuseFUSE()
	case err != nil:
		return nil, refuse(Invalid, "look at the file: %s", err)
	}
	allowed := false
	for _, mode := range modes {
		allowed = allowed || flags&unix.O_ACCMODE == mode
	}
	if flags&unix.O_PATH != 0 || !allowed {
		return nil, refuse(Denied, "the file is not opened for reading alone")
	}
	return st, nil
}

// storage is what a file lies on.
type storage struct {
	loose bool // see opened
	users bool // a user's own file system
}

// fileSystem finds out where a file lies: from its device number if a disk's, else from the keeper's table of mounts. One
// that is not there is asked, for which only the connection waits that passed it: FUSE then tells root without asking
// its server, unless it lets everybody in (fs/fuse/inode.c: fuse_statfs).
func fileSystem(f *os.File, st *unix.Statx_t) (storage, *ServiceError) {
	if st.Dev_major != 0 {
		return storage{}, nil
	}
	found, known, err := keeperMounts(st)
	if err != nil {
		return storage{}, refuse(Failed, "look at the mounts: %s", err)
	}
	if known {
		return found, nil
	}
	var fs unix.Statfs_t
	if err = withFD(f, func(fd int) error { return unix.Fstatfs(fd, &fs) }); err != nil {
		return storage{}, refuse(Invalid, "look at the file's file system: %s", err)
	}
	odd := fs.Type == unix.FUSE_SUPER_MAGIC || fs.Type == unix.OVERLAYFS_SUPER_MAGIC
	return storage{loose: odd, users: odd}, nil
}

// keeperMounts looks for the file system of a file among those that are mounted where the keeper is.
func keeperMounts(st *unix.Statx_t) (fs storage, known bool, err error) {
	list, err := mountinfo.Self()
	if err != nil {
		return storage{}, false, err
	}
	fs, known = mountedAs(list, fmt.Sprintf("%d:%d", st.Dev_major, st.Dev_minor))
	return fs, known, nil
}

// mountedAs looks a device up among mounts.
func mountedAs(list []mountinfo.Mount, device string) (storage, bool) {
	i := slices.IndexFunc(list, func(m mountinfo.Mount) bool { return m.Device == device })
	if i < 0 {
		return storage{}, false
	}
	m := list[i]
	fuse := m.Type == "fuse" || m.Type == "fuseblk" || strings.HasPrefix(m.Type, "fuse.")
	fs := storage{loose: fuse || m.Type == "overlay"}
	if fuse {
		fs.users = !strings.Contains(","+m.Options+",", ",user_id=0,")
	}
	return fs, true
}
