package mounter

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/fusefs"
)

// Attaching for users is what fusermount3 does for them: what they could not do themselves in a mount namespace of the
// host's user namespace, on directories that are theirs to hide. All of it is done by threads that enter the user's mount
// namespace and take on the user's rights over files, and are never used again.

// inThread runs do on a thread of its own, which ends with do, in the working directory, and with the descriptors, of its
// own: files, and those by which Go waits for sockets. Should it hang there for good, it keeps nothing open: neither the
// keeper's socket, by whose end the keeper sees that this process is dead, nor a device, without which a mount would not
// end, nor directories of other users.
func (h *host) inThread(files []*os.File, do func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked
		if unix.Gettid() == unix.Getpid() {
			// The first thread of a process does not end before the process. Nobody gets it while it waits here.
			done <- h.inThread(files, do)
			runtime.UnlockOSThread()
			return
		}
		err := h.isolate(files)
		if err != nil {
			err = fmt.Errorf("separate a thread: %w", err)
		} else {
			err = do()
			closeCopies(files)
		}
		done <- err
	}()
	return <-done
}

// closeCopies closes the calling thread's own copies of files: a mount among them would be busy until the thread is gone,
// which may be later than the answer.
func closeCopies(files []*os.File) {
	for _, f := range files {
		unix.Close(int(f.Fd()))
	}
}

// isolate leaves the calling thread with copies of files and what Go needs.
func (h *host) isolate(files []*os.File) error {
	devices.Lock()
	err := unix.Unshare(unix.CLONE_FS | unix.CLONE_FILES)
	devices.Unlock()
	if err != nil {
		return err
	}
	keep := append([]int{int(h.proc.Fd())}, h.netpoll...)
	for _, f := range files {
		keep = append(keep, int(f.Fd()))
	}
	slices.Sort(keep)
	next := 3 // after standard error
	for _, fd := range append(keep, math.MaxInt32) {
		if next < fd {
			if err = unix.CloseRange(uint(next), uint(fd-1), 0); err != nil {
				return err
			}
		}
		next = fd + 1
	}
	return nil
}

// errForeign: the process lives where it can mount for itself, or in somebody else's namespace.
var errForeign = errors.New("the mount namespace of the process belongs to another user namespace; mount there")

// enter takes the calling thread into the mount namespace of peer, a pidfd, with peer's rights over files. Namespaces of
// other user namespaces are refused: what is mounted there from outside is not locked.
func (h *host) enter(peer *os.File) (*credentials, error) {
	cred, err := h.credentialsOf(peer)
	if err != nil {
		return nil, err
	}
	if err = unix.Setns(int(peer.Fd()), unix.CLONE_NEWNS); err != nil {
		return nil, fmt.Errorf("enter the mount namespace of the process: %s", err.Error()) // nothing that the user may not
	}
	ns, err := unix.Openat(int(h.proc.Fd()), "thread-self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the mount namespace: %w", err)
	}
	defer unix.Close(ns)
	users, err := unix.IoctlRetInt(ns, unix.NS_GET_USERNS)
	if err != nil { // EPERM: not below ours. It is not that the user may not
		return nil, fmt.Errorf("%w (%s)", errForeign, err.Error())
	}
	defer unix.Close(users)
	var st unix.Stat_t
	if err = unix.Fstat(users, &st); err != nil {
		return nil, err
	}
	if (nsID{st.Dev, st.Ino}) != h.users {
		return nil, errForeign
	}
	return cred, cred.assume()
}

// credentials are what decides about access to files.
type credentials struct {
	uid, gid int
	groups   []uint32
}

// credentialsOf returns those of a process that has not ended.
func (h *host) credentialsOf(peer *os.File) (*credentials, error) {
	pid, err := h.pidOf(peer)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Openat(int(h.proc.Fd()), strconv.Itoa(pid)+"/status", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the status of the process: %w", err)
	}
	f := os.NewFile(uintptr(fd), "status")
	defer f.Close()
	b := make([]byte, 2<<20) // 65536 groups
	n, err := f.Read(b)
	if err != nil {
		return nil, fmt.Errorf("read the status of the process: %w", err)
	}
	// The number was still that process's when the file was opened, which then stays that process's.
	if ended(peer) {
		return nil, fmt.Errorf("the process has ended: %w", unix.ESRCH)
	}
	return parseStatus(b[:n])
}

// pidOf returns the number of a process as in this /proc.
func (h *host) pidOf(peer *os.File) (int, error) {
	name := "self/fdinfo/" + strconv.Itoa(int(peer.Fd()))
	fd, err := unix.Openat(int(h.proc.Fd()), name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("look at the descriptor of the process: %w", err)
	}
	defer unix.Close(fd)
	b := make([]byte, 4096)
	n, err := unix.Read(fd, b)
	if err != nil {
		return 0, fmt.Errorf("look at the descriptor of the process: %w", err)
	}
	for line := range bytes.Lines(b[:n]) {
		if rest, ok := bytes.CutPrefix(line, []byte("Pid:")); ok {
			if pid, err := strconv.Atoi(string(bytes.TrimSpace(rest))); err == nil && pid > 0 {
				return pid, nil
			}
		}
	}
	return 0, fmt.Errorf("the process has ended, or is none: %w", unix.ESRCH)
}

// ended reports whether the process of a pidfd has.
func ended(peer *os.File) bool {
	fds := []unix.PollFd{{Fd: int32(peer.Fd()), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return n > 0 || err != nil && !errors.Is(err, unix.EINTR)
}

// parseStatus takes the ids for files, the fourth of each line, out of /proc/PID/status (proc(5)).
func parseStatus(b []byte) (*credentials, error) {
	c := &credentials{uid: -1, gid: -1}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		switch {
		case len(f) == 5 && f[0] == "Uid:":
			c.uid, _ = strconv.Atoi(f[4])
		case len(f) == 5 && f[0] == "Gid:":
			c.gid, _ = strconv.Atoi(f[4])
		case len(f) > 0 && f[0] == "Groups:":
			for _, g := range f[1:] {
				n, err := strconv.ParseUint(g, 10, 32)
				if err != nil {
					return nil, fmt.Errorf("groups of the process: %w", err)
				}
				c.groups = append(c.groups, uint32(n))
			}
		}
	}
	if c.uid < 0 || c.gid < 0 {
		return nil, errors.New("the status of the process does not tell its user")
	}
	return c, nil
}

// assume gives the calling thread, and no other, these rights over files. setfsuid(2) returns no error but the id before;
// -1 changes nothing.
func (c *credentials) assume() error {
	var groups unsafe.Pointer
	if len(c.groups) > 0 {
		groups = unsafe.Pointer(&c.groups[0])
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(c.groups)), uintptr(groups), 0); errno != 0 {
		return fmt.Errorf("take on the groups of the process: %w", errno)
	}
	for _, id := range []struct{ call, want uintptr }{{unix.SYS_SETFSGID, uintptr(c.gid)}, {unix.SYS_SETFSUID, uintptr(c.uid)}} {
		_, _, _ = unix.RawSyscall(id.call, id.want, 0, 0)
		if now, _, _ := unix.RawSyscall(id.call, ^uintptr(0), 0, 0); uint32(now) != uint32(id.want) {
			return fmt.Errorf("take on the user of the process: %w", unix.EPERM)
		}
	}
	return nil
}

// attach puts a clone on a directory of the user's.
func (m *mounter) attach(clone, dir, peer *os.File, user fusefs.Owner, deadline time.Time) (uint64, error) {
	var id uint64
	failed := m.host.inThread([]*os.File{clone, dir, peer}, func() error {
		cred, err := m.host.enter(peer)
		if err != nil {
			return err
		}
		if cred.uid != int(user.UID) {
			return fmt.Errorf("the process is of user %d, not %d: %w", cred.uid, user.UID, unix.EPERM)
		}
		if err = mayCover(int(dir.Fd()), cred.uid); err != nil {
			return err
		}
		attr := unix.MountAttr{Attr_set: safe}
		if err = unix.MountSetattr(int(clone.Fd()), "", unix.AT_EMPTY_PATH, &attr); err != nil {
			return fmt.Errorf("flags of the mount: %w", err)
		}
		if time.Now().After(deadline) { // whoever asked was told so
			return unix.ETIMEDOUT
		}
		const flags = unix.MOVE_MOUNT_F_EMPTY_PATH | unix.MOVE_MOUNT_T_EMPTY_PATH
		if err = unix.MoveMount(int(clone.Fd()), "", int(dir.Fd()), "", flags); err != nil {
			return fmt.Errorf("put the mount on the directory: %w", err)
		}
		if time.Now().After(deadline) {
			return errors.Join(unix.ETIMEDOUT, m.host.takeOff(int(clone.Fd())))
		}
		id, err = m.host.mountID(int(clone.Fd()))
		return err
	})
	return id, failed
}

// takeOff unmounts the mount of a descriptor, whatever is on top of it or in it.
func (h *host) takeOff(mount int) error {
	if err := unix.Fchdir(int(h.proc.Fd())); err != nil {
		return err
	}
	return unix.Unmount("thread-self/fd/"+strconv.Itoa(mount), unix.MNT_DETACH)
}

// coverable are the file systems whose directories a user may mount on, those that hold files of people; not /proc,
// say, whose contents programs trust. libfuse has a list to the same end (util/fusermount.c: check_nonroot_fstype).
var coverable = []int64{
	unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.F2FS_SUPER_MAGIC, unix.TMPFS_MAGIC,
	unix.RAMFS_MAGIC, unix.NFS_SUPER_MAGIC, unix.FUSE_SUPER_MAGIC, unix.OVERLAYFS_SUPER_MAGIC, unix.CEPH_SUPER_MAGIC,
	unix.SMB2_SUPER_MAGIC, unix.CIFS_SUPER_MAGIC, unix.AFS_SUPER_MAGIC, unix.ECRYPTFS_SUPER_MAGIC,
	unix.REISERFS_SUPER_MAGIC, unix.NILFS_SUPER_MAGIC, unix.EXFAT_SUPER_MAGIC, unix.MSDOS_SUPER_MAGIC,
	0x0bd00bd0, // Lustre
	0x47504653, // GPFS
	0x19830326, // BeeGFS
	0x2fc12fc1, // ZFS
	0xca451a4e, // bcachefs
	0xaad7aaea, // PanFS
	0x20030528, // OrangeFS
}

// mayCover returns an error unless the calling thread, with the rights of user uid, may write to the directory dir, and
// owns it if it is sticky: that is what fusermount3 asks of mount points (util/fusermount.c: check_perm).
//
// Each call here may wait for a file system for ever, so none is made without telling Go (RawSyscall).
func mayCover(dir, uid int) error {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(dir, &fs); err != nil {
		return fmt.Errorf("look at the file system of the directory: %w", err)
	}
	if !slices.Contains(coverable, fs.Type) {
		return fmt.Errorf("mounting on a file system of type %#x: %w", fs.Type, unix.EPERM)
	}
	var st unix.Stat_t
	if err := unix.Fstat(dir, &st); err != nil {
		return fmt.Errorf("look at the directory: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return unix.ENOTDIR
	}
	if st.Mode&unix.S_ISVTX != 0 && int(st.Uid) != uid {
		return fmt.Errorf("the directory is sticky and not yours: %w", unix.EPERM)
	}
	// With AT_EACCESS it is the ids for files that count.
	if err := unix.Faccessat2(dir, "", unix.W_OK, unix.AT_EMPTY_PATH|unix.AT_EACCESS); err != nil {
		return fmt.Errorf("write to the directory: %w", err)
	}
	return nil
}

// detach unmounts base in parent if one of r.IDs is there, and returns which.
func (m *mounter) detach(parent, peer *os.File, r *request, deadline time.Time) (uint64, error) {
	var id uint64
	if r.Base == "" || r.Base == "." || r.Base == ".." || len(r.Base) > maxName || strings.ContainsAny(r.Base, "/\x00") {
		return 0, fmt.Errorf("name of a mount point: %w", unix.EINVAL)
	}
	failed := m.host.inThread([]*os.File{parent, peer}, func() error {
		if _, err := m.host.enter(peer); err != nil {
			return err
		}
		if err := unix.Fchdir(int(parent.Fd())); err != nil {
			return fmt.Errorf("enter the directory: %w", err)
		}
		top, err := unix.Open(r.Base, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		id, err = m.host.mountID(top)
		unix.Close(top) // it would keep the mount busy
		if err != nil {
			return err
		}
		if !slices.Contains(r.IDs, id) {
			return fmt.Errorf("no mount of the service's that is yours is there: %w", unix.EPERM)
		}
		if time.Now().After(deadline) {
			return unix.ETIMEDOUT
		}
		flags := unix.UMOUNT_NOFOLLOW
		if r.Lazy {
			flags |= unix.MNT_DETACH
		}
		// Between the look and this, the name can come to mean another mount by a rename of that one's directory in
		// another mount namespace. Who can do that can unmount the other one anyway, by removing its directory there
		// (fs/namei.c: vfs_rmdir calls detach_mounts).
		return unmount(r.Base, flags)
	})
	return id, failed
}

// settling is how long a mount may be busy without anybody using it: a thread that has just been separated has copies of
// what others had open, until it gets to closing them.
const settling = 200 * time.Millisecond

// unmount is umount2(2) of what may be settling.
func unmount(name string, flags int) error {
	for end := time.Now().Add(settling); ; time.Sleep(5 * time.Millisecond) {
		if err := unix.Unmount(name, flags); !errors.Is(err, unix.EBUSY) || time.Now().After(end) {
			return err
		}
	}
}
