package importtest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/squirefs/squire/internal/registry"
)

// store is the storage of a registry with images in it: team/app has the tags 1, 2 and large.
type store struct {
	lab    *lab
	dir    string
	layout *layout
	tags   map[string]descriptor // tag to its manifest or index
}

// TestRegistry imports from Debian's docker-registry.
func TestRegistry(t *testing.T) {
	l := newLab(t, "docker-registry", "skopeo", "umoci")
	s := newStore(t, l)
	for _, who := range users {
		t.Run("tags and digests/"+who.name, func(t *testing.T) { testTags(t, s, who) })
		t.Run("architectures/"+who.name, func(t *testing.T) { testArchitectures(t, s, who) })
		t.Run("credentials/"+who.name, func(t *testing.T) { testCredentials(t, s, who) })
	}
	t.Run("refused", func(t *testing.T) { testRefused(t, s) })
	t.Run("TLS", func(t *testing.T) { testTLS(t, s) })
	t.Run("restarted during a download", func(t *testing.T) { testRestarted(t, s) })
	t.Run("gone during a download", func(t *testing.T) { testGone(t, s) })
	t.Run("interrupted", func(t *testing.T) { testInterrupted(t, s) })
	t.Run("damaged storage", func(t *testing.T) { testDamaged(t, s) })
	t.Run("reproducible", func(t *testing.T) { testReproducible(t, s) })
	t.Run("up to date", func(t *testing.T) { testUpToDate(t, s) })
	t.Run("cache", func(t *testing.T) { testCache(t, s) })
	t.Run("cache bound", func(t *testing.T) { testCacheBound(t, s) })
	t.Run("at once", func(t *testing.T) { testAtOnce(t, s) })
}

// newStore makes images and has skopeo push them.
func newStore(t *testing.T, l *lab) *store {
	t.Helper()
	s := &store{lab: l, dir: l.mkdir(t, root), layout: newLayout(t, l.mkdir(t, root)), tags: map[string]descriptor{}}
	base := []entry{dir("etc"), file("etc/os-release", "ID=test\n"), dir("bin"), file("bin/su", "x").perm(0o4755), file("gone", "x"), dir("d"), file("d/old", "x")}
	top := []entry{whiteout("", "gone"), dir("d"), opaque("d"), file("d/new", "y").owner(5, 6), hardlink("link", "bin/su")}
	arm := []entry{file("arm", "64")}
	large := []entry{file("random", noise(24<<20, 1))}
	s.tags["1"] = s.layout.image(t, "amd64", nil, archives(t, base, top), "gzip", "zstd")
	s.layout.tag(t, "1-gzip", s.layout.image(t, "amd64", nil, archives(t, base, top), "gzip"))
	s.tags["arm"] = s.layout.image(t, "arm64", nil, archives(t, base, arm), "gzip")
	s.tags["2"] = s.layout.index(t, s.tags["1"], s.tags["arm"])
	s.tags["large"] = s.layout.image(t, "amd64", nil, archives(t, base, large, []entry{file("more", noise(8<<20, 2))}), "gzip")
	for tag, d := range s.tags {
		s.layout.tag(t, tag, d)
	}
	r := s.start(t, registry.Options{})
	for _, tag := range []string{"1", "2", "large"} {
		must(t, "skopeo", "--insecure-policy", "copy", "--all", "--preserve-digests", "--dest-tls-verify=false", "oci:"+s.layout.dir+":"+tag, "docker://"+r.Address+"/team/app:"+tag)
	}
	r.Stop()
	return s
}

// archives returns one archive a layer.
func archives(t *testing.T, layers ...[]entry) [][]byte {
	t.Helper()
	return (&stack{layers: layers}).archives(t)
}

// noise is what no compressor makes smaller, the same for the same seed.
func noise(n int, seed uint64) string {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed)}).Read(b) // it never fails
	return string(b)
}

// start starts a registry on the store, which ends with the test.
func (s *store) start(t *testing.T, o registry.Options) *registry.Registry {
	t.Helper()
	if o.Storage == "" {
		o.Storage = s.dir
	}
	r, err := registry.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Stop)
	return r
}

// source names an image in a registry, by tag or digest.
func source(address, reference string) string {
	if strings.HasPrefix(reference, "sha256:") {
		return "docker://" + address + "/team/app@" + reference
	}
	return "docker://" + address + "/team/app:" + reference
}

// wantApp fails the test unless the import's image is what umoci makes of a tag.
func (s *store) wantApp(t *testing.T, i *importing, tag string) {
	t.Helper()
	if tag == "1" {
		tag = "1-gzip" // umoci does not know zstd
	}
	want := s.lab.umoci(t, s.layout, tag)
	wantTree(t, "umoci's", readTree(t, s.lab.mount(t, i.out)).without(want), want)
}

func testTags(t *testing.T, s *store, who user) {
	r := s.start(t, registry.Options{})
	index, manifest := s.tags["2"].Digest, s.tags["1"].Digest
	for _, name := range []string{
		source(r.Address, "1"), source(r.Address, manifest), source(r.Address, index),
		"docker://" + r.Address + "/team/app:1@" + manifest, "docker://" + r.Address + "#team/app:1",
	} {
		i := s.lab.importer(t, who)
		i.must(t, name, "--insecure", r.Address, "--arch", "amd64")
		s.wantApp(t, i, "1")
	}
	i := s.lab.importer(t, who)
	i.fails(t, source(r.Address, "none"), []string{"not found", "unknown", "no such"}, "--insecure", r.Address)
	i.fails(t, "docker://"+r.Address+"/no/such:1", []string{"not found", "unknown", "no such"}, "--insecure", r.Address)
	i.fails(t, source(r.Address, "sha256:"+strings.Repeat("0", 64)), []string{"not found", "unknown", "no such"}, "--insecure", r.Address)
}

func testArchitectures(t *testing.T, s *store, who user) {
	r := s.start(t, registry.Options{})
	for arch, tag := range map[string]string{"amd64": "1", "x86_64": "1", "arm64": "arm", "aarch64": "arm"} {
		i := s.lab.importer(t, who)
		i.must(t, source(r.Address, "2"), "--insecure", r.Address, "--arch", arch)
		s.wantApp(t, i, tag)
	}
	i := s.lab.importer(t, who)
	i.fails(t, source(r.Address, "2"), []string{"riscv64"}, "--insecure", r.Address, "--arch", "riscv64")
}

// dockerConfig is the text of Docker's config.json with a login.
func dockerConfig(t *testing.T, address, password string) string {
	t.Helper()
	auth := base64.StdEncoding.EncodeToString([]byte(registry.User + ":" + password))
	text, err := json.Marshal(map[string]any{"auths": map[string]any{address: map[string]string{"auth": auth}}})
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// write writes a file of the user's, below the home directory.
func (i *importing) write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(i.home, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if i.who.cred != nil {
		err := filepath.WalkDir(i.home, func(path string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			return os.Lchown(path, int(i.who.cred.Uid), int(i.who.cred.Gid))
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return path
}

// credentials are the places where a login can be.
var credentials = []struct {
	name  string
	write func(t *testing.T, i *importing, address, password string)
	user  string // in the name of the image
}{
	{"config.json", func(t *testing.T, i *importing, a, p string) {
		i.write(t, ".docker/config.json", dockerConfig(t, a, p))
	}, ""},
	{"DOCKER_CONFIG", func(t *testing.T, i *importing, a, p string) {
		i.env = append(i.env, "DOCKER_CONFIG="+filepath.Dir(i.write(t, "elsewhere/config.json", dockerConfig(t, a, p))))
	}, ""},
	{"auth.json", func(t *testing.T, i *importing, a, p string) {
		i.write(t, "runtime/containers/auth.json", dockerConfig(t, a, p))
		i.env = append(i.env, "XDG_RUNTIME_DIR="+filepath.Join(i.home, "runtime"))
	}, ""},
	{"REGISTRY_AUTH_FILE", func(t *testing.T, i *importing, a, p string) {
		i.env = append(i.env, "REGISTRY_AUTH_FILE="+i.write(t, "auth", dockerConfig(t, a, p)))
	}, ""},
	{"enroot", func(t *testing.T, i *importing, _, p string) {
		i.write(t, ".config/enroot/.credentials", fmt.Sprintf("machine other login x password y\nmachine 127.0.0.1 login %s password %s\n", registry.User, p))
	}, ""},
	{"enroot, with the user named", func(t *testing.T, i *importing, _, p string) {
		i.write(t, "conf/.credentials", fmt.Sprintf("machine 127.0.0.1 login x password y\nmachine 127.0.0.1 login %s password %s\n", registry.User, p))
		i.env = append(i.env, "ENROOT_CONFIG_PATH="+filepath.Join(i.home, "conf"))
	}, registry.User + "@"},
}

func testCredentials(t *testing.T, s *store, who user) {
	tokens, err := registry.NewTokens(time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tokens.Close)
	for name, o := range map[string]registry.Options{"passwords": {Passwords: true}, "tokens": {Tokens: tokens}} {
		for _, c := range credentials {
			t.Run(name+"/"+c.name, func(t *testing.T) {
				r := s.start(t, o)
				i := s.lab.importer(t, who)
				c.write(t, i, r.Address, registry.Password)
				insecure := []string{"--insecure", r.Address, "--arch", "amd64"}
				if o.Tokens != nil {
					insecure = append(insecure, "--insecure", o.Tokens.Host())
				}
				from := strings.Replace(source(r.Address, "1"), "docker://", "docker://"+c.user, 1)
				said := i.must(t, from, insecure...)
				s.wantApp(t, i, "1")
				i.wantNoSecret(t, said)

				i = s.lab.importer(t, who)
				c.write(t, i, r.Address, "wrong-password")
				i.fails(t, from, []string{"unauthorized", "authentication", "credentials", "password"}, insecure...)
			})
		}
	}
	if tokens.Given() == 0 {
		t.Error("no token was asked for")
	}
}

// wantNoSecret fails the test when the password is in what was said or in the image.
func (i *importing) wantNoSecret(t *testing.T, said result) {
	t.Helper()
	texts := map[string]string{"output": said.stdout, "messages": said.stderr}
	point := i.lab.mount(t, i.out)
	for _, name := range []string{"etc/squire/image.json", "etc/rc", "etc/environment", "etc/fstab", "etc/rc.local"} {
		text, err := os.ReadFile(filepath.Join(point, name))
		if err != nil {
			t.Error(err)
		}
		texts[name] = string(text)
	}
	for where, text := range texts {
		for _, secret := range []string{registry.Password, base64.StdEncoding.EncodeToString([]byte(registry.User + ":" + registry.Password))} {
			if strings.Contains(text, secret) {
				t.Errorf("%s have the password: %s", where, text)
			}
		}
	}
}

func testRefused(t *testing.T, s *store) {
	tokens, err := registry.NewTokens(time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tokens.Close)
	for name, o := range map[string]registry.Options{"passwords": {Passwords: true}, "tokens": {Tokens: tokens}} {
		t.Run(name, func(t *testing.T) {
			r := s.start(t, o)
			i := s.lab.importer(t, root)
			insecure := []string{"--insecure", r.Address}
			if o.Tokens != nil {
				// A registry that may be spoken to by plain HTTP says nothing about where it sends its users.
				i.write(t, ".docker/config.json", dockerConfig(t, r.Address, registry.Password))
				i.fails(t, source(r.Address, "1"), []string{"insecure"}, insecure...)
				i.write(t, ".docker/config.json", "{}")
				insecure = append(insecure, "--insecure", o.Tokens.Host())
			}
			words := []string{"unauthorized", "authentication", "credentials", "log in"}
			i.fails(t, source(r.Address, "1"), words, insecure...)
			// Those of another registry are not for this one.
			i.write(t, ".docker/config.json", dockerConfig(t, "127.0.0.1:1", registry.Password))
			i.fails(t, source(r.Address, "1"), words, insecure...)
		})
	}
	if n := tokens.Given(); n != 0 {
		t.Errorf("%d tokens were given", n)
	}
}

func testTLS(t *testing.T, s *store) {
	ca, err := registry.NewCA("test CA")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := registry.NewServer(ca)
	if err != nil {
		t.Fatal(err)
	}
	r := s.start(t, registry.Options{TLS: pair, Passwords: true})
	i := s.lab.importer(t, root)
	i.write(t, ".docker/config.json", dockerConfig(t, r.Address, registry.Password))
	i.fails(t, source(r.Address, "1"), []string{"certificate", "unknown authority"})
	if n := strings.Count(r.Log(), "GET /v2/"); n != 0 {
		t.Errorf("there were %d requests over a connection that nobody vouches for: %s", n, r.Log())
	}
	other, err := registry.NewCA("other CA")
	if err != nil {
		t.Fatal(err)
	}
	i.fails(t, source(r.Address, "1"), []string{"certificate", "unknown authority"}, "--ca-cert", i.write(t, "other.pem", string(other.Cert)))
	i.fails(t, source(r.Address, "1"), []string{"certificate"}, "--ca-cert", i.write(t, "none.pem", "no certificate"))
	i.must(t, source(r.Address, "1"), "--ca-cert", i.write(t, "ca.pem", string(ca.Cert)), "--arch", "amd64")
	s.wantApp(t, i, "1")

	i = s.lab.importer(t, root)
	i.write(t, ".docker/config.json", dockerConfig(t, r.Address, registry.Password))
	i.must(t, source(r.Address, "1"), "--insecure", r.Address, "--arch", "amd64")
	s.wantApp(t, i, "1")
}

// testRestarted kills the registry in the middle of a layer, and starts another one at its address.
func testRestarted(t *testing.T, s *store) {
	first := s.start(t, registry.Options{})
	var once sync.Once
	var restarted sync.WaitGroup
	var second *registry.Registry
	var err error
	p := startProxy(t, first.Address, 24<<20, func(passed int64) {
		if passed > 12<<20 {
			once.Do(func() {
				restarted.Go(func() {
					first.Stop()
					time.Sleep(300 * time.Millisecond) // connections are refused
					second, err = registry.Start(registry.Options{Storage: s.dir, Address: first.Address})
				})
			})
		}
	})
	i := s.lab.importer(t, root)
	i.must(t, source(p.address, "large"), "--insecure", p.address, "--arch", "amd64")
	restarted.Wait()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(second.Stop)
	s.wantApp(t, i, "large")
	if log := second.Log(); !strings.Contains(log, `" 206 `) {
		t.Errorf("nothing was resumed; the second registry saw: %s", log)
	}
	if n := p.passed.Load(); n > 40<<20 {
		t.Errorf("%d MiB were transferred for an image of 32 MiB", n>>20)
	}
}

// testGone kills the registry for good.
func testGone(t *testing.T, s *store) {
	r := s.start(t, registry.Options{})
	p := startProxy(t, r.Address, 24<<20, func(passed int64) {
		if passed > 12<<20 {
			go r.Stop()
		}
	})
	i := s.lab.importer(t, root)
	i.fails(t, source(p.address, "large"), []string{"connection", "EOF", "refused", "reset"}, "--insecure", p.address, "--retries", "2", "--arch", "amd64")
}

func testInterrupted(t *testing.T, s *store) {
	r := s.start(t, registry.Options{})
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		i := s.lab.importer(t, root)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		reached := make(chan struct{})
		var once sync.Once
		p := startProxy(t, r.Address, 8<<20, func(passed int64) {
			if passed > 4<<20 {
				once.Do(func() { close(reached) })
			}
		})
		cmd := i.command(ctx, source(p.address, "large"), "--insecure", p.address, "--arch", "amd64")
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		select {
		case <-reached:
		case <-ctx.Done():
			t.Error("it did not get to 4 MiB in a minute")
		}
		_ = cmd.Process.Signal(sig)
		_ = cmd.Wait()
		// The shell's convention, or the signal itself.
		ws := cmd.ProcessState.Sys().(syscall.WaitStatus)
		if ws.ExitStatus() != 128+int(sig) && (!ws.Signaled() || ws.Signal() != sig) {
			t.Errorf("%v: %s: %s", sig, cmd.ProcessState, &stderr)
		}
		i.wantNothing(t)
	}
}

// blobFile finds the file of a blob in the storage of a registry.
func blobFile(storage, digest string) string {
	hex := strings.TrimPrefix(digest, "sha256:")
	return filepath.Join(storage, "docker/registry/v2/blobs/sha256", hex[:2], hex, "data")
}

// testDamaged changes blobs in the registry's storage, which it does not notice.
func testDamaged(t *testing.T, s *store) {
	var manifest struct {
		Config descriptor
		Layers []descriptor
	}
	text, err := os.ReadFile(blobFile(s.dir, s.tags["large"].Digest))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &manifest); err != nil {
		t.Fatal(err)
	}
	flip := func(data []byte) []byte { data[len(data)/2] ^= 1; return data }
	tests := []struct {
		name   string
		digest string
		damage func([]byte) []byte
		words  []string
	}{
		{"a bit of a layer", manifest.Layers[1].Digest, flip, []string{"digest", "checksum", "sha256", "gzip"}},
		{"the last byte of a layer", manifest.Layers[2].Digest, func(b []byte) []byte { b[len(b)-1] ^= 1; return b }, []string{"digest", "checksum", "sha256", "gzip"}},
		{"a layer that is cut off", manifest.Layers[1].Digest, func(b []byte) []byte { return b[:len(b)/2] }, []string{"digest", "EOF", "size", "length", "bytes"}},
		{"a layer that goes on", manifest.Layers[1].Digest, func(b []byte) []byte { return append(b, make([]byte, 1000)...) }, []string{"digest", "size", "length", "bytes"}},
		{"another layer", manifest.Layers[1].Digest, func([]byte) []byte { return compress(t, "gzip", archives(t, []entry{file("evil", "x")})[0]) }, []string{"digest", "size", "length", "bytes"}},
		{"a bit of the configuration", manifest.Config.Digest, flip, []string{"digest", "sha256"}},
		{"a bit of the manifest", s.tags["large"].Digest, flip, []string{"digest", "sha256", "manifest"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			storage := filepath.Join(s.lab.mkdir(t, root), "storage")
			must(t, "cp", "-a", s.dir, storage)
			path := blobFile(storage, tt.digest)
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, tt.damage(data), 0o600); err != nil {
				t.Fatal(err)
			}
			r := s.start(t, registry.Options{Storage: storage})
			i := s.lab.importer(t, root)
			i.fails(t, source(r.Address, "large"), tt.words, "--insecure", r.Address, "--arch", "amd64", "--retries", "1")

			// What was wrong is not in the cache either.
			good := s.start(t, registry.Options{})
			i.must(t, source(good.Address, "large"), "--insecure", good.Address, "--arch", "amd64")
			s.wantApp(t, i, "large")
		})
	}
}

// testReproducible imports the same digest in different ways.
func testReproducible(t *testing.T, s *store) {
	r := s.start(t, registry.Options{})
	cache := s.lab.mkdir(t, root)
	ways := [][]string{
		{"--no-cache"},
		{"--no-cache", "--processors", "1"},
		{"--no-cache", "--processors", "7"},
		{"--cache-dir", cache},
		{"--cache-dir", cache},
		{"--no-cache", "--connections", "1"},
	}
	for _, tag := range []string{"1", "large"} {
		var first []byte
		for n, way := range ways {
			i := s.lab.importer(t, users[n%2])
			if i.who.cred != nil {
				way = []string{"--no-cache"} // the directory is root's
			}
			i.must(t, source(r.Address, tag), append(way, "--insecure", r.Address, "--arch", "amd64")...)
			image, err := os.ReadFile(i.out)
			if err != nil {
				t.Fatal(err)
			}
			if first == nil {
				first = image
			}
			if !bytes.Equal(image, first) {
				t.Errorf("%s: with %q the image is another one", tag, way)
			}
		}
	}
}

// blobs counts the blobs that were asked for.
func blobs(log string) int { return strings.Count(log, "GET /v2/team/app/blobs/") }

func testUpToDate(t *testing.T, s *store) {
	r := s.start(t, registry.Options{})
	i := s.lab.importer(t, root)
	args := []string{"--insecure", r.Address, "--arch", "amd64", "--no-cache"}
	i.must(t, source(r.Address, "large"), args...)
	before, err := os.Stat(i.out)
	if err != nil {
		t.Fatal(err)
	}
	transferred := blobs(r.Log())
	if transferred < 3 {
		t.Fatalf("the log shows %d blobs: %s", transferred, r.Log())
	}
	said := i.must(t, source(r.Address, "large"), args...)
	if !strings.Contains(said.stderr, "up to date") {
		t.Errorf("a second import does not say that the image is up to date: %s", said.stderr)
	}
	after, err := os.Stat(i.out)
	if err != nil {
		t.Fatal(err)
	}
	if !os.SameFile(before, after) || !before.ModTime().Equal(after.ModTime()) {
		t.Error("a second import made the image again")
	}
	if n := blobs(r.Log()) - transferred; n > 1 { // the configuration, perhaps
		t.Errorf("a second import transferred %d blobs", n)
	}
	// Another image is no reason to replace this one, unless that is said.
	r2 := i.run(t, source(r.Address, "1"), args...)
	if r2.status == 0 || !strings.Contains(r2.stderr, "--force") {
		t.Errorf("another image: status %d: %s", r2.status, r2.stderr)
	}
	s.wantApp(t, i, "large")
	i.must(t, source(r.Address, "1"), append(args, "--force")...)
	s.wantApp(t, i, "1")
}

// testCache imports with the layers of an import before.
func testCache(t *testing.T, s *store) {
	r := s.start(t, registry.Options{})
	cache := s.lab.mkdir(t, root)
	args := []string{"--insecure", r.Address, "--arch", "amd64", "--cache-dir", cache}
	s.lab.importer(t, root).must(t, source(r.Address, "large"), args...)
	before := blobs(r.Log())
	i := s.lab.importer(t, root)
	i.must(t, source(r.Address, "large"), args...)
	s.wantApp(t, i, "large")
	if n := blobs(r.Log()) - before; n > 1 { // the configuration, perhaps
		t.Errorf("with the layers in the cache %d blobs were transferred", n)
	}
	// What the cache has is not believed.
	err := filepath.WalkDir(cache, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil || len(data) < 1<<20 {
			return err
		}
		data[len(data)/2] ^= 1
		if err := os.Chmod(path, 0o600); err != nil {
			return err
		}
		return os.WriteFile(path, data, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
	i = s.lab.importer(t, root)
	if got := i.run(t, source(r.Address, "large"), args...); got.status == 0 {
		s.wantApp(t, i, "large")
	} else {
		i.wantNothing(t)
	}
	i = s.lab.importer(t, root)
	i.must(t, source(r.Address, "large"), args...) // the damage is found once only
	s.wantApp(t, i, "large")
}

// size adds up the files below a directory.
func size(t *testing.T, dir string) (n int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			n += info.Size()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// testCacheBound imports with caches that are too small, large enough, and too small again.
func testCacheBound(t *testing.T, s *store) {
	r := s.start(t, registry.Options{})
	cache := s.lab.mkdir(t, root)
	for _, c := range []struct {
		tag       string
		bound     string
		low, high int64 // of what is in the cache then, in bytes
	}{
		{"large", "10M", 0, 10 << 20},
		{"large", "40M", 32 << 20, 40 << 20},
		{"1", "30M", 100, 30 << 20}, // to which some of the large layers have to give way
	} {
		i := s.lab.importer(t, root)
		i.must(t, source(r.Address, c.tag), "--insecure", r.Address, "--arch", "amd64", "--cache-dir", cache, "--cache-size", c.bound)
		s.wantApp(t, i, c.tag)
		if n := size(t, cache); n < c.low || n > c.high {
			t.Errorf("after an import of %s with --cache-size %s the cache has %d bytes, want %d to %d", c.tag, c.bound, n, c.low, c.high)
		}
	}
}

// testAtOnce runs imports that share layers and a cache.
func testAtOnce(t *testing.T, s *store) {
	r := s.start(t, registry.Options{})
	cache := s.lab.mkdir(t, root)
	var all sync.WaitGroup
	sums := make([]string, 6)
	for n := range sums {
		i := s.lab.importer(t, root)
		tag := []string{"large", "1"}[n%2]
		all.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			out, err := i.command(ctx, source(r.Address, tag), "--insecure", r.Address, "--arch", "amd64", "--cache-dir", cache).CombinedOutput()
			if err != nil {
				t.Errorf("import of %s: %v: %s", tag, err, out)
				return
			}
			image, err := os.ReadFile(i.out)
			if err != nil {
				t.Error(err)
				return
			}
			sums[n] = fmt.Sprintf("%s %x", tag, sha256.Sum256(image))
		})
	}
	all.Wait()
	for n, sum := range sums {
		if sum != sums[n%2] {
			t.Errorf("imports at once made different images: %q", sums)
			break
		}
	}
}
