package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestPatterns lists and prints what patterns match.
func TestPatterns(t *testing.T) {
	tests := []struct {
		args, want string
		status     int
		says       string
	}{
		{"ls IMAGE s*", "small\nsmall2\nsub\n", 0, ""},
		{"ls IMAGE s*/", "small\nsmall2\nsub\n", 0, ""},
		{"ls -R IMAGE s*", "small\nsmall2\nsub\nsub/one\nsub/two\n", 0, ""},
		{"ls IMAGE sub", "one\ntwo\n", 0, ""},
		{"ls IMAGE sub small", "sub/one\nsub/two\nsmall\n", 0, ""},
		{"ls IMAGE */one big/*-29[89]-*", "sub/one\nbig/entry-298-xxxxxxxxxxxxxxxxxxxxxxxxxxxx\nbig/entry-299-xxxxxxxxxxxxxxxxxxxxxxxxxxxxx\n", 0, ""},
		{"ls IMAGE sub nothing", "sub/one\nsub/two\n", 1, "squire: nothing: no such file in the image\n"},
		{"ls IMAGE sub no*thing", "sub/one\nsub/two\n", 1, "squire: no*thing: no such file in the image\n"},
		{"ls IMAGE /no/such", "", 1, "squire: /no/such: no such file in the image\n"},
		{"ls --json IMAGE /no/such", "", 1, "squire: /no/such: no such file in the image\n"},
		{"ls IMAGE no*", "", 1, "squire: no*: no such file in the image\n"},
		{"cat IMAGE nothing", "", 1, "squire: nothing: no such file in the image\n"},
		{"cat IMAGE /", "", 1, "squire: /: not a regular file\n"},
		{"ls --total IMAGE sub/one", "sub/one\ntotal: 1 path, 1 B (1 byte) in files\n", 0, ""},
	}
	for _, tt := range tests {
		t.Run(tt.args, func(t *testing.T) {
			out, says, err := squire2(t, strings.Fields(strings.Replace(tt.args, "IMAGE", storedImage, 1))...)
			if out != tt.want || status(err) != tt.status || says != tt.says {
				t.Errorf("%d %q %q, want %q", status(err), says, out, tt.want)
			}
		})
	}
	small, _, _ := squire2(t, "cat", storedImage, "small")
	small2, _, _ := squire2(t, "cat", storedImage, "small2")
	both, _, err := squire2(t, "cat", storedImage, "s*") // and no word of the directory that it matches
	if err != nil || small == "" || both != small+small2 {
		t.Errorf("%q, %v, want %q and %q", both, err, small, small2)
	}
	both, says, err := squire2(t, "cat", storedImage, "small", "sub", "small2")
	if status(err) != 1 || both != small+small2 || says != "squire: sub: not a regular file\n" {
		t.Errorf("%q, %v, %s", both, err, says)
	}
}

// TestLsHuman has -h for sizes, and help as a word only.
func TestLsHuman(t *testing.T) {
	for _, tt := range [][2]string{{"-lh", " 16.1 KiB "}, {"-l", " 16484 "}, {"--help", "--human"}} {
		if out, _, err := squire2(t, "ls", tt[0], testImage, bigFile(t)); err != nil || !strings.Contains(out, tt[1]) {
			t.Errorf("%s: %v %s", tt[0], err, out)
		}
	}
}

// TestAnyBytes finds files whose names are not UTF-8.
func TestAnyBytes(t *testing.T) {
	const image = "../../sqfs/testdata/names.sqfs"
	out, _, err := squire2(t, "ls", "-R", "--json", image)
	if err != nil {
		t.Fatal(err)
	}
	var entries []entry
	if err = json.Unmarshal([]byte(out), &entries); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, e := range entries {
		if e.Bytes == nil || e.Type != "file" {
			continue
		}
		n++
		if out, _, err = squire2(t, "cat", image, string(e.Bytes)); err != nil || int64(len(out)) != e.Size {
			t.Errorf("cat %q: %v", e.Bytes, err)
		}
		dir := filepath.Join(t.TempDir(), "out")
		if _, _, err = squire2(t, "extract", "-q", "-d", dir, image, string(e.Bytes)); err != nil {
			t.Errorf("extract %q: %v", e.Bytes, err)
		}
		if b, rerr := os.ReadFile(filepath.Join(dir, string(e.Bytes))); rerr != nil || string(b) != out {
			t.Errorf("extract %q: %v", e.Bytes, rerr)
		}
	}
	if n == 0 {
		t.Error("no such names")
	}
}

// TestLsXattrs shows which files have attributes, and which.
func TestLsXattrs(t *testing.T) {
	const image = "../../sqfs/testdata/xattr-zstd.sqfs"
	long, _, err := squire2(t, "ls", "-lR", image)
	if err != nil {
		t.Fatal(err)
	}
	out, _, err := squire2(t, "ls", "-R", "--json", image)
	if err != nil {
		t.Fatal(err)
	}
	var entries []entry
	if err = json.Unmarshal([]byte(out), &entries); err != nil {
		t.Fatal(err)
	}
	n := 0
	for i, line := range strings.Split(strings.TrimSpace(long), "\n") {
		if has := len(entries[i].Xattrs) > 0; has != (line[10] == '+') {
			t.Errorf("%s: %q", line, entries[i].Xattrs)
		} else if has {
			n++
		}
	}
	if n < 10 {
		t.Errorf("%d files with attributes", n)
	}
}

// TestLsDamaged lists what is sound of an image with a damaged directory and says the
// rest.
func TestLsDamaged(t *testing.T) {
	raw, err := os.ReadFile(storedImage)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(raw, []byte("entry-001-x")) // its only place is the listing of big
	raw[at+2] = 0
	image := filepath.Join(t.TempDir(), "x.sqfs")
	if err = os.WriteFile(image, raw, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, flags := range [][]string{{"-R"}, {"-lR"}, {"-R", "--json"}} {
		out, says, lerr := squire2(t, append(append([]string{"ls"}, flags...), image)...)
		if status(lerr) != 1 || !strings.Contains(out, "sub/two") || !strings.HasPrefix(says, "squire: big: corrupt image at byte 0x") || strings.Count(says, "\n") != 1 {
			t.Errorf("%s: %v %s", flags, lerr, says)
		}
		if flags[len(flags)-1] == "--json" && !json.Valid([]byte(out)) {
			t.Error("no JSON")
		}
	}
	// The same in extract and inspect.
	out, says, err := squire2(t, "extract", "-q", "-d", filepath.Join(t.TempDir(), "out"), image)
	if status(err) != 1 || out != "" || !strings.HasPrefix(says, "squire: big: corrupt image at byte 0x") {
		t.Errorf("extract: %v %s", err, says)
	}
	info, _, code := inspectJSON(t, image)
	if code != 1 || len(info.Damage) != 1 || info.Damage[0].Path != "big" {
		t.Errorf("inspect: %d %+v", code, info.Damage)
	}
}
