package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/squirefs/squire/sqfs"
)

func catCommand() *cobra.Command {
	var offset int64
	cmd := &cobra.Command{
		Use:               "cat [flags] IMAGE PATH...",
		Short:             "Print files from an image",
		Args:              needArgs(2, -1),
		ValidArgsFunction: completeImage,
		RunE: func(c *cobra.Command, args []string) error {
			img, done, err := openSquashfs(args[0], offset)
			if err != nil {
				return err
			}
			defer done()
			for _, name := range args[1:] {
				if err := cat(c.OutOrStdout(), img, name); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().Int64Var(&offset, "offset", 0, "the image starts at this byte of the file")
	return cmd
}

func cat(w io.Writer, img *sqfs.Image, name string) error {
	fi, err := img.Stat(inImage(name))
	if err != nil {
		return notIn(name, err)
	}
	if !fi.Mode().IsRegular() {
		return fmt.Errorf("%s: not a regular file", printable(name))
	}
	ino, ok := fi.Sys().(*sqfs.Inode)
	if !ok {
		return fmt.Errorf("%s: not a file of an image", printable(name))
	}
	f, err := img.File(ino)
	if err != nil {
		return fmt.Errorf("%s: %w", printable(name), err)
	}
	// Whole blocks at a time: a part of one costs as much to decode as all.
	buf := make([]byte, img.Superblock().BlockSize)
	for off := int64(0); off < f.Size(); off += int64(len(buf)) {
		n, err := f.ReadAt(buf, off)
		if _, werr := w.Write(buf[:n]); werr != nil {
			return werr
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("%s: %w", printable(name), err)
		}
	}
	return nil
}
