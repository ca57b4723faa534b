package container

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/runtime"
)

func newStore(t *testing.T) *Store {
	t.Helper()
	s, err := Open(filepath.Join(t.TempDir(), "store"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// namespace is one to be passed around: this process's own.
func namespace(t *testing.T, kind string) runtime.Namespace {
	t.Helper()
	f, err := os.Open("/proc/self/ns/" + kind)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return runtime.Namespace{Kind: kind, File: f}
}

func sameFile(t *testing.T, a, b *os.File) bool {
	t.Helper()
	x, err := a.Stat()
	y, err2 := b.Stat()
	if err != nil || err2 != nil {
		t.Fatal(err, err2)
	}
	return os.SameFile(x, y)
}

// started starts a container as a run does, without any namespaces of its own.
func started(t *testing.T, s *Store, name string) *Container {
	t.Helper()
	c, err := s.Claim(t.Context(), name, Auto)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	if c.State() != nil {
		t.Fatalf("%s runs", name)
	}
	serve(t, c)
	return c
}

func serve(t *testing.T, c *Container) {
	t.Helper()
	if err := c.Remember(&Record{Image: "/image"}); err != nil {
		t.Fatal(err)
	}
	lock, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lock.Close() })
	state := State{
		Namespaces: []runtime.Namespace{namespace(t, "mnt"), namespace(t, "ipc")}, Keep: []*os.File{lock},
		Image: "/image", RemapRoot: true, Workdir: "/w", Environ: []string{"A=\xff\n"},
	}
	if err := c.Serve(state); err != nil {
		t.Fatal(err)
	}
}

func TestJoin(t *testing.T) {
	s := newStore(t)
	first := started(t, s, "c")
	second, err := s.Claim(t.Context(), "c", Auto)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	got := second.State()
	if got == nil {
		t.Fatal("it was not joined")
	}
	want := first.State()
	if len(got.Namespaces) != 2 || got.Namespaces[0].Kind != "mnt" || !sameFile(t, got.Namespaces[1].File, want.Namespaces[1].File) {
		t.Errorf("namespaces %v", got.Namespaces)
	}
	if len(got.Keep) != 1 || !sameFile(t, got.Keep[0], want.Keep[0]) {
		t.Errorf("keep %v", got.Keep)
	}
	if got.Image != "/image" || !got.RemapRoot || got.Workdir != "/w" || second.Record().Image != "/image" {
		t.Errorf("state %+v", got)
	}
	if !first.Shared() {
		t.Error("the first does not know of the second")
	}

	// Who joined is joined by others when the first is gone.
	first.Close()
	third, err := s.Claim(t.Context(), "c", Join)
	if err != nil {
		t.Fatal(err)
	}
	if third.State() == nil {
		t.Error("the second was not joined")
	}
	second.Close()
	third.Close()
	if _, err := s.Claim(t.Context(), "c", Join); !errors.Is(err, ErrNotRunning) {
		t.Errorf("after all have left: %v", err)
	}
}

func TestModes(t *testing.T) {
	s := newStore(t)
	if _, err := s.Claim(t.Context(), "c", Join); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("join of what is not there: %v", err)
	}
	c := started(t, s, "c")
	if _, err := s.Claim(t.Context(), "c", Create); !errors.Is(err, fs.ErrExist) {
		t.Errorf("create of what runs: %v", err)
	}
	beside, err := s.Claim(t.Context(), "c", Start)
	if err != nil || beside.State() == nil {
		t.Fatalf("start of what runs: %v, %v", beside, err)
	}
	beside.Close()
	c.Close()
	if _, err := s.Claim(t.Context(), "c", Create); !errors.Is(err, fs.ErrExist) {
		t.Errorf("create of what is there: %v", err)
	}
	again, err := s.Claim(t.Context(), "c", Start)
	if err != nil {
		t.Fatal(err)
	}
	if again.State() != nil || again.Record() == nil {
		t.Errorf("start: state %v, record %v", again.State(), again.Record())
	}
	again.Close()
}

// TestAtOnce has many who want a container: one starts it, and the others join.
func TestAtOnce(t *testing.T) {
	s := newStore(t)
	var mu sync.Mutex
	var all sync.WaitGroup
	starts, joins := 0, 0
	for range 40 {
		all.Go(func() {
			c, err := s.Claim(context.Background(), "c", Auto)
			if err != nil {
				t.Error(err)
				return
			}
			joined := c.State() != nil
			mu.Lock()
			if joined {
				joins++
			} else {
				starts++
				serve(t, c)
			}
			mu.Unlock()
			t.Cleanup(c.Close)
		})
	}
	all.Wait()
	if starts != 1 || joins != 39 {
		t.Errorf("%d started it and %d joined, want 1 and 39", starts, joins)
	}
}

// TestNotStarted: who claims a container and does not start it leaves nothing, and the next one may.
func TestNotStarted(t *testing.T) {
	s := newStore(t)
	c, err := s.Claim(t.Context(), "c", Auto)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if other, err := s.Claim(ctx, "c", Auto); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while it is claimed: %v, %v", other, err)
	}
	next := make(chan *Container)
	go func() {
		c, err := s.Claim(context.Background(), "c", Auto)
		if err != nil {
			t.Error(err)
		}
		next <- c
	}()
	c.Close()
	(<-next).Close()
	if names, _ := s.names(); len(names) > 0 {
		t.Errorf("left are %q", names)
	}
}

func TestLeave(t *testing.T) {
	s := newStore(t)
	first := started(t, s, "c")
	second, err := s.Claim(t.Context(), "c", Auto)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if last, err := first.Leave(t.Context()); last || err != nil {
		t.Errorf("the first was the last: %v", err)
	}
	if last, err := second.Leave(t.Context()); !last || err != nil {
		t.Errorf("the last was not: %v", err)
	}
	// It has the lock until it closes.
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if _, err := s.Claim(ctx, "c", Auto); err == nil {
		t.Error("somebody else started it meanwhile")
	}
}

func TestPublish(t *testing.T) {
	s := newStore(t)
	state := State{Namespaces: []runtime.Namespace{namespace(t, "mnt")}}
	c, err := s.Publish("12.0", state)
	if err != nil {
		t.Fatal(err)
	}
	joined, err := s.Claim(t.Context(), "12.0", Auto)
	if err != nil || joined.State() == nil || joined.Record() != nil {
		t.Fatalf("joined %v, %v", joined, err)
	}
	if list, err := s.List(); err != nil || len(list) != 1 || !list[0].Running || list[0].Record != nil || !slices.Equal(list[0].PIDs, []int{os.Getpid(), os.Getpid()}) {
		t.Errorf("list %+v, %v", list, err)
	}
	c.Close()
	joined.Close()
	if names, _ := s.names(); len(names) > 0 {
		t.Errorf("left are %q", names)
	}
}

func TestListAndRemove(t *testing.T) {
	s := newStore(t)
	c := started(t, s, "b")
	started(t, s, "a").Close()
	if err := os.Mkdir(filepath.Join(s.Path(), "something"), 0o700); err != nil { // somebody else's
		t.Fatal(err)
	}
	list, err := s.List()
	if err != nil || len(list) != 2 || list[0].Name != "a" || list[0].Running || list[1].Name != "b" || !list[1].Running {
		t.Fatalf("list %+v, %v", list, err)
	}
	if err := s.Remove(t.Context(), "b"); err == nil || !strings.Contains(err.Error(), "is running") {
		t.Errorf("remove of what runs: %v", err)
	}
	c.Close()
	for _, name := range []string{"a", "b"} {
		if err := s.Remove(t.Context(), name); err != nil {
			t.Error(err)
		}
	}
	if err := s.Remove(t.Context(), "a"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("remove of what is not there: %v", err)
	}
	if names, _ := s.names(); !slices.Equal(names, []string{"something"}) {
		t.Errorf("left are %q", names)
	}
}

// TestRemoveAnything: whatever a command has made of its layer, it can be removed.
func TestRemoveAnything(t *testing.T) {
	s := newStore(t)
	c := started(t, s, "c")
	at := filepath.Join(s.Path(), "c", "layer")
	outside := filepath.Join(t.TempDir(), "outside")
	if err := errors.Join(os.Mkdir(outside, 0o700), os.WriteFile(filepath.Join(outside, "f"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	for range 2*maxDepth + 10 {
		if err := os.Mkdir(at, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.WriteFile(filepath.Join(at, "f"), nil, 0), os.Symlink(outside, filepath.Join(at, "link"))); err != nil {
			t.Fatal(err)
		}
		at = filepath.Join(at, "d")
	}
	for dir := filepath.Dir(at); dir != s.Path(); dir = filepath.Dir(dir) {
		if strings.HasSuffix(dir, "/d") || strings.HasSuffix(dir, "/layer") {
			if err := os.Chmod(dir, 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	c.Close()
	if err := s.Remove(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	if names, _ := s.names(); len(names) > 0 {
		t.Errorf("left are %q", names)
	}
	if fi, err := os.Stat(filepath.Join(outside, "f")); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("what a link led to: %v, %v", fi, err)
	}
	if fi, err := os.Stat(outside); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("what a link led to: %v, %v", fi, err)
	}
}

// TestStale: what a crash leaves is in nobody's way.
func TestStale(t *testing.T) {
	s := newStore(t)
	started(t, s, "c").Close()
	run := filepath.Join(s.Path(), "c", runName)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: filepath.Join(run, "dead")}); err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
	c, err := s.Claim(t.Context(), "c", Auto)
	if err != nil || c.State() != nil {
		t.Fatalf("a socket of a dead process: %v, %v", c, err)
	}
	c.Close()
	if _, err := os.Lstat(filepath.Join(run, "dead")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}

	// Containers that were on their way out or in when their process was killed.
	old := time.Now().Add(-time.Hour)
	for _, name := range []string{goingPrefix + "1", scratchStart + "1", "never-started"} {
		dir := filepath.Join(s.Path(), name)
		lock := filepath.Join(dir, lockName)
		if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(lock, nil, 0o600), os.Chtimes(lock, old, old)); err != nil {
			t.Fatal(err)
		}
	}
	again, err := Open(s.Path())
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
	if names, _ := s.names(); !slices.Equal(names, []string{"c"}) {
		t.Errorf("left are %q", names)
	}
}

// TestSilent: a process that listens and says nothing is not waited for for ever.
func TestSilent(t *testing.T) {
	s := newStore(t)
	started(t, s, "c").Close()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	name := filepath.Join(s.Path(), "c", runName, "silent")
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: name}), unix.Listen(fd, 10)); err != nil {
		t.Fatal(err)
	}
	c, err := s.Claim(t.Context(), "c", Auto)
	if err != nil || c.State() != nil {
		t.Fatalf("%v, %v", c, err)
	}
	c.Close()
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	mine := filepath.Join(dir, "mine")
	if err := os.Mkdir(mine, 0o700); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	open, file := filepath.Join(dir, "open"), filepath.Join(dir, "file")
	if err := errors.Join(os.Symlink(mine, link), os.Mkdir(open, 0o700), os.Chmod(open, 0o750), os.WriteFile(file, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	refused := []string{link, open, file}
	if os.Getuid() == 0 {
		other := filepath.Join(dir, "other")
		if err := errors.Join(os.Mkdir(other, 0o700), os.Chown(other, 12345, 0)); err != nil {
			t.Fatal(err)
		}
		refused = append(refused, other)
	}
	for _, path := range refused {
		if s, err := Open(path); err == nil {
			t.Errorf("%s was opened", path)
			s.Close()
		}
	}
	if _, err := OpenExisting(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a store that is not there: %v", err)
	}
}

// TestSwapped: once it is open, a store is the directory that was looked at, whatever has its name.
func TestSwapped(t *testing.T) {
	s := newStore(t)
	evil := filepath.Join(filepath.Dir(s.Path()), "evil")
	if err := errors.Join(os.Rename(s.Path(), s.Path()+".old"), os.Mkdir(evil, 0o777), os.Symlink(evil, s.Path())); err != nil {
		t.Fatal(err)
	}
	c, err := s.Claim(t.Context(), "c", Auto)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if entries, err := os.ReadDir(evil); err != nil || len(entries) > 0 {
		t.Errorf("in the other directory: %v, %v", entries, err)
	}
	if err := errors.Join(os.Mkdir(s.Path()+".old/real", 0o700), os.Symlink("real", s.Path()+".old/linked")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Claim(t.Context(), "linked", Auto); err == nil {
		t.Error("a container was made through a link")
	}
}

// TestStoreRemoved: an empty store may be removed by whoever made it for a short time.
func TestStoreRemoved(t *testing.T) {
	s := newStore(t)
	if err := os.Remove(s.Path()); err != nil {
		t.Fatal(err)
	}
	started(t, s, "c").Close()
	if list, err := s.List(); err != nil || len(list) != 1 {
		t.Errorf("list %v, %v", list, err)
	}
}

func TestCheckName(t *testing.T) {
	for _, name := range []string{"a", "x_1", "12.0", "12_name", "ünï", strings.Repeat("n", 200)} {
		if err := CheckName(name); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"", ".", "..", ".hidden", "-f", "a/b", "a:b", "a b", "a\n", "a\x00", "a\x1b", strings.Repeat("n", 201)} {
		if CheckName(name) == nil {
			t.Errorf("%q is a name", name)
		}
	}
}

// TestBadRecord: what is wrong in a container's file is said, and nothing is made of it.
func TestBadRecord(t *testing.T) {
	s := newStore(t)
	started(t, s, "c").Close()
	file := filepath.Join(s.Path(), "c", recordName)
	for i, text := range []string{"", "{", `{"version":2,"image":"/x"}`, `{"version":1,"image":"x"}`, `{"version":1}`, fmt.Sprintf(`{"version":1,"image":"/%s"}`, strings.Repeat("x", maxRecord))} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if c, err := s.Claim(t.Context(), "c", Auto); err == nil {
			t.Errorf("%d: it was taken", i)
			c.Close()
		}
	}
	if err := errors.Join(os.Remove(file), unix.Mkfifo(file, 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Claim(t.Context(), "c", Auto); err == nil {
		t.Error("a fifo was taken")
	}
}

func TestOfferChecked(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for _, o := range []*offer{{}, {Kinds: []string{"mnt"}, Keep: -1}, {Kinds: []string{"mnt"}, Keep: 1}, {Kinds: []string{"mnt"}}} {
		if _, err := o.running([]*os.File{null, null}); err == nil {
			t.Errorf("%+v was taken", o)
		}
	}
}

// TestForeignDirectory: the store may be a directory that the user keeps other things in. Whatever is asked for by the
// name of one of them, it stays, and nothing is put into it.
func TestForeignDirectory(t *testing.T) {
	s := newStore(t)
	for _, entries := range [][]string{{"letter"}, {"layer"}, {"letter", "lock", "run"}, {"a", "b", "c", "d", "e", "f", "g"}} {
		dir := filepath.Join(s.Path(), "mine")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		for _, name := range entries {
			if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		for _, mode := range []Mode{Auto, Create, Join, Start} {
			if c, err := s.Claim(t.Context(), "mine", mode); err == nil || !strings.Contains(err.Error(), "other files") {
				t.Errorf("%q claimed in mode %d: %v, %v", entries, mode, c, err)
			}
		}
		if _, err := s.Get(t.Context(), "mine"); err == nil {
			t.Errorf("%q: got", entries)
		}
		if err := s.Remove(t.Context(), "mine"); err == nil {
			t.Errorf("%q: removed", entries)
		}
		s.sweep()
		var left []string
		all, _ := os.ReadDir(dir)
		for _, e := range all {
			left = append(left, e.Name())
		}
		if !slices.Equal(left, entries) {
			t.Errorf("of %q %q are left", entries, left)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
}

// Whoever comes to a container that is being removed makes another one, however little is left of the first.
func TestClaimWhileRemoved(t *testing.T) {
	s := newStore(t)
	for _, remove := range []func(c *Container) error{
		func(c *Container) error { return c.top.Rename(c.Name, goingPrefix+random()) },
		func(c *Container) error { return c.top.RemoveAll(c.Name) },
	} {
		if err := s.mkdir("c"); err != nil {
			t.Fatal(err)
		}
		c, err := s.dir("c")
		if err != nil {
			t.Fatal(err)
		}
		if err = remove(c); err != nil {
			t.Fatal(err)
		}
		if err = c.tryAcquire(); !errors.Is(err, errGone) {
			t.Errorf("lock what was removed: %v", err)
		}
		c.Close()
	}
	// With many at it, none of which is to keep the container.
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 50 {
				c, err := s.Claim(t.Context(), "d", Auto)
				if err != nil {
					t.Error(err)
					return
				}
				c.Close()
			}
		})
	}
	all.Wait()
}

// A tree is removed by several at once: whoever opens the store removes what is going.
func TestRemovedByMany(t *testing.T) {
	s := newStore(t)
	deep := strings.Repeat("d/", maxDepth+20) + "file"
	for i := range 4 {
		name := goingPrefix + fmt.Sprint(i)
		for k := range 30 {
			if err := s.root.MkdirAll(filepath.Join(name, fmt.Sprint(k), "empty"), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.root.MkdirAll(filepath.Join(name, filepath.Dir(deep)), 0o755); err != nil {
			t.Fatal(err)
		}
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				if err := removeTree(s.root, name); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if _, err := s.root.Lstat(name); err == nil {
			t.Errorf("%s is left", name)
		}
	}
	s.sweep() // what one has moved up may be another's to remove
	if names, err := s.names(); err != nil || len(names) > 0 {
		t.Errorf("left: %q, %v", names, err)
	}
}
