package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the reports in testdata anew")

// The tests' binary is a workload's child too, as every program that calls Run has to be.
func TestMain(m *testing.M) {
	if os.Args[0] == ChildName {
		os.Exit(Child(os.Args[1:], os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

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
			got := Median(tt.samples)
			if got != tt.want && !(math.IsNaN(got) && math.IsNaN(tt.want)) {
				t.Errorf("Median(%v) = %v, want %v", tt.samples, got, tt.want)
			}
		})
	}
}

// The order of the rounds must stay: it shows what drifted.
func TestMedianKeepsSamples(t *testing.T) {
	samples := []float64{3, 1, 2}
	Median(samples)
	if samples[0] != 3 || samples[2] != 2 {
		t.Errorf("samples became %v", samples)
	}
}

func TestDigits(t *testing.T) {
	for x, want := range map[float64]string{0.0123: "0.012", 0.5: "0.500", 1.234: "1.23", 12.34: "12.3", 123.4: "123"} {
		if got := digits(x); got != want {
			t.Errorf("digits(%v) = %s, want %s", x, got, want)
		}
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[int64]string{7: "7 bytes", 1024: "1 KiB", 1536: "1.5 KiB", 64 << 20: "64 MiB", 15 << 30: "15 GiB"} {
		if got := size(n); got != want {
			t.Errorf("size(%d) = %s, want %s", n, got, want)
		}
	}
}

// sample makes a report as a run would: two rows, a curve, and something that failed.
func sampleReport() *Report {
	measure := func(samples ...float64) Measure { return Measure{Samples: samples} }
	r := &Report{
		Format: reportFormat, Time: "2026-01-02T03:04:05Z", Version: "v1", Command: []string{"squire", "bench", "i.sqsh"}, User: "root",
		Machine: Machine{Kernel: "6.18", Architecture: "amd64", CPUs: 2, CPUModel: "Fast <One>", MemoryBytes: 8 << 30},
		Image:   Image{Name: "i & o.sqsh", Bytes: 70 << 20, Compression: "zstd", BlockSizeBytes: 128 << 10, Inodes: 1234, FileBytes: 200 << 20},
		File:    File{"usr/lib/big.so", 20 << 20}, Rounds: 3, CPUSource: cpuSource, Reference: KernelPeer,
		Peers: []PeerInfo{{KernelPeer, []string{"mount"}, "Linux 6.18"}, {"squashfuse", []string{"squashfuse"}, "squashfuse 0.6.2"}, {"squire", []string{"squire"}, ""}},
		Rows: []Row{
			{"mount to first stat", "", 0, 0, 0, []Result{
				{Peer: KernelPeer, Wall: measure(0.002, 0.003, 0.002), CPU: measure(0, 0, 0.01)},
				{Peer: "squashfuse", Wall: measure(0.004, 0.004, 0.004), CPU: measure(0, 0, 0)},
				{Peer: "squire", Wall: measure(0.006, 0.005, 0.007), CPU: measure(0.01, 0, 0.01)},
			}},
			{"walk with stat", cold, 5000, 0, 5000, []Result{
				{Peer: KernelPeer, Wall: measure(0.5, 0.4, 0.6), CPU: measure(0.5, 0.4, 0.6)},
				{Peer: "squashfuse", Wall: measure(9, 10, 11), CPU: measure(8, 8, 8)},
				{Peer: "squire", Wall: measure(1, 0.25, 0.3), CPU: measure(0.3, 0.3, 0.6)},
			}},
			{"read all, 1 reader", warm, 4000, 1 << 29, 4000, []Result{
				{Peer: KernelPeer, Wall: measure(0.1), CPU: measure(0.1)},
				{Peer: "squashfuse", Wall: measure(1), CPU: measure(1.5)},
				{Peer: "squire"},
			}},
		},
		Failures: []string{"squire, round 1, read all, 1 reader, warm: oh"},
		LeftOut:  []string{"left out directory: no room"},
	}
	for x, wall := range map[int]float64{1: 0.4, 2: 0.2, 4: 0.1} {
		r.addPoint("random 4 KiB reads", x, Row{"random", cold, 1, 4096000, 1000, []Result{
			{Peer: KernelPeer, Wall: measure(wall), CPU: measure(0.2)},
			{Peer: "squashfuse", Wall: measure(2*wall, 3*wall), CPU: measure(0.6, 0.7)},
			{Peer: "squire", Wall: measure(wall), CPU: measure(0.25)},
		}})
	}
	slices.SortFunc(r.Curves[0].Points, func(p, q Point) int { return p.X - q.X })
	r.finish()
	return r
}

func TestFinish(t *testing.T) {
	r := sampleReport()
	got := r.Rows[1].Results[2].Wall
	if got.Median != 0.3 || got.Min != 0.25 || got.Max != 1 || got.Ratio != 0.6 || got.RatioMin != 0.5 || got.RatioMax != 2 {
		t.Errorf("squire's times %+v", got)
	}
	if cpu := r.Rows[1].Results[2].CPU; math.Abs(cpu.Mean-0.4) > 1e-9 || math.Abs(cpu.Ratio-0.8) > 1e-9 {
		t.Errorf("squire's CPU time %+v", cpu)
	}
	if cpu := r.Rows[0].Results[2].CPU; cpu.Ratio != 0 {
		t.Errorf("a ratio of two steps of the clock: %+v", cpu)
	}
	if got := r.Rows[2].Results[1].CPUPerGiB; math.Abs(got-3) > 1e-9 {
		t.Errorf("1.5 s for half a GiB are %v s for each", got)
	}
	if got := r.Rows[1].Results[1].CPUPerGiB; got != 0 {
		t.Errorf("nothing read, but %v s for each GiB", got)
	}
}

func TestCurveViews(t *testing.T) {
	c := &sampleReport().Curves[0]
	p := &c.Points[1] // two readers, 1000 operations in 0.2 s; 0.4 and 0.6 s
	want := []spread{{1000 / 0.5, 1000 / 0.6, 1000 / 0.4}, {1000, 800, 1200}, {650, 600, 700}}
	for i, v := range c.views() {
		got, ok := v.value(p, &p.Results[1])
		if !ok || math.Abs(got.mid-want[i].mid) > 1e-6 || math.Abs(got.low-want[i].low) > 1e-6 || math.Abs(got.high-want[i].high) > 1e-6 {
			t.Errorf("%s: %+v, want %+v", v.name, got, want[i])
		}
	}
	if _, ok := c.views()[0].value(p, &Result{}); ok {
		t.Error("a figure without samples")
	}
}

// golden compares with a file in testdata, which -update writes.
func golden(t *testing.T, name string, write func(*bytes.Buffer) error) string {
	t.Helper()
	var out bytes.Buffer
	if err := write(&out); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if out.String() != string(want) {
		t.Errorf("%s: got:\n%s\nwant:\n%s", name, &out, want)
	}
	return out.String()
}

func TestText(t *testing.T) {
	text := golden(t, "report.txt", func(w *bytes.Buffer) error { return sampleReport().WriteText(w) })
	for _, want := range []string{"0.300 [0.250–1.00]", "0.60", "FAILED squire", "left out directory: no room"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in the text", want)
		}
	}
}

// A run that was interrupted says so in all its forms.
func TestInterrupted(t *testing.T) {
	r := sampleReport()
	r.Interrupted = true
	var kept, text, page, picture bytes.Buffer
	if err := r.WriteJSON(&kept); err != nil {
		t.Fatal(err)
	}
	back, err := ReadJSON(&kept)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(back.WriteText(&text), back.WriteHTML(&page), back.WriteSVG(&picture)); err != nil {
		t.Fatal(err)
	}
	for what, want := range map[string]string{
		text.String():    "\n" + notAll + "\n",
		page.String():    `<p class="bad">` + notAll + "</p>",
		picture.String(): ">" + notAll + "</text>",
	} {
		if !strings.Contains(what, want) {
			t.Errorf("no %q in %s", want, what)
		}
	}
}

// Missing results must not make the file unreadable: JSON has no NaN.
func TestJSON(t *testing.T) {
	text := golden(t, "report.json", func(w *bytes.Buffer) error { return sampleReport().WriteJSON(w) })
	back, err := ReadJSON(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	var again bytes.Buffer
	if err := back.WriteJSON(&again); err != nil || again.String() != text {
		t.Errorf("read back and written again: %v\n%s", err, &again)
	}
}

func TestReadJSONRefuses(t *testing.T) {
	r := sampleReport()
	r.Rows[0].Results = r.Rows[0].Results[:2]
	var short bytes.Buffer
	if err := r.WriteJSON(&short); err != nil {
		t.Fatal(err)
	}
	r = sampleReport()
	r.Curves[0].Points[0].Results[0].Peer = "other"
	var other bytes.Buffer
	if err := r.WriteJSON(&other); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"", "[]", "{}", `{"format": 99}`, short.String(), other.String()} {
		if _, err := ReadJSON(strings.NewReader(text)); err == nil {
			t.Errorf("%.40q: no error", text)
		}
	}
}

func TestParsePeer(t *testing.T) {
	p, err := ParsePeer("new=/opt/x/squashfuse_ll -o source=IMAGE DIR")
	if err != nil || p.Name != "new" {
		t.Fatalf("%+v, %v", p, err)
	}
	p.path = "/found/squashfuse_ll"
	want := []string{"/found/squashfuse_ll", "-o", "source=/i.sqsh", "/mnt"}
	if got := p.words("/i.sqsh", "/mnt"); !slices.Equal(got, want) {
		t.Errorf("words %q, want %q", got, want)
	}
	for _, text := range []string{"", "x", "x=", "=a IMAGE DIR", "x=a IMAGE", "x=a DIR", "x,y=a IMAGE DIR", "x/y=a IMAGE DIR"} {
		if _, err := ParsePeer(text); err == nil {
			t.Errorf("%q: no error", text)
		}
	}
}

// testComparison has no image; squire is this program.
func testComparison(t *testing.T, o Options) *comparison {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if o.Squire == "" {
		o.Squire = self
	}
	o.setDefaults()
	return &comparison{Options: o, image: &imageFacts{file: "big", small: []string{"a"}, python: true}}
}

func TestFindPeers(t *testing.T) {
	mine := Peer{Name: "mine", Argv: []string{"sh", "IMAGE", "DIR"}}
	b := testComparison(t, Options{Peers: []string{"directory"}, Extra: []Peer{mine}, Dir: t.TempDir()})
	if peers, err := b.findPeers(); err != nil || len(peers) != 2 || peers[0].Name != "directory" || !filepath.IsAbs(peers[1].path) || peers[1].Argv[0] != "sh" {
		t.Errorf("findPeers(directory, mine) = %v, %v", peers, err)
	}
	none := Peer{Name: "none", Argv: []string{"no-such-program", "IMAGE", "DIR"}}
	for name, o := range map[string]Options{
		"a name that no peer has":   {Peers: []string{"directory", "other"}},
		"no squire":                 {Squire: "no-such-program", Peers: []string{"squire"}},
		"a peer without a program":  {Peers: []string{"directory"}, Extra: []Peer{none}},
		"two peers of one name":     {Extra: []Peer{mine, mine}},
		"a peer with a known name":  {Extra: []Peer{{Name: "kernel", Argv: mine.Argv}}},
		"no directory to unpack in": {Peers: []string{"directory"}, Dir: "/no/such/directory"},
	} {
		if _, err := testComparison(t, o).findPeers(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestReference(t *testing.T) {
	peer := func(name string) Peer { return Peer{Name: name, Argv: []string{"x"}} }
	directory := Peer{Name: directoryPeer}
	for _, tt := range []struct {
		peers []Peer
		want  string
	}{
		{[]Peer{peer("squashfuse"), peer(KernelPeer)}, KernelPeer},
		{[]Peer{directory, peer("squashfuse"), peer("squire")}, "squashfuse"},
		{[]Peer{directory}, directoryPeer},
	} {
		if got := reference(tt.peers); got != tt.want {
			t.Errorf("reference(%v) = %s, want %s", tt.peers, got, tt.want)
		}
	}
}

func TestFindWorkloads(t *testing.T) {
	for _, tt := range []struct {
		words []string
		want  int
	}{
		{nil, 10},
		{[]string{"read all"}, 2},
		{[]string{"walk", "read all"}, 3},
		{[]string{"import x"}, 2},
		{[]string{"mount"}, 2},
		{[]string{"python"}, 2},
		{WorkloadNames(false), 10},
	} {
		b := testComparison(t, Options{Workloads: tt.words, Python: "import x"})
		if got, err := b.findWorkloads(); err != nil || len(got) != tt.want {
			t.Errorf("findWorkloads(%q): %d workloads, %v, want %d", tt.words, len(got), err, tt.want)
		}
	}
	if got, err := testComparison(t, Options{Workloads: WorkloadNames(true), Scaling: true}).findWorkloads(); err != nil || len(got) != 2*len(scalingReaders) {
		t.Errorf("all curves: %d points, %v", len(got), err)
	}
	for _, words := range [][]string{{"nothing like it"}, {"walk", "wlak"}, {"walk", ""}} {
		if _, err := testComparison(t, Options{Workloads: words}).findWorkloads(); err == nil || !strings.Contains(err.Error(), "there are mount to first stat") {
			t.Errorf("%q, with a word that no workload has: %v", words, err)
		}
	}
	b := testComparison(t, Options{Readers: []int{1, 2, 3}})
	b.image = &imageFacts{}
	// Walking and reading everything is possible on any image.
	if got, err := b.findWorkloads(); err != nil || len(got) != 5 || len(b.leftOut) != 6 {
		t.Errorf("an empty image: %d workloads, %v, left out %q", len(got), err, b.leftOut)
	}
}

func TestCheck(t *testing.T) {
	for name, o := range map[string]Options{
		"rounds":  {Rounds: -1},
		"limit":   {Limit: -1},
		"readers": {Readers: []int{1, 0}},
		"many":    {Readers: []int{maxReaders + 1}},
	} {
		o.setDefaults()
		if err := o.check(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// files makes a directory of files.
func files(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "mnt")
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
	return dir
}

func TestChildSeesEverything(t *testing.T) {
	dir := files(t)
	if err := writeList(filepath.Join(filepath.Dir(dir), "list"), []string{"a", "d/c"}); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		job  job
		want count
	}{
		{job{Do: "walk"}, count{5, 0, 5}},
		{job{Do: "read", Readers: 1}, count{3, 1<<20 + 5, 3}},
		{job{Do: "read", Readers: 4}, count{3, 1<<20 + 5, 3}},
		{job{Do: "read-file", File: []byte("d/c")}, count{1, 1 << 20, 1}},
		{job{Do: "read-list", List: "list", Readers: 2}, count{2, 1<<20 + 5, 2}},
		{job{Do: "read-list", List: "list", Readers: 2, Operations: 1}, count{1, 5, 1}},
		{job{Do: "pread", File: []byte("d/c"), Readers: 3, Operations: 100}, count{1, 100 * pageSize, 100}},
		{job{Do: "pread", File: []byte("d/c"), Readers: 1, Operations: 1000}, count{1, 1 << 20, 256}},
		{job{Do: "pread", File: []byte("a"), Readers: 1, Operations: 1000}, count{1, 5, 1}},
	} {
		tt.job.Dir = []byte(dir)
		var out, errs strings.Builder
		order, _ := json.Marshal(tt.job)
		if status := Child([]string{string(order)}, &out, &errs); status != 0 {
			t.Fatalf("%s: status %d, %s", order, status, &errs)
		}
		var r childResult
		if err := json.Unmarshal([]byte(out.String()), &r); err != nil || r.count != tt.want || r.Wall <= 0 || r.CPU < 0 {
			t.Errorf("%s: %s, %v, want %+v", order, &out, err, tt.want)
		}
	}
}

func TestChildFails(t *testing.T) {
	dir := files(t)
	for _, j := range []job{
		{Do: "read", Readers: 1, Dir: []byte(dir + "/none")},
		{Do: "read-file", File: []byte("none"), Dir: []byte(dir)},
		{Do: "read-file", File: []byte("l"), Dir: []byte(dir)}, // a link, which would lead out of the mount
		{Do: "pread", File: []byte("d"), Readers: 1, Operations: 1, Dir: []byte(dir)},
		{Do: "read-list", List: "none", Readers: 1, Dir: []byte(dir)},
		{Do: "nothing like it", Dir: []byte(dir)},
	} {
		order, _ := json.Marshal(j)
		var out, errs strings.Builder
		if status := Child([]string{string(order)}, &out, &errs); status == 0 || errs.Len() == 0 || out.Len() > 0 {
			t.Errorf("%s: status %d, %q, %q", order, status, &out, &errs)
		}
	}
	for _, args := range [][]string{nil, {"{"}, {"{}", "{}"}} {
		if status := Child(args, new(strings.Builder), new(strings.Builder)); status == 0 {
			t.Errorf("%q: status 0", args)
		}
	}
}

func TestRandomPages(t *testing.T) {
	for _, tt := range []struct {
		all     int64
		n, want int
	}{{1000, 100, 100}, {100, 100, 100}, {3, 100, 3}, {0, 100, 0}} {
		pages := randomPages(tt.all, tt.n)
		if again := randomPages(tt.all, tt.n); !slices.Equal(pages, again) {
			t.Errorf("%d of %d: another order the next time", tt.n, tt.all)
		}
		slices.Sort(pages)
		if len(slices.Compact(pages)) != tt.want || len(pages) > 0 && (pages[0] < 0 || pages[len(pages)-1] >= tt.all) {
			t.Errorf("%d of %d: %v", tt.n, tt.all, pages)
		}
	}
}

func TestSameCount(t *testing.T) {
	b := &comparison{counts: make(map[row]count)}
	if err := b.sameCount(row{"row", cold}, count{1, 2, 3}); err != nil {
		t.Fatal(err)
	}
	if err := b.sameCount(row{"row", cold}, count{1, 2, 3}); err != nil {
		t.Error(err)
	}
	if err := b.sameCount(row{"row", cold}, count{1, 1, 3}); err == nil {
		t.Error("a peer that shows less: no error")
	}
}

func TestParseBusy(t *testing.T) {
	// From Linux 6.18: user nice system idle iowait irq softirq steal guest guest_nice.
	got, err := parseBusy("cpu  100 20 300 9999 888 4 5 777 66 55\ncpu0 1 1 1 1 1 1 1 1 1 1\n")
	if want := 4290 * time.Millisecond; err != nil || got != want {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	for _, text := range []string{"", "intr 1 2 3 4 5 6 7 8\n", "cpu 1 2 3\n", "cpu a b c d e f g h\n"} {
		if _, err = parseBusy(text); err == nil {
			t.Errorf("%q: no error", text)
		}
	}
	before, err := MachineBusy()
	if err != nil {
		t.Fatal(err)
	}
	after, err := MachineBusy()
	if err != nil || after < before {
		t.Errorf("%v after %v, %v", after, before, err)
	}
}

func TestProgramTimeLimit(t *testing.T) {
	start := time.Now()
	// The background process keeps the output open, as a server would.
	_, err := RunProgram(context.Background(), 200*time.Millisecond, "sh", "-c", "sleep 60 & sleep 60")
	if err == nil || !strings.Contains(err.Error(), "still running") {
		t.Errorf("error %v, want one about the time limit", err)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("took %v", took)
	}
	if out, err := RunProgram(context.Background(), time.Minute, "sh", "-c", "echo out; exit 3"); err == nil || string(out) != "out\n" {
		t.Errorf("output %q, error %v", out, err)
	}
}

func TestWithOutput(t *testing.T) {
	err := errors.New("exit status 1")
	for out, want := range map[string]string{"": "exit status 1", " \n": "exit status 1", "oh\n": "exit status 1: oh"} {
		if got := withOutput(err, []byte(out)); got.Error() != want || !errors.Is(got, err) {
			t.Errorf("printed %q: %q, want %q", out, got, want)
		}
	}
}

// What does not mount here is left out, unless it was asked for.
func TestTryPeers(t *testing.T) {
	bad := func(name string) Peer {
		return Peer{Name: name, Argv: []string{"false", "IMAGE", "DIR"}, path: "/bin/false"}
	}
	b := testComparison(t, Options{Extra: []Peer{bad("mine")}})
	b.dir = t.TempDir()
	b.Image = filepath.Join(b.dir, "image")
	if err := os.WriteFile(b.Image, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	b.peers = []Peer{bad("squashfuse"), bad("mine"), {Name: directoryPeer}}
	if err := b.tryPeers(t.Context()); err != nil || len(b.peers) != 2 || b.peers[0].Name != "mine" || len(b.leftOut) != 1 {
		t.Errorf("%v, %v, left out %q", err, b.peers, b.leftOut)
	}
	b.peers = []Peer{bad("squashfuse"), {Name: directoryPeer}}
	if err := b.tryPeers(t.Context()); err == nil {
		t.Error("no mount is left: no error")
	}
}
