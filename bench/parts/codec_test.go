package main

import (
	"context"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/squirefs/squire/sqfs"
)

func TestParseCodecOptions(t *testing.T) {
	o, err := parseCodecOptions([]string{"-rounds", "3", "-only", "lz", "-size", "2", "-dir", "d", "-json", "f"})
	if err != nil || o.rounds != 3 || o.cases != "lz" || o.size != 2 || o.dir != "d" || o.json != "f" {
		t.Errorf("%+v, %v", o, err)
	}
	for _, args := range [][]string{{"IMAGE"}, {"-rounds", "0"}, {"-size", "0"}} {
		if _, err := parseCodecOptions(args); err == nil {
			t.Errorf("%q: no error", args)
		}
	}
}

func TestFindCases(t *testing.T) {
	for words, want := range map[string]int{"": 9, "lz": 4, "xz,gzip": 3} {
		if got, err := findCases(words); err != nil || len(got) != want {
			t.Errorf("findCases(%q): %d, %v, want %d", words, len(got), err, want)
		}
	}
	if _, err := findCases("nothing like it"); err == nil {
		t.Error("a word that no case has: no error")
	}
}

func TestCodecReport(t *testing.T) {
	r := codecReport{Machine: "m", Rounds: 3, Failures: []string{"lzo: oh"}, Results: []codecResult{
		{
			Case: "gzip", BlockSize: 131072, Blocks: 3, Compressed: 1_000_000, Expanded: 4_000_000,
			Times: []codecTimes{
				{Name: squireName, Seconds: []float64{0.02, 0.01, 0.04}},
				{Name: "zlib", Seconds: []float64{0.03, 0.02, 0.04}, Goal: 1.3},
				{Name: "libdeflate", Seconds: []float64{0.01, 0.01, 0.01}},
			},
		},
		{
			Case: "gzip", BlockSize: 8192, Blocks: 3, Compressed: 1_000_000, Expanded: 4_000_000,
			Times: []codecTimes{{Name: squireName, Seconds: []float64{0.02}}},
		},
	}}
	for i := range r.Results {
		r.Results[i].finish()
	}
	if got := r.Results[0].Times[1]; got.Ratio != 1.5 || got.RatioMin != 1 || got.RatioMax != 2 || got.Median != 0.03 {
		t.Errorf("zlib's result %+v", got)
	}
	var out strings.Builder
	if err := r.print(&out); err != nil {
		t.Fatal(err)
	}
	want := `m; CPU time of one thread, medians of 3 rounds; ratio: squire's speed over the library's [least–most]

blocks of 128 KiB  MB   compressed  library     MB/s  squire MB/s  ratio             goal
gzip               4.0  1.00        zlib        133   200          1.50 [1.00–2.00]  1.30
                                    libdeflate  400   200          0.50 [0.25–1.00]  

blocks of 8 KiB  MB   compressed  library  MB/s  squire MB/s  ratio  goal
gzip             4.0  1.00        -              200                 
FAILED lzo: oh
`
	if out.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", &out, want)
	}
}

func TestChoose(t *testing.T) {
	dir := t.TempDir()
	for name, size := range map[string]int{"a/1.py": 100, "a/b/2.py": 100, "c/3.py": 100, "c/no.txt": 100, "c/big.py": maxPiece + 1, "c/empty.py": 0} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, make([]byte, size), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	all := dir + "/*,none," + dir + "/a" // the same file comes once
	if got, n := choose(all, isPython, 1<<30); len(got) != 4 || n != 300+maxPiece {
		t.Errorf("everything: %v, %d bytes", got, n)
	}
	if got, n := choose(dir+"/a", isPython, 150); len(got) != 2 || n != 150 {
		t.Errorf("150 bytes: %v, %d bytes", got, n)
	}
	if got, n := choose(all, isELF, 1<<30); len(got) != 0 || n != 0 {
		t.Errorf("no ELF files: %v, %d bytes", got, n)
	}
	one, _ := choose(all, isPython, 1<<30)
	two, _ := choose(all, isPython, 1<<30)
	if !slices.Equal(one, two) {
		t.Errorf("%v, then %v", one, two)
	}
}

// needs skips a test that uses programs which are not there.
func needs(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("%s is not installed", p)
		}
	}
}

// smallBench has as input what this package's directory holds, repeated.
func smallBench(t *testing.T) *codecBench {
	t.Helper()
	dir := t.TempDir()
	text, err := os.ReadFile("codec_test.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"input-1048576", "input-262144"} {
		if err := os.WriteFile(filepath.Join(dir, name), slices.Repeat(text, 60), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	o := codecOptions{rounds: 1, limit: time.Minute, size: 1, dir: dir}
	return &codecBench{codecOptions: o, work: t.TempDir(), programs: make(map[string]string)}
}

// TestDumpBlocks takes a file of blocks apart and has the image's own reader confirm what is in it.
func TestDumpBlocks(t *testing.T) {
	needs(t, "mksquashfs")
	b := smallBench(t)
	image, err := b.image(t.Context(), codecCases[0], codecShapes[1])
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "blocks")
	sum, err := dumpBlocks(image, path)
	if err != nil {
		t.Fatal(err)
	}
	img, err := sqfs.OpenImage(image)
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	blocks, err := compressedBlocks(img)
	if err != nil || len(blocks) < 10 || len(blocks) != sum.blocks {
		t.Fatalf("%d blocks, %v; the summary has %d", len(blocks), err, sum.blocks)
	}
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	var want []byte
	var compressed, expanded int64
	for _, x := range []uint32{1, 8192, uint32(len(blocks))} {
		want = binary.LittleEndian.AppendUint32(want, x)
	}
	for _, blk := range blocks {
		want = binary.LittleEndian.AppendUint32(want, blk.Size)
		want = binary.LittleEndian.AppendUint32(want, blk.Len)
		want = append(want, raw[blk.Off:blk.Off+int64(blk.Size)]...)
		compressed += int64(blk.Size)
		expanded += int64(blk.Len)
	}
	if string(file) != string(want) {
		t.Errorf("file of %d bytes, want %d others", len(file), len(want))
	}
	if sum.compressed != compressed || sum.expanded != expanded {
		t.Errorf("summary %+v, want %d and %d bytes", sum, compressed, expanded)
	}
}

// TestMeasure lets squire and the libraries that are there expand a few blocks, and compares their output.
func TestMeasure(t *testing.T) {
	needs(t, "mksquashfs", "cc")
	b := smallBench(t)
	if err := b.build(t.Context(), codecCases); err != nil {
		t.Skip(err)
	}
	for _, c := range codecCases {
		t.Run(c.name, func(t *testing.T) {
			if _, ok := b.programs[c.libs[0]]; !ok {
				t.Skipf("no %s to compare with", c.libs[0])
			}
			for _, shape := range codecShapes {
				res, err := b.measure(t.Context(), c, shape)
				if err != nil || len(res.Times) < 2 || res.Times[0].Name != squireName || len(res.Times[0].Seconds) != 1 {
					t.Fatalf("%+v, %v", res, err)
				}
			}
		})
	}
}

// script makes a contestant that answers each line with a command's output.
func script(t *testing.T, name, command string, limit time.Duration) *contestant {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte("#!/bin/sh\nwhile read -r line; do "+command+"; done\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	p, err := startContestant(name, path, "file", limit)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.stop)
	return p
}

func TestContestant(t *testing.T) {
	good := script(t, "good", `case $line in check) echo 1234 ;; *) echo 0.5 ;; esac`, time.Minute)
	same := script(t, "same", `echo 1234`, time.Minute)
	other := script(t, "other", `echo 4321`, time.Minute)
	broken := script(t, "broken", `echo oh dear >&2; exit 1`, time.Minute)
	if err := sameOutput([]*contestant{good, same}); err != nil {
		t.Error(err)
	}
	if err := sameOutput([]*contestant{good, other}); err == nil {
		t.Error("other output: no error")
	}
	if s, err := good.time(); err != nil || s != 0.5 {
		t.Errorf("took %v, %v", s, err)
	}
	if _, err := broken.check(); err == nil || !strings.Contains(err.Error(), "oh dear") {
		t.Errorf("error %v, want what the contestant said", err)
	}
}

func TestContestantTimeLimit(t *testing.T) {
	start := time.Now()
	p := script(t, "slow", `exec sleep 60`, 200*time.Millisecond)
	if _, err := p.time(); err == nil {
		t.Error("no error")
	}
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("took %v", took)
	}
}

func TestMakeFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	fail := func(path string) error {
		os.WriteFile(path, []byte("half"), 0o644)
		return context.Canceled
	}
	if err := makeFile(path, fail); err == nil {
		t.Error("no error")
	}
	if left, _ := filepath.Glob(path + "*"); left != nil {
		t.Errorf("left %v", left)
	}
}
