package noded

import (
	"time"

	"github.com/squirefs/squire/fusefs"
)

// Report is what a service does, for "squire ps", "squire stats", "squire top" and metrics. Counters count from the
// start of the service, through all restarts of its server.
type Report struct {
	Version  string    `json:"version"`
	PID      int       `json:"pid"`
	Own      bool      `json:"own"` // a user's own service
	Since    time.Time `json:"since"`
	Draining bool      `json:"draining"`
	Stale    bool      `json:"stale"` // the server does not answer: counters are those that it told last
	Clients  int       `json:"clients"`
	Restarts struct {
		Server  uint64 `json:"server"`
		Mounter uint64 `json:"mounter"`
	} `json:"restarts"`
	Cache struct {
		Budget int64  `json:"budget"` // bytes
		Bytes  int64  `json:"bytes"`
		Hits   uint64 `json:"hits"`
		Misses uint64 `json:"misses"`
		Waits  uint64 `json:"waits"`
		Ahead  uint64 `json:"ahead"`

		Evictions uint64 `json:"evictions"`
	} `json:"cache"`
	Memory int64 `json:"memory"` // resident bytes of the server
	// Totals are those of all images, of those too that are gone: they never go down while Since is the same. nil for
	// who does not see everything.
	Totals *Totals       `json:"totals,omitempty"`
	Images []ImageReport `json:"images"`
}

// Totals are sums over images.
type Totals struct {
	Images uint64       `json:"images"` // that were ever served
	Read   uint64       `json:"read"`   // bytes from storage
	Stats  fusefs.Stats `json:"stats"`  // Cache is not in it
}

// MetricsName is argv[0] of the stage that answers Prometheus. Its descriptor 3 is a connection to the keeper, over which
// it asks for reports without a greeting, 4 the socket that it listens on. A program that uses Run has it run when it
// finds itself called so.
const MetricsName = "squire-metrics"

// ImageReport is one mount of the service.
type ImageReport struct {
	ID         uint64       `json:"id"`
	Name       string       `json:"name"`
	View       string       `json:"view"`   // "squash", "private", "all", with the user where it is of one
	Device     string       `json:"device"` // of the mount, MAJOR:MINOR as in mountinfo
	Size       int64        `json:"size"`
	State      string       `json:"state"` // "starting", "served", "waiting" (for a server), "failed", "leaving" (kept by the kernel alone)
	Error      string       `json:"error"` // why it failed
	Since      time.Time    `json:"since"`
	Users      []uint32     `json:"users"`
	References int          `json:"references"` // connections that use it
	Attached   int          `json:"attached"`   // directories that the service has put it on
	Read       uint64       `json:"read"`       // bytes from storage
	Cached     int64        `json:"cached"`     // bytes of its blocks in the cache
	Stats      fusefs.Stats `json:"stats"`
}
