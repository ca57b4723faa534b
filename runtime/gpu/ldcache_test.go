package gpu

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestCacheOfThisHost compares with what the host's ldconfig prints.
func TestCacheOfThisHost(t *testing.T) {
	b, err := os.ReadFile("/etc/ld.so.cache")
	if err != nil {
		t.Skip(err)
	}
	want, err := exec.Command("/sbin/ldconfig", "-p").Output()
	if err != nil {
		t.Skip("ldconfig: ", err)
	}
	c, err := parseCache(b)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range c.entries {
		got = append(got, e.Name+" => "+e.Path)
	}
	var lines []string
	for line := range strings.Lines(string(want)) {
		name, rest, ok := strings.Cut(strings.TrimSpace(line), " (")
		if _, file, ok2 := strings.Cut(rest, " => "); ok && ok2 {
			lines = append(lines, name+" => "+strings.TrimSpace(file))
		}
	}
	if !slices.Equal(got, lines) {
		t.Errorf("got %d entries, ldconfig has %d: %q", len(got), len(lines), firstDifference(got, lines))
	}
}

func firstDifference(a, b []string) []string {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return []string{a[i], b[i]}
		}
	}
	return nil
}

// TestMergeCache adds to this host's cache, and asks its ldconfig whether the
// result has all that was there, in an order that the loader can search.
func TestMergeCache(t *testing.T) {
	old, err := os.ReadFile("/etc/ld.so.cache")
	if err != nil {
		t.Skip(err)
	}
	before, err := parseCache(old)
	if err != nil {
		t.Fatal(err)
	}
	ours := []CacheEntry{
		{Name: "libcuda.so.1", Path: "/dev/squire/nvidia/lib64/libcuda.so.1", ABI: nativeABI()},
		{Name: "libcuda.so", Path: "/dev/squire/nvidia/lib64/libcuda.so", ABI: nativeABI()},
		{Name: "libc.so.6", Path: "/dev/squire/nvidia/lib64/libc.so.6", ABI: nativeABI()},
	}
	merged := MergeCache(old, ours)
	again := MergeCache(merged, ours)
	if !bytes.Equal(merged, again) {
		t.Error("merging twice is not merging once")
	}
	after, err := parseCache(merged)
	if err != nil {
		t.Fatal(err)
	}
	if len(after.entries) != len(before.entries)+len(ours) || !slices.Equal(after.hwcaps, before.hwcaps) {
		t.Errorf("%d entries and %q, before %d and %q", len(after.entries), after.hwcaps, len(before.entries), before.hwcaps)
	}
	if !slices.IsSortedFunc(after.entries, func(a, b CacheEntry) int { return compareLibraries(b.Name, a.Name) }) {
		t.Error("not sorted")
	}
	if !slices.IsSortedFunc(before.entries, func(a, b CacheEntry) int { return compareLibraries(b.Name, a.Name) }) {
		t.Error("ldconfig sorts in another way than compareLibraries")
	}
	i := slices.IndexFunc(after.entries, func(e CacheEntry) bool { return e.Name == "libc.so.6" })
	if after.entries[i].Path != ours[2].Path {
		t.Errorf("first libc.so.6 is %s, not ours", after.entries[i].Path)
	}
	file := filepath.Join(t.TempDir(), "ld.so.cache")
	if err = os.WriteFile(file, merged, 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("/sbin/ldconfig", "-p", "-C", file).CombinedOutput()
	if err != nil {
		t.Skip("ldconfig: ", err)
	}
	if !strings.Contains(string(out), "=> /dev/squire/nvidia/lib64/libcuda.so.1\n") {
		t.Errorf("ldconfig does not see libcuda:\n%s", out)
	}
}

func TestMergeCacheOfGarbage(t *testing.T) {
	ours := []CacheEntry{{Name: "libcuda.so.1", Path: "/d/libcuda.so.1", ABI: ABIx64}}
	want := MergeCache(nil, ours)
	for _, old := range []string{"", "x", cacheMagic, oldCacheMagic, oldCacheMagic + "\xff\xff\xff\xff", strings.Repeat("\xff", 1000), cacheMagic + strings.Repeat("\xff", 100)} {
		if got := MergeCache([]byte(old), ours); !bytes.Equal(got, want) {
			t.Errorf("%q: got %q", old, got)
		}
	}
}

// TestMergeCacheGrows: entries that share the bytes of one string must not
// grow without bound.
func TestMergeCacheGrows(t *testing.T) {
	const n = 100_000
	c := &cache{}
	for range n {
		c.entries = append(c.entries, CacheEntry{Name: strings.Repeat("x", 200), Path: "/y" + strings.Repeat("z", 4000)})
	}
	b := c.encode()
	for i := range n { // each path starts a byte later
		at := b[cacheHeader+i*cacheEntry+8:]
		binary.LittleEndian.PutUint32(at, binary.LittleEndian.Uint32(at)+uint32(i%4000))
	}
	if _, err := parseCache(b); err != nil {
		t.Fatal(err)
	}
	if got := MergeCache(b, nil); len(got) > maxCache {
		t.Errorf("%d bytes", len(got))
	}
}

func TestCompareLibraries(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want int
	}{
		{"liba.so.2", "liba.so.10", -1},
		{"liba.so.10", "liba.so.9", 1},
		{"liba.so", "liba.so.1", -1},
		{"lib1", "liba", 1},
		{"liba", "liba", 0},
		{"liba.so.01", "liba.so.1", 0},
		{"nvidia2", "nvidia10", -1},
	} {
		if got := compareLibraries(tt.a, tt.b); max(-1, min(1, got)) != tt.want {
			t.Errorf("%s, %s: got %d, want %d", tt.a, tt.b, got, tt.want)
		}
	}
}

func FuzzCache(f *testing.F) {
	b, _ := os.ReadFile("/etc/ld.so.cache")
	f.Add(b[:min(len(b), 1<<14)])
	f.Add(MergeCache(nil, []CacheEntry{{Name: "a", Path: "/b", ABI: ABIx64}}))
	f.Add((&cache{entries: []CacheEntry{{Name: "a", Path: "/b", hwcap: 1 << 62}}, hwcaps: []string{"x86-64-v3"}}).encode())
	f.Add([]byte(oldCacheMagic + "\x01\x00\x00\x00"))
	ours := []CacheEntry{{Name: "libcuda.so.1", Path: "/d/libcuda.so.1", ABI: ABIx64}}
	f.Fuzz(func(t *testing.T, b []byte) {
		merged := MergeCache(b, ours)
		c, err := parseCache(merged)
		if err != nil {
			t.Fatalf("what was written cannot be read: %v", err)
		}
		if !slices.ContainsFunc(c.entries, func(e CacheEntry) bool { return e.Name == ours[0].Name && e.Path == ours[0].Path }) {
			t.Error("ours is missing")
		}
		if old, err := parseCache(b); err == nil && len(merged) < maxCache && len(c.entries) < len(old.entries)-countIn(old, "/d/") {
			t.Errorf("%d entries of %d are left", len(c.entries), len(old.entries))
		}
		if !bytes.Equal(MergeCache(merged, ours), merged) {
			t.Error("merging twice is not merging once")
		}
	})
}

func countIn(c *cache, dir string) (n int) {
	for _, e := range c.entries {
		if strings.HasPrefix(e.Path, dir) {
			n++
		}
	}
	return n
}
