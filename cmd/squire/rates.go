package main

import (
	"math"
	"time"

	"github.com/squirefs/squire/fusefs"
	"github.com/squirefs/squire/fusefs/noded"
)

// interval is what happened between two looks at the services.
type interval struct {
	services []serviceRates
	images   []imageRates
	sum      rates // of all services
}

type serviceRates struct {
	*seen
	rates rates
}

type imageRates struct {
	served
	rates rates
}

// rates are what was counted between two looks, and how long that was.
type rates struct {
	figures
	seconds float64          // 0: there is nothing to compare with
	latency fusefs.Histogram // of requests of all kinds
}

// per is a count as one a second, NaN if that is not known.
func (r *rates) per(n uint64) float64 {
	if r.seconds <= 0 {
		return math.NaN()
	}
	return float64(n) / r.seconds
}

// hitRate is the share of blocks that were asked for and had been decoded before, NaN if none were.
func (r *rates) hitRate() float64 {
	if r.Wanted == 0 {
		return math.NaN()
	}
	return float64(r.Wanted-min(r.Missed, r.Wanted)) / float64(r.Wanted)
}

// compare computes what happened between two looks. A service that was not there at the first, or is another one now,
// has no rates yet; all that an image did is new if it was not there.
func compare(before, now []seen) *interval {
	v := new(interval)
	for i := range now {
		s := &now[i]
		old := sameService(before, s)
		sum := rates{}
		for k := range s.Images {
			x := imageRates{served: served{s, &s.Images[k]}}
			if old != nil {
				x.rates = ratesBetween(figuresOf(sameImage(old, x.image)), figuresOf(x.image), s.at.Sub(old.at))
				sum.merge(&x.rates)
			}
			v.images = append(v.images, x)
		}
		if old != nil && old.Totals != nil && s.Totals != nil { // these have the images too that are gone meanwhile
			sum = ratesBetween(totals(old), totals(s), s.at.Sub(old.at))
		}
		if old != nil {
			sum.seconds = s.at.Sub(old.at).Seconds()
			v.sum.merge(&sum)
		}
		v.services = append(v.services, serviceRates{s, sum})
	}
	return v
}

// sameService finds a service among those of an earlier look.
func sameService(before []seen, s *seen) *seen {
	for i := range before {
		if o := &before[i]; o.Socket == s.Socket && o.Since.Equal(s.Since) && s.at.After(o.at) {
			return o
		}
	}
	return nil
}

func sameImage(s *seen, img *noded.ImageReport) *noded.ImageReport {
	for i := range s.Images {
		if o := &s.Images[i]; o.ID == img.ID && o.Since.Equal(img.Since) {
			return o
		}
	}
	return nil
}

// figuresOf are the counters of an image, none of nil.
func figuresOf(img *noded.ImageReport) figures {
	if img == nil {
		return figures{}
	}
	return figures{img.Stats, img.Read}
}

// ratesBetween computes rates, see fusefs.Stats.Since.
func ratesBetween(before, now figures, passed time.Duration) rates {
	r := rates{seconds: passed.Seconds()}
	r.Stats = now.Since(&before.Stats)
	if r.Storage = now.Storage; now.Storage >= before.Storage {
		r.Storage -= before.Storage
	}
	r.latency = allLatencies(&r.Stats)
	return r
}

// merge adds the rates of something else over about the same time.
func (r *rates) merge(o *rates) {
	r.add(&o.Stats, o.Storage)
	r.latency.Add(&o.latency)
	r.seconds = max(r.seconds, o.seconds)
}
