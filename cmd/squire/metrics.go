package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/fusefs/noded"
	"github.com/squirefs/squire/internal/rights"
	"github.com/squirefs/squire/internal/stage"
	"github.com/squirefs/squire/internal/wire"
	"github.com/squirefs/squire/runtime"
)

// The metrics stage tells Prometheus what the service does. It is a process of its
// own, nobody and without rights, as anybody may send it anything: it has a connection
// to the keeper that is good for reports alone, and the socket that it listens on. When
// it dies the keeper starts another one, and it ends when the keeper does.

// Descriptors of the stage, see noded.MetricsName.
const (
	metricsKeeper = 3
	metricsSocket = 4
)

// What one who asks may take. A scrape of 256 images is some 500 KiB.
const (
	metricsClients = 32       // connections at once; the next ones wait
	metricsMemory  = 64 << 20 // bytes
	metricsHeader  = 8 << 10  // bytes of a request
	metricsRead    = 5 * time.Second
	metricsWrite   = 10 * time.Second
	metricsKept    = time.Second // that a report is used again
	metricsWait    = 5 * time.Second
	metricsReport  = 64 << 20 // bytes of a report
)

// metricsStage is the stage. It returns the exit status.
func metricsStage() int {
	stage.SetName(noded.MetricsName)
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGQUIT)
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := serveMetrics(log); err != nil {
		log.Error("metrics", "error", err)
		return runtime.ExitFailed
	}
	return 0
}

func serveMetrics(log *slog.Logger) error {
	unix.CloseOnExec(metricsKeeper)
	unix.CloseOnExec(metricsSocket)
	if err := rights.Confine(); err != nil {
		return err
	}
	debug.SetMemoryLimit(metricsMemory)
	conn, err := wire.FileConn(os.NewFile(metricsKeeper, "keeper"))
	if err != nil {
		return err
	}
	f := os.NewFile(metricsSocket, "metrics")
	l, err := net.FileListener(f)
	f.Close()
	if err != nil {
		return fmt.Errorf("use descriptor to listen: %w", err)
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	r := newReporter(conn)
	go func() {
		defer stop()
		r.receive()
	}()
	return answerMetrics(ctx, l, r.report, log)
}

// answerMetrics answers on l until ctx ends.
func answerMetrics(ctx context.Context, l net.Listener, report func() (*noded.Report, error), log *slog.Logger) error {
	s := &http.Server{
		Handler:           metricsHandler(report),
		ReadHeaderTimeout: metricsRead,
		ReadTimeout:       metricsRead,
		WriteTimeout:      metricsWrite,
		MaxHeaderBytes:    metricsHeader,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug), // what strangers do is not worth a line
	}
	// Who asks does so every few seconds, and nobody is to keep a connection that others wait for.
	s.SetKeepAlivesEnabled(false)
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	if err := s.Serve(newBounded(l, metricsClients)); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// metricsHandler answers what may be asked for.
func metricsHandler(report func() (*noded.Report, error)) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		r, err := report()
		if err != nil {
			http.Error(w, "the service does not answer", http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		_, _ = w.Write(exposition(r)) // who does not wait for it misses it
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		r, err := report()
		switch {
		case err != nil:
			http.Error(w, "the service does not answer", http.StatusServiceUnavailable)
		case r.Draining:
			_, _ = io.WriteString(w, "draining\n")
		default:
			_, _ = io.WriteString(w, "ok\n")
		}
	})
	return mux
}

// reporter asks the keeper for reports, for all who want one at about the same time but once.
type reporter struct {
	conn    *wire.Conn
	answers chan answer
	ended   chan struct{} // closed when there is no connection any more

	mu   sync.Mutex // one question at a time
	last *noded.Report
	at   time.Time
}

type answer struct {
	reply noded.Reply
	files []*os.File
}

func newReporter(conn *wire.Conn) *reporter {
	return &reporter{conn: conn, answers: make(chan answer), ended: make(chan struct{})}
}

// receive takes answers, until there is no keeper any more or one does not come in time: the next would be taken for it.
func (r *reporter) receive() {
	defer close(r.ended)
	defer r.conn.Close()
	for {
		var a answer
		var err error
		if a.files, err = r.conn.Recv(&a.reply); err != nil {
			return
		}
		select {
		case r.answers <- a:
		case <-time.After(metricsWait): // nobody asked
			closeFiles(a.files)
			return
		}
	}
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// report returns a report that is not older than metricsKept.
func (r *reporter) report() (*noded.Report, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.last != nil && time.Since(r.at) < metricsKept {
		return r.last, nil
	}
	got, err := r.ask()
	if err != nil {
		r.conn.Close() // ends receive
		return nil, err
	}
	r.last, r.at = got, time.Now()
	return got, nil
}

func (r *reporter) ask() (*noded.Report, error) {
	if err := r.conn.Send(&noded.Request{Do: noded.VerbReport}); err != nil {
		return nil, err
	}
	var a answer
	select {
	case a = <-r.answers:
	case <-r.ended:
		return nil, io.ErrUnexpectedEOF
	case <-time.After(metricsWait):
		return nil, os.ErrDeadlineExceeded
	}
	defer closeFiles(a.files)
	if a.reply.Code != noded.OK || len(a.files) != 1 {
		return nil, fmt.Errorf("no report from the keeper: %s", a.reply.Error)
	}
	report := new(noded.Report)
	if err := json.NewDecoder(io.NewSectionReader(a.files[0], 0, metricsReport)).Decode(report); err != nil {
		return nil, fmt.Errorf("read the report: %w", err)
	}
	return report, nil
}

// bounded is a listener that has so many connections at most. The next ones wait to be accepted.
type bounded struct {
	net.Listener
	room chan struct{} // has one element for each connection
	done chan struct{}
	once sync.Once
}

func newBounded(l net.Listener, most int) *bounded {
	return &bounded{Listener: l, room: make(chan struct{}, most), done: make(chan struct{})}
}

// Accept waits for room first.
func (b *bounded) Accept() (net.Conn, error) {
	select {
	case b.room <- struct{}{}:
	case <-b.done:
		return nil, net.ErrClosed
	}
	c, err := b.Listener.Accept()
	if err != nil {
		<-b.room
		return nil, err
	}
	return &boundedConn{Conn: c, leave: sync.OnceFunc(func() { <-b.room })}, nil
}

// Close ends Accept too where that waits for room.
func (b *bounded) Close() error {
	b.once.Do(func() { close(b.done) })
	return b.Listener.Close()
}

type boundedConn struct {
	net.Conn
	leave func()
}

func (c *boundedConn) Close() error {
	defer c.leave()
	return c.Conn.Close()
}
