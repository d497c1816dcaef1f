/*
 * sleeper: the workload of the bench. It sleeps until TERM and ends with 0. With the argument
 * "true" it ends at once. It links statically, so that an image needs nothing but this one file.
 */
#include <signal.h>
#include <string.h>
#include <unistd.h>

static void end(int signal)
{
	(void)signal;
	_exit(0);
}

int main(int argc, char **argv)
{
	struct sigaction action = {.sa_handler = end};

	if (argc > 1 && strcmp(argv[1], "true") == 0)
		return 0;
	sigaction(SIGTERM, &action, NULL); /* process 1 of a namespace gets only what it handles */
	sigaction(SIGINT, &action, NULL);
	for (;;)
		pause();
}
