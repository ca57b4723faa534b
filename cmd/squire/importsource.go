package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/squirefs/squire/sqfs"
	"github.com/squirefs/squire/sqfs/layer"
	"github.com/squirefs/squire/sqfs/oci"
	"github.com/squirefs/squire/sqfs/pack"
)

// importSource is where an image is made from.
type importSource interface {
	// record says what the image is made from. Without a digest it is never up to date.
	record() *oci.Record
	// layers names what is read, for the display, with sizes in bytes, 0 if not known.
	layers() (names []string, sizes []int64)
	// pack adds the contents to w, which writes out, and returns the tree.
	pack(ctx context.Context, w *pack.Writer, o *layer.Options, out *output) (*pack.Inode, *layer.Report, error)
	Close() error
}

// openSource finds what the plan names, and hands its progress to event.
func (o *importOptions) openSource(ctx context.Context, plan *importPlan, event func(oci.Event)) (importSource, error) {
	if name, ok := strings.CutPrefix(plan.src, "tar:"); ok {
		return openTar(name, event)
	}
	if name, ok := strings.CutPrefix(plan.src, "dir:"); ok {
		return openDir(name)
	}
	img, err := oci.Open(ctx, plan.src, o.ociOptions(plan, event))
	if err != nil {
		return nil, err
	}
	return &imageSource{img}, nil
}

// defaultOutput is the file that an image goes to if the user names none: in the working
// directory, named as enroot would.
func defaultOutput(src string) (string, error) {
	name, isTar := strings.CutPrefix(src, "tar:")
	if !isTar {
		var isDir bool
		if name, isDir = strings.CutPrefix(src, "dir:"); !isDir {
			return oci.DefaultName(src)
		}
	}
	if isTar && name == "-" {
		return "", errors.New("tar:- has no name; -o names the image")
	}
	abs, err := filepath.Abs(name) // what "." is called
	if err != nil {
		return "", err
	}
	base := filepath.Base(abs)
	if isTar {
		for _, end := range []string{".gz", ".zst", ".tgz", ".tar"} {
			base = strings.TrimSuffix(base, end)
		}
	}
	if base == "/" || base == "" {
		base = "root"
	}
	return base + ".sqsh", nil
}

// imageSource is a container image.
type imageSource struct{ *oci.Image }

func (s *imageSource) record() *oci.Record { return &s.Record }

func (s *imageSource) layers() (names []string, sizes []int64) {
	for i, l := range s.Record.Layers {
		names = append(names, fmt.Sprintf("layer %d/%d %s", i+1, len(s.Record.Layers), shortDigest(l.Digest)))
		sizes = append(sizes, l.Size)
	}
	return names, sizes
}

// shortDigest is as much of a digest as people compare.
func shortDigest(digest string) string {
	_, hex, _ := strings.Cut(digest, ":")
	return printable(hex[:min(len(hex), 10)])
}

func (s *imageSource) pack(ctx context.Context, w *pack.Writer, o *layer.Options, _ *output) (*pack.Inode, *layer.Report, error) {
	root, report, err := layer.Merge(ctx, w, s.Layers(), *o)
	if err == nil {
		err = s.Record.Install(root, w)
	}
	return root, report, err
}

// tarSource is an archive of a root file system, which is packed as it is.
type tarSource struct {
	archive
	size int64 // of the file; 0: not known
}

func openTar(name string, event func(oci.Event)) (*tarSource, error) {
	if name == "" {
		return nil, errors.New("tar: needs the name of a file, or - for standard input")
	}
	s := &tarSource{archive: archive{name: name}}
	if name != "-" {
		fi, err := os.Stat(name)
		switch {
		case err != nil:
			return nil, unwrapPath(name, err)
		case fi.IsDir():
			return nil, fmt.Errorf("%s: is a directory; write dir:%[1]s", name)
		case fi.Mode().IsRegular():
			s.size = fi.Size()
		}
	}
	var read int64
	s.read = func(n int) {
		if read += int64(n); s.size > 0 {
			read = min(read, s.size) // it may be read twice
		}
		event(oci.Event{Bytes: read, Used: read, Total: s.size})
	}
	return s, nil
}

func (s *tarSource) record() *oci.Record { return &oci.Record{Source: "tar:" + s.name} }

func (s *tarSource) layers() (names []string, sizes []int64) {
	return []string{"archive"}, []int64{s.size}
}

func (s *tarSource) pack(ctx context.Context, w *pack.Writer, o *layer.Options, _ *output) (*pack.Inode, *layer.Report, error) {
	o.Plain = true
	root, report, err := layer.Merge(ctx, w, []layer.Layer{s}, *o)
	if err != nil {
		return nil, nil, err
	}
	return root, report, noContainerImage(root, "tar", s.name)
}

// noContainerImage returns an error if what was named with kind is no root file system, but
// has the parts of a container image: those of an OCI layout, or what "docker save" writes.
// Nobody means to run that.
func noContainerImage(root *pack.Inode, kind, name string) error {
	has := func(names ...string) bool {
		return !slices.ContainsFunc(names, func(name string) bool { return root.Entries[name] == nil })
	}
	write := ""
	switch {
	case has("bin"), has("usr"), has("etc"):
	case kind == "dir" && has("oci-layout", "index.json"):
		write = "oci:"
	case kind == "tar" && (has("manifest.json", "repositories") || has("manifest.json", "blobs")):
		write = "docker-archive:"
	case kind == "tar" && has("oci-layout", "index.json"):
		write = "oci-archive:"
	}
	if write == "" {
		return nil
	}
	file := name
	if name == "-" {
		file = "FILE"
	}
	return fmt.Errorf("%s:%s: is a container image, and no root file system; write %s%s", kind, printable(name), write, printable(file))
}

func (s *tarSource) Close() error { return nil }

// dirSource is a directory with a root file system, which is packed as it is.
type dirSource struct {
	name    string
	left    []string // what could not be packed as it is
	devices int64    // that were left out
}

func openDir(name string) (*dirSource, error) {
	if name == "" {
		return nil, errors.New("dir: needs the name of a directory")
	}
	fi, err := os.Stat(name)
	switch {
	case err != nil:
		return nil, unwrapPath(name, err)
	case !fi.IsDir():
		return nil, fmt.Errorf("%s: is no directory; write tar:%[1]s if it is an archive", name)
	}
	return &dirSource{name: name}, nil
}

func (s *dirSource) record() *oci.Record { return &oci.Record{Source: "dir:" + s.name} }

func (s *dirSource) layers() (names []string, sizes []int64) { return nil, nil }

func (s *dirSource) Close() error { return nil }

func (s *dirSource) pack(ctx context.Context, w *pack.Writer, o *layer.Options, out *output) (*pack.Inode, *layer.Report, error) {
	opts := pack.DirOptions{Leave: out.is, Problem: s.problem}
	if o.Exclude != nil {
		opts.Exclude = func(path string, _ bool) bool { return o.Exclude(path) }
	}
	if o.AllRoot {
		opts.Owner = func(uint32, uint32) (uint32, uint32) { return 0, 0 }
	}
	root, r, err := pack.Dir(ctx, w, s.name, opts)
	if err != nil {
		return nil, nil, err
	}
	if !o.Devices {
		s.dropDevices(root)
	}
	if r.Xattrs > 0 {
		s.left = append(s.left, plural(r.Xattrs, "attribute")+" that squashfs cannot have")
	}
	return root, &layer.Report{Excluded: r.Excluded, Devices: s.devices, Dropped: s.left}, noContainerImage(root, "dir", s.name)
}

// problem notes what was not packed as it was found.
func (s *dirSource) problem(path string, err error) {
	if len(s.left) < 100 {
		s.left = append(s.left, fmt.Sprintf("%s: %v", shownPath(path), err))
	}
}

// dropDevices takes devices out of a tree.
func (s *dirSource) dropDevices(dir *pack.Inode) {
	for name, ino := range dir.Entries {
		switch ino.Type {
		case sqfs.TypeDir:
			s.dropDevices(ino)
		case sqfs.TypeBlock, sqfs.TypeChar:
			delete(dir.Entries, name)
			s.devices++
		}
	}
}
