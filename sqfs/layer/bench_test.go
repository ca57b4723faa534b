package layer

import (
	"archive/tar"
	"bytes"
	"fmt"
	"testing"
)

// BenchmarkMerge merges two layers, of big files, of small ones, and of ones that are all
// hidden. The writer only reads.
func BenchmarkMerge(b *testing.B) {
	many := func(dirs, files, size int) []byte {
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		data := bytes.Repeat([]byte("contents"), size/8)
		for d := range dirs {
			prefix := fmt.Sprintf("usr/lib/python3/dist-packages/package%d/", d)
			if err := w.WriteHeader(item{name: prefix}.header()); err != nil {
				b.Fatal(err)
			}
			for f := range files {
				h := item{name: fmt.Sprint(prefix, "module", f, ".py")}.header()
				h.Format, h.Size = tar.FormatUSTAR, int64(size)
				if err := w.WriteHeader(h); err != nil {
					b.Fatal(err)
				}
				if _, err := w.Write(data); err != nil {
					b.Fatal(err)
				}
			}
		}
		if err := w.Close(); err != nil {
			b.Fatal(err)
		}
		return buf.Bytes()
	}
	for _, c := range []struct {
		name    string
		layers  [][]byte
		entries int
	}{
		{"big", [][]byte{many(2, 4, 64<<20)}, 10},
		{"small", [][]byte{many(2000, 50, 512)}, 102_000},
		{"empty", [][]byte{many(2000, 50, 0)}, 102_000},
		{"hidden", [][]byte{many(20, 50, 256<<10), archived(b, reg("x", "1"), wh(".wh..wh..opq"))}, 1020},
	} {
		b.Run(c.name, func(b *testing.B) {
			size := 0
			for _, l := range c.layers {
				size += len(l)
			}
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				if _, _, err := merge(b.Context(), new(nothing), stack(c.layers...), Options{}); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(c.entries*b.N)/b.Elapsed().Seconds(), "entries/s")
		})
	}
}
