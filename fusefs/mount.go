package fusefs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

// MountOptions change how an image is mounted. The zero value is read-only, nosuid, nodev, for the calling user.
type MountOptions struct {
	// Source is shown as the device in /proc/self/mountinfo. "": "squire".
	Source string
	// AllowOther lets users other than the one who mounts in; root too is another user. Mode bits are always checked
	// by the kernel (default_permissions).
	AllowOther bool
	// Suid honours set-uid bits and file capabilities, Dev device nodes. Only Mount can.
	Suid, Dev bool
	// NoExec forbids to execute anything.
	NoExec bool
	// UID and GID are the user for whom the mount is. 0: the effective ids of the caller. In a user namespace both
	// must be mapped, or the kernel answers EINVAL (fs/fuse/inode.c: fuse_parse_param).
	UID, GID int
}

const (
	device   = "/dev/fuse"
	fsType   = "squire" // shown as fuse.squire
	fallback = "squire"
)

// Mount opens /dev/fuse and mounts it on dir with mount(2). It needs CAP_SYS_ADMIN over the mount namespace, as root
// has, or who made a user and a mount namespace. The caller passes the returned device to FS.Serve, in this process or
// preferably in another; until then, whoever looks at dir waits.
//
// The superblock is read-only, not only the mount: otherwise the kernel forgets attributes after each read, as the
// access time may have changed (fs/fuse/dir.c: fuse_invalidate_atime), and asks again.
func Mount(dir string, o MountOptions) (*os.File, error) {
	if err := checkDir(dir); err != nil {
		return nil, err
	}
	// Not os.OpenFile: that one makes the device non-blocking and registers it with the poller.
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, openError(err)
	}
	dev := os.NewFile(uintptr(fd), device)
	if err := unix.Mount(o.source(), dir, "fuse."+fsType, o.flags(), o.data(fd)); err != nil {
		dev.Close()
		return nil, mountError(dir, err)
	}
	return dev, nil
}

func checkDir(dir string) error {
	st, err := os.Stat(dir)
	switch {
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("mount on %s: no such directory; create it first", dir)
	case errors.Is(err, unix.ENOTCONN):
		return fmt.Errorf("mount on %s: a FUSE mount whose server has ended is there; unmount it first", dir)
	case err != nil:
		return fmt.Errorf("mount: %w", err) // PathError: stat, dir, cause
	case !st.IsDir():
		return fmt.Errorf("mount on %s: not a directory", dir)
	}
	return nil
}

func (o *MountOptions) source() string {
	if o.Source == "" {
		return fallback
	}
	return o.Source
}

func (o *MountOptions) flags() uintptr {
	flags := uintptr(unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV)
	if o.Suid {
		flags &^= unix.MS_NOSUID
	}
	if o.Dev {
		flags &^= unix.MS_NODEV
	}
	if o.NoExec {
		flags |= unix.MS_NOEXEC
	}
	return flags
}

// data returns the options of the file system for mount(2), see Documentation/filesystems/fuse.rst.
func (o *MountOptions) data(fd int) string {
	uid, gid := o.UID, o.GID
	if uid == 0 {
		uid = os.Geteuid()
	}
	if gid == 0 {
		gid = os.Getegid()
	}
	s := fmt.Sprintf("fd=%d,rootmode=%o,user_id=%d,group_id=%d,default_permissions,max_read=%d",
		fd, unix.S_IFDIR, uid, gid, maxRead)
	if o.AllowOther {
		s += ",allow_other"
	}
	return s
}

func openError(err error) error {
	hint := ""
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		hint = `; load the kernel module ("modprobe fuse"), in a container pass the device in`
	case errors.Is(err, os.ErrPermission):
		hint = "; its mode should be 0666, as udev sets it"
	}
	return fmt.Errorf("open %s: %w%s", device, err, hint)
}

func mountError(dir string, err error) error {
	hint := ""
	switch {
	case errors.Is(err, unix.EPERM):
		hint = "; mounting needs root or a user namespace of one's own, otherwise fusermount3"
	case errors.Is(err, unix.EINVAL):
		hint = "; in a user namespace the user and the group of the mount must be mapped ids"
	case errors.Is(err, unix.ENODEV):
		hint = `; this kernel has no FUSE: load the module ("modprobe fuse")`
	case errors.Is(err, unix.EBUSY) || strings.Contains(err.Error(), "busy"): // from fusermount3
		hint = "; the directory is in use as a mount point of this file system already"
	}
	return fmt.Errorf("mount on %s: %w%s", dir, err, hint)
}

// MountFusermount does what Mount does for an ordinary user, through the set-uid program fusermount3. The user must
// own dir and be allowed to write to it. AllowOther works only if /etc/fuse.conf has user_allow_other; Suid and Dev are
// refused, UID and GID ignored: fusermount3 takes those of the caller.
func MountFusermount(dir string, o MountOptions) (*os.File, error) {
	if o.Suid || o.Dev {
		return nil, fmt.Errorf("mount on %s: fusermount3 mounts nosuid and nodev only; suid and dev need root", dir)
	}
	if err := checkDir(dir); err != nil {
		return nil, err
	}
	local, remote, err := socketPair()
	if err != nil {
		return nil, fmt.Errorf("mount on %s: %w", dir, err)
	}
	defer local.Close()
	defer remote.Close()
	// _FUSE_COMMFD names the descriptor to which fusermount3 sends the device (libfuse: util/fusermount.c).
	err = fusermount(remote, "-o", o.fusermountOptions(), "--", dir)
	if err != nil {
		return nil, fmt.Errorf("mount on %s: %w", dir, err)
	}
	dev, err := receiveFile(local)
	if err != nil {
		return nil, fmt.Errorf("mount on %s: receive the device from fusermount3: %w", dir, err)
	}
	return dev, nil
}

func (o *MountOptions) fusermountOptions() string {
	// Commas in values are escaped with a backslash (libfuse: util/fusermount.c, do_mount).
	escape := strings.NewReplacer(`\`, `\\`, `,`, `\,`)
	s := fmt.Sprintf("ro,nosuid,nodev,default_permissions,max_read=%d,subtype=%s,fsname=%s",
		maxRead, fsType, escape.Replace(o.source()))
	if o.NoExec {
		s += ",noexec"
	}
	if o.AllowOther {
		s += ",allow_other"
	}
	return s
}

// socketPair returns two connected sockets. The first is closed on exec, the second is for a child.
func socketPair() (local, remote *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "fusermount3"), os.NewFile(uintptr(fds[1]), "fusermount3"), nil
}

// fusermount runs fusermount3. comm, if not nil, is the socket for the device.
func fusermount(comm *os.File, args ...string) error {
	path, err := exec.LookPath("fusermount3")
	if err != nil {
		return errors.New(`fusermount3 is not in PATH; install the package "fuse3", or be root`)
	}
	var stderr bytes.Buffer
	cmd := exec.Command(path, args...)
	cmd.Stderr = &stderr
	if comm != nil {
		cmd.ExtraFiles = []*os.File{comm} // the first is descriptor 3
		cmd.Env = append(os.Environ(), "_FUSE_COMMFD=3")
	}
	if err := cmd.Run(); err != nil {
		if said := strings.TrimSpace(stderr.String()); said != "" {
			return fmt.Errorf("%s (%w)", said, err)
		}
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// receiveFile receives a descriptor with one byte of data.
func receiveFile(sock *os.File) (*os.File, error) {
	data, oob := make([]byte, 4), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(int(sock.Fd()), data, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		return nil, err
	}
	for _, m := range messages {
		if fds, err := unix.ParseUnixRights(&m); err == nil && len(fds) == 1 {
			return os.NewFile(uintptr(fds[0]), device), nil
		}
	}
	return nil, errors.New("no descriptor came")
}

// Unmount unmounts dir; an ordinary user does it through fusermount3. With lazy it disappears at once and ends when
// nobody uses it any more; without, a mount in use is an error.
func Unmount(dir string, lazy bool) error {
	flags := unix.UMOUNT_NOFOLLOW
	args := []string{"-u", "--", dir}
	if lazy {
		flags |= unix.MNT_DETACH
		args = []string{"-u", "-z", "--", dir}
	}
	err := unix.Unmount(dir, flags)
	if errors.Is(err, unix.EPERM) && os.Geteuid() != 0 {
		err = fusermount(nil, args...)
	}
	if err == nil {
		return nil
	}
	hint := ""
	switch {
	case errors.Is(err, unix.EBUSY) || strings.Contains(err.Error(), "busy"): // from fusermount3
		hint = "; a process has a file open or its working directory there; a lazy unmount (squire umount -l) does not wait for it"
	case errors.Is(err, unix.EINVAL):
		hint = "; it is not a mount point"
	}
	return fmt.Errorf("unmount %s: %w%s", dir, err, hint)
}

// ReadAheadKB is the read-ahead that TuneReadAhead sets: the longest READ.
const ReadAheadKB = maxRead >> 10

// TuneReadAhead raises the read-ahead of the mount on dir from the kernel's 128 KiB to ReadAheadKB. INIT can only
// lower it (fs/fuse/inode.c: process_init_reply), so it takes a write to sysfs by root of the host, after the server
// is ready, by the process that mounts. It is an optimisation: callers may ignore the error.
//
// Measured with a file of 256 MiB, zstd, blocks of 128 KiB, on two idle processors: reading all of it 0.56 s with
// 128 KiB, 0.45 s with 1 MiB; a fault on a random page 0.65 ms and 1.8 ms (kernel's squashfs: 0.59 s and 4.3 ms).
func TuneReadAhead(dir string) error {
	// With an empty mask and AT_STATX_DONT_SYNC the kernel tells the device without asking the server
	// (fs/fuse/dir.c: fuse_getattr, fuse_update_get_attr).
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, dir, unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, 0, &st); err != nil {
		return fmt.Errorf("tune read-ahead of %s: statx: %w", dir, err)
	}
	path := fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", st.Dev_major, st.Dev_minor)
	if err := os.WriteFile(path, fmt.Appendf(nil, "%d", ReadAheadKB), 0); err != nil {
		return fmt.Errorf("tune read-ahead of %s: %w", dir, err)
	}
	return nil
}
