package main

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The import stage tells what went wrong, and its parent says it in the words of pyxis, and calls the image as the user does.
func TestImportImageFails(t *testing.T) {
	t.Setenv("SQUIRE_CACHE_DIR", t.TempDir())
	t.Setenv("SQUIRE_IMPORT_FLAGS", "--retries 0 --insecure 127.0.0.1:1")
	progress := tempProgress(t)
	o := &slurmOptions{Image: "127.0.0.1:1#x/y:1", Source: "docker://127.0.0.1:1#x/y:1"}
	_, err := o.importImage(t.Context(), progress)
	if err == nil || strings.Count(err.Error(), "x/y:1") != 1 || !strings.HasPrefix(err.Error(), "failed to import docker image: 127.0.0.1:1#x/y:1: ") ||
		!strings.Contains(slurmText(err), "onnection refused") {
		t.Errorf("got %v", err)
	}
	secret := &slurmOptions{Image: "me:secret@x", Source: "docker://me:secret@x"}
	if _, err = secret.importImage(t.Context(), progress); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("got %v", err)
	}
	for name, want := range map[string]string{"relative": "want an absolute path", "/dev/null": "SQUIRE_CACHE_DIR names another directory"} {
		t.Setenv("SQUIRE_CACHE_DIR", name)
		if _, err := o.importImage(t.Context(), progress); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("SQUIRE_CACHE_DIR=%s: got %v", name, err)
		}
	}
}

// An import that is not wanted any more ends, though the registry never answers.
func TestImportImageCancelled(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0") // the kernel accepts
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	l := silent.Addr().String()
	t.Setenv("SQUIRE_CACHE_DIR", t.TempDir())
	t.Setenv("SQUIRE_IMPORT_FLAGS", "--insecure "+l)
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("the step has ended")
	time.AfterFunc(200*time.Millisecond, func() { cancel(stop) })
	if _, err := importImage(ctx, "docker://"+l+"/x:1", tempProgress(t)); !errors.Is(err, stop) {
		t.Errorf("got %v", err)
	}
}

// What lies in the directory of images is taken only from oneself and root, and only if nobody else can have changed it.
func TestIsImported(t *testing.T) {
	dir := t.TempDir()
	name := importedName(dir, "sha256:00")
	if name != filepath.Join(dir, "sha256-00.sqsh") || importedName(dir, "00") != "" || importedName(dir, "a:../b") != "" {
		t.Errorf("got %q", name)
	}
	if isImported(name) {
		t.Error("nothing is an image")
	}
	then := time.Now().Add(-time.Hour).Truncate(time.Second)
	write := func() {
		t.Helper()
		if err := errors.Join(os.WriteFile(name, nil, 0o600), os.Chmod(name, 0o644), os.Chtimes(name, then, then)); err != nil {
			t.Fatal(err)
		}
	}
	write()
	if !isImported(name) {
		t.Error("an image is none")
	}
	var st unix.Stat_t
	if err := unix.Stat(name, &st); err != nil || st.Mtim.Sec != then.Unix() || st.Atim.Sec == then.Unix() {
		t.Errorf("its use was not noted, or its time was changed: %+v, %v", st, err)
	}
	for _, mode := range []os.FileMode{0o664, 0o646} {
		if err := os.Chmod(name, mode); err != nil {
			t.Fatal(err)
		}
		if isImported(name) {
			t.Errorf("with mode %o it is taken", mode)
		}
	}
	if os.Getuid() == 0 {
		write()
		if err := os.Chown(name, 12345, 12345); err != nil {
			t.Fatal(err)
		}
		if isImported(name) {
			t.Error("it is taken from another user")
		}
	}
}

// An image is a file of the directory, or a link to one.
func TestIsImportedLink(t *testing.T) {
	dir := t.TempDir()
	images := filepath.Join(dir, "images")
	err := errors.Join(os.Mkdir(images, 0o700), os.WriteFile(filepath.Join(dir, "x.sqsh"), nil, 0o600), os.WriteFile(filepath.Join(images, "x.sqsh"), nil, 0o600),
		os.Symlink("x.sqsh", filepath.Join(images, "link")))
	if err != nil {
		t.Fatal(err)
	}
	for target, want := range map[string]bool{
		"x.sqsh": true, "../x.sqsh": false, filepath.Join(dir, "x.sqsh"): false, filepath.Join(images, "x.sqsh"): false,
		"link": false, "..": false, ".": false, "missing": false,
	} {
		name := importedName(images, "sha256:00")
		_ = os.Remove(name)
		if err := os.Symlink(target, name); err != nil {
			t.Fatal(err)
		}
		if isImported(name) != want {
			t.Errorf("a link to %s: got %v", target, !want)
		}
	}
}

// Images are not looked for where others can put theirs.
func TestImportedDir(t *testing.T) {
	type dirs struct{ parent, cache, images string }
	for name, tt := range map[string]struct {
		change func(d dirs) error
		want   string // the error; "": none
		root   bool   // only root can do that
	}{
		"own":             {func(d dirs) error { return nil }, "", false},
		"cache of group":  {func(d dirs) error { return os.Chmod(d.cache, 0o775) }, "cache (mode 0775)", false},
		"images of group": {func(d dirs) error { return os.Chmod(d.images, 0o770) }, "images (mode 0770)", false},
		"images of all":   {func(d dirs) error { return os.Chmod(d.images, 0o777|os.ModeSticky) }, "images (mode 01777)", false},
		"parent of all":   {func(d dirs) error { return os.Chmod(d.parent, 0o777) }, "parent (mode 0777)", false},
		"sticky parent":   {func(d dirs) error { return os.Chmod(d.parent, 0o777|os.ModeSticky) }, "", false},
		"images a link": {func(d dirs) error {
			return errors.Join(os.Rename(d.images, d.images+"2"), os.Symlink("images2", d.images))
		}, "images is a link", false},
		"cache a link": {func(d dirs) error {
			return errors.Join(os.Rename(d.cache, d.cache+"2"), os.Symlink("../parent/./cache2", d.cache))
		}, "", false},
		"cache a link to one of all": {func(d dirs) error {
			return errors.Join(os.Rename(d.cache, d.cache+"2"), os.Chmod(d.cache+"2", 0o777), os.Symlink("cache2/.", d.cache))
		}, "cache2 (mode 0777)", false},
		"link of another": {func(d dirs) error {
			return errors.Join(os.Rename(d.cache, d.cache+"2"), os.Symlink("cache2", d.cache), os.Lchown(d.cache, 12345, 12345))
		}, "cache belongs to user 12345", true},
		"loop": {func(d dirs) error {
			return errors.Join(os.Rename(d.cache, d.cache+"2"), os.Symlink("cache", d.cache))
		}, "SQUIRE_CACHE_DIR names another", false},
		"parent of another": {func(d dirs) error { return os.Chown(d.parent, 12345, 12345) }, "parent belongs to user 12345", true},
		"cache of another":  {func(d dirs) error { return os.Chown(d.cache, 12345, 12345) }, "cache belongs to user 12345", true},
		"images of another": {func(d dirs) error { return os.Chown(d.images, 12345, 12345) }, "images belongs to user 12345", true},
	} {
		t.Run(name, func(t *testing.T) {
			if tt.root && os.Getuid() != 0 {
				t.Skip("needs root")
			}
			parent := filepath.Join(t.TempDir(), "parent")
			d := dirs{parent, filepath.Join(parent, "cache"), filepath.Join(parent, "cache", "images")}
			t.Setenv("SQUIRE_CACHE_DIR", d.cache)
			if dir, err := importedDir(); err != nil || dir != d.images { // which makes them
				t.Fatalf("got %q, %v", dir, err)
			}
			if err := tt.change(d); err != nil {
				t.Fatal(err)
			}
			dir, err := importedDir()
			if tt.want == "" && (err != nil || dir != d.images) || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("got %q, %v", dir, err)
			}
		})
	}
}

// What a site names is made for the user, but nothing above it.
func TestImportedDirOfSite(t *testing.T) {
	needRoot(t)
	parent := filepath.Join(t.TempDir(), "scratch")
	useSite(t, map[string]string{policyName: "cache = '" + parent + "/%U'\n"})
	t.Setenv("SQUIRE_CACHE_DIR", "")
	if _, err := importedDir(); err == nil || !strings.Contains(err.Error(), parent+" is missing") {
		t.Errorf("got %v", err)
	}
	if _, err := new(importOptions).layerCache(); err == nil || !strings.Contains(err.Error(), parent+" is missing") {
		t.Errorf("layers: got %v", err)
	}
	if _, err := openCache(true); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("traces: got %v", err)
	}
	if err := os.Mkdir(parent, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := importedDir(); err != nil {
		t.Error(err)
	}
	s, err := openCache(true)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
}
