package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
)

// reportFormat is the Format of reports that this version writes and reads.
const reportFormat = 1

// Report is what a comparison found. Its JSON is meant to be read by others: names have units, times are in seconds.
type Report struct {
	Format    int        `json:"format"`
	Time      string     `json:"time"`              // when it ended: RFC 3339, UTC
	Version   string     `json:"version,omitempty"` // of the program that measured
	Command   []string   `json:"command,omitempty"` // its command line
	User      string     `json:"user"`              // root or ordinary
	Machine   Machine    `json:"machine"`
	Image     Image      `json:"image"`
	File      File       `json:"file"` // for reads of one file
	Rounds    int        `json:"rounds"`
	CPUSource string     `json:"cpu_source"`
	Reference string     `json:"reference"` // the peer that ratios are to
	Peers     []PeerInfo `json:"peers"`
	Rows      []Row      `json:"rows"`
	Curves    []Curve    `json:"curves,omitempty"`
	Failures  []string   `json:"failures,omitempty"`
	LeftOut   []string   `json:"left_out,omitempty"`
	// Interrupted says that not all was measured: rounds are missing.
	Interrupted bool `json:"interrupted,omitempty"`
}

// notAll is what a report says of itself if it was interrupted.
const notAll = "interrupted: not all was measured"

// Image says what was mounted.
type Image struct {
	Name           string `json:"name"`
	Bytes          int64  `json:"bytes"`
	Compression    string `json:"compression"`
	BlockSizeBytes int64  `json:"block_size_bytes"`
	Inodes         int64  `json:"inodes"`
	FileBytes      int64  `json:"file_bytes"` // of all files
}

// File is a file in the image.
type File struct {
	Path  string `json:"path"`
	Bytes int64  `json:"bytes"`
}

// PeerInfo is what a report says of a peer.
type PeerInfo struct {
	Name    string   `json:"name"`
	Command []string `json:"command,omitempty"`
	Version string   `json:"version,omitempty"`
}

// Row is a workload in one state of the caches; its results are in the order of the peers.
type Row struct {
	Workload   string   `json:"workload"`
	Cache      string   `json:"cache"` // cold or warm; "" for mounting
	Files      int64    `json:"files"`
	Bytes      int64    `json:"bytes"` // read
	Operations int64    `json:"operations"`
	Results    []Result `json:"results"`
}

// Name is the row's name in a table.
func (r *Row) Name() string { return row{r.Workload, r.Cache}.name() }

// Result is a row with one peer.
type Result struct {
	Peer string `json:"peer"`
	// Wall is the time that the workload took. Its ratio is that of medians.
	Wall Measure `json:"wall_seconds"`
	// CPU is the time that all processors were busy meanwhile. As the kernel counts it in steps of 10 ms, its ratio
	// is that of means, and there is none for less than some steps.
	CPU Measure `json:"cpu_seconds"`
	// CPUPerGiB is CPU time over what was read; 0 where that was little.
	CPUPerGiB float64 `json:"cpu_seconds_per_gib,omitempty"`
}

// Measure is what was measured in all rounds, in their order, and what follows from it. Ratios are to the reference
// peer's median or mean: of this one's, of its least and of its greatest sample. They are 0 where something is missing.
type Measure struct {
	Samples  []float64 `json:"samples"`
	Median   float64   `json:"median"`
	Mean     float64   `json:"mean"`
	Min      float64   `json:"min"`
	Max      float64   `json:"max"`
	Ratio    float64   `json:"ratio,omitempty"`
	RatioMin float64   `json:"ratio_min,omitempty"`
	RatioMax float64   `json:"ratio_max,omitempty"`
}

// finish fills in what follows from the samples.
func (m *Measure) finish() {
	if len(m.Samples) > 0 {
		m.Median, m.Mean, m.Min, m.Max = Median(m.Samples), mean(m.Samples), slices.Min(m.Samples), slices.Max(m.Samples)
	}
}

// over fills in the ratios of a middle to that of the reference.
func (m *Measure) over(middle, reference float64) {
	if reference > 0 && len(m.Samples) > 0 {
		m.Ratio, m.RatioMin, m.RatioMax = middle/reference, m.Min/reference, m.Max/reference
	}
}

const (
	// leastCPU is the CPU time of a row in all rounds, in seconds, that is worth a ratio: ten steps of the kernel's clock.
	leastCPU = 0.1
	// leastCPUShown is the CPU time of a point in all rounds, in seconds, that is worth a place on a curve.
	leastCPUShown = 0.03
	// leastBytes is what a row must read to be worth a figure for each GiB.
	leastBytes = 16 << 20
)

// finish fills in what follows from the samples.
func (r *Report) finish() {
	for i := range r.Rows {
		r.Rows[i].finish(r.Reference)
	}
	for i := range r.Curves {
		for j := range r.Curves[i].Points {
			r.Curves[i].Points[j].finish(r.Reference)
		}
	}
}

func (r *Row) finish(reference string) {
	var ref Result
	for i := range r.Results {
		res := &r.Results[i]
		res.Wall.finish()
		res.CPU.finish()
		if r.Bytes >= leastBytes {
			res.CPUPerGiB = res.CPU.Mean / (float64(r.Bytes) / (1 << 30))
		}
		if res.Peer == reference {
			ref = *res
		}
	}
	for i := range r.Results {
		res := &r.Results[i]
		res.Wall.over(res.Wall.Median, ref.Wall.Median)
		if sum(ref.CPU.Samples) >= leastCPU {
			res.CPU.over(res.CPU.Mean, ref.CPU.Mean)
		}
	}
}

// Median is the middle of the samples; between two of them it is their mean. NaN without samples.
func Median(samples []float64) float64 {
	s := slices.Sorted(slices.Values(samples))
	switch n := len(s); {
	case n == 0:
		return math.NaN()
	case n%2 == 1:
		return s[n/2]
	default:
		return (s[n/2-1] + s[n/2]) / 2
	}
}

func sum(samples []float64) (total float64) {
	for _, s := range samples {
		total += s
	}
	return total
}

func mean(samples []float64) float64 { return sum(samples) / float64(len(samples)) }

// WriteJSON writes all of a report.
func (r *Report) WriteJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(r)
}

// ReadJSON reads what WriteJSON wrote.
func ReadJSON(from io.Reader) (*Report, error) {
	var r Report
	if err := json.NewDecoder(from).Decode(&r); err != nil {
		return nil, fmt.Errorf("no report: %w", err)
	}
	if r.Format != reportFormat {
		return nil, fmt.Errorf("report of format %d, want %d", r.Format, reportFormat)
	}
	return &r, r.check()
}

// check makes sure of what those who show a report rely on: it may have been written by hand.
func (r *Report) check() error {
	rows := slices.Clone(r.Rows)
	for _, c := range r.Curves {
		for _, p := range c.Points {
			rows = append(rows, p.Row)
		}
	}
	for _, row := range rows {
		if len(row.Results) != len(r.Peers) {
			return fmt.Errorf("report with %d results for %d peers in %q", len(row.Results), len(r.Peers), row.Name())
		}
		for i, res := range row.Results {
			if res.Peer != r.Peers[i].Name {
				return fmt.Errorf("report with a result of %q where that of %q is wanted in %q", res.Peer, r.Peers[i].Name, row.Name())
			}
		}
	}
	return nil
}
