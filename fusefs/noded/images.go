package noded

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/fusefs"
	"github.com/squirefs/squire/fusefs/noded/mounter"
	"github.com/squirefs/squire/fusefs/noded/server"
)

// key is what two requests must have in common to share a mount.
type key struct {
	identity
	view  viewKey
	one   bool // it is of one user
	owner fusefs.Owner
}

// viewKey is a View that can be compared.
type viewKey struct {
	Squash, Private, Restrict bool
	Owned                     bool
	Owner                     fusefs.Owner
}

// state of an image.
type state int

const (
	starting state = iota
	served
	waiting // for a server
	failed
	leaving // the keeper has let go of the mount; the kernel tells when the last clone is gone
)

func (s state) String() string {
	return [...]string{"starting", "served", "waiting", "failed", "leaving"}[s]
}

// image is one mount. What is above the line does not change once it is made; the rest is guarded by keeper.mu.
type image struct {
	id       uint64
	key      key
	name     string
	user     fusefs.Owner // who asked for it first
	idmap    bool
	loose    bool // see opened
	since    time.Time
	ready    chan struct{} // closed when it is made, or will not be
	err      error         // why not; set before ready is closed
	file     *os.File
	list     *os.File // of the hashes of a signed one; nil of others
	number   uint64   // of the superblock
	init     []byte
	size     int64
	replayed int
	by       imageServer // that answered first
	// ----
	state    state
	failure  string             // why, of a failed one
	device   *os.File           // that the mount was made with; nil when it was given up
	mount    *os.File           // the parking mount; nil once it is let go of
	refs     map[*client]string // names by which clients know it
	common   bool               // more users than one have had it
	attached map[uint64]uint32  // unique ids of mounts, and for which user
	unused   time.Time          // since when nobody had a reference; zero: somebody has
	deaths   int                // of servers, at this image
	retry    time.Time          // not to be handed over before, as servers died at it
}

func (img *image) made() bool {
	select {
	case <-img.ready:
		return img.err == nil
	default:
		return false
	}
}

// view says what a peer gets to see, or why not.
func (k *keeper) view(peer *unix.Ucred, v View) (viewKey, *ServiceError) {
	out := viewKey{Squash: v.Squash, Private: v.Private, Restrict: v.Restrict}
	if v.Owner != nil {
		out.Owned, out.Owner = true, *v.Owner
	}
	switch {
	case v.Squash && (v.Private || v.Owner != nil):
		return out, refuse(Invalid, "a view is squashed, or private, or has an owner")
	case k.cfg.Own && peer.Uid != k.uid:
		return out, refuse(Denied, "this is the service of user %d alone", k.uid)
	case k.cfg.Own && !v.Squash && !v.Private:
		return out, refuse(Denied, "a user's own service lets nobody else in")
	case peer.Uid == 0 || k.cfg.Own:
		return out, nil
	case !v.Squash && !v.Private:
		return out, refuse(Denied, "only root may mount for everybody")
	case v.Owner != nil && (v.Owner.UID != peer.Uid || v.Owner.GID != peer.Gid):
		return out, refuse(Denied, "only root may show files as somebody else's")
	}
	out.Restrict = out.Restrict || v.Squash
	return out, nil
}

// keyOf completes the identity of an image to the key of its mount. idmap: one mount is for all users.
func keyOf(o opened, view viewKey, user fusefs.Owner, idmap bool) key {
	k := key{identity: o.identity, view: view}
	switch {
	case view.Private, view.Squash && !idmap:
		k.one, k.owner = true, user
	case o.loose:
		k.one, k.owner = true, fusefs.Owner{UID: user.UID}
	}
	return k
}

// find gets the client of t a reference to the image with key, and a new image if there is none, which is not made yet.
func (k *keeper) find(t *ticket, key key, idmap bool) *ServiceError {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.draining {
		return refuse(Draining, "the service is about to end")
	}
	t.img = k.keys[key]
	if t.isNew = t.img == nil; t.isNew {
		if t.r.Known {
			return refuse(Invalid, "the image is not mounted")
		}
		if refused := k.mayMake(t.c.user.UID, key); refused != nil {
			return refused
		}
		k.nextID++
		t.img = &image{
			id: k.nextID, key: key, name: t.r.Image, user: t.c.user, idmap: idmap, loose: t.loose, since: time.Now(),
			ready: make(chan struct{}), refs: map[*client]string{}, attached: map[uint64]uint32{},
		}
		k.images[t.img.id], k.keys[key] = t.img, t.img
	}
	_, t.had = t.img.refs[t.c]
	k.refer(t.c, t.img, t.r.Image)
	t.isCommon = !t.img.common && t.c.user.UID != t.img.user.UID
	t.img.common = t.img.common || t.isCommon
	return nil
}

// refer and unrefer count references; k.mu is held.
func (k *keeper) refer(c *client, img *image, name string) {
	img.refs[c], c.images[img.id] = name, img
	img.unused = time.Time{}
}

func (k *keeper) unrefer(c *client, img *image) {
	delete(img.refs, c)
	delete(c.images, img.id)
	if len(img.refs) == 0 {
		img.unused = time.Now()
	}
}

// serveNew makes a new image: its mount, and a server that answers it. It closes traces, and file if it fails.
func (k *keeper) serveNew(img *image, file *os.File, traces []*os.File, record int) {
	ctx, cancel := context.WithTimeout(k.ctx, makeTimeout)
	defer cancel()
	img.file = file
	err := k.makeImage(ctx, img, traces, record)
	closeAll(traces)
	if err != nil {
		k.abandon(img, err)
		return
	}
	k.keep(img) // before anybody is told that it is there
	k.mu.Lock()
	img.state = served
	close(img.ready)
	k.stats.totals.Images++
	now := k.current
	if img.by != now { // that server is gone, and the next one has been told of its images
		img.state = waiting
	}
	k.touched()
	k.mu.Unlock()
	if img.by != now && now != nil {
		go k.handOver(now, img, func() {})
	}
	k.log.Info("image served", "id", img.id, "image", img.name, "user", img.user.UID, "view", img.key.view.String(),
		"bytes", img.size, "replayed", img.replayed)
}

// abandon ends an image that could not be made.
func (k *keeper) abandon(img *image, err error) {
	k.mu.Lock()
	img.err = err
	k.drop(img)
	close(img.ready)
	k.mu.Unlock()
	for _, f := range []*os.File{img.file, img.list} {
		if f != nil {
			f.Close()
		}
	}
	if !errors.Is(err, errNoIDMap) {
		k.log.Warn("image not served", "id", img.id, "image", img.name, "user", img.user.UID, "error", err)
	}
}

// makeImage tries again once if a server or a mounter dies meanwhile. An image at which two servers die is refused.
func (k *keeper) makeImage(ctx context.Context, img *image, traces []*os.File, record int) error {
	for again := false; ; again = true {
		srv, err := k.server.get(ctx)
		if err != nil {
			return refuse(Failed, "there is no image server: %s", err)
		}
		m, err := k.mounter.get(ctx)
		if err != nil {
			return refuse(Failed, "there is no mounter: %s", err)
		}
		err = k.makeWith(srv, m, img, traces, record)
		died := gone(srv.Done())
		switch {
		case err == nil, !died && !gone(m.Done()):
			return err
		case again && died:
			k.mu.Lock()
			k.strike(img)
			k.mu.Unlock()
			return refuse(BadImage, "the image server died twice while it opened the image")
		case again:
			return err
		}
	}
}

// makeWith makes the mount while the server looks at the image.
func (k *keeper) makeWith(srv imageServer, m mountMaker, img *image, traces []*os.File, record int) error {
	type result struct {
		*mounter.Mounted
		err error
	}
	mounting := make(chan result, 1)
	go func() {
		mounted, err := m.Mount(k.mountOptions(img))
		mounting <- result{mounted, err}
	}()
	info, err := srv.Open(k.serverImage(img, len(traces), record), img.file, img.list, traces)
	mounted := <-mounting
	if err != nil || mounted.err != nil {
		if mounted.err == nil {
			mounted.Device.Close()
			mounted.Mount.Close()
		}
		if err == nil {
			srv.Forget(img.id)
			err = fmt.Errorf("mount the image: %w", mounted.err)
		}
		return err
	}
	img.size, img.replayed = info.Size, info.Replayed
	if info, err = k.serveDevice(srv, img.id, mounted.Device, nil); err != nil {
		srv.Forget(img.id)
		mounted.Mount.Close()
		mounted.Device.Close()
		return err
	}
	if img.idmap && info.Flags&allowIDMap == 0 {
		mounted.Mount.Close()
		mounted.Device.Close()
		return errNoIDMap
	}
	img.by, img.number, img.init = srv, mounted.Number, info.Init
	k.mu.Lock()
	img.device, img.mount = mounted.Device, mounted.Mount
	k.mu.Unlock()
	return nil
}

// allowIDMap is FUSE_ALLOW_IDMAP (include/uapi/linux/fuse.h), since Linux 6.12.
const allowIDMap = 1 << 40

// errNoIDMap: the kernel has no idmapped FUSE mounts.
var errNoIDMap = errors.New("the kernel has no idmapped FUSE mounts")

// serveDevice hands the device of an opened image to a server. Without FUSE_NOTIFY_RESEND it is a clone: what a server had
// taken fails with it (ECONNABORTED), instead of waiting for good.
func (k *keeper) serveDevice(srv imageServer, id uint64, device *os.File, init []byte) (server.Info, error) {
	if !k.noResend {
		return srv.Serve(id, device, init)
	}
	clone, err := k.clone(device)
	if err != nil {
		return server.Info{}, err
	}
	defer clone.Close()
	return srv.Serve(id, clone, init)
}

func (k *keeper) mountOptions(img *image) mounter.Options {
	o := mounter.Options{Source: img.name, Everybody: !k.cfg.Own && !img.key.view.Private, User: img.user}
	if !k.cfg.Own && img.user.UID != 0 || o.Source == "" {
		o.Source = "squire" // names are no business of other users
	}
	return o
}

func (k *keeper) serverImage(img *image, traces, record int) server.Image {
	view := img.key.view
	k.mu.Lock()
	common := img.common
	k.mu.Unlock()
	s := server.Image{
		ID: img.id, Name: img.name, Offset: img.key.offset, User: img.user.UID, Common: common,
		Restrict: view.Restrict, IDMap: img.idmap, Signed: img.key.signed, Traces: traces, Record: record,
	}
	switch {
	case view.Owned:
		s.Owner = &view.Owner
	case view.Squash && img.idmap:
		s.Owner = &fusefs.Owner{}
	case view.Squash:
		s.Owner = &img.user
	}
	return s
}

// drop takes an image out of the tables; k.mu is held. What it has open is closed by release.
func (k *keeper) drop(img *image) {
	for c := range img.refs {
		delete(c.images, img.id)
	}
	clear(img.refs)
	delete(k.images, img.id)
	k.stats.imageGone(img.id)
	if k.keys[img.key] == img {
		delete(k.keys, img.key)
	}
	k.touched()
}

// release closes what an image that was dropped has open, which may wait for its storage.
func (k *keeper) release(img *image) {
	k.unkeep(img)
	k.mu.Lock()
	device, mount := img.device, img.mount
	img.device, img.mount = nil, nil
	k.mu.Unlock()
	for _, f := range []*os.File{device, mount, img.file, img.list} {
		if f != nil {
			f.Close()
		}
	}
	if m := k.mounter.peek(); m != nil {
		m.Drop(img.id)
	}
}

func (v viewKey) String() string {
	s := "all"
	switch {
	case v.Squash:
		s = "squash"
	case v.Private:
		s = "private"
	}
	if v.Owned {
		s += fmt.Sprintf(" as %d:%d", v.Owner.UID, v.Owner.GID)
	}
	return s
}
