package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"text/tabwriter"

	"github.com/squirefs/squire/bench"
)

// codecReport is what a comparison of decoders found.
type codecReport struct {
	Machine  string        `json:"machine"`
	Rounds   int           `json:"rounds"`
	Results  []codecResult `json:"results"`
	Failures []string      `json:"failures,omitempty"`
}

// codecResult is one compressor with blocks of one size. Squire's times come first.
type codecResult struct {
	Case       string       `json:"case"`
	BlockSize  int          `json:"block_size"`
	Blocks     int          `json:"blocks"`
	Compressed int64        `json:"compressed"` // bytes of all blocks
	Expanded   int64        `json:"expanded"`
	Times      []codecTimes `json:"times"`
}

// codecTimes are those of one contestant, of each round in order.
type codecTimes struct {
	Name    string    `json:"name"`
	Seconds []float64 `json:"seconds"` // CPU time for all blocks
	Median  float64   `json:"median"`
	// Ratio says how many times as fast as this one squire is: the median of the rounds' ratios, each of two times
	// measured one right after the other, and the least and the greatest of them. 0 for squire itself.
	Ratio    float64 `json:"ratio,omitempty"`
	RatioMin float64 `json:"ratio_min,omitempty"`
	RatioMax float64 `json:"ratio_max,omitempty"`
	Goal     float64 `json:"goal,omitempty"` // for Ratio; 0 if there is none
}

// finish fills in what follows from the times.
func (r *codecResult) finish() {
	squire := r.Times[0].Seconds
	for i := range r.Times {
		t := &r.Times[i]
		t.Median = bench.Median(t.Seconds)
		if i == 0 {
			continue
		}
		ratios := make([]float64, len(squire))
		for k := range ratios {
			ratios[k] = t.Seconds[k] / squire[k]
		}
		t.Ratio, t.RatioMin, t.RatioMax = bench.Median(ratios), slices.Min(ratios), slices.Max(ratios)
	}
}

// speed is the output of one contestant, in 10^6 bytes a second.
func (r *codecResult) speed(t codecTimes) float64 { return float64(r.Expanded) / t.Median / 1e6 }

// print writes a table for each size of blocks, with a line for each C library.
func (r *codecReport) print(w io.Writer) error {
	fmt.Fprintf(w, "%s; CPU time of one thread, medians of %d rounds; ratio: squire's speed over the library's [least–most]\n", r.Machine, r.Rounds)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	block := 0
	for _, res := range r.Results {
		if res.BlockSize != block {
			block = res.BlockSize
			fmt.Fprintf(tw, "\nblocks of %d KiB\tMB\tcompressed\tlibrary\tMB/s\tsquire MB/s\tratio\tgoal\n", block>>10)
		}
		res.print(tw)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	for _, f := range r.Failures {
		fmt.Fprintln(w, "FAILED", f)
	}
	return nil
}

func (r *codecResult) print(w io.Writer) {
	squire := r.Times[0]
	head := fmt.Sprintf("%s\t%.1f\t%.2f", r.Case, float64(r.Expanded)/1e6, float64(r.Compressed)/1e6)
	if len(r.Times) == 1 {
		fmt.Fprintf(w, "%s\t-\t\t%.0f\t\t\n", head, r.speed(squire))
	}
	for _, t := range r.Times[1:] {
		goal := ""
		if t.Goal > 0 {
			goal = fmt.Sprintf("%.2f", t.Goal)
		}
		fmt.Fprintf(w, "%s\t%s\t%.0f\t%.0f\t%.2f [%.2f–%.2f]\t%s\n", head, t.Name, r.speed(t), r.speed(squire), t.Ratio, t.RatioMin, t.RatioMax, goal)
		head = "\t\t"
	}
}

// writeJSON writes all of a report to a file.
func writeJSON(path string, report any) error {
	text, err := json.MarshalIndent(report, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}
