package bench

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/sqfs"
	"github.com/squirefs/squire/sqfs/extract"
)

// The peer "directory" is the image unpacked: what no mount of an image can be expected to beat, and what reading
// costs by itself. It has no mount. Before a cold run the pages of its files are dropped; names and inodes stay in
// memory, as only the whole machine can be told to forget those. What was dropped comes back from the disk, and not
// from an image in memory: on a tmpfs, where pages cannot be dropped, every run is warm.

// roomToUnpack says why the image cannot be unpacked.
func (b *comparison) roomToUnpack() error {
	dir := b.Dir
	if dir == "" {
		dir = os.TempDir()
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	// Small files take a block each; the rest stays free for others.
	need := b.image.fileBytes*5/4 + int64(b.image.Inodes)*4096
	if free := int64(st.Bavail) * st.Bsize; free < need {
		return fmt.Errorf("%s has %d MiB free, and the image needs %d MiB unpacked", dir, free>>20, need>>20)
	}
	return nil
}

// unpack unpacks the image, and writes it to the disk, so that its pages can be dropped.
func (b *comparison) unpack(ctx context.Context) error {
	f, err := os.Open(b.Image)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	img, err := sqfs.New(f, fi.Size(), nil)
	if err != nil {
		return err
	}
	b.unpacked = filepath.Join(b.dir, directoryPeer)
	var first error
	problem := func(path string, err error) {
		if first == nil {
			first = fmt.Errorf("%s: %w", path, err)
		}
	}
	if _, err = extract.Run(ctx, img, b.unpacked, &extract.Options{NoXattrs: true, Problem: problem}); err != nil {
		return err
	}
	if first != nil {
		return first
	}
	d, err := os.Open(b.unpacked)
	if err != nil {
		return err
	}
	defer d.Close()
	return unix.Syncfs(int(d.Fd()))
}

// openUnpacked drops the pages of the unpacked files.
func (b *comparison) openUnpacked(ctx context.Context) (*mounted, error) {
	err := filepath.WalkDir(b.unpacked, func(path string, d fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil || !d.Type().IsRegular() {
			return nil // a directory without rights, for an ordinary user
		}
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		if err == nil {
			_ = unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED)
			_ = unix.Close(fd)
		}
		return nil
	})
	return &mounted{dir: b.unpacked, limit: b.Limit}, err
}

// removeTree removes a directory whose own directories may forbid it to an ordinary user.
func removeTree(dir string) {
	if ordinary {
		_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, _ error) error {
			if d != nil && d.IsDir() {
				_ = os.Chmod(path, 0o700)
			}
			return nil
		})
	}
	_ = os.RemoveAll(dir)
}
