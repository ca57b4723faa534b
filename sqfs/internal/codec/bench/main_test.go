package main

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// file makes a file of blocks.
func file(t *testing.T, numbers ...any) string {
	t.Helper()
	var b []byte
	for _, x := range numbers {
		switch x := x.(type) {
		case int:
			b = binary.LittleEndian.AppendUint32(b, uint32(x))
		case string:
			b = append(b, x...)
		}
	}
	path := filepath.Join(t.TempDir(), "blocks")
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// A block of LZ4 that is nothing but literals.
const hello = "\x50hello"

func TestRun(t *testing.T) {
	path := file(t, 5, 4096, 2, 6, 5, hello, 6, 5, hello)
	var out strings.Builder
	if err := run([]string{path}, strings.NewReader("check\ntime\n"), &out); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(out.String(), "\n")
	if want := fmt.Sprintf("%08x", crc32.ChecksumIEEE([]byte("hellohello"))); len(lines) != 3 || lines[0] != want {
		t.Fatalf("output %q, want %s and a time", &out, want)
	}
	if _, err := strconv.ParseFloat(lines[1], 64); err != nil {
		t.Error(err)
	}
}

func TestRunErrors(t *testing.T) {
	for name, path := range map[string]string{
		"no file":        filepath.Join(t.TempDir(), "none"),
		"empty":          file(t),
		"no decoder":     file(t, 77, 4096, 0),
		"short":          file(t, 5, 4096, 2, 6, 5, hello),
		"cut block":      file(t, 5, 4096, 1, 6, 5, "\x50he"),
		"long block":     file(t, 5, 4, 1, 6, 5, hello),
		"other length":   file(t, 5, 4096, 1, 6, 6, hello),
		"damaged stream": file(t, 5, 4096, 1, 6, 5, "\x60hello"),
	} {
		if err := run([]string{path}, strings.NewReader("check\n"), new(strings.Builder)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
