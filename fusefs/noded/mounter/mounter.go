// Package mounter is the process of the node service that may mount. It does what the keeper says, and never looks at an
// image or at anything on a mount that the service serves.
//
// # Where mounts are
//
// A mount of the service has no place: the keeper holds it by a descriptor (fsmount(2)), and so does each user a clone
// of it (open_tree(2)). A clone that is handed to an ordinary user, who may be root in a user namespace, must be locked,
// or its receiver clears nosuid and nodev. The kernel locks what comes into a mount namespace of a user namespace with
// fewer rights, so a clone takes the way through two namespaces of the mounter's: home, where it is attached, and the
// locker's, to which it is propagated. See home.go.
//
// # Processes
//
// The mounter is in home, a mount namespace with nothing in it but /proc, and holds what it needs of the host by
// descriptor. The locker is a process in the other namespace. Both end with the keeper, and neither parses anything
// but the keeper's messages.
package mounter

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/fusefs"
	"github.com/squirefs/squire/internal/wire"
)

// Name is argv[0] of the stage, which has the keeper's socket as descriptor 3. A program that uses Start calls Main when
// it finds itself called so. (Helpers of the mounter, each a stage of its own, begin with the same word.)
const Name = "squire-mounter"

// ErrLost says that the mount that Grant is to clone belongs to a mounter that has ended, and that this kernel cannot
// clone it for another. Clones that were made work on; for new ones the image must be mounted anew.
var ErrLost = errors.New("the mount was lost with the process that made it")

// callTimeout bounds every call. A mounter that does not answer by then is ended, but for what may wait for a
// foreign file system.
const callTimeout = 5 * time.Second

// Client is the keeper's side. Its methods may be called concurrently, and are bounded in time (5 s). Errors have the
// kernel's error number in their chain where there is one.
type Client struct {
	conn *wire.Conn
	proc *os.Process
	send chan struct{} // has room for the one who sends
	done chan struct{}

	mu      sync.Mutex
	next    uint64
	waiting map[uint64]chan answer // by number of the request; nil: the process is gone
}

// answer is what came for one request.
type answer struct {
	reply
	files []*os.File
}

// Start starts a mounter. own: that of a user's own service, in a user and a mount namespace of its own.
func Start(own bool) (*Client, error) { return start(setup{Own: own}) }

func start(s setup) (*Client, error) {
	conn, theirs, err := wire.Pair()
	if err != nil {
		return nil, fmt.Errorf("start mounter: %w", err)
	}
	defer theirs.Close()
	attr := &syscall.SysProcAttr{Setsid: true, Cloneflags: unix.CLONE_NEWNS}
	if s.Own {
		uid, gid := os.Geteuid(), os.Getegid()
		attr.Cloneflags |= unix.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: uid, HostID: uid, Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: gid, HostID: gid, Size: 1}}
		attr.AmbientCaps = []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_SYS_CHROOT}
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("start mounter: %w", err)
	}
	defer null.Close()
	proc, err := startStage(Name, attr, null, theirs)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("start mounter: %w", err)
	}
	c := &Client{
		conn: conn, proc: proc, send: make(chan struct{}, 1), done: make(chan struct{}),
		waiting: make(map[uint64]chan answer),
	}
	go c.receive()
	if err = c.setUp(s); err != nil {
		c.Close()
		return nil, fmt.Errorf("start mounter: %w", err)
	}
	return c, nil
}

// setUp sends the first message, which is answered when the process is ready.
func (c *Client) setUp(s setup) error {
	ready := make(chan answer, 1)
	c.mu.Lock()
	c.waiting[0] = ready
	c.next = 1
	c.mu.Unlock()
	if err := c.conn.Send(&s); err != nil {
		return err
	}
	select {
	case a := <-ready:
		closeFiles(a.files)
		return a.err()
	case <-c.done:
		return errors.New("it ended at once")
	case <-time.After(callTimeout):
		return fmt.Errorf("it is not ready in %v", callTimeout)
	}
}

// receive takes what the process sends, until it is gone.
func (c *Client) receive() {
	early := make(map[uint64][]*os.File) // by number of the request
	for {
		var a answer
		var err error
		if a.files, err = c.conn.Recv(&a.reply); err != nil {
			break
		}
		if a.More {
			early[a.Seq] = a.files
			continue
		}
		a.files = append(early[a.Seq], a.files...)
		delete(early, a.Seq)
		c.mu.Lock()
		waits := c.waiting[a.Seq]
		delete(c.waiting, a.Seq)
		c.mu.Unlock()
		if waits == nil { // not any more
			closeFiles(a.files)
			continue
		}
		waits <- a // has room
	}
	for _, files := range early {
		closeFiles(files)
	}
	_ = c.proc.Kill()
	c.mu.Lock()
	c.waiting = nil
	c.mu.Unlock()
	close(c.done)
	c.conn.Close()
	// A thread of it that hangs on foreign storage may end much later.
	_, _ = c.proc.Wait()
}

// errGone: the process ended before it answered.
var errGone = errors.New("mounter: the process has ended")

// call makes a request. The files of the answer are the caller's.
func (c *Client) call(r *request, files ...*os.File) (*reply, []*os.File, error) {
	deadline := time.NewTimer(callTimeout)
	defer deadline.Stop()
	waits := make(chan answer, 1)
	c.mu.Lock()
	if c.waiting == nil {
		c.mu.Unlock()
		return nil, nil, errGone
	}
	r.Seq = c.next
	c.next++
	c.waiting[r.Seq] = waits
	c.mu.Unlock()

	if err := c.post(r, files); err != nil {
		c.forget(r.Seq, waits)
		return nil, nil, fmt.Errorf("mounter: %w", err)
	}
	select {
	case a := <-waits:
		if err := a.err(); err != nil {
			closeFiles(a.files)
			return nil, nil, err
		}
		return &a.reply, a.files, nil
	case <-c.done:
		c.forget(r.Seq, waits)
		return nil, nil, errGone
	case <-deadline.C:
		c.forget(r.Seq, waits)
		c.suspect(r)
		return nil, nil, fmt.Errorf("mounter: %w: %v", unix.ETIMEDOUT, callTimeout)
	}
}

// post sends a request. Only a process that has stopped reading keeps it from that, and is ended.
func (c *Client) post(r *request, files []*os.File) error {
	stuck := time.AfterFunc(callTimeout, c.Close)
	defer stuck.Stop()
	c.send <- struct{}{}
	defer func() { <-c.send }()
	return c.conn.Send(r, files...)
}

// forget gives up waiting.
func (c *Client) forget(seq uint64, waits chan answer) {
	c.mu.Lock()
	if c.waiting != nil {
		delete(c.waiting, seq)
	}
	c.mu.Unlock()
	select {
	case a := <-waits:
		closeFiles(a.files)
	default:
	}
}

// suspect ends a process that does not answer. Attach, Detach and Clear may wait for a directory on a hung file system, which
// says nothing about the process, so it is asked something that needs none.
func (c *Client) suspect(r *request) {
	if r.Do == doAttach || r.Do == doDetach || r.Do == doClear {
		go func() { _, _, _ = c.Attached(nil, nil) }()
		return
	}
	c.Close()
}

// Options are those of a new mount.
type Options struct {
	Source string // shown in mountinfo
	// Everybody lets all users in (allow_other); else only User, who then is whom the mount is for.
	Everybody bool
	User      fusefs.Owner
}

// Mounted is a new mount. Both descriptors are the caller's.
type Mounted struct {
	Device *os.File // that INIT comes from
	Mount  *os.File // a detached mount, read-only, nosuid, nodev: what Grant makes clones of
	Number uint64   // of the superblock, as st_dev
}

// Mount makes a superblock whose mount nobody sees. It does not wait for the device to be served.
func (c *Client) Mount(o Options) (*Mounted, error) {
	r, files, err := c.call(&request{Do: doMount, Source: shorten(o.Source), Everybody: o.Everybody, Owner: o.User})
	if err != nil {
		return nil, err
	}
	if len(files) != 2 {
		closeFiles(files)
		return nil, errShort
	}
	return &Mounted{files[0], files[1], r.Number}, nil
}

// errShort: the answer lacks a descriptor that belongs to it.
var errShort = errors.New("mounter: descriptors are missing in the answer")

// maxSource is how much of the end of a name is sent, more than the kernel takes.
const maxSource = 1 << 10

func shorten(source string) string { return source[max(0, len(source)-maxSource):] }

// Grantee is for whom a clone is.
type Grantee struct {
	fusefs.Owner      // user and group
	Root         bool // CAP_SYS_ADMIN in the first user namespace: the clone need not be locked
	IDMap        bool // files of user and group 0 are to appear as theirs
	Attrs        int  // MOUNT_ATTR_*; NOSUID, NODEV and RDONLY are added unless Root
}

// Grant returns a detached clone of mount (id's), which must answer already if it is to be idmapped. That of an ordinary
// user is locked: no flag of it can be cleared. ErrLost is in the chain of the error if only a new mount helps.
//
// On kernels before 6.15 mount refers to another mount of the same superblock afterwards, which is as good as the first.
// Until then nothing else may be done with it; copies of the descriptor that were made before are of no use any more.
func (c *Client) Grant(id uint64, mount *os.File, to Grantee) (*os.File, error) {
	r := &request{Do: doGrant, ID: id, Owner: to.Owner, Root: to.Root, IDMap: to.IDMap, Attrs: to.Attrs}
	_, files, err := c.call(r, mount)
	if err != nil {
		return nil, err
	}
	switch len(files) {
	case 1:
		return files[0], nil
	case 2: // the mount itself was attached, the second file takes its place
		defer files[1].Close()
		if err = unix.Dup3(int(files[1].Fd()), int(mount.Fd()), unix.O_CLOEXEC); err == nil {
			return files[0], nil
		}
		files[0].Close()
		return nil, fmt.Errorf("mounter: replace the descriptor of a mount: %w", err)
	}
	closeFiles(files)
	return nil, errShort
}

// Attach puts a clone that Grant returned for Root, without IDMap, on dir (O_PATH), in the mount namespace of the
// process peer (pidfd), which must be owned by the first user namespace, for a user who must be able to write to dir,
// and own it if it is sticky, as fusermount3 wants it. It returns the unique id of the mount. The caller closes clone, which keeps the
// mount busy.
func (c *Client) Attach(clone, dir, peer *os.File, user fusefs.Owner) (uint64, error) {
	r, files, err := c.call(&request{Do: doAttach, Owner: user}, clone, dir, peer)
	if err != nil {
		return 0, err
	}
	closeFiles(files)
	return r.Number, nil
}

// Detach unmounts base in parent (O_PATH), in the mount namespace of the process peer, if the mount there has one of the
// ids that Attach returned; which one it was is the result. The caller sees to it that they are the user's.
func (c *Client) Detach(parent *os.File, base string, ids []uint64, peer *os.File, lazy bool) (uint64, error) {
	if len(base) > maxName {
		return 0, fmt.Errorf("detach: %w", unix.EINVAL)
	}
	for {
		some, rest := split(ids)
		r, files, err := c.call(&request{Do: doDetach, Base: base, IDs: some, Lazy: lazy}, parent, peer)
		if err == nil {
			closeFiles(files)
			return r.Number, nil
		}
		if len(rest) == 0 || !errors.Is(err, unix.EPERM) { // EPERM: it has none of these
			return 0, err
		}
		ids = rest
	}
}

// Attached returns which of ids are still mounted somewhere in the mount namespace of the keeper, and which of the
// superblocks numbers are. For what was mounted elsewhere it says nothing.
func (c *Client) Attached(ids, numbers []uint64) (liveIDs, liveNumbers []uint64, err error) {
	for first := true; first || len(ids)+len(numbers) > 0; first = false {
		r := &request{Do: doAttached}
		r.IDs, ids = split(ids)
		r.Numbers, numbers = split(numbers)
		live, files, err := c.call(r)
		if err != nil {
			return nil, nil, err
		}
		closeFiles(files)
		liveIDs, liveNumbers = append(liveIDs, live.IDs...), append(liveNumbers, live.Numbers...)
	}
	return liveIDs, liveNumbers, nil
}

// Clear unmounts what is mounted of the superblocks numbers in the mount namespace of the keeper, whether or not it is used
// (MNT_DETACH): mounts that nobody serves any more. A user's own service has none there.
func (c *Client) Clear(numbers []uint64) error {
	for len(numbers) > 0 {
		r := &request{Do: doClear}
		r.Numbers, numbers = split(numbers)
		_, files, err := c.call(r)
		if err != nil {
			return err
		}
		closeFiles(files)
	}
	return nil
}

// maxNumbers is how many numbers of one kind are in one message.
const maxNumbers = 2000

func split(s []uint64) (head, rest []uint64) {
	n := min(len(s), maxNumbers)
	return s[:n], s[n:]
}

// Drop forgets what was made for grants of image id. Without it the superblock stays, whoever else has let go of it.
func (c *Client) Drop(id uint64) {
	r := &request{Do: doDrop, ID: id}
	_, files, err := c.call(r)
	if err == nil {
		closeFiles(files)
	}
}

// Done is closed when the process is gone; then a new one must be started. Grants of it stay valid.
func (c *Client) Done() <-chan struct{} { return c.done }

// Close ends the process, and all calls.
func (c *Client) Close() {
	_ = c.proc.Kill()
	// Should one of its threads hang, its socket stays open: this ends the waiting for it.
	_ = c.conn.SetDeadline(time.Now())
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// err is the error of a reply, nil if there is none.
func (r *reply) err() error {
	switch {
	case r.Lost:
		return fmt.Errorf("mounter: %s: %w", r.Error, ErrLost)
	case r.Errno != 0:
		return fmt.Errorf("mounter: %s%w", r.Error, syscall.Errno(r.Errno))
	case r.Error != "":
		return errors.New("mounter: " + r.Error)
	}
	return nil
}

// setError puts err into a reply: what is said, and the kernel's number in a form that crosses the socket.
func (r *reply) setError(err error) {
	if err == nil {
		return
	}
	r.Error, r.Lost = err.Error(), errors.Is(err, ErrLost)
	var errno syscall.Errno
	if errors.As(err, &errno) && !r.Lost {
		r.Errno = int(errno)
		r.Error, _ = strings.CutSuffix(r.Error, errno.Error())
	}
}
