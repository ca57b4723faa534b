package main

import (
	"context"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestMedian(t *testing.T) {
	tests := []struct {
		name    string
		samples []float64
		want    float64
	}{
		{"none", nil, math.NaN()},
		{"one", []float64{3}, 3},
		{"odd", []float64{9, 1, 3}, 3},
		{"even", []float64{4, 1, 9, 2}, 3},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := median(tt.samples)
			if got != tt.want && !(math.IsNaN(got) && math.IsNaN(tt.want)) {
				t.Errorf("median(%v) = %v, want %v", tt.samples, got, tt.want)
			}
		})
	}
}

// The order of the rounds must stay: it shows what drifted.
func TestMedianKeepsSamples(t *testing.T) {
	samples := []float64{3, 1, 2}
	median(samples)
	if samples[0] != 3 || samples[2] != 2 {
		t.Errorf("samples became %v", samples)
	}
}

func TestSeconds(t *testing.T) {
	for s, want := range map[float64]string{0.0123: "0.012", 0.5: "0.500", 1.234: "1.23", 12.34: "12.3", 123.4: "123"} {
		if got := seconds(s); got != want {
			t.Errorf("seconds(%v) = %s, want %s", s, got, want)
		}
	}
}

func sample() report {
	r := report{
		Image: "i.sqsh", Size: 7, Machine: "m", Rounds: 3, Peers: []string{kernelPeer, "squire"},
		Rows: []reportRow{
			{"walk, cold", []result{{Peer: kernelPeer, Samples: []float64{0.5, 0.4, 0.6}}, {Peer: "squire", Samples: []float64{1, 0.25, 0.3}}}},
			{"walk, warm", []result{{Peer: kernelPeer, Samples: []float64{0.1}}, {Peer: "squire"}}},
		},
		Failures: []string{"squire, walk: oh"},
	}
	r.finish()
	return r
}

func TestReport(t *testing.T) {
	r := sample()
	if got := r.Rows[0].Results[1]; got.Median != 0.3 || got.Min != 0.25 || got.Max != 1 || got.Ratio != 0.6 {
		t.Errorf("squire's result %+v", got)
	}
	var out strings.Builder
	if err := r.print(&out); err != nil {
		t.Fatal(err)
	}
	want := `i.sqsh, 7 bytes; m; medians of 3 rounds [fastest–slowest], ratio to kernel

            kernel                 squire
walk, cold  0.500 [0.400–0.600]    0.300 [0.250–1.00]  0.60
walk, warm  0.100 [0.100–0.100]    -                   
FAILED squire, walk: oh
`
	if out.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", &out, want)
	}
}

// Missing results must not make the file unreadable: JSON has no NaN.
func TestReportJSON(t *testing.T) {
	r := sample()
	path := filepath.Join(t.TempDir(), "r.json")
	if err := writeJSON(path, &r); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var back report
	if err := json.Unmarshal(text, &back); err != nil || len(back.Rows) != 2 || back.Rows[0].Results[1].Ratio != 0.6 {
		t.Errorf("read back %+v, %v", back, err)
	}
}

func TestFindPeers(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if peers, err := findPeers("squire", self); err != nil || len(peers) != 1 || peers[0].argv[0] != self {
		t.Errorf("findPeers(squire) = %v, %v", peers, err)
	}
	for _, names := range []string{"squire,none", "squire"} {
		if _, err := findPeers(names, map[string]string{"squire": "no-such-program", "squire,none": self}[names]); err == nil {
			t.Errorf("findPeers(%s): no error", names)
		}
	}
}

func TestFindWorkloads(t *testing.T) {
	for words, want := range map[string]int{"": 5, "read": 2, "walk,read": 3, "import x": 2} {
		if got, err := findWorkloads(words, "import x"); err != nil || len(got) != want {
			t.Errorf("findWorkloads(%q): %d workloads, %v, want %d", words, len(got), err, want)
		}
	}
	if _, err := findWorkloads("nothing like it", "x"); err == nil {
		t.Error("a word that no workload has: no error")
	}
}

func TestWorkloadsSeeEverything(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"a": "12345", "b": "", "d/c": strings.Repeat("x", 1<<20)} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("missing", filepath.Join(dir, "l")); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		what, readers string
		want          count
	}{
		{"walk", "1", count{Files: 5}},
		{"read", "1", count{Files: 3, Bytes: 1<<20 + 5}},
		{"read", "4", count{Files: 3, Bytes: 1<<20 + 5}},
	} {
		var out strings.Builder
		if err := runChild([]string{tt.what, dir, tt.readers}, &out); err != nil {
			t.Fatal(err)
		}
		var r childResult
		if err := json.Unmarshal([]byte(out.String()), &r); err != nil || r.count != tt.want || r.Nanoseconds <= 0 {
			t.Errorf("%s with %s readers: %s, %v, want %+v", tt.what, tt.readers, &out, err, tt.want)
		}
	}
	if err := runChild([]string{"read", filepath.Join(dir, "none"), "1"}, new(strings.Builder)); err == nil {
		t.Error("a missing directory: no error")
	}
}

func TestSameCount(t *testing.T) {
	b := &bench{counts: make(map[string]count)}
	if err := b.sameCount("row", count{1, 2}); err != nil {
		t.Fatal(err)
	}
	if err := b.sameCount("row", count{1, 2}); err != nil {
		t.Error(err)
	}
	if err := b.sameCount("row", count{1, 1}); err == nil {
		t.Error("a peer that shows less: no error")
	}
}

func TestCommandTimeLimit(t *testing.T) {
	start := time.Now()
	// The background process keeps the output open, as a server would.
	_, err := command(context.Background(), 200*time.Millisecond, nil, "sh", "-c", "sleep 60 & sleep 60")
	if err == nil || !strings.Contains(err.Error(), "still running") {
		t.Errorf("error %v, want one about the time limit", err)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("took %v", took)
	}
	if out, err := command(context.Background(), time.Minute, nil, "sh", "-c", "echo out; exit 3"); err == nil || string(out) != "out\n" {
		t.Errorf("output %q, error %v", out, err)
	}
}
