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

// TestNextInode goes through the inode tables of images of all kinds, beside what a walk through the tree finds: it has
// to come by every inode of the tree. tar2sqfs leaves some in the table that no directory leads to.
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
	seen := 1
	for _, ref := range order[1:] {
		for ino.Ref != ref {
			next, err := img.NextInode(&ino)
			if err != nil || next.Ref <= ino.Ref || next.Ref > ref {
				t.Fatalf("after inode %v comes %v, %v, want %v", ino.Ref, next.Ref, err, ref)
			}
			ino = next
			seen++
		}
		if ino != inodes[ref] {
			t.Fatalf("inode %v is %+v in the table, %+v in the tree", ref, ino, inodes[ref])
		}
	}
	if want := int(img.Superblock().Inodes); seen > want {
		t.Errorf("%d inodes, the image has %d", seen, want)
	}
	if next, err := img.NextInode(&ino); !errors.Is(err, io.EOF) {
		t.Errorf("after the last inode comes %v, %v, want EOF", next.Ref, err)
	}
}
