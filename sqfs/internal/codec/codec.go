// Package codec expands and makes the compressed blocks of squashfs images: each block is
// one complete stream, and how long it may become is known before.
package codec

import (
	"errors"
	"fmt"
)

// A Decoder expands blocks. It is safe for concurrent use.
type Decoder interface {
	// Decode expands all of src into dst and returns how many bytes that made: len(dst)
	// at most; a stream that holds more is an error, one that holds less is not. What
	// dst holds after an error, and past the returned length up to its capacity, is
	// undefined. With a capacity of [DecodeSlack] more than the length some decoders are
	// faster. src and dst must not overlap and are not kept.
	Decode(dst, src []byte) (int, error)
}

// DecodeSlack is how much room behind its destination a [Decoder] has use for.
const DecodeSlack = 16

// An Encoder compresses blocks, one at a time. What it makes of a block depends on the
// block alone, not on what it had before.
type Encoder interface {
	// Encode compresses src into dst and returns how many bytes that made: fewer than
	// src has, or 0 if there is no gain. dst has room for len(src) + EncodeSlack bytes;
	// all of it may be written to. src and dst must not overlap and are not kept.
	Encode(dst, src []byte) (int, error)
}

// EncodeSlack is how much longer than its source the destination of an [Encoder] is, for
// what a compressor has written when it sees that there is no gain.
const EncodeSlack = 64

// Levels says which levels a compressor has, and which one it takes if none is asked for.
// ok is false where there is no encoder.
func Levels(id uint16) (least, most, normal int, ok bool) {
	switch id {
	case Gzip:
		return 1, 9, 9, true
	case LZ4:
		return 0, 9, 0, true // 0 is fast, the others are HC
	case Zstd:
		return 1, 22, 3, true
	}
	return 0, 0, 0, false
}

// NewEncoder returns an encoder for blocks of at most size bytes. The level is one of
// [Levels].
func NewEncoder(id uint16, level, size int) (Encoder, error) {
	if least, most, _, ok := Levels(id); !ok || level < least || level > most {
		return nil, fmt.Errorf("no encoder of level %d for compressor %d", level, id)
	}
	switch id {
	case Gzip:
		return newGzipEncoder(level)
	case LZ4:
		return newLZ4Encoder(level), nil
	}
	return newZstdEncoder(level, size)
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
