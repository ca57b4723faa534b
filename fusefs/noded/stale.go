package noded

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// When all processes of a service are killed, what is mounted of its images stays where it is, dead. The next service
// removes it. What is mounted is noted in a file beside the socket, as numbers of superblocks, which are used again: so
// only what nobody serves is removed.

// leftovers are the superblocks that are noted in that file: those of this service, and those of one before it as long as
// they are not removed. With an empty path nothing is noted.
type leftovers struct {
	path string

	mu    sync.Mutex
	stale map[uint64]bool // of a service before this one
	noted []uint64        // that are in the file
}

// note is the form of the file. Numbers are as in st_dev.
type note struct {
	Version     int
	Boot        string // /proc/sys/kernel/random/boot_id
	Superblocks []uint64
}

const (
	noteVersion = 1
	maxNote     = 1 << 20 // bytes
)

// newLeftovers: a user's own service can mount nothing where it would stay.
func newLeftovers(c Config) *leftovers {
	l := &leftovers{stale: map[uint64]bool{}}
	if !c.Own && strings.HasPrefix(c.Socket, "/") {
		l.path = c.Socket + ".mounts"
	}
	return l
}

// read takes over what is noted.
func (l *leftovers) read() error {
	if l.path == "" {
		return nil
	}
	n, err := readNote(l.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", l.path, err)
	}
	boot, err := bootID()
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.noted = n.Superblocks
	if n.Boot == boot {
		l.stale = set(n.Superblocks)
	}
	return nil
}

func readNote(path string) (*note, error) {
	if err := ownDirectory(filepath.Dir(path)); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var st unix.Stat_t
	if err = unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Mode&0o022 != 0 || int(st.Uid) != os.Geteuid() || st.Size > maxNote {
		return nil, errors.New("it is not a file of this service")
	}
	b, err := io.ReadAll(io.LimitReader(f, maxNote))
	if err != nil {
		return nil, err
	}
	n, d := new(note), json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err = d.Decode(n); err != nil {
		return nil, err
	}
	if _, err = d.Token(); !errors.Is(err, io.EOF) || n.Version != noteVersion {
		return nil, errors.New("it is of another form")
	}
	return n, nil
}

func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}

// write notes what numbers returns, unless that is noted already. What is mounted now is not stale: its number belonged to
// something that is gone.
func (l *leftovers) write(numbers func() []uint64) error {
	if l.path == "" {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := numbers()
	for _, n := range now {
		delete(l.stale, n)
	}
	all := slices.Sorted(maps.Keys(set(slices.AppendSeq(now, maps.Keys(l.stale)))))
	if slices.Equal(all, l.noted) {
		return nil
	}
	if err := writeNote(l.path, all); err != nil {
		return err
	}
	l.noted = all
	return nil
}

// writeNote replaces the file, so that it is whole at any time.
func writeNote(path string, numbers []uint64) error {
	if len(numbers) == 0 {
		if err := os.Remove(path); !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return nil
	}
	if err := ownDirectory(filepath.Dir(path)); err != nil {
		return err
	}
	boot, err := bootID()
	if err != nil {
		return err
	}
	b, err := json.Marshal(note{noteVersion, boot, numbers})
	if err != nil {
		return err
	}
	temp := path + ".new"
	_ = os.Remove(temp)
	f, err := os.OpenFile(temp, os.O_CREATE|os.O_EXCL|os.O_WRONLY|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(temp, path)
	}
	return err
}

// list returns what is stale.
func (l *leftovers) list() []uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Sorted(maps.Keys(l.stale))
}

// forget takes numbers off what is stale.
func (l *leftovers) forget(numbers []uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, n := range numbers {
		delete(l.stale, n)
	}
}

// numbers returns the superblocks of all images.
func (k *keeper) numbers() (out []uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, img := range k.images {
		if img.device != nil || img.state == failed {
			out = append(out, img.number)
		}
	}
	return out
}

// How long processes of a service that was killed are waited for, and how long a superblock must be without a server to
// count as dead: a device may be on its way in a message.
const (
	staleTimeout = time.Minute
	staleEvery   = 500 * time.Millisecond
)

// clearStale removes what a service before this one has left.
func (k *keeper) clearStale() {
	k.saveRecords() // what was taken over is not stale
	var before map[uint64]bool
	for end := time.Now().Add(staleTimeout); len(k.leftovers.list()) > 0; {
		served, err := k.serving(k.leftovers.list())
		if err != nil {
			k.log.Warn("mounts of a service before this one are left: cannot tell who serves them", "error", err)
			return
		}
		var dead []uint64
		for _, n := range k.leftovers.list() {
			if before != nil && !before[n] && !served[n] {
				dead = append(dead, n)
			}
		}
		k.abort(dead)
		k.leftovers.forget(k.clear(dead))
		if time.Now().After(end) {
			k.leftovers.forget(slices.Collect(maps.Keys(served))) // somebody else's by now
		}
		k.saveRecords()
		before = served
		if time.Now().After(end) || len(k.leftovers.list()) > 0 && !pause(k.ctx, staleEvery, nil) {
			return
		}
	}
}

// clearAll unmounts what is mounted of the images of a service that ends; it would be dead. What systemd keeps goes on with
// the next service, or is removed by it.
func (k *keeper) clearAll() {
	if k.cfg.Own || k.store != nil {
		return
	}
	numbers := k.numbers()
	k.leftovers.forget(numbers)
	cleared := set(k.clear(numbers))
	err := k.leftovers.write(func() []uint64 {
		return slices.DeleteFunc(numbers, func(n uint64) bool { return cleared[n] })
	})
	if err != nil {
		k.log.Error("cannot note which mounts are left", "error", err)
	}
}

// clear unmounts what is mounted of superblocks in the keeper's mount namespace, and returns of which it did. Each has a
// request of its own, as the directories on the way may be on a file system that hangs.
func (k *keeper) clear(numbers []uint64) (cleared []uint64) {
	var mu sync.Mutex
	var all sync.WaitGroup
	turns := make(chan struct{}, 8)
	for _, n := range numbers {
		turns <- struct{}{}
		all.Go(func() {
			defer func() { <-turns }()
			m, err := k.mounter.get(k.ctx)
			if err == nil {
				err = m.Clear([]uint64{n})
			}
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				cleared = append(cleared, n)
				return
			}
			k.log.Warn("cannot unmount an image that is not served any more", "superblock", n, "error", err)
		})
	}
	all.Wait()
	return cleared
}

// abort has the kernel end FUSE connections that nobody serves: a thread of a killed server may wait in the kernel for a
// page that only it would have filled, and keep the connection and all who use it (see fusefs/store.go).
func (k *keeper) abort(numbers []uint64) {
	if len(numbers) == 0 {
		return
	}
	control, err := connections()
	if err != nil {
		k.log.Warn("cannot end FUSE connections", "superblocks", numbers, "error", err)
		return
	}
	defer unix.Close(control)
	for _, n := range numbers {
		if unix.Major(n) != 0 {
			continue
		}
		fd, err := unix.Openat(control, strconv.Itoa(int(unix.Minor(n)))+"/abort", unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			_, err = unix.Write(fd, []byte("1"))
			unix.Close(fd)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			k.log.Warn("cannot end a FUSE connection", "superblock", n, "error", err)
		}
	}
}

// connections opens the directory in which the kernel has FUSE connections: in a mount that has no place, as nobody need
// have mounted it where it belongs (/sys/fs/fuse/connections).
func connections() (fd int, err error) {
	fs, err := unix.Fsopen("fusectl", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsopen fusectl: %w", err)
	}
	defer unix.Close(fs)
	if err = unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("fsconfig fusectl: %w", err)
	}
	if fd, err = unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC); err != nil {
		return -1, fmt.Errorf("fsmount fusectl: %w", err)
	}
	return fd, nil
}

// serving returns which of the superblocks a process has the FUSE device of. It sees those of its PID namespace, so it must
// be the first.
func serving(numbers []uint64) (map[uint64]bool, error) {
	const first = "pid:[4026531836]" // PROC_PID_INIT_INO (include/linux/proc_ns.h)
	if ns, err := os.Readlink("/proc/self/ns/pid"); err != nil || ns != first {
		return nil, errors.New("not all processes are seen from here")
	}
	processes, err := filepath.Glob("/proc/[1-9]*")
	if err != nil {
		return nil, err
	}
	wanted, found := set(numbers), map[uint64]bool{}
	for _, p := range processes {
		tasks := []string{p}
		// The first thread of a process may have ended before the others.
		if fds, _ := os.ReadDir(p + "/fdinfo"); len(fds) == 0 {
			tasks, _ = filepath.Glob(p + "/task/*")
		}
		for _, t := range tasks {
			err := devicesOf(t, wanted, found)
			// Security modules may protect init from being looked at. It serves nothing, but systemd has what services have
			// stored, for as long as it takes to start them again: less than a superblock is watched here.
			if init := p == "/proc/1" && errors.Is(err, os.ErrPermission); err != nil && !isGone(err) && !init {
				return nil, err
			}
		}
	}
	return found, nil
}

func isGone(err error) bool { return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) }

// devicesOf adds to found the superblocks of wanted whose devices a process or thread has, unless it was killed. The
// kernel tells since Linux 6.16 of which connection a device is (fs/fuse/dev.c: fuse_dev_show_fdinfo).
func devicesOf(task string, wanted, found map[uint64]bool) error {
	fds, err := os.ReadDir(task + "/fdinfo")
	if err != nil {
		return err
	}
	for _, fd := range fds {
		info, err := os.ReadFile(task + "/fdinfo/" + fd.Name())
		if err != nil {
			if isGone(err) {
				continue
			}
			return err
		}
		number, ok := connectionIn(string(info))
		if !ok && tellsConnections() {
			continue
		}
		if to, _ := os.Readlink(task + "/fd/" + fd.Name()); !ok && filepath.Base(to) == "fuse" && !killed(task) {
			return fmt.Errorf("%s has a FUSE device, and this kernel does not tell of which mount", task)
		}
		if ok && wanted[number] && !killed(task) {
			found[number] = true
		}
	}
	return nil
}

var tellsConnections = sync.OnceValue(func() bool { return !kernelBefore(6, 16) })

// connectionIn finds the number of a connection in fdinfo: that of the superblock, as the kernel has it.
func connectionIn(info string) (number uint64, ok bool) {
	for line := range strings.Lines(info) {
		if text, is := strings.CutPrefix(line, "fuse_connection:"); is {
			n, err := strconv.ParseUint(strings.TrimSpace(text), 10, 32)
			return unix.Mkdev(uint32(n>>20), uint32(n&(1<<20-1))), err == nil // include/linux/kdev_t.h: MINORBITS
		}
	}
	return 0, false
}

// killed reports whether SIGKILL has come to a thread that has not ended yet.
func killed(task string) bool {
	status, err := os.ReadFile(task + "/status")
	if err != nil {
		return isGone(err)
	}
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(line, ":")
		if name != "SigPnd" && name != "ShdPnd" {
			continue
		}
		set, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		if err == nil && set&(1<<(uint(unix.SIGKILL)-1)) != 0 {
			return true
		}
	}
	return false
}
