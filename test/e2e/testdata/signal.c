// Waits for any signal that can be blocked, and exits with its number.
#include <signal.h>
#include <stdio.h>

int main(void)
{
	sigset_t all;
	int number;
	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, NULL);
	puts("ready");
	fflush(stdout);
	return sigwait(&all, &number) ? 255 : number;
}
