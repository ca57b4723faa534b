package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Files arrive in the order in which they were sent, and with too many none stays open.
func TestMessageFiles(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	a, b := os.NewFile(uintptr(pair[0]), "a"), os.NewFile(uintptr(pair[1]), "b")
	defer a.Close()
	defer b.Close()
	var files []*os.File
	for i := range maxServerFiles + 1 {
		name := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(name, fmt.Append(nil, i), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files = append(files, f)
	}
	open := func() int { names, _ := os.ReadDir("/proc/self/fd"); return len(names) }
	before := open()
	for n := range maxServerFiles + 1 {
		if err := sendMessage(a, &serverConfig{Offset: int64(n)}, files[:n]...); err != nil {
			t.Fatal(err)
		}
		var cfg serverConfig
		got, err := recvMessage(b, &cfg)
		if err != nil || len(got) != n || cfg.Offset != int64(n) {
			t.Fatalf("%d files sent: %v, got %d with %+v", n, err, len(got), cfg)
		}
		for i, f := range got {
			if text, err := io.ReadAll(io.NewSectionReader(f, 0, 10)); err != nil || string(text) != fmt.Sprint(i) {
				t.Errorf("file %d is %q, %v", i, text, err)
			}
		}
		closeAll(got)
	}
	if err := sendMessage(a, new(serverDevice), files...); err != nil {
		t.Fatal(err)
	}
	if _, err := recvMessage(b, new(serverDevice)); err == nil {
		t.Error("one file too many, and no error")
	}
	if after := open(); after != before {
		t.Errorf("%d files are open, were %d", after, before)
	}
}
