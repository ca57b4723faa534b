package main

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/fusefs"
	"github.com/squirefs/squire/fusefs/noded"
	"github.com/squirefs/squire/internal/wire"
)

// standIn speaks the protocol of a service and tells what it was told to.
type standIn struct {
	socket string
	report func() *noded.Report

	mu       sync.Mutex
	listener *net.UnixListener
	conns    []*wire.Conn
}

// newStandIn starts a service that answers every request with what report returns; nil: with a refusal.
func newStandIn(t *testing.T, report func() *noded.Report) *standIn {
	t.Helper()
	s := &standIn{socket: filepath.Join(t.TempDir(), "socket"), report: report}
	s.start(t)
	t.Cleanup(s.stop)
	t.Setenv("SQUIRE_SOCKET", s.socket)
	before := socketList
	socketList = func() []string { return []string{os.Getenv("SQUIRE_SOCKET")} }
	t.Cleanup(func() { socketList = before })
	return s
}

func (s *standIn) start(t *testing.T) {
	t.Helper()
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: s.socket, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	s.listener = l
	s.mu.Unlock()
	go func() {
		for {
			sock, err := l.AcceptUnix()
			if err != nil {
				return
			}
			conn := wire.NewConn(sock)
			s.mu.Lock()
			s.conns = append(s.conns, conn)
			s.mu.Unlock()
			go s.serve(conn)
		}
	}()
}

// stop ends the service and its connections.
func (s *standIn) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.listener.Close()
	for _, c := range s.conns {
		c.Close()
	}
	s.conns = nil
}

func (s *standIn) serve(conn *wire.Conn) {
	defer conn.Close()
	var h noded.Hello
	if _, err := conn.Recv(&h); err != nil || conn.Send(&noded.Welcome{Version: noded.Version, Program: "test"}) != nil {
		return
	}
	s.answer(conn)
}

// answer answers requests until the connection ends.
func (s *standIn) answer(conn *wire.Conn) {
	for {
		var r noded.Request
		files, err := conn.Recv(&r)
		for _, f := range files {
			f.Close()
		}
		if err != nil {
			return
		}
		if s.respond(conn) != nil {
			return
		}
	}
}

func (s *standIn) respond(conn *wire.Conn) error {
	report := s.report()
	if report == nil {
		return conn.Send(&noded.Reply{Code: noded.Failed, Error: "no\x1b[31mthing"})
	}
	b, err := json.Marshal(report)
	if err != nil {
		return err
	}
	fd, err := unix.MemfdCreate("report", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "report")
	defer f.Close()
	if _, err = f.Write(b); err != nil {
		return err
	}
	return conn.Send(&noded.Reply{}, f)
}

// began is when all that is canned here did.
var began = time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)

// histogram has n requests that took so long, or up to a half less.
func histogram(n uint64, d time.Duration) (h fusefs.Histogram) {
	for i := range h.Counts {
		if d <= fusefs.BucketBound(i) {
			h.Counts[i] = n
			break
		}
	}
	h.Sum = time.Duration(n) * d
	return h
}

// hostileName has what must not reach a terminal, and what no format of ours may be led astray by. What is not UTF-8 in
// it is replaced in JSON, as []rune does.
const hostileName = "/srv/\x1b]0;owned\a\u202e\"} 1\n\\evil\t\r\xff| 日本.sqsh"

// cannedReport is a report about two images, of which one has a name that somebody thought about. times scales all
// counters.
func cannedReport(times uint64) *noded.Report {
	r := &noded.Report{Version: "1.2.0", PID: 711, Since: began, Clients: 3, Memory: 312 << 20}
	r.Restarts.Server, r.Restarts.Mounter = 2, 1
	r.Cache.Budget, r.Cache.Bytes = 512<<20, 480<<20
	r.Cache.Hits, r.Cache.Misses, r.Cache.Evictions = 90*times, 10*times, 4*times
	r.Images = []noded.ImageReport{
		{
			ID: 1, Name: "/images/pytorch.sqsh", View: "squash", Device: "0:54", Size: 7 << 30, State: "served", Since: began.Add(time.Minute),
			Users: []uint32{0}, References: 12, Read: times * (3 << 20), Cached: 5 << 20,
			Stats: fusefs.Stats{
				Lookup: 100 * times, Read: 1000 * times, ReadBytes: times * (64 << 20), Stored: times * (16 << 20),
				Wanted: 500 * times, Missed: 5 * times, Decoded: 80 * times, DecodedBytes: times * (10 << 20),
				Latency: map[string]fusefs.Histogram{
					"lookup": histogram(100*times, 64*time.Microsecond),
					"read":   histogram(1000*times, 2*time.Millisecond),
				},
			},
		},
		{
			ID: 2, Name: string([]rune(hostileName)), View: "private, user 1000", State: "failed", Error: "storage\x1b[2J is gone",
			Since: began.Add(2 * time.Hour), Users: []uint32{4000000000, 4000000001, 4000000002, 4000000003, 4000000004}, References: 1, Attached: 1,
			Stats: fusefs.Stats{Errors: 7 * times},
		},
	}
	totals := noded.Totals{Images: 9}
	for i := range r.Images {
		totals.Stats.Add(&r.Images[i].Stats)
		totals.Read += r.Images[i].Read
	}
	r.Totals = &totals
	return r
}

func TestOwnSockets(t *testing.T) {
	list := filepath.Join(t.TempDir(), "unix")
	const text = `Num       RefCount Protocol Flags    Type St Inode Path
0000000000000000: 00000002 00000000 00010000 0005 01 18181 @squire-1000-beef
0000000000000000: 00000003 00000000 00000000 0005 03 18182 @squire-1000-beef
0000000000000000: 00000002 00000000 00010000 0005 01 18183 @squire-10001-beef
0000000000000000: 00000002 00000000 00010000 0005 01 18184 @squire-1000-abcd
0000000000000000: 00000002 00000000 00010000 0001 01 18185 /run/squire-1000-x
0000000000000000: 00000003 00000000 00000000 0001 03 18186
`
	if err := os.WriteFile(list, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	got := ownSockets(list, 1000)
	if len(got) != 2 || got[0] != "@squire-1000-abcd" || got[1] != "@squire-1000-beef" {
		t.Errorf("found %q", got)
	}
	if got = ownSockets(list+"x", 1000); got != nil {
		t.Errorf("found %q in nothing", got)
	}
}

// A service that listens is found in the kernel's own list.
func TestOwnSocketIsListed(t *testing.T) {
	name := "@squire-" + "4294967000-" + filepath.Base(t.TempDir())
	l, err := net.Listen("unixpacket", name)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if got := ownSockets("/proc/net/unix", 4294967000); len(got) != 1 || got[0] != name {
		t.Errorf("found %q, want %s", got, name)
	}
}

func TestReports(t *testing.T) {
	var report *noded.Report
	s := newStandIn(t, func() *noded.Report { return report })
	var asked services
	defer asked.close()
	var refused *noded.ServiceError
	if all, err := asked.reports(); len(all) != 0 || !errors.As(err, &refused) {
		t.Errorf("refused: %v, %v", all, err)
	}
	report = cannedReport(1)
	for range 2 {
		all, err := asked.reports()
		if err != nil || len(all) != 1 || all[0].Service != "node" || len(all[0].Images) != 2 {
			t.Fatalf("%v, %v", all, err)
		}
	}
	s.stop()
	if all, err := asked.reports(); len(all) != 0 || err != nil {
		t.Errorf("gone: %v, %v", all, err)
	}
	s.start(t)
	report.Own = true
	if all, err := asked.reports(); err != nil || len(all) != 1 || all[0].Service != "own" {
		t.Errorf("back: %v, %v", all, err)
	}
}

// A service whose answer is no file in memory is not waited for.
func TestReportOfPipe(t *testing.T) {
	s := newStandIn(t, func() *noded.Report { return nil })
	s.stop()
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: s.socket, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	go func() {
		sock, err := l.AcceptUnix()
		if err != nil {
			return
		}
		conn := wire.NewConn(sock)
		defer conn.Close()
		_, _ = conn.Recv(new(noded.Hello))
		_ = conn.Send(&noded.Welcome{Version: noded.Version})
		_, _ = conn.Recv(new(noded.Request))
		_ = conn.Send(&noded.Reply{}, r)
		_, err = conn.Recv(new(noded.Request))
		_ = errors.Is(err, io.EOF)
	}()
	var asked services
	defer asked.close()
	if all, err := asked.reports(); err == nil {
		t.Errorf("a pipe is a report: %v", all)
	}
}
