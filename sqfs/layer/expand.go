package layer

import (
	"archive/tar"
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// maxWindow bounds what a zstd frame may make us hold: 128 MiB is what zstd itself takes
// without being told (ZSTD_WINDOWLOG_LIMIT_DEFAULT), and all that its levels 1..22 use.
const maxWindow = 128 << 20

// foreign are formats that are known well enough to say that they are not read.
var foreign = []struct{ magic, name string }{
	{"\xfd7zXZ\x00", "xz"},
	{"BZh", "bzip2"},
	{"\x04\x22\x4d\x18", "lz4"},
	{"LZIP", "lzip"},
	{"\x89LZO", "lzop"},
	{"\x1f\x9d", "compress"},
	{"]\x00\x00", "lzma"},
	{"PK\x03\x04", "zip"},
	{"7z\xbc\xaf\x27\x1c", "7-zip"},
	{"hsqs", "squashfs"},
}

// Expand returns the tar archive in r, which may be compressed by gzip or zstd, as its
// first bytes say, or not at all. It reads r to its end if it is read to its own. Closing
// it frees what it holds and leaves r alone.
func Expand(r io.Reader) (io.ReadCloser, error) {
	b := bufio.NewReaderSize(r, 64<<10)
	head, err := b.Peek(512)
	if err != nil && err != io.EOF {
		return nil, fmt.Errorf("layer: expand: %w", err)
	}
	switch {
	case isTar(head): // comes first: archives begin with a name, which may look like anything
	case bytes.HasPrefix(head, []byte("\x1f\x8b")):
		z, err := gzip.NewReader(b)
		if err != nil {
			return nil, fmt.Errorf("layer: expand gzip: %w", err)
		}
		return z, nil
	case isZstd(head):
		z, err := zstd.NewReader(b, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow),
			zstd.WithDecoderMaxMemory(1<<62)) // of what is expanded in all, which is bounded elsewhere
		if err != nil {
			return nil, fmt.Errorf("layer: expand zstd: %w", err)
		}
		return z.IOReadCloser(), nil
	default:
		for _, f := range foreign {
			if bytes.HasPrefix(head, []byte(f.magic)) {
				return nil, fmt.Errorf("layer: expand: %s is not supported, only gzip, zstd and plain tar are", f.name)
			}
		}
	}
	return io.NopCloser(b), nil
}

// isTar tells whether a block is the header of an entry, going by its checksum.
func isTar(b []byte) bool {
	if len(b) < 512 || b[0] == 0 {
		return false
	}
	_, err := tar.NewReader(bytes.NewReader(b)).Next()
	return err == nil || errors.Is(err, io.ErrUnexpectedEOF)
}

// isZstd knows frames and skippable frames, RFC 8878, 3.1.
func isZstd(b []byte) bool {
	return bytes.HasPrefix(b, []byte("\x28\xb5\x2f\xfd")) ||
		len(b) >= 4 && b[0]&0xf0 == 0x50 && bytes.HasPrefix(b[1:], []byte("\x2a\x4d\x18"))
}
