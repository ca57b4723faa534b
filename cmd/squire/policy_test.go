package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/squirefs/squire/runtime"
)

// What is wrong in a squire.toml is named by key, and by line where its form is wrong.
func TestPolicyParse(t *testing.T) {
	for _, tt := range []struct{ text, message string }{
		{"", ""},
		{"# a comment\ndata = '/scratch/%U'\n[images]\nowners = ['root', '12']\n", ""},
		{"socket = '@name'\n[accounting]\nsyslog = true\nfile = '/var/log/squire'\n", ""},
		{"\n[images]\ndirectory = '/x'\n", `line 3: unknown key "images.directory"`},
		{"[image]\nowners = []\n", `line 1: unknown key "image"`},
		{"data = 3\n", "line 1: data: "},
		{"\n[containers\n", "line 2: "},
		{"data = '/a'\ndata = '/b'\n", "line 2: data: "},
		{"data = 'relative'", `data: "relative": is not absolute`},
		{"data = '@name'", `data: "@name": is not absolute`},
		{"cache = '/x/%u'", `cache: "/x/%u": only %U`},
		{"[containers]\nwritable = 'no'\n", `containers.writable: "no" is none of`},
		{"[containers]\nwritable = false\n", "line 2: containers.writable: "},
		{"[containers]\ndevices = 'force'\n", "containers.devices: "},
		{"[containers]\nmounts = ['lustre']\n", `containers.mounts: "lustre": is not an absolute path`},
		{"[images]\ndirectories = ['x']\n", `images.directories: "x": is not an absolute path`},
		{"[images]\nowners = ['no-such-user-at-all']\n", "images.owners: "},
	} {
		err := new(site).parse([]byte(tt.text))
		if tt.message == "" && err != nil || tt.message != "" && (err == nil || !strings.Contains(err.Error(), tt.message)) {
			t.Errorf("%q: error %v, want one with %q", tt.text, err, tt.message)
		}
	}
}

// What a user says, or does not say, meets what the site says.
func TestPolicyDecide(t *testing.T) {
	yes, no := true, false
	for _, tt := range []struct {
		site   siteChoice
		said   *bool
		want   bool
		failed bool
	}{
		{"", nil, false, false},
		{"", &yes, true, false},
		{"", &no, false, false},
		{siteAllow, nil, false, false},
		{siteAllow, &yes, true, false},
		{siteDefault, nil, true, false},
		{siteDefault, &yes, true, false},
		{siteDefault, &no, false, false},
		{siteForce, nil, true, false},
		{siteForce, &yes, true, false},
		{siteForce, &no, false, true},
		{siteForbid, nil, false, false},
		{siteForbid, &yes, true, true},
		{siteForbid, &no, false, false},
	} {
		s := &site{Containers: siteContainers{Writable: tt.site, RemapRoot: tt.site, MountHome: tt.site}}
		a, b, c, err := s.decide(choices{tt.said, tt.said, tt.said})
		if (err != nil) != tt.failed || err == nil && (a != tt.want || b != tt.want || c != tt.want) {
			t.Errorf("site %q, user %v: %v %v %v, %v", tt.site, tt.said, a, b, c, err)
		}
	}
}

// A directory covers what is in it, wherever links lead, and not what begins with its name.
func TestPolicyBelow(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "real/in"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]string{"link": "real", "real/out": ".."} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	s := &site{Containers: siteContainers{Mounts: []string{filepath.Join(dir, "link"), "tmpfs"}}}
	for _, tt := range []struct {
		source string
		ok     bool
	}{
		{dir + "/real", true},
		{dir + "/real/in", true},
		{dir + "/link/in", true},
		{dir, false},
		{dir + "/real/out", false},
		{dir + "/real/in/../..", false},
		{"/", false},
		{dir + "/no/such", false},
		{"tmpfs", true},
		{"umount", false},
	} {
		if err := s.mayMount(runtime.Mount{Source: tt.source, Target: "/x"}); (err == nil) != tt.ok {
			t.Errorf("%s: %v", tt.source, err)
		}
	}
	if isBelow("/lustre2/x", []string{"/lustre"}) || !isBelow("/x", []string{"/"}) || !isBelow("/", []string{"/"}) {
		t.Error("a name's beginning is taken for a directory")
	}
	none := &site{Containers: siteContainers{Mounts: []string{}}}
	if err := none.mayMount(runtime.Mount{Source: "/usr", Target: "/x"}); err == nil {
		t.Error("an empty list allows a mount")
	}
}

// planned is the plan of a run at a site with this squire.toml.
func planned(t *testing.T, policy string, args ...string) (string, error) {
	t.Helper()
	useSite(t, map[string]string{policyName: policy, "mounts.d/a.fstab": "/etc /site/etc none ro\n"})
	return squire(t, append([]string{"run", "--plan"}, args...)...)
}

// squire run keeps to squire.toml. The site's own mounts are not limited by it.
func TestPolicyRun(t *testing.T) {
	needRoot(t)
	home := t.TempDir()
	t.Setenv("HOME", home)
	for _, tt := range []struct {
		policy string
		args   []string
		want   string // in the plan, or in the error after "!"
	}{
		{"", []string{"--mounts", "/usr:/u", testImage}, "/usr -> /u"},
		{"[containers]\nmounts = []", []string{testImage}, "/etc -> /site/etc"},
		{"[containers]\nmounts = []", []string{"--mounts", "/usr:/u", testImage}, "!mount /usr: forbidden here"},
		{"[containers]\nmounts = ['/usr']", []string{"--mounts", "/usr/bin:/u", testImage}, "/usr/bin -> /u in /usr\n"},
		{"[containers]\nmounts = ['/usr']", []string{testImage}, "/etc -> /site/etc (ro)\n"},
		{"[containers]\nmounts = ['tmpfs']", []string{"--mounts", "/no/such:/u:nofail", testImage}, "!mount /no/such: forbidden here"},
		{"[containers]\nmounts = ['/usr']", []string{"--tmpfs", "/t", testImage}, "!mount tmpfs:/t: forbidden here"},
		{"[containers]\nmounts = ['/usr']", []string{"--mount-home", testImage}, "!mount " + home + ": forbidden here"},
		{"[containers]\nmount-home = 'force'", []string{testImage}, home},
		{"[containers]\nmount-home = 'default'", []string{"--mount-home=false", testImage}, "exec"},
		{"[containers]\nwritable = 'default'", []string{testImage}, "layer     tmpfs\n"},
		{"[containers]\nwritable = 'force'", []string{"--readonly", testImage}, "!not a writable container: forbidden here"},
		{"[containers]\nwritable = 'forbid'", []string{"--writable", testImage}, "!a writable container: forbidden here"},
		{"[containers]\nwritable = 'forbid'", []string{"--writable=" + home, testImage}, "!a writable container: forbidden here"},
		{"[containers]\nremap-root = 'forbid'", []string{"--remap-root", testImage}, "!to be root inside: forbidden here"},
		{"[containers]\ndevices = 'forbid'", []string{"--device", "/dev/null", testImage}, "!--device /dev/null: forbidden here"},
		{"[images]\nowners = ['root']", []string{"/"}, "!a directory as image, /: forbidden here"},
		{"[images]\ndirectories = ['/usr']", []string{"/"}, "!image /: is not in /usr: forbidden here"},
		{"[images]\ndirectories = ['/']", []string{"/"}, "dir       / in /\n"},
		{"", []string{"--writable=tmpfs:size=1g", testImage}, "layer     tmpfs (size=1g)\n"},
		{"", []string{"--writable=tmpfs:size=1g,mode=777", testImage}, `!size "1g,mode=777" of the writable layer: want`},
		{"", []string{"--writable=tmpfs:size=0", testImage}, `!size "0"`},
		{"", []string{"--writable=tmpfs:size=", testImage}, "!--writable: want tmpfs:size=SIZE"},
		{"x = 1", []string{testImage}, `squire.toml: line 1: unknown key "x"`},
	} {
		out, err := planned(t, tt.policy, tt.args...)
		want, refused := strings.CutPrefix(tt.want, "!")
		if err != nil {
			out = err.Error()
			refused = refused || strings.Contains(want, "unknown key")
		} else if refused {
			t.Errorf("%q %q: not refused", tt.policy, tt.args)
		}
		if err != nil != refused || !strings.Contains(out, want) {
			t.Errorf("%q %q: want %q, got %v\n%s", tt.policy, tt.args, tt.want, err, out)
		}
	}
}

// An image counts for where it is and whose it is, not for what it is called. What may not be run may not be imported.
func TestPolicyImages(t *testing.T) {
	dir := t.TempDir()
	in, out := filepath.Join(dir, "in.sqsh"), filepath.Join(dir, "link.sqsh")
	if err := os.WriteFile(in, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(in, out); err != nil {
		t.Fatal(err)
	}
	me := uint32(os.Geteuid())
	for _, tt := range []struct {
		name   string
		images siteImages
		ok     bool
	}{
		{in, siteImages{}, true},
		{in, siteImages{Directories: []string{dir}}, true},
		{out, siteImages{Directories: []string{dir}}, true},
		{in, siteImages{Directories: []string{}}, false},
		{in, siteImages{Directories: []string{"/usr"}}, false},
		{in, siteImages{Owners: []string{"me"}, owners: []uint32{me}}, true},
		{in, siteImages{Owners: []string{"other"}, owners: []uint32{me + 1}}, false},
		{in, siteImages{Owners: []string{"me"}, owners: []uint32{me}, Directories: []string{"/usr"}}, false},
	} {
		s := &site{Images: tt.images}
		f, err := s.openImage(tt.name)
		if err == nil {
			f.Close()
		}
		if (err == nil) != tt.ok {
			t.Errorf("%s with %+v: %v", tt.name, tt.images, err)
		}
		if err = s.mayImport(dir); (err == nil) != tt.ok {
			t.Errorf("import with %+v: %v", tt.images, err)
		}
	}
	outside := filepath.Join(t.TempDir(), "in.sqsh")
	if err := os.Symlink(in, outside); err != nil {
		t.Fatal(err)
	}
	s := &site{Images: siteImages{Directories: []string{filepath.Dir(outside)}}}
	if _, err := s.openImage(outside); err == nil {
		t.Error("a link in the site's directory that leads out of it is followed")
	}
}

// A file that others can write to is no policy, and stops what depends on it.
func TestPolicyOwner(t *testing.T) {
	needRoot(t)
	dir := useSite(t, map[string]string{policyName: ""})
	name := filepath.Join(dir, policyName)
	if err := os.Chmod(name, 0o666); err != nil {
		t.Fatal(err)
	}
	_, run := squire(t, "run", "--plan", testImage)
	_, mount := openMountable(testImage, dir)
	_, layers := new(importOptions).layerCache()
	for what, err := range map[string]error{"run": run, "mount": mount, "import": layers} {
		if err == nil || !strings.Contains(err.Error(), "nobody else may write to it") {
			t.Errorf("%s: %v", what, err)
		}
	}
	useSite(t, map[string]string{policyName: "cache = '/scratch/%U/x'\nsocket = '/run/elsewhere'\n"})
	t.Setenv("SQUIRE_SOCKET", "")
	t.Setenv("SQUIRE_CACHE_DIR", "")
	if got := cacheDir(); got != "/scratch/0/x" {
		t.Errorf("cache in %s", got)
	}
	if got := nodeSocketPath(); got != "/run/elsewhere" {
		t.Errorf("service at %s", got)
	}
	t.Setenv("SQUIRE_SOCKET", "/y")
	t.Setenv("SQUIRE_CACHE_DIR", "/z")
	if cacheDir() != "/z" || nodeSocketPath() != "/y" {
		t.Error("the environment does not come first")
	}
}

// A plan is for people to read: names in it move no cursor, and make no lines of their own.
func TestPlanIsPrintable(t *testing.T) {
	useSite(t, nil)
	dir := filepath.Join(t.TempDir(), "a\x1b[2J\nseal")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := squire(t, "run", "--plan", "--mounts", dir+":/x", testImage, "--", "echo", "\x1b]0;x\a")
	if err != nil {
		t.Fatal(err)
	}
	if strings.ContainsAny(out, "\x1b\a") || strings.Contains(out, "\nseal ") || !strings.Contains(out, `\033]0;x`) {
		t.Errorf("%q", out)
	}
}
