package sqfs

import (
	"bytes"
	"fmt"
	"os"
	"testing"
)

// allocImages are images to measure: one of each compressor.
var allocImages = []string{
	"testdata/basic-gzip-4K.sqfs", "testdata/basic-lzma-4K.sqfs", "testdata/basic-lzo-4K.sqfs", "testdata/basic-xz-4K.sqfs",
	"testdata/basic-lz4-4K.sqfs", "testdata/basic-zstd-4K.sqfs", "testdata/stored.sqfs",
}

// TestAllocs holds the promise of doc.go.
func TestAllocs(t *testing.T) {
	for _, path := range allocImages {
		img := openTest(t, path)
		zero := func(what string, f func()) {
			t.Helper()
			f() // decode what it needs
			if got := testing.AllocsPerRun(100, f); got > 0 && !raceEnabled {
				t.Errorf("%s: %s allocates %v objects", path, what, got)
			}
		}
		root := find(t, img)
		zero("Inode", func() { img.Inode(img.Root()) })
		zero("ReadDir", func() {
			for _, err := range img.Dirents(&root, 0) {
				if err != nil {
					t.Error(err)
				}
			}
		})
		var file, link Inode
		walkTree(img, func(_ string, ino *Inode) error {
			switch ino.Type {
			case TypeFile:
				if ino.Size > file.Size {
					file = *ino
				}
			case TypeSymlink:
				link = *ino
			}
			return nil
		})
		zero("Lookup", func() {
			img.Lookup(&root, "sub")
			img.Lookup(&root, "sizes")
			img.Lookup(&root, "nothing")
		})
		buf := make([]byte, 1<<20)
		zero("AppendLink", func() { img.AppendLink(buf[:0], &link) })
		zero("File, Extent", func() {
			f, err := img.File(&file)
			if err == nil {
				_, err = f.Extent(f.NumBlocks() - 1)
			}
			if err != nil {
				t.Error(err)
			}
		})
		f, err := img.File(&file)
		if err != nil {
			t.Fatal(err)
		}
		zero("Extents", func() {
			for _, err := range f.Extents(0) {
				if err != nil {
					t.Error(err)
				}
			}
		})
		e, err := f.Extent(0)
		if err != nil || e.Block.Size == 0 {
			t.Fatalf("%s: %+v, %v", path, e, err)
		}
		zero("ReadBlock", func() {
			if _, err := img.ReadBlock(buf, e.Block); err != nil {
				t.Error(err)
			}
		})
		zero("ReadAt", func() { f.ReadAt(buf[:5000], 0) })
	}
	img := openTest(t, "testdata/xattr-zstd.sqfs")
	ino := find(t, img, "6")
	buf := make([]byte, 0, 4096)
	if got := testing.AllocsPerRun(100, func() { img.AppendXattr(buf, &ino, "user.many59") }); got > 0 {
		t.Errorf("AppendXattr allocates %v objects", got)
	}
}

func BenchmarkOpen(b *testing.B) {
	data, err := os.ReadFile("testdata/basic-zstd-4K.sqfs")
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := New(bytes.NewReader(data), int64(len(data)), nil); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkInode(b *testing.B) {
	img := openTest(b, "testdata/basic-zstd-4K.sqfs")
	ref := find(b, img, "sizes", "t004097").Ref
	b.ReportAllocs()
	for b.Loop() {
		if _, err := img.Inode(ref); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkInodeParallel(b *testing.B) {
	img := openTest(b, "testdata/basic-zstd-4K.sqfs")
	ref := find(b, img, "sizes", "t004097").Ref
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := img.Inode(ref); err != nil {
				b.Error(err)
			}
		}
	})
}

func BenchmarkLookup(b *testing.B) {
	for _, c := range []struct{ path, dir, name string }{
		{"testdata/basic-zstd-4K.sqfs", "sizes", "t004097"},
		{"testdata/basic-zstd-4K.sqfs", "dir300", "f299"},
		{"testdata/basic-zstd-4K.sqfs", "dir300", "g"},
		{"testdata/index-gzip.sqfs", "big", "zz-last"},
	} {
		b.Run(c.dir+"/"+c.name, func(b *testing.B) {
			img := openTest(b, c.path)
			dir := find(b, img, c.dir)
			b.ReportAllocs()
			for b.Loop() {
				img.Lookup(&dir, c.name)
			}
		})
	}
}

func BenchmarkReadDir(b *testing.B) {
	img := openTest(b, "testdata/basic-zstd-4K.sqfs")
	dir := find(b, img, "dir300")
	b.ReportAllocs()
	for b.Loop() {
		n := 0
		for _, err := range img.Dirents(&dir, 0) {
			if err != nil {
				b.Fatal(err)
			}
			n++
		}
		if n != 300 {
			b.Fatalf("%d entries", n)
		}
	}
}

func BenchmarkReadBlock(b *testing.B) {
	for _, c := range []string{"gzip", "xz", "lz4", "zstd"} {
		for _, size := range []string{"4K", "128K"} {
			b.Run(fmt.Sprintf("%s-%s", c, size), func(b *testing.B) {
				img := openTest(b, fmt.Sprintf("testdata/basic-%s-%s.sqfs", c, size))
				benchFile(b, img, "sizes", "t131073")
			})
		}
	}
	if dir := os.Getenv(corpusVar); dir != "" {
		for _, c := range []string{"gzip", "xz", "lz4", "zstd"} {
			b.Run("corpus-"+c+"-128K", func(b *testing.B) {
				benchFile(b, openTest(b, fmt.Sprintf("%s/basic-%s-128K.sqfs", dir, c)), "sizes", "t1048577")
			})
		}
	}
}

// benchFile reads all whole blocks of a file.
func benchFile(b *testing.B, img *Image, names ...string) {
	ino := find(b, img, names...)
	f, err := img.File(&ino)
	if err != nil {
		b.Fatal(err)
	}
	var blocks []Block
	for e, err := range f.Extents(0) {
		if err != nil {
			b.Fatal(err)
		}
		if !e.Block.Fragment {
			blocks = append(blocks, e.Block)
		}
	}
	dst := make([]byte, img.Superblock().BlockSize)
	b.SetBytes(int64(img.Superblock().BlockSize))
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		if _, err := img.ReadBlock(dst, blocks[i%len(blocks)]); err != nil {
			b.Fatal(err)
		}
		i++
	}
}
