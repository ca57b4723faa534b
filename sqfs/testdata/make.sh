#!/bin/bash
# Makes the images in this directory, and beside each NAME.sqfs what other programs
# see in it:
#
#   NAME.lln     listing by unsquashfs -lln
#   NAME.sums    sha256sum of all regular files, extracted by unsquashfs
#   NAME.xattrs  extended attributes as a kernel mount shows them: path, name, value in hex
#   NAME.off     byte offset of the image in the file, where it is not 0
#
# Where images of one tree agree, the file is there once, as TREE.lln for TREE-*.
#
# Needs root (devices, trusted.* attributes, mount), squashfs-tools >= 4.5, python3,
# setfattr, and gensquashfs for the images of a second writer. Images differ in every
# byte between versions of the tools, so the results are kept, not made by the tests.
# Made with squashfs-tools 4.5.1, squashfs-tools-ng 1.2.0, Linux 6.18; bcj-* with squashfs-tools 4.7.6
# and liblzma 5.8, which NEW_MKSQUASHFS and NEW_UNSQUASHFS may name where they are not installed.
set -eu
export LC_ALL=C TZ=UTC
cd "$(dirname "$0")"
out=$PWD
w=$(mktemp -d)
trap 'umount "$w/m" 2>/dev/null || true; rm -rf "$w"' EXIT
mkdir "$w/m"
rm -f ./*.sqfs ./*.lln ./*.sums ./*.xattrs ./*.off

python3 - "$w" <<'PY'
import os, random, socket, sys
w = sys.argv[1]; random.seed(7)
words = [bytes(random.choice(b"etaoinsr") for _ in range(random.randint(2, 9))) for _ in range(12)]
def text(n):
    out = bytearray()
    while len(out) < n: out += random.choice(words) * random.randint(1, 90) + b" "
    return bytes(out[:n])
def put(p, data):
    p = os.path.join(w, p); os.makedirs(os.path.dirname(p), exist_ok=True)
    with open(p, "wb") as f: f.write(data)
# basic: sizes around the block sizes, holes, duplicates, links, modes
for n in (0, 1, 3, 4095, 4096, 4097, 8192, 8193, 131071, 131072, 131073):
    put(f"basic/sizes/t{n:06d}", text(n))
put("basic/sizes/r004096", random.randbytes(4096)); put("basic/sizes/r000100", random.randbytes(100)); put("basic/sizes/r005000", random.randbytes(5000))
put("basic/sizes/mixed", b"".join(text(4096) if i & 1 else random.randbytes(4096) for i in range(4)) + b"tail")
put("basic/zero/z321", b"\0" * 321); put("basic/zero/z131073", b"\0" * 131073)
put("basic/zero/in-the-middle", text(4096) + b"\0" * 140000 + text(500)); put("basic/zero/at-the-end", text(4096) + b"\0" * 300)
d = text(20000); put("basic/dup/a", d); put("basic/dup/b", d); put("basic/dup/samehead", d[:16384] + text(100)); put("basic/dup/sub/c", d)
for i in range(300): put(f"basic/dir300/f{i:03d}", text(i) if i % 50 == 0 else b"")
for i in range(12): put(f"basic/small/{i:02d}.txt", text(200 + i * 37))
os.makedirs(f"{w}/basic/empty"); os.makedirs(f"{w}/basic/deep/" + "/".join("abcdefghijklmnopqrst"))
for n in ("with space", "-dash", "caf\u00e9", "\u6f22\u5b57", "a" * 255, ".hidden", "..double", "trail.", "A", "B", "a", "Z", "_"): put("basic/names/" + n, n.encode())
os.makedirs(f"{w}/basic/links"); put("basic/links/target", b"target\n")
for n, t in {"rel": "target", "abs": "/small/01.txt", "up": "../sizes/t004096", "dangling": "no/such", "loop": "loop", "dir": "../small", "self": ".", "out": "../../../../links/target", "chain": "abs"}.items():
    os.symlink(t, f"{w}/basic/links/{n}")
for i in range(3): os.link(f"{w}/basic/links/target", f"{w}/basic/links/hard{i}")
os.link(f"{w}/basic/links/rel", f"{w}/basic/links/rel-hard", follow_symlinks=False)
for m in (0o000, 0o444, 0o4755, 0o2755, 0o1777, 0o7777): put(f"basic/modes/m{m:04o}", b"m"); os.chmod(f"{w}/basic/modes/m{m:04o}", m)
# stored: a bit of everything, small; what the tests damage
for i in range(300): put(f"stored/big/entry-{i:03d}-{'x' * (i % 30)}", b"")
put("stored/blocks", bytes(i % 251 for i in range(4096 * 3 + 100))); put("stored/small", b"small file\n"); put("stored/hole", b"\0" * 4096 + b"data" * 1024)
put("stored/sub/one", b"1"); put("stored/sub/two", b"2"); os.symlink("sub/one", f"{w}/stored/link"); os.link(f"{w}/stored/small", f"{w}/stored/small2")
os.mkfifo(f"{w}/stored/fifo"); os.mknod(f"{w}/stored/null", 0o020666, os.makedev(1, 3))
os.setxattr(f"{w}/stored/small", "user.short", b"v"); os.setxattr(f"{w}/stored/small", "user.long", b"L" * 200)
os.setxattr(f"{w}/stored/blocks", "user.long", b"L" * 200); os.setxattr(f"{w}/stored/sub", "trusted.overlay.opaque", b"y")
# index: a directory whose listing spans several metadata blocks
for i in range(700): put(f"index/big/{i:04d}-{'n' * (i % 60)}", b"")
put("index/big/zz-last", b"z"); os.makedirs(f"{w}/index/big/0300-dir/x")
# names that no text encoding knows, and awkward ones
for n in (b"\xff\xfe", b"caf\xe9", b"new\nline", b"tab\t", b"back\\slash", b"quo'te\""): put(os.path.join(b"names", n).decode("utf8", "surrogateescape"), b"x")
# xattr: inline, shared, out of line, many, on all types of inode
x = f"{w}/xattr"
for i in range(9): put(f"xattr/{i}", b"%d" % i)
S = os.setxattr
S(f"{x}/1", "user.empty", b"")
for i in (1, 2, 3): S(f"{x}/{i}", "user.same", b"a value that is long enough to be shared")
S(f"{x}/4", "user.bin", b"\0\xff\0\xff\x80"); S(f"{x}/5", "user.big", b"A" * 3500)
for i in range(60): S(f"{x}/6", f"user.many{i}", b"value %d" % i)
S(f"{x}/7", "security.capability", bytes.fromhex("0100000200200000000000000000000000000000"))
for i in range(600): put(f"xattr/sets/{i:03d}", b""); S(f"{x}/sets/{i:03d}", "user.n", b"%d" % i)
os.mkdir(f"{x}/dir"); S(f"{x}/dir", "trusted.overlay.opaque", b"y"); S(x, "user.root", b"r")
os.symlink("1", f"{x}/sl"); os.mkfifo(f"{x}/ff"); os.mknod(f"{x}/cc", 0o020644, os.makedev(1, 3)); os.mknod(f"{x}/bb", 0o060644, os.makedev(7, 0))
socket.socket(socket.AF_UNIX).bind(f"{x}/ss")
for n in ("sl", "ff", "cc", "bb", "ss"): S(f"{x}/{n}", "trusted.t", n.encode(), follow_symlinks=False)
# sparse: more than 2048 blocks of 4 KiB
os.makedirs(f"{w}/sparse")
for name, size, data in (("long", 40 << 20, ((0, text(5000)), (9 << 20, text(9000)), (33 << 20, b"here"))), ("short", 100000, ((50000, b"x"),))):
    with open(f"{w}/sparse/{name}", "wb") as f:
        f.truncate(size)
        for at, b in data: f.seek(at); f.write(b)
# bcj: calls of a few functions from many places, which compress better after the filter of their processor
import struct
def calls(call, size):
    out = bytearray()
    while len(out) < size: out += call(random.choice(targets) - len(out)) if random.random() < .4 else struct.pack("<I", random.choice(common))
    return bytes(out) + b"end"
targets = [random.randrange(0, 1 << 20, 4) for _ in range(20)]; common = [random.getrandbits(32) & ~0x7f | 0x13 for _ in range(50)]
put("bcj/arm64", calls(lambda d: struct.pack("<I", 0x94000000 | d >> 2 & 0x3ffffff), 14000))
put("bcj/riscv", calls(lambda d: struct.pack("<I", 0xef | d >> 20 & 1 << 31 | (d & 0x7fe) << 20 | (d & 0x800) << 9 | d & 0xff000 | 1 << 7) if d & 4
    else struct.pack("<II", 0x97 | (d + 0x800) & 0xfffff000, 0x80e7 | (d & 0xfff) << 20), 14000)) # jal ra; auipc ra, jalr ra
os.makedirs(f"{w}/none"); put("tiny/hello", b"hello, world\n"); put("tiny/d/x", b"x"); os.symlink("hello", f"{w}/tiny/l")
for base, dirs, files in os.walk(w.encode()):
    for n in dirs + files: os.utime(os.path.join(base, n), (1700000000, 1700000000), follow_symlinks=False)
    os.utime(base, (1700000000, 1700000000))
T = 1700000000
with open(f"{w}/special.pf", "w") as f:
    print(f"/ D {T} 755 0 0\ndev D {T} 755 0 0\nids D {T} 755 0 0\ntimes D {T} 755 0 0", file=f)
    print(f"dev/null C {T} 666 0 0 1 3\ndev/sda B {T} 660 0 6 8 0\ndev/maxmaj C {T} 600 0 0 4095 0\ndev/maxmin C {T} 600 0 0 0 1048575\ndev/min256 B {T} 600 0 0 259 256\ndev/fifo I {T} 644 0 0 f\ndev/sock I {T} 755 0 0 s", file=f)
    for u in (0, 1, 1000, 65534, 65535, 65536, 2147483648, 4294967294, 4294967295): print(f"ids/u{u} D {T} 755 {u} {u}", file=f)
    for t in (0, 1, 2147483647, 2147483648, 4294967295): print(f"times/t{t} D {t} 755 0 0", file=f)
with open(f"{w}/ids.pf", "w") as f:
    print(f"/ D {T} 755 0 0", file=f)
    for i in range(1200): print(f"n{i:04d} D {T} 755 {100000 + i} {200000 + i}", file=f)
PY

mk() { "${MKSQUASHFS:-mksquashfs}" "$w/$2" "$1.sqfs" -noappend -quiet -no-progress -mkfs-time 1700000000 "${@:3}" >/dev/null; }
for c in gzip xz lz4 zstd lzma lzo; do
	mk basic-$c-4K basic -comp $c -b 4K
done
for c in gzip xz lz4 zstd; do
	mk basic-$c-128K basic -comp $c -b 128K
done
mk basic-zstd-1M      basic  -comp zstd -b 1M -Xcompression-level 22
mk basic-tailends-4K  basic  -comp zstd -b 4K -always-use-fragments
mk basic-nofragments  basic  -comp gzip -no-fragments -no-exports -Xwindow-size 8 -Xcompression-level 1
mk stored             stored -b 4K -noI -noD -noF -noX -noId
mk index-gzip         index  -comp gzip
mk index-stored       index  -noI -noId
mk names              names  -comp gzip
mk xattr-zstd         xattr  -comp zstd -xattrs
mk sparse             sparse -comp lz4 -b 4K -Xhc
mk special            none   -pf "$w/special.pf"
mk ids                none   -comp xz -pf "$w/ids.pf"
mk empty              none   -comp gzip
mk tiny-nopad         tiny   -comp xz -nopad -all-root -Xbcj x86 -Xdict-size 8K
for c in arm64 riscv; do # needs squashfs-tools >= 4.7 with liblzma >= 5.6
	MKSQUASHFS=${NEW_MKSQUASHFS:-mksquashfs} mk bcj-$c bcj -comp xz -b 8K -Xbcj $c
done
mk offset             tiny   -comp zstd -offset 12345; echo 12345 >offset.off
cp tiny-nopad.sqfs trailing.sqfs; head -c 3333 tiny-nopad.sqfs >>trailing.sqfs
mk appended           tiny   -comp gzip; mksquashfs "$w/stored/sub" appended.sqfs -quiet -no-progress -keep-as-directory >/dev/null
if command -v gensquashfs >/dev/null; then
	gensquashfs -q -f -c gzip -b 4096 -e -D "$w/index" index-ng-gzip.sqfs >/dev/null
	gensquashfs -q -f -c zstd -k -x -D "$w/xattr" xattr-ng-zstd.sqfs >/dev/null
fi

for f in *.sqfs; do
	n=${f%.sqfs} off=0
	[ -f "$n.off" ] && off=$(cat "$n.off")
	unsquashfs=unsquashfs
	[[ $n != bcj-* ]] || unsquashfs=${NEW_UNSQUASHFS:-unsquashfs}
	"$unsquashfs" -o "$off" -lln "$f" >"$n.lln"
	rm -rf "$w/x"
	"$unsquashfs" -o "$off" -n -q -d "$w/x" "$f" >/dev/null 2>&1 || true # it cannot make the largest device numbers
	(cd "$w/x" && find . -type f -print0 | sort -z | xargs -0 -r sha256sum) >"$n.sums"
	case $n in
	*lzma* | bcj-* | tiny-nopad | trailing) continue ;; # the kernel cannot mount these
	esac
	mount -t squashfs -o "ro,loop,offset=$off" "$f" "$w/m" || { echo "$n: no mount"; continue; }
	python3 - "$w/m" "$n.xattrs" <<'PY'
import os, sys
lines = []
for base, dirs, files in os.walk(sys.argv[1].encode()):
    for n in ([b""] if base == sys.argv[1].encode() else []) + dirs + files:
        p = os.path.join(base, n) if n else base
        try: names = os.listxattr(p, follow_symlinks=False)
        except OSError: names = [] # the image has no table
        for a in names:
            lines.append("." + p.decode("utf8", "backslashreplace")[len(sys.argv[1]):] + " " + a + " " + os.getxattr(p, a, follow_symlinks=False).hex() + "\n")
if lines:
    with open(sys.argv[2], "w") as f: f.writelines(sorted(lines))
PY
	umount "$w/m"
done
find . -size 0 -delete
for tree in basic-gzip-128K index-gzip xattr-zstd bcj-arm64; do
	for f in "$tree".*s "$tree.lln"; do
		all=${tree%%-*}
		case $f in *.sqfs) continue ;; esac
		[ -f "$f" ] || continue
		mv "$f" "$all.${f##*.}"
		for g in "$all"-*."${f##*.}"; do ! cmp -s "$g" "$all.${f##*.}" || rm "$g"; done
	done
done
du -sh "$out"
