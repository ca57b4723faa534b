package noded

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/fusefs"
	"github.com/squirefs/squire/internal/mountinfo"
	"github.com/squirefs/squire/internal/wire"
)

func code(err error) Code {
	var refused *ServiceError
	if errors.As(err, &refused) {
		return refused.Code
	}
	if err != nil {
		return -1
	}
	return OK
}

// What each user may ask to see.
func TestViews(t *testing.T) {
	k := run(t, newWorld(t), Config{})
	one, other := &fusefs.Owner{UID: 1000, GID: 1000}, &fusefs.Owner{UID: 1001, GID: 1001}
	for i, c := range []struct {
		user uint32
		view View
		want Code
	}{
		{0, View{}, OK},
		{0, View{Squash: true}, OK},
		{0, View{Private: true}, OK},
		{0, View{Owner: other}, OK},
		{0, View{Squash: true, Private: true}, Invalid},
		{0, View{Squash: true, Owner: other}, Invalid},
		{1000, View{}, Denied},
		{1000, View{Restrict: true}, Denied},
		{1000, View{Owner: one}, Denied},
		{1000, View{Squash: true}, OK},
		{1000, View{Private: true}, OK},
		{1000, View{Private: true, Owner: one}, OK},
		{1000, View{Private: true, Owner: other}, Denied},
		{1000, View{Private: true, Owner: &fusefs.Owner{}}, Denied},
	} {
		m, err := k.as(t, c.user).Mount(Request{View: c.view}, imageFile(t, fmt.Sprint(i)))
		if code(err) != c.want {
			t.Errorf("user %d, %+v: %v", c.user, c.view, err)
		}
		if err == nil {
			m.Mount.Close()
		}
	}
	k.w.mu.Lock()
	defer k.w.mu.Unlock()
	for _, g := range k.w.granted {
		if g.UID == 0 != g.Root || !g.Root && g.Attrs&safeAttrs != safeAttrs {
			t.Errorf("granted %+v", g)
		}
	}
	for _, img := range k.w.images {
		if img.User != 0 && img.Owner != nil && *img.Owner == (fusefs.Owner{}) && !img.Restrict {
			t.Errorf("a user's view is not restricted: %+v", img)
		}
	}
	for i, o := range k.w.options {
		if private := !k.w.images[i].IDMap; o.User.UID != 0 && (o.Everybody == private || o.Source != "squire") {
			t.Errorf("mounted with %+v for %+v", o, k.w.images[i])
		}
	}
}

// A view that all users share is one mount, a private one is one for each.
func TestUsersShare(t *testing.T) {
	k := run(t, newWorld(t), Config{})
	f := imageFile(t, "a")
	for i, c := range []struct {
		user   uint32
		view   View
		shared bool
	}{
		{1000, View{Squash: true}, false},
		{1001, View{Squash: true}, true},
		{1000, View{Private: true}, false},
		{1001, View{Private: true}, false},
		{1001, View{Private: true}, true},
	} {
		m, err := k.as(t, c.user).Mount(Request{View: c.view}, f)
		if err != nil || m.Shared != c.shared {
			t.Errorf("%d: %+v, %v", i, m, err)
		}
	}
	k.w.mu.Lock()
	defer k.w.mu.Unlock()
	if !slices.Equal(k.w.common, []uint64{1}) {
		t.Errorf("images %d are said to be of several users, want the first one, once", k.w.common)
	}
	if len(k.w.images) != 3 || k.w.images[0].Owner == nil || !k.w.images[0].IDMap || !k.w.granted[1].IDMap {
		t.Errorf("%+v", k.w.images)
	}
}

// What is no image that its sender may read is refused, and nothing is left open.
func TestFiles(t *testing.T) {
	k := run(t, newWorld(t), Config{})
	path := imageFile(t, "a").Name()
	open := func(path string, flags int) *os.File {
		fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), path)
		t.Cleanup(func() { f.Close() })
		return f
	}
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := k.as(t, 1000)
	for _, bad := range []struct {
		name string
		file *os.File
		want Code
	}{
		{"O_PATH", open(path, unix.O_PATH), Denied},
		{"written", open(path, unix.O_WRONLY), Denied},
		{"read and written", open(path, unix.O_RDWR), Denied},
		{"directory", open(t.TempDir(), unix.O_RDONLY), Invalid},
		{"pipe", open(fifo, unix.O_RDONLY|unix.O_NONBLOCK), Invalid},
		{"device", open("/dev/zero", unix.O_RDONLY), Invalid},
		{"text", open(text, unix.O_RDONLY), BadImage},
	} {
		if _, err := c.Mount(Request{View: View{Squash: true}}, bad.file); code(err) != bad.want {
			t.Errorf("%s: %v", bad.name, err)
		}
	}
	for _, bad := range []Request{
		{Attrs: 1 << 30},
		{Attrs: unix.MOUNT_ATTR_IDMAP},
		{Offset: -1},
		{Record: 1},
		{Record: -1},
		{Image: strings.Repeat("x", maxName+1)},
	} {
		bad.View.Squash = true
		if _, err := c.Mount(bad, open(path, unix.O_RDONLY)); code(err) != Invalid {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	for _, r := range []Request{{Do: 99}, {Do: 0}, {Do: VerbMount, Traces: 3}, {Do: VerbMount, Traces: -1}, {Do: VerbAttach}} {
		if _, _, err := c.do(&r); code(err) != Invalid {
			t.Errorf("%+v: %v", r, err)
		}
	}
	if n := k.w.mounts.Load(); n != 0 {
		t.Errorf("%d mounts", n)
	}
}

// A block device is served for root alone, whoever may read it: what is on it is no file of a user's.
func TestBlockDevice(t *testing.T) {
	k := run(t, newWorld(t), Config{})
	device := blockDevice(t)
	for user, want := range map[uint32]Code{0: BadImage, 1000: Denied} {
		for _, view := range []View{{Squash: true}, {Private: true}} {
			if _, err := k.as(t, user).Mount(Request{View: view}, device); code(err) != want {
				t.Errorf("user %d, %+v, %s: %v", user, view, device.Name(), err)
			}
		}
	}
	own := run(t, newWorld(t), Config{Own: true, Socket: abstract(t)})
	if _, err := own.as(t, own.uid).Mount(Request{View: View{Squash: true}}, device); (code(err) == Denied) != (own.uid != 0) {
		t.Errorf("a service of user %d's own: %v", own.uid, err)
	}
}

// blockDevice opens one that is there, for reading.
func blockDevice(t *testing.T) *os.File {
	t.Helper()
	names, _ := filepath.Glob("/sys/class/block/*")
	for _, name := range names {
		f, err := os.Open(filepath.Join("/dev", filepath.Base(name)))
		if err != nil {
			continue
		}
		t.Cleanup(func() { f.Close() })
		if st, err := f.Stat(); err == nil && st.Mode()&(os.ModeDevice|os.ModeCharDevice) == os.ModeDevice {
			return f
		}
	}
	t.Skip("needs a block device that can be opened")
	return nil
}

// A file of a user's own FUSE file system is not for the node's service.
func TestMountTable(t *testing.T) {
	const table = `21 1 0:20 / / rw,relatime shared:1 - overlay overlay rw,lowerdir=/a
22 21 8:1 / /data rw - ext4 /dev/sda1 rw
23 21 0:33 / /home/u/mnt rw,nosuid - fuse.sshfs u@h:/ rw,user_id=1000,group_id=1000
24 21 0:34 / /gluster rw - fuse.glusterfs host:/v rw,user_id=0,group_id=0,allow_other
25 21 0:35 / /nfs rw master:7 propagate_from:2 - nfs4 host:/x rw,vers=4.2
26 21 0:36 / /odd\040name rw - fuse squire ro,user_id=10001,user_id=0x
malformed
`
	for device, want := range map[string]storage{
		"0:20": {loose: true}, "8:1": {}, "0:33": {loose: true, users: true}, "0:34": {loose: true}, "0:35": {},
		"0:36": {loose: true, users: true},
	} {
		if got, ok := mountedAs(mountinfo.Parse(table), device); !ok || got != want {
			t.Errorf("%s: %+v, %v", device, got, ok)
		}
	}
	if _, ok := mountedAs(mountinfo.Parse(table), "0:3"); ok {
		t.Error("found a device that is not there")
	}
}

// Each limit, and that the others are still served.
func TestLimits(t *testing.T) {
	k := run(t, newWorld(t), Config{Limits: Limits{UserImages: 2, Images: 4, UserAttached: 1, UserClients: 3}})
	a, b := k.as(t, 1000), k.as(t, 1001)
	squash := Request{View: View{Squash: true}}
	mount := func(c *Client) error {
		_, err := c.Mount(squash, imageFile(t, "x"))
		return err
	}
	for i, c := range []struct {
		c    *Client
		want Code
	}{{a, OK}, {a, OK}, {a, Limit}, {b, OK}, {b, OK}, {b, Limit}, {k.as(t, 0), Limit}} {
		if err := mount(c.c); code(err) != c.want {
			t.Errorf("%d: %v", i, err)
		}
	}
}

// At the limit, an image that nobody uses makes place.
func TestEvict(t *testing.T) {
	k := run(t, newWorld(t), Config{Limits: Limits{UserImages: 1}, Idle: time.Hour})
	first := k.as(t, 1000)
	if _, err := first.Mount(Request{View: View{Squash: true}}, imageFile(t, "a")); err != nil {
		t.Fatal(err)
	}
	img := k.images1(t)
	first.Close()
	eventually(t, "nobody uses it", func() bool { k.mu.Lock(); defer k.mu.Unlock(); return len(img.refs) == 0 })
	go func() {
		for k.ctx.Err() == nil {
			k.mu.Lock()
			left := img.state == leaving
			k.mu.Unlock()
			if left {
				k.w.server().ended <- img.id
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	if _, err := k.as(t, 1000).Mount(Request{View: View{Squash: true}}, imageFile(t, "b")); err != nil {
		t.Error(err)
	}
}

// Connections beyond the limits are told so, and others are let in.
func TestTooManyClients(t *testing.T) {
	k := run(t, newWorld(t), Config{Limits: Limits{Clients: 3}})
	var cs []*Client
	dialed(t, k.socket).Close()
	eventually(t, "the first is gone", func() bool { k.mu.Lock(); defer k.mu.Unlock(); return len(k.clients) == 0 })
	for range 3 {
		cs = append(cs, dialed(t, k.socket))
	}
	if _, err := Dial(k.socket); err == nil || !strings.Contains(err.Error(), "too many") {
		t.Error(err)
	}
	cs[0].Close()
	eventually(t, "there is room again", func() bool {
		c, err := Dial(k.socket)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

// Clients that say nothing, something else, or speak another version.
func TestGreeting(t *testing.T) {
	k := run(t, newWorld(t), Config{})
	dialed(t, k.socket)
	raw := func() *wire.Conn {
		sock, err := net.Dial("unixpacket", k.socket)
		if err != nil {
			t.Fatal(err)
		}
		c := wire.NewConn(sock.(*net.UnixConn))
		c.SetDeadline(time.Now().Add(limit))
		t.Cleanup(func() { c.Close() })
		return c
	}
	for _, hello := range []*Hello{{Magic: helloMagic, Version: Version + 1}, {Magic: "x", Version: Version}, {}} {
		c := raw()
		if err := c.Send(hello); err != nil {
			t.Fatal(err)
		}
		var w Welcome
		if _, err := c.Recv(&w); err != nil || w.Version != Version || w.Program != "test" || w.Error == "" {
			t.Errorf("%+v: %+v, %v", hello, w, err)
		}
		if _, err := c.Recv(&w); err == nil {
			t.Error("the connection is open")
		}
	}
	c := raw()
	if _, err := c.Recv(new(Welcome)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("a client that says nothing:", err)
	}
}

// A client that does not read its answers is dropped.
func TestSlowClient(t *testing.T) {
	k := run(t, newWorld(t), Config{})
	dialed(t, k.socket)
	sock, err := k.connection(1000)
	if err != nil {
		t.Fatal(err)
	}
	conn := wire.NewConn(sock)
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(limit))
	if err = conn.Send(&Hello{Magic: helloMagic, Version: Version}); err != nil {
		t.Fatal(err)
	}
	for err == nil {
		err = conn.Send(&Request{Do: 99})
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("it is still there")
	}
}

// A user sees of others nothing: not their images, names, or numbers.
func TestReportForUsers(t *testing.T) {
	k := run(t, newWorld(t), Config{})
	f := imageFile(t, "a")
	squash := View{Squash: true}
	a, b := k.as(t, 1000), k.as(t, 1001)
	for _, m := range []struct {
		c    *Client
		name string
		f    *os.File
	}{{a, "a's own", f}, {b, "b's name of it", f}, {b, "b's secret", imageFile(t, "b")}} {
		if _, err := m.c.Mount(Request{Image: m.name, View: squash}, m.f); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		c      *Client
		images string
		users  string
	}{
		{a, `["a's own"]`, "[1000]"},
		{b, `["b's name of it" "b's secret"]`, "[1001][1001]"},
		{k.as(t, 0), `["a's own" "b's secret"]`, "[1000 1001][1001]"},
	} {
		r, err := c.c.Report()
		if err != nil {
			t.Fatal(err)
		}
		names, users := []string{}, ""
		for _, img := range r.Images {
			names = append(names, img.Name)
			users += fmt.Sprint(img.Users)
		}
		if got := fmt.Sprintf("%q", names); got != c.images || users != c.users {
			t.Errorf("images %s, users %s", got, users)
		}
	}
	r, _ := a.Report()
	if r.Totals != nil || r.Memory != 0 || r.Images[0].References != 1 || r.Clients != 1 {
		t.Errorf("%+v", r)
	}
}

// Counters go on when the server or an image is gone.
func TestCounters(t *testing.T) {
	k := run(t, newWorld(t), Config{})
	c := dialed(t, k.socket)
	var ids []uint64
	for range 2 {
		m, err := c.Mount(all, imageFile(t, "a"))
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, m.ID)
	}
	expect := func(read, total uint64) {
		t.Helper()
		var r *Report
		right := func() bool {
			var err error
			if r, err = c.Report(); err != nil {
				t.Fatal(err)
			}
			return len(r.Images) > 0 && r.Images[0].Stats.Read == read && r.Totals.Stats.Read == total && r.Totals.Images == 2
		}
		for end := time.Now().Add(limit); !right() && time.Now().Before(end); { // a new server may not be asked yet
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(60 * time.Millisecond) // counters are asked for so often at most: they stay as they are
		if !right() {
			t.Errorf("%+v, %+v, want %d and %d", r.Images, r.Totals, read, total)
		}
	}
	expect(10, 20)
	k.w.server().Kill()
	eventually(t, "both are taken over", func() bool { return k.w.takeovers.Load() == 2 })
	expect(20, 40)
	k.w.server().ended <- ids[1]
	eventually(t, "one has ended", func() bool { k.mu.Lock(); defer k.mu.Unlock(); return len(k.images) == 1 })
	expect(20, 40)
}

// Attach and Detach: with what the caller mounted, for the same user, so many times.
func TestAttach(t *testing.T) {
	k := run(t, newWorld(t), Config{Limits: Limits{UserAttached: 2}, Idle: 50 * time.Millisecond})
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	a, b := k.as(t, 1000), k.as(t, 1001)
	m, err := a.Mount(Request{View: View{Private: true}, NoGrant: true}, imageFile(t, "a"))
	if err != nil || m.Mount != nil {
		t.Fatal(err)
	}
	if err = b.Attach(m.ID, dir, 0); code(err) != Invalid {
		t.Error("another's image:", err)
	}
	for i, want := range []Code{OK, OK, Limit} {
		if err = a.Attach(m.ID, dir, 0); code(err) != want {
			t.Errorf("%d: %v", i, err)
		}
	}
	shared, err := a.Mount(Request{View: View{Squash: true}, NoGrant: true}, imageFile(t, "b"))
	if err != nil {
		t.Fatal(err)
	}
	if err = a.Attach(shared.ID, dir, 0); code(err) != Invalid {
		t.Error("a shared view:", err)
	}
	k.w.mu.Lock()
	for _, g := range k.w.granted {
		if !g.Root || g.IDMap || g.Attrs&safeAttrs != safeAttrs {
			t.Errorf("granted %+v", g)
		}
	}
	k.w.mu.Unlock()
	a.Close()
	b2 := k.as(t, 1000) // another connection of the same user
	time.Sleep(200 * time.Millisecond)
	k.mu.Lock()
	if img := k.images[m.ID]; img.state != served {
		t.Errorf("an image with directories is %v", img.state)
	}
	k.mu.Unlock()
	for _, base := range []string{"", ".", "..", "a/b", "a\x00", strings.Repeat("x", 300)} {
		if err = b2.Detach(dir, base, false); code(err) != Invalid {
			t.Errorf("%q: %v", base, err)
		}
	}
	if err = b.Detach(dir, "m1", false); err == nil {
		t.Error("another's mount is gone")
	}
	for _, base := range []string{"m1", "m2"} {
		if err = b2.Detach(dir, base, false); err != nil {
			t.Error(err)
		}
	}
	eventually(t, "it is let go of", func() bool {
		k.mu.Lock()
		defer k.mu.Unlock()
		return k.images[m.ID].state == leaving
	})
}

// The service of a user is for that user.
func TestOwn(t *testing.T) {
	k := run(t, newWorld(t), Config{Own: true, Socket: abstract(t)})
	f := imageFile(t, "a")
	for _, c := range []struct {
		user uint32
		view View
		want Code
	}{
		{k.uid, View{Squash: true}, OK},
		{k.uid, View{Private: true}, OK},
		{k.uid, View{}, Denied},
		{k.uid + 1, View{Squash: true}, Denied},
	} {
		if _, err := k.as(t, c.user).Mount(Request{View: c.view, NoGrant: true}, f); code(err) != c.want {
			t.Errorf("user %d, %+v: %v", c.user, c.view, err)
		}
	}
	k.w.mu.Lock()
	defer k.w.mu.Unlock()
	for i, o := range k.w.options {
		if o.Everybody || k.w.images[i].IDMap {
			t.Errorf("%+v, %+v", o, k.w.images[i])
		}
	}
}
