package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/internal/testenv"
	"github.com/squirefs/squire/sqfs"
	"github.com/squirefs/squire/sqfs/pack"
)

// packTree makes a small directory.
func packTree(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "src")
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, d := range []string{"bin", "doc/deep", "lib", ".hidden"} {
		if err := os.MkdirAll(at(d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, size := range map[string]int{
		"bin/tool": 300_000, "doc/a.txt": 10, "doc/deep/b.txt": 20, "lib/x.pyc": 30, "lib/x.py": 40, "lib/deep.pyc": 50, ".hidden/c": 5, "\xff": 7, "[": 8,
	} {
		if err := os.WriteFile(at(name), []byte(strings.Repeat(name, size/len(name)+1)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("tool", at("bin/link")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// pathsIn lists the paths of an image.
func pathsIn(t *testing.T, path string) string {
	t.Helper()
	out, err := squire(t, "ls", "-R", "--json", path)
	if err != nil {
		t.Fatal(err)
	}
	var entries []entry
	if err := json.Unmarshal([]byte(out), &entries); err != nil {
		t.Fatal(err)
	}
	var paths []string
	for _, e := range entries {
		if e.Path == "" || e.Path == "." || e.Path == "/" {
			continue
		}
		if e.Bytes != nil {
			e.Path = string(e.Bytes)
		}
		paths = append(paths, e.Path)
	}
	slices.Sort(paths)
	return strings.Join(paths, " ")
}

func TestPackExclude(t *testing.T) {
	dir := packTree(t)
	from := filepath.Join(t.TempDir(), "list")
	if err := os.WriteFile(from, []byte("# compiled\n*.pyc\n\n/doc/d*\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	const all = ".hidden .hidden/c [ bin bin/link bin/tool doc doc/a.txt doc/deep doc/deep/b.txt lib lib/deep.pyc lib/x.py lib/x.pyc \xff"
	for _, tt := range []struct {
		args   []string
		gone   string
		says   string
		status int
	}{
		{nil, "", "", 0},
		{[]string{"--exclude", "*.pyc"}, "lib/deep.pyc lib/x.pyc", "", 0},
		{[]string{"--exclude", "deep"}, "doc/deep doc/deep/b.txt", "", 0},
		{[]string{"--exclude", "/deep"}, "", "--exclude /deep: matched nothing", 0},
		{[]string{"--exclude", "/doc/", "--exclude", `\[`}, "doc doc/a.txt doc/deep doc/deep/b.txt [", "", 0},
		{[]string{"--exclude", "*"}, ".hidden/c [ bin bin/link bin/tool doc doc/a.txt doc/deep doc/deep/b.txt lib lib/deep.pyc lib/x.py lib/x.pyc \xff", "", 0},
		{[]string{"--exclude-from", from}, "lib/deep.pyc lib/x.pyc doc/deep doc/deep/b.txt", "", 0},
		{[]string{"--exclude", "/"}, "", "--exclude /: that is everything", 125},
		{[]string{"--exclude", "["}, "", "pattern [", 125},
		{[]string{"--exclude", ""}, "", "empty path", 125},
		{[]string{"--exclude-from", from + "x"}, "", "no such file", 125},
	} {
		image := filepath.Join(t.TempDir(), "image")
		_, says, err := squire2(t, append([]string{"pack", dir, image}, tt.args...)...)
		if err != nil {
			says += err.Error()
		}
		if status(err) != tt.status || !strings.Contains(says, tt.says) || tt.status == 0 && tt.says == "" && strings.Count(says, "\n") != 1 {
			t.Errorf("%q: %v %s", tt.args, err, says)
		}
		if tt.status != 0 {
			if _, err := os.Lstat(image); err == nil {
				t.Errorf("%q: there is an image", tt.args)
			}
			continue
		}
		want := strings.Fields(all)
		want = slices.DeleteFunc(want, func(p string) bool { return slices.Contains(strings.Fields(tt.gone), p) })
		if got := pathsIn(t, image); got != strings.Join(want, " ") {
			t.Errorf("%q: %q, want %q", tt.args, got, want)
		}
	}
}

// The summary; owners and attributes that flags change; the same from an archive.
func TestPackJSON(t *testing.T) {
	dir := packTree(t)
	if err := unix.Setxattr(filepath.Join(dir, "bin/tool"), "user.x", []byte("y"), 0); err != nil {
		t.Logf("no attributes here: %v", err)
	}
	archive := filepath.Join(t.TempDir(), "src.tar.gz")
	writeArchive(t, archive, dir)
	for _, from := range []string{dir, archive} {
		image := filepath.Join(t.TempDir(), "image")
		out, says, err := squire2(t, "pack", from, image, "--json", "--owner", "12:3456789", "--no-xattrs", "--comp", "gzip", "--block-size", "64K", "--time", "1500000000")
		if err != nil || says != "" {
			t.Fatalf("%v %s", err, says)
		}
		var sum packSummary
		if err = json.Unmarshal([]byte(out), &sum); err != nil {
			t.Fatal(err)
		}
		if sum.Files != 8 || sum.Inodes != 15 || sum.Bytes < 1000 || sum.FileBytes < 300_000 || sum.ProblemCount != 0 || sum.Compression != "gzip" || sum.BlockSize != 64<<10 {
			t.Errorf("%s: %+v", from, sum)
		}
		img, err := sqfs.OpenImage(image)
		if err != nil {
			t.Fatal(err)
		}
		defer img.Close()
		ino, err := img.Resolve("bin/tool", false)
		if _, has := ino.XattrSet(); err != nil || has || ino.UID != 12 || ino.GID != 3456789 || ino.ModTime != 1500000000 {
			t.Errorf("%+v %v", ino, err)
		}
		if sb := img.Superblock(); sb.MkfsTime != 1500000000 || sb.BlockSize != 64<<10 {
			t.Errorf("%+v", sb)
		}
	}
}

// writeArchive writes a directory as a compressed tar archive, and takes a name out of it
// that io/fs does not have.
func writeArchive(t *testing.T, path, dir string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z := gzip.NewWriter(f)
	w := tar.NewWriter(z)
	if err := os.Remove(filepath.Join(dir, "\xff")); err != nil {
		t.Fatal(err)
	}
	if err := w.AddFS(os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
}

// The order of a list is that of the data in the image.
func TestPackSort(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "src")
	names := []string{"a", "b", "c", "d/e", "d/f"}
	for i, name := range names {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		b := bytes.Repeat([]byte{byte(i + 1)}, 300_000) // blocks of its own
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for list, want := range map[string]string{
		"":                         "a b c d/e d/f",
		"c 5\nb 7\n":               "b c a d/e d/f",
		"d -1\nd/f 1\na -2":        "d/f b c d/e a",
		"/d/f\nc\n# b\n":           "d/f c a b d/e",
		"b 32767\nd/e\n\n./c -1\n": "d/e b a d/f c",
	} {
		tmp := t.TempDir()
		image, file := filepath.Join(tmp, "image"), filepath.Join(tmp, "list")
		if err := os.WriteFile(file, []byte(list), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, _, err := squire2(t, "pack", dir, image, "--sort", file, "--comp", "lz4"); err != nil {
			t.Fatal(err)
		}
		img, err := sqfs.OpenImage(image)
		if err != nil {
			t.Fatal(err)
		}
		defer img.Close()
		start := map[string]int64{}
		for _, name := range names {
			ino, err := img.Resolve(name, false)
			if err != nil {
				t.Fatal(err)
			}
			file, err := img.File(&ino)
			if err != nil {
				t.Fatal(err)
			}
			e, err := file.Extent(0)
			if err != nil {
				t.Fatal(err)
			}
			start[name] = e.Block.Off
		}
		got := slices.Clone(names)
		slices.SortFunc(got, func(a, b string) int { return int(start[a] - start[b]) })
		if strings.Join(got, " ") != want {
			t.Errorf("%q: %q, want %s", list, got, want)
		}
	}
}

// Packing again gives the same bytes, with however many processors.
func TestPackReproducible(t *testing.T) {
	dir := packTree(t)
	t.Setenv("SOURCE_DATE_EPOCH", "1600000000")
	var first []byte
	for i, args := range []string{"-j 1", "-j 2 --memory 16M", "-j 5", "--time 2020-09-13T12:26:40Z"} {
		image := filepath.Join(t.TempDir(), "image")
		if _, says, err := squire2(t, append([]string{"pack", "-q", dir, image}, strings.Fields(args)...)...); err != nil || says != "" {
			t.Fatal(err, says)
		}
		b, err := os.ReadFile(image)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first = b
		}
		if !bytes.Equal(b, first) {
			t.Errorf("%s: another image", args)
		}
	}
}

// What is in the way is not touched, and the image is not packed into itself.
func TestPackInPlace(t *testing.T) {
	dir := packTree(t)
	image := filepath.Join(dir, "image")
	if err := os.WriteFile(image, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, _, err := squire2(t, "pack", dir, image)
	if b, _ := os.ReadFile(image); status(err) != 125 || !strings.Contains(err.Error(), "already exists; --force") || string(b) != "precious" {
		t.Errorf("%v, %q", err, b)
	}
	if _, _, err = squire2(t, "pack", "--force", dir, image); err != nil {
		t.Fatal(err)
	}
	if list := strings.Fields(pathsIn(t, image)); slices.Contains(list, "image") || len(list) != 15 {
		t.Errorf("%q", list)
	}
	if _, _, err = squire2(t, "pack", "--force", dir, image); err != nil || slices.Contains(strings.Fields(pathsIn(t, image)), "image") {
		t.Errorf("again: %v", err)
	}
}

func TestPackRefuses(t *testing.T) {
	dir := packTree(t)
	archive := filepath.Join(t.TempDir(), "src.tar.gz")
	writeArchive(t, archive, dir)
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte(strings.Repeat("no archive\n", 100)), 0o644); err != nil {
		t.Fatal(err)
	}
	foreign := filepath.Join(t.TempDir(), "src.tar.xz")
	if err := os.WriteFile(foreign, []byte("\xfd7zXZ\x00"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ args, says string }{
		{"none IMAGE", "none: no such file or directory"},
		{dir + " " + t.TempDir() + "/none/image", "no such file or directory"},
		{dir + " " + dir, "is a directory"},
		{text + " IMAGE", "read " + text + ": not a tar archive: "},
		{foreign + " IMAGE", "read " + foreign + ": "},
		{archive + " IMAGE --sort " + text, "--sort: is for directories only"},
		{archive + " IMAGE --one-file-system", "--one-file-system: is for directories only"},
		{dir + " IMAGE --sort none", "--sort: none: no such file"},
		{dir + " IMAGE --owner root", "--owner root: want UID:GID"},
		{dir + " IMAGE --owner 4294967295:1", "want UID:GID"},
		{dir + " IMAGE --owner 1:2:3", "want UID:GID"},
		{dir + " IMAGE --owner 1 --all-root", "exclude each other"},
		{dir + " IMAGE --comp xz", "want zstd, gzip, lz4 or none"},
		{dir, "usage: squire pack"},
	} {
		out := t.TempDir()
		args := strings.Fields(strings.ReplaceAll(tt.args, "IMAGE", filepath.Join(out, "image")))
		_, _, err := squire2(t, append([]string{"pack"}, args...)...)
		if status(err) != 125 || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %v, want %q", tt.args, err, tt.says)
		}
		if got := names(t, out); got != "" {
			t.Errorf("%s: left %s", tt.args, got)
		}
	}
}

// Every compressor makes what can be read again.
func TestPackCompressors(t *testing.T) {
	dir := packTree(t)
	want, err := os.ReadFile(filepath.Join(dir, "bin/tool"))
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range []string{"--comp zstd --level 1", "--comp gzip --level 1", "--comp lz4", "--comp lz4 --level 9", "--comp none", "--no-fragments --no-exports --no-duplicates --block-size 4K"} {
		image := filepath.Join(t.TempDir(), "image")
		_, says, err := squire2(t, append([]string{"pack", dir, image}, strings.Fields(args)...)...)
		if err != nil || !strings.HasPrefix(says, "squire: packed 16 inodes, 9 files (293.") {
			t.Fatalf("%s: %v %s", args, err, says)
		}
		out, err := squire(t, "cat", image, "bin/tool")
		if err != nil || out != string(want) {
			t.Errorf("%s: %v, %d bytes", args, err, len(out))
		}
		if out, err = squire(t, "inspect", "--verify", image); err != nil {
			t.Errorf("%s: %v %s", args, err, out)
		}
	}
}

func TestPackLine(t *testing.T) {
	if got := packLine(pack.Progress{Files: 3, In: 2 << 20, Out: 1 << 20}, 2*time.Second); got != "3 files, 2 MiB in, 1 MiB out (50.0 %), 1 MiB/s" {
		t.Error(got)
	}
	if got := packLine(pack.Progress{Files: 0, In: 0, Out: 0}, 0); got != "0 files, 0 B in, 0 B out, 0 B/s" {
		t.Error(got)
	}
	s := packSummary{Inodes: 2, Files: 1, FileBytes: 4 << 20, Image: "a\nb", Bytes: 1 << 20, Seconds: 1.25}
	if got, want := s.line(), `packed 2 inodes, 1 file (4 MiB) into a\012b: 1 MiB (25.0 %), 1.2 s`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if got := fmt.Sprint((&packOwner{-1, 5}).of(7, 8)); got != "7 5" {
		t.Error(got)
	}
}

// A named pipe is waited for until somebody writes to it, or a signal comes.
func TestPackNamedPipe(t *testing.T) {
	dir := t.TempDir()
	pipe, image := filepath.Join(dir, "pipe"), filepath.Join(dir, "out", "x.sqsh")
	if err := errors.Join(os.Mkdir(filepath.Dir(image), 0o755), unix.Mkfifo(pipe, 0o600)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*testBound)
	defer cancel()
	cmd := command(ctx, os.Getuid(), "pack", "-q", pipe, image)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	begun := func() bool {
		fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", cmd.Process.Pid))
		return slices.ContainsFunc(fds, func(fd string) bool {
			to, _ := os.Readlink(fd)
			return strings.HasPrefix(to, filepath.Dir(image))
		})
	}
	if !testenv.Eventually(10*time.Second, begun) {
		t.Error("it does not begin")
	}
	_ = cmd.Process.Signal(unix.SIGINT)
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 130 {
		t.Errorf("interrupted: %v", err)
	}
	cmd = command(ctx, os.Getuid(), "pack", "-q", pipe, image)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(10*time.Second, begun)
	writer := exec.CommandContext(ctx, "sh", "-c", `cat >"$0"`, pipe) // to open a pipe waits, which only a process can be told to leave
	writer.Stdin = bytes.NewReader(tarOf(t, entryOf{name: "a", text: "piped"}))
	if err := writer.Run(); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil || catImage(t, image, "a") != "piped" {
		t.Errorf("%v", err)
	}
}
