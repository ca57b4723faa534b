package main

import (
	"strings"
	"testing"

	"github.com/squirefs/squire/bench"
)

func TestPrintResults(t *testing.T) {
	row := func(workload, cache string, ratio float64) bench.Row {
		return bench.Row{Workload: workload, Cache: cache, Results: []bench.Result{
			{Peer: "kernel", Wall: bench.Measure{Ratio: 1}},
			{Peer: "squire", Wall: bench.Measure{Ratio: ratio}},
		}}
	}
	machine := bench.Machine{Kernel: "6.18", CPUs: 2}
	reports := []*bench.Report{
		{Version: "v2", Time: "2026-02-01T00:00:00Z", Machine: machine, Image: bench.Image{Name: "i"}, Reference: "kernel", Rows: []bench.Row{row("walk", "cold", 0.5), row("new", "", 2)}},
		{Version: "v1", Time: "2026-01-01T00:00:00Z", Machine: machine, Image: bench.Image{Name: "i"}, Reference: "kernel", Rows: []bench.Row{row("walk", "cold", 0.75)}},
	}
	var out strings.Builder
	if err := printResults(&out, reports); err != nil {
		t.Fatal(err)
	}
	want := "version\tday\tmachine\timage\treference\twalk, cold\tnew\n" +
		"v1\t2026-01-01\tLinux 6.18, 2 CPUs\ti\tkernel\t0.75\t-\n" +
		"v2\t2026-02-01\tLinux 6.18, 2 CPUs\ti\tkernel\t0.50\t2.00\n"
	if out.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", &out, want)
	}
}

func TestParseInodesOptions(t *testing.T) {
	o, err := parseInodesOptions([]string{"-sizes", "200,5000", "-rounds", "2", "-peers", "kernel"})
	if err != nil || len(o.sizes) != 2 || o.sizes[1] != 5000 || o.rounds != 2 || o.peers != "kernel" {
		t.Errorf("%+v, %v", o, err)
	}
	for _, args := range [][]string{{"IMAGE"}, {"-rounds", "0"}, {"-sizes", "1"}, {"-sizes", "x"}} {
		if _, err := parseInodesOptions(args); err == nil {
			t.Errorf("%q: no error", args)
		}
	}
}
