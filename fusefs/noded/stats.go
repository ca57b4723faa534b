package noded

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/cache"
	"github.com/squirefs/squire/fusefs/noded/server"
)

// statistics add up what the servers have counted, of which each begins at 0. They are guarded by keeper.mu.
type statistics struct {
	asked   time.Time                    // when the server was asked last
	asking  chan struct{}                // closed when it has answered, or not; nil: it is not being asked
	stale   bool                         // it did not answer the last time
	now     map[uint64]server.ImageStats // what the server that is there said then
	before  map[uint64]server.ImageStats // sums of those that are gone, for the images that are there
	totals  Totals                       // of images that are gone; Images is of all
	memory  int64
	cache   cache.Stats // of now
	earlier cache.Stats // of the servers that are gone
}

func newStatistics() statistics {
	return statistics{now: map[uint64]server.ImageStats{}, before: map[uint64]server.ImageStats{}}
}

// of returns the sum for one image.
func (s *statistics) of(id uint64) server.ImageStats {
	sum := s.before[id]
	more := s.now[id]
	sum.Add(&more.Stats)
	sum.ReadFrom += more.ReadFrom
	sum.Kept = more.Kept
	return sum
}

// serverGone adds what the server said last to that of those before it.
func (s *statistics) serverGone() {
	for id := range s.now {
		s.before[id] = s.of(id)
	}
	clear(s.now)
	addCache(&s.earlier, &s.cache)
	s.cache, s.memory = cache.Stats{}, 0
}

// imageGone adds what was counted for an image to the totals.
func (s *statistics) imageGone(id uint64) {
	sum := s.of(id)
	s.totals.Stats.Add(&sum.Stats)
	s.totals.Read += sum.ReadFrom
	delete(s.now, id)
	delete(s.before, id)
}

func addCache(sum, more *cache.Stats) {
	sum.Hits += more.Hits
	sum.Misses += more.Misses
	sum.Waits += more.Waits
	sum.Ahead += more.Ahead
	sum.Evictions += more.Evictions
}

// How long the server is waited for. Who wants a report does not wait as long as the watchdog does.
const (
	countTimeout  = 6 * time.Second // longer than server.Client.Stats takes
	reportTimeout = time.Second
)

// count asks the server for its counters, unless that was done within the given time, and waits for its answer, but not
// longer than atMost. It reports whether the counters are as new as that.
func (k *keeper) count(within, atMost time.Duration) bool {
	k.mu.Lock()
	if k.current != nil && k.stats.asking == nil && time.Since(k.stats.asked) >= within {
		k.stats.asked, k.stats.asking = time.Now(), make(chan struct{})
		go k.askServer(k.current, k.stats.asking)
	}
	asking := k.stats.asking
	k.mu.Unlock()
	if asking != nil && !pauseUntil(asking, atMost) {
		return false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return !k.stats.stale
}

// pauseUntil waits for done, and reports false if that takes longer than d.
func pauseUntil(done <-chan struct{}, d time.Duration) bool {
	return !pause(context.Background(), d, done)
}

// askServer takes over the counters of a server, if it answers, and closes done.
func (k *keeper) askServer(srv imageServer, done chan struct{}) {
	got, err := srv.Stats()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.stats.asking = nil
	defer close(done)
	if k.current != srv {
		return // they are in the sums already, as far as they were known
	}
	if k.stats.stale = err != nil; err != nil {
		return
	}
	k.stats.memory = got.Memory
	for id, s := range got.Images {
		k.stats.cache = s.Cache // each has that of all
		if k.images[id] != nil {
			k.stats.now[id] = s
		}
	}
}

// report is VerbReport: a sealed file in memory.
func (k *keeper) report(c *client) (*os.File, *ServiceError) {
	fresh := k.count(50*time.Millisecond, reportTimeout)
	r := k.makeReport(c)
	r.Stale = !fresh
	b, err := json.Marshal(r)
	if err != nil {
		return nil, refuse(Failed, "write the report: %s", err)
	}
	f, err := Sealed("squire-report", b)
	if err != nil {
		return nil, refuse(Failed, "%s", err)
	}
	return f, nil
}

// Sealed returns a file in memory with content that nobody can change.
func Sealed(name string, content []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("make a file in memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err = f.WriteAt(content, 0); err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS,
			unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("write a file in memory: %w", err)
	}
	return f, nil
}

// makeReport says what c may know: root, the service's own user and its metrics all, others what they use themselves.
func (k *keeper) makeReport(c *client) *Report {
	k.mu.Lock()
	defer k.mu.Unlock()
	all := c.all() || c.user.UID == k.uid
	r := &Report{
		Version: k.cfg.Version, PID: os.Getpid(), Own: k.cfg.Own, Since: k.since, Draining: k.draining,
		Clients: k.connected[c.user.UID], Images: []ImageReport{},
	}
	r.Restarts.Server, r.Restarts.Mounter = k.restarts.Server, k.restarts.Mounter
	if all {
		r.Clients = len(k.clients)
		k.reportTotals(r)
	}
	for _, id := range slices.Sorted(maps.Keys(k.images)) {
		if img := k.images[id]; all || img.usedBy(c.user.UID) {
			r.Images = append(r.Images, k.reportImage(img, c, all))
		}
	}
	return r
}

// usedBy reports whether a user has references to an image, or directories that it is on; keeper.mu is held.
func (img *image) usedBy(user uint32) bool {
	for c := range img.refs {
		if c.user.UID == user {
			return true
		}
	}
	for _, u := range img.attached {
		if u == user {
			return true
		}
	}
	return false
}

func (k *keeper) reportTotals(r *Report) {
	r.Memory = k.stats.memory
	sum := k.stats.earlier
	addCache(&sum, &k.stats.cache)
	r.Cache.Budget, r.Cache.Bytes = k.cfg.Cache, k.stats.cache.Bytes
	r.Cache.Hits, r.Cache.Misses, r.Cache.Waits = sum.Hits, sum.Misses, sum.Waits
	r.Cache.Ahead, r.Cache.Evictions = sum.Ahead, sum.Evictions
	totals := k.stats.totals
	for id := range k.images {
		s := k.stats.of(id)
		totals.Stats.Add(&s.Stats)
		totals.Read += s.ReadFrom
	}
	r.Totals = &totals
}

// reportImage describes an image; k.mu is held. Names are those that the reader has given, as others may have come to it
// by other paths.
func (k *keeper) reportImage(img *image, c *client, all bool) ImageReport {
	s := k.stats.of(img.id)
	r := ImageReport{
		ID: img.id, Name: img.name, View: img.key.view.String(), Size: img.size, State: img.state.String(),
		Since: img.since, Users: []uint32{}, Read: s.ReadFrom, Cached: s.Kept, Stats: s.Stats, Error: img.failure,
	}
	if img.number != 0 {
		r.Device = fmt.Sprintf("%d:%d", unix.Major(img.number), unix.Minor(img.number))
	}
	if img.key.one {
		r.View += fmt.Sprintf(", user %d", img.key.owner.UID)
	}
	if !all && img.user != c.user {
		r.Name = ""
	}
	users := map[uint32]bool{}
	for other, name := range img.refs {
		if all || other.user.UID == c.user.UID {
			r.References++
			users[other.user.UID] = true
			if r.Name == "" {
				r.Name = name
			}
		}
	}
	for _, user := range img.attached {
		if all || user == c.user.UID {
			r.Attached++
			users[user] = true
		}
	}
	r.Users = append(r.Users, slices.Sorted(maps.Keys(users))...)
	return r
}
