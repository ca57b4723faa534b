/*
 * make.c - compress one text with each of the algorithms that mksquashfs -comp lzo knows, as it does (lzo_wrapper.c):
 * compress, then lzo1x_optimize.
 *
 *   cc -O2 -o make make.c -llzo2 && ./make | sha256sum
 *
 * writes NAME.lzo for each algorithm and the text itself to standard output. The decoder's test knows its SHA-256.
 * Made with liblzo2 2.10.
 */
#include <lzo/lzo1x.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SIZE = 70000 };

static unsigned char text[SIZE], out[2 * SIZE], work[LZO1X_999_MEM_COMPRESS > LZO1X_1_15_MEM_COMPRESS ? LZO1X_999_MEM_COMPRESS : LZO1X_1_15_MEM_COMPRESS];

static unsigned random_below(unsigned n)
{
	static unsigned long long state = 1;

	state = state * 6364136223846793005ULL + 1442695040888963407ULL;
	return (unsigned)(state >> 33) % n;
}

/* The text has all that the format has instructions for: runs of literals of all lengths, copies near and as far as
 * 48 KiB, short ones and very long ones, and copies that overlap what they write. */
static void make_text(void)
{
	unsigned n = 0;

	while (n < SIZE) {
		unsigned kind = random_below(100), len = 1 + random_below(12), from;

		if (random_below(200) == 0)
			len *= 100;
		if (len > SIZE - n)
			len = SIZE - n;
		if (kind < 3 || n == 0) {
			while (len--)
				text[n++] = random_below(256);
		} else if (kind < 12) {
			from = 1 + random_below(9); /* repeats of a few bytes */
			if (from > n)
				from = n;
			for (; len--; n++)
				text[n] = text[n - from];
		} else {
			from = 1 + random_below(kind < 50 ? 2000 : kind < 75 ? 20000 : 60000);
			if (from > n)
				from = n;
			for (len += 2; len-- && n < SIZE; n++)
				text[n] = text[n - from];
		}
	}
}

static int best(const lzo_bytep src, lzo_uint len, lzo_bytep dst, lzo_uintp n, lzo_voidp mem)
{
	return lzo1x_999_compress_level(src, len, dst, n, mem, NULL, 0, 0, 8);
}

int main(void)
{
	static const struct {
		const char *file;
		lzo_compress_t compress;
	} all[] = {
		{ "lzo1x_1.lzo", lzo1x_1_compress }, { "lzo1x_1_11.lzo", lzo1x_1_11_compress },
		{ "lzo1x_1_12.lzo", lzo1x_1_12_compress }, { "lzo1x_1_15.lzo", lzo1x_1_15_compress },
		{ "lzo1x_999.lzo", best },
	};

	if (lzo_init() != LZO_E_OK)
		return 1;
	make_text();
	for (unsigned i = 0; i < sizeof all / sizeof *all; i++) {
		lzo_uint n, size = SIZE;
		FILE *f = fopen(all[i].file, "wb");

		if (!f || all[i].compress(text, SIZE, out, &n, work) != LZO_E_OK)
			return 1;
		if (lzo1x_optimize(out, n, text, &size, NULL) != LZO_E_OK || size != SIZE)
			return 1;
		if (fwrite(out, 1, n, f) != n || fclose(f))
			return 1;
	}
	return fwrite(text, 1, SIZE, stdout) != SIZE;
}
