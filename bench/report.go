package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
)

// report is what a comparison found. Times are in seconds.
type report struct {
	Image    string      `json:"image"`
	Size     int64       `json:"size"`
	Machine  string      `json:"machine"`
	Rounds   int         `json:"rounds"`
	Peers    []string    `json:"peers"`
	Rows     []reportRow `json:"rows"`
	Failures []string    `json:"failures,omitempty"`
}

// reportRow is one workload; its results are in the order of the peers.
type reportRow struct {
	Workload string   `json:"workload"`
	Results  []result `json:"results"`
}

// result is one workload with one peer.
type result struct {
	Peer    string    `json:"peer"`
	Samples []float64 `json:"samples"`
	Median  float64   `json:"median"`
	Min     float64   `json:"min"`
	Max     float64   `json:"max"`
	// Ratio is the median over that of the kernel; 0 when one of them is missing.
	Ratio float64 `json:"ratio,omitempty"`
}

// finish fills in what follows from the samples.
func (r *report) finish() {
	for i := range r.Rows {
		results := r.Rows[i].Results
		var kernel float64
		for j := range results {
			res := &results[j]
			if len(res.Samples) == 0 {
				continue
			}
			res.Median, res.Min, res.Max = median(res.Samples), slices.Min(res.Samples), slices.Max(res.Samples)
			if res.Peer == kernelPeer {
				kernel = res.Median
			}
		}
		for j := range results {
			if kernel > 0 {
				results[j].Ratio = results[j].Median / kernel
			}
		}
	}
}

// median is the middle of the samples; between two of them it is their mean. NaN without samples.
func median(samples []float64) float64 {
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

// print writes the table: for each peer the median, the ratio to the kernel and, over all rounds, the fastest and the
// slowest time.
func (r *report) print(w io.Writer) error {
	fmt.Fprintf(w, "%s, %d bytes; %s; medians of %d rounds [fastest–slowest], ratio to %s\n\n", r.Image, r.Size, r.Machine, r.Rounds, kernelPeer)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(tw, "\t%s\n", strings.Join(r.Peers, "\t\t"))
	for _, row := range r.Rows {
		fmt.Fprint(tw, row.Workload)
		for _, res := range row.Results {
			fmt.Fprintf(tw, "\t%s\t%s", res.times(), res.ratio())
		}
		fmt.Fprintln(tw)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	for _, f := range r.Failures {
		fmt.Fprintln(w, "FAILED", f)
	}
	return nil
}

func (r result) times() string {
	if len(r.Samples) == 0 {
		return "-"
	}
	return fmt.Sprintf("%s [%s–%s]", seconds(r.Median), seconds(r.Min), seconds(r.Max))
}

func (r result) ratio() string {
	if r.Ratio == 0 || r.Peer == kernelPeer {
		return ""
	}
	return fmt.Sprintf("%.2f", r.Ratio)
}

// seconds writes a time with three digits that count, as far as milliseconds.
func seconds(s float64) string {
	switch {
	case s >= 100:
		return fmt.Sprintf("%.0f", s)
	case s >= 10:
		return fmt.Sprintf("%.1f", s)
	case s >= 1:
		return fmt.Sprintf("%.2f", s)
	}
	return fmt.Sprintf("%.3f", s)
}

// writeJSON writes all of a report to a file.
func writeJSON(path string, report any) error {
	text, err := json.MarshalIndent(report, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}
