package server

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/squirefs/squire/internal/rights"
)

// TestServe serves several images, and wants to be told what was done, and when a mount is gone.
func TestServe(t *testing.T) {
	needRoot(t)
	n := newNode(t, Config{})
	var mounts []*mounted
	var digests []string
	var readers []*reader
	for _, files := range []int{40, 50, 60} {
		image, digest := newImage(t, files, 60<<10)
		m := n.mount(image, nil)
		mounts, digests = append(mounts, m), append(digests, digest)
		readers = append(readers, newReader(t, m), newReader(t, m))
	}
	for _, r := range readers {
		r.begin()
	}
	for i, r := range readers {
		if got := r.answer(); got != digests[i/2] {
			t.Errorf("reader %d: %s, want %s", i, got, digests[i/2])
		}
	}
	stats, err := n.server.Stats()
	if err != nil {
		t.Fatal(err)
	}
	if stats.Memory < 1<<20 || len(stats.Images) != 3 {
		t.Errorf("stats: %+v", stats)
	}
	for _, m := range mounts {
		if s := stats.Images[m.ID]; s.Lookup+s.ReadDir == 0 || s.ReadFrom == 0 || s.Errors != 0 {
			t.Errorf("image %d: %+v", m.ID, s)
		}
	}
	if err := n.server.Ping(limit); err != nil {
		t.Error(err)
	}
	testEnded(t, n, mounts[1], readers[2:4])
	if got := newReader(t, mounts[2]).read(); got != digests[2] {
		t.Errorf("after another's end: %s, want %s", got, digests[2])
	}
}

func testEnded(t *testing.T, n *node, m *mounted, readers []*reader) {
	t.Helper()
	for _, r := range readers {
		r.end()
	}
	m.unmount()
	select {
	case id := <-n.server.Ended():
		if id != m.ID {
			t.Errorf("image %d has ended, want %d", id, m.ID)
		}
	case <-time.After(limit):
		t.Fatal("nobody tells that the mount is gone")
	}
	stats, err := n.server.Stats()
	if err != nil {
		t.Fatal(err)
	}
	if _, there := stats.Images[m.ID]; there {
		t.Error("what is gone has counters")
	}
}

// TestRights wants every thread of the server to be nobody of note, and no descriptor in it that it does not need.
func TestRights(t *testing.T) {
	needRoot(t)
	if rights.OneThread {
		t.Skip("rights are given up in one thread only under the race detector")
	}
	image, digest := newImage(t, 20, 60<<10)
	n := newNode(t, Config{})
	m := n.mount(image, nil)
	if got := newReader(t, m).read(); got != digest {
		t.Fatal(got)
	}
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", n.server.pid))
	if len(threads) == 0 {
		t.Error("there are no threads")
	}
	for _, thread := range threads {
		status, err := os.ReadFile(thread)
		if err != nil {
			continue // ended meanwhile
		}
		for _, line := range []string{"Uid:\t65534\t65534\t65534\t65534", "Gid:\t65534\t65534\t65534\t65534", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "CapInh:\t0000000000000000", "CapAmb:\t0000000000000000", "NoNewPrivs:\t1"} {
			if !strings.Contains(string(status), line+"\n") {
				t.Errorf("%s lacks %q", thread, line)
			}
		}
	}
	wantDescriptors(t, n, image)
}

func wantDescriptors(t *testing.T, n *node, image string) {
	t.Helper()
	links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", n.server.pid))
	for _, link := range links {
		to, err := os.Readlink(link)
		if err != nil {
			continue
		}
		switch {
		case slices.Contains([]string{"0", "1", "2"}, filepath.Base(link)), slices.Contains([]string{image, "/dev/fuse", os.DevNull, "/proc/loadavg"}, to),
			strings.HasPrefix(to, "/sys/fs/cgroup/"), // Go counts the processors
			strings.HasPrefix(to, "socket:"), strings.HasPrefix(to, "anon_inode:"), strings.HasPrefix(to, "pipe:"):
		default:
			t.Errorf("descriptor %s is %s", filepath.Base(link), to)
		}
	}
}

// load has readers read all mounts over and over, until stop is called, which wants that nobody saw anything.
func load(t *testing.T, n *node, digest string) (stop func()) {
	t.Helper()
	quit, ended := make(chan struct{}), make(chan int)
	for _, m := range n.mounts {
		for range 2 {
			r := newReader(t, m)
			go func() {
				for rounds := 0; ; rounds++ {
					select {
					case <-quit:
						ended <- rounds
						return
					default:
					}
					if _, err := fmt.Fprintln(r.in, "read"); err != nil {
						t.Error(err)
					}
					select {
					case got := <-r.out:
						if got != digest {
							t.Errorf("reader of image %d: %q, want %s", m.ID, got, digest)
							ended <- rounds
							return
						}
					case <-time.After(limit):
						t.Errorf("reader of image %d hangs", m.ID)
						ended <- rounds
						return
					}
				}
			}()
		}
	}
	return func() {
		t.Helper()
		close(quit)
		for range 2 * len(n.mounts) {
			if <-ended == 0 && !t.Failed() {
				t.Error("a reader read nothing")
			}
		}
	}
}

// TestTakeover ends the server while readers read, in each way there is, and starts another one: they must not notice.
func TestTakeover(t *testing.T) {
	needRoot(t)
	for name, end := range map[string]func(*Client){
		"killed":      (*Client).Kill,
		"stopped":     (*Client).Stop,
		"keeper gone": func(c *Client) { c.conn.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			image, digest := newImage(t, 60, 200<<10)
			n := newNode(t, Config{})
			n.mount(image, nil)
			n.mount(image, func(i *Image) { i.IDMap = true })
			stop := load(t, n, digest)
			for range 8 {
				time.Sleep(50 * time.Millisecond)
				end(n.server)
				n.restart()
			}
			stop()
		})
	}
}
