// Package imagetest finds and opens the images of tests, for those below sqfs. Only tests import it.
package imagetest

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/squirefs/squire/sqfs"
)

// corpusVar names a directory with more images, as for package sqfs.
const corpusVar = "SQFS_CORPUS"

// Paths returns the images of dir, and those of the corpus, if there is one.
func Paths(t testing.TB, dir string) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(dir, "*.sqfs"))
	if err != nil || len(list) == 0 {
		t.Fatalf("no images in %s: %v", dir, err)
	}
	if dir := os.Getenv(corpusVar); dir != "" {
		more, err := filepath.Glob(filepath.Join(dir, "*.sqfs"))
		if err != nil || len(more) == 0 {
			t.Fatalf("no images in %s=%s: %v", corpusVar, dir, err)
		}
		list = append(list, more...)
	}
	return list
}

// Open opens an image, at the offset that a file of the corpus may have beside it. It skips the test if the image needs
// what we lack.
func Open(t testing.TB, path string) *sqfs.Image {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	off := Offset(t, path)
	img, err := sqfs.New(f, info.Size()-off, &sqfs.Options{Offset: off})
	if errors.Is(err, sqfs.ErrUnsupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// Offset is where in its file an image begins.
func Offset(t testing.TB, path string) int64 {
	t.Helper()
	b, err := os.ReadFile(strings.TrimSuffix(path, ".sqfs") + ".off")
	if err != nil {
		return 0
	}
	off, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return off
}

// New opens an image in memory.
func New(t testing.TB, raw []byte) *sqfs.Image {
	t.Helper()
	img, err := sqfs.New(bytes.NewReader(raw), int64(len(raw)), nil)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// Inode returns that of a path, which may lead through symbolic links but not end in one.
func Inode(t testing.TB, img *sqfs.Image, name string) sqfs.Inode {
	t.Helper()
	ino, err := img.Resolve(name, false)
	if err != nil {
		t.Fatal(err)
	}
	return ino
}

// Extent returns a block of a file.
func Extent(t testing.TB, img *sqfs.Image, name string, block int64) sqfs.Extent {
	t.Helper()
	ino := Inode(t, img, name)
	f, err := img.File(&ino)
	if err != nil {
		t.Fatal(err)
	}
	e, err := f.Extent(block)
	if err != nil {
		t.Fatal(err)
	}
	return e
}
