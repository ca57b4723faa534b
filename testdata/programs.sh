#!/bin/sh
# programs.sh - make the image of the tests that run programs which people use: compilers, debuggers, MPI.
#
#   usage: programs.sh [OUTDIR]      (needs root, apt-get, dpkg-deb, unsquashfs, mksquashfs, and rootfs.sh's image in OUTDIR)
#
# OUTDIR is by default $SQUIRE_TESTDIR, or squire-test in the user's cache directory. It gets programs.sqsh: the Debian
# of rootfs-zstd.sqsh with the packages below, among them MPICH, Open MPI and Slurm's PMI-2 library. They come from where
# this machine's apt takes them, which so has to be a Debian of the same version, and are kept in OUTDIR/debs-programs.
# They are unpacked, not installed: dpkg does not know of them. Nothing is done when the image is there and newer than
# what it is made from.
set -eu
export LC_ALL=C

mpi='mpich openmpi-bin libpmi2-0'
tools='gcc libc6-dev make git gdb strace rsync tmux screen iputils-ping python3-pip python3-wheel'
out=${1:-${SQUIRE_TESTDIR:-${XDG_CACHE_HOME:-$HOME/.cache}/squire-test}}

die() {
	echo "programs.sh: $*" >&2
	exit 1
}

[ "$(id -u)" = 0 ] || die "needs root, to own files as a root file system does"
for tool in apt-get dpkg-deb unsquashfs mksquashfs flock; do
	command -v "$tool" >/dev/null || die "needs $tool"
done
[ -s "$out/rootfs-zstd.sqsh" ] || die "$out/rootfs-zstd.sqsh: run testdata/rootfs.sh"
out=$(cd "$out" && pwd)
exec 9>"$out/lock-programs"
flock 9
image=$out/programs.sqsh
[ -z "$(find "$image" -newer "$out/rootfs-zstd.sqsh" -newer "$0" 2>/dev/null)" ] || exit 0

work=$(mktemp -d "$out/build-programs.XXXXXX")
trap 'rm -rf --one-file-system "$work"' EXIT
trap 'exit 1' HUP INT TERM
unsquashfs -no-progress -quiet -d "$work/root" "$out/rootfs-zstd.sqsh" >"$work/log" 2>&1 || die "unpack: $(tail -n 3 "$work/log")"

# What is missing in the image is asked of apt as if the image were the machine, with lists of packages as new as the image
# is: in the machine's own a package may need an older version of what the image has.
mkdir -p "$out/debs-programs/partial" "$out/apt-lists/partial"
apt() {
	apt-get -o Debug::NoLocking=1 -o Dir::State::status="$work/root/var/lib/dpkg/status" -o Dir::State::lists="$out/apt-lists" \
		-o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o Dir::Cache::archives="$out/debs-programs" "$@" </dev/null >"$work/log" 2>&1
}
apt update || die "lists of packages: $(tail -n 3 "$work/log")"
apt autoclean || die "older packages: $(tail -n 3 "$work/log")"
# shellcheck disable=SC2086 # one word a package
apt --yes --no-install-recommends --download-only install $mpi $tools || die "download: $(tail -n 3 "$work/log")"
for deb in "$out"/debs-programs/*.deb; do
	# Not dpkg-deb -x, which puts a directory in the place of the link /lib.
	dpkg-deb --fsys-tarfile "$deb" | tar -x --keep-directory-symlink -C "$work/root"
done
ln -s gcc "$work/root/usr/bin/cc"                                # as update-alternatives(1) would
rm -rf "$work/root"/usr/share/doc "$work/root"/usr/share/locale "$work/root"/usr/share/man
ldconfig -r "$work/root"
mksquashfs "$work/root" "$work/image" -comp zstd -Xcompression-level 3 -b 128K -noappend -no-progress -quiet >"$work/log" 2>&1 || die "pack: $(tail -n 3 "$work/log")"
chmod 0644 "$work/image"
mv "$work/image" "$image"
ls -l "$image"
