package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/squirefs/squire/sqfs"
)

// metadataImage is an image for "parts metadata".
type metadataImage struct {
	name   string
	path   string
	data   []byte // its contents
	inodes int
	works  []work
}

// images makes the images, or finds those that are there. What a missing program would make is left out.
func (b *metadataBench) images(ctx context.Context) ([]metadataImage, error) {
	if err := os.MkdirAll(b.dir, 0o755); err != nil {
		return nil, err
	}
	walk := []work{{"walk", walkTree}}
	open := []work{{"open all", openByInode(b.entries)}, {"open all with io/fs", openByPath(b.entries)}}
	tree := func(comp string) func(context.Context, string) error {
		return func(ctx context.Context, path string) error { return b.sqfstar(ctx, path, comp) }
	}
	var images []metadataImage
	for _, i := range []struct {
		name  string
		make  func(ctx context.Context, path string) error
		works []work
	}{
		{fmt.Sprintf("tree of %d, gzip", b.inodes), tree("gzip"), walk},
		{fmt.Sprintf("tree of %d, zstd", b.inodes), tree("zstd"), walk},
		{fmt.Sprintf("directory of %d, mksquashfs index", b.entries), b.mksquashfs, open},
		{fmt.Sprintf("directory of %d, tools-ng index", b.entries), b.gensquashfs, open},
		{fmt.Sprintf("directory of %d, no index", b.entries), b.withoutIndex, open},
	} {
		path := b.imagePath(i.name)
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			fmt.Fprintln(os.Stderr, "making", path)
			err = i.make(ctx, path)
			if errors.Is(err, exec.ErrNotFound) {
				fmt.Fprintf(os.Stderr, "parts: left out %s: %v\n", i.name, err)
				continue
			}
			if err != nil {
				os.Remove(path)
				return nil, fmt.Errorf("%s: %w", path, err)
			}
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		img, err := sqfs.New(bytes.NewReader(data), int64(len(data)), nil)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		images = append(images, metadataImage{i.name, path, data, int(img.Superblock().Inodes), i.works})
	}
	return images, nil
}

// sqfstar makes an image of many small directories, from a tar stream: that many files need not be anywhere. Looking
// for duplicates among files of one size takes sqfstar 4.5 for ever.
func (b *metadataBench) sqfstar(ctx context.Context, path, comp string) error {
	cmd := exec.CommandContext(ctx, "sqfstar", "-comp", comp, "-no-duplicates", "-quiet", "-no-progress", path)
	r, w := io.Pipe()
	go func() { w.CloseWithError(writeTree(w, b.inodes)) }()
	defer r.Close()
	cmd.Stdin = r
	return runTool(cmd)
}

// writeTree writes a tar archive of n inodes, the root not counted: directories of 100 entries, each with nine symlinks.
func writeTree(w io.Writer, n int) error {
	buf := bufio.NewWriterSize(w, 1<<20)
	tw := tar.NewWriter(buf)
	var top, dir string
	for i := range n {
		h := tar.Header{Format: tar.FormatUSTAR, Typeflag: tar.TypeReg, Mode: 0o644, Uid: i % 3, ModTime: time.Unix(1_700_000_000+int64(i%1000), 0)}
		body := ""
		switch {
		case i%10_000 == 0:
			top = fmt.Sprintf("d%03d/", i/10_000)
			dir = top
			h.Typeflag, h.Name, h.Mode = tar.TypeDir, dir, 0o755
		case i%100 == 0:
			dir = fmt.Sprintf("%smodule-%02d/", top, i/100%100)
			h.Typeflag, h.Name, h.Mode = tar.TypeDir, dir, 0o755
		case i%10 == 9:
			h.Typeflag, h.Name, h.Linkname = tar.TypeSymlink, fmt.Sprintf("%ssource-%02d.py", dir, i%100), fmt.Sprintf("source-%02d.py", i%100-1)
		default:
			h.Name = fmt.Sprintf("%ssource-%02d.py", dir, i%100)
			body = h.Name
			h.Size = int64(len(body))
		}
		if err := tw.WriteHeader(&h); err != nil {
			return err
		}
		if _, err := io.WriteString(tw, body); err != nil {
			return err
		}
	}
	if err := tw.Close(); err != nil {
		return err
	}
	return buf.Flush()
}

// bigName is the name of an entry of the directory "big".
func bigName(i int) string { return fmt.Sprintf("file-%06d.dat", i) }

// bigTree makes the directory "big" with empty files, in memory if it can, and returns the directory above it.
func (b *metadataBench) bigTree() (string, error) {
	parent := "/dev/shm"
	if _, err := os.Stat(parent); err != nil {
		parent = b.work
	}
	dir, err := os.MkdirTemp(parent, "squire-bench")
	if err != nil {
		return "", err
	}
	if err := os.Mkdir(filepath.Join(dir, "big"), 0o755); err != nil {
		return dir, err
	}
	for i := range b.entries {
		if err := os.WriteFile(filepath.Join(dir, "big", bigName(i)), nil, 0o644); err != nil {
			return dir, err
		}
	}
	return dir, nil
}

// fromTree runs a program that makes an image of the big directory; TREE in argv stands for the directory above it.
func (b *metadataBench) fromTree(ctx context.Context, argv ...string) error {
	if _, err := exec.LookPath(argv[0]); err != nil {
		return err
	}
	dir, err := b.bigTree()
	defer os.RemoveAll(dir)
	if err != nil {
		return err
	}
	for i, word := range argv {
		if word == "TREE" {
			argv[i] = dir
		}
	}
	return runTool(exec.CommandContext(ctx, argv[0], argv[1:]...))
}

func (b *metadataBench) mksquashfs(ctx context.Context, path string) error {
	return b.fromTree(ctx, "mksquashfs", "TREE", path, "-comp", "gzip", "-quiet", "-no-progress")
}

func (b *metadataBench) gensquashfs(ctx context.Context, path string) error {
	return b.fromTree(ctx, "gensquashfs", "-q", "-c", "gzip", "-D", "TREE", path)
}

// withoutIndex makes an image whose inodes are stored, so that the number of entries of the directory's index can be
// set to 0. Other inodes lie behind it, but their places do not depend on it.
func (b *metadataBench) withoutIndex(ctx context.Context, path string) error {
	if err := b.fromTree(ctx, "mksquashfs", "TREE", path, "-comp", "gzip", "-noI", "-quiet", "-no-progress"); err != nil {
		return err
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	img, err := sqfs.New(bytes.NewReader(data), int64(len(data)), nil)
	if err != nil {
		return err
	}
	dir, err := img.Resolve("big", true)
	if err != nil {
		return err
	}
	// Each stored block has a header of 2 bytes and 8192 bytes. The number is at byte 32 of the inode.
	const header, block, indexCount = 2, 8192, 32
	at := img.Superblock().InodeTable + int64(dir.Ref>>16)
	off := int64(dir.Ref&0xffff) + indexCount
	at += off/block*(header+block) + header + off%block
	if off%block == block-1 || binary.LittleEndian.Uint16(data[at:]) == 0 {
		return errors.New("the directory's index is not where it is looked for")
	}
	binary.LittleEndian.PutUint16(data[at:], 0)
	return os.WriteFile(path, data, 0o644)
}

// runTool runs a program that says nothing when all is well.
func runTool(cmd *exec.Cmd) error {
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", cmd.Path, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return nil
}
