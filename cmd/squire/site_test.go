package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/squirefs/squire/internal/testenv"
)

// useSite makes a directory stand in for /etc/squire until the test ends. Files in it
// count only where the test is run by root.
func useSite(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		name = filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	was := siteDir
	siteDir = dir
	t.Cleanup(func() { siteDir = was })
	return dir
}

func needRoot(t *testing.T) {
	t.Helper()
	testenv.NeedRoot(t, "for what counts only if it is root's")
}

func TestSiteMounts(t *testing.T) {
	needRoot(t)
	t.Setenv("SQUIRE_TEST_DIR", "/usr")
	dir := useSite(t, map[string]string{
		"mounts.d/20.fstab":     "tmpfs /scratch tmpfs size=1M\n",
		"mounts.d/10-a.fstab":   "/etc /site/etc none ro\n$SQUIRE_TEST_DIR /site/usr\n$SQUIRE_NOT_SET /x nofail\n",
		"mounts.d/.hid.fstab":   "nonsense",
		"mounts.d/readme":       "nonsense",
		"mounts.d/10-a.fstab~x": "nonsense",
	})
	out, err := squire(t, "run", "--plan", "--tmpfs", "/t:size=2M,mode=755", "--mounts", "/root:/t/x,/root:/mine", testImage)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for line := range strings.Lines(out) {
		for _, word := range []string{"/site", "/scratch", "/mine", "/t"} {
			if strings.Contains(line, " "+word+"/") || strings.Contains(line, " "+word+" ") || strings.HasSuffix(line, " "+word+"\n") {
				if !strings.HasPrefix(line, "layer") {
					got = append(got, strings.TrimSpace(line))
				}
				break
			}
		}
	}
	want := `bind      /etc -> /site/etc (ro)
bind      /usr -> /site/usr
tmpfs     /scratch (size=1M,nosuid,nodev)
tmpfs     /t (size=2M,mode=755,nosuid,nodev)
bind      /root -> /t/x
bind      /root -> /mine`
	if strings.Join(got, "\n") != want {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), want)
	}

	file := filepath.Join(dir, "mounts.d/10-a.fstab")
	for _, bad := range []struct {
		spoil   func() error
		message string
	}{
		{func() error { return os.WriteFile(file, []byte("\n/no/such /x\n"), 0o644) }, "10-a.fstab: line 2: source /no/such: no such file"},
		{func() error { return os.WriteFile(file, []byte("/etc /x r0\n"), 0o644) }, `10-a.fstab: line 1: unknown flag "r0"`},
		{func() error { return os.Chmod(file, 0o646) }, "nobody else may write to it"},
		{func() error { return errors.Join(os.Chmod(file, 0o664), os.Chown(file, 0, 12345)) }, "nobody else may write to it"},
		{func() error { return errors.Join(os.Chmod(file, 0o644), os.Chown(file, 12345, 0)) }, "must belong to root"},
		{func() error { return errors.Join(os.Remove(file), unix.Mkfifo(file, 0o644)) }, "not a plain file"},
		{func() error { return errors.Join(os.Remove(file), os.Symlink("/dev/zero", file)) }, "not a plain file"},
		{func() error { return errors.Join(os.Remove(file), os.Symlink("/no/such", file)) }, "10-a.fstab: no such file"},
	} {
		if err := bad.spoil(); err != nil {
			t.Fatal(err)
		}
		if _, err := squire(t, "run", "--plan", testImage); err == nil || !strings.Contains(err.Error(), bad.message) {
			t.Errorf("error %v, want one with %q", err, bad.message)
		}
	}
}

// A site that says nothing says nothing.
func TestSiteEmpty(t *testing.T) {
	dir := useSite(t, nil)
	for range 2 {
		if _, err := squire(t, "run", "--plan", testImage); err != nil {
			t.Error(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "mounts.d"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
