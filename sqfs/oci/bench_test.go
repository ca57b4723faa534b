package oci

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"testing"
)

// BenchmarkLayer reads one layer of a layout, with everything that is verified of it.
func BenchmarkLayer(b *testing.B) {
	tar := tarOf(b, 1, 32<<20)
	words := make([]byte, 4096) // compresses about 3 to 1, as programs do
	r := rand.NewChaCha8([32]byte{1})
	r.Read(words)
	for i := 512; i+64 < len(tar)-1024; i += 64 {
		copy(tar[i:i+48], words[i%3000:])
	}
	for n, how := range []string{"gzip", "zstd", "plain"} {
		b.Run(how, func(b *testing.B) {
			layers := make([][]byte, n+1)
			for i := range layers {
				layers[i] = tarOf(b, 2, 10)
			}
			layers[n] = tar
			p := paint(b, Config{}, layers...)
			dir := b.TempDir()
			writeFiles(b, dir, layout(b, map[string]*picture{"": p}))
			img := open(b, "oci:"+dir, quick(nil))
			b.SetBytes(int64(len(tar)))
			for b.Loop() {
				r, err := img.Layers()[n].Open(context.Background())
				if err != nil {
					b.Fatal(err)
				}
				if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{r}, bytes.Repeat([]byte{0}, 256<<10)); err != nil {
					b.Fatal(err)
				}
				r.Close()
			}
		})
	}
}
