package sqfs_test

import (
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/squirefs/squire/sqfs"
)

// An image is a file system of package io/fs.
func Example() {
	img, err := sqfs.OpenImage("testdata/basic-zstd-4K.sqfs")
	if err != nil {
		panic(err)
	}
	defer img.Close()
	text, err := fs.ReadFile(img, "small/02.txt")
	if err != nil {
		panic(err)
	}
	fmt.Println(len(text), "bytes")
	// Output: 274 bytes
}

func ExampleOpenImage() {
	img, err := sqfs.OpenImage("testdata/basic-zstd-4K.sqfs")
	if err != nil {
		panic(err)
	}
	defer img.Close()
	sb := img.Superblock()
	fmt.Println(sb.Compression, sb.BlockSize)
	// Output: zstd 4096
}

// Paths of package io/fs and all that is made for them work on an image.
func ExampleImage_ReadDir() {
	img, err := sqfs.OpenImage("testdata/basic-zstd-4K.sqfs")
	if err != nil {
		panic(err)
	}
	defer img.Close()
	list, err := img.ReadDir("links")
	if err != nil {
		panic(err)
	}
	for _, e := range list[:3] {
		fmt.Println(e)
	}
	err = fs.WalkDir(img, "links", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			fmt.Println(path)
		}
		return err
	})
	if err != nil {
		panic(err)
	}
	// Output:
	// L abs
	// L chain
	// L dangling
	// links/hard0
	// links/hard1
	// links/hard2
	// links/target
}

// The inode door allocates nothing: this is how a server walks.
func ExampleImage_Dirents() {
	img, err := sqfs.OpenImage("testdata/names.sqfs")
	if err != nil {
		panic(err)
	}
	defer img.Close()
	root, err := img.Inode(img.Root())
	if err != nil {
		panic(err)
	}
	for e, err := range img.Dirents(&root, 0) {
		if err != nil {
			panic(err)
		}
		ino, err := img.Inode(e.Ref)
		if err != nil {
			panic(err)
		}
		fmt.Printf("%q: %v of %d bytes\n", e.Name, ino.Type, ino.Size)
	}
	// Output:
	// "back\\slash": file of 1 bytes
	// "caf\xe9": file of 1 bytes
	// "new\nline": file of 1 bytes
	// "quo'te\"": file of 1 bytes
	// "tab\t": file of 1 bytes
	// "\xff\xfe": file of 1 bytes
}

// Names are bytes. One that is not UTF-8 is no path of package io/fs, but Resolve and
// Lookup find it.
func ExampleImage_Resolve() {
	img, err := sqfs.OpenImage("testdata/names.sqfs")
	if err != nil {
		panic(err)
	}
	defer img.Close()
	_, err = img.Stat("caf\xe9")
	fmt.Println(errors.Unwrap(err))
	ino, err := img.Resolve("/caf\xe9", true)
	if err != nil {
		panic(err)
	}
	f, err := img.File(&ino)
	if err != nil {
		panic(err)
	}
	text, err := io.ReadAll(io.NewSectionReader(&f, 0, f.Size()))
	fmt.Printf("%q, %v\n", text, err)
	// Output:
	// invalid argument
	// "x", <nil>
}

// Who keeps blocks reads them one by one: equal Blocks have equal contents, so that a
// fragment, which many small files share, is expanded only once.
func ExampleImage_ReadBlock() {
	img, err := sqfs.OpenImage("testdata/basic-zstd-4K.sqfs")
	if err != nil {
		panic(err)
	}
	defer img.Close()
	cache := make(map[sqfs.Block][]byte)
	read := func(path string) ([]byte, error) {
		ino, err := img.Resolve(path, true)
		if err != nil {
			return nil, err
		}
		f, err := img.File(&ino)
		if err != nil {
			return nil, err
		}
		var text []byte
		for e, err := range f.Extents(0) {
			if err != nil {
				return nil, err
			}
			data, ok := cache[e.Block]
			if !ok {
				data = make([]byte, e.Block.Len)
				n, err := img.ReadBlock(data, e.Block)
				if err != nil {
					return nil, err
				}
				data = data[:n]
				cache[e.Block] = data
			}
			if e.Start+e.Len > len(data) {
				return nil, sqfs.ErrCorrupt
			}
			text = append(text, data[e.Start:e.Start+e.Len]...)
		}
		return text, nil
	}
	for _, path := range []string{"small/01.txt", "small/02.txt"} {
		text, err := read(path)
		fmt.Println(path, len(text), err)
	}
	fmt.Println(len(cache), "block expanded")
	// Output:
	// small/01.txt 237 <nil>
	// small/02.txt 274 <nil>
	// 1 block expanded
}
