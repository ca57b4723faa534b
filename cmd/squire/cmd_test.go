package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/squirefs/squire/runtime"
)

const testImage = "../../sqfs/testdata/basic-zstd-4K.sqfs"

// squire runs a command line in this process and returns what it printed.
func squire(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	cmd := rootCommand()
	cmd.SetArgs(args)
	cmd.SetOut(&out)
	err := cmd.Execute()
	return out.String(), err
}

func TestInspect(t *testing.T) {
	out, err := squire(t, "inspect", "--json", testImage)
	if err != nil {
		t.Fatal(err)
	}
	var info imageInfo
	if err = json.Unmarshal([]byte(out), &info); err != nil {
		t.Fatal(err)
	}
	if info.Compression != "zstd" || info.BlockSize != 4096 || info.Inodes < 300 || info.Bytes < 4096 {
		t.Errorf("unlikely facts: %+v", info)
	}
	if out, err = squire(t, "inspect", testImage); err != nil || !strings.Contains(out, "zstd, blocks of 4 KiB") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestLsJSON(t *testing.T) {
	out, err := squire(t, "ls", "-R", "--json", testImage)
	if err != nil {
		t.Fatal(err)
	}
	var entries []entry
	if err = json.Unmarshal([]byte(out), &entries); err != nil {
		t.Fatal(err)
	}
	plain, err := squire(t, "ls", "-R", testImage)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(plain, "\n"); n != len(entries) || n < 300 {
		t.Errorf("%d lines, %d entries", n, len(entries))
	}
}

// The long listing agrees with unsquashfs's, which was stored with the image.
func TestLsLong(t *testing.T) {
	out, err := squire(t, "ls", "-lR", testImage)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile("../../sqfs/testdata/basic.lln")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{} // path -> mode
	for _, line := range strings.Split(string(b), "\n") {
		mode, _, _ := strings.Cut(line, " ")
		if _, name, ok := strings.Cut(line, " squashfs-root/"); ok {
			name, _, _ = strings.Cut(name, " -> ")
			want[name] = mode
		}
	}
	found := 0
	for _, line := range strings.Split(strings.TrimSpace(out), "\n") {
		for name, mode := range want {
			if head, _, _ := strings.Cut(line, " -> "); strings.HasSuffix(head, " "+name) {
				found++
				if !strings.HasPrefix(line, mode+" ") {
					t.Errorf("%s: %q, want mode %s", name, line, mode)
				}
				break
			}
		}
	}
	if found < 300 {
		t.Errorf("only %d of %d names found", found, len(want))
	}
}

// A link is followed where ls(1) follows it; JSON has whole paths, and bytes.
func TestLsPaths(t *testing.T) {
	names := func(args ...string) (paths []string) {
		t.Helper()
		out, err := squire(t, append([]string{"ls", "--json"}, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		var entries []entry
		if err := json.Unmarshal([]byte(out), &entries); err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			paths = append(paths, e.Path)
			if e.Bytes != nil {
				paths[len(paths)-1] = string(e.Bytes)
			}
		}
		return paths
	}
	if got := names(testImage, "/links/dir"); len(got) == 0 || !strings.HasPrefix(got[0], "links/dir/") {
		t.Errorf("through a link: %q", got)
	}
	if got := names("-l", testImage, "/links/dir"); len(got) != 1 || got[0] != "links/dir" {
		t.Errorf("a link itself: %q", got)
	}
	if got := names("../../sqfs/testdata/names.sqfs"); !slices.ContainsFunc(got, func(s string) bool { return !utf8.ValidString(s) }) {
		t.Errorf("no name that is not UTF-8: %q", got)
	}
}

func TestCat(t *testing.T) {
	// From basic.sums: path of a file and what it must hash to are checked in
	// package sqfs; here, that cat prints it whole, through a link as well.
	sums, err := os.ReadFile("../../sqfs/testdata/basic.sums")
	if err != nil {
		t.Fatal(err)
	}
	name := strings.Fields(strings.SplitN(string(sums), "\n", 2)[0])[1]
	direct, err := squire(t, "cat", testImage, name)
	if err != nil {
		t.Fatal(err)
	}
	twice, err := squire(t, "cat", testImage, "/"+name, name)
	if err != nil || twice != direct+direct {
		t.Errorf("%v: %d bytes, want twice %d", err, len(twice), len(direct))
	}
}

func TestErrors(t *testing.T) {
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, bytes.Repeat([]byte("no image\n"), 100), 0o644); err != nil {
		t.Fatal(err)
	}
	tests := []struct{ args, want string }{
		{"ls " + text, text + ": not a squashfs image"},
		{"ls /no/such", "/no/such: no such file"},
		{"ls ubuntu:24.04", "no such file or directory; one in a registry is written docker://ubuntu:24.04"},
		{"ls docker://ubuntu", `no such file or directory; "squire import docker://ubuntu" makes a file of it`},
		{"ls docker-archive:x.tar", `"squire import docker-archive:x.tar"`},
		{"mount ubuntu y", "image ubuntu: no such file or directory; one in a registry"},
		{"mount dir:x y", `"squire import dir:x"`},
		{"ls /", "/: is a directory"},
		{"ls /dev/null", "/dev/null: not a file"},
		{"rnu", `did you mean "run"?`},
		{testImage, `did you mean "squire run `},
		{"run --json x", "--json goes with --plan"},
		{"run --name n --unshare net,pid x", "--unshare pid does not go with --name"},
		{"run x --mounts", "flags of squire go before the image"},
		{"inspect --offset 99999999999 " + testImage, "offset 99999999999 lies outside"},
		{"inspect", "usage: squire inspect"},
		{"inspect a b c", "b: one argument too many; usage: squire inspect"},
		{"inspect -j -1 x", "--processors -1: want 0 to 1024"},
		{"extract -j 1025 x", "--processors 1025: want 0 to 1024"},
		{"extract --dest= x", "--dest: the directory's name is empty"},
		{"nonsense", `unknown command "nonsense"; see "squire --help"`},
		{"help nonsense", `unknown command "nonsense"; see "squire --help"`},
		{"help container nonsense", `unknown command "nonsense"; see "squire container --help"`},
		{"help ls nonsense", `unknown command "nonsense"; see "squire ls --help"`},
		{"container lits", `unknown command "lits"; did you mean "list"?`},
		{"container nonsense", `unknown command "nonsense"; see "squire container --help"`},
		{"slurm nonsense", `unknown command "nonsense"; see "squire slurm --help"`},
		{"ls --nonsense", "unknown flag"},
		{"run", "usage: squire run"},
		{"run --writable --readonly x", "exclude each other"},
		{"run --mounts x x", "--mounts: mount"},
		{"run --tmpfs x x", "--tmpfs: mount"},
		{"run --env A,B=1 x", "--env B=1: want the name alone; --set-env B=1 sets a variable"},
		{"exec --env B=1 1", "--set-env B=1 sets a variable"},
		{"run --writable= x", "name is empty"},
		{"run --name= x", "--name: the name is empty"},
		{"run --save= x", "--save: the file's name is empty"},
		{"run --set-env X x", "want NAME=VALUE"},
		{"mount -o rw x y", "cannot be written to"},
		{"mount -o nonsense x y", `unknown option "nonsense"`},
		{"mount -o cache=x x y", "want cache=NUMBER"},
		{"mount -o offset=-1 x y", "want offset=NUMBER"},
		{"mount -o uid=4294967295 x y", "want uid=NUMBER"},
		{"umount /", "no image is mounted"},
	}
	for _, tt := range tests {
		t.Run(tt.args, func(t *testing.T) {
			out, err := squire(t, strings.Fields(tt.args)...)
			if out != "" {
				t.Errorf("printed %q", out)
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %v, want one line with %q", err, tt.want)
			}
		})
	}
}

// The plan can be had without an image, rights or devices.
func TestRunPlan(t *testing.T) {
	out, err := squire(t, "run", "--plan", "--json", "--mounts", "/a:/b:ro", "no.sqsh", "--", "true", "--plan")
	if err != nil {
		t.Fatal(err)
	}
	var ops []runtime.Op
	if err := json.Unmarshal([]byte(out), &ops); err != nil {
		t.Fatal(err)
	}
	last := ops[len(ops)-1]
	if last.Do != runtime.OpExec || strings.Join(last.Args, " ") != "true --plan" {
		t.Errorf("last operation %+v", last)
	}
}

func TestManAndCompletion(t *testing.T) {
	dir := t.TempDir()
	if _, err := squire(t, "man", dir); err != nil {
		t.Fatal(err)
	}
	for _, page := range []string{"squire.1", "squire-run.1", "squire-mount.1", "squire-ls.1"} {
		if b, err := os.ReadFile(filepath.Join(dir, page)); err != nil || !bytes.Contains(b, []byte(".TH")) {
			t.Errorf("%s: %v", page, err)
		}
	}
	for page, wants := range map[string][]string{
		"squire.1":       {".SH COMMANDS\n", ".B bench\nCompare ways to mount an image\n", ".BR squire-environment (1)", ".SH SYNOPSIS\n.B squire COMMAND ", `\fB\-\-version\fP`},
		"squire-bench.1": {"(default 5)\n", "(default [1,4])\n", "(default \"import numpy\")\n", "Peers:\n.nf\n  kernel ", "too\n.fi\n.PP\n"},
		"squire-mount.1": {".nf\n  "},
		// What can be set is on one page each, which squire(1) names.
		"squire-environment.1": {"SQUIRE_SERVICE ", "SQUIRE_IMPORT_FLAGS ", ".BR squire (1)"},
		"squire-files.1":       {"squire.toml ", "remap\\-root = "},
	} {
		b, err := os.ReadFile(filepath.Join(dir, page))
		for _, want := range wants {
			if err != nil || !bytes.Contains(b, []byte(want)) {
				t.Errorf("%s, %v: no %q in\n%s", page, err, want, b)
			}
		}
	}
	for word, want := range map[string]string{"run --unshare pid,n": "pid,net\n", "daemon --log-level w": "warn\n"} {
		if out, err := squire(t, append([]string{"__complete"}, strings.Fields(word)...)...); err != nil || !strings.Contains(out, want) {
			t.Errorf("%s: %v, completed by %q, want %q", word, err, out, want)
		}
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if out, err := squire(t, "completion", shell); err != nil || !strings.Contains(out, "squire") {
			t.Errorf("%s: %v", shell, err)
		}
	}
}

// The help fits a terminal.
func TestHelpWidth(t *testing.T) {
	root := rootCommand()
	for _, c := range append(root.Commands(), root) {
		for line := range strings.Lines(c.Long) {
			if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > 100 {
				t.Errorf("%s: a line of %d characters: %s", c.Name(), n, line)
			}
		}
	}
}

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"plain": "plain", "café": "café", "\x1b[31m": `\033[31m`, "a\nb": `a\012b`, "\xff\xfe": `\377\376`,
		`back\slash`: `back\134slash`, "\u0085": `\302\205`, "\ufffd": "\ufffd",
		"\u202egpj.exe": `\342\200\256gpj.exe`, "漢字": "漢字",
	} {
		if got := printable(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestSizeString(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1 KiB", 1536: "1.5 KiB", 1<<20 - 1: "1 MiB", 128 << 10: "128 KiB", 15 << 30: "15 GiB", 1<<63 - 1: "8 EiB",
	} {
		if got := sizeString(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}

// What ends up in error messages may come from an image.
func TestOneLine(t *testing.T) {
	if got := runtime.OneLine(os.ErrNotExist); got != "file does not exist" {
		t.Error(got)
	}
	if got := runtime.OneLine(&os.PathError{Op: "open", Path: "a\n\x1b[2J\u009b", Err: os.ErrInvalid}); strings.ContainsAny(got, "\n\x1b\u009b") {
		t.Errorf("%q", got)
	}
}
