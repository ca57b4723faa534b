package oci

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// layout returns the files of an OCI layout with images by name.
func layout(t testing.TB, images map[string]*picture) map[string]string {
	files := map[string]string{"oci-layout": `{"imageLayoutVersion":"1.0.0"}`}
	var entries []map[string]any
	for name, p := range images {
		for d, b := range p.blobs {
			files["blobs/"+strings.Replace(d, ":", "/", 1)] = string(b)
		}
		files["blobs/"+strings.Replace(digestOf(p.manifest), ":", "/", 1)] = string(p.manifest)
		e := entry(typeManifest, p.manifest)
		switch {
		case strings.Contains(name, "/"):
			e["annotations"] = map[string]string{fullName: name, refName: baseTag(name)}
		case name != "":
			e["annotations"] = map[string]string{refName: name}
		}
		entries = append(entries, e)
	}
	files["index.json"] = string(encode(t, map[string]any{"schemaVersion": 2, "manifests": entries}))
	return files
}

func tarFile(t *testing.T, files map[string]string, links map[string]string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "a.tar")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := packTo(f, files, links); err != nil {
		t.Fatal(err)
	}
	return name
}

func packTo(to io.Writer, files, links map[string]string) error {
	w := tar.NewWriter(to)
	for n, b := range files {
		if err := w.WriteHeader(&tar.Header{Name: n, Mode: 0o644, Size: int64(len(b))}); err != nil {
			return err
		}
		io.WriteString(w, b)
	}
	for n, l := range links {
		if err := w.WriteHeader(&tar.Header{Name: n, Linkname: l, Typeflag: tar.TypeSymlink}); err != nil {
			return err
		}
	}
	return w.Close()
}

func TestLayout(t *testing.T) {
	bare(t)
	one, two := paint(t, Config{}, tarOf(t, 1, 1000), tarOf(t, 2, 10)), paint(t, Config{}, tarOf(t, 3, 10))
	single, both := layout(t, map[string]*picture{"": one}), layout(t, map[string]*picture{"v1": one, "docker.io/library/x:v2": two})
	dir := t.TempDir()
	writeFiles(t, dir, single)
	dirs := t.TempDir() + "/with:colon"
	writeFiles(t, dirs, both)
	tarOne, tarBoth := tarFile(t, single, nil), tarFile(t, both, nil)
	o := quick(nil)
	for source, p := range map[string]*picture{
		"oci:" + dir: one, "oci-archive:" + tarOne: one, "docker-archive:" + tarOne: one,
		"oci:" + dir + "@" + digestOf(one.manifest): one,
		"oci-archive:" + tarBoth + ":v1":            one, "oci-archive:" + tarBoth + ":v2": two, "oci-archive:" + tarBoth + ":x:v2": two,
		"oci-archive:" + tarBoth + ":docker.io/library/x:v2":    two,
		"oci-archive:" + tarBoth + "@" + digestOf(two.manifest): two,
	} {
		img := open(t, source, o)
		readAll(t, img, p)
		if img.Record.Digest != digestOf(p.manifest) {
			t.Errorf("%s: record %+v", source, img.Record)
		}
	}
	for source, want := range map[string]string{
		"oci-archive:" + tarBoth: "name one", "oci-archive:" + tarBoth + ":v3": "docker.io/library/x:v2", "oci:" + dirs: "name one",
		"oci:" + dir + "@sha256:" + hex64: "no such file", "oci:" + t.TempDir(): "index.json", "oci:/nowhere": "no such file", "oci-archive:/nowhere": "no such file",
		"oci-archive:/dev/null": "no regular file", "oci-archive:" + dir: "no regular file",
	} {
		_, err := Open(within(t), source, o)
		wantError(t, err, want)
	}
	// What is damaged is found when it is read.
	for name := range single {
		if strings.HasPrefix(name, "blobs/") && !strings.Contains(single[name], "{") {
			writeFiles(t, dir, map[string]string{name: strings.Repeat("x", len(single[name]))})
		}
	}
	if err := tryAll(open(t, "oci:"+dir, o), one); err == nil {
		t.Error("no error for a damaged layer")
	}
}

// TestLayoutStaysInside has links in a layout that lead out of it.
func TestLayoutStaysInside(t *testing.T) {
	bare(t)
	dir, outside := t.TempDir(), t.TempDir()
	writeFiles(t, outside, layout(t, map[string]*picture{"": paintOther(t)}))
	if err := os.Symlink(filepath.Join(outside, "index.json"), filepath.Join(dir, "index.json")); err != nil {
		t.Fatal(err)
	}
	_, err := Open(within(t), "oci:"+dir, quick(nil))
	wantError(t, err, "index.json")
}

// dockerSave returns the files of an old archive of docker save.
func dockerSave(t *testing.T, p *picture, compressed bool, tags ...string) (files, links map[string]string) {
	files, links = map[string]string{"abc.json": string(p.config)}, map[string]string{}
	var names []string
	seen := map[string]string{}
	for n, l := range p.layers {
		name := fmt.Sprintf("layer%d/layer.tar", n)
		names = append(names, name)
		if first, ok := seen[digestOf(l)]; ok {
			links[name] = "../" + first
			continue
		}
		seen[digestOf(l)] = name
		if files[name] = string(l); compressed {
			files[name] = string(p.blobs[p.descs[n]["digest"].(string)])
		}
	}
	files["manifest.json"] = string(encode(t, []map[string]any{{"Config": "abc.json", "RepoTags": tags, "Layers": names}}))
	return files, links
}

func TestDockerArchive(t *testing.T) {
	bare(t)
	p := paint(t, Config{}, tarOf(t, 1, 1000), tarOf(t, 2, 10), tarOf(t, 1, 1000))
	o := quick(nil)
	for _, compressed := range []bool{false, true} {
		files, links := dockerSave(t, p, compressed, "reg.io/x:v1", "x:latest")
		name := tarFile(t, files, links)
		for _, tag := range []string{"", ":v1", ":x", ":reg.io/x:v1"} {
			img := open(t, "docker-archive:"+name+tag, o)
			readAll(t, img, p)
			if r := img.Record; r.Digest != "" || r.ConfigDigest != digestOf(p.config) || r.Layers[0].DiffID != digestOf(p.layers[0]) {
				t.Errorf("record %+v", r)
			}
		}
		_, err := Open(within(t), "docker-archive:"+name+":v2", o)
		wantError(t, err, "reg.io/x:v1")
	}
	files, links := dockerSave(t, p, false)
	files["layer0/layer.tar"] = string(tarOf(t, 5, 1000))
	err := tryAll(open(t, "docker-archive:"+tarFile(t, files, links), o), p)
	wantError(t, err, "what came is not")
	delete(files, "abc.json")
	_, err = Open(within(t), "docker-archive:"+tarFile(t, files, links), o)
	wantError(t, err, "abc.json")
	files, _ = dockerSave(t, p, false)
	_, err = Open(within(t), "docker-archive:"+tarFile(t, files, map[string]string{"layer2/layer.tar": "layer.tar"}), o)
	wantError(t, err, "layer2/layer.tar")
	gz := filepath.Join(t.TempDir(), "a.tar.gz")
	if err = os.WriteFile(gz, squeeze(t, "gzip", tarOf(t, 1, 10)), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = Open(within(t), "docker-archive:"+gz, o)
	wantError(t, err, "gzip -d")
	_, err = Open(within(t), "docker-archive:"+tarFile(t, map[string]string{"x": "y"}, nil), o)
	wantError(t, err, "manifest.json")
}

// TestDockerArchiveCut cuts an archive off everywhere.
func TestDockerArchiveCut(t *testing.T) {
	bare(t)
	p := paint(t, Config{}, tarOf(t, 1, 1000))
	files, _ := dockerSave(t, p, false)
	whole, err := os.ReadFile(tarFile(t, files, nil))
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "cut.tar")
	for n := 0; n < len(whole)-1024; n += 256 {
		if err := os.WriteFile(name, whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		img, err := Open(within(t), "docker-archive:"+name, quick(nil))
		if err == nil {
			err = tryAll(img, p)
			img.Close()
		}
		if err == nil && n < bytes.LastIndex(whole, []byte("ustar"))+255 {
			t.Errorf("no error with %d of %d bytes", n, len(whole))
		}
	}
}

// engineSocket is a container engine that has one image.
func engineSocket(t *testing.T, p *picture, size int64) string {
	dir, err := os.MkdirTemp("", "oci") // short: sockets have short names
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	files, links := dockerSave(t, p, false, "x:latest")
	srv := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/images/a/x:v1/json":
			fmt.Fprintf(w, `{"Size":%d}`, size)
		case "/images/a/x:v1/get":
			packTo(w, files, links)
		default:
			w.WriteHeader(http.StatusNotFound)
			io.WriteString(w, `{"message":"No such image"}`)
		}
	})}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	return l.Addr().String()
}

func TestEngineSocket(t *testing.T) {
	bare(t)
	p := paint(t, Config{}, tarOf(t, 1, 1000), tarOf(t, 2, 10))
	sock, greedy := engineSocket(t, p, 5000), engineSocket(t, p, 1<<60)
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	t.Setenv("DOCKER_HOST", "unix://"+sock)
	t.Setenv("CONTAINER_HOST", "unix://"+sock)
	o := quick(nil)
	heard := listen(&o)
	for _, source := range []string{"dockerd://a/x:v1", "podman://a/x:v1"} {
		img := open(t, source, o)
		readAll(t, img, p)
		if img.Record.Source != source {
			t.Errorf("record %+v", img.Record)
		}
		if !strings.Contains(heard(), tmp) {
			t.Errorf("nothing was said of the temporary file: %q", heard())
		}
		if left, _ := os.ReadDir(tmp); len(left) > 0 {
			t.Errorf("%v has a name", left)
		}
	}
	_, err := Open(within(t), "dockerd://b", o)
	wantError(t, err, "No such image")
	t.Setenv("DOCKER_HOST", "unix://"+greedy)
	_, err = Open(within(t), "dockerd://a/x:v1", o)
	wantError(t, err, tmp, "TMPDIR")
}

// TestEngineCommand has a command in place of the engine's.
func TestEngineCommand(t *testing.T) {
	bare(t)
	p := paint(t, Config{}, tarOf(t, 1, 1000))
	files, links := dockerSave(t, p, false, "x:latest")
	name := tarFile(t, files, links)
	bin := t.TempDir()
	script := "#!/bin/sh\ncase \"$*\" in\n'image inspect --format {{.Size}} x:v1') echo 5000;;\n'save x:v1') cat " + name + ";;\n*) echo 'no such thing' >&2; exit 1;;\nesac\n"
	for _, c := range []string{"docker", "podman"} {
		if err := os.WriteFile(filepath.Join(bin, c), []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	t.Setenv("DOCKER_HOST", "tcp://127.0.0.1:1") // the command's affair
	t.Setenv("CONTAINER_HOST", "ssh://nowhere.invalid")
	for _, source := range []string{"dockerd://x:v1", "podman://x:v1"} {
		readAll(t, open(t, source, quick(nil)), p)
	}
	_, err := Open(within(t), "dockerd://y", quick(nil))
	wantError(t, err, "no such thing")
	t.Setenv("PATH", t.TempDir())
	_, err = Open(within(t), "dockerd://y", quick(nil))
	wantError(t, err, "no command docker")
}

func TestOpenCancelled(t *testing.T) {
	bare(t)
	s := serve(t, false)
	s.setFault(func(_ http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		<-r.Context().Done()
		return true
	})
	why := errors.New("that is enough")
	ctx, cancel := context.WithCancelCause(within(t))
	time.AfterFunc(20*time.Millisecond, func() { cancel(why) })
	o := quick(s)
	o.Timeout = 20 * time.Second
	if _, err := Open(ctx, "docker://"+s.host+"/x", o); !errors.Is(err, why) {
		t.Errorf("error %v", err)
	}
}
