package fusefs

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/internal/testenv"
	"github.com/squirefs/squire/sqfs"
	"github.com/squirefs/squire/testdata/hostile"
)

// seedsVar says how many random trees TestDifferential makes, if not 4; "100+50" are the 50
// from 100 on.
const seedsVar = "SQFS_SEEDS"

// TestDifferential makes random trees and packs them with random options of mksquashfs. What
// package sqfs, a mount of ours, one of the kernel, and unsquashfs find must be the tree.
func TestDifferential(t *testing.T) {
	needRoot(t)
	needTool(t, "mksquashfs", "unsquashfs")
	first, n := 0, 4
	if s := os.Getenv(seedsVar); s != "" {
		if from, count, ok := strings.Cut(s, "+"); ok {
			first, _ = strconv.Atoi(from)
			s = count
		}
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatalf("%s: %v", seedsVar, err)
		}
	}
	for seed := first; seed < first+n; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { differential(t, uint64(seed)) })
	}
}

func differential(t *testing.T, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 17))
	p := randomPacking(rnd)
	work := testenv.MemoryDir(t)
	tree, image := filepath.Join(work, "tree"), filepath.Join(work, "image")
	if err := os.Mkdir(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	(&randomTree{t: t, rnd: rnd, block: p.block}).build(tree)
	p.pack(t, tree, image)

	body := hostile.Body{Files: sourceFiles(t, tree)}
	want := &hostile.Image{Name: "tree", Want: hostile.Fine}
	check := func(who string, v hostile.View) {
		t.Helper()
		for _, problem := range want.Check(v, body) {
			t.Errorf("%s, packed with %s: %s", who, strings.Join(p.options, " "), problem)
		}
	}
	check("sqfs", openAPI(t, image, p.offset))
	s := mountImage(t, role{Image: image, Offset: p.offset}, MountOptions{})
	check("squire", hostile.DirView(s.dir))
	if dir := p.mountKernel(t, image); dir != "" {
		check("kernel", hostile.DirView(dir))
		sameStat(t, s.dir, dir, body)
	}
	out := filepath.Join(work, "out")
	if b, err := exec.Command("unsquashfs", "-no-progress", "-offset", fmt.Sprint(p.offset), "-dest", out, image).CombinedOutput(); err != nil {
		t.Fatalf("unsquashfs: %v: %s", err, b)
	}
	check("unsquashfs", hostile.DirView(out))
}

// packing is a way to make an image.
type packing struct {
	options  []string
	block    int
	offset   int64
	unpadded bool
	kernel   bool // can mount it
}

func randomPacking(rnd *rand.Rand) packing {
	p := packing{block: 4096 << rnd.IntN(6), kernel: true}
	comp := []string{"gzip", "xz", "lz4", "zstd", "lzo", "lzma"}[rnd.IntN(6)]
	if c := map[string]sqfs.Compression{"lzo": sqfs.LZO, "lzma": sqfs.LZMA}[comp]; c != 0 && !c.Supported() {
		comp = "gzip"
	}
	p.kernel = comp != "lzma"
	p.options = []string{"-comp", comp, "-b", fmt.Sprint(p.block)}
	add := func(oneIn int, options ...string) bool {
		if rnd.IntN(oneIn) > 0 {
			return false
		}
		p.options = append(p.options, options...)
		return true
	}
	// Not both: of files of zeros mksquashfs 4.5.1 then makes blocks that nobody can read, as newer ones do not.
	if !add(3, "-no-fragments") && !add(2, "-always-use-fragments") {
		add(5, "-no-sparse")
	}
	for _, option := range []string{"-noI", "-noD", "-noF", "-noX", "-noId", "-no-exports", "-no-duplicates"} {
		add(5, option)
	}
	p.unpadded = add(6, "-nopad")
	if rnd.IntN(5) == 0 {
		p.offset = []int64{512, 4096, 12345, 70001}[rnd.IntN(4)]
		p.options = append(p.options, "-offset", fmt.Sprint(p.offset))
	}
	switch comp {
	case "xz":
		add(2, "-Xbcj", "x86,arm,powerpc")
	case "lz4":
		add(2, "-Xhc")
	case "gzip":
		add(2, "-Xwindow-size", "9")
	case "zstd":
		add(2, "-Xcompression-level", "3")
	}
	return p
}

func (p *packing) pack(t *testing.T, tree, image string) {
	t.Helper()
	args := append([]string{tree, image, "-noappend", "-quiet", "-no-progress", "-processors", "2"}, p.options...)
	if out, err := exec.Command("mksquashfs", args...).CombinedOutput(); err != nil {
		t.Fatalf("mksquashfs %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// mountKernel mounts the image with the kernel's squashfs, if it can, and returns where.
func (p *packing) mountKernel(t *testing.T, image string) string {
	t.Helper()
	if !p.kernel || p.unpadded {
		return ""
	}
	dir := t.TempDir()
	if err := exec.Command("mount", "-t", "squashfs", "-o", fmt.Sprintf("loop,ro,offset=%d", p.offset), image, dir).Run(); err != nil {
		return ""
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// sourceFiles returns what an image of the tree holds.
func sourceFiles(t *testing.T, tree string) map[string]hostile.File {
	t.Helper()
	view, files := hostile.DirView(tree), map[string]hostile.File{}
	var visit func(name string)
	visit = func(name string) {
		f, err := view.File(name)
		if err != nil {
			t.Fatal(err)
		}
		switch f.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			if f.Data, err = os.ReadFile(filepath.Join(tree, name)); err != nil {
				t.Fatal(err)
			}
		case unix.S_IFDIR:
			list, err := os.ReadDir(filepath.Join(tree, name)) // sorted
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range list {
				f.Names = append(f.Names, e.Name())
				visit(strings.TrimPrefix(name+"/"+e.Name(), "/"))
			}
		}
		files[name] = f
	}
	visit("")
	return files
}

// sameStat compares all that stat says of two mounts of one image.
func sameStat(t *testing.T, ours, theirs string, body hostile.Body) {
	t.Helper()
	for name := range body.Files {
		if len(filepath.Join(theirs, name)) >= unix.PathMax {
			continue
		}
		if got, want := statLine(filepath.Join(ours, name)), statLine(filepath.Join(theirs, name)); got != want {
			t.Errorf("%q: %s, in the kernel's mount %s", name, got, want)
		}
	}
}

func statLine(path string) string {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return err.Error()
	}
	return fmt.Sprintf("ino %d mode %o nlink %d uid %d gid %d rdev %d size %d blksize %d blocks %d mtime %d",
		st.Ino, st.Mode, st.Nlink, st.Uid, st.Gid, st.Rdev, st.Size, st.Blksize, st.Blocks, st.Mtim.Sec)
}

// apiView shows an image through package sqfs.
type apiView struct{ img *sqfs.Image }

func openAPI(t *testing.T, image string, offset int64) apiView {
	t.Helper()
	img, _, err := (&role{Image: image, Offset: offset}).open()
	if err != nil {
		t.Fatal(err)
	}
	return apiView{img}
}

func (a apiView) inode(name string) (sqfs.Inode, error) {
	if name == "" {
		return a.img.Inode(a.img.Root())
	}
	return a.img.Resolve(name, false)
}

func (a apiView) File(name string) (hostile.File, error) {
	ino, err := a.inode(name)
	if err != nil {
		return hostile.File{}, err
	}
	f := hostile.File{Mode: ino.UnixMode(), UID: ino.UID, GID: ino.GID, MTime: ino.ModTime, Rdev: ino.Rdev, Size: ino.Size}
	if ino.Type == sqfs.TypeSymlink {
		b, err := a.img.AppendLink(nil, &ino)
		if err != nil {
			return f, err
		}
		f.Target = string(b)
	}
	for x, err := range a.img.Xattrs(&ino) {
		if err != nil {
			return f, err
		}
		v, err := a.img.AppendXattr(nil, &ino, x.Name)
		if err != nil {
			return f, err
		}
		if f.Xattrs == nil {
			f.Xattrs = map[string]string{}
		}
		f.Xattrs[x.Name] = string(v)
	}
	return f, nil
}

func (a apiView) List(name string) (names []string, err error) {
	ino, err := a.inode(name)
	if err != nil {
		return nil, err
	}
	for e, err := range a.img.Dirents(&ino, 0) {
		if err != nil {
			return names, err
		}
		names = append(names, string(e.Name))
	}
	return names, nil
}

func (a apiView) ReadAt(name string, p []byte, off int64) (int, error) {
	ino, err := a.inode(name)
	if err != nil {
		return 0, err
	}
	f, err := a.img.File(&ino)
	if err != nil {
		return 0, err
	}
	n, err := f.ReadAt(p, off)
	if errors.Is(err, io.EOF) && n == len(p) {
		err = nil
	}
	return n, err
}
