package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/squirefs/squire/sqfs"
)

type lsOptions struct {
	long      bool
	recursive bool
	json      bool
	total     bool
	human     bool
	offset    int64
}

func lsCommand() *cobra.Command {
	var o lsOptions
	cmd := &cobra.Command{
		Use:   "ls [flags] IMAGE [PATH...]",
		Short: "List files in an image",
		Long: `List the directory PATH (default /) of an image, or the file PATH itself.
A PATH may have wildcards, as for "squire extract": then it stands for all that
it matches, and directories are listed as themselves. With wildcards or several
PATHs all names are shown from the root of the image on.

Bytes of names that do not print are shown as \ooo. In long listings a + behind
the mode tells of extended attributes; --json has their names.

Exit status: 0 if all was listed, 1 if some of it is damaged or not there, 125 if
there is no image or a PATH has no sense.`,
		Example: `  squire ls -l pytorch.sqsh /usr/bin
  squire ls -R --json pytorch.sqsh | jq -r .[].path
  squire ls pytorch.sqsh '/usr/lib/*/libcuda*'`,
		Args:              needArgs(1, -1),
		ValidArgsFunction: completeImageOnly,
		RunE: func(c *cobra.Command, args []string) error {
			return o.run(c, args[0], args[1:])
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&o.long, "long", "l", false, "show mode, links, owner, size, time and link target")
	// As in ls(1), -h is not for help, which cobra would take it for.
	f.Bool("help", false, "help for ls")
	f.BoolVarP(&o.human, "human", "h", false, "with -l: show sizes in KiB, MiB and so on")
	f.BoolVarP(&o.recursive, "recursive", "R", false, "list what is below as well, with paths")
	f.BoolVar(&o.json, "json", false, "print a JSON array, one line an entry")
	f.BoolVar(&o.total, "total", false, "at the end, print the number of paths and the size of the files")
	f.Int64Var(&o.offset, "offset", 0, "the image starts at this byte of the file")
	cmd.MarkFlagsMutuallyExclusive("json", "total")
	return cmd
}

// entry is one file of a listing, in the form of --json.
type entry struct {
	Path    string `json:"path"`            // from the root of the image, without the first slash
	Bytes   []byte `json:"bytes,omitempty"` // the path again, in base64, if it is not UTF-8
	Type    string `json:"type"`
	Mode    string `json:"mode"` // octal, 07777
	UID     uint32 `json:"uid"`
	GID     uint32 `json:"gid"`
	Size    int64  `json:"size"`
	MTime   string `json:"mtime"`
	Links   uint32 `json:"nlink"`
	Inode   uint32 `json:"inode"`
	Target  string `json:"target,omitempty"`
	ToBytes []byte `json:"target_bytes,omitempty"` // the target again, in base64, if it is not UTF-8
	Device  string `json:"device,omitempty"`       // major:minor

	Xattrs []string `json:"xattrs,omitempty"` // names of extended attributes

	mode fs.FileMode
}

// lister prints the entries of one listing.
type lister struct {
	lsOptions
	img   *sqfs.Image
	w     *bufio.Writer
	stop  error // of the output
	errs  problems
	n     int   // entries printed
	bytes int64 // of the files among them
}

func (o lsOptions) run(c *cobra.Command, image string, paths []string) error {
	img, done, err := openSquashfs(image, o.offset)
	if err != nil {
		return err
	}
	defer done()
	l := &lister{lsOptions: o, img: img, w: bufio.NewWriter(c.OutOrStdout())}
	if len(paths) == 0 {
		paths = []string{"/"}
	}
	files, err := findAll(img, paths, !o.long, &l.errs)
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return l.errs.tell(c)
	}
	if o.json {
		_, _ = l.w.WriteString("[") // a failed write is kept for Flush
	}
	for i := range files {
		if f := &files[i]; f.pattern != nil {
			l.matches(f.pattern)
		} else {
			l.list(f.path, &f.ino, o.json || len(paths) > 1)
		}
	}
	if o.json {
		_, _ = l.w.WriteString("\n]\n")
	}
	if o.total {
		fmt.Fprintf(l.w, "total: %s, %s (%s) in files\n", plural(int64(l.n), "path"), sizeString(l.bytes), plural(l.bytes, "byte"))
	}
	if err := l.w.Flush(); err != nil {
		return err
	}
	return l.errs.tell(c)
}

// named is what a PATH names: a file or all that a pattern matches.
type named struct {
	path    string
	ino     sqfs.Inode
	pattern *pattern // nil: a file, ino
}

// findAll finds what paths name; those that lead nowhere go to errs. A link at the end of
// a path is followed if follow is set. The error is that a path has no sense.
func findAll(img *sqfs.Image, paths []string, follow bool, errs *problems) (all []named, err error) {
	for _, name := range paths {
		ino, nowhere := lookup(img, name, follow)
		p, err := newPattern(img, name)
		switch {
		case nowhere == nil && name != "":
			all = append(all, named{path: name, ino: ino})
		case err != nil:
			return nil, err
		case !p.wild():
			errs.add(nowhere)
		case p.find(img, nil):
			all = append(all, named{path: name, pattern: &p})
		default:
			errs.add(p.missing(img))
		}
	}
	return all, nil
}

// list prints a directory's entries, or a file. Paths are from the root of the image
// if whole is set; else from the directory asked for.
func (l *lister) list(name string, ino *sqfs.Inode, whole bool) {
	base := inImage(name)
	if ino.Type != sqfs.TypeDir {
		l.print(base, ino)
		return
	}
	prefix := ""
	if whole && base != "." {
		prefix = base + "/"
	}
	for v, err := range l.img.Walk(ino) {
		switch {
		case l.stop != nil:
			return
		case err != nil:
			l.errs.add(at(inImage(base+"/"+string(v.Path)), err))
		case v.Depth > 0 && !v.Leave:
			l.print(prefix+string(v.Path), &v.Inode)
			if !l.recursive {
				v.Skip()
			}
		}
	}
}

// matches prints what a pattern matches.
func (l *lister) matches(p *pattern) {
	p.find(l.img, func(v *sqfs.Visit, err error) bool {
		if err != nil {
			l.errs.add(at(string(v.Path), err))
		} else if v.Depth == len(p.names) || l.recursive {
			l.print(string(v.Path), &v.Inode)
		}
		if !l.recursive && v.Depth == len(p.names) {
			v.Skip()
		}
		return l.stop == nil
	})
}

// print prints an entry. After a failed write it prints no more.
func (l *lister) print(name string, ino *sqfs.Inode) {
	l.n++
	if ino.Type == sqfs.TypeFile {
		l.bytes += ino.Size
	}
	if !l.long && !l.json {
		_, l.stop = fmt.Fprintln(l.w, printable(name))
		return
	}
	e := l.entry(name, ino)
	if l.json {
		l.stop = l.printJSON(&e)
	} else {
		l.stop = l.printLong(&e)
	}
}

func (l *lister) printLong(e *entry) error {
	size := fmt.Sprint(e.Size)
	if l.human {
		size = sizeString(e.Size)
	}
	if e.Device != "" {
		size = strings.Replace(e.Device, ":", ", ", 1)
	}
	mode := modeString(e.mode) + " "
	links := fmt.Sprintf("%3d", e.Links)
	if len(e.Xattrs) > 0 {
		mode, links = modeString(e.mode)+"+ ", fmt.Sprintf("%2d", e.Links)
	}
	_, err := fmt.Fprintf(l.w, "%s%s %-11s %10s %s %s", mode, links,
		fmt.Sprintf("%d/%d", e.UID, e.GID), size, e.MTime[:10]+" "+e.MTime[11:16], printable(e.Path))
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
	if l.n > 1 {
		sep = ",\n"
	}
	_, err = l.w.WriteString(sep + string(b))
	return err
}

// entry describes an inode. What of it is damaged is left out and told at the end.
func (l *lister) entry(name string, ino *sqfs.Inode) entry {
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
			l.errs.add(at(name, err))
		}
		if e.Target = string(to); !utf8.Valid(to) {
			e.ToBytes = to
		}
	case sqfs.TypeBlock, sqfs.TypeChar:
		// new_decode_dev in include/linux/kdev_t.h
		e.Device = fmt.Sprintf("%d:%d", ino.Rdev>>8&0xfff, ino.Rdev&0xff|ino.Rdev>>12&0xfff00)
	}
	for x, err := range l.img.Xattrs(ino) {
		if err != nil {
			l.errs.add(at(name, err))
			break
		}
		e.Xattrs = append(e.Xattrs, x.Name)
	}
	return e
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
	ino, err := img.Resolve(name, follow)
	if err != nil {
		return ino, notIn(name, err)
	}
	return ino, nil
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
		if r == utf8.RuneError && n <= 1 || !unicode.IsPrint(r) || r == '\\' {
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
