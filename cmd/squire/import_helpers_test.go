package main

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/squirefs/squire/internal/testenv"
)

// commandName is argv[0] under which the test binary stands in for squire.
const commandName = "squire-test-command"

func TestMain(m *testing.M) {
	if run := stageOf(os.Args[0]); run != nil {
		os.Exit(run())
	}
	if os.Args[0] == commandName {
		os.Exit(execute(os.Args[1:]))
	}
	// A service that happens to run here is not what is tested, but where a test asks for one.
	os.Setenv("SQUIRE_SERVICE", "off")
	os.Exit(m.Run())
}

// command is squire as another process, as the user with this id.
func command(ctx context.Context, uid int, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args = append([]string{commandName}, args...)
	cmd.WaitDelay = 5 * time.Second
	if uid != os.Getuid() {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	}
	return cmd
}

// importUsers are the users that tests of import can be: themselves, and for root an
// ordinary one that no account exists for.
func importUsers() []int {
	if os.Getuid() == 0 {
		return []int{0, 12345}
	}
	return []int{os.Getuid()}
}

// publicDir is a directory that the user with this id owns and reaches.
func publicDir(t *testing.T, uid int) string {
	t.Helper()
	return testenv.Dir(t, "", uid, uid)
}

// testRegistry is a registry in this process. It counts the layers that are asked for.
type testRegistry struct {
	host string

	mu    sync.Mutex
	blobs int
	slow  time.Duration // between pieces of a blob
	deny  int           // answer everything with this status
}

func newRegistry(t *testing.T) *testRegistry {
	t.Helper()
	r := new(testRegistry)
	quiet := slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	handler := registry.New(registry.Logger(quiet))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.mu.Lock()
		slow, deny := r.slow, r.deny
		if req.Method == http.MethodGet && strings.Contains(req.URL.Path, "/blobs/") {
			r.blobs++
			if slow > 0 {
				w = &slowWriter{w, slow, req.Context()}
			}
		}
		r.mu.Unlock()
		if deny != 0 {
			w.WriteHeader(deny)
			return
		}
		handler.ServeHTTP(w, req)
	}))
	t.Cleanup(srv.Close)
	r.host = strings.TrimPrefix(srv.URL, "http://")
	return r
}

func (r *testRegistry) set(slow time.Duration, deny int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.slow, r.deny = slow, deny
}

// asked returns how many layers were asked for since it was called last.
func (r *testRegistry) asked() (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n, r.blobs = r.blobs, 0
	return n
}

// slowWriter sends a response in small pieces.
type slowWriter struct {
	http.ResponseWriter
	pause time.Duration
	ctx   context.Context
}

func (w *slowWriter) Write(b []byte) (n int, err error) {
	for len(b) > 0 {
		piece := b[:min(len(b), 4096)]
		m, err := w.ResponseWriter.Write(piece)
		n += m
		if err != nil {
			return n, err
		}
		w.ResponseWriter.(http.Flusher).Flush()
		b = b[len(piece):]
		select {
		case <-w.ctx.Done():
			return n, w.ctx.Err()
		case <-time.After(w.pause):
		}
	}
	return n, nil
}

// push puts an image there and returns how import names it.
func (r *testRegistry) push(t *testing.T, as string, img v1.Image) string {
	t.Helper()
	ref, err := name.ParseReference(r.host+"/"+as, name.Insecure)
	if err == nil {
		err = remote.Write(ref, img)
	}
	if err != nil {
		t.Fatal(err)
	}
	return "docker://" + r.host + "/" + as
}

// entryOf is an entry of a test's archive: a directory if the name ends with a slash, a
// link if there is a target.
type entryOf struct {
	name, text, link string
	mode             int64
	device           bool
}

func tarOf(t *testing.T, entries ...entryOf) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Mode: e.mode, Typeflag: tar.TypeReg, Size: int64(len(e.text)), ModTime: time.Unix(1e9, 0), Format: tar.FormatPAX}
		if e.mode == 0 {
			h.Mode = 0o644
		}
		switch {
		case strings.HasSuffix(e.name, "/"):
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
		case e.link != "":
			h.Typeflag, h.Linkname = tar.TypeSymlink, e.link
		case e.device:
			h.Typeflag, h.Devmajor, h.Devminor = tar.TypeChar, 1, 3
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.text); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// testContainer makes a container image of layers, lowest first.
func testContainer(t *testing.T, config v1.Config, layers ...[]byte) v1.Image {
	t.Helper()
	img := empty.Image
	for _, b := range layers {
		l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil })
		if err == nil {
			img, err = mutate.AppendLayers(img, l)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	file, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Config, file.Created = "linux", testArch, config, v1.Time{Time: time.Unix(1700000000, 0).UTC()}
	if img, err = mutate.ConfigFile(img, file); err != nil {
		t.Fatal(err)
	}
	return img
}

// testArch is an architecture that no test runs on by accident.
const testArch = "s390x"

// hello is a small image with what most tests need.
func hello(t *testing.T, text string) v1.Image {
	t.Helper()
	return testContainer(
		t, v1.Config{Env: []string{"A=1", "B=two words"}, Entrypoint: []string{"/bin/hello", "-x"}, Cmd: []string{"world"}, WorkingDir: "/srv", Labels: map[string]string{"maker": "test"}},
		tarOf(t, entryOf{name: "bin/"}, entryOf{name: "srv/"}, entryOf{name: "etc/"}, entryOf{name: "bin/hello", text: text, mode: 0o755}, entryOf{name: "etc/old", text: "hidden"}, entryOf{name: "dev/null", device: true}),
		tarOf(t, entryOf{name: "etc/.wh.old"}, entryOf{name: "etc/new", text: text}, entryOf{name: "etc/link", link: "new"}),
	)
}

// importArgs are the flags for the registry, with a cache of the test's own.
func (r *testRegistry) importArgs(cache string, args ...string) []string {
	return append([]string{"import", "--arch", testArch, "--insecure", r.host, "--cache-dir", cache}, args...)
}

// wantOnly checks that a directory has these files and no others.
func wantOnly(t *testing.T, dir string, names ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if fmt.Sprint(got) != fmt.Sprint(names) {
		t.Errorf("%s has %q, want %q", dir, got, names)
	}
}

// sameBytes reports whether two files are the same.
func sameBytes(t *testing.T, a, b string) bool {
	t.Helper()
	x, err := os.ReadFile(a)
	if err != nil {
		t.Fatal(err)
	}
	y, err := os.ReadFile(b)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Equal(x, y)
}

var _ = filepath.Join
