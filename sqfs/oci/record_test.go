package oci

import (
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/squirefs/squire/sqfs"
	"github.com/squirefs/squire/sqfs/pack"
)

// nasty are strings that shells and comments might trip over.
var nasty = []string{
	"", " ", "'", "''", `"`, `\`, `\'`, "$(touch $PWNED)", "`touch $PWNED`", "${PWNED}", "a\nb", "\n", "touch $PWNED", ";touch $PWNED", "&", "|", "#", "!!", "~", "*",
	"$'\\n'", "a b", "-n", "\t", "é\xff", "\x01\x7f", "a\r\nb", "'$(touch $PWNED)'", "\"$(touch $PWNED)\"", "'; touch $PWNED; '", "\"; touch $PWNED; \"", "EOF", "\\\n",
}

func shells(t *testing.T) []string {
	found := []string{"/bin/sh"}
	for _, s := range []string{"bash", "dash", "busybox"} {
		if p, err := exec.LookPath(s); err == nil {
			found = append(found, p)
		}
	}
	return found
}

func shell(path string, args ...string) *exec.Cmd {
	if filepath.Base(path) == "busybox" {
		args = append([]string{"sh"}, args...)
	}
	return exec.Command(path, args...)
}

// TestRC runs the scripts that hostile configurations become, with real shells: what they are
// given comes out as it is, and nothing else happens.
func TestRC(t *testing.T) {
	dir := t.TempDir()
	show := filepath.Join(dir, "show")
	if err := os.WriteFile(show, []byte("#!/bin/sh\npwd\nprintf '[%s]' \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	pwned := filepath.Join(dir, "pwned")
	for n, bad := range nasty {
		r := Record{Source: "docker://r.io/x:" + bad, Config: Config{
			Entrypoint: []string{show, bad}, Cmd: []string{bad, "end"},
			Labels:     map[string]string{bad: bad, "b\ntouch $PWNED": "v\ntouch $PWNED"},
			WorkingDir: filepath.Join(dir, "work", "x"+bad),
		}}
		if r.Config.check() != nil {
			continue
		}
		rc := filepath.Join(dir, "rc")
		if err := os.WriteFile(rc, r.rc(), 0o755); err != nil {
			t.Fatal(err)
		}
		for _, sh := range shells(t) {
			if out, err := shell(sh, "-n", rc).CombinedOutput(); err != nil {
				t.Errorf("%d %q: %s -n: %v: %s\n%s", n, bad, sh, err, out, r.rc())
				continue
			}
			for _, c := range []struct {
				args []string
				want string
			}{
				{nil, "[" + bad + "][" + bad + "][end]"},
				{[]string{"x y", bad}, "[" + bad + "][x y][" + bad + "]"},
			} {
				cmd := shell(sh, append([]string{rc}, c.args...)...)
				cmd.Env = append(os.Environ(), "PWNED="+pwned)
				out, err := cmd.CombinedOutput()
				want := r.workdir() + "\n" + c.want
				if err != nil || string(out) != want {
					t.Errorf("%d %q: %s: %v: %q, want %q\n%s", n, bad, sh, err, out, want, r.rc())
				}
			}
		}
		if _, err := os.Stat(pwned); err == nil {
			t.Fatalf("%q was executed:\n%s", bad, r.rc())
		}
		// And what enroot's reader makes of it is the same.
		back := parseRC(string(r.rc()))
		if back == nil {
			t.Errorf("%q: the script is not understood:\n%s", bad, r.rc())
			continue
		}
		if !strings.Contains(bad, "\n") && (!slices.Equal(back.Config.Entrypoint, r.Config.Entrypoint) || !slices.Equal(back.Config.Cmd, r.Config.Cmd) || back.Config.WorkingDir != r.workdir()) {
			t.Errorf("%q: %+v", bad, back.Config)
		}
	}
}

// TestRCForm compares a script with the one that enroot 4.1 writes, but for blanks.
func TestRCForm(t *testing.T) {
	r := Record{Source: "docker://docker.io/library/x:1", Config: Config{
		WorkingDir: "/work", Entrypoint: []string{"/entry"}, Cmd: []string{"a b"}, Labels: map[string]string{"b": "2", "a": "1"},
	}}
	want := `# enroot-provenance: docker://registry-1.docker.io#library/x:1
# a 1
# b 2

mkdir -p "/work" 2> /dev/null
cd "/work" && unset OLDPWD || exit 1

if [ -s /etc/rc.local ]; then
    . /etc/rc.local
fi

if [ $# -gt 0 ]; then
    exec '/entry' "$@"
else
    exec '/entry' 'a b'
fi
`
	if got := string(r.rc()); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	r = Record{Source: "oci:x"}
	if got := string(r.rc()); !strings.Contains(got, `cd "/" &&`) || !strings.Contains(got, `exec "$@"`) || !strings.Contains(got, "exec '/bin/sh'\n") || !strings.HasPrefix(got, "# enroot-provenance: oci:x\n") {
		t.Error(got)
	}
}

// TestParseEnroot reads what enroot's import wrote, and what other programs did.
func TestParseEnroot(t *testing.T) {
	rc := "# enroot-provenance: docker://nvcr.io#nvidia/cuda:12\n# maintainer some body\n# empty \n\nmkdir -p \"/my dir\" 2> /dev/null\ncd \"/my dir\" && unset OLDPWD || exit 1\n\n" +
		"if [ -s /etc/rc.local ]; then\n    . /etc/rc.local\nfi\n\nif [ $# -gt 0 ]; then\n    exec '/entry.sh' $'a\\nb' 'it'\\''s' \"$@\"\nelse\n    exec '/entry.sh' $'a\\nb' 'it'\\''s' 'run' $'\\E[1m\\303\\251'\nfi\n"
	r := parseRC(rc)
	if r == nil {
		t.Fatal("not understood")
	}
	want := Config{WorkingDir: "/my dir", Entrypoint: []string{"/entry.sh", "a\nb", "it's"}, Cmd: []string{"run", "\x1b[1mé"}, Labels: map[string]string{"maintainer": "some body", "empty": ""}}
	if r.Version != 0 || r.Source != "docker://nvcr.io#nvidia/cuda:12" || !reflect.DeepEqual(r.Config, want) {
		t.Errorf("%+v", r)
	}
	old := strings.Replace(rc, "# enroot-provenance: docker://nvcr.io#nvidia/cuda:12\n", "", 1)
	if r := parseRC(old); r == nil || r.Source != "" {
		t.Errorf("%+v", r)
	}
	for _, other := range []string{"", "#!/bin/sh\nexit 0\n", "cd /\nexec x\nexec y\n", "# just\n# comments\n", "if [ $# -gt 0 ]; then\nexec a\nexec b\n"} {
		if r := parseRC(other); r != nil {
			t.Errorf("%q is %+v", other, r)
		}
	}
	if r := parseRC(strings.Replace(rc, "'run'", "$(run)", 1)); r == nil || r.Config.Cmd != nil {
		t.Errorf("%+v", r)
	}
	if env := parseEnvironment("A=b\n# c\n  B=c d\nnonsense\n1=2\nC=\nsecond line\n"); !slices.Equal(env, []string{"A=b", "B=c d", "C="}) {
		t.Errorf("%q", env)
	}
	v := (&Record{Config: Config{Volumes: map[string]struct{}{"/a b": {}, "c/../d": {}, "/$HOME": {}, "/": {}}}})
	if got := slices.Sorted(maps.Keys(parseVolumes(string(v.fstab())))); !slices.Equal(got, []string{"/a b", "/d"}) {
		t.Errorf("%q of %s", got, v.fstab())
	}
}

func TestEncodeRecord(t *testing.T) {
	r := &Record{Source: "docker://x/y:z", Config: Config{Labels: map[string]string{"<b>": "&"}}}
	for range 10_000 {
		r.History = append(r.History, History{CreatedBy: strings.Repeat("x", 200)})
	}
	b, err := r.encode()
	if err != nil || len(b) > maxRecord || !bytes.Contains(b, []byte(`"<b>": "&"`)) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if back, err := decodeRecord(b); err != nil || back.History != nil || back.Version != 1 {
		t.Errorf("%+v, %v", back, err)
	}
	r.Config.Labels["x"] = strings.Repeat("y", maxRecord)
	if _, err := r.encode(); err == nil {
		t.Error("no error for a record that is too long")
	}
	for bad, want := range map[string]string{
		`{"version":2}`: "version", `{"version":1,"digest":"sha256:.."}`: "digest", `{"version":1,"source":"a\u001b[31m"}`: "control",
		`{"version":1,"config":{"Env":["a\u0000"]}}`: "NUL", `[`: "unexpected", `{"version":1,"layers":[{"digest":"x"}]}`: "digest",
	} {
		_, err := decodeRecord([]byte(bad))
		wantError(t, err, want)
	}
}

func dir(entries map[string]*pack.Inode) *pack.Inode {
	return &pack.Inode{Type: sqfs.TypeDir, Mode: 0o755, Entries: entries}
}

func link(target string) *pack.Inode {
	return &pack.Inode{Type: sqfs.TypeSymlink, Mode: 0o777, Target: target}
}

// install puts a record into a tree and reads it back from the image.
func install(t *testing.T, r *Record, root *pack.Inode) (*sqfs.Image, error) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "x.sqsh"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	w, err := pack.NewWriter(f, pack.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	if err = r.Install(root, w); err != nil {
		return nil, err
	}
	if _, err = w.Finish(root); err != nil {
		t.Fatal(err)
	}
	img, err := sqfs.OpenImage(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { img.Close() })
	return img, nil
}

func TestInstall(t *testing.T) {
	r := &Record{
		Version: 1, Source: "docker://docker.io/library/x:1", Digest: "sha256:" + hex64, Created: time.Unix(1e9, 0).UTC(), Platform: "linux/amd64",
		Config: Config{Env: []string{"A=b", "M=1\n2"}, WorkingDir: "/opt/w", Cmd: []string{"x"}, Volumes: map[string]struct{}{"/data/v": {}, "/file/v": {}, "/l/v": {}}},
	}
	victim := &pack.Inode{Type: sqfs.TypeSymlink, Target: "/victim"}
	root := dir(map[string]*pack.Inode{
		"etc":    dir(map[string]*pack.Inode{"rc": victim, "environment": link("../victim"), "squire": link("/../../other")}),
		"victim": {Type: sqfs.TypeFile, Mode: 0o600}, "file": {Type: sqfs.TypeFile}, "l": link("/real/dir"),
	})
	img, err := install(t, r, root)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]struct {
		typ  sqfs.Type
		mode uint16
		body string
	}{
		"etc/rc": {sqfs.TypeFile, 0o755, string(r.rc())}, "etc/environment": {sqfs.TypeFile, 0o644, "A=b\nM=1 2\n"},
		"etc/fstab": {sqfs.TypeFile, 0o644, string(r.fstab())}, "etc/rc.local": {sqfs.TypeFile, 0o644, rcLocal},
		"other/image.json": {sqfs.TypeFile, 0o644, ""}, "victim": {sqfs.TypeFile, 0o600, ""}, "file": {sqfs.TypeFile, 0, ""},
		"opt/w": {sqfs.TypeDir, 0o755, ""}, "data/v": {sqfs.TypeDir, 0o755, ""}, "real/dir/v": {sqfs.TypeDir, 0o755, ""},
	} {
		ino, rerr := img.Resolve(name, false)
		if rerr != nil || ino.Type != want.typ || ino.Mode != want.mode {
			t.Errorf("%s: %+v, %v", name, ino, rerr)
			continue
		}
		if strings.HasPrefix(name, "etc/") && ino.ModTime != 1e9 {
			t.Errorf("%s: time %v", name, ino.ModTime)
		}
		if want.body != "" {
			if b, rerr := img.ReadFile(name); rerr != nil || string(b) != want.body {
				t.Errorf("%s: %q, %v", name, b, rerr)
			}
		}
	}
	back, err := ReadRecord(img)
	if err != nil || !reflect.DeepEqual(back, r) {
		t.Errorf("%+v, %v\nwant %+v", back, err, r)
	}
	a, _ := json.Marshal(back)
	b, _ := json.Marshal(r)
	if !bytes.Equal(a, b) {
		t.Errorf("%s\n%s", a, b)
	}
}

func TestInstallHostile(t *testing.T) {
	r := &Record{Version: 1, Source: "oci:x"}
	for name, c := range map[string]struct {
		root *pack.Inode
		want string
	}{
		"etc is a link":           {dir(map[string]*pack.Inode{"etc": link("../../usr/etc")}), ""},
		"etc is a file":           {dir(map[string]*pack.Inode{"etc": {Type: sqfs.TypeFile}}), "/etc/squire/image.json"},
		"etc is a loop":           {dir(map[string]*pack.Inode{"etc": link("etc")}), "too many symlinks"},
		"etc is a device":         {dir(map[string]*pack.Inode{"etc": {Type: sqfs.TypeChar}}), "no directory"},
		"etc/rc is a directory":   {dir(map[string]*pack.Inode{"etc": dir(map[string]*pack.Inode{"rc": dir(nil)})}), "a directory of this name"},
		"nothing at all":          {&pack.Inode{Type: sqfs.TypeDir, Mode: 0o755}, ""},
		"etc is a directory, nil": {dir(map[string]*pack.Inode{"etc": dir(nil)}), ""},
	} {
		img, err := install(t, r, c.root)
		if c.want != "" {
			wantError(t, err, c.want)
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if back, err := ReadRecord(img); err != nil || back == nil || back.Source != "oci:x" {
			t.Errorf("%s: %+v, %v", name, back, err)
		}
	}
	many := &Record{Config: Config{Volumes: map[string]struct{}{}}}
	for n := range 30 {
		many.Config.Volumes["/"+strings.Repeat("a"+string(rune('a'+n))+"/", 1000)] = struct{}{}
	}
	_, err := install(t, many, dir(nil))
	wantError(t, err, "too many directories")
}

// TestReadRecordOther has images without a record, or with a bad one.
func TestReadRecordOther(t *testing.T) {
	write := func(t *testing.T, files map[string]string) *sqfs.Image {
		t.Helper()
		f, err := os.Create(filepath.Join(t.TempDir(), "x.sqsh"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		w, err := pack.NewWriter(f, pack.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer w.Abort()
		root := dir(nil)
		in := &installer{root: root, w: w}
		for name, body := range files {
			if err = in.write(name, 0o644, []byte(body)); err != nil {
				t.Fatal(err)
			}
		}
		if _, err = w.Finish(root); err != nil {
			t.Fatal(err)
		}
		img, err := sqfs.OpenImage(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { img.Close() })
		return img
	}
	for _, files := range []map[string]string{{}, {"etc/rc": "#!/bin/sh\nexit 0\n", "etc/environment": "A=b\n"}, {"etc/rc/x": ""}, {"etc": "x"}} {
		if r, err := ReadRecord(write(t, files)); r != nil || err != nil {
			t.Errorf("%v: %+v, %v", files, r, err)
		}
	}
	enroot := (&Record{Source: "oci:x", Config: Config{Cmd: []string{"y"}, Volumes: map[string]struct{}{"/v": {}}}})
	r, err := ReadRecord(write(t, map[string]string{"etc/rc": string(enroot.rc()), "etc/environment": "A=b\n", "etc/fstab": string(enroot.fstab())}))
	if err != nil || r == nil || r.Version != 0 || r.Source != "oci:x" || !slices.Equal(r.Config.Env, []string{"A=b"}) || len(r.Config.Volumes) != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	for body, want := range map[string]string{"{": "unexpected", strings.Repeat(" ", maxRecord+1): "at most"} {
		_, err := ReadRecord(write(t, map[string]string{RecordPath: body}))
		wantError(t, err, want)
	}
}

// FuzzConfig takes a configuration through all that is made of it.
func FuzzConfig(f *testing.F) {
	f.Add([]byte(`{"os":"linux","architecture":"amd64","created":"2024-05-06T07:08:09Z","config":{"User":"1:2","Env":["A=b","C=d\ne"],"Entrypoint":["/x","'"],"Cmd":["$(y)"],"WorkingDir":"/a \"b","Volumes":{"/v":{}},"Labels":{"a":"b\nc"}},"rootfs":{"diff_ids":[]},"history":[{"created":"x"}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := parseConfig(b, 0)
		if err != nil {
			return
		}
		r := &Record{Version: 1, Source: "oci:x", Created: c.Created.Time, Config: c.Config}
		body, err := r.encode()
		if err != nil {
			return
		}
		back, err := decodeRecord(body)
		if err != nil {
			t.Fatalf("%v: %s", err, body)
		}
		again, err := back.encode()
		if err != nil || !bytes.Equal(body, again) {
			t.Fatalf("%s\nand then\n%s, %v", body, again, err)
		}
		rc := parseRC(string(r.rc()))
		if rc == nil {
			t.Fatalf("not understood:\n%s", r.rc())
		}
		for _, volume := range r.volumes() {
			if !strings.HasPrefix(volume, "/") || strings.Contains(volume+"/", "/../") {
				t.Fatalf("volume %q", volume)
			}
		}
		if n := bytes.Count(r.environment(), []byte("\n")); n != len(r.Config.Env) {
			t.Fatalf("%d lines for %d variables", n, len(r.Config.Env))
		}
	})
}

// FuzzEnroot reads files that claim to be enroot's.
func FuzzEnroot(f *testing.F) {
	r := Record{Source: "oci:x", Config: Config{Entrypoint: []string{"/x", "a'b"}, Cmd: []string{"c\nd"}, WorkingDir: "/w", Labels: map[string]string{"a": "b"}}}
	f.Add(string(r.rc()), "A=b\n", "${ENROOT_ROOTFS}/v /v none x-create=dir,bind,rw,nosuid,nodev\n")
	f.Add("# enroot-provenance: x\ncd \"/\" && unset OLDPWD || exit 1\nexec $'\\n\\303' \"$@\"\nexec $'\\n\\303' \\a\n", "", "")
	f.Fuzz(func(t *testing.T, rc, env, fstab string) {
		if r := parseRC(rc); r != nil {
			if err := r.Config.check(); err != nil {
				t.Fatal(err)
			}
		}
		for _, e := range parseEnvironment(env) {
			if strings.ContainsAny(e, "\n\x00") || !strings.Contains(e, "=") {
				t.Fatalf("%q", e)
			}
		}
		parseVolumes(fstab)
	})
}
