package main

import (
	"encoding/binary"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// inspectJSON runs inspect and decodes what it prints.
func inspectJSON(t *testing.T, args ...string) (info imageInfo, stderr string, code int) {
	t.Helper()
	out, stderr, err := squire2(t, append([]string{"inspect", "--json"}, args...)...)
	if jerr := json.Unmarshal([]byte(out), &info); jerr != nil {
		t.Fatalf("%v, %s\n%s", jerr, stderr, out)
	}
	return info, stderr, status(err)
}

// TestInspectSound looks at a sound image with and without expanding it.
func TestInspectSound(t *testing.T) {
	fast, _, code := inspectJSON(t, testImage)
	full, _, code2 := inspectJSON(t, "--verify", testImage)
	if code != 0 || code2 != 0 || fast.Verified || !full.Verified || fast.Damaged+full.Damaged != 0 {
		t.Errorf("status %d and %d: %+v %+v", code, code2, fast, full)
	}
	if *fast.Contents != *full.Contents || *fast.Data != *full.Data || fast.Contents.Files < 300 || fast.Contents.HardLinks == 0 || fast.Contents.Holes == 0 {
		t.Errorf("%+v %+v", fast.Contents, full.Contents)
	}
	if fast.Superblock.InodeTable != fast.Tables[0].Start || fast.Tables[0].Blocks != 0 || full.Tables[0].Blocks == 0 {
		t.Errorf("%+v %+v", fast.Tables, full.Tables)
	}
	out, _, err := squire2(t, "inspect", "--verify", testImage)
	if err != nil || !strings.Contains(out, "Verified: all of it can be read") || !strings.Contains(out, "inode table") {
		t.Errorf("%v %s", err, out)
	}
}

// TestInspectDamaged damages a block, and wants it to be found by --verify only, with its
// place; and by people as well.
func TestInspectDamaged(t *testing.T) {
	name := bigFile(t)
	image := damaged(t, name, 3)
	if info, stderr, code := inspectJSON(t, image); code != 0 || info.Damaged != 0 {
		t.Errorf("without --verify: %d %s", code, stderr)
	}
	info, stderr, code := inspectJSON(t, "--verify", image)
	if code != 1 || info.Damaged != 1 || len(info.Damage) != 1 || !strings.Contains(stderr, "damaged in 1 place\n") {
		t.Fatalf("%d %s %+v", code, stderr, info.Damage)
	}
	d := info.Damage[0]
	if d.Path != name || d.Paths != 1 || d.Inode == 0 || *d.Block != 3 || *d.Off < 96 || !strings.Contains(d.Error, "corrupt") {
		t.Errorf("%+v", d)
	}
	out, _, err := squire2(t, "inspect", "--verify", image)
	if status(err) != 1 || !strings.Contains(out, "\nDamaged:\n  "+name+": inode ") || !strings.Contains(out, ", block 3: corrupt image at byte 0x") {
		t.Errorf("%v %s", err, out)
	}
}

// TestInspectRefused looks at images that cannot be opened: what the superblock says is
// shown all the same.
func TestInspectRefused(t *testing.T) {
	raw, err := os.ReadFile(testImage)
	if err != nil {
		t.Fatal(err)
	}
	write := func(b []byte) string {
		path := filepath.Join(t.TempDir(), "x.sqfs")
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	info, stderr, code := inspectJSON(t, write(raw[:len(raw)/2]))
	if code != 1 || info.Inodes < 300 || info.Contents != nil || !strings.Contains(stderr, "is the file cut off?") || info.Error == "" {
		t.Errorf("cut off: %d %s %+v", code, stderr, info)
	}
	bad := append([]byte{}, raw...)
	binary.LittleEndian.PutUint64(bad[48:], 1<<40) // the id table
	if info, stderr, code = inspectJSON(t, write(bad)); code != 1 || info.Superblock.IDTable != 1<<40 || !strings.Contains(stderr, "id table") {
		t.Errorf("no ids: %d %s %+v", code, stderr, info)
	}
	binary.LittleEndian.PutUint16(bad[20:], 99)
	if info, _, code = inspectJSON(t, write(bad)); code != 125 || info.Compression != "compressor 99" {
		t.Errorf("compressor: %d %+v", code, info)
	}
}
