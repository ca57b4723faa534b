package importtest

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// proxy passes connections on to a registry, more slowly than it could.
type proxy struct {
	address string
	target  string
	rate    int64              // bytes a second to the client, over all connections
	passed  atomic.Int64       // bytes to the client
	hook    func(passed int64) // hears of each piece; may be nil
	open    sync.WaitGroup
	mu      sync.Mutex
	conns   map[net.Conn]struct{}
}

// startProxy starts a proxy, which ends with the test.
func startProxy(t *testing.T, target string, rate int64, hook func(passed int64)) *proxy {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{address: ln.Addr().String(), target: target, rate: rate, hook: hook, conns: map[net.Conn]struct{}{}}
	p.open.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			p.open.Go(func() { p.serve(c) })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		p.cut()
		p.open.Wait()
	})
	return p
}

// cut closes all connections.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close()
	}
}

func (p *proxy) keep(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conns[c] = struct{}{}
}

func (p *proxy) drop(c net.Conn) {
	c.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
}

func (p *proxy) serve(client net.Conn) {
	p.keep(client)
	defer p.drop(client)
	server, err := net.Dial("tcp", p.target)
	if err != nil {
		return
	}
	p.keep(server)
	defer p.drop(server)
	p.open.Go(func() {
		_, _ = io.Copy(server, client)
		server.Close()
	})
	buf := make([]byte, 64<<10)
	for {
		n, err := server.Read(buf)
		if n > 0 {
			if _, wrong := client.Write(buf[:n]); wrong != nil {
				return
			}
			passed := p.passed.Add(int64(n))
			if p.hook != nil {
				p.hook(passed)
			}
			time.Sleep(time.Duration(int64(n) * int64(time.Second) / p.rate))
		}
		if err != nil {
			return
		}
	}
}
