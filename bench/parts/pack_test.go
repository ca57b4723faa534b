package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	sqpack "github.com/squirefs/squire/sqfs/pack"
)

// An image is told from a tree that is another one by now.
func TestPackVerify(t *testing.T) {
	dir := t.TempDir()
	tree, image := filepath.Join(dir, "tree"), filepath.Join(dir, "image")
	at := func(name string) string { return filepath.Join(tree, name) }
	if err := errors.Join(os.MkdirAll(at("d/e"), 0o755), os.WriteFile(at("d/file"), []byte("before"), 0o644), os.Symlink("file", at("d/link"))); err != nil {
		t.Fatal(err)
	}
	still := func() { // changes change times
		for _, name := range []string{"d", "d/e"} {
			_ = os.Chtimes(at(name), time.Time{}, time.Unix(1e9, 0)) // d/e is not always there
		}
	}
	still()
	f, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w, err := sqpack.NewWriter(f, sqpack.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	root, _, err := sqpack.Dir(t.Context(), w, tree, sqpack.DirOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err = w.Finish(root); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		change func() error
		says   string // in the error; empty: none
	}{
		{func() error { return nil }, ""},
		{func() error { return os.Chmod(at("d/e"), 0o700) }, `"d/e" in the image: type 1, mode 755`},
		{func() error { return os.Chmod(at("d/e"), 0o755) }, ""},
		{func() error { return os.Mkdir(at("d/e/f"), 0o755) }, `"d/e/f" in the image: ; in the tree: type 1`},
		{func() error { return os.RemoveAll(at("d/e")) }, "more in the image"},
	} {
		if err = tt.change(); err != nil {
			t.Fatal(err)
		}
		still()
		b := packBench{packOptions: packOptions{tree: tree}}
		if b.want, err = describeTree(tree); err != nil {
			t.Fatal(err)
		}
		err = b.verify(image)
		if tt.says == "" && err != nil || tt.says != "" && (err == nil || !strings.Contains(err.Error(), tt.says)) {
			t.Errorf("%v, want %q", err, tt.says)
		}
	}
}
