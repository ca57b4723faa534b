#!/bin/sh
# deps.sh - see to it that the tools are there which tests, benchmarks and the demonstration use beside Go.
#
#   usage: deps.sh [TOOL…]        (by default all that the tests use)
#
# As root, what is missing is installed with apt, and every user may open /dev/fuse, as udev arranges it on a machine
# that has udev. Otherwise what is missing is named, and the exit status is 1.
set -eu
export LC_ALL=C

# package_of names the Debian package of a tool.
package_of() {
	case $1 in
	mksquashfs | unsquashfs | sqfstar) echo squashfs-tools ;;
	gensquashfs | tar2sqfs) echo squashfs-tools-ng ;;
	squashfuse | squashfuse_ll) echo squashfuse ;;
	fusermount3) echo fuse3 ;;
	setfattr) echo attr ;;
	setfacl) echo acl ;;
	debootstrap) echo debootstrap ;;
	busybox) echo busybox-static ;;
	shellcheck) echo shellcheck ;;
	setpriv | unshare | nsenter | pivot_root) echo util-linux ;;
	bwrap) echo bubblewrap ;;
	ssh-keygen) echo openssh-client ;;
	systemctl | journalctl) echo systemd ;;
	cc) echo gcc ;;
	stdlib.h) echo libc6-dev ;;
	zlib.h) echo zlib1g-dev ;;
	lzma.h) echo liblzma-dev ;;
	lzo/lzo1x.h) echo liblzo2-dev ;;
	lz4.h) echo liblz4-dev ;;
	zstd.h) echo libzstd-dev ;;
	libdeflate.h) echo libdeflate-dev ;;
	slurm/spank.h) echo libslurm-dev ;;
	libpmix.so) echo libpmix-dev ;;
	slurmctld | slurmd | srun | sbatch | salloc) echo slurm-wlm ;;
	*) echo "$1" ;;
	esac
}

# has says whether a tool is there; busybox only counts when it runs without libraries, Debian's keys, which other
# distributions leave out, are a file, of a C library the header has to be found, and PMIx's where Slurm's plugin looks.
has() {
	case $1 in
	busybox) path=$(command -v busybox) && ! ldd "$path" >/dev/null 2>&1 ;;
	*.h) echo "#include <$1>" | cc -E -x c - >/dev/null 2>&1 ;;
	debian-archive-keyring) [ -e /usr/share/keyrings/debian-archive-keyring.gpg ] ;;
	libpmix.so) ls /usr/lib/*/pmix2/lib/libpmix.so >/dev/null 2>&1 ;;
	*) command -v "$1" >/dev/null ;;
	esac
}

missing() {
	for tool; do
		has "$tool" || package_of "$tool"
	done | sort -u | tr '\n' ' '
}

# deny_services keeps packages from starting services: tests start their own. invoke-rc.d(8) asks the program whether
# it may, and 101 is no.
policy=/usr/sbin/policy-rc.d
deny_services() {
	[ ! -e $policy ] || return 0
	trap 'rm -f $policy' EXIT
	printf '#!/bin/sh\nexit 101\n' >$policy
	chmod 0755 $policy
}

# disable_services sees to it that they do not start with the machine either.
disable_services() {
	case " $1" in
	*" docker-registry "*) systemctl disable docker-registry >/dev/null 2>&1 || : ;; # without systemd nothing starts
	esac
	case " $1" in
	*" slurm-wlm "* | *" munge "*) systemctl disable munge slurmctld slurmd >/dev/null 2>&1 || : ;;
	esac
}

# install_packages installs with the package lists that are there, and only when that fails with new ones.
install_packages() {
	export DEBIAN_FRONTEND=noninteractive
	# shellcheck disable=SC2086 # one word a package
	apt-get install -y -q --no-install-recommends $1 </dev/null && return
	apt-get update -q </dev/null
	# shellcheck disable=SC2086
	apt-get install -y -q --no-install-recommends $1 </dev/null
}

# open_fuse lets every user serve a file system: the device checks nothing itself, mounting has its own rules.
open_fuse() {
	[ -c /dev/fuse ] || mknod /dev/fuse c 10 229 || return 0 # containers often may not; the tests then say so
	chmod 0666 /dev/fuse || : # on a read-only or foreign /dev
}

PATH=$PATH:/usr/sbin:/sbin
[ $# -gt 0 ] || set -- mksquashfs unsquashfs squashfuse fusermount3 debootstrap debian-archive-keyring setfattr busybox setpriv unshare nsenter pivot_root \
	ssh-keygen systemctl journalctl shellcheck \
	docker-registry skopeo umoci slurmctld munge cc slurm/spank.h libpmix.so setfacl \
	zlib.h lzma.h lzo/lzo1x.h lz4.h zstd.h libdeflate.h

packages=$(missing "$@")
if [ "$(id -u)" != 0 ]; then
	[ -z "$packages" ] && exit
	echo "deps.sh: missing: $packages" >&2
	echo "deps.sh: install them, for example with: sudo apt-get install $packages" >&2
	exit 1
fi
if [ -n "$packages" ]; then
	command -v apt-get >/dev/null || {
		echo "deps.sh: missing: ${packages}(there is no apt-get here to install them with)" >&2
		exit 1
	}
	deny_services
	install_packages "$packages"
	disable_services "$packages"
	packages=$(missing "$@")
	[ -z "$packages" ] || {
		echo "deps.sh: still missing: $packages" >&2
		exit 1
	}
fi
open_fuse
