package noded

import (
	"cmp"
	"context"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/internal/wire"
)

// withDefaults fills in what was not said, and takes back what the process cannot have open: three files for each image,
// one for each connection, and for each request those that came with it.
func (l Limits) withDefaults(files uint64) Limits {
	l.Images = cmp.Or(l.Images, 1024)
	l.UserImages = cmp.Or(l.UserImages, 64)
	l.Clients = cmp.Or(l.Clients, 8192)
	l.UserClients = cmp.Or(l.UserClients, 1024)
	l.UserAttached = cmp.Or(l.UserAttached, 64)
	have := int(min(files, 1<<30)) - 64
	l.Images = max(min(l.Images, have/4/3), 1)
	l.Clients = max(min(l.Clients, have/3), 1)
	l.requests = max(min(1024, have/4/(wire.MaxFiles+2)), 4)
	return l
}

// openFiles is how many descriptors this process may have.
func openFiles() uint64 {
	var r unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &r) != nil {
		return 1024
	}
	return r.Cur
}

// quota bounds what users can have the service log.
type quota struct {
	mu    sync.Mutex
	since time.Time
	used  int
}

// take reports whether one more message is due: 50 a minute are.
func (q *quota) take(now time.Time) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if now.Sub(q.since) > time.Minute {
		q.since, q.used = now, 0
	}
	q.used++
	return q.used <= 50
}

// seldom has the same thing said once a minute.
type seldom map[string]time.Time

// due reports whether it is time to say what again, and takes it as said.
func (s seldom) due(what string, now time.Time) bool {
	if last, ok := s[what]; ok && now.Sub(last) < time.Minute {
		return false
	}
	s[what] = now
	return true
}

// A user whose images end servers is not let near one for a while. Others were perhaps being opened at the same moment,
// so it takes more than one.
const (
	strikesAllowed = 5
	strikesLast    = 10 * time.Minute
)

// strike notes that a server died over a new image; k.mu is held.
func (k *keeper) strike(img *image) {
	now := time.Now()
	if len(k.struck) > 1024 {
		clear(k.struck)
	}
	k.struck[img.user.UID] = append(recent(k.struck[img.user.UID], now), now)
	if len(k.bad) > 1024 {
		clear(k.bad)
	}
	k.bad[img.key] = now
}

func recent(list []time.Time, now time.Time) []time.Time {
	for len(list) > 0 && (now.Sub(list[0]) > strikesLast || len(list) >= strikesAllowed) {
		list = list[1:]
	}
	return list
}

// mayMake says why a user may not have a new image; k.mu is held.
func (k *keeper) mayMake(user uint32, key key) *ServiceError {
	mine, limit := 0, k.limits.UserImages
	for _, img := range k.images {
		if img.user.UID == user {
			mine++
		}
	}
	if user == 0 || k.cfg.Own {
		limit = k.limits.Images
	}
	since, bad := k.bad[key]
	strikes := k.struck[user]
	switch {
	case len(k.images) >= k.limits.Images:
		return refuse(Limit, "the service has too many images (%d)", len(k.images))
	case mine >= limit:
		return refuse(Limit, "user %d has too many images (%d)", user, mine)
	case bad && time.Since(since) < strikesLast:
		return refuse(BadImage, "the image has ended servers, and is not served for %s", strikesLast)
	case user != 0 && len(strikes) >= strikesAllowed && time.Since(strikes[0]) < strikesLast:
		return refuse(BadImage, "images of user %d have ended %d servers in %s", user, len(strikes), strikesLast)
	}
	return nil
}

// evict lets go of images that nobody uses, for a new one of the user: of its own, or, where there are too many in all, of
// everybody's. It reports whether one has ended since.
func (k *keeper) evict(ctx context.Context, user uint32) bool {
	k.mu.Lock()
	before := len(k.images)
	whose := &user
	if before >= k.limits.Images {
		whose = nil
	}
	k.mu.Unlock()
	if k.idle(0, whose) == 0 {
		return false
	}
	// The kernel keeps one of which somebody has a clone, for which there is no use in waiting.
	for range 40 {
		k.mu.Lock()
		now := len(k.images)
		k.mu.Unlock()
		if now < before {
			return true
		}
		if !pause(ctx, 5*time.Millisecond, nil) {
			break
		}
	}
	return false
}
