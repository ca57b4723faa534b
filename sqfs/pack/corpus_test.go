package pack

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/squirefs/squire/sqfs"
)

// TestCorpus packs again what other writers' images have, and compares what is read back.
func TestCorpus(t *testing.T) {
	images, err := filepath.Glob("../testdata/*.sqfs")
	if dir := os.Getenv("SQFS_CORPUS"); dir != "" {
		var more []string
		more, err = filepath.Glob(filepath.Join(dir, "*.sqfs"))
		images = append(images, more...)
	}
	if err != nil || len(images) == 0 {
		t.Fatalf("no images: %v", err)
	}
	for n, name := range images {
		t.Run(filepath.Base(name), func(t *testing.T) {
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			source := &memFile{b: b}
			img, err := sqfs.New(source, int64(len(b)), nil)
			if err != nil {
				t.Skip(err) // an image behind other data
			}
			f := &memFile{}
			repack(t, img, f, Options{Compression: []sqfs.Compression{sqfs.Zstd, sqfs.LZ4, sqfs.Gzip}[n%3], Level: 1 - min(n%3, 1)})
			compare(t, "packed again", essence(describeImage(t, f, int64(len(f.b)))), essence(describeImage(t, source, int64(len(b)))))
			sound(t, f, int64(len(f.b)))
		})
	}
}

// repack writes all that img has into f.
func repack(t *testing.T, img *sqfs.Image, f File, o Options) {
	t.Helper()
	w, err := NewWriter(f, o)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	start, err := img.Inode(img.Root())
	if err != nil {
		t.Fatal(err)
	}
	dirs, done := map[string]*Inode{}, map[sqfs.InodeRef]*Inode{}
	for v, err := range img.Walk(&start) {
		if err != nil {
			t.Fatalf("%q: %v", v.Path, err)
		}
		if v.Leave {
			continue
		}
		path := string(v.Path)
		i := done[v.Inode.Ref]
		if i == nil {
			i = inodeOf(t, img, &v.Inode, w)
			done[v.Inode.Ref] = i
		}
		if i.Type == sqfs.TypeDir {
			dirs[path] = i
		}
		if path != "" {
			dir, name := "", path
			if k := strings.LastIndexByte(path, '/'); k >= 0 {
				dir, name = path[:k], path[k+1:]
			}
			dirs[dir].Entries[name] = i
		}
	}
	if _, err := w.Finish(dirs[""]); err != nil {
		t.Fatal(err)
	}
}

func inodeOf(t *testing.T, img *sqfs.Image, in *sqfs.Inode, w *Writer) *Inode {
	t.Helper()
	i := &Inode{Type: in.Type, Mode: in.Mode, UID: in.UID, GID: in.GID, ModTime: int64(in.ModTime), Rdev: in.Rdev}
	switch in.Type {
	case sqfs.TypeDir:
		i.Entries = map[string]*Inode{}
	case sqfs.TypeSymlink:
		b, err := img.AppendLink(nil, in)
		if err != nil {
			t.Fatal(err)
		}
		i.Target = string(b)
	case sqfs.TypeFile:
		f, err := img.File(in)
		if err != nil {
			t.Fatal(err)
		}
		if i.Data, err = w.Add(io.NewSectionReader(&f, 0, in.Size)); err != nil {
			t.Fatal(err)
		}
	}
	for a, err := range img.XattrValues(in, nil) {
		if err != nil {
			t.Fatal(err)
		}
		i.Xattrs = append(i.Xattrs, Xattr{Name: a.Name, Value: slices.Clone(a.Value)})
	}
	return i
}

// essence leaves out what writers see differently: counts of links, and the order of attributes.
func essence(all map[string]what) map[string]what {
	for path, x := range all {
		fields := strings.Fields(x.xattrs)
		slices.Sort(fields)
		x.links, x.same, x.xattrs = 0, "", strings.Join(fields, " ")
		all[path] = x
	}
	return all
}
