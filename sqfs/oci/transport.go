package oci

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// maxRetryAfter is how long a server may ask to wait. Longer, and it is an error that says so.
const maxRetryAfter = 2 * time.Minute

// policy is below all requests of an image: to registries, token servers, and wherever they
// redirect to. It decides what may be spoken to at all, and tries again what may pass.
type policy struct {
	o     Options
	agent string
	own   string // host name of the registry that is asked; link-local only if this is

	mu    sync.Mutex
	hosts map[string]*http.Transport // by HOST:PORT: each has its certificates
}

func newPolicy(o Options, registry string) *policy {
	p := &policy{o: o, agent: o.UserAgent, own: hostName(registry), hosts: map[string]*http.Transport{}}
	if p.agent == "" {
		p.agent = "squire"
	}
	return p
}

func (p *policy) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, t := range p.hosts {
		t.CloseIdleConnections()
	}
}

// permanentError is one that no retry mends.
type permanentError struct{ error }

func (e permanentError) Unwrap() error { return e.error }

func permanent(format string, args ...any) error {
	return permanentError{fmt.Errorf(format, args...)}
}

// insecure says whether a registry was named as one that needs no TLS: HOST:PORT, or HOST for
// all its ports.
func (o *Options) insecure(hostport string) bool {
	for _, named := range o.Insecure {
		s, err := checkRegistry(named)
		if err == nil && (s == hostport || strings.Trim(s, "[]") == hostName(hostport)) {
			return true
		}
	}
	return false
}

func hostName(hostport string) string {
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		return h
	}
	return strings.Trim(hostport, "[]")
}

// isMetadata knows the addresses where clouds give machines their credentials: link-local
// ones, and the one that Amazon has in IPv6.
func isMetadata(host string) bool {
	a, err := netip.ParseAddr(host)
	if err != nil {
		return false
	}
	a = a.WithZone("").Unmap()
	return a.IsLinkLocalUnicast() || a == netip.MustParseAddr("fd00:ec2::254")
}

func (p *policy) allows(u *url.URL) error {
	host := strings.ToLower(u.Host)
	switch {
	case u.Scheme != "https" && u.Scheme != "http":
		return permanent("oci: refused to follow the registry to a %q address", u.Scheme)
	case u.Scheme == "http" && !p.o.insecure(host):
		return permanent("oci: %s would have to be spoken to by plain HTTP, and is not named as insecure", u.Host)
	case isMetadata(u.Hostname()) && u.Hostname() != p.own:
		return permanent("oci: refused to follow the registry to the link-local address %s", u.Host)
	}
	return nil
}

// RoundTrip does what http.RoundTripper says, and tries again a few times what a server that
// is busy, or a bad line, did not let through. A response that stalls ends with an error.
func (p *policy) RoundTrip(req *http.Request) (*http.Response, error) {
	if err := p.allows(req.URL); err != nil {
		return nil, err
	}
	t, err := p.transport(req.URL)
	if err != nil {
		return nil, err
	}
	req = req.Clone(req.Context())
	req.Header.Set("User-Agent", p.agent)
	for try := 0; ; try++ {
		resp, err := p.send(t, req)
		wait, again := retryable(req, resp, err)
		if !again || try >= p.o.retries() || req.Context().Err() != nil {
			return resp, err
		}
		why := "no answer"
		if resp != nil {
			why = "answer " + resp.Status
			if wait > maxRetryAfter {
				return resp, nil
			}
			_, _ = io.CopyN(io.Discard, resp.Body, 64<<10)
			resp.Body.Close()
		} else if err != nil {
			why = cleanError(err).Error()
		}
		p.o.say("%s: %s: trying again", req.URL.Host, why)
		if err := p.o.pause(req.Context(), try, wait); err != nil {
			return nil, err
		}
	}
}

func retryable(req *http.Request, resp *http.Response, err error) (wait time.Duration, again bool) {
	if req.Body != nil && req.Body != http.NoBody {
		return 0, false
	}
	if err != nil {
		var dns *net.DNSError
		var perm permanentError
		var cert *tls.CertificateVerificationError
		var record tls.RecordHeaderError
		var alert *net.OpError
		switch {
		case errors.As(err, &alert) && alert.Op == "remote error", // an alert of TLS
			errors.As(err, &perm), errors.As(err, &cert), errors.As(err, &record),
			errors.Is(err, syscall.ECONNREFUSED), errors.As(err, &dns) && dns.IsNotFound,
			strings.Contains(err.Error(), "HTTP response to HTTPS client"): // net/http has no type for it
			return 0, false
		}
		return 0, true
	}
	switch resp.StatusCode {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return retryAfter(resp), true
	}
	return 0, false
}

func retryAfter(resp *http.Response) time.Duration {
	s := resp.Header.Get("Retry-After")
	if n, err := strconv.ParseUint(s, 10, 31); err == nil {
		return time.Duration(n) * time.Second
	}
	if t, err := http.ParseTime(s); err == nil {
		return max(0, time.Until(t))
	}
	return 0
}

func (o *Options) retries() int {
	switch {
	case o.Retries < 0:
		return 0
	case o.Retries == 0:
		return 5
	}
	return o.Retries
}

func (o *Options) timeout() time.Duration {
	if o.Timeout <= 0 {
		return 30 * time.Second
	}
	return o.Timeout
}

// pause waits before the next attempt: twice as long each time, up to 30 s, shortened at
// random by up to half so that many do not come back at once, and as long as the server asked.
func (o *Options) pause(ctx context.Context, try int, atLeast time.Duration) error {
	unit := o.backoff
	if unit == 0 {
		unit = 500 * time.Millisecond
	}
	d := min(unit<<min(try, 10), 30*time.Second)
	d = max(d/2+rand.N(d/2+1), atLeast)
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (o *Options) say(format string, args ...any) {
	if o.Event != nil {
		o.Event(Event{Layer: -1, Message: fmt.Sprintf(format, args...)})
	}
}

// errStalled is the cause when no byte came for Options.Timeout.
var errStalled = errors.New("nothing came any more")

// send sends once. The body of the response ends with errStalled if a read waits too long.
func (p *policy) send(t *http.Transport, req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(req.Context())
	timer := time.AfterFunc(p.o.timeout(), func() { cancel(errStalled) })
	resp, err := t.RoundTrip(req.WithContext(ctx))
	timer.Stop()
	if err != nil {
		if errors.Is(context.Cause(ctx), errStalled) {
			err = errStalled
		}
		cancel(nil)
		return nil, err
	}
	resp.Body = &stallBody{body: resp.Body, ctx: ctx, cancel: cancel, timer: timer, timeout: p.o.timeout()}
	return resp, nil
}

type stallBody struct {
	body    io.ReadCloser
	ctx     context.Context
	cancel  context.CancelCauseFunc
	timer   *time.Timer
	timeout time.Duration
	waited  time.Duration // for got bytes, since both began anew
	got     int
}

// A transfer that crawls stalls: in crawlTimes timeouts at least so many bytes have to come.
const (
	crawlTimes = 4
	crawlBytes = 4 << 10
)

// Read waits for the server only: the time in which nobody reads does not count.
func (b *stallBody) Read(p []byte) (int, error) {
	start := time.Now()
	b.timer.Reset(b.timeout)
	n, err := b.body.Read(p)
	b.timer.Stop()
	b.got += n
	if b.waited += time.Since(start); b.waited > crawlTimes*b.timeout {
		if err == nil && b.got < crawlBytes {
			b.cancel(errStalled)
			err = errStalled
		}
		b.waited, b.got = 0, 0
	}
	if err != nil && err != io.EOF && errors.Is(context.Cause(b.ctx), errStalled) {
		err = errStalled
	}
	return n, err
}

func (b *stallBody) Close() error {
	b.timer.Stop()
	b.cancel(nil)
	return b.body.Close()
}

// transport returns what speaks to a host, with the certificates that are meant for it.
func (p *policy) transport(u *url.URL) (*http.Transport, error) {
	host := strings.ToLower(u.Host)
	p.mu.Lock()
	defer p.mu.Unlock()
	if t := p.hosts[host]; t != nil {
		return t, nil
	}
	conf, err := p.tls(host)
	if err != nil {
		return nil, permanentError{err}
	}
	d := &net.Dialer{Timeout: p.o.timeout(), KeepAlive: 15 * time.Second}
	if name := u.Hostname(); name != p.own {
		d.Control = func(_, addr string, _ syscall.RawConn) error {
			if isMetadata(hostName(addr)) {
				return permanent("oci: %s has the link-local address %s: refused", name, addr)
			}
			return nil
		}
	}
	t := &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            d.DialContext,
		TLSClientConfig:        conf,
		TLSHandshakeTimeout:    p.o.timeout(),
		MaxIdleConnsPerHost:    16,
		IdleConnTimeout:        30 * time.Second,
		MaxResponseHeaderBytes: 256 << 10,
		DisableCompression:     true, // a digest is of what is sent
		ForceAttemptHTTP2:      true,
	}
	p.hosts[host] = t
	return t, nil
}

// certsDirs is where Docker and Podman look for certificates, in a directory HOST[:PORT]:
// docs.docker.com, "Verify repository client with certificates".
var certsDirs = []string{"/etc/containers/certs.d", "/etc/docker/certs.d"}

func (p *policy) tls(host string) (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: p.o.insecure(host)}
	var files []string
	files = append(files, p.o.CACerts...)
	for _, dir := range certsDirs {
		found, _ := filepath.Glob(filepath.Join(dir, strings.NewReplacer("*", "", "?", "", "[", "", "]", "").Replace(host), "*"))
		for _, f := range found {
			switch filepath.Ext(f) {
			case ".crt":
				files = append(files, f)
			case ".cert":
				c, err := tls.LoadX509KeyPair(f, strings.TrimSuffix(f, ".cert")+".key")
				if err != nil {
					return nil, fmt.Errorf("oci: certificate of this client for %s: %w", host, err)
				}
				conf.Certificates = append(conf.Certificates, c)
			}
		}
	}
	if len(files) == 0 {
		return conf, nil
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	for _, f := range files {
		pem, err := os.ReadFile(f)
		if err != nil {
			return nil, fmt.Errorf("oci: certificates: %w", err)
		}
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("oci: %s has no certificate in PEM form", f)
		}
	}
	conf.RootCAs = pool
	return conf, nil
}

// cleanError takes from an error of net/http what must not be shown: the query of an address
// holds signatures when a registry redirects to a store of objects.
func cleanError(err error) error {
	var u *url.Error
	if !errors.As(err, &u) {
		return err
	}
	at := u.URL
	if p, perr := url.Parse(u.URL); perr == nil {
		at = p.Scheme + "://" + p.Host + p.Path
	}
	return fmt.Errorf("%s: %w", at, u.Err)
}
