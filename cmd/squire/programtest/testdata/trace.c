#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

int square(int x) { return x * x; }

int main(void) {
	int status;
	if (fork() == 0) {
		printf("child %d\n", square(7));
		return 0;
	}
	wait(&status);
	return 3;
}
