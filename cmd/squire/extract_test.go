package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/squirefs/squire/sqfs"
)

const storedImage = "../../sqfs/testdata/stored.sqfs"

// squire2 runs a command line in this process and returns what it printed, on standard
// error as well.
func squire2(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := rootCommand()
	cmd.SetArgs(args)
	cmd.SetOut(&out)
	cmd.SetErr(&errs)
	err = cmd.ExecuteContext(t.Context())
	return out.String(), errs.String(), err
}

// status is the exit status that an error stands for.
func status(err error) int {
	var e exitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &e):
		return int(e)
	}
	return 125
}

// tree lists the paths below dir.
func tree(t *testing.T, dir string) (paths []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if name, _ := filepath.Rel(dir, path); name != "." {
			if d.IsDir() {
				name += "/"
			}
			paths = append(paths, name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

func TestExtract(t *testing.T) {
	tests := []struct {
		name, args string
		want       []string // paths; nil: at least 300
		status     int
		says       string
	}{
		{"all", "", nil, 0, ""},
		{"file", "sub/one", []string{"sub/", "sub/one"}, 0, ""},
		{"from the root", "/sub//../sub/one", []string{"sub/", "sub/one"}, 0, ""},
		{"directory", "sub", []string{"sub/", "sub/one", "sub/two"}, 0, ""},
		{"wildcards", "s?b/t* big/entry-01[0-1]*", []string{"big/", "big/entry-010-xxxxxxxxxx", "big/entry-011-xxxxxxxxxxx", "sub/", "sub/two"}, 0, ""},
		{"not", "s[!m]b/*", []string{"sub/", "sub/one", "sub/two"}, 0, ""},
		{"exclude", "--exclude big --exclude */one", []string{"blocks", "fifo", "hole", "link", "null", "small", "small2", "sub/", "sub/two"}, 0, ""},
		{"exclude in a pattern", "sub --exclude sub/o*", []string{"sub/", "sub/two"}, 0, ""},
		{"nothing there", "sub/one sub/three", []string{"sub/", "sub/one"}, 1, "squire: sub/three: no such file in the image\n"},
		{"bad pattern", "sub/[", nil, 125, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "out")
			args := append([]string{"extract", "-q", "-d", dir, storedImage}, strings.Fields(tt.args)...)
			out, says, err := squire2(t, args...)
			if status(err) != tt.status || out != "" || says != tt.says {
				t.Fatalf("%v %q %q", err, out, says)
			}
			if tt.status == 125 {
				return
			}
			got := tree(t, dir)
			if os.Geteuid() != 0 { // a device
				got = append(got, "null")
				slices.Sort(got)
			}
			if tt.want == nil && len(got) < 300 || tt.want != nil && !slices.Equal(got, tt.want) {
				t.Errorf("%d paths: %.300q, want %q", len(got), got, tt.want)
			}
		})
	}
}

// What was extracted is said in one line; paths in the image complete to no files of the
// host.
func TestExtractSays(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "out")
	_, says, err := squire2(t, "extract", "-d", dir, storedImage, "small", "sub")
	if err != nil || !strings.HasPrefix(says, "squire: extracted 3 files (") || !strings.Contains(says, "), 1 directory, 0 links to "+dir+"\n") {
		t.Errorf("%v %s", err, says)
	}
	for _, name := range []string{"ls", "cat", "extract"} {
		if out, _, err := squire2(t, "__complete", name, storedImage, ""); err != nil || !strings.HasPrefix(out, ":4\n") {
			t.Errorf("%s: %v %q", name, err, out)
		}
	}
}

// A summary as JSON; a target that is in use, with and without --force.
func TestExtractJSON(t *testing.T) {
	dir := t.TempDir()
	out, says, err := squire2(t, "extract", "--json", "-d", dir, storedImage)
	var sum extractSummary
	if err != nil || says != "" && os.Geteuid() == 0 {
		t.Fatal(says, err)
	}
	if err = json.Unmarshal([]byte(out), &sum); err != nil {
		t.Fatal(err)
	}
	if sum.Files < 300 || sum.Dirs != 2 || sum.Symlinks != 1 || sum.Fifos != 1 || sum.Devices+sum.DevicesSkipped != 1 || sum.Bytes == 0 || sum.ProblemCount != 0 {
		t.Errorf("%+v", sum)
	}
	if _, _, err = squire2(t, "extract", "-d", dir, storedImage); status(err) != 125 || !strings.Contains(err.Error(), "not empty; --force") {
		t.Errorf("into a full directory: %v", err)
	}
	if _, _, err = squire2(t, "extract", "-q", "--force", "-d", dir, storedImage); err != nil {
		t.Errorf("with --force: %v", err)
	}
}

// damaged writes an image in which the bytes of one block are changed, and returns its
// path.
func damaged(t *testing.T, name string, block int64) string {
	t.Helper()
	raw, err := os.ReadFile(testImage)
	if err != nil {
		t.Fatal(err)
	}
	img, err := sqfs.New(bytes.NewReader(raw), int64(len(raw)), nil)
	if err != nil {
		t.Fatal(err)
	}
	ino, err := img.Resolve(name, true)
	if err != nil {
		t.Fatal(err)
	}
	f, err := img.File(&ino)
	if err != nil {
		t.Fatal(err)
	}
	e, err := f.Extent(block)
	if err != nil {
		t.Fatal(err)
	}
	clear(raw[e.Block.Off : e.Block.Off+int64(e.Block.Size)])
	path := filepath.Join(t.TempDir(), "damaged.sqfs")
	if err := os.WriteFile(path, raw, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// What is damaged is named, the rest extracted, and the status tells.
func TestExtractDamaged(t *testing.T) {
	name := bigFile(t)
	out, says, err := squire2(t, "extract", "--json", "-d", filepath.Join(t.TempDir(), "out"), damaged(t, name, 3))
	if status(err) != 1 || !strings.HasPrefix(says, "squire: "+name+": block 3: corrupt image at byte 0x") || !strings.Contains(says, "1 problem; everything else was extracted to ") {
		t.Errorf("%v %s", err, says)
	}
	var sum extractSummary
	if err := json.Unmarshal([]byte(out), &sum); err != nil || len(sum.Problems) != 1 || sum.Problems[0].Path != name || sum.ProblemCount != 1 {
		t.Errorf("%v %+v", err, sum)
	}
}

// bigFile returns a file of testImage with compressed blocks that no other file has.
func bigFile(t *testing.T) string {
	t.Helper()
	img, err := sqfs.OpenImage(testImage)
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	root, err := img.Inode(img.Root())
	if err != nil {
		t.Fatal(err)
	}
	users := map[sqfs.Block]int{}
	third := map[string]sqfs.Block{}
	var names []string
	for v, err := range img.Walk(&root) {
		if err != nil {
			t.Fatal(err)
		}
		if v.Inode.Type != sqfs.TypeFile || v.Leave {
			continue
		}
		f, err := img.File(&v.Inode)
		if err != nil {
			t.Fatal(err)
		}
		n := int64(0)
		for e, err := range f.Extents(0) {
			if err != nil {
				break // an empty file has no block 0
			}
			if users[e.Block]++; n == 3 && e.Block.Size > 0 && !e.Block.Stored && !e.Block.Fragment {
				third[string(v.Path)] = e.Block
				names = append(names, string(v.Path))
			}
			n++
		}
	}
	for _, name := range names {
		if users[third[name]] == 1 {
			return name
		}
	}
	t.Fatal("no file has a block of its own")
	return ""
}

// An interrupted extraction says what there is.
func TestExtractInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var says bytes.Buffer
	cmd := rootCommand()
	cmd.SetArgs([]string{"extract", "-d", filepath.Join(t.TempDir(), "out"), storedImage})
	cmd.SetErr(&says)
	err := cmd.ExecuteContext(ctx)
	if status(err) != 130 || !strings.Contains(says.String(), "interrupted: ") || !strings.Contains(says.String(), " has 0 files (0 B) of it") {
		t.Errorf("%v %s", err, says.String())
	}
}

// A file that is no image says where in it an image is.
func TestWhereElse(t *testing.T) {
	raw, err := os.ReadFile(storedImage)
	if err != nil {
		t.Fatal(err)
	}
	head := make([]byte, 64+3*64)
	copy(head, "\x7fELF\x02\x01\x01")
	head[40], head[58], head[60] = 64, 64, 3
	path := filepath.Join(t.TempDir(), "x.AppImage")
	if err = os.WriteFile(path, append(head, raw...), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err = squire(t, "ls", path)
	if err == nil || !strings.Contains(err.Error(), "a program with an image behind it: --offset 256") {
		t.Error(err)
	}
	if _, err = squire(t, "ls", "--offset", "256", path); err != nil {
		t.Error(err)
	}
	if _, err = squire(t, "ls", "--offset", "300", path); err == nil || !strings.Contains(err.Error(), "say where with --offset") {
		t.Error(err)
	}
}
