package sqfs

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// corpusVar names a directory of further images to test, in the form of testdata:
// NAME.sqfs, NAME.lln (unsquashfs -lln), NAME.sums (sha256sum), NAME.off (offset).
const corpusVar = "SQFS_CORPUS"

// images returns all images to test: testdata, and what corpusVar has.
func images(t testing.TB) []string {
	t.Helper()
	list, err := filepath.Glob("testdata/*.sqfs")
	if err != nil || len(list) == 0 {
		t.Fatalf("no images in testdata: %v", err)
	}
	if dir := os.Getenv(corpusVar); dir != "" {
		more, err := filepath.Glob(filepath.Join(dir, "*.sqfs"))
		if err != nil || len(more) == 0 {
			t.Fatalf("no images in %s=%s: %v", corpusVar, dir, err)
		}
		list = append(list, more...)
	}
	return list
}

// openTest opens an image, at the offset that its .off file says.
func openTest(t testing.TB, path string) *Image {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	var off int64
	b, err := os.ReadFile(strings.TrimSuffix(path, ".sqfs") + ".off")
	if err == nil {
		if off, err = strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	img, err := New(f, info.Size()-off, &Options{Offset: off})
	if err != nil {
		t.Fatalf("open %s: %v", path, err)
	}
	return img
}

// golden returns the file beside an image with another ending, or else the one of all
// images of its tree; "" if there is none.
func golden(t *testing.T, path, ext string) string {
	t.Helper()
	own := strings.TrimSuffix(path, ".sqfs")
	tree, _, _ := strings.Cut(filepath.Base(own), "-")
	for _, name := range []string{own, filepath.Join(filepath.Dir(path), tree)} {
		b, err := os.ReadFile(name + ext)
		if err == nil {
			return string(b)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
	return ""
}

// TestGolden compares whole images with what unsquashfs (listing, contents) and the
// kernel (extended attributes, st_blocks) see in them.
func TestGolden(t *testing.T) {
	for _, path := range images(t) {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".sqfs"), func(t *testing.T) {
			img := openTest(t, path)
			var list, sums, xattrs bytes.Buffer
			err := walkTree(img, func(name string, ino *Inode) error {
				fmt.Fprint(&list, lsLine(t, img, name, ino))
				xattrs.WriteString(xattrLines(t, img, name, ino))
				if ino.Type == TypeFile && ino.Size < 1<<30 {
					sums.WriteString(sumLine(t, img, name, ino))
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if want := golden(t, path, ".lln"); want != "" {
				// Before the list there may be messages, or it is by rdsquashfs in another form.
				if i := strings.Index(want, "drwx"); i >= 0 {
					compareLines(t, "listing", list.String(), withoutLongNames(want[i:]))
				}
			}
			if want := golden(t, path, ".sums"); want != "" {
				compareLines(t, "sums", sorted(sums.String()), sorted(want))
			}
			if want := golden(t, path, ".xattrs"); want != "" {
				compareLines(t, "xattrs", sorted(xattrs.String()), sorted(want))
			}
		})
	}
}

// withoutLongNames drops files with a name of 256 bytes, which Dirents leaves out.
func withoutLongNames(list string) string {
	return strings.ReplaceAll(list, "-rw-r--r-- 0/0                       0 2023-11-14 22:13 squashfs-root/"+strings.Repeat("n", 256)+"\n", "")
}

func sorted(s string) string {
	lines := strings.SplitAfter(s, "\n")
	slices.Sort(lines)
	return strings.Join(lines, "")
}

// compareLines reports the first difference.
func compareLines(t *testing.T, what, got, want string) {
	t.Helper()
	if got == want {
		return
	}
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range max(len(g), len(w)) {
		var a, b string
		if i < len(g) {
			a = g[i]
		}
		if i < len(w) {
			b = w[i]
		}
		if a != b {
			t.Errorf("%s differs in line %d of %d, want %d lines\n got %.300s\nwant %.300s", what, i+1, len(g), len(w), a, b)
			return
		}
	}
}

// walkTree calls visit for all inodes that entries of img lead to, the root first, in
// the order of the directories. Names are "" for the root and "/a/b" below.
func walkTree(img *Image, visit func(name string, ino *Inode) error) error {
	seen := map[InodeRef]bool{img.Root(): true}
	var walk func(name string, ref InodeRef) error
	walk = func(name string, ref InodeRef) error {
		ino, err := img.Inode(ref)
		if err != nil {
			return fmt.Errorf("%q: %w", name, err)
		}
		if err := visit(name, &ino); err != nil || ino.Type != TypeDir {
			return err
		}
		for e, err := range img.Dirents(&ino, 0) {
			if err != nil {
				return fmt.Errorf("%q: %w", name, err)
			}
			if e.Type == TypeDir {
				if seen[e.Ref] {
					return fmt.Errorf("%q: %w: directory found twice", name, ErrCorrupt)
				}
				seen[e.Ref] = true
			}
			if err := walk(name+"/"+string(e.Name), e.Ref); err != nil {
				return err
			}
		}
		return nil
	}
	return walk("", img.Root())
}

// lsLine formats an inode as unsquashfs -lln does (unsquashfs.c, print_filename).
func lsLine(t *testing.T, img *Image, name string, ino *Inode) string {
	t.Helper()
	owner := fmt.Sprintf("%d/%d", ino.UID, ino.GID)
	pad := max(25-(len(owner)-1), 0)
	size := fmt.Sprintf("%*d", pad, ino.Size)
	if ino.Type == TypeBlock || ino.Type == TypeChar {
		size = fmt.Sprintf("%*s%3d,%3d", max(pad-7, 0), " ", int32(ino.Rdev)>>8, ino.Rdev&0xff)
	}
	link := ""
	if ino.Type == TypeSymlink {
		b, err := img.AppendLink(nil, ino)
		if err != nil {
			t.Errorf("%q: %v", name, err)
		}
		link = " -> " + string(b)
	}
	when := time.Unix(int64(ino.ModTime), 0).UTC().Format("2006-01-02 15:04")
	return fmt.Sprintf("%s %s %s %s squashfs-root%s%s\n", modeString(ino), owner, size, when, name, link)
}

// modeString is the mode as ls shows it.
func modeString(ino *Inode) string {
	b := []byte("?rwxrwxrwx")
	b[0] = "?d-lbcps"[ino.Type]
	for i := range 9 {
		if ino.Mode&(1<<(8-i)) == 0 {
			b[1+i] = '-'
		}
	}
	special := func(bit uint16, at int, with, without byte) {
		if ino.Mode&bit == 0 {
			return
		}
		if b[at] == 'x' {
			b[at] = with
		} else {
			b[at] = without
		}
	}
	special(0o4000, 3, 's', 'S')
	special(0o2000, 6, 's', 'S')
	special(0o1000, 9, 't', 'T')
	return string(b)
}

// sumLine is the line of sha256sum for a file, by way of Extents and ReadBlock.
func sumLine(t *testing.T, img *Image, name string, ino *Inode) string {
	t.Helper()
	h := sha256.New()
	if err := copyFile(h, img, ino); err != nil {
		t.Errorf("%q: %v", name, err)
	}
	name = "." + name
	esc := ""
	if e := strings.NewReplacer("\\", "\\\\", "\n", "\\n").Replace(name); e != name {
		esc, name = "\\", e
	}
	return fmt.Sprintf("%s%x  %s\n", esc, h.Sum(nil), name)
}

// copyFile writes the contents of a file to w.
func copyFile(w io.Writer, img *Image, ino *Inode) error {
	f, err := img.File(ino)
	if err != nil || f.Size() == 0 {
		return err
	}
	buf := make([]byte, img.Superblock().BlockSize)
	for e, err := range f.Extents(0) {
		if err != nil {
			return err
		}
		n, err := img.ReadBlock(buf, e.Block)
		if err != nil {
			return err
		}
		if e.Start+e.Len > n {
			return fmt.Errorf("%w: short fragment", ErrCorrupt)
		}
		if _, err := w.Write(buf[e.Start : e.Start+e.Len]); err != nil {
			return err
		}
	}
	return nil
}

// xattrLines lists the attributes of an inode, one in a line: path, name, hex value.
func xattrLines(t *testing.T, img *Image, name string, ino *Inode) string {
	t.Helper()
	var b strings.Builder
	for x, err := range img.Xattrs(ino) {
		if err != nil {
			t.Errorf("%q: %v", name, err)
			break
		}
		v, err := img.AppendXattr(nil, ino, x.Name)
		if err != nil || len(v) != x.Size {
			t.Errorf("%q: %s has %d bytes, want %d: %v", name, x.Name, len(v), x.Size, err)
		}
		fmt.Fprintf(&b, ".%s %s %x\n", name, x.Name, v)
	}
	return b.String()
}
