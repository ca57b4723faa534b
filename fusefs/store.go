package fusefs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/cache"
	"github.com/squirefs/squire/sqfs"
)

// Data is put into the kernel's page cache before it is asked for with FUSE_NOTIFY_STORE, which takes one system call
// where a READ takes two and wakes two processes: for small files that is what costs most.
//
// It has a trap. The kernel waits for pages that are locked, and those of a READ are, until it is answered; a thread
// that waits for a page cannot be killed. When the server is killed, such a thread would wait for an answer that nobody
// gives any more, and as the device is not closed before the last thread ends, so would everybody who uses the mount.
// (Tried: one SIGKILL in five, while four programs read, left them all hanging.) So the threads that store have a table
// of descriptors of their own, in which there is no device but a clone, and the Guard holds another end of that: when
// the server is killed its device is closed all the same, and what is left is answered by the guard.

// storeJob is a decoded block and the parts of it that are to be put into the page cache.
type storeJob struct {
	buf   *cache.Buffer
	parts []part
	keep  bool // the block is of use here all the same
	ahead bool // parts are the whole of one block of a file, which somebody may ask for before it is stored
	block sqfs.Block
}

// part is a part of a block that belongs to a file.
type part struct {
	ref   sqfs.InodeRef
	off   int64 // in the file
	start int   // in the block
	len   int
}

const (
	// maxStorers is how many threads store, at most: one stores some GB in a second.
	maxStorers = 4
	// maxStoreJobs is how many blocks may wait for one.
	maxStoreJobs = 4
)

// processors returns how many decoders can run at once. A process that serves has twice as many threads for Go code, see
// Serve.
func processors() int { return max(1, runtime.GOMAXPROCS(0)/2) }

// storers are the threads that store. They start when they are needed.
type storers struct {
	fs    *FS
	dev   int // descriptor of a clone of the device
	jobs  chan storeJob
	leave chan struct{} // without buffer: a send finds one that is idle, or none
	quit  chan struct{} // closed when all are to end

	mu      sync.Mutex
	count   int
	running sync.WaitGroup
	settled sync.WaitGroup // those that have descriptors of their own
}

// startStorers allows threads that store through dev, a clone of the device, and returns a function that ends them and
// waits for them.
func (f *FS) startStorers(dev *os.File) (stop func()) {
	s := &storers{fs: f, dev: int(dev.Fd())}
	s.jobs, s.leave, s.quit = make(chan storeJob, maxStoreJobs), make(chan struct{}), make(chan struct{})
	f.storers = s // before anybody uses it, and until nobody does
	return func() {
		s.mu.Lock()
		close(s.quit)
		s.mu.Unlock()
		s.running.Wait()
		s.drain()
	}
}

// call sees to it that somebody does the job that was sent last.
func (s *storers) call() {
	s.fs.lull.putOff()
	s.mu.Lock()
	defer s.mu.Unlock()
	enough := s.count > 0 && (len(s.jobs) == 0 || s.count >= min(processors(), maxStorers))
	if !enough && !s.ended() {
		s.count++
		s.settled.Add(1)
		s.running.Go(s.store)
	}
}

// store is one thread that stores. It is not the first thread of the process: that does not end with its goroutine, and
// would keep all that is open now.
func (s *storers) store() {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		defer runtime.UnlockOSThread()
		var other sync.WaitGroup
		other.Go(s.store)
		other.Wait()
		return
	}
	err := ownDescriptors(s.dev)
	s.settled.Done()
	if err != nil {
		s.fs.report.line("nothing is read ahead into the page cache", "err", err)
	}
	for {
		select {
		case j := <-s.jobs:
			if err == nil {
				s.fs.store(s.dev, &j)
			} else {
				j.buf.Release()
			}
		case <-s.leave:
			if s.mayLeave() {
				return
			}
		case <-s.quit:
			return // The thread is not unlocked, so that it ends with its table.
		}
	}
}

// mayLeave takes a thread off the count, unless there is a job, which was sent as long as it counted.
func (s *storers) mayLeave() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.jobs) > 0 {
		return false
	}
	s.count--
	return true
}

// rest ends the threads that are idle, and reports whether there are no others.
func (s *storers) rest() bool {
	for {
		select {
		case s.leave <- struct{}{}:
		default:
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.count == 0
		}
	}
}

// put hands a job to the threads that store. If it reports false the block is still the caller's: they have ended, or are
// busy and the caller does not want to wait. s may be nil.
func (s *storers) put(j storeJob, wait bool) bool {
	if s == nil || s.ended() {
		return false
	}
	select {
	case s.jobs <- j:
	default:
		if !wait {
			return false
		}
		select {
		case s.jobs <- j:
		case <-s.quit:
			return false
		}
	}
	s.call()
	if s.ended() {
		s.drain() // whoever ended them may have looked already
	}
	return true
}

func (s *storers) ended() bool {
	select {
	case <-s.quit:
		return true
	default:
		return false
	}
}

// drain lets go of jobs that nobody does any more.
func (s *storers) drain() {
	for {
		select {
		case j := <-s.jobs:
			j.buf.Release()
		default:
			return
		}
	}
}

// ownDescriptors gives the calling thread, to which the goroutine must be locked, a table of descriptors of its own,
// without what others have to see the process give up: sockets, files, which may be locked, and FUSE devices but keep.
// The rest stays: Go's runtime has some that it uses in any thread.
func ownDescriptors(keep int) error {
	// The poller has its descriptors before the tables part, or it would look for them in vain here.
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	r.Close()
	w.Close()
	var kept unix.Stat_t
	if err = unix.Fstat(keep, &kept); err != nil {
		return fmt.Errorf("stat the device: %w", err)
	}
	if err = unix.Unshare(unix.CLONE_FILES); err != nil {
		return fmt.Errorf("unshare descriptors: %w", err)
	}
	links, err := filepath.Glob("/proc/thread-self/fd/*")
	if err != nil || len(links) == 0 {
		return errors.New("list descriptors: found none; is /proc mounted?")
	}
	for _, link := range links {
		var st unix.Stat_t
		fd, _ := strconv.Atoi(filepath.Base(link))
		if fd <= 2 || fd == keep || unix.Fstat(fd, &st) != nil {
			continue
		}
		// Not by its name: it was opened in a mount namespace that has gone.
		fuse := st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == kept.Rdev
		if fuse || slices.Contains(givenUp, st.Mode&unix.S_IFMT) {
			_ = unix.Close(fd)
		}
	}
	return nil
}

// givenUp are the types of descriptors that a thread has no use for. An image of another mount would be kept, unlinked
// maybe, for as long as the thread lives.
var givenUp = []uint32{unix.S_IFSOCK, unix.S_IFREG, unix.S_IFBLK, unix.S_IFDIR}

// clearsTails reports whether the kernel clears what is behind the end of a file in the last page that is stored. Before
// Linux 6.11 it did not, so that whoever maps the file sees what the memory held before (CVE-2024-44947). Older series
// got the repair as well, but the names of distributors' kernels do not tell.
func clearsTails(release string) bool {
	var major, minor int
	_, err := fmt.Sscanf(release, "%d.%d", &major, &minor)
	return err == nil && (major > 6 || major == 6 && minor >= 11)
}

// kernelClearsTails is clearsTails of the running kernel.
var kernelClearsTails = sync.OnceValue(func() bool {
	var uts unix.Utsname
	return unix.Uname(&uts) == nil && clearsTails(unix.ByteSliceToString(uts.Release[:]))
})

var pageSize = int64(os.Getpagesize())

// storable returns how many bytes of a part may be stored: all, or whole pages only.
func (p *part) storable(clearsTails bool) int {
	if over := (p.off + int64(p.len)) % pageSize; !clearsTails && over != 0 {
		return max(0, p.len-int(over))
	}
	return p.len
}

// notifyStore is FUSE_NOTIFY_STORE with its header (include/uapi/linux/fuse.h: struct fuse_notify_store_out). A
// notification is a reply with unique 0 whose status is its code.
type notifyStore struct {
	fuse.OutHeader
	node   uint64
	offset uint64
	size   uint32
	_      uint32
}

const notifyStoreCode = 4

// store puts the parts of a job into the page cache, and lets go of its block.
func (f *FS) store(fd int, j *storeJob) {
	if j.ahead && f.ahead.askedFor(j.block) {
		j.buf.Release() // whoever asked has it from here
		return
	}
	data, all := j.buf.Bytes(), true
	var h notifyStore
	header := (*[unsafe.Sizeof(h)]byte)(unsafe.Pointer(&h))[:]
	for k, p := range j.parts {
		if f.overtaken(j, k) {
			continue // all is still true: whoever reads it has taken it from the block
		}
		n := p.storable(kernelClearsTails())
		all = all && n == p.len
		if n <= 0 || p.start < 0 || p.start+n > len(data) || f.noStoring.Load() {
			all = false
			continue
		}
		if !quiet(fd) {
			all = false
			break
		}
		h = notifyStore{node: uint64(p.ref) + nodeBase, offset: uint64(p.off), size: uint32(n)}
		h.Length = uint32(len(header) + n)
		h.Status = notifyStoreCode
		_, err := unix.Writev(fd, [][]byte{header, data[p.start : p.start+n]})
		if err != nil { // ENOENT: the kernel does not know the file, and most likely not its neighbours either
			all = false
			break
		}
		f.counts.stored.Add(uint64(n))
	}
	if all && !j.keep {
		j.buf.Drop()
	} else {
		j.buf.Release()
	}
}

// overtaken reports whether part k of a job is of no use any more. Small files of a fragment are stored one after the
// other, while several readers may be faster: what they have come to, or come to before it is there, they ask for anyway,
// and they get further ahead of who stores for nothing.
func (f *FS) overtaken(j *storeJob, k int) bool {
	last, end := sqfs.InodeRef(f.lastRead.Load()), len(j.parts)-1
	if !j.keep || end == 0 || last < j.parts[0].ref || last > j.parts[end].ref {
		return false
	}
	if n := 2 * int(f.reading.Load()); n > 2 {
		k -= n
	}
	return k < 0 || j.parts[k].ref < last || j.parts[k].ref == last && j.parts[k].off == 0
}

// quiet reports whether all requests of the device were taken, after waiting a moment for that. The pages of a READ that
// was not are locked, and if this process and its guard are killed together, as the cgroup of a job is, nobody takes it
// any more: a thread that waits for such a page then stays for good, where those of a READ that was taken are given back
// with the device that took it. What is left of that is a READ that comes within the time that a store takes, and a kill
// before anybody has taken it.
func quiet(device int) bool {
	fds := []unix.PollFd{{Fd: int32(device), Events: unix.POLLIN}}
	for range 8 {
		n, err := unix.Poll(fds, 0)
		if n == 0 && err == nil {
			return true
		}
		if fds[0].Revents&unix.POLLERR != 0 {
			return false
		}
		_ = unix.Nanosleep(&unix.Timespec{Nsec: 20_000}, nil) // a signal may end it early
	}
	return false
}

// AllowStoring says whether Serve may use its clone of the device now. It may at first; a process that waits for its
// guard forbids it until that is there.
func (f *FS) AllowStoring(yes bool) { f.noStoring.Store(!yes) }
