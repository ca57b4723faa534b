#!/bin/sh
# rootfs.sh - make the images of a real root file system that tests and benchmarks use.
#
#   usage: rootfs.sh [OUTDIR]      (needs root, debootstrap and mksquashfs: see deps.sh)
#
# OUTDIR is by default $SQUIRE_TESTDIR, or squire-test in the user's cache directory. It gets
#
#   rootfs-zstd.sqsh, rootfs-gzip.sqsh    Debian bookworm with Python and numpy, and the odd files of add_odd_files
#   debs/                                 the packages, kept so that the next build needs the network less
#
# Nothing is done when both images are there, made by this very script of the same packages. A build in progress is
# waited for. Images appear under their names only when they are complete.
#
#   ROOTFS_INCLUDE   packages beside Debian's minimal set, separated by commas
#   ROOTFS_MIRROR    where Debian is taken from; by default where this machine's own apt takes it from
set -eu
export LC_ALL=C

suite=bookworm
include=${ROOTFS_INCLUDE:-python3,python3-numpy}
out=${1:-${SQUIRE_TESTDIR:-${XDG_CACHE_HOME:-$HOME/.cache}/squire-test}}

die() {
	echo "rootfs.sh: $*" >&2
	exit 1
}

# recipe is what the images are made of: this script's contents, whatever checkout it is in, and the packages.
recipe() {
	echo "$(cksum <"$0") $include"
}

# fresh says whether both images are there and made by this recipe.
fresh() {
	[ -e "$out/rootfs-zstd.sqsh" ] && [ -e "$out/rootfs-gzip.sqsh" ] && [ "$(cat "$out/recipe" 2>/dev/null)" = "$(recipe)" ]
}

# apt_mirror prints the address of the Debian archive in this machine's apt configuration; nothing when it has none,
# and then debootstrap's own default holds.
apt_mirror() {
	# shellcheck source=/dev/null
	codename=$(. /etc/os-release && [ "$ID" = debian ] && echo "${VERSION_CODENAME:-$suite}") || return 0
	# shellcheck disable=SC2016 # the $(…) are apt's
	apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
		awk -v r="$codename" '($1 == r || $1 == "stable" || $1 == "testing") && $2 == "main" { print $3; exit }'
}

# add_odd_files puts into the tree $1 what a freshly installed system lacks, so that comparing two views of it says
# something about every kind of inode.
add_odd_files() {
	d=$1/odd
	mkdir -p "$d/modes" "$d/wide" "$d/empty"

	for mode in 0000 0111 0400 0644 1755 2755 4755 6755 7777; do
		echo "$mode" >"$d/modes/$mode"
		chmod "$mode" "$d/modes/$mode"
	done
	mkdir -m 1777 "$d/sticky"
	mkdir -m 0000 "$d/closed"
	echo theirs >"$d/owned"
	chown 65534:4000000000 "$d/owned"

	echo 'one inode, four names' >"$d/link-1"
	for n in 2 3 4; do ln "$d/link-1" "$d/link-$n"; done
	ln -s link-1 "$d/symlink"
	ln -s "$(printf '%01000d' 0)" "$d/symlink-long"
	ln -s missing "$d/symlink-dangling"

	truncate -s 64M "$d/sparse"
	printf middle | dd of="$d/sparse" bs=1 seek=30000000 conv=notrunc status=none
	head -c 131072 /dev/zero >"$d/zero-block"                # one block that is stored as a hole
	awk 'BEGIN { srand(1); for (i = 0; i < 2000000; i++) printf "%c", 33 + rand() * 90 }' >"$d/data"
	for size in 1 4095 4096 4097 131071 131072 131073 262144; do head -c "$size" "$d/data" >"$d/size-$size"; done
	: >"$d/size-0"

	mknod "$d/null" c 1 3
	mknod "$d/loop" b 7 0
	mknod "$d/big-numbers" b 259 70000                       # a minor of more than 8 bits
	mkfifo "$d/fifo"

	echo x >"$d/$(printf 'not-\377-utf8')"
	echo x >"$d/$(printf 'new\nline')"
	echo x >"$d/$(printf '%0255d' 0)"
	echo x >"$d/ space "
	touch -d @0 "$d/time-0"
	touch -d @2147483648 "$d/time-2038"                      # above 31 bits

	# More than 256 entries: a second directory header, and an index (squashfs_fs.h: SQUASHFS_DIR_COUNT).
	awk -v d="$d/wide" 'BEGIN { for (i = 0; i < 3000; i++) { f = sprintf("%s/file-%04d-%0*d", d, i, i % 60, 0); print i > f; close(f) } }'

	for name in xattr-a xattr-b; do
		echo "$name" >"$d/$name"
		setfattr -n user.shared -v 'a value that two files share, long enough to be stored once' "$d/$name"
	done
	setfattr -n user.empty "$d/xattr-a"
	setfattr -n user.binary -v 0x00ff00ff80 "$d/xattr-a"
	setfattr -n user.large -v "$(printf '%03000d' 7)" "$d/xattr-a"
	setfattr -n user.dir -v d "$d/empty"
	setfattr -n trusted.test -v t "$d/xattr-b"
	setfattr -h -n trusted.link -v l "$d/symlink"
}

main() {
	[ "$(id -u)" = 0 ] || die "needs root, to own files as a root file system does"
	for tool in debootstrap mksquashfs setfattr flock; do
		command -v "$tool" >/dev/null || die "needs $tool: run testdata/deps.sh"
	done

	mkdir -p "$out/debs"
	out=$(cd "$out" && pwd)
	exec 9>"$out/lock"
	flock 9
	fresh && return
	rm -f "$out/recipe"

	# debootstrap mounts proc and sys in its tree for a while: a removal must not descend into those.
	work=$(mktemp -d "$out/build.XXXXXX")
	trap 'rm -rf --one-file-system "$work"' EXIT
	trap 'exit 1' HUP INT TERM

	mirror=${ROOTFS_MIRROR:-$(apt_mirror)}
	proxy=$(apt-config shell p Acquire::http::Proxy)
	[ -z "$proxy" ] || eval "$proxy; http_proxy=\$p; export http_proxy"

	echo "rootfs.sh: installing Debian $suite with $include"
	debootstrap --variant=minbase --include="$include" --cache-dir="$out/debs" "$suite" "$work/root" ${mirror:+"$mirror"} \
		>"$work/log" 2>&1 || {
		tail -n 20 "$work/log" >&2
		die "debootstrap $suite${mirror:+ from $mirror}: see above"
	}
	rm -rf "$work/root/var/cache/apt" "$work/root/var/lib/apt/lists"
	add_odd_files "$work/root"

	for comp in zstd gzip; do
		echo "rootfs.sh: packing rootfs-$comp.sqsh"
		mksquashfs "$work/root" "$work/$comp" -comp "$comp" -b 128K -noappend -no-progress -quiet >"$work/log" 2>&1 || {
			cat "$work/log" >&2
			die "mksquashfs -comp $comp: see above"
		}
		chmod 0644 "$work/$comp"
	done
	for comp in zstd gzip; do mv "$work/$comp" "$out/rootfs-$comp.sqsh"; done
	recipe >"$out/recipe"
}

main
ls -l "$out"/rootfs-*.sqsh
