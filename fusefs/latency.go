package fusefs

import (
	"encoding/json"
	"math/bits"
	"sync/atomic"
	"time"
)

// Buckets of a Histogram. There are two for each power of two, from 1 µs on, so that what is told of a duration is off
// by a fifth at most: up to 1, 1.5, 2, 3, 4, 6, 8 µs and so on, to 69 s. What took longer is in the last.
const (
	shortest   = time.Microsecond
	octaves    = 26
	maxBuckets = 2*octaves + 2
)

// BucketBound returns the longest duration of bucket i, 0 <= i < len(Histogram.Counts). The last has no bound; what is
// returned for it is twice that of the one before.
func BucketBound(i int) time.Duration {
	d := shortest << (i / 2)
	if i%2 == 1 {
		d += d / 2
	}
	return d
}

// bucketOf returns the bucket of a duration.
func bucketOf(d time.Duration) int {
	if d <= shortest {
		return 0
	}
	n := uint64(d-1) / uint64(shortest) // 1 to 1.99 µs longer than that: 1
	i := 2*bits.Len64(n) - 1            // the bucket up to 1.5 times the power of two below d
	if i+1 < maxBuckets && d > BucketBound(i) {
		i++
	}
	return min(i, maxBuckets-1)
}

// Histogram says how many requests took how long.
type Histogram struct {
	Counts [maxBuckets]uint64 // of those that took longer than BucketBound(i-1), and no longer than BucketBound(i)
	Sum    time.Duration      // of all of them
}

// Count returns the number of requests.
func (h *Histogram) Count() (n uint64) {
	for _, c := range h.Counts {
		n += c
	}
	return n
}

// Add adds what another has counted.
func (h *Histogram) Add(o *Histogram) {
	h.Sum += o.Sum
	for i, n := range o.Counts {
		h.Counts[i] += n
	}
}

// Since returns what was counted since an earlier state of the same histogram. If that has more, h was begun anew in
// between, and all of it is new.
func (h *Histogram) Since(earlier *Histogram) Histogram {
	d := Histogram{Sum: h.Sum - earlier.Sum}
	for i, n := range h.Counts {
		if n < earlier.Counts[i] {
			return *h
		}
		d.Counts[i] = n - earlier.Counts[i]
	}
	return d
}

// Quantile returns the time within which a share of all requests was answered, 0 < q <= 1, taking those of a bucket for
// spread evenly over it; of none, 0.
func (h *Histogram) Quantile(q float64) time.Duration {
	rank := q * float64(h.Count())
	below := 0.0
	for i, n := range h.Counts {
		if n == 0 || below+float64(n) < rank {
			below += float64(n)
			continue
		}
		low := time.Duration(0)
		if i > 0 {
			low = BucketBound(i - 1)
		}
		return low + time.Duration((rank-below)/float64(n)*float64(BucketBound(i)-low))
	}
	return h.Max()
}

// Max returns the bound of the last bucket that is not empty: nothing took longer, unless it is the last of all.
func (h *Histogram) Max() time.Duration {
	for i := len(h.Counts) - 1; i >= 0; i-- {
		if h.Counts[i] > 0 {
			return BucketBound(i)
		}
	}
	return 0
}

// histogramJSON is what is told of a Histogram: nanoseconds, and the buckets that are not empty with their bounds. All
// but these and the sum is for who reads it, and ignored by UnmarshalJSON.
type histogramJSON struct {
	Count   uint64      `json:"count"`
	Sum     int64       `json:"sum_ns"`
	P50     int64       `json:"p50_ns"`
	P90     int64       `json:"p90_ns"`
	P99     int64       `json:"p99_ns"`
	Max     int64       `json:"max_ns"`
	Buckets [][2]uint64 `json:"buckets"` // bound in ns, number
}

// MarshalJSON writes it with its quantiles.
func (h Histogram) MarshalJSON() ([]byte, error) {
	j := histogramJSON{
		Count: h.Count(), Sum: int64(h.Sum), Max: int64(h.Max()),
		P50: int64(h.Quantile(0.5)), P90: int64(h.Quantile(0.9)), P99: int64(h.Quantile(0.99)),
		Buckets: [][2]uint64{},
	}
	for i, n := range h.Counts {
		if n > 0 {
			j.Buckets = append(j.Buckets, [2]uint64{uint64(BucketBound(i)), n})
		}
	}
	return json.Marshal(j)
}

// UnmarshalJSON reads what MarshalJSON writes, of other versions too: what is in a bucket that this one does not have is
// in the next larger.
func (h *Histogram) UnmarshalJSON(b []byte) error {
	var j histogramJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return err
	}
	*h = Histogram{Sum: time.Duration(j.Sum)}
	for _, x := range j.Buckets {
		h.Counts[bucketOf(time.Duration(min(x[0], uint64(BucketBound(maxBuckets-1)))))] += x[1]
	}
	return nil
}

// latency is a Histogram that is being counted, by any number of goroutines.
type latency struct {
	counts [maxBuckets]atomic.Uint64
	sum    atomic.Int64
}

// observe counts one request.
func (l *latency) observe(d time.Duration) {
	l.counts[bucketOf(d)].Add(1)
	l.sum.Add(int64(d))
}

// histogram returns what was counted so far, one bucket after the other.
func (l *latency) histogram() (h Histogram) {
	h.Sum = time.Duration(l.sum.Load())
	for i := range l.counts {
		h.Counts[i] = l.counts[i].Load()
	}
	return h
}
