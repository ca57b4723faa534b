package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/sqfs"
	"github.com/squirefs/squire/sqfs/oci"
)

// openImage opens an image file for reading. What it returns is a regular file
// or a block device; opening never waits, whatever the path names.
func openImage(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, missingImage(name, unwrapPath(name, err))
	}
	fi, err := f.Stat()
	switch {
	case err != nil:
	case fi.IsDir():
		err = fmt.Errorf("%s: is a directory, not a squashfs image", name)
	case fi.Mode()&os.ModeCharDevice != 0 || !fi.Mode().IsRegular() && fi.Mode()&os.ModeDevice == 0:
		err = fmt.Errorf("%s: not a file", name)
	}
	if err == nil {
		err = unix.SetNonblock(int(f.Fd()), false)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// missingImage is why an image cannot be opened. If there is none, and its name is one that "squire import" takes, as those
// who come from docker write it, that is said.
func missingImage(name string, err error) error {
	err = fmt.Errorf("image %w", err)
	if !errors.Is(err, unix.ENOENT) {
		return err
	}
	if slices.ContainsFunc(sourceKinds, func(kind string) bool { return strings.HasPrefix(name, kind) }) {
		return fmt.Errorf(`%w; "squire import %s" makes a file of it`, err, name)
	}
	if _, bad := oci.ParseSource(name); bad == nil {
		return fmt.Errorf("%w; one in a registry is written docker://%s", err, name)
	}
	return err
}

// fileSize is the size of a regular file or block device.
func fileSize(f *os.File) (int64, error) {
	fi, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if fi.Mode().IsRegular() {
		return fi.Size(), nil
	}
	return f.Seek(0, io.SeekEnd)
}

// openSquashfs opens an image to look into it.
func openSquashfs(name string, offset int64) (*sqfs.Image, func(), error) {
	f, err := openImage(name)
	if err != nil {
		return nil, nil, err
	}
	img, err := newImage(f, f, offset, 0)
	if err != nil {
		if errors.Is(err, sqfs.ErrNotSquashfs) {
			err = fmt.Errorf("%w; %s", err, whereElse(f, offset))
		}
		f.Close()
		return nil, nil, fmt.Errorf("%s: %w", name, err)
	}
	return img, func() { img.Close(); f.Close() }, nil
}

// newImage reads the image at offset in r, whose size is that of f, and keeps so
// much of its metadata; 0 is the default.
func newImage(r io.ReaderAt, f *os.File, offset, metadata int64) (*sqfs.Image, error) {
	size, err := fileSize(f)
	if err != nil {
		return nil, err
	}
	if offset < 0 || offset > size {
		return nil, fmt.Errorf("offset %d lies outside of the file's %d bytes", offset, size)
	}
	return sqfs.New(r, size-offset, &sqfs.Options{Offset: offset, MetadataCache: metadata})
}

// whereElse says what to try for a file that has no image at offset. Programs like
// AppImages have it behind their sections.
func whereElse(f *os.File, offset int64) string {
	const advice = "if it starts elsewhere in the file, say where with --offset"
	var head [64]byte
	if _, err := f.ReadAt(head[:], offset); err != nil || string(head[:4]) != "\x7fELF" {
		return advice
	}
	var magic [4]byte
	end := offset + endOfELF(&head)
	if _, err := f.ReadAt(magic[:], max(end, 0)); err != nil || string(magic[:]) != "hsqs" {
		return "it is a program; " + advice
	}
	return fmt.Sprintf("it is a program with an image behind it: --offset %d", end)
}

// endOfELF returns where the table of sections ends, which linkers put last (elf.h,
// Elf32_Ehdr and Elf64_Ehdr: e_shoff, e_shentsize, e_shnum). Only little-endian
// machines have images that can be read.
func endOfELF(head *[64]byte) int64 {
	le := binary.LittleEndian
	if head[4] == 1 { // ELFCLASS32
		return int64(le.Uint32(head[32:])) + int64(le.Uint16(head[46:]))*int64(le.Uint16(head[48:]))
	}
	return int64(le.Uint64(head[40:])&(1<<48-1)) + int64(le.Uint16(head[58:]))*int64(le.Uint16(head[60:]))
}

// checkProcessors checks what -j says.
func checkProcessors(n int) error {
	if n < 0 || n > 1024 {
		return fmt.Errorf("--processors %d: want 0 to 1024", n)
	}
	return nil
}

// unwrapPath takes the system call out of a path error.
func unwrapPath(name string, err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	if errors.Is(err, os.ErrNotExist) {
		err = unix.ENOENT // reads better than "file does not exist"
	}
	return fmt.Errorf("%s: %w", name, err)
}
