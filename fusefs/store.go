package fusefs

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
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
}

// part is a part of a block that belongs to a file.
type part struct {
	ref   sqfs.InodeRef
	off   int64 // in the file
	start int   // in the block
	len   int
}

// maxStoreJobs is how many blocks may wait for a thread that stores.
const maxStoreJobs = 4

// startStorers starts threads that store through dev, a clone of the device with the descriptor served, and returns a
// function that ends them and waits for them.
func (f *FS) startStorers(dev *os.File, served int) (stop func()) {
	jobs := make(chan storeJob, maxStoreJobs)
	var running sync.WaitGroup
	for range runtime.NumCPU() {
		running.Go(func() {
			if err := ownDescriptors(int(dev.Fd())); err != nil {
				f.report.line("nothing is read ahead into the page cache", "err", err)
				for j := range jobs {
					j.buf.Release()
				}
				return
			}
			for j := range jobs {
				f.store(int(dev.Fd()), &j)
			}
			// The thread is not unlocked, so that it ends with its table.
		})
	}
	f.jobs = jobs // before anybody uses it, and until nobody does
	return func() {
		close(jobs)
		running.Wait()
		dev.Close()
	}
}

// ownDescriptors gives the calling thread a table of descriptors of its own, without sockets, whose other ends are to
// see the process end, and without FUSE devices but keep. Others stay: Go's runtime has some that it uses in any thread.
func ownDescriptors(keep int) error {
	// The poller has its descriptors before the tables part, or it would look for them in vain here.
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	r.Close()
	w.Close()
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_FILES); err != nil {
		return fmt.Errorf("unshare descriptors: %w", err)
	}
	links, err := filepath.Glob("/proc/thread-self/fd/*")
	if err != nil || len(links) == 0 {
		return fmt.Errorf("list descriptors: none found, %w", err)
	}
	for _, link := range links {
		to, err := os.Readlink(link)
		fd, _ := strconv.Atoi(filepath.Base(link))
		if err == nil && fd != keep && (to == device || strings.HasPrefix(to, "socket:")) {
			_ = unix.Close(fd)
		}
	}
	return nil
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
	data, all := j.buf.Bytes(), true
	var h notifyStore
	header := (*[unsafe.Sizeof(h)]byte)(unsafe.Pointer(&h))[:]
	for _, p := range j.parts {
		if p.start < 0 || p.len <= 0 || p.start+p.len > len(data) {
			all = false
			continue
		}
		h = notifyStore{node: uint64(p.ref) + nodeBase, offset: uint64(p.off), size: uint32(p.len)}
		h.Length = uint32(len(header) + p.len)
		h.Status = notifyStoreCode
		_, err := unix.Writev(fd, [][]byte{header, data[p.start : p.start+p.len]})
		if err != nil { // ENOENT: the kernel does not know the file, and most likely not its neighbours either
			all = false
			break
		}
		f.counts.stored.Add(uint64(p.len))
	}
	if all && !j.keep {
		j.buf.Drop()
	} else {
		j.buf.Release()
	}
}

// tryStore hands a job to the threads that store, if they are not busy and there are any; otherwise it reports false and
// the block is still the caller's.
func (f *FS) tryStore(j storeJob) bool {
	select {
	case f.jobs <- j:
		return true
	default:
		return false
	}
}
