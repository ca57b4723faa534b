package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// systemd understands every line of its units.
func TestUnits(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("needs systemd-analyze")
	}
	self, err := os.Executable() // what a unit starts must be there
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var units []string
	for _, name := range []string{"squire.service", "squire.socket"} {
		text, err := os.ReadFile("../../dist/" + name)
		if err != nil {
			t.Fatal(err)
		}
		text = bytes.ReplaceAll(text, []byte("/usr/local/bin/squire"), []byte(self))
		units = append(units, filepath.Join(dir, name))
		if err := os.WriteFile(units[len(units)-1], text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, analyze, append([]string{"verify", "--man=no"}, units...)...).CombinedOutput()
	if ctx.Err() != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) { // it looks at units of the host's, too
		if strings.Contains(line, "squire") {
			t.Error(line)
		}
	}
}
