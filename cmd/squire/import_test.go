package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/internal/testenv"
	"github.com/squirefs/squire/sqfs/oci"
)

// importJSON imports and decodes what is printed.
func importJSON(t *testing.T, args ...string) importSummary {
	t.Helper()
	out, says, err := squire2(t, append(args, "--json")...)
	if err != nil || says != "" {
		t.Fatalf("%q: %v, %s", args, err, says)
	}
	var sum importSummary
	dec := json.NewDecoder(strings.NewReader(out))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&sum); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return sum
}

// catImage returns a file of an image.
func catImage(t *testing.T, image, file string) string {
	t.Helper()
	out, err := squire(t, "cat", image, file)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// The same image is imported from wherever one can be without an engine.
func TestImportSources(t *testing.T) {
	reg, dir, img := newRegistry(t), t.TempDir(), hello(t, "hello")
	ref, err := name.NewTag("example.org/hello:1")
	if err != nil {
		t.Fatal(err)
	}
	path, err := layout.Write(filepath.Join(dir, "layout"), empty.Index)
	if err == nil {
		err = path.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "1"}))
	}
	if err == nil {
		err = tarball.WriteToFile(filepath.Join(dir, "docker.tar"), ref, img)
	}
	if err == nil {
		err = exec.Command("tar", "-C", filepath.Join(dir, "layout"), "-cf", filepath.Join(dir, "oci.tar"), ".").Run()
	}
	if err != nil {
		t.Fatal(err)
	}
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	for kind, src := range map[string]string{
		"registry":       reg.push(t, "team/hello:1", img),
		"digest":         "docker://" + reg.host + "/team/hello@" + digest.String(),
		"enroot":         "docker://" + reg.host + "#team/hello:1",
		"layout":         "oci:" + filepath.Join(dir, "layout") + ":1",
		"archive":        "oci-archive:" + filepath.Join(dir, "oci.tar"),
		"docker archive": "docker-archive:" + filepath.Join(dir, "docker.tar"),
	} {
		t.Run(kind, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "x.sqsh")
			if kind == "digest" || kind == "enroot" {
				reg.push(t, "team/hello:1", img)
			}
			sum := importJSON(t, reg.importArgs(t.TempDir(), "-o", out, src)...)
			if sum.Output != out || sum.Platform != "linux/"+testArch || sum.Layers != 2 || sum.Hidden != 1 || sum.Devices != 1 || sum.UpToDate || sum.Bytes == 0 {
				t.Errorf("%+v", sum)
			}
			if kind != "docker archive" && sum.Digest != digest.String() {
				t.Errorf("digest %s, want %s", sum.Digest, digest)
			}
			if got := catImage(t, out, "etc/new") + catImage(t, out, "bin/hello"); got != "hellohello" {
				t.Errorf("contents %q", got)
			}
			if _, _, err := squire2(t, "cat", out, "etc/old"); err == nil {
				t.Error("a file that is hidden is there")
			}
			info, _, _ := inspectJSON(t, out)
			if rec := info.Import; rec == nil || importDigest(rec) != sum.Digest || rec.Config.WorkingDir != "/srv" || !slices.Equal(rec.Config.Env, []string{"A=1", "B=two words"}) {
				t.Errorf("record %+v, error %s", info.Import, info.ImportError)
			}
			if sum = importJSON(t, reg.importArgs(t.TempDir(), "-o", out, src)...); !sum.UpToDate {
				t.Error("it is not up to date")
			}
		})
	}
}

// An image is not made again from the same digest in the same way, and never in place of
// another without --force.
func TestImportUpToDate(t *testing.T) {
	reg, dir, cache := newRegistry(t), t.TempDir(), t.TempDir()
	src, out := reg.push(t, "hello:1", hello(t, "one")), filepath.Join(dir, "x.sqsh")
	args := func(more ...string) []string { return reg.importArgs(cache, append(more, "-o", out, src)...) }
	first := importJSON(t, args()...)
	if n := reg.asked(); n < 3 {
		t.Fatalf("%d blobs were asked for", n)
	}
	keep := filepath.Join(dir, "keep")
	if err := os.Link(out, keep); err != nil {
		t.Fatal(err)
	}
	sum := importJSON(t, args()...)
	if !sum.UpToDate || sum.Digest != first.Digest || sum.Bytes != first.Bytes || sum.Downloaded != 0 || reg.asked() != 0 {
		t.Errorf("%+v", sum)
	}
	_, says, err := squire2(t, args()...)
	if err != nil || !strings.Contains(says, "x.sqsh: up to date with docker://"+reg.host+"/hello:1 (") {
		t.Errorf("%v, %q", err, says)
	}
	for _, more := range [][]string{{"--all-root"}, {"--devices"}, {"--exclude", "*.pyc"}, {"--comp", "gzip"}} {
		if _, _, err = squire2(t, args(more...)...); status(err) != 125 || !strings.Contains(err.Error(), "exists, imported from docker://"+reg.host+"/hello:1 with other options; --force replaces it") {
			t.Errorf("%q: %v", more, err)
		}
	}
	t.Setenv("SOURCE_DATE_EPOCH", "86400")
	if _, _, err = squire2(t, args()...); status(err) != 125 {
		t.Errorf("another time: %v", err)
	}
	os.Unsetenv("SOURCE_DATE_EPOCH")

	if sum = importJSON(t, args("--force")...); sum.UpToDate || !sameBytes(t, out, keep) {
		t.Errorf("made again it is another: %+v", sum)
	}
	reg.push(t, "hello:1", hello(t, "two"))
	if _, _, err = squire2(t, args()...); status(err) != 125 || !strings.Contains(err.Error(), "which is ") || !strings.Contains(err.Error(), " now; --force replaces it") {
		t.Errorf("the tag moved: %v", err)
	}
	if importJSON(t, args("--force")...); catImage(t, out, "etc/new") != "two" || catImage(t, keep, "etc/new") != "one" {
		t.Error("--force did not replace the file")
	}
	if err = os.WriteFile(out, []byte("no image"), 0o644); err != nil {
		t.Fatal(err)
	}
	reg.asked()
	if _, _, err = squire2(t, args()...); status(err) != 125 || !strings.Contains(err.Error(), "--force replaces it") || reg.asked() > 0 {
		t.Errorf("no image: %v", err)
	}
	wantOnly(t, dir, "keep", "x.sqsh")
}

// Layers come from the cache for another image that has them, and from the registry if
// there is to be none.
func TestImportCache(t *testing.T) {
	reg, cache := newRegistry(t), filepath.Join(t.TempDir(), "made", "for", "it")
	img := hello(t, "one")
	more, err := mutate.AppendLayers(img, layerOf(t, tarOf(t, entryOf{name: "etc/more", text: "more"})))
	if err != nil {
		t.Fatal(err)
	}
	importJSON(t, reg.importArgs(cache, "-o", filepath.Join(t.TempDir(), "a"), reg.push(t, "a:1", img))...)
	src := reg.push(t, "b:1", more)
	reg.asked()
	sum := importJSON(t, reg.importArgs(cache, "-o", filepath.Join(t.TempDir(), "b"), src)...)
	if n := reg.asked(); n != 2 || sum.Downloaded == 0 || sum.Downloaded >= sum.LayerBytes { // the configuration, and one layer
		t.Errorf("%d blobs were asked for, %d of %d bytes", n, sum.Downloaded, sum.LayerBytes)
	}
	out, _, err := squire2(t, "import", "--arch", testArch, "--insecure", reg.host, "--no-cache", "--json", "-o", filepath.Join(t.TempDir(), "c"), src)
	if n := reg.asked(); err != nil || n != 4 {
		t.Errorf("without a cache: %v, %s, %d blobs", err, out, n)
	}
}

func layerOf(t *testing.T, b []byte) v1.Layer {
	t.Helper()
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// The image of one digest is always the same. SOURCE_DATE_EPOCH makes it another.
func TestImportReproducible(t *testing.T) {
	reg, dir := newRegistry(t), t.TempDir()
	src := reg.push(t, "hello:1", hello(t, "one"))
	made := func(file string) string {
		file = filepath.Join(dir, file)
		importJSON(t, reg.importArgs(t.TempDir(), "-o", file, src)...)
		return file
	}
	a := made("a")
	info, _, _ := inspectJSON(t, a)
	if got := info.Created.Unix(); got != 1700000000 {
		t.Errorf("time %d", got)
	}
	if !sameBytes(t, a, made("b")) {
		t.Error("two imports differ")
	}
	t.Setenv("SOURCE_DATE_EPOCH", "86400")
	c := made("c")
	if info, _, _ = inspectJSON(t, c); info.Created.Unix() != 86400 || !sameBytes(t, c, made("d")) {
		t.Errorf("with SOURCE_DATE_EPOCH: %v", info.Created)
	}
	t.Setenv("SOURCE_DATE_EPOCH", "yesterday")
	if _, _, err := squire2(t, reg.importArgs(dir, "-o", filepath.Join(dir, "e"), src)...); status(err) != 125 || !strings.Contains(err.Error(), "SOURCE_DATE_EPOCH yesterday: want seconds since 1970") {
		t.Error(err)
	}
}

// Root file systems are packed as they are: names that mean something in a container
// image mean nothing, and nothing is added.
func TestImportRootFS(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	b := tarOf(t, entryOf{name: "./"}, entryOf{name: "etc/"}, entryOf{name: "etc/.wh.x", text: "a name"}, entryOf{name: "etc/environment", text: "A=1\n"})
	if err := os.WriteFile("root.tar", b, 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("gzip", "-k", "root.tar").CombinedOutput(); err != nil {
		t.Fatal(err, string(out))
	}
	if err := os.MkdirAll("tree/etc", 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"tree/etc/.wh.x": "a name", "tree/etc/environment": "A=1\n"} {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	check := func(file string) {
		t.Helper()
		if got := catImage(t, file, "etc/.wh.x") + catImage(t, file, "etc/environment"); got != "a nameA=1\n" {
			t.Errorf("%s: %q", file, got)
		}
		info, _, _ := inspectJSON(t, file)
		if info.Import != nil || info.Contents.Paths > 4 {
			t.Errorf("%s: %+v", file, info.Contents)
		}
	}
	for src, file := range map[string]string{"tar:root.tar": "root.sqsh", "dir:tree": "tree.sqsh"} {
		sum := importJSON(t, "import", src)
		if sum.Output != file || sum.Source != src || sum.UpToDate {
			t.Errorf("%+v", sum)
		}
		check(file)
		if _, _, err := squire2(t, "import", src); status(err) != 125 || !strings.Contains(err.Error(), file+": file already exists; --force replaces it") {
			t.Errorf("%s again: %v", src, err)
		}
	}
	if sum := importJSON(t, "import", "tar:root.tar.gz", "--force"); sum.Output != "root.sqsh" {
		t.Errorf("%+v", sum)
	}
	check("root.sqsh")

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := command(ctx, os.Getuid(), "import", "--quiet", "-o", "stdin.sqsh", "tar:-")
	cmd.Stdin = bytes.NewReader(b)
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("standard input: %v, %s", err, out)
	}
	check("stdin.sqsh")
	wantOnly(t, dir, "root.sqsh", "root.tar", "root.tar.gz", "stdin.sqsh", "tree", "tree.sqsh")
}

func TestImportCompletion(t *testing.T) {
	for _, tt := range []struct{ verb, flag, word, want string }{
		{"import", "", "", "docker://\noci:\n"},
		{"import", "", "docker://ubu", ":4\n"}, // names of files are none of images
		{"import", "", "oci:/", ":0\n"},
		{"import", "--comp", "", "zstd\ngzip\nlz4\nnone\n:4\n"},
		{"pack", "--comp", "", "zstd\ngzip\nlz4\nnone\n:4\n"},
		{"import", "--arch", "", "amd64\narm64\n:4\n"},
	} {
		args := []string{"__complete", tt.verb, tt.flag, tt.word}
		if tt.flag == "" {
			args = slices.Delete(args, 2, 3)
		}
		if out, err := squire(t, args...); err != nil || !strings.HasPrefix(out, tt.want) {
			t.Errorf("%q: %v, %q, want %q", args, err, out, tt.want)
		}
	}
}

// A container image that is named as a root file system is refused: what became of it would
// not run.
func TestImportNoRootFS(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	tree := func(names ...string) []byte {
		entries := []entryOf{{name: "./"}}
		for _, name := range names {
			entries = append(entries, entryOf{name: name, text: "{}"})
		}
		return tarOf(t, entries...)
	}
	for src, tt := range map[string]struct {
		names []string
		want  string // "": it is a root file system
	}{
		"tar:docker.tar": {[]string{"manifest.json", "repositories"}, "; write docker-archive:docker.tar"},
		"tar:both.tar":   {[]string{"manifest.json", "index.json", "oci-layout", "blobs"}, "; write docker-archive:both.tar"},
		"tar:oci.tar":    {[]string{"index.json", "oci-layout", "blobs"}, "; write oci-archive:oci.tar"},
		"dir:layout":     {[]string{"index.json", "oci-layout"}, "; write oci:layout"},
		"tar:":           {nil, "tar: needs the name of a file"},
		"dir:":           {nil, "dir: needs the name of a directory"},
		"tar:root.tar":   {[]string{"manifest.json", "repositories", "bin"}, ""},
		"tar:one.tar":    {[]string{"manifest.json"}, ""},
	} {
		kind, file, _ := strings.Cut(src, ":")
		err := os.WriteFile(filepath.Join(dir, "in.tar"), tree(tt.names...), 0o644)
		if err == nil && kind == "dir" && file != "" {
			if err = os.Mkdir(file, 0o755); err == nil {
				err = exec.Command("tar", "-C", file, "-xf", "in.tar").Run()
			}
		} else if err == nil && file != "" {
			err = os.Rename("in.tar", file)
		}
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = squire2(t, "import", "-q", "-f", "-o", "x.sqsh", src)
		if tt.want == "" && err != nil || tt.want != "" && (status(err) != 125 || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: %v, want %q", src, err, tt.want)
		}
		if _, serr := os.Stat("x.sqsh"); (serr == nil) != (tt.want == "") {
			t.Errorf("%s: image: %v", src, serr)
		}
		os.Remove("x.sqsh")
	}
}

func TestImportDefaultOutput(t *testing.T) {
	for src, want := range map[string]string{
		"docker://registry.example.org/nvidia/pytorch:23.10": "nvidia+pytorch+23.10.sqsh",
		"docker://registry.example.org#team/app:1":           "team+app+1.sqsh",
		"tar:/x/root.tar.gz":                                 "root.sqsh",
		"tar:x.tgz":                                          "x.sqsh",
		"dir:/srv/tree/":                                     "tree.sqsh",
		"dir:/":                                              "root.sqsh",
	} {
		if got, err := defaultOutput(src); err != nil || got != want {
			t.Errorf("%s: %q, %v, want %q", src, got, err, want)
		}
	}
	if _, err := defaultOutput("tar:-"); err == nil {
		t.Error("standard input has a name")
	}
}

// What people see without a terminal.
func TestImportTold(t *testing.T) {
	reg, dir := newRegistry(t), t.TempDir()
	src, out := reg.push(t, "hello:1", hello(t, "one")), filepath.Join(dir, "x.sqsh")
	cache := filepath.Join(dir, "cache")
	stdout, says, err := squire2(t, reg.importArgs(cache, "-o", out, src)...)
	if err != nil || stdout != "" {
		t.Fatalf("%v, %q", err, stdout)
	}
	for _, want := range []string{
		"squire: docker://" + reg.host + "/hello:1, linux/" + testArch + ", 2 layers, ",
		"squire: layers are kept in " + cache + ", 20 GiB at most\n",
		"squire: left out 1 file (6 B) that layers above hide\n",
		"squire: left out 1 device; --devices keeps them\n",
		"squire: imported docker://" + reg.host + "/hello:1 to " + out + ": ",
	} {
		if !strings.Contains(says, want) {
			t.Errorf("no %q in\n%s", want, says)
		}
	}
	for line := range strings.Lines(says) {
		if !strings.HasPrefix(line, "squire: ") {
			t.Errorf("line %q", line)
		}
	}
	stdout, says, err = squire2(t, reg.importArgs(cache, "--quiet", "--force", "-o", out, src)...)
	if err != nil || stdout+says != "" {
		t.Errorf("--quiet: %v, %q, %q", err, stdout, says)
	}
}

// An engine's image lies in a file for the time of the import, and nobody says otherwise.
func TestImportEngineTold(t *testing.T) {
	dir := t.TempDir()
	ref, err := name.NewTag("example.org/hello:1")
	if err == nil {
		err = tarball.WriteToFile(filepath.Join(dir, "saved.tar"), ref, hello(t, "one"))
	}
	if err != nil {
		t.Fatal(err)
	}
	script := "#!/bin/sh\ncase $1 in image) echo 5000;; save) cat " + dir + "/saved.tar;; esac\n"
	for _, engine := range []string{"docker", "podman"} {
		if err := os.WriteFile(filepath.Join(dir, engine), []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	t.Setenv("DOCKER_HOST", "ssh://nowhere.invalid") // so that the command is asked
	t.Setenv("CONTAINER_HOST", "ssh://nowhere.invalid")
	for _, src := range []string{"dockerd://hello:1", "podman://hello:1"} {
		_, says, err := squire2(t, "import", "--arch", testArch, "--no-cache", "-o", filepath.Join(t.TempDir(), "x"), src)
		if err != nil || !strings.Contains(says, "are written to ") || strings.Contains(says, "no temporary disk") {
			t.Errorf("%s: %v\n%s", src, err, says)
		}
	}
}

// Errors are one line, name what is concerned, and leave nothing.
func TestImportErrors(t *testing.T) {
	reg, dir := newRegistry(t), t.TempDir()
	src := reg.push(t, "hello:1", hello(t, "one"))
	text := filepath.Join(dir, "text")
	if err := os.WriteFile(text, bytes.Repeat([]byte("no archive\n"), 1000), 0o644); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "x.sqsh")
	for _, tt := range []struct {
		deny int
		args []string
		want string
	}{
		{0, []string{"docker://" + reg.host + "/hello:2"}, "hello:2"},
		{0, []string{"docker://" + reg.host + "/none:1"}, "none"},
		{0, []string{src, "--arch", "riscv64"}, "riscv64"},
		{0, []string{src, "--cache-size", "0"}, "--no-cache"},
		{0, []string{src, "--timeout", "0s"}, "--timeout 0s"},
		{0, []string{src, "--retries", "-1"}, "--retries -1"},
		{401, []string{src}, "401"},
		{403, []string{src}, "403"},
		{0, []string{"docker://127.0.0.1:1/x:1"}, "127.0.0.1:1"},
		{0, []string{"oci:" + dir}, dir},
		{0, []string{"oci:/no/such"}, "/no/such"},
		{0, []string{"tar:" + text}, "read " + text + ": "},
		{0, []string{"tar:/no/such"}, "/no/such: no such file or directory"},
		{0, []string{"tar:" + dir}, "is a directory; write dir:" + dir},
		{0, []string{"dir:/no/such"}, "/no/such"},
		{0, []string{"nonsense://x"}, "nonsense"},
		{0, []string{src, "--mirror", "x"}, "--mirror x: want REGISTRY=MIRROR"},
		{0, []string{src, "--cache-size", "much"}, "--cache-size much: want a size"},
		{0, []string{src, "--connections", "0"}, "--connections 0: want 1 to 256"},
		{0, []string{src, "--no-cache"}, "exclude each other"},
		{0, []string{src, "--exclude", "[a"}, "--exclude"},
		{0, []string{src, "--ca-cert", "/no/such"}, "--ca-cert /no/such: no such file"},
		{0, []string{src, "--ca-cert", text}, "--ca-cert " + text + ": has no certificate"},
		{0, []string{src, "--insecure", "http://" + reg.host}, "--insecure http://" + reg.host + ": want HOST or HOST:PORT"},
		{0, []string{src, "--insecure", "user@host"}, "want HOST"},
		{0, []string{src, "--insecure", ""}, "want HOST"},
		{0, []string{src, "--mirror", "docker.io=https://host"}, "want REGISTRY=MIRROR"},
		{0, []string{src, "--timeout", "-1s"}, "--timeout -1s: want a time"},
		{0, []string{src, "--retries", "-1"}, "--retries -1: want 0"},
		{0, []string{src, "-o", "/no/such/x"}, "/no/such"},
		{0, []string{src, "-o", dir}, "is a directory"},
	} {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			reg.set(0, tt.deny)
			defer reg.set(0, 0)
			_, _, err := squire2(t, reg.importArgs(filepath.Join(t.TempDir(), "cache"), append([]string{"-o", out, "--retries", "0"}, tt.args...)...)...)
			if status(err) != 125 || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%v, want one line with %q", err, tt.want)
			}
			if strings.Contains(err.Error(), "oci: ") {
				t.Errorf("%v: names a package", err)
			}
			wantOnly(t, dir, "text")
		})
	}
}

// What is wrong with a registry's certificate or its lack of one is told with the flag for
// it.
func TestImportInsecure(t *testing.T) {
	reg, out := newRegistry(t), filepath.Join(t.TempDir(), "x.sqsh")
	secure := httptest.NewUnstartedServer(http.NotFoundHandler())
	secure.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	secure.StartTLS()
	defer secure.Close()
	for src, want := range map[string]string{
		reg.push(t, "hello:1", hello(t, "one")):                               "; --insecure names it",
		"docker://" + strings.TrimPrefix(secure.URL, "https://") + "/hello:1": "; --ca-cert FILE trusts the registry's authority",
	} {
		_, _, err := squire2(t, "import", "--no-cache", "--retries", "0", "-o", out, src)
		if status(err) != 125 || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// A full disk is noticed before, if it is clear that the image will not fit, and after that
// leaves nothing.
func TestImportFullDisk(t *testing.T) {
	testenv.NeedRoot(t, "to mount a small file system")
	reg, dir := newRegistry(t), t.TempDir()
	src := reg.push(t, "big:1", big(t))
	for size, want := range map[string]string{"size=300k": dir + ": has 300 KiB free, the image takes about 1 MiB: no space left", "size=800k": "write " + dir + "/x.sqsh: no space left on device; -o names a file"} {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, size); err != nil {
			t.Skip("needs the right to mount: ", err)
		}
		_, _, err := squire2(t, reg.importArgs(t.TempDir(), "-o", filepath.Join(dir, "x.sqsh"), src)...)
		if status(err) != 125 || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v, want %q", size, err, want)
		}
		wantOnly(t, dir)
		if err := unix.Unmount(dir, 0); err != nil {
			t.Fatal(err)
		}
	}
}

// big is an image whose layer takes a while to come.
func big(t *testing.T) v1.Image {
	t.Helper()
	text := make([]byte, 1<<20)
	rng := rand.NewChaCha8([32]byte{1})
	_, _ = rng.Read(text)
	return testContainer(t, v1.Config{}, tarOf(t, entryOf{name: "big", text: string(text)}))
}

// However an import is interrupted, and whenever, nothing is left of it, and its exit
// status tells the signal.
func TestImportInterrupted(t *testing.T) {
	reg := newRegistry(t)
	src := reg.push(t, "big:1", big(t))
	for i, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGINT, syscall.SIGTERM, syscall.SIGKILL} {
		dir := t.TempDir()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		cmd := command(ctx, os.Getuid(), reg.importArgs(t.TempDir(), "-o", filepath.Join(dir, "x.sqsh"), src)...)
		var says bytes.Buffer
		cmd.Stderr = &says
		reg.asked()
		reg.set(200*time.Millisecond, 0) // 50 s in all
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if !testenv.Eventually(testBound, func() bool { return reg.asked() > 0 }) {
			t.Fatal("nothing is asked for")
		}
		time.Sleep(rand.N(300 * time.Millisecond))
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		err := cmd.Wait()
		reg.set(0, 0)
		var exit *exec.ExitError
		if !errors.As(err, &exit) || sig != syscall.SIGKILL && exit.ExitCode() != 128+int(sig) {
			t.Errorf("%d: signal %v: %v, %s", i, sig, err, says.String())
		}
		if sig != syscall.SIGKILL && !strings.HasSuffix(says.String(), "squire: interrupted; "+filepath.Join(dir, "x.sqsh")+" was not made\n") {
			t.Errorf("signal %v: %s", sig, says.String())
		}
		if sig != syscall.SIGKILL || hasTmpfile(t, dir) {
			wantOnly(t, dir)
		}
	}
}

// hasTmpfile reports whether files without a name can be had there: where not, one that
// was killed leaves its file under a hidden name.
func hasTmpfile(t *testing.T, dir string) bool {
	t.Helper()
	o, err := newOutput(filepath.Join(dir, "x"), false)
	if err != nil {
		t.Fatal(err)
	}
	defer o.discard()
	return o.hidden == ""
}

// Of imports of one image at once to one file one makes it, and the others find it
// there.
func TestImportAtOnce(t *testing.T) {
	reg, dir, cache := newRegistry(t), t.TempDir(), t.TempDir()
	src, out := reg.push(t, "big:1", big(t)), filepath.Join(dir, "x.sqsh")
	reg.set(time.Millisecond, 0)
	var wg sync.WaitGroup
	var made, found int
	var mu sync.Mutex
	for range 4 {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			b, err := command(ctx, os.Getuid(), reg.importArgs(cache, "--json", "-o", out, src)...).Output()
			var sum importSummary
			if err = errors.Join(err, json.Unmarshal(b, &sum)); err != nil {
				t.Errorf("%v: %s", err, b)
			}
			mu.Lock()
			defer mu.Unlock()
			if sum.UpToDate {
				found++
			} else {
				made++
			}
		})
	}
	wg.Wait()
	if made != 1 || found != 3 {
		t.Errorf("%d made it, %d found it", made, found)
	}
	if len(catImage(t, out, "big")) != 1<<20 {
		t.Error("it is not whole")
	}
	wantOnly(t, dir, "x.sqsh")
}

// A container image runs as it says: for root and for an ordinary user, who imports it.
func TestImportRun(t *testing.T) {
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip("needs a static busybox: ", err)
	}
	if f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil {
		t.Skip("needs FUSE: ", err)
	} else {
		f.Close()
	}
	reg := newRegistry(t)
	src := reg.push(t, "box:1", testContainer(
		t, v1.Config{
			Env:        []string{"PATH=/opt/bin:/bin", "LINES=two\nlines", `QUOTED="q"`},
			Entrypoint: []string{"sh", "-c", `echo "$LINES,$QUOTED,$PATH,$PWD,$0,$*"`, "zero"}, Cmd: []string{"cmd"}, WorkingDir: "/srv/work", User: "1234",
		},
		tarOf(t, entryOf{name: "bin/"}, entryOf{name: "bin/busybox", text: string(busybox), mode: 0o755}, entryOf{name: "bin/sh", link: "busybox"},
			entryOf{name: "srv/work/"}, entryOf{name: "proc/"}, entryOf{name: "sys/"}, entryOf{name: "dev/"}, entryOf{name: "tmp/"}),
	))
	for _, uid := range importUsers() {
		t.Run(fmt.Sprint("uid ", uid), func(t *testing.T) {
			dir := publicDir(t, uid)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			do := func(want string, args ...string) {
				t.Helper()
				cmd := command(ctx, uid, args...)
				cmd.Dir = dir
				cmd.Env = append(os.Environ(), "HOME="+dir, "XDG_CACHE_HOME=", "SQUIRE_CACHE_DIR="+dir+"/cache")
				out, err := cmd.CombinedOutput()
				if bytes.Contains(out, []byte("built with cgo")) {
					t.Skip(string(out))
				}
				if err != nil || string(out) != want {
					t.Errorf("%q: %v, %q, want %q", args, err, out, want)
				}
			}
			do("", "import", "--quiet", "--arch", testArch, "--insecure", reg.host, src)
			const env = "two\nlines,\"q\",/opt/bin:/bin,"
			do(env+"/srv/work,zero,cmd\n", "run", "box+1.sqsh")
			do(env+"/,zero,a b\n", "run", "--entrypoint", "--workdir", "/", "box+1.sqsh", "--", "a", "b")
			do("/srv/work\n", "run", "box+1.sqsh", "--", "sh", "-c", "pwd")
			wantOnly(t, dir, "box+1.sqsh", "cache")
		})
	}
}

func TestSameImport(t *testing.T) {
	base := oci.Record{Version: 1, Digest: "sha256:a", Platform: "linux/amd64", Options: map[string]string{"level": "3"}}
	if !sameImport(&oldImage{Record: &base}, &base) || sameImport(nil, &base) || sameImport(&oldImage{Record: &oci.Record{}}, &oci.Record{}) {
		t.Error("the simple cases")
	}
	for what, change := range map[string]func(*oci.Record){
		"version":  func(r *oci.Record) { r.Version++ },
		"digest":   func(r *oci.Record) { r.Digest = "sha256:b" },
		"platform": func(r *oci.Record) { r.Platform = "linux/arm64" },
		"options":  func(r *oci.Record) { r.Options = maps.Clone(r.Options); r.Options["devices"] = "yes" },
	} {
		other := base
		if change(&other); sameImport(&oldImage{Record: &base}, &other) {
			t.Error(what, "does not count")
		}
	}
}

// What is in the way of an import is told with what is different about it.
func TestOldSource(t *testing.T) {
	old := &oldImage{Record: &oci.Record{Source: "docker://r/a:1", Digest: "sha256:aa", Platform: "linux/amd64"}}
	for want, rec := range map[string]oci.Record{
		"docker://r/a:1": {Source: "tar:x"},
		"docker://r/a:1, digest aa, which is bb now": {Source: "docker://r/a:1", Digest: "sha256:bb", Platform: "linux/amd64"},
		"docker://r/a:1 for linux/amd64":             {Source: "docker://r/a:1", Digest: "sha256:aa", Platform: "linux/arm64"},
		"docker://r/a:1 with other options":          {Source: "docker://r/a:1", Digest: "sha256:aa", Platform: "linux/amd64"},
	} {
		if got := oldSource(old, &rec); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// What was damaged in the cache is fetched again.
func TestImportDamagedCache(t *testing.T) {
	reg, cache := newRegistry(t), t.TempDir()
	src := reg.push(t, "hello:1", hello(t, "one"))
	first := filepath.Join(t.TempDir(), "a")
	importJSON(t, reg.importArgs(cache, "-o", first, src)...)
	layers, err := filepath.Glob(cache + "/*/sha256-*")
	if err != nil || len(layers) < 2 {
		t.Fatalf("%v, %q", err, layers)
	}
	for _, file := range layers {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		b[len(b)/2] ^= 0x40
		if err = os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out := filepath.Join(t.TempDir(), "b")
	if sum := importJSON(t, reg.importArgs(cache, "-o", out, src)...); sum.UpToDate || catImage(t, out, "etc/new") != "one" {
		t.Errorf("%+v", sum)
	}
	if !sameBytes(t, first, out) {
		t.Error("the second attempt made another image")
	}
	if sum := importJSON(t, reg.importArgs(cache, "-o", out, src)...); !sum.UpToDate {
		t.Error("it is not up to date")
	}
}
