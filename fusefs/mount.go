package fusefs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
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

// Mount opens /dev/fuse and mounts it on dir. The caller passes the returned device to FS.Serve, in this process or
// preferably in another; until then, whoever looks at dir waits. See Prepare.
func Mount(dir string, o MountOptions) (*os.File, error) {
	m, err := Prepare(dir, o)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	if err := m.Attach(); err != nil {
		m.Device.Close()
		return nil, err
	}
	return m.Device, nil
}

// Prepared is a mount that nobody can see yet.
type Prepared struct {
	// Device is for FS.Serve. It is not closed by Close.
	Device *os.File

	dir   string
	mount *os.File
}

// Prepare opens /dev/fuse and makes a mount of it that is nowhere until Attach puts it on dir. The device can be served
// before that, so that an image that turns out to be bad was never mounted, and nobody ever waits for a server to
// start. It needs CAP_SYS_ADMIN over the mount namespace, as root has, or who made a user and a mount namespace.
//
// The superblock is read-only, not only the mount: otherwise the kernel forgets attributes after each read, as the
// access time may have changed (fs/fuse/dir.c: fuse_invalidate_atime), and asks again.
func Prepare(dir string, o MountOptions) (*Prepared, error) {
	if err := CheckDir(dir); err != nil {
		return nil, err
	}
	dev, err := OpenDevice(unix.AT_FDCWD, device)
	if err != nil {
		return nil, err
	}
	mount, err := o.Detached(dev)
	if err != nil {
		dev.Close()
		return nil, mountError(dir, err)
	}
	return &Prepared{dev, dir, mount}, nil
}

// OpenDevice opens the FUSE device path, relative to the descriptor dir of a directory. A device serves mounts that are
// made in the user namespace in which it was opened (fs/fuse/inode.c: fuse_fill_super).
func OpenDevice(dir int, path string) (*os.File, error) {
	// Not os.OpenFile: that one makes the device non-blocking and registers it with the poller.
	fd, err := unix.Openat(dir, path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, openError(err)
	}
	return os.NewFile(uintptr(fd), device), nil
}

// Detached makes a mount of device that has no place (fsmount(2)); move_mount(2) gives it one. The error is the kernel's.
func (o *MountOptions) Detached(device *os.File) (*os.File, error) {
	fs, err := unix.Fsopen("fuse", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fs)
	for _, option := range o.options(int(device.Fd())) {
		if option.value == "" {
			err = unix.FsconfigSetFlag(fs, option.key)
		} else {
			err = unix.FsconfigSetString(fs, option.key, option.value)
		}
		if err != nil {
			return nil, err
		}
	}
	if err = unix.FsconfigCreate(fs); err != nil {
		return nil, err
	}
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, o.Attributes())
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(mount), "mount"), nil
}

// Attach puts the mount on its directory.
func (m *Prepared) Attach() error { return Attach(m.mount, m.dir) }

// Attach puts a detached mount, as a service passes it, on dir. The descriptor stays the caller's.
func Attach(mount *os.File, dir string) error {
	// As mount(2) does, it follows links and triggers automounts.
	const flags = unix.MOVE_MOUNT_F_EMPTY_PATH | unix.MOVE_MOUNT_T_SYMLINKS | unix.MOVE_MOUNT_T_AUTOMOUNTS
	if err := unix.MoveMount(int(mount.Fd()), "", unix.AT_FDCWD, dir, flags); err != nil {
		return mountError(dir, err)
	}
	return nil
}

// Close ends a mount that was not attached, and leaves an attached one alone.
func (m *Prepared) Close() { m.mount.Close() }

// CheckDir finds what is wrong with a directory that is to be mounted on, for the sake of the message.
func CheckDir(dir string) error {
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

// Attributes returns those of the mount, for fsmount(2): MOUNT_ATTR_*.
func (o *MountOptions) Attributes() int {
	attrs := unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV
	if o.Suid {
		attrs &^= unix.MOUNT_ATTR_NOSUID
	}
	if o.Dev {
		attrs &^= unix.MOUNT_ATTR_NODEV
	}
	if o.NoExec {
		attrs |= unix.MOUNT_ATTR_NOEXEC
	}
	return attrs
}

// maxOption is the length of the longest value that fsconfig(2) takes (fs/fsopen.c: 256 with the final zero).
const maxOption = 255

// options returns those of the file system, see Documentation/filesystems/fuse.rst. Those without a value are flags.
func (o *MountOptions) options(device int) []struct{ key, value string } {
	uid, gid := o.UID, o.GID
	if uid == 0 {
		uid = os.Geteuid()
	}
	if gid == 0 {
		gid = os.Getegid()
	}
	source := o.source()
	if len(source) > maxOption { // only for people to read
		source = "..." + source[len(source)-maxOption+3:]
	}
	options := []struct{ key, value string }{
		{"source", source},
		{"subtype", fsType},
		{"ro", ""},
		{"fd", strconv.Itoa(device)},
		{"rootmode", strconv.FormatInt(unix.S_IFDIR, 8)},
		{"user_id", strconv.Itoa(uid)},
		{"group_id", strconv.Itoa(gid)},
		{"default_permissions", ""},
		{"max_read", strconv.Itoa(maxRead)},
	}
	if o.AllowOther {
		options = append(options, struct{ key, value string }{"allow_other", ""})
	}
	return options
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
	if err := CheckDir(dir); err != nil {
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
