package bench

import (
	"context"
	"fmt"
	"os"

	"github.com/squirefs/squire/sqfs"
)

// imageFacts are what workloads need to know of an image. They come from the image and not from a mount of it, which
// would not be cold any more.
type imageFacts struct {
	sqfs.Superblock
	fileBytes int64    // of all regular files, for each name once
	file      string   // for reads of one file: the one with the most data, or the one that was asked for
	fileSize  int64    // of file
	fileData  int64    // of that what is not in holes
	small     []string // the regular files of 1 to maxSmall bytes, in the order of a walk
	python    bool     // has /usr/bin/python3
}

// maxSmall is the size of small files in bytes: some pages, and less than most blocks, so that mksquashfs packs them
// with others into fragment blocks.
const maxSmall = 16 << 10

// python3 is the path of Python in images.
const python3 = "/usr/bin/python3"

// lookInto reads the facts of an image. file, if not empty, is the file for reads of one file.
func lookInto(ctx context.Context, path, file string) (*imageFacts, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	img, err := sqfs.New(f, fi.Size(), nil)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	facts := &imageFacts{Superblock: img.Superblock()}
	if err := facts.walk(ctx, img); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if py, err := img.Resolve(python3, true); err == nil && py.Type == sqfs.TypeFile {
		facts.python = true
	}
	if file != "" {
		if err := facts.choose(img, file); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	return facts, nil
}

func (f *imageFacts) walk(ctx context.Context, img *sqfs.Image) error {
	root, err := img.Inode(img.Root())
	if err != nil {
		return err
	}
	for v, err := range img.Walk(&root) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			return fmt.Errorf("%q: %w", v.Path, err)
		}
		ino := &v.Inode
		switch {
		case v.Leave:
		case !readable(uint32(ino.Mode), ino.Type == sqfs.TypeDir):
			v.Skip()
		case ino.Type == sqfs.TypeFile:
			if err := f.add(img, v.Path, ino); err != nil {
				return fmt.Errorf("%q: %w", v.Path, err)
			}
		}
	}
	return nil
}

func (f *imageFacts) add(img *sqfs.Image, path []byte, ino *sqfs.Inode) error {
	f.fileBytes += ino.Size
	if ino.Size > 0 && ino.Size <= maxSmall {
		f.small = append(f.small, string(path))
	}
	if ino.Size <= f.fileData {
		return nil
	}
	data, err := dataOf(img, ino)
	if data > f.fileData {
		f.file, f.fileSize, f.fileData = string(path), ino.Size, data
	}
	return err
}

// dataOf counts the bytes of a file that are not in holes: reading a hole says nothing of a reader.
func dataOf(img *sqfs.Image, ino *sqfs.Inode) (n int64, err error) {
	f, err := img.File(ino)
	if err != nil {
		return 0, err
	}
	for e, err := range f.Extents(0) {
		if err != nil {
			return 0, err
		}
		if e.Block.Size > 0 {
			n += int64(e.Len)
		}
	}
	return n, nil
}

// choose takes a file that was asked for.
func (f *imageFacts) choose(img *sqfs.Image, file string) error {
	ino, err := img.Resolve(file, false)
	if err != nil {
		return err
	}
	if ino.Type != sqfs.TypeFile || ino.Size == 0 {
		return fmt.Errorf("%s: want a regular file that is not empty", file)
	}
	f.file, f.fileSize = file, ino.Size
	return nil
}

// ordinary says that this is no root process. Such a one is refused what is not for everybody, by some peers and not
// by others: it leaves those files out with all of them.
var ordinary = os.Geteuid() != 0

// readable reports whether a file or directory with these permissions counts.
func readable(mode uint32, dir bool) bool {
	want := uint32(0o4)
	if dir {
		want = 0o5
	}
	return !ordinary || mode&want == want
}
