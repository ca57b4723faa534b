/*
 * peer.c - expand the blocks of a file with a C library, as often as asked.
 *
 *   usage: peer FILE
 *
 * One of the macros zlib, libdeflate, liblzma, lzma, lzo, lz4 and zstd below, as -DPEER_zlib, says which library this
 * is built for. The libraries are used as squashfs-tools and the kernel use them, state that can be kept is kept.
 *
 * FILE and what is said on standard input and output are described in bench/blocks.go and bench/contestant.go;
 * squire's own side is sqfs/internal/codec/bench.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static void fail(const char *what)
{
	fprintf(stderr, "%s\n", what);
	exit(1);
}

/* setup is called once; expand returns the number of bytes, or -1. */
static void setup(void);
static long expand(uint8_t *dst, size_t room, const uint8_t *src, size_t len);

#if defined(PEER_zlib)

#include <zlib.h>

static z_stream z;

static void setup(void)
{
	if (inflateInit(&z) != Z_OK)
		fail("inflateInit");
}

static long expand(uint8_t *dst, size_t room, const uint8_t *src, size_t len)
{
	inflateReset(&z);
	z.next_in = (uint8_t *)src;
	z.avail_in = len;
	z.next_out = dst;
	z.avail_out = room;
	return inflate(&z, Z_FINISH) == Z_STREAM_END ? (long)z.total_out : -1;
}

#elif defined(PEER_libdeflate)

#include <libdeflate.h>

static struct libdeflate_decompressor *d;

static void setup(void)
{
	d = libdeflate_alloc_decompressor();
	if (!d)
		fail("libdeflate_alloc_decompressor");
}

static long expand(uint8_t *dst, size_t room, const uint8_t *src, size_t len)
{
	size_t n;
	return libdeflate_zlib_decompress(d, src, len, dst, room, &n) == LIBDEFLATE_SUCCESS ? (long)n : -1;
}

#elif defined(PEER_xz) || defined(PEER_lzma)

#include <lzma.h>

static lzma_stream s = LZMA_STREAM_INIT;

static void setup(void)
{
}

/* code goes on with more input; the output stays what it is. */
static lzma_ret code(const uint8_t *src, size_t len, lzma_action action)
{
	s.next_in = src;
	s.avail_in = len;
	return lzma_code(&s, action);
}

#if defined(PEER_xz)

static long expand(uint8_t *dst, size_t room, const uint8_t *src, size_t len)
{
	s.next_out = dst;
	s.avail_out = room;
	if (lzma_stream_decoder(&s, UINT64_MAX, 0) != LZMA_OK) /* keeps the memory of the stream before */
		return -1;
	return code(src, len, LZMA_FINISH) == LZMA_STREAM_END ? (long)s.total_out : -1;
}

#else

/* squashfs-tools, lzma_xz_wrapper.c: the header has the size of the block, yet there may be an end marker, which liblzma
 * accepts only where the size is unknown. */
static long expand(uint8_t *dst, size_t room, const uint8_t *src, size_t len)
{
	uint8_t header[13];
	lzma_ret ret;

	s.next_out = dst;
	s.avail_out = room;
	if (len < sizeof header || lzma_alone_decoder(&s, UINT64_MAX) != LZMA_OK)
		return -1;
	memcpy(header, src, 5);
	memset(header + 5, 255, 8);
	if (code(header, sizeof header, LZMA_RUN) != LZMA_OK)
		return -1;
	ret = code(src + sizeof header, len - sizeof header, LZMA_FINISH);
	return ret == LZMA_STREAM_END || (ret == LZMA_OK && s.avail_in == 0) ? (long)s.total_out : -1;
}

#endif

#elif defined(PEER_lzo)

#include <lzo/lzo1x.h>

static void setup(void)
{
	if (lzo_init() != LZO_E_OK)
		fail("lzo_init");
}

static long expand(uint8_t *dst, size_t room, const uint8_t *src, size_t len)
{
	lzo_uint n = room;
	return lzo1x_decompress_safe(src, len, dst, &n, NULL) == LZO_E_OK ? (long)n : -1;
}

#elif defined(PEER_lz4)

#include <lz4.h>

static void setup(void)
{
}

static long expand(uint8_t *dst, size_t room, const uint8_t *src, size_t len)
{
	return LZ4_decompress_safe((const char *)src, (char *)dst, len, room);
}

#elif defined(PEER_zstd)

#include <zstd.h>

static ZSTD_DCtx *d;

static void setup(void)
{
	d = ZSTD_createDCtx();
	if (!d)
		fail("ZSTD_createDCtx");
}

static long expand(uint8_t *dst, size_t room, const uint8_t *src, size_t len)
{
	size_t n = ZSTD_decompressDCtx(d, dst, room, src, len);
	return ZSTD_isError(n) ? -1 : (long)n;
}

#else
#error "no library: compile with -DPEER_zlib or another of the names"
#endif

static uint32_t crc_table[256];

static void make_crc_table(void)
{
	for (uint32_t i = 0; i < 256; i++) {
		uint32_t c = i;
		for (int k = 0; k < 8; k++)
			c = c & 1 ? c >> 1 ^ 0xedb88320 : c >> 1;
		crc_table[i] = c;
	}
}

static uint32_t crc32_of(uint32_t crc, const uint8_t *p, size_t n)
{
	crc = ~crc;
	while (n--)
		crc = crc_table[(crc ^ *p++) & 255] ^ crc >> 8;
	return ~crc;
}

static uint8_t *file, *dst;
static size_t file_size;
static uint32_t block_size, count;

/* number reads one of the file's numbers; both processors that squire knows are little-endian. */
static uint32_t number(size_t at)
{
	uint32_t x;

	if (file_size < at + sizeof x)
		fail("the file of blocks is too short");
	memcpy(&x, file + at, sizeof x);
	return x;
}

static void load(const char *name)
{
	FILE *f = fopen(name, "rb");
	long n;

	if (!f || fseek(f, 0, SEEK_END) || (n = ftell(f)) < 0)
		fail("cannot read the file of blocks");
	rewind(f);
	file = malloc(n);
	if (!file || fread(file, 1, n, f) != (size_t)n)
		fail("cannot read the file of blocks");
	fclose(f);
	file_size = n;
	block_size = number(4);
	count = number(8);
	dst = malloc(block_size);
	if (!dst)
		fail("no memory");
}

/* pass expands all blocks; with check it also returns the CRC of all, one after the other. */
static uint32_t pass(int check)
{
	size_t at = 12;
	uint32_t crc = 0;

	for (uint32_t i = 0; i < count; i++) {
		uint32_t len = number(at), want = number(at + 4);

		at += 8;
		if (len > file_size - at || want > block_size)
			fail("a block of the file is too long");
		if (expand(dst, want, file + at, len) != (long)want) {
			fprintf(stderr, "block %u of %u does not expand to %u bytes\n", i, count, want);
			exit(1);
		}
		at += len;
		if (check)
			crc = crc32_of(crc, dst, want);
	}
	return crc;
}

static double cpu_seconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
	char line[16];

	if (argc != 2)
		fail("usage: peer FILE");
	make_crc_table();
	load(argv[1]);
	setup();
	setvbuf(stdout, NULL, _IOLBF, 0);
	while (fgets(line, sizeof line, stdin)) {
		if (!strcmp(line, "check\n")) {
			printf("%08x\n", pass(1));
		} else {
			double start = cpu_seconds();

			pass(0);
			printf("%.9f\n", cpu_seconds() - start);
		}
	}
	return 0;
}
