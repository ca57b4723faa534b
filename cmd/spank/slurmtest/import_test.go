package slurmtest

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
)

// registry is one with a single image, team/guest:1, that hands out what it is asked for, and remembers it.
type registry struct {
	*httptest.Server
	name     string // of the image, in pyxis's form
	manifest []byte
	blobs    map[string][]byte
	layer    string

	mu     sync.Mutex
	layers int           // that were asked for
	asked  chan struct{} // gets one for each, if there is room
	stuck  chan struct{} // not nil: the layer is not given before it is closed
}

func newRegistry(t *testing.T, l *lab) *registry {
	t.Helper()
	r := &registry{blobs: map[string][]byte{}, asked: make(chan struct{}, 100)}
	blob := func(mediaType string, content []byte) map[string]any {
		digest := fmt.Sprintf("sha256:%x", sha256.Sum256(content))
		r.blobs[digest] = content
		return map[string]any{"mediaType": mediaType, "digest": digest, "size": len(content)}
	}
	layer := guestLayer(t, l)
	layerBlob := blob("application/vnd.oci.image.layer.v1.tar", layer)
	r.layer = layerBlob["digest"].(string)
	config := marshal(t, map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "rootfs": map[string]any{"type": "layers", "diff_ids": []string{r.layer}},
		"config": map[string]any{"Env": []string{"PATH=/bin", "IMAGE=image", "BOTH=image"}, "Entrypoint": []string{"/entrypoint"}, "WorkingDir": "/bin"},
	})
	r.manifest = marshal(t, map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": blob("application/vnd.oci.image.config.v1+json", config), "layers": []any{layerBlob},
	})
	r.Server = httptest.NewServer(r)
	t.Cleanup(r.CloseClientConnections)
	t.Cleanup(r.Close)
	r.name = strings.TrimPrefix(r.URL, "http://") + "#team/guest"
	return r
}

func marshal(t *testing.T, v any) []byte {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// guestLayer is an archive with the program of testdata/guest, under two names.
func guestLayer(t *testing.T, l *lab) []byte {
	t.Helper()
	program := filepath.Join(l.userDir(t), "guest")
	build := exec.Command("go", "build", "-o", program, "./testdata/guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the guest: %v\n%s", err, out)
	}
	content, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, dir := range []string{"bin", "etc", "dev", "proc", "sys", "tmp"} {
		if err = w.WriteHeader(&tar.Header{Name: dir + "/", Typeflag: tar.TypeDir, Mode: 0o755}); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"bin/guest", "entrypoint"} {
		err = w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(content))})
		if err == nil {
			_, err = w.Write(content)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err = w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// ServeHTTP is the part of the distribution specification that reads.
func (r *registry) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	switch at, name := "/v2/team/guest/", q.URL.Path; {
	case name == "/v2/":
	case name == at+"manifests/1":
		w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
		_, _ = w.Write(r.manifest)
	case r.blobs[strings.TrimPrefix(name, at+"blobs/")] != nil:
		digest := strings.TrimPrefix(name, at+"blobs/")
		if digest == r.layer {
			r.mu.Lock()
			r.layers++
			stuck := r.stuck
			r.mu.Unlock()
			select {
			case r.asked <- struct{}{}:
			default:
			}
			if stuck != nil {
				select {
				case <-stuck:
				case <-q.Context().Done():
				}
			}
		}
		_, _ = w.Write(r.blobs[digest])
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

// given is how many layers were asked for until now.
func (r *registry) given() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.layers
}

// environ has the user import into a directory of the test's.
func (r *registry) environ(t *testing.T, l *lab) []string {
	t.Helper()
	return []string{
		"SQUIRE_CACHE_DIR=" + filepath.Join(l.userDir(t), "cache"), "SQUIRE_IMPORT_FLAGS=--retries 0 --no-cache --insecure " + strings.TrimPrefix(r.URL, "http://"),
	}
}

// An image of a registry is imported once for all tasks and nodes that see the same cache, and not again.
func TestImportOnce(t *testing.T) {
	l := theLab(t)
	r := newRegistry(t, l)
	env := append(r.environ(t, l), "BOTH=host", "LANG=de_DE.UTF-8", "SLURM_OVERLAP=1")
	for try, how := range []string{"", ", which was there already"} {
		got := l.runAs(t, l.user, env, l.user.home, "srun", "-N2", "--ntasks-per-node=4", "--container-image="+r.name+":1", "guest", "IMAGE", "BOTH", "LANG", "PATH")
		if got.code != 0 || got.stdout != strings.Repeat("/bin image image  /bin\n", 8) {
			t.Errorf("got %+v", got)
		}
		if n := strings.Count(got.stderr, "squire: imported docker image: "+r.name+":1"+how+"\n"); try == 1 && n != 2 || n == 0 {
			t.Errorf("it has said %d times that there is an image: %q", n, got.stderr)
		}
	}
	if n := r.given(); n != 1 {
		t.Errorf("the layer was asked for %d times", n)
	}
}

// The entrypoint runs once on a node, and what it leaves is in all tasks. The image has no shell.
func TestImportEntrypoint(t *testing.T) {
	l := theLab(t)
	r := newRegistry(t, l)
	env := append(r.environ(t, l), "BOTH=host", "KEPT=kept", "JOBS=job")
	srun := []string{"srun", "-n3", "--container-image=" + r.name + ":1", "--container-env=KEPT,BOTH", "--container-entrypoint"}
	run := []string{"guest", "ENTRY", "IMAGE", "BOTH", "KEPT", "JOBS"}
	got := l.runAs(t, l.user, env, l.user.home, slices.Concat(srun, []string{"--container-entrypoint-log"}, run)...)
	if got.code != 0 || got.stdout != strings.Repeat("/etc left image host kept job\n", 3) || strings.Count(got.stderr, "banner kept \n") != 1 {
		t.Errorf("got %+v", got)
	}
	got = l.runAs(t, l.user, env, l.user.home, slices.Concat(srun, []string{"--container-workdir=/"}, run)...)
	if got.code != 0 || got.stdout != strings.Repeat("/ left image host kept job\n", 3) || strings.Contains(got.stderr, "banner") {
		t.Errorf("got %+v", got)
	}
	got = l.runAs(t, l.user, append(env, "PYXIS_CONTAINER_ENTRYPOINT=1"), l.user.home, slices.Concat(srun[:4], []string{"--no-container-entrypoint"}, run)...)
	if got.code != 0 || got.stdout != strings.Repeat("/bin  image host kept job\n", 3) {
		t.Errorf("got %+v", got)
	}
}

// An image that is not there is said once on each node.
func TestImportFails(t *testing.T) {
	l := theLab(t)
	r := newRegistry(t, l)
	got := l.runAs(t, l.user, r.environ(t, l), l.user.home, "srun", "-N2", "--ntasks-per-node=4", "--container-image="+r.name+":none", "guest")
	if got.code != 1 || got.stdout != "" || strings.Count(got.stderr, "failed to import docker image") != 2 {
		t.Errorf("got %+v", got)
	}
}

// A job that is cancelled while it imports ends at once, and leaves no image.
func TestImportCancelled(t *testing.T) {
	l := theLab(t)
	r := newRegistry(t, l)
	r.stuck = make(chan struct{})
	defer close(r.stuck)
	env := r.environ(t, l)
	cmd := l.command(t, l.user, env, l.user.home, "srun", "-n2", "--job-name=stuck", "--container-image="+r.name+":1", "guest")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case <-r.asked:
		l.runAs(t, l.user, nil, l.user.home, "scancel", "--me", "--name=stuck")
		<-ended
	case <-ended:
	}
	if cmd.ProcessState.Success() || !strings.Contains(stderr.String(), "CANCELLED") {
		t.Errorf("%v: %s", cmd.ProcessState, &stderr)
	}
	cache := strings.TrimPrefix(env[0], "SQUIRE_CACHE_DIR=")
	if names, err := filepath.Glob(cache + "/images/*.sqsh"); err != nil || len(names) > 0 {
		t.Errorf("%q is left, %v", names, err)
	}
}
