package noded

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Many ask for one image at the same moment: it is mounted once, and each gets a clone.
func TestOneMountForAll(t *testing.T) {
	k := run(t, newWorld(t), Config{})
	f := imageFile(t, "a")
	dialed(t, k.socket)
	const many = 64
	var all sync.WaitGroup
	var mu sync.Mutex
	ids, anew := map[uint64]int{}, 0
	for range many {
		all.Go(func() {
			c := dialed(t, k.socket)
			m, err := c.Mount(squashed, f)
			if err != nil {
				t.Error(err)
				return
			}
			b, _ := io.ReadAll(io.NewSectionReader(m.Mount, 0, 100))
			m.Mount.Close()
			mu.Lock()
			defer mu.Unlock()
			if string(b) != fmt.Sprint("clone ", m.ID) || m.Size != 4096 {
				t.Errorf("got %q, %d bytes", b, m.Size)
			}
			ids[m.ID]++
			if !m.Shared {
				anew++
			}
		})
	}
	all.Wait()
	if len(ids) != 1 || anew != 1 || k.w.mounts.Load() != 1 || k.w.opens.Load() != 1 {
		t.Errorf("ids %v, %d mounted anew, %d mounts, %d opened", ids, anew, k.w.mounts.Load(), k.w.opens.Load())
	}
	r, err := dialed(t, k.socket).Report()
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Images) != 1 || r.Images[0].References != many || r.Images[0].State != "served" || r.Images[0].Name != "an image" {
		t.Errorf("report %+v", r.Images)
	}
}

// What has another superblock, offset, view or inode is another mount.
func TestImagesApart(t *testing.T) {
	k := run(t, newWorld(t), Config{})
	f := imageFile(t, "a")
	c := dialed(t, k.socket)
	owner := all
	owner.View.Owner = &ownerOne
	for i, r := range []Request{all, squashed, owner, {View: View{Squash: true}}} {
		m, err := c.Mount(r, f)
		if err != nil {
			t.Fatal(err)
		}
		m.Mount.Close()
		if m.Shared {
			t.Errorf("request %d shares a mount", i)
		}
	}
	if m, err := c.Mount(all, imageFile(t, "a")); err != nil || m.Shared {
		t.Error("another file", m, err)
	}
	if m, err := c.Mount(all, f); err != nil || !m.Shared {
		t.Error("the same file", m, err)
	}
}

// A file that was written to is another image, though it has the size and the beginning that it had: all that tells may be
// the time, and of that the nanoseconds.
func TestWrittenIsAnother(t *testing.T) {
	k := run(t, newWorld(t), Config{})
	f := imageFile(t, "a")
	c := dialed(t, k.socket)
	mount := func(at time.Time) *Mounted {
		t.Helper()
		if err := os.Chtimes(f.Name(), at, at); err != nil {
			t.Fatal(err)
		}
		if st, err := f.Stat(); err != nil || !st.ModTime().Equal(at) {
			t.Skipf("needs a file system that keeps nanoseconds: %v, want %s", err, at)
		}
		m, err := c.Mount(all, f)
		if err != nil {
			t.Fatal(err)
		}
		m.Mount.Close()
		return m
	}
	first := time.Unix(1_700_000_000, 5)
	mount(first)
	for _, at := range []time.Time{first.Add(1), first.Add(-1), first.Add(time.Second), first.Add(-time.Second)} {
		if m := mount(at); m.Shared {
			t.Errorf("written at %s, it shares the mount of what it was at %s", at, first)
		}
	}
	if m := mount(first); !m.Shared {
		t.Error("with the first time again, it is another image")
	}
}

// An image is let go of some time after its last client, not before, and ended when the kernel has no clone of it.
func TestIdle(t *testing.T) {
	k := run(t, newWorld(t), Config{Idle: 100 * time.Millisecond})
	f := imageFile(t, "a")
	a, b := dialed(t, k.socket), dialed(t, k.socket)
	for _, c := range []*Client{a, b} {
		if _, err := c.Mount(all, f); err != nil {
			t.Fatal(err)
		}
	}
	img := k.images1(t)
	a.Close()
	time.Sleep(300 * time.Millisecond)
	k.mu.Lock()
	if img.state != served || len(img.refs) != 1 {
		t.Errorf("with a client: %v, %d references", img.state, len(img.refs))
	}
	k.mu.Unlock()
	k.w.mu.Lock()
	k.w.inUse[img.number] = true
	k.w.mu.Unlock()
	b.Close()
	time.Sleep(300 * time.Millisecond)
	k.mu.Lock()
	if img.state != served {
		t.Errorf("mounted somewhere: %v", img.state)
	}
	k.mu.Unlock()
	k.w.mu.Lock()
	clear(k.w.inUse)
	k.w.mu.Unlock()
	eventually(t, "it is let go of", func() bool {
		k.mu.Lock()
		defer k.mu.Unlock()
		return img.state == leaving && img.mount == nil
	})
	// Who comes now gets another mount.
	m, err := dialed(t, k.socket).Mount(all, f)
	if err != nil || m.Shared || m.ID == img.id {
		t.Errorf("%+v, %v", m, err)
	}
	k.w.server().ended <- img.id
	eventually(t, "it is forgotten", func() bool {
		k.mu.Lock()
		defer k.mu.Unlock()
		return len(k.images) == 1 && k.images[img.id] == nil
	})
	eventually(t, "its file is closed", func() bool {
		_, err := img.file.Stat()
		return errors.Is(err, os.ErrClosed)
	})
}

// Servers are killed again and again: each hands over to the next, and clients see nothing of it.
func TestServerKilled(t *testing.T) {
	k := run(t, newWorld(t), Config{})
	c := dialed(t, k.socket)
	for i := range 5 {
		if _, err := c.Mount(all, imageFile(t, fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
	}
	for range 20 {
		before := k.w.takeovers.Load()
		k.w.server().Kill()
		eventually(t, "all are taken over", func() bool { return k.w.takeovers.Load() == before+5 })
	}
	if _, err := c.Mount(all, imageFile(t, "new")); err != nil {
		t.Error(err)
	}
	r, err := c.Report()
	if err != nil || r.Restarts.Server != 20 || len(r.Images) != 6 {
		t.Errorf("%+v, %v", r, err)
	}
	eventually(t, "all are served", func() bool {
		k.mu.Lock()
		defer k.mu.Unlock()
		for _, img := range k.images {
			if img.state != served {
				return false
			}
		}
		return true
	})
}

// A server dies while it opens an image: that is tried once more, and no image gets into the way of the others.
func TestServerDiesOpening(t *testing.T) {
	w := newWorld(t)
	deaths := map[string]int{"once": 1, "always": 1000}
	w.onOpen = func(s *fakeServer, img fakeImage) error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if deaths[img.Name] > 0 {
			deaths[img.Name]--
			s.die()
			return errDead
		}
		return nil
	}
	k := run(t, w, Config{})
	c := dialed(t, k.socket)
	if _, err := c.Mount(Request{Image: "once"}, imageFile(t, "once")); err != nil {
		t.Error(err)
	}
	bad := imageFile(t, "always")
	var refused *ServiceError
	if _, err := c.Mount(Request{Image: "always"}, bad); !errors.As(err, &refused) || refused.Code != BadImage {
		t.Error(err)
	}
	if _, err := c.Mount(Request{Image: "always"}, bad); !errors.As(err, &refused) || refused.Code != BadImage {
		t.Error(err)
	}
	k.w.mu.Lock()
	opened := 0
	for _, img := range k.w.images {
		if img.Name == "always" {
			opened++
		}
	}
	k.w.mu.Unlock()
	if opened != 2 {
		t.Errorf("the image was given to %d servers", opened)
	}
	if _, err := c.Mount(all, imageFile(t, "good")); err != nil {
		t.Error(err)
	}
}

// The image at which servers die when they take it over is found and given up. The others go on.
func TestImageKillsServers(t *testing.T) {
	w := newWorld(t)
	w.onServe = func(s *fakeServer, id uint64, init []byte) error {
		if id == 3 && init != nil {
			s.die()
			return errDead
		}
		return nil
	}
	k := run(t, w, Config{})
	c := dialed(t, k.socket)
	files := map[uint64]*os.File{}
	for i := range 5 {
		f := imageFile(t, fmt.Sprint(i))
		m, err := c.Mount(all, f)
		if err != nil {
			t.Fatal(err)
		}
		files[m.ID] = f
	}
	k.w.server().Kill()
	eventually(t, "the image is given up", func() bool {
		k.mu.Lock()
		defer k.mu.Unlock()
		return k.images[3].state == failed && k.images[3].device == nil
	})
	eventually(t, "the others are served", func() bool {
		k.mu.Lock()
		defer k.mu.Unlock()
		for id, img := range k.images {
			if id != 3 && img.state != served {
				return false
			}
		}
		return true
	})
	var refused *ServiceError
	if _, err := c.Mount(all, files[3]); !errors.As(err, &refused) || refused.Code != BadImage {
		t.Error("the image that was given up:", err)
	}
	r, err := c.Report()
	if err != nil || r.Images[2].State != "failed" || r.Images[2].Error == "" {
		t.Errorf("%+v, %v", r.Images, err)
	}
	if n := k.w.servers.Load(); n > 12 {
		t.Errorf("it took %d servers", n)
	}
}

// A server that does not answer is ended.
func TestServerHangs(t *testing.T) {
	w := newWorld(t)
	w.onPing = func() error { return errors.New("no answer") }
	k := run(t, w, Config{})
	dialed(t, k.socket)
	eventually(t, "another server is started", func() bool { return k.w.servers.Load() > 1 })
}

// The mounter is started again, and what it had made stays, unless nobody else can make clones of it.
func TestMounterDies(t *testing.T) {
	k := run(t, newWorld(t), Config{})
	c := dialed(t, k.socket)
	f := imageFile(t, "a")
	first, err := c.Mount(all, f)
	if err != nil {
		t.Fatal(err)
	}
	for _, lost := range []bool{false, true} {
		k.w.mu.Lock()
		k.w.lostAfter = lost
		k.w.mu.Unlock()
		k.w.mounter().Close()
		m, err := c.Mount(all, f)
		if err != nil {
			t.Fatal(err)
		}
		if (m.ID != first.ID) != lost {
			t.Errorf("lost %v: image %d, then %d", lost, first.ID, m.ID)
		}
	}
}

// A kernel without idmapped FUSE mounts: the first image shows that, and each user gets a mount.
func TestNoIDMap(t *testing.T) {
	w := newWorld(t)
	w.flags = 0
	k := run(t, w, Config{})
	c := dialed(t, k.socket)
	for range 2 {
		if _, err := c.Mount(squashed, imageFile(t, "a")); err != nil {
			t.Fatal(err)
		}
	}
	k.w.mu.Lock()
	defer k.w.mu.Unlock()
	if n := len(k.w.images); n != 3 {
		t.Fatalf("%d images were opened", n)
	}
	for i, img := range k.w.images {
		if img.IDMap != (i == 0) || img.Owner == nil || img.Owner.UID != uint32(os.Getuid()) {
			t.Errorf("%d: %+v", i, img)
		}
	}
}

// SIGTERM: no new images, those that are there are served until nobody uses them.
func TestDrain(t *testing.T) {
	k := run(t, newWorld(t), Config{})
	c := dialed(t, k.socket)
	f := imageFile(t, "a")
	if _, err := c.Mount(all, f); err != nil {
		t.Fatal(err)
	}
	k.signals <- sigterm
	var refused *ServiceError
	eventually(t, "it drains", func() bool {
		_, err := c.Mount(all, f)
		return errors.As(err, &refused) && refused.Code == Draining && refused.Fallback()
	})
	img := k.images1(t)
	if img.made(); gone(k.over) {
		t.Fatal("it has ended though an image is used")
	}
	c.Close()
	eventually(t, "it is let go of", func() bool {
		k.mu.Lock()
		defer k.mu.Unlock()
		return img.state == leaving
	})
	k.w.server().ended <- img.id
	k.wait(t)
	if k.err != nil {
		t.Error(k.err)
	}
	if _, err := os.Lstat(k.socket); !errors.Is(err, os.ErrNotExist) {
		t.Error("the socket is left:", err)
	}
}

// A second SIGTERM ends the service though images are used, as does SIGUSR1, and the end of the time to drain.
func TestDrainEnds(t *testing.T) {
	for _, c := range []struct {
		Config
		signals []os.Signal
	}{
		{Config{}, []os.Signal{sigterm, sigterm}},
		{Config{}, []os.Signal{unix.SIGUSR1}},
		{Config{Drain: 100 * time.Millisecond}, []os.Signal{sigterm}},
	} {
		k := run(t, newWorld(t), c.Config)
		client := dialed(t, k.socket)
		if _, err := client.Mount(all, imageFile(t, "a")); err != nil {
			t.Fatal(err)
		}
		for _, s := range c.signals {
			k.signals <- s
		}
		k.wait(t)
	}
}

// A service that nobody needs ends by itself.
func TestLinger(t *testing.T) {
	k := run(t, newWorld(t), Config{Own: true, Idle: 50 * time.Millisecond, Linger: 200 * time.Millisecond, Socket: abstract(t)})
	c := dialed(t, k.socket)
	if _, err := c.Mount(Request{View: View{Squash: true}}, imageFile(t, "a")); err != nil {
		t.Fatal(err)
	}
	time.Sleep(500 * time.Millisecond)
	if gone(k.over) {
		t.Fatal("it has ended though it has a client")
	}
	img := k.images1(t)
	c.Close()
	eventually(t, "the image is let go of", func() bool {
		k.mu.Lock()
		defer k.mu.Unlock()
		return img.state == leaving
	})
	k.w.server().ended <- img.id
	k.wait(t)
	if _, err := Dial(k.socket); !errors.Is(err, ErrNoService) {
		t.Error(err)
	}
}

// Without FUSE_NOTIFY_RESEND each server gets a clone of the device.
func TestNoResend(t *testing.T) {
	k := run(t, newWorld(t), Config{NoResend: true})
	c := dialed(t, k.socket)
	if _, err := c.Mount(all, imageFile(t, "a")); err != nil {
		t.Fatal(err)
	}
	k.w.server().Kill()
	eventually(t, "it is taken over", func() bool { return k.w.takeovers.Load() == 1 })
}

// Clients that come and go with their images leave nothing behind.
func TestNothingLeft(t *testing.T) {
	k := run(t, newWorld(t), Config{Idle: time.Millisecond})
	dialed(t, k.socket).Close()
	go func() { // the kernel, which has no clones
		for k.ctx.Err() == nil {
			k.mu.Lock()
			for id, img := range k.images {
				if img.state == leaving && img.mount == nil {
					select {
					case k.w.server().ended <- id:
					default:
					}
				}
			}
			k.mu.Unlock()
			time.Sleep(time.Millisecond)
		}
	}()
	files := make([]*os.File, 4)
	for i := range files {
		files[i] = imageFile(t, fmt.Sprint(i))
	}
	cycle := func(n int) {
		var all sync.WaitGroup
		for worker := range 8 {
			all.Go(func() {
				for i := range n {
					c, err := Dial(k.socket)
					if err != nil {
						t.Error(err)
						return
					}
					m, err := c.Mount(all1(i%3), files[(worker+i)%len(files)])
					if err != nil {
						t.Error(err)
					} else {
						m.Mount.Close()
					}
					c.Close()
				}
			})
		}
		all.Wait()
		eventually(t, "all is gone", func() bool {
			k.mu.Lock()
			defer k.mu.Unlock()
			return len(k.images)+len(k.clients)+len(k.keys)+len(k.connected)+len(k.busy)+len(k.stats.now)+len(k.stats.before) == 0
		})
	}
	count := func() (fds, goroutines int) {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(list), runtime.NumGoroutine()
	}
	cycle(10)
	fds, goroutines := count()
	cycle(100)
	eventually(t, "descriptors and goroutines are as before", func() bool {
		f, g := count()
		return f <= fds && g <= goroutines
	})
}

func all1(i int) Request {
	return []Request{all, squashed, {View: View{Private: true}}}[i]
}
