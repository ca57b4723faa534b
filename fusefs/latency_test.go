package fusefs

import (
	"encoding/json"
	"testing"
	"time"
)

// Every duration is in the one bucket whose bounds enclose it.
func TestBucketOf(t *testing.T) {
	for i := 1; i < maxBuckets; i++ {
		if BucketBound(i) <= BucketBound(i-1) {
			t.Errorf("bounds %v, %v of %d", BucketBound(i-1), BucketBound(i), i)
		}
	}
	check := func(d time.Duration) {
		t.Helper()
		i := bucketOf(d)
		if i < 0 || i >= maxBuckets || i > 0 && d <= BucketBound(i-1) || i < maxBuckets-1 && d > BucketBound(i) {
			t.Errorf("%v is in bucket %d", d, i)
		}
	}
	for i := range maxBuckets {
		for _, off := range []time.Duration{-1, 0, 1} {
			check(BucketBound(i) + off)
		}
	}
	for d := time.Duration(-1); d < time.Millisecond; d += 77 {
		check(d)
	}
	check(0)
	check(1<<63 - 1)
}

func TestHistogram(t *testing.T) {
	var l latency
	for i := range 1000 {
		l.observe(time.Duration(i+1) * time.Millisecond)
	}
	h := l.histogram()
	if h.Count() != 1000 || h.Sum != 500500*time.Millisecond {
		t.Errorf("%d requests took %v", h.Count(), h.Sum)
	}
	for q, want := range map[float64]time.Duration{0.5: 500, 0.9: 900, 0.99: 990, 1: 1000} {
		got, want := h.Quantile(q), want*time.Millisecond
		if got < want*8/10 || got > want*12/10 {
			t.Errorf("quantile %v: %v, want about %v", q, got, want)
		}
	}
	if h.Max() < time.Second || h.Max() > 3*time.Second/2 {
		t.Errorf("none took longer than %v", h.Max())
	}
	b, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	var back Histogram
	if err = json.Unmarshal(b, &back); err != nil || back != h {
		t.Errorf("%v: %s became %+v", err, b, back)
	}
	early := h
	l.observe(time.Second)
	h = l.histogram()
	if d := h.Since(&early); d.Count() != 1 || d.Sum != time.Second {
		t.Errorf("new: %+v", d)
	}
	if d := early.Since(&h); d != early {
		t.Errorf("after it was begun anew: %+v", d)
	}
	h.Add(&early)
	if h.Count() != 2001 {
		t.Errorf("%d requests in both", h.Count())
	}
	var none Histogram
	if none.Quantile(0.5) != 0 || none.Max() != 0 {
		t.Error("of no requests some took time")
	}
}

// What another version wrote is counted, whatever its buckets, and no number makes it fail.
func TestHistogramOfOthers(t *testing.T) {
	var h Histogram
	err := json.Unmarshal([]byte(`{"sum_ns":-5,"buckets":[[0,1],[1700,2],[18446744073709551615,4]],"new":[]}`), &h)
	if err != nil || h.Counts[0] != 1 || h.Counts[2] != 2 || h.Counts[maxBuckets-1] != 4 {
		t.Errorf("%v: %+v", err, h)
	}
	if json.Unmarshal([]byte(`{"buckets":[[-1,1]]}`), &h) == nil {
		t.Error("a negative duration is taken")
	}
}
