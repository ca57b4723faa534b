package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/squirefs/squire/fusefs/noded"
	"github.com/squirefs/squire/internal/wire"
)

// series is a line of a text in Prometheus's format.
type series struct {
	name   string
	labels map[string]string
	value  float64
}

var (
	metricName = regexp.MustCompile(`^[a-zA-Z_:][a-zA-Z0-9_:]*$`)
	labelName  = regexp.MustCompile(`^[a-zA-Z_][a-zA-Z0-9_]*$`)
)

// parseExposition reads the text format, version 0.0.4, and takes nothing that it does not say: every family has its HELP
// and TYPE before it and all of its series behind, none comes twice, and histograms add up.
func parseExposition(t *testing.T, body string) []series {
	t.Helper()
	if !utf8.ValidString(body) || body != "" && !strings.HasSuffix(body, "\n") {
		t.Fatalf("not UTF-8 or no line end at its end")
	}
	var all []series
	types, once := map[string]string{}, map[string]bool{}
	family, helped := "", ""
	for i, line := range strings.Split(strings.TrimSuffix(body, "\n"), "\n") {
		switch {
		case strings.HasPrefix(line, "# HELP "):
			name, help, _ := strings.Cut(strings.TrimPrefix(line, "# HELP "), " ")
			if helped = name; help == "" || !metricName.MatchString(name) {
				t.Fatalf("line %d: %q", i, line)
			}
		case strings.HasPrefix(line, "# TYPE "):
			name, typ, _ := strings.Cut(strings.TrimPrefix(line, "# TYPE "), " ")
			if types[name] != "" || name != helped || typ != "counter" && typ != "gauge" && typ != "histogram" ||
				(typ == "counter") != strings.HasSuffix(name, "_total") {
				t.Fatalf("line %d: %q", i, line)
			}
			types[name], family = typ, name
		default:
			s := parseSeries(t, line)
			base := s.name
			if types[family] == "histogram" {
				base = regexp.MustCompile(`_(bucket|sum|count)$`).ReplaceAllString(base, "")
			}
			key := s.name + fmt.Sprint(s.labels)
			if base != family || once[key] {
				t.Fatalf("line %d: %q in family %s, or twice", i, line, family)
			}
			once[key] = true
			all = append(all, s)
		}
	}
	checkHistograms(t, all)
	return all
}

// parseSeries reads NAME{LABEL="VALUE",…} VALUE.
func parseSeries(t *testing.T, line string) series {
	t.Helper()
	s := series{labels: map[string]string{}}
	end := strings.IndexAny(line, "{ ")
	if end < 0 || !metricName.MatchString(line[:end]) {
		t.Fatalf("no name in %q", line)
	}
	s.name = line[:end]
	rest := line[end:]
	for open := byte('{'); rest[0] == open; open = ',' {
		name, value, found := strings.Cut(rest[1:], `="`)
		if !found || !labelName.MatchString(name) {
			t.Fatalf("no label in %q", line)
		}
		var b strings.Builder
		k := 0
		for ; k < len(value) && value[k] != '"'; k++ {
			if value[k] == '\\' {
				k++
				if k == len(value) || !strings.ContainsRune(`\"n`, rune(value[k])) {
					t.Fatalf("bad escape in %q", line)
				}
			}
			b.WriteByte(value[k])
		}
		if k+1 >= len(value) || s.labels[name] != "" {
			t.Fatalf("no end of a label, or one twice, in %q", line)
		}
		s.labels[name], rest = b.String(), value[k+1:]
		if rest[0] == '}' {
			rest = rest[1:]
			break
		}
	}
	var err error
	if s.value, err = strconv.ParseFloat(strings.TrimPrefix(rest, " "), 64); err != nil || rest[0] != ' ' {
		t.Fatalf("no value in %q", line)
	}
	return s
}

// checkHistograms wants buckets to come in order and to grow, and the last to be the count.
func checkHistograms(t *testing.T, all []series) {
	t.Helper()
	last, bound, counts := map[string]float64{}, map[string]float64{}, map[string]bool{}
	for _, s := range all {
		op := s.labels["op"]
		switch {
		case strings.HasSuffix(s.name, "_bucket"):
			le, err := strconv.ParseFloat(s.labels["le"], 64)
			if _, had := bound[op]; err != nil || had && (le <= bound[op] || s.value < last[op]) {
				t.Fatalf("bucket %+v after %v, %v", s, bound[op], last[op])
			}
			last[op], bound[op] = s.value, le
		case strings.HasSuffix(s.name, "_seconds_count"):
			if counts[op] = true; s.value != last[op] || !(bound[op] > 1e308) {
				t.Fatalf("count %+v, last bucket %v up to %v", s, last[op], bound[op])
			}
		}
	}
	if len(counts) != len(last) {
		t.Fatalf("%d counts of %d histograms", len(counts), len(last))
	}
}

// value finds the series with a name and labels, as pairs.
func value(t *testing.T, all []series, name string, labels ...string) float64 {
	t.Helper()
next:
	for _, s := range all {
		if s.name != name || len(s.labels) < len(labels)/2 {
			continue
		}
		for i := 0; i < len(labels); i += 2 {
			if s.labels[labels[i]] != labels[i+1] {
				continue next
			}
		}
		return s.value
	}
	t.Errorf("no series %s%q", name, labels)
	return 0
}

func TestExposition(t *testing.T) {
	r := cannedReport(3)
	all := parseExposition(t, string(exposition(r)))
	for _, want := range []struct {
		value  float64
		name   string
		labels []string
	}{
		{1, "squire_build_info", []string{"version", "1.2.0"}},
		{2, "squire_restarts_total", []string{"process", "server"}},
		{1, "squire_images", []string{"state", "failed"}},
		{0, "squire_images", []string{"state", "leaving"}},
		{480 << 20, "squire_cache_bytes", nil},
		{9 << 20, "squire_storage_read_bytes_total", nil},
		{21, "squire_errors_total", nil},
		{3000, "squire_request_duration_seconds_count", []string{"op", "read"}},
		{6, "squire_request_duration_seconds_sum", []string{"op", "read"}},
		{0, "squire_request_duration_seconds_bucket", []string{"op", "read", "le", "0.001024"}},
		{3000, "squire_request_duration_seconds_bucket", []string{"op", "read", "le", "0.002048"}},
		{3 * 64 << 20, "squire_image_served_bytes_total", []string{"id", "1", "image", "/images/pytorch.sqsh"}},
		{3300, "squire_image_requests_total", []string{"id", "1"}},
		{21, "squire_image_errors_total", []string{"id", "2", "image", hostileShown}},
	} {
		if got := value(t, all, want.name, want.labels...); got != want.value {
			t.Errorf("%s%q is %v, want %v", want.name, want.labels, got, want.value)
		}
	}
}

// The sums do not get smaller when an image leaves, and the number of series is bounded.
func TestExpositionBounds(t *testing.T) {
	r := cannedReport(3)
	r.Images = nil
	if got := value(t, parseExposition(t, string(exposition(r))), "squire_served_bytes_total"); got != 3*64<<20 {
		t.Errorf("without images %v bytes were served", got)
	}
	for i := range 3 * metricsImages {
		r.Images = append(r.Images, noded.ImageReport{ID: uint64(i), Name: strings.Repeat("long", 2000), State: "served"})
	}
	body := string(exposition(r))
	info := 0
	for _, s := range parseExposition(t, body) {
		if s.name == "squire_image_info" {
			info++
		}
	}
	if info != metricsImages || len(body) > 4<<20 {
		t.Errorf("%d images in %d bytes", info, len(body))
	}
	if got := value(t, parseExposition(t, body), "squire_images", "state", "served"); got != 3*metricsImages {
		t.Errorf("%v images", got)
	}
}

// metricsServer answers on a socket until the test ends.
func metricsServer(t *testing.T, report func() (*noded.Report, error)) (client *http.Client, dial func() net.Conn) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "metrics")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- answerMetrics(ctx, l, report, slog.New(slog.DiscardHandler)) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return metricsClient(socket), func() net.Conn {
		c, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
}

func metricsClient(socket string) *http.Client {
	return &http.Client{Timeout: testBound, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
}

// get fetches a path.
func get(t *testing.T, c *http.Client, path string) (status int, body string) {
	t.Helper()
	resp, err := c.Get("http://squire" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func TestMetricsHTTP(t *testing.T) {
	report, failure := cannedReport(1), error(nil)
	client, dial := metricsServer(t, func() (*noded.Report, error) { return report, failure })
	status, body := get(t, client, "/metrics")
	if status != 200 || len(parseExposition(t, body)) < 100 {
		t.Errorf("%d: %s", status, body)
	}
	for path, want := range map[string]int{"/healthz": 200, "/": 404, "/metrics/": 404, "/debug/pprof/": 404} {
		if status, _ := get(t, client, path); status != want {
			t.Errorf("%s: %d, want %d", path, status, want)
		}
	}
	report = cannedReport(1)
	report.Draining = true
	if status, body := get(t, client, "/healthz"); status != 200 || body != "draining\n" {
		t.Errorf("draining: %d %q", status, body)
	}
	failure = io.ErrUnexpectedEOF
	for _, path := range []string{"/healthz", "/metrics"} {
		if status, _ := get(t, client, path); status != 503 {
			t.Errorf("%s without a service: %d", path, status)
		}
	}
	for request, want := range map[string]string{
		"POST /metrics HTTP/1.1\r\nHost: x\r\n\r\n":                                          " 405 ",
		"GET /metrics HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 64<<10) + "\r\n\r\n": " 431 ",
		"GET /" + strings.Repeat("x", 64<<10) + " HTTP/1.1\r\n\r\n":                          " 431 ",
		"\x00\x01\x02\r\n\r\n": " 400 ",
		"GET /healthz HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffffff\r\n": " 503 ",
	} {
		c := dial()
		go func() { _, _ = io.WriteString(c, request) }()
		line, err := bufio.NewReader(c).ReadString('\n')
		if err != nil || !strings.Contains(line, want) {
			t.Errorf("%.30q…: %q, %v, want%s", request, line, err, want)
		}
		c.Close()
	}
}

// Those who connect and say nothing keep others waiting, not for long, and cost no more than they may.
func TestMetricsCrowd(t *testing.T) {
	client, dial := metricsServer(t, func() (*noded.Report, error) { return cannedReport(1), nil })
	for range 2*metricsClients - 1 {
		dial()
	}
	if status, _ := get(t, client, "/healthz"); status != 200 {
		t.Errorf("behind a crowd: %d", status)
	}
}

func TestBounded(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "socket"))
	if err != nil {
		t.Fatal(err)
	}
	b := newBounded(l, 2)
	accepted := make(chan net.Conn)
	go func() {
		defer close(accepted)
		for {
			c, err := b.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	for range 4 {
		c, err := net.Dial("unix", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	one, two := <-accepted, <-accepted
	if len(b.room) != 2 {
		t.Errorf("room for 2 has %d", len(b.room))
	}
	one.Close()
	one.Close() // counts once
	three := <-accepted
	if len(b.room) != 2 {
		t.Errorf("room for 2 has %d", len(b.room))
	}
	b.Close() // while Accept waits for room
	if c, more := <-accepted; more {
		t.Errorf("a fourth connection came in: %v", c)
	}
	two.Close()
	three.Close()
	if len(b.room) != 0 {
		t.Errorf("%d are still counted", len(b.room))
	}
}

// The stage gets a connection to the keeper and a socket, has no rights, answers, and ends with the keeper.
func TestMetricsStage(t *testing.T) {
	keeper, theirs, err := wire.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer keeper.Close()
	socket := filepath.Join(t.TempDir(), "metrics")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*testBound)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args, cmd.Stderr, cmd.ExtraFiles = []string{noded.MetricsName}, os.Stderr, []*os.File{theirs, f}
	err = cmd.Start()
	theirs.Close()
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	s := &standIn{report: func() *noded.Report { return cannedReport(1) }}
	go s.answer(keeper)
	client := metricsClient(socket)
	for range 2 {
		if status, body := get(t, client, "/metrics"); status != 200 || len(parseExposition(t, body)) < 100 {
			t.Errorf("%d: %s", status, body)
		}
	}
	wantNoRights(t, cmd.Process.Pid)
	keeper.Close()
	select {
	case <-ended:
	case <-time.After(testBound):
		t.Error("it does not end with the keeper")
	}
}

// wantNoRights wants a process to have no capabilities and never to get any, and not to be root's.
func wantNoRights(t *testing.T, pid int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"NoNewPrivs:\t1\n", "CapEff:\t0000000000000000\n", "CapPrm:\t0000000000000000\n"} {
		if !strings.Contains(string(b), line) {
			t.Errorf("no %q in %s", line, b)
		}
	}
	if os.Getuid() == 0 && !strings.Contains(string(b), "Uid:\t65534\t65534\t65534\t65534\n") {
		t.Errorf("it is not nobody: %s", b)
	}
}

// Whatever a service says, it is shown, in what a terminal can take.
func FuzzReport(f *testing.F) {
	for _, r := range []*noded.Report{cannedReport(1), cannedReport(1 << 40), {}} {
		b, err := json.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, uint8(80), uint8(24))
	}
	f.Add([]byte(`{"images":[{"stats":{"latency":{"\u001b":{"sum_ns":-1,"buckets":[[0,18446744073709551615],[1,1]]}},"missed":1}}]}`), uint8(1), uint8(1))
	f.Fuzz(func(t *testing.T, b []byte, width, height uint8) {
		var r noded.Report
		if len(b) > 1<<16 || json.Unmarshal(b, &r) != nil {
			return
		}
		s := seen{Service: "node", Report: r, at: began}
		later := s
		later.at = began.Add(time.Second)
		var out bytes.Buffer
		if err := printImages(&out, []seen{s}, began); err != nil {
			t.Fatal(err)
		}
		printServiceStats(&out, &s, began)
		for _, x := range everyImage([]seen{s}) {
			printImageStats(&out, x, began)
		}
		v := topView{now: began, delay: time.Second, what: compare([]seen{s}, []seen{later})}
		for _, line := range append(v.lines(int(width), int(height)), v.lines(0, 0)...) {
			out.WriteString(line)
		}
		wantPrintable(t, out.String())
		parseExposition(t, string(exposition(&r)))
	})
}
