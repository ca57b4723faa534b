package fusefs

import (
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/squirefs/squire/sqfs"
	"github.com/squirefs/squire/testdata/hostile"
)

// corpusVar names a directory of images to mount, as testdata/corpus.sh makes it. The tests of
// package sqfs compare what that package finds in them with what unsquashfs does.
const corpusVar = "SQFS_CORPUS"

// TestCorpus mounts all images of the corpus, with ours and where it can with the kernel's
// squashfs. Both mounts must show what package sqfs finds, and stat must say the same of both.
func TestCorpus(t *testing.T) {
	dir := os.Getenv(corpusVar)
	if dir == "" {
		t.Skipf("needs %s, see make test-corpus", corpusVar)
	}
	needRoot(t)
	images, err := filepath.Glob(filepath.Join(dir, "*.sqfs"))
	if err != nil || len(images) == 0 {
		t.Fatalf("no images in %s=%s: %v", corpusVar, dir, err)
	}
	for _, image := range images {
		name := strings.TrimSuffix(image, ".sqfs")
		t.Run(filepath.Base(name), func(t *testing.T) {
			p := packing{kernel: true}
			if b, err := os.ReadFile(name + ".off"); err == nil {
				if p.offset, err = strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err != nil {
					t.Fatal(err)
				}
			}
			compareMounts(t, image, &p)
		})
	}
}

func compareMounts(t *testing.T, image string, p *packing) {
	api := openAPI(t, image, p.offset)
	body := hostile.Body{Files: api.files(t)}
	want := &hostile.Image{Name: "corpus", Want: hostile.Either, Bad: longLinks(body.Files)}
	check := func(who, dir string) {
		t.Helper()
		for _, problem := range want.Check(hostile.DirView(dir), body) {
			t.Errorf("%s: %s", who, problem)
		}
	}
	s := mountImage(t, role{Image: image, Offset: p.offset}, MountOptions{})
	check("squire", s.dir)
	if dir := p.mountKernel(t, image); dir != "" {
		for _, name := range want.Bad {
			delete(body.Files, name)
		}
		sameStat(t, s.dir, dir, body)
	}
}

// longLinks returns the symlinks that are longer than what Linux follows. There is always one
// name, as an empty list would mean all.
func longLinks(files map[string]hostile.File) []string {
	list := []string{"no such link"}
	for name, f := range files {
		if len(f.Target) > maxLink {
			list = append(list, name)
		}
	}
	return list
}

// files returns all that Linux can show of an image. Contents are read when they are compared.
func (a apiView) files(t *testing.T) map[string]hostile.File {
	t.Helper()
	files := map[string]hostile.File{}
	var visit func(name string)
	visit = func(name string) {
		f, err := a.File(name)
		if err != nil {
			t.Fatalf("%q: %v", name, err)
		}
		ino, err := a.inode(name)
		if err != nil {
			t.Fatal(err)
		}
		if f.UID == math.MaxUint32 { // no user of Linux: shown as the overflow user
			f.UID, f.GID = 65534, 65534
		}
		switch ino.Type {
		case sqfs.TypeFile:
			var data sqfs.File
			if data, err = a.img.File(&ino); err != nil {
				t.Fatal(err)
			}
			f.At = &data
		case sqfs.TypeDir:
			if f.Names, err = a.List(name); err != nil {
				t.Fatalf("%q: %v", name, err)
			}
			for i, child := range f.Names {
				if strings.Count(name, "/") < 500 && (i < 100 || i >= len(f.Names)-100) { // what Check visits
					visit(strings.TrimPrefix(name+"/"+child, "/"))
				}
			}
		}
		files[name] = f
	}
	visit("")
	return files
}
