package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/sqfs/trace"
)

// What is no trace is refused before anything runs, and is there afterwards.
func TestTracePlaceRefused(t *testing.T) {
	image, _, tr := tracedCopy(t)
	before, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(image)
	hard, soft, text, fifo := dir+"/hard", dir+"/soft", dir+"/text", dir+"/fifo"
	for _, err := range []error{
		os.Link(image, hard), os.Symlink("image.sqsh", soft), os.WriteFile(text, []byte("precious"), 0o600),
		unix.Mkfifo(fifo, 0o600), os.Symlink("loop", dir+"/loop"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct{ output, want string }{
		{image, "is the image itself"},
		{hard, "is the image itself"},
		{soft, "is the image itself"},
		{text, "is not a trace"},
		{text + "/x", "not a directory"},
		{fifo, "no such device"},
		{dir + "/loop", "too many"},
		{dir, "is a directory"},
		{dir + "/missing/x", "directory " + dir + "/missing: no such"},
	} {
		_, err := squire(t, "trace", "record", "-o", tt.output, image, "true")
		if err == nil || !strings.Contains(err.Error(), "--output: ") || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.output, err, tt.want)
		}
	}
	file := writeTrace(t, image+".elsewhere", tr)
	for _, put := range []func() error{
		func() error { return os.Link(image, sidecar(image)) },
		func() error { return os.Link(text, sidecar(image)) },
		func() error { return os.Symlink("nowhere", sidecar(image)) },
	} {
		if err := put(); err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{{"apply", "--sidecar", image, file}, {"record", image, "true"}} {
			if _, err := squire(t, append([]string{"trace"}, args...)...); err == nil || !strings.Contains(err.Error(), sidecar(image)) {
				t.Errorf("%v: %v", args, err)
			}
		}
		if err := os.Remove(sidecar(image)); err != nil {
			t.Fatal(err)
		}
	}
	if after, err := os.ReadFile(image); err != nil || !bytes.Equal(before, after) {
		t.Errorf("%v: the image was changed", err)
	}
	if b, err := os.ReadFile(text); err != nil || string(b) != "precious" {
		t.Errorf("%v: %q", err, b)
	}
}

// Links that were named are followed, devices and pipes stay what they are.
func TestTracePlaceNamed(t *testing.T) {
	image, _, tr := tracedCopy(t)
	file, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	dir := t.TempDir()
	fifo := dir + "/fifo"
	for _, err := range []error{
		os.Mkdir(dir+"/sub", 0o755), os.Symlink("sub/../link2", dir+"/link"), os.Symlink("sub/new", dir+"/link2"),
		os.Symlink("/dev/null", dir+"/null"), unix.Mkfifo(fifo, 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	reader, err := os.OpenFile(fifo, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	for _, name := range []string{"new", "link", "link", "null", "fifo"} {
		place, err := placeNamed(filepath.Join(dir, name), file)
		if err == nil {
			err = place.write(tr)
		}
		place.close()
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"new", "sub/new"} {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(b, tr.Encode()) {
			t.Errorf("%s: %v", name, err)
		}
	}
	got := make([]byte, 1<<16)
	if n, err := reader.Read(got); err != nil || !bytes.Equal(got[:n], tr.Encode()) {
		t.Errorf("fifo: %v", err)
	}
	for name, mode := range map[string]os.FileMode{"link": os.ModeSymlink, "null": os.ModeSymlink, "fifo": os.ModeNamedPipe} {
		if fi, err := os.Lstat(filepath.Join(dir, name)); err != nil || fi.Mode().Type() != mode {
			t.Errorf("%s: %v %v", name, err, fi)
		}
	}
	if fi, err := os.Stat("/dev/null"); err != nil || fi.Mode()&os.ModeCharDevice == 0 {
		t.Errorf("%v: /dev/null is %v", err, fi)
	}
}

// A cache directory that cannot be made is found out before a command runs.
func TestTraceNoCache(t *testing.T) {
	t.Setenv("SQUIRE_CACHE_DIR", "/dev/null/cache")
	if err := checkCache(); err == nil || !strings.Contains(err.Error(), "not a directory") {
		t.Error(err)
	}
	t.Setenv("SQUIRE_CACHE_DIR", t.TempDir())
	if err := checkCache(); err != nil {
		t.Error(err)
	}
}

// What counts as an older trace: a sound one of the image, wherever the new one goes.
func TestTraceRecorded(t *testing.T) {
	image, _, tr := tracedCopy(t)
	img, err := openTraced(image, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer img.close()
	other := &trace.Trace{Image: tr.Image, Touches: tr.Touches}
	other.Image.MkfsTime++
	file := image + ".x"
	place := &tracePlace{name: file}
	for _, want := range []string{"", file} {
		if got := img.recorded(place); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		writeTrace(t, file, tr)
	}
	if got := img.recorded(&tracePlace{name: writeTrace(t, image+".y", other)}); got != "" {
		t.Errorf("another image's: %q", got)
	}
	if got := img.recorded(nil); got != "" {
		t.Errorf("in the cache directory: %q", got)
	}
	name, err := img.keep(tr)
	if got := img.recorded(nil); err != nil || got != name {
		t.Errorf("%v: in the cache directory: %q, want %q", err, got, name)
	}
}
