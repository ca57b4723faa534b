package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/squirefs/squire/sqfs"
	"github.com/squirefs/squire/sqfs/trace"
)

func traceCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "trace",
		Short: "Make images start faster by what they read first",
		Long: `A trace says which blocks of an image are read first, and in what order. Where
there is one, "squire run" and "squire mount" decode them in the background,
ahead of whoever wants them.

The first command that reads more than a little of an image records a trace by
itself, in the cache directory of the user: what is read until nothing has been
read for 10 seconds, for at most two minutes. A later command of which the trace
had no more than half adds to it.

Traces are looked for beside the image, in IMAGE.trace, then in the cache
directory: $SQUIRE_CACHE_DIR/traces, or else /var/cache/squire/traces for root and
$XDG_CACHE_HOME/squire/traces (~/.cache/squire/traces) for others, who look into
root's at last. There they go by the image's superblock, whatever the image is
called. A trace of another image, or of what the image was before it was changed,
is left alone. The cache directory keeps up to 256 traces, 32 MiB in all. It is made if
it is missing, and its parent, but none above that, and no parent of one that the site
names in squire.toml. SQUIRE_CACHE_DIR is an absolute path.
Where that is set, root's traces are not used.

"squire run --no-trace", "squire mount -o notrace" and SQUIRE_TRACE=0 go without.`,
		Args: needCommand,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	cmd.AddCommand(traceRecordCommand(), traceShowCommand(), traceApplyCommand(), traceRemoveCommand())
	return cmd
}

// completeTrace completes an image and, behind it, a trace.
func completeTrace(c *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	switch len(args) {
	case 0:
		images, directive := completeImage(c, args, word)
		if c.Name() == "show" {
			images = append(images, "trace")
		}
		return images, directive
	case 1:
		return []string{"trace"}, cobra.ShellCompDirectiveFilterFileExt
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}

// readTrace reads the trace in a file.
func readTrace(name string) (*trace.Trace, error) {
	f, err := openTrace(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	t, err := trace.Read(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return t, nil
}

// tracedImage is an image with its key, opened for a look at its trace.
type tracedImage struct {
	name string
	file *os.File
	img  *sqfs.Image
	key  trace.Key
}

func openTraced(name string, offset int64) (*tracedImage, error) {
	file, err := openImage(name)
	if err != nil {
		return nil, err
	}
	i := &tracedImage{name: name, file: file}
	if i.img, err = newImage(file, file, offset, 0); err == nil {
		i.key, err = imageKey(file, offset)
	}
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return i, nil
}

func (i *tracedImage) close() {
	i.img.Close()
	i.file.Close()
}

// tracedFile is a file of which a trace has blocks, in the form of --json.
type tracedFile struct {
	Path   string `json:"path"`
	Bytes  []byte `json:"path_bytes,omitempty"` // the path, if it is not UTF-8
	Blocks int    `json:"blocks"`
	Size   int64  `json:"bytes"` // in these blocks
}

// tracedFiles are the files of a trace, in the order in which they were read first.
type tracedFiles struct {
	Image   string       `json:"image,omitempty"`
	Trace   string       `json:"trace"`
	Created string       `json:"image_created"`
	Length  int64        `json:"image_bytes"`
	Inodes  uint32       `json:"image_inodes"`
	Blocks  int          `json:"blocks"`
	Size    int64        `json:"bytes"`
	Files   []tracedFile `json:"files,omitempty"`
	Unknown int          `json:"unknown_blocks"` // that the image does not have
}

// describe fills in what a trace says by itself.
func describe(name string, t *trace.Trace) *tracedFiles {
	return &tracedFiles{
		Trace: name, Blocks: len(t.Touches), Length: t.Image.BytesUsed, Inodes: t.Image.Inodes,
		Created: time.Unix(int64(t.Image.MkfsTime), 0).UTC().Format(time.RFC3339),
	}
}

// files finds out what a trace of the image is about. The tree is walked once, as
// inodes do not know their names; of several links the first counts.
func (i *tracedImage) files(name string, t *trace.Trace) (*tracedFiles, error) {
	list := describe(name, t)
	list.Image, list.Unknown = i.name, len(t.Touches)
	at := make(map[sqfs.InodeRef]int) // index in order
	var order [][]uint32              // blocks of each file
	for _, touch := range t.Touches {
		n, ok := at[touch.Ref]
		if !ok {
			n = len(order)
			at[touch.Ref], order = n, append(order, nil)
		}
		order[n] = append(order[n], touch.Block)
	}
	all := make([]tracedFile, len(order))
	root, err := i.img.Inode(i.img.Root())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", i.name, err)
	}
	for v, err := range i.img.Walk(&root) {
		n, ok := at[v.Inode.Ref]
		if err != nil || !ok || v.Inode.Type != sqfs.TypeFile {
			continue // what is damaged cannot be in a trace
		}
		all[n] = newTracedFile(i.img, v, order[n])
		if delete(at, v.Inode.Ref); len(at) == 0 {
			break
		}
	}
	for _, f := range all {
		if f.Blocks > 0 {
			list.Files = append(list.Files, f)
			list.Size += f.Size
			list.Unknown -= f.Blocks
		}
	}
	return list, nil
}

// newTracedFile looks at those of the blocks that a file really has.
func newTracedFile(img *sqfs.Image, v *sqfs.Visit, blocks []uint32) tracedFile {
	f := tracedFile{Path: string(v.Path)}
	if !utf8.Valid(v.Path) {
		f.Bytes = []byte(f.Path)
	}
	file, err := img.File(&v.Inode)
	if err != nil {
		return f
	}
	for _, b := range blocks {
		if int64(b) >= file.NumBlocks() {
			continue
		}
		if e, err := file.Extent(int64(b)); err == nil {
			f.Blocks++
			f.Size += int64(e.Len)
		}
	}
	return f
}

// summary is one line about it.
func (l *tracedFiles) summary() string {
	return fmt.Sprintf("%s, %s, of %s", plural(int64(l.Blocks-l.Unknown), "block"), sizeString(l.Size), plural(int64(len(l.Files)), "file"))
}

type traceShowOptions struct {
	json   bool
	offset int64
}

func traceShowCommand() *cobra.Command {
	var o traceShowOptions
	cmd := &cobra.Command{
		Use:   "show [flags] IMAGE [FILE] | FILE",
		Short: "Show which files a trace is about",
		Long: `List the files of a trace in the order in which they are read, with the number of
their blocks and the bytes in these. The trace is that which would be used for
IMAGE, or the one in FILE; of a FILE alone only what it says by itself is shown.`,
		Example: `  squire trace show pytorch.sqsh
  squire trace show pytorch.sqsh train.trace
  squire trace show train.trace`,
		Args:              needArgs(1, 2),
		ValidArgsFunction: completeTrace,
		RunE:              func(c *cobra.Command, args []string) error { return o.run(c.OutOrStdout(), args) },
	}
	cmd.Flags().BoolVar(&o.json, "json", false, "print it as JSON")
	cmd.Flags().Int64Var(&o.offset, "offset", 0, "the image starts at this byte of the file")
	return cmd
}

func (o *traceShowOptions) run(w io.Writer, args []string) error {
	if len(args) == 1 && isTrace(args[0]) {
		t, err := readTrace(args[0])
		if err != nil {
			return err
		}
		return o.print(w, describe(args[0], t))
	}
	img, err := openTraced(args[0], o.offset)
	if err != nil {
		return err
	}
	defer img.close()
	var name string
	var t *trace.Trace
	if len(args) == 2 {
		name = args[1]
		t, err = img.read(name)
	} else {
		name, t, err = img.find(o.offset)
	}
	if err != nil {
		return err
	}
	list, err := img.files(name, t)
	if err != nil {
		return err
	}
	return o.print(w, list)
}

// isTrace reports whether a file begins as traces do.
func isTrace(name string) bool {
	f, err := openTrace(name)
	if err != nil {
		return false
	}
	defer f.Close()
	head := make([]byte, len(trace.Magic))
	_, err = f.ReadAt(head, 0)
	return err == nil && string(head) == trace.Magic
}

// read reads a trace of the image.
func (i *tracedImage) read(name string) (*trace.Trace, error) {
	t, err := readTrace(name)
	if err != nil {
		return nil, err
	}
	sb := i.img.Superblock()
	if t.Image != sb {
		return nil, fmt.Errorf("%s: is the trace of another image than %s, or of what it was before", name, i.name)
	}
	return t, nil
}

// find finds the trace that a mount would use.
func (i *tracedImage) find(offset int64) (name string, t *trace.Trace, err error) {
	sb := i.img.Superblock()
	files := openTraces(i.name, i.file, offset, false)
	defer closeAll(files.files)
	why := ""
	for _, f := range files.files {
		t, err := trace.Read(f)
		switch {
		case err == nil && t.Image == sb && len(t.Touches) > 0:
			return f.Name(), t, nil
		case err == nil:
			err = errors.New("trace of another image")
		case errors.Is(err, trace.ErrEmpty):
			continue
		}
		why = fmt.Sprintf(" (%s: %v)", f.Name(), err)
	}
	return "", nil, fmt.Errorf(`%s: there is no trace of it%s; make one with "squire trace record"`, i.name, why)
}

func (o *traceShowOptions) print(w io.Writer, l *tracedFiles) error {
	if o.json {
		return printJSON(w, l)
	}
	out := bufio.NewWriter(w)
	fmt.Fprintf(out, "trace     %s\n", printable(l.Trace))
	if l.Image == "" {
		fmt.Fprintf(out, "of        an image of %s, %d inodes, made %s\n", sizeString(l.Length), l.Inodes, l.Created)
		fmt.Fprintf(out, "contents  %s\n", plural(int64(l.Blocks), "block"))
		return out.Flush()
	}
	fmt.Fprintf(out, "of        %s\ncontents  %s\n", printable(l.Image), l.summary())
	if l.Unknown > 0 {
		fmt.Fprintf(out, "unknown   %s that the image does not have\n", plural(int64(l.Unknown), "block"))
	}
	fmt.Fprintf(out, "\n%6s %11s  path\n", "blocks", "bytes")
	for _, f := range l.Files {
		fmt.Fprintf(out, "%6d %11d  %s\n", f.Blocks, f.Size, printable(f.Path))
	}
	return out.Flush()
}

type traceApplyOptions struct {
	sidecar bool
	offset  int64
}

func traceApplyCommand() *cobra.Command {
	var o traceApplyOptions
	cmd := &cobra.Command{
		Use:   "apply [flags] IMAGE FILE",
		Short: "Make a trace the one that is used for an image",
		Long: `Check that the trace in FILE is of IMAGE, and put it into the cache directory in
place of the one that is there, or with --sidecar beside the image, where it is used
by everybody who uses that.`,
		Example: `  squire trace apply pytorch.sqsh train.trace
  squire trace apply --sidecar pytorch.sqsh train.trace`,
		Args:              needArgs(2, 2),
		ValidArgsFunction: completeTrace,
		RunE:              func(c *cobra.Command, args []string) error { return o.run(c.ErrOrStderr(), args[0], args[1]) },
	}
	cmd.Flags().BoolVar(&o.sidecar, "sidecar", false, "put it beside the image, as IMAGE.trace")
	cmd.Flags().Int64Var(&o.offset, "offset", 0, "the image starts at this byte of the file")
	return cmd
}

func (o *traceApplyOptions) run(stderr io.Writer, image, name string) error {
	img, err := openTraced(image, o.offset)
	if err != nil {
		return err
	}
	defer img.close()
	t, err := img.read(name)
	if err != nil {
		return err
	}
	list, err := img.files(name, t)
	if err != nil {
		return err
	}
	if list.Unknown > 0 {
		return fmt.Errorf("%s: %d of %s are not in %s", name, list.Unknown, plural(int64(list.Blocks), "block"), image)
	}
	if o.sidecar {
		var place *tracePlace
		if place, err = placeBeside(image, img.file); err != nil {
			return err
		}
		return place.write(t)
	}
	kept, err := img.keep(t)
	if err == nil {
		img.sayUsed(stderr, o.offset, kept)
	}
	return err
}

// sayUsed says which trace a mount would use, if it is another than was meant: one
// beside the image comes first, root's last.
func (i *tracedImage) sayUsed(w io.Writer, offset int64, meant string) {
	if name, _, err := i.find(offset); err == nil && name != meant {
		fmt.Fprintf(w, "squire: what is used for %s is %s\n", printable(i.name), printable(name))
	}
}

// keep puts a trace of the image into the cache directory and returns its path.
func (i *tracedImage) keep(t *trace.Trace) (string, error) {
	s, err := openCache(true)
	if err != nil {
		return "", err
	}
	defer s.Close()
	return s.Path(i.key), s.Put(i.key, t)
}

type traceRemoveOptions struct {
	all    bool
	offset int64
}

func traceRemoveCommand() *cobra.Command {
	var o traceRemoveOptions
	cmd := &cobra.Command{
		Use:     "rm [flags] IMAGE...",
		Aliases: []string{"remove"},
		Short:   "Remove traces from the cache directory",
		Long: `Remove the traces of images from the cache directory, so that others are recorded.
The one beside an image is a file like others, and stays; which one is used then is
said.`,
		Example: `  squire trace rm pytorch.sqsh
  squire trace rm --all`,
		ValidArgsFunction: completeImage,
		Args: func(c *cobra.Command, args []string) error {
			if o.all && len(args) > 0 {
				return errors.New("--all goes without an image")
			} else if o.all {
				return nil
			}
			return needArgs(1, -1)(c, args)
		},
		RunE: func(c *cobra.Command, args []string) error { return o.run(c.ErrOrStderr(), args) },
	}
	cmd.Flags().BoolVar(&o.all, "all", false, "remove all traces")
	cmd.Flags().Int64Var(&o.offset, "offset", 0, "the image starts at this byte of the file")
	return cmd
}

func (o *traceRemoveOptions) run(stderr io.Writer, images []string) error {
	s, err := openCache(false)
	switch missing := errors.Is(err, os.ErrNotExist); {
	case missing && o.all:
		return nil
	case err != nil && !missing:
		return err
	case !missing:
		defer s.Close()
	}
	if o.all {
		_, err := s.Clear()
		return err
	}
	for _, name := range images {
		err := o.remove(s, name)
		if img, e := openTraced(name, o.offset); e == nil {
			img.sayUsed(stderr, o.offset, "")
			img.close()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// remove removes the trace of an image, which need not be a sound one. Without a
// directory there is none.
func (o *traceRemoveOptions) remove(s *trace.Store, name string) error {
	file, err := openImage(name)
	if err != nil {
		return err
	}
	defer file.Close()
	key, err := imageKey(file, o.offset)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if s != nil {
		err = s.Remove(key)
	}
	if s == nil || errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s: there is no trace of it in the cache directory", name)
	}
	return err
}
