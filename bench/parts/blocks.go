package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/squirefs/squire/bench"
	"github.com/squirefs/squire/sqfs"
)

// The blocks that decoders are compared with come from real files: they are packed one after the other into one file,
// of which mksquashfs makes an image.

// maxPiece bounds what is taken of one file, so that no large one decides the outcome.
const maxPiece = 1 << 20

// image returns the path of an image of a case, which it makes if it is not there.
func (b *codecBench) image(ctx context.Context, c codecCase, shape codecShape) (string, error) {
	size := int64(b.size) << 20 / int64(shape.part)
	input := filepath.Join(b.dir, fmt.Sprintf("input-%d", size))
	image := fmt.Sprintf("%s-%s-%d.sqsh", input, c.name, shape.block)
	if _, err := os.Stat(image); err == nil {
		return image, nil
	}
	if _, err := os.Stat(input); err != nil {
		if err := makeFile(input, func(path string) error { return b.pack(path, size) }); err != nil {
			return "", err
		}
	}
	return image, makeFile(image, func(path string) error {
		argv := []string{"mksquashfs", input, path, "-noappend", "-quiet", "-no-progress", "-no-fragments", "-no-xattrs", "-b", fmt.Sprint(shape.block)}
		out, err := bench.RunProgram(ctx, 10*time.Minute, append(argv, c.args...)...)
		if err != nil {
			return fmt.Errorf("mksquashfs: %w %s", err, bytes.TrimSpace(out))
		}
		return nil
	})
}

// makeFile makes a file that is either there in full or not at all.
func makeFile(path string, write func(path string) error) error {
	tmp := path + ".tmp"
	defer os.Remove(tmp)
	if err := write(tmp); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// pack writes pieces of texts and binaries to a new file, mixed, size bytes in all or as many as there are.
func (b *codecBench) pack(path string, size int64) error {
	texts, n := choose(b.texts, isPython, size/3)
	binaries, k := choose(b.binaries, isELF, size-n)
	pieces := append(texts, binaries...)
	slices.SortFunc(pieces, piece.compare)
	if n+k == 0 {
		return fmt.Errorf("no files in %s and %s", b.texts, b.binaries)
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, p := range pieces {
		if err := p.append(f); err != nil {
			return err
		}
	}
	return f.Close()
}

// piece is the first bytes of a file.
type piece struct {
	path string
	size int64
}

// compare gives the files of a machine an order that is always the same and has nothing to do with where they lie.
func (p piece) compare(q piece) int {
	a, b := crc32.ChecksumIEEE([]byte(p.path)), crc32.ChecksumIEEE([]byte(q.path))
	return cmp.Or(cmp.Compare(a, b), cmp.Compare(p.path, q.path))
}

func (p piece) append(w io.Writer) error {
	f, err := os.Open(p.path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.CopyN(w, f, p.size)
	return err
}

// choose takes files below the directories that the comma-separated patterns match, until there are size bytes. What
// cannot be read is passed over.
func choose(patterns string, wanted func(path string) bool, size int64) (chosen []piece, n int64) {
	var all []piece
	for pattern := range strings.SplitSeq(patterns, ",") {
		dirs, _ := filepath.Glob(pattern) // the only error is a bad pattern, which matches nothing
		for _, dir := range dirs {
			all = append(all, regularFiles(dir)...)
		}
	}
	slices.SortFunc(all, piece.compare)
	for _, p := range slices.Compact(all) {
		if p.size = min(p.size, maxPiece, size-n); p.size > 0 && wanted(p.path) {
			chosen = append(chosen, p)
			n += p.size
		}
	}
	return chosen, n
}

func regularFiles(dir string) (files []piece) {
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil
		}
		if fi, err := d.Info(); err == nil {
			files = append(files, piece{path, fi.Size()})
		}
		return nil
	})
	return files
}

func isPython(path string) bool { return strings.HasSuffix(path, ".py") && starts(path, "") }

func isELF(path string) bool { return starts(path, "\x7fELF") }

// starts reports whether a file can be read and starts with magic.
func starts(path, magic string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	head := make([]byte, len(magic))
	_, err = io.ReadFull(f, head)
	return err == nil && string(head) == magic
}

// summary says what is in a file of blocks.
type summary struct {
	blocks               int
	compressed, expanded int64
}

// dumpBlocks writes the compressed blocks of the files in the root directory of an image to a file of blocks. That is,
// in 32-bit little-endian numbers: the compressor as in the superblock, the most that a block expands to, the number
// of blocks; then for each block its length, the length that it expands to, and the block.
func dumpBlocks(image, path string) (summary, error) {
	var sum summary
	img, err := sqfs.OpenImage(image)
	if err != nil {
		return sum, err
	}
	defer img.Close()
	blocks, err := compressedBlocks(img)
	if err != nil {
		return sum, err
	}
	src, err := os.Open(image)
	if err != nil {
		return sum, err
	}
	defer src.Close()
	dst, err := os.Create(path)
	if err != nil {
		return sum, err
	}
	defer dst.Close()
	w := bufio.NewWriter(dst)
	sb := img.Superblock()
	writeNumbers(w, uint32(sb.Compression), sb.BlockSize, uint32(len(blocks)))
	for _, b := range blocks {
		writeNumbers(w, b.Size, b.Len)
		if _, err := io.Copy(w, io.NewSectionReader(src, b.Off, int64(b.Size))); err != nil {
			return sum, err
		}
		sum.blocks++
		sum.compressed += int64(b.Size)
		sum.expanded += int64(b.Len)
	}
	if err := w.Flush(); err != nil {
		return sum, err
	}
	return sum, dst.Close()
}

// writeNumbers leaves errors to Flush, which repeats them.
func writeNumbers(w *bufio.Writer, numbers ...uint32) {
	for _, x := range numbers {
		_, _ = w.Write(binary.LittleEndian.AppendUint32(nil, x))
	}
}

// compressedBlocks returns the blocks of the files in the root directory, without the stored ones.
func compressedBlocks(img *sqfs.Image) ([]sqfs.Block, error) {
	var blocks []sqfs.Block
	root, err := img.Inode(img.Root())
	if err != nil {
		return nil, err
	}
	for entry, err := range img.Dirents(&root, 0) {
		if err != nil {
			return nil, err
		}
		ino, err := img.Inode(entry.Ref)
		if err != nil {
			return nil, err
		}
		f, err := img.File(&ino)
		if err != nil {
			return nil, err
		}
		for e, err := range f.Extents(0) {
			if err != nil {
				return nil, err
			}
			if e.Block.Size > 0 && !e.Block.Stored {
				blocks = append(blocks, e.Block)
			}
		}
	}
	return blocks, nil
}
