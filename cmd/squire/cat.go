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
		Use:   "cat [flags] IMAGE PATH...",
		Short: "Print files from an image",
		Long: `Print the files, one after the other. A PATH may have wildcards, as for
"squire extract": then all regular files that it matches are printed, in the
order of their names.

Exit status: 0 if all was printed; 1 if a file is damaged (it is printed up to
there), not there, or not a regular one; 125 if there is no image, a PATH has no
sense, or the output cannot be written.`,
		Example: `  squire cat pytorch.sqsh /etc/os-release
  squire cat pytorch.sqsh '/etc/ld.so.conf.d/*.conf'`,
		Args:              needArgs(2, -1),
		ValidArgsFunction: completeImageOnly,
		RunE: func(c *cobra.Command, args []string) error {
			img, done, err := openSquashfs(args[0], offset)
			if err != nil {
				return err
			}
			defer done()
			return catAll(c, img, args[1:])
		},
	}
	cmd.Flags().Int64Var(&offset, "offset", 0, "the image starts at this byte of the file")
	return cmd
}

// catAll prints files.
func catAll(c *cobra.Command, img *sqfs.Image, paths []string) error {
	var errs problems
	files, err := findAll(img, paths, true, &errs)
	if err != nil {
		return err
	}
	w := c.OutOrStdout()
	for i := range files {
		f := &files[i]
		switch {
		case f.pattern != nil:
			err = catMatches(w, img, f.pattern, &errs)
		case f.ino.Type != sqfs.TypeFile:
			err = fmt.Errorf("%s: not a regular file", printable(f.path))
		default:
			err = cat(w, img, f.path, &f.ino)
		}
		if errors.Is(err, errOutput) {
			return err
		} else if err != nil {
			errs.add(err)
		}
	}
	return errs.tell(c)
}

// catMatches prints the regular files that a pattern matches. What it returns is that
// they cannot be written.
func catMatches(w io.Writer, img *sqfs.Image, p *pattern, errs *problems) (stop error) {
	p.find(img, func(v *sqfs.Visit, err error) bool {
		if err == nil && v.Inode.Type == sqfs.TypeFile {
			err = cat(w, img, string(v.Path), &v.Inode)
		} else if err != nil {
			err = at(string(v.Path), err)
		}
		v.Skip() // what lies below a directory that matches was not asked for
		switch {
		case errors.Is(err, errOutput):
			stop = err
		case err != nil:
			errs.add(err)
		}
		return stop == nil
	})
	return stop
}

// errOutput says that it is no fault of the image: there is no use in going on.
var errOutput = errors.New("cannot write")

// cat prints a file, a block at a time.
func cat(w io.Writer, img *sqfs.Image, name string, ino *sqfs.Inode) error {
	f, err := img.File(ino)
	if err != nil {
		return at(name, err)
	}
	if f.NumBlocks() == 0 {
		return nil
	}
	buf := make([]byte, img.Superblock().BlockSize+sqfs.ReadSlack)
	for e, err := range f.Extents(0) {
		n := 0
		if err == nil {
			n, err = img.ReadBlock(buf, e.Block)
		}
		if err == nil && e.Start+e.Len > n {
			err = &sqfs.FormatError{What: fmt.Sprintf("fragment has %d bytes expanded, want %d", n, e.Start+e.Len), Off: e.Block.Off}
		}
		if err != nil {
			return at(name, err)
		}
		if _, err := w.Write(buf[e.Start : e.Start+e.Len]); err != nil {
			return fmt.Errorf("%w: %w", errOutput, err)
		}
	}
	return nil
}
