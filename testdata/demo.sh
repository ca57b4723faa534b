#!/bin/sh
# demo.sh - make a small image and run a command in it, to see squire at work.
#
#   usage: demo.sh SQUIRE         (the binary)
#
# Everything happens in a temporary directory, which is removed at the end. It needs mksquashfs to make the image. Run
# as root, it shows an ordinary user's run as well.
set -eu
export LC_ALL=C

here=$(cd "$(dirname "$0")" && pwd)
squire=${1:?usage: demo.sh SQUIRE}

"$here/deps.sh" mksquashfs
PATH=$PATH:/usr/sbin:/sbin

work=$(mktemp -d)
trap 'rm -rf --one-file-system "$work"' EXIT
trap 'exit 130' HUP INT TERM
chmod 0755 "$work" # an ordinary user reads the binary and the image below
cp "$squire" "$work/squire"
export SQUIRE_CACHE_DIR="$work/cache" # traces of the demo's image are of no use later

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
[ -t 1 ] || say() { printf '\n== %s\n' "$*"; }

# show prints a command as one would type it, and runs it.
show() {
	printf '$'
	for word; do
		case $word in
		*[!A-Za-z0-9_./:=,+-]*) printf " '%s'" "$word" ;;
		*) printf ' %s' "$word" ;;
		esac
	done
	printf '\n'
	"$@"
}

say "A small root file system, with 40 MiB that nothing will touch"
root=$work/root
mkdir -p "$root/bin" "$root/data" "$root/proc" "$root/sys" "$root/dev" "$root/tmp" "$root/etc"
echo 'this file is in the image' >"$root/etc/motd"
for i in 1 2 3 4; do head -c 10485760 /dev/urandom >"$root/data/ballast-$i"; done
busybox=$(command -v busybox || :)
if [ -n "$busybox" ] && ! ldd "$busybox" >/dev/null 2>&1; then
	cp "$busybox" "$root/bin/busybox"
	for applet in sh cat echo id ls uname; do ln -s busybox "$root/bin/$applet"; done
	# shellcheck disable=SC2016 # for the shell in the image
	set -- /bin/sh -c 'echo "hello from inside the image, as user $(id -u)"; echo "kernel: $(uname -sr)"; cat /etc/motd; ls /'
else
	(cd "$here/.." && CGO_ENABLED=0 go build -trimpath -o "$root/bin/demo" ./testdata/demo)
	set -- /bin/demo
fi
mksquashfs "$root" "$work/demo.sqsh" -all-root -noappend -no-progress -quiet >/dev/null
chmod 0644 "$work/demo.sqsh"
rm -rf "$root"
cd "$work"
PATH=$work:$PATH

say "What is in the image"
show squire inspect demo.sqsh
show squire ls demo.sqsh /data

say "A command in it: nothing is unpacked, nothing is installed, no daemon runs"
show squire run --stats demo.sqsh -- "$@"

if [ "$(id -u)" = 0 ]; then
	say "The same as an ordinary user"
	show setpriv --reuid 12345 --regid 12345 --clear-groups squire run --stats demo.sqsh -- "$@"
fi

say "The image has $(stat -c %s demo.sqsh) bytes; the line of --stats above says how many of them were read"
