#!/bin/sh
# compile.sh: a compiler, make and git at work in the root file system itself.
set -e
mkdir /srv/build && cd /srv/build
for i in 1 2 3 4 5 6; do echo "int f$i(void) { return $i; }" >f$i.c; done
cat >main.c <<'C'
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
int f1(void), f2(void), f3(void), f4(void), f5(void), f6(void);
int main(void) {
	/* A file is written through a shared mapping, as linkers do. */
	int fd = open("mapped", O_RDWR | O_CREAT | O_TRUNC, 0600);
	if (fd < 0 || ftruncate(fd, 8192)) return 1;
	char *p = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), b[7];
	if (p == MAP_FAILED) return 2;
	strcpy(p + 4096, "mapped");
	if (msync(p, 8192, MS_SYNC)) return 3;
	if (pread(fd, b, 7, 4096) != 7 || strcmp(b, "mapped")) return 4;
	printf("program %d\n", f1() + f2() + f3() + f4() + f5() + f6());
	return 0;
}
C
cat >Makefile <<'M'
objects = main.o f1.o f2.o f3.o f4.o f5.o f6.o
program: $(objects)
	$(CC) -o $@ $^
%.o: %.c
	$(CC) $(CFLAGS) -c -o $@.tmp $<
	mv $@.tmp $@
M
make -s -j4 CFLAGS='-O1 -g'
./program
make -q && touch f1.c && ! make -q

# A cache as that of ccache: objects come in by rename, and go out as hard links.
mkdir -p cache/a && cp f1.o cache/a/tmp.1 && mv cache/a/tmp.1 cache/a/object && rm f1.o && ln cache/a/object f1.o && stat -c 'links %h' f1.o
cc -O1 -static -o static main.c f?.c && ./static
cc -shared -fPIC -o libf.so f?.c && cc -o shared main.c -L. -lf && LD_LIBRARY_PATH=. ./shared

git init -q repository && cd repository
git config user.name me && git config user.email me@localhost
cp ../*.c . && git add . && git commit -qm one && git gc -q && git fsck --no-progress
git clone -q . ../local && git clone -q file:///srv/build/repository ../served
git -C ../served worktree add -q ../tree && find ../tree -name "*.c" | wc -l
