package sqfs

import (
	"encoding/binary"
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestDecodeOptions decodes options as the tools write them, and shorter ones.
func TestDecodeOptions(t *testing.T) {
	words := func(v ...uint32) (b []byte) {
		for _, w := range v {
			b = binary.LittleEndian.AppendUint32(b, w)
		}
		return b
	}
	tests := []struct {
		c    Compression
		b    []byte
		want string
	}{
		{Gzip, words(9, 15|3<<16), "level=9 window=15 strategies=default,filtered"},
		{LZO, words(4, 8), "algorithm=lzo1x_999 level=8"},
		{LZO, words(77, 0), "algorithm=77 level=0"},
		{XZ, words(131072, 1|1<<6|1<<20), "dictionary_size=131072 filters=x86,arm64,0x100000"},
		{LZ4, words(1, 0), "version=1 flags="},
		{LZ4, words(1, 3, 5), "version=1 flags=hc,0x2 level=5"},
		{Zstd, words(1<<32 - 3), "level=-3"},
		{Zstd, words(22, 1, 2), "level=22"},
		{LZMA, words(1), ""},
	}
	for _, tt := range tests {
		list, err := decodeOptions(tt.c, tt.b)
		var parts []string
		for _, o := range list {
			parts = append(parts, fmt.Sprintf("%s=%s", o.Name, o.Value))
		}
		if got := strings.Join(parts, " "); got != tt.want || err != nil {
			t.Errorf("%v: %q, %v, want %q", tt.c, got, err, tt.want)
		}
		if tt.c == LZMA {
			continue
		}
		if _, err := decodeOptions(tt.c, tt.b[:3]); err == nil {
			t.Errorf("%v: 3 bytes are enough", tt.c)
		}
	}
}

// TestReadSuperblock compares with what New finds, and reads that of an image which New
// refuses.
func TestReadSuperblock(t *testing.T) {
	f, err := os.Open("testdata/stored.sqfs")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	want := openTest(t, "testdata/stored.sqfs").Superblock()
	if got, err := ReadSuperblock(f, info.Size(), nil); err != nil || got != want {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
	if got, err := ReadSuperblock(f, want.BytesUsed-1, nil); err == nil || got != want {
		t.Errorf("cut off: %+v, %v, want %+v", got, err, want)
	}
	if _, err := ReadSuperblock(f, info.Size()-1, &Options{Offset: 1}); err == nil {
		t.Error("not at the beginning, and no error")
	}
}
