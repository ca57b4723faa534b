package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/squirefs/squire/sqfs"
)

type lsOptions struct {
	long      bool
	recursive bool
	json      bool
	offset    int64
}

func lsCommand() *cobra.Command {
	var o lsOptions
	cmd := &cobra.Command{
		Use:   "ls [flags] IMAGE [PATH]",
		Short: "List files in an image",
		Long: `List the directory PATH (default /) of an image, or the file PATH itself.
Bytes of names that do not print are shown as \ooo.`,
		Args:              needArgs(1, 2),
		ValidArgsFunction: completeImage,
		RunE: func(c *cobra.Command, args []string) error {
			return o.run(c.OutOrStdout(), args[0], append(args[1:], "/")[0])
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&o.long, "long", "l", false, "show mode, links, owner, size, time and link target")
	f.BoolVarP(&o.recursive, "recursive", "R", false, "list what is below as well, with paths")
	f.BoolVar(&o.json, "json", false, "print a JSON array, one line an entry")
	f.Int64Var(&o.offset, "offset", 0, "the image starts at this byte of the file")
	return cmd
}

// entry is one file of a listing, in the form of --json.
type entry struct {
	Path   string `json:"path"`            // from the root of the image, without the first slash
	Bytes  []byte `json:"bytes,omitempty"` // the path again, in base64, if it is not UTF-8
	Type   string `json:"type"`
	Mode   string `json:"mode"` // octal, 07777
	UID    uint32 `json:"uid"`
	GID    uint32 `json:"gid"`
	Size   int64  `json:"size"`
	MTime  string `json:"mtime"`
	Links  uint32 `json:"nlink"`
	Inode  uint32 `json:"inode"`
	Target string `json:"target,omitempty"`
	Device string `json:"device,omitempty"` // major:minor

	mode fs.FileMode
}

// lister prints the entries of one listing.
type lister struct {
	lsOptions
	img *sqfs.Image
	w   *bufio.Writer
	n   int // entries printed
}

func (o lsOptions) run(w io.Writer, image, name string) error {
	img, done, err := openSquashfs(image, o.offset)
	if err != nil {
		return err
	}
	defer done()
	l := &lister{lsOptions: o, img: img, w: bufio.NewWriter(w)}
	ino, err := lookup(img, name, !o.long)
	if err != nil {
		return err
	}
	if o.json {
		_, _ = l.w.WriteString("[") // a failed write is kept for Flush
	}
	err = l.list(name, &ino)
	if o.json {
		_, _ = l.w.WriteString("\n]\n")
	}
	if ferr := l.w.Flush(); err == nil {
		err = ferr
	}
	return err
}

// list prints a directory's entries, or a file. Paths in JSON are from the
// root of the image; those for people are from the directory asked for.
func (l *lister) list(name string, ino *sqfs.Inode) error {
	base := inImage(name)
	if ino.Type != sqfs.TypeDir {
		return l.print(base, ino)
	}
	if l.json && base != "." {
		return l.dir(base+"/", ino, nil)
	}
	return l.dir("", ino, nil)
}

// maxDepth bounds the depth of a listing, as a hostile image's directories may
// hold themselves. PATH_MAX/2 components is all that a path can have.
const maxDepth = 2048

// dir lists a directory whose entries' paths start with prefix. above are the
// directories on the way down.
func (l *lister) dir(prefix string, dir *sqfs.Inode, above []sqfs.InodeRef) error {
	for _, ref := range above {
		if ref == dir.Ref {
			return fmt.Errorf("%s: directory holds itself: %w", printable(prefix), sqfs.ErrCorrupt)
		}
	}
	if len(above) > maxDepth {
		return fmt.Errorf("%s: too deep", printable(prefix))
	}
	above = append(above, dir.Ref)
	for d, err := range l.img.Dirents(dir, 0) {
		if err != nil {
			return fmt.Errorf("%s: %w", printable("/"+prefix), err)
		}
		ino, err := l.img.Inode(d.Ref)
		if err != nil {
			return fmt.Errorf("%s: %w", printable(prefix+string(d.Name)), err)
		}
		name := prefix + string(d.Name)
		if err := l.print(name, &ino); err != nil {
			return err
		}
		if l.recursive && ino.Type == sqfs.TypeDir {
			if err := l.dir(name+"/", &ino, above); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *lister) print(name string, ino *sqfs.Inode) error {
	if !l.long && !l.json {
		_, err := fmt.Fprintln(l.w, printable(name))
		return err
	}
	e, err := l.entry(name, ino)
	if err != nil {
		return err
	}
	if l.json {
		return l.printJSON(&e)
	}
	size := fmt.Sprint(e.Size)
	if e.Device != "" {
		size = strings.Replace(e.Device, ":", ", ", 1)
	}
	_, err = fmt.Fprintf(l.w, "%s %3d %-11s %10s %s %s", modeString(e.mode), e.Links,
		fmt.Sprintf("%d/%d", e.UID, e.GID), size, e.MTime[:10]+" "+e.MTime[11:16], printable(name))
	if e.Target != "" {
		_, err = fmt.Fprintf(l.w, " -> %s", printable(e.Target))
	}
	fmt.Fprintln(l.w)
	return err
}

func (l *lister) printJSON(e *entry) error {
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	sep := "\n"
	if l.n++; l.n > 1 {
		sep = ",\n"
	}
	_, err = l.w.WriteString(sep + string(b))
	return err
}

func (l *lister) entry(name string, ino *sqfs.Inode) (entry, error) {
	e := entry{
		Path: name, Type: typeNames[ino.Type], Mode: fmt.Sprintf("%04o", ino.Mode), UID: ino.UID, GID: ino.GID,
		Size: ino.Size, MTime: time.Unix(int64(ino.ModTime), 0).UTC().Format(time.RFC3339),
		Links: ino.Nlink, Inode: ino.Number, mode: ino.FileMode(),
	}
	if !utf8.ValidString(name) {
		e.Bytes = []byte(name)
	}
	switch ino.Type {
	case sqfs.TypeSymlink:
		to, err := l.img.AppendLink(nil, ino)
		if err != nil {
			return e, fmt.Errorf("%s: %w", printable(name), err)
		}
		e.Target = string(to)
	case sqfs.TypeBlock, sqfs.TypeChar:
		// new_decode_dev in include/linux/kdev_t.h
		e.Device = fmt.Sprintf("%d:%d", ino.Rdev>>8&0xfff, ino.Rdev&0xff|ino.Rdev>>12&0xfff00)
	}
	return e, nil
}

var typeNames = map[sqfs.Type]string{
	sqfs.TypeDir: "directory", sqfs.TypeFile: "file", sqfs.TypeSymlink: "symlink",
	sqfs.TypeBlock: "block device", sqfs.TypeChar: "character device", sqfs.TypeFifo: "fifo", sqfs.TypeSocket: "socket",
}

// modeString is the form of ls(1), not Go's.
func modeString(m fs.FileMode) string {
	b := []byte("-rwxrwxrwx")
	for i := range 9 {
		if m>>(8-i)&1 == 0 {
			b[i+1] = '-'
		}
	}
	for _, t := range []struct {
		bit  fs.FileMode
		char byte
	}{{fs.ModeDir, 'd'}, {fs.ModeSymlink, 'l'}, {fs.ModeNamedPipe, 'p'}, {fs.ModeSocket, 's'}, {fs.ModeDevice, 'b'}, {fs.ModeCharDevice, 'c'}} {
		if m&t.bit != 0 {
			b[0] = t.char
		}
	}
	special := func(bit fs.FileMode, at int, with, without byte) {
		switch {
		case m&bit == 0:
		case b[at] == 'x':
			b[at] = with
		default:
			b[at] = without
		}
	}
	special(fs.ModeSetuid, 3, 's', 'S')
	special(fs.ModeSetgid, 6, 's', 'S')
	special(fs.ModeSticky, 9, 't', 'T')
	return string(b)
}

// lookup finds a path in an image. Links on the way are followed, the last one
// if follow says so or the path ends in a slash.
func lookup(img *sqfs.Image, name string, follow bool) (sqfs.Inode, error) {
	clean := inImage(name)
	if clean == "." {
		return img.Inode(img.Root())
	}
	stat := img.Lstat
	if follow || strings.HasSuffix(name, "/") {
		stat = img.Stat
	}
	fi, err := stat(clean)
	if err != nil {
		return sqfs.Inode{}, notIn(name, err)
	}
	return *fi.Sys().(*sqfs.Inode), nil
}

// inImage is a path in an image in the form of io/fs.
func inImage(name string) string {
	if clean := strings.TrimPrefix(path.Clean("/"+name), "/"); clean != "" {
		return clean
	}
	return "."
}

// notIn is the error of a path that could not be found in the image.
func notIn(name string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: no such file in the image", printable(name))
	}
	return unwrapPath(printable(name), err)
}

// printable shows bytes that would not print, or that a terminal would obey,
// as \ooo.
func printable(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && n <= 1 || r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 || r == '\\' {
			for _, c := range []byte(s[i : i+n]) {
				fmt.Fprintf(&b, `\%03o`, c)
			}
		} else {
			b.WriteString(s[i : i+n])
		}
		i += n
	}
	return b.String()
}
