#!/bin/bash
# corpus.sh - make images by every writer, compressor and option there is, to compare readers on.
#
#   usage: corpus.sh [OUTDIR]      (needs root, squashfs-tools, python3; gensquashfs and tar2sqfs for the ng-* images)
#          LARGE=1 corpus.sh       adds an image of 4400 MiB, nearly all of it a hole; it takes 5 GiB of disk for a moment
#
# OUTDIR is by default corpus below $SQUIRE_TESTDIR, or below squire-test in the user's cache directory. Beside each
# NAME.sqfs it gets
#
#   NAME.lln     listing by unsquashfs -lln
#   NAME.sums    sha256sum of all regular files, extracted by unsquashfs; not of trees that need not be extracted
#   NAME.off     byte offset of the image in the file, where it is not 0
#
# Nothing is done when all is there, made by this very script. A build in progress is waited for. The trees: "basic" has
# sizes around all block sizes, holes, duplicates, links, modes and odd names, "special" devices, owners and times,
# "xattr" attributes of all kinds; the tar-* ones come as tar, so that they need not exist on this machine.
set -euo pipefail
export LC_ALL=C TZ=UTC

out=${1:-${SQUIRE_TESTDIR:-${XDG_CACHE_HOME:-$HOME/.cache}/squire-test}/corpus}

die() {
	echo "corpus.sh: $*" >&2
	exit 1
}

# recipe is what the images are made of: this script, and the versions of the writers.
recipe() {
	cksum <"$0"
	echo "${LARGE:-0}"
	mksquashfs -version | head -n 1
	command -v gensquashfs tar2sqfs || :
}

# trees makes the source trees in $work.
trees() {
	python3 - "$work" <<'PY'
import io, os, random, socket, sys, tarfile
w, T = sys.argv[1], 1700000000
random.seed(5)
words = [bytes(random.choice(b"etaoinshrdlu") for _ in range(random.randint(2, 9))) for _ in range(300)]

def text(n):
    out = bytearray()
    while len(out) < n: out += random.choice(words) + b" "
    return bytes(out[:n])

def put(path, data):
    path = os.path.join(os.fsencode(w), os.fsencode(path))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as f: f.write(data)
    return path

# basic
for n in (0, 1, 2, 3, 4095, 4096, 4097, 8191, 8192, 8193, 131071, 131072, 131073, 262144 + 77, 1048575, 1048576, 1048577):
    put(f"basic/sizes/t{n:07d}", text(min(n, 70000)) * (n // 70000 + 1) if n > 70000 else text(n)); os.truncate(f"{w}/basic/sizes/t{n:07d}", n)
for n in (100, 4096, 20000, 131072, 131073, 1048576): put(f"basic/sizes/r{n:07d}", random.randbytes(n))
put("basic/sizes/mixed", b"".join(text(20000) if i & 1 else random.randbytes(20000) for i in range(9)) + b"tail")
put("basic/zero/z321", bytes(321)); put("basic/zero/z131072", bytes(131072)); put("basic/zero/z393217", bytes(393217))
put("basic/zero/between", text(131072) + bytes(262144) + text(500)); put("basic/zero/front", bytes(262144) + text(77)); put("basic/zero/behind", text(131072) + bytes(300))
p = put("basic/zero/holes", b"")
with open(p, "wb") as f: f.truncate(3 * 1024 * 1024 + 123); f.seek(1024 * 1024); f.write(text(5000)); f.seek(2 * 1024 * 1024 + 4096); f.write(text(9000))
d = text(300000)
for n in ("a", "b", "sub/c"): put(f"basic/dup/{n}", d)
put("basic/dup/samehead", d[:262144] + text(100)); t = text(555); put("basic/dup/f1", t); put("basic/dup/f2", t)
for i in range(300): put(f"basic/dir300/file-{i:03d}-{'x' * (i % 40)}", text(i % 50))
for i in range(20): put(f"basic/small/{i:02d}.txt", text(700 + i * 37))
os.makedirs(f"{w}/basic/empty"); os.makedirs(f"{w}/basic/deep/" + "/".join(f"d{i}" for i in range(120)))
for n in (b"with space", b"-dash", b"new\nline", b"tab\t", b"a" * 255, b".hidden", b"..double", b"trail.", b"back\\slash", b"quo'te\"", b"~", b"A", b"B", b"a", b"_", b"caf\xc3\xa9", b"\xff\xfe-not-utf8"):
    put(b"basic/names/" + n, n)
put("basic/links/target", b"target\n")
for n, to in {"rel": "target", "abs": "/etc/passwd", "up": "../sizes/t0004096", "dangling": "no/such", "loop": "loop", "dir": "../small", "max": "m" * 4095, "out": "../../../../etc/passwd"}.items():
    os.symlink(to, f"{w}/basic/links/{n}")
for i in range(5): os.link(f"{w}/basic/links/target", f"{w}/basic/links/hard{i}")
os.link(f"{w}/basic/links/rel", f"{w}/basic/links/rel-hard", follow_symlinks=False)
for m in (0o000, 0o444, 0o755, 0o4755, 0o2755, 0o1777, 0o7777): os.chmod(put(f"basic/modes/m{m:04o}", b"m"), m)
# code, for the BCJ filters; small trees
with open("/bin/bash", "rb") as f: put("bin/bash", f.read())
put("tiny/hello", b"hello, world\n"); put("tiny/d/x", b"x"); os.symlink("hello", f"{w}/tiny/l")
put("one/f", text(1000)); os.makedirs(f"{w}/none"); put("special/dir/f", b"f")
# xattr
S, x = os.setxattr, f"{w}/xattr"
for i in range(9): put(f"xattr/{i}", b"%d" % i)
S(f"{x}/1", "user.empty", b""); S(f"{x}/4", "user.bin", b"\0\xff\0\xff\x80"); S(f"{x}/5", "user.big", b"A" * 3500)
for i in (1, 2, 3): S(f"{x}/{i}", "user.same", b"a value that is long enough to be shared")
for i in range(60): S(f"{x}/6", f"user.many{i}", b"value %d" % i)
S(f"{x}/7", "security.capability", bytes.fromhex("0100000200200000000000000000000000000000"))
os.mkdir(f"{x}/dir"); S(f"{x}/dir", "trusted.overlay.opaque", b"y"); S(x, "user.root", b"r")
os.symlink("1", f"{x}/sl"); os.mkfifo(f"{x}/ff"); os.mknod(f"{x}/cc", 0o020644, os.makedev(1, 3)); os.mknod(f"{x}/bb", 0o060644, os.makedev(7, 0))
socket.socket(socket.AF_UNIX).bind(f"{x}/ss")
for n in ("sl", "ff", "cc", "bb", "ss"): S(f"{x}/{n}", "trusted.t", n.encode(), follow_symlinks=False)
for base, dirs, files in os.walk(os.fsencode(w)):
    for n in dirs + files: os.utime(os.path.join(base, n), (T, T), follow_symlinks=False)
# pseudo files of mksquashfs
with open(f"{w}/special.pf", "w") as f:
    for n in ("", "dev", "ids", "times"): print(f"/{n} D {T} 755 0 0", file=f)
    for n, kind, major, minor in (("null", "C", 1, 3), ("sda", "B", 8, 0), ("maxmaj", "C", 4095, 0), ("maxmin", "C", 0, 1048575), ("min256", "B", 259, 256)): print(f"dev/{n} {kind} {T} 660 0 6 {major} {minor}", file=f)
    print(f"dev/fifo I {T} 644 0 0 f\ndev/sock I {T} 755 0 0 s", file=f)
    for u in (0, 1, 1000, 65534, 65535, 65536, 2147483647, 2147483648, 4294967294, 4294967295): print(f"ids/u{u} D {T} 755 {u} {u}", file=f)
    for t in (0, 1, 2147483647, 2147483648, 4294967295): print(f"times/t{t} D {t} 755 0 0", file=f)
with open(f"{w}/ids6000.pf", "w") as f:
    print(f"/ D {T} 755 0 0", file=f)
    for i in range(3000): print(f"n{i} D {T} 755 {100000 + i} {200000 + i}", file=f)
with open(f"{w}/ids65535.pf", "w") as f: # as many as the 16 bits of the superblock can count
    print(f"/ D {T} 755 0 0", file=f)
    for i in range(32768): print(f"n{i:05d} D {T} 755 {2 * i} {2 * i + 1 if i < 32767 else 0}", file=f)

# tar archives
def tar(name, entries):
    with tarfile.open(f"{w}/{name}.tar", "w", format=tarfile.PAX_FORMAT) as t:
        for path, data, more in entries:
            e = tarfile.TarInfo(path); e.mtime, e.mode, e.size = T, 0o644, len(data)
            for k, v in more.items(): setattr(e, k, v)
            t.addfile(e, io.BytesIO(data))

def xattrs(i):
    h = {"SCHILY.xattr.user.n": f"value-{i}", "SCHILY.xattr.user.shared": "S" * 200}
    if i % 500 == 0: h["SCHILY.xattr.user.huge"] = chr(65 + i // 500) * 60000 # more than a metadata block, out of line
    if i % 100 == 0: h["SCHILY.xattr.trusted.t"] = h["SCHILY.xattr.security.s"] = "t"
    return {"pax_headers": h}

# sqfstar goes through all names of a directory for each one: it gets fewer.
for name, n in (("dir20k", 20000), ("dir100k", 100000)): tar(name, ((f"big/f{i:06d}-{'n' * (i % 30)}", b"", {}) for i in range(n)))
for name, n in (("links10k", 10000), ("links70k", 70000)):
    tar(name, [("a", b"one inode\n", {})] + [(f"l/{i:05d}", b"", {"type": tarfile.LNKTYPE, "linkname": "a"}) for i in range(n)])
deep = ["/".join(f"d{i % 10}" for i in range(n)) for n in range(1, 1501)]
tar("deep1500", [(p, b"", {"type": tarfile.DIRTYPE, "mode": 0o755}) for p in deep] + [(deep[-1] + "/f", b"bottom\n", {})])
tar("longnames", [("n" * n, b"", {}) for n in (254, 255, 256)] + [(f"s{n}", b"", {"type": tarfile.SYMTYPE, "linkname": "t" * n}) for n in (1, 4095, 4096, 8191, 8192, 8193, 65535)])
tar("manyfrags", ((f"{i // 100:02d}/{i:05d}", random.randbytes(random.randint(900, 3000)), {"uid": i % 3000}) for i in range(6000)))
tar("xattr1500", ((f"x{i:04d}", b"", xattrs(i)) for i in range(1500)))
PY
	truncate -s 5G "$work/sparse5G" && printf end | dd of="$work/sparse5G" bs=1 seek=$((5 * 1024 * 1024 * 1024 - 3)) conv=notrunc status=none
	mkdir "$work/sparse" "$work/edge"
	mv "$work/sparse5G" "$work/sparse/5G"
	truncate -s 4294967296 "$work/edge/4G" && truncate -s 4294967295 "$work/edge/4G-1"
	printf '%s 100\n%s -5\n' "$work/basic/small/19.txt" "$work/basic/dup/a" >"$work/sort"
}

# plan prints a line for each image: its name, how it is made, and of what. The slow ones come first.
plan() {
	echo "tar-dir20k star dir20k -comp zstd -exports"
	echo "tar-manyfrags star manyfrags -comp lz4 -b 4K -exports"
	echo "tar-links10k star links10k -comp gzip"
	echo "tree-ids65535 mk none -pf $work/ids65535.pf"
	echo "sparse-5G mk sparse -comp zstd"
	echo "sparse-4G-edge mk edge -comp gzip -b 1M"
	for c in xz lzma lzo gzip lz4 zstd; do
		for b in 4K 128K 1M; do echo "basic-$c-$b mk basic -comp $c -b $b"; done
		echo "ng-$c ng basic -c $c"
	done
	cat <<-PLAN
		opt-nofrag mk basic -comp zstd -no-fragments
		opt-tailends mk basic -comp zstd -always-use-fragments
		opt-tailends-4K mk basic -comp lz4 -b 4K -always-use-fragments
		opt-noI mk basic -comp lz4 -noI
		opt-noD mk basic -comp lz4 -noD
		opt-noF mk basic -comp lz4 -noF
		opt-stored mk basic -noI -noD -noF -noX -noId
		opt-stored-1M mk basic -noI -noD -noF -noX -noId -b 1M
		opt-noexports mk basic -comp lz4 -no-exports
		opt-nodup mk basic -comp lz4 -no-duplicates
		opt-nosparse mk basic -comp lz4 -no-sparse
		opt-nohardlinks mk basic -comp lz4 -no-hardlinks
		opt-allroot-nopad mk basic -comp zstd -all-root -nopad
		opt-actions mk basic -comp zstd -action uncompressed@name(r*) -action no-fragments@name(t000*)
		opt-sorted mk basic -comp zstd -sort $work/sort
		copt-gzip-w8-l1 mk basic -comp gzip -Xcompression-level 1 -Xwindow-size 8
		copt-gzip-strategies mk small -comp gzip -Xstrategy default,filtered,huffman_only,run_length_encoded,fixed
		copt-xz-bcj mk bin -comp xz -Xbcj x86,arm,armthumb,powerpc,sparc,ia64
		copt-xz-dict8K mk bin -comp xz -b 1M -Xdict-size 8K
		copt-xz-dict75 mk bin -comp xz -b 1M -Xdict-size 75%
		copt-lzo1x_1 mk basic -comp lzo -Xalgorithm lzo1x_1
		copt-lzo1x_1_11 mk basic -comp lzo -Xalgorithm lzo1x_1_11
		copt-lzo1x_1_12 mk basic -comp lzo -Xalgorithm lzo1x_1_12
		copt-lzo1x_1_15 mk basic -comp lzo -Xalgorithm lzo1x_1_15
		copt-lzo-999-9 mk small -comp lzo -Xalgorithm lzo1x_999 -Xcompression-level 9
		copt-lz4-hc mk basic -comp lz4 -Xhc
		copt-zstd-1 mk basic -comp zstd -Xcompression-level 1
		copt-zstd-22-1M mk small -comp zstd -Xcompression-level 22 -b 1M
		tree-empty mk none
		tree-onefile mk one -b 1M
		tree-noxattr mk tiny -no-xattrs
		tree-special mk none -pf $work/special.pf
		tree-ids6000 mk none -pf $work/ids6000.pf
		xattr mk xattr -comp zstd -xattrs
		xattr-noX mk xattr -comp gzip -xattrs -noX
		xattr-dropped mk xattr -comp gzip -no-xattrs
		tar-deep1500 star deep1500 -comp gzip
		tar-longnames star longnames -comp gzip
		tar-xattr1500 star xattr1500 -comp zstd
		place-offset4096 mk tiny -offset 4096
		place-offset12345 mk tiny -offset 12345
		place-trailing trail tiny
		place-afterelf elf tiny
		place-appended append tiny
		ng-export-notail ng basic -e -T -c zstd -b 65536
		ng-empty ng none -c gzip
		ng-tar-dir100k ngtar dir100k -c zstd
		ng-tar-links70k ngtar links70k -c zstd
		ng-tar-xattr1500 ngtar xattr1500 -c zstd
	PLAN
	[ "${LARGE:-0}" = 0 ] || echo "large-4400M large one"
}

# pack makes $work/tmp/NAME.sqfs; quiet and silent unless it fails.
pack() {
	local name=$1 how=$2 from=$work/$3 to=$work/tmp/$1.sqfs
	shift 3
	local mk=(-noappend -quiet -no-progress -processors 1 -mkfs-time 1700000000)
	case $how in
	mk) mksquashfs "${from/%small/basic/small}" "$to" "${mk[@]}" "$@" ;;
	star) sqfstar -quiet -no-progress -processors 1 -mkfs-time 1700000000 "$@" "$to" <"$from.tar" ;;
	ng) gensquashfs -q -f -k -j 1 "$@" -D "$from" "$to" ;;
	ngtar) tar2sqfs -q -f -j 1 "$@" "$to" <"$from.tar" ;;
	trail) mksquashfs "$from" "$to" "${mk[@]}" && head -c 1000003 /bin/bash >>"$to" ;;
	elf) mksquashfs "$from" "$to.raw" "${mk[@]}" && { head -c 70001 /bin/bash && cat "$to.raw"; } >"$to" && rm "$to.raw" ;;
	append) mksquashfs "$from" "$to" "${mk[@]}" && mksquashfs "$work/basic/small" "$to" -quiet -no-progress -keep-as-directory ;;
	large)
		mkdir "$work/large" && truncate -s 4400M "$work/large/aaa" && cp "$work/basic/small/01.txt" "$work/large/zzz" &&
			mksquashfs "$work/large" "$to" "${mk[@]}" -noD -no-sparse -no-duplicates && fallocate -d "$to"
		;;
	esac
}

# one makes an image and what unsquashfs sees in it, and moves them to $out.
one() {
	local name=$1 t=$work/tmp/$1 off=0 sums=yes
	case $2 in
	ng) command -v gensquashfs >/dev/null || return 0 ;;
	ngtar) command -v tar2sqfs >/dev/null || return 0 ;;
	esac
	pack "$@" >"$t.log" 2>&1 || { cat "$t.log" >&2; die "cannot make $name"; }
	case $name in
	place-offset*) off=${name#place-offset} ;;
	place-afterelf) off=70001 ;;
	esac
	[ "$off" = 0 ] || echo "$off" >"$t.off"
	case $name in # listing only: cannot be extracted here, or need not
	*deep1500 | *longnames | sparse-* | large-* | *dir*k | *links*k | tree-* | *xattr1500) sums=no ;;
	esac
	# gensquashfs 1.2 writes LZ4 metadata blocks that are longer than what they expand to, which unsquashfs refuses. The
	# contents are those of all images of the tree.
	if [ "$name" != ng-lz4 ]; then
		unsquashfs -o "$off" -lln "$t.sqfs" >"$t.lln" 2>"$t.log" || { cat "$t.log" >&2; die "cannot list $name"; }
		if [ $sums = yes ]; then
			unsquashfs -o "$off" -no-progress -quiet -processors 1 -dest "$t.x" "$t.sqfs" >"$t.log" 2>&1 || { cat "$t.log" >&2; die "cannot extract $name"; }
			(cd "$t.x" && find . -type f -print0 | sort -z | xargs -0 -r sha256sum) >"$t.sums"
			rm -rf "$t.x"
		fi
	fi
	for ext in lln sums off sqfs; do
		[ ! -e "$t.$ext" ] || mv "$t.$ext" "$out/"
	done
}

main() {
	[ "$(id -u)" = 0 ] || die "needs root, for devices and owners"
	for tool in mksquashfs sqfstar unsquashfs python3 flock; do
		command -v $tool >/dev/null || die "needs $tool: run testdata/deps.sh"
	done
	mkdir -p "$out"
	out=$(cd "$out" && pwd)
	exec 9>"$out/lock"
	flock 9
	[ "$(cat "$out/recipe" 2>/dev/null)" != "$(recipe)" ] || return 0
	rm -f "$out"/recipe "$out"/*.sqfs "$out"/*.lln "$out"/*.sums "$out"/*.off

	work=$(mktemp -d "$out/build.XXXXXX")
	trap 'rm -rf "$work"' EXIT
	trap 'exit 1' HUP INT TERM
	mkdir "$work/tmp"
	echo "corpus.sh: making trees and archives"
	trees
	echo "corpus.sh: making $(plan | wc -l) images"
	export -f one pack die
	export work out
	# shellcheck disable=SC2016 # for the inner shell, in which the words of a line become arguments
	plan | xargs -d '\n' -n 1 -P "$(nproc)" bash -c 'set -efu; one $1' one 9>&-
	recipe >"$out/recipe"
}

main
echo "$(find "$out" -name '*.sqfs' | wc -l) images in $out"
