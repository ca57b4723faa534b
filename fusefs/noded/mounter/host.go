package mounter

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/fusefs"
	"github.com/squirefs/squire/internal/mountinfo"
)

// host is what the mounter holds of the host, which it does not see any more.
type host struct {
	dev       *os.File // O_PATH descriptor of /dev
	fuse      *os.File // O_PATH descriptor of the FUSE device; nil: it was not there
	mounts    *os.File // mountinfo of the keeper's mount namespace
	namespace *os.File // that mount namespace; nil in a user's own service
	proc      *os.File // O_PATH descriptor of /proc
	users     nsID     // the user namespace of this process
	unique    bool     // mounts have unique ids (Linux 6.8)
	netpoll   []int    // descriptors that Go itself uses in every thread
}

// nsID tells namespaces apart.
type nsID struct{ dev, ino uint64 }

func openHost(s setup) (*host, error) {
	h := &host{unique: !s.NoUnique && statmountWorks()}
	var err error
	if h.dev, err = openPath("/dev"); err != nil {
		return nil, err
	}
	if h.fuse, err = openPath("/dev/fuse"); err != nil && !errors.Is(err, unix.ENOENT) {
		return nil, err
	}
	if h.proc, err = openPath("/proc"); err != nil {
		return nil, err
	}
	keeper := "/proc/" + strconv.Itoa(os.Getppid())
	if h.mounts, err = os.Open(keeper + "/mountinfo"); err != nil {
		return nil, err
	}
	if !s.Own {
		if h.namespace, err = os.Open(keeper + "/ns/mnt"); err != nil {
			return nil, err
		}
	}
	h.users, err = namespaceOf("/proc/self/ns/user")
	h.netpoll = netpollFiles()
	return h, err
}

// netpollFiles lists the descriptors by which Go waits for sockets (runtime/netpoll_epoll.go); there is a socket already.
func netpollFiles() (fds []int) {
	dir, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil
	}
	for _, e := range dir {
		link, _ := os.Readlink("/proc/self/fd/" + e.Name())
		if fd, err := strconv.Atoi(e.Name()); err == nil && (link == "anon_inode:[eventpoll]" || link == "anon_inode:[eventfd]") {
			fds = append(fds, fd)
		}
	}
	return fds
}

func openPath(name string) (*os.File, error) {
	fd, err := unix.Open(name, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

func namespaceOf(name string) (nsID, error) {
	var st unix.Stat_t
	if err := unix.Stat(name, &st); err != nil {
		return nsID{}, &os.PathError{Op: "stat", Path: name, Err: err}
	}
	return nsID{st.Dev, st.Ino}, nil
}

// openFUSE opens another FUSE device. In a container it may be mounted on its place by itself, and what is mounted below a
// directory is not there any more for who has left its mount namespace: so the node itself is held, if it was there in time.
func (h *host) openFUSE() (*os.File, error) {
	if h.fuse == nil {
		return fusefs.OpenDevice(int(h.dev.Fd()), "fuse")
	}
	return fusefs.OpenDevice(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", h.fuse.Fd()))
}

// attached tells which mounts and superblocks are mounted in the keeper's mount namespace.
func (h *host) attached(ids, numbers []uint64) (liveIDs, liveNumbers []uint64, err error) {
	seenIDs, seenNumbers, err := h.mounted()
	if err != nil {
		return nil, nil, err
	}
	for _, n := range numbers {
		if seenNumbers[n] {
			liveNumbers = append(liveNumbers, n)
		}
	}
	if !h.unique || h.namespace == nil {
		liveIDs = slices.DeleteFunc(slices.Clone(ids), func(id uint64) bool { return !seenIDs[id] })
		return liveIDs, liveNumbers, nil
	}
	if len(ids) == 0 {
		return nil, liveNumbers, nil
	}
	err = h.inThread([]*os.File{h.namespace}, func() error {
		if failed := unix.Setns(int(h.namespace.Fd()), unix.CLONE_NEWNS); failed != nil {
			return fmt.Errorf("enter the mount namespace of the host: %w", failed)
		}
		for _, id := range ids {
			if _, gone := statmount(id); gone == nil {
				liveIDs = append(liveIDs, id)
			}
		}
		return nil
	})
	return liveIDs, liveNumbers, err
}

// mounted reads mountinfo: the ids of mounts, as oldID, and the numbers of superblocks. Superblocks are told as st_dev.
func (h *host) mounted() (ids, numbers map[uint64]bool, err error) {
	list, err := h.list()
	if err != nil {
		return nil, nil, err
	}
	ids, numbers = make(map[uint64]bool), make(map[uint64]bool)
	for _, m := range list {
		numbers[m.number], ids[oldID(m.ID, m.number)] = true, true
	}
	return ids, numbers, nil
}

// mountInfo is a mount in the keeper's mount namespace.
type mountInfo struct {
	mountinfo.Mount
	number uint64 // of its superblock, as st_dev
}

// list reads mountinfo.
func (h *host) list() (list []mountInfo, err error) {
	// The file is shared by those who ask at the same time, so it is read by position.
	b, err := io.ReadAll(io.NewSectionReader(h.mounts, 0, 64<<20))
	if err != nil {
		return nil, fmt.Errorf("read mountinfo: %w", err)
	}
	for _, m := range mountinfo.Parse(string(b)) {
		major, minor, _ := strings.Cut(m.Device, ":")
		a, err1 := strconv.ParseUint(major, 10, 32)
		b, err2 := strconv.ParseUint(minor, 10, 32)
		if errors.Join(err1, err2) == nil {
			list = append(list, mountInfo{m, unix.Mkdev(uint32(a), uint32(b))})
		}
	}
	return list, nil
}

// clear unmounts what is mounted of superblocks in the keeper's mount namespace, what is on top first.
func (h *host) clear(numbers []uint64, deadline time.Time) error {
	if h.namespace == nil {
		return nil
	}
	list, err := h.list()
	if err != nil {
		return err
	}
	list = slices.DeleteFunc(list, func(m mountInfo) bool {
		return m.Type != "fuse.squire" || !slices.Contains(numbers, m.number)
	})
	if len(list) == 0 {
		return nil
	}
	slices.Reverse(list)
	return h.inThread([]*os.File{h.namespace}, func() error {
		if err := unix.Setns(int(h.namespace.Fd()), unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("enter the mount namespace of the host: %w", err)
		}
		var failed error
		for _, m := range list {
			if time.Now().After(deadline) {
				return unix.ETIMEDOUT
			}
			failed = errors.Join(failed, wrap("unmount "+m.Point, h.takeAway(m)))
		}
		return failed
	})
}

// takeAway unmounts the mount of a line in the mount namespace of the calling thread. By now its path may lead to another
// one, which the owner of a directory on the way can bring about, so it is what was looked at that is unmounted.
func (h *host) takeAway(m mountInfo) error {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS}
	fd, err := unix.Openat2(unix.AT_FDCWD, m.Point, &how)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Statx_t
	if err = unix.Statx(fd, "", emptyPath|unix.AT_STATX_DONT_SYNC, 0, &st); err != nil {
		return err
	}
	if st.Mnt_id != m.ID || unix.Mkdev(st.Dev_major, st.Dev_minor) != m.number {
		return errors.New("another mount is there")
	}
	return h.takeOff(fd)
}

// oldID stands for a mount on kernels that have no unique ids: theirs are used again at once, so the superblock's number,
// which has 32 bits, goes along.
func oldID(id, number uint64) uint64 { return number<<32 | id }

// mountID returns the id of the mount that fd refers to, in the mount namespace of the calling thread. Its file system is
// not asked, which would let nobody but its user in (fs/fuse/dir.c: fuse_update_get_attr); it is if anything at all is
// asked for, so unique ids have to be looked up.
func (h *host) mountID(fd int) (uint64, error) {
	var st unix.Statx_t
	if err := unix.Statx(fd, "", emptyPath|unix.AT_STATX_DONT_SYNC, 0, &st); err != nil {
		return 0, fmt.Errorf("id of a mount: %w", err)
	}
	if st.Mask&unix.STATX_MNT_ID == 0 { // Linux 5.8
		return 0, errors.New("this kernel does not tell the ids of mounts")
	}
	if !h.unique {
		return oldID(st.Mnt_id, unix.Mkdev(st.Dev_major, st.Dev_minor)), nil
	}
	id, err := uniqueID(uint32(st.Mnt_id))
	return id, wrap("unique id of a mount", err)
}

// statmount(2) and listmount(2), Linux 6.8 (include/uapi/linux/mount.h), have the same numbers on all processors.
const (
	sysStatmount     = 457
	sysListmount     = 458
	statmountBasic   = 2              // STATMOUNT_MNT_BASIC
	listRoot         = math.MaxUint64 // LSMT_ROOT
	statmountShortID = 56             // offset of mnt_id_old in struct statmount
)

// mountIDRequest is struct mnt_id_req.
type mountIDRequest struct {
	size  uint32
	spare uint32
	id    uint64
	param uint64
}

func (r *mountIDRequest) call(number uintptr, out unsafe.Pointer, n uintptr) (uintptr, error) {
	r.size = uint32(unsafe.Sizeof(*r))
	got, _, errno := unix.Syscall6(number, uintptr(unsafe.Pointer(r)), uintptr(out), n, 0, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return got, nil
}

// statmount returns the id as in mountinfo of the mount with a unique id, if that is in the mount namespace of the
// calling thread.
func statmount(id uint64) (uint32, error) {
	r := mountIDRequest{id: id, param: statmountBasic}
	var buf [1024]byte
	if _, err := r.call(sysStatmount, unsafe.Pointer(&buf), unsafe.Sizeof(buf)); err != nil {
		return 0, err
	}
	return binary.NativeEndian.Uint32(buf[statmountShortID:]), nil
}

// uniqueID finds the mount with an id as in mountinfo, which the caller keeps from ending.
func uniqueID(short uint32) (uint64, error) {
	r := mountIDRequest{id: listRoot}
	var ids [512]uint64
	for {
		n, err := r.call(sysListmount, unsafe.Pointer(&ids), uintptr(len(ids)))
		if err != nil {
			return 0, err
		}
		for _, id := range ids[:n] {
			if got, err := statmount(id); err == nil && got == short {
				return id, nil
			}
		}
		if int(n) < len(ids) {
			return 0, unix.ENOENT
		}
		r.param = ids[n-1]
	}
}

func statmountWorks() bool {
	_, err := statmount(0) // which is none
	return !errors.Is(err, unix.ENOSYS)
}
