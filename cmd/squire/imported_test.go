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
