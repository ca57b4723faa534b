package extract

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/sqfs"
	"github.com/squirefs/squire/sqfs/internal/imagetest"
)

// TestLikeUnsquashfs extracts images and compares with what unsquashfs makes of them.
func TestLikeUnsquashfs(t *testing.T) {
	t.Parallel()
	for _, path := range imagetest.Paths(t, "../testdata") {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".sqfs"), func(t *testing.T) { likeUnsquashfs(t, path) })
	}
}

func likeUnsquashfs(t *testing.T, path string) {
	t.Parallel()
	img := imagetest.Open(t, path)
	dir := t.TempDir()
	ours, theirs := filepath.Join(dir, "ours"), filepath.Join(dir, "theirs")
	out, err := tool(t, nil, "unsquashfs", "-no-progress", "-quiet", "-offset", fmt.Sprint(imagetest.Offset(t, path)), "-dest", theirs, path)
	if err != nil && (os.Geteuid() == 0 || !strings.Contains(out, "because you're not superuser")) {
		t.Skipf("unsquashfs: %v\n%.300s", err, out)
	}
	r := run(t, img, ours, Options{})
	compare(t, snapshot(t, ours), snapshot(t, theirs))
	if n := r.Files + r.Dirs + r.Symlinks + r.Devices + r.DevicesSkipped + r.Fifos + r.Sockets + 1; n != int64(img.Superblock().Inodes) {
		t.Errorf("%d inodes were made, the image has %d", n, img.Superblock().Inodes)
	}
	if a, b := allocated(t, ours), allocated(t, theirs); a > b {
		t.Errorf("allocated %d bytes, unsquashfs %d", a, b)
	}
}

// allocated returns what a tree takes on disk.
func allocated(t *testing.T, root string) (n int64) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(path, &st)
		}
		if err == nil && !d.IsDir() {
			n += st.Blocks * 512
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestOrdinaryUser extracts an image with all that an ordinary user may not set.
func TestOrdinaryUser(t *testing.T) {
	needRoot(t)
	image := sqfstar(t, []tar.Header{
		{Name: "closed/", Typeflag: tar.TypeDir, Mode: 0},
		{Name: "closed/first", Size: 3, Mode: 0, Uid: 7, Typeflag: tar.TypeReg},
		{Name: "closed/inner/", Typeflag: tar.TypeDir, Mode: 0o500},
		{Name: "closed/inner/file", Size: 5, Mode: 0o444, Typeflag: tar.TypeReg, PAXRecords: map[string]string{"SCHILY.xattr.user.colour": "blue", "SCHILY.xattr.trusted.t": "1"}},
		{Name: "second", Linkname: "closed/first", Typeflag: tar.TypeLink},
		{Name: "setuid", Size: 1, Mode: 0o6755, Typeflag: tar.TypeReg},
		{Name: "sticky/", Typeflag: tar.TypeDir, Mode: 0o3777},
		{Name: "null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3, Mode: 0o666},
		{Name: "fifo", Typeflag: tar.TypeFifo, Mode: 0o644},
		{Name: "link", Linkname: "nowhere", Typeflag: tar.TypeSymlink},
	})
	if err := os.Chmod(image, 0o644); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(openDirectory(t), "out")
	a := asUser(t, order{Image: image, Dir: dir})
	if a.Error != "" || len(a.Problems) > 0 {
		t.Fatalf("%s %q", a.Error, a.Problems)
	}
	want := Result{
		Files: 3, Bytes: 9, Dirs: 3, Symlinks: 1, Fifos: 1, HardLinks: 1,
		DevicesSkipped: 1, OwnersSkipped: a.Result.OwnersSkipped, SetIDsSkipped: 2, XattrsSkipped: 1,
	}
	if a.Result != want || want.OwnersSkipped < 8 {
		t.Errorf("result %+v, want %+v", a.Result, want)
	}
	got := snapshot(t, dir)
	for name, want := range map[string]string{
		"closed": "40000 ", "closed/first": "100000 ", "closed/inner": "40500 ", "closed/inner/file": "100444 ",
		"setuid": "100755 ", "sticky": "41777 ", "fifo": "10644 ", "link": "120777 ",
	} {
		if !strings.HasPrefix(got[name], want+fmt.Sprintf("%d:%d ", otherUser, otherUser)) || !strings.Contains(got[name], "mtime 1700000000") {
			t.Errorf("%s: %q, want mode %s", name, got[name], want)
		}
	}
	if !strings.Contains(got["second"], "same as closed/first") {
		t.Errorf("second: %q", got["second"])
	}
	if got := got["closed/inner/file"]; !strings.Contains(got, "user.colour") || strings.Contains(got, "trusted") {
		t.Errorf("attributes: %q", got)
	}
	// Once more into the same place, whose directories are closed to their owner.
	a = asUser(t, order{Image: image, Dir: dir, Force: true})
	want.OwnersSkipped-- // the target is there already, and keeps what it has
	if a.Error != "" || len(a.Problems) > 0 || a.Result != want {
		t.Errorf("again: %s %q %+v", a.Error, a.Problems, a.Result)
	}
	twice := snapshot(t, dir)
	delete(got, ".")
	delete(twice, ".")
	compare(t, twice, got)
	// And without --force.
	if a = asUser(t, order{Image: image, Dir: dir}); !strings.Contains(a.Error, ErrNotEmpty.Error()) {
		t.Errorf("into a directory with files: %q", a.Error)
	}
}

// TestDeep extracts a tree whose paths are longer than the host takes in one piece.
func TestDeep(t *testing.T) {
	const levels = 1500
	name := strings.Repeat("abc/", levels)
	image := sqfstar(t, []tar.Header{
		{Name: name, Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: name + "file", Typeflag: tar.TypeReg, Mode: 0o644, Size: 4},
		{Name: name + "z/other", Linkname: name + "file", Typeflag: tar.TypeLink},
	})
	dir := filepath.Join(t.TempDir(), "out")
	r := run(t, imagetest.Open(t, image), dir, Options{})
	if r.Dirs != levels+1 || r.Files != 1 || r.HardLinks != 1 {
		t.Errorf("%+v", r)
	}
	fd := openPath(t, dir, strings.TrimSuffix(name, "/"))
	var st unix.Stat_t
	if err := unix.Fstatat(fd, "file", &st, 0); err != nil || st.Size != 4 || st.Nlink != 2 {
		t.Errorf("the file down there: %v %+v", err, st)
	}
	if err := unix.Fstatat(fd, "z", &st, 0); err != nil || st.Mode&0o777 == 0o700 {
		t.Errorf("a directory down there: %v %+v", err, st)
	}
}

// openPath opens the directory at a path in root that may be longer than the host takes.
func openPath(t *testing.T, root, path string) int {
	t.Helper()
	fd, err := unix.Open(root, openDir, 0)
	for name := range strings.SplitSeq(path, "/") {
		if err != nil {
			t.Fatal(err)
		}
		at := fd
		fd, err = unix.Openat(at, name, openDir, 0)
		unix.Close(at)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// TestHostileTarget extracts into a directory in which links lie where the image has
// files and directories. Nothing may change at the other end of them.
func TestHostileTarget(t *testing.T) {
	img := imagetest.Open(t, "../testdata/stored.sqfs")
	base := t.TempDir()
	outside, dir := filepath.Join(base, "outside"), filepath.Join(base, "target")
	for _, d := range []string{outside, dir} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	victim := filepath.Join(outside, "victim")
	if err := os.WriteFile(victim, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := snapshot(t, outside)
	for name, to := range map[string]string{
		"big": outside, "sub": "../outside", "blocks": victim, "small": filepath.Join(outside, "new"), "fifo": victim, "link": victim,
	} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(victim, filepath.Join(dir, "hole")); err != nil { // a hard link is as good
		t.Fatal(err)
	}
	if _, err := Run(context.Background(), img, dir, nil); !errors.Is(err, ErrNotEmpty) || errors.Is(err, ErrStopped) {
		t.Errorf("without Force: %v", err)
	}
	run(t, img, dir, Options{Force: true})
	compare(t, snapshot(t, outside), before)
	fresh := filepath.Join(base, "fresh")
	run(t, img, fresh, Options{})
	got, want := snapshot(t, dir), snapshot(t, fresh)
	delete(got, ".") // a directory that was there keeps its own
	delete(want, ".")
	compare(t, got, want)

	link := filepath.Join(base, "trap")
	if err := os.Symlink(outside, link); err != nil {
		t.Fatal(err)
	}
	if _, err := Run(context.Background(), img, link, &Options{Force: true}); err == nil || !strings.Contains(err.Error(), "is a link") {
		t.Errorf("target is a link: %v", err)
	}
	compare(t, snapshot(t, outside), before)
}

// TestInTheWay puts a directory in the way of a file: it stays, and all else is made.
func TestInTheWay(t *testing.T) {
	img := imagetest.Open(t, "../testdata/stored.sqfs")
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "small", "mine"), 0o755); err != nil {
		t.Fatal(err)
	}
	var problems []string
	r, err := Run(context.Background(), img, dir, &Options{Force: true, Problem: func(path string, err error) {
		problems = append(problems, path+": "+err.Error())
	}})
	if err != nil || r.Problems != 1 || len(problems) != 1 || !strings.HasPrefix(problems[0], "small: a directory is in the way") {
		t.Errorf("%v, %+v, %q", err, r, problems)
	}
	if _, err := os.Stat(filepath.Join(dir, "small", "mine")); err != nil {
		t.Error(err)
	}
}

// TestSwap exchanges a directory of the target with a link to another place, over and
// over, while images are extracted into it. Nothing may appear in the other place.
func TestSwap(t *testing.T) {
	img := imagetest.Open(t, "../testdata/stored.sqfs")
	base := t.TempDir()
	outside, dir := filepath.Join(base, "outside"), filepath.Join(base, "target")
	if err := errors.Join(os.Mkdir(outside, 0o755), os.Mkdir(dir, 0o755), os.Symlink(outside, filepath.Join(dir, "trap"))); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	stopped := make(chan int)
	go func() {
		n := 0
		for {
			for _, name := range []string{"big", "sub", "blocks", "link"} {
				if unix.Renameat2(unix.AT_FDCWD, filepath.Join(dir, name), unix.AT_FDCWD, filepath.Join(dir, "trap"), unix.RENAME_EXCHANGE) == nil {
					n++
				}
			}
			select {
			case <-stop:
				stopped <- n
				return
			default:
			}
		}
	}()
	runs := 0
	for end := time.Now().Add(time.Second); time.Now().Before(end); runs++ {
		// Problems are to be expected.
		if _, err := Run(context.Background(), img, dir, &Options{Force: true}); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	if n := <-stopped; n == 0 {
		t.Error("nothing was exchanged")
	}
	list, err := os.ReadDir(outside)
	if err != nil || len(list) > 0 {
		t.Errorf("outside there are %v, %v, after %d runs", list, err, runs)
	}
	if info, err := os.Stat(outside); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("outside: %v, %v", info, err)
	}
}

// smallDisk mounts a file system of its own.
func smallDisk(t *testing.T, options string, flags uintptr) string {
	t.Helper()
	needRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("squire-test", dir, "tmpfs", flags, options); err != nil {
		t.Skipf("cannot mount: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// TestDiskFull wants one clear error, and soon.
func TestDiskFull(t *testing.T) {
	img := imagetest.Open(t, "../testdata/basic-zstd-4K.sqfs")
	for _, options := range []string{"size=64k", "nr_inodes=20"} {
		r, err := Run(context.Background(), img, filepath.Join(smallDisk(t, options, 0), "out"), nil)
		if !errors.Is(err, unix.ENOSPC) || !errors.Is(err, ErrStopped) || !strings.Contains(err.Error(), "no space left") || r.Problems > 0 {
			t.Errorf("%s: %v, %+v", options, err, r)
		}
	}
}

// TestReadOnlyTarget cannot start.
func TestReadOnlyTarget(t *testing.T) {
	dir := smallDisk(t, "", unix.MS_RDONLY)
	img := imagetest.Open(t, "../testdata/stored.sqfs")
	if r, err := Run(context.Background(), img, filepath.Join(dir, "out"), nil); !errors.Is(err, unix.EROFS) || errors.Is(err, ErrStopped) || r != (Result{}) {
		t.Errorf("a new directory: %v", err)
	}
	if r, err := Run(context.Background(), img, dir, nil); !errors.Is(err, unix.EROFS) || errors.Is(err, ErrStopped) || r != (Result{}) {
		t.Errorf("one that is there: %v, %+v", err, r)
	}
}

// TestCancel ends an extraction in the middle.
func TestCancel(t *testing.T) {
	img := imagetest.Open(t, "../testdata/basic-zstd-4K.sqfs")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	n := 0
	dir := filepath.Join(t.TempDir(), "out")
	fds := openFiles(t)
	r, err := Run(ctx, img, dir, &Options{Select: func([]byte, bool) (bool, bool) {
		if n++; n == 50 {
			cancel()
		}
		return true, true
	}})
	if !errors.Is(err, context.Canceled) || !errors.Is(err, ErrStopped) || r.Files > 50 || n > 50 {
		t.Errorf("%v after %d paths: %+v", err, n, r)
	}
	if now := openFiles(t); now != fds {
		t.Errorf("%d descriptors are open, before there were %d", now, fds)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// TestSparse extracts files that are long and empty: without space and without memory.
func TestSparse(t *testing.T) {
	img := imagetest.Open(t, "../testdata/sparse.sqfs")
	dir := filepath.Join(t.TempDir(), "out")
	var before, after goruntime.MemStats
	goruntime.ReadMemStats(&before)
	r := run(t, img, dir, Options{Workers: 2})
	goruntime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 8<<20 {
		t.Errorf("allocated %d bytes of memory", n)
	}
	if n := allocated(t, dir); n > 1<<20 || r.Bytes < 40<<20 {
		t.Errorf("allocated %d bytes of disk for files of %d bytes", n, r.Bytes)
	}
}

// TestDamaged damages one data block and one fragment of an image: the files concerned
// are told of, and all others are right.
func TestDamaged(t *testing.T) {
	src := t.TempDir()
	want := map[string][]byte{}
	for i := range 40 {
		b := bytes.Repeat([]byte(fmt.Sprintf("file %d, ", i)), 200+40*i)
		want[fmt.Sprintf("f%02d", i)] = b
	}
	big := make([]byte, 40<<10)
	for i := range big {
		big[i] = byte(i * i >> 7)
	}
	want["big"] = big
	for name, b := range want {
		if err := os.WriteFile(filepath.Join(src, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := os.ReadFile(mksquashfs(t, src, "-b", "8K", "-comp", "gzip", "-always-use-fragments"))
	if err != nil {
		t.Fatal(err)
	}
	img := imagetest.New(t, raw)
	block := imagetest.Extent(t, img, "big", 2).Block
	frag := imagetest.Extent(t, img, "f07", 0).Block
	for _, b := range []sqfs.Block{block, frag} {
		raw[b.Off+int64(b.Size)/2] ^= 0x55
		raw[b.Off+int64(b.Size)/2+1] ^= 0x55
	}
	bad := []string{"big"} // and whoever has a part in the fragment
	for name := range want {
		e := imagetest.Extent(t, img, name, int64(len(want[name])-1)/8192)
		if e.Block == frag {
			bad = append(bad, name)
		}
	}
	slices.Sort(bad)
	bad = slices.Compact(bad)
	var told []string
	dir := filepath.Join(t.TempDir(), "out")
	r, err := Run(context.Background(), imagetest.New(t, raw), dir, &Options{Problem: func(path string, err error) {
		if !errors.Is(err, sqfs.ErrCorrupt) {
			t.Errorf("%s: %v", path, err)
		}
		told = append(told, path)
	}})
	slices.Sort(told)
	if err != nil || !slices.Equal(told, bad) || int(r.Problems) != len(bad) || len(bad) < 3 || len(bad) > 30 {
		t.Errorf("%v, told of %q, want %q", err, told, bad)
	}
	for name, b := range want {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || len(got) != len(b) {
			t.Errorf("%s: %v, %d bytes, want %d", name, err, len(got), len(b))
		} else if !slices.Contains(bad, name) && !bytes.Equal(got, b) {
			t.Errorf("%s differs", name)
		}
	}
	got, _ := os.ReadFile(filepath.Join(dir, "big"))
	clear(big[2*8192 : 3*8192])
	if !bytes.Equal(got[:32<<10], big[:32<<10]) {
		t.Error("of the damaged file more is missing than the damaged block")
	}
}

// TestSelect extracts one file: the directories that lead to it are made, no others.
func TestSelect(t *testing.T) {
	img := imagetest.Open(t, "../testdata/stored.sqfs")
	dir := filepath.Join(t.TempDir(), "out")
	opts := Options{Select: func(path []byte, isDir bool) (take, within bool) {
		return string(path) == "sub/one", true
	}}
	r := run(t, img, dir, opts)
	if r.Dirs != 1 || r.Files+r.HardLinks+r.Symlinks != 1 {
		t.Errorf("%+v", r)
	}
	files, n, err := Total(context.Background(), img, &opts)
	if err != nil || files != 1 || n != r.Bytes {
		t.Errorf("total %d files, %d bytes, %v; extracted %+v", files, n, err, r)
	}
	var all Progress
	r = run(t, img, filepath.Join(t.TempDir(), "out"), Options{Progress: &all})
	if files, n, err = Total(context.Background(), img, &Options{}); err != nil || files != all.Files.Load() || n != all.Bytes.Load() || n != r.Bytes {
		t.Errorf("total %d files, %d bytes, %v; progress %d and %d; extracted %+v", files, n, err, all.Files.Load(), all.Bytes.Load(), r)
	}
}

// TestNothing selects nothing: the target is not even made, and one that is there does
// not change.
func TestNothing(t *testing.T) {
	img := imagetest.Open(t, "../testdata/stored.sqfs")
	opts := Options{Select: func([]byte, bool) (take, within bool) { return false, true }}
	base := t.TempDir()
	run(t, img, filepath.Join(base, "some", "where"), opts)
	if list, err := os.ReadDir(base); err != nil || len(list) > 0 {
		t.Errorf("%v, %v", list, err)
	}
	before := snapshot(t, base)
	run(t, img, base, opts)
	compare(t, snapshot(t, base), before)
}

// TestOthersDirectory extracts over directories of another: they are used, and nobody
// tries to remove them.
func TestOthersDirectory(t *testing.T) {
	needRoot(t)
	image := sqfstar(t, []tar.Header{
		{Name: "etc/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "etc/mine/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "etc/mine/file", Typeflag: tar.TypeReg, Mode: 0o644, Size: 4},
	})
	if err := os.Chmod(image, 0o644); err != nil {
		t.Fatal(err)
	}
	dir := openDirectory(t)
	mine := filepath.Join(dir, "etc", "mine")
	if err := errors.Join(os.Chown(dir, 0, 0), os.MkdirAll(mine, 0o755), os.Chown(mine, otherUser, otherUser)); err != nil {
		t.Fatal(err)
	}
	a := asUser(t, order{Image: image, Dir: dir, Force: true})
	if _, err := os.Stat(filepath.Join(mine, "file")); err != nil || a.Error != "" {
		t.Errorf("%v, %q", err, a.Error)
	}
	for _, p := range a.Problems { // mode and times of the directory that is another's
		if !strings.HasPrefix(p, "etc: ") || strings.Contains(p, "remove") {
			t.Error(p)
		}
	}
}

// TestOwnerOfTarget extracts to where new files belong to somebody else than us: the
// caller takes itself for another. What belongs to a third is still not ours.
func TestOwnerOfTarget(t *testing.T) {
	img := imagetest.Open(t, "../testdata/stored.sqfs")
	root, err := img.Inode(img.Root())
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "out")
	x := newExtraction(context.Background(), img, &Options{Problem: func(path string, err error) { t.Errorf("%s: %v", path, err) }})
	defer x.cancel(nil)
	x.euid += otherUser
	r, err := x.run(&root, dir)
	if err != nil || r.Dirs == 0 || r.Symlinks == 0 {
		t.Errorf("%v, %+v", err, r)
	}
	for name := range snapshot(t, dir) {
		if strings.Contains(name, ".squire") {
			t.Errorf("%s is left", name)
		}
	}
	at, err := unix.Open(dir, openDir, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(at)
	for _, third := range []uint32{uint32(os.Geteuid()) + 1, otherUser + 1} {
		if x.ours(at, &unix.Stat_t{Uid: third}) {
			t.Errorf("a file of %d passes for ours", third)
		}
	}
}
