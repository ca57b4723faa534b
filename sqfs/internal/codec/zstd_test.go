package codec

import (
	"bytes"
	"encoding/binary"
	"io"
	"runtime"
	"testing"

	"github.com/klauspost/compress/zstd"
)

func zstdEncode(t testing.TB, b []byte, opts ...zstd.EOption) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil, opts...)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	return w.EncodeAll(b, nil)
}

// TestZstdSizes has outputs on both sides of the length from which they need no copy.
func TestZstdSizes(t *testing.T) {
	for _, size := range []int{1, 8192, 128 << 10, zstdBounce - 1, zstdBounce, 1 << 20} {
		want := sample(size)
		src := zstdEncode(t, want)
		for _, room := range []int{0, 1, DecodeSlack, 1000} {
			if got, err := decodeGuarded(t, Zstd, src, size+room); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d bytes with room for %d: %d, %v", size, room, len(got), err)
			}
		}
		for _, short := range []int{1, DecodeSlack, size} {
			if got, err := decodeGuarded(t, Zstd, src, max(0, size-short)); err == nil {
				t.Errorf("%d bytes without room for %d: %d and no error", size, short, len(got))
			}
		}
	}
}

// zstdFrame makes a frame that declares its window and content size, and has one block of 5 bytes, not compressed.
func zstdFrame(descriptor byte, content uint64) []byte {
	b := []byte{0x28, 0xb5, 0x2f, 0xfd, 3 << 6, descriptor} // a content size of 8 bytes
	b = binary.LittleEndian.AppendUint64(b, content)
	return append(b, 5<<3|1, 0, 0, 'h', 'e', 'l', 'l', 'o')
}

// TestZstdFrames checks what may stand in a block beside the one frame that mksquashfs writes: whatever ZSTD_decompress
// takes, which unsquashfs calls. (The kernel stops at the end of the first frame.)
func TestZstdFrames(t *testing.T) {
	hello := zstdFrame(0, 5)
	skippable := []byte{0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3}
	tests := []struct {
		name string
		src  []byte
		want string
		bad  bool
	}{
		{"one", hello, "hello", false},
		{"two", append(bytes.Clone(hello), hello...), "hellohello", false},
		{"skippable first", append(bytes.Clone(skippable), hello...), "hello", false},
		{"skippable last", append(bytes.Clone(hello), skippable...), "hello", false},
		{"skippable alone", skippable, "", false},
		{"nothing", nil, "", false},
		{"cut skippable", append(bytes.Clone(hello), skippable[:6]...), "", true},
		{"window of 8 MiB", zstdFrame(13<<3, 5), "hello", false},
		{"window of 2 TiB", zstdFrame(31<<3, 5), "", true},
		{"more declared than there is", zstdFrame(0, 6), "", true},
		{"less declared than there is", zstdFrame(0, 4), "", true},
		{"much declared", zstdFrame(0, 1<<40), "", true},
		{"the number that the libraries take for unknown", zstdFrame(0, 1<<64-1), "hello", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := decodeGuarded(t, Zstd, tt.src, 100)
			if (err != nil) != tt.bad || !tt.bad && string(got) != tt.want {
				t.Errorf("%q, %v, want %q", got, err, tt.want)
			}
		})
	}
}

// TestZstdMemory checks that what a frame declares costs nothing.
func TestZstdMemory(t *testing.T) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for _, size := range []uint64{6, 1 << 20, 1 << 30, 1 << 40, 1<<63 - 1, 1 << 63, 1<<64 - 2} {
		for window := range 256 {
			if got, err := decodeGuarded(t, Zstd, zstdFrame(byte(window), size), 100); err == nil {
				t.Errorf("window %#x, content of %d: %q and no error", window, size, got)
			}
		}
	}
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > 32<<20 {
		t.Errorf("allocated %d bytes", used)
	}
}

func FuzzZstd(f *testing.F) {
	f.Add(block(f, Zstd), uint32(sampleSize))
	f.Add(zstdEncode(f, sample(3000), zstd.WithEncoderLevel(zstd.SpeedBestCompression)), uint32(3000))
	f.Add(zstdEncode(f, []byte("short"), zstd.WithEncoderCRC(false)), uint32(5))
	f.Add(append(zstdFrame(0, 5), zstdFrame(8, 5)...), uint32(8192))
	f.Fuzz(func(t *testing.T, src []byte, n uint32) {
		size := int(n % maxFuzzSize)
		got, err := decodeGuarded(t, Zstd, src, size)
		r, rerr := zstd.NewReader(bytes.NewReader(src), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
		if rerr != nil {
			t.Fatal(rerr)
		}
		defer r.Close()
		want, wantErr := io.ReadAll(io.LimitReader(r, int64(size)+1))
		if err == nil && (wantErr != nil || !bytes.Equal(got, want)) {
			t.Errorf("%d bytes; the library's reader of streams says %d bytes, %v", len(got), len(want), wantErr)
		}
		if err != nil && wantErr == nil && len(want) <= size {
			t.Errorf("%v; the library's reader of streams says %d bytes", err, len(want))
		}
	})
}
