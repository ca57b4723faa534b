// Package registry runs Debian's docker-registry on the loopback interface, for tests and benchmarks: plain, over TLS,
// with passwords or with tokens.
package registry

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"
)

// User and Password are what a registry with Options.Passwords or Options.Tokens wants to hear.
const (
	User     = "ali"
	Password = "open-sesame"
)

// passwords is an htpasswd file of them; the registry takes nothing but bcrypt.
const passwords = User + ":$2b$04$abcdefghijklmnopqrstuuXcjcm5avyCiJoD2uS24xa2lb6fjMB3G\n"

// Options say how a registry is run. The zero value has no authentication and no TLS.
type Options struct {
	Storage   string  // a directory that keeps the images; registries may come and go on it
	Address   string  // HOST:PORT; "" is a free port of 127.0.0.1
	Passwords bool    // basic authentication
	Tokens    *Tokens // token authentication
	TLS       *Pair   // certificate and key
}

// Registry is a registry that runs.
type Registry struct {
	Address string // HOST:PORT
	cmd     *exec.Cmd
	dir     string
	log     *log
	ended   chan struct{}
}

// Start starts a registry and waits until it listens. The caller stops it.
func Start(o Options) (*Registry, error) {
	program, err := exec.LookPath("docker-registry")
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	dir, err := os.MkdirTemp("", "squire-registry")
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	r := &Registry{dir: dir, log: &log{grown: make(chan struct{}, 1)}, ended: make(chan struct{})}
	config := filepath.Join(dir, "config.yml")
	if err := o.write(config); err != nil {
		os.RemoveAll(dir)
		return nil, fmt.Errorf("registry: %w", err)
	}
	r.cmd = exec.Command(program, "serve", config)
	r.cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	r.cmd.Stdout, r.cmd.Stderr = r.log, r.log
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a Ctrl-C is for who started it
	if err := r.cmd.Start(); err != nil {
		os.RemoveAll(dir)
		return nil, fmt.Errorf("registry: %w", err)
	}
	go func() {
		_ = r.cmd.Wait()
		close(r.ended)
	}()
	if err := r.listens(); err != nil {
		r.Stop()
		return nil, fmt.Errorf("registry: %w", err)
	}
	return r, nil
}

// write writes the configuration: see the registry's configuration.md.
func (o *Options) write(path string) error {
	dir := filepath.Dir(path)
	address := o.Address
	if address == "" {
		address = "127.0.0.1:0"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "version: 0.1\nlog: {level: info}\nstorage:\n  filesystem: {rootdirectory: %q}\nhttp:\n  addr: %q\n", o.Storage, address)
	if o.TLS != nil {
		fmt.Fprintf(&b, "  tls: {certificate: %q, key: %q}\n", filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
		if err := errors.Join(os.WriteFile(filepath.Join(dir, "cert.pem"), o.TLS.Cert, 0o600), os.WriteFile(filepath.Join(dir, "key.pem"), o.TLS.Key, 0o600)); err != nil {
			return err
		}
	}
	switch {
	case o.Passwords:
		fmt.Fprintf(&b, "auth:\n  htpasswd: {realm: test, path: %q}\n", filepath.Join(dir, "htpasswd"))
		if err := os.WriteFile(filepath.Join(dir, "htpasswd"), []byte(passwords), 0o600); err != nil {
			return err
		}
	case o.Tokens != nil:
		fmt.Fprintf(&b, "auth:\n  token: {realm: %q, service: %q, issuer: %q, rootcertbundle: %q}\n", o.Tokens.URL, service, issuer, filepath.Join(dir, "tokens.pem"))
		if err := os.WriteFile(filepath.Join(dir, "tokens.pem"), o.Tokens.pair.Cert, 0o600); err != nil {
			return err
		}
	}
	return os.WriteFile(path, []byte(b.String()), 0o600)
}

var listening = regexp.MustCompile(`listening on ([0-9.]+:[0-9]+)`)

// listens waits until the log tells the address.
func (r *Registry) listens() error {
	deadline := time.After(20 * time.Second)
	for {
		if m := listening.FindStringSubmatch(r.log.String()); m != nil {
			r.Address = m[1]
			return nil
		}
		select {
		case <-r.log.grown:
		case <-r.ended:
			return fmt.Errorf("it ended: %s", r.log)
		case <-deadline:
			return fmt.Errorf("it does not listen after 20 s: %s", r.log)
		}
	}
}

// Log returns what the registry has printed: among it a line for each request, as web servers write it.
func (r *Registry) Log() string { return r.log.String() }

// Stop kills the registry, as a crash would, and returns when it is gone.
func (r *Registry) Stop() {
	_ = r.cmd.Process.Kill()
	<-r.ended
	os.RemoveAll(r.dir)
}

// log is a buffer that says when it has grown.
type log struct {
	mu    sync.Mutex
	buf   bytes.Buffer
	grown chan struct{}
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case l.grown <- struct{}{}:
	default:
	}
	return l.buf.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}
