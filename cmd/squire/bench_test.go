package main

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/bench"
)

// testReport is what a run wrote, see package bench.
const testReport = "../../bench/testdata/report.json"

func TestBenchErrors(t *testing.T) {
	dir := t.TempDir()
	tests := []struct{ args, want string }{
		{"", "usage: squire bench"},
		{"a b", "b: one argument too many"},
		{"--image a b", "b: there is an image already"},
		{"--from a b", "b: there is an image already"},
		{"--from a --image b", "none of the others can be"},
		{"--from a --rounds 2", "none of the others can be"},
		{"--from a --workloads walk", "none of the others can be"},
		{"--from a --peers kernel", "none of the others can be"},
		{"--from a --scaling", "none of the others can be"},
		{"--rounds 0 x", "at least one round"},
		{"--limit 0s x", "at least one round, and a time limit"},
		{"--peer x x", "--peer: peer \"x\": want NAME=COMMAND"},
		{"--report x.png x", "--report x.png: want a file .html or .svg"},
		{"--json " + dir + "/no/file x", dir + "/no: no such file"},
		{dir + "/none", "none: no such file"},
		{dir, "is a directory"},
		{"--file none " + testImage, "basic-zstd-4K.sqfs: resolve none: file does not exist"},
		{"--file / " + testImage, "want a regular file"},
		{"--peers none " + testImage, `no peer "none": there are kernel, squashfuse`},
		{"--workloads none " + testImage, `no workload "none": there are mount to first stat, `},
		{"--workloads walk,none " + testImage, `no workload "none": there are mount to first stat, `},
		{"--readers 0 " + testImage, "0 readers"},
		{"--from " + testImage, "no report"},
		{"--from " + dir + "/none", "none: no such file"},
	}
	for _, tt := range tests {
		t.Run(tt.args, func(t *testing.T) {
			out, err := squire(t, append([]string{"bench"}, strings.Fields(tt.args)...)...)
			if out != "" {
				t.Errorf("printed %q", out)
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
		})
	}
}

// The names of workloads are in the help, and what completes --workloads.
func TestBenchWorkloadNames(t *testing.T) {
	help := benchCommand().Long
	for _, name := range append(bench.WorkloadNames(false), bench.WorkloadNames(true)...) {
		if !strings.Contains(help, name) {
			t.Errorf("no %q in the help", name)
		}
	}
	out, err := squire(t, "__complete", "bench", "--workloads", "walk,read")
	if err != nil || !strings.HasPrefix(out, "walk,read one file\nwalk,read all\n") {
		t.Errorf("%v, completions:\n%s", err, out)
	}
	if out, err = squire(t, "__complete", "bench", "--peers", "ker"); err != nil || !strings.HasPrefix(out, "kernel\n") {
		t.Errorf("%v, completions:\n%s", err, out)
	}
}

// A report that was kept can be shown in all its forms.
func TestBenchFrom(t *testing.T) {
	text, err := squire(t, "bench", "--from", testReport)
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("../../bench/testdata/report.txt")
	if err != nil || text != string(want) {
		t.Errorf("%v, got:\n%s", err, text)
	}
	again, err := squire(t, "bench", "--from", testReport, "--json", "-")
	if err != nil {
		t.Fatal(err)
	}
	kept, err := os.ReadFile(testReport)
	if err != nil || again != string(kept) {
		t.Errorf("%v, got:\n%s", err, again)
	}
	path := filepath.Join(t.TempDir(), "copy.json")
	if _, err := squire(t, "bench", "--from", testReport, "--json", path); err != nil {
		t.Fatal(err)
	}
	var rep bench.Report
	if b, err := os.ReadFile(path); err != nil || json.Unmarshal(b, &rep) != nil || len(rep.Rows) != 3 {
		t.Errorf("%v, %+v", err, rep)
	}
	for name, start := range map[string]string{"report.html": "<!DOCTYPE html>", "report.svg": "<svg "} {
		path := filepath.Join(t.TempDir(), name)
		if _, err := squire(t, "bench", "--from", testReport, "--report", path); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(path); err != nil || !strings.HasPrefix(string(b), start) {
			t.Errorf("%s: %v, %.100s", name, err, b)
		}
	}
}

// A file that cannot be written whole leaves what was there.
func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	if err := writeFile(path, func(w io.Writer) error { _, err := io.WriteString(w, "old"); return err }); err != nil {
		t.Fatal(err)
	}
	failed := errors.New("failed")
	err := writeFile(path, func(w io.Writer) error {
		_, _ = io.WriteString(w, "new")
		return failed
	})
	if b, _ := os.ReadFile(path); !errors.Is(err, failed) || string(b) != "old" {
		t.Errorf("%v, file %q", err, b)
	}
	if left, _ := filepath.Glob(dir + "/*"); len(left) != 1 {
		t.Errorf("left %q", left)
	}
}

// Results are never written over the image, each other, or what is no file.
func TestBenchOutputs(t *testing.T) {
	dir := t.TempDir()
	image, fifo := filepath.Join(dir, "k.sqsh"), filepath.Join(dir, "fifo")
	content := strings.Repeat("image", 100)
	err := errors.Join(os.WriteFile(image, []byte(content), 0o644), os.Symlink("k.sqsh", filepath.Join(dir, "l.html")),
		os.Link(image, filepath.Join(dir, "hard")), os.Symlink("none", filepath.Join(dir, "dangling")),
		os.Mkdir(filepath.Join(dir, "d.html"), 0o755), unix.Mkfifo(fifo, 0o644))
	if err != nil {
		t.Fatal(err)
	}
	for args, want := range map[string]string{
		"--json k.sqsh k.sqsh":                 "k.sqsh: is the image",
		"--json hard --image k.sqsh":           "hard: is the image",
		"--report l.html k.sqsh":               "l.html: is the image",
		"--report d.html k.sqsh":               "d.html: is a directory",
		"--json . k.sqsh":                      ".: is a directory",
		"--json dangling k.sqsh":               "dangling: is a link to nothing",
		"--json x.html --report ./x.html a":    "./x.html: is --json too",
		"--json l.html --report l.html a":      "l.html: is --json too",
		"--json fifo --report x.html no.sqsh":  "no.sqsh: no such file",
		"--json /dev/null --report x.svg none": "none: no such file",
	} {
		t.Run(args, func(t *testing.T) {
			t.Chdir(dir)
			if _, err := squire(t, append([]string{"bench"}, strings.Fields(args)...)...); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("error %v, want one with %q", err, want)
			}
		})
	}
	if b, err := os.ReadFile(image); err != nil || string(b) != content {
		t.Errorf("the image: %v, %.100q", err, b)
	}
}

// A pipe is written into, and a link stays one.
func TestWriteFileThrough(t *testing.T) {
	dir := t.TempDir()
	fifo, link, file := filepath.Join(dir, "fifo"), filepath.Join(dir, "link"), filepath.Join(dir, "file")
	if err := errors.Join(unix.Mkfifo(fifo, 0o644), os.WriteFile(file, []byte("old"), 0o644), os.Symlink("file", link)); err != nil {
		t.Fatal(err)
	}
	reader, err := os.OpenFile(fifo, os.O_RDWR, 0) // which opens without a writer
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	for _, path := range []string{fifo, link, "/dev/null"} {
		if err := writeFile(path, func(w io.Writer) error { _, err := io.WriteString(w, "new"); return err }); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	got := make([]byte, 3)
	if _, err := io.ReadFull(reader, got); err != nil || string(got) != "new" {
		t.Errorf("from the pipe: %q, %v", got, err)
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "new" {
		t.Errorf("behind the link: %q, %v", b, err)
	}
	for path, want := range map[string]os.FileMode{fifo: os.ModeNamedPipe, link: os.ModeSymlink, "/dev/null": os.ModeDevice | os.ModeCharDevice} {
		if st, err := os.Lstat(path); err != nil || st.Mode().Type() != want {
			t.Errorf("%s became %v, %v", path, st.Mode(), err)
		}
	}
}
