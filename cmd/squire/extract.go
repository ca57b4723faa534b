package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/runtime"
	"github.com/squirefs/squire/sqfs"
	"github.com/squirefs/squire/sqfs/extract"
)

type extractOptions struct {
	dest       string
	exclude    []string
	force      bool
	noXattrs   bool
	processors int
	quiet      bool
	json       bool
	offset     int64
}

func extractCommand() *cobra.Command {
	var o extractOptions
	cmd := &cobra.Command{
		Use:   "extract [flags] IMAGE [PATTERN...]",
		Short: "Unpack an image, or parts of it",
		Long: `Unpack the image into a directory, or only the files that a PATTERN matches.

A PATTERN is a path in the image, in which *, ?, [...] and [!...] stand for parts of
one name, and a character behind \ for itself; a dot at the beginning of a name is
not matched by them. If the image has a file by that very name, that is meant.
Links in it are not followed. A directory stands for all that is below it.

With --exclude a PATTERN without slashes, like '*.pyc', is looked for in all
directories, with slashes, like /etc or 'usr/share/*', from the root of the image on.

As root, files get owners, modes, times, extended attributes and devices as in
the image. Other users own what they extract; set-id bits, devices and all
extended attributes but user.* are left out, which is said once and is no error.
Hard links and holes in files are kept.

Nothing is written outside of the directory, whatever the image or the
directory contains. A directory that is there already keeps its own mode and
owner. With --force files in the way are replaced, never written to.

Exit status: 0 if all was extracted; 1 if something was not, because the image is
damaged there or the host refused it (the rest is extracted; in a damaged file
what cannot be read is zeros), or if it was stopped early, by a full disk; 128+N if
signal N interrupted it; 125 if extracting could not start.`,
		Example: `  squire extract pytorch.sqsh
  squire extract -d /tmp/etc pytorch.sqsh /etc/passwd '/etc/*.conf'
  squire extract -d root --exclude /usr/share/doc pytorch.sqsh`,
		Args:              needArgs(1, -1),
		ValidArgsFunction: completeImageOnly,
		RunE: func(c *cobra.Command, args []string) error {
			return o.run(c, args[0], args[1:])
		},
	}
	f := cmd.Flags()
	f.StringVarP(&o.dest, "dest", "d", "squashfs-root", "the directory to extract into; made if it is not there")
	f.StringArrayVar(&o.exclude, "exclude", nil, "leave out what this PATTERN matches, a name without slashes anywhere; may be repeated")
	f.BoolVarP(&o.force, "force", "f", false, "extract into a directory that has something in it, and replace files there")
	f.BoolVar(&o.noXattrs, "no-xattrs", false, "leave out extended attributes")
	f.IntVarP(&o.processors, "processors", "j", 0, "how many processors expand blocks (0: all)")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "no progress, no summary and no notes, only errors")
	f.BoolVar(&o.json, "json", false, "print a summary as JSON")
	f.Int64Var(&o.offset, "offset", 0, "the image starts at this byte of the file")
	_ = cmd.MarkFlagDirname("dest") // fails for unknown flags only
	return cmd
}

// extractSummary is what extract did, in the form of its --json.
type extractSummary struct {
	Image          string   `json:"image"`
	Dest           string   `json:"dest"`
	Files          int64    `json:"files"`
	Bytes          int64    `json:"bytes"`
	Dirs           int64    `json:"directories"`
	Symlinks       int64    `json:"symlinks"`
	HardLinks      int64    `json:"hard_links"`
	Devices        int64    `json:"devices"`
	Fifos          int64    `json:"fifos"`
	Sockets        int64    `json:"sockets"`
	Problems       []damage `json:"problems"` // as many as listBound admits; the count is right
	ProblemCount   int64    `json:"problem_count"`
	DevicesSkipped int64    `json:"devices_skipped"`
	OwnersSkipped  int64    `json:"owners_skipped"`
	SetIDsSkipped  int64    `json:"set_ids_skipped"`
	XattrsSkipped  int64    `json:"xattrs_skipped"`
	Seconds        float64  `json:"seconds"`
	Error          string   `json:"error,omitempty"` // why it ended early
}

// damage is a path with what is wrong there, in the form of --json.
type damage struct {
	Path  string `json:"path"`
	Bytes []byte `json:"path_bytes,omitempty"` // the path, if it is not UTF-8
	Error string `json:"error"`
}

func (o *extractOptions) run(c *cobra.Command, image string, patterns []string) error {
	if o.dest == "" {
		return errors.New("--dest: the directory's name is empty")
	}
	if err := checkProcessors(o.processors); err != nil {
		return err
	}
	img, done, err := openSquashfs(image, o.offset)
	if err != nil {
		return err
	}
	defer done()
	sel, err := o.selection(img, patterns)
	if err != nil {
		return err
	}
	ctx, stop := untilSignal(c.Context())
	defer stop()

	start := time.Now()
	sum := extractSummary{Image: image, Dest: o.dest, Problems: []damage{}}
	var progress extract.Progress
	opts := &extract.Options{
		Select: sel.choose, Force: o.force, NoXattrs: o.noXattrs, Workers: o.processors, Progress: &progress,
	}
	m, err := o.meter(ctx, c, img, opts)
	var bound listBound
	told := int64(0)
	opts.Problem = func(path string, err error) {
		if told++; told <= maxTold {
			m.say(runtime.OneLine(at(path, err)))
		}
		if bound.admit(path, err.Error()) {
			sum.Problems = append(sum.Problems, newDamage(path, err))
		}
	}
	var result extract.Result
	if err == nil {
		result, err = extract.Run(ctx, img, o.dest, opts)
	}
	m.close()
	if told > maxTold {
		m.say(andMore(told - maxTold))
	}
	sum.fill(&result, time.Since(start))
	if err != nil && ctx.Err() == nil && !errors.Is(err, extract.ErrStopped) {
		if errors.Is(err, extract.ErrNotEmpty) {
			err = fmt.Errorf("%w; --force extracts into it all the same", err)
		}
		return err
	}
	return o.finish(ctx, c, m, img, sel, &sum, err)
}

// selection makes what --exclude and the patterns select.
func (o *extractOptions) selection(img *sqfs.Image, patterns []string) (*selection, error) {
	take, err := newPatterns(img, patterns, newPattern)
	if err != nil {
		return nil, err
	}
	exclude, err := newPatterns(img, o.exclude, newExclude)
	if err != nil {
		err = fmt.Errorf("--exclude: %w", err)
	}
	return &selection{take: take, exclude: exclude}, err
}

// meter starts the display of progress. Only for that the image is gone through once
// before: a terminal has time for it.
func (o *extractOptions) meter(ctx context.Context, c *cobra.Command, img *sqfs.Image, opts *extract.Options) (*meter, error) {
	w := c.ErrOrStderr()
	if o.quiet || width(w) == 0 {
		return startMeter(w, true, nil), nil
	}
	files, bytes, err := extract.Total(ctx, img, opts)
	if err != nil {
		return startMeter(w, true, nil), err
	}
	p := opts.Progress
	return startMeter(w, false, func() string {
		n := p.Bytes.Load()
		return fmt.Sprintf("[%s] %s of %s, %d of %d files", bar(n, bytes), sizeString(n), sizeString(bytes), p.Files.Load(), files)
	}), nil
}

// finish prints what is to be told at the end, and returns the exit status.
func (o *extractOptions) finish(ctx context.Context, c *cobra.Command, m *meter, img *sqfs.Image, sel *selection, sum *extractSummary, err error) error {
	var status error
	switch {
	case err != nil && ctx.Err() != nil:
		sum.Error = "interrupted"
		m.say(fmt.Sprintf("interrupted: %s has %d files (%s) of it, and parts of some more",
			printable(o.dest), sum.Files, sizeString(sum.Bytes)))
		status = interrupted(ctx)
	case err != nil:
		sum.Error = err.Error()
		m.say(fmt.Sprintf("%s; %s has %d files (%s, holes counted) of it, and parts of some more",
			runtime.OneLine(err), printable(o.dest), sum.Files, sizeString(sum.Bytes)))
		status = exitError(1)
	case sum.ProblemCount > 0:
		m.say(fmt.Sprintf("%s; everything else was extracted to %s", plural(sum.ProblemCount, "problem"), printable(o.dest)))
		status = exitError(1)
	}
	if err == nil {
		for _, p := range unused(sel.take) {
			m.say(runtime.OneLine(p.missing(img)))
			status = exitError(1)
		}
	}
	if status == nil && !o.quiet && !o.json {
		m.say(fmt.Sprintf("extracted %s (%s), %s, %s to %s", plural(sum.Files, "file"),
			sizeString(sum.Bytes), directories(sum.Dirs), plural(sum.Symlinks, "link"), printable(o.dest)))
	}
	if !o.quiet {
		for _, p := range unused(sel.exclude) {
			m.say("--exclude " + printable(p.text) + ": matched nothing")
		}
		if note := sum.note(); note != "" {
			m.say(note)
		}
	}
	if o.json {
		if jerr := printJSON(c.OutOrStdout(), sum); jerr != nil {
			return jerr
		}
	}
	return status
}

// fill copies the result.
func (s *extractSummary) fill(r *extract.Result, took time.Duration) {
	s.Files, s.Bytes, s.Dirs, s.Symlinks, s.HardLinks = r.Files, r.Bytes, r.Dirs, r.Symlinks, r.HardLinks
	s.Devices, s.Fifos, s.Sockets, s.ProblemCount = r.Devices, r.Fifos, r.Sockets, r.Problems
	s.DevicesSkipped, s.OwnersSkipped, s.SetIDsSkipped, s.XattrsSkipped = r.DevicesSkipped, r.OwnersSkipped, r.SetIDsSkipped, r.XattrsSkipped
	s.Seconds = took.Seconds()
}

// note says what the host did not allow, in one line.
func (s *extractSummary) note() string {
	var parts []string
	for _, p := range []struct {
		n    int64
		what string
	}{{s.OwnersSkipped, "owner"}, {s.SetIDsSkipped, "set-id mode"}, {s.DevicesSkipped, "device"}, {s.XattrsSkipped, "extended attribute"}} {
		if p.n > 0 {
			parts = append(parts, plural(p.n, p.what))
		}
	}
	if len(parts) == 0 {
		return ""
	}
	why := "only root can set these"
	if unix.Geteuid() == 0 {
		why = "not possible here"
	}
	return "left out " + strings.Join(parts, ", ") + ": " + why
}

func directories(n int64) string {
	return strings.Replace(plural(n, "directory"), "ys", "ies", 1)
}

// plural is a number of things.
func plural(n int64, thing string) string {
	if n != 1 {
		thing += "s"
	}
	return fmt.Sprintf("%d %s", n, thing)
}

func newDamage(path string, err error) damage {
	d := damage{Path: path, Error: err.Error()}
	if !utf8.ValidString(path) {
		d.Bytes = []byte(path)
	}
	return d
}
