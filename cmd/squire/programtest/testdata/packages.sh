#!/bin/bash
# packages.sh: a repository of packages is made, they are installed from it, and removed.
set -e
export DEBIAN_FRONTEND=noninteractive
mkdir -p /srv/repository /srv/packages && cd /srv/packages

# control PACKAGE [FIELD…]
control() {
	package=$1
	shift
	mkdir -p "$package/DEBIAN"
	printf '%s\n' "Package: $package" 'Version: 1' 'Architecture: all' 'Maintainer: m <m@example.org>' 'Description: x' "$@" >"$package/DEBIAN/control"
}
control squire-base
mkdir -p squire-base/usr/lib/base && cp /bin/true squire-base/usr/lib/base/set-id && chmod 6755 squire-base/usr/lib/base/set-id
ln squire-base/usr/lib/base/set-id squire-base/usr/lib/base/hard && ln -s set-id squire-base/usr/lib/base/link
control squire-app 'Depends: squire-base, adduser'
mkdir -p squire-app/etc/app squire-app/srv/app && echo 1 >squire-app/etc/app/conf && echo /etc/app/conf >squire-app/DEBIAN/conffiles
echo secret >squire-app/srv/app/secret && chmod 600 squire-app/srv/app/secret
cat >squire-app/DEBIAN/postinst <<'P'
#!/bin/sh
set -e
adduser --system --group --home /var/lib/app --quiet app
chown -R app:app /var/lib/app /srv/app
chmod 2770 /var/lib/app
install -d -o app -g adm -m 0750 /var/log/app
dpkg-statoverride --update --add app adm 4750 /usr/lib/base/set-id
su -s /bin/sh app -c 'touch /var/lib/app/by-su'
P
cat >squire-app/DEBIAN/prerm <<'P'
#!/bin/sh
set -e
dpkg-statoverride --remove /usr/lib/base/set-id
P
chmod 755 squire-app/DEBIAN/p*

dpkg-deb --root-owner-group --build squire-base /srv/repository >/dev/null
# This one's files belong to somebody who is nobody here: dpkg-deb cannot say that, tar can.
dpkg-deb --root-owner-group -Znone --build squire-app app.deb >/dev/null
tar --owner=33 --group=1234 -C squire-app -cf data.tar ./etc ./srv
python3 - <<'P'
import struct
old, new, i = open("app.deb", "rb").read(), b"!<arch>\n", 8
while i < len(old):
    head, size = old[i : i + 60], int(old[i + 48 : i + 58])
    data = old[i + 60 : i + 60 + size]
    i += 60 + size + size % 2
    if head.startswith(b"data.tar"):
        data = open("data.tar", "rb").read()
    new += head[:48] + b"%-10d`\n" % len(data) + data + b"\n" * (len(data) % 2)
open("/srv/repository/app.deb", "wb").write(new)
P
cd /srv/repository
for deb in *.deb; do
	dpkg-deb -f "$deb"
	printf '%s\n' "Filename: ./$deb" "Size: $(stat -c %s "$deb")" "SHA256: $(sha256sum "$deb" | cut -d ' ' -f 1)" ''
done >Packages
echo 'deb [trusted=yes] file:/srv/repository ./' >/etc/apt/sources.list
quiet() { "$@" >/srv/log 2>&1 </dev/null || { cat /srv/log; exit 1; }; }
quiet apt-get update
quiet apt-get install -y --no-install-recommends squire-app
grep -i -E 'warn|sandbox|not permitted|invalid' /srv/log | grep -v 'home dir' || :
dpkg-query -W -f '${Package} ${Status}\n' 'squire-*'
stat -c '%n %a %U:%G' /usr/lib/base/set-id /usr/lib/base/hard /var/lib/app /var/lib/app/by-su /var/log/app /srv/app/secret
quiet apt-get purge -y squire-app
quiet apt-get autoremove -y
ls -d /etc/app /usr/lib/base 2>/dev/null || echo removed

# What administrators do.
useradd -m -s /bin/bash alice
stat -c '%n %U' /home/alice
# shellcheck disable=SC2016 # it is alice's shell that expands them
su - alice -c 'echo "su $PWD $(id -un)"'
usermod -aG adm alice && passwd -d alice >/dev/null && echo alice:word | chpasswd && userdel alice && ! id alice 2>/dev/null
mkdir t && echo a >t/a && tar --owner=33 --group=1234 -cf t.tar t && rm -r t && tar -xpf t.tar --same-owner && stat -c 'tar %u:%g' t/a
rsync -aHAX --numeric-ids --exclude=/null --exclude=/loop --exclude=/big-numbers --exclude=/sparse --exclude=/wide --exclude=/data /odd/ /srv/odd/ && stat -c 'rsync %u:%g' /srv/odd/owned
install -o root -g mail -m 2755 /bin/true /srv/mail && stat -c 'install %a %u:%g' /srv/mail
setcap cap_net_raw+ep /srv/mail && getcap /srv/mail
mknod /srv/null c 1 3 2>&1 | grep -o 'not permitted' || :
