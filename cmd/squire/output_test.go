package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// names lists a directory.
func names(t *testing.T, dir string) string {
	t.Helper()
	all, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range all {
		list = append(list, e.Name())
	}
	return strings.Join(list, " ")
}

// makeHidden makes an output have a hidden name, as on a file system without O_TMPFILE.
func (o *output) makeHidden(t *testing.T) {
	t.Helper()
	o.file.Close()
	o.hidden = o.hiddenName()
	fd, err := unix.Openat(o.fd(), o.hidden, unix.O_CREAT|unix.O_EXCL|unix.O_RDWR|unix.O_CLOEXEC, 0o666)
	if err != nil {
		t.Fatal(err)
	}
	o.file = os.NewFile(uintptr(fd), o.path)
}

// both runs a test with and without a hidden name.
func both(t *testing.T, test func(t *testing.T, open func(path string, force bool) *output)) {
	for _, hidden := range []bool{false, true} {
		name := "no name"
		if hidden {
			name = "hidden"
		}
		t.Run(name, func(t *testing.T) {
			test(t, func(path string, force bool) *output {
				t.Helper()
				o, err := newOutput(path, force)
				if err != nil {
					t.Fatal(err)
				}
				if hidden {
					o.makeHidden(t)
				}
				return o
			})
		})
	}
}

func TestOutput(t *testing.T) {
	both(t, func(t *testing.T, open func(string, bool) *output) {
		dir := t.TempDir()
		path := filepath.Join(dir, strings.Repeat("x", 255))
		o := open(path, false)
		if _, err := o.File().WriteString("all"); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("it is there before its time: %v", err)
		}
		var st unix.Stat_t
		if err := unix.Fstat(int(o.File().Fd()), &st); err != nil || !o.is(st.Dev, st.Ino) || o.is(st.Dev, st.Ino+1) {
			t.Errorf("it is not itself: %v", err)
		}
		if err := o.commit(); err != nil {
			t.Fatal(err)
		}
		o.discard()
		b, err := os.ReadFile(path)
		if err != nil || string(b) != "all" || names(t, dir) != filepath.Base(path) {
			t.Errorf("%q %v %s", b, err, names(t, dir))
		}
		umask := unix.Umask(0)
		unix.Umask(umask)
		info, err := os.Stat(path)
		if err != nil || int(info.Mode()) != 0o666&^umask {
			t.Errorf("%v %v", info, err)
		}
		open(filepath.Join(dir, "other"), false).discard()
		if names(t, dir) != filepath.Base(path) {
			t.Errorf("left %s", names(t, dir))
		}
	})
}

// A file that appeared meanwhile is not replaced without force.
func TestOutputRace(t *testing.T) {
	both(t, func(t *testing.T, open func(string, bool) *output) {
		dir := t.TempDir()
		path := filepath.Join(dir, "out")
		race := func(force bool) []error {
			var wg sync.WaitGroup
			var all []*output
			for range 8 {
				all = append(all, open(path, force))
			}
			errs := make([]error, len(all))
			for i, o := range all {
				wg.Go(func() { errs[i] = o.commit() })
			}
			wg.Wait()
			return errs
		}
		won := 0
		for _, err := range race(false) {
			if err == nil {
				won++
			} else if !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), "--force") {
				t.Error(err)
			}
		}
		if won != 1 || names(t, dir) != "out" {
			t.Errorf("%d won; left %s", won, names(t, dir))
		}
		if err := errors.Join(race(true)...); err != nil || names(t, dir) != "out" {
			t.Errorf("with force: %v; left %s", err, names(t, dir))
		}
	})
}

func TestOutputRefuses(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := errors.Join(os.WriteFile(at("file"), []byte("old"), 0o644), os.Symlink("file", at("link")),
		unix.Mkfifo(at("fifo"), 0o644), os.Mkdir(at("dir"), 0o755)); err != nil {
		t.Fatal(err)
	}
	for path, says := range map[string][2]string{ // without and with force
		at("file"):       {"file already exists; --force", ""},
		at("link"):       {"file already exists; --force", ""},
		at("fifo"):       {"not a regular file", "not a regular file"},
		at("dir"):        {"is a directory", "is a directory"},
		at("dir") + "/":  {"not the name", "not the name"},
		"":               {"not the name", "not the name"},
		"..":             {"not the name", "not the name"},
		"-":              {"standard output", "standard output"},
		at("none/out"):   {"no such file", "no such file"},
		at("file/out"):   {"not a directory", "not a directory"},
		at("new"):        {"", ""},
		at("dir/../new"): {"", ""},
	} {
		for i, want := range says {
			o, err := newOutput(path, i == 1)
			if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
				t.Errorf("%s, force %v: %v, want %q", path, i == 1, err, want)
			}
			if err == nil {
				o.discard()
			}
		}
	}
	if got := names(t, dir); got != "dir fifo file link" {
		t.Errorf("left %s", got)
	}
}
