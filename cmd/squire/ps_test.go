package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/squirefs/squire/fusefs/noded"
)

// wantText wants lines to be those, of which trailing spaces do not count.
func wantText(t *testing.T, got, want string) {
	t.Helper()
	g, w := strings.Split(strings.TrimRight(got, "\n"), "\n"), strings.Split(strings.Trim(want, "\n"), "\n")
	for i := range max(len(g), len(w)) {
		var a, b string
		if i < len(g) {
			a = strings.TrimRight(g[i], " ")
		}
		if i < len(w) {
			b = strings.TrimRight(w[i], " ")
		}
		if a != b {
			t.Errorf("line %d:\n got %q\nwant %q", i+1, a, b)
		}
	}
}

// wantPrintable wants nothing in a text that a terminal would do.
func wantPrintable(t *testing.T, s string) {
	t.Helper()
	for _, r := range s {
		if r != '\n' && !unicode.IsPrint(r) {
			t.Fatalf("%q goes to the terminal in %q", r, s)
		}
	}
}

// hostileShown is hostileName as people get to see it; JSON has replaced what was not UTF-8.
const hostileShown = `/srv/\033]0;owned\007\342\200\256"} 1\012\134evil\011\015�| 日本.sqsh`

func TestPs(t *testing.T) {
	s := newStandIn(t, func() *noded.Report { return cannedReport(1) })
	all, err := ask(os.Stderr, false)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err = printImages(&b, all, began.Add(26*time.Hour)); err != nil {
		t.Fatal(err)
	}
	wantPrintable(t, b.String())
	wantText(t, b.String(), `
ID  SERVICE  STATE   VIEW                USERS                                REFS  DIRS   SIZE   READ    AGE  IMAGE
1   node     served  squash              root                                   12     0  7 GiB  3 MiB  1d01h  /images/pytorch.sqsh
2   node     failed  private, user 1000  4000000000,4000000001,4000000002,+2     1     1    0 B    0 B  1d00h  `+hostileShown+`
`)
	out, err := squire(t, "ps", "-q")
	if err != nil || out != "1\n2\n" {
		t.Errorf("-q: %q, %v", out, err)
	}
	out, err = squire(t, "ps", "--json")
	var list []listedImage
	if err != nil || json.Unmarshal([]byte(out), &list) != nil || len(list) != 2 {
		t.Fatalf("--json: %v\n%s", err, out)
	}
	if list[0].ID != "1" || list[0].Service != "node" || list[0].Size != 7<<30 || list[1].Attached != 1 {
		t.Errorf("--json: %+v", list)
	}
	if _, err = squire(t, "ps", "x"); err == nil {
		t.Error("ps takes arguments")
	}
	s.stop()
	if out, err = squire(t, "ps"); out != "" || err != nil {
		t.Errorf("no service: %q, %v", out, err)
	}
	if out, err = squire(t, "ps", "--json"); out != "[]\n" || err != nil {
		t.Errorf("no service, --json: %q, %v", out, err)
	}
}

// A user's own services are several, and what they serve is told apart by their processes.
func TestPsOwn(t *testing.T) {
	r := cannedReport(1)
	r.Own = true
	newStandIn(t, func() *noded.Report { return r })
	if out, err := squire(t, "ps", "-q"); err != nil || out != "711.1\n711.2\n" {
		t.Errorf("%q, %v", out, err)
	}
	out, err := squire(t, "__complete", "stats", "")
	if err != nil || !strings.HasPrefix(out, "711.1\t/images/pytorch.sqsh\n711.2\t") {
		t.Errorf("completion: %q, %v", out, err)
	}
}

func TestServiceRefuses(t *testing.T) {
	newStandIn(t, func() *noded.Report { return nil })
	for _, args := range [][]string{{"ps"}, {"stats"}, {"ps", "--json"}} {
		if out, err := squire(t, args...); err == nil || out != "" {
			t.Errorf("%v: %q, %v", args, out, err)
		}
	}
}

func TestStats(t *testing.T) {
	newStandIn(t, func() *noded.Report { return cannedReport(1) })
	all, err := ask(os.Stderr, false)
	if err != nil {
		t.Fatal(err)
	}
	all[0].Socket = "/run/squire/squire.sock"
	var b bytes.Buffer
	printServiceStats(&b, &all[0], began.Add(time.Hour))
	wantPrintable(t, b.String())
	wantText(t, b.String(), `
Service   node, version 1.2.0, process 711, up 1h00m
Socket    /run/squire/squire.sock
Clients   3
Restarts  2 of the server, 1 of the mounter
Memory    312 MiB in the server
Cache     480 MiB of 512 MiB
Storage   3 MiB read
Decoded   10 MiB in 80 blocks
Served    64 MiB, and 16 MiB put into the page cache ahead of need
Hits      99.0% of 500 blocks that were asked for
Requests  1100
Errors    7

OPERATION  REQUESTS   MEAN    P50    P90    P99    MAX
lookup          100   64µs   56µs   62µs   64µs   64µs
read           1000  2.0ms  1.8ms  2.0ms  2.0ms  2.0ms

ID  STATE   REQUESTS    P50    P99   HITS  STORAGE  DECODED  CACHED  SERVED   AHEAD  ERRORS  IMAGE
1   served      1100  1.8ms  2.0ms  99.0%    3 MiB   10 MiB   5 MiB  64 MiB  16 MiB       0  /images/pytorch.sqsh
2   failed         0      -      -      -      0 B      0 B     0 B     0 B     0 B       7  `+hostileShown+`
`)
	others := all[0]
	others.Totals = nil
	b.Reset()
	printServiceStats(&b, &others, began.Add(time.Hour))
	for _, row := range []string{"Memory", "Cache "} {
		if strings.Contains(b.String(), row) {
			t.Errorf("a user who is not told is shown %s:\n%s", row, b.String())
		}
	}
	b.Reset()
	printImageStats(&b, everyImage(all)[1], began.Add(3*time.Hour))
	wantPrintable(t, b.String())
	wantText(t, b.String(), `
Image     `+hostileShown+`
Id        2, in the node service of process 711
State     failed, since 1h00m
Error     storage?[2J is gone
View      private, user 1000, device
Users     4000000000,4000000001,4000000002,+2
Used by   1 program, 1 directory
Size      0 B
Storage   0 B read
Decoded   0 B in 0 blocks
Served    0 B, and 0 B put into the page cache ahead of need
Hits      - of 0 blocks that were asked for
Requests  0
Errors    7
`)
}

func TestStatsOfOne(t *testing.T) {
	image := filepath.Join(t.TempDir(), "pytorch.sqsh")
	newStandIn(t, func() *noded.Report {
		r := cannedReport(1)
		r.Images[0].Name = image
		return r
	})
	t.Chdir(filepath.Dir(image))
	for _, name := range []string{"1", image, "pytorch.sqsh", "../" + filepath.Base(filepath.Dir(image)) + "/./pytorch.sqsh"} {
		if out, err := squire(t, "stats", name); err != nil || !strings.HasPrefix(out, "Image     "+image+"\n") {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
	if out, err := squire(t, "stats", hostileName); err != nil || !strings.Contains(out, "Errors    7") {
		t.Errorf("%v\n%s", err, out)
	}
	for _, name := range []string{"3", "", "01", "torch.sqsh", "711.1"} {
		if out, err := squire(t, "stats", name); err == nil || out != "" {
			t.Errorf("%s: %q, %v", name, out, err)
		}
	}
	out, err := squire(t, "stats", "--json", "1")
	var all []seen
	if err != nil || json.Unmarshal([]byte(out), &all) != nil || len(all) != 1 || len(all[0].Images) != 1 {
		t.Fatalf("%v\n%s", err, out)
	}
	h := all[0].Images[0].Stats.Latency["read"]
	if h.Count() != 1000 || all[0].Service != "node" || all[0].PID != 711 {
		t.Errorf("%s", out)
	}
	if !strings.Contains(out, `"p99_ns": 2042880`) {
		t.Errorf("no percentile in %s", out)
	}
}

func TestShortTime(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0.0µs", 400: "0.4µs", 9949: "9.9µs", 9951: "10µs", 999499: "999µs", 999501: "1.0ms",
		64 * time.Millisecond: "64ms", 9960 * time.Millisecond: "10s", 90 * time.Minute: "5400s",
	} {
		if got := shortTime(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
}

func TestAge(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 59 * time.Second: "59s", 61 * time.Second: "1m01s", 3*time.Hour + 59*time.Minute: "3h59m", 400 * 24 * time.Hour: "400d00h",
	} {
		if got := age(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
}
