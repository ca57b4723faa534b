package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestMatchForm has [!...] for shells, and only where it is one.
func TestMatchForm(t *testing.T) {
	for in, want := range map[string]string{
		"a[!b]c": "a[^b]c", `\[!x`: `\[!x`, "[[!x]": "[[!x]", "[a[!]*[!b]": "[a[!]*[^b]", `[\][!]`: `[\][!]`, "[!!]": "[^!]",
	} {
		if got, err := matchForm(in); got != want || err != nil {
			t.Errorf("%s: %s, %v, want %s", in, got, err, want)
		}
	}
	for _, bad := range []string{"[", "[!", "a[]", `\`, "[b-", "[[:alpha:]]", "x[^[:space:]]"} {
		if got, err := matchForm(bad); err == nil {
			t.Errorf("%s: %s", bad, got)
		}
	}
}

// oddImage makes an image with names that look like patterns, and with links to
// directories.
func oddImage(t *testing.T) string {
	t.Helper()
	mksquashfs, err := exec.LookPath("mksquashfs")
	if err != nil {
		t.Skip("no mksquashfs")
	}
	dir := t.TempDir()
	for _, name := range []string{"usr/bin/[", "usr/bin/a", "usr/lib/x.so", "[!x", "[^x", "[^y", "a[b", "a.pyc", "usr/b.pyc", "usr/lib/c.pyc", `back\slash`} {
		path := filepath.Join(dir, "root", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for link, to := range map[string]string{"lib": "usr/lib", "bin": "/usr/bin", "usr/local": "../lib", "broken": "nowhere"} {
		if err := os.Symlink(to, filepath.Join(dir, "root", link)); err != nil {
			t.Fatal(err)
		}
	}
	image := filepath.Join(dir, "x.sqfs")
	if out, err := exec.Command(mksquashfs, filepath.Join(dir, "root"), image, "-quiet", "-no-progress").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return image
}

// TestOddPatterns names files whose names look like patterns, or which lie behind links.
func TestOddPatterns(t *testing.T) {
	image := oddImage(t)
	const syntax = "syntax error in pattern"
	tests := []struct {
		pattern string
		want    []string // files extracted
		status  int
		says    string
	}{
		{"/usr/bin/[", []string{"usr/bin/["}, 0, ""},
		{"[!x", []string{"[!x"}, 0, ""},
		{`\[!x`, []string{"[!x"}, 0, ""},
		{`[[]^?`, []string{"[^x", "[^y"}, 0, ""},
		{"a[b", []string{"a[b"}, 0, ""},
		{`back\slash`, []string{`back\slash`}, 0, ""},
		{"b[", nil, 125, "pattern b[: " + syntax},
		{"usr/[[:alpha:]]*", nil, 125, "[:...:] is not supported"},
		{"", nil, 125, "empty path"},
		{"/lib/*.so", nil, 1, "/lib/*.so: lib is a link to usr/lib and patterns do not follow links: try /usr/lib/*.so\n"},
		{"broken/*", nil, 1, "broken/*: no such file in the image\n"},
		{"lib/[", nil, 125, syntax},
	}
	for _, tt := range tests {
		for _, args := range [][]string{{"extract", "-q", "-d", filepath.Join(t.TempDir(), "out"), image, tt.pattern}, {"ls", image, tt.pattern}, {"cat", image, tt.pattern}} {
			out, says, err := squire2(t, args...)
			if err != nil {
				says += err.Error()
			}
			if status(err) != tt.status || !strings.Contains(says, tt.says) {
				t.Errorf("%s %s: %v, %q", args[0], tt.pattern, err, says)
			}
			if got := out; args[0] == "extract" && tt.status == 0 {
				paths := slices.DeleteFunc(tree(t, args[3]), func(s string) bool { return strings.HasSuffix(s, "/") })
				if !slices.Equal(paths, tt.want) {
					t.Errorf("extract %s: %q, want %q", tt.pattern, paths, tt.want)
				}
			} else if args[0] == "cat" && got != strings.Join(tt.want, "") {
				t.Errorf("cat %s: %q", tt.pattern, got)
			}
		}
	}
	// ls and cat follow links where there are no wildcards.
	for _, tt := range [][2]string{
		{"/lib/x.so", "lib is a link to usr/lib and patterns do not follow links: try /usr/lib/x.so"},
		{"bin/[", "bin is a link to /usr/bin and patterns do not follow links: try /usr/bin/["},
		{"usr/local/x.so", "usr/local is a link to ../lib and patterns do not follow links: try /lib/x.so"},
		{"lib/none", "lib/none: no such file in the image"},
	} {
		_, says, err := squire2(t, "extract", "-q", "-d", filepath.Join(t.TempDir(), "out"), image, tt[0])
		if err != nil && status(err) == 125 {
			says = err.Error()
		}
		if err == nil || !strings.Contains(says, tt[1]) {
			t.Errorf("%s: %v %q", tt[0], err, says)
		}
	}
}

// TestExclude leaves out names in all directories, and paths from the root.
func TestExclude(t *testing.T) {
	image := oddImage(t)
	tests := []struct {
		exclude string
		gone    []string
		says    string
	}{
		{"*.pyc", []string{"a.pyc", "usr/b.pyc", "usr/lib/c.pyc"}, ""},
		{"/*.pyc", []string{"a.pyc"}, ""},
		{"usr/*.pyc", []string{"usr/b.pyc"}, ""},
		{"lib/", []string{"lib", "usr/lib/", "usr/lib/c.pyc", "usr/lib/x.so"}, ""},
		{"none", nil, "squire: --exclude none: matched nothing\n"},
		{"usr/none", nil, "squire: --exclude usr/none: matched nothing\n"},
	}
	whole := filepath.Join(t.TempDir(), "out")
	if _, _, err := squire2(t, "extract", "-q", "-d", whole, image); err != nil {
		t.Fatal(err)
	}
	for _, tt := range tests {
		dir := filepath.Join(t.TempDir(), "out")
		_, says, err := squire2(t, "extract", "--exclude", tt.exclude, "-d", dir, image)
		if err != nil || !strings.Contains(says, tt.says) {
			t.Errorf("%s: %v, %q", tt.exclude, err, says)
		}
		got := tree(t, dir)
		gone := slices.DeleteFunc(tree(t, whole), func(s string) bool { return slices.Contains(got, s) })
		if !slices.Equal(gone, tt.gone) {
			t.Errorf("%s leaves out %q, want %q", tt.exclude, gone, tt.gone)
		}
	}
	if _, _, err := squire2(t, "extract", "--exclude", "", "-d", whole, image); err == nil || !strings.Contains(err.Error(), "--exclude: empty path") {
		t.Error(err)
	}
}
