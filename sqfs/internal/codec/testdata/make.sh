#!/bin/bash
# Makes the streams in this directory whose names start with xz- and lzma-, and SUMS:
# sha256sum of what they hold. Needs xz >= 5.8 and python3.
set -eu
export LC_ALL=C
cd "$(dirname "$0")"
out=$PWD
w=$(mktemp -d)
trap 'rm -rf "$w"' EXIT
rm -f ./xz-* ./lzma-* SUMS
cd "$w"

# Data full of what the filters take for branches, and text.
python3 - <<'PY'
import random, struct
random.seed(3)
R = random.getrandbits
def x86():
    b = bytes([random.choice((0xE8, 0xE9))]) + bytes(random.choice((0, 255, 0xE8, 0xE9, R(8))) for _ in range(4))
    return b[:random.choice((5, 5, 5, 1, 2, 3))]
def powerpc(): return struct.pack(">I", random.choice((0x48000001, 0x48000001, 0x48000000)) | R(26) & 0x03fffffc)
def ia64():
    v = R(128) & ~31 | random.choice((0x10, 0x11, 0x12, 0x13, 0x16, 0x17, 0x18, 0x19, 0x1c, 0x1d, R(5)))
    for slot in range(3):
        if R(2): v = v & ~(0xf << 42 + 41 * slot | 7 << 14 + 41 * slot) | 5 << 42 + 41 * slot
    return v.to_bytes(16, "little")
def arm(): return struct.pack("<I", random.choice((0xEB, 0xEB, R(8))) << 24 | R(24))
def armthumb(): return struct.pack("<HH", random.choice((0xF000, 0xF000, 0)) | R(11), random.choice((0xF800, 0xF800, 0)) | R(11))
def sparc(): return struct.pack(">I", random.choice((0x40000000, 0x7FC00000, 0x40400000)) | R(22))
def arm64():
    if R(1): return struct.pack("<I", 0x94000000 | R(26))
    return struct.pack("<I", 0x90000000 | R(5) | R(2) << 29 | random.choice((R(18), 0x1C0000 | R(18), R(21)) ) << 3 & 0xffffe0)
def riscv():
    rd = random.choice((1, 5, 10, 0, 2, R(5)))
    if R(1): return struct.pack("<I", 0xEF | random.choice((1, 5, 0, R(5))) << 7 | R(20) << 12)
    pair = struct.pack("<I", R(12) << 20 | random.choice((rd, rd, rd, R(5))) << 15 | R(13) << 2 | random.choice((3, 3, R(2))))
    if R(2): return struct.pack("<I", 0x17 | rd << 7 | R(20) << 12) + pair
    return struct.pack("<I", 0x17 | 2 << 7 | random.choice((3, R(2))) << 12 | R(13) << 14 | R(5) << 27) + pair
def code(f, n):
    b = b""
    while len(b) < n: b += f() if R(3) else bytes(R(8) for _ in range(random.choice((2, 4, 4, 16))))
    return b[:n]
for f in (x86, powerpc, ia64, arm, armthumb, sparc, arm64, riscv):
    open(f.__name__, "wb").write(code(f, 3011))
    open(f.__name__ + "-short", "wb").write(code(f, 820))
open("all", "wb").write(b"".join(code(f, 300) for f in (x86, riscv, arm64)))
words = [bytes(random.choice(b"etaoinsr") for _ in range(random.randint(2, 9))) for _ in range(200)]
text = b" ".join(random.choice(words) * random.choice((1, 1, 1, 2, 1, 1, 1, 1, 1, 1, 1, 60)) for _ in range(2000))[:10000]
open("text", "wb").write(text)
open("chunks", "wb").write(text[:4000] + random.randbytes(2000) + text[4000:7000] + b"x" * 3000)
open("one", "wb").write(b"1"); open("empty", "wb").write(b"")
PY

put() { # put NAME DATA FLAGS...
	xz --format="${1%%-*}" -c "${@:3}" "$2" >"$out/$1"
	echo "$(sha256sum <"$2" | cut -d' ' -f1)  $1" >>"$out/SUMS"
}

for f in x86 powerpc ia64 arm armthumb sparc arm64 riscv; do
	put "xz-$f" $f --check=crc64 --$f --lzma2=preset=6,dict=16KiB
	put "xz-$f-start" $f-short --check=crc32 --$f=start=4294966272 --lzma2=preset=6,dict=16KiB
	put "xz-$f-blocks" $f-short --check=crc32 --$f --lzma2=preset=6,dict=16KiB --block-list="$(seq -s, 1 39),0"
done
put xz-chain all --check=crc32 --x86=start=7 --riscv=start=2 --arm64=start=4 --lzma2=preset=6,dict=16KiB
put xz-delta text --check=crc32 --delta=dist=4 --lzma2=preset=6,dict=16KiB
for p in 0 1 2 3 4 5 6 7 8 9; do
	put "xz-preset-$p" text --check=crc32 -$p
	put "xz-preset-${p}e" text --check=crc32 -${p}e
done
for p in 0,0,0 4,0,4 0,4,2 2,2,0 1,3,1; do
	IFS=, read -r lc lp pb <<<"$p"
	put "xz-lclppb-$p" text --check=crc32 --lzma2=preset=6,dict=16KiB,lc="$lc",lp="$lp",pb="$pb"
	put "lzma-lclppb-$p" text --lzma1=preset=6,dict=16KiB,lc="$lc",lp="$lp",pb="$pb"
done
for c in none crc32 crc64 sha256; do put xz-check-$c text --check=$c --lzma2=preset=6,dict=16KiB; done
put xz-blocks text --check=crc32 --lzma2=preset=6,dict=16KiB --block-size=3000
put xz-blocks-sized text --check=crc32 --lzma2=preset=6,dict=16KiB --block-size=3000 --threads=2
for f in empty one; do put xz-$f $f --check=crc32 --lzma2=preset=6,dict=16KiB; put lzma-$f $f; done
put lzma-text text
# Chunks of LZMA2: flushed before each pause, with data that is stored between.
at=0
for end in 1000 2500 4000 6000 7000 9000 12000; do
	tail -c +$((at + 1)) chunks | head -c $((end - at))
	sleep 0.3
	at=$end
done | xz --check=crc32 --lzma2=preset=6,dict=16KiB --flush-timeout=50 -c >"$out/xz-chunks"
echo "$(sha256sum <chunks | cut -d' ' -f1)  xz-chunks" >>"$out/SUMS"
du -sh "$out"
