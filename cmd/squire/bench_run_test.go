package main_test

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/squirefs/squire/bench"
	"github.com/squirefs/squire/internal/testenv"
)

// TestBench measures a tiny image with all peers that are there, once, as root and as an ordinary user.
func TestBench(t *testing.T) {
	l := newBenchLab(t)
	for _, who := range mounters {
		if who.cred == nil && os.Getuid() != 0 {
			continue
		}
		if os.Getuid() != 0 {
			who.cred = nil
		}
		t.Run(who.name, func(t *testing.T) { testBench(t, l, who) })
		t.Run("stuck/"+who.name, func(t *testing.T) { testBenchStuck(t, l, who) })
		t.Run("interrupted/"+who.name, func(t *testing.T) { testBenchInterrupted(t, l, who) })
	}
}

// newBenchLab has the binary, and an image that is made here.
func newBenchLab(t *testing.T) *lab {
	t.Helper()
	testenv.NeedTime(t, "mounts")
	testenv.NeedTools(t, "mksquashfs", "fusermount3")
	testenv.NeedFUSE(t)
	dir, err := os.MkdirTemp("", "squire-lab") // not t.TempDir: its parent is closed to other users
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{dir: dir, squire: filepath.Join(dir, "squire"), images: map[string]string{"tiny": filepath.Join(dir, filepath.Base(dir)+".sqsh")}}
	t.Cleanup(l.clear)
	src := filepath.Join(t.TempDir(), "tree")
	for name, size := range map[string]int{"small": 100, "dir/small": 5000, "dir/large": 3 << 20, "private": 100} {
		path := filepath.Join(src, name)
		if err = os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err = os.WriteFile(path, []byte(strings.Repeat("all work and no play\n", size/21+1)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, mode := range map[string]os.FileMode{"private": 0o600, ".": 0o755} {
		if err = os.Chmod(filepath.Join(src, name), mode); err != nil {
			t.Fatal(err)
		}
	}
	err = errors.Join(testenv.Build(l.squire, ""), os.Chmod(dir, 0o755))
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mksquashfs", src, l.images["tiny"], "-quiet", "-no-progress", "-all-root").CombinedOutput(); err != nil {
		t.Fatalf("mksquashfs: %v\n%s", err, out)
	}
	return l
}

func testBench(t *testing.T, l *lab, who user) {
	dir := l.mountPoint(t, who)
	picture := filepath.Join(dir, "report.svg")
	r := l.run(t, who, l.squire, "bench", "--rounds", "1", "--limit", "10s", "--dir", dir, "--json", "-", "--report", picture,
		"--peer", "mine="+l.squire+" mount IMAGE DIR", "--image", l.images["tiny"])
	if r.status != 0 {
		t.Fatalf("status %d, %s", r.status, r.stderr)
	}
	var rep bench.Report
	if err := json.Unmarshal([]byte(r.stdout), &rep); err != nil {
		t.Fatalf("%v: %s", err, r.stdout)
	}
	want := []string{"squire", "directory", "mine"}
	if who.cred == nil && os.Getuid() == 0 {
		want = append(want, "kernel")
	}
	for _, name := range want {
		if !slices.ContainsFunc(rep.Peers, func(p bench.PeerInfo) bool { return p.Name == name }) {
			t.Errorf("no peer %s, %s", name, rep.LeftOut)
		}
	}
	// Mounting, walking, small files, one file, random pages, and everything twice; all but mounting cold and warm.
	if len(rep.Rows) != 2+2*6 {
		t.Errorf("%d rows: %s", len(rep.Rows), r.stdout)
	}
	for _, row := range rep.Rows {
		for _, res := range row.Results {
			want := 1
			if row.Cache == "" && res.Peer == "directory" { // no mount
				want = 0
			}
			if len(res.Wall.Samples) != want || len(res.CPU.Samples) != want {
				t.Errorf("%s, %s: %+v", row.Workload, res.Peer, res)
			}
		}
		if strings.HasPrefix(row.Workload, "read all") {
			if files := int64(4); who.cred == nil && os.Getuid() == 0 && row.Files != files || row.Bytes < 3<<20 {
				t.Errorf("%s: %d files, %d bytes", row.Workload, row.Files, row.Bytes)
			}
		}
	}
	if text, err := os.ReadFile(picture); err != nil || !strings.Contains(string(text), "Wall time relative to "+rep.Reference) {
		t.Errorf("picture: %v, %.300s", err, text)
	}
	os.Remove(picture)
	nothingLeft(t, l, dir)
}

// testBenchStuck has a peer whose server never answers: it fails, and goes away.
func testBenchStuck(t *testing.T, l *lab, who user) {
	dir := l.mountPoint(t, who)
	script := l.file(t, "stuck", []byte(`#!/bin/sh
"$1" mount "$2" "$3" || exit
for p in /proc/[0-9]*; do
	[ "$(tr -d '\0' <"$p/cmdline" 2>/dev/null)" = squire-serve ] && [ "$p/exe" -ef "$1" ] && kill -STOP "${p#/proc/}"
done
exit 0
`))
	if err := os.Chmod(script, 0o755); err != nil {
		t.Fatal(err)
	}
	r := l.run(t, who, l.squire, "bench", "--rounds", "1", "--limit", "1s", "--dir", dir, "--workloads", "walk", "--peers", "squire",
		"--peer", "stuck="+script+" "+l.squire+" IMAGE DIR", l.images["tiny"])
	if r.status != 1 || !strings.Contains(r.stdout, "FAILED stuck, round 1, walk with stat") || strings.Contains(r.stdout, "FAILED squire") {
		t.Errorf("status %d, %s%s", r.status, r.stdout, r.stderr)
	}
	nothingLeft(t, l, dir)
}

// testBenchInterrupted ends a run in its middle.
func testBenchInterrupted(t *testing.T, l *lab, who user) {
	dir := l.mountPoint(t, who)
	cmd := l.command(t.Context(), who, l.squire, "bench", "--rounds", "1000000", "--limit", "10s", "--dir", dir, "--peers", "squire", l.images["tiny"])
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd.Stdout = out
	var says strings.Builder
	cmd.Stderr = &says
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for range 200 { // until it has mounted something
		if len(l.mounts()) > 0 {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	_ = cmd.Process.Signal(syscall.SIGINT)
	watchdog := time.AfterFunc(30*time.Second, func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
	defer watchdog.Stop()
	_ = cmd.Wait()
	if got, want := cmd.ProcessState.ExitCode(), 128+int(syscall.SIGINT); got != want {
		t.Errorf("status %d, want %d", got, want)
	}
	if text, err := os.ReadFile(out.Name()); err != nil || !strings.Contains(string(text), "mount to first stat") {
		t.Errorf("%v, got no table: %s", err, text)
	} else if !strings.Contains(string(text), "interrupted: not all was measured") || strings.Count(says.String(), "squire: interrupted\n") != 1 {
		t.Errorf("says nothing of the interruption: %s%s", text, &says)
	}
	nothingLeft(t, l, dir)
}

// nothingLeft says what a run has left behind.
func nothingLeft(t *testing.T, l *lab, dir string) {
	t.Helper()
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left in its directory: %v, %v", left, err)
	}
	l.wantNothingLeft(t)
}
