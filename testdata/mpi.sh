#!/bin/sh
# mpi.sh - make the image of the tests that run MPI programs as tasks of Slurm's.
#
#   usage: mpi.sh [OUTDIR]      (needs root, apt-get, dpkg-deb, unsquashfs, mksquashfs, and rootfs.sh's image in OUTDIR)
#
# OUTDIR is by default $SQUIRE_TESTDIR, or squire-test in the user's cache directory. It gets mpi.sqsh: the Debian of
# rootfs-zstd.sqsh with MPICH, Open MPI and Slurm's PMI-2 library. The packages come from where this machine's apt takes
# them, which so has to be a Debian of the same version, and are kept in OUTDIR/debs-mpi. Nothing is done when the image
# is there and newer than what it is made from.
set -eu
export LC_ALL=C

packages='mpich openmpi-bin libpmi2-0'
out=${1:-${SQUIRE_TESTDIR:-${XDG_CACHE_HOME:-$HOME/.cache}/squire-test}}

die() {
	echo "mpi.sh: $*" >&2
	exit 1
}

[ "$(id -u)" = 0 ] || die "needs root, to own files as a root file system does"
for tool in apt-get dpkg-deb unsquashfs mksquashfs flock; do
	command -v "$tool" >/dev/null || die "needs $tool"
done
[ -s "$out/rootfs-zstd.sqsh" ] || die "$out/rootfs-zstd.sqsh: run testdata/rootfs.sh"
out=$(cd "$out" && pwd)
exec 9>"$out/lock-mpi"
flock 9
image=$out/mpi.sqsh
[ -z "$(find "$image" -newer "$out/rootfs-zstd.sqsh" -newer "$0" 2>/dev/null)" ] || exit 0

work=$(mktemp -d "$out/build-mpi.XXXXXX")
trap 'rm -rf --one-file-system "$work"' EXIT
trap 'exit 1' HUP INT TERM
unsquashfs -no-progress -quiet -d "$work/root" "$out/rootfs-zstd.sqsh" >"$work/log" 2>&1 || die "unpack: $(tail -n 3 "$work/log")"

# What is missing in the image is asked of apt as if the image were the machine.
mkdir -p "$out/debs-mpi/partial"
# shellcheck disable=SC2086 # one word a package
apt-get --yes --no-install-recommends --download-only -o Debug::NoLocking=1 -o Dir::State::status="$work/root/var/lib/dpkg/status" \
	-o Dir::Cache::archives="$out/debs-mpi" install $packages </dev/null >"$work/log" 2>&1 ||
	die "download $packages: $(tail -n 3 "$work/log")"
for deb in "$out"/debs-mpi/*.deb; do
	# Not dpkg-deb -x, which puts a directory in the place of the link /lib.
	dpkg-deb --fsys-tarfile "$deb" | tar -x --keep-directory-symlink -C "$work/root"
done
ldconfig -r "$work/root"
mksquashfs "$work/root" "$work/image" -comp zstd -b 128K -noappend -no-progress -quiet >"$work/log" 2>&1 || die "pack: $(tail -n 3 "$work/log")"
chmod 0644 "$work/image"
mv "$work/image" "$image"
ls -l "$image"
