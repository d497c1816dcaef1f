// Makes system calls by number and prints the result of each. Arguments: number[:argument…], or
// first-last. A missing argument is -1, with which no call has an effect.
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void call(const long *v)
{
	int status;
	pid_t pid = fork();

	if (pid == 0) {
		errno = 0;
		syscall(v[0], v[1], v[2], v[3], v[4], v[5], v[6]);
		syscall(SYS_exit_group, errno);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		exit(1);
	if (WIFSIGNALED(status))
		printf("%ld: signal %d\n", v[0], WTERMSIG(status));
	else
		printf("%ld: errno %d\n", v[0], WEXITSTATUS(status));
	fflush(stdout);
}

int main(int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		long v[7] = {-1, -1, -1, -1, -1, -1, -1};
		char *at = argv[i], *dash = strchr(at, '-');

		if (dash && dash > at) {
			long last = atol(dash + 1);

			for (v[0] = atol(at); v[0] <= last; v[0]++)
				call(v);
			continue;
		}
		for (int n = 0; at && n < 7; n++)
			v[n] = atol(strsep(&at, ":"));
		call(v);
	}
	return 0;
}
