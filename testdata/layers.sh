#!/bin/sh
# layers.sh - make the container image of several gigabytes that the benchmark of "squire import" uses.
#
#   usage: layers.sh [OUTDIR]      (needs root, debootstrap, umoci and skopeo: see deps.sh)
#
# OUTDIR is by default import in $SQUIRE_TESTDIR, or in squire-test in the user's cache directory. It gets
#
#   oci/     an OCI layout with the image "big": Debian and what steps installs and removes, a layer for each step
#   debs/    the packages, kept so that the next build needs the network less
#
# Nothing is done when the image is there, made by this very script. A build in progress is waited for. The image
# appears under its name only when it is complete.
set -eu
export LC_ALL=C

suite=bookworm
out=${1:-${SQUIRE_TESTDIR:-${XDG_CACHE_HOME:-$HOME/.cache}/squire-test}/import}

# steps prints what each layer is made by: a name, and a command with its arguments.
steps() {
	cat <<-END
		base       bootstrap
		compilers  packages gcc g++ make clang llvm
		science    packages python3-scipy python3-pandas python3-matplotlib python3-sklearn
		many-files packages golang texlive-latex-extra
		replaced   change_much
		java       packages openjdk-17-jdk-headless
	END
}

die() {
	echo "layers.sh: $*" >&2
	exit 1
}

recipe() { cksum <"$0"; }

fresh() { [ -e "$out/oci/index.json" ] && [ "$(cat "$out/recipe" 2>/dev/null)" = "$(recipe)" ]; }

# apt_mirror prints the address of the Debian archive in this machine's apt configuration; nothing when it has none,
# and then debootstrap's own default holds.
apt_mirror() {
	# shellcheck source=/dev/null
	codename=$(. /etc/os-release && [ "$ID" = debian ] && echo "${VERSION_CODENAME:-$suite}") || return 0
	# shellcheck disable=SC2016 # the $(…) are apt's
	apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
		awk -v r="$codename" '($1 == r || $1 == "stable" || $1 == "testing") && $2 == "main" { print $3; exit }'
}

# bootstrap installs Debian's minimal set.
bootstrap() {
	mirror=${ROOTFS_MIRROR:-$(apt_mirror)}
	debootstrap --variant=minbase --cache-dir="$out/debs" "$suite" "$root" ${mirror:+"$mirror"}
	rm -rf "$root/var/cache/apt" "$root/var/lib/apt/lists"
}

# packages installs packages with the apt of the tree. Its package lists and archives are mounted from outside, in a
# mount namespace that takes them along when it ends.
packages() {
	mkdir -p "$work/lists/partial" "$out/debs/partial" "$root/var/lib/apt/lists" "$root/var/cache/apt/archives"
	cp -L /etc/resolv.conf "$work/resolv.conf"
	# shellcheck disable=SC2016 # expanded by the inner shell
	unshare --mount --pid --fork sh -euc '
		root=$1 lists=$2 debs=$3 resolv=$4
		shift 4
		mount -t proc proc "$root/proc"
		mount --bind "$lists" "$root/var/lib/apt/lists"
		mount --bind "$debs" "$root/var/cache/apt/archives"
		mount --bind "$resolv" "$root/etc/resolv.conf"
		apt="chroot $root apt-get -q -o APT::Sandbox::User=root -o Dpkg::Options::=--force-unsafe-io"
		[ -e "$lists/done" ] || $apt update
		: >"$lists/done"
		DEBIAN_FRONTEND=noninteractive $apt install -y --no-install-recommends "$@"
	' sh "$root" "$work/lists" "$out/debs" "$work/resolv.conf" "$@" </dev/null
}

# change_much does to the layers below what steps of a build do: it removes trees and single files, replaces files and
# whole directories, changes owners and modes.
change_much() {
	rm -rf "$root/usr/share/man" "$root/usr/share/texlive/texmf-dist/doc" "$root/var/log/apt"
	mv "$root/usr/share/doc" "$work/doc"
	mkdir "$root/usr/share/doc"
	echo 'documentation was removed' >"$root/usr/share/doc/README"
	find "$root/usr/share/locale" -mindepth 1 -maxdepth 1 ! -name 'en*' ! -name locale.alias -exec rm -rf {} +
	find "$root/usr/lib/python3/dist-packages" -name tests -type d -prune -exec rm -rf {} +
	chroot "$root" python3 -m compileall -q -f --invalidation-mode unchecked-hash /usr/lib/python3/dist-packages/sklearn || :
	find "$root/usr/lib/go-1.19/src" -name '*_test.go' -delete
	chown -R 1000:1000 "$root/usr/share/texlive/texmf-dist/tex/generic"
}

# build makes the layout of the image in $work/oci.
build() {
	umoci init --layout "$work/oci"
	umoci new --image "$work/oci:big"
	umoci unpack --image "$work/oci:big" "$work/bundle"
	root=$work/bundle/rootfs
	steps >"$work/steps"
	while read -r name step; do
		echo "layers.sh: layer $name" >&3
		# shellcheck disable=SC2086 # one word an argument
		$step
		umoci repack --refresh-bundle --history.created_by "$name" --image "$work/oci:big" "$work/bundle"
	done <"$work/steps"
	umoci config --image "$work/oci:big" --config.env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
		--config.env GREETING='a b' --config.workingdir /srv --config.cmd /bin/bash --config.label maker=layers.sh
	umoci gc --layout "$work/oci"
}

main() {
	[ "$(id -u)" = 0 ] || die "needs root, to own files as a root file system does"
	for tool in debootstrap umoci unshare flock; do
		command -v "$tool" >/dev/null || die "needs $tool: run testdata/deps.sh"
	done

	mkdir -p "$out/debs"
	out=$(cd "$out" && pwd)
	exec 9>"$out/lock"
	flock 9
	fresh && return
	rm -rf "$out/recipe" "$out/oci"

	# debootstrap mounts proc and sys in its tree for a while: a removal must not descend into those.
	work=$(mktemp -d "$out/build.XXXXXX")
	trap 'rm -rf --one-file-system "$work"' EXIT
	trap 'exit 1' HUP INT TERM

	proxy=$(apt-config shell p Acquire::http::Proxy)
	[ -z "$proxy" ] || eval "$proxy; http_proxy=\$p; export http_proxy"

	exec 3>&1
	# In a shell of its own, as -e does not hold in a command that || follows.
	set +e
	(set -e; build) >"$work/log" 2>&1
	status=$?
	set -e
	[ "$status" = 0 ] || {
		tail -n 20 "$work/log" >&2
		die "see above"
	}
	mv "$work/oci" "$out/oci"
	recipe >"$out/recipe"
}

main
du -sh "$out/oci"
