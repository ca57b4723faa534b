package noded

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/fusefs"
	"github.com/squirefs/squire/fusefs/noded/mounter"
	"github.com/squirefs/squire/fusefs/noded/server"
)

// How long a request may take.
const (
	makeTimeout = 45 * time.Second // to make an image
	waitTimeout = 25 * time.Second // for an image that is made
	hurry       = 5 * time.Second  // the same, for who can do without
)

// Attributes that a client may ask for.
const (
	safeAttrs = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV
	askAttrs  = safeAttrs | unix.MOUNT_ATTR_NOEXEC | unix.MOUNT_ATTR_NOSYMFOLLOW | unix.MOUNT_ATTR__ATIME |
		unix.MOUNT_ATTR_NODIRATIME
)

// maxName is the longest name of an image, in bytes.
const maxName = 4096

// mount is VerbMount and VerbMountSigned. It returns the mount, or nil with NoGrant.
func (k *keeper) mount(c *client, r *Request, files []*os.File, reply *Reply) (*os.File, *ServiceError) {
	files, list := takeList(r, files)
	switch {
	case len(files) == 0 || r.Traces != len(files)-1 || (list != nil) != (r.Do == VerbMountSigned) || r.Record < 0 || r.Record > r.Traces:
		return nil, refuse(Invalid, "the descriptors are not those that the request speaks of")
	case r.Offset < 0 || len(r.Image) > maxName || r.Attrs&^askAttrs != 0:
		return nil, refuse(Invalid, "offset, name or attributes make no sense")
	}
	view, refused := k.view(c.peer, r.View)
	if refused != nil {
		return nil, refused
	}
	o, refused := vet(files[0], c.user.UID, k.cfg.Own)
	if refused != nil {
		return nil, refused
	}
	if refused = k.mayServe(r, &o, files[0], list, c.user.UID); refused != nil {
		return nil, refused
	}
	o.offset = r.Offset
	ctx, cancel := context.WithTimeout(k.ctx, waitTimeout)
	if r.Fallback {
		ctx, cancel = context.WithTimeout(k.ctx, hurry)
	}
	defer cancel()
	var err error
	if o.superblock, err = k.superblock(ctx, c, files[0], r.Offset); err != nil {
		return nil, k.asRefusal(err)
	}
	for again := false; ; again = true {
		t := ticket{c: c, r: r, files: files, list: list, loose: o.loose}
		err := k.enter(ctx, &t, o, view)
		if err == nil {
			var out *os.File
			if out, err = k.grant(ctx, c, t.img, r); err == nil {
				*reply = Reply{ID: t.img.id, Size: t.img.size, Replayed: t.img.replayed, Shared: !t.isNew}
				return out, nil
			}
		}
		k.giveUp(&t)
		switch {
		case again:
			return nil, k.asRefusal(err)
		case errors.Is(err, errNoIDMap):
			k.noIDMap.Store(true)
			k.log.Info("the kernel has no idmapped FUSE mounts: each user gets a mount of an image")
		case errors.Is(err, mounter.ErrLost):
			k.lose(t.img)
		default:
			return nil, k.asRefusal(err)
		}
	}
}

// takeList takes the list of hashes out of the descriptors that came with r; nil if there is none. The rest is a part of
// files: what is taken away of it later is taken away there too.
func takeList(r *Request, files []*os.File) (rest []*os.File, list *os.File) {
	if r.Do != VerbMountSigned || len(files) < 2 {
		return files, nil
	}
	files[0], files[1] = files[1], files[0]
	return files[1:], files[0]
}

// superblock has the server read the image's superblock from this descriptor: what it shows is what its owner may read.
func (k *keeper) superblock(ctx context.Context, c *client, file *os.File, offset int64) (string, error) {
	for again := false; ; again = true {
		srv, err := k.server.get(ctx)
		if err != nil {
			return "", refuse(Failed, "there is no image server")
		}
		sb, err := srv.Superblock(c.user.UID, file, offset)
		if err == nil || again || !gone(srv.Done()) {
			return sb, err
		}
	}
}

// ticket is one client's way to one image.
type ticket struct {
	c     *client
	r     *Request
	files []*os.File // what came with r; those that were taken are nil
	list  *os.File   // of the hashes of a signed image, nil of others
	img   *image
	loose bool // see opened
	had   bool // the client had a reference to it before
	isNew bool

	isCommon bool // its user is the second one who has the image
}

// enter gets the client a reference to the image of its request, and waits until it is there.
func (k *keeper) enter(ctx context.Context, t *ticket, o opened, view viewKey) error {
	idmap := view.Squash && !k.cfg.Own && !k.noIDMap.Load()
	key := keyOf(o, view, t.c.user, idmap)
	refused := k.find(t, key, idmap)
	if refused != nil && refused.Code == Limit && k.evict(ctx, t.c.user.UID) {
		refused = k.find(t, key, idmap)
	}
	if refused != nil {
		return refused
	}
	if t.isNew {
		if err := k.start(t); err != nil {
			return err
		}
	}
	select {
	case <-t.img.ready:
		if srv := k.server.peek(); t.isCommon && srv != nil { // others are told with the image
			srv.Common(t.img.id)
		}
		return t.img.err
	case <-ctx.Done():
		return refuse(Failed, "the image is still being opened; its storage is slow")
	}
}

// start begins to make a new image, which nobody's end ends.
func (k *keeper) start(t *ticket) error {
	file, err := reopen(t.files[0])
	if err == nil && t.list != nil {
		t.img.list, err = dup(t.list)
	}
	if err != nil {
		t.img.file = file // nil if it could not be opened
		k.abandon(t.img, err)
		return err
	}
	var traces []*os.File
	record := 0
	for i, f := range t.files[1:] {
		if f == nil || !vetTrace(f, t.c.user.UID, k.cfg.Own) {
			continue
		}
		traces = append(traces, f)
		t.files[1+i] = nil
		if t.r.Record == i+1 {
			record = len(traces)
		}
	}
	k.running.Add(1) // within a request, so that there is one already
	go func() {
		defer k.running.Done()
		k.serveNew(t.img, file, traces, record)
	}()
	return nil
}

// reopen opens the file of f once more. The client still has f, and could set O_DIRECT on it (fcntl(2)) for all who share
// the image, which makes most reads fail. Where the keeper may not (root on a network file system, often), it is f after
// all; the server then clears what was set. O_NONBLOCK: not to wait for the holder of a lease on the file.
func reopen(f *os.File) (file *os.File, err error) {
	err = withFD(f, func(fd int) error {
		again, failed := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if failed == nil {
			file = os.NewFile(uintptr(again), f.Name())
		}
		return failed
	})
	if err != nil {
		return dup(f)
	}
	return file, nil
}

// giveUp takes back a reference that came to nothing.
func (k *keeper) giveUp(t *ticket) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if t.img != nil && !t.had && t.c.images[t.img.id] == t.img {
		k.unrefer(t.c, t.img)
	}
}

// grant returns a clone of the image's mount for a client, nil if it wants none.
func (k *keeper) grant(ctx context.Context, c *client, img *image, r *Request) (*os.File, error) {
	if r.NoGrant {
		return nil, nil
	}
	to := mounter.Grantee{Owner: c.user, Root: c.user.UID == 0 && !k.cfg.Own, Attrs: r.Attrs}
	if !to.Root {
		to.Attrs |= safeAttrs
	}
	to.IDMap = img.idmap && c.user != fusefs.Owner{}
	return k.cloneMount(ctx, img, to)
}

// cloneMount tries once more if the mounter ends.
func (k *keeper) cloneMount(ctx context.Context, img *image, to mounter.Grantee) (*os.File, error) {
	for again := false; ; again = true {
		m, err := k.mounter.get(ctx)
		if err != nil {
			return nil, refuse(Failed, "there is no mounter")
		}
		k.mu.Lock()
		mount := img.mount
		k.mu.Unlock()
		if mount == nil {
			return nil, refuse(Failed, "the mount has ended")
		}
		clone, err := m.Grant(img.id, mount, to)
		if err == nil || again || !gone(m.Done()) {
			return clone, err
		}
	}
}

// attach is VerbAttach.
func (k *keeper) attach(c *client, r *Request, files []*os.File) *ServiceError {
	if len(files) != 1 || r.Attrs&^askAttrs != 0 {
		return refuse(Invalid, "no directory came with the request, or attributes make no sense")
	}
	k.mu.Lock()
	img := c.images[r.ID]
	mine := 0
	for _, other := range k.images {
		for _, user := range other.attached {
			if user == c.user.UID {
				mine++
			}
		}
	}
	k.mu.Unlock()
	switch {
	case k.cfg.Own:
		return refuse(Invalid, "a user's own service has no rights to mount with")
	case files[0] == nil:
		return refuseFUSE()
	case img == nil:
		return refuse(Invalid, "image %d was not mounted over this connection", r.ID)
	case img.idmap:
		return refuse(Invalid, "the view is one for all users, and cannot be put on a directory")
	case mine >= k.limits.UserAttached && c.user.UID != 0:
		return refuse(Limit, "user %d has too many mounts (%d)", c.user.UID, mine)
	}
	ctx, cancel := context.WithTimeout(k.ctx, hurry)
	defer cancel()
	clone, err := k.cloneMount(ctx, img, mounter.Grantee{Owner: c.user, Root: true, Attrs: r.Attrs | safeAttrs})
	if err != nil {
		return k.asRefusal(err)
	}
	defer clone.Close()
	peer, err := c.conn.PeerPidfd()
	if err != nil {
		return refuse(Failed, "%s", err)
	}
	defer peer.Close()
	m, err := k.mounter.get(ctx)
	if err != nil {
		return refuse(Failed, "there is no mounter")
	}
	id, err := m.Attach(clone, files[0], peer, c.user)
	if err != nil {
		return k.placeRefusal(err)
	}
	k.mu.Lock()
	img.attached[id] = c.user.UID
	k.mu.Unlock()
	k.saveRecords()
	return nil
}

// detach is VerbDetach.
func (k *keeper) detach(c *client, r *Request, files []*os.File) *ServiceError {
	if len(files) != 1 || files[0] == nil || r.Base == "" || r.Base == "." || r.Base == ".." || len(r.Base) > 255 ||
		strings.ContainsAny(r.Base, "/\x00") {
		return refuse(Invalid, "no parent came with the request, or the name makes no sense")
	}
	on := map[uint64]*image{}
	var ids []uint64
	k.mu.Lock()
	for _, img := range k.images {
		for id, user := range img.attached {
			if user == c.user.UID || c.user.UID == 0 {
				on[id] = img
				ids = append(ids, id)
			}
		}
	}
	k.mu.Unlock()
	if len(ids) == 0 {
		return refuse(Invalid, "the service has mounted nothing for user %d", c.user.UID)
	}
	ctx, cancel := context.WithTimeout(k.ctx, hurry)
	defer cancel()
	m, err := k.mounter.get(ctx)
	if err != nil {
		return refuse(Failed, "there is no mounter")
	}
	peer, err := c.conn.PeerPidfd()
	if err != nil {
		return refuse(Failed, "%s", err)
	}
	defer peer.Close()
	id, err := m.Detach(files[0], r.Base, ids, peer, r.Lazy)
	if err != nil {
		return k.placeRefusal(err)
	}
	k.mu.Lock()
	if img := on[id]; img != nil {
		delete(img.attached, id)
	}
	k.touched()
	k.mu.Unlock()
	k.saveRecords()
	return nil
}

// placeRefusal says what was wrong with a place for a mount. What the user may not, or what is no such place, is no
// trouble of the service's.
func (k *keeper) placeRefusal(err error) *ServiceError {
	switch {
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return refuse(Denied, "%s", err)
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.EINVAL):
		return refuse(Invalid, "%s", err)
	}
	return k.asRefusal(err)
}

// asRefusal says to a client what went wrong.
func (k *keeper) asRefusal(err error) *ServiceError {
	var known *ServiceError
	var image *server.ImageError
	switch {
	case errors.As(err, &known):
		return known
	case errors.As(err, &image):
		return refuse(BadImage, "%s", image.Text)
	case k.ctx.Err() != nil:
		return refuse(Draining, "the service ends")
	}
	return refuse(Failed, "%s", err)
}
