package main_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestServiceSeen wants to see what a service does, each user their own, also after its server and the process for
// metrics were killed.
func TestServiceSeen(t *testing.T) {
	l := newLab(t)
	metrics := filepath.Join(l.dir, "metrics")
	node := l.daemon(t, "--metrics", metrics)
	dir := l.mkdir(t, users[1])
	word := fmt.Sprintf("%d.%06d", 6000, time.Now().UnixNano()%1e6)
	cmd, _ := l.start(t, users[1], dir, l.with(node, "run", l.images["zstd"], "--", "sh", "-c",
		"ls -lR /usr >/dev/null; touch "+dir+"/ready; sleep "+word)...)

	var list []struct {
		ID, Service, Name, State string
		Users                    []int
		References               int
	}
	for _, who := range users {
		r := l.run(t, who, l.with(node, "ps", "--json")...)
		if json.Unmarshal([]byte(r.stdout), &list) != nil || len(list) != 1 || list[0].Service != "node" || list[0].State != "served" ||
			list[0].References != 1 || len(list[0].Users) != 1 || list[0].Users[0] != 12345 || list[0].Name != l.images["zstd"] {
			t.Fatalf("ps of %s: %+v", who.name, r)
		}
	}
	// A service of their own, of another test, may linger.
	if r := l.run(t, mounters[1], l.with(node, "ps", "--json")...); r.status != 0 || r.stderr != "" || strings.Contains(r.stdout, `"node"`) {
		t.Errorf("another user sees %+v", r)
	}
	r := l.run(t, users[0], l.with(node, "stats", list[0].ID)...)
	if r.status != 0 || !strings.HasPrefix(r.stdout, "Image     "+l.images["zstd"]) || !strings.Contains(r.stdout, "\nlookup ") {
		t.Errorf("stats: %+v", r)
	}
	before := l.metric(t, metrics, "squire_image_requests_total")
	if before < 100 || l.metric(t, metrics, `squire_request_duration_seconds_count{op="readdir"}`) < 100 {
		t.Errorf("%v requests", before)
	}

	for _, name := range []string{"squire-server", "squire-metrics"} {
		pids := l.stages(name)
		if len(pids) != 1 {
			t.Fatalf("%s: %s", name, describe(pids))
		}
		_ = syscall.Kill(pids[0], syscall.SIGKILL)
		if !eventually(bound, func() bool { now := l.stages(name); return len(now) == 1 && now[0] != pids[0] }) {
			t.Fatalf("no other %s: %s", name, describe(l.stages(name)))
		}
	}
	if !eventually(bound, func() bool { return l.metric(t, metrics, `squire_restarts_total{process="server"}`) == 1 }) {
		t.Error("no restart was counted")
	}
	if after := l.metric(t, metrics, "squire_image_requests_total"); after < before {
		t.Errorf("%v requests, before the server was killed %v", after, before)
	}
	r = l.run(t, users[1], l.with(node, "top", "--once", "-d", "0.2")...)
	if r.status != 0 || !strings.Contains(r.stdout, l.images["zstd"]) || strings.Contains(r.stdout, "memory") {
		t.Errorf("top: %+v", r)
	}
	if body := l.fetch(t, metrics, "/healthz"); body != "ok\n" {
		t.Errorf("healthz: %q", body)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

// fetch gets a path from a service's socket for metrics, which may be between two processes.
func (l *lab) fetch(t *testing.T, socket, path string) string {
	t.Helper()
	c := &http.Client{Timeout: bound, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	resp, err := c.Get("http://squire" + path)
	if err != nil {
		t.Error(err)
		return ""
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("%s: %s, %v", path, resp.Status, err)
	}
	return string(b)
}

// metric is the value of the first series that begins so, -1 if there is none.
func (l *lab) metric(t *testing.T, socket, begin string) float64 {
	t.Helper()
	for line := range strings.Lines(l.fetch(t, socket, "/metrics")) {
		if strings.HasPrefix(line, begin) {
			var v float64
			if _, err := fmt.Sscan(line[strings.LastIndexByte(line, ' ')+1:], &v); err != nil {
				t.Errorf("%q: %v", line, err)
			}
			return v
		}
	}
	return -1
}
