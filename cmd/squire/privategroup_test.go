package main

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestOwnGroup(t *testing.T) {
	const me, group = "me:x:1000:1000:Me:/home/me:/bin/sh", "me:x:1000:"
	for name, tt := range map[string]struct {
		user, group string
		others      []string
		want        int64
	}{
		"own":               {me, group, []string{"root:x:0:0:::", me}, 1000},
		"member of it":      {me, group + "me", []string{me}, 1000},
		"not listed":        {me, group, []string{""}, 1000},
		"others are in it":  {me, group + "me,you", []string{me}, -1},
		"first of others":   {me, group, []string{me, "you:x:1001:1000:::"}, -1},
		"of another name":   {me, "users:x:1000:", []string{me}, -1},
		"unknown user":      {"", group, nil, -1},
		"unknown group":     {me, "", []string{me}, -1},
		"root's":            {"root:x:0:0:root:/root:/bin/sh", "root:x:0:", nil, -1},
		"another's by name": {me, "me:x:1001:", []string{me}, -1},
	} {
		got := ownGroup(1000, func(database string, key ...string) []string {
			switch {
			case database == "group" && len(key) == 1 && key[0] == "1000":
				return []string{tt.group}
			case database == "passwd" && len(key) == 1 && key[0] == "1000":
				return []string{tt.user}
			case database == "passwd" && len(key) == 0:
				return tt.others
			}
			return []string{""}
		})
		if got != tt.want {
			t.Errorf("%s: got %d, want %d", name, got, tt.want)
		}
	}
}

// With an access control list the group's bits say nothing of the group.
func TestOnlyOwner(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "dir")
	for mode, want := range map[os.FileMode]bool{0o755: true, 0o700: true, 0o757: false, 0o777 | os.ModeSticky: false} {
		_ = os.Mkdir(dir, 0o700)
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		if err := unix.Stat(dir, &st); err != nil {
			t.Fatal(err)
		}
		if got := onlyOwner(dir, &st); got != want {
			t.Errorf("mode %v: got %v", mode, got)
		}
	}
}
