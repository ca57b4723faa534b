#!/bin/sh
# links.sh: what conda, pip and archives do with links and directories, to files of the image and to new ones.
mkdir /srv/links && cd /srv/links || exit
mkdir -p pkgs/p1/lib pkgs/all && for i in $(seq 200); do echo "$i" >"pkgs/p1/lib/f$i"; done
cp -al pkgs/p1 env && (cd pkgs/all && ln -s ../p1/lib/* .)
stat -c 'hard %h' env/lib/f200 && echo "symbolic $(cat pkgs/all/f*9 | wc -l)"
rm -r env && stat -c 'hard %h' pkgs/p1/lib/f200

# Of four names of the image's for one file, that which is linked becomes a file of its own: what overlayfs does
# without an index.
ln /odd/link-1 /odd/link-5 && stat -c 'image %h' /odd/link-5
echo changed >/odd/link-5 && cat /odd/link-1 /odd/link-2

# A directory of the image's is not renamed, but moved; a new one in it is.
python3 -c 'import os; os.rename("/etc/apt", "/etc/apt2")' 2>&1 | grep -o 'Errno [0-9]*'
mv /etc/apt /etc/apt2 && ls -d /etc/apt2/apt.conf.d
mkdir /odd/new && mv /odd/new /odd/new2 && python3 -c 'import os; os.rename("/odd/new2", "/odd/new3"); print(os.path.isdir("/odd/new3"))'

# What a package manager of Python's does.
mkdir -p p/module && cd p && echo 'def main(): print("module", 1)' >module/__init__.py
cat >setup.py <<'P'
import os
from setuptools import setup
setup(name="module", version=os.environ["V"], packages=["module"], entry_points={"console_scripts": ["say=module:main"]})
P
for v in 1 2; do
	{
		sed -i "s/, .)/, $v)/" module/__init__.py && V=$v python3 setup.py -q bdist_wheel >log 2>&1 &&
			pip install --no-index --no-deps --break-system-packages --root-user-action=ignore dist/module-$v-*.whl >log 2>&1 && say
	} || cat log
done
{ pip uninstall -y --break-system-packages --root-user-action=ignore module >log 2>&1 && [ ! -e /usr/local/bin/say ]; } || cat log

# Archives and copies of all that there is.
tar -C /odd --exclude=wide --exclude=sparse --exclude=data -cf all.tar . 2>/dev/null
mkdir x && tar -C x -xpf all.tar --no-same-owner --warning=no-timestamp --exclude=./null --exclude=./loop --exclude=./big-numbers && diff -r --no-dereference x/empty /odd/empty && echo tar
rsync -aHX --exclude=wide --exclude=sparse --exclude=data --exclude=modes --exclude=closed --exclude=null --exclude=loop --exclude=big-numbers /odd/ y/ && diff -r --no-dereference x/xattr-a y/xattr-a && echo rsync
