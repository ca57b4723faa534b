package sqfs

import (
	"errors"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestNextInode goes through the inode tables of images of all kinds, beside what a walk through the tree finds: inodes
// have to follow each other without a gap, as every inode is in the tree.
func TestNextInode(t *testing.T) {
	for _, path := range images(t) {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".sqfs"), func(t *testing.T) {
			testNextInode(t, openTest(t, path))
		})
	}
}

func testNextInode(t *testing.T, img *Image) {
	root, err := img.Inode(img.Root())
	if err != nil {
		t.Fatal(err)
	}
	inodes := map[InodeRef]Inode{}
	for v, err := range img.Walk(&root) {
		if err != nil {
			t.Skip("an image with damage: ", err)
		}
		inodes[v.Inode.Ref] = v.Inode
	}
	order := slices.Sorted(maps.Keys(inodes))
	ino := inodes[order[0]]
	for i, ref := range order[1:] {
		next, err := img.NextInode(&ino)
		if err != nil {
			t.Fatalf("after inode %v, number %d of %d: %v", ino.Ref, i, len(order), err)
		}
		if next != inodes[ref] {
			t.Fatalf("after %v comes %v, want %v", ino.Ref, next.Ref, ref)
		}
		ino = next
	}
	if next, err := img.NextInode(&ino); !errors.Is(err, io.EOF) {
		t.Errorf("after the last inode comes %v, %v, want EOF", next.Ref, err)
	}
}
