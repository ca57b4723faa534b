package oci

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/klauspost/compress/zstd"
)

// picture is a container image that tests serve.
type picture struct {
	layers   [][]byte // tar archives
	blobs    map[string][]byte
	manifest []byte
	config   []byte
	descs    []map[string]any
}

// tarOf makes a tar archive with one file of so many random bytes.
func tarOf(t testing.TB, seed uint64, size int) []byte {
	t.Helper()
	body := make([]byte, size)
	r := rand.NewChaCha8([32]byte{byte(seed)})
	r.Read(body)
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: fmt.Sprintf("file%d", seed), Mode: 0o644, Size: int64(size), Format: tar.FormatUSTAR}); err != nil {
		t.Fatal(err)
	}
	w.Write(body)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func squeeze(t testing.TB, how string, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	switch how {
	case "gzip":
		w := gzip.NewWriter(&out)
		w.Write(b)
		w.Close()
	case "zstd":
		w, err := zstd.NewWriter(&out)
		if err != nil {
			t.Fatal(err)
		}
		w.Write(b)
		w.Close()
	default:
		return b
	}
	return out.Bytes()
}

// paint makes an image of tar archives, compressed one after the other by gzip, zstd, nothing.
func paint(t testing.TB, config Config, layers ...[]byte) *picture {
	t.Helper()
	p := &picture{layers: layers, blobs: map[string][]byte{}}
	var diff []string
	for n, l := range layers {
		how := []string{"gzip", "zstd", ""}[n%3]
		b := squeeze(t, how, l)
		d := digestOf(b)
		p.blobs[d] = b
		diff = append(diff, digestOf(l))
		p.descs = append(p.descs, map[string]any{
			"mediaType": "application/vnd.oci.image.layer.v1.tar" + suffix("+", how), "digest": d, "size": len(b),
		})
	}
	p.config = encode(t, map[string]any{
		"os": "linux", "architecture": "amd64", "created": "2024-05-06T07:08:09Z", "config": config,
		"rootfs":  map[string]any{"type": "layers", "diff_ids": diff},
		"history": []map[string]any{{"created_by": "a test", "created": "nonsense"}},
	})
	p.blobs[digestOf(p.config)] = p.config
	p.seal(t)
	return p
}

// seal makes the manifest of what the picture has.
func (p *picture) seal(t testing.TB) {
	p.manifest = encode(t, map[string]any{
		"schemaVersion": 2, "mediaType": typeManifest,
		"config": map[string]any{"mediaType": typeConfig, "digest": digestOf(p.config), "size": len(p.config)},
		"layers": p.descs,
	})
}

func encode(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// server is a registry in this process, with faults.
type server struct {
	*httptest.Server
	host string

	mu     sync.Mutex
	asked  []string // METHOD PATH [Range]
	agents map[string]bool
	fault  func(w http.ResponseWriter, r *http.Request, next http.Handler) bool // true: answered
}

func serve(t testing.TB, tls bool) *server {
	t.Helper()
	s := &server{agents: map[string]bool{}}
	next := ggcr.New(ggcr.Logger(slog.NewLogLogger(slog.DiscardHandler, 0)))
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.asked = append(s.asked, strings.TrimSpace(r.Method+" "+r.URL.Path+" "+r.Header.Get("Range")))
		s.agents[r.UserAgent()] = true
		fault := s.fault
		s.mu.Unlock()
		if fault == nil || !fault(w, r, next) {
			next.ServeHTTP(w, r)
		}
	})
	s.Server = httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	if tls {
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	u, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	s.host = u.Host
	return s
}

func (s *server) setFault(f func(w http.ResponseWriter, r *http.Request, next http.Handler) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = f
}

// count returns how many requests there were with a text in them, and forgets none.
func (s *server) count(text string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.asked {
		if strings.Contains(a, text) {
			n++
		}
	}
	return n
}

func (s *server) put(t testing.TB, path, contentType string, body []byte) {
	t.Helper()
	method := http.MethodPut
	if strings.Contains(path, "/uploads/") {
		method = http.MethodPost
	}
	req, err := http.NewRequest(method, s.URL+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	resp, err := s.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		t.Fatalf("%s %s: %s", method, path, resp.Status)
	}
}

// push uploads an image under repo:tag.
func (s *server) push(t testing.TB, repo, tag string, p *picture) {
	t.Helper()
	for d, b := range p.blobs {
		s.put(t, "/v2/"+repo+"/blobs/uploads/?digest="+d, "application/octet-stream", b)
	}
	s.put(t, "/v2/"+repo+"/manifests/"+tag, typeManifest, p.manifest)
}

// quick are options under which faults are over in milliseconds.
func quick(s *server) Options {
	o := Options{Timeout: 20 * time.Second, backoff: time.Millisecond, Arch: "amd64"}
	if s != nil {
		o.Insecure = []string{s.host}
	}
	return o
}

// listen collects messages.
func listen(o *Options) func() string {
	var mu sync.Mutex
	var all strings.Builder
	o.Event = func(e Event) {
		mu.Lock()
		defer mu.Unlock()
		if e.Message != "" {
			all.WriteString(e.Message + "\n")
		}
	}
	return func() string {
		mu.Lock()
		defer mu.Unlock()
		return all.String()
	}
}

// bare takes the user's own credentials and certificates out of a test's way.
func bare(t testing.TB) string {
	t.Helper()
	home := t.TempDir()
	t.Setenv("HOME", home)
	for _, k := range []string{
		"DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "ENROOT_CONFIG_PATH",
		"DOCKER_HOST", "CONTAINER_HOST", "DOCKER_AUTH_CONFIG",
	} {
		t.Setenv(k, "")
	}
	old := certsDirs
	certsDirs = []string{filepath.Join(home, "certs.d")}
	t.Cleanup(func() { certsDirs = old })
	return home
}

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func open(t testing.TB, source string, o Options) *Image {
	t.Helper()
	img, err := Open(within(t), source, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { img.Close() })
	return img
}

// readAll reads all layers at once, as package layer does, and compares them.
func readAll(t testing.TB, img *Image, p *picture) {
	t.Helper()
	if err := tryAll(img, p); err != nil {
		t.Fatal(err)
	}
}

func tryAll(img *Image, p *picture) error {
	layers := img.Layers()
	if len(layers) != len(p.layers) {
		return fmt.Errorf("%d layers, want %d", len(layers), len(p.layers))
	}
	errs := make(chan error, len(layers))
	for n, l := range layers {
		go func() {
			r, err := l.Open(context.Background())
			if err != nil {
				errs <- err
				return
			}
			defer r.Close()
			b, err := io.ReadAll(r)
			if err == nil && !bytes.Equal(b, p.layers[n]) {
				err = fmt.Errorf("layer %d: %d bytes that differ", n, len(b))
			}
			errs <- err
		}()
	}
	var first error
	for range layers {
		if err := <-errs; err != nil && first == nil {
			first = err
		}
	}
	return first
}

// wantError checks that an error has some words and none of others.
func wantError(t testing.TB, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one with %q", words)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q has no %q", err, w)
		}
	}
}

// writeFiles writes files below a directory.
func writeFiles(t testing.TB, dir string, files map[string]string) {
	t.Helper()
	for name, body := range maps.All(files) {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
