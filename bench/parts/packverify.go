package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/sqfs"
)

// describeTree says of every path below a directory what an image of it must have: type, mode, owner, time, and
// contents or target.
func describeTree(dir string) (map[string]string, error) {
	tree := make(map[string]string)
	return tree, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err = unix.Lstat(path, &st); err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		content := ""
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFLNK:
			content, err = os.Readlink(path)
		case unix.S_IFREG:
			content, err = hashOf(func() (io.ReadCloser, error) { return os.Open(path) })
		case unix.S_IFBLK, unix.S_IFCHR:
			content = fmt.Sprint(unix.Major(st.Rdev), unix.Minor(st.Rdev))
		}
		tree[name] = describe(modeTypes[st.Mode&unix.S_IFMT], st.Mode&0o7777, st.Uid, st.Gid, st.Mtim.Sec, content)
		return err
	})
}

var modeTypes = map[uint32]sqfs.Type{
	unix.S_IFDIR: sqfs.TypeDir, unix.S_IFREG: sqfs.TypeFile, unix.S_IFLNK: sqfs.TypeSymlink,
	unix.S_IFBLK: sqfs.TypeBlock, unix.S_IFCHR: sqfs.TypeChar, unix.S_IFIFO: sqfs.TypeFifo, unix.S_IFSOCK: sqfs.TypeSocket,
}

func describe(typ sqfs.Type, mode, uid, gid uint32, mtime int64, content string) string {
	return fmt.Sprintf("type %d, mode %o, owner %d:%d, time %d, contents %s", typ, mode, uid, gid, mtime, content)
}

// hashOf returns the hash of contents.
func hashOf(open func() (io.ReadCloser, error)) (string, error) {
	f, err := open()
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", h.Sum(nil)), nil
}

// verify compares an image with the tree.
func (b *packBench) verify(image string) error {
	img, err := sqfs.OpenImage(image)
	if err != nil {
		return err
	}
	defer img.Close()
	root, err := img.Inode(img.Root())
	if err != nil {
		return err
	}
	got := make(map[string]string)
	for v, err := range img.Walk(&root) {
		if err != nil {
			return fmt.Errorf("%q: %w", v.Path, err)
		}
		if v.Leave {
			continue
		}
		name := string(v.Path)
		if name == "" {
			name = "."
		}
		if got[name], err = describeInode(img, &v.Inode); err != nil {
			return fmt.Errorf("%q: %w", name, err)
		}
	}
	if maps.Equal(got, b.want) {
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(b.want)) {
		if got[name] != b.want[name] {
			return fmt.Errorf("%q in the image: %s; in the tree: %s", name, got[name], b.want[name])
		}
	}
	return errors.New("there is more in the image than in the tree")
}

func describeInode(img *sqfs.Image, ino *sqfs.Inode) (content string, err error) {
	switch ino.Type {
	case sqfs.TypeSymlink:
		var link []byte
		link, err = img.AppendLink(nil, ino)
		content = string(link)
	case sqfs.TypeFile:
		content, err = hashOf(func() (io.ReadCloser, error) {
			f, ferr := img.File(ino)
			return io.NopCloser(io.NewSectionReader(&f, 0, ino.Size)), ferr
		})
	case sqfs.TypeBlock, sqfs.TypeChar:
		content = fmt.Sprint(ino.Rdev>>8&0xfff, ino.Rdev&0xff|ino.Rdev>>12&0xfff00)
	}
	return describe(ino.Type, uint32(ino.Mode), ino.UID, ino.GID, int64(ino.ModTime), content), err
}
