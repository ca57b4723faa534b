package sqfs

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// tool runs a program of the host for at most a minute. It skips the test if the
// program is missing.
func tool(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("%s is not installed", name)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "TZ=UTC")
	out, err := cmd.Output()
	return string(out), err
}

// makeTree makes a source tree of random contents and returns its directory.
func makeTree(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "tree")
	rnd := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 1))
	for i := range 60 {
		sub := filepath.Join(dir, fmt.Sprint("d", i%7), fmt.Sprint("e", i%3))
		if err := os.MkdirAll(sub, 0o755); err != nil {
			t.Fatal(err)
		}
		b := bytes.Repeat([]byte(fmt.Sprint(rnd.Uint64())), rnd.IntN(20000))
		if i%5 == 0 {
			clear(b[:len(b)/2])
		}
		for k := range min(len(b), rnd.IntN(9000)) {
			b[k] = byte(rnd.Uint32())
		}
		if err := os.WriteFile(filepath.Join(sub, fmt.Sprint("f", i)), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestMksquashfs makes images with mksquashfs and compares them with the source and
// with what unsquashfs says.
func TestMksquashfs(t *testing.T) {
	dir := makeTree(t)
	for _, opts := range []string{
		"-comp gzip", "-comp xz -b 64K", "-comp lz4 -b 8K", "-comp zstd -b 1M", "-comp zstd -always-use-fragments",
		"-comp gzip -no-fragments -noI", "-comp xz -Xbcj x86,arm", "-noD -noF", "-comp lz4 -Xhc -b 4K",
	} {
		t.Run(opts, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "x.sqfs")
			args := append([]string{dir, path, "-noappend", "-quiet", "-no-progress"}, strings.Fields(opts)...)
			out, err := tool(t, "mksquashfs", args...)
			if err != nil {
				t.Skipf("mksquashfs: %v\n%s", err, out)
			}
			want, err := tool(t, "unsquashfs", "-lln", path)
			if err != nil {
				t.Skipf("unsquashfs: %v", err)
			}
			img := openTest(t, path)
			var list strings.Builder
			err = walkTree(img, func(name string, ino *Inode) error {
				list.WriteString(lsLine(t, img, name, ino))
				if ino.Type != TypeFile {
					return nil
				}
				var got []byte
				got, err = img.ReadFile(name[1:])
				want, _ := os.ReadFile(dir + name)
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s: %d bytes differ from %d, %v", name, len(got), len(want), err)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
			compareLines(t, "listing", list.String(), want)
		})
	}
}

// TestKernel mounts the images of testdata and compares all that stat says.
func TestKernel(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	mounted := 0
	for _, path := range images(t) {
		t.Run(path, func(t *testing.T) {
			img := openTest(t, path)
			dir := t.TempDir()
			opts := fmt.Sprintf("ro,loop,offset=%d", img.base)
			if out, err := tool(t, "mount", "-t", "squashfs", "-o", opts, path, dir); err != nil {
				t.Skipf("the kernel does not mount it: %v %s", err, out)
			}
			mounted++
			t.Cleanup(func() {
				if err := unix.Unmount(dir, 0); err != nil {
					t.Error(err)
				}
			})
			err := walkTree(img, func(name string, ino *Inode) error {
				if ino.UID == 1<<32-1 || len(name) > 4000 || ino.Type == TypeSymlink && ino.Size > 4096 {
					return nil // Linux has no such user, path or link
				}
				if got, want := ourStat(ino), kernelStat(dir+name); got != want {
					t.Errorf("%s:\n got %s\nwant %s", name, got, want)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
			compareOrder(t, img, dir)
		})
	}
	if mounted == 0 {
		t.Skip("the kernel mounts no image: no loop devices?")
	}
}

func ourStat(i *Inode) string {
	return fmt.Sprintf("mode %o uid %d gid %d mtime %d nlink %d size %d blocks %d rdev %d ino %d",
		i.UnixMode(), i.UID, i.GID, i.ModTime, i.Nlink, i.Size, i.Blocks512(), deviceNumber(i), i.Number)
}

// deviceNumber converts from new_encode_dev to st_rdev.
func deviceNumber(i *Inode) uint64 {
	return unix.Mkdev(i.Rdev>>8&0xfff, i.Rdev&0xff|i.Rdev>>12&0xfff00)
}

func kernelStat(path string) string {
	var s syscall.Stat_t
	if err := syscall.Lstat(path, &s); err != nil {
		return err.Error()
	}
	return fmt.Sprintf("mode %o uid %d gid %d mtime %d nlink %d size %d blocks %d rdev %d ino %d",
		s.Mode, s.Uid, s.Gid, s.Mtim.Sec, s.Nlink, s.Size, s.Blocks, s.Rdev, s.Ino)
}

// compareOrder checks that directories have the order in which the kernel lists them.
func compareOrder(t *testing.T, img *Image, dir string) {
	t.Helper()
	for _, name := range []string{".", "dir300", "big", "sets"} {
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			continue
		}
		want, _ := f.Readdirnames(-1)
		f.Close()
		want = slices.DeleteFunc(want, func(s string) bool { return len(s) > 255 }) // which we leave out
		list, err := fs.ReadDir(img, name)
		if err != nil {
			t.Error(err)
		}
		var got []string
		for _, e := range list {
			got = append(got, e.Name())
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %d names in another order than %d of the kernel", name, len(got), len(want))
		}
	}
}
