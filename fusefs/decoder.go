package fusefs

import (
	"github.com/squirefs/squire/cache"
	"github.com/squirefs/squire/sqfs"
)

// decoder is what there is to decode an image. It says when somebody waits.
type decoder struct {
	img    *sqfs.Image
	source *Source // nil: nobody says when a request takes long
	cache  *cache.Cache
	id     uint64 // of img in cache
	share  share  // of the processors
}

var _ cache.Waiter = (*decoder)(nil)

// Waiting implements cache.Waiter. What somebody waits for may be a block that is decoded ahead.
func (d *decoder) Waiting() {
	if d.source != nil {
		d.source.Waiting()
	}
	d.share.hurry()
}
