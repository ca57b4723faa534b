package servicetest

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/fusefs/noded"
	"github.com/squirefs/squire/internal/testenv"
	"github.com/squirefs/squire/sqfs/signed"
	"github.com/squirefs/squire/sqfs/signed/signedtest"
)

// signedLab is a lab whose squire has a site that runs signed images only, and the key that signs them.
func signedLab(t *testing.T) (*lab, *signedtest.Key) {
	t.Helper()
	key := signedtest.New("site")
	return siteLab(t, fmt.Sprintf("[images]\nkeys = [%q]\n", key.Line)), key
}

// siteLab is a lab whose squire has a site with this squire.toml.
func siteLab(t *testing.T, policy string, tools ...string) *lab {
	t.Helper()
	l := *newLab(t, tools...)
	dir := l.mkdir(t, root)
	if err := os.WriteFile(filepath.Join(dir, "squire.toml"), []byte(policy), 0o644); err != nil {
		t.Fatal(err)
	}
	l.squire = filepath.Join(dir, "squire")
	if err := testenv.Build(l.squire, "-X main.siteDir="+dir); err != nil {
		t.Fatal(err)
	}
	return &l
}

// alter changes a byte in the middle of an image, and leaves its times as they were: nothing shows that but the bytes.
func alter(t *testing.T, img *image) {
	t.Helper()
	var st unix.Stat_t
	f, err := os.OpenFile(img.path, os.O_RDWR, 0)
	if err == nil {
		defer f.Close()
		err = unix.Fstat(int(f.Fd()), &st)
	}
	b := make([]byte, 1)
	if err == nil {
		_, err = f.ReadAt(b, img.size/2)
	}
	if err == nil {
		b[0] ^= 0x40
		_, err = f.WriteAt(b, img.size/2)
	}
	if err == nil {
		err = unix.UtimesNanoAt(unix.AT_FDCWD, img.path, []unix.Timespec{st.Atim, st.Mtim}, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// A signed image goes on through the deaths of its server, a new program, and another signature in its place. What is
// altered in its file, by its owner and without a trace, is not read: not from the service, nor from a server of one's own.
func TestSigned(t *testing.T) {
	l, key := signedLab(t)
	d := l.start(t)
	img := l.own(t, users[0])
	key.Sign(t, img.path)
	h := d.hold(t, users[0], img)
	d.wantRun(t, users[1], img, "cold", "/", "0")
	d.imageReport(t) // they share it
	d.kill(serverName)
	d.wantRun(t, users[1], img, "cold", "/", "0")
	if err := os.WriteFile(img.path+signed.Suffix, []byte("something else"), 0o644); err != nil {
		t.Fatal(err)
	}
	before := d.find(serverName)
	if err := d.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another program serves", func() bool { pid := d.find(serverName); return pid != 0 && pid != before && d.ask() != nil })
	if r := finish(t, d.inside(t, users[0], h, "cold", "/", "0")); r.status != 0 {
		t.Errorf("after another program came: %+v", r)
	}
	alter(t, img)
	forgetNames()
	if r := finish(t, d.inside(t, users[0], h, "sick", "/", "1")); r.status != 0 {
		t.Errorf("an altered byte is read: %+v", r)
	}
	key.Sign(t, l.own(t, users[0]).path) // another copy, to see that the key still signs
	for _, service := range []string{"node", "off"} {
		copied := l.own(t, users[1])
		key.Sign(t, copied.path)
		alter(t, copied)
		cmd := d.run(t, users[1], copied, "sick", "/", "1")
		cmd.Env = append(cmd.Env, "SQUIRE_SERVICE="+service)
		if r := finish(t, cmd); r.status != 0 {
			t.Errorf("SQUIRE_SERVICE=%s: an altered byte is read: %+v", service, r)
		}
	}
}

// unsealed is a file in memory that whoever has it can write to.
func unsealed(t *testing.T, b []byte) *os.File {
	t.Helper()
	fd, err := unix.MemfdCreate("list", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "list")
	t.Cleanup(func() { f.Close() })
	if _, err = f.Write(b); err != nil {
		t.Fatal(err)
	}
	return f
}

// What is not signed is neither run nor mounted, by squire or by a client of the service that knows no rules.
func TestUnsigned(t *testing.T) {
	l, key := signedLab(t)
	d := l.start(t)
	good := l.own(t, users[0])
	head, list := key.Sign(t, good.path)
	bad := l.own(t, users[0])
	for what, sig := range map[string]string{
		"none":                 "",
		"of somebody else":     signedtest.New("stranger").Head(head[:strings.Index(head, "-----BEGIN")]) + string(list),
		"of another statement": key.Head((&signed.Statement{Size: good.size, Block: 4096}).String()),
		"cut":                  head + string(list[:64]),
		"garbage":              "-----BEGIN SSH SIGNATURE-----\n",
	} {
		if sig != "" {
			if err := os.WriteFile(bad.path+signed.Suffix, []byte(sig), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		for _, service := range []string{"node", "off"} {
			cmd := d.run(t, users[0], bad, "hash", "/", "0")
			cmd.Env = append(cmd.Env, "SQUIRE_SERVICE="+service)
			if r := finish(t, cmd); r.status != 125 || !strings.Contains(r.stderr, "squire: ") || strings.Count(r.stderr, "\n") != 1 {
				t.Errorf("signature %s, service %s: %+v", what, service, r)
			}
		}
		if r := finish(t, d.client(t, users[0], "mount", bad.path, l.mkdir(t, users[0]))); r.status != 125 {
			t.Errorf("signature %s: is mounted: %+v", what, r)
		}
	}
	if r := finish(t, d.client(t, users[0], "run", l.mkdir(t, users[0]), "--", "/bin/probe", "wait")); r.status != 125 || !strings.Contains(r.stderr, "forbidden here") {
		t.Errorf("a directory is run: %+v", r)
	}

	c := d.greet(t, users[0])
	file := openAs(t, users[0], bad.path, os.O_RDONLY)
	signedRequest := squashed()
	signedRequest.Do, signedRequest.Signature = noded.VerbMountSigned, head
	sealed := func(b []byte) *os.File {
		f, err := noded.Sealed("list", b)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	open := openAs(t, users[0], good.path+signed.Suffix, os.O_RDONLY)
	other := signedRequest
	other.Signature = signedtest.New("stranger").Head(head[:strings.Index(head, "-----BEGIN")])
	empty := signedRequest
	empty.Signature = ""
	long := signedRequest
	long.Signature = strings.Repeat("x", 8000)
	wrong := bytes.Clone(list)
	wrong[0] ^= 1
	for _, tt := range []struct {
		what  string
		r     noded.Request
		files []*os.File
	}{
		{"unsigned", squashed(), []*os.File{file}},
		{"unsigned, with a list", squashed(), []*os.File{file, sealed(list)}},
		{"another key", other, []*os.File{file, sealed(list)}},
		{"no signature", empty, []*os.File{file, sealed(list)}},
		{"a long one", long, []*os.File{file, sealed(list)}},
		{"no list", signedRequest, []*os.File{file}},
		{"a list that its owner can change", signedRequest, []*os.File{file, open}},
		{"a list in memory that can be changed", signedRequest, []*os.File{file, unsealed(t, list)}},
		{"a list that is cut", signedRequest, []*os.File{file, sealed(list[:32])}},
		{"another list", signedRequest, []*os.File{file, sealed(wrong)}},
		{"two lists", signedRequest, []*os.File{file, sealed(list), sealed(list)}},
	} {
		c.wantRefused(t, tt.what, tt.r, tt.files...)
	}
	_ = c.sock.SetDeadline(time.Time{})
	reply, files, err := c.ask(signedRequest, file, sealed(list)) // the copy is what was signed
	if err != nil || reply.Code != noded.OK || len(files) != 1 {
		t.Errorf("with the right signature: %+v, %v", reply, err)
	}
	for _, f := range files {
		f.Close()
	}
}
