package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/squirefs/squire/bench"
)

// results prints a table of reports that were kept: a line for each, and in it squire's ratios to the reference, separated
// by tabs.
func results(_ context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New("usage: parts results FILE…")
	}
	var reports []*bench.Report
	for _, path := range args {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		rep, err := bench.ReadJSON(f)
		f.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		reports = append(reports, rep)
	}
	return printResults(os.Stdout, reports)
}

func printResults(w io.Writer, reports []*bench.Report) error {
	slices.SortStableFunc(reports, func(a, b *bench.Report) int { return cmp.Compare(a.Time, b.Time) })
	var columns []string
	for _, rep := range reports {
		for _, row := range rep.Rows {
			if name := row.Name(); !slices.Contains(columns, name) {
				columns = append(columns, name)
			}
		}
	}
	if _, err := fmt.Fprintf(w, "version\tday\tmachine\timage\treference\t%s\n", strings.Join(columns, "\t")); err != nil {
		return err
	}
	for _, rep := range reports {
		day, _, _ := strings.Cut(rep.Time, "T")
		line := []string{rep.Version, day, rep.Machine.String(), rep.Image.Name, rep.Reference}
		for _, name := range columns {
			line = append(line, ratioOf(rep, name))
		}
		if _, err := fmt.Fprintln(w, strings.Join(line, "\t")); err != nil {
			return err
		}
	}
	return nil
}

// ratioOf is squire's ratio in the row of a report.
func ratioOf(rep *bench.Report, name string) string {
	for _, row := range rep.Rows {
		for _, res := range row.Results {
			if row.Name() == name && res.Peer == "squire" && res.Wall.Ratio > 0 {
				return fmt.Sprintf("%.2f", res.Wall.Ratio)
			}
		}
	}
	return "-"
}
