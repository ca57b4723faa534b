package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Record is what is remembered of a container.
type Record struct {
	Version int    `json:"version"`
	Image   string `json:"image"`            // absolute path of the image, or of a directory
	Source  string `json:"source,omitempty"` // what the image was imported from, such as docker://debian
	// Identity tells whether the image is still the one that the layer belongs to. The
	// package compares it and does not know what is in it. Empty: a directory.
	Identity string    `json:"identity,omitempty"`
	Created  time.Time `json:"created"`
	Started  time.Time `json:"started"` // the last time
	Job      uint32    `json:"job,omitempty"`
	// Owned: the layer's files belong to the user, whatever they are in the image; that is
	// all that a user namespace with one id can do.
	Owned bool `json:"owned"`
	// Targets are the places of mounts: those that were missing from the image have been
	// made in the layer, and are not part of the container.
	Targets []string `json:"targets,omitempty"`
}

const (
	recordVersion = 1
	maxRecord     = 1 << 20 // bytes
	maxTargets    = 4096    // they add up over the years
)

// AddTargets notes places of mounts.
func (r *Record) AddTargets(targets []string) {
	for _, t := range targets {
		if len(r.Targets) < maxTargets && !slices.Contains(r.Targets, t) {
			r.Targets = append(r.Targets, t)
		}
	}
	slices.Sort(r.Targets)
}

// Info says what a container is.
type Info struct {
	Name    string  `json:"name"`
	Running bool    `json:"running"`
	PIDs    []int   `json:"pids"` // of processes that keep it running
	Record  *Record `json:"record"`
	Layer   string  `json:"layer"` // its directory
}

// Container is a container that this process runs, joined or looks at. Its methods are for
// one goroutine at a time.
type Container struct {
	Name string

	path    string   // of the store
	top     *os.Root // likewise
	root    *os.Root
	lock    *os.File // nil: not held
	record  *Record  // nil: there is none
	running *running // nil: nobody runs it, or nobody has been asked
	server  *server  // nil: this process does not serve it
	scratch bool     // nobody will start it again
}

// acquire waits for the lock. The error is errGone if the container was removed meanwhile.
func (c *Container) acquire(ctx context.Context) error {
	for {
		err := c.tryAcquire()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("container %s: wait for those who start it: %w", c.Name, context.Cause(ctx))
		case <-time.After(lockPause):
		}
	}
}

func (c *Container) tryAcquire() error {
	lock, err := c.root.OpenFile(lockName, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err == nil {
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err == nil {
		err = c.current(lock)
	}
	if errors.Is(err, fs.ErrNotExist) { // not even the directory is there any more
		err = errGone
	}
	if err != nil {
		lock.Close() // nil is fine
		if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, errGone) {
			return err
		}
		return fmt.Errorf("container %s: lock: %w", c.Name, plain(err))
	}
	c.lock = lock
	return nil
}

// current makes sure that a lock is that of the container, and not of one that was removed.
func (c *Container) current(lock *os.File) error {
	ours, err := lock.Stat()
	if err != nil {
		return err
	}
	theirs, err := c.top.Lstat(filepath.Join(c.Name, lockName))
	if errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(ours, theirs) {
		return errGone
	}
	return err
}

// release gives the lock up.
func (c *Container) release() {
	c.lock.Close() // nil is fine
	c.lock = nil
}

// Close lets go of the container: of its lock, of its namespaces, and of the place where
// others could join it. It may be called again.
func (c *Container) Close() {
	c.Withdraw()
	if c.running != nil {
		c.running.close()
		c.running = nil
	}
	if c.scratch && c.root != nil {
		c.discard()
	}
	c.release()
	if c.root != nil {
		c.root.Close()
		c.root = nil
	}
	if c.top != nil {
		c.top.Close()
		c.top = nil
	}
}

// discard removes a container that nobody will start again, unless others are in it.
func (c *Container) discard() {
	// Whoever else leaves now has the lock for a moment, and has seen us here.
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if c.lock == nil && c.acquire(ctx) != nil {
		return // it is gone, or somebody else's to remove
	}
	if !c.Runs() {
		_ = c.remove()
	}
}

// Record is what is remembered of the container, nil if it is new. It is read when the
// container is this process's to start, not for one that was joined.
func (c *Container) Record() *Record { return c.record }

// State is the container that runs, nil if it is this process's to start. What is open in
// it is closed by Close.
func (c *Container) State() *State {
	if c.running == nil {
		return nil
	}
	return &c.running.State
}

// Layer is the directory of the writable layer, for runtime.Spec.Upper. It is made by who
// starts the container.
func (c *Container) Layer() string { return filepath.Join(c.path, c.Name, layerName) }

// OpenLayer opens the directory with the layer's files. If the container never had any,
// the error matches [fs.ErrNotExist].
func (c *Container) OpenLayer() (*os.File, error) {
	layer, err := c.root.OpenRoot(layerName)
	if err != nil {
		return nil, plain(err)
	}
	defer layer.Close()
	f, err := layer.OpenFile("upper", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, plain(err)
	}
	return f, nil
}

// read reads the record.
func (c *Container) read() error {
	c.record = nil
	f, err := c.root.OpenFile(recordName, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("container %s: %s: %w", c.Name, recordName, plain(err))
	}
	defer f.Close()
	fi, err := f.Stat()
	if err == nil && (!fi.Mode().IsRegular() || fi.Size() > maxRecord) {
		err = fmt.Errorf("not a plain file of at most %d bytes", maxRecord)
	}
	var b []byte
	if err == nil {
		b, err = io.ReadAll(io.LimitReader(f, maxRecord))
	}
	r := new(Record)
	if err == nil {
		err = json.Unmarshal(b, r)
	}
	switch {
	case err != nil:
	case r.Version != recordVersion:
		err = fmt.Errorf("version %d: this squire knows %d", r.Version, recordVersion)
	case !filepath.IsAbs(r.Image):
		err = fmt.Errorf("image %q: want an absolute path", r.Image)
	}
	if err != nil {
		return fmt.Errorf("container %s: %s: %w", c.Name, recordName, err)
	}
	c.record = r
	return nil
}

// Remember writes the record, of a container that is this process's to start. With it a
// new container comes into being.
func (c *Container) Remember(r *Record) error {
	r.Version = recordVersion
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("container %s: %w", c.Name, err)
	}
	if len(b) > maxRecord {
		return fmt.Errorf("container %s: a record of %d bytes: at most %d", c.Name, len(b), maxRecord)
	}
	// Whole or not at all, also when the machine stops.
	const tmp = newRecord
	_ = c.root.Remove(tmp)
	f, err := c.root.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("container %s: %w", c.Name, plain(err))
	}
	_, err = f.Write(append(b, '\n'))
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = c.root.Rename(tmp, recordName)
	}
	if err != nil {
		return fmt.Errorf("container %s: remember: %w", c.Name, err)
	}
	c.record, c.scratch = r, false
	return nil
}

// Runs reports whether somebody keeps the container running, or uses its layer.
func (c *Container) Runs() bool { return len(c.listeners()) > 0 || c.inUse() }

// Leave says that this process does not use the container any more. It reports whether it
// was the last: then the container is this process's until Close, and nobody joins it.
func (c *Container) Leave(ctx context.Context) (last bool, err error) {
	if c.lock == nil {
		if err = c.acquire(ctx); err != nil {
			return false, err
		}
	}
	c.Withdraw()
	if len(c.listeners()) > 0 {
		c.release()
		return false, nil
	}
	return true, nil
}

// inUse reports whether the layer is locked: by those who run it, however they do.
func (c *Container) inUse() bool {
	f, err := c.root.OpenFile(filepath.Join(layerName, ".lock"), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	return errors.Is(err, unix.EWOULDBLOCK)
}

// info describes the container, nil if it is none.
func (c *Container) info() *Info {
	pids := c.listeners()
	if err := c.read(); err != nil || c.record == nil && len(pids) == 0 {
		return nil
	}
	return &Info{Name: c.Name, Running: len(pids) > 0 || c.inUse(), PIDs: pids, Record: c.record, Layer: c.Layer()}
}

// remove takes the name away, so that nobody finds half of a container, then the rest.
// The lock is held.
func (c *Container) remove() error {
	gone := goingPrefix + random()
	if err := c.top.Rename(c.Name, gone); err != nil {
		return fmt.Errorf("container %s: remove: %w", c.Name, err)
	}
	if err := removeTree(c.top, gone); err != nil {
		return fmt.Errorf("container %s: remove: %w", c.Name, err)
	}
	return nil
}
