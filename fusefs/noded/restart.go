package noded

import (
	"cmp"
	"context"
	"errors"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/fusefs/noded/server"
)

// How servers are watched and started again.
const (
	pingEvery   = 2 * time.Second
	pingTimeout = 10 * time.Second
	soon        = time.Second            // a server that ends within this time of its start did so fast
	leastLife   = 50 * time.Millisecond  // of servers that are killed, not to do nothing else
	settling    = 200 * time.Millisecond // how long an image must be served for to count as taken over, when in doubt
	calm        = 10 * time.Second       // after this time all is well
	careful     = 3                      // after this many bad ends in a row, images are handed over one by one
	mostDeaths  = 5                      // at one image; then it is given up
	// takeoverTimeout is how long an image may wait to be taken over: who reads from it cannot be killed meanwhile, and
	// Slurm takes a node with such a process out of service after 60 s.
	takeoverTimeout = 45 * time.Second
)

// backoff is the time to wait after so many bad ends in a row.
func backoff(n int) time.Duration {
	waits := [...]time.Duration{0, 50 * time.Millisecond, 200 * time.Millisecond, time.Second, 5 * time.Second}
	return waits[min(max(n-1, 0), len(waits)-1)]
}

// serverLoop has a server running until ctx ends. The first one is up when started is closed.
//
// A server that had taken over all images and is killed is replaced at once, however often that happens: the memory of a
// node may be short. One that ends before, or soon after and by itself, most likely does so over an image, or cannot run
// at all: the next ones wait for longer and longer, then are handed the images one by one, to learn which it is.
func (k *keeper) serverLoop(ctx context.Context, started func()) {
	bad, since := 0, time.Now()
	for ctx.Err() == nil {
		if !pause(ctx, backoff(bad), nil) || k.starting.pass(ctx) != nil {
			return
		}
		srv, err := k.startServer()
		if err != nil {
			bad++
			k.log.Error("cannot start an image server", "error", err)
			continue
		}
		began := time.Now()
		all, blamed := k.runServer(ctx, srv, since, bad >= careful, started)
		since = time.Now()
		lived := time.Since(began)
		if ctx.Err() != nil {
			return
		}
		crashed := crashed(srv)
		switch {
		case blamed: // that image waits by itself
			bad = 0
		case all && (lived >= soon || !crashed):
			bad = 0
			pause(ctx, leastLife-lived, nil)
		default:
			bad++
		}
		if k.starting.closed() { // for an upgrade
			continue
		}
		k.mu.Lock()
		k.restarts.Server++
		k.mu.Unlock()
		k.log.Warn("image server ended, starting another", "crashed", crashed, "lived", lived, "all_served", all,
			"bad_ends", bad)
	}
}

func (k *keeper) startServer() (srv imageServer, err error) {
	if stopped := k.onMain(func() {
		srv, err = k.parts.server(server.Config{
			Cache: k.cfg.Cache, Metadata: k.cfg.Metadata, NoResend: k.noResend,
		})
	}); stopped != nil {
		return nil, stopped
	}
	return srv, err
}

// runServer hands all images to a server, and returns when it is gone: whether it had got them all, and whether it ended
// at one that is known. since is when the one before it ended.
func (k *keeper) runServer(ctx context.Context, srv imageServer, since time.Time, doubt bool, started func()) (all, blamed bool) {
	stop := context.AfterFunc(ctx, srv.Kill)
	defer stop()
	var watchers sync.WaitGroup
	watchers.Go(func() { k.watchEnded(srv) })
	watchers.Go(func() { k.watchdog(srv) })
	quiet, suspects := k.toTakeOver(srv)
	if doubt && len(suspects) == 0 {
		all, blamed = k.takeOverOneByOne(srv, quiet)
	} else {
		if !doubt {
			k.server.set(srv)
		}
		all = k.takeOver(srv, quiet)
	}
	k.server.set(srv)
	started()
	if n := len(quiet) + len(suspects); n > 0 {
		k.log.Info("images taken over", "images", len(quiet), "suspects", len(suspects), "all", all, "after", time.Since(since))
	}
	if all && len(suspects) > 0 {
		_, blamed = k.takeOverOneByOne(srv, suspects)
	}
	if pause(ctx, calm, srv.Done()) {
		k.forgive()
	}
	<-srv.Done()
	k.server.set(nil)
	k.mu.Lock()
	k.current = nil
	for _, img := range k.images {
		if img.state == served {
			img.state = waiting
		}
	}
	k.stats.serverGone()
	k.mu.Unlock()
	watchers.Wait()
	return all, blamed
}

// toTakeOver makes srv the server that images belong to, and returns those that were made before, and of them the ones
// at which servers died.
func (k *keeper) toTakeOver(srv imageServer) (quiet, suspects []*image) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.current = srv
	for _, img := range k.images {
		switch {
		case !img.made() || img.state == failed:
		case img.deaths > 0:
			suspects = append(suspects, img)
		default:
			quiet = append(quiet, img)
		}
	}
	byID := func(a, b *image) int { return cmp.Compare(a.id, b.id) }
	slices.SortFunc(quiet, byID)
	slices.SortFunc(suspects, byID)
	return quiet, suspects
}

// forgive forgets at which images servers died.
func (k *keeper) forgive() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, img := range k.images {
		if img.state == served {
			img.deaths = 0
		}
	}
}

// takeOver hands images over, all at the same time: the storage of one may hang. It returns when each is served or at
// least was tried once, and reports whether the server is still there.
func (k *keeper) takeOver(srv imageServer, imgs []*image) bool {
	var tried sync.WaitGroup
	for _, img := range imgs {
		tried.Add(1)
		go k.handOver(srv, img, sync.OnceFunc(tried.Done))
	}
	done := make(chan struct{})
	go func() {
		tried.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(soon):
	case <-srv.Done():
	}
	return !gone(srv.Done())
}

// takeOverOneByOne hands images over so that it is known at which one the server ends.
func (k *keeper) takeOverOneByOne(srv imageServer, imgs []*image) (all, blamed bool) {
	for _, img := range imgs {
		k.mu.Lock()
		wait := time.Until(img.retry)
		k.mu.Unlock()
		if !pause(k.ctx, wait, srv.Done()) {
			return false, false
		}
		tried := make(chan struct{})
		go k.handOver(srv, img, sync.OnceFunc(func() { close(tried) }))
		select {
		case <-tried:
			if pause(k.ctx, settling, srv.Done()) {
				continue
			}
		case <-time.After(soon): // its storage hangs
			continue
		case <-srv.Done():
		}
		if k.ctx.Err() != nil {
			return false, false
		}
		k.blame(img)
		return false, true
	}
	return !gone(srv.Done()), false
}

// blame notes that a server died at an image.
func (k *keeper) blame(img *image) {
	k.mu.Lock()
	img.deaths++
	img.retry = time.Now().Add(backoff(img.deaths + 1))
	deaths := img.deaths
	k.mu.Unlock()
	k.log.Error("image server ended when it took an image over", "id", img.id, "image", img.name, "times", deaths)
	if deaths >= mostDeaths {
		k.fail(img, errors.New("servers end when they take the image over"))
	}
}

// handOver gives one image to a server, and tries again while its storage does not answer. tried is called after the
// first time.
func (k *keeper) handOver(srv imageServer, img *image, tried func()) {
	defer tried()
	begin := time.Now()
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		err := k.handOverOnce(srv, img)
		if err == nil || gone(srv.Done()) || k.ctx.Err() != nil {
			return
		}
		var bad *server.ImageError
		switch {
		case errors.Is(err, unix.ENODEV):
			k.ended(img.id)
			return
		case errors.As(err, &bad), time.Since(begin) > takeoverTimeout:
			k.fail(img, err)
			return
		}
		k.log.Warn("image not taken over yet", "id", img.id, "image", img.name, "error", err)
		tried()
		if !pause(k.ctx, wait, srv.Done()) {
			return
		}
	}
}

func (k *keeper) handOverOnce(srv imageServer, img *image) error {
	known := k.serverImage(img, 0, 0)
	known.Init = img.init
	info, err := srv.Open(known, img.file, img.list, nil)
	if err != nil {
		return err
	}
	if info.Superblock != "" && info.Superblock != img.key.superblock {
		srv.Forget(img.id)
		return &server.ImageError{Text: "the file is no longer the image that was mounted"}
	}
	k.mu.Lock()
	device := img.device
	k.mu.Unlock()
	if device == nil { // given up meanwhile
		srv.Forget(img.id)
		return nil
	}
	if _, err = k.serveDevice(srv, img.id, device, img.init); err != nil {
		srv.Forget(img.id)
		return err
	}
	k.mu.Lock()
	if img.state == waiting && k.current == srv {
		img.state = served
	}
	k.mu.Unlock()
	return nil
}

// fail gives an image up: who reads from it gets errors (ENOTCONN) instead of waiting for ever.
func (k *keeper) fail(img *image, why error) {
	k.mu.Lock()
	if k.images[img.id] != img || img.state == failed {
		k.mu.Unlock()
		return
	}
	img.state, img.failure = failed, why.Error()
	img.unused = time.Now()
	if k.keys[img.key] == img {
		delete(k.keys, img.key)
	}
	if img.deaths >= mostDeaths {
		k.bad[img.key] = time.Now()
	}
	device, mount := img.device, img.mount
	img.device, img.mount = nil, nil
	k.touched()
	k.mu.Unlock()
	k.log.Error("image given up", "id", img.id, "image", img.name, "error", why)
	k.unkeep(img)
	for _, f := range []*os.File{device, mount} {
		if f != nil {
			f.Close()
		}
	}
}

// watchEnded hears of mounts that are gone.
func (k *keeper) watchEnded(srv imageServer) {
	for id := range srv.Ended() {
		k.ended(id)
	}
}

// watchdog ends a server that does not answer.
func (k *keeper) watchdog(srv imageServer) {
	for pause(k.ctx, pingEvery, srv.Done()) {
		err := srv.Ping(pingTimeout)
		if err == nil {
			k.answered.Store(monotonic())
			k.count(pingEvery/2, countTimeout)
			continue
		}
		if !gone(srv.Done()) && k.ctx.Err() == nil {
			k.log.Error("image server does not answer, ending it", "error", err)
			srv.Kill()
		}
		return
	}
}

// mounterLoop has a mounter running until ctx ends.
func (k *keeper) mounterLoop(ctx context.Context, started func()) {
	bad := 0
	for ctx.Err() == nil {
		if !pause(ctx, backoff(bad), nil) || k.starting.pass(ctx) != nil {
			return
		}
		var m mountMaker
		var err error
		if k.onMain(func() { m, err = k.parts.mounter(k.cfg.Own) }) != nil {
			return
		}
		if err != nil {
			bad++
			k.log.Error("cannot start a mounter", "error", err)
			continue
		}
		began := time.Now()
		k.mounter.set(m)
		started()
		stop := context.AfterFunc(ctx, m.Close)
		<-m.Done()
		stop()
		k.mounter.set(nil)
		if ctx.Err() != nil {
			return
		}
		if bad++; time.Since(began) >= soon {
			bad = 0
		}
		if k.starting.closed() { // for an upgrade
			continue
		}
		k.mu.Lock()
		k.restarts.Mounter++
		k.mu.Unlock()
		k.log.Warn("mounter ended, starting another", "lived", time.Since(began))
	}
}
