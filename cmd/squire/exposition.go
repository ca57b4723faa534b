package main

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/squirefs/squire/fusefs"
	"github.com/squirefs/squire/fusefs/noded"
)

// metricsImages is how many images have figures of their own: each takes a dozen series. All are in the sums.
const metricsImages = 256

// exposition is a report in the text format of Prometheus, version 0.0.4
// (https://prometheus.io/docs/instrumenting/exposition_formats/).
func exposition(r *noded.Report) []byte {
	var e expositor
	e.service(r)
	f := totals(&seen{Report: *r})
	e.requests(&f.Stats)
	for _, c := range []struct {
		name, help string
		of         func(*figures) uint64
	}{
		{"storage_read_bytes", "Bytes read from storage.", func(f *figures) uint64 { return f.Storage }},
		{"served_bytes", "Bytes of file data in answers to READ.", func(f *figures) uint64 { return f.ReadBytes }},
		{"ahead_bytes", "Bytes put into the page cache before they were asked for.", func(f *figures) uint64 { return f.Stored }},
		{"decoded_bytes", "Bytes that decoded blocks have expanded.", func(f *figures) uint64 { return f.DecodedBytes }},
		{"decoded_blocks", "Blocks that were decoded.", func(f *figures) uint64 { return f.Decoded }},
		{"wanted_blocks", "Blocks that requests needed.", func(f *figures) uint64 { return f.Wanted }},
		{"missed_blocks", "Blocks that requests had to decode themselves.", func(f *figures) uint64 { return f.Missed }},
		{"errors", "Requests answered with an error of storage or of the image.", func(f *figures) uint64 { return f.Errors }},
	} {
		e.head("squire_"+c.name+"_total", "counter", c.help)
		e.count("squire_"+c.name+"_total", c.of(&f))
	}
	e.images(r.Images[:min(len(r.Images), metricsImages)])
	return e.b.Bytes()
}

// expositor writes the format.
type expositor struct{ b bytes.Buffer }

// head begins a family of series. help has neither backslashes nor line ends.
func (e *expositor) head(name, typ, help string) {
	fmt.Fprintf(&e.b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, typ)
}

// sample writes one series; labels are pairs of name and value.
func (e *expositor) sample(name, value string, labels ...string) {
	e.b.WriteString(name)
	for i := 0; i+1 < len(labels); i += 2 {
		e.b.WriteByte("{,"[min(i, 1)])
		e.b.WriteString(labels[i] + `="` + labelEscapes.Replace(labels[i+1]) + `"`)
	}
	if len(labels) > 0 {
		e.b.WriteByte('}')
	}
	e.b.WriteString(" " + value + "\n")
}

// labelEscapes is all that the format wants escaped. Values are UTF-8 without control characters, see printable.
var labelEscapes = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

func (e *expositor) count(name string, n uint64, labels ...string) {
	e.sample(name, strconv.FormatUint(n, 10), labels...)
}

func (e *expositor) seconds(name string, d time.Duration, labels ...string) {
	e.sample(name, secondsText(d), labels...)
}

func secondsText(d time.Duration) string { return strconv.FormatFloat(d.Seconds(), 'g', -1, 64) }

// gauge writes a family of one series.
func (e *expositor) gauge(name, help string, n int64) {
	e.head(name, "gauge", help)
	e.sample(name, strconv.FormatInt(n, 10))
}

func (e *expositor) counter(name, help string, n uint64) {
	e.head(name, "counter", help)
	e.count(name, n)
}

// service writes what is told of the service itself.
func (e *expositor) service(r *noded.Report) {
	e.head("squire_build_info", "gauge", "The program that serves.")
	e.sample("squire_build_info", "1", "version", shownWord(r.Version))
	e.gauge("squire_start_time_seconds", "When the service started, since 1970.", r.Since.Unix())
	draining := int64(0)
	if r.Draining {
		draining = 1
	}
	e.gauge("squire_draining", "Whether the service is about to end.", draining)
	e.gauge("squire_clients", "Connections of clients.", int64(r.Clients))
	e.head("squire_restarts_total", "counter", "Processes that had to be started again.")
	e.count("squire_restarts_total", r.Restarts.Server, "process", "server")
	e.count("squire_restarts_total", r.Restarts.Mounter, "process", "mounter")
	e.gauge("squire_server_memory_bytes", "Resident memory of the server.", r.Memory)
	e.gauge("squire_cache_budget_bytes", "Memory that decoded blocks may take.", r.Cache.Budget)
	e.gauge("squire_cache_bytes", "Memory that decoded blocks take.", r.Cache.Bytes)
	e.counter("squire_cache_hits_total", "Blocks found in the cache.", r.Cache.Hits)
	e.counter("squire_cache_misses_total", "Blocks not found in the cache.", r.Cache.Misses)
	e.counter("squire_cache_waits_total", "Blocks that somebody else was decoding.", r.Cache.Waits)
	e.counter("squire_cache_ahead_total", "Blocks decoded before they were asked for.", r.Cache.Ahead)
	e.counter("squire_cache_evictions_total", "Blocks dropped to make room.", r.Cache.Evictions)
	e.states(r.Images)
}

// states counts images by what they do.
func (e *expositor) states(images []noded.ImageReport) {
	const name = "squire_images"
	count := make(map[string]uint64)
	for i := range images {
		count[images[i].State]++
	}
	e.head(name, "gauge", "Images by their state.")
	for _, state := range []string{"starting", "served", "waiting", "failed", "leaving"} {
		e.count(name, count[state], "state", state)
	}
}

// requests writes how long requests took, with every second of the buckets that there are: powers of two.
func (e *expositor) requests(s *fusefs.Stats) {
	const name = "squire_request_duration_seconds"
	e.head(name, "histogram", "How long requests took, by their kind.")
	for _, op := range operations {
		h := s.Latency[op]
		sum := uint64(0)
		for i, n := range h.Counts[:len(h.Counts)-1] { // the last has no bound
			if sum += n; i%2 == 0 {
				e.count(name+"_bucket", sum, "op", op, "le", secondsText(fusefs.BucketBound(i)))
			}
		}
		e.count(name+"_bucket", h.Count(), "op", op, "le", "+Inf")
		e.seconds(name+"_sum", h.Sum, "op", op)
		e.count(name+"_count", h.Count(), "op", op)
	}
}

// images writes what is told of each image.
func (e *expositor) images(images []noded.ImageReport) {
	type img = *noded.ImageReport
	for _, f := range []struct {
		name, typ, help string
		value           func(img) uint64
	}{
		{"squire_image_info", "gauge", "Images: the same labels are on all figures of one.", func(img) uint64 { return 1 }},
		{"squire_image_size_bytes", "gauge", "Size of the image.", func(i img) uint64 { return uint64(max(i.Size, 0)) }},
		{"squire_image_references", "gauge", "Connections that use the image.", func(i img) uint64 { return uint64(max(i.References, 0)) }},
		{"squire_image_directories", "gauge", "Directories that the service has mounted the image on.", func(i img) uint64 { return uint64(max(i.Attached, 0)) }},
		{"squire_image_storage_read_bytes_total", "counter", "Bytes read from storage.", func(i img) uint64 { return i.Read }},
		{"squire_image_served_bytes_total", "counter", "Bytes of file data in answers to READ.", func(i img) uint64 { return i.Stats.ReadBytes }},
		{"squire_image_ahead_bytes_total", "counter", "Bytes put into the page cache before they were asked for.", func(i img) uint64 { return i.Stats.Stored }},
		{"squire_image_decoded_bytes_total", "counter", "Bytes that decoded blocks have expanded.", func(i img) uint64 { return i.Stats.DecodedBytes }},
		{"squire_image_cached_bytes", "gauge", "Bytes of the image's blocks in the cache.", func(i img) uint64 { return uint64(max(i.Cached, 0)) }},
		{"squire_image_wanted_blocks_total", "counter", "Blocks that requests needed.", func(i img) uint64 { return i.Stats.Wanted }},
		{"squire_image_missed_blocks_total", "counter", "Blocks that requests had to decode themselves.", func(i img) uint64 { return i.Stats.Missed }},
		{"squire_image_requests_total", "counter", "Requests of all kinds.", func(i img) uint64 { return requestCount(&i.Stats) }},
		{"squire_image_errors_total", "counter", "Requests answered with an error.", func(i img) uint64 { return i.Stats.Errors }},
	} {
		if len(images) > 0 {
			e.head(f.name, f.typ, f.help)
		}
		for i := range images {
			x := &images[i]
			e.count(f.name, f.value(x), "id", strconv.FormatUint(x.ID, 10), "image", shownPath(x.Name))
		}
	}
	e.imageSeconds(images)
}

// imageSeconds writes how long the requests of each image took, altogether.
func (e *expositor) imageSeconds(images []noded.ImageReport) {
	const name = "squire_image_request_seconds_total"
	if len(images) > 0 {
		e.head(name, "counter", "Time that requests of all kinds took, together.")
	}
	for i := range images {
		x := &images[i]
		h := allLatencies(&x.Stats)
		e.seconds(name, h.Sum, "id", strconv.FormatUint(x.ID, 10), "image", shownPath(x.Name))
	}
}
