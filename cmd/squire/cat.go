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
there), not there, or none; 125 if nothing can be printed.`,
		Example: `  squire cat pytorch.sqsh /etc/os-release
  squire cat pytorch.sqsh '/etc/ld.so.conf.d/*.conf'`,
		Args:              needArgs(2, -1),
		ValidArgsFunction: completeImage,
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

// catAll prints files. If it is asked for one only, and that cannot be begun, it
// returns the error.
func catAll(c *cobra.Command, img *sqfs.Image, names []string) error {
	w := c.OutOrStdout()
	var errs problems
	for _, name := range names {
		ino, err := lookup(img, name, true)
		if err == nil && ino.Type != sqfs.TypeFile {
			err = fmt.Errorf("%s: not a regular file", printable(name))
		}
		if err == nil {
			if err = cat(w, img, name, &ino); errors.Is(err, errOutput) {
				return err
			} else if err != nil {
				errs.add(err)
			}
			continue
		}
		if p, perr := newPattern(name); perr == nil && p.wild() && p.find(img, nil) {
			if err := catMatches(w, img, &p, &errs); err != nil {
				return err
			}
			continue
		}
		if len(names) == 1 {
			return err
		}
		errs.add(err)
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
	buf := make([]byte, img.Superblock().BlockSize)
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
