package noded

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/internal/wire"
)

// startMetrics listens where Prometheus asks, and has a process answer there, which gets nothing but the socket and a
// connection for reports. What it is asked over the network is not the keeper's to read.
func (k *keeper) startMetrics(loops *sync.WaitGroup) error {
	if k.metrics == nil {
		var err error
		if k.metrics, err = listenMetrics(k.cfg.Metrics); err != nil {
			return err
		}
	}
	loops.Go(func() { k.metricsLoop(k.ctx) })
	return nil
}

func listenMetrics(where string) (*os.File, error) {
	network := "tcp"
	if strings.ContainsAny(where, "/@") {
		network = "unix"
	}
	if network == "unix" && where[0] == '/' {
		if err := os.Remove(where); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("listen for metrics: %w", err)
		}
	}
	l, err := net.Listen(network, where)
	if err != nil {
		return nil, fmt.Errorf("listen for metrics: %w", err)
	}
	defer l.Close()
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
		if where[0] == '/' {
			if err = os.Chmod(where, 0o666); err != nil {
				return nil, fmt.Errorf("listen for metrics: %w", err)
			}
		}
	}
	f, err := l.(interface{ File() (*os.File, error) }).File()
	if err != nil {
		return nil, fmt.Errorf("listen for metrics: %w", err)
	}
	return f, nil
}

// metricsLoop has the process running until ctx ends.
func (k *keeper) metricsLoop(ctx context.Context) {
	bad := 0
	for pause(ctx, backoff(bad), nil) && k.starting.pass(ctx) == nil {
		began := time.Now()
		err := k.runMetrics(ctx)
		if ctx.Err() != nil {
			return
		}
		if bad++; time.Since(began) > 10*time.Second {
			bad = 1
		}
		k.log.Warn("the process for metrics ended, starting another", "error", err)
	}
}

func (k *keeper) runMetrics(ctx context.Context) error {
	ours, theirs, err := wire.Pair()
	if err != nil {
		return err
	}
	defer ours.Close()
	var p *os.Process
	err = k.onMain(func() { p, err = k.forkMetrics(theirs) })
	theirs.Close()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { ours.Close() })
	defer stop()
	c := &client{
		conn: ours, peer: &unix.Ucred{Pid: int32(p.Pid), Uid: k.uid}, reporter: true, images: map[uint64]*image{},
	}
	k.mu.Lock()
	k.clients[c] = true
	k.connected[c.user.UID]++
	k.reporters++
	k.mu.Unlock()
	k.reporting.Add(1)
	defer k.reporting.Done()
	k.serveClient(c)
	k.mu.Lock()
	k.reporters--
	k.mu.Unlock()
	_ = p.Kill()
	state, err := p.Wait()
	if err == nil {
		err = errors.New(state.String())
	}
	return err
}

func (k *keeper) forkMetrics(conn *os.File) (*os.Process, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	p, err := os.StartProcess("/proc/self/exe", []string{MetricsName}, &os.ProcAttr{
		Dir: "/", Env: []string{}, Files: []*os.File{null, null, os.Stderr, conn, k.metrics},
		Sys: &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL},
	})
	if err == nil { // it is not to be spared as the keeper is
		_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", p.Pid), []byte("0"), 0)
	}
	return p, err
}
