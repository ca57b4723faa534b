package layer

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
)

// raw is a header as it stands in an archive, for what archive/tar does not write.
type raw [512]byte

// header makes a header in GNU's or in POSIX's form.
func rawHeader(name string, typ byte, size int64) *raw {
	h := new(raw)
	copy(h[0:100], name)
	copy(h[100:], "0000644\x00")
	copy(h[108:], "0000000\x00")
	copy(h[116:], "0000000\x00")
	h.number(124, 12, size)
	copy(h[136:], "00000000000\x00")
	h[156] = typ
	copy(h[257:], "ustar\x0000")
	return h.sum()
}

// number puts a number into a field, in octal if it fits.
func (h *raw) number(at, width int, n int64) *raw {
	if n >= 0 && n < 1<<(3*(width-1)) {
		copy(h[at:at+width], fmt.Sprintf("%0*o\x00", width-1, n))
		return h
	}
	for i := range width {
		h[at+i] = byte(n >> (8 * min(width-1-i, 7)))
		if width-1-i > 7 {
			h[at+i] = byte(n >> 63)
		}
	}
	h[at] |= 0x80
	return h
}

// sum sets the checksum.
func (h *raw) sum() *raw {
	copy(h[148:156], "        ")
	n := 0
	for _, b := range h {
		n += int(b)
	}
	copy(h[148:156], fmt.Sprintf("%06o\x00 ", n))
	return h
}

// gnu gives the header GNU's magic.
func (h *raw) gnu() *raw {
	copy(h[257:], "ustar  \x00")
	return h.sum()
}

// padded is contents with what fills its last block.
func padded(s string) string { return s + strings.Repeat("\x00", -len(s)&511) }

// join puts headers and contents one after the other.
func joined(parts ...any) []byte {
	var b bytes.Buffer
	for _, p := range parts {
		switch p := p.(type) {
		case *raw:
			b.Write(p[:])
		case string:
			b.WriteString(padded(p))
		}
	}
	return append(b.Bytes(), make([]byte, 1024)...)
}

// records writes PAX records.
func records(pairs ...string) string {
	var b strings.Builder
	for i := 0; i < len(pairs); i += 2 {
		rest := len(pairs[i]) + len(pairs[i+1]) + 3
		n := rest + len(fmt.Sprint(rest))
		if n != rest+len(fmt.Sprint(n)) {
			n++
		}
		fmt.Fprintf(&b, "%d %s=%s\n", n, pairs[i], pairs[i+1])
	}
	return b.String()
}

// pax is a PAX header with its records.
func pax(typ byte, pairs ...string) []any {
	r := records(pairs...)
	return []any{rawHeader("pax", typ, int64(len(r))), r}
}

func TestHostileHeaders(t *testing.T) {
	file := func(name, data string) []any { return []any{rawHeader(name, '0', int64(len(data))), data} }
	long := strings.Repeat("long/", 1000)
	for _, c := range []struct {
		name  string
		parts [][]any
		want  string // as in TestStacks
	}{
		{"newline and bytes", [][]any{file("a\nb\xff\xfe", "1")}, "f 644 0 a\nb\xff\xfe 1"},
		{"NUL", [][]any{file("a\x00b", "1")}, "f 644 0 a 1"},
		{"NUL in PAX", [][]any{pax('x', "path", "a\x00b"), file("c", "1")}, "error: invalid tar header"},
		{"slash behind a file", [][]any{file("a/", "1")}, "f 644 0 a 1"},
		{"old directory", [][]any{{rawHeader("a/", 0, 0)}}, "d 644 0 a"},
		{"no name", [][]any{file("", "1")}, "error: cannot be anything but a directory"},
		{"5000 bytes", [][]any{pax('x', "path", long+"../../"+strings.Repeat("../", 997)+"x"), file("c", "1")}, "d 755 0 long | f 644 0 long/x 1"},
		{"70000 bytes", [][]any{pax('x', "path", strings.Repeat("a/", 35000)), file("c", "1")}, "error: the path has more than 65536 bytes"},
		{"5000 deep", [][]any{pax('x', "path", strings.Repeat("a/", 5000)), file("c", "1")}, "error: or 4095 components"},
		{"long component", [][]any{pax('x', "path", strings.Repeat("a", 256)), file("c", "1")}, "error: the name of a component has more than 255 bytes"},
		{"long target", [][]any{pax('x', "linkpath", strings.Repeat("a", 4096)), {rawHeader("c", '2', 0)}}, "error: the symlink's target has 4096 bytes"},
		{"no target", [][]any{{rawHeader("c", '2', 0)}}, "error: the symlink's target has 0 bytes"},
		{"deep target", [][]any{pax('x', "linkpath", strings.Repeat("a/", 2000)), {rawHeader("c", '2', 0)}, file("c/x", "1"), pax('x', "path", strings.Repeat("a/", 2000)+"x"), {rawHeader("", '6', 0)}, pax('x', "path", strings.Repeat("a/", 2000)+"c"), {rawHeader("", '1', 0)}}, "error: directory"},
		{"PAX size", [][]any{pax('x', "size", "3"), {rawHeader("a", '0', 1), "abc"}}, "f 644 0 a abc"},
		{"two PAX sizes", [][]any{pax('x', "size", "600", "size", "3"), {rawHeader("a", '0', 1), "abc"}}, "f 644 0 a abc"},
		{"negative PAX size", [][]any{pax('x', "size", "-1"), {rawHeader("a", '0', 1), "abc"}}, "error: invalid tar header"},
		{"x then L", [][]any{pax('x', "path", "pax"), {rawHeader("l", 'L', 5).gnu(), "long\x00"}, file("a", "1")}, "f 644 0 long 1"},
		{"L then x", [][]any{{rawHeader("l", 'L', 5).gnu(), "long\x00"}, pax('x', "path", "pax"), file("a", "1")}, "f 644 0 long 1"},
		{"global", [][]any{pax('g', "path", "g", "size", "1000", "uid", "5"), file("a", "1"), file("b", "2")}, "f 644 0 a 1 | f 644 0 b 2"},
		{"PAX of 2 MiB", [][]any{pax('x', "comment", strings.Repeat("x", 2<<20)), file("a", "1")}, "error: field too long"},
		{"bad PAX", [][]any{{rawHeader("x", 'x', 5), "99 a="}, file("a", "1")}, "error: invalid tar header"},
		{"fraction of a second", [][]any{pax('x', "mtime", "12.9999"), file("a", "1")}, "f 644 0 a 1"},
		{"no time", [][]any{pax('x', "mtime", "NaN"), file("a", "1")}, "error: invalid tar header"},
		{"size of 2^63-1", [][]any{{rawHeader("a", '0', math.MaxInt64)}}, "error: with its 9223372036854775807 bytes"},
		{"sizes add up", [][]any{{rawHeader("a", '0', 1<<43), "x"}}, "error: unexpected EOF"},
		{"negative size", [][]any{{rawHeader("a", '0', -1)}}, "error: invalid tar header"},
		{"size that overflows", [][]any{{func() *raw { h := rawHeader("a", '0', 0); copy(h[124:], "\x8fxxxxxxxxxxx"); return h.sum() }()}}, "error: invalid tar header"},
		{"checksum", [][]any{{func() *raw { h := rawHeader("a", '0', 0); h[0] = 'b'; return h }()}}, "error: merge layer0: not a tar archive: archive/tar: invalid tar header"},
		{"uid of -1", [][]any{{rawHeader("a", '0', 0).number(108, 8, -1).sum()}}, "error: owner -1 is out of range"},
		{"uid of 2^32-1", [][]any{{rawHeader("a", '0', 0).number(108, 8, 1<<32-1).sum()}}, "error: owner 4294967295 is out of range"},
		{"uid of 2^32-2", [][]any{{rawHeader("a", '0', 0).number(108, 8, 1<<32-2).sum()}}, "f 644 4294967294 a "},
		{"gid of 2^40", [][]any{{rawHeader("a", '0', 0).number(116, 8, 1<<40).sum()}}, "error: owner 1099511627776 is out of range"},
		{"label", [][]any{{rawHeader("a", 'V', 0).gnu()}}, ""},
		{"hard link with a size", [][]any{file("a", "1"), {rawHeader("b", '1', 1<<60)}}, "error: is a directory"},
		{"old sparse", [][]any{{oldSparse(20, 4, 8, 12, 4), "abcdABCD"}}, "f 644 0 s \x00\x00\x00\x00abcd\x00\x00\x00\x00ABCD\x00\x00\x00\x00"},
		{"old sparse of 2^62", [][]any{{oldSparse(1<<62, 0, 0), ""}}, "error: with its 4611686018427387904 bytes"},
		{"sparse 0.0", [][]any{pax('x', "GNU.sparse.size", "6", "GNU.sparse.numblocks", "1", "GNU.sparse.offset", "2", "GNU.sparse.numbytes", "3"), file("s", "abc")}, "f 644 0 s \x00\x00abc\x00"},
		{"sparse 0.1", [][]any{pax('x', "GNU.sparse.size", "6", "GNU.sparse.numblocks", "1", "GNU.sparse.map", "2,3", "GNU.sparse.name", "real"), file("s", "abc")}, "f 644 0 real \x00\x00abc\x00"},
		{"sparse 1.0", [][]any{pax('x', "GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.realsize", "6", "GNU.sparse.name", "real"), {rawHeader("s", '0', 515), "1\n2\n3\n", "abc"}}, "f 644 0 real \x00\x00abc\x00"},
		{"sparse 1.0 of many pieces", [][]any{pax('x', "GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.realsize", "6"), {rawHeader("s", '0', 3<<20), "1000000\n" + strings.Repeat("1\n", 1<<20)}}, "error: sparse map too long"},
		{"sparse overlap", [][]any{{oldSparse(20, 4, 8, 3, 4), "abcdABCD"}}, "error: invalid tar header"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var parts []any
			for _, p := range c.parts {
				parts = append(parts, p...)
			}
			lines, _, _, err := mergeAll(t, Options{}, joined(parts...))
			if want, ok := strings.CutPrefix(c.want, "error: "); ok {
				if err == nil || !strings.Contains(err.Error(), want) || len(err.Error()) > 1000 {
					t.Fatalf("got %q, %v, not the error %q", lines, err, want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(lines[1:], " | "); got != c.want {
				t.Errorf("got  %q\nwant %q", got, c.want)
			}
		})
	}
}

// oldSparse is the header of a file of this size in GNU's first form, with places and
// lengths of its data.
func oldSparse(size int64, pieces ...int64) *raw {
	stored := int64(0)
	for i := 1; i < len(pieces); i += 2 {
		stored = stored + min(pieces[i], 4)
	}
	h := rawHeader("s", 'S', stored)
	for i := range pieces {
		n := pieces[i]
		if i%2 == 1 {
			n = min(n, 4)
		}
		if i == 0 && len(pieces) > 2 {
			n = 4
		}
		h.number(386+12*i, 12, n)
	}
	h.number(483, 12, size)
	return h.gnu()
}

// Truncated anywhere, an archive is an error or, between entries, a shorter one.
func TestTruncated(t *testing.T) {
	whole := archived(t, dir("d"), reg("d/x", strings.Repeat("x", 1500)), symlink("l", strings.Repeat("y", 200)), link("k", "d/x"),
		item{name: "p", data: "z", pax: map[string]string{schily + "user.x": "1"}})
	good := 0
	for n := 0; n < len(whole); n += 64 {
		lines, _, _, err := mergeAll(t, Options{}, whole[:n])
		if err == nil {
			good++
			if n%512 != 0 && n > 1024 && whole[n-1] != 0 {
				t.Errorf("%d of %d bytes: no error, %q", n, len(whole), lines)
			}
		} else if !strings.HasPrefix(err.Error(), "merge layer0: ") {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	if good == 0 {
		t.Error("all are errors")
	}
	if lines, _, _, err := mergeAll(t, Options{}, append(whole, strings.Repeat("garbage", 100_000)...)); err != nil || len(lines) != 6 {
		t.Errorf("garbage: %q, %v", lines, err)
	}
}

// endless is an archive that a function makes, entry by entry.
type endless struct {
	next  func(i int64, h *tar.Header) bool // false ends it
	every int64
	peak  uint64 // bytes of memory in use, as seen now and then
}

func (e *endless) Name() string { return "endless" }

func (e *endless) Open(context.Context) (io.ReadCloser, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	i := int64(0)
	return io.NopCloser(readerFunc(func(p []byte) (int, error) {
		for b.Len() == 0 {
			h := &tar.Header{Format: tar.FormatPAX}
			if !e.next(i, h) {
				return 0, io.EOF
			}
			if err := w.WriteHeader(h); err != nil {
				return 0, err
			}
			if i++; i%e.every == 0 {
				e.peak = max(e.peak, inUse())
			}
		}
		return b.Read(p)
	})), nil
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// inUse returns how many bytes of memory are in use, without what others allocate at the
// same time and let go of.
func inUse() uint64 {
	least := uint64(math.MaxUint64)
	for range 2 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		least = min(least, m.HeapAlloc)
	}
	return least
}

// Archives of endlessly many entries end at a limit, and what is counted is what they take.
func TestMemory(t *testing.T) {
	const limit = 16 << 20
	xattr := map[string]string{schily + "user.x": strings.Repeat("v", 10_000)}
	for _, c := range []struct {
		name  string
		every int64
		next  func(i int64, h *tar.Header)
	}{
		{"files in a directory", 1 << 14, func(i int64, h *tar.Header) { h.Name = fmt.Sprint("d/", i) }},
		{"one name", 1 << 14, func(i int64, h *tar.Header) { h.Name = "x" }},
		{"directories", 1 << 14, func(i int64, h *tar.Header) { h.Name, h.Typeflag = fmt.Sprint("d/", i, "/"), tar.TypeDir }},
		{"deep", 4, func(i int64, h *tar.Header) { h.Name = fmt.Sprint(i, "/", strings.Repeat("a/", 4000), "x") }},
		{"long names", 1 << 6, func(i int64, h *tar.Header) {
			h.Name = fmt.Sprint(i, strings.Repeat("/"+strings.Repeat("n", 250), 50))
		}},
		{"attributes", 1 << 8, func(i int64, h *tar.Header) { h.Name, h.PAXRecords = fmt.Sprint(i), xattr }},
		{"symlinks", 1 << 8, func(i int64, h *tar.Header) {
			h.Name, h.Typeflag, h.Linkname = fmt.Sprint(i), tar.TypeSymlink, strings.Repeat("t", 4000)
		}},
		{"whiteouts", 1 << 14, func(i int64, h *tar.Header) { h.Name = fmt.Sprint("d/.wh.", i) }},
		{"reasons", 1 << 14, func(i int64, h *tar.Header) {
			h.Name, h.PAXRecords = "x", map[string]string{schily + fmt.Sprint("odd", i, strings.Repeat("a", 200)): "v"}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := inUse()
			l := &endless{every: c.every, next: func(i int64, h *tar.Header) bool {
				h.Typeflag = tar.TypeReg
				c.next(i, h)
				return i < 1_000_000
			}}
			_, _, err := merge(t.Context(), new(nothing), []Layer{l}, Options{MaxMemory: limit, Ahead: 1})
			if !errors.Is(err, errMemory) {
				t.Errorf("got %v", err)
			}
			if used := int64(l.peak) - int64(before); used > limit*5/4+4<<20 || l.peak == 0 {
				t.Errorf("%d MiB are in use, %d are allowed", used>>20, limit>>20)
			}
		})
	}
	_, _, err := merge(t.Context(), new(nothing), []Layer{&endless{every: 1 << 30, next: func(i int64, h *tar.Header) bool { h.Name = "x"; return true }}}, Options{MaxEntries: 1000})
	if err == nil || !strings.Contains(err.Error(), "more than 1000 entries") {
		t.Error(err)
	}
}

// Chains of symlinks, each with a long target, cost no more than is allowed.
func TestManySymlinks(t *testing.T) {
	items := []item{dir("a"), symlink("l0", "a")}
	for i := 1; i < 200; i++ {
		items = append(items, symlink(fmt.Sprint("l", i), strings.Repeat("a/../", 500)+fmt.Sprint("l", i-1)))
	}
	for i := range 3000 {
		items = append(items, reg(fmt.Sprint("l199/", i%2, "/x"), ""))
	}
	b := archived(t, items...)
	_, _, _, err := mergeAll(t, Options{}, b)
	if !errors.Is(err, errFollowed) {
		t.Error(err)
	}
}

// Whiteouts that come again and again look at nothing twice.
func TestManyWhiteouts(t *testing.T) {
	var items []item
	for i := range 3000 {
		items = append(items, reg(fmt.Sprint("d/e/f/", i), ""))
	}
	for range 10_000 {
		items = append(items, wh("d/.wh..wh..opq"), wh("d/e/.wh..wh..opq"), wh(".wh.d"), wh(".wh..wh..opq"))
	}
	if lines, _, _, err := mergeAll(t, Options{}, archived(t, items...)); err != nil || len(lines) != 3004 {
		t.Errorf("%d names, %v", len(lines), err)
	}
}

func TestExpand(t *testing.T) {
	b := archived(t, reg("a", "1"))
	zip := func(b []byte) []byte {
		var z bytes.Buffer
		w := gzip.NewWriter(&z)
		w.Write(b)
		w.Close()
		return z.Bytes()
	}
	zenc, failed := zstd.NewWriter(nil)
	if failed != nil {
		t.Fatal(failed)
	}
	skippable := append([]byte("\x5a\x2a\x4d\x18\x03\x00\x00\x00abc"), zenc.EncodeAll(b, nil)...)
	window := binary.LittleEndian.AppendUint32(nil, 0xfd2fb528)
	window = append(window, 0, 21<<3, 1, 0, 0)
	odd := archived(t, reg("BZh", "1"))
	for _, c := range []struct {
		name string
		in   []byte
		want string // a part of the error; or "": b
	}{
		{"plain", b, ""},
		{"gzip", zip(b), ""},
		{"two gzip members", append(zip(b[:700]), zip(b[700:])...), ""},
		{"zstd", zenc.EncodeAll(b, nil), ""},
		{"two zstd frames", append(zenc.EncodeAll(b[:700], nil), zenc.EncodeAll(b[700:], nil)...), ""},
		{"zstd behind another frame", skippable, ""},
		{"xz", []byte("\xfd7zXZ\x00\x00"), "xz is not supported"},
		{"bzip2", []byte("BZh91AY"), "bzip2 is not supported"},
		{"squashfs", []byte("hsqs"), "squashfs is not supported"},
		{"gzip and garbage", append(zip(b), "trailing garbage"...), "gzip: invalid header"},
		{"half gzip", zip(b)[:50], "unexpected EOF"},
		{"half zstd", zenc.EncodeAll(b, nil)[:50], "unexpected EOF"},
		{"window of 2 GiB", window, "window size exceeded"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got []byte
			in := bytes.NewReader(c.in)
			r, err := Expand(in)
			if err == nil {
				got, err = io.ReadAll(r)
				r.Close()
			}
			if c.want != "" {
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("got %v, not %q", err, c.want)
				}
			} else if err != nil || !bytes.Equal(got, b) || in.Len() != 0 {
				t.Errorf("%d bytes, %v, %d left", len(got), err, in.Len())
			}
		})
	}
	r, err := Expand(bytes.NewReader(odd))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, odd) {
		t.Errorf("archive that begins with BZh: %v", err)
	}
	if r, err := Expand(strings.NewReader("")); err != nil {
		t.Error(err)
	} else if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("empty: %d, %v", n, err)
	}
}

// compressed is a layer that is expanded as it is read.
type compressed struct{ blob }

func (c *compressed) Open(context.Context) (io.ReadCloser, error) {
	return Expand(bytes.NewReader(c.bytes))
}

// A bomb ends where it goes beyond a limit: before its contents are read, or soon in what
// follows the archive.
func TestBombs(t *testing.T) {
	if testing.Short() {
		t.Skip("expands more than a gigabyte")
	}
	bomb := func(head []byte, zeros int64) *compressed {
		var z bytes.Buffer
		w, err := zstd.NewWriter(&z)
		if err != nil {
			t.Fatal(err)
		}
		w.Write(head)
		io.CopyN(w, readerFunc(func(p []byte) (int, error) { clear(p); return len(p), nil }), zeros)
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return &compressed{blob{name: "bomb", bytes: z.Bytes()}}
	}
	for _, c := range []struct {
		layer Layer
		want  string
	}{
		{bomb(rawHeader("a", '0', 1<<30)[:], 1<<30), "files have more than 1000000 in all"},
		{bomb(nil, maxTrailing+2<<20), "follow the end of the archive"},
	} {
		before := inUse()
		_, _, err := merge(t.Context(), new(nothing), []Layer{c.layer}, Options{MaxBytes: 1_000_000, Ahead: 8 << 20})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, not %q", err, c.want)
		}
		if after := inUse(); after > before+64<<20 {
			t.Errorf("%d MiB are in use", after>>20)
		}
	}
}

// A hole of terabytes ends with the context.
func TestHoleIsCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var start time.Time
	w := writerFunc(func(r io.Reader) error {
		if _, err := io.ReadFull(r, make([]byte, 100<<20)); err != nil {
			return err
		}
		cancel()
		start = time.Now()
		_, err := io.Copy(io.Discard, r)
		return err
	})
	_, _, err := merge(ctx, w, stack(joined(oldSparse(1<<43, 0, 0))), Options{})
	if !errors.Is(err, context.Canceled) || time.Since(start) > time.Minute {
		t.Errorf("%v after %v", err, time.Since(start))
	}
}
