// Package codec expands the compressed blocks of squashfs images: each block is one
// complete stream, and how long it may become is known before.
package codec

import "errors"

// A Decoder expands blocks. It is safe for concurrent use.
type Decoder interface {
	// Decode expands all of src into dst and returns how many bytes that made. It
	// never writes past len(dst); a stream that holds more is an error, one that
	// holds less is not. What dst holds after an error, and past the returned
	// length, is undefined. src and dst must not overlap and are not kept.
	Decode(dst, src []byte) (int, error)
}

// Numbers of the compressors in the superblock: squashfs_fs.h, ZLIB_COMPRESSION ...
// ZSTD_COMPRESSION.
const (
	Gzip = 1
	LZMA = 2
	LZO  = 3
	XZ   = 4
	LZ4  = 5
	Zstd = 6
)

// table holds the name and the decoder of each compressor; nil where there is none.
var table = [...]struct {
	name    string
	decoder Decoder
}{
	Gzip: {"gzip", gzipDecoder{}},
	LZMA: {"lzma", lzmaDecoder{}},
	LZO:  {"lzo", lzoDecoder{}},
	XZ:   {"xz", xzDecoder{}},
	LZ4:  {"lz4", lz4Decoder{}},
	Zstd: {"zstd", zstdDecoder{}},
}

// errTooLong says that a stream holds more than its block may expand to.
var errTooLong = errors.New("expands past the size of its block")

// For returns the decoder of compressor id, or nil if there is none.
func For(id uint16) Decoder {
	if int(id) >= len(table) {
		return nil
	}
	return table[id].decoder
}

// Name returns the name of compressor id as mksquashfs -comp knows it, or "".
func Name(id uint16) string {
	if int(id) >= len(table) {
		return ""
	}
	return table[id].name
}
