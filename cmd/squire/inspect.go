package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/squirefs/squire/runtime"
	"github.com/squirefs/squire/sqfs"
	"github.com/squirefs/squire/sqfs/oci"
	"github.com/squirefs/squire/sqfs/verify"
)

// imageInfo is what inspect tells, in the form of its --json.
type imageInfo struct {
	Image       string            `json:"image"`
	Offset      int64             `json:"offset,omitempty"`
	Bytes       int64             `json:"bytes"`
	Compression string            `json:"compression"`
	Options     map[string]string `json:"compressor_options,omitempty"` // as the writer recorded them
	BlockSize   uint32            `json:"block_size"`
	Created     time.Time         `json:"created"`
	Inodes      uint32            `json:"inodes"`
	Fragments   uint32            `json:"fragments"`
	IDs         uint16            `json:"ids"`
	Xattrs      bool              `json:"xattrs"`
	Exportable  bool              `json:"exportable"`
	Flags       []string          `json:"flags"`
	Superblock  superblockInfo    `json:"superblock"`

	Import      *oci.Record `json:"import,omitempty"` // what the image was made from, if that was noted in it
	ImportError string      `json:"import_error,omitempty"`

	Contents *contentsInfo `json:"contents,omitempty"` // missing if the image cannot be opened
	Data     *blocksInfo   `json:"data_blocks,omitempty"`
	Packed   *blocksInfo   `json:"fragment_blocks,omitempty"`
	Tables   []tableInfo   `json:"tables,omitempty"`
	Verified bool          `json:"verified"` // all blocks were expanded; see damage for what came of it
	Damage   []damageInfo  `json:"damage,omitempty"`
	Damaged  int64         `json:"damage_count"`
	Error    string        `json:"error,omitempty"` // why the image cannot be opened

	bound   listBound               // of Damage
	options []sqfs.CompressorOption // in the order of the image
}

// superblockInfo is the superblock as it is, in numbers.
type superblockInfo struct {
	MkfsTime       uint32 `json:"mkfs_time"`
	Compression    uint16 `json:"compression"`
	Flags          uint16 `json:"flags"`
	Root           uint64 `json:"root_inode"`
	BytesUsed      int64  `json:"bytes_used"`
	InodeTable     int64  `json:"inode_table"` // positions are byte offsets in the image, -1 for none
	DirectoryTable int64  `json:"directory_table"`
	FragmentTable  int64  `json:"fragment_table"`
	ExportTable    int64  `json:"export_table"`
	IDTable        int64  `json:"id_table"`
	XattrTable     int64  `json:"xattr_table"`
}

// contentsInfo is what is in an image.
type contentsInfo struct {
	Files       int64 `json:"files"`
	Directories int64 `json:"directories"`
	Symlinks    int64 `json:"symlinks"`
	Block       int64 `json:"block_devices"`
	Char        int64 `json:"character_devices"`
	Fifos       int64 `json:"fifos"`
	Sockets     int64 `json:"sockets"`
	HardLinks   int64 `json:"hard_links"` // further names of an inode
	Paths       int64 `json:"paths"`
	FileBytes   int64 `json:"file_bytes"` // lengths of all files
	Holes       int64 `json:"holes"`      // blocks that are not on disk
	HoleBytes   int64 `json:"hole_bytes"`
	Shared      int64 `json:"shared_blocks"` // blocks of files that another has too
	Tails       int64 `json:"tails"`         // files that end in a fragment block
	TailBytes   int64 `json:"tail_bytes"`
	WithXattrs  int64 `json:"inodes_with_xattrs"`
	XattrSets   int64 `json:"xattr_sets"`
}

// blocksInfo is what the blocks of one kind are.
type blocksInfo struct {
	Blocks   int64     `json:"blocks"`
	Stored   int64     `json:"stored"` // of these: not compressed
	Bytes    int64     `json:"bytes"`
	Expanded int64     `json:"expanded_bytes"` // of fragment blocks: up to their last tail
	Sizes    [10]int64 `json:"size_histogram"` // blocks by size on disk: up to 10%, 20% … 100% of their length
}

type tableInfo struct {
	Name     string `json:"name"`
	Start    int64  `json:"start"`
	Bytes    int64  `json:"bytes"`
	Rows     uint64 `json:"rows,omitempty"`
	Blocks   int64  `json:"blocks,omitempty"` // the rest is known with --verify
	Stored   int64  `json:"stored,omitempty"`
	Expanded int64  `json:"expanded_bytes,omitempty"`
}

// damageInfo is something that cannot be read.
type damageInfo struct {
	Path      string `json:"path"` // from the root of the image; missing for what is no file
	PathBytes []byte `json:"path_bytes,omitempty"`
	Paths     int64  `json:"paths"` // how many are concerned, of which path is the first
	Inode     uint32 `json:"inode,omitempty"`
	Block     *int64 `json:"block,omitempty"`  // of the file
	Off       *int64 `json:"offset,omitempty"` // in the image
	Error     string `json:"error"`
}

type inspectOptions struct {
	json       bool
	offset     int64
	verify     bool
	processors int
	quiet      bool
}

func inspectCommand() *cobra.Command {
	var o inspectOptions
	cmd := &cobra.Command{
		Use:   "inspect [flags] IMAGE",
		Short: "Show what an image is, and whether it is sound",
		Long: `Show the superblock of an image, what it contains and how well it is compressed.
For this the tree is walked, but no file is read. Of an image that "squire import" or
enroot made, it is told what it was made from, and how that wants to be run.

With --verify every block of the image is expanded once, and what is damaged is
listed: the path, or the first of several, the inode, the block of the file, the
byte of the image, and what is wrong. Squashfs has no checksums of its own: with
gzip and xz nearly every change of a byte is found, with other compressors most;
in what is stored uncompressed none that keeps the format.

Exit status: 0 if nothing damaged was found, 1 if something was, 128+N if signal N
interrupted it, 125 if there is no image or none of a kind that can be read.`,
		Example: `  squire inspect pytorch.sqsh
  squire inspect --verify pytorch.sqsh
  squire inspect --json pytorch.sqsh | jq .contents.file_bytes`,
		Args:              needArgs(1, 1),
		ValidArgsFunction: completeImageOnly,
		RunE:              func(c *cobra.Command, args []string) error { return o.run(c, args[0]) },
	}
	f := cmd.Flags()
	f.BoolVar(&o.json, "json", false, "print JSON")
	f.BoolVar(&o.verify, "verify", false, "expand everything, and list what is damaged")
	f.IntVarP(&o.processors, "processors", "j", 0, "with --verify: how many processors expand blocks (0: all)")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "no progress")
	f.Int64Var(&o.offset, "offset", 0, "the image starts at this byte of the file")
	return cmd
}

func (o *inspectOptions) run(c *cobra.Command, name string) error {
	if err := checkProcessors(o.processors); err != nil {
		return err
	}
	info := imageInfo{Image: name, Offset: o.offset}
	img, done, err := openSquashfs(name, o.offset)
	if err != nil {
		return o.refused(c, &info, err)
	}
	defer done()
	info.describe(img.Superblock())
	info.options, _ = img.CompressorOptions() // nothing depends on them
	if info.Import, err = oci.ReadRecord(img); err != nil {
		info.ImportError = err.Error()
	}
	ctx, stop := untilSignal(c.Context())
	defer stop()
	if err := o.look(ctx, c, img, &info); err != nil {
		fmt.Fprintln(c.ErrOrStderr(), "squire: interrupted")
		return interrupted(ctx)
	}
	return o.print(c, &info)
}

// refused tells what there is to tell of an image that cannot be opened: of a damaged
// one the superblock. err says why it cannot.
func (o *inspectOptions) refused(c *cobra.Command, info *imageInfo, err error) error {
	if !errors.Is(err, sqfs.ErrCorrupt) && !errors.Is(err, sqfs.ErrUnsupported) {
		return err
	}
	f, ferr := openImage(info.Image)
	if ferr != nil {
		return err
	}
	defer f.Close()
	size, ferr := fileSize(f)
	if ferr != nil {
		return err
	}
	sb, _ := sqfs.ReadSuperblock(f, size-o.offset, &sqfs.Options{Offset: o.offset}) // err says what is wrong
	info.describe(sb)
	info.Error = err.Error()
	if errors.Is(err, sqfs.ErrCorrupt) {
		info.Damaged = 1
	}
	if perr := o.print(c, info); perr != nil {
		return perr
	}
	return err
}

// look walks the image, and expands it if that is asked for.
func (o *inspectOptions) look(ctx context.Context, c *cobra.Command, img *sqfs.Image, info *imageInfo) error {
	var n atomic.Int64
	total := verify.Total(img)
	m := startMeter(c.ErrOrStderr(), o.quiet || !o.verify, func() string {
		return fmt.Sprintf("[%s] %s of %s", bar(n.Load(), total), sizeString(n.Load()), sizeString(total))
	})
	defer m.close()
	r, err := verify.Run(ctx, img, &verify.Options{Data: o.verify, Workers: o.processors, Done: &n})
	if err != nil {
		return err
	}
	info.fill(r)
	info.Verified = o.verify
	return nil
}

// print prints what was found out, and returns the exit status.
func (o *inspectOptions) print(c *cobra.Command, info *imageInfo) error {
	var err error
	if o.json {
		err = printJSON(c.OutOrStdout(), info)
	} else {
		err = info.print(c.OutOrStdout())
	}
	switch {
	case err != nil:
		return err
	case info.Error != "" && info.Damaged > 0:
		fmt.Fprintln(c.ErrOrStderr(), "squire:", runtime.OneLine(errors.New(info.Error)))
		return exitError(1)
	case info.Damaged > 0:
		hint := ""
		if !info.Verified {
			hint = "; --verify looks at everything"
		}
		fmt.Fprintf(c.ErrOrStderr(), "squire: %s: damaged in %s%s\n", printable(info.Image), plural(info.Damaged, "place"), hint)
		return exitError(1)
	}
	return nil
}

// superblockFlags are the flag bits of the superblock, from the lowest up
// (squashfs_fs.h, SQUASHFS_NOI and following).
var superblockFlags = []string{
	"inodes-stored", "data-stored", "check", "fragments-stored", "no-fragments", "always-fragments",
	"duplicates-removed", "exportable", "xattrs-stored", "no-xattrs", "compressor-options", "ids-stored",
}

// describe fills in what the superblock says.
func (i *imageInfo) describe(sb sqfs.Superblock) {
	i.Bytes, i.Compression, i.BlockSize = sb.BytesUsed, sb.Compression.String(), sb.BlockSize
	i.Created = time.Unix(int64(sb.MkfsTime), 0).UTC()
	i.Inodes, i.Fragments, i.IDs = sb.Inodes, sb.Fragments, sb.IDs
	i.Xattrs, i.Exportable = sb.XattrTable >= 0, sb.ExportTable >= 0
	i.Flags = []string{}
	for bit, name := range superblockFlags {
		if sb.Flags>>bit&1 != 0 {
			i.Flags = append(i.Flags, name)
		}
	}
	i.Superblock = superblockInfo{
		MkfsTime: sb.MkfsTime, Compression: uint16(sb.Compression), Flags: sb.Flags, Root: uint64(sb.Root),
		BytesUsed: sb.BytesUsed, InodeTable: sb.InodeTable, DirectoryTable: sb.DirectoryTable,
		FragmentTable: sb.FragmentTable, ExportTable: sb.ExportTable, IDTable: sb.IDTable, XattrTable: sb.XattrTable,
	}
}

// fill fills in what a walk found.
func (i *imageInfo) fill(r *verify.Report) {
	i.Contents = &contentsInfo{
		Files: r.Types[sqfs.TypeFile], Directories: r.Types[sqfs.TypeDir], Symlinks: r.Types[sqfs.TypeSymlink],
		Block: r.Types[sqfs.TypeBlock], Char: r.Types[sqfs.TypeChar], Fifos: r.Types[sqfs.TypeFifo],
		Sockets: r.Types[sqfs.TypeSocket], HardLinks: r.HardLinks, Paths: r.Entries,
		FileBytes: r.FileBytes, Holes: r.Holes, HoleBytes: r.HoleBytes, Shared: r.Shared,
		Tails: r.Tails, TailBytes: r.TailBytes, WithXattrs: r.WithXattrs, XattrSets: r.XattrSets,
	}
	i.Data = blocksOf(&r.Data, r.Data.Expanded)
	i.Packed = blocksOf(&r.Fragments, r.TailRoom)
	for _, t := range r.Tables {
		i.Tables = append(i.Tables, tableInfo(t))
	}
	if len(i.options) > 0 {
		i.Options = make(map[string]string)
	}
	for _, o := range i.options {
		i.Options[o.Name] = o.Value
	}
	for _, d := range r.Damage {
		i.add(d)
	}
	i.Damaged += r.DamageCount - int64(len(r.Damage))
}

func blocksOf(s *verify.BlockStat, expanded int64) *blocksInfo {
	return &blocksInfo{Blocks: s.Blocks, Stored: s.Stored, Bytes: s.Bytes, Expanded: expanded, Sizes: s.Sizes}
}

// add adds to the list of damage.
func (i *imageInfo) add(d verify.Damage) {
	i.Damaged++
	if !i.bound.admit(d.Path, d.Err.Error()) {
		return
	}
	info := damageInfo{Path: d.Path, Paths: d.Paths, Inode: d.Inode, Error: d.Err.Error()}
	if !utf8.ValidString(d.Path) {
		info.PathBytes = []byte(d.Path)
	}
	if d.Block >= 0 {
		info.Block = &d.Block
	}
	if d.Off >= 0 {
		info.Off = &d.Off
	}
	i.Damage = append(i.Damage, info)
}

func (i *imageInfo) print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	row := func(name string, value any) { fmt.Fprintf(t, "%s:\t%v\n", name, value) }
	row("Image", printable(i.Image))
	if i.Offset != 0 {
		row("Offset", i.Offset)
	}
	row("Size", fmt.Sprintf("%s (%d bytes)", sizeString(i.Bytes), i.Bytes))
	row("Format", "squashfs 4.0, "+i.Compression+", blocks of "+sizeString(int64(i.BlockSize)))
	if len(i.options) > 0 {
		row("Options", i.optionString())
	}
	row("Created", i.Created.Format(time.RFC3339))
	row("Inodes", i.Inodes)
	row("Fragments", i.Fragments)
	row("Owner ids", i.IDs)
	row("Xattrs", yesNo(i.Xattrs))
	row("Exportable", yesNo(i.Exportable))
	row("Flags", strings.Join(i.Flags, ", "))
	if i.Contents != nil {
		i.Contents.print(row)
		i.printData(row)
	}
	if i.Import != nil {
		printRecord(i.Import, row)
	} else if i.ImportError != "" {
		row("Imported from", "cannot be told: "+runtime.OneLine(plain(errors.New(i.ImportError))))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if i.Data != nil {
		i.printTables(w)
		i.printSizes(w)
	}
	return i.printDamage(w)
}

func (i *imageInfo) optionString() string {
	var parts []string
	for _, o := range i.options {
		if o.Value != "" {
			parts = append(parts, o.Name+" "+o.Value)
		}
	}
	return strings.Join(parts, ", ")
}

func (c *contentsInfo) print(row func(string, any)) {
	var parts []string
	for _, k := range []struct {
		n         int64
		one, many string
	}{
		{c.Files, "file", "files"},
		{c.Directories, "directory", "directories"},
		{c.Symlinks, "symlink", "symlinks"},
		{c.Block, "block device", "block devices"},
		{c.Char, "character device", "character devices"},
		{c.Fifos, "fifo", "fifos"},
		{c.Sockets, "socket", "sockets"},
		{c.HardLinks, "hard link", "hard links"},
	} {
		switch {
		case k.n == 1:
			parts = append(parts, "1 "+k.one)
		case k.n > 1:
			parts = append(parts, fmt.Sprintf("%d %s", k.n, k.many))
		}
	}
	row("Contents", strings.Join(parts, ", "))
	if c.WithXattrs > 0 {
		row("With xattrs", fmt.Sprintf("%s, %s", plural(c.WithXattrs, "inode"), plural(c.XattrSets, "different set")))
	}
}

// printData says how much the data of files is, and what became of it.
func (i *imageInfo) printData(row func(string, any)) {
	c, onDisk := i.Contents, i.Data.Bytes+i.Packed.Bytes
	row("File data", fmt.Sprintf("%s in %s on disk (%s)", sizeString(c.FileBytes), sizeString(onDisk), percent(onDisk, c.FileBytes)))
	if i.Data.Blocks+c.Holes > 0 {
		row("Data blocks", fmt.Sprintf("%d (%d compressed, %d stored), %d holes, %d shared",
			i.Data.Blocks, i.Data.Blocks-i.Data.Stored, i.Data.Stored, c.Holes, c.Shared))
	}
	if i.Packed.Blocks > 0 {
		row("Fragment blocks", fmt.Sprintf("%d (%d compressed, %d stored), %s full, with the ends of %s",
			i.Packed.Blocks, i.Packed.Blocks-i.Packed.Stored, i.Packed.Stored,
			percent(i.Packed.Expanded, i.Packed.Blocks*int64(i.BlockSize)), plural(c.Tails, "file")))
	}
}

func (i *imageInfo) printTables(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "\nTable\tStart\tBytes\tRows\t")
	for _, x := range i.Tables {
		rows := ""
		if x.Rows > 0 {
			rows = fmt.Sprint(x.Rows)
		}
		fmt.Fprintf(t, "%s\t%#x\t%d\t%s\t\n", x.Name, x.Start, x.Bytes, rows)
	}
	_ = t.Flush() // a failed write fails again at the next
}

// printSizes draws how many blocks were compressed how well.
func (i *imageInfo) printSizes(w io.Writer) {
	var all [10]int64
	most := int64(0)
	for k := range all {
		all[k] = i.Data.Sizes[k] + i.Packed.Sizes[k]
		most = max(most, all[k])
	}
	if most == 0 {
		return
	}
	fmt.Fprintln(w, "\nSize of blocks on disk, of their length:")
	for k, n := range all {
		fmt.Fprintf(w, "  %3d%% %8d %s\n", 10*(k+1), n, strings.Repeat("#", int(n*40/most)))
	}
}

func (i *imageInfo) printDamage(w io.Writer) error {
	if i.Verified && i.Damaged == 0 {
		_, err := fmt.Fprintln(w, "\nVerified: all of it can be read")
		return err
	}
	if len(i.Damage) > 0 {
		fmt.Fprintln(w, "\nDamaged:")
	}
	told := i.Damage[:min(len(i.Damage), maxTold)]
	for _, d := range told {
		if _, err := fmt.Fprintln(w, " ", d); err != nil {
			return err
		}
	}
	if more := i.Damaged - int64(len(told)); more > 0 && len(told) > 0 {
		fmt.Fprintln(w, " ", andMore(more))
	}
	return nil
}

// String is damage in one line.
func (d damageInfo) String() string {
	var parts []string
	switch {
	case d.Paths > 0 && d.Path == "":
		parts = append(parts, "/")
	case d.Paths > 1:
		parts = append(parts, fmt.Sprintf("%s and %s", shownPath(d.Path), plural(d.Paths-1, "other path")))
	case d.Paths == 1:
		parts = append(parts, shownPath(d.Path))
	}
	where := ""
	if d.Inode != 0 {
		where = fmt.Sprintf("inode %d", d.Inode)
	}
	if d.Block != nil {
		where += fmt.Sprintf(", block %d", *d.Block)
	}
	if where != "" {
		parts = append(parts, where)
	}
	parts = append(parts, runtime.OneLine(errors.New(d.Error)))
	return strings.Join(parts, ": ")
}

// percent is n of total.
func percent(n, total int64) string {
	if total == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f%%", 100*float64(n)/float64(total))
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// sizeString writes a number of bytes for people.
func sizeString(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, u := float64(n)/1024, 0
	for f >= 1023.95 && u < len(units)-1 {
		f /= 1024
		u++
	}
	return fmt.Sprintf("%s %ciB", strings.TrimSuffix(fmt.Sprintf("%.1f", f), ".0"), units[u])
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}
