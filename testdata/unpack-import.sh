#!/bin/bash
# unpack-import.sh - the usual way from a registry to a squashfs image, as a peer of "squire import" in its benchmark:
# download all layers, unpack each into a directory, lay an overlay over them, and run mksquashfs on it.
#
#   usage: unpack-import.sh URL OUT WORK      (needs root, curl, jq, zstd, tar, mksquashfs and a local disk)
#
# URL is docker://HOST:PORT/NAME:TAG, spoken to by plain HTTP. The steps, the parallelism and the compression in between
# are those that enroot documents for its import.
# shellcheck disable=SC2016 # what is in single quotes is for other shells
set -euo pipefail
export LC_ALL=C

url=${1#docker://} out=$2 work=$3
name=${url#*/}
api=http://${url%%/*}/v2/${name%:*}
threads=$(nproc)

# Whiteouts become what overlayfs has for them: filesystems/overlayfs.rst of the kernel.
convert() {
	local mark dir
	find "$1" -name '.wh.*' -print0 | while IFS= read -r -d '' mark; do
		dir=${mark%/*}
		rm -f "$mark"
		if [ "${mark##*/}" = .wh..wh..opq ]; then
			setfattr -n trusted.overlay.opaque -v y "$dir"
		else
			mknod "$dir/${mark##*/.wh.}" c 0 0
		fi
	done
}

fetch() { curl -fsS "$api/blobs/$1" | tee >(sha256sum >"$work/${1#*:}.sum") | gzip -dc | zstd -q -1 -o "$work/${1#*:}"; }

unpack() {
	mkdir -p "$work/tree/$2"
	zstd -qdc "$work/${1#*:}" | tar -C "$work/tree/$2" -x -p --numeric-owner --xattrs --xattrs-include='*' --exclude='dev/*'
	convert "$work/tree/$2"
}

export -f convert fetch unpack
export api work

curl -fsS -H 'Accept: application/vnd.docker.distribution.manifest.v2+json' "$api/manifests/${name##*:}" >"$work/manifest"
jq -r '.layers[].digest' "$work/manifest" >"$work/layers"
xargs -P 10 -I{} bash -euo pipefail -c 'fetch "$1"' bash {} <"$work/layers"
while read -r digest; do
	[ "$(cut -d' ' -f1 "$work/${digest#*:}.sum")" = "${digest#*:}" ]
done <"$work/layers"
nl -w1 -s' ' "$work/layers" | xargs -P "$threads" -L1 bash -euo pipefail -c 'unpack "$2" "$1"' bash

lower=$(seq "$(wc -l <"$work/layers")" -1 1 | sed "s|^|$work/tree/|" | paste -sd:)
mkdir "$work/merged"
unshare --mount bash -euo pipefail -c '
	mount -t overlay -o "ro,lowerdir=$1" overlay "$2"
	mksquashfs "$2" "$3" -comp zstd -Xcompression-level 3 -b 128K -processors "$4" -noappend -no-progress -quiet
' bash "$lower" "$work/merged" "$out" "$threads"
