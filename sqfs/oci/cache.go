package oci

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// cache keeps layers, manifests and configurations by their digest, in files of one
// directory. Any number of processes use it at once:
//
//   - ALGORITHM-HEX is complete. Who reads it holds a shared lock (flock) on it.
//   - ALGORITHM-HEX.part is being fetched by who holds an exclusive lock on it. Others read
//     what is there already and wait for more. If the lock is free, whoever comes takes it and
//     goes on. When all is there and verified it gets its final name.
//   - lock is held while old files are removed. Files that somebody holds a lock on stay.
//
// What is read from it is verified by the reader, every time: nothing in it is trusted.
type cache struct {
	dir  string
	root *os.Root
	max  int64
	ctx  context.Context // ends the fetching
	wg   sync.WaitGroup

	mu    sync.Mutex
	fills map[string]*fill // by digest: of this process
}

const cacheSize = 20 << 30 // bytes, if Options do not say

// cacheMargin is what is left free on the file system of the cache, in bytes.
var cacheMargin int64 = 256 << 20

// cacheError is a failure of the cache, which only means that it cannot be used.
type cacheError struct{ error }

func (e *cacheError) Unwrap() error { return e.error }

// openCache opens the cache, nil if there is none. It is an error if its directory belongs to
// somebody else or if others may write there.
func openCache(ctx context.Context, o *Options) (*cache, error) {
	if o.CacheDir == "" {
		return nil, nil
	}
	c := &cache{dir: filepath.Join(o.CacheDir, "blobs"), max: o.CacheSize, ctx: ctx, fills: map[string]*fill{}}
	if c.max <= 0 {
		c.max = cacheSize
	}
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		o.say("there is no cache: %v", err)
		return nil, nil
	}
	outer, err := os.OpenRoot(o.CacheDir)
	if err != nil {
		return nil, fmt.Errorf("oci: cache: %w", err)
	}
	defer outer.Close()
	if c.root, err = outer.OpenRoot("blobs"); err != nil {
		return nil, fmt.Errorf("oci: cache: %w", err)
	}
	for _, r := range []*os.Root{outer, c.root} {
		st, err := r.Stat(".")
		if err == nil {
			err = owned(st)
		}
		if err != nil {
			c.root.Close()
			return nil, fmt.Errorf("oci: cache %s: %w", o.CacheDir, err)
		}
	}
	return c, nil
}

func owned(st fs.FileInfo) error {
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok || int(sys.Uid) != os.Geteuid() {
		return errors.New("it belongs to somebody else")
	}
	if st.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("others may write to it (mode %#o): chmod go-w it", st.Mode().Perm())
	}
	return nil
}

// close waits for what is being fetched to be kept or given up, which the end of the context
// given to openCache makes soon. Then the cache keeps to its size, also if it is smaller than
// the one that was asked for before.
func (c *cache) close() {
	c.wg.Wait()
	c.evict(0)
	c.root.Close()
}

func blobName(digest string) string { return strings.Replace(digest, ":", "-", 1) }

// openFile opens a file of the cache if it is one, with a lock or with errors.Is(err,
// syscall.EWOULDBLOCK) if another has it.
func (c *cache) openFile(name string, flag, lock int) (*os.File, error) {
	if lock == unix.LOCK_EX { // which NFS gives to who may write only (flock(2))
		flag |= os.O_RDWR
	}
	f, err := c.root.OpenFile(name, flag|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil {
		if err = owned(st); err == nil && !st.Mode().IsRegular() {
			err = errors.New("no regular file")
		}
	}
	if err == nil && lock != 0 {
		err = unix.Flock(int(f.Fd()), lock|unix.LOCK_NB)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return f, nil
}

// named says whether a name still is this file's.
func (c *cache) named(f *os.File, name string) bool {
	st, err := f.Stat()
	now, err2 := c.root.Lstat(name)
	return err == nil && err2 == nil && os.SameFile(st, now)
}

func sameFile(a, b *os.File) bool {
	x, err := a.Stat()
	y, err2 := b.Stat()
	return err == nil && err2 == nil && os.SameFile(x, y)
}

// complete opens a complete file of a size, nil if there is none, and marks it as used now. A
// file of another size is removed.
func (c *cache) complete(digest string, size int64) *os.File {
	name := blobName(digest)
	f, err := c.openFile(name, os.O_RDONLY, unix.LOCK_SH)
	if err != nil {
		return nil
	}
	if st, err := f.Stat(); err != nil || st.Size() != size {
		c.drop(f, name)
		f.Close()
		return nil
	}
	now := time.Now()
	_ = c.root.Chtimes(name, now, now)
	return f
}

// has says whether a complete file is there.
func (c *cache) has(digest string, size int64) bool {
	st, err := c.root.Lstat(blobName(digest))
	return err == nil && st.Mode().IsRegular() && st.Size() == size
}

// drop removes a file if the name is still its own.
func (c *cache) drop(f *os.File, name string) {
	if c.named(f, name) {
		_ = c.root.Remove(name)
	}
}

// small returns a small file, verified, nil if there is none.
func (c *cache) small(digest string, limit int64) []byte {
	if checkDigest(digest) != nil {
		return nil
	}
	name := blobName(digest)
	f, err := c.openFile(name, os.O_RDONLY, 0)
	if err != nil {
		return nil
	}
	defer f.Close()
	b, err := readSmall(f, limit)
	if err == nil {
		err = verify(b, digest)
	}
	if err != nil {
		c.drop(f, name)
		return nil
	}
	now := time.Now()
	_ = c.root.Chtimes(name, now, now)
	return b
}

// keepSmall keeps what was verified. It is not worth an error if that does not work.
func (c *cache) keepSmall(digest string, b []byte) {
	name := blobName(digest)
	tmp := fmt.Sprintf("%s.%d.tmp", name, os.Getpid())
	f, err := c.root.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return
	}
	_, err = f.Write(b)
	if err = cmp.Or(err, f.Close()); err == nil {
		err = c.root.Rename(tmp, name)
	}
	if err != nil {
		_ = c.root.Remove(tmp)
	}
}

// free returns how many bytes may be written to the file system of the cache.
func (c *cache) free() int64 {
	var st unix.Statfs_t
	if unix.Statfs(c.dir, &st) != nil {
		return 0
	}
	return int64(st.Bavail) * st.Bsize
}

// open begins to read a layer from the cache, which fetches it if it is not there.
func (c *cache) open(ctx context.Context, l *imageLayer) (*cacheReader, error) {
	r := &cacheReader{ctx: ctx, cache: c, layer: l}
	return r, r.attach()
}

// attach finds the file to read from, and somebody who fills it.
func (r *cacheReader) attach() error {
	c, digest := r.cache, r.layer.desc.Digest
	name := blobName(digest) + ".part"
	r.whole, r.fill = false, nil
	for range 100 {
		if f := c.complete(digest, r.layer.desc.Size); f != nil {
			r.file, r.whole = f, true
			return nil
		}
		f, err := c.openFile(name, os.O_RDWR|os.O_CREATE, 0)
		if err != nil {
			return &cacheError{err}
		}
		r.file = f
		if fl, err := c.lead(r.layer, f); err != nil {
			f.Close()
			return &cacheError{err}
		} else if fl != nil {
			r.fill = fl
			return nil
		}
		if c.named(f, name) { // another process has it
			return nil
		}
		f.Close()
	}
	return &cacheError{errors.New("its files come and go")}
}

// lead returns what fills a layer's file if it is this process: a new fill if nobody does so
// yet, nil if another process does or if the file has lost its name.
func (c *cache) lead(l *imageLayer, f *os.File) (*fill, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	digest := l.desc.Digest
	if fl := c.fills[digest]; fl != nil {
		if !sameFile(fl.file, f) { // it ends just now
			return nil, nil
		}
		return fl, nil
	}
	// A descriptor of its own: the lock belongs to it, and outlives the reader.
	name := blobName(digest) + ".part"
	own, err := c.openFile(name, os.O_RDWR, unix.LOCK_EX)
	if errors.Is(err, syscall.EWOULDBLOCK) || errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	if !c.named(f, name) || !c.named(own, name) || c.ctx.Err() != nil {
		own.Close()
		return nil, c.ctx.Err()
	}
	if c.has(digest, l.desc.Size) { // the other one was quicker
		c.drop(own, name)
		own.Close()
		return nil, nil
	}
	fl := &fill{cache: c, layer: l, file: own, name: name, change: make(chan struct{})}
	c.fills[digest] = fl
	c.wg.Go(fl.run)
	return fl, nil
}

// fill fetches a layer into its file.
type fill struct {
	cache *cache
	layer *imageLayer
	file  *os.File
	name  string

	mu      sync.Mutex
	change  chan struct{} // closed and replaced when something changes
	had     int64         // that an earlier one left
	written int64
	done    bool // all is there and verified
	err     error
}

func (fl *fill) run() {
	c := fl.cache
	err := fl.fetch()
	fl.set(func() { fl.done, fl.err = err == nil, err })
	if err == nil {
		// Not synced: a cache that a power failure damages costs less than waiting for disks.
		if err = c.root.Rename(fl.name, strings.TrimSuffix(fl.name, ".part")); err != nil {
			fl.layer.img.o.say("%s is not kept in the cache: %v", fl.layer.Name(), err)
		}
	}
	c.mu.Lock()
	delete(c.fills, fl.layer.desc.Digest)
	c.mu.Unlock()
	fl.file.Close()
}

func (fl *fill) set(f func()) {
	fl.mu.Lock()
	f()
	close(fl.change)
	fl.change = make(chan struct{})
	fl.mu.Unlock()
}

func (fl *fill) fetch() error {
	d := fl.layer.desc
	h := newHash(d.Digest)
	had, err := fl.resume(h)
	if err != nil {
		return &cacheError{err}
	}
	fl.cache.evict(d.Size)
	// Space is taken at once, where the file system can do so: then it does not run full half way.
	if err := unix.Fallocate(int(fl.file.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, d.Size); errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		fl.cache.drop(fl.file, fl.name)
		return &cacheError{err}
	}
	img := fl.layer.img
	if err := img.acquire(fl.cache.ctx); err != nil {
		return err
	}
	defer img.release()
	t := fl.layer.transfer(fl.cache.ctx, had, true)
	defer t.Close()
	if err := fl.copy(t, h, had); err != nil {
		return err
	}
	if !hashIs(h, d.Digest) {
		fl.cache.drop(fl.file, fl.name)
		if had > 0 {
			return fmt.Errorf("oci: %w", ErrCache)
		}
		return permanent("oci: what came is not %s: refused", d.Digest)
	}
	return nil
}

// resume takes over what an earlier fill left.
func (fl *fill) resume(h hash.Hash) (int64, error) {
	st, err := fl.file.Stat()
	if err != nil {
		return 0, err
	}
	if st.Size() > fl.layer.desc.Size {
		return 0, fl.file.Truncate(0)
	}
	n, err := io.Copy(h, io.NewSectionReader(fl.file, 0, st.Size()))
	fl.set(func() { fl.had, fl.written = n, n })
	return n, err
}

func (fl *fill) copy(t *transfer, h hash.Hash, off int64) error {
	buf := make([]byte, 256<<10)
	tell, when := fl.layer.img.o.Event, time.Time{}
	for {
		n, err := t.Read(buf)
		if n > 0 {
			h.Write(buf[:n])
			if _, werr := fl.file.WriteAt(buf[:n], off); werr != nil {
				fl.cache.drop(fl.file, fl.name)
				return &cacheError{werr}
			}
			off += int64(n)
			fl.set(func() { fl.written = off })
		}
		if tell != nil && time.Since(when) > 100*time.Millisecond {
			when = time.Now()
			tell(Event{Layer: fl.layer.index, Bytes: off, Total: fl.layer.desc.Size})
		}
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// cacheReader reads a layer from the cache, while it is being filled if need be.
type cacheReader struct {
	ctx   context.Context
	cache *cache
	layer *imageLayer
	file  *os.File
	whole bool  // it was complete
	fill  *fill // of this process; nil: complete, or another process fills it
	off   int64
	since time.Time // it has waited for another process, zero: not since the last byte
}

func (r *cacheReader) filling() bool { return r.fill != nil }

// suspect says whether what was read is older than this process's fetching.
func (r *cacheReader) suspect() bool {
	if r.fill == nil {
		return true
	}
	r.fill.mu.Lock()
	defer r.fill.mu.Unlock()
	return r.fill.had > 0
}

// drop removes a complete file whose contents are wrong. One that is not complete is removed
// by who fills it.
func (r *cacheReader) drop() {
	if r.whole {
		r.cache.drop(r.file, blobName(r.layer.desc.Digest))
	}
}

func (r *cacheReader) Read(p []byte) (int, error) {
	for {
		n, err := r.file.ReadAt(p[:min(int64(len(p)), r.there()-r.off)], r.off)
		r.off += int64(n)
		switch {
		case n > 0:
			r.since = time.Time{}
			return n, nil
		case err != nil && err != io.EOF:
			return 0, &cacheError{err}
		case r.off == r.layer.desc.Size && r.fill == nil:
			return 0, io.EOF
		case r.whole: // somebody cut it off
			r.drop()
			return 0, &cacheError{errors.New("its file became shorter")}
		}
		if err := r.wait(); err != nil {
			return 0, err
		}
	}
}

// there is how far it may be read at most.
func (r *cacheReader) there() int64 {
	if r.fill == nil {
		return r.layer.desc.Size
	}
	r.fill.mu.Lock()
	defer r.fill.mu.Unlock()
	return max(r.fill.written, r.off)
}

// wait returns when there may be more, and io.EOF when all was read and is good.
func (r *cacheReader) wait() error {
	if r.fill == nil {
		return r.waitOther()
	}
	for {
		r.fill.mu.Lock()
		written, done, err, change := r.fill.written, r.fill.done, r.fill.err, r.fill.change
		r.fill.mu.Unlock()
		switch {
		case written > r.off:
			return nil
		case done:
			return io.EOF
		case err != nil:
			return err
		}
		select {
		case <-change:
		case <-r.ctx.Done():
			return context.Cause(r.ctx)
		}
	}
}

// pollEvery is how often it is looked whether another process has fetched more.
const pollEvery = 20 * time.Millisecond

// waitOther waits for another process, and takes over if it is gone. One that brings nothing
// for longer than a transfer may crawl is stopped, or waits itself: it is not waited for.
func (r *cacheReader) waitOther() error {
	if r.since.IsZero() {
		r.since = time.Now()
	} else if time.Since(r.since) > crawlTimes*r.layer.img.o.timeout() {
		return &cacheError{errors.New("another process has begun to fetch it, and does not go on")}
	}
	select {
	case <-time.After(pollEvery):
	case <-r.ctx.Done():
		return context.Cause(r.ctx)
	}
	name := blobName(r.layer.desc.Digest)
	if r.cache.named(r.file, name) { // it is complete
		return nil
	}
	if !r.cache.named(r.file, name+".part") {
		r.file.Close()
		return r.attach()
	}
	fl, err := r.cache.lead(r.layer, r.file)
	if err != nil {
		return &cacheError{err}
	}
	r.fill = fl
	return nil
}

func (r *cacheReader) Close() error { return r.file.Close() }

// evict removes what was not used for the longest time until so many bytes more have room.
func (c *cache) evict(need int64) {
	lock, err := c.root.OpenFile("lock", os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return
	}
	defer lock.Close()
	if unix.Flock(int(lock.Fd()), unix.LOCK_EX) != nil {
		return
	}
	files, total := c.list()
	for _, f := range files {
		if total+need <= c.max {
			return
		}
		if c.evictOne(f.Name()) {
			total -= taken(f)
		}
	}
}

// list returns the files, the one that was used last at the end, and the bytes that they take.
func (c *cache) list() (files []fs.FileInfo, total int64) {
	d, err := c.root.Open(".")
	if err != nil {
		return nil, 0
	}
	defer d.Close()
	all, _ := d.Readdir(-1)
	for _, st := range all {
		if st.Mode().IsRegular() && st.Name() != "lock" {
			files = append(files, st)
			total += taken(st)
		}
	}
	slices.SortFunc(files, func(a, b fs.FileInfo) int { return a.ModTime().Compare(b.ModTime()) })
	return files, total
}

// taken is what a file takes: its blocks, if they were reserved ahead of its length.
func taken(st fs.FileInfo) int64 {
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		return max(st.Size(), sys.Blocks*512)
	}
	return st.Size()
}

func (c *cache) evictOne(name string) bool {
	f, err := c.openFile(name, os.O_RDONLY, unix.LOCK_EX)
	if err != nil {
		return false
	}
	defer f.Close()
	return c.named(f, name) && c.root.Remove(name) == nil
}
