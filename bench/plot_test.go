package bench

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"strings"
	"testing"
)

// wellFormed reads all of an XML document and returns its texts.
func wellFormed(t *testing.T, doc string) string {
	t.Helper()
	var texts strings.Builder
	dec := xml.NewDecoder(strings.NewReader(doc))
	for {
		token, err := dec.Token()
		if errors.Is(err, io.EOF) {
			return texts.String()
		}
		if err != nil {
			t.Fatal(err)
		}
		if text, ok := token.(xml.CharData); ok {
			texts.Write(text)
			texts.WriteByte('\n')
		}
	}
}

func TestSVG(t *testing.T) {
	var out bytes.Buffer
	if err := sampleReport().WriteSVG(&out); err != nil {
		t.Fatal(err)
	}
	texts := wellFormed(t, out.String())
	for _, want := range []string{
		"Ways to mount i & o.sqsh", "Fast <One>", "walk with stat, cold\n", "read all, 1 reader, warm\n", "squashfuse\n",
		"\n0.60\n", "\n20.0\n", // ratios of squire and squashfuse
		"Wall time relative to kernel (logarithmic)", "CPU seconds of the machine for each GiB read",
		"random 4 KiB reads: operations a second", "\n10,000", "readers\n",
		"Left out: rows with less than 0.1 s of CPU time with kernel", // mount to first stat
	} {
		if !strings.Contains(texts, want) {
			t.Errorf("no %q in the picture", want)
		}
	}
	for _, bad := range []string{"NaN", "Inf"} {
		if strings.Contains(out.String(), bad) {
			t.Errorf("%s in the picture", bad)
		}
	}
}

func TestHTML(t *testing.T) {
	var out bytes.Buffer
	if err := sampleReport().WriteHTML(&out); err != nil {
		t.Fatal(err)
	}
	page := out.String()
	for _, want := range []string{"<h1>Ways to mount i &amp; o.sqsh</h1>", "Fast &lt;One&gt;", "<figure><svg ", "FAILED squire", "0.300 [0.250–1.00]", "</html>"} {
		if !strings.Contains(page, want) {
			t.Errorf("no %q in the page", want)
		}
	}
	if got, want := strings.Count(page, "<figure>"), 6; got != want {
		t.Errorf("%d plots, want %d", got, want)
	}
	for _, bad := range []string{"NaN", "%!", "<script", "src=", "href="} { // needs nothing else
		if strings.Contains(page, bad) {
			t.Errorf("%s in the page", bad)
		}
	}
}

// A run that was interrupted early, or has one peer only, has plots too, or none.
func TestPlotsOfLittle(t *testing.T) {
	empty := sampleReport()
	for i := range empty.Rows {
		for j := range empty.Rows[i].Results {
			empty.Rows[i].Results[j] = Result{Peer: empty.Rows[i].Results[j].Peer}
		}
	}
	empty.Curves = nil
	one := sampleReport()
	one.Curves[0].Points = one.Curves[0].Points[:1]
	for j := range one.Curves[0].Points[0].Results {
		one.Curves[0].Points[0].Results[j].CPU = Measure{Samples: []float64{0}}
	}
	for name, r := range map[string]*Report{"no samples": empty, "one point": one, "nothing": {}} {
		var svg, page, text bytes.Buffer
		if err := errors.Join(r.WriteSVG(&svg), r.WriteHTML(&page), r.WriteText(&text)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		wellFormed(t, svg.String())
	}
}

func TestAxis(t *testing.T) {
	for _, tt := range []struct {
		low, high float64
		log       bool
		want      string
	}{
		{1, 3, false, "0 0.5 1 1.5 2 2.5 3"},
		{30, 1000, false, "0 200 400 600 800 1,000"},
		{0.03, 12, true, "0.02 0.05 0.1 0.2 0.5 1 2 5 10 20"},
		{1, 1000, true, "1 2 5 10 20 50 100 200 500 1,000"},
		{0.5, 3e6, true, "0.1 1 10 100 1,000 10,000 100,000 1,000,000 10,000,000"},
		{math.Inf(1), 0, false, "0 0.2 0.4 0.6 0.8 1"},
	} {
		a := newAxis(tt.low, tt.high)
		var labels []string
		for _, tick := range a.ticks {
			labels = append(labels, tick.Label)
		}
		if got := strings.Join(labels, " "); got != tt.want || a.log != tt.log {
			t.Errorf("%v to %v: %s, logarithmic %v, want %s", tt.low, tt.high, got, a.log, tt.want)
		}
		if a.at(tt.high) > a.max || a.at(0) < a.min {
			t.Errorf("%v to %v: outside of %v to %v", tt.low, tt.high, a.min, a.max)
		}
	}
}

// A peer has the same colour in all reports, and no two peers of one report have the same.
func TestColors(t *testing.T) {
	r := &Report{Peers: []PeerInfo{{Name: "new"}, {Name: "squire"}, {Name: "kernel"}, {Name: "newer"}}}
	colors := r.colors()
	if colors[1] != peerColors["squire"] || colors[2] != peerColors["kernel"] {
		t.Error("a known peer has another colour")
	}
	for i := range colors {
		for j := range i {
			if colors[i] == colors[j] {
				t.Errorf("%s and %s have one colour", r.Peers[i].Name, r.Peers[j].Name)
			}
		}
	}
}

func TestQuoted(t *testing.T) {
	words := []string{"squire", "bench", "--python", "import numpy, scipy.stats", "", "it's", "a=b"}
	if got, want := quoted(words), `squire bench --python 'import numpy, scipy.stats' '' 'it'\''s' a=b`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
