package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/squirefs/squire/runtime"
	"github.com/squirefs/squire/sqfs/layer"
	"github.com/squirefs/squire/sqfs/pack"
)

type packOptions struct {
	packFlags
	exclude       []string
	excludeFrom   []string
	allRoot       bool
	owner         string
	sort          string
	noXattrs      bool
	oneFileSystem bool
	unreadable    bool
	force         bool
	quiet         bool
	json          bool
}

func packCommand() *cobra.Command {
	var o packOptions
	cmd := &cobra.Command{
		Use:   "pack [flags] DIR|TAR|- IMAGE",
		Short: "Make an image of a directory or a tar archive",
		Long: `Make a squashfs image of what is in a directory, or in a tar archive, from a file or
from standard input, plain or compressed with gzip or zstd.

All is packed as it is: owners, modes, times, hard links, holes, devices, attributes
user.*, trusted.* (which only root sees) and security.*. Files with the same contents
are stored once. The image depends on what is packed and on the flags, not on
the number of processors; with --time or SOURCE_DATE_EPOCH it is the same, byte for
byte, whenever it is made.

With --exclude a PATTERN without slashes, like '*.pyc', is looked for in all
directories, with slashes, like /proc/sys or 'usr/share/*', from the root of the image on;
*, ?, [...] and [!...] stand for parts of one name, a character behind \ for itself. A dot
at the beginning of a name is not matched by them. --exclude-from reads them
from a file, one a line; empty lines and those that begin with # are nothing.

With --sort contents are stored in the order of a list, so that what is read together
lies together. Its lines are PATH PRIORITY, higher ones (-32768 to 32767) first, 0 for
what is not in it, as for mksquashfs -sort; or only PATH, for files that come before all
others in the order of the list. A directory is all that is below it, unless
that is in the list by itself.

The image appears complete under its name or not at all. A file that has the name already is
an error, also if it comes while packing, unless --force replaces it. The image itself
is not packed if it is in the directory.

Exit status: 0 if all was packed as it was; 1 if the image is there, but a file changed
while it was read or, with --skip-unreadable, could not be read: they are named; 128+N
if signal N interrupted it and 125 if it failed, and then nothing was changed.`,
		Example: `  squire pack root root.sqsh
  squire pack --exclude /proc --exclude /sys --one-file-system / host.sqsh
  squire pack --comp zstd --level 19 --all-root --time 0 app app.sqsh
  docker export app | squire pack - app.sqsh`,
		Args:              needArgs(2, 2),
		ValidArgsFunction: completePack,
		RunE:              func(c *cobra.Command, args []string) error { return o.run(c, args[0], args[1]) },
	}
	f := cmd.Flags()
	o.AddFlags(f)
	f.StringArrayVar(&o.exclude, "exclude", nil, "leave out what this `PATTERN` matches, a name without slashes anywhere; may be repeated")
	f.StringArrayVar(&o.excludeFrom, "exclude-from", nil, "leave out what the patterns in this `FILE` match; may be repeated")
	f.BoolVar(&o.allRoot, "all-root", false, "everything belongs to root")
	f.StringVar(&o.owner, "owner", "", "everything belongs to `UID:GID`; either may be left out")
	f.StringVar(&o.sort, "sort", "", "store contents in the order of this list, a `FILE`")
	f.BoolVar(&o.noXattrs, "no-xattrs", false, "leave out extended attributes")
	f.BoolVar(&o.oneFileSystem, "one-file-system", false, "directories where another file system is mounted are empty")
	f.BoolVar(&o.unreadable, "skip-unreadable", false, "leave out what cannot be read, instead of failing")
	f.BoolVarP(&o.force, "force", "f", false, "replace a file that has the name of the image")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "no progress, no summary and no notes, only errors")
	f.BoolVar(&o.json, "json", false, "print a summary as JSON")
	_ = cmd.MarkFlagFilename("exclude-from") // these fail for unknown flags only
	_ = cmd.MarkFlagFilename("sort")
	_ = cmd.RegisterFlagCompletionFunc("comp", completeCompressor)
	return cmd
}

// completePack completes the two names, which are files.
func completePack(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) < 2 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}

// packSummary is what pack did, in the form of its --json.
type packSummary struct {
	Source       string   `json:"source"`
	Image        string   `json:"image"`
	Compression  string   `json:"compression"`
	BlockSize    int      `json:"block_size"`
	Bytes        int64    `json:"bytes"` // of the image
	Inodes       int64    `json:"inodes"`
	Files        int64    `json:"files"`      // contents, empty ones not counted
	FileBytes    int64    `json:"file_bytes"` // before compression, duplicates counted
	Duplicates   int64    `json:"duplicates"`
	Saved        int64    `json:"duplicate_bytes"`
	Blocks       int64    `json:"blocks"`
	Fragments    int64    `json:"fragments"`
	Metadata     int64    `json:"metadata_bytes"`
	Excluded     int64    `json:"excluded"`       // paths; what is below them is not counted
	Mounts       int64    `json:"mounts"`         // of other file systems, left out
	Xattrs       int64    `json:"xattrs_skipped"` // that squashfs cannot have
	Dropped      []string `json:"dropped"`        // of an archive, at most 100 lines
	Problems     []damage `json:"problems"`       // as many as listBound admits; the count is right
	ProblemCount int64    `json:"problem_count"`
	Seconds      float64  `json:"seconds"`
}

// packing is one run of pack.
type packing struct {
	*packOptions
	pack    pack.Options
	source  string
	dir     bool // the source is one
	exclude []pattern
	owner   *packOwner // nil: as they are
	sort    map[string]int
	out     *output
	m       *meter
	sum     packSummary
	told    int64
	bound   listBound
}

func (o *packOptions) run(c *cobra.Command, source, image string) error {
	p, err := o.plan(source, image)
	if err != nil {
		return err
	}
	ctx, stop := untilSignal(c.Context())
	defer stop()
	start := time.Now()
	if p.out, err = newOutput(image, o.force); err != nil {
		return err
	}
	defer p.out.discard()
	w, err := pack.NewWriter(p.out.File(), p.pack)
	if err != nil {
		return err
	}
	defer w.Abort()
	p.m = startMeter(c.ErrOrStderr(), o.quiet, func() string { return packLine(w.Progress(), time.Since(start)) })
	err = p.run(ctx, w)
	p.m.close()
	switch {
	case err != nil && ctx.Err() != nil:
		p.m.say("interrupted; " + printable(image) + " was not made")
		return interrupted(ctx)
	case err != nil:
		return err
	}
	p.sum.Seconds = time.Since(start).Seconds()
	return p.finish(c)
}

// plan checks the command line.
func (o *packOptions) plan(source, image string) (*packing, error) {
	p := &packing{packOptions: o, source: source}
	p.sum = packSummary{Source: source, Image: image, Compression: o.comp, Dropped: []string{}, Problems: []damage{}}
	if source != "-" {
		info, err := os.Stat(source)
		if err != nil {
			return nil, unwrapPath(printable(source), err)
		}
		p.dir = info.IsDir()
	}
	var err error
	if p.pack, err = o.options(); err != nil {
		return nil, err
	}
	p.sum.BlockSize = p.pack.BlockSize
	if p.owner, err = o.newOwner(); err != nil {
		return nil, err
	}
	if p.exclude, err = o.excludes(); err != nil {
		return nil, err
	}
	for flag, set := range map[string]bool{"--sort": o.sort != "", "--one-file-system": o.oneFileSystem, "--skip-unreadable": o.unreadable} {
		if set && !p.dir {
			return nil, fmt.Errorf("%s: is for directories only, and %s is an archive", flag, printable(source))
		}
	}
	if o.sort != "" {
		if p.sort, err = readSortList(o.sort); err != nil {
			return nil, fmt.Errorf("--sort: %w", err)
		}
	}
	return p, nil
}

// excludes reads the patterns of --exclude and --exclude-from.
func (o *packOptions) excludes() ([]pattern, error) {
	all, err := newPatterns(nil, o.exclude, newExclude)
	if err != nil {
		return nil, fmt.Errorf("--exclude: %w", err)
	}
	for _, name := range o.excludeFrom {
		lines, err := readLines(name)
		if err != nil {
			return nil, fmt.Errorf("--exclude-from: %w", err)
		}
		list, err := newPatterns(nil, lines, newExclude)
		if err != nil {
			return nil, fmt.Errorf("--exclude-from %s: %w", printable(name), err)
		}
		all = append(all, list...)
	}
	for i := range all {
		if len(all[i].names) == 0 {
			return nil, fmt.Errorf("--exclude %s: that is everything", printable(all[i].text))
		}
	}
	return all, nil
}

// excluded reports whether a path is to be left out.
func (p *packing) excluded(file string) bool {
	sel := selection{exclude: p.exclude}
	take, _ := sel.choose([]byte(file), false)
	return !take
}

// run makes the image.
func (p *packing) run(ctx context.Context, w *pack.Writer) error {
	from := p.fromArchive
	if p.dir {
		from = p.fromDir
	}
	root, err := from(ctx, w)
	if err != nil {
		return err
	}
	stats, err := w.Finish(root)
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		err = p.out.commit()
	}
	p.sum.fill(&stats)
	return err
}

// fromDir packs a directory.
func (p *packing) fromDir(ctx context.Context, w *pack.Writer) (*pack.Inode, error) {
	o := pack.DirOptions{
		Leave: p.out.is, NoXattrs: p.noXattrs, OneFileSystem: p.oneFileSystem, Unreadable: p.unreadable, Problem: p.problem,
	}
	if len(p.exclude) > 0 {
		o.Exclude = func(path string, _ bool) bool { return p.excluded(path) }
	}
	if p.owner != nil {
		o.Owner = p.owner.of
	}
	if p.sort != nil {
		o.Priority = p.priority
	}
	root, rep, err := pack.Dir(ctx, w, p.source, o)
	if err != nil {
		if !p.unreadable && errors.Is(err, os.ErrPermission) {
			err = fmt.Errorf("%w; --skip-unreadable leaves out what cannot be read", err)
		}
		return nil, err
	}
	p.sum.Excluded, p.sum.Mounts, p.sum.Xattrs = rep.Excluded, rep.Mounts, rep.Xattrs
	p.sum.ProblemCount = rep.Changed + rep.Unreadable
	return root, nil
}

// problem tells and keeps what was not packed as it was.
func (p *packing) problem(path string, err error) {
	if path == "" {
		path = "/"
	}
	if p.told++; p.told <= maxTold {
		p.m.say(runtime.OneLine(at(path, err)))
	}
	if p.bound.admit(path, err.Error()) {
		p.sum.Problems = append(p.sum.Problems, newDamage(path, err))
	}
}

// fromArchive packs a tar archive.
func (p *packing) fromArchive(ctx context.Context, w *pack.Writer) (*pack.Inode, error) {
	o := layer.Options{Plain: true, Devices: true, Time: time.Now().Unix(), Ahead: p.pack.Memory / 4}
	if !p.pack.Newest.IsZero() {
		o.Time = p.pack.Newest.Unix()
	}
	if len(p.exclude) > 0 {
		o.Exclude = p.excluded
	}
	root, rep, err := layer.Merge(ctx, w, []layer.Layer{&archive{name: p.source}}, o)
	if err != nil {
		return nil, err
	}
	p.sum.Excluded = rep.Excluded
	p.sum.Dropped = append(p.sum.Dropped, rep.Dropped...)
	if p.owner != nil || p.noXattrs {
		p.change(root, make(map[*pack.Inode]bool))
	}
	return root, nil
}

// change gives a tree of an archive the owner that the flags say, and takes attributes
// away. Inodes may have several names.
func (p *packing) change(ino *pack.Inode, seen map[*pack.Inode]bool) {
	if seen[ino] {
		return
	}
	seen[ino] = true
	if p.owner != nil {
		ino.UID, ino.GID = p.owner.of(ino.UID, ino.GID)
	}
	if p.noXattrs {
		ino.Xattrs = nil
	}
	for _, e := range ino.Entries {
		p.change(e, seen)
	}
}

func (s *packSummary) fill(st *pack.Stats) {
	s.Bytes, s.Inodes, s.Files, s.FileBytes = st.Bytes, st.Inodes, st.Files, st.In
	s.Duplicates, s.Saved, s.Blocks, s.Fragments, s.Metadata = st.Duplicates, st.Saved, st.Blocks, st.Fragments, st.Metadata
}

// finish tells what was made, and returns the exit status.
func (p *packing) finish(c *cobra.Command) error {
	sum := &p.sum
	if p.told > maxTold {
		p.m.say(andMore(p.told - maxTold))
	}
	if !p.quiet {
		for _, e := range unused(p.exclude) {
			p.m.say("--exclude " + printable(e.text) + ": matched nothing")
		}
		for _, line := range sum.Dropped {
			p.m.say(printable(line))
		}
		if sum.Xattrs > 0 {
			p.m.say("left out " + plural(sum.Xattrs, "attribute") + " that squashfs cannot have, such as ACLs")
		}
	}
	if sum.ProblemCount > 0 {
		p.m.say(fmt.Sprintf("%s; all else was packed into %s", plural(sum.ProblemCount, "problem"), printable(sum.Image)))
	}
	if !p.quiet && !p.json {
		p.m.say(sum.line())
	}
	if p.json {
		if err := printJSON(c.OutOrStdout(), sum); err != nil {
			return err
		}
	}
	if sum.ProblemCount > 0 {
		return exitError(1)
	}
	return nil
}

// line is the summary for people.
func (s *packSummary) line() string {
	return fmt.Sprintf("packed %s, %s (%s) into %s: %s%s, %.1f s", plural(s.Inodes, "inode"), plural(s.Files, "file"),
		sizeString(s.FileBytes), printable(s.Image), sizeString(s.Bytes), percentOf(s.Bytes, s.FileBytes), s.Seconds)
}

func percentOf(n, of int64) string {
	if of == 0 {
		return ""
	}
	return fmt.Sprintf(" (%.1f %%)", float64(n)/float64(of)*100)
}

// packLine is the progress on a terminal.
func packLine(p pack.Progress, took time.Duration) string {
	return fmt.Sprintf("%d files, %s in, %s out%s, %s/s", p.Files, sizeString(p.In), sizeString(p.Out),
		percentOf(p.Out, p.In), sizeString(int64(float64(p.In)/max(took.Seconds(), 0.001))))
}

// packOwner is to whom all files belong, -1 where they keep theirs.
type packOwner struct{ uid, gid int64 }

func (o *packOwner) of(uid, gid uint32) (newUID, newGID uint32) {
	if o.uid >= 0 {
		uid = uint32(o.uid)
	}
	if o.gid >= 0 {
		gid = uint32(o.gid)
	}
	return uid, gid
}

// newOwner reads --all-root and --owner.
func (o *packOptions) newOwner() (*packOwner, error) {
	switch {
	case o.allRoot && o.owner != "":
		return nil, errors.New("--all-root and --owner exclude each other")
	case o.allRoot:
		return &packOwner{0, 0}, nil
	case o.owner == "":
		return nil, nil
	}
	uid, gid, _ := strings.Cut(o.owner, ":")
	own := &packOwner{-1, -1}
	for text, id := range map[string]*int64{uid: &own.uid, gid: &own.gid} {
		if text == "" {
			continue
		}
		n, err := strconv.ParseUint(text, 10, 32)
		if err != nil || n == 1<<32-1 { // which is -1 to the kernel
			return nil, fmt.Errorf("--owner %s: want UID:GID, two numbers", printable(o.owner))
		}
		*id = int64(n)
	}
	return own, nil
}
