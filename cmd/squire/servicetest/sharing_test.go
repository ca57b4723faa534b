package servicetest

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// account is a memory cgroup of its own, which counts the page cache that its processes bring in.
type account struct{ procs, stat string }

// newAccount returns nil where there is no memory controller that this process may use.
func newAccount(t *testing.T) *account {
	t.Helper()
	for _, mount := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/memory"} {
		dir := filepath.Join(mount, fmt.Sprintf("squire-test-%d", os.Getpid()))
		if os.Mkdir(dir, 0o755) != nil {
			continue
		}
		t.Cleanup(func() { os.Remove(dir) })
		a := &account{filepath.Join(dir, "cgroup.procs"), filepath.Join(dir, "memory.stat")}
		if _, err := os.Stat(a.stat); err == nil {
			return a
		}
	}
	return nil
}

// pages returns the bytes of the page cache that were charged.
func (a *account) pages(t *testing.T) int64 {
	t.Helper()
	b, err := os.ReadFile(a.stat)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		// Version 1 counts shared memory as cache, version 2 calls it file.
		if key == "cache" || key == "file" {
			n, _ := strconv.ParseInt(value, 10, 64)
			return n
		}
	}
	t.Fatalf("no page cache in %s", b)
	return 0
}

// enter has a command run in the account.
func (a *account) enter(cmd *exec.Cmd) {
	if a == nil {
		return
	}
	cmd.Args = append([]string{"sh", "-c", `echo $$ >"$0" && exec "$@"`, a.procs}, cmd.Args...)
	cmd.Path = "/bin/sh"
}

// gate has commands start at one moment, when open is called.
type gate struct{ r, w *os.File }

func newGate(t *testing.T) *gate {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return &gate{r, w}
}

// hold has cmd wait for the gate, which is its standard input.
func (g *gate) hold(cmd *exec.Cmd) {
	cmd.Args = append([]string{"sh", "-c", `read -r _; exec "$0" "$@" </dev/null`}, cmd.Args...)
	cmd.Path, cmd.Stdin = "/bin/sh", g.r
}

func (g *gate) open() { g.w.Close() }

// 64 tasks of four users start on one image at the same moment. There is one superblock of it, its bytes are read from
// storage once, the page cache has one copy of its files, and every task sees what it should.
func TestManyTasks(t *testing.T) {
	l := newLab(t)
	img, err := l.makeImage("many", 64)
	if err != nil {
		t.Fatal(err)
	}
	acc := newAccount(t)
	d := l.newDaemon(t)
	cmd := exec.Command(d.exe, d.args("--cache", "256M")...) // room for all of the image, however it falls into the cache's parts
	acc.enter(cmd)
	d.launch(t, cmd)
	d.wantAnswer(t)
	if acc != nil {
		// The last that the account holds must be gone before it can be removed.
		t.Cleanup(func() { d.clear(t) })
	}

	const tasks = 64
	g := newGate(t)
	var cmds []*exec.Cmd
	var outs []*bytes.Buffer
	for i := range tasks {
		cmd := d.run(t, users[i%len(users)], img, "hash", "/", "0")
		if acc != nil {
			// Only root may move processes: it does, and becomes the user behind it.
			u := users[i%len(users)]
			cmd.SysProcAttr.Credential = nil
			cmd.Args = append([]string{"setpriv", "--reuid", u.String(), "--regid", u.String(), "--clear-groups"}, cmd.Args...)
			acc.enter(cmd)
		}
		g.hold(cmd)
		out := new(bytes.Buffer)
		cmd.Stdout, cmd.Stderr = out, out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		cmds, outs = append(cmds, cmd), append(outs, out)
	}
	g.r.Close()
	var before int64
	if acc != nil {
		before = acc.pages(t)
	}
	keep := d.hold(t, users[0], l.image) // an image of its own, so that the service is known to be at work
	if err := keep.end(); err != nil {
		t.Error(err)
	}
	g.open()
	used := 0
	for i, cmd := range cmds {
		if err := cmd.Wait(); err != nil || !strings.HasPrefix(outs[i].String(), "device=") {
			t.Errorf("task %d: %v\n%s", i, err, outs[i])
		}
	}
	r := d.report(t)
	if len(r.Images) != 2 || len(d.connections()) != 2 {
		t.Errorf("%d images, connections %v, want this one and that of before: %+v", len(r.Images), d.connections(), r.Images)
	}
	for _, i := range r.Images {
		if i.Name != img.path {
			continue
		}
		used++
		t.Logf("%d bytes of %d read from storage; FUSE: %d LOOKUP, %d OPEN, %d READ of %d bytes, %d bytes stored", i.Read,
			img.size, i.Stats.Lookup, i.Stats.Open, i.Stats.Read, i.Stats.ReadBytes, i.Stats.Stored)
		// The tables may be read once more, by whoever asks for the superblock, and a block of which the kernel took a part
		// only, as it was asked for while it was put into the page cache: on a busy machine 6 % were. Two copies are far more.
		if int64(i.Read) > img.size+img.size/4 || int64(i.Read) < img.size/2 {
			t.Errorf("%d bytes were read from storage; the image has %d", i.Read, img.size)
		}
	}
	if used != 1 {
		t.Errorf("%d images are that of the tasks", used)
	}
	l.wantNoClients(t)
	if acc == nil {
		t.Log("no memory cgroup: the growth of the page cache was not measured")
		return
	}
	// What may count beside it are the pages of the probe, in the image too, of which a program needs some. Those of the
	// image's file are charged to who made it, this test. Two copies would be twice the files.
	probe, err := os.Stat(l.probe)
	if err != nil {
		t.Fatal(err)
	}
	growth, most := acc.pages(t)-before, img.data+img.data/2+probe.Size()
	t.Logf("the page cache grew by %d bytes; files of the image: %d, and the probe: %d", growth, img.data, probe.Size())
	if growth < img.data || growth > most || most > 2*img.data {
		t.Errorf("the page cache grew by %d bytes; one copy is %d, and %d would be too much", growth, img.data, most)
	}
}

// Each kind of view has a superblock of its own, shared by all that look at it so; what is gone after its idle time is
// gone from the kernel.
func TestOneMountPerImage(t *testing.T) {
	l := newLab(t)
	d := l.start(t, "--idle", "200ms")
	other, err := l.makeImage("other", 2)
	if err != nil {
		t.Fatal(err)
	}
	var held []*holding
	for i := range 6 {
		img := l.image
		if i >= 4 {
			img = other
		}
		held = append(held, d.hold(t, users[i%len(users)], img))
	}
	r := d.report(t)
	if len(r.Images) != 2 || len(d.connections()) != 2 {
		t.Errorf("%d images and connections %v, want 2: %+v", len(r.Images), d.connections(), r.Images)
	}
	refs := 0
	for _, i := range r.Images {
		refs += i.References
	}
	if refs != len(held) {
		t.Errorf("%d references, want %d", refs, len(held))
	}
	for _, h := range held {
		if err := h.end(); err != nil {
			t.Error(err)
		}
	}
	d.wantUnmounted(t)
	if s := d.stop(t); s != 0 {
		t.Errorf("the daemon ended with status %d", s)
	}
	if _, err := os.Lstat(d.socket); err == nil {
		t.Error("the socket is still there")
	}
}

// Another name, a link, and a copy: the first two are the image, the third is another.
func TestIdentity(t *testing.T) {
	l := newLab(t)
	d := l.start(t)
	dir := l.mkdir(t, users[0])
	link, symlink, copied := filepath.Join(dir, "link"), filepath.Join(dir, "symlink"), filepath.Join(dir, "copy")
	if err := os.Link(l.image.path, link); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(link) })
	if err := os.Symlink(l.image.path, symlink); err != nil {
		t.Fatal(err)
	}
	if err := copyFile(l.image.path, copied); err != nil {
		t.Fatal(err)
	}
	for i, path := range []string{l.image.path, link, symlink, copied} {
		h := d.hold(t, users[i], &image{path: path})
		defer func() { _ = h.end() }()
	}
	if n := len(d.report(t).Images); n != 2 {
		t.Errorf("%d images, want 2", n)
	}
}

// What ps, stats and the service's report say is the same, each user sees what is theirs, and strangers' names do not
// reach a terminal as they are.
func TestReports(t *testing.T) {
	l := newLab(t)
	d := l.start(t)
	h := d.hold(t, users[0], l.image)
	defer func() { _ = h.end() }()
	evil := filepath.Join(l.mkdir(t, users[1]), "a\x1b[31m\nb.sqsh")
	if err := copyFile(l.image.path, evil); err != nil {
		t.Fatal(err)
	}
	h2 := d.hold(t, users[1], &image{path: evil})
	defer func() { _ = h2.end() }()
	for _, c := range []struct {
		who  user
		mine int
	}{{root, 2}, {users[0], 1}, {users[1], 1}, {users[2], 0}} {
		r := finish(t, d.client(t, c.who, "stats", "--json"))
		if n := strings.Count(r.stdout, `"references"`); r.status != 0 || n != c.mine {
			t.Errorf("user %v sees %d images, want %d: %+v", c.who, n, c.mine, r)
		}
		r = finish(t, d.client(t, c.who, "ps"))
		if r.status != 0 || strings.Contains(r.stdout, "\x1b") || strings.Contains(r.stdout, l.image.path) != (c.who == root || c.who == users[0]) {
			t.Errorf("ps of user %v: %+v", c.who, r)
		}
		lines := 0
		for s := bufio.NewScanner(strings.NewReader(r.stdout)); s.Scan(); {
			lines++
		}
		if lines > c.mine+3 {
			t.Errorf("ps of user %v has %d lines:\n%s", c.who, lines, r.stdout)
		}
	}
}

// One user reads through many images. What the service keeps decoded of another user's image stays, up to an equal part
// of the cache; and so does that of an image which the busy user was the first to have, once another has it too.
func TestCacheShares(t *testing.T) {
	l := newLab(t)
	const cache = 3 << 20 // less than the fragment blocks of two images have
	d := l.start(t, "--cache", fmt.Sprint(cache))
	busy, victim := users[0], users[1]
	copies := func(u user) *image {
		img := &image{path: filepath.Join(l.mkdir(t, u), "image.sqsh")}
		if err := copyFile(l.image.path, img.path); err != nil {
			t.Fatal(err)
		}
		return img
	}
	cached := func(img *image) int64 {
		for _, i := range d.report(t).Images {
			if i.Name == img.path {
				return i.Cached
			}
		}
		t.Fatalf("%s is not served", img.path)
		return 0
	}
	stream := func() {
		for range 4 {
			d.wantRun(t, busy, copies(busy), "hash", "/", "0")
		}
	}

	private := copies(victim)
	d.wantRun(t, victim, private, "hash", "/", "0")
	alone := cached(private)
	stream()
	beside := cached(private)
	const slack = 256 << 10 // two fragment blocks
	t.Logf("of the victim's image %d bytes are kept alone, %d beside four of the busy user's", alone, beside)
	if alone < cache/2 || beside < min(alone, cache/2)-slack {
		t.Errorf("%d bytes of %d are kept, and %d when another user has read four images", alone, cache, beside)
	}

	common := copies(busy)
	h := d.hold(t, busy, common)
	d.wantRun(t, victim, common, "hash", "/", "0")
	before := cached(common)
	stream()
	after := cached(common)
	t.Logf("of the common image %d bytes are kept, and %d later", before, after)
	// On a busy machine readers overtake the server, which then keeps less from the start.
	if before < 2*slack || after < min(before, cache/3)-slack {
		t.Errorf("of an image that two users have %d bytes are kept, and %d when one of them has read four others: want as much, up to a third of %d",
			before, after, cache)
	}
	if err := h.end(); err != nil {
		t.Error(err)
	}
	if sum := d.report(t).Cache; sum.Bytes > cache {
		t.Errorf("%d bytes are kept, of %d", sum.Bytes, sum.Budget)
	}
}
