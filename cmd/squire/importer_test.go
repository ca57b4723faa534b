package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A site's program gives images, and is told when they are not needed any more, also those that it failed to get.
func TestImporter(t *testing.T) {
	for _, tt := range []struct {
		name, script string
		path, want   string // of the image, and of the error
		said         string
	}{
		{"image", `echo "/$2/$EXTRA"; echo "some progress" >&2`, "/docker://x/y:1/e", "", "some progress\n"},
		{"fails", "echo no >&2; exit 3", "", "exit status 3", "no\n"},
		{"says nothing", "", "", "has printed no path", ""},
		{"no path", "echo image", "", "has printed image: want an absolute path", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			program, log := filepath.Join(dir, "importer"), filepath.Join(dir, "log")
			script := fmt.Sprintf("#!/bin/sh\necho $1 >>%s\ntest $1 = get || exit 0\n%s\n", log, tt.script)
			if err := os.WriteFile(program, []byte(script), 0o755); err != nil {
				t.Fatal(err)
			}
			progress := tempProgress(t)
			p := &importer{program: program, env: []string{"EXTRA=e"}}
			i, err := p.get(t.Context(), "docker://x/y:1", "x/y:1", progress)
			switch {
			case (err == nil) != (tt.want == ""):
				t.Errorf("got %v, want %q", err, tt.want)
			case err == nil && i.Path != tt.path:
				t.Errorf("got %q, want %q", i.Path, tt.path)
			case err != nil && (!strings.Contains(err.Error(), tt.want) || !strings.HasPrefix(err.Error(), "failed to import docker image: x/y:1: ")):
				t.Errorf("got %v", err)
			}
			if err == nil {
				i.release()
			}
			if said, err := os.ReadFile(progress.Name()); err != nil || string(said) != tt.said {
				t.Errorf("it has said %q, %v", said, err)
			}
			if got, err := os.ReadFile(log); err != nil || string(got) != "get\nrelease\n" {
				t.Errorf("it was called for %q, %v", got, err)
			}
		})
	}
}

func tempProgress(t *testing.T) *os.File {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "progress")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// Without a program of the site's, images of files need nothing.
func TestSlurmImportImageOfFile(t *testing.T) {
	i, err := new(slurmOptions).importImage(t.Context(), nil)
	if i != nil || err != nil {
		t.Errorf("got %+v, %v", i, err)
	}
}
