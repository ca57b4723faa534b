package noded

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/fusefs"
	"github.com/squirefs/squire/fusefs/noded/mounter"
	"github.com/squirefs/squire/fusefs/noded/server"
	"github.com/squirefs/squire/internal/testenv"
	"github.com/squirefs/squire/internal/wire"
)

// world is what fake servers and mounters have in common: it counts what they do, and says how they behave.
type world struct {
	t *testing.T

	servers, mounters, mounts, opens, serves, takeovers atomic.Int64

	mu       sync.Mutex
	srv      *fakeServer
	mnt      *fakeMounter
	granted  []mounter.Grantee
	options  []mounter.Options
	images   []server.Image
	attached map[uint64]bool // ids that are mounted
	inUse    map[uint64]bool // numbers that are mounted
	dropped  []uint64
	common   []uint64
	cleared  []uint64
	served   map[uint64]time.Time // when an image was served last

	onOpen    func(s *fakeServer, img server.Image) error
	onServe   func(s *fakeServer, id uint64, init []byte) error
	onPing    func() error
	onStats   func() error
	onAttach  func() error
	flags     uint64
	lostAfter bool // Grant knows only mounts of the same mounter
}

func newWorld(t *testing.T) *world {
	return &world{
		t: t, flags: allowIDMap, attached: map[uint64]bool{}, inUse: map[uint64]bool{}, served: map[uint64]time.Time{},
	}
}

func (w *world) parts() parts {
	return parts{
		server: func(server.Config) (imageServer, error) {
			s := &fakeServer{w: w, n: w.servers.Add(1), done: make(chan struct{}), ended: make(chan uint64, 16), images: map[uint64]string{}}
			w.mu.Lock()
			w.srv = s
			w.mu.Unlock()
			return s, nil
		},
		mounter: func(bool) (mountMaker, error) {
			m := &fakeMounter{w: w, n: w.mounters.Add(1), done: make(chan struct{})}
			w.mu.Lock()
			w.mnt = m
			w.mu.Unlock()
			return m, nil
		},
	}
}

func (w *world) server() *fakeServer {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.srv
}

func (w *world) mounter() *fakeMounter {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.mnt
}

// fakeServer reads no image: a superblock is the first bytes of the file.
type fakeServer struct {
	w     *world
	n     int64
	once  sync.Once
	done  chan struct{}
	ended chan uint64
	crash atomic.Bool

	mu     sync.Mutex
	images map[uint64]string // opened; the superblock
}

var errDead = errors.New("the server is gone")

func superblock(f *os.File, offset int64) (string, error) {
	b := make([]byte, 96)
	n, _ := f.ReadAt(b, offset)
	if !strings.HasPrefix(string(b), "image") {
		return "", &server.ImageError{Text: "not an image"}
	}
	return string(b[:n]), nil
}

func (s *fakeServer) Superblock(_ uint32, f *os.File, offset int64) (string, error) {
	if gone(s.done) {
		return "", errDead
	}
	return superblock(f, offset)
}

func (s *fakeServer) Open(img server.Image, f, _ *os.File, _ []*os.File) (server.Info, error) {
	s.w.opens.Add(1)
	s.w.mu.Lock()
	s.w.images = append(s.w.images, img)
	do := s.w.onOpen
	s.w.mu.Unlock()
	if do != nil {
		if err := do(s, img); err != nil {
			return server.Info{}, err
		}
	}
	if gone(s.done) {
		return server.Info{}, errDead
	}
	sb, err := superblock(f, img.Offset)
	if err != nil {
		return server.Info{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.images[img.ID] = sb
	return server.Info{Size: 4096, Superblock: sb, Replayed: img.Traces}, nil
}

func (s *fakeServer) Serve(id uint64, device *os.File, init []byte) (server.Info, error) {
	if init == nil {
		s.w.serves.Add(1)
	} else {
		s.w.takeovers.Add(1)
	}
	s.w.mu.Lock()
	do := s.w.onServe
	s.w.mu.Unlock()
	if do != nil {
		if err := do(s, id, init); err != nil {
			return server.Info{}, err
		}
	}
	if gone(s.done) {
		return server.Info{}, errDead
	}
	if _, err := device.Stat(); err != nil {
		s.w.t.Errorf("device of image %d: %v", id, err)
	}
	if init != nil && string(init) != fmt.Sprint("init ", id) {
		s.w.t.Errorf("image %d is taken over with %q", id, init)
	}
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	s.w.served[id] = time.Now()
	return server.Info{Init: []byte(fmt.Sprint("init ", id)), Flags: s.w.flags}, nil
}

func (s *fakeServer) Forget(id uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.images, id)
}

func (s *fakeServer) Common(id uint64) {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	s.w.common = append(s.w.common, id)
}

func (s *fakeServer) Ended() <-chan uint64 { return s.ended }

func (s *fakeServer) Ping(time.Duration) error {
	s.w.mu.Lock()
	do := s.w.onPing
	s.w.mu.Unlock()
	if do != nil {
		return do()
	}
	return nil
}

func (s *fakeServer) Stats() (*server.Stats, error) {
	s.w.mu.Lock()
	do := s.w.onStats
	s.w.mu.Unlock()
	if do != nil {
		if err := do(); err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	st := &server.Stats{Memory: 1 << 20, Images: map[uint64]server.ImageStats{}}
	for id := range s.images {
		st.Images[id] = server.ImageStats{Stats: fusefs.Stats{Read: 10}, ReadFrom: 1000}
	}
	return st, nil
}

func (s *fakeServer) Done() <-chan struct{} { return s.done }
func (s *fakeServer) Crashed() bool         { return s.crash.Load() }
func (s *fakeServer) Stop()                 { s.Kill() }
func (s *fakeServer) Kill() {
	s.once.Do(func() {
		close(s.done)
		close(s.ended)
	})
}

// die is a crash.
func (s *fakeServer) die() {
	s.crash.Store(true)
	s.Kill()
}

type fakeMounter struct {
	w    *world
	n    int64
	once sync.Once
	done chan struct{}
}

func (m *fakeMounter) Mount(o mounter.Options) (*mounter.Mounted, error) {
	if gone(m.done) {
		return nil, errDead
	}
	n := m.w.mounts.Add(1)
	m.w.mu.Lock()
	m.w.options = append(m.w.options, o)
	m.w.mu.Unlock()
	device, err := Sealed(fmt.Sprint("device ", n), nil)
	if err != nil {
		return nil, err
	}
	mount, err := Sealed(fmt.Sprint("mount ", n), []byte{byte(m.n)})
	if err != nil {
		return nil, err
	}
	return &mounter.Mounted{Device: device, Mount: mount, Number: 1000 + uint64(n)}, nil
}

func (m *fakeMounter) Grant(id uint64, mount *os.File, to mounter.Grantee) (*os.File, error) {
	if gone(m.done) {
		return nil, errDead
	}
	by := make([]byte, 1)
	if _, err := mount.ReadAt(by, 0); err != nil {
		return nil, err
	}
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	if m.w.lostAfter && by[0] != byte(m.n) {
		return nil, fmt.Errorf("clone: %w", mounter.ErrLost)
	}
	m.w.granted = append(m.w.granted, to)
	return Sealed(fmt.Sprint("clone ", id), []byte(fmt.Sprint("clone ", id)))
}

func (m *fakeMounter) Attach(clone, dir, peer *os.File, user fusefs.Owner) (uint64, error) {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	if m.w.onAttach != nil {
		if err := m.w.onAttach(); err != nil {
			return 0, err
		}
	}
	id := uint64(len(m.w.attached) + 1)
	m.w.attached[id] = true
	return id, nil
}

func (m *fakeMounter) Detach(_ *os.File, base string, ids []uint64, _ *os.File, _ bool) (uint64, error) {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	for _, id := range ids {
		if m.w.attached[id] && base == fmt.Sprint("m", id) {
			delete(m.w.attached, id)
			return id, nil
		}
	}
	return 0, errors.New("nothing of yours is mounted there")
}

func (m *fakeMounter) Attached(ids, numbers []uint64) (liveIDs, liveNumbers []uint64, err error) {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	for _, id := range ids {
		if m.w.attached[id] {
			liveIDs = append(liveIDs, id)
		}
	}
	for _, n := range numbers {
		if m.w.inUse[n] {
			liveNumbers = append(liveNumbers, n)
		}
	}
	return liveIDs, liveNumbers, nil
}

func (m *fakeMounter) Clear(numbers []uint64) error {
	if gone(m.done) {
		return errDead
	}
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	m.w.cleared = append(m.w.cleared, numbers...)
	return nil
}

func (m *fakeMounter) Drop(id uint64) {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	m.w.dropped = append(m.w.dropped, id)
}

func (m *fakeMounter) Done() <-chan struct{} { return m.done }
func (m *fakeMounter) Close()                { m.once.Do(func() { close(m.done) }) }

// running is a keeper with fakes that runs.
type running struct {
	*keeper
	w      *world
	socket string
	cancel context.CancelFunc
	over   chan struct{}
	err    error
}

// run starts a keeper for a test, which ends it.
func run(t *testing.T, w *world, c Config, change ...func(*keeper)) *running {
	t.Helper()
	if c.Socket == "" {
		c.Socket = socketIn(t)
	}
	if c.Version == "" {
		c.Version = "test"
	}
	if c.Log == nil {
		c.Log = slog.New(slog.NewTextHandler(newTestLog(t), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	ctx, cancel := context.WithCancel(context.Background())
	k := newKeeper(ctx, c, w.parts())
	k.noIDMap.Store(c.NoIDMap)
	k.noResend = c.NoResend
	k.clone = dup
	for _, do := range change {
		do(k)
	}
	r := &running{keeper: k, w: w, socket: c.Socket, cancel: cancel, over: make(chan struct{})}
	go func() {
		defer close(r.over)
		defer cancel()
		r.err = k.run(cancel)
	}()
	t.Cleanup(func() {
		cancel()
		r.wait(t)
	})
	return r
}

// wait waits for the keeper's end.
func (r *running) wait(t *testing.T) {
	t.Helper()
	select {
	case <-r.over:
	case <-time.After(limit):
		t.Fatal("the keeper does not end")
	}
}

func socketIn(t *testing.T) string {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "s")
}

// testLog writes to a test's log while the test runs.
type testLog struct {
	mu   sync.Mutex
	t    *testing.T
	over bool
}

func newTestLog(t *testing.T) *testLog {
	l := &testLog{t: t}
	t.Cleanup(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.over = true
	})
	return l
}

func (l *testLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.over {
		l.t.Logf("%s", b)
	}
	return len(b), nil
}

// dialed connects to a keeper, for the time of the test.
func dialed(t *testing.T, socket string) *Client {
	t.Helper()
	var c *Client
	eventually(t, "there is a service", func() (ok bool) {
		var err error
		// On a busy machine a greeting may take longer than a client waits.
		if c, err = Dial(socket); err != nil && !errors.Is(err, ErrNoService) && !strings.Contains(err.Error(), "does not answer") {
			t.Fatal(err)
		}
		return err == nil
	})
	t.Cleanup(func() { c.Close() })
	return c
}

// imageFile is what the fake server takes for an image.
func imageFile(t *testing.T, name string) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, []byte("image "+name), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// eventually waits until ok.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	testenv.Await(t, limit, what, ok)
}

// all is the view that only root may ask for, squashed that of everybody.
var (
	all      = Request{Image: "an image", Attrs: safeAttrs}
	squashed = Request{Image: "an image", Attrs: safeAttrs, View: View{Squash: true, Restrict: true}}
)

// images1 returns the only image that there is.
func (k *keeper) images1(t *testing.T) *image {
	t.Helper()
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.images) != 1 {
		t.Fatalf("there are %d images", len(k.images))
	}
	for _, img := range k.images {
		return img
	}
	return nil
}

// as returns a client that the keeper takes for one of user uid.
func (r *running) as(t *testing.T, uid uint32) *Client {
	t.Helper()
	dialed(t, r.socket).Close() // it is up
	sock, err := r.connection(uid)
	if err != nil {
		t.Fatal(err)
	}
	theirs := wire.NewConn(sock)
	l := &link{conn: theirs, replies: make(chan answer, 1), ended: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	if err = greet(ctx, theirs, "a pair"); err != nil {
		t.Fatal(err)
	}
	go l.read()
	c := &Client{socket: "@none", ctx: ctx, cancel: cancel, link: l}
	t.Cleanup(func() { c.Close() })
	return c
}

// connection is one to a keeper that takes it for one of user uid.
func (k *keeper) connection(uid uint32) (*net.UnixConn, error) {
	ours, f, err := wire.Pair()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	theirs, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	c := &client{
		conn: ours, peer: &unix.Ucred{Pid: int32(os.Getpid()), Uid: uid, Gid: uid},
		user: fusefs.Owner{UID: uid, GID: uid}, images: map[uint64]*image{},
	}
	k.mu.Lock()
	k.clients[c] = true
	k.connected[uid]++
	k.mu.Unlock()
	go k.serveClient(c)
	return theirs.(*net.UnixConn), nil
}

type fakeImage = server.Image

const sigterm = unix.SIGTERM

var ownerOne = fusefs.Owner{UID: 1, GID: 1}

// abstract is the name of an abstract socket for one test.
func abstract(t *testing.T) string {
	return fmt.Sprintf("@squire-test-%d-%s", os.Getpid(), t.Name())
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// closeRights closes descriptors that came with a message.
func closeRights(oob []byte) {
	msgs, _ := unix.ParseSocketControlMessage(oob)
	for i := range msgs {
		fds, _ := unix.ParseUnixRights(&msgs[i])
		for _, fd := range fds {
			unix.Close(fd)
		}
	}
}
