#!/bin/sh
# demo.sh - make a small image, import a container image, and run commands in them, to see squire at work.
#
#   usage: demo.sh SQUIRE         (the binary)
#
# Everything happens in a temporary directory, which is removed at the end. Run as root, it shows an ordinary user's run
# as well.
set -eu
export LC_ALL=C

here=$(cd "$(dirname "$0")" && pwd)
squire=${1:?usage: demo.sh SQUIRE}

work=$(mktemp -d)
trap 'rm -rf --one-file-system "$work"' EXIT
trap 'exit 130' HUP INT TERM
chmod 0755 "$work" # an ordinary user reads the binary and the image below
cp "$squire" "$work/squire"
export SQUIRE_CACHE_DIR="$work/cache" # traces of the demo's images are of no use later

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
	# shellcheck disable=SC2016
	start='"/bin/sh", "-c", "echo hello from $PWD, $GREETING; cat /etc/motd"'
else
	(cd "$here/.." && CGO_ENABLED=0 go build -trimpath -o "$root/bin/demo" ./testdata/demo)
	set -- /bin/demo
	start='"/bin/demo"'
fi
cd "$work"
PATH=$work:$PATH
show squire pack --all-root root demo.sqsh

say "What is in the image"
show squire inspect demo.sqsh
show squire ls demo.sqsh /data

say "A command in it: nothing is unpacked, nothing is installed, no daemon runs"
show squire run --stats demo.sqsh -- "$@"

if [ "$(id -u)" = 0 ]; then
	say "The same as an ordinary user"
	show setpriv --reuid 12345 --regid 12345 --clear-groups squire run --stats demo.sqsh -- "$@"
fi

say "A container image, as \"docker save\" writes it: what it says about how it is run is kept"
tar -C root -cf layer.tar .
layer=$(sha256sum <layer.tar | cut -d ' ' -f 1)
arch=$(uname -m | sed -e s/x86_64/amd64/ -e s/aarch64/arm64/)
cat >config.json <<EOF
{"os": "linux", "architecture": "$arch", "created": "2024-01-01T00:00:00Z",
 "config": {"Cmd": [$start], "Env": ["GREETING=as the image says"], "WorkingDir": "/data"},
 "rootfs": {"type": "layers", "diff_ids": ["sha256:$layer"]}}
EOF
echo '[{"Config": "config.json", "RepoTags": ["demo:1"], "Layers": ["layer.tar"]}]' >manifest.json
tar -cf demo.tar manifest.json config.json layer.tar
show squire import docker-archive:demo.tar -o imported.sqsh
show squire run imported.sqsh
show squire import docker-archive:demo.tar -o imported.sqsh

say "The first image has $(stat -c %s demo.sqsh) bytes; the line of --stats above says how many of them were read"
