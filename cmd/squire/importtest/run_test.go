package importtest

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/internal/registry"
)

// TestRunImports runs commands in images that are in a registry.
func TestRunImports(t *testing.T) {
	l := newLab(t, "docker-registry", "skopeo", "umoci")
	s := newStore(t, l)
	for _, who := range users {
		t.Run("once/"+who.name, func(t *testing.T) { testRunOnce(t, s, who) })
	}
	t.Run("at once", func(t *testing.T) { testRunAtOnce(t, s) })
	t.Run("refused", func(t *testing.T) { testRunRefused(t, s) })
	t.Run("killed", func(t *testing.T) { testRunKilled(t, s) })
	t.Run("forgotten", func(t *testing.T) { testRunForgets(t, s) })
}

// running is a user with a cache.
type running struct {
	*importing
	images string // where imported images are
	flags  string // of "squire import"
}

func newRunning(t *testing.T, s *store, who user, address string) *running {
	i := s.lab.importer(t, who)
	return &running{i, filepath.Join(i.home, "cache", "images"), "--arch amd64 --retries 1 --insecure " + address}
}

// run runs squire, for at most two minutes, in an image: as the images have no programs, it is squire itself that runs there.
func (r *running) run(t *testing.T, image string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := command(ctx, r.who, r.home, r.lab.squire, "run", "--mounts", r.lab.squire+":/tool", image, "--", "/tool", "version")
	cmd.Env = append(cmd.Env, "SQUIRE_CACHE_DIR="+filepath.Dir(r.images), "SQUIRE_IMPORT_FLAGS="+r.flags)
	got := finish(t, cmd)
	if ctx.Err() != nil {
		t.Fatalf("run %s as %s: still running after two minutes: %s", image, r.who.name, got.stderr)
	}
	return got
}

// must runs squire in an image, and the test fails if that does.
func (r *running) must(t *testing.T, image string) result {
	t.Helper()
	got := r.run(t, image)
	if got.status != 0 || !strings.Contains(got.stdout, "squire") {
		t.Fatalf("run %s as %s: %+v", image, r.who.name, got)
	}
	return got
}

// list returns the names of the images that were imported.
func (r *running) list(t *testing.T) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(r.images)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".sqsh") {
			names = append(names, e.Name())
		}
	}
	return names
}

// testRunOnce: what is there is not imported again, and what has a digest is found without the registry.
func testRunOnce(t *testing.T, s *store, who user) {
	reg := s.start(t, registry.Options{})
	r := newRunning(t, s, who, reg.Address)
	first := r.must(t, source(reg.Address, "1"))
	if !strings.Contains(first.stderr, "docker://"+reg.Address+"/team/app:1") {
		t.Errorf("no progress: %q", first.stderr)
	}
	if fi, err := os.Stat(r.images); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("the directory of images is open to others: %v, %v", fi, err)
	}
	before := blobs(reg.Log())
	if again := r.must(t, source(reg.Address, "1")); again.stderr != "" {
		t.Errorf("the second time it says %q", again.stderr)
	}
	if n := blobs(reg.Log()) - before; n > 1 { // the configuration, perhaps
		t.Errorf("a second run transferred %d blobs", n)
	}
	index := s.tags["2"].Digest
	r.must(t, source(reg.Address, index)) // of a list, in which the first image is
	if names := r.list(t); len(names) != 2 {
		t.Errorf("want an image and a link to it, got %q", names)
	}
	reg.Stop()
	for _, digest := range []string{s.tags["1"].Digest, index} {
		if got := r.must(t, source(reg.Address, digest)); got.stderr != "" {
			t.Errorf("%s, without the registry: %q", digest, got.stderr)
		}
	}
}

// testRunAtOnce: one imports, the others wait for it.
func testRunAtOnce(t *testing.T, s *store) {
	reg := s.start(t, registry.Options{})
	r := newRunning(t, s, users[1], reg.Address)
	r.flags += " --no-cache"
	var all sync.WaitGroup
	for range 5 {
		all.Go(func() {
			if got := r.run(t, source(reg.Address, "large")); got.status != 0 {
				t.Errorf("%+v", got)
			}
		})
	}
	all.Wait()
	// A configuration for each, and the layers for one.
	if n := blobs(reg.Log()); n > 5+3+1 {
		t.Errorf("five runs at once transferred %d blobs", n)
	}
}

// testRunRefused: one line says what was wrong, and nothing is left.
func testRunRefused(t *testing.T, s *store) {
	reg := s.start(t, registry.Options{})
	for _, tt := range []struct{ image, flags, want string }{
		{source(reg.Address, "none"), "--insecure " + reg.Address, "none"},
		{source("127.0.0.1:1", "1"), "--retries 0", "connection refused"},
		{source(reg.Address, "1"), "--output x", "SQUIRE_IMPORT_FLAGS: --output: makes no sense here"},
		{source(reg.Address, "1"), "--no-such", "SQUIRE_IMPORT_FLAGS: unknown flag"},
		{source(reg.Address, "1"), "x", "SQUIRE_IMPORT_FLAGS: x: want flags only"},
		{"docker://UPPER", "", "lower case"},
		{"docker://me:secret@x", "", "a password has no place"},
	} {
		r := newRunning(t, s, users[1], reg.Address)
		r.flags = tt.flags
		got := r.run(t, tt.image)
		if got.status != 125 || strings.Count(got.stderr, "\n") != 1 || !strings.HasPrefix(got.stderr, "squire: failed to import docker image: ") ||
			!strings.Contains(got.stderr, tt.want) {
			t.Errorf("%s: %+v, want a line with %q", tt.image, got, tt.want)
		}
		if names, err := filepath.Glob(r.images + "/*.sqsh"); err != nil || len(names) > 0 {
			t.Errorf("%s: %q is left", tt.image, names)
		}
	}
}

// testRunKilled: an import for which nobody waits ends, and leaves nothing.
func testRunKilled(t *testing.T, s *store) {
	reg := s.start(t, registry.Options{})
	reached := make(chan struct{})
	var once sync.Once
	p := startProxy(t, reg.Address, 8<<20, func(passed int64) {
		if passed > 4<<20 {
			once.Do(func() { close(reached) })
		}
	})
	r := newRunning(t, s, root, p.address)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := command(ctx, root, r.home, r.lab.squire, "run", source(p.address, "large"))
	cmd.Env = append(cmd.Env, "SQUIRE_CACHE_DIR="+filepath.Dir(r.images), "SQUIRE_IMPORT_FLAGS="+r.flags)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-reached:
	case <-ctx.Done():
		t.Error("it did not get to 4 MiB in a minute")
	}
	if err := cmd.Process.Kill(); err != nil { // it alone, not its group
		t.Error(err)
	}
	_ = cmd.Wait()
	locks, err := filepath.Glob(r.images + "/*.lock")
	if err != nil || len(locks) != 1 {
		t.Fatalf("got %q, %v, want one lock", locks, err)
	}
	lock, err := os.Open(locks[0])
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	for unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		select {
		case <-ctx.Done():
			t.Fatal("the import goes on")
		case <-time.After(20 * time.Millisecond):
		}
	}
	if names := r.list(t); len(names) > 0 {
		t.Errorf("%q is left", names)
	}
}

// testRunForgets: an import removes images that nobody has run for long, and keeps those that somebody has.
func testRunForgets(t *testing.T, s *store) {
	reg := s.start(t, registry.Options{})
	r := newRunning(t, s, root, reg.Address)
	r.must(t, source(reg.Address, "1"))
	old := time.Now().Add(-100 * 24 * time.Hour)
	age := func() {
		t.Helper()
		for _, name := range r.list(t) {
			if err := os.Chtimes(filepath.Join(r.images, name), old, old); err != nil {
				t.Fatal(err)
			}
		}
	}
	age()
	used := r.list(t)
	r.must(t, source(reg.Address, "1"))
	r.must(t, source(reg.Address, "large"))
	if names := r.list(t); len(names) != 2 {
		t.Errorf("got %q, want also %q, which was used", names, used)
	}
	age()
	if err := os.Remove(filepath.Join(r.images, strings.Replace(s.tags["large"].Digest, ":", "-", 1)+".sqsh")); err != nil {
		t.Fatal(err)
	}
	r.must(t, source(reg.Address, "large"))
	if names := r.list(t); len(names) != 1 || names[0] == used[0] {
		t.Errorf("got %q, want only the new one", names)
	}
}
