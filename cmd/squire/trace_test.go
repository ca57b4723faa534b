package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/squirefs/squire/internal/testenv"
	"github.com/squirefs/squire/sqfs"
	"github.com/squirefs/squire/sqfs/trace"
)

// tracedCopy returns a copy of the test image, the cache directory in use, and a trace that
// lists all blocks of two files, the later one in the image first.
func tracedCopy(t *testing.T) (image, cache string, tr *trace.Trace) {
	t.Helper()
	dir := t.TempDir()
	image, cache = filepath.Join(dir, "image.sqsh"), filepath.Join(dir, "cache")
	t.Setenv("SQUIRE_CACHE_DIR", cache)
	b, err := os.ReadFile(testImage)
	if err == nil {
		err = os.WriteFile(image, b, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	img, err := sqfs.OpenImage(image)
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	root, err := img.Inode(img.Root())
	if err != nil {
		t.Fatal(err)
	}
	tr = &trace.Trace{Image: img.Superblock()}
	files := 0
	for v, err := range img.Walk(&root) {
		if err != nil || v.Inode.Type != sqfs.TypeFile || v.Inode.Size < 5000 {
			continue
		}
		var touches []trace.Touch
		for i := range (v.Inode.Size + 4095) / 4096 {
			touches = append(touches, trace.Touch{Ref: v.Inode.Ref, Block: uint32(i)})
		}
		tr.Touches = append(touches, tr.Touches...)
		if files++; files == 2 {
			return image, cache, tr
		}
	}
	t.Fatal("the image has no two files of several blocks")
	return
}

func writeTrace(t *testing.T, name string, tr *trace.Trace) string {
	t.Helper()
	if err := os.WriteFile(name, tr.Encode(), 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestTraceShow(t *testing.T) {
	image, _, tr := tracedCopy(t)
	file := writeTrace(t, image+".elsewhere", tr)
	var fromFile, fromSidecar tracedFiles
	out, err := squire(t, "trace", "show", "--json", image, file)
	if err == nil {
		err = json.Unmarshal([]byte(out), &fromFile)
	}
	if err != nil || fromFile.Blocks != len(tr.Touches) || len(fromFile.Files) != 2 || fromFile.Unknown != 0 {
		t.Fatalf("%v: %+v", err, fromFile)
	}
	for i, f := range fromFile.Files {
		if f.Blocks < 2 || f.Size < 5000 || f.Path == "" {
			t.Errorf("file %d: %+v", i, f)
		}
	}
	writeTrace(t, sidecar(image), tr)
	if out, err = squire(t, "trace", "show", "--json", image); err == nil {
		err = json.Unmarshal([]byte(out), &fromSidecar)
	}
	if err != nil || fromSidecar.Trace != sidecar(image) || fromSidecar.Size != fromFile.Size {
		t.Errorf("%v: %+v", err, fromSidecar)
	}
	out, err = squire(t, "trace", "show", image)
	first, second := strings.Index(out, fromFile.Files[0].Path), strings.Index(out, fromFile.Files[1].Path)
	if err != nil || first < 0 || first > second {
		t.Errorf("%v:\n%s", err, out)
	}
	if out, err = squire(t, "trace", "show", file); err != nil || !strings.Contains(out, "an image of ") {
		t.Errorf("%v:\n%s", err, out)
	}
}

func TestTraceApply(t *testing.T) {
	image, cache, tr := tracedCopy(t)
	file := writeTrace(t, image+".elsewhere", tr)
	if _, err := squire(t, "trace", "apply", image, file); err != nil {
		t.Fatal(err)
	}
	if out, err := squire(t, "trace", "show", image); err != nil || !strings.Contains(out, cache) {
		t.Errorf("%v:\n%s", err, out)
	}
	if _, err := squire(t, "trace", "apply", "--sidecar", image, file); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(sidecar(image)); err != nil || !bytes.Equal(b, tr.Encode()) {
		t.Errorf("%v: %q", err, b)
	}
	for _, args := range [][]string{{image}, {"--all"}, {"--all"}} {
		if _, err := squire(t, append([]string{"trace", "rm"}, args...)...); err != nil {
			t.Errorf("rm %v: %v", args, err)
		}
	}
	if names, err := os.ReadDir(filepath.Join(cache, "traces")); err != nil || len(names) > 0 {
		t.Errorf("%v: left are %v", err, names)
	}
}

func TestTraceErrors(t *testing.T) {
	image, _, tr := tracedCopy(t)
	other := &trace.Trace{Image: tr.Image, Touches: tr.Touches}
	other.Image.MkfsTime++
	beyond := &trace.Trace{Image: tr.Image, Touches: []trace.Touch{tr.Touches[0], {Ref: tr.Touches[0].Ref, Block: 1 << 20}, {Ref: 7}}}
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"show"}, "usage: squire trace show"},
		{[]string{"show", image}, "there is no trace of it; make one"},
		{[]string{"show", image, writeTrace(t, image+".other", other)}, "trace of another image"},
		{[]string{"show", image, image}, "not a trace"},
		{[]string{"show", image, image + ".missing"}, "no such file"},
		{[]string{"apply", image, image + ".other"}, "trace of another image"},
		{[]string{"apply", image, writeTrace(t, image+".beyond", beyond)}, "2 of 3 blocks are not in"},
		{[]string{"apply", image}, "usage: squire trace apply"},
		{[]string{"rm", image}, "there is no trace of it in the cache directory"},
		{[]string{"rm", image + ".missing"}, "no such file"},
		{[]string{"rm"}, "usage: squire trace rm"},
		{[]string{"rm", "--all", image}, "--all goes without"},
		{[]string{"record"}, "usage: squire trace record"},
		{[]string{"record", "-o", "/nonexistent/x", image, "true"}, "--output: directory /nonexistent: no such"},
		{[]string{"record", filepath.Dir(image), "true"}, "is a directory"},
		{[]string{"recrod"}, "unknown command"},
	} {
		_, err := squire(t, append([]string{"trace"}, tt.args...)...)
		if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v: got %v, want %q", tt.args, err, tt.want)
		}
	}
	t.Setenv("SQUIRE_CACHE_DIR", "cache")
	if _, err := squire(t, "trace", "rm", "--all"); err == nil || !strings.Contains(err.Error(), "SQUIRE_CACHE_DIR=cache: want an absolute path") {
		t.Error(err)
	}
	t.Setenv("SQUIRE_CACHE_DIR", "")
	t.Setenv("XDG_CACHE_HOME", "")
	t.Setenv("HOME", "")
	if os.Geteuid() != 0 {
		if _, err := squire(t, "trace", "rm", "--all"); err == nil || !strings.Contains(err.Error(), "no cache directory") {
			t.Error(err)
		}
	}
}

// A wrong trace beside the image does not hide the right one, and is named if there is none.
func TestTraceOrder(t *testing.T) {
	image, _, tr := tracedCopy(t)
	if err := os.WriteFile(sidecar(image), []byte("not for us\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := squire(t, "trace", "show", image); err == nil || !strings.Contains(err.Error(), sidecar(image)+": not a trace") {
		t.Error(err)
	}
	if _, err := squire(t, "trace", "apply", image, writeTrace(t, image+".x", tr)); err != nil {
		t.Fatal(err)
	}
	if _, err := squire(t, "trace", "show", image); err != nil {
		t.Error(err)
	}
}

// Whoever changes the trace in the cache directory is told that another one is used.
func TestTraceUsed(t *testing.T) {
	image, _, tr := tracedCopy(t)
	file := writeTrace(t, image+".x", tr)
	for _, tt := range []struct {
		beside bool
		args   []string
		failed bool
	}{
		{false, []string{"rm", image}, true},
		{false, []string{"apply", image, file}, false},
		{false, []string{"rm", image}, false},
		{true, []string{"apply", image, file}, false},
		{true, []string{"rm", image}, false},
		{true, []string{"rm", image}, true},
		{true, []string{"apply", "--sidecar", image, file}, false},
	} {
		want := ""
		if os.Remove(sidecar(image)); tt.beside {
			writeTrace(t, sidecar(image), tr)
			want = "squire: what is used for " + image + " is " + sidecar(image) + "\n"
		}
		if slices.Contains(tt.args, "--sidecar") {
			want = ""
		}
		var stderr bytes.Buffer
		cmd := rootCommand()
		cmd.SetArgs(append([]string{"trace"}, tt.args...))
		cmd.SetErr(&stderr)
		if err := cmd.Execute(); (err != nil) != tt.failed || stderr.String() != want {
			t.Errorf("%+v: %v, %q, want %q", tt, err, stderr.String(), want)
		}
	}
}

// A trace that a third party has put beside an image does not count.
func TestTraceOfStranger(t *testing.T) {
	testenv.NeedRoot(t, "to give files away")
	image, _, tr := tracedCopy(t)
	writeTrace(t, sidecar(image), tr)
	for _, tt := range []struct {
		image, trace int
		used         bool
	}{{0, 0, true}, {12345, 0, true}, {12345, 12345, true}, {0, 12345, false}, {12345, 12346, false}} {
		if err := errors.Join(os.Chown(image, tt.image, -1), os.Chown(sidecar(image), tt.trace, -1)); err != nil {
			t.Fatal(err)
		}
		if _, err := squire(t, "trace", "show", image); (err == nil) != tt.used {
			t.Errorf("%+v: %v", tt, err)
		}
	}
}

func TestTracesWanted(t *testing.T) {
	yes, no := true, false
	for _, tt := range []struct {
		flag *bool
		env  string
		want bool
		bad  bool
	}{
		{nil, "", true, false},
		{nil, "0", false, false},
		{nil, "false", false, false},
		{nil, "1", true, false},
		{nil, "perhaps", false, true},
		{&yes, "0", true, false},
		{&no, "1", false, false},
		{&no, "", false, false},
	} {
		t.Setenv("SQUIRE_TRACE", tt.env)
		if got, err := tracesWanted(tt.flag); got != tt.want || (err != nil) != tt.bad {
			t.Errorf("%+v: got %v, %v", tt, got, err)
		}
	}
}

func TestCacheDir(t *testing.T) {
	for _, tt := range []struct{ own, xdg, home, want string }{
		{"/own", "/xdg", "/home/u", "/own"},
		{"", "/xdg", "/home/u", "/xdg/squire"},
		{"", "xdg", "/home/u", "/home/u/.cache/squire"},
		{"", "", "/home/u", "/home/u/.cache/squire"},
		{"", "", "home", ""},
		{"own", "/xdg", "/home/u", ""},
	} {
		t.Setenv("SQUIRE_CACHE_DIR", tt.own)
		t.Setenv("XDG_CACHE_HOME", tt.xdg)
		t.Setenv("HOME", tt.home)
		want := tt.want
		if os.Geteuid() == 0 && tt.own == "" {
			want = systemCache
		}
		if got := cacheDir(); got != want {
			t.Errorf("%+v: got %q", tt, got)
		}
	}
}
