package overlay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/squirefs/squire/sqfs"
	"github.com/squirefs/squire/sqfs/pack"
)

// Report says what came of a layer and an image.
type Report struct {
	pack.DirReport       // of the layer, and of a directory below it
	Copied         int64 // files of the image that were copied without expanding them
	Expanded       int64 // files of it that were packed anew
}

// Image adds the contents of all files that an overlay of the image and of the directory
// layer shows to w, and returns its tree for [pack.Writer.Finish]. r gives the image's
// bytes. An empty name of a layer is none. problem is told of what changed meanwhile, and
// may be nil.
//
// If w has the image's compressor and block size, blocks of the image are copied, in their
// order. Otherwise, and where a block of fragments has something that is not to be seen
// any more, files are expanded and packed anew. Nothing hidden is in the result.
func Image(ctx context.Context, w *pack.Writer, img *sqfs.Image, r io.ReaderAt, layer string, o Options, problem func(path string, err error)) (*pack.Inode, *Report, error) {
	rep := new(Report)
	b := &baseImage{w: w, img: img, inodes: map[sqfs.InodeRef]*pack.Inode{}, files: map[*pack.Inode]sqfs.Inode{}, dirs: map[sqfs.InodeRef]bool{}}
	root, err := b.tree(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("overlay: image: %w", err)
	}
	same := map[*pack.Inode]*pack.Inode{}
	if layer != "" {
		top, dir, failed := pack.Dir(ctx, w, layer, pack.DirOptions{Problem: problem})
		if failed != nil {
			return nil, nil, failed
		}
		rep.DirReport = *dir
		if err = merge(root, top, o, func(top, origin *pack.Inode) { same[top] = origin }); err != nil {
			return nil, nil, err
		}
	}
	shown := b.shown(root, same)
	if !o.Anew {
		b.copier, err = w.Copier(img, r)
		if err != nil && !errors.Is(err, pack.ErrOtherBlocks) {
			return nil, nil, err
		}
	}
	if err = b.add(ctx, shown, rep); err != nil {
		return nil, nil, err
	}
	for top, origin := range same {
		top.Data = origin.Data
	}
	return root, rep, nil
}

// baseImage is the image below a layer.
type baseImage struct {
	w      *pack.Writer
	img    *sqfs.Image
	inodes map[sqfs.InodeRef]*pack.Inode // of all but directories: they may have several names
	files  map[*pack.Inode]sqfs.Inode    // regular files that are not empty
	dirs   map[sqfs.InodeRef]bool        // that were met
	copier *pack.Copier                  // nil: blocks cannot be copied
}

// tree returns the image's tree, without contents.
func (b *baseImage) tree(ctx context.Context) (*pack.Inode, error) {
	root, err := b.img.Inode(b.img.Root())
	if err != nil {
		return nil, err
	}
	return b.directory(ctx, "/", &root, 0)
}

func (b *baseImage) directory(ctx context.Context, at string, ino *sqfs.Inode, depth int) (*pack.Inode, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	if b.dirs[ino.Ref] || depth > maxDepth { // it may contain itself
		return nil, fmt.Errorf("%s: a directory in two places, or too deep", at)
	}
	b.dirs[ino.Ref] = true
	dir, err := b.inode(at, ino)
	if err != nil {
		return nil, err
	}
	dir.Entries = map[string]*pack.Inode{}
	for e, err := range b.img.Dirents(ino, 0) {
		if err != nil {
			return nil, fmt.Errorf("%s: %w", at, err)
		}
		name := string(e.Name)
		child, err := b.img.Inode(e.Ref)
		if err == nil && child.Type == sqfs.TypeDir {
			dir.Entries[name], err = b.directory(ctx, path.Join(at, name), &child, depth+1)
		} else if err == nil {
			dir.Entries[name], err = b.file(path.Join(at, name), &child)
		}
		if err != nil {
			return nil, err
		}
	}
	return dir, nil
}

// file returns the inode of anything but a directory.
func (b *baseImage) file(at string, ino *sqfs.Inode) (*pack.Inode, error) {
	if i := b.inodes[ino.Ref]; i != nil {
		return i, nil
	}
	i, err := b.inode(at, ino)
	if err != nil {
		return nil, err
	}
	b.inodes[ino.Ref] = i
	switch {
	case ino.Type == sqfs.TypeFile && ino.Size > 0:
		b.files[i] = *ino
	case ino.Type == sqfs.TypeSymlink:
		target, err := b.img.AppendLink(nil, ino)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", at, err)
		}
		i.Target = string(target)
	}
	return i, nil
}

// inode copies what the image says of a file.
func (b *baseImage) inode(at string, ino *sqfs.Inode) (*pack.Inode, error) {
	i := &pack.Inode{Type: ino.Type, Mode: ino.Mode, UID: ino.UID, GID: ino.GID, ModTime: int64(ino.ModTime), Rdev: ino.Rdev}
	for x, err := range b.img.XattrValues(ino, nil) {
		if err != nil {
			return nil, fmt.Errorf("%s: attributes: %w", at, err)
		}
		i.Xattrs = append(i.Xattrs, pack.Xattr{Name: x.Name, Value: slices.Clone(x.Value)})
	}
	return i, nil
}

// shown returns the files whose contents the result shows.
func (b *baseImage) shown(root *pack.Inode, same map[*pack.Inode]*pack.Inode) map[*pack.Inode]bool {
	shown, met := map[*pack.Inode]bool{}, map[*pack.Inode]bool{}
	var walk func(i *pack.Inode)
	walk = func(i *pack.Inode) {
		if origin := same[i]; origin != nil {
			i = origin
		}
		if _, ok := b.files[i]; ok {
			shown[i] = true
		}
		if i.Type != sqfs.TypeDir || met[i] {
			return
		}
		met[i] = true
		for _, e := range i.Entries {
			walk(e)
		}
	}
	walk(root)
	return shown
}

// placed is a file of the image and where its contents begin.
type placed struct {
	inode    *pack.Inode
	from     sqfs.Inode
	at       int64
	fragment int64 // offset of the block of fragments that it has a part in, 0: none
}

// add adds the contents of the files that are shown.
func (b *baseImage) add(ctx context.Context, shown map[*pack.Inode]bool, rep *Report) error {
	files, spoilt, err := b.places(shown)
	if err != nil {
		return fmt.Errorf("overlay: image: %w", err)
	}
	// Those that are packed anew come first: a block of fragments is then filled, and not
	// closed for one that is copied.
	for _, anew := range []bool{true, false} {
		for _, f := range files {
			if anew != (b.copier == nil || spoilt[f.fragment]) {
				continue
			}
			if err = context.Cause(ctx); err != nil {
				return err
			}
			if anew {
				f.inode.Data, err = b.expand(&f.from)
				rep.Expanded++
			} else {
				f.inode.Data, err = b.copier.Copy(&f.from)
				rep.Copied++
			}
			if err != nil {
				return fmt.Errorf("overlay: image: %w", err)
			}
		}
	}
	return nil
}

// places returns the files that are shown in the order of the image, and which blocks of
// fragments have others in them too.
func (b *baseImage) places(shown map[*pack.Inode]bool) (files []placed, spoilt map[int64]bool, err error) {
	spoilt = map[int64]bool{}
	for i, from := range b.files {
		p := placed{inode: i, from: from}
		if b.copier != nil {
			if p.at, err = b.copier.Place(&from); err == nil {
				p.fragment, err = b.copier.Fragment(&from)
			}
			if err != nil {
				return nil, nil, err
			}
		}
		if shown[i] {
			files = append(files, p)
		} else if p.fragment != 0 {
			spoilt[p.fragment] = true
		}
	}
	slices.SortFunc(files, func(x, y placed) int {
		return cmp.Or(cmp.Compare(x.at, y.at), cmp.Compare(x.from.Ref, y.from.Ref))
	})
	return files, spoilt, nil
}

// expand packs a file anew.
func (b *baseImage) expand(ino *sqfs.Inode) (*pack.Data, error) {
	f, err := b.img.File(ino)
	if err != nil {
		return nil, err
	}
	return b.w.Add(io.NewSectionReader(&f, 0, f.Size()))
}

// Dir is [Image] for a directory below the layer instead of an image.
func Dir(ctx context.Context, w *pack.Writer, dir, layer string, o Options, problem func(path string, err error)) (*pack.Inode, *Report, error) {
	rep := new(Report)
	var top *pack.Inode
	opts := pack.DirOptions{Problem: problem}
	if layer != "" {
		tree, r, err := pack.Dir(ctx, w, layer, opts)
		if err != nil {
			return nil, nil, err
		}
		top, rep.DirReport = tree, *r
		if !redirects(top) {
			opts.Exclude = func(path string, _ bool) bool { return hides(top, path) }
		}
	}
	root, r, err := pack.Dir(ctx, w, dir, opts)
	if err != nil {
		return nil, nil, err
	}
	rep.Unreadable, rep.Changed, rep.Xattrs = rep.Unreadable+r.Unreadable, rep.Changed+r.Changed, rep.Xattrs+r.Xattrs
	if top != nil {
		err = merge(root, top, o, func(top, origin *pack.Inode) { top.Data = origin.Data })
	}
	return root, rep, err
}

// redirects reports whether anything of a layer has something of another place below it,
// or the contents of what it hides.
func redirects(dir *pack.Inode) bool {
	for _, e := range dir.Entries {
		_, to := attribute(e, "redirect")
		_, meta := attribute(e, "metacopy")
		if to || meta || redirects(e) {
			return true
		}
	}
	return false
}

// hides reports whether a path of what is below a layer cannot be seen.
func hides(layer *pack.Inode, name string) bool {
	for part := range strings.SplitSeq(name, "/") {
		if opaque(layer) {
			return true
		}
		next := layer.Entries[part]
		switch {
		case next == nil:
			return false
		case next.Type != sqfs.TypeDir:
			return true
		}
		layer = next
	}
	return false
}
