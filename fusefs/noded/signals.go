package noded

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// mainLoop does what the main thread is for, and heeds signals, until the service is to end.
func (k *keeper) mainLoop(l *listener) error {
	ending := make(chan struct{})
	ctx, cancel := context.WithCancel(k.ctx)
	defer cancel()
	if k.cfg.Linger > 0 {
		go k.linger(ctx, func() { close(ending) })
	}
	draining := false
	var drained chan struct{}
	for {
		select {
		case do := <-k.main:
			do()
		case s := <-k.signals:
			switch {
			case s == unix.SIGHUP:
				k.log.Error("the program was not replaced", "error", k.upgrade(l))
			case draining || s == unix.SIGUSR1:
				k.log.Warn("told to end at once", "signal", s.String())
				return nil
			default:
				draining, drained = true, make(chan struct{})
				go k.drain(ctx, drained)
			}
		case <-drained:
			return nil
		case <-ending:
			return nil
		case <-k.ctx.Done():
			return nil
		}
	}
}

// drain takes no more images, and waits until nobody uses one.
func (k *keeper) drain(ctx context.Context, done chan struct{}) {
	defer close(done)
	k.mu.Lock()
	k.draining = true
	k.mu.Unlock()
	k.notify("STOPPING=1\nSTATUS=waiting for the users of images")
	if k.cfg.Drain > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, k.cfg.Drain)
		defer cancel()
	}
	const sayEvery = 10 * time.Second
	said := time.Time{}
	for {
		k.idle(0, nil)
		left := k.users()
		if len(left) == 0 {
			k.log.Info("nobody uses an image")
			return
		}
		if time.Since(said) > sayEvery {
			said = time.Now()
			k.log.Info("waiting for the users of images", "images", len(left), "users", strings.Join(left, "; "))
		}
		if !pause(ctx, 200*time.Millisecond, nil) {
			k.log.Warn("ending though images are used", "users", strings.Join(left, "; "))
			return
		}
	}
}

// users says of each image that is there who uses it.
func (k *keeper) users() (out []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(k.images)) {
		img := k.images[id]
		if img.state == failed {
			continue
		}
		var who []string
		for c := range img.refs {
			who = append(who, fmt.Sprintf("user %d (pid %d)", c.user.UID, c.peer.Pid))
		}
		for _, user := range img.attached {
			who = append(who, fmt.Sprintf("mount of user %d", user))
		}
		if len(who) == 0 {
			who = []string{"mounts"}
		}
		slices.Sort(who)
		const most = 8
		if more := len(who) - most; more > 0 {
			who = append(who[:most], fmt.Sprintf("%d more", more))
		}
		out = append(out, fmt.Sprintf("%q: %s", img.name, strings.Join(who, ", ")))
	}
	return out
}

// linger ends a service that had no images and no clients for a while. Nobody is let in any more from then on.
func (k *keeper) linger(ctx context.Context, end func()) {
	empty := time.Now()
	every := min(max(k.cfg.Linger/4, 10*time.Millisecond), time.Second)
	for pause(ctx, every, nil) {
		k.mu.Lock()
		if len(k.images) > 0 || len(k.clients) > k.reporters {
			empty = time.Now()
		}
		over := time.Since(empty) >= k.cfg.Linger
		k.closing = k.closing || over
		k.mu.Unlock()
		if over {
			k.log.Info("nobody was there for a while", "linger", k.cfg.Linger)
			end()
			return
		}
	}
}
