package codec

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	xzlzma "github.com/ulikunitz/xz/lzma"
)

// A golden is a stream that XZ Utils made: see testdata/make.sh.
type golden struct {
	name string
	id   uint16
	src  []byte
	sum  string // SHA-256 of what it holds, in hex
}

func goldens(t testing.TB) []golden {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", "SUMS"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var list []golden
	for s := bufio.NewScanner(f); s.Scan(); {
		sum, name, _ := strings.Cut(s.Text(), "  ")
		src, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		id := uint16(XZ)
		if strings.HasPrefix(name, "lzma-") {
			id = LZMA
		}
		list = append(list, golden{name, id, src, sum})
	}
	if len(list) < 50 {
		t.Fatalf("%d streams in testdata", len(list))
	}
	return list
}

// TestGoldens expands the streams of testdata: into as much as they need, into more,
// and into one byte less.
func TestGoldens(t *testing.T) {
	for _, g := range goldens(t) {
		t.Run(g.name, func(t *testing.T) {
			if g.name == "xz-delta" {
				if _, err := decodeGuarded(t, g.id, g.src, 1<<16); err == nil || !strings.Contains(err.Error(), "Delta") {
					t.Errorf("the Delta filter gives %v", err)
				}
				return
			}
			b, err := decodeGuarded(t, g.id, g.src, 1<<16)
			if err != nil || fmt.Sprintf("%x", sha256.Sum256(b)) != g.sum {
				t.Fatalf("with room: %d bytes, %v", len(b), err)
			}
			if exact, err := decodeGuarded(t, g.id, g.src, len(b)); err != nil || !bytes.Equal(exact, b) {
				t.Errorf("exact: %d bytes, %v", len(exact), err)
			}
			if exact, err := decodeGuarded(t, g.id, append(bytes.Clone(g.src), "more"...), len(b)); err != nil || !bytes.Equal(exact, b) {
				t.Errorf("with bytes behind: %d bytes, %v", len(exact), err)
			}
			if len(b) > 0 {
				if short, err := decodeGuarded(t, g.id, g.src, len(b)-1); !errors.Is(err, errTooLong) {
					t.Errorf("one byte short: %d bytes, %v", len(short), err)
				}
			}
		})
	}
}

// TestCutOff expands the beginnings of streams, all of which are errors.
func TestCutOff(t *testing.T) {
	for _, g := range goldens(t) {
		for n := range g.src {
			if b, err := decodeGuarded(t, g.id, g.src[:n], 12000); err == nil {
				t.Errorf("%s: %d of %d bytes give %d and no error", g.name, n, len(g.src), len(b))
			}
		}
	}
}

// lzmaFile compresses b to a .lzma file.
func lzmaFile(t testing.TB, b []byte, c xzlzma.WriterConfig) []byte {
	t.Helper()
	var buf bytes.Buffer
	c.DictCap = max(len(b), xzlzma.MinDictCap)
	w, err := c.NewWriter(&buf)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// TestLZMAProperties goes through all lc, lp and pb that liblzma takes, with and
// without the size, and an end marker.
func TestLZMAProperties(t *testing.T) {
	want := sample(5000)
	for lc := range 5 {
		for lp := range 5 - lc {
			for pb := range 5 {
				for form, c := range map[string]xzlzma.WriterConfig{
					"size":            {Size: int64(len(want))},
					"size and marker": {Size: int64(len(want)), EOSMarker: true},
					"marker":          {EOSMarker: true},
				} {
					c.Properties = &xzlzma.Properties{LC: lc, LP: lp, PB: pb}
					src := lzmaFile(t, want, c)
					if b, err := decodeGuarded(t, LZMA, src, len(want)); err != nil || !bytes.Equal(b, want) {
						t.Errorf("%d/%d/%d, %s: %d bytes, %v", lc, lp, pb, form, len(b), err)
					}
				}
			}
		}
	}
	src := lzmaFile(t, want, xzlzma.WriterConfig{EOSMarker: true})
	for props := range 256 {
		src[0] = byte(props)
		_, err := decodeGuarded(t, LZMA, src, len(want))
		if bad := props >= 225 || props%9+props/9%5 > 4; bad != errors.Is(err, errLZMAProps) {
			t.Errorf("properties %d: %v", props, err)
		}
	}
}

// TestLZMASize checks what the size in the header may be.
func TestLZMASize(t *testing.T) {
	want := sample(1000)
	marked := lzmaFile(t, want, xzlzma.WriterConfig{Size: int64(len(want)), EOSMarker: true})
	bare := lzmaFile(t, want, xzlzma.WriterConfig{Size: int64(len(want))})
	for _, c := range []struct {
		what string
		src  []byte
		size uint64
		room int
		err  error
	}{
		{"as it is", marked, 1000, 1000, nil},
		{"as it is, no marker", bare, 1000, 1000, nil},
		{"unknown", marked, 1<<64 - 1, 1000, nil},
		{"unknown, more room", marked, 1<<64 - 1, 5000, nil},
		{"unknown, no room", marked, 1<<64 - 1, 999, errTooLong},
		{"unknown, no room at all", marked, 1<<64 - 1, 0, errTooLong},
		{"unknown, no marker", bare, 1<<64 - 1, 5000, errLZMATruncated},
		{"too large", marked, 1001, 5000, errLZMAShort},
		{"too large, no marker", bare, 1001, 5000, errLZMATruncated},
		{"larger than the block", marked, 1001, 1000, errTooLong},
		{"huge", marked, 1<<64 - 2, 5000, errTooLong},
		{"too small, no marker", bare, 999, 5000, nil},
		{"too small", marked, 999, 5000, nil},
	} {
		src := bytes.Clone(c.src)
		binary.LittleEndian.PutUint64(src[5:], c.size)
		_, err := decodeGuarded(t, LZMA, src, c.room)
		if strings.HasPrefix(c.what, "too small") {
			// A match that goes on, or another symbol where the stream should end.
			if !errors.Is(err, errLZMAPast) && !errors.Is(err, errLZMAFinish) {
				t.Errorf("size %s: %v", c.what, err)
			}
		} else if !errors.Is(err, c.err) {
			t.Errorf("size %s: %v, want %v", c.what, err, c.err)
		}
	}
}

// TestLZMAAllocs checks that nothing is allocated for a block.
func TestLZMAAllocs(t *testing.T) {
	if raceEnabled {
		t.Skip("sync.Pool drops at random under the race detector")
	}
	for _, g := range goldens(t) {
		dst := make([]byte, 1<<16)
		d := For(g.id)
		if g.name == "xz-delta" {
			continue // an error
		}
		if n := testing.AllocsPerRun(20, func() { d.Decode(dst, g.src) }); n != 0 {
			t.Errorf("%s: %v allocations", g.name, n)
		}
	}
}

// readLZMA is what ulikunitz/xz makes of a .lzma file of at most limit bytes.
func readLZMA(src []byte, limit int) ([]byte, error) {
	r, err := xzlzma.NewReader(bytes.NewReader(src))
	if err != nil {
		return nil, err
	}
	return readLimited(r, limit)
}

// readLimited reads r to its end, which has to come within limit bytes.
func readLimited(r io.Reader, limit int) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, int64(limit)+1))
	if err == nil && len(b) > limit {
		err = errTooLong
	}
	return b, err
}

// FuzzLZMA compares with ulikunitz/xz.
func FuzzLZMA(f *testing.F) {
	for _, g := range goldens(f) {
		if g.id == LZMA {
			f.Add(g.src)
		}
	}
	want := sample(300)
	f.Add(lzmaFile(f, want, xzlzma.WriterConfig{Size: int64(len(want))}))
	f.Add(lzmaFile(f, want, xzlzma.WriterConfig{Size: int64(len(want)), EOSMarker: true}))
	f.Add(lzmaFile(f, want, xzlzma.WriterConfig{EOSMarker: true}))
	f.Fuzz(func(t *testing.T, src []byte) {
		const limit = 1 << 15
		got, err := decodeGuarded(t, LZMA, src, limit)
		if len(src) < lzmaHeader {
			return
		}
		src = bytes.Clone(src)
		copy(src[1:5], "\x00\x00\x01\x00") // a dictionary of 64 KiB, larger than any output
		peer, perr := readLZMA(src, limit)
		if perr == nil && (err == nil || errors.Is(err, errLZMAFinish)) && !bytes.Equal(got, peer) {
			t.Errorf("%d bytes, the other decoder has %d", len(got), len(peer))
		}
		if (err == nil) != (perr == nil) && comparableLZMA(src, err) {
			t.Errorf("%v, the other decoder says %v", err, perr)
		}
	})
}

// comparableLZMA says that the verdict of our decoder and that of ulikunitz/xz should
// be the same. It takes lc+lp > 4, wants a symbol where the size is 0, and does not
// look at what follows an end marker behind data of known size. liblzma does as we do.
func comparableLZMA(src []byte, ours error) bool {
	size := binary.LittleEndian.Uint64(src[5:])
	atMarker := size != 1<<64-1 && errors.Is(ours, errLZMAFinish)
	return size != 0 && !errors.Is(ours, errLZMAProps) && !atMarker
}
