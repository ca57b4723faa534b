package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/squirefs/squire/sqfs/verify"
	"github.com/squirefs/squire/testdata/hostile"
)

// manyFaults writes an image whose root has n files without inodes, and returns its path.
func manyFaults(t *testing.T, n int) string {
	t.Helper()
	le := binary.LittleEndian
	var listing []byte
	for i := range n {
		if i%256 == 0 { // a header: entries less one, metadata block, inode number
			listing = le.AppendUint32(listing, uint32(min(256, n-i)-1))
			listing = le.AppendUint64(listing, 0)
		}
		listing = append(listing, 0xff, 0xff, 0, 0, 2, 0, 3, 0) // position in the block, number, file, length less one
		listing = fmt.Appendf(listing, "%04d", i)
	}
	path := filepath.Join(t.TempDir(), "x.sqfs")
	if err := os.WriteFile(path, hostile.WithListing(listing, nil, 0), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestManyFaults bounds what commands say of an image with many faults.
func TestManyFaults(t *testing.T) {
	const n = maxTold + 500
	image := manyFaults(t, n)
	dir := filepath.Join(t.TempDir(), "out")
	for _, args := range [][]string{{"ls", image}, {"cat", image, "*"}, {"extract", "-q", "-d", dir, image}, {"extract", "--json", "--force", "-d", dir, image}} {
		out, says, err := squire2(t, args...)
		lines := strings.Split(says, "\n")
		if status(err) != 1 || len(lines) <= maxTold || lines[maxTold] != "squire: … and 500 more" || !strings.HasPrefix(lines[maxTold-1], "squire: 0999: ") || len(lines) > maxTold+4 {
			t.Errorf("%s: %v, %d lines", args[0], err, len(lines))
		}
		var sum extractSummary
		if args[1] == "--json" && (json.Unmarshal([]byte(out), &sum) != nil || len(sum.Problems) != n || sum.ProblemCount != n) {
			t.Errorf("%d of %d problems as JSON", len(sum.Problems), sum.ProblemCount)
		}
	}
}

// TestShownPath cuts long paths between their characters.
func TestShownPath(t *testing.T) {
	for in, want := range map[string]string{
		"a\nb":                                `a\012b`,
		strings.Repeat("x", 1000):             strings.Repeat("x", 1000),
		strings.Repeat("x", 1001):             strings.Repeat("x", 500) + "…(1 bytes)…" + strings.Repeat("x", 500),
		strings.Repeat("é€", 1e5):             strings.Repeat("é€", 100) + "…(499000 bytes)…" + strings.Repeat("é€", 100),
		"x" + strings.Repeat("é", 1000) + "x": "x" + strings.Repeat("é", 249) + "…(1004 bytes)…" + strings.Repeat("é", 249) + "x",
	} {
		if got := shownPath(in); got != want {
			t.Errorf("%.20q: %q, want %q", in, got, want)
		}
	}
	if got := shownPath(strings.Repeat("\xbf", 5000)); len(got) > 4100 {
		t.Errorf("%d bytes", len(got))
	}
}

// TestProblems tells no more than some problems, and counts the others.
func TestProblems(t *testing.T) {
	var p problems
	for range maxTold + 7 {
		p.add(at(strings.Repeat("d/", 1e5), errors.New("bad")))
	}
	var says bytes.Buffer
	cmd := lsCommand()
	cmd.SetErr(&says)
	err := p.tell(cmd)
	if n := strings.Count(says.String(), "\n"); status(err) != 1 || n != maxTold+1 || !strings.HasSuffix(says.String(), "squire: … and 7 more\n") {
		t.Errorf("%v, %d lines: %.300s", err, n, says.String())
	}
	if says.Len() > 1100*maxTold {
		t.Errorf("%d bytes", says.Len())
	}
}

// TestInspectManyFaults bounds what inspect keeps and prints by number and by bytes.
func TestInspectManyFaults(t *testing.T) {
	path := strings.Repeat("d/", 1e5)
	report := verify.Report{DamageCount: math.MaxInt32}
	for range 2000 {
		report.Damage = append(report.Damage, verify.Damage{Path: path, Paths: 1, Block: -1, Off: -1, Err: errors.New("bad")})
	}
	var info imageInfo
	info.fill(&report)
	if n := len(info.Damage); n != maxListedBytes/(len(path)+3) || info.Damaged != math.MaxInt32 {
		t.Errorf("%d listed, %d counted", n, info.Damaged)
	}
	for i := range report.Damage {
		report.Damage[i].Path = path[:2000]
	}
	info = imageInfo{}
	info.fill(&report)
	var out bytes.Buffer
	if err := info.printDamage(&out); err != nil || strings.Count(out.String(), "\n") != maxTold+3 || !strings.HasSuffix(out.String(), "\n  … and 2147482647 more\n") || out.Len() > 1100*maxTold {
		t.Errorf("%v, %d bytes: %.200s", err, out.Len(), out.String())
	}
}
