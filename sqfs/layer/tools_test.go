package layer

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Archives of GNU tar, in all its formats, are what they were made from.
func TestGNUTar(t *testing.T) {
	tool, err := exec.LookPath("tar")
	if err != nil {
		t.Skip("tar is not installed")
	}
	src := filepath.Join(t.TempDir(), "src")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	long := strings.Repeat("long", 25)
	must(os.MkdirAll(filepath.Join(src, "d", long, long), 0o755))
	must(os.Chmod(filepath.Join(src, "d"), 0o1777))
	must(os.WriteFile(filepath.Join(src, "d", long, long, "file"), []byte("contents"), 0o600))
	must(os.Link(filepath.Join(src, "d", long, long, "file"), filepath.Join(src, "link")))
	must(os.Symlink(strings.Repeat("../", 60)+"x", filepath.Join(src, "symlink")))
	must(os.WriteFile(filepath.Join(src, "\xff\n odd"), []byte("1"), 0o4755))
	must(unix.Mkfifo(filepath.Join(src, "p"), 0o644))
	sparse, err := os.Create(filepath.Join(src, "sparse"))
	must(err)
	defer sparse.Close()
	for i := range int64(12) {
		_, err := sparse.WriteAt([]byte("data"), i<<20)
		must(err)
	}
	must(sparse.Truncate(20 << 20))
	xattr := unix.Setxattr(filepath.Join(src, "d"), "user.x", []byte("a\x00b\n"), 0) == nil
	want := list(t, src)
	for _, c := range [][]string{
		{"--format=gnu"},
		{"--format=oldgnu", "--sparse"},
		{"--format=gnu", "--sparse"},
		{"--format=posix", "--sparse", "--sparse-version=0.0"},
		{"--format=posix", "--sparse", "--sparse-version=0.1"},
		{"--format=posix", "--sparse", "--sparse-version=1.0", "--xattrs"},
	} {
		t.Run(strings.Join(c, " "), func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "tar")
			out, err := exec.CommandContext(t.Context(), tool, append(c, "-C", src, "-cf", file, ".")...).CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			b, err := os.ReadFile(file)
			must(err)
			img, _, _ := image(t, Options{Plain: true}, b)
			got := showImage(t, img)
			if xattr && slices.Contains(c, "--xattrs") {
				lines, _, _, err := mergeAll(t, Options{Plain: true}, b)
				if err != nil || !slices.ContainsFunc(lines, func(s string) bool { return strings.HasSuffix(s, " d user.x=a\x00b\n") }) {
					t.Errorf("no attribute: %v", err)
				}
			}
			if len(got) != len(want) {
				t.Fatalf("%d names, not %d", len(got), len(want))
			}
			for i := range got {
				if got[i] != want[i] {
					t.Errorf("got %.300q, not %.300q", got[i], want[i])
				}
			}
		})
	}
}
