package oci

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// privateDir is a directory that the cache takes.
func privateDir(t testing.TB) string {
	t.Helper()
	return filepath.Join(t.TempDir(), "cache")
}

func cacheFiles(t testing.TB, dir, suffix string) (names []string) {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "blobs", "sha256-*"+suffix))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func layerFile(dir string, p *picture, n int) string {
	return filepath.Join(dir, "blobs", blobName(p.descs[n]["digest"].(string)))
}

func TestCache(t *testing.T) {
	bare(t)
	s := serve(t, false)
	p := paint(t, Config{}, tarOf(t, 1, 1<<20), tarOf(t, 2, 100), tarOf(t, 3, 5000), tarOf(t, 1, 1<<20)) // one twice
	s.push(t, "x", "latest", p)
	o := quick(s)
	o.CacheDir = privateDir(t)
	img := open(t, "docker://"+s.host+"/x", o)
	if img.Size() == 0 {
		t.Error("nothing to transfer")
	}
	readAll(t, img, p)
	img.Close()
	before := s.count("GET")
	var cached atomic.Int64
	o.Event = func(e Event) {
		if e.Cached && e.Done {
			cached.Add(1)
		}
	}
	img = open(t, "docker://"+s.host+"/x", o)
	if n := img.Size(); n != 0 {
		t.Errorf("%d bytes to transfer", n)
	}
	readAll(t, img, p)
	if n := s.count("GET") - before; n > 1 || cached.Load() != 4 { // of /v2/
		t.Errorf("%d requests with everything in the cache, %d layers from there", n, cached.Load())
	}
	for _, f := range cacheFiles(t, o.CacheDir, "") {
		st, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode().Perm() != 0o600 || strings.HasSuffix(f, ".part") || strings.HasSuffix(f, ".tmp") {
			t.Errorf("%s is left with mode %v", f, st.Mode())
		}
	}
}

// TestCacheShared has many importers of one image at once: each layer is fetched once.
func TestCacheShared(t *testing.T) {
	bare(t)
	s := serve(t, false)
	p := paint(t, Config{}, tarOf(t, 1, 1<<20), tarOf(t, 2, 2<<20))
	s.push(t, "x", "latest", p)
	s.setFault(onBlob(func(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
		_, b := body(r, next)
		for len(b) > 0 { // slowly, so that they meet
			n := min(len(b), 64<<10)
			w.Write(b[:n])
			w.(http.Flusher).Flush()
			b = b[n:]
			time.Sleep(time.Millisecond)
		}
		return true
	}))
	o := quick(s)
	o.CacheDir = privateDir(t)
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			img, err := Open(within(t), "docker://"+s.host+"/x", o)
			if err != nil {
				t.Error(err)
				return
			}
			defer img.Close()
			if err := tryAll(img, p); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for n := range p.descs {
		if c := s.count("GET /v2/x/blobs/" + p.descs[n]["digest"].(string)); c != 1 {
			t.Errorf("layer %d was fetched %d times", n, c)
		}
	}
}

// TestMain is the other process of TestCacheKilled, if it is told so.
func TestMain(m *testing.M) {
	source := os.Getenv("OCI_TEST_SOURCE")
	if source == "" {
		os.Exit(m.Run())
	}
	o := quick(nil)
	o.Insecure, o.CacheDir, o.Timeout = []string{"127.0.0.1"}, os.Getenv("OCI_TEST_CACHE"), 20*time.Second
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	img, err := Open(ctx, source, o)
	if err != nil {
		panic(err)
	}
	r, err := img.Layers()[0].Open(ctx)
	if err != nil {
		panic(err)
	}
	n, err := io.Copy(io.Discard, r)
	fmt.Println(n, err)
}

// TestCacheKilled kills a process in the middle of a layer while another one waits for it: that
// one goes on from there.
func TestCacheKilled(t *testing.T) {
	bare(t)
	s := serve(t, false)
	p := paint(t, Config{}, tarOf(t, 1, 4<<20))
	s.push(t, "x", "latest", p)
	halfway := make(chan struct{})
	var once sync.Once
	s.setFault(onBlob(func(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
		if !strings.HasSuffix(r.URL.Path, p.descs[0]["digest"].(string)) || r.Header.Get("Range") != "" {
			return false
		}
		_, b := body(r, next)
		w.Header().Set("Content-Length", fmt.Sprint(len(b)))
		w.Write(b[:len(b)/2])
		w.(http.Flusher).Flush()
		once.Do(func() { close(halfway) })
		<-r.Context().Done()
		return true
	}))
	o := quick(s)
	o.CacheDir, o.Timeout = privateDir(t), 20*time.Second
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), "OCI_TEST_SOURCE=docker://"+s.host+"/x", "OCI_TEST_CACHE="+o.CacheDir)
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer child.Wait()
	defer child.Process.Kill()
	select {
	case <-halfway:
	case <-time.After(30 * time.Second):
		t.Fatal("the other process does not fetch")
	}
	img := open(t, "docker://"+s.host+"/x", o)
	r, err := img.Layers()[0].Open(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	start := make([]byte, 1<<20) // comes from what the other one fetched
	if _, err = io.ReadFull(r, start); err != nil {
		t.Fatal(err)
	}
	if s.count("bytes=") != 0 {
		t.Error("it was fetched twice")
	}
	child.Process.Kill()
	rest, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(append(start, rest...), p.layers[0]) {
		t.Error("the contents differ")
	}
	if s.count("bytes=") != 1 {
		t.Errorf("%d requests for the rest", s.count("bytes="))
	}
}

// TestCacheStopped has a process that holds a layer's lock and does nothing, as when its user
// has stopped it: others go on without it.
func TestCacheStopped(t *testing.T) {
	bare(t)
	s := serve(t, false)
	p := paint(t, Config{}, tarOf(t, 1, 1<<20))
	s.push(t, "x", "latest", p)
	o := quick(s)
	o.CacheDir = privateDir(t)
	img := open(t, "docker://"+s.host+"/x", o)
	part := layerFile(o.CacheDir, p, 0) + ".part"
	held, err := os.OpenFile(part, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if err = unix.Flock(int(held.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Fatal(err)
	}
	img.o.Timeout = 100 * time.Millisecond
	heard := listen(img.o)
	r, err := img.Layers()[0].Open(within(t))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if b, err := io.ReadAll(r); err != nil || !bytes.Equal(b, p.layers[0]) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if !strings.Contains(heard(), "does not go on") {
		t.Errorf("messages %q", heard())
	}
	if _, err := os.Stat(part); err != nil {
		t.Error("its file was taken away: ", err)
	}
}

// TestCacheCancelled leaves a beginning behind, which the next one takes over.
func TestCacheCancelled(t *testing.T) {
	bare(t)
	s := serve(t, false)
	p := paint(t, Config{}, tarOf(t, 1, 4<<20))
	s.push(t, "x", "latest", p)
	s.setFault(onBlob(func(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
		if !strings.HasSuffix(r.URL.Path, p.descs[0]["digest"].(string)) || r.Header.Get("Range") != "" {
			return false
		}
		_, b := body(r, next)
		w.Header().Set("Content-Length", fmt.Sprint(len(b)))
		w.Write(b[:len(b)/2])
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		return true
	}))
	o := quick(s)
	o.CacheDir, o.Timeout = privateDir(t), 20*time.Second
	ctx, cancel := context.WithCancelCause(within(t))
	img, err := Open(ctx, "docker://"+s.host+"/x", o)
	if err != nil {
		t.Fatal(err)
	}
	r, err := img.Layers()[0].Open(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(r, make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	enough := errors.New("enough")
	cancel(enough)
	if _, err := io.Copy(io.Discard, r); !errors.Is(err, enough) {
		t.Errorf("error %v", err)
	}
	r.Close()
	img.Close()
	if len(cacheFiles(t, o.CacheDir, ".part")) != 1 {
		t.Errorf("files %v", cacheFiles(t, o.CacheDir, ""))
	}
	readAll(t, open(t, "docker://"+s.host+"/x", o), p)
	if s.count("bytes=") != 1 {
		t.Errorf("%d requests for the rest", s.count("bytes="))
	}
}

func TestCacheDamaged(t *testing.T) {
	bare(t)
	s := serve(t, false)
	p := paint(t, Config{}, tarOf(t, 1, 1<<20))
	s.push(t, "x", "latest", p)
	const text = "not a layer"
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, damage := range map[string]func(file string) error{
		"flipped": func(file string) error {
			b, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			b[len(b)-6] ^= 1
			return os.WriteFile(file, b, 0o600)
		},
		"cut":     func(file string) error { return os.Truncate(file, 1000) },
		"longer":  func(file string) error { return os.Truncate(file, 3<<20) },
		"symlink": func(file string) error { return errors.Join(os.Remove(file), os.Symlink(outside, file)) },
		"fifo":    func(file string) error { return errors.Join(os.Remove(file), unix.Mkfifo(file, 0o600)) },
		"torn beginning": func(file string) error {
			b, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			return errors.Join(os.Remove(file), os.WriteFile(file+".part", make([]byte, len(b)/2), 0o600))
		},
		"long beginning": func(file string) error {
			return errors.Join(os.Remove(file), os.WriteFile(file+".part", make([]byte, 2<<20), 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := quick(s)
			o.CacheDir = privateDir(t)
			img := open(t, "docker://"+s.host+"/x", o)
			readAll(t, img, p)
			img.Close()
			if err := damage(layerFile(o.CacheDir, p, 0)); err != nil {
				t.Fatal(err)
			}
			img = open(t, "docker://"+s.host+"/x", o)
			err := tryAll(img, p)
			if hidden := name == "flipped" || name == "torn beginning"; hidden != errors.Is(err, ErrCache) || !hidden && err != nil {
				t.Fatalf("error %v", err)
			}
			img.Close()
			readAll(t, open(t, "docker://"+s.host+"/x", o), p)
		})
	}
	if b, err := os.ReadFile(outside); string(b) != text {
		t.Errorf("the file that a link led to: %v, %.20q", err, b)
	}
	// A damaged configuration is fetched anew.
	o := quick(s)
	o.CacheDir = privateDir(t)
	open(t, "docker://"+s.host+"/x", o).Close()
	for _, f := range cacheFiles(t, o.CacheDir, "") {
		if err := os.WriteFile(f, []byte("{}"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	readAll(t, open(t, "docker://"+s.host+"/x", o), p)
}

func TestCacheNotOurs(t *testing.T) {
	bare(t)
	s := serve(t, false)
	p := paint(t, Config{}, tarOf(t, 1, 100))
	s.push(t, "x", "latest", p)
	o := quick(s)
	o.CacheDir = t.TempDir()
	if err := os.Chmod(o.CacheDir, 0o777); err != nil {
		t.Fatal(err)
	}
	_, err := Open(within(t), "docker://"+s.host+"/x", o)
	wantError(t, err, "others may write")
	o.CacheDir = t.TempDir()
	elsewhere := t.TempDir()
	if err = os.Symlink(elsewhere, filepath.Join(o.CacheDir, "blobs")); err != nil {
		t.Fatal(err)
	}
	_, err = Open(within(t), "docker://"+s.host+"/x", o)
	wantError(t, err, "cache")
	if os.Geteuid() != 0 {
		t.Skip("only root can make a directory of somebody else")
	}
	o.CacheDir = t.TempDir()
	if err = os.Chown(o.CacheDir, 12345, 12345); err != nil {
		t.Fatal(err)
	}
	_, err = Open(within(t), "docker://"+s.host+"/x", o)
	wantError(t, err, "somebody else")
	// One that cannot be made is no reason not to import.
	o.CacheDir = "/proc/nothing/here"
	heard := listen(&o)
	readAll(t, open(t, "docker://"+s.host+"/x", o), p)
	if !strings.Contains(heard(), "no cache") {
		t.Errorf("messages %q", heard())
	}
}

func TestCacheEvicts(t *testing.T) {
	bare(t)
	s := serve(t, false)
	var all []*picture
	o := quick(s)
	o.CacheDir, o.CacheSize = privateDir(t), 2<<20
	for n := range 4 {
		p := paint(t, Config{}, tarOf(t, uint64(n), 600_000))
		all = append(all, p)
		s.push(t, "x", fmt.Sprint("v", n), p)
		img := open(t, fmt.Sprintf("docker://%s/x:v%d", s.host, n), o)
		readAll(t, img, p)
		img.Close()
		past := time.Now().Add(time.Duration(n-10) * time.Hour)
		for _, f := range cacheFiles(t, o.CacheDir, "") {
			if st, err := os.Stat(f); err == nil && time.Since(st.ModTime()) < time.Hour {
				os.Chtimes(f, past, past)
			}
		}
	}
	for n, want := range []bool{false, true, true, true} {
		if _, err := os.Stat(layerFile(o.CacheDir, all[n], 0)); (err == nil) != want {
			t.Errorf("layer of image %d is there: %v", n, err == nil)
		}
	}
	// What is read just now stays.
	img := open(t, fmt.Sprintf("docker://%s/x:v1", s.host), o)
	r, err := img.Layers()[0].Open(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	img.cache.evict(2 << 20)
	if len(cacheFiles(t, o.CacheDir, "")) != 1 {
		t.Errorf("left: %v", cacheFiles(t, o.CacheDir, ""))
	}
	if _, err := os.Stat(layerFile(o.CacheDir, all[1], 0)); err != nil {
		t.Error(err)
	}
	// What is larger than the cache is not cached, and that is said.
	o.CacheSize = 1000
	heard := listen(&o)
	small := open(t, fmt.Sprintf("docker://%s/x:v0", s.host), o)
	readAll(t, small, all[0])
	if !strings.Contains(heard(), "not cached") {
		t.Errorf("messages %q", heard())
	}
	// A cache that is to be smaller than before becomes so, though nothing is added to it.
	r.Close()
	small.Close()
	for _, name := range cacheFiles(t, o.CacheDir, "") {
		if st, err := os.Stat(name); err != nil || st.Size() > o.CacheSize {
			t.Errorf("left: %s, %v", name, err)
		}
	}
}

// Exclusive locks are asked for on files that may be written to, as NFS wants it. On other file
// systems nobody would notice.
func TestCacheLocksForNFS(t *testing.T) {
	o := Options{CacheDir: privateDir(t)}
	c, err := openCache(within(t), &o)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	if err = c.root.WriteFile("x", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := c.openFile("x", os.O_RDONLY, unix.LOCK_EX)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0); err != nil || flags&unix.O_ACCMODE != unix.O_RDWR {
		t.Errorf("flags %#x, %v", flags, err)
	}
}

// TestCacheFull has a file system without room for the cache: import goes on without it.
func TestCacheFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting a tmpfs needs root")
	}
	bare(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m,mode=700"); err != nil {
		t.Skip("no tmpfs: ", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	s := serve(t, false)
	p := paint(t, Config{}, tarOf(t, 1, 3<<20), tarOf(t, 2, 10_000))
	s.push(t, "x", "latest", p)
	o := quick(s)
	o.CacheDir = dir
	heard := listen(&o)
	img := open(t, "docker://"+s.host+"/x", o)
	readAll(t, img, p)
	if !strings.Contains(heard(), "not cached") {
		t.Errorf("messages %q", heard())
	}
	// The same when the room is gone only later.
	old := cacheMargin
	cacheMargin = -1 << 40
	defer func() { cacheMargin = old }()
	heard = listen(&o)
	img = open(t, "docker://"+s.host+"/x", o)
	readAll(t, img, p)
	if !strings.Contains(heard(), "no longer used") {
		t.Errorf("messages %q", heard())
	}
	img.Close()
	if n := len(cacheFiles(t, dir, ".part")); n != 0 {
		t.Errorf("%d files are left", n)
	}
}
