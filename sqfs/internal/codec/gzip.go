package codec

import (
	"encoding/binary"
	"errors"
)

var (
	errHeader   = errors.New("no zlib header")
	errDict     = errors.New("needs a preset dictionary")
	errChecksum = errors.New("checksum does not match")
)

// gzipDecoder expands compressor 1: despite the name each block is a zlib stream
// (RFC 1950), never a gzip file (squashfs-tools, gzip_wrapper.c calls uncompress).
// Bytes after the end of the stream are ignored, as zlib's uncompress and the kernel
// ignore them.
type gzipDecoder struct{}

func (gzipDecoder) Decode(dst, src []byte) (int, error) {
	if len(src) < 2 {
		return 0, errTruncated
	}
	cmf, flg := src[0], src[1]
	if cmf&15 != 8 || cmf>>4 > 7 || (uint(cmf)<<8+uint(flg))%31 != 0 {
		return 0, errHeader
	}
	if flg&0x20 != 0 {
		return 0, errDict
	}
	n, used, err := inflate(dst, src[2:])
	if err != nil {
		return n, err
	}
	sum := src[2+used:]
	if len(sum) < 4 {
		return n, errTruncated
	}
	if binary.BigEndian.Uint32(sum) != sumAdler(dst[:n]) {
		return n, errChecksum
	}
	return n, nil
}
