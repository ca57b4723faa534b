#!/bin/sh
# make.sh - take from images that mksquashfs makes of one file its only data block.
#
# The file is what xz here, an .xz file by itself, already holds: the test's sample(20000). Needs xz, python3 and
# squashfs-tools; made with 4.5.1.
set -eu
cd "$(dirname "$0")"
w=$(mktemp -d)
trap 'rm -rf "$w"' EXIT
cp xz "$w/sample.xz"
xz -d "$w/sample.xz"
for comp in gzip lzma lzo xz lz4 zstd; do
	mksquashfs "$w/sample" "$w/$comp" -comp "$comp" -b 32K -no-fragments -quiet -no-progress
	# The superblock has 96 bytes; flag 0x400 says that options of the compressor follow, as a metadata block; then
	# comes the data, up to the inode table.
	python3 - "$w/$comp" >"$comp" <<-'PY'
		import struct, sys
		b = open(sys.argv[1], "rb").read()
		at = 96
		if struct.unpack_from("<H", b, 24)[0] & 0x400:
		    at += 2 + (struct.unpack_from("<H", b, at)[0] & 0x7fff)
		sys.stdout.buffer.write(b[at : struct.unpack_from("<q", b, 64)[0]])
	PY
done
