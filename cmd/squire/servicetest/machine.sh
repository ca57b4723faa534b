#!/bin/sh
# Make a machine of the namespaces that this runs in, and become its first process: systemd, with squire's units and no
# others but the journal.
#
#	machine.sh DIR SHARED
#
# DIR has the units, the directory bin with the program, and an empty directory root. Of the host there is /usr, to be
# read, and SHARED, in which DIR is. Nothing else may be in sight: a systemd that starts empties /tmp, sets the kernel's
# parameters and takes what it finds below /dev for its own.
set -eu
dir=$1
shared=$2
root=$dir/root

mount -t tmpfs -o mode=755 tmpfs "$root"
cd "$root"
mkdir -p usr etc/systemd/system proc sys dev run tmp var/tmp var/log var/lib root .host "./$shared"
chmod 1777 tmp var/tmp
for link in bin sbin lib lib32 lib64 libx32; do
	if [ -L "/$link" ]; then cp -P "/$link" .; fi
done
mount --bind /usr usr
mount -o remount,bind,ro usr
mount --bind "$shared" "./$shared"
mount --bind "$dir/bin" usr/local/bin

# What systemd would start by itself.
for wants in usr/lib/systemd/system/*.wants usr/lib/systemd/system-generators; do
	if [ -d "$wants" ]; then mount -t tmpfs tmpfs "$wants"; fi
done
ln -s /dev/null etc/systemd/system/systemd-journald-audit.socket

mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs dev
for node in null zero full random urandom tty fuse; do
	touch "dev/$node"
	mount --bind "/dev/$node" "dev/$node"
done
touch dev/console
mount --bind "$dir/console" dev/console
mkdir dev/shm
mount -t tmpfs -o mode=755 tmpfs run

for file in passwd group nsswitch.conf ld.so.cache; do
	if [ -e "/etc/$file" ]; then cp "/etc/$file" etc/; fi
done
echo 5c0e7d1f5c0e7d1f5c0e7d1f5c0e7d1f >etc/machine-id
cp "$dir/squire.service" "$dir/squire.socket" etc/systemd/system/
chmod 644 etc/systemd/system/squire.*
cat >etc/systemd/system/machine.target <<UNIT
[Unit]
DefaultDependencies=no
Requires=systemd-journald.service
After=systemd-journald.service
UNIT

pivot_root . .host
umount -l /.host
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=squire-test \
	/usr/lib/systemd/systemd --system --unit=machine.target --log-target=journal --show-status=no
