package importtest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// hostile are layers that are to end in an error, or in a harmless image, soon and without much memory.
var hostile = []struct {
	name  string
	gzip  func(t *testing.T) []byte
	words []string // of an error; none: it is an image
}{
	{"a file of 2^63-1 bytes", headerOnly(func(h *tar.Header) { h.Size = 1<<63 - 1 }), []string{"EOF", "size", "large", "bytes", "sha256"}},
	{"a file of 100 GiB that is not there", headerOnly(func(h *tar.Header) { h.Size = 100 << 30 }), []string{"EOF", "sha256"}},
	{"two GiB of one attribute", bomb(func(w *bytes.Buffer) int64 { return paxHeader(w, "SCHILY.xattr.user.x", 2<<30) }, 'x'), []string{"header", "long", "large", "record"}},
	{"a name of two GiB", bomb(func(w *bytes.Buffer) int64 { return longName(w, 2<<30) }, 'n'), []string{"header", "long", "large", "name"}},
	{"sixteen GiB behind the end", bomb(func(w *bytes.Buffer) int64 { w.Write(make([]byte, 1024)); return 16 << 30 }, 0), []string{"behind", "end", "large", "bytes"}},
	{"no archive but zeros", bomb(func(*bytes.Buffer) int64 { return 4 << 30 }, 0), []string{"end", "large", "bytes", "zero"}},
	{"noise", func(t *testing.T) []byte { return compress(t, "gzip", []byte(noise(1<<20, 3))) }, []string{"header", "archive", "tar"}},
	{"no gzip", func(*testing.T) []byte { return []byte(noise(1<<20, 4)) }, []string{"gzip", "header", "archive", "tar", "magic"}},
	{"half of an archive", func(t *testing.T) []byte {
		a := archives(t, []entry{file("a", noise(1<<20, 5))})[0]
		return compress(t, "gzip", a[:len(a)/2])
	}, []string{"EOF", "sha256"}},
}

// headerOnly is an archive whose only entry has no contents.
func headerOnly(change func(*tar.Header)) func(t *testing.T) []byte {
	return func(t *testing.T) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		h := &tar.Header{Typeflag: tar.TypeReg, Name: "file", Mode: 0o644}
		change(h)
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		return compress(t, "gzip", b.Bytes())
	}
}

// bomb is what begin writes, and then as many bytes as it says.
func bomb(begin func(w *bytes.Buffer) int64, fill byte) func(t *testing.T) []byte {
	return func(t *testing.T) []byte {
		var head, out bytes.Buffer
		n := begin(&head)
		w, err := gzip.NewWriterLevel(&out, gzip.BestSpeed)
		if err != nil {
			t.Fatal(err)
		}
		w.Write(head.Bytes())
		w.Close()
		// One gzip member after another is a stream too, RFC 1952: the same member again costs no time to make.
		const piece = 16 << 20
		var member bytes.Buffer
		w.Reset(&member)
		w.Write(bytes.Repeat([]byte{fill}, piece))
		w.Close()
		for ; n > 0; n -= piece {
			out.Write(member.Bytes())
		}
		return out.Bytes()
	}
}

// paxHeader begins an extended header with one record, whose value has n bytes.
func paxHeader(w *bytes.Buffer, key string, n int64) int64 {
	record := fmt.Sprintf("%d %s=", n+int64(len(key))+20, key)
	block := make([]byte, 512)
	rawHeader(block, "PaxHeaders/x", 'x', n+int64(len(record)))
	w.Write(block)
	w.WriteString(record)
	return n
}

// longName begins a GNU long name of n bytes.
func longName(w *bytes.Buffer, n int64) int64 {
	block := make([]byte, 512)
	rawHeader(block, "././@LongLink", 'L', n)
	w.Write(block)
	return n
}

// rawHeader fills a header of the old kind: tar(5).
func rawHeader(block []byte, name string, kind byte, size int64) {
	copy(block, name)
	copy(block[100:], "0000644\x000000000\x000000000\x00")
	copy(block[124:], fmt.Sprintf("%011o\x0000000000000\x00", size))
	copy(block[148:], "        ")
	block[156] = kind
	copy(block[257:], "ustar\x0000")
	sum := 0
	for _, c := range block {
		sum += int(c)
	}
	copy(block[148:], fmt.Sprintf("%06o\x00 ", sum))
}

func TestHostileLayers(t *testing.T) {
	l := newLab(t)
	for _, h := range hostile {
		t.Run(h.name, func(t *testing.T) {
			lay := newLayout(t, l.mkdir(t, root))
			data := h.gzip(t)
			lay.tag(t, "bad", lay.compressed(t, data))
			i := l.importer(t, root)
			ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
			defer cancel()
			cmd := i.command(ctx, "oci:"+lay.dir+":bad", "--arch", "amd64", "--no-cache")
			r := finish(t, cmd)
			if ctx.Err() != nil {
				t.Fatalf("still running after 90 s, layer of %d bytes: %s", len(data), r.stderr)
			}
			memory := cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss << 10
			t.Logf("layer of %d bytes: %v, CPU %v, %d MiB of memory: %s", len(data), r.status, cmd.ProcessState.UserTime(), memory>>20, strings.TrimSpace(r.stderr))
			if memory > 1<<30 {
				t.Errorf("took %d MiB of memory", memory>>20)
			}
			if r.status != 125 {
				t.Errorf("status %d: %s", r.status, r.stderr)
			}
			said := false
			for _, word := range h.words {
				said = said || strings.Contains(strings.ToLower(r.stderr), strings.ToLower(word))
			}
			if !said || strings.Contains(r.stderr, "goroutine ") || len(r.stderr) > 4<<10 {
				t.Errorf("says none of %q: %.4000s", h.words, r.stderr)
			}
			i.wantNothing(t)
		})
	}
}

// TestHostileNames imports entries that want out of the image, and makes sure that nothing outside has changed: there is
// a mark of the test in each of them.
func TestHostileNames(t *testing.T) {
	l := newLab(t)
	mark := filepath.Base(l.dir)
	lay := newLayout(t, l.mkdir(t, root))
	outside := l.mkdir(t, root)
	layers := []entry{
		file("../../../../../../../../"+outside+"/"+mark+"-1", "x"), file(outside+"/"+mark+"-2", "x"), symlink("link", outside), file("link/"+mark+"-3", "x"),
		symlink("up", "../../../../../../../.."), file("up"+outside+"/"+mark+"-4", "x"), hardlink("hard", "../../../../etc/passwd"), hardlink("hard2", "/etc/shadow"),
		whiteout("../../..", "x"), whiteout("..", "."), file("a/.wh..", "x"), file("a/.wh...", "x"), file(".wh.", "x"), file("..", "x"), dir(".."), file("a/..", "x"), symlink("loop", "loop"), file("loop/x", "x"),
	}
	for n, e := range layers {
		a, err := archive([]entry{file("good", "x"), e}, 0, map[string]*tar.Header{})
		if err != nil {
			t.Fatal(err)
		}
		lay.tag(t, fmt.Sprint(n), lay.image(t, "amd64", nil, [][]byte{a}, "gzip"))
		i := l.importer(t, root)
		// It is refused, or what it names is inside.
		if r := i.run(t, "oci:"+lay.dir+":"+fmt.Sprint(n), "--arch", "amd64", "--no-cache"); r.status == 0 {
			shown := readTree(t, l.mount(t, i.out))
			if _, ok := shown["good"]; !ok {
				t.Errorf("entry %q: the image has not what is good", e.name)
			}
			for path, n := range shown {
				if strings.HasPrefix(path, "..") || strings.Contains(path, "/../") || n.contents != "" && n.size > 100 && !strings.HasPrefix(path, "etc/") {
					t.Errorf("entry %q: the image has %q: %v", e.name, path, n)
				}
			}
		} else if r.status != 125 || strings.Contains(r.stderr, "goroutine ") {
			t.Errorf("entry %q: status %d: %s", e.name, r.status, r.stderr)
		} else {
			i.wantNothing(t)
		}
	}
	left, err := os.ReadDir(outside)
	if err != nil || len(left) > 0 {
		t.Errorf("outside of the image there is %v now, %v", left, err)
	}
}
